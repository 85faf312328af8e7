//! The fence at work: the gate that every signature passes, and the one thread that keeps the record.
//!
//! What may be signed is decided by [`casemate_slashing::Fence`]; here its questions are put to the store and its limits put in
//! force. A signature takes the gate's read lock from the look at the limits to the saving of the watermark: once the gate is
//! closed, nothing is under way any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::{NotHolder, StoreTrouble};
use casemate_protocol::statement::{self, FenceKind, FenceStanding, StatedFloors, StatedRecord};
use casemate_protocol::{Network, Refusal, Root, Slot};
use casemate_slashing::fence::{Ask, Heard, Question, Record, Standing};
use casemate_slashing::{Ceilings, Fence, Floors, Limits};

use crate::Vault;
use crate::store::Store;

/// How many slots ahead of the clock ceilings are kept: the store may be away for two slots before a block is missed, and a
/// successor waits for so long after a holder that died.
pub const AHEAD: u64 = 3;
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

/// What the fence lets this enclave sign, for everybody who has to know.
pub struct Fencing {
    kind: FenceKind,
    /// Which store has the record, for statements.
    identity: Option<String>,
    gate: RwLock<Gate>,
    view: RwLock<View>,
    orders: Mutex<Orders>,
    /// Wakes the keeper.
    woken: Condvar,
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
    woken: bool,
    /// What requests that wait would need.
    wanted: Option<Ceilings>,
    /// The gate stays closed, whatever the record says.
    handing_over: bool,
    errand: Option<(Errand, SyncSender<Result<Done, Refusal>>)>,
    /// No keeper will come any more.
    closed: bool,
}

/// What the keeper is sent for.
pub(crate) enum Errand {
    /// Try whether the store answers, with new credentials where there are some.
    Probe(Option<StoreCredentials>),
    /// Read the record, and learn whether it is still held.
    Look,
    /// Make the record.
    Create { after: Option<(Ceilings, u64)>, sealed_generation: u64 },
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
        Self {
            kind,
            identity,
            gate: RwLock::new(gate),
            view: RwLock::new(view),
            orders: Mutex::default(),
            woken: Condvar::new(),
            changes: AtomicU64::new(0),
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }
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
            clean: record.clean.is_some(),
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
        orders.woken = true;
        self.woken.notify_one();
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
        orders.woken = true;
        self.woken.notify_one();
    }

    /// Sends the keeper for something and waits for it.
    pub(crate) fn errand(&self, errand: Errand) -> Result<Done, Refusal> {
        let (reply, answer) = sync_channel(1);
        {
            let mut orders = self.orders();
            if orders.closed || !self.has_record() {
                return Err(Refusal::NoFenceRecord(self.kind));
            }
            if orders.errand.is_some() {
                return Err(Refusal::CommandBusy);
            }
            orders.errand = Some((errand, reply));
            orders.woken = true;
            self.woken.notify_one();
        }
        answer.recv_timeout(ERRAND_TIMEOUT).unwrap_or_else(|_| {
            // What the keeper has not begun it must not begin later, when nobody waits any more.
            let begun = self.orders().errand.take().is_none();
            let trouble = StoreTrouble::NotAsked;
            Err(if begun { Refusal::FenceUnclear(trouble) } else { Refusal::StoreAway(trouble) })
        })
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
    /// A question that was not answered clearly, and when it is put again.
    pending: Option<(Ask, Instant)>,
    backoff: Duration,
    trouble: StoreTrouble,
    looked: Option<Instant>,
    reloaded: Option<Instant>,
    left: Option<Instant>,
    take_over: bool,
    /// Version of the record that was seen last, and since when it is the same.
    steady: Option<(u64, Instant)>,
    /// The generation whose floors were added to every key's past.
    floored: u64,
    old_state: Option<NotHolder>,
    checked: Option<Instant>,
}

impl<'a> Keeper<'a> {
    /// Of this vault. `seen`: the version of the record that its sealed state has seen.
    pub fn new(vault: &'a Vault, Keeping(store): Keeping, seen: u64) -> Self {
        let fence = Fence::new(vault.holder(), seen);
        Self {
            vault,
            fencing: vault.fencing(),
            store,
            fence,
            pending: None,
            backoff: MIN_BACKOFF,
            trouble: StoreTrouble::NotAsked,
            looked: None,
            reloaded: None,
            left: None,
            take_over: false,
            steady: None,
            floored: 0,
            old_state: None,
            checked: Some(Instant::now()),
        }
    }

