//! The vault's gate (`enclave/vault/src/fence/gate.rs`) and keys (`keys/keyring.rs`), the very files, with locks whose order a scheduler decides
//! (shuttle). What the simulator cannot see is here: two threads at one lock. Each claim has a broken variant that is found.
//!
//! Random schedules, and such with few changes of thread (PCT), which find what needs a rare order. Nothing here is in a program.
#![forbid(unsafe_code)]
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(dropping_copy_types, reason = "what a signer is told does not matter here")]
#![allow(clippy::needless_for_each, reason = "threads that are waited for read better in one line")]
#![allow(
    clippy::ignored_unit_patterns,
    clippy::unnecessary_wraps,
    clippy::unnecessary_box_returns,
    reason = "the vault's files see another error here"
)]

#[path = "../../../../enclave/vault/src/fence/gate.rs"]
mod gate;
#[path = "../../../../enclave/vault/src/keys/keyring.rs"]
mod keyring;

/// The rooms of the vault, as its files name them.
mod signing {
    pub(crate) mod bls {
        /// No key is multiplied with here.
        pub(crate) struct SecretKey([u8; 32]);

        impl SecretKey {
            pub(crate) fn from_be_bytes(bytes: &mut [u8; 32]) -> Result<Self, ()> {
                Ok(Self(*bytes))
            }

            pub(crate) fn to_be_bytes(&self) -> Box<[u8; 32]> {
                Box::new(self.0)
            }

            pub(crate) fn public_key(&self) -> casemate_protocol::PublicKey {
                casemate_protocol::Bytes([self.0[0]; 48])
            }
        }
    }
}
mod keys {
    pub(crate) use casemate_vault::keys::{journal, seal};
}
mod platform {
    pub(crate) use casemate_vault::platform::{cpus, margins, runtime};

    /// In the place of the vault's own.
    pub(crate) mod sync {
        pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, atomic};
        pub(crate) use std::sync::PoisonError;
    }
}
mod fence {
    pub(crate) use casemate_vault::fence::store;
}

use std::panic::{AssertUnwindSafe, catch_unwind};

use casemate_fence::{Record, StoreOp, StoreResponse};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::{NotHolder, StoreTrouble};
use casemate_protocol::statement::{RecordKind, StatedStatus};
use casemate_protocol::{Bytes, PublicKey, Refusal, Root, Slot};
use casemate_slashing::{Ceilings, Floors, GroupFloor, Limits, SlashingHistory, Watermarks, rules};
use casemate_vault::keys::journal::NullJournal;
use gate::{FenceGate, FenceParts, Gate, View};
use keyring::{Keys, current};
use keys::seal::{Contents, SealedKey, SecretBytes};
use platform::sync::{Arc, Mutex, PoisonError, RwLock};
use shuttle::thread;

const RUNS: usize = 3000;

/// A store that is never asked: the gate has no keeper here but the tests.
struct Nowhere;

impl fence::store::Store for Nowhere {
    fn kind(&self) -> RecordKind {
        RecordKind::File
    }

    fn identity(&self) -> Option<String> {
        None
    }

    fn ask(&mut self, _: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        (StoreResponse::Unclear, None)
    }

    fn open(&mut self, _: &StoreCredentials) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// An enclave, as far as threads meet in it.
struct Enclave {
    fence_gate: FenceGate,
    keys: RwLock<Arc<Keys>>,
    /// What was signed: slot and variant.
    released: Mutex<Vec<(u64, u8)>>,
}

fn secret() -> SecretBytes {
    SecretBytes([1; 32])
}

fn public() -> PublicKey {
    Bytes([1; 48])
}

fn contents(history: Watermarks, held: bool) -> Contents {
    let key = SealedKey {
        public_key: public(),
        secret: held.then(secret),
        history: SlashingHistory::Known(history),
        fee_recipient: None,
    };
    Contents { keys: vec![key], ..Contents::default() }
}

fn signed(slot: u64) -> Watermarks {
    rules::block::check(Watermarks::NONE, Slot(slot), Bytes([0; 32]), &Limits::NONE).unwrap()
}

fn limits(floor: Option<u64>) -> Limits {
    Limits { floors: Floors { slot: floor.map(Slot), ..Floors::default() }, ceilings: Ceilings::NONE }
}

fn record() -> Record {
    Record {
        version: 1,
        holder: Bytes([1; 32]),
        term: 1,
        ceilings: Ceilings::NONE,
        min_state_version: 0,
        released_state: None,
        closed: false,
    }
}

impl Enclave {
    fn new() -> Self {
        let (fence_gate, _) = FenceParts::with_record(Box::new(Nowhere)).split();
        let keys = Keys::unsealed(contents(Watermarks::NONE, true), |_, _, history| history).unwrap();
        let enclave = Self { fence_gate, keys: RwLock::new(Arc::new(keys)), released: Mutex::default() };
        enclave.holds(limits(None), 1);
        enclave
    }

