//! Keys that come and go under the fence, model-checked. `tests/model.rs` proves the protocol for one key that is in every sealed
//! state; here states differ in the keys that they list. The code that decides is production's: [`FenceStatement`], [`group`], [`GroupFloor`],
//! [`rules`].
//!
//! **What happens.** Two keys, absent from the first state, are imported, deleted and imported again, at any enclave that believes it
//! holds the fence. An import says the same history each time, because the operator still has the same file. After «not known» the
//! operator gives the command again, at the same enclave or at another. Enclaves start from any state that was ever sealed, load newer
//! ones, claim, leave, lose the fence and come back. The first key may go to a signer elsewhere, with what the holder exports, and come
//! back with what it has signed there. Records end and are followed by others, in another store or the same one; they are removed and
//! made anew; they are put back to older ones. An adversary chooses the order of all that, and each message that the first key is asked
//! to sign. Each world has some of this; the tests at the end list them.
//!
//! **Properties.** No two released signatures of one key are slashable, no matter who made them. A key whose deletion was confirmed signs
//! nothing above the floors at its deletion. It may still sign below: an earlier holder that is cut off signs up to its ceilings, and
//! everybody else stays above those.
//!
//! **What is left out, and why no outcome is lost:**
//!
//! - A question to the store and its answer are one step. `model.rs` takes them apart, and shows that the fence deals with late, lost
//!   and doubled messages. Anyone who does not hear a «yes» can only do less, but for one thing: a change that waits for the «yes».
//!   [`Outcome`] therefore has three cases. A swap that comes late is a swap that is asked for late: it takes place only where the
//!   record is still the same, and what the enclave does in between commutes with it.
//! - An enclave that is killed takes no more steps. One that starts claims at once, or could as well have started later.
//! - Only the first key signs. The second one makes states differ; with the names exchanged, it is the first. Two signatures are looked
//!   at: a third could only raise watermarks.
//! - Where the parent says that a state was not stored, the state before is sealed over it. That is [`Outcome::Away`], with a number
//!   less.
//! - Versions of records tell states apart only in the world of restored records. Everywhere else a record's version rises, so what an
//!   enclave has seen forbids nothing; the real protocol may forbid more, after a record was made anew.
//! - A new record's ceilings are as low as they may be: what was granted under the record before. Production takes them from the clock,
//!   and higher. Whatever a foreign signer has signed lies above them here, which is worse than what happens.
//! - Keys have a known history ([`SlashingHistory::Missing`] never signs), and every command names one key.
//! - Operators follow the tool: no key goes elsewhere before its deletion is confirmed, no import stays outstanding when it does, an
//!   ended record is followed by one record. [`Broken`] has a case for each of these, with its counterexample.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
// A world has each of its features or not.
#![allow(clippy::struct_excessive_bools)]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::Instant;

use casemate_fence::FenceMachine;
use casemate_fence::{Beginning, FenceStatus, Record, StoreOp, StoreRequest, StoreResponse};
use casemate_protocol::{Bytes, Epoch, Root, Slot};
use casemate_slashing::group::{self, GroupFloor};
use casemate_slashing::{AttestationMark, BlockMark, Ceilings, Floors, Limits, SlashingHistory, Watermarks, rules};
use stateright::{Checker, HasDiscoveries, Model, Property};

const SLASHABLE: &str = "no two released signatures of a key are slashable";
const DELETED: &str = "a key whose deletion was confirmed signs nothing above what the deleter's floors allow others";
const NOTICED: &str = "anyone who has seen a newer record gains nothing from a restored one";

/// A message that was signed. Two roots: what differs conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signed {
    Block { slot: u64, root: u8 },
    Vote { source: u64, target: u64, root: u8 },
}

/// As the consensus specification has it.
fn slashable(a: Signed, b: Signed) -> bool {
    match (a, b) {
        (Signed::Block { slot: s1, root: r1 }, Signed::Block { slot: s2, root: r2 }) => s1 == s2 && r1 != r2,
        (Signed::Vote { source: s1, target: t1, root: r1 }, Signed::Vote { source: s2, target: t2, root: r2 }) => {
            (t1 == t2 && (s1, r1) != (s2, r2)) || (s1 < s2 && t2 < t1) || (s2 < s1 && t1 < t2)
        }
        _ => false,
    }
}

/// How the protocol is broken, or what it rests on is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    No,
    /// No state has a group floor.
    NoGroupFloor,
    /// The group floor is not raised when a term begins.
    FloorNotRaisedAtPublish,
    /// It is not raised when a term ends.
    FloorNotRaisedAtLeave,
    /// Neither.
    FloorNeverRaised,
    /// The group floor is one for targets alone.
    FloorWithoutSource,
    /// What is sealed is in force, whether or not older states are refused.
    InForceBeforeEnforced,
    /// The same without a group floor: as it was once shipped.
    InForceBeforeEnforcedWithoutFloor,
    /// A key that comes back starts from what it brings.
    ReturningKeyForgetsItsPast,
    /// What an enclave knew is gone with the next state that it loads.
    ReloadForgetsHistory,
    /// A new record is free of floors for anyone who has a state of its number.
    FirstByNumber,
    /// A lost record is made anew from any state.
    LostAtAnyState,
    /// Operators compare which keys are held, and not how new the state is.
    LostByKeysAlone,
    /// A lost record begins without ceilings.
    NewRecordWithoutCeilings,
    /// The next record is made while the one before can still be extended.
    MoveWithoutClose,
    /// The next record is made from a state that the one before refuses.
    MoveFromOldState,
    /// The next record is free of floors for a state whose number is high enough.
    ExactMoveByNumber,
    /// The next record is made a second time, after it was lost.
    MoveAgain,
    /// A key goes elsewhere with what the holder's floors say, and its own past.
    ExportWithoutFloor,
    /// The same, but for keys that the holder does not list.
    ExportListedWithoutFloor,
    /// A key goes elsewhere that the holder does not hold, though nobody has deleted it.
    ExportWithoutDelete,
    /// An import that the parent has kept back is carried out after the key went elsewhere.
    LateImport,
    /// Anyone who does not hold a record does not see that it has ended.
    ClosedCanBeClaimed,
    /// Its holder does not see it.
    ClosedCanBeExtended,
    /// A state may be older than the record's oldest.
    OldStateClaims,
    /// A claim leaves the record's oldest state what it was.
    ClaimKeepsOldStates,
    /// A change is confirmed though older states are not refused.
    DoneWithoutEnforcing,
    /// The store shows an older record to an enclave that has seen no newer one.
    StoreGoesBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blocks,
    Votes,
}

#[derive(Clone, Copy, Debug)]
struct World {
    kind: Kind,
    broken: Broken,
    /// Boots in all.
    boots: usize,
    /// Highest term; the first record has 1.
    terms: u64,
    /// Imports and deletions in all.
    commands: u8,
    /// Highest slot and epoch.
    height: u64,
    /// The second key comes and goes too.
    second: bool,
    /// The first key may go to a signer elsewhere, and come back.
    foreign: bool,
    /// The first key has signed elsewhere before, as every import of it says.
    signed_before: bool,
    /// The record may be closed, and the next one made, in another store.
    moves: bool,
    /// The same, in the same store.
    remakes: bool,
    /// The record may be removed, and made anew.
    loses: bool,
    /// It may be put back to an older one.
    restores: bool,
}

