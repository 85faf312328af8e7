//! The fence at work: the gate that every signature passes, and the one thread that keeps the record.
//!
//! What may be signed is decided by [`casemate_slashing::Fence`]; here its questions are put to the store and its limits put in
//! force. A signature takes the gate's read lock from the look at the limits to the saving of the watermark: once the gate is
//! closed, nothing is under way any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::{NotHolder, StoreTrouble};
use casemate_protocol::statement::{self, FenceKind, FenceStanding, StatedFloors, StatedRecord};
use casemate_protocol::{Refusal, Root, Slot};
use casemate_slashing::fence::{Ask, Beginning, Heard, Holder, Question, Record, Standing};
use casemate_slashing::{Ceilings, Fence, Floors, Limits};

use crate::Vault;
use crate::margins::{self, AHEAD, HAND_OVER_REST};
use crate::runtime::{Bell, Kernel, Runtime};
use crate::store::Store;

/// How often the keeper looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// How often one that stands by looks at the record.
const LOOK: Duration = Duration::from_millis(500);
/// So long, or a slot where that is shorter, a record must stay as it is before it is claimed without having been left: one that
/// has just been claimed is extended at once.
const STEADY: Duration = Duration::from_secs(2);
/// Wait after an unclear answer; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Longest time for what an operator has ordered.
const ORDER_TIMEOUT: Duration = Duration::from_secs(12);
/// The same, for whoever waits for the keeper.
const ERRAND_TIMEOUT: Duration = Duration::from_mins(1);
/// After so long one that has left in order comes back, if nobody else has come: a standby takes a second or two.
const RETURN: Duration = Duration::from_secs(5);
/// How often the clock is held against the NSM's.
const CLOCK_CHECK: Duration = Duration::from_mins(2);
/// The same while it is not trusted.
const CLOCK_RECHECK: Duration = Duration::from_secs(1);
/// After so many checks in a row that have failed, it will not agree again by itself: the process ends, and whoever starts it anew gives
/// it another chance.
const MAX_FAILED_CHECKS: u32 = 120;

/// What the fence lets this enclave sign, for everybody who has to know.
pub struct Fencing {
    kind: FenceKind,
    /// Which store has the record, for statements.
    identity: Option<String>,
    gate: RwLock<Gate>,
    view: RwLock<View>,
    orders: Mutex<Orders>,
    runtime: Arc<dyn Runtime>,
    /// Wakes the keeper.
    woken: Arc<dyn Bell>,
    changes: AtomicU64,
    waiting: Mutex<()>,
    /// Wakes those who wait for the limits to change.
    changed: Condvar,
}

#[derive(PartialEq, Eq)]
enum Gate {
    /// With the generation that is held.
    Open(Limits, u64),
    Closed(NotHolder),
}

/// For statements.
#[derive(Clone, Copy)]
struct View {
    standing: FenceStanding,
    record: Option<Record>,
    floors: Floors,
}

#[derive(Default)]
struct Orders {
    /// What requests that wait would need.
    wanted: Option<Ceilings>,
    /// The gate stays closed, whatever the record says.
    handing_over: bool,
    errand: Option<(Errand, Arc<Answer>)>,
    /// No keeper will come any more.
    closed: bool,
    /// When the host was last granted a hand-over that no operator has signed.
    unsigned_hand_over: Option<Slot>,
}

/// Where the keeper puts what came of an errand.
struct Answer {
    done: Mutex<Option<Result<Done, Refusal>>>,
    bell: Arc<dyn Bell>,
}

impl Answer {
    fn give(&self, done: Result<Done, Refusal>) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        self.bell.ring();
    }

    fn take(&self) -> Option<Result<Done, Refusal>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the keeper is sent for.
pub(crate) enum Errand {
    /// Try whether the store answers, with new credentials where there are some.
    Probe(Option<StoreCredentials>),
    /// Read the record, and learn whether it is still held.
    Look,
    /// Make the record.
    Create(Beginning),
    /// Ask the store for its record with these credentials, and keep them where it shows the record that is known.
    Credentials(StoreCredentials),
    /// End the record; with the state that is left behind, where this enclave holds it in this generation.
    Close(Option<(Root, u64)>),
    /// Have older sealed states refused, in the generation in which this one was sealed.
    Raise { sealed: u64, generation: u64 },
    /// Leave, with this state behind: it stands for what was signed until the gate was closed in this generation, and for no other.
    Leave { state: Root, generation: u64 },
    /// Claim without waiting.
    TakeOver,
}

