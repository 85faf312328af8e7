//! The fence's state machine, step by step: each question with every field of its record, and each answer with what follows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_fence::FenceMachine;
use casemate_fence::{Beginning, FenceStatus, MAX_VERSION_STEP, Record, StoreOp, StoreRequest, StoreResponse};
use casemate_protocol::{Bytes, Epoch, Root, Slot};
use casemate_slashing::{Ceilings, Floors, Limits};

const ME: Bytes<32> = Bytes([1; 32]);
const OTHER: Bytes<32> = Bytes([2; 32]);
const STATE: Root = Bytes([7; 32]);

fn ceilings(slot: u64, target: u64, source: u64) -> Ceilings {
    Ceilings { slot: Slot(slot), target: Epoch(target), source: Epoch(source) }
}

/// A record that another enclave holds.
fn held() -> Record {
    Record {
        version: 10,
        holder: OTHER,
        term: 5,
        ceilings: ceilings(100, 4, 3),
        min_state_version: 77,
        released_state: None,
        closed: false,
    }
}

fn beginning() -> Beginning {
    Beginning {
        above_version: 3,
        term: 9,
        ceilings: ceilings(50, 2, 1),
        min_state_version: 9 << 32,
        exact: Some(STATE),
        lost: false,
    }
}

/// The question that is out, of this number and kind.
fn asked(fence: &FenceMachine, ask: Option<StoreRequest>) -> (u64, StoreOp) {
    let ask = ask.expect("a question");
    assert_eq!(fence.pending(), Some(ask));
    (ask.number, ask.op)
}

/// Has the record read, and answers.
fn look(fence: &mut FenceMachine, found: Option<Record>) -> Option<StoreRequest> {
    let ask = fence.poll();
    let (number, question) = asked(fence, ask);
    assert_eq!(question, StoreOp::Read);
    let next = fence.on_response(number, StoreResponse::Record(found));
    if next.is_none() {
        assert_eq!(fence.pending(), None);
    }
    next
}

fn seen(record: Record) -> FenceMachine {
    let mut fence = FenceMachine::new(ME, 0);
    assert_eq!(look(&mut fence, Some(record)), None);
    assert_eq!((fence.status(), fence.seen()), (FenceStatus::Standby(record), record.version));
    fence
}

fn claimed(record: Record, state: Option<Root>, sealed: u64) -> (FenceMachine, Record) {
    let mut fence = seen(record);
    let ask = fence.acquire(state, sealed, None);
    let (number, question) = asked(&fence, ask);
    let StoreOp::Swap { old, new } = question else { panic!("{question:?}") };
    assert_eq!(old, record);
    assert_eq!(fence.status(), FenceStatus::Acquiring);
    assert_eq!(fence.limits(), None);
    assert_eq!(fence.on_response(number, StoreResponse::Swapped), None);
    (fence, new)
}

#[test]
fn a_claim_takes_the_record_as_it_is_under_a_new_term_and_floors() {
    let (fence, new) = claimed(held(), None, 80);
    assert_eq!(new, Record { version: 11, holder: ME, term: 6, min_state_version: 80, ..held() });
    assert_eq!(fence.status(), FenceStatus::Holding(new));
    assert_eq!(fence.seen(), 11);
    let floors = Floors { slot: Some(Slot(100)), target: Some(Epoch(4)), source: Some(Epoch(3)) };
    assert_eq!(fence.limits(), Some(Limits { floors, ceilings: ceilings(100, 4, 3) }));
    // An older state never lowers what is refused.
    assert_eq!(claimed(held(), None, 5).1.min_state_version, 77);
    // The exact state has no floors, and another one has.
    let left = Record { released_state: Some(STATE), ..held() };
    let (fence, new) = claimed(left, Some(STATE), 77);
    assert_eq!(new.released_state, None, "what was left behind is used up");
    assert_eq!(fence.limits().unwrap().floors, Floors::default());
    let (fence, _) = claimed(left, Some(Bytes([8; 32])), 77);
    assert_eq!(fence.limits().unwrap().floors, floors);
    let (fence, _) = claimed(left, None, 77);
    assert_eq!(fence.limits().unwrap().floors, floors);
    let (fence, _) = claimed(held(), Some(STATE), 77);
    assert_eq!(fence.limits().unwrap().floors, floors);
    // What is known to have each signature before it is out stands in the record from the claim on.
    let mut fence = seen(held());
    let ask = fence.acquire(None, 77, Some(STATE));
    let (_, StoreOp::Swap { new, .. }) = asked(&fence, ask) else { panic!() };
    assert_eq!(new.released_state, Some(STATE));
    // One question at a time, and none for who has not seen.
    assert_eq!((fence.acquire(None, 77, None), fence.poll()), (None, None));
    assert_eq!(FenceMachine::new(ME, 0).acquire(None, 0, None), None);
}

