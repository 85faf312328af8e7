//! The enclaves of one group behind this proxy: requests go to the one that holds the fence, and wait a moment while it is handed
//! over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_protocol::command::Envelope;
use casemate_protocol::frame::{Info, Readiness};
use casemate_protocol::may_sign::MaySign;
use casemate_protocol::refusal::NotHolder;
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{Refusal, Reply, Request};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::enclave::{Enclave, SendSlot, Unavailable};
use crate::readiness::{Herald, Verdict};
use crate::settings::Settings;

/// How often each enclave is asked what it would sign.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Longest wait for what it says: it is not of now any more.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that gives no reply for so many times the longest wait of a request is made anew.
const STALLED: u32 = 4;

/// The enclaves. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    enclaves: Arc<[Enclave]>,
    /// What each would sign; nothing where it does not answer.
    heard: Arc<watch::Sender<Vec<Option<Readiness>>>>,
    /// Longest wait of a request.
    patience: Duration,
    /// Whether a block could be signed when that was last looked at, and since when that is so.
    steady: Arc<Mutex<(bool, Instant)>>,
    /// Which one was the last to sign.
    last: Arc<AtomicUsize>,
}

impl Group {
    /// Connects to all of them, and asks them from now on.
    pub fn connect(settings: &Settings) -> Self {
        let patience = settings.request_timeout;
        let connect = |address| {
            let connections = settings.enclave_connections.get();
            Enclave::connect(address, connections, settings.max_in_flight.get(), patience.saturating_mul(STALLED))
        };
        let enclaves: Arc<[Enclave]> = settings.enclave.iter().map(connect).collect();
        let heard = Arc::new(watch::Sender::new(vec![None; enclaves.len()]));
        let steady = Arc::new(Mutex::new((false, Instant::now())));
        let group = Self { enclaves, heard, patience, steady, last: Arc::default() };
        for number in 0..group.enclaves.len() {
            tokio::spawn(group.clone().keep_asking(number));
        }
        tokio::spawn(group.clone().keep_telling());
        group
    }

    async fn keep_asking(self, number: usize) {
        let Some(enclave) = self.enclaves.get(number) else { return };
        let mut observer = enclave.observer();
        loop {
            let mut answer = std::pin::pin!(observer.ask());
            let heard = if let Ok(heard) = timeout(ASK_TIMEOUT.min(self.patience), &mut answer).await {
                heard
            } else {
                // What it said before is not of now any more.
                self.learn(number, None);
                timeout(enclave.stall(), answer).await.ok().flatten()
            };
            // It answers there, and requests go over the others.
            let heard = heard.filter(|_| enclave.connections_up() > 0);
            self.learn(number, heard);
            sleep(ASK_EVERY).await;
        }
    }

    /// Into the log, each transition once.
    async fn keep_telling(self) {
        let mut herald = Herald::default();
        loop {
            sleep(ASK_EVERY).await;
            let heard = self.heard.borrow().clone();
            let verdict = Verdict::of(&heard, self.starting());
            self.since(verdict.is_ready());
            herald.tell(&heard, &verdict);
        }
    }

    /// Who waits for a change wants another standing, or another answer: not that a millisecond has passed.
    fn learn(&self, number: usize, heard: Option<Readiness>) {
        let what = |heard: &Option<Readiness>| heard.map(|heard| (heard.standing, heard.may_sign.blocks()));
        self.heard.send_if_modified(|all| match all.get_mut(number) {
            Some(before) => {
                let changed = what(before) != what(&heard);
                *before = heard;
                changed
            }
            None => false,
        });
    }

    /// It has said so in an answer.
    fn learn_not_holder(&self, number: usize, why: NotHolder) {
        let before = self.heard.borrow().get(number).copied().flatten();
        let keys = before.map_or(0, |before| before.keys);
        let known = before.unwrap_or_else(|| Readiness::from_standing(standing(why), keys));
        let may_sign = MaySign::not_holder(why);
        self.learn(number, Some(Readiness { standing: standing(why), term: 0, may_sign, ..known }));
    }