/// What an enclave knows of the group, and a sealed state has: of each key, where it is listed, whether it is held, and its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Body {
    keys: [Option<(bool, Watermarks)>; 2],
    floor: GroupFloor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sealed {
    body: Body,
    number: u64,
    /// Version of the record that it has seen.
    seen: u64,
}

#[derive(Clone)]
struct Enclave {
    fence: FenceMachine,
    store: usize,
    body: Body,
    /// Of the state that it has loaded or sealed last; not always what is in force.
    number: u64,
    digest: Root,
    /// For the broken protocols: it takes no floors.
    free: bool,
    /// For the broken protocols: it was given an import of the first key, which the parent has kept back.
    ordered: bool,
}

/// What operators know of the first key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// They have not imported it since it is theirs.
    Out,
    /// They have, or may have.
    Imported,
    /// Its deletion was confirmed; up to where others may have signed then.
    Deleted(GroupFloor),
    /// It signs elsewhere.
    Foreign(GroupFloor),
}

#[derive(Clone)]
struct State {
    stores: [Option<Record>; 2],
    /// The second store has had a record.
    moved: bool,
    removed: bool,
    restored: bool,
    enclaves: Vec<Enclave>,
    /// The parent offers whichever it likes.
    sealed: Vec<Sealed>,
    /// Every record that the first store has had, for its restoring.
    records: Vec<Record>,
    /// The highest that was ever granted, terms too.
    highest: Ceilings,
    term: u64,
    version: u64,
    commands: u8,
    status: Status,
    /// The number of the last state whose change was confirmed, and which keys it holds.
    confirmed: (u64, [bool; 2]),
    /// What an import of the first key says that it has signed.
    history: Watermarks,
    /// What the signer elsewhere knows.
    foreign: Watermarks,
    released: Vec<Signed>,
    zombie: bool,
    fooled: bool,
    /// What has happened on the way here; no part of what tells states apart.
    notes: u16,
    key: Vec<u64>,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.key.hash(hasher);
    }
}

/// What becomes of having older states refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// The swap took place; anyone who asked has not heard so.
    Unheard,
    /// It did not.
    Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// An enclave starts with this state, loads that newer one, and claims the record where it may.
    Boot {
        store: usize,
        state: usize,
        then: Option<usize>,
    },
    /// One that does not hold the record, or holds it no longer, reads it, loads that newer state, and claims.
    Return {
        boot: usize,
        then: Option<usize>,
    },
    Extend(usize, Ceilings),
    Import(usize, usize, Outcome),
    Delete(usize, usize, Outcome),
    Leave(usize),
    /// The holder ends the record.
    Close(usize),
    /// Somebody else does.
    CloseUnheld,
    /// A record is made after the one that was closed, or in the place of one that was lost.
    Make(usize),
    Remove,
    Restore(usize),
    /// The holder tells what the first key has signed, and it goes elsewhere.
    Export(usize),
    /// The parent keeps an import of the first key back.
    KeepBack(usize),
    Sign(usize, Signed),
    SignElsewhere(Signed),
}

/// An import of the first key was not confirmed.
const ROLLED_BACK: u16 = 1;
const IMPORTED_TWICE: u16 = 2;
const SIGNED_IMPORTED_TWICE: u16 = 4;
const EXACT_SIGNED: u16 = 8;
const MOVED_SIGNED: u16 = 16;
const MOVED_EXACT_SIGNED: u16 = 32;
const REMADE_SIGNED: u16 = 64;
const BACK_SIGNED: u16 = 128;
const WAS_ELSEWHERE: u16 = 256;
const ELSEWHERE_SIGNED: u16 = 512;
const NEXT_MADE: u16 = 1024;

/// Anyone who closes a record that it does not hold.
const OPERATOR: usize = 200;

fn holder(boot: usize) -> Bytes<32> {
    Bytes([u8::try_from(boot + 1).unwrap(); 32])
}

fn watermarks_code(watermarks: Watermarks) -> u64 {
    let root = |root: Option<Root>| root.map_or(0, |root| u64::from(root.0[0]) + 1);
    let block = watermarks.block.map_or(0, |mark| 1 + mark.slot.0 * 4 + root(mark.signing_root));
    let vote =
        watermarks.attestation.map_or(0, |mark| 1 + (mark.source.0 * 4 + mark.target.0) * 4 + root(mark.signing_root));
    block << 7 | vote
}

fn body_code(body: &Body) -> u64 {
    let key = |key: &Option<(bool, Watermarks)>| {
        key.map_or(0, |(held, past)| watermarks_code(past) << 2 | if held { 2 } else { 1 })
    };
    (key(&body.keys[0]) << 14 | key(&body.keys[1])) << 12 | watermarks_code(body.floor.watermarks())
}

/// Numbers of sealed states, their upper half the term.
fn number_code(number: u64) -> u64 {
    (number >> 32) << 5 | (number & 31)
}

fn sealed_code(sealed: &Sealed) -> u64 {
    body_code(&sealed.body) << 10 | number_code(sealed.number)
}

/// Equal states have equal digests, and no others.
fn digest(sealed: &Sealed) -> Root {
    let mut digest = [1; 32];
    digest[..8].copy_from_slice(&sealed_code(sealed).to_be_bytes());
    digest[8..16].copy_from_slice(&sealed.number.to_be_bytes());
    Bytes(digest)
}

fn ceilings_code(ceilings: Ceilings) -> u64 {
    ceilings.slot.0 << 4 | ceilings.target.0 << 2 | ceilings.source.0
}

fn limits_code(limits: Limits) -> u64 {
    let Floors { slot, target, source } = limits.floors;
    let floors = [slot.map(|s| s.0), target.map(|e| e.0), source.map(|e| e.0)];
    floors.iter().fold(1, |code, floor| code << 3 | floor.map_or(0, |f| f + 1)) << 6 | ceilings_code(limits.ceilings)
}

fn record_code(record: &Record) -> [u64; 2] {
    let clean = record.released_state.map_or(0, |clean| {
        let mut code = [0; 8];
        code.copy_from_slice(&clean.0[..8]);
        u64::from_be_bytes(code) + 1
    });
    let first = u64::from(record.holder == Bytes::ZERO) << 1 | u64::from(record.closed);
    let numbers = record.term << 10 | number_code(record.min_state_version);
    [(numbers << 6 | ceilings_code(record.ceilings)) << 2 | first, clean]
}

impl Body {
    const EMPTY: Self = Self { keys: [None; 2], floor: GroupFloor::NONE };

    fn past(&self, key: usize) -> Option<SlashingHistory> {
        self.keys[key].map(|(_, past)| SlashingHistory::Known(past))
    }

    fn holds(&self, key: usize) -> bool {
        self.keys[key].is_some_and(|(held, _)| held)
    }

    fn raise(&mut self, past: Watermarks) {
        for (_, known) in self.keys.iter_mut().flatten() {
            *known = known.merge(past);
        }
    }
}

impl State {
    fn seal(&mut self, boot: usize, body: Body, number: u64) -> Root {
        let sealed = Sealed { body, number, seen: self.enclaves[boot].fence.seen() };
        if !self.sealed.contains(&sealed) {
            self.sealed.push(sealed);
            self.sealed.sort_by_key(sealed_code);
        }
        let digest = digest(&sealed);
        let enclave = &mut self.enclaves[boot];
        (enclave.number, enclave.digest) = (number, digest);
        digest
    }