/// What the keeper came back with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Done {
    /// The record as it is.
    Record(Option<Record>),
    Yes,
}

/// A passed gate. While it is held, the limits stay in force.
pub(crate) struct Pass<'a> {
    pub(crate) limits: Limits,
    /// The generation that is held; 0 where the kind has none.
    pub(crate) generation: u64,
    _gate: RwLockReadGuard<'a, Gate>,
}

/// A fence whose parts belong together: the gate, and what its keeper asks. Only here is either made, so no gate of a kind with a
/// record stands open because its store is missing, and what the statement says of the store is what is asked.
pub struct FenceParts {
    fencing: Fencing,
    keeping: Keeping,
}

/// What a [`Keeper`] needs of its fence: the store, where the kind has a record.
pub struct Keeping(Option<Box<dyn Store>>);

impl FenceParts {
    /// With a record in this store: closed until a [`Keeper`] has claimed it.
    pub fn with_record(store: Box<dyn Store>) -> Self {
        let view = View { standing: FenceStanding::Apart, record: None, floors: Floors::default() };
        let gate = Gate::Closed(NotHolder::Apart(StoreTrouble::NotAsked));
        let fencing = Fencing::new(store.kind().into(), store.identity(), gate, view);
        Self { fencing, keeping: Keeping(Some(store)) }
    }

    /// Without a record, on trusted time alone: these limits for good.
    pub fn solo(limits: Limits) -> Self {
        Self { fencing: Fencing::fixed(FenceKind::Solo, limits), keeping: Keeping(None) }
    }

    /// The gate for the vault, and the rest for its keeper.
    pub fn split(self) -> (Fencing, Keeping) {
        (self.fencing, self.keeping)
    }
}

impl Fencing {
    /// No fence: the development stack's, with its watermarks in a file. The statement says so.
    pub(crate) fn none(limits: Limits) -> Self {
        Self::fixed(FenceKind::None, limits)
    }

    fn fixed(kind: FenceKind, limits: Limits) -> Self {
        let view = View { standing: FenceStanding::NoStore, record: None, floors: limits.floors };
        Self::new(kind, None, Gate::Open(limits, 0), view)
    }

    fn new(kind: FenceKind, identity: Option<String>, gate: Gate, view: View) -> Self {
        let runtime = Kernel::default();
        let woken = runtime.bell();
        Self {
            kind,
            identity,
            gate: RwLock::new(gate),
            view: RwLock::new(view),
            orders: Mutex::default(),
            runtime: Arc::new(runtime),
            woken,
            changes: AtomicU64::new(0),
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// On another's time than the kernel's: a simulator's.
    #[must_use]
    pub fn running_on(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.woken = runtime.bell();
        self.runtime = runtime;
        self
    }

    /// Whether there is a record.
    pub(crate) fn has_record(&self) -> bool {
        !matches!(self.kind, FenceKind::None | FenceKind::Solo)
    }

    pub(crate) fn kind(&self) -> FenceKind {
        self.kind
    }

    /// The limits in force, or why nothing may be signed.
    pub(crate) fn pass(&self) -> Result<Pass<'_>, Refusal> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        match *gate {
            Gate::Open(limits, generation) => Ok(Pass { limits, generation, _gate: gate }),
            Gate::Closed(why) => Err(Refusal::NotHolder(why)),
        }
    }

    /// What this enclave is to the fence.
    pub(crate) fn standing(&self) -> FenceStanding {
        self.view().standing
    }

    /// For the statement.
    pub(crate) fn stated(&self, time_ms: Option<u64>) -> statement::Fence {
        let View { standing, record, floors } = self.view();
        let generation = record.filter(|_| standing == FenceStanding::Holding).map_or(0, |record| record.generation);
        let record = record.map(|record| StatedRecord {
            version: record.version,
            holder: record.holder,
            generation: record.generation,
            slot_ceiling: record.ceilings.slot,
            target_ceiling: record.ceilings.target,
            source_ceiling: record.ceilings.source,
            sealed_generation: record.sealed_generation,
            clean: record.clean,
            closed: record.closed,
        });
        let floors = StatedFloors { slot: floors.slot, target: floors.target, source: floors.source };
        let store = self.identity.clone();
        statement::Fence { kind: self.kind, store, generation, standing, record, floors, time_ms }
    }

