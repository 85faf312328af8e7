//! The gate: every signature passes it, and one thread, the keeper, opens and closes it.
//!
//! A signature takes the gate's read lock from the look at the limits to the saving of the watermark: once the gate is closed, nothing
//! is under way any more. tests/suites/shuttle runs this very file, with [`crate::keys::keyring`], through the orders in which threads can meet here.

use std::time::Duration;

use casemate_fence::{Beginning, Record};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::may_sign::{Grant, Silence};
use casemate_protocol::refusal::{NotHolder, StoreTrouble};
use casemate_protocol::statement::{self, FenceKind, StatedFloors, StatedRecord, StatedStatus};
use casemate_protocol::{Refusal, Root, Slot};
use casemate_slashing::{Ceilings, Floors, Limits};

use crate::fence::store::Store;
use crate::platform::margins::HANDOVER_REST;
use crate::platform::runtime::{Bell, Kernel, Runtime};
use crate::platform::sync::atomic::{AtomicU64, Ordering};
use crate::platform::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// A store that has owed an answer for so long is silent; a healthy one takes a hundredth of it.
const SLOW_ANSWER: Duration = Duration::from_secs(1);
/// Longest time for what the keeper is sent for, for anyone who waits.
const ERRAND_TIMEOUT: Duration = Duration::from_mins(1);

/// What the fence lets this enclave sign, for everybody who has to know.
pub struct FenceGate {
    kind: FenceKind,
    /// Which store has the record, for statements.
    identity: Option<String>,
    gate: RwLock<Gate>,
    view: RwLock<View>,
    orders: Mutex<Orders>,
    contact: Mutex<Contact>,
    runtime: Arc<dyn Runtime>,
    /// Wakes the keeper.
    woken: Arc<dyn Bell>,
    changes: AtomicU64,
    waiting: Mutex<()>,
    /// Wakes those who wait for the limits to change.
    changed: Condvar,
}

#[derive(PartialEq, Eq)]
pub(crate) enum Gate {
    /// With the term that is held.
    Open(Limits, u64),
    Closed(NotHolder),
}

/// For statements.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub(crate) standing: StatedStatus,
    pub(crate) record: Option<Record>,
    pub(crate) floors: Floors,
}

#[derive(Default)]
struct Orders {
    /// What requests that wait would need.
    wanted: Option<Ceilings>,
    /// The gate stays closed, whatever the record says.
    handing_over: bool,
    errand: Option<(KeeperRequest, Arc<Answer>)>,
    /// No keeper will come any more.
    closed: bool,
    /// When the host was last granted a handover that no operator has signed.
    unsigned_handover: Option<Slot>,
}

/// When the store has answered, by the runtime's clock.
#[derive(Clone, Copy, Default)]
struct Contact {
    /// The last clear answer.
    answered: Option<Duration>,
    /// Since when it owes one: the first question after that, or a write that it does not carry out.
    owes_since: Option<Duration>,
    /// What came of the last question that it did not answer clearly.
    trouble: StoreTrouble,
}

/// Where the keeper puts what came of an errand.
pub(crate) struct Answer {
    done: Mutex<Option<Result<KeeperReply, Refusal>>>,
    bell: Arc<dyn Bell>,
}

impl Answer {
    pub(crate) fn give(&self, done: Result<KeeperReply, Refusal>) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        self.bell.ring();
    }

    fn take(&self) -> Option<Result<KeeperReply, Refusal>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the keeper is sent for.
pub(crate) enum KeeperRequest {
    /// Try whether the store answers, with new credentials where there are some.
    Probe(Option<StoreCredentials>),
    /// Read the record, and learn whether it is still held.
    Look,
    /// Make the record.
    Create(Beginning),
    /// Ask the store for its record with these credentials, and keep them where it shows the record that is known.
    Credentials(StoreCredentials),
    /// End the record; with the state that is left behind, where this enclave holds it in this term.
    Close(Option<(Root, u64)>),
    /// Have older sealed states refused, in the term in which this one was sealed.
    Raise { sealed: u64, term: u64 },
    /// Leave, with this state behind: it stands for what was signed until the gate was closed in this term, and for no other.
    Leave { state: Root, term: u64 },
    /// Claim without waiting.
    Takeover,
}

/// What the keeper came back with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeeperReply {
    /// The record as it is.
    Record(Option<Record>),
    Yes,
}

