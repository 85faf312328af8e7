//! Statements: one encoding, readable by others, and nothing else decodes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_protocol::configuration::Window;
use casemate_protocol::statement::{
    CommandResult, FenceKind, FenceStatement, MAX_STATEMENT_LEN, StatedCommand, StatedFloors, StatedKeys,
    StatedNetwork, StatedRecord, StatedState, StatedStatus, Statement, StatementError,
};
use casemate_protocol::{Bytes, Epoch, Slot, cbor};
use proptest::prelude::*;

fn statement() -> Statement {
    Statement::new(
        "0.1.0".into(),
        "alpha".into(),
        StatedNetwork {
            name: "hoodi".into(),
            genesis_validators_root: Bytes([1; 32]),
            genesis_time: 1_742_213_400,
            slot_duration_ms: 12_000,
            slots_per_epoch: 32,
        },
        StatedKeys { count: 64, root: Bytes([2; 32]) },
        Bytes([3; 32]),
        FenceStatement {
            kind: FenceKind::Etcd,
            store: Some("cdf818194e3a8c32/casemate/#root-sha256=ab".into()),
            term: 7,
            standing: StatedStatus::Holding,
            record: Some(StatedRecord {
                version: 12,
                holder: Bytes([3; 32]),
                term: 7,
                slot_ceiling: Slot(100),
                target_ceiling: Epoch(3),
                source_ceiling: Epoch(2),
                min_state_version: 7 << 32,
                released_state: Some(Bytes([8; 32])),
                closed: false,
            }),
            floors: StatedFloors { slot: Some(Slot(90)), target: Some(Epoch(2)), source: Some(Epoch(1)) },
            time_ms: Some(1_790_000_000_000),
        },
        Window { max_block_age_slots: Some(2), max_target_age_epochs: None },
        Bytes([4; 32]),
        Bytes([5; 32]),
    )
    .with_state(Some(StatedState { number: (7 << 32) + 1, sha256: Bytes([6; 32]), fence_version: 11 }))
}

/// Byte for byte: archived statements must stay readable. docs/PROTOCOL.md names the fields.
#[test]
fn the_encoding_is_what_it_was() {
    let mut expected = Vec::new();
    let text = |out: &mut Vec<u8>, s: &str| {
        let len = u8::try_from(s.len()).unwrap();
        if len < 24 {
            out.push(0x60 | len);
        } else {
            out.extend([0x78, len]);
        }
        out.extend(s.bytes());
    };
    let root = |out: &mut Vec<u8>, byte: u8| out.extend([&[0x58, 32][..], &[byte; 32]].concat());
    expected.push(0xac);
    text(&mut expected, "version");
    expected.push(1);
    text(&mut expected, "product_version");
    text(&mut expected, "0.1.0");
    text(&mut expected, "group");
    text(&mut expected, "alpha");
    text(&mut expected, "network");
    expected.push(0xa5);
    text(&mut expected, "name");
    text(&mut expected, "hoodi");
    text(&mut expected, "genesis_validators_root");
    root(&mut expected, 1);
    text(&mut expected, "genesis_time");
    expected.extend([0x1a, 0x67, 0xd8, 0x11, 0x18]);
    text(&mut expected, "slot_duration_ms");
    expected.extend([0x19, 0x2e, 0xe0]);
    text(&mut expected, "slots_per_epoch");
    expected.extend([0x18, 32]);
    text(&mut expected, "public_keys");
    expected.push(0xa2);
    text(&mut expected, "count");
    expected.extend([0x18, 64]);
    text(&mut expected, "root");
    root(&mut expected, 2);
    text(&mut expected, "configuration_sha256");
    root(&mut expected, 3);
    text(&mut expected, "fence");
    expected.push(0xa7);
    text(&mut expected, "kind");
    text(&mut expected, "etcd");
    text(&mut expected, "store");
    text(&mut expected, "cdf818194e3a8c32/casemate/#root-sha256=ab");
    text(&mut expected, "generation");
    expected.push(7);
    text(&mut expected, "standing");
    text(&mut expected, "holding");
    text(&mut expected, "record");
    expected.push(0xa9);
    text(&mut expected, "version");
    expected.push(12);
    text(&mut expected, "holder");
    root(&mut expected, 3);
    text(&mut expected, "generation");
    expected.push(7);
    text(&mut expected, "slot_ceiling");
    expected.extend([0x18, 100]);
    text(&mut expected, "target_ceiling");
    expected.push(3);
    text(&mut expected, "source_ceiling");
    expected.push(2);
    text(&mut expected, "sealed_generation");
    expected.extend([0x1b, 0, 0, 0, 7, 0, 0, 0, 0]);
    text(&mut expected, "clean");
    root(&mut expected, 8);
    text(&mut expected, "closed");
    expected.push(0xf4);
    text(&mut expected, "floors");
    expected.push(0xa3);
    text(&mut expected, "slot");
    expected.extend([0x18, 90]);
    text(&mut expected, "target");
    expected.push(2);
    text(&mut expected, "source");
    expected.push(1);
    text(&mut expected, "time_ms");
    expected.extend([0x1b, 0, 0, 0x01, 0xa0, 0xc4, 0x50, 0x6c, 0]);
    text(&mut expected, "window");
    expected.push(0xa2);
    text(&mut expected, "max_block_age_slots");
    expected.push(2);
    text(&mut expected, "max_target_age_epochs");
    expected.push(0xf6);
    text(&mut expected, "boot_nonce");
    root(&mut expected, 4);
    text(&mut expected, "record_key");
    root(&mut expected, 5);
    text(&mut expected, "last_command");
    expected.push(0xf6);
    text(&mut expected, "state");
    expected.push(0xa3);
    text(&mut expected, "number");
    expected.extend([0x1b, 0, 0, 0, 7, 0, 0, 0, 1]);
    text(&mut expected, "sha256");
    root(&mut expected, 6);
    text(&mut expected, "fence_version");
    expected.push(11);
    assert_eq!(const_hex::encode(statement().encode()), const_hex::encode(&expected));
    assert_eq!(Statement::decode(&expected), Ok(statement()));
}

