//! The gate by itself, without a keeper. Beside `gate.rs` and not in it: tests/suites/shuttle compiles that file with other locks.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use casemate_fence::{Record, StoreOp, StoreResponse};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::{NotHolder, StoreTrouble};
use casemate_protocol::statement::{FenceKind, RecordKind, StatedStatus};
use casemate_protocol::{Bytes, Epoch, Refusal, Slot};
use casemate_slashing::{Ceilings, Floors, Limits};

use super::gate::{FenceGate, FenceParts, Gate, KeeperRequest, View};
use crate::fence::store::Store;
use crate::platform::margins::HANDOVER_REST;
use crate::platform::runtime::{Bell, Kernel, Runtime};

/// A store that nobody asks.
struct Unasked;

impl Store for Unasked {
    fn kind(&self) -> RecordKind {
        RecordKind::Etcd
    }

    fn identity(&self) -> Option<String> {
        None
    }

    fn ask(&mut self, _: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        (StoreResponse::Unclear, None)
    }

    fn open(&mut self, _: &StoreCredentials) -> bool {
        false
    }

    fn is_open(&self) -> bool {
        false
    }
}

fn with_record() -> FenceGate {
    FenceParts::with_record(Box::new(Unasked)).split().0
}

fn record(version: u64) -> Record {
    let (holder, ceilings) = (Bytes([1; 32]), Ceilings::ZERO);
    Record { version, holder, term: 2, ceilings, min_state_version: 0, released_state: None, closed: false }
}

fn open(term: u64) -> (View, Gate) {
    let view = View { standing: StatedStatus::Holding, record: Some(record(7)), floors: Floors::default() };
    (view, Gate::Open(Limits::NONE, term))
}

#[test]
fn the_host_waits_for_its_next_handover_to_the_slot() {
    let fence_gate = with_record();
    let last = 1000;
    assert_eq!(fence_gate.may_handover_unsigned(Slot(last)), Ok(()));
    for slot in [last, last + 1, last + HANDOVER_REST - 1] {
        let refused = fence_gate.may_handover_unsigned(Slot(slot));
        assert_eq!(refused, Err(Refusal::HandoverTooSoon { slots: HANDOVER_REST }), "{slot}");
    }
    assert_eq!(fence_gate.may_handover_unsigned(Slot(last + HANDOVER_REST)), Ok(()));
    assert!(fence_gate.may_handover_unsigned(Slot(last + HANDOVER_REST + 1)).is_err(), "it counts from the last one");
}

#[test]
fn the_record_that_was_seen_last_is_stated_until_another_one_is() {
    let fence_gate = with_record();
    assert_eq!((fence_gate.version(), fence_gate.changes()), (0, 0));
    fence_gate.put(|_| open(2));
    assert_eq!(fence_gate.version(), 7);
    let apart = View { standing: StatedStatus::Unknown, record: None, floors: Floors::default() };
    fence_gate.put(|_| (apart, Gate::Closed(NotHolder::NoRecord)));
    assert_eq!(fence_gate.version(), 7, "it is not known to have gone");
    let stated = fence_gate.stated(None);
    assert_eq!((stated.standing, stated.record.map(|record| record.version)), (StatedStatus::Unknown, Some(7)));
    fence_gate.put(|_| (View { record: Some(record(9)), ..apart }, Gate::Closed(NotHolder::NoRecord)));
    assert_eq!(fence_gate.version(), 9);
}

#[test]
fn a_term_is_stated_and_told_while_it_is_held_and_no_longer() {
    let fence_gate = with_record();
    assert!(fence_gate.held().is_err());
    let floors = Floors { slot: Some(Slot(3)), target: None, source: None };
    fence_gate.put(|_| (View { floors, ..open(2).0 }, Gate::Open(Limits { floors, ..Limits::NONE }, 2)));
    assert_eq!((fence_gate.held(), fence_gate.stated(None).term), (Ok((2, floors)), 2));
    assert_eq!(fence_gate.stated(None).floors.slot, Some(Slot(3)));
    let standby = View { standing: StatedStatus::Standby, ..open(2).0 };
    fence_gate.put(|_| (standby, Gate::Closed(NotHolder::NoRecord)));
    assert_eq!((fence_gate.held(), fence_gate.stated(None).term), (Err(Refusal::NotHolder(NotHolder::NoRecord)), 0));
}

#[test]
fn what_requests_wait_for_is_told_to_the_keeper_once_and_as_one() {
    let fence_gate = with_record();
    let up_to = |target, source| Ceilings { slot: Slot(0), target: Epoch(target), source: Epoch(source) };
    assert_eq!(fence_gate.take_wanted(), None);
    fence_gate.request_ceilings(up_to(5, 2));
    fence_gate.request_ceilings(up_to(4, 3));
    assert_eq!(fence_gate.take_wanted(), Some(up_to(5, 3)));
    assert_eq!(fence_gate.take_wanted(), None);
}