    /// What a request for a signature would get now.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.heard.borrow(), self.starting())
    }

    /// For how long a block could be signed, or could not; to a quarter of a second.
    pub fn since(&self, ready: bool) -> Duration {
        let mut steady = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
        if steady.0 != ready {
            *steady = (ready, Instant::now());
        }
        steady.1.elapsed()
    }

    /// Until when a request that comes now may wait.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// The enclave that holds the fence, where one says so: rather one that would sign now than one whose ceilings have passed.
    pub fn holder(&self) -> Option<usize> {
        let heard = self.heard.borrow();
        let last = self.last.load(Ordering::Relaxed);
        let rank = |number: &usize| {
            let readiness = heard.get(*number)?.as_ref().filter(|readiness| readiness.standing.signs())?;
            Some((readiness.may_sign.blocks(), *number == last))
        };
        (0..heard.len()).filter(|number| rank(number).is_some()).max_by_key(rank)
    }

    /// What each enclave is to the fence.
    pub fn standings(&self) -> Vec<Option<StatedStatus>> {
        self.heard.borrow().iter().map(|heard| heard.map(|readiness| readiness.standing)).collect()
    }

    /// A place at the holder's; see [`Enclave::place`].
    pub async fn place(&self, until: Instant) -> Result<Option<(usize, SendSlot<'_>)>, Unavailable> {
        let Some((number, enclave)) = self.holder().and_then(|number| Some((number, self.enclaves.get(number)?)))
        else {
            return Ok(None);
        };
        Ok(enclave.place(until).await?.map(|place| (number, place)))
    }

    /// Asks the holder. While there is none, and one may come soon, it waits; the last refusal where none comes.
    pub async fn call(&self, request: Request) -> Result<Reply, Unavailable> {
        self.call_from(None, request, self.deadline()).await
    }

    /// The same, from a place that has been taken, until then.
    pub async fn call_from(
        &self,
        mut place: Option<(usize, SendSlot<'_>)>,
        request: Request,
        until: Instant,
    ) -> Result<Reply, Unavailable> {
        let mut changes: Option<watch::Receiver<_>> = None;
        // What was said in the turn before: a reason is worth more than that there was no time to hear it again.
        let mut said = None;
        loop {
            let mut last = Err(Unavailable::Away);
            let mut waits = false;
            // The holder first, then the others; where there is a place, the one where it is.
            let first = place.as_ref().map(|(number, _)| *number);
            for number in self.in_turn(first) {
                let Some(enclave) = self.enclaves.get(number) else { continue };
                let reply = match place.take_if(|(of, _)| *of == number) {
                    Some((_, place)) => place.call(request.clone(), until).await,
                    None => enclave.call_until(request.clone(), until).await,
                };
                match &reply {
                    Ok(Reply::Refused(Refusal::NotHolder(why))) => {
                        self.learn_not_holder(number, *why);
                        waits |= may_come(*why);
                    }
                    Ok(Reply::Refused(Refusal::Starting(_))) | Err(Unavailable::Away) => self.learn(number, None),
                    // Its ceilings do not rise any more: perhaps another one holds the fence by now.
                    Ok(Reply::Refused(refusal)) if refusal.waits_for_store() && self.enclaves.len() > 1 => {}
                    Err(Unavailable::TimedOut) => return said.unwrap_or(reply),
                    _ => {
                        self.last.store(number, Ordering::Relaxed);
                        return reply;
                    }
                }
                last = better(last, reply);
            }
            // A command or a document is for one enclave, and somebody who waits; it is duties that may not be missed.
            if !waits {
                return last;
            }
            said = Some(last.clone());
            match &mut changes {
                // What has changed since the answer is seen at once, in another turn.
                None => changes = Some(self.heard.subscribe()),
                Some(changes) => {
                    if !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                        return last;
                    }
                }
            }
        }
    }

    fn in_turn(&self, first: Option<usize>) -> impl Iterator<Item = usize> + use<> {
        let first = first.or_else(|| self.holder()).unwrap_or_else(|| self.last.load(Ordering::Relaxed));
        std::iter::once(first).chain((0..self.enclaves.len()).filter(move |number| *number != first))
    }

    /// Number of one enclave: this one, the holder, or the first that is up.
    pub fn select(&self, number: Option<usize>) -> usize {
        let up = || self.enclaves.iter().position(|enclave| enclave.info().is_some());
        number.or_else(|| self.holder()).or_else(up).unwrap_or(0)
    }

    /// That enclave.
    pub fn get(&self, number: Option<usize>) -> Option<&Enclave> {
        self.enclaves.get(self.select(number))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.enclaves.len()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.enclaves.is_empty()
    }

    /// Has a command carried out by one enclave.
    pub async fn command(&self, number: Option<usize>, envelope: Envelope) -> Result<Reply, Unavailable> {
        self.call_exclusive(number, Request::Command { envelope }).await
    }

    /// Has something done by one enclave that takes its time, as a command does.
    pub async fn call_exclusive(&self, number: Option<usize>, request: Request) -> Result<Reply, Unavailable> {
        self.get(number).ok_or(Unavailable::Away)?.call_exclusive(request).await
    }

    /// Has every enclave that holds the fence hand it over, because this proxy ends.
    pub async fn handover(&self) {
        for (number, enclave) in self.enclaves.iter().enumerate() {
            // As it is now, not as it was a quarter of a second ago; one that is too busy to say is asked all the same.
            match enclave.call(Request::Info).await {
                Ok(Reply::Info(info)) if info.standing != StatedStatus::Holding => continue,
                Ok(Reply::Refused(_)) | Err(Unavailable::Away) => continue,
                _ => {}
            }
            match enclave.call_exclusive(Request::Handover).await {
                Ok(Reply::HandedOver) => info!(enclave = number, "the fence was handed over in order"),
                Ok(Reply::Refused(refusal)) => warn!(enclave = number, %refusal, "the fence was not handed over"),
                other => warn!(enclave = number, ?other, "the fence was not handed over"),
            }
        }
    }

    /// Why no enclave is reached and serves.
    pub fn starting(&self) -> Option<Refusal> {
        self.enclaves.iter().find_map(Enclave::starting)
    }

    /// What an enclave said about itself: of the holder, or of one that is connected.
    pub fn info(&self) -> Option<Arc<Info>> {
        let holder = self.holder().and_then(|number| self.enclaves.get(number)?.info());
        holder.or_else(|| self.enclaves.iter().find_map(Enclave::info))
    }

    /// Resolves once an enclave is connected and has heard from its fence's store.
    pub async fn ready(&self) {
        let mut changes = self.heard.subscribe();
        let heard = |heard: &Option<Readiness>| heard.is_some_and(|heard| heard.standing != StatedStatus::Unknown);
        let _ = changes.wait_for(|all| all.iter().any(heard)).await;
    }

    /// How many of all connections are up.
    pub fn connections_up(&self) -> usize {
        self.enclaves.iter().map(Enclave::connections_up).sum()
    }
}