/// A passed gate. While it is held, the limits stay in force.
pub(crate) struct Pass<'a> {
    pub(crate) limits: Limits,
    /// The term that is held; 0 where the kind has none.
    pub(crate) term: u64,
    _gate: RwLockReadGuard<'a, Gate>,
}

/// A fence whose parts belong together: the gate, and what its keeper asks. Only here is either made, so no gate of a kind with a
/// record stands open because its store is missing, and what the statement says of the store is what is asked.
pub struct FenceParts {
    fence_gate: FenceGate,
    keeping: Keeping,
}

/// What a `FenceKeeper` needs of its fence: the store, where the kind has a record.
pub struct Keeping(pub(crate) Option<Box<dyn Store>>);

impl FenceParts {
    /// With a record in this store: closed until a `FenceKeeper` has claimed it.
    pub fn with_record(store: Box<dyn Store>) -> Self {
        let view = View { standing: StatedStatus::Unknown, record: None, floors: Floors::default() };
        let gate = Gate::Closed(NotHolder::StoreUnknown(StoreTrouble::NotAsked));
        let fence_gate = FenceGate::new(store.kind().into(), store.identity(), gate, view);
        Self { fence_gate, keeping: Keeping(Some(store)) }
    }

    /// Without a record, on trusted time alone: these limits for good.
    pub fn solo(limits: Limits) -> Self {
        Self { fence_gate: FenceGate::fixed(FenceKind::Solo, limits), keeping: Keeping(None) }
    }

    /// The gate for the vault, and the rest for its keeper.
    pub fn split(self) -> (FenceGate, Keeping) {
        (self.fence_gate, self.keeping)
    }
}

impl FenceGate {
    /// No fence: the development stack's, with its watermarks in a file. The statement says so.
    pub(crate) fn none(limits: Limits) -> Self {
        Self::fixed(FenceKind::None, limits)
    }