    /// The generation that this enclave holds, and its floors; 0 where the kind has none.
    pub(crate) fn held(&self) -> Result<(u64, Floors), Refusal> {
        let pass = self.pass()?;
        Ok((pass.generation, pass.limits.floors))
    }

    /// The gate, as long as it is closed: it cannot open while this is held. Nothing where it is open.
    pub(crate) fn closed(&self) -> Option<impl Sized + '_> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        matches!(*gate, Gate::Closed(_)).then_some(gate)
    }

    /// Version of the record as it was last seen; 0 for none.
    pub(crate) fn version(&self) -> u64 {
        self.view().record.map_or(0, |record| record.version)
    }

    /// Returns once every signature that is under way has passed the gate: what has changed before is seen by all that follow.
    pub(crate) fn settle(&self) {
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// A request needs higher ceilings. It has passed the window, so the clock allows them.
    pub(crate) fn want(&self, ceilings: Ceilings) {
        let mut orders = self.orders();
        orders.wanted = Some(orders.wanted.map_or(ceilings, |wanted| wanted.max(ceilings)));
        drop(orders);
        self.woken.ring();
    }

    /// Whether the host may have a hand-over now that no operator has signed: it costs seconds without a signature each time.
    pub(crate) fn may_hand_over_unsigned(&self, now: Slot) -> Result<(), Refusal> {
        let mut orders = self.orders();
        match orders.unsigned_hand_over {
            Some(last) if now < last.saturating_add(HAND_OVER_REST) => {
                Err(Refusal::HandOverTooSoon { slots: HAND_OVER_REST })
            }
            _ => {
                orders.unsigned_hand_over = Some(now);
                Ok(())
            }
        }
    }

    /// Closes the gate: what is being signed is signed, and then nothing more. It stays closed until [`Self::reopen`], or until
    /// another generation is held.
    pub(crate) fn close(&self) -> Result<(), Refusal> {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        match *gate {
            Gate::Open(..) => *gate = Gate::Closed(NotHolder::HandingOver),
            Gate::Closed(why) => return Err(Refusal::NotHolder(why)),
        }
        // Under the gate's lock, where the keeper reads it too.
        self.orders().handing_over = true;
        drop(gate);
        self.view.write().unwrap_or_else(PoisonError::into_inner).standing = FenceStanding::HandingOver;
        Ok(())
    }

    /// Opens the gate that was closed, because handing over did not work.
    pub(crate) fn reopen(&self) {
        let mut orders = self.orders();
        orders.handing_over = false;
        drop(orders);
        self.woken.ring();
    }

    /// Sends the keeper for something and waits for it.
    pub(crate) fn errand(&self, errand: Errand) -> Result<Done, Refusal> {
        let answer = Arc::new(Answer { done: Mutex::default(), bell: self.runtime.bell() });
        {
            let mut orders = self.orders();
            if orders.closed || !self.has_record() {
                return Err(Refusal::NoFenceRecord(self.kind));
            }
            if orders.errand.is_some() {
                return Err(Refusal::CommandBusy);
            }
            orders.errand = Some((errand, Arc::clone(&answer)));
        }
        self.woken.ring();
        let until = self.runtime.now().saturating_add(ERRAND_TIMEOUT);
        loop {
            if let Some(done) = answer.take() {
                return done;
            }
            let rest = until.saturating_sub(self.runtime.now());
            if rest.is_zero() {
                // What the keeper has not begun it must not begin later, when nobody waits any more.
                let begun = self.orders().errand.take().is_none();
                let trouble = StoreTrouble::NotAsked;
                return Err(if begun { Refusal::FenceUnclear(trouble) } else { Refusal::StoreAway(trouble) });
            }
            answer.bell.wait(rest);
        }
    }

    /// Waits until the limits have changed since `seen`, at most so long; the count of changes.
    pub(crate) fn wait_for_change(&self, seen: u64, at_most: Duration) -> u64 {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(waiting, at_most, |()| self.changes() == seen));
        self.changes()
    }

    /// How often the limits have changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn view(&self) -> View {
        *self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the record: looks, claims, extends, leaves.
