//! A reply frame decodes to something that encodes to the same bytes, or not at all.
#![no_main]

use casemate_protocol::frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(reply) = frame::decode_reply(bytes) {
        let mut again = Vec::new();
        frame::encode_reply(&reply, &mut again);
        assert_eq!(&again[4..], bytes);
    }
});