    /// Whether the record is under this boot, as it believes.
    fn is_current(&self, boot: usize) -> bool {
        let enclave = &self.enclaves[boot];
        let FenceStatus::Holding(held) = enclave.fence.status() else { return false };
        self.stores[enclave.store]
            .is_some_and(|record| !record.closed && (record.holder, record.term) == (held.holder, held.term))
    }
}

impl World {
    fn masked(&self, record: Record, holder: Root) -> Record {
        let mine = record.holder == holder;
        match self.broken {
            Broken::ClosedCanBeClaimed if !mine => Record { closed: false, ..record },
            Broken::ClosedCanBeExtended if mine => Record { closed: false, ..record },
            _ => record,
        }
    }

    /// What the store puts there.
    fn put(&self, state: &mut State, store: usize, ask: StoreRequest, me: Root) -> StoreResponse {
        let there = state.stores[store];
        let (fits, new) = match ask.op {
            StoreOp::Read => return StoreResponse::Record(there.map(|record| self.masked(record, me))),
            StoreOp::Create(new) => (there.is_none(), new),
            StoreOp::Swap { old, new } => (there.map(|record| self.masked(record, me)) == Some(old), new),
        };
        if !fits {
            return StoreResponse::Conflict;
        }
        // For the broken protocols: what has ended stays so, though not everybody is told.
        let closed = new.closed || there.is_some_and(|there| there.closed && there.term <= new.term && !self.remakes);
        state.stores[store] = Some(Record { closed, ..new });
        state.highest = state.highest.max(new.ceilings);
        state.term = state.term.max(new.term);
        state.version = state.version.max(new.version);
        if store == 0 && self.restores {
            state.records.push(new);
        }
        StoreResponse::Swapped
    }

    /// Asks, hears, and asks on. With `unheard`, the first answer does not come.
    fn drive(&self, state: &mut State, boot: usize, ask: Option<StoreRequest>, mut unheard: bool) {
        let mut next = ask;
        while let Some(ask) = next {
            let store = state.enclaves[boot].store;
            let heard = self.put(state, store, ask, holder(boot));
            let heard = if std::mem::take(&mut unheard) { StoreResponse::Unclear } else { heard };
            next = state.enclaves[boot].fence.on_response(ask.number, heard);
        }
    }

    fn look(&self, state: &mut State, boot: usize) {
        let ask = state.enclaves[boot].fence.poll();
        self.drive(state, boot, ask, false);
        // One that has just learnt that it has lost looks at what is there instead.
        if state.enclaves[boot].fence.status() == FenceStatus::Superseded {
            let ask = state.enclaves[boot].fence.poll();
            self.drive(state, boot, ask, false);
        }
    }

    fn limits(enclave: &Enclave) -> Option<Limits> {
        let limits = enclave.fence.limits()?;
        Some(if enclave.free { Limits { floors: Floors::default(), ..limits } } else { limits })
    }

    fn may_claim(&self, record: &Record) -> bool {
        record.term < self.terms && (!record.closed || self.broken == Broken::ClosedCanBeClaimed)
    }

    /// Claims the record that it sees, where its state is new enough; what is raised before anything is signed.
    fn claim(&self, state: &mut State, boot: usize) {
        let enclave = &mut state.enclaves[boot];
        let FenceStatus::Standby(record) = enclave.fence.status() else { return };
        let fits = enclave.number >= record.min_state_version || self.broken == Broken::OldStateClaims;
        if !self.may_claim(&record) || !fits {
            return;
        }
        let sealed = if self.broken == Broken::ClaimKeepsOldStates { 0 } else { enclave.number };
        let ask = enclave.fence.acquire(Some(enclave.digest), sealed, None);
        enclave.free = self.broken == Broken::FirstByNumber
            && record.holder == Bytes::ZERO
            && enclave.number == record.min_state_version;
        self.drive(state, boot, ask, false);
        self.raise(&mut state.enclaves[boot], self.raises_at_publish());
    }

    fn raises_at_publish(&self) -> bool {
        self.has_floor() && !matches!(self.broken, Broken::FloorNotRaisedAtPublish | Broken::FloorNeverRaised)
    }

    fn raises_at_leave(&self) -> bool {
        self.has_floor() && !matches!(self.broken, Broken::FloorNotRaisedAtLeave | Broken::FloorNeverRaised)
    }

    fn has_floor(&self) -> bool {
        !matches!(self.broken, Broken::NoGroupFloor | Broken::InForceBeforeEnforcedWithoutFloor)
    }

    fn raise(&self, enclave: &mut Enclave, floor: bool) {
        let Some(limits) = Self::limits(enclave) else { return };
        enclave.body.raise(limits.floors.watermarks());
        if floor {
            let source = if self.broken == Broken::FloorWithoutSource { None } else { limits.floors.source };
            enclave.body.floor = enclave.body.floor.with_floors(&Floors { source, ..limits.floors });
        }
    }

    /// A newer state: what was known before is not forgotten.
    fn reload(&self, enclave: &mut Enclave, loaded: &Sealed) {
        let before = enclave.body;
        enclave.body = loaded.body;
        (enclave.number, enclave.digest) = (loaded.number, digest(loaded));
        enclave.fence.has_seen(loaded.seen);
        if self.broken == Broken::ReloadForgetsHistory {
            return;
        }
        for key in 0..2 {
            let held = loaded.body.holds(key);
            enclave.body.keys[key] = match group::reloaded(before.past(key), loaded.body.past(key)) {
                Some(SlashingHistory::Known(past)) => Some((held, past)),
                _ => None,
            };
        }
        enclave.body.floor = enclave.body.floor.merge(before.floor);
    }

    /// The number of the next state, and the term under which it is sealed.
    fn next_number(enclave: &Enclave) -> Option<u64> {
        let FenceStatus::Holding(record) = enclave.fence.status() else { return None };
        group::next_state(enclave.number, record.term)
    }

    /// Has older states refused.
    fn enforce(&self, state: &mut State, boot: usize, outcome: Outcome) {
        if outcome == Outcome::Away || self.broken == Broken::DoneWithoutEnforcing {
            return;
        }
        let enclave = &mut state.enclaves[boot];
        let FenceStatus::Holding(record) = enclave.fence.status() else { return };
        let ask = enclave.fence.extend(record.ceilings, enclave.number);
        self.drive(state, boot, ask, outcome == Outcome::Unheard);
    }

    fn import(&self, state: &mut State, boot: usize, key: usize, outcome: Outcome) -> Option<()> {
        let enclave = &state.enclaves[boot];
        let (limits, number) = (Self::limits(enclave)?, Self::next_number(enclave)?);
        let brought = if key == 0 {
            if let Status::Foreign(_) = state.status {
                // It signs there no more, and what it has signed comes along.
                state.history = state.foreign;
            }
            state.history
        } else {
            Watermarks::NONE
        };
        let remembered = enclave.body.past(key);
        let mut changed = enclave.body;
        let past = if enclave.body.holds(key) {
            enclave.body.keys[key]?.1.merge(brought)
        } else {
            let remembered = remembered.filter(|_| self.broken != Broken::ReturningKeyForgetsItsPast);
            group::entering(brought.merge(limits.floors.watermarks()), remembered, enclave.body.floor)
        };
        changed.keys[key] = Some((true, past));
        state.seal(boot, changed, number);
        self.enforce(state, boot, outcome);
        let in_force = outcome == Outcome::Done
            || matches!(self.broken, Broken::InForceBeforeEnforced | Broken::InForceBeforeEnforcedWithoutFloor);
        let enclave = &mut state.enclaves[boot];
        if in_force {
            enclave.body = changed;
        } else if let Some((_, known)) = &mut enclave.body.keys[key] {
            // A past that is listed is raised at once, whatever comes of the rest.
            *known = known.merge(past);
        }
        if outcome == Outcome::Done {
            Self::confirm(state, boot);
        }
        if key == 0 {
            if outcome == Outcome::Done && state.notes & ROLLED_BACK != 0 {
                state.notes |= IMPORTED_TWICE;
            }
            if outcome != Outcome::Done {
                state.notes |= ROLLED_BACK;
            }
            state.status = Status::Imported;
        }
        Some(())
    }

