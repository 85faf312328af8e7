//! The keys by themselves. Beside `keys.rs` and not in it: tests/suites/shuttle compiles that file with other locks.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Mutex;

use casemate_protocol::{Bytes, Epoch, PublicKey, Root, Slot};
use casemate_slashing::{AttestationMark, BlockMark, Floors, GroupFloor, SlashingHistory, Watermarks};

use crate::keys::journal::{Journal, NotSaved, NullJournal};
use crate::keys::keyring::{KeyError, Keys};

fn marks(slot: u64, source: u64, target: u64) -> Watermarks {
    let block = Some(BlockMark { slot: Slot(slot), signing_root: None });
    let attestation = Some(AttestationMark { source: Epoch(source), target: Epoch(target), signing_root: None });
    Watermarks { block, attestation }
}

fn floors(slot: u64, source: u64, target: u64) -> Floors {
    Floors { slot: Some(Slot(slot)), target: Some(Epoch(target)), source: Some(Epoch(source)) }
}

/// Keys of these bytes, each with what it has signed.
fn keys(of: &[(u8, SlashingHistory)]) -> Keys {
    let mut secrets: Vec<[u8; 32]> = of.iter().map(|(n, _)| [*n; 32]).collect();
    Keys::load(&mut secrets, |number, _| of[number].1).unwrap()
}

fn public(n: u8) -> PublicKey {
    crate::signing::bls::SecretKey::from_be_bytes(&mut [n; 32]).unwrap().public_key()
}

const KNOWN: SlashingHistory = SlashingHistory::Known(Watermarks::NONE);

/// What was written down, and in which order.
#[derive(Default)]
struct Written(Mutex<Vec<(Option<PublicKey>, Watermarks)>>);