#[test]
fn a_state_that_has_seen_more_than_the_record_at_hand_does_not_claim() {
    let mut fence = seen(held());
    fence.has_seen(11);
    assert_eq!(fence.seen(), 11);
    assert_eq!(fence.acquire(None, 77, None), None);
    fence.has_seen(3);
    assert_eq!(fence.seen(), 11, "it never falls");
    assert_eq!(look(&mut fence, Some(held())), None);
    assert_eq!(fence.status(), FenceStatus::RolledBack { seen: 11, found: 10 });
    // For good, in this boot.
    assert_eq!(fence.poll(), None);
    assert_eq!((fence.acquire(None, 77, None), fence.close(None), fence.create(&beginning())), (None, None, None));
    let lost = Beginning { lost: true, ..beginning() };
    assert_eq!(fence.create(&lost), None, "there is one");
}

#[test]
fn an_extension_only_raises_and_counts_once_it_is_acknowledged() {
    let (mut fence, record) = claimed(held(), None, 77);
    assert_eq!(fence.extend(ceilings(99, 4, 3), 76), None, "nothing to raise");
    assert_eq!(fence.extend(record.ceilings, 77), None);
    let ask = fence.extend(ceilings(99, 5, 2), 90);
    let (number, question) = asked(&fence, ask);
    let raised = Record { version: 12, ceilings: ceilings(100, 5, 3), min_state_version: 90, ..record };
    assert_eq!(question, StoreOp::Swap { old: record, new: raised });
    assert_eq!(fence.limits().unwrap().ceilings, record.ceilings, "not yet");
    // An answer to another question is none.
    assert_eq!(fence.on_response(number + 1, StoreResponse::Swapped), None);
    assert_eq!(fence.limits().unwrap().ceilings, record.ceilings);
    // Unclear: it reads, and finds that it took place.
    let ask = fence.on_response(number, StoreResponse::Unclear);
    let (number, question) = asked(&fence, ask);
    assert_eq!(question, StoreOp::Read);
    assert_eq!(fence.on_response(number, StoreResponse::Record(Some(raised))), None);
    assert_eq!(fence.status(), FenceStatus::Holding(raised));
    assert_eq!((fence.limits().unwrap().ceilings, fence.seen()), (raised.ceilings, 12));
    // Each alone is a reason.
    let mut only_sealed = fence.clone();
    let ask = only_sealed.extend(ceilings(0, 0, 0), 91);
    assert!(matches!(asked(&only_sealed, ask).1, StoreOp::Swap { new, .. } if new.min_state_version == 91));
    let ask = fence.extend(ceilings(101, 0, 0), 0);
    let (number, _) = asked(&fence, ask);
    assert_eq!(fence.on_response(number, StoreResponse::Swapped), None);
    assert_eq!(fence.limits().unwrap().ceilings, ceilings(101, 5, 3));
    assert_eq!(fence.seen(), 13);
}