    fn delete(&self, state: &mut State, boot: usize, key: usize, outcome: Outcome) -> Option<()> {
        let enclave = &mut state.enclaves[boot];
        let number = Self::next_number(enclave)?;
        // It signs no more before its past is written down.
        if let Some((held, _)) = &mut enclave.body.keys[key] {
            *held = false;
        }
        let body = enclave.body;
        state.seal(boot, body, number);
        self.enforce(state, boot, outcome);
        if outcome == Outcome::Done {
            Self::confirm(state, boot);
        }
        // Deleted once more, it still signs elsewhere.
        if key == 0 && outcome == Outcome::Done && !matches!(state.status, Status::Foreign(_)) {
            let enclave = &state.enclaves[boot];
            let floors = Self::limits(enclave)?.floors;
            state.status = Status::Deleted(enclave.body.floor.with_floors(&floors));
        }
        Some(())
    }

    /// Seals what it leaves behind.
    fn leave_behind(&self, state: &mut State, boot: usize) -> Option<Root> {
        let number = Self::next_number(&state.enclaves[boot])?;
        self.raise(&mut state.enclaves[boot], self.raises_at_leave());
        let body = state.enclaves[boot].body;
        Some(state.seal(boot, body, number))
    }

    /// What operators check before the record is made anew: it is the last state of which they know, or a newer one with the same keys,
    /// or the newest that anybody has sealed.
    fn is_last(&self, state: &State, enclave: &Enclave) -> bool {
        let (number, keys) = state.confirmed;
        let same = keys == [enclave.body.holds(0), enclave.body.holds(1)];
        let newest = state.sealed.iter().all(|sealed| sealed.number <= enclave.number);
        let gone = matches!(state.status, Status::Deleted(_) | Status::Foreign(_));
        match self.broken {
            Broken::LostAtAnyState => true,
            Broken::LostByKeysAlone => !(gone && enclave.body.holds(0)),
            _ => newest || (same && enclave.number >= number),
        }
    }

    fn confirm(state: &mut State, boot: usize) {
        let Enclave { number, body, .. } = &state.enclaves[boot];
        state.confirmed = (*number, [body.holds(0), body.holds(1)]);
    }

    fn make(&self, state: &mut State, boot: usize) -> Option<()> {
        self.look(state, boot);
        let enclave = &state.enclaves[boot];
        let closed = match enclave.fence.status() {
            FenceStatus::Closed(closed) if self.remakes => Some(closed),
            FenceStatus::NoRecord | FenceStatus::RolledBack { found: 0, .. } if enclave.store == 0 => None,
            FenceStatus::NoRecord | FenceStatus::RolledBack { found: 0, .. } => Some(state.stores[0]?),
            _ => return None,
        };
        let open = closed.is_some_and(|closed| !closed.closed);
        if open && self.broken != Broken::MoveWithoutClose {
            return None;
        }
        let oldest = closed.map_or(0, |closed| closed.min_state_version);
        if enclave.number < oldest && self.broken != Broken::MoveFromOldState {
            return None;
        }
        if closed.is_none() && !self.is_last(state, enclave) {
            return None;
        }
        let exact = closed.is_some_and(|closed| {
            closed.released_state == Some(enclave.digest)
                || (self.broken == Broken::ExactMoveByNumber && enclave.number >= closed.min_state_version)
        });
        let term = state.term + 1;
        let number = group::next_state(enclave.number, term)?;
        let body = enclave.body;
        let digest = state.seal(boot, body, number);
        let ceilings = match closed {
            Some(closed) => closed.ceilings,
            None if self.broken == Broken::NewRecordWithoutCeilings => Ceilings::ZERO,
            None => state.highest,
        };
        let beginning = Beginning {
            above_version: state.version,
            term,
            ceilings,
            min_state_version: number,
            exact: exact.then_some(digest),
            lost: closed.is_none(),
        };
        let ask = Some(state.enclaves[boot].fence.create(&beginning)?);
        self.drive(state, boot, ask, false);
        state.moved |= state.enclaves[boot].store == 1;
        state.notes |= if closed.is_some() { NEXT_MADE } else { 0 };
        Some(())
    }

    fn export(&self, state: &mut State, boot: usize) -> Option<()> {
        let enclave = &state.enclaves[boot];
        let floors = Self::limits(enclave)?.floors;
        let floor = match (enclave.body.keys[0], self.broken) {
            (_, Broken::ExportWithoutFloor) | (Some(_), Broken::ExportListedWithoutFloor) => GroupFloor::NONE,
            _ => enclave.body.floor,
        };
        let past = enclave.body.keys[0].map_or(Watermarks::NONE, |(_, past)| past);
        let told = past.merge(floor.with_floors(&floors).watermarks());
        // Nobody tells who has not had every state refused that is older than its own.
        self.enforce(state, boot, Outcome::Done);
        let deleted = match state.status {
            Status::Deleted(floor) => floor,
            _ => GroupFloor::from_watermarks(told),
        };
        state.foreign = told.merge(state.history);
        state.status = Status::Foreign(deleted);
        state.notes |= WAS_ELSEWHERE;
        Some(())
    }

    /// The production rules.
    fn check(watermarks: Watermarks, limits: &Limits, message: Signed) -> Option<Watermarks> {
        let root = |root: u8| Bytes([root; 32]);
        match message {
            Signed::Block { slot, root: r } => rules::block::check(watermarks, Slot(slot), root(r), limits).ok(),
            Signed::Vote { source, target, root: r } => {
                rules::attestation::check(watermarks, Epoch(source), Epoch(target), root(r), limits).ok()
            }
        }
    }

    fn signs(enclave: &Enclave, message: Signed) -> Option<Watermarks> {
        let (_, past) = enclave.body.keys[0].filter(|(held, _)| *held)?;
        Self::check(past, &Self::limits(enclave)?, message)
    }

    /// What may be asked for next. Two signatures are slashable or not: a third could only raise watermarks, which forbids and never
    /// allows. Of the two, one may be the one that has root 0.
    fn messages(&self, state: &State) -> Vec<Signed> {
        let root = match state.released.len() {
            _ if state.zombie || state.fooled => return vec![],
            0 => 0,
            1 => 1,
            _ => return vec![],
        };
        let heights = 0..=self.height;
        match self.kind {
            Kind::Blocks => heights.map(|slot| Signed::Block { slot, root }).collect(),
            Kind::Votes => heights
                .flat_map(|target| (0..=target).map(move |source| Signed::Vote { source, target, root }))
                .collect(),
        }
    }

