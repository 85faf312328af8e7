//! A group's record goes on in another store, and comes back over one that has ended.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use casemate_fence::{Beginning, FenceMachine, FenceStatus, Record, StoreOp, StoreRequest, StoreResponse};
use casemate_protocol::{Bytes, Epoch, Slot};
use casemate_slashing::Ceilings;

const ME: Bytes<32> = Bytes([1; 32]);

fn ended(version: u64) -> Record {
    let ceilings = Ceilings { slot: Slot(9), target: Epoch(3), source: Epoch(2) };
    let (holder, term, min_state_version) = (Bytes([2; 32]), 7, 4);
    Record { version, holder, term, ceilings, min_state_version, released_state: None, closed: true }
}

fn after(above_version: u64) -> Beginning {
    let ceilings = Ceilings { slot: Slot(8), target: Epoch(4), source: Epoch(2) };
    Beginning { above_version, term: 8, ceilings, min_state_version: 5, exact: None, lost: false }
}

/// An enclave whose sealed state has seen this version, and what the store shows it.
fn looked(seen: u64, found: Option<Record>) -> FenceMachine {
    let mut fence = FenceMachine::new(ME, seen);
    let StoreRequest { number, op: question } = fence.poll().unwrap();
    assert_eq!(question, StoreOp::Read);
    assert_eq!(fence.on_response(number, StoreResponse::Record(found)), None);
    fence
}

#[test]
fn in_a_store_without_a_record_the_next_one_begins_above_all_that_was_seen_under_the_one_that_ended() {
    let mut fence = looked(5, None);
    assert_eq!(fence.status(), FenceStatus::RolledBack { seen: 5, found: 0 });
    // An end that is older than what was seen is not the last one.
    assert_eq!(fence.create(&after(4)), None);
    let ask = fence.create(&after(6)).unwrap();
    let StoreOp::Create(new) = ask.op else { panic!("{ask:?}") };
    assert_eq!((new.version, new.closed, new.term), (7, false, 8));
    assert_eq!(fence.on_response(ask.number, StoreResponse::Swapped), None);
    assert_eq!(fence.status(), FenceStatus::Standby(new));
    // Without any record that ended, it is one that was lost.
    assert_eq!(looked(5, None).create(&after(0)), None);
    assert!(looked(5, None).create(&Beginning { lost: true, ..after(0) }).is_some());
}

#[test]
fn back_where_a_record_has_ended_before_the_next_one_takes_its_place() {
    let tombstone = ended(3);
    let mut fence = looked(5, Some(tombstone));
    assert_eq!(fence.status(), FenceStatus::Closed(tombstone));
    assert_eq!(fence.create(&after(4)), None, "since then it was elsewhere");
    let ask = fence.create(&after(6)).unwrap();
    let StoreOp::Swap { old, new } = ask.op else { panic!("{ask:?}") };
    assert_eq!((old, new.version), (tombstone, 7));
    // Of both ends, whatever could be signed under either.
    assert_eq!(new.ceilings, Ceilings { slot: Slot(9), target: Epoch(4), source: Epoch(2) });
    // Not heard of: asked again from what is there.
    let again = fence.on_response(ask.number, StoreResponse::Unclear).unwrap();
    assert_eq!(again.op, StoreOp::Read);
    let swap = fence.on_response(again.number, StoreResponse::Record(Some(tombstone))).unwrap();
    assert_eq!(swap.op, StoreOp::Swap { old, new });
    assert_eq!(fence.on_response(swap.number, StoreResponse::Swapped), None);
    assert_eq!(fence.status(), FenceStatus::Standby(new));
}

#[test]
fn an_end_from_before_its_own_record_is_an_older_one_to_a_holder() {
    let record = Record { closed: false, holder: Bytes([0; 32]), ..ended(5) };
    let mut fence = looked(5, Some(record));
    let ask = fence.acquire(None, 4, None).unwrap();
    fence.on_response(ask.number, StoreResponse::Swapped);
    assert!(fence.limits().is_some());
    let ask = fence.poll().unwrap();
    fence.on_response(ask.number, StoreResponse::Record(Some(ended(3))));
    assert_eq!((fence.status(), fence.limits()), (FenceStatus::RolledBack { seen: 6, found: 3 }, None));
    // One that is no end is an older record to everybody.
    assert!(matches!(looked(5, Some(Record { closed: false, ..ended(3) })).status(), FenceStatus::RolledBack { .. }));
}
