//! The keeper: the one thread that asks the fence's store, and puts in force what comes of it.

use std::time::Duration;

use casemate_fence::FenceMachine;
use casemate_fence::{Beginning, FenceStatus, Holder, Record, StoreOp, StoreRequest, StoreResponse};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::{NotHolder, StoreTrouble};
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{Refusal, Root, Slot};
use casemate_slashing::Ceilings;

use super::gate::{Answer, FenceGate, Gate, KeeperReply, KeeperRequest, Keeping, View};
use crate::Vault;
use crate::fence::store::Store;
use crate::platform::margins::{self, CEILING_LEAD_SLOTS};
use crate::platform::runtime::Runtime;
use crate::platform::sync::Arc;

/// How often the keeper looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// How often one that stands by looks at the record.
const STANDBY_POLL: Duration = Duration::from_millis(500);
/// So long, or a slot where that is shorter, a record must stay as it is before it is claimed without having been left: one that
/// has just been claimed is extended at once.
const STABLE_BEFORE_CLAIM: Duration = Duration::from_secs(2);
/// A store that has not answered for so long was away: one that stands by asks four times as often.
const ABSENCE: Duration = Duration::from_secs(2);
/// Wait after an unclear answer; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Longest time for what an operator has ordered.
const ORDER_TIMEOUT: Duration = Duration::from_secs(12);
/// After so long one that has left in order comes back, if nobody else has come: a standby takes a second or two.
const RECLAIM_DELAY: Duration = Duration::from_secs(5);
/// How often the clock is compared with the NSM's.
const CLOCK_CHECK: Duration = Duration::from_mins(2);
/// The same while it is not trusted.
const CLOCK_RECHECK: Duration = Duration::from_secs(1);
/// After so many checks in a row that have failed, it will not agree again by itself: the process ends, and anyone who starts it anew gives
/// it another chance.
const MAX_FAILED_CHECKS: u32 = 120;

/// Keeps the record: looks, claims, extends, leaves.
pub struct FenceKeeper<'a> {
    vault: &'a Vault,
    fence_gate: &'a FenceGate,
    /// Nothing where the kind has no record: then only the clock is kept.
    store: Option<Box<dyn Store>>,
    fence: FenceMachine,
    runtime: Arc<dyn Runtime>,
    /// A question that was not answered clearly, and when it is put again.
    pending: Option<(StoreRequest, Duration)>,
    backoff: Duration,
    trouble: StoreTrouble,
    looked: Option<Duration>,
    reloaded: Option<Duration>,
    left: Option<Duration>,
    takeover: bool,
    /// Version of the record that was seen last, and since when it is the same.
    steady: Option<(u64, Duration)>,
    /// The term whose floors were added to every key's past.
    floored: u64,
    /// Why the record that was seen cannot be claimed.
    unfit: Option<NotHolder>,
    /// Version of the record that the store did not replace when it was asked to.
    unwritten: Option<u64>,
    /// When the store last answered; whether it has not since; and when it last came back from that.
    answered: Option<Duration>,
    away: bool,
    returned: Option<Duration>,
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

impl<'a> FenceKeeper<'a> {
    /// Of this vault. `seen`: the version of the record that its sealed state has seen.
    pub fn new(vault: &'a Vault, Keeping(store): Keeping, seen: u64) -> Self {
        let fence = FenceMachine::new(vault.holder(), seen);
        let runtime = vault.fence_gate().runtime();
        Self {
            vault,
            fence_gate: vault.fence_gate(),
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
            takeover: false,
            steady: None,
            floored: 0,
            unfit: None,
            unwritten: None,
            answered: None,
            away: false,
            returned: None,
        }
    }