#[test]
fn whoever_finds_anothers_record_has_lost() {
    let (fence, record) = claimed(held(), None, 77);
    for found in [
        Some(Record { version: 12, holder: OTHER, term: 7, ..record }),
        // The same enclave's name under another term, or another's under this one.
        Some(Record { version: 12, term: 7, ..record }),
        Some(Record { version: 12, holder: OTHER, ..record }),
    ] {
        let mut fence = fence.clone();
        assert_eq!(look(&mut fence, found), None);
        assert_eq!((fence.status(), fence.limits()), (FenceStatus::Superseded, None));
        assert_eq!(look(&mut fence, found), None);
        assert_eq!(fence.status(), FenceStatus::Standby(found.unwrap()), "it may come back");
    }
    // Removed, or restored: in this boot it signs no more.
    let mut removed = fence.clone();
    assert_eq!(look(&mut removed, None), None);
    assert_eq!((removed.status(), removed.limits()), (FenceStatus::RolledBack { seen: 11, found: 0 }, None));
    let mut restored = fence;
    assert_eq!(look(&mut restored, Some(held())), None);
    assert_eq!((restored.status(), restored.limits()), (FenceStatus::RolledBack { seen: 11, found: 10 }, None));
    // One that comes above all that was seen is heard of.
    let anew = Record { version: 12, holder: Bytes::ZERO, ..record };
    assert_eq!(look(&mut removed, Some(anew)), None);
    assert_eq!(removed.status(), FenceStatus::Standby(anew));
}

#[test]
fn a_claim_that_is_not_heard_of_is_found_or_put_again() {
    let mut fence = seen(held());
    let ask = fence.acquire(None, 77, None);
    let (number, swap) = asked(&fence, ask);
    let StoreOp::Swap { new, .. } = swap else { panic!() };
    let ask = fence.on_response(number, StoreResponse::Unclear);
    let (number, question) = asked(&fence, ask);
    assert_eq!(question, StoreOp::Read);
    // Not there, or not yet: the very same swap again.
    let mut again = fence.clone();
    let ask = again.on_response(number, StoreResponse::Record(Some(held())));
    assert_eq!(asked(&again, ask).1, swap);
    // There.
    let mut there = fence.clone();
    assert_eq!(there.on_response(number, StoreResponse::Record(Some(new))), None);
    assert_eq!(there.status(), FenceStatus::Holding(new));
    // Another came before.
    let others = Record { version: 12, term: 6, ..held() };
    assert_eq!(fence.on_response(number, StoreResponse::Record(Some(others))), None);
    assert_eq!(fence.status(), FenceStatus::Standby(others));
    // A conflict is looked into as well.
    let mut conflict = seen(held());
    let ask = conflict.acquire(None, 77, None);
    let (number, _) = asked(&conflict, ask);
    let ask = conflict.on_response(number, StoreResponse::Conflict);
    assert_eq!(asked(&conflict, ask).1, StoreOp::Read);
}

#[test]
fn leaving_names_the_state_and_signs_no_more_whatever_is_heard() {
    let (holding, record) = claimed(held(), None, 77);
    let mut fence = holding.clone();
    let ask = fence.release(STATE);
    let (number, question) = asked(&fence, ask);
    let left = Record { version: 12, released_state: Some(STATE), ..record };
    assert_eq!(question, StoreOp::Swap { old: record, new: left });
    assert_eq!((fence.status(), fence.limits()), (FenceStatus::Releasing, None));
    let mut unheard = fence.clone();
    assert_eq!(fence.on_response(number, StoreResponse::Swapped), None);
    assert_eq!((fence.status(), fence.seen(), fence.limits()), (FenceStatus::Released(left), 12, None));
    // An extension of its own took place before: it leaves from there.
    let ask = unheard.on_response(number, StoreResponse::Conflict);
    let (number, _) = asked(&unheard, ask);
    let extended = Record { version: 12, ceilings: ceilings(103, 4, 3), ..record };
    let ask = unheard.on_response(number, StoreResponse::Record(Some(extended)));
    let (number, question) = asked(&unheard, ask);
    let left = Record { version: 13, released_state: Some(STATE), ..extended };
    assert_eq!(question, StoreOp::Swap { old: extended, new: left });
    // Or another has claimed.
    let ask = unheard.on_response(number, StoreResponse::Unclear);
    let (number, _) = asked(&unheard, ask);
    let others = Record { version: 14, holder: OTHER, term: 7, ..record };
    assert_eq!(unheard.on_response(number, StoreResponse::Record(Some(others))), None);
    assert_eq!(unheard.status(), FenceStatus::Superseded);
    assert_eq!(seen(held()).release(STATE), None, "only a holder leaves");
    // It may come back.
    assert_eq!(look(&mut fence, Some(Record { version: 12, released_state: Some(STATE), ..record })), None);
    assert!(matches!(fence.status(), FenceStatus::Standby(_)));
}