pub struct Keeper<'a> {
    vault: &'a Vault,
    fencing: &'a Fencing,
    /// Nothing where the kind has no record: then only the clock is kept.
    store: Option<Box<dyn Store>>,
    fence: Fence,
    runtime: Arc<dyn Runtime>,
    /// A question that was not answered clearly, and when it is put again.
    pending: Option<(Ask, Duration)>,
    backoff: Duration,
    trouble: StoreTrouble,
    looked: Option<Duration>,
    reloaded: Option<Duration>,
    left: Option<Duration>,
    take_over: bool,
    /// Version of the record that was seen last, and since when it is the same.
    steady: Option<(u64, Duration)>,
    /// The generation whose floors were added to every key's past.
    floored: u64,
    /// Why the record that was seen cannot be claimed.
    unfit: Option<NotHolder>,
    checked: Duration,
    failed_checks: u32,
}

/// The keeper cannot go on, and nor can the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentence says it")]
pub enum KeeperError {
    #[error("the clock has not agreed with the NSM's in {checks} checks: nothing can be signed by it")]
    Clock { checks: u32 },
}

impl<'a> Keeper<'a> {
    /// Of this vault. `seen`: the version of the record that its sealed state has seen.
    pub fn new(vault: &'a Vault, Keeping(store): Keeping, seen: u64) -> Self {
        let fence = Fence::new(vault.holder(), seen);
        let runtime = Arc::clone(&vault.fencing().runtime);
        Self {
            vault,
            fencing: vault.fencing(),
            store,
            fence,
            checked: runtime.now(),
            failed_checks: 0,
            runtime,
            pending: None,
            backoff: MIN_BACKOFF,
            trouble: StoreTrouble::NotAsked,
            looked: None,
            reloaded: None,
            left: None,
            take_over: false,
            steady: None,
            floored: 0,
            unfit: None,
        }
    }

    /// Runs until `ended`.
    pub fn run(&mut self, ended: impl Fn() -> bool) -> Result<(), KeeperError> {
        let _closing = Closing(self.fencing);
        while !ended() {
            self.check_clock()?;
            if self.store.is_some() {
                self.step();
                if let Some((errand, answer)) = self.wait() {
                    answer.give(self.carry_out(errand));
                }
            } else {
                self.runtime.sleep(TICK);
            }
        }
        Ok(())
    }

    /// Sleeps until the next tick, or until somebody wants something.
    fn wait(&self) -> Option<(Errand, Arc<Answer>)> {
        self.fencing.woken.wait(TICK);
        self.fencing.orders().errand.take()
    }

    fn since(&self, then: Duration) -> Duration {
        self.runtime.now().saturating_sub(then)
    }

    /// Whether something was done so long ago, or never.
    fn rested(&self, then: Option<Duration>, length: Duration) -> bool {
        then.is_none_or(|then| self.since(then) >= length)
    }

    fn check_clock(&mut self) -> Result<(), KeeperError> {
        let every = if self.vault.clock().unix_ms().is_some() { CLOCK_CHECK } else { CLOCK_RECHECK };
        if self.since(self.checked) < every {
            return Ok(());
        }
        self.checked = self.runtime.now();
        if let Some(trusted) = self.vault.nsm_time() {
            self.vault.clock().check(trusted);
        }
        let trusted = self.vault.clock().unix_ms().is_some();
        self.failed_checks = if trusted { 0 } else { self.failed_checks.saturating_add(1) };
        match self.failed_checks {
            MAX_FAILED_CHECKS.. => Err(KeeperError::Clock { checks: self.failed_checks }),
            _ => Ok(()),
        }
    }

    /// One question at most, and what follows from its answer.
    fn step(&mut self) {
        let ask = match self.pending {
            Some((_, again)) if self.runtime.now() < again => return,
            Some((ask, _)) => Some(ask),
            None => self.next(),
        };
        if let Some(ask) = ask {
            self.put(ask);
        }
        self.publish();
    }

    /// Puts a question, and those that follow from the answers, until an answer is unclear.
    fn put(&mut self, ask: Ask) {
        let mut next = Some(ask);
        while let (Some(ask), Some(store)) = (next, self.store.as_mut()) {
            let (heard, trouble) = store.ask(&ask.question);
            self.trouble = trouble.unwrap_or_default();
            let before = self.fence.standing();
            next = self.fence.hear(ask.number, heard);
            if matches!(ask.question, Question::Read) {
                self.looked = Some(self.runtime.now());
            }
            if before != self.fence.standing() {
                self.publish();
            }
            if heard == Heard::Unclear {
                self.pending = next.map(|next| (next, self.runtime.now().saturating_add(self.backoff)));
                self.backoff = self.backoff.saturating_mul(2).min(MAX_BACKOFF);
                return;
            }
            self.pending = None;
            self.backoff = MIN_BACKOFF;
        }
    }

