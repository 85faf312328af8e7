//! Records as a store has them, and credentials as operators bring them: one encoding, bound to the group, nothing else decodes.
#![no_main]

use std::sync::LazyLock;

use casemate_fence::{GroupId, Record};
use casemate_protocol::Bytes;
use casemate_protocol::command::StoreCredentials;
use libfuzzer_sys::fuzz_target;

static PLACE: LazyLock<GroupId> = LazyLock::new(|| GroupId { group: "alpha".into(), network: Bytes([5; 32]) });

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = Record::decode(bytes, &PLACE) {
        assert_eq!(record.encode(&PLACE), bytes);
        assert!(record.version > 0);
    }
    if let Some(credentials) = StoreCredentials::decode(bytes) {
        assert_eq!(credentials.encode().as_slice(), bytes);
    }
});