    /// Runs until `ended`.
    pub fn run(&mut self, ended: impl Fn() -> bool) -> Result<(), KeeperError> {
        let _closing = Closing(self.fence_gate);
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
    fn wait(&self) -> Option<(KeeperRequest, Arc<Answer>)> {
        self.fence_gate.next_request(TICK)
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
    fn put(&mut self, ask: StoreRequest) {
        let mut next = Some(ask);
        while let (Some(ask), Some(store)) = (next, self.store.as_mut()) {
            self.fence_gate.store_is_asked();
            let (heard, trouble) = store.ask(&ask.op);
            self.trouble = trouble.unwrap_or_default();
            let before = self.fence.status();
            next = self.fence.on_response(ask.number, heard);
            self.note_contact(&ask.op, heard);
            if matches!(ask.op, StoreOp::Read) {
                self.looked = Some(self.runtime.now());
            }
            if before != self.fence.status() {
                self.publish();
            }
            if heard == StoreResponse::Unclear {
                self.pending = next.map(|next| (next, self.runtime.now().saturating_add(self.backoff)));
                self.backoff = self.backoff.saturating_mul(2).min(MAX_BACKOFF);
                return;
            }
            self.pending = None;
            self.backoff = MIN_BACKOFF;
        }
    }

    /// Writes down whether the store has answered. One that can be read and takes no writes owes its answer: a holder cannot go on.
    fn note_contact(&mut self, asked: &StoreOp, heard: StoreResponse) {
        if heard == StoreResponse::Unclear {
            if let (StoreOp::Swap { old, .. }, FenceStatus::Holding(_)) = (asked, self.fence.status()) {
                self.unwritten = Some(old.version);
            }
            self.away = true;
            return self.fence_gate.store_is_silent(self.trouble);
        }
        let still = |version| matches!(self.fence.status(), FenceStatus::Holding(record) if record.version == version);
        if !matches!(asked, StoreOp::Read) || !self.unwritten.is_some_and(still) {
            self.unwritten = None;
        }
        self.fence_gate.store_has_answered(self.unwritten.is_none());
        // Before its first answer there was no holder that this enclave could have seen lose it.
        let away = std::mem::take(&mut self.away);
        if self.answered.is_some_and(|then| away || self.since(then) >= ABSENCE) {
            self.returned = Some(self.runtime.now());
        }
        self.answered = Some(self.runtime.now());
    }

    /// What is to be asked now, if anything.
    fn next(&mut self) -> Option<StoreRequest> {
        if !self.store.as_ref().is_some_and(|store| store.is_open()) {
            self.trouble = StoreTrouble::NoCredentials;
            return None;
        }
        let rested = self.rested(self.looked, STANDBY_POLL);
        match self.fence.status() {
            // A state that was loaded just now may have seen a newer record than the one at hand: then it is read again.
            FenceStatus::Standby(record) if self.may_claim(&record) && record.version >= self.fence.seen() => {
                let (state, leaves) = self.vault.match_released_state(&record);
                // What is said to be left behind from now on must stand for the past from now on too.
                let exact = state.is_some() && state == record.released_state;
                if leaves.is_some() && !exact && !self.vault.raise(&record.floors()) {
                    return None;
                }
                let claim = self.fence.acquire(state, self.vault.state_version(), leaves);
                // One whose numbers have come to their end cannot be claimed: it is looked at all the same, since it may be mended.
                if claim.is_none() && rested { self.fence.poll() } else { claim }
            }
            FenceStatus::Unknown
            | FenceStatus::NoRecord
            | FenceStatus::Standby(_)
            | FenceStatus::Superseded
            | FenceStatus::Released(_)
            | FenceStatus::Closed(_)
            | FenceStatus::Implausible { .. }
            | FenceStatus::RolledBack { found: 0, .. }
                if rested =>
            {
                self.fence.poll()
            }
            // One whose keys could not be raised to the floors signs nothing: it must not keep others from it.
            FenceStatus::Holding(record) if record.term == self.floored => {
                let ceilings = self.wanted(&record)?;
                self.fence.extend(ceilings, record.min_state_version)
            }
            _ => None,
        }
    }

    /// The ceilings that should be in force by now.
    fn wanted(&self, record: &Record) -> Option<Ceilings> {
        let wanted = self.fence_gate.take_wanted();
        let network = self.vault.network();
        let now = network.slot_at(self.vault.clock().unix_ms()?);
        let slot = now.saturating_add(CEILING_LEAD_SLOTS);
        // A justified epoch has begun: anyone who asks for a later one would only lock out the others of the group.
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
        if !self.rested(self.left, RECLAIM_DELAY) && !self.takeover {
            return false;
        }
        let exact = self.vault.match_released_state(record).0;
        let left_behind = exact.is_some() && exact == record.released_state;
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
        // A holder that could not reach the store either goes on as soon as it can: it must have had the time to.
        let back = self.returned.is_none_or(|returned| self.since(returned) >= slot);
        let steady = self.since(since) >= STABLE_BEFORE_CLAIM.min(slot) && back;
        // A record that was just made: nobody holds it. Floors hold for anyone who claims it, as for any other.
        let first = record.holder == Holder::ZERO;
        self.takeover || first || left_behind || (passed && steady)
    }

    /// Loads the newest state that the parent offers, where the one at hand is too old, or another was left in order.
    fn is_ready(&mut self, record: &Record) -> bool {
        self.fence.has_seen(self.vault.fence_version());
        let (state, _) = self.vault.match_released_state(record);
        let old = self.vault.state_version() < record.min_state_version;
        let other = record.released_state.is_some() && record.released_state != state;
        if (old || other) && self.rested(self.reloaded, STANDBY_POLL) {
            if let Some(loaded) = self.vault.reload(record.min_state_version) {
                self.fence.has_seen(loaded.fence_version);
                if let (Some(credentials), Some(store)) = (&loaded.store, self.store.as_mut()) {
                    store.open(credentials);
                }
            }
            self.reloaded = Some(self.runtime.now());
        }
        let found = self.vault.state_version();
        self.unfit = (found < record.min_state_version)
            .then_some(NotHolder::OldState { found, oldest: record.min_state_version });
        self.unfit.is_none()
    }

    /// Puts in force what the record says.
    fn publish(&mut self) {
        let standing = self.fence.status();
        let limits = self.fence.limits();
        if let (FenceStatus::Holding(record), Some(limits)) = (standing, limits)
            && record.term != self.floored
        {
            // Before anything is signed in this term: every key's past ends no lower than the floors, so that the state
            // that is sealed next stands for the terms before this one too.
            if !self.vault.raise(&limits.floors) {
                return;
            }
            self.floored = record.term;
            self.takeover = false;
            self.left = None;
            self.fence_gate.holds_anew();
        }
        let (unfit, trouble) = (self.unfit, self.trouble);
        self.fence_gate.put(|handing_over| {
            let (stated, record, closed) = match standing {
                FenceStatus::Unknown | FenceStatus::Creating => {
                    (StatedStatus::Unknown, None, NotHolder::StoreUnknown(trouble))
                }
                FenceStatus::NoRecord => (StatedStatus::NoRecord, None, NotHolder::NoRecord),
                FenceStatus::Standby(record) => match unfit {
                    Some(old @ NotHolder::OldState { .. }) => (StatedStatus::OldState, Some(record), old),
                    Some(other) => (StatedStatus::Standby, Some(record), other),
                    None => (StatedStatus::Standby, Some(record), standby(record.ceilings.slot)),
                },
                FenceStatus::Holding(record) if handing_over => {
                    (StatedStatus::HandingOver, Some(record), NotHolder::HandingOver)
                }
                FenceStatus::Holding(record) => (StatedStatus::Holding, Some(record), NotHolder::HandingOver),
                FenceStatus::Releasing => (StatedStatus::HandingOver, None, NotHolder::HandingOver),
                FenceStatus::Acquiring | FenceStatus::Superseded => {
                    (StatedStatus::Standby, None, NotHolder::StoreUnknown(trouble))
                }
                FenceStatus::Released(record) => (StatedStatus::Standby, Some(record), standby(record.ceilings.slot)),
                FenceStatus::RolledBack { seen, found } => {
                    (StatedStatus::RolledBack, None, NotHolder::RolledBack { seen, found })
                }
                FenceStatus::Closed(record) => {
                    (StatedStatus::Closed, Some(record), NotHolder::Closed { slot_ceiling: record.ceilings.slot })
                }
                FenceStatus::Implausible { .. } => {
                    (StatedStatus::Unknown, None, NotHolder::StoreUnknown(StoreTrouble::Record))
                }
            };
            let floors = limits.map(|limits| limits.floors).unwrap_or_default();
            let gate = match limits {
                Some(limits) if !handing_over => Gate::Open(limits, record.map_or(0, |record| record.term)),
                _ => Gate::Closed(closed),
            };
            (View { standing: stated, record, floors }, gate)
        });
    }

    fn carry_out(&mut self, request: KeeperRequest) -> Result<KeeperReply, Refusal> {
        match request {
            KeeperRequest::Probe(credentials) => self.probe(credentials.as_ref()),
            KeeperRequest::Look => self.look(),
            KeeperRequest::Create(beginning) => self.create(&beginning),
            KeeperRequest::Credentials(credentials) => self.try_credentials(&credentials),
            KeeperRequest::Close(left) => self.close(left),
            KeeperRequest::Raise { sealed, term } => self.raise(sealed, term),
            KeeperRequest::Leave { state, term } => self.release(state, term),
            KeeperRequest::Takeover => self.acquire_now(),
        }
    }

    /// The record as the store shows it now.
    fn look(&mut self) -> Result<KeeperReply, Refusal> {
        self.look_again();
        self.drive(|keeper| match keeper.fence.status() {
            FenceStatus::Holding(record)
            | FenceStatus::Standby(record)
            | FenceStatus::Released(record)
            | FenceStatus::Closed(record) => Progress::Ended(Ok(KeeperReply::Record(Some(record)))),
            FenceStatus::NoRecord => Progress::Ended(Ok(KeeperReply::Record(None))),
            FenceStatus::Implausible { .. } => Progress::Ended(Err(Refusal::StoreAway(StoreTrouble::Record))),
            FenceStatus::RolledBack { seen, found } => {
                Progress::Ended(Err(Refusal::NotHolder(NotHolder::RolledBack { seen, found })))
            }
            _ => keeper.fence.poll().map_or(Progress::Wait, Progress::Ask),
        })
    }

    /// Makes the record.
    fn create(&mut self, beginning: &Beginning) -> Result<KeeperReply, Refusal> {
        self.look_again();
        let mut asked = false;
        self.drive(|keeper| match keeper.fence.status() {
            FenceStatus::NoRecord | FenceStatus::RolledBack { found: 0, .. } | FenceStatus::Closed(_) if !asked => {
                asked = true;
                let ask = keeper.fence.create(beginning);
                let refused = match keeper.fence.status() {
                    FenceStatus::Closed(_) => Refusal::FenceClosed,
                    _ => Refusal::RecordLost,
                };
                ask.map_or(Progress::Ended(Err(refused)), Progress::Ask)
            }
            FenceStatus::Standby(record) if asked && record.is_new(beginning.min_state_version) => {
                Progress::Ended(Ok(KeeperReply::Yes))
            }
            FenceStatus::Creating | FenceStatus::Unknown => Progress::Wait,
            _ => Progress::Ended(Err(Refusal::FenceExists)),
        })
    }

    /// Has older states refused than the one that was sealed in this term.
    fn raise(&mut self, sealed: u64, term: u64) -> Result<KeeperReply, Refusal> {
        self.drive(|keeper| match keeper.fence.status() {
            FenceStatus::Holding(record) if record.term != term => Progress::Ended(Err(other_term())),
            FenceStatus::Holding(record) if record.min_state_version >= sealed => Progress::Ended(Ok(KeeperReply::Yes)),
            FenceStatus::Holding(record) => {
                keeper.fence.extend(record.ceilings, sealed).map_or(Progress::Wait, Progress::Ask)
            }
            _ => Progress::Ended(Err(other_term())),
        })
    }

    /// Leaves in order, with the state that was sealed in this term once its gate was closed.
    fn release(&mut self, state: Root, term: u64) -> Result<KeeperReply, Refusal> {
        let left = self.drive(|keeper| match keeper.fence.status() {
            FenceStatus::Holding(record) if record.term != term => Progress::Ended(Err(other_term())),
            // The state stands for what was signed until the gate was closed: it must be closed still.
            FenceStatus::Holding(_) if !keeper.fence_gate.is_handing_over() => Progress::Ended(Err(other_term())),
            FenceStatus::Holding(_) => keeper.fence.release(state).map_or(Progress::Wait, Progress::Ask),
            FenceStatus::Released(_) => Progress::Ended(Ok(KeeperReply::Yes)),
            FenceStatus::Releasing => Progress::Wait,
            _ => Progress::Ended(Err(other_term())),
        });
        self.left = Some(self.runtime.now());
        left
    }

    /// Acquires the fence without waiting.
    fn acquire_now(&mut self) -> Result<KeeperReply, Refusal> {
        self.takeover = true;
        self.look_again();
        let claimed = self.drive(|keeper| match keeper.fence.status() {
            FenceStatus::Holding(record) => Progress::Ended(Ok(KeeperReply::Record(Some(record)))),
            FenceStatus::NoRecord => Progress::Ended(Err(Refusal::NotHolder(NotHolder::NoRecord))),
            FenceStatus::Closed(_) => Progress::Ended(Err(Refusal::FenceClosed)),
            FenceStatus::RolledBack { seen, found } => {
                Progress::Ended(Err(Refusal::NotHolder(NotHolder::RolledBack { seen, found })))
            }
            FenceStatus::Standby(_) if matches!(keeper.unfit, Some(NotHolder::FromFuture { .. })) => {
                let unfit = keeper.unfit.unwrap_or(NotHolder::NoRecord);
                Progress::Ended(Err(Refusal::NotHolder(unfit)))
            }
            _ => keeper.next().map_or(Progress::Wait, Progress::Ask),
        });
        self.takeover = false;
        claimed
    }

    /// Ends the record.
    fn close(&mut self, left: Option<(Root, u64)>) -> Result<KeeperReply, Refusal> {
        self.look_again();
        let closed = self.drive(|keeper| match keeper.fence.status() {
            FenceStatus::Closed(record) => Progress::Ended(Ok(KeeperReply::Record(Some(record)))),
            FenceStatus::Holding(record) => match left {
                // The state stands for what was signed until the gate was closed: it must be closed still.
                Some((state, term)) if term == record.term && keeper.fence_gate.is_handing_over() => {
                    keeper.fence.close(Some(state)).map_or(Progress::Wait, Progress::Ask)
                }
                _ => Progress::Ended(Err(other_term())),
            },
            // The holder has lost it meanwhile: what it left behind is not what the record's end would name.
            FenceStatus::Standby(_) | FenceStatus::Released(_) if left.is_none() => {
                keeper.fence.close(None).map_or(Progress::Wait, Progress::Ask)
            }
            FenceStatus::Standby(_) | FenceStatus::Released(_) => Progress::Ended(Err(other_term())),
            FenceStatus::NoRecord => Progress::Ended(Err(Refusal::NotHolder(NotHolder::NoRecord))),
            FenceStatus::Implausible { .. } => Progress::Ended(Err(Refusal::StoreAway(StoreTrouble::Record))),
            FenceStatus::RolledBack { seen, found } => {
                Progress::Ended(Err(Refusal::NotHolder(NotHolder::RolledBack { seen, found })))
            }
            FenceStatus::Unknown | FenceStatus::Superseded => keeper.fence.poll().map_or(Progress::Wait, Progress::Ask),
            FenceStatus::Releasing | FenceStatus::Acquiring | FenceStatus::Creating => Progress::Wait,
        });
        self.left = Some(self.runtime.now());
        closed
    }

    /// Whether the store shows the group's record to these credentials: not an older one than was seen, and not none. From then on they
    /// are used. Otherwise the ones before are.
    fn try_credentials(&mut self, credentials: &StoreCredentials) -> Result<KeeperReply, Refusal> {
        let tried = self.probe(Some(credentials));
        let seen = self.fence.seen();
        let kept = tried.and_then(|done| match done {
            KeeperReply::Record(Some(record)) if record.version >= seen => Ok(done),
            KeeperReply::Record(Some(Record { version: found, .. })) => {
                Err(Refusal::NotHolder(NotHolder::RolledBack { seen, found }))
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
    fn probe(&mut self, credentials: Option<&StoreCredentials>) -> Result<KeeperReply, Refusal> {
        let store = self.store.as_mut().ok_or(Refusal::StoreCredentials)?;
        if credentials.is_some_and(|credentials| !store.open(credentials)) {
            return Err(Refusal::StoreCredentials);
        }
        let answer = store.ask(&StoreOp::Read);
        match answer {
            (StoreResponse::Record(record), _) => Ok(KeeperReply::Record(record)),
            (_, trouble) => {
                // The old ones again; where there are none, these are no worse.
                self.open_as_before();
                Err(Refusal::StoreAway(trouble.unwrap_or_default()))
            }
        }
    }

    fn look_again(&mut self) {
        if self.pending.is_none()
            && let Some(ask) = self.fence.poll()
        {
            self.put(ask);
        }
        self.publish();
    }

    /// Puts questions until `step` says that it has ended.
    fn drive(&mut self, mut step: impl FnMut(&mut Self) -> Progress) -> Result<KeeperReply, Refusal> {
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
                let unclear = self.pending.is_some();
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
struct Closing<'a>(&'a FenceGate);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

enum Progress {
    Ask(StoreRequest),
    Wait,
    Ended(Result<KeeperReply, Refusal>),
}

/// The fence was lost, or lost and held again, since the state was sealed.
fn other_term() -> Refusal {
    Refusal::NotHolder(NotHolder::StoreUnknown(StoreTrouble::NotAsked))
}

fn standby(slot_ceiling: Slot) -> NotHolder {
    NotHolder::Standby { slot_ceiling }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