    /// What is to be asked now, if anything.
    fn next(&mut self) -> Option<Ask> {
        if !self.store.as_ref().is_some_and(|store| store.is_open()) {
            self.trouble = StoreTrouble::NoCredentials;
            return None;
        }
        let rested = self.rested(self.looked, LOOK);
        match self.fence.standing() {
            // A state that was loaded just now may have seen a newer record than the one at hand: then it is read again.
            Standing::Seen(record) if self.may_claim(&record) && record.version >= self.fence.seen() => {
                let (state, leaves) = self.vault.exact_state(&record);
                // What is said to be left behind from now on must stand for the past from now on too.
                let exact = state.is_some() && state == record.clean;
                if leaves.is_some() && !exact && !self.vault.raise(&record.floors()) {
                    return None;
                }
                self.fence.claim(state, self.vault.sealed_generation(), leaves)
            }
            Standing::Apart
            | Standing::NoRecord
            | Standing::Seen(_)
            | Standing::Lost
            | Standing::Left(_)
            | Standing::Closed(_)
            | Standing::Implausible { .. }
            | Standing::WentBack { found: 0, .. }
                if rested =>
            {
                self.fence.look()
            }
            // One whose keys could not be raised to the floors signs nothing: it must not keep others from it.
            Standing::Holding(record) if record.generation == self.floored => {
                let ceilings = self.wanted(&record)?;
                self.fence.extend(ceilings, record.sealed_generation)
            }
            _ => None,
        }
    }

    /// The ceilings that should be in force by now.
    fn wanted(&self, record: &Record) -> Option<Ceilings> {
        let wanted = self.fencing.orders().wanted.take();
        let network = self.vault.network();
        let now = network.slot_at(self.vault.clock().unix_ms()?);
        let slot = now.saturating_add(AHEAD);
        // A justified epoch has begun: whoever asks for a later one would only lock out the others of the group.
        let latest = network.epoch_of(now);
        let source = wanted.map_or(record.ceilings.source, |wanted| wanted.source.min(latest));
        Some(Ceilings { slot, target: network.epoch_of(slot), source })
    }

    /// Whether it is this enclave's turn, and its state is new enough.
    fn may_claim(&mut self, record: &Record) -> bool {
        let Some(now_ms) = self.vault.clock().unix_ms() else { return false };
        let now = self.vault.network().slot_at(now_ms);
        if !self.is_ready(record) {
            return false;
        }
        // Its ceilings would become floors, in every key's past and for good.
        if !margins::is_plausible(self.vault.network(), record, now) {
            self.unfit = Some(NotHolder::FromFuture { slot_ceiling: record.ceilings.slot, now });
            return false;
        }
        if !self.rested(self.left, RETURN) && !self.take_over {
            return false;
        }
        let exact = self.vault.exact_state(record).0;
        let left_behind = exact.is_some() && exact == record.clean;
        let passed = now > record.ceilings.slot;
        let since = match self.steady {
            Some((version, since)) if version == record.version => since,
            _ => {
                let now = self.runtime.now();
                self.steady = Some((record.version, now));
                now
            }
        };
        let slot = Duration::from_millis(self.vault.network().slot_duration_ms());
        let steady = self.since(since) >= STEADY.min(slot);
        // A record that was just made: nobody holds it. Floors hold for whoever claims it, as for any other.
        let first = record.holder == Holder::ZERO;
        self.take_over || first || left_behind || (passed && steady)
    }

    /// Loads the newest state that the parent offers, where the one at hand is too old, or another was left in order.
    fn is_ready(&mut self, record: &Record) -> bool {
        self.fence.has_seen(self.vault.fence_version());
        let (state, _) = self.vault.exact_state(record);
        let old = self.vault.sealed_generation() < record.sealed_generation;
        let other = record.clean.is_some() && record.clean != state;
        if (old || other) && self.rested(self.reloaded, LOOK) {
            if let Some(loaded) = self.vault.reload(record.sealed_generation) {
                self.fence.has_seen(loaded.fence_version);
                if let (Some(credentials), Some(store)) = (&loaded.store, self.store.as_mut()) {
                    store.open(credentials);
                }
            }
            self.reloaded = Some(self.runtime.now());
        }
        let found = self.vault.sealed_generation();
        self.unfit = (found < record.sealed_generation)
            .then_some(NotHolder::OldState { found, oldest: record.sealed_generation });
        self.unfit.is_none()
    }

