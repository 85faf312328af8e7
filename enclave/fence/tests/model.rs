//! The fence, model-checked: the production state machine ([`FenceStatement`]) and the production rules, with enclaves that crash, are cloned,
//! pause between any two steps and start from any older sealed state; a store whose questions and answers get lost, delayed or
//! doubled; and an adversary who picks every request. No two signatures that were ever released may be slashable. Each way to break
//! the protocol must have a counterexample: a checker that finds nothing in broken protocols proves nothing.
//!
//! A crash needs no step of its own: an enclave that never takes another step has crashed. A clone is one more boot from the same
//! sealed state.
//!
//! [`Steps::Single`] takes each message as a step of its own, with few faults. [`Steps::Merged`] has any number of faults and fewer
//! interleavings, without losing any outcome:
//!
//! - A read and its answer are one step. What an enclave does between them is to sign, and hearing of its own swap earlier only
//!   allows it more; hearing of another's, it has lost either way.
//! - A swap and its «yes» are one step, for the same reason. A lost «yes» is a time-out before the swap is carried out.
//! - Anyone who boots or looks reads and asks for its claim at once; it could as well have done so later.
//! - A swap that can no longer be carried out is refused at once, and nobody waits for it any more. Anyone who was leaving reads at
//!   once that it has lost.
//! - A question that comes twice is left out: the second finds a newer version, and a «conflict» is heard like no answer at all.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::Instant;

use casemate_fence::FenceMachine;
use casemate_fence::{Beginning, FenceStatus, Record, StoreOp, StoreRequest, StoreResponse};
use casemate_protocol::{Bytes, Epoch, Root, Slot};
use casemate_slashing::{AttestationMark, BlockMark, Ceilings, Floors, Limits, Watermarks, rules};
use stateright::{Checker, HasDiscoveries, Model, Property};

const SLASHABLE: &str = "no two released signatures are slashable";
const ONE_HOLDER: &str = "no two hold one term";
const NEVER_BACK: &str = "nobody has seen a newer record than the store's";
const COMES_TO_SIGN: &str = "a lone enclave comes to sign";

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

/// How the protocol is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    No,
    /// The store puts a holder's record there, whatever is there.
    ExtendWithoutComparing,
    /// The store puts a successor's record there, whatever is there.
    ClaimWithoutComparing,
    /// A successor signs from where its own watermarks are.
    FloorsNotTaken,
    /// It takes floors for slots and targets alone.
    SourceFloorNotTaken,
    /// A holder that leaves seals its own watermarks, without the floors that it had taken.
    FloorsNotSealed,
    /// Ceilings count from when they were asked for.
    SignBeforeAcknowledged,
    /// No answer is taken for a yes.
    UnclearIsSuccess,
    /// Any sealed state passes for the one that was left in order.
    StaleDigest,
    /// A holder that has left goes on signing.
    SignAfterLeaving,
    /// The exact state is written down before the last signature.
    SealedBeforeTheLast,
    /// A claim leaves in the record what the holder before had left behind.
    CleanNotCleared,
    /// Anyone who has heard no answer never asks again. It is safe, and never signs.
    GivesUp,
}

/// What the adversary asks to have signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blocks,
    Votes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Steps {
    /// Each message is a step, and this many of them get lost or doubled.
    Single { faults: u8 },
    /// Any number of faults; see the head of this file.
    Merged,
}

#[derive(Clone, Copy, Debug)]
struct World {
    kind: Kind,
    broken: Broken,
    steps: Steps,
    /// Boots in all.
    boots: usize,
    /// Claims in all, and the record's making.
    terms: u64,
    /// Highest slot and epoch.
    height: u64,
    /// There is no record yet: operators may have each enclave make it.
    empty: bool,
    /// For liveness: the enclave never leaves, and is asked for the highest alone.
    lone: bool,
}

#[derive(Clone)]
struct Enclave {
    fence: FenceMachine,
    watermarks: Watermarks,
    /// The sealed state that it has loaded, or the one that it has left behind since.
    loaded: Watermarks,
    /// The last swap that it asked for, old and new.
    swap: Option<(Record, Record)>,
    /// For the broken protocols: the limits that it takes for granted.
    hoped: Option<Limits>,
}

