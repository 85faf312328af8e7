//! Frames between broker and parent: whatever decodes is the one encoding of what it decoded to.
#![no_main]

use casemate_protocol::frame;
use casemate_protocol::host_services::{
    MAX_HOST_FRAME_LEN, decode_reply, decode_request, encode_reply, encode_request,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = decode_request(bytes) {
        let mut out = Vec::new();
        encode_request(&request, &mut out);
        assert_eq!(&out[4..], bytes);
    }
    if let Ok(reply) = decode_reply(bytes) {
        let mut out = Vec::new();
        encode_reply(&reply, &mut out);
        assert_eq!(&out[4..], bytes);
    }
    if let Ok(Some((inner, used))) = frame::split(bytes, MAX_HOST_FRAME_LEN) {
        assert_eq!(inner.len() + 4, used);
    }
});