impl Written {
    fn take(&self) -> Vec<(Option<PublicKey>, Watermarks)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Journal for Written {
    fn record(&self, key: &PublicKey, watermarks: &Watermarks) -> Result<(), NotSaved> {
        self.0.lock().unwrap().push((Some(*key), *watermarks));
        Ok(())
    }

    fn raise_floor(&self, floor: GroupFloor) -> Result<(), NotSaved> {
        self.0.lock().unwrap().push((None, floor.watermarks()));
        Ok(())
    }
}

/// A disk that is full.
struct Full;

impl Journal for Full {
    fn record(&self, _: &PublicKey, _: &Watermarks) -> Result<(), NotSaved> {
        Err(NotSaved)
    }
}

#[test]
fn keys_are_counted_and_found_with_and_without_a_secret_and_a_history() {
    let none = Keys::default();
    assert!(none.is_empty());
    assert_eq!((none.len(), none.known(), none.signing().len()), (0, 0, 0));
    let all = keys(&[(1, KNOWN), (2, SlashingHistory::Missing), (3, KNOWN)]);
    assert!(!all.is_empty());
    assert_eq!((all.len(), all.known()), (3, 3));
    assert_eq!(all.signing().collect::<Vec<_>>(), [public(1), public(3)]);
    let fewer = all.without(&[public(3), public(9)]).unwrap();
    assert_eq!((fewer.len(), fewer.known()), (2, 3));
    assert_eq!(fewer.signing().collect::<Vec<_>>(), [public(1)]);
    assert!(fewer.find(&public(3)).is_none() && fewer.held(&public(3)).is_none() && fewer.past(&public(3)).is_some());
    for n in [1, 2] {
        let (found, secret) = fewer.find(&public(n)).unwrap();
        assert_eq!(
            (secret.public_key(), found.secret().map(crate::signing::bls::SecretKey::public_key)),
            (public(n), Some(public(n)))
        );
        assert_eq!(fewer.held(&public(n)).unwrap().history(), all.past(&public(n)).unwrap().history());
    }
    assert!(fewer.past(&public(9)).is_none());
    let told: Vec<_> = fewer.told(1, 5, Watermarks::NONE).iter().map(|told| (told.public_key, told.held)).collect();
    assert_eq!(told, [(public(2), true), (public(3), false)]);
    assert_eq!(fewer.told(0, 1, Watermarks::NONE).len(), 1);
    assert_eq!(Keys::load(&mut [[1; 32], [1; 32]], |_, _| KNOWN).err(), Some(KeyError::Duplicate(public(1))));
    assert_eq!(Keys::load(&mut [[1; 32], [0; 32]], |_, _| KNOWN).err(), Some(KeyError::Invalid(1)));
}

#[test]
fn floors_raise_what_is_known_of_every_key_once_and_are_written_down_first() {
    let (journal, known) = (Written::default(), SlashingHistory::Known(marks(10, 1, 9)));
    let all = keys(&[(1, known), (2, KNOWN), (3, SlashingHistory::Missing), (4, KNOWN)]).without(&[public(4)]).unwrap();
    all.raise(&floors(7, 2, 8), &journal).unwrap();
    // A key that is above already keeps what it has; of one that was deleted the journal need not know.
    let first = marks(10, 2, 9);
    let written = [(None, marks(7, 2, 8)), (Some(public(1)), first), (Some(public(2)), marks(7, 2, 8))];
    assert_eq!(journal.take(), written);
    let history = |n| all.past(&public(n)).unwrap().history();
    let raised = SlashingHistory::Known(marks(7, 2, 8));
    assert_eq!([1, 2, 3, 4].map(history), [SlashingHistory::Known(first), raised, SlashingHistory::Missing, raised]);
    assert_eq!(all.floor().watermarks(), marks(7, 2, 8));
    // The same again, and lower ones, are nothing new.
    for lower in [floors(7, 2, 8), floors(6, 1, 7), Floors::default()] {
        all.raise(&lower, &journal).unwrap();
        assert_eq!(journal.take(), []);
    }
    // A journal that takes nothing leaves everything as it is.
    assert_eq!(all.raise(&floors(20, 2, 8), &Full), Err(NotSaved));
    assert_eq!(history(1), SlashingHistory::Known(first));
}

#[test]
fn what_a_newer_state_does_not_list_is_remembered_by_name_or_by_the_floor() {
    let before = || {
        let before = keys(&[
            (1, KNOWN),
            (2, SlashingHistory::Known(marks(10, 1, 9))),
            (3, SlashingHistory::Known(marks(5, 2, 3))),
        ]);
        before.raise(&floors(1, 0, 0), &NullJournal).unwrap();
        before
    };
    let after = |most| {
        let journal = Written::default();
        let keys = keys(&[(1, KNOWN)]).remembering(&before(), most, &journal).unwrap();
        let named = [2, 3].map(|n| keys.past(&public(n)).is_some());
        assert_eq!((keys.len(), keys.known()), (1, 1 + named.iter().filter(|named| **named).count()));
        assert_eq!(journal.take(), [(None, keys.floor().watermarks())]);
        (named, keys.floor().watermarks())
    };
    let floor = GroupFloor::NONE.with_floors(&floors(1, 0, 0)).watermarks();
    assert_eq!(after(9), ([true, true], floor));
    assert_eq!(after(3), ([true, true], floor));
    // No room for the last: what it has signed is the floor of every key that comes in.
    assert_eq!(after(2), ([true, false], marks(5, 2, 3)));
    assert_eq!(after(1), ([false, false], marks(10, 2, 9)));
    assert_eq!(after(0), ([false, false], marks(10, 2, 9)));
    let remembered = keys(&[(1, KNOWN)]).remembering(&before(), 9, &NullJournal).unwrap();
    assert_eq!(remembered.past(&public(2)).unwrap().history(), SlashingHistory::Known(marks(10, 1, 9)));
    assert!(remembered.held(&public(2)).is_none(), "nothing of before is held");
}

#[test]
fn what_is_sealed_is_everything_and_comes_back_as_it_was() {
    let all = keys(&[(1, SlashingHistory::Known(marks(10, 1, 9))), (2, KNOWN), (3, SlashingHistory::Missing)]);
    all.raise(&floors(4, 1, 2), &NullJournal).unwrap();
    let fees = Bytes([0xfe; 20]);
    let all = all.with_fee_recipient(&[public(1), public(9)], Some(fees)).unwrap().without(&[public(2)]).unwrap();
    assert!(all.held(&public(1)).is_some(), "an order of its fees takes no key away");
    // Of a deleted key no fees are ordered.
    let all = all.with_fee_recipient(&[public(2)], Some(fees)).unwrap();
    let contents = all.contents();
    assert_eq!(contents.floor, all.floor());
    let sealed = |contents: &crate::keys::seal::Contents| {
        let one = |key: &crate::keys::seal::SealedKey| {
            (key.public_key, key.secret.as_ref().map(|secret| secret.0), key.history, key.fee_recipient)
        };
        contents.keys.iter().map(one).collect::<Vec<_>>()
    };
    let expected = [
        (public(1), Some([1; 32]), SlashingHistory::Known(marks(10, 1, 9)), Some(fees)),
        (public(2), None, SlashingHistory::Known(marks(4, 1, 2)), None),
        (public(3), Some([3; 32]), SlashingHistory::Missing, None),
    ];
    assert_eq!(sealed(&contents), expected);
    let back = Keys::unsealed(contents, |_, _, history| history).unwrap();
    assert_eq!((sealed(&back.contents()), back.floor()), (expected.to_vec(), all.floor()));
    assert_eq!(back.again().unwrap().contents().keys.len(), 3);
    let signing: Vec<_> = back.histories().collect();
    assert_eq!(signing, [(public(1), marks(10, 1, 9))]);
}

#[test]
fn a_past_that_does_not_change_is_not_written_again() {
    let journal = Written::default();
    let all = keys(&[(1, SlashingHistory::Known(marks(5, 1, 2)))]);
    let key = all.past(&public(1)).unwrap();
    key.advance(&journal, Ok).unwrap();
    assert_eq!(journal.take(), []);
    key.advance(&journal, |old| {
        Ok(Watermarks { block: Some(BlockMark { slot: Slot(6), signing_root: Some(Root::ZERO) }), ..old })
    })
    .unwrap();
    let signed =
        Watermarks { block: Some(BlockMark { slot: Slot(6), signing_root: Some(Root::ZERO) }), ..marks(5, 1, 2) };
    assert_eq!((journal.take(), key.history()), (vec![(Some(public(1)), signed)], SlashingHistory::Known(signed)));
}

#[test]
fn a_key_that_comes_in_or_back_starts_above_its_past_and_the_floor() {
    let all = keys(&[(1, SlashingHistory::Known(marks(10, 1, 9)))]).without(&[public(1)]).unwrap();
    all.raise(&floors(4, 3, 5), &NullJournal).unwrap();
    assert_eq!(all.entering(&public(2), Watermarks::NONE), marks(4, 3, 5));
    assert_eq!(all.entering(&public(1), marks(11, 0, 0)), marks(11, 3, 9));
    let secret = |n: u8| crate::signing::bls::SecretKey::from_be_bytes(&mut [n; 32]).unwrap();
    let more = vec![(public(1), secret(1), SlashingHistory::Known(marks(3, 4, 4))), (public(2), secret(2), KNOWN)];
    let more = all.with(more).unwrap();
    assert_eq!((more.len(), more.known(), more.floor()), (2, 2, all.floor()));
    assert_eq!(more.held(&public(1)).unwrap().history(), SlashingHistory::Known(marks(10, 4, 9)));
    assert_eq!(all.past(&public(1)).unwrap().history(), SlashingHistory::Known(marks(10, 4, 9)), "its past is one");
}
