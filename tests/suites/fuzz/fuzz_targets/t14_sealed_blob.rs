//! Sealed blobs: whatever the parent offers, its header fits the configuration or is refused; and nothing but what was sealed
//! with the data key opens.
#![no_main]

use std::cell::RefCell;

use casemate_protocol::Bytes;
use casemate_vault::keys::seal::{self, Contents, SealBinding};
use libfuzzer_sys::fuzz_target;

const DATA_KEY: [u8; 32] = [7; 32];

fn place() -> SealBinding {
    SealBinding { key_arn: "arn".into(), group: "g".into(), network: Bytes([5; 32]) }
}

thread_local! {
    static GOOD: RefCell<Vec<u8>> =
        RefCell::new(seal::seal(&Contents::default(), &DATA_KEY, vec![1; 8], &place(), 3).unwrap());
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = seal::header(bytes, &place(), 3) {
        assert!(header.state_version >= 3 && header.group == "g" && header.key_arn == "arn");
    }
    assert!(seal::open(bytes, &DATA_KEY, &place(), 3).is_err(), "opened what was not sealed");
    // A good blob with the fuzzer's bytes laid over it.
    GOOD.with(|good| {
        let mut changed = good.borrow().clone();
        for (pair, at) in bytes.chunks_exact(2).zip(0..4) {
            let len = changed.len();
            changed[(usize::from(pair[0]) + at) % len] ^= pair[1];
        }
        let same = changed == *good.borrow();
        assert_eq!(seal::open(&changed, &DATA_KEY, &place(), 3).is_ok(), same);
    });
});