#[derive(Clone)]
struct State {
    record: Option<Record>,
    /// By boot.
    enclaves: Vec<Enclave>,
    /// Questions on their way to the store, by boot.
    pending: Vec<(usize, StoreRequest)>,
    /// Answers on their way back.
    answers: Vec<(usize, u64, StoreResponse)>,
    /// Every state that was ever sealed: the parent offers whichever it likes.
    sealed: Vec<Watermarks>,
    released: Vec<Signed>,
    /// Messages that the network may still lose or double.
    faults: u8,
    /// What tells this state from others, and nothing else; see [`World::key`].
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// An enclave starts, from the sealed state of this number.
    Boot(usize),
    Look(usize),
    Create(usize),
    Claim(usize),
    Extend(usize, Ceilings),
    Leave(usize),
    /// It seals its state, and goes on.
    Seal(usize),
    /// The store takes a question; with `double`, it will come once more.
    Store {
        question: usize,
        double: bool,
    },
    /// No answer. The question may have been carried out, or may yet.
    TimeOut(usize),
    Deliver(usize),
    Sign(usize, Signed),
}

/// No boot has this number.
const NOBODY: u8 = u8::MAX - 1;

fn holder(boot: usize) -> Bytes<32> {
    Bytes([u8::try_from(boot + 1).unwrap(); 32])
}

/// Equal states have equal digests: anyone who signed nothing more can pass for its predecessor.
fn digest(state: Watermarks) -> Root {
    let mut digest = [1; 32];
    digest[..8].copy_from_slice(&watermarks_code(state).to_be_bytes());
    Bytes(digest)
}

/// A first record: of a group that has signed nothing, with the state that was sealed then.
fn beginning() -> Beginning {
    Beginning {
        above_version: 0,
        term: 1,
        ceilings: Ceilings::ZERO,
        min_state_version: 0,
        exact: Some(digest(Watermarks::NONE)),
        lost: false,
    }
}

fn watermarks_code(watermarks: Watermarks) -> u64 {
    let root = |root: Option<Root>| root.map_or(0, |root| u64::from(root.0[0]) + 1);
    let block = watermarks.block.map_or(0, |mark| 1 + mark.slot.0 * 4 + root(mark.signing_root));
    let vote =
        watermarks.attestation.map_or(0, |mark| 1 + (mark.source.0 * 8 + mark.target.0) * 4 + root(mark.signing_root));
    block << 8 | vote
}

fn ceilings_code(ceilings: Ceilings) -> u64 {
    ceilings.slot.0 << 6 | ceilings.target.0 << 3 | ceilings.source.0
}

fn limits_code(limits: Limits) -> u64 {
    let Floors { slot, target, source } = limits.floors;
    let floors = [slot.map(|s| s.0), target.map(|e| e.0), source.map(|e| e.0)];
    floors.iter().fold(1, |code, floor| code << 4 | floor.map_or(0, |f| f + 1)) << 16 | ceilings_code(limits.ceilings)
}

/// A record as this boot sees it. Which of the others holds it tells nothing: its term does.
fn record_code(record: &Record, boot: usize) -> u64 {
    let held = match record.holder {
        Bytes::ZERO => 0,
        mine if mine == holder(boot) => 1,
        _ => 2,
    };
    let clean = record.released_state.map_or(0, |clean| {
        let mut code = [0; 8];
        code.copy_from_slice(&clean.0[..8]);
        u64::from_be_bytes(code) + 1
    });
    let counted = record.version << 8 | record.term << 2 | held;
    (counted << 12 | ceilings_code(record.ceilings)) << 16 | clean
}

impl Enclave {
    fn waits_for(&self, number: u64) -> bool {
        self.fence.pending().is_some_and(|ask| ask.number == number)
    }

    /// Its term.
    fn holds(&self) -> Option<u64> {
        match self.fence.status() {
            FenceStatus::Holding(record) => Some(record.term),
            _ => None,
        }
    }
}

impl State {
    fn send(&mut self, boot: usize, ask: Option<StoreRequest>) {
        let Some(ask) = ask else { return };
        if let StoreOp::Swap { old, new } = ask.op {
            self.enclaves[boot].swap = Some((old, new));
        }
        self.pending.push((boot, ask));
    }

    fn seal(&mut self, state: Watermarks) {
        if !self.sealed.contains(&state) {
            self.sealed.push(state);
            self.sealed.sort_by_key(|state| watermarks_code(*state));
        }
    }

    /// Whether the record is under this boot, and under the term that it knows of.
    fn is_current(&self, boot: usize, known: &Record) -> bool {
        self.record.is_some_and(|record| (record.holder, record.term) == (holder(boot), known.term))
    }
}

impl World {
    fn merged(&self) -> bool {
        self.steps == Steps::Merged
    }