/// Whether the fence may be held again within seconds.
fn may_come(why: NotHolder) -> bool {
    matches!(why, NotHolder::HandingOver | NotHolder::Standby { .. } | NotHolder::StoreUnknown(_))
}

fn standing(why: NotHolder) -> StatedStatus {
    match why {
        NotHolder::StoreUnknown(_) => StatedStatus::Unknown,
        NotHolder::NoRecord => StatedStatus::NoRecord,
        NotHolder::Standby { .. } | NotHolder::FromFuture { .. } => StatedStatus::Standby,
        NotHolder::OldState { .. } => StatedStatus::OldState,
        NotHolder::Closed { .. } => StatedStatus::Closed,
        NotHolder::HandingOver => StatedStatus::HandingOver,
        NotHolder::RolledBack { .. } => StatedStatus::RolledBack,
    }
}

/// Of two answers that are none, the one that names the cause: a standby says no more than that it stands by.
fn better(a: Result<Reply, Unavailable>, b: Result<Reply, Unavailable>) -> Result<Reply, Unavailable> {
    let says = |answer: &Result<Reply, Unavailable>| match answer {
        Ok(Reply::Refused(refusal)) if refusal.waits_for_store() => 5,
        Ok(Reply::Refused(Refusal::NotHolder(NotHolder::Standby { .. }))) => 2,
        Ok(Reply::Refused(Refusal::NotHolder(why))) if may_come(*why) => 4,
        Ok(Reply::Refused(Refusal::NotHolder(_))) => 3,
        Ok(_) | Err(Unavailable::TimedOut | Unavailable::Busy) => 1,
        Err(Unavailable::Away) => 0,
    };
    if says(&b) >= says(&a) { b } else { a }
}
