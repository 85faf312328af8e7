//! A stream of frames is split alike however it is cut, and never beyond its bytes.
#![no_main]

use casemate_protocol::frame::{self, MAX_FRAME_LEN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some((inner, used))) = frame::split(rest, MAX_FRAME_LEN) {
        assert_eq!(used, inner.len() + 4);
        // Cut short by one byte, the same frame is not there yet.
        assert_eq!(frame::split(&rest[..used - 1], MAX_FRAME_LEN), Ok(None));
        let _ = frame::split_channel(inner);
        rest = &rest[used..];
    }
});