    /// Puts in force what the record says.
    fn publish(&mut self) {
        let standing = self.fence.standing();
        let limits = self.fence.limits();
        if let (Standing::Holding(record), Some(limits)) = (standing, limits)
            && record.generation != self.floored
        {
            // Before anything is signed in this generation: every key's past ends no lower than the floors, so that the state
            // that is sealed next stands for the generations before this one too.
            if !self.vault.raise(&limits.floors) {
                return;
            }
            self.floored = record.generation;
            self.take_over = false;
            self.left = None;
            self.fencing.orders().handing_over = false;
        }
        // Whoever closes the gate says so under its lock: what is read here is true.
        let mut gate = self.fencing.gate.write().unwrap_or_else(PoisonError::into_inner);
        let handing_over = self.fencing.orders().handing_over;
        let (stated, record, closed) = match standing {
            Standing::Apart | Standing::Creating => (FenceStanding::Apart, None, NotHolder::Apart(self.trouble)),
            Standing::NoRecord => (FenceStanding::NoRecord, None, NotHolder::NoRecord),
            Standing::Seen(record) => match self.unfit {
                Some(old @ NotHolder::OldState { .. }) => (FenceStanding::OldState, Some(record), old),
                Some(other) => (FenceStanding::Standby, Some(record), other),
                None => (FenceStanding::Standby, Some(record), standby(record.ceilings.slot)),
            },
            Standing::Holding(record) if handing_over => {
                (FenceStanding::HandingOver, Some(record), NotHolder::HandingOver)
            }
            Standing::Holding(record) => (FenceStanding::Holding, Some(record), NotHolder::HandingOver),
            Standing::Leaving => (FenceStanding::HandingOver, None, NotHolder::HandingOver),
            Standing::Claiming | Standing::Lost => (FenceStanding::Standby, None, NotHolder::Apart(self.trouble)),
            Standing::Left(record) => (FenceStanding::Standby, Some(record), standby(record.ceilings.slot)),
            Standing::WentBack { seen, found } => (FenceStanding::WentBack, None, NotHolder::WentBack { seen, found }),
            Standing::Closed(record) => {
                (FenceStanding::Closed, Some(record), NotHolder::Closed { slot_ceiling: record.ceilings.slot })
            }
            Standing::Implausible { .. } => (FenceStanding::Apart, None, NotHolder::Apart(StoreTrouble::Record)),
        };
        {
            let mut view = self.fencing.view.write().unwrap_or_else(PoisonError::into_inner);
            let record = record.or(view.record);
            *view = View { standing: stated, record, floors: limits.map(|limits| limits.floors).unwrap_or_default() };
        }
        let now = match limits {
            Some(limits) if !handing_over => Gate::Open(limits, record.map_or(0, |record| record.generation)),
            _ => Gate::Closed(closed),
        };
        let differs = *gate != now;
        *gate = now;
        drop(gate);
        if differs {
            let waiting = self.fencing.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            self.fencing.changes.fetch_add(1, Ordering::Release);
            drop(waiting);
            self.fencing.changed.notify_all();
        }
    }