    /// What the keeper does when the record is held.
    fn holds(&self, limits: Limits, term: u64) {
        self.fence_gate.put(|handing_over| {
            let standing = if handing_over { StatedStatus::HandingOver } else { StatedStatus::Holding };
            let view = View { standing, record: Some(record()), floors: limits.floors };
            let closed = Gate::Closed(NotHolder::HandingOver);
            (view, if handing_over { closed } else { Gate::Open(limits, term) })
        });
    }

    /// What the keeper does when it is lost.
    fn loses(&self) {
        self.fence_gate.put(|_| {
            let view = View { standing: StatedStatus::Standby, record: None, floors: Floors::default() };
            (view, Gate::Closed(NotHolder::Standby { slot_ceiling: Slot(0) }))
        });
    }

    /// As a worker judges a duty: gate, key, rule, past; the gate is held until the past is saved.
    fn sign(&self, slot: u64, variant: u8) -> Result<(), Refusal> {
        let pass = self.fence_gate.pass()?;
        let keys = current(&self.keys);
        let key = keys.held(&public()).ok_or(Refusal::UnknownKey)?;
        let root: Root = Bytes([variant; 32]);
        key.advance(&NullJournal, |old| rules::block::check(old, Slot(slot), root, &pass.limits))?;
        drop(pass);
        // Some time later the signature goes out.
        self.released.lock().unwrap_or_else(PoisonError::into_inner).push((slot, variant));
        Ok(())
    }