#[test]
fn what_became_of_the_last_command_is_stated() {
    for result in
        [CommandResult::Done { outcome_sha256: Bytes([6; 32]) }, CommandResult::Refused, CommandResult::MaybeSealed]
    {
        let command = StatedCommand { counter: 1_790_000_000_000, sha256: Bytes([5; 32]), result };
        let stated = statement().after(Some(command));
        assert_eq!(Statement::decode(&stated.encode()).unwrap().last_command, Some(command));
        assert_ne!(stated.encode(), statement().encode());
    }
}

#[test]
fn what_is_no_statement_is_refused() {
    let good = statement().encode();
    assert_eq!(Statement::decode(&[]), Err(StatementError::Size { len: 0 }));
    let long = vec![0xa8; MAX_STATEMENT_LEN + 1];
    assert_eq!(Statement::decode(&long), Err(StatementError::Size { len: MAX_STATEMENT_LEN + 1 }));
    assert_eq!(Statement::decode(&[good.as_slice(), &[0]].concat()), Err(StatementError::Encoding));
    assert_eq!(Statement::decode(&good[..good.len() - 1]), Err(StatementError::Encoding));
    let mut other_version = good.clone();
    other_version[9] = 2;
    assert_eq!(Statement::decode(&other_version), Err(StatementError::Version(2)));
    for bad in ["\u{1b}[2J", "x\n", &"x".repeat(129), "å"] {
        let mut bad_text = statement();
        bad_text.group = bad.into();
        assert_eq!(Statement::decode(&bad_text.encode()), Err(StatementError::Text), "{bad:?}");
    }
    let with_store = |store: Option<String>| {
        let mut stated = statement();
        stated.fence.store = store;
        Statement::decode(&stated.encode()).map(drop)
    };
    assert_eq!(with_store(None), Ok(()));
    assert_eq!(with_store(Some("x".repeat(512))), Ok(()));
    for bad in ["\u{1b}[2J".to_owned(), "x\n".to_owned(), "x".repeat(513)] {
        assert_eq!(with_store(Some(bad)), Err(StatementError::Text));
    }
}

#[test]
fn the_payload_of_a_document_is_found() {
    let document = [&[0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x43][..], b"abc", &[0x41, 0]].concat();
    assert_eq!(cbor::cose_payload(&document), Some(b"abc".to_vec()));
    assert_eq!(cbor::cose_payload(&document[..10]), None);
    assert_eq!(cbor::cose_payload(&[0x80]), None);
}

proptest! {
    #[test]
    fn whatever_decodes_is_the_encoding_of_it(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = statement().encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(statement) = Statement::decode(&bytes) {
            prop_assert_eq!(statement.encode(), bytes);
        }
    }
}