    fn carry_out(&mut self, errand: Errand) -> Result<Done, Refusal> {
        match errand {
            Errand::Probe(credentials) => self.probe(credentials.as_ref()),
            Errand::Look => {
                self.look_again();
                self.drive(|keeper| match keeper.fence.standing() {
                    Standing::Holding(record)
                    | Standing::Seen(record)
                    | Standing::Left(record)
                    | Standing::Closed(record) => Progress::Ended(Ok(Done::Record(Some(record)))),
                    Standing::NoRecord => Progress::Ended(Ok(Done::Record(None))),
                    Standing::Implausible { .. } => Progress::Ended(Err(Refusal::StoreAway(StoreTrouble::Record))),
                    Standing::WentBack { seen, found } => {
                        Progress::Ended(Err(Refusal::NotHolder(NotHolder::WentBack { seen, found })))
                    }
                    _ => keeper.fence.look().map_or(Progress::Wait, Progress::Ask),
                })
            }
            Errand::Create(beginning) => {
                self.look_again();
                let mut asked = false;
                self.drive(|keeper| match keeper.fence.standing() {
                    Standing::NoRecord | Standing::WentBack { found: 0, .. } | Standing::Closed(_) if !asked => {
                        asked = true;
                        let ask = keeper.fence.create(&beginning);
                        let refused = match keeper.fence.standing() {
                            Standing::Closed(_) => Refusal::FenceClosed,
                            _ => Refusal::RecordLost,
                        };
                        ask.map_or(Progress::Ended(Err(refused)), Progress::Ask)
                    }
                    Standing::Seen(record) if asked && record.is_new(beginning.sealed_generation) => {
                        Progress::Ended(Ok(Done::Yes))
                    }
                    Standing::Creating | Standing::Apart => Progress::Wait,
                    _ => Progress::Ended(Err(Refusal::FenceExists)),
                })
            }
            Errand::Credentials(credentials) => self.try_credentials(&credentials),
            Errand::Close(left) => self.close(left),
            Errand::Raise { sealed, generation } => self.drive(|keeper| match keeper.fence.standing() {
                Standing::Holding(record) if record.generation != generation => {
                    Progress::Ended(Err(other_generation()))
                }
                Standing::Holding(record) if record.sealed_generation >= sealed => Progress::Ended(Ok(Done::Yes)),
                Standing::Holding(record) => {
                    keeper.fence.extend(record.ceilings, sealed).map_or(Progress::Wait, Progress::Ask)
                }
                _ => Progress::Ended(Err(other_generation())),
            }),
            Errand::Leave { state, generation } => {
                let left = self.drive(|keeper| match keeper.fence.standing() {
                    Standing::Holding(record) if record.generation != generation => {
                        Progress::Ended(Err(other_generation()))
                    }
                    // The state stands for what was signed until the gate was closed: it must be closed still.
                    Standing::Holding(_) if !keeper.fencing.orders().handing_over => {
                        Progress::Ended(Err(other_generation()))
                    }
                    Standing::Holding(_) => keeper.fence.leave(state).map_or(Progress::Wait, Progress::Ask),
                    Standing::Left(_) => Progress::Ended(Ok(Done::Yes)),
                    Standing::Leaving => Progress::Wait,
                    _ => Progress::Ended(Err(other_generation())),
                });
                self.left = Some(self.runtime.now());
                left
            }
            Errand::TakeOver => {
                self.take_over = true;
                self.look_again();
                let claimed = self.drive(|keeper| match keeper.fence.standing() {
                    Standing::Holding(record) => Progress::Ended(Ok(Done::Record(Some(record)))),
                    Standing::NoRecord => Progress::Ended(Err(Refusal::NotHolder(NotHolder::NoRecord))),
                    Standing::Closed(_) => Progress::Ended(Err(Refusal::FenceClosed)),
                    Standing::WentBack { seen, found } => {
                        Progress::Ended(Err(Refusal::NotHolder(NotHolder::WentBack { seen, found })))
                    }
                    Standing::Seen(_) if matches!(keeper.unfit, Some(NotHolder::FromFuture { .. })) => {
                        let unfit = keeper.unfit.unwrap_or(NotHolder::NoRecord);
                        Progress::Ended(Err(Refusal::NotHolder(unfit)))
                    }
                    _ => keeper.next().map_or(Progress::Wait, Progress::Ask),
                });
                self.take_over = false;
                claimed
            }
        }
    }

    /// Ends the record.
    fn close(&mut self, left: Option<(Root, u64)>) -> Result<Done, Refusal> {
        self.look_again();
        let closed = self.drive(|keeper| match keeper.fence.standing() {
            Standing::Closed(record) => Progress::Ended(Ok(Done::Record(Some(record)))),
            Standing::Holding(record) => match left {
                // The state stands for what was signed until the gate was closed: it must be closed still.
                Some((state, generation))
                    if generation == record.generation && keeper.fencing.orders().handing_over =>
                {
                    keeper.fence.close(Some(state)).map_or(Progress::Wait, Progress::Ask)
                }
                _ => Progress::Ended(Err(other_generation())),
            },
            // The holder has lost it meanwhile: what it left behind is not what the record's end would name.
            Standing::Seen(_) | Standing::Left(_) if left.is_none() => {
                keeper.fence.close(None).map_or(Progress::Wait, Progress::Ask)
            }
            Standing::Seen(_) | Standing::Left(_) => Progress::Ended(Err(other_generation())),
            Standing::NoRecord => Progress::Ended(Err(Refusal::NotHolder(NotHolder::NoRecord))),
            Standing::Implausible { .. } => Progress::Ended(Err(Refusal::StoreAway(StoreTrouble::Record))),
            Standing::WentBack { seen, found } => {
                Progress::Ended(Err(Refusal::NotHolder(NotHolder::WentBack { seen, found })))
            }
            Standing::Apart | Standing::Lost => keeper.fence.look().map_or(Progress::Wait, Progress::Ask),
            Standing::Leaving | Standing::Claiming | Standing::Creating => Progress::Wait,
        });
        self.left = Some(self.runtime.now());
        closed
    }