#[test]
fn whoever_waits_for_other_limits_is_told_when_they_change_and_not_before() {
    let fence_gate = with_record();
    fence_gate.put(|_| open(2));
    assert_eq!(fence_gate.changes(), 1);
    // The same again is no change.
    fence_gate.put(|_| open(2));
    assert_eq!(fence_gate.changes(), 1);
    // What has changed since is told at once.
    assert_eq!(fence_gate.wait_for_change(0, Duration::from_mins(10)), 1);
    // Nothing changes: the time passes.
    assert_eq!(fence_gate.wait_for_change(1, Duration::from_millis(1)), 1);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| fence_gate.wait_for_change(1, Duration::from_mins(10)));
        fence_gate.put(|_| open(3));
        assert_eq!(waiter.join().unwrap(), 2);
    });
    // One who waits for long is not sent away before.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| fence_gate.wait_for_change(2, Duration::from_mins(10)));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiter.is_finished(), "nothing has changed");
        fence_gate.put(|_| open(4));
        assert_eq!(waiter.join().unwrap(), 3);
    });
}

#[test]
fn what_has_settled_has_no_signature_under_way() {
    let fence_gate = with_record();
    fence_gate.put(|_| open(2));
    let pass = fence_gate.pass().map_err(drop).unwrap();
    let (settled, (begun, begins)) = (AtomicBool::new(false), mpsc::channel());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            begun.send(()).unwrap();
            fence_gate.settle();
            settled.store(true, Ordering::SeqCst);
        });
        begins.recv().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!settled.load(Ordering::SeqCst), "a signature is under way");
        drop(pass);
    });
    assert!(settled.load(Ordering::SeqCst));
}

#[test]
fn a_gate_that_was_closed_for_a_handover_says_so_to_its_keeper_until_it_is_opened_again() {
    let fence_gate = with_record();
    assert_eq!(fence_gate.close(), Err(Refusal::NotHolder(NotHolder::StoreUnknown(StoreTrouble::NotAsked))));
    assert!(!fence_gate.is_handing_over(), "it was not open");
    fence_gate.put(|_| open(2));
    assert_eq!(fence_gate.close(), Ok(()));
    assert!(fence_gate.is_handing_over() && fence_gate.closed().is_some());
    assert_eq!(fence_gate.standing(), StatedStatus::HandingOver);
    fence_gate.put(|handing_over| {
        assert!(handing_over);
        (open(2).0, Gate::Closed(NotHolder::HandingOver))
    });
    fence_gate.reopen();
    assert!(!fence_gate.is_handing_over());
    fence_gate.put(|handing_over| {
        assert!(!handing_over);
        open(2)
    });
    assert!(fence_gate.closed().is_none());
    // Another term: what was to be handed over was of the one before.
    assert_eq!(fence_gate.close(), Ok(()));
    fence_gate.holds_anew();
    assert!(!fence_gate.is_handing_over());
}

/// The kernel's time; who waits for a bell says so first.
struct Telling(Kernel, mpsc::Sender<()>);

struct TellingBell(Arc<dyn Bell>, mpsc::Sender<()>);

impl Runtime for Telling {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn sleep(&self, length: Duration) {
        self.0.sleep(length);
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::new(TellingBell(self.0.bell(), self.1.clone()))
    }
}

impl Bell for TellingBell {
    fn ring(&self) {
        self.0.ring();
    }

    fn wait(&self, at_most: Duration) {
        self.1.send(()).unwrap();
        self.0.wait(at_most);
    }
}

#[test]
fn nobody_is_sent_where_no_keeper_comes() {
    let solo = FenceParts::solo(Limits::NONE).split().0;
    assert!(matches!(solo.ask_keeper(KeeperRequest::Look), Err(Refusal::NoFenceRecord(FenceKind::Solo))));
    // Anyone who waits when the keeper ends is told so, and anyone who comes later.
    let (tell, told) = mpsc::channel();
    let fence_gate = with_record().running_on(Arc::new(Telling(Kernel::default(), tell)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| fence_gate.ask_keeper(KeeperRequest::Look));
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(fence_gate.ask_keeper(KeeperRequest::Look), Err(Refusal::CommandBusy)));
        fence_gate.end();
        assert!(matches!(waiter.join().unwrap(), Err(Refusal::StoreAway(StoreTrouble::NotAsked))));
    });
    assert!(matches!(fence_gate.ask_keeper(KeeperRequest::Look), Err(Refusal::NoFenceRecord(FenceKind::Etcd))));
}