    fn publish(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    fn highest(&self) -> Option<Slot> {
        current(&self.keys).past(&public()).unwrap().history().watermarks().unwrap().block.map(|mark| mark.slot)
    }

    fn released(&self) -> Vec<(u64, u8)> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn judge(&self) {
        let released = self.released();
        for (number, a) in released.iter().enumerate() {
            assert!(released[..number].iter().all(|b| a.0 != b.0 || a.1 == b.1), "{released:?}");
        }
    }
}

/// Every schedule must keep what `run` asserts.
fn holds_always(run: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(run.clone(), RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

/// Some schedule must break it.
fn is_found(run: impl Fn() + Send + Sync + Clone + 'static) {
    let broken = catch_unwind(AssertUnwindSafe(|| holds_always(run)));
    assert!(broken.is_err(), "the broken variant was not found");
}

#[test]
fn of_two_conflicting_requests_at_once_one_is_signed() {
    holds_always(|| {
        let enclave = Arc::new(Enclave::new());
        let threads: Vec<_> = (0..3)
            .map(|variant| {
                let enclave = Arc::clone(&enclave);
                thread::spawn(move || enclave.sign(5, variant).is_ok())
            })
            .collect();
        let signed = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count();
        assert_eq!(signed, 1);
        enclave.judge();
    });
}

#[test]
fn checked_in_one_step_and_written_down_in_another_two_are_signed() {
    is_found(|| {
        let enclave = Arc::new(Enclave::new());
        let threads: Vec<_> = (0..2)
            .map(|variant| {
                let enclave = Arc::clone(&enclave);
                thread::spawn(move || {
                    let keys = current(&enclave.keys);
                    let key = keys.past(&public()).unwrap();
                    let old = key.history().watermarks().unwrap();
                    let Ok(new) = rules::block::check(old, Slot(5), Bytes([variant; 32]), &Limits::NONE) else {
                        return;
                    };
                    *key.lock() = SlashingHistory::Known(new);
                    enclave.released.lock().unwrap().push((5, variant));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        enclave.judge();
    });
}

/// What is left behind, and what was signed by then and after.
fn handover(closes: bool) -> impl Fn() + Send + Sync + Clone {
    move || {
        let enclave = Arc::new(Enclave::new());
        let signers: Vec<_> = (0..2)
            .map(|n| {
                let enclave = Arc::clone(&enclave);
                thread::spawn(move || drop(enclave.sign(5 + n, 0)))
            })
            .collect();
        // The keeper goes on meanwhile: it must not open what is being handed over.
        let keeper = {
            let enclave = Arc::clone(&enclave);
            thread::spawn(move || enclave.holds(limits(None), 1))
        };
        if closes {
            enclave.fence_gate.close().unwrap();
        }
        let left = enclave.highest();
        signers.into_iter().for_each(|thread| thread.join().unwrap());
        keeper.join().unwrap();
        let highest = enclave.released().iter().map(|(slot, _)| Slot(*slot)).max();
        assert!(highest <= left, "{highest:?} was signed, {left:?} was left behind");
    }
}

#[test]
fn whoever_leaves_leaves_everything_behind_that_was_signed() {
    holds_always(handover(true));
}

#[test]
fn without_the_gate_something_is_signed_that_is_not_left_behind() {
    is_found(handover(false));
}

/// A key that is deleted: its past is read once nobody signs with it any more.
fn deletion(settles: bool) -> impl Fn() + Send + Sync + Clone {
    move || {
        let enclave = Arc::new(Enclave::new());
        let signers: Vec<_> = (0..2)
            .map(|n| {
                let enclave = Arc::clone(&enclave);
                thread::spawn(move || drop(enclave.sign(5 + n, 0)))
            })
            .collect();
        let without = current(&enclave.keys).without(&[public()]).unwrap();
        enclave.publish(without);
        if settles {
            enclave.fence_gate.settle();
        }
        let sealed = enclave.highest();
        signers.into_iter().for_each(|thread| thread.join().unwrap());
        let highest = enclave.released().iter().map(|(slot, _)| Slot(*slot)).max();
        assert!(highest <= sealed, "{highest:?} was signed, {sealed:?} was sealed");
    }
}

#[test]
fn a_deleted_keys_past_has_its_last_signature() {
    holds_always(deletion(true));
}

#[test]
fn unsettled_a_deleted_keys_past_lacks_its_last_signature() {
    is_found(deletion(false));
}

/// One that has lost the fence loads a newer state, and holds again: what it has signed itself must not be forgotten on the way.
fn reload(under_the_gate: bool) -> impl Fn() + Send + Sync + Clone {
    move || {
        let enclave = Arc::new(Enclave::new());
        let signer = {
            let enclave = Arc::clone(&enclave);
            thread::spawn(move || (0..2).for_each(|_| drop(enclave.sign(5, 0))))
        };
        let keeper = {
            let enclave = Arc::clone(&enclave);
            thread::spawn(move || {
                enclave.loses();
                enclave.holds(limits(None), 2);
            })
        };
        // Only behind a closed gate, as `CommandProcessor::reload_in` does it.
        let guard = if under_the_gate { enclave.fence_gate.closed() } else { None };
        if guard.is_some() || !under_the_gate {
            let before = current(&enclave.keys);
            let past = |key: &PublicKey, history: SlashingHistory| {
                casemate_slashing::group::reloaded(before.past(key).map(keyring::Key::history), Some(history)).unwrap()
            };
            let newer = Keys::unsealed(contents(signed(3), true), |_, key, history| past(key, history)).unwrap();
            enclave.publish(newer.remembering(&before, 10, &NullJournal).unwrap());
        }
        drop(guard);
        signer.join().unwrap();
        keeper.join().unwrap();
        let (highest, known) = (enclave.released().iter().map(|(slot, _)| Slot(*slot)).max(), enclave.highest());
        assert!(highest <= known, "{highest:?} was signed, {known:?} is known");
    }
}

#[test]
fn a_reload_forgets_nothing_that_was_signed_meanwhile() {
    holds_always(reload(true));
}

#[test]
fn a_reload_beside_an_open_gate_forgets() {
    is_found(reload(false));
}

#[test]
fn the_groups_floor_rises_with_every_key_and_never_falls() {
    holds_always(|| {
        let enclave = Arc::new(Enclave::new());
        let raise = |slot: u64| {
            let enclave = Arc::clone(&enclave);
            let floors = Floors { slot: Some(Slot(slot)), ..Floors::default() };
            thread::spawn(move || current(&enclave.keys).raise(&floors, &NullJournal).unwrap())
        };
        let threads = [raise(7), raise(9), raise(8)];
        let signer = {
            let enclave = Arc::clone(&enclave);
            thread::spawn(move || drop(enclave.sign(8, 1)))
        };
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        signer.join().unwrap();
        let floor = current(&enclave.keys).floor();
        assert_eq!(floor, GroupFloor::NONE.with_floors(&limits(Some(9)).floors));
        assert_eq!(enclave.highest(), Some(Slot(9)));
        // A set that was made of another one has the same floor, not a copy of it.
        let without = current(&enclave.keys).without(&[public()]).unwrap();
        current(&enclave.keys).raise(&limits(Some(11)).floors, &NullJournal).unwrap();
        assert_eq!(without.floor(), GroupFloor::NONE.with_floors(&limits(Some(11)).floors));
    });
}