    /// Runs until `ended`.
    pub fn run(&mut self, ended: impl Fn() -> bool) {
        let _closing = Closing(self.fencing);
        while !ended() {
            self.check_clock();
            if self.store.is_some() {
                self.step();
                if let Some((errand, reply)) = self.wait() {
                    let done = self.carry_out(errand);
                    // Whoever asked may have gone.
                    let _ = reply.send(done);
                }
            } else {
                std::thread::sleep(TICK);
            }
        }
    }

    /// Sleeps until the next tick, or until somebody wants something.
    fn wait(&self) -> Option<(Errand, SyncSender<Result<Done, Refusal>>)> {
        let waited = self.fencing.woken.wait_timeout_while(self.fencing.orders(), TICK, |orders| !orders.woken);
        let mut orders = waited.unwrap_or_else(PoisonError::into_inner).0;
        orders.woken = false;
        orders.errand.take()
    }

    fn check_clock(&mut self) {
        let every = if self.vault.clock().unix_ms().is_some() { CLOCK_CHECK } else { CLOCK_RECHECK };
        if self.checked.is_none_or(|checked| checked.elapsed() >= every) {
            self.checked = Some(Instant::now());
            if let Some(trusted) = self.vault.nsm_time() {
                self.vault.clock().check(trusted);
            }
        }
    }