#[test]
fn a_first_record_has_all_that_it_begins_with_and_is_made_once() {
    let mut fence = FenceMachine::new(ME, 0);
    assert_eq!(fence.create(&beginning()), None, "it has not looked yet");
    assert_eq!(look(&mut fence, None), None);
    assert_eq!(fence.status(), FenceStatus::NoRecord);
    for term in [0, casemate_fence::MAX_TERM + 1] {
        assert_eq!(fence.create(&Beginning { term, ..beginning() }), None, "{term}");
    }
    let ask = fence.create(&beginning());
    let (number, question) = asked(&fence, ask);
    let Beginning { term, ceilings, min_state_version, exact: clean, .. } = beginning();
    let new = Record {
        version: 4,
        holder: Bytes::ZERO,
        term,
        ceilings,
        min_state_version,
        released_state: clean,
        closed: false,
    };
    assert_eq!(question, StoreOp::Create(new));
    assert_eq!(fence.status(), FenceStatus::Creating);
    // Not heard: the same again while there is none, and what is there otherwise.
    let ask = fence.on_response(number, StoreResponse::Unclear);
    let (number, _) = asked(&fence, ask);
    let mut others = fence.clone();
    let ask = fence.on_response(number, StoreResponse::Record(None));
    let (number, question) = asked(&fence, ask);
    assert_eq!(question, StoreOp::Create(new));
    assert_eq!(fence.on_response(number, StoreResponse::Swapped), None);
    assert_eq!((fence.status(), fence.seen()), (FenceStatus::Standby(new), 4));
    let theirs = Record { version: 4, min_state_version: 1, ..new };
    assert_eq!(others.on_response(asked(&others, others.pending()).0, StoreResponse::Record(Some(theirs))), None);
    assert_eq!(others.status(), FenceStatus::Standby(theirs));
    assert_eq!(seen(held()).create(&beginning()), None, "there is one");
}

#[test]
fn a_lost_record_is_made_anew_above_all_that_was_seen() {
    let mut fence = FenceMachine::new(ME, 20);
    assert_eq!(look(&mut fence, None), None);
    assert_eq!(fence.status(), FenceStatus::RolledBack { seen: 20, found: 0 });
    assert_eq!(fence.create(&beginning()), None, "operators must say that it was lost");
    let ask = fence.create(&Beginning { lost: true, ..beginning() });
    assert!(matches!(asked(&fence, ask).1, StoreOp::Create(Record { version: 21, .. })));
}