    /// One step up, of one ceiling.
    fn higher(&self, now: Ceilings) -> Vec<Ceilings> {
        let mut higher = vec![];
        match self.kind {
            Kind::Blocks if now.slot.0 < self.height => higher.push(Ceilings { slot: Slot(now.slot.0 + 1), ..now }),
            Kind::Blocks => {}
            Kind::Votes => {
                if now.target.0 < self.height {
                    higher.push(Ceilings { target: Epoch(now.target.0 + 1), ..now });
                }
                if now.source < now.target {
                    higher.push(Ceilings { source: Epoch(now.source.0 + 1), ..now });
                }
            }
        }
        higher
    }

    /// Whether states older than what the records refuse can still be of use.
    fn keeps_all(&self) -> bool {
        self.loses
            || self.restores
            || matches!(self.broken, Broken::OldStateClaims | Broken::MoveFromOldState | Broken::ClaimKeepsOldStates)
    }

    /// Whether anybody can come to hold the record of this store, as it is now or as it may become.
    fn open(&self, state: &State, store: usize) -> bool {
        let room = state.term + 1 < self.terms;
        match (store, state.stores[store]) {
            (_, Some(record)) => {
                self.may_claim(&record) || (record.closed && self.remakes && room) || (store == 0 && self.loses && room)
            }
            (0, None) => room,
            _ => self.moves && room,
        }
    }

    fn settle(&self, state: &mut State) {
        if !(0..2).any(|store| self.open(state, store)) {
            state.sealed.clear();
        } else if !self.keeps_all() {
            let oldest = state.stores.iter().flatten().map(|record| record.min_state_version).min().unwrap_or(0);
            state.sealed.retain(|sealed| sealed.number >= oldest);
        }
    }

    fn key(&self, state: &State) -> Vec<u64> {
        let ended = u64::from(state.zombie) << 1 | u64::from(state.fooled);
        if ended != 0 || state.released.len() > 1 {
            let slashable = state.released.len() > 1 && slashable(state.released[0], state.released[1]);
            return vec![ended, u64::from(slashable), u64::from(state.notes)];
        }
        let mut enclaves: Vec<Vec<u64>> = (0..state.enclaves.len()).map(|boot| self.enclave_key(state, boot)).collect();
        enclaves.sort_unstable();
        let released = state.released.first().map_or(0, |signed| match *signed {
            Signed::Block { slot, .. } => 1 + slot,
            Signed::Vote { source, target, .. } => 1 + source * 8 + target,
        });
        let (status, told) = match state.status {
            Status::Out => (0, 0),
            Status::Imported => (1, 0),
            Status::Deleted(floor) => (2, watermarks_code(floor.watermarks())),
            Status::Foreign(floor) => (3, watermarks_code(floor.watermarks())),
        };
        let flags = u64::from(state.moved) | u64::from(state.removed) << 1 | u64::from(state.restored) << 2;
        let foreign = if status == 3 { watermarks_code(state.foreign) } else { 0 };
        let mut key = vec![
            (released << 8 | u64::from(state.commands)) << 8 | flags << 2 | status,
            told << 24 | watermarks_code(state.history) << 12 | foreign,
        ];
        for record in state.stores {
            key.extend(record.map_or([0, 0], |record| record_code(&record)));
        }
        if self.loses {
            let (number, [first, second]) = state.confirmed;
            let confirmed = number_code(number) << 2 | u64::from(first) << 1 | u64::from(second);
            key.push((ceilings_code(state.highest) << 8 | state.term) << 12 | confirmed);
        }
        if self.restores {
            let versions = |record: &Record| [record.version, record_code(record)[0], record_code(record)[1]];
            key.extend(state.records.iter().flat_map(versions));
            key.extend(state.stores[0].map(|record| record.version));
        }
        key.extend(state.sealed.iter().map(sealed_code));
        for enclave in enclaves {
            key.push(u64::MAX);
            key.extend(enclave);
        }
        key
    }

    fn enclave_key(&self, state: &State, boot: usize) -> Vec<u64> {
        let Enclave { fence, store, body, number, digest, free, ordered } = &state.enclaves[boot];
        let current = state.is_current(boot);
        let (standing, term) = match fence.status() {
            FenceStatus::Holding(_) if current => (3, 0),
            FenceStatus::Holding(record) => (4, record.term),
            _ if !self.open(state, *store) => return vec![0],
            FenceStatus::RolledBack { .. } => (2, 0),
            _ => (1, 0),
        };
        let named =
            |record: &Option<Record>| u64::from(record.is_some_and(|record| record.released_state == Some(*digest)));
        let flags = named(&state.stores[0]) << 4
            | named(&state.stores[1]) << 3
            | u64::from(*free) << 2
            | u64::from(*ordered) << 1
            | u64::from(*store == 1);
        let mut key = vec![
            ((number_code(*number) << 5 | flags) << 4 | standing) << 4 | term,
            body_code(body),
            Self::limits(&state.enclaves[boot]).map_or(0, limits_code),
        ];
        if self.restores {
            key.push(fence.seen());
        }
        key
    }

    fn boots(&self, state: &State, actions: &mut Vec<Action>) {
        for store in 0..2 {
            let makes = match state.stores[store] {
                None if store == 0 => true,
                None => {
                    self.moves
                        && (!state.moved || self.broken == Broken::MoveAgain)
                        && state.stores[0]
                            .is_some_and(|record| record.closed || self.broken == Broken::MoveWithoutClose)
                }
                Some(record) => record.closed && self.remakes,
            };
            let makes = makes && state.term + 1 < self.terms;
            let record = state.stores[store].filter(|record| self.may_claim(record));
            if !makes && record.is_none() {
                continue;
            }
            let oldest = record.map_or(0, |record| record.min_state_version);
            let fits = |sealed: &Sealed| sealed.number >= oldest || self.broken == Broken::OldStateClaims;
            for (number, sealed) in state.sealed.iter().enumerate() {
                if makes || fits(sealed) {
                    actions.push(Action::Boot { store, state: number, then: None });
                }
                let newer = |then: &&(usize, &Sealed)| then.1.number > sealed.number && (makes || fits(then.1));
                let then = state.sealed.iter().enumerate().collect::<Vec<_>>();
                let then = then.iter().filter(newer).map(|(then, _)| Some(*then));
                actions.extend(then.map(|then| Action::Boot { store, state: number, then }));
            }
        }
    }