    /// What the store puts there.
    fn put(&self, record: Option<Record>, question: StoreOp) -> Option<Record> {
        match question {
            StoreOp::Swap { old, new } => {
                let claim = new.term != old.term;
                let compares = match self.broken {
                    Broken::ExtendWithoutComparing => claim,
                    Broken::ClaimWithoutComparing => !claim,
                    _ => true,
                };
                (record == Some(old) || !compares).then_some(new)
            }
            StoreOp::Create(new) => record.is_none().then_some(new),
            StoreOp::Read => None,
        }
    }

    fn store_compares(&self) -> bool {
        !matches!(self.broken, Broken::ExtendWithoutComparing | Broken::ClaimWithoutComparing)
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
                // No vote's source is its target, so none needs a source ceiling as high as the target's.
                if now.source.0 + 1 < now.target.0 {
                    higher.push(Ceilings { source: Epoch(now.source.0 + 1), ..now });
                }
            }
        }
        higher
    }

    fn limits(&self, enclave: &Enclave) -> Option<Limits> {
        let limits = enclave.fence.limits();
        let mut limits = match self.broken {
            Broken::SignBeforeAcknowledged => limits.and(enclave.hoped).or(limits),
            Broken::SignAfterLeaving => limits.or(enclave.hoped),
            _ => limits,
        }?;
        match self.broken {
            Broken::FloorsNotTaken => limits.floors = Floors::default(),
            Broken::SourceFloorNotTaken => limits.floors.source = None,
            _ => {}
        }
        Some(limits)
    }

    /// The production rules.
    fn check(&self, enclave: &Enclave, message: Signed) -> Option<Watermarks> {
        let limits = self.limits(enclave)?;
        let root = |root: u8| Bytes([root; 32]);
        match message {
            Signed::Block { slot, root: r } => {
                rules::block::check(enclave.watermarks, Slot(slot), root(r), &limits).ok()
            }
            Signed::Vote { source, target, root: r } => {
                rules::attestation::check(enclave.watermarks, Epoch(source), Epoch(target), root(r), &limits).ok()
            }
        }
    }

    /// What may be asked for next. Two signatures are slashable or not: a third could only raise watermarks, which forbids and never
    /// allows. Of the two, one may be the one that has root 0.
    fn messages(&self, released: usize) -> Vec<Signed> {
        let root = match released {
            0 => 0,
            1 => 1,
            _ => return vec![],
        };
        let heights = if self.lone { self.height } else { 0 }..=self.height;
        match self.kind {
            Kind::Blocks => heights.map(|slot| Signed::Block { slot, root }).collect(),
            Kind::Votes => heights
                .flat_map(|target| (0..target.max(1)).map(move |source| Signed::Vote { source, target, root }))
                .collect(),
        }
    }

    fn may_claim(&self, record: Option<Record>) -> bool {
        record.is_none_or(|record| record.term < self.terms)
    }

    fn look(&self, state: &mut State, boot: usize) {
        let ask = state.enclaves[boot].fence.poll();
        state.send(boot, ask);
        if self.merged() {
            self.store(state, state.pending.len() - 1, false);
        }
    }

    fn claim(&self, state: &mut State, boot: usize) {
        let enclave = &mut state.enclaves[boot];
        let FenceStatus::Standby(record) = enclave.fence.status() else { return };
        if !self.may_claim(Some(record)) {
            return;
        }
        let loaded = Some(digest(enclave.loaded));
        let ask = match self.broken {
            Broken::StaleDigest => enclave.fence.acquire(record.released_state.or(loaded), 0, None),
            Broken::CleanNotCleared => enclave.fence.acquire(loaded, 0, record.released_state),
            _ => enclave.fence.acquire(loaded, 0, None),
        };
        state.send(boot, ask);
    }

    /// What stands for an enclave's whole past, under these limits.
    fn whole(&self, enclave: &Enclave, limits: &Limits) -> Watermarks {
        match self.broken {
            Broken::FloorsNotSealed => enclave.watermarks,
            _ => enclave.watermarks.merge(limits.floors.watermarks()),
        }
    }

    fn leave(&self, state: &mut State, boot: usize) {
        let enclave = &mut state.enclaves[boot];
        let Some(limits) = enclave.fence.limits() else { return };
        let whole = self.whole(enclave, &limits);
        let sealed = match self.broken {
            // What it was when it started, though it has signed since.
            Broken::SealedBeforeTheLast => enclave.loaded.merge(limits.floors.watermarks()),
            _ => whole,
        };
        let ask = enclave.fence.release(digest(sealed));
        enclave.watermarks = whole;
        enclave.loaded = sealed;
        if self.broken == Broken::SignAfterLeaving {
            enclave.hoped = Some(limits);
        }
        state.seal(sealed);
        state.send(boot, ask);
    }

    fn store(&self, state: &mut State, question: usize, double: bool) {
        let (boot, ask) = if double { state.pending[question] } else { state.pending.remove(question) };
        let heard = match ask.op {
            StoreOp::Read => StoreResponse::Record(state.record),
            StoreOp::Swap { .. } | StoreOp::Create(_) => match self.put(state.record, ask.op) {
                Some(new) => {
                    state.record = Some(new);
                    StoreResponse::Swapped
                }
                None => StoreResponse::Conflict,
            },
        };
        if !self.merged() {
            state.answers.push((boot, ask.number, heard));
        } else if state.enclaves[boot].waits_for(ask.number) {
            self.deliver(state, boot, ask.number, heard);
        }
    }

    fn deliver(&self, state: &mut State, boot: usize, number: u64, heard: StoreResponse) {
        let ask = state.enclaves[boot].fence.on_response(number, heard);
        if self.broken == Broken::GivesUp && heard == StoreResponse::Unclear {
            return;
        }
        state.send(boot, ask);
        if self.merged() {
            self.claim(state, boot);
        }
    }

    /// Takes away what nobody waits for.
    fn settle(&self, state: &mut State) {
        if self.merged() {
            let decided = |state: &State| {
                state.pending.iter().position(|(boot, ask)| {
                    let Enclave { fence, swap, .. } = &state.enclaves[*boot];
                    // It will find that it has lost, whenever it reads.
                    let gone = || swap.is_some_and(|(_, new)| !state.is_current(*boot, &new));
                    state.enclaves[*boot].waits_for(ask.number)
                        && match ask.op {
                            StoreOp::Read => fence.status() == FenceStatus::Releasing && gone(),
                            StoreOp::Swap { .. } | StoreOp::Create(_) => self.put(state.record, ask.op).is_none(),
                        }
                })
            };
            while let Some(question) = decided(state) {
                self.store(state, question, false);
            }
        }
        let State { record, enclaves, pending, answers, .. } = state;
        let mut kept: Vec<(usize, StoreOp)> = vec![];
        pending.retain(|(boot, ask)| {
            let enclave = &enclaves[*boot];
            let again = (*boot, ask.op);
            let keeps = enclave.waits_for(ask.number)
                || match ask.op {
                    StoreOp::Read => false,
                    _ if !self.merged() => true,
                    // Of two equal ones only one can be carried out.
                    question => {
                        self.put(*record, question).is_some()
                            && enclave.fence.pending().is_none_or(|asked| asked.op != question)
                            && !kept.contains(&again)
                    }
                };
            if keeps {
                kept.push(again);
            }
            keeps
        });
        answers.retain(|(boot, number, _)| enclaves[*boot].waits_for(*number));
    }

    /// What tells a state from others. The numbers of questions do not, but for which is the last; nor does the order of what is on
    /// its way, nor which enclave is which. With a store that compares, neither does the newest version that was seen.
    fn key(&self, state: &State) -> Vec<u64> {
        if state.released.len() > 1 {
            let slashable = slashable(state.released[0], state.released[1]);
            return vec![u64::from(slashable), u64::from(!slashable && two_terms_sign(state))];
        }
        let may_claim = self.may_claim(state.record);
        let mut enclaves: Vec<Vec<u64>> =
            (0..state.enclaves.len()).map(|boot| self.enclave_key(state, boot, may_claim)).collect();
        enclaves.sort_unstable();
        let sealed = if may_claim && state.enclaves.len() < self.boots { &state.sealed[..] } else { &[] };
        let released = state.released.first().map_or(0, |signed| match *signed {
            Signed::Block { slot, .. } => 1 + slot,
            Signed::Vote { source, target, .. } => 1 + source * 8 + target,
        });
        let record = state.record.map_or(0, |record| record_code(&record, usize::from(NOBODY)));
        let mut key = vec![record, released << 8 | u64::from(state.faults)];
        key.extend(sealed.iter().map(|sealed| watermarks_code(*sealed)));
        for enclave in enclaves {
            key.push(u64::MAX);
            key.extend(enclave);
        }
        key
    }

    fn enclave_key(&self, state: &State, boot: usize, may_claim: bool) -> Vec<u64> {
        let Enclave { fence, watermarks, loaded, swap, hoped } = &state.enclaves[boot];
        let asked = fence.pending().map(|ask| ask.op);
        let mine = || state.pending.iter().filter(|(of, _)| *of == boot);
        let loaded = if may_claim { watermarks_code(*loaded) } else { 0 };
        let all_marks = watermarks_code(*watermarks) << 20 | loaded;
        let reads = asked == Some(StoreOp::Read);
        // All that is left to do is to read, and to claim: whether it knows already is the same.
        let idle = match (fence.status(), swap) {
            // Merged, what was seen is claimed at once, where there is a claim left.
            (FenceStatus::Standby(_) | FenceStatus::Released(_) | FenceStatus::Superseded, _) => true,
            (FenceStatus::NoRecord, _) => state.record.is_some(),
            (FenceStatus::Creating, _) => reads && state.record.is_some(),
            (FenceStatus::Acquiring, Some((old, new))) => {
                reads && state.record != Some(*old) && state.record != Some(*new)
            }
            _ => false,
        };
        let nothing_late = mine().all(|(_, ask)| ask.op == StoreOp::Read);
        if self.merged() && self.store_compares() && idle && hoped.is_none() && nothing_late {
            return if may_claim { vec![1, all_marks] } else { vec![0] };
        }
        let (standing, known) = match fence.status() {
            FenceStatus::Unknown => (2, None),
            FenceStatus::Standby(record) => (3, Some(record)),
            FenceStatus::Acquiring => (4, None),
            FenceStatus::Holding(record) => (5, Some(record)),
            FenceStatus::Releasing => (6, None),
            FenceStatus::Released(record) => (7, Some(record)),
            FenceStatus::Superseded => (8, None),
            FenceStatus::NoRecord => (9, None),
            FenceStatus::Creating => (10, None),
            FenceStatus::RolledBack { .. } => (11, None),
            FenceStatus::Closed(record) => (12, Some(record)),
            FenceStatus::Implausible { .. } => (13, None),
        };
        let mut key = vec![
            standing << 2 | u64::from(reads) << 1 | u64::from(asked.is_some()),
            all_marks,
            known.map_or(0, |record| record_code(&record, boot)),
            fence.limits().map_or(0, limits_code),
            hoped.map_or(0, limits_code),
        ];
        // Whether the claim is exact follows from what it was loaded from.
        if let (FenceStatus::Acquiring | FenceStatus::Releasing, Some((old, new))) = (fence.status(), swap) {
            key.extend([record_code(old, boot), record_code(new, boot)]);
        }
        let mut on_its_way: Vec<(u64, u64, u64)> = mine()
            .map(|(_, ask)| {
                let last = u64::from(state.enclaves[boot].waits_for(ask.number));
                match ask.op {
                    StoreOp::Swap { old, new } => (last + 1, record_code(&old, boot), record_code(&new, boot)),
                    StoreOp::Create(new) => (last + 3, 0, record_code(&new, boot)),
                    StoreOp::Read => (5, 0, 0),
                }
            })
            .chain(state.answers.iter().filter(|(of, ..)| *of == boot).map(|(_, _, heard)| match heard {
                StoreResponse::Record(record) => (6, record.map_or(0, |record| record_code(&record, boot)), 0),
                StoreResponse::Swapped => (7, 0, 0),
                StoreResponse::Conflict | StoreResponse::Unclear => (8, 0, 0),
            }))
            .collect();
        on_its_way.sort_unstable();
        key.extend(on_its_way.into_iter().flat_map(|(what, old, new)| [what, old, new]));
        key
    }
}