#[test]
fn a_record_that_has_ended_is_nobodys_and_the_next_lies_above_it() {
    let (mut holder, record) = claimed(held(), None, 77);
    assert_eq!(holder.close(None), None, "a holder names what it leaves behind");
    let ask = holder.close(Some(STATE));
    let (number, question) = asked(&holder, ask);
    let closed = Record { version: 12, released_state: Some(STATE), closed: true, ..record };
    assert_eq!(question, StoreOp::Swap { old: record, new: closed });
    assert_eq!((holder.status(), holder.limits()), (FenceStatus::Releasing, None));
    // Not heard: found, or put again from where the record is.
    let mut unheard = holder.clone();
    let ask = unheard.on_response(number, StoreResponse::Unclear);
    let (read, _) = asked(&unheard, ask);
    let mut extended = unheard.clone();
    assert_eq!(unheard.on_response(read, StoreResponse::Record(Some(closed))), None);
    assert_eq!(unheard.status(), FenceStatus::Closed(closed));
    let raised = Record { version: 12, ceilings: ceilings(104, 4, 3), ..record };
    let ask = extended.on_response(read, StoreResponse::Record(Some(raised)));
    let again = Record { version: 13, released_state: Some(STATE), closed: true, ..raised };
    assert_eq!(asked(&extended, ask).1, StoreOp::Swap { old: raised, new: again });
    assert_eq!(holder.on_response(number, StoreResponse::Swapped), None);
    assert_eq!((holder.status(), holder.seen()), (FenceStatus::Closed(closed), 12));
    assert_eq!(
        (holder.acquire(Some(STATE), 90, None), holder.close(Some(STATE)), holder.release(STATE)),
        (None, None, None)
    );
    assert_eq!(holder.extend(ceilings(200, 9, 8), 90), None);
    // Anyone who holds it finds that it has ended.
    let (mut other, mine) = claimed(held(), None, 77);
    assert_eq!(look(&mut other, Some(Record { version: 12, closed: true, ..mine })), None);
    assert!(matches!(other.status(), FenceStatus::Closed(_)));
    assert_eq!(other.limits(), None);
    // A standby ends it too, and names nothing that it does not have.
    let mut standby = seen(held());
    let ask = standby.close(Some(STATE));
    let (number, question) = asked(&standby, ask);
    let ended = Record { version: 11, closed: true, ..held() };
    assert_eq!(question, StoreOp::Swap { old: held(), new: ended });
    assert_eq!(standby.status(), FenceStatus::Releasing);
    let ask = standby.on_response(number, StoreResponse::Unclear);
    let (read, _) = asked(&standby, ask);
    let ask = standby.on_response(read, StoreResponse::Record(Some(held())));
    let (number, question) = asked(&standby, ask);
    assert_eq!(question, StoreOp::Swap { old: held(), new: ended }, "the same again");
    assert_eq!(standby.on_response(number, StoreResponse::Swapped), None);
    assert_eq!(standby.status(), FenceStatus::Closed(ended));
    // The next one, in its place: above it in everything.
    let next = Beginning { above_version: 11, term: 6, ceilings: ceilings(90, 9, 1), ..beginning() };
    assert_eq!(standby.create(&Beginning { term: 5, ..next }), None, "not above");
    assert_eq!(standby.create(&Beginning { above_version: 10, ..next }), None, "of an older end");
    let ask = standby.create(&next);
    let (number, question) = asked(&standby, ask);
    let StoreOp::Swap { old, new } = question else { panic!("{question:?}") };
    assert_eq!(old, ended);
    assert_eq!((new.version, new.term, new.ceilings), (12, 6, ceilings(100, 9, 3)));
    assert!(!new.closed && new.holder == Bytes::ZERO && new.released_state == Some(STATE));
    // Not heard: the same swap again.
    let ask = standby.on_response(number, StoreResponse::Unclear);
    let (read, _) = asked(&standby, ask);
    let ask = standby.on_response(read, StoreResponse::Record(Some(ended)));
    let (number, question) = asked(&standby, ask);
    assert_eq!(question, StoreOp::Swap { old: ended, new });
    assert_eq!(standby.on_response(number, StoreResponse::Swapped), None);
    assert_eq!(standby.status(), FenceStatus::Standby(new));
}

#[test]
fn a_version_that_nobody_can_have_reached_is_not_believed_and_forgotten_with_it() {
    let mut fence = seen(held());
    let far = Record { version: held().version + MAX_VERSION_STEP + 1, ..held() };
    assert_eq!(look(&mut fence, Some(far)), None);
    assert_eq!(fence.status(), FenceStatus::Implausible { found: far.version });
    assert_eq!((fence.seen(), fence.acquire(None, 77, None)), (10, None));
    // Taken away, it has left no trace; as far as that, it is believed.
    assert_eq!(look(&mut fence, Some(held())), None);
    assert_eq!(fence.status(), FenceStatus::Standby(held()));
    let near = Record { version: held().version + MAX_VERSION_STEP, ..held() };
    assert_eq!(look(&mut fence, Some(near)), None);
    assert_eq!(fence.status(), FenceStatus::Standby(near));
}