    fn fixed(kind: FenceKind, limits: Limits) -> Self {
        let view = View { standing: StatedStatus::NoStore, record: None, floors: limits.floors };
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
            contact: Mutex::default(),
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
            Gate::Open(limits, term) => Ok(Pass { limits, term, _gate: gate }),
            Gate::Closed(why) => Err(Refusal::NotHolder(why)),
        }
    }

    /// What the fence grants, or why nothing.
    pub(crate) fn granted(&self) -> Result<Grant, NotHolder> {
        let limits = match *self.gate.read().unwrap_or_else(PoisonError::into_inner) {
            Gate::Open(limits, _) => limits,
            Gate::Closed(why) => return Err(why),
        };
        let Limits { floors, ceilings } = limits;
        let ceilings = (ceilings != Ceilings::NONE).then_some((ceilings.slot, ceilings.target));
        Ok(Grant { floors: StatedFloors { slot: floors.slot, target: floors.target, source: floors.source }, ceilings })
    }

    /// The store is being asked.
    pub(crate) fn store_is_asked(&self) {
        let now = self.runtime.now();
        self.contact().owes_since.get_or_insert(now);
    }

    /// It has not answered, or not clearly.
    pub(crate) fn store_is_silent(&self, trouble: StoreTrouble) {
        self.contact().trouble = trouble;
    }

    /// It has answered. `done`: and owes nothing that was asked before.
    pub(crate) fn store_has_answered(&self, done: bool) {
        let now = self.runtime.now();
        let mut contact = self.contact();
        contact.answered = Some(now);
        if done {
            contact.owes_since = None;
        }
    }

    /// For how long the store has owed an answer, once that is longer than one takes.
    pub(crate) fn silence(&self) -> Option<Silence> {
        let Contact { owes_since, trouble, .. } = *self.contact();
        let length = self.runtime.now().saturating_sub(owes_since?);
        (length >= SLOW_ANSWER).then(|| Silence { ms: milliseconds(length), trouble })
    }

    /// Milliseconds since the store's last clear answer.
    pub(crate) fn store_answered_ms(&self) -> Option<u64> {
        let answered = self.contact().answered?;
        Some(milliseconds(self.runtime.now().saturating_sub(answered)))
    }

    /// What this enclave is to the fence.
    pub(crate) fn standing(&self) -> StatedStatus {
        self.view().standing
    }

    /// For the statement.
    pub(crate) fn stated(&self, time_ms: Option<u64>) -> statement::FenceStatement {
        let View { standing, record, floors } = self.view();
        let term = record.filter(|_| standing == StatedStatus::Holding).map_or(0, |record| record.term);
        let record = record.map(|record| StatedRecord {
            version: record.version,
            holder: record.holder,
            term: record.term,
            slot_ceiling: record.ceilings.slot,
            target_ceiling: record.ceilings.target,
            source_ceiling: record.ceilings.source,
            min_state_version: record.min_state_version,
            released_state: record.released_state,
            closed: record.closed,
        });
        let floors = StatedFloors { slot: floors.slot, target: floors.target, source: floors.source };
        let store = self.identity.clone();
        statement::FenceStatement { kind: self.kind, store, term, standing, record, floors, time_ms }
    }

    /// The term that this enclave holds, and its floors; 0 where the kind has none.
    pub(crate) fn held(&self) -> Result<(u64, Floors), Refusal> {
        let pass = self.pass()?;
        Ok((pass.term, pass.limits.floors))
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
    pub(crate) fn request_ceilings(&self, ceilings: Ceilings) {
        let mut orders = self.orders();
        orders.wanted = Some(orders.wanted.map_or(ceilings, |wanted| wanted.max(ceilings)));
        drop(orders);
        self.woken.ring();
    }

    /// Whether the host may have a handover now that no operator has signed: it costs seconds without a signature each time.
    pub(crate) fn may_handover_unsigned(&self, now: Slot) -> Result<(), Refusal> {
        let mut orders = self.orders();
        match orders.unsigned_handover {
            Some(last) if now < last.saturating_add(HANDOVER_REST) => {
                Err(Refusal::HandoverTooSoon { slots: HANDOVER_REST })
            }
            _ => {
                orders.unsigned_handover = Some(now);
                Ok(())
            }
        }
    }

    /// Closes the gate: what is being signed is signed, and then nothing more. It stays closed until [`Self::reopen`], or until
    /// another term is held.
    pub(crate) fn close(&self) -> Result<(), Refusal> {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        match *gate {
            Gate::Open(..) => *gate = Gate::Closed(NotHolder::HandingOver),
            Gate::Closed(why) => return Err(Refusal::NotHolder(why)),
        }
        // Under the gate's lock, where the keeper reads it too.
        self.orders().handing_over = true;
        drop(gate);
        self.view.write().unwrap_or_else(PoisonError::into_inner).standing = StatedStatus::HandingOver;
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
    pub(crate) fn ask_keeper(&self, errand: KeeperRequest) -> Result<KeeperReply, Refusal> {
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

    /// Puts in force what the keeper has decided, which is told whether the gate is to stay closed because of a handover: anyone who closes it
    /// says so under its lock, so that is true as long as this lasts.
    pub(crate) fn put(&self, decide: impl FnOnce(bool) -> (View, Gate)) {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let (view, now) = decide(self.orders().handing_over);
        {
            let mut told = self.view.write().unwrap_or_else(PoisonError::into_inner);
            let record = view.record.or(told.record);
            *told = View { record, ..view };
        }
        let differs = *gate != now;
        *gate = now;
        drop(gate);
        if differs {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            self.changes.fetch_add(1, Ordering::Release);
            drop(waiting);
            self.changed.notify_all();
        }
    }

    /// A term is held anew: whatever was to be handed over was of one before.
    pub(crate) fn holds_anew(&self) {
        self.orders().handing_over = false;
    }

    /// Whether the gate was closed for a handover, and is to stay so.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.orders().handing_over
    }

    /// Waits until somebody wants something of the keeper, at most so long; what that is.
    pub(crate) fn next_request(&self, at_most: Duration) -> Option<(KeeperRequest, Arc<Answer>)> {
        self.woken.wait(at_most);
        self.orders().errand.take()
    }

    /// What requests that wait would need, once.
    pub(crate) fn take_wanted(&self) -> Option<Ceilings> {
        self.orders().wanted.take()
    }

    /// No keeper will come any more.
    pub(crate) fn end(&self) {
        let mut orders = self.orders();
        orders.closed = true;
        if let Some((_, answer)) = orders.errand.take() {
            answer.give(Err(Refusal::StoreAway(StoreTrouble::NotAsked)));
        }
    }

    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.runtime)
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> View {
        *self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