/// Whether two enclaves have signed, each under its own term.
fn two_terms_sign(state: &State) -> bool {
    let signed = |enclave: &&Enclave| {
        let Watermarks { block, attestation } = enclave.watermarks;
        enclave.fence.limits().is_some()
            && block.and_then(|mark| mark.signing_root).or(attestation.and_then(|mark| mark.signing_root)).is_some()
    };
    state.released.len() > 1 && state.enclaves.iter().filter(signed).count() > 1
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // As an operator makes it, with the state that is sealed with it.
        let Beginning { term, ceilings, min_state_version, exact, .. } = beginning();
        let (version, holder) = (1, Bytes::ZERO);
        let record =
            Record { version, holder, term, ceilings, min_state_version, released_state: exact, closed: false };
        let faults = match self.steps {
            Steps::Single { faults } => faults,
            Steps::Merged => 0,
        };
        let mut state = State {
            record: (!self.empty).then_some(record),
            enclaves: vec![],
            pending: vec![],
            answers: vec![],
            sealed: vec![Watermarks::NONE],
            released: vec![],
            faults,
            key: vec![],
        };
        state.key = self.key(&state);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let messages = self.messages(state.released.len());
        if messages.is_empty() || (self.lone && !state.released.is_empty()) {
            return;
        }
        if state.enclaves.len() < self.boots && self.may_claim(state.record) {
            actions.extend((0..state.sealed.len()).map(Action::Boot));
        }
        for (boot, enclave) in state.enclaves.iter().enumerate() {
            let lost = |question: StoreOp| !self.merged() || question != StoreOp::Read;
            match enclave.fence.pending() {
                Some(ask) if (self.merged() || state.faults > 0) && lost(ask.op) => {
                    actions.push(Action::TimeOut(boot));
                }
                Some(_) => {}
                None => match enclave.fence.status() {
                    FenceStatus::Unknown => actions.push(Action::Look(boot)),
                    FenceStatus::Released(_) | FenceStatus::Superseded if self.may_claim(state.record) => {
                        actions.push(Action::Look(boot));
                    }
                    FenceStatus::NoRecord if state.record.is_some() => actions.push(Action::Look(boot)),
                    FenceStatus::NoRecord => actions.push(Action::Create(boot)),
                    FenceStatus::Standby(record) if self.may_claim(Some(record)) => actions.push(Action::Claim(boot)),
                    FenceStatus::Holding(record) => {
                        let higher = self.higher(record.ceilings).into_iter();
                        actions.extend(higher.map(|ceilings| Action::Extend(boot, ceilings)));
                        if !self.lone {
                            actions.push(Action::Leave(boot));
                        }
                    }
                    _ => {}
                },
            }
            if enclave.fence.limits().is_some() && !self.lone {
                actions.push(Action::Seal(boot));
            }
            let allowed = messages.iter().filter(|message| self.check(enclave, **message).is_some());
            actions.extend(allowed.map(|message| Action::Sign(boot, *message)));
        }
        for question in 0..state.pending.len() {
            actions.push(Action::Store { question, double: false });
            if state.faults > 0 {
                actions.push(Action::Store { question, double: true });
            }
        }
        actions.extend((0..state.answers.len()).map(Action::Deliver));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Boot(sealed) => {
                let watermarks = state.sealed[sealed];
                let boot = state.enclaves.len();
                let fence = FenceMachine::new(holder(boot), 0);
                state.enclaves.push(Enclave { fence, watermarks, loaded: watermarks, swap: None, hoped: None });
                if self.merged() {
                    self.look(&mut state, boot);
                }
            }
            Action::Look(boot) => self.look(&mut state, boot),
            Action::Create(boot) => {
                let ask = state.enclaves[boot].fence.create(&beginning());
                state.send(boot, ask);
            }
            Action::Claim(boot) => self.claim(&mut state, boot),
            Action::Extend(boot, ceilings) => {
                let enclave = &mut state.enclaves[boot];
                let ask = enclave.fence.extend(ceilings, 0)?;
                if self.broken == Broken::SignBeforeAcknowledged {
                    enclave.hoped = enclave.fence.limits().map(|limits| Limits { ceilings, ..limits });
                }
                state.send(boot, Some(ask));
            }
            Action::Leave(boot) => self.leave(&mut state, boot),
            Action::Seal(boot) => {
                let enclave = &state.enclaves[boot];
                let sealed = self.whole(enclave, &enclave.fence.limits()?);
                state.seal(sealed);
            }
            Action::Store { question, double } => {
                state.faults -= u8::from(double);
                self.store(&mut state, question, double);
            }
            Action::TimeOut(boot) => {
                let ask = state.enclaves[boot].fence.pending()?;
                state.faults = state.faults.saturating_sub(1);
                let heard = match (self.broken, ask.op) {
                    (Broken::UnclearIsSuccess, StoreOp::Swap { .. }) => StoreResponse::Swapped,
                    _ => StoreResponse::Unclear,
                };
                self.deliver(&mut state, boot, ask.number, heard);
            }
            Action::Deliver(answer) => {
                let (boot, number, heard) = state.answers.remove(answer);
                self.deliver(&mut state, boot, number, heard);
            }
            Action::Sign(boot, message) => {
                state.enclaves[boot].watermarks = self.check(&state.enclaves[boot], message)?;
                state.released.push(message);
            }
        }
        self.settle(&mut state);
        state.key = self.key(&state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let slashable = Property::always(SLASHABLE, |_, state: &State| match state.released[..] {
            [a, b] => !slashable(a, b),
            _ => true,
        });
        if self.lone {
            return vec![slashable, Property::eventually(COMES_TO_SIGN, |_, state: &State| !state.released.is_empty())];
        }
        vec![
            slashable,
            Property::always(ONE_HOLDER, |_, state: &State| {
                let held: Vec<u64> = state.enclaves.iter().filter_map(Enclave::holds).collect();
                held.iter().collect::<BTreeSet<_>>().len() == held.len()
            }),
            Property::always(NEVER_BACK, |_, state: &State| {
                let version = state.record.map_or(0, |record| record.version);
                state.enclaves.iter().all(|enclave| enclave.fence.seen() <= version)
            }),
            Property::sometimes("a lone enclave signs", |_, state: &State| {
                state.enclaves.len() == 1 && !state.released.is_empty()
            }),
            Property::sometimes("a successor signs above its floors", |_, state: &State| {
                let above = |enclave: &Enclave| {
                    let Watermarks { block, attestation } = enclave.watermarks;
                    let floors = enclave.fence.limits().map_or(Floors::default(), |limits| limits.floors);
                    (floors.slot.is_some() && block.map(|mark| mark.slot) > floors.slot)
                        || (floors.target.is_some() && attestation.map(|mark| mark.target) > floors.target)
                };
                !state.released.is_empty() && state.enclaves.iter().any(above)
            }),
            Property::sometimes("two terms sign, one after the other", |_, state: &State| two_terms_sign(state)),
            Property::sometimes("a successor takes the exact state", |_, state: &State| {
                let exact = |enclave: &Enclave| {
                    enclave.holds().is_some_and(|term| term > 2)
                        && enclave.fence.limits().is_some_and(|limits| limits.floors == Floors::default())
                        && enclave.watermarks != Watermarks::NONE
                };
                state.enclaves.iter().any(exact)
            }),
            Property::sometimes("a swap without an answer was carried out", |_, state: &State| {
                let unheard = |(boot, enclave): (usize, &Enclave)| {
                    enclave.fence.status() == FenceStatus::Acquiring
                        && enclave.fence.pending().is_some_and(|ask| ask.op == StoreOp::Read)
                        && enclave.swap.is_some_and(|(_, new)| state.is_current(boot, &new))
                };
                state.enclaves.iter().enumerate().any(unheard)
            }),
            Property::sometimes("a holder finds that it has a successor", |_, state: &State| {
                state.enclaves.iter().any(|enclave| enclave.fence.status() == FenceStatus::Superseded)
            }),
            Property::sometimes("a swap comes too late, after a successor's", |world, state: &State| {
                // Merged, it is taken away at once.
                world.merged()
                    || state.pending.iter().any(|(boot, ask)| match ask.op {
                        StoreOp::Swap { old, .. } => {
                            !state.enclaves[*boot].waits_for(ask.number)
                                && state.record.is_some_and(|record| {
                                    record.version > old.version && record.holder != holder(*boot)
                                })
                        }
                        _ => false,
                    })
            }),
        ]
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

fn world(kind: Kind, steps: Steps, boots: usize, terms: u64) -> World {
    let terms = terms + 1;
    // Two blocks conflict at one slot, two votes one inside the other over four epochs: none goes from an epoch to itself.
    let height = if kind == Kind::Votes { 3 } else { 2 };
    World { kind, broken: Broken::No, steps, boots, terms, height, empty: false, lone: false }
}

#[test]
fn no_two_released_signatures_are_slashable_in_any_run() {
    let faults = |faults| Steps::Single { faults };
    for world in [
        world(Kind::Blocks, Steps::Merged, 4, 4),
        World { height: 3, ..world(Kind::Blocks, Steps::Merged, 3, 4) },
        World { empty: true, ..world(Kind::Blocks, Steps::Merged, 3, 3) },
        world(Kind::Votes, Steps::Merged, 3, 3),
        world(Kind::Blocks, faults(2), 2, 2),
        world(Kind::Blocks, faults(1), 2, 3),
        world(Kind::Votes, faults(1), 2, 2),
    ] {
        explore(world);
    }
}

#[test]
fn every_way_to_break_the_protocol_has_a_counterexample() {
    let both = &[Kind::Blocks, Kind::Votes][..];
    for (broken, kinds) in [
        (Broken::ExtendWithoutComparing, both),
        (Broken::ClaimWithoutComparing, both),
        (Broken::FloorsNotTaken, both),
        (Broken::SourceFloorNotTaken, &[Kind::Votes]),
        (Broken::FloorsNotSealed, both),
        (Broken::SignBeforeAcknowledged, both),
        (Broken::UnclearIsSuccess, both),
        (Broken::StaleDigest, both),
        (Broken::SignAfterLeaving, both),
        (Broken::SealedBeforeTheLast, both),
        (Broken::CleanNotCleared, both),
    ] {
        for kind in kinds {
            let begun = Instant::now();
            let world = World { broken, ..world(*kind, Steps::Merged, 3, 3) };
            let first = HasDiscoveries::AnyOf(BTreeSet::from([SLASHABLE]));
            let checker = world.checker().threads(1).finish_when(first).spawn_bfs().join();
            let found = checker.discovery(SLASHABLE).map(stateright::Path::into_actions);
            let actions = found.unwrap_or_else(|| panic!("{broken:?}, {kind:?}: no counterexample"));
            let (states, seconds) = (checker.unique_state_count(), begun.elapsed().as_secs_f32());
            println!("{broken:?}, {kind:?}: {} steps, {states} states, {seconds:.1} s", actions.len());
        }
    }
}

#[test]
fn a_lone_enclave_comes_to_sign() {
    for (kind, empty) in [(Kind::Blocks, false), (Kind::Blocks, true), (Kind::Votes, false)] {
        let lone = World { lone: true, empty, ..world(kind, Steps::Single { faults: 2 }, 1, 2) };
        explore(lone);
        // It shows that this test can fail.
        let gives_up = World { broken: Broken::GivesUp, ..lone };
        let checker = gives_up.checker().threads(1).spawn_bfs().join();
        assert!(checker.discovery(COMES_TO_SIGN).is_some(), "{kind:?}: it signs, though it has given up");
    }
}

/// What the checker goes on to from there: a step to an equal key is none for it.
fn futures(world: &World, state: &State) -> BTreeSet<Vec<u64>> {
    let mut actions = vec![];
    world.actions(state, &mut actions);
    let next = actions.into_iter().filter_map(|action| world.next_state(state, action));
    next.map(|next| next.key).filter(|key| *key != state.key).collect()
}

/// All that the checker leaves out rests on this: it visits one state of each key.
#[test]
fn equal_keys_have_equal_futures() {
    for world in [
        world(Kind::Blocks, Steps::Merged, 2, 3),
        world(Kind::Votes, Steps::Merged, 2, 2),
        world(Kind::Blocks, Steps::Single { faults: 0 }, 2, 2),
        World { empty: true, ..world(Kind::Blocks, Steps::Merged, 2, 2) },
    ] {
        let begun = Instant::now();
        let mut known: BTreeMap<Vec<u64>, BTreeSet<Vec<u64>>> = BTreeMap::new();
        let mut others = 0;
        let mut open = world.init_states();
        while let Some(state) = open.pop() {
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
        assert!(others > keys);
    }
}

/// Who holds what, and up to where; what it has signed; and the record: for each state that can be reached.
fn outcomes(world: World) -> BTreeSet<Vec<u64>> {
    let mut outcomes = BTreeSet::new();
    let mut known = BTreeSet::new();
    let mut open = world.init_states();
    while let Some(state) = open.pop() {
        let of_enclave = |(boot, enclave): (usize, &Enclave)| {
            let (FenceStatus::Holding(record), Some(limits)) = (enclave.fence.status(), enclave.fence.limits()) else {
                return None;
            };
            Some([record_code(&record, boot), limits_code(limits), watermarks_code(enclave.watermarks)])
        };
        let mut held: Vec<[u64; 3]> = state.enclaves.iter().enumerate().filter_map(of_enclave).collect();
        held.sort_unstable();
        let mut outcome = vec![state.record.map_or(0, |record| record_code(&record, usize::from(NOBODY)))];
        outcome.extend(held.into_iter().flatten());
        outcomes.insert(outcome);
        if known.insert(state.key.clone()) {
            let mut actions = vec![];
            world.actions(&state, &mut actions);
            open.extend(actions.into_iter().filter_map(|action| world.next_state(&state, action)));
        }
    }
    println!("{world:?}: {} states, {} outcomes", known.len(), outcomes.len());
    outcomes
}

/// What the head of this file says of [`Steps::Merged`].
#[test]
fn merged_steps_have_the_outcomes_of_single_ones() {
    for (kind, faults, terms) in [(Kind::Blocks, 0, 3), (Kind::Blocks, 1, 2), (Kind::Votes, 0, 2)] {
        let merged = outcomes(world(kind, Steps::Merged, 2, terms));
        let single = outcomes(world(kind, Steps::Single { faults }, 2, terms));
        assert_eq!(merged, single);
    }
}

/// The watermark types are what the rules compare: a mark without a root is above everything at its height.
#[test]
fn a_floor_binds_like_a_mark_without_a_root() {
    let marks = Watermarks {
        block: Some(BlockMark { slot: Slot(5), signing_root: None }),
        attestation: Some(AttestationMark { source: Epoch(2), target: Epoch(3), signing_root: None }),
    };
    assert!(rules::block::check(marks, Slot(5), Bytes([0; 32]), &Limits::NONE).is_err());
    assert!(rules::attestation::check(marks, Epoch(2), Epoch(3), Bytes([0; 32]), &Limits::NONE).is_err());
    assert!(rules::attestation::check(marks, Epoch(2), Epoch(4), Bytes([0; 32]), &Limits::NONE).is_ok());
}