    fn of_enclave(&self, state: &State, boot: usize, actions: &mut Vec<Action>) {
        let enclave = &state.enclaves[boot];
        let current = state.is_current(boot);
        let record = state.stores[enclave.store];
        if let FenceStatus::Holding(held) = enclave.fence.status() {
            if current {
                actions.extend(self.higher(held.ceilings).into_iter().map(|ceilings| Action::Extend(boot, ceilings)));
                actions.push(Action::Leave(boot));
                if self.moves || self.remakes {
                    actions.push(Action::Close(boot));
                }
                let told = matches!(state.status, Status::Deleted(_))
                    || (self.broken == Broken::ExportWithoutDelete && state.status == Status::Imported);
                if self.foreign && told && !enclave.body.holds(0) {
                    actions.push(Action::Export(boot));
                }
            } else if self.broken == Broken::ClosedCanBeExtended {
                actions.extend(self.higher(held.ceilings).into_iter().map(|ceilings| Action::Extend(boot, ceilings)));
            }
            let outcomes =
                if current { &[Outcome::Done, Outcome::Unheard, Outcome::Away][..] } else { &[Outcome::Away] };
            if state.commands < self.commands {
                for key in 0..if self.second { 2 } else { 1 } {
                    actions.extend(outcomes.iter().map(|outcome| Action::Import(boot, key, *outcome)));
                    actions.extend(outcomes.iter().map(|outcome| Action::Delete(boot, key, *outcome)));
                }
            }
        }
        if self.broken == Broken::LateImport && !enclave.ordered && state.status == Status::Out {
            actions.push(Action::KeepBack(boot));
        }
        let makes = self.open(state, enclave.store)
            && match record {
                None => enclave.store == 0 || !state.moved || self.broken == Broken::MoveAgain,
                Some(record) => record.closed && self.remakes,
            };
        if makes && state.term + 1 < self.terms {
            actions.push(Action::Make(boot));
        }
        if !current && let Some(record) = record.filter(|record| self.may_claim(record)) {
            if enclave.number >= record.min_state_version {
                actions.push(Action::Return { boot, then: None });
            }
            let newer = |sealed: &Sealed| sealed.number > enclave.number && sealed.number >= record.min_state_version;
            let newer = state.sealed.iter().enumerate().filter(|(_, sealed)| newer(sealed));
            actions.extend(newer.map(|(then, _)| Action::Return { boot, then: Some(then) }));
        }
    }

    fn note_signed(state: &mut State, boot: usize) {
        let enclave = &state.enclaves[boot];
        let FenceStatus::Holding(record) = enclave.fence.status() else { return };
        let exact = enclave.fence.limits().is_some_and(|limits| limits.floors == Floors::default());
        if state.notes & IMPORTED_TWICE != 0 {
            state.notes |= SIGNED_IMPORTED_TWICE;
        }
        if exact && record.term > 2 {
            state.notes |= EXACT_SIGNED;
        }
        if state.notes & NEXT_MADE != 0 && state.is_current(boot) {
            state.notes |= if exact { MOVED_EXACT_SIGNED } else { MOVED_SIGNED };
        }
        if state.removed && state.is_current(boot) {
            state.notes |= REMADE_SIGNED;
        }
        if state.notes & WAS_ELSEWHERE != 0 {
            state.notes |= BACK_SIGNED;
        }
    }

