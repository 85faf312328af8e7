//! What is posted to the key manager API: sorted, or refused.
#![no_main]

use casemate_protocol::Bytes;
use casemate_proxy::api::keystores::posted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = posted(data, Bytes([4; 32]));
});