    /// One question at most, and what follows from its answer.
    fn step(&mut self) {
        let ask = match self.pending {
            Some((_, again)) if Instant::now() < again => return,
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
                self.looked = Some(Instant::now());
            }
            if before != self.fence.standing() {
                self.publish();
            }
            if heard == Heard::Unclear {
                self.pending = next.and_then(|next| Some((next, Instant::now().checked_add(self.backoff)?)));
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
        let rested = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        match self.fence.standing() {
            // A state that was loaded just now may have seen a newer record than the one at hand: then it is read again.
            Standing::Seen(record) if self.may_claim(&record) && record.version >= self.fence.seen() => {
                let (state, leaves) = self.vault.exact_state(&record);
                // What is said to be left behind from now on must stand for the past from now on too.
                let exact = state.is_some() && state == record.clean;
                if leaves.is_some() && !exact && !self.vault.raise(floors_of(&record).watermarks()) {
                    return None;
                }
                self.fence.claim(state, leaves)
            }
            Standing::Apart | Standing::NoRecord | Standing::Seen(_) | Standing::Lost | Standing::Left(_) if rested => {
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
        if !self.is_ready(record) {
            return false;
        }
        if self.left.is_some_and(|left| left.elapsed() < RETURN) && !self.take_over {
            return false;
        }
        let exact = self.vault.exact_state(record).0;
        let left_behind = exact.is_some() && exact == record.clean;
        let passed = self.vault.network().slot_at(now_ms) > record.ceilings.slot;
        let since = match self.steady {
            Some((version, since)) if version == record.version => since,
            _ => {
                let now = Instant::now();
                self.steady = Some((record.version, now));
                now
            }
        };
        let steady = since.elapsed() >= STEADY.min(Duration::from_millis(self.vault.network().slot_duration_ms()));
        // The first record has no floors, for an enclave with the very state that was sealed with it: one without keys.
        let first = record.generation == 0;
        if first && self.vault.sealed_generation() != record.sealed_generation {
            return false;
        }
        self.take_over || first || left_behind || (passed && steady)
    }

    /// Loads the newest state that the parent offers, where the one at hand is too old, or another was left in order.
    fn is_ready(&mut self, record: &Record) -> bool {
        self.fence.has_seen(self.vault.fence_version());
        let (state, _) = self.vault.exact_state(record);
        let old = self.vault.sealed_generation() < record.sealed_generation;
        let other = record.clean.is_some() && record.clean != state;
        let rested = self.reloaded.is_none_or(|reloaded| reloaded.elapsed() >= LOOK);
        if (old || other) && rested {
            if let Some(loaded) = self.vault.reload(record.sealed_generation) {
                self.fence.has_seen(loaded.fence_version);
                if let (Some(credentials), Some(store)) = (&loaded.store, self.store.as_mut()) {
                    store.open(credentials);
                }
            }
            self.reloaded = Some(Instant::now());
        }
        let found = self.vault.sealed_generation();
        self.old_state = (found < record.sealed_generation)
            .then_some(NotHolder::OldState { found, oldest: record.sealed_generation });
        self.old_state.is_none()
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
            if !self.vault.raise(limits.floors.watermarks()) {
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
            Standing::Seen(record) => match self.old_state {
                Some(old) => (FenceStanding::OldState, Some(record), old),
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
                    Standing::Holding(record) | Standing::Seen(record) | Standing::Left(record) => {
                        Progress::Ended(Ok(Done::Record(Some(record))))
                    }
                    Standing::NoRecord => Progress::Ended(Ok(Done::Record(None))),
                    Standing::WentBack { seen, found } => {
                        Progress::Ended(Err(Refusal::NotHolder(NotHolder::WentBack { seen, found })))
                    }
                    _ => keeper.fence.look().map_or(Progress::Wait, Progress::Ask),
                })
            }
            Errand::Create { after, sealed_generation } => {
                self.look_again();
                let mut asked = false;
                self.drive(|keeper| match keeper.fence.standing() {
                    Standing::NoRecord | Standing::WentBack { found: 0, .. } if !asked => {
                        asked = true;
                        let ask = keeper.fence.create(after, sealed_generation);
                        ask.map_or(Progress::Ended(Err(Refusal::RecordLost)), Progress::Ask)
                    }
                    Standing::Seen(record) if asked && record.is_new(sealed_generation) => {
                        Progress::Ended(Ok(Done::Yes))
                    }
                    Standing::Creating | Standing::Apart => Progress::Wait,
                    _ => Progress::Ended(Err(Refusal::FenceExists)),
                })
            }
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
                self.left = Some(Instant::now());
                left
            }
            Errand::TakeOver => {
                self.take_over = true;
                self.look_again();
                let claimed = self.drive(|keeper| match keeper.fence.standing() {
                    Standing::Holding(record) => Progress::Ended(Ok(Done::Record(Some(record)))),
                    Standing::NoRecord => Progress::Ended(Err(Refusal::NotHolder(NotHolder::NoRecord))),
                    Standing::WentBack { seen, found } => {
                        Progress::Ended(Err(Refusal::NotHolder(NotHolder::WentBack { seen, found })))
                    }
                    _ => keeper.next().map_or(Progress::Wait, Progress::Ask),
                });
                self.take_over = false;
                claimed
            }
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
                if let Some(old) = self.vault.store_credentials() {
                    store.open(&old);
                }
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
        let begun = Instant::now();
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
            if begun.elapsed() > ORDER_TIMEOUT {
                self.publish();
                // What was asked for and not answered clearly may yet take place.
                let unclear = self.pending.is_some() || self.fence.asked().is_some();
                let (unclear_is, away) = (Refusal::FenceUnclear(self.trouble), Refusal::StoreAway(self.trouble));
                return Err(if unclear { unclear_is } else { away });
            }
            if self.pending.is_some() || ask.is_none() {
                std::thread::sleep(MIN_BACKOFF);
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
        orders.errand = None;
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

/// What a successor of this record's holder stays above.
fn floors_of(record: &Record) -> Floors {
    if record.generation == 0 {
        return Floors::default();
    }
    let Ceilings { slot, target, source } = record.ceilings;
    Floors { slot: Some(slot), target: Some(target), source: Some(source) }
}

/// Above everything that a holder somewhere may sign yet, though its record is lost: its ceilings lay [`AHEAD`] slots ahead of a clock
/// that may differ from this one.
pub fn latest_held(network: &Network, now: Slot) -> Ceilings {
    let slot = now.saturating_add(AHEAD).saturating_add(2);
    let epoch = network.epoch_of(slot);
    Ceilings { slot, target: epoch, source: epoch }
}

/// Above everything that the window has allowed until now (docs/ARCHITECTURE.md, «The floor after an unclean end»): the latest
/// slot and epoch that can have been signed.
pub fn latest(network: &Network, now: Slot) -> Ceilings {
    let slot = now.saturating_add(1);
    let epoch = network.epoch_of(slot);
    Ceilings { slot, target: epoch, source: epoch }
}