    fn is_above(message: Signed, told: GroupFloor) -> bool {
        let told = told.watermarks();
        match message {
            Signed::Block { slot, .. } => told.block.is_none_or(|mark: BlockMark| slot > mark.slot.0),
            Signed::Vote { target, .. } => told.attestation.is_none_or(|mark: AttestationMark| target > mark.target.0),
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = Sealed { body: Body::EMPTY, number: group::next_state(0, 1).unwrap(), seen: 0 };
        let record = Record {
            version: 1,
            holder: Bytes::ZERO,
            term: 1,
            ceilings: Ceilings::ZERO,
            min_state_version: first.number,
            released_state: Some(digest(&first)),
            closed: false,
        };
        let (signed, history) = match self.kind {
            _ if !self.signed_before => (None, Watermarks::NONE),
            Kind::Blocks => {
                let block = BlockMark { slot: Slot(0), signing_root: None };
                let history = Watermarks { block: Some(block), attestation: None };
                (Some(Signed::Block { slot: 0, root: 0 }), history)
            }
            Kind::Votes => {
                let vote = AttestationMark { source: Epoch(0), target: Epoch(0), signing_root: None };
                let history = Watermarks { block: None, attestation: Some(vote) };
                (Some(Signed::Vote { source: 0, target: 0, root: 0 }), history)
            }
        };
        let mut state = State {
            stores: [Some(record), None],
            moved: false,
            removed: false,
            restored: false,
            enclaves: vec![],
            sealed: vec![first],
            records: vec![record],
            highest: Ceilings::ZERO,
            term: 1,
            version: 1,
            commands: 0,
            status: Status::Out,
            confirmed: (group::next_state(0, 1).unwrap(), [false; 2]),
            history,
            foreign: Watermarks::NONE,
            released: signed.into_iter().collect(),
            zombie: false,
            fooled: false,
            notes: 0,
            key: vec![],
        };
        state.key = self.key(&state);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let messages = self.messages(state);
        if messages.is_empty() {
            return;
        }
        if state.enclaves.len() < self.boots {
            self.boots(state, actions);
        }
        for (boot, enclave) in state.enclaves.iter().enumerate() {
            self.of_enclave(state, boot, actions);
            let allowed = messages.iter().filter(|message| Self::signs(enclave, **message).is_some());
            actions.extend(allowed.map(|message| Action::Sign(boot, *message)));
        }
        if let Status::Foreign(_) = state.status {
            let allowed = messages.iter().filter(|m| Self::check(state.foreign, &Limits::NONE, **m).is_some());
            actions.extend(allowed.map(|message| Action::SignElsewhere(*message)));
        }
        if let Some(record) = state.stores[0] {
            if (self.moves || self.remakes) && !record.closed && !state.moved {
                actions.push(Action::CloseUnheld);
            }
            // One that has ended and is gone was followed, or will be: it is not lost.
            if self.loses && !record.closed && !state.removed && state.term + 1 < self.terms {
                actions.push(Action::Remove);
            }
            if self.restores && !state.restored {
                let older = state.records.iter().enumerate().filter(|(_, older)| older.version < record.version);
                actions.extend(older.map(|(older, _)| Action::Restore(older)));
            }
        }
        if self.broken == Broken::MoveAgain && state.stores[1].is_some() && !state.removed {
            actions.push(Action::Remove);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Boot { store, state: number, then } => {
                let sealed = state.sealed[number];
                let boot = state.enclaves.len();
                let fence = FenceMachine::new(holder(boot), sealed.seen);
                let (body, number, digest) = (sealed.body, sealed.number, digest(&sealed));
                state.enclaves.push(Enclave { fence, store, body, number, digest, free: false, ordered: false });
                if let Some(then) = then {
                    let newer = state.sealed[then];
                    self.reload(&mut state.enclaves[boot], &newer);
                }
                self.look(&mut state, boot);
                self.claim(&mut state, boot);
            }
            Action::Return { boot, then } => {
                self.look(&mut state, boot);
                if let Some(then) = then {
                    let newer = state.sealed[then];
                    self.reload(&mut state.enclaves[boot], &newer);
                }
                self.claim(&mut state, boot);
            }
            Action::Extend(boot, ceilings) => {
                if self.broken == Broken::ClosedCanBeExtended {
                    self.look(&mut state, boot);
                }
                let enclave = &mut state.enclaves[boot];
                let FenceStatus::Holding(record) = enclave.fence.status() else { return None };
                let ask = Some(enclave.fence.extend(ceilings, record.min_state_version)?);
                self.drive(&mut state, boot, ask, false);
            }
            Action::Import(boot, key, outcome) => {
                state.commands += 1;
                let late = self.broken == Broken::LateImport && state.enclaves[boot].ordered;
                let before = state.status;
                self.import(&mut state, boot, key, outcome)?;
                if late && key == 0 && matches!(before, Status::Foreign(_) | Status::Deleted(_)) {
                    (state.status, state.history) = (before, last.history);
                }
            }
            Action::Delete(boot, key, outcome) => {
                state.commands += 1;
                // A later command makes an earlier one void.
                state.enclaves[boot].ordered = false;
                self.delete(&mut state, boot, key, outcome)?;
            }
            Action::Leave(boot) => {
                let left = self.leave_behind(&mut state, boot)?;
                let ask = state.enclaves[boot].fence.release(left);
                self.drive(&mut state, boot, ask, false);
            }
            Action::Close(boot) => {
                let left = self.leave_behind(&mut state, boot)?;
                let ask = state.enclaves[boot].fence.close(Some(left));
                self.drive(&mut state, boot, ask, false);
            }
            Action::CloseUnheld => {
                let mut fence = FenceMachine::new(holder(OPERATOR), 0);
                let mut next = fence.poll();
                let mut closes = true;
                while let Some(ask) = next {
                    let heard = self.put(&mut state, 0, ask, holder(OPERATOR));
                    next = fence.on_response(ask.number, heard);
                    if next.is_none() && std::mem::take(&mut closes) {
                        next = fence.close(None);
                    }
                }
            }
            Action::Make(boot) => self.make(&mut state, boot)?,
            Action::Remove => {
                state.removed = true;
                state.stores[usize::from(self.broken == Broken::MoveAgain)] = None;
            }
            Action::Restore(older) => {
                state.restored = true;
                state.stores[0] = Some(state.records[older]);
            }
            Action::Export(boot) => self.export(&mut state, boot)?,
            Action::KeepBack(boot) => {
                state.enclaves[boot].ordered = true;
                state.status = Status::Imported;
            }
            Action::Sign(boot, message) => {
                let past = Self::signs(&state.enclaves[boot], message)?;
                state.enclaves[boot].body.keys[0] = Some((true, past));
                state.released.push(message);
                if let Status::Deleted(told) | Status::Foreign(told) = state.status {
                    state.zombie |= Self::is_above(message, told);
                }
                Self::note_signed(&mut state, boot);
            }
            Action::SignElsewhere(message) => {
                state.foreign = Self::check(state.foreign, &Limits::NONE, message)?;
                state.released.push(message);
                state.notes |= ELSEWHERE_SIGNED;
            }
        }
        if self.restores {
            Self::notice(last, &mut state);
        }
        self.settle(&mut state);
        state.key = self.key(&state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(SLASHABLE, |_, state: &State| match state.released[..] {
                [a, b] => !slashable(a, b),
                _ => true,
            }),
            Property::always(DELETED, |_, state: &State| !state.zombie),
            Property::always(NOTICED, |_, state: &State| !state.fooled),
        ];
        if self.restores {
            // Nobody claims more of a store that goes back.
            if self.broken == Broken::No {
                properties.drain(..2);
            }
            return properties;
        }
        properties.extend([
            Property::sometimes("a key signs that was imported again after a rollback", |_, state: &State| {
                state.notes & SIGNED_IMPORTED_TWICE != 0
            }),
            Property::sometimes("a key signs under an exact state that was handed over", |_, state: &State| {
                state.notes & EXACT_SIGNED != 0
            }),
        ]);
        if self.moves || self.remakes {
            properties.push(Property::sometimes("a key signs under the next record", |_, state: &State| {
                state.notes & MOVED_SIGNED != 0
            }));
            properties
                .push(Property::sometimes("a key signs under the next record, without floors", |_, state: &State| {
                    state.notes & MOVED_EXACT_SIGNED != 0
                }));
        }
        if self.loses {
            properties
                .push(Property::sometimes("a key signs under a record that was made anew", |_, state: &State| {
                    state.notes & REMADE_SIGNED != 0
                }));
        }
        if self.foreign {
            properties.push(Property::sometimes("a key signs elsewhere", |_, state: &State| {
                state.notes & ELSEWHERE_SIGNED != 0
            }));
            properties.push(Property::sometimes("a key signs here that was elsewhere", |_, state: &State| {
                state.notes & BACK_SIGNED != 0
            }));
        }
        properties
    }
}

impl World {
    /// Whether one that has seen a newer record than the store's has gained by it.
    fn notice(last: &State, state: &mut State) {
        let version = last.stores[0].map_or(0, |record| record.version);
        for (before, after) in last.enclaves.iter().zip(&state.enclaves) {
            let limits = after.fence.limits();
            let gained = limits.is_some() && limits != before.fence.limits();
            state.fooled |= before.fence.seen() > version && gained;
        }
        // One that starts now has seen what its state has.
        if let Some(new) = state.enclaves.get(last.enclaves.len()) {
            state.fooled |= new.fence.seen() > version + 1 && new.fence.limits().is_some();
        }
    }
}

/// Everything that can be reached.
fn explore(world: World) {
    let begun = Instant::now();
    let checker = world.checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{world:?}: {states} states, {depth} deep, {:.1} s", begun.elapsed().as_secs_f32());
    for property in world.properties() {
        let found = checker.discovery(property.name).map(stateright::Path::into_actions);
        match property.expectation {
            stateright::Expectation::Sometimes => assert!(found.is_some(), "{world:?}: never: {}", property.name),
            _ => assert_eq!(found, None, "{world:?}: not so: {}", property.name),
        }
    }
}

fn world(kind: Kind, boots: usize, terms: u64, commands: u8) -> World {
    World {
        kind,
        broken: Broken::No,
        boots,
        terms,
        commands,
        height: 1,
        second: false,
        foreign: false,
        signed_before: false,
        moves: false,
        remakes: false,
        loses: false,
        restores: false,
    }
}

/// The worlds in which keys come and go under one record.
#[test]
fn keys_come_and_go() {
    let blocks = World { foreign: true, ..world(Kind::Blocks, 3, 5, 2) };
    let votes = World { foreign: true, ..world(Kind::Votes, 3, 5, 2) };
    for world in [
        World { commands: 3, ..blocks },
        World { terms: 6, ..blocks },
        World { boots: 4, ..blocks },
        World { height: 2, ..blocks },
        World { second: true, ..blocks },
        World { signed_before: true, commands: 3, ..blocks },
        votes,
        // One vote inside another takes four epochs: none goes from an epoch to itself.
        World { boots: 2, height: 3, terms: 4, ..votes },
        World { signed_before: true, ..votes },
    ] {
        explore(world);
    }
}

/// The worlds in which records end, in which they are lost, and in which the store goes back.
#[test]
fn records_come_and_go() {
    for kind in [Kind::Blocks, Kind::Votes] {
        let base = World { foreign: true, ..world(kind, 3, 5, 2) };
        for world in [
            World { moves: true, ..base },
            World { remakes: true, ..base },
            World { loses: true, ..base },
            World { restores: true, foreign: false, boots: 2, terms: 4, commands: 1, ..base },
        ] {
            explore(world);
        }
    }
    let more = World { foreign: true, ..world(Kind::Blocks, 3, 5, 3) };
    explore(World { moves: true, ..more });
    explore(World { loses: true, ..more });
    explore(World { loses: true, moves: true, ..world(Kind::Blocks, 2, 7, 2) });
}

#[test]
fn every_way_to_break_the_protocol_has_a_counterexample() {
    let keys = |boots, terms, commands| world(Kind::Blocks, boots, terms, commands);
    let foreign = |boots, terms, commands| World { foreign: true, ..keys(boots, terms, commands) };
    let moves = |boots, terms, commands| World { moves: true, ..keys(boots, terms, commands) };
    let loses = |boots, terms, commands| World { loses: true, ..keys(boots, terms, commands) };
    let restores = World { restores: true, ..keys(2, 4, 1) };
    let both = &[Kind::Blocks, Kind::Votes][..];
    let blocks = &[Kind::Blocks][..];
    for (broken, property, world, kinds) in [
        (Broken::NoGroupFloor, SLASHABLE, keys(2, 5, 2), both),
        (Broken::FloorNeverRaised, SLASHABLE, keys(2, 5, 2), both),
        (Broken::FloorWithoutSource, SLASHABLE, World { height: 3, ..keys(2, 5, 2) }, &[Kind::Votes]),
        (Broken::InForceBeforeEnforcedWithoutFloor, SLASHABLE, keys(2, 4, 2), both),
        (Broken::ReturningKeyForgetsItsPast, SLASHABLE, keys(2, 5, 3), both),
        (Broken::OldStateClaims, DELETED, keys(2, 4, 2), both),
        (Broken::DoneWithoutEnforcing, DELETED, keys(2, 4, 2), both),
        (Broken::ExportWithoutFloor, SLASHABLE, foreign(2, 5, 2), both),
        (Broken::ExportListedWithoutFloor, SLASHABLE, foreign(3, 5, 2), blocks),
        (Broken::ExportWithoutDelete, SLASHABLE, foreign(2, 4, 1), both),
        (Broken::LateImport, SLASHABLE, foreign(2, 4, 2), both),
        (Broken::FirstByNumber, SLASHABLE, loses(2, 4, 1), both),
        (Broken::LostAtAnyState, DELETED, loses(2, 4, 2), both),
        (Broken::LostAtAnyState, SLASHABLE, World { foreign: true, ..loses(2, 4, 2) }, both),
        (Broken::LostByKeysAlone, SLASHABLE, World { foreign: true, ..loses(2, 4, 3) }, blocks),
        (Broken::NewRecordWithoutCeilings, SLASHABLE, loses(2, 4, 1), both),
        (Broken::MoveWithoutClose, SLASHABLE, moves(2, 4, 1), both),
        (Broken::MoveFromOldState, DELETED, moves(2, 4, 2), both),
        (Broken::ExactMoveByNumber, SLASHABLE, moves(2, 4, 1), both),
        (Broken::MoveAgain, SLASHABLE, moves(2, 5, 2), both),
        (Broken::ClosedCanBeClaimed, SLASHABLE, moves(3, 4, 1), both),
        (Broken::ClosedCanBeExtended, SLASHABLE, moves(2, 4, 1), both),
        (Broken::StoreGoesBack, SLASHABLE, restores, both),
    ] {
        for kind in kinds {
            let begun = Instant::now();
            let world = World { broken, kind: *kind, ..world };
            let first = HasDiscoveries::AnyOf(BTreeSet::from([property]));
            let checker = world.checker().threads(1).finish_when(first).spawn_bfs().join();
            let found = checker.discovery(property).map(stateright::Path::into_actions);
            let actions = found.unwrap_or_else(|| panic!("{broken:?}, {kind:?}: no counterexample"));
            let (states, seconds) = (checker.unique_state_count(), begun.elapsed().as_secs_f32());
            println!("{broken:?}, {kind:?}: {} steps, {states} states, {seconds:.1} s", actions.len());
            if *kind == Kind::Blocks {
                println!("    {actions:?}");
            }
        }
    }
}

/// Second lines of defence: without any one of them, the others hold. That is checked here, because a line that is thought to be the
/// second may turn out to be the only one.
///
/// - The group floor is raised when a term begins and again when it ends: either is enough ([`Broken::FloorNeverRaised`] is not).
/// - A key in force before older states are refused has signed at or below ceilings that the next term's group floor includes.
///   Without the group floor it is slashable ([`Broken::InForceBeforeEnforcedWithoutFloor`]).
/// - A claim that leaves the oldest state what it was lets an older state follow: a key that this lacks is below the group floor.
/// - A reload that forgets: anyone who loads a state holds nothing. What it has signed itself lies at or below the ceilings of its
///   term, which are in the floors of the next, or in the exact state. What protects is that a holder never loads one.
#[test]
fn second_lines_of_defence_are_not_the_only_ones() {
    for broken in [
        Broken::FloorNotRaisedAtPublish,
        Broken::FloorNotRaisedAtLeave,
        Broken::InForceBeforeEnforced,
        Broken::ClaimKeepsOldStates,
        Broken::ReloadForgetsHistory,
    ] {
        explore(World { broken, foreign: true, ..world(Kind::Blocks, 3, 5, 2) });
        explore(World { broken, foreign: true, ..world(Kind::Votes, 2, 5, 2) });
        explore(World { broken, loses: true, ..world(Kind::Blocks, 2, 5, 2) });
        explore(World { broken, moves: true, ..world(Kind::Blocks, 2, 5, 2) });
    }
}

/// What the checker goes on to from there. Of states in which all has ended, what has happened before is left out.
fn futures(world: &World, state: &State) -> BTreeSet<Vec<u64>> {
    let mut actions = vec![];
    world.actions(state, &mut actions);
    let next = actions.into_iter().filter_map(|action| world.next_state(state, action));
    let next = next.map(|next| {
        let ended = world.messages(&next).is_empty();
        if ended { next.key[..2].to_vec() } else { next.key }
    });
    next.filter(|key| *key != state.key).collect()
}

/// All that the checker leaves out rests on this: it visits one state of each key.
#[test]
fn equal_keys_have_equal_futures() {
    let base = World { foreign: true, ..world(Kind::Blocks, 2, 5, 2) };
    for world in [
        base,
        World { kind: Kind::Votes, terms: 4, ..base },
        World { moves: true, terms: 4, ..base },
        World { loses: true, terms: 4, ..base },
        World { second: true, terms: 4, ..base },
    ] {
        let begun = Instant::now();
        let mut known: BTreeMap<Vec<u64>, BTreeSet<Vec<u64>>> = BTreeMap::new();
        let mut others = 0;
        let mut open = world.init_states();
        while let Some(state) = open.pop() {
            if world.messages(&state).is_empty() {
                continue;
            }
            let futures = futures(&world, &state);
            if let Some(known) = known.get(&state.key) {
                others += 1;
                assert_eq!(&futures, known, "{world:?}: {:?}", state.key);
                continue;
            }
            let mut actions = vec![];
            world.actions(&state, &mut actions);
            open.extend(actions.into_iter().filter_map(|action| world.next_state(&state, action)));
            known.insert(state.key, futures);
        }
        let (keys, seconds) = (known.len(), begun.elapsed().as_secs_f32());
        println!("{world:?}: {keys} keys, {others} more states, {seconds:.1} s");
        assert!(others > keys / 2);
    }
}

/// In another store there is no record yet: it is no older one for anyone who has seen nothing newer than the one that has ended.
#[test]
fn the_next_record_may_begin_in_another_store() {
    let begin = |seen, above_version, lost| {
        let mut fence = FenceMachine::new(holder(0), seen);
        let ask = fence.poll().unwrap();
        assert_eq!(fence.on_response(ask.number, StoreResponse::Record(None)), None);
        let (ceilings, min_state_version, exact) = (Ceilings::ZERO, 0, None);
        fence.create(&Beginning { above_version, term: 7, ceilings, min_state_version, exact, lost }).is_some()
    };
    assert!(begin(0, 0, false) && begin(5, 5, false) && begin(4, 5, false) && begin(6, 5, true));
    // It has seen the record that came after the one that has ended.
    assert!(!begin(6, 5, false) && !begin(1, 0, false));
}