    /// Whether the store shows the group's record to these credentials: not an older one than was seen, and not none. From then on they
    /// are used. Otherwise the ones before are.
    fn try_credentials(&mut self, credentials: &StoreCredentials) -> Result<Done, Refusal> {
        let tried = self.probe(Some(credentials));
        let seen = self.fence.seen();
        let kept = tried.and_then(|done| match done {
            Done::Record(Some(record)) if record.version >= seen => Ok(done),
            Done::Record(Some(Record { version: found, .. })) => {
                Err(Refusal::NotHolder(NotHolder::WentBack { seen, found }))
            }
            _ => Err(Refusal::NotHolder(NotHolder::NoRecord)),
        });
        if kept.is_err() {
            self.open_as_before();
        } else {
            // What was not answered under the old ones is asked again under these, at once.
            self.backoff = MIN_BACKOFF;
            if let Some((_, again)) = &mut self.pending {
                *again = self.runtime.now();
            }
        }
        kept
    }

    /// With the credentials that are in force.
    fn open_as_before(&mut self) {
        if let (Some(old), Some(store)) = (self.vault.store_credentials(), self.store.as_mut()) {
            store.open(&old);
        }
    }

    /// Reads the record beside the state machine, to see whether the store answers.
    fn probe(&mut self, credentials: Option<&StoreCredentials>) -> Result<Done, Refusal> {
        let store = self.store.as_mut().ok_or(Refusal::StoreCredentials)?;
        if credentials.is_some_and(|credentials| !store.open(credentials)) {
            return Err(Refusal::StoreCredentials);
        }
        let answer = store.ask(&Question::Read);
        match answer {
            (Heard::Record(record), _) => Ok(Done::Record(record)),
            (_, trouble) => {
                // The old ones again; where there are none, these are no worse.
                self.open_as_before();
                Err(Refusal::StoreAway(trouble.unwrap_or_default()))
            }
        }
    }

    fn look_again(&mut self) {
        if self.pending.is_none()
            && let Some(ask) = self.fence.look()
        {
            self.put(ask);
        }
        self.publish();
    }

    /// Puts questions until `step` says that it has ended.
    fn drive(&mut self, mut step: impl FnMut(&mut Self) -> Progress) -> Result<Done, Refusal> {
        let begun = self.runtime.now();
        loop {
            let ask = match self.pending {
                Some((ask, _)) => Some(ask),
                None => match step(self) {
                    Progress::Ended(ended) => {
                        self.publish();
                        return ended;
                    }
                    Progress::Ask(ask) => Some(ask),
                    Progress::Wait => None,
                },
            };
            if let Some(ask) = ask {
                // One that leaves signs nothing while it waits for the answer.
                self.publish();
                self.put(ask);
            }
            if self.since(begun) > ORDER_TIMEOUT {
                self.publish();
                // What was asked for and not answered clearly may yet take place.
                let unclear = self.pending.is_some() || self.fence.asked().is_some();
                let (unclear_is, away) = (Refusal::FenceUnclear(self.trouble), Refusal::StoreAway(self.trouble));
                return Err(if unclear { unclear_is } else { away });
            }
            if self.pending.is_some() || ask.is_none() {
                self.runtime.sleep(MIN_BACKOFF);
            }
        }
    }
}

/// Whatever ends the keeper, nobody waits for it any more.
struct Closing<'a>(&'a Fencing);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut orders = self.0.orders();
        orders.closed = true;
        if let Some((_, answer)) = orders.errand.take() {
            answer.give(Err(Refusal::StoreAway(StoreTrouble::NotAsked)));
        }
    }
}

enum Progress {
    Ask(Ask),
    Wait,
    Ended(Result<Done, Refusal>),
}

/// The fence was lost, or lost and held again, since the state was sealed.
fn other_generation() -> Refusal {
    Refusal::NotHolder(NotHolder::Apart(StoreTrouble::NotAsked))
}

fn standby(slot_ceiling: Slot) -> NotHolder {
    NotHolder::Standby { slot_ceiling }
}
