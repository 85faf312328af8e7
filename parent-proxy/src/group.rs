//! The enclaves of one group behind this proxy: requests go to the one that holds the fence, and wait a moment while it is handed
//! over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use casemate_protocol::command::Envelope;
use casemate_protocol::frame::Info;
use casemate_protocol::refusal::NotHolder;
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{Refusal, Reply, Request};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::enclave::{Enclave, SendSlot, Unavailable};
use crate::settings::Settings;

/// How often each enclave is asked what it is to the fence.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Longest wait for a holder: handing over in order takes less.
const HANDOVER: Duration = Duration::from_secs(4);

/// The enclaves. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    enclaves: Arc<[Enclave]>,
    /// What each is to the fence; nothing where it does not answer.
    standings: Arc<watch::Sender<Vec<Option<StatedStatus>>>>,
    /// Which one was the last to sign.
    last: Arc<AtomicUsize>,
}

impl Group {
    /// Connects to all of them, and asks them from now on.
    pub fn connect(settings: &Settings) -> Self {
        let connect = |address| {
            let connections = settings.enclave_connections.get();
            Enclave::connect(address, connections, settings.max_in_flight.get(), settings.request_timeout)
        };
        let enclaves: Arc<[Enclave]> = settings.enclave.iter().map(connect).collect();
        let standings = Arc::new(watch::Sender::new(vec![None; enclaves.len()]));
        let group = Self { enclaves, standings, last: Arc::default() };
        for number in 0..group.enclaves.len() {
            tokio::spawn(group.clone().keep_asking(number));
        }
        group
    }

    async fn keep_asking(self, number: usize) {
        let Some(enclave) = self.enclaves.get(number) else { return };
        loop {
            let standing = match enclave.call(Request::Info).await {
                Ok(Reply::Info(info)) => {
                    enclave.learn(info);
                    enclave.info().map(|info| info.standing)
                }
                _ => None,
            };
            self.set_status(number, standing);
            sleep(ASK_EVERY).await;
        }
    }

    fn set_status(&self, number: usize, standing: Option<StatedStatus>) {
        self.standings.send_if_modified(|all| match all.get_mut(number) {
            Some(before) if *before != standing => {
                let signs = |standing: Option<StatedStatus>| standing.is_some_and(StatedStatus::signs);
                if signs(*before) != signs(standing) {
                    info!(enclave = number, ?standing, "the fence");
                }
                *before = standing;
                true
            }
            _ => false,
        });
    }

    /// The enclave that signs, where one says so.
    pub fn holder(&self) -> Option<usize> {
        let standings = self.standings.borrow();
        let signs = |number: usize| standings.get(number).copied().flatten().is_some_and(StatedStatus::signs);
        let last = self.last.load(Ordering::Relaxed);
        if signs(last) { Some(last) } else { (0..standings.len()).find(|number| signs(*number)) }
    }

    /// What each enclave is to the fence.
    pub fn standings(&self) -> Vec<Option<StatedStatus>> {
        self.standings.borrow().clone()
    }

    /// A place at the holder's; see [`Enclave::place`].
    pub async fn place(&self) -> Result<Option<(usize, SendSlot<'_>)>, Unavailable> {
        let Some((number, enclave)) = self.holder().and_then(|number| Some((number, self.enclaves.get(number)?)))
        else {
            return Ok(None);
        };
        Ok(enclave.place().await?.map(|place| (number, place)))
    }

    /// Asks the holder. While there is none, and one may come soon, it waits; the last refusal where none comes.
    pub async fn call(&self, request: Request) -> Result<Reply, Unavailable> {
        self.call_from(None, request).await
    }

    /// The same, from a place that has been taken.
    pub async fn call_from(
        &self,
        mut place: Option<(usize, SendSlot<'_>)>,
        request: Request,
    ) -> Result<Reply, Unavailable> {
        let mut waiting: Option<(Instant, watch::Receiver<_>)> = None;
        loop {
            let mut last = Err(Unavailable::Away);
            // The holder first, then the others; where there is a place, the one where it is.
            let first = place.as_ref().map(|(number, _)| *number);
            for number in self.in_turn(first) {
                let Some(enclave) = self.enclaves.get(number) else { continue };
                let reply = match place.take_if(|(of, _)| *of == number) {
                    Some((_, place)) => place.call(request.clone()).await,
                    None => enclave.call(request.clone()).await,
                };
                match &reply {
                    Ok(Reply::Refused(Refusal::NotHolder(why))) => self.set_status(number, Some(standing(*why))),
                    Ok(Reply::Refused(Refusal::Starting(_))) | Err(Unavailable::Away) => {
                        self.set_status(number, None);
                    }
                    // Its ceilings do not rise any more: perhaps another one holds the fence by now.
                    Ok(Reply::Refused(refusal)) if refusal.is_above_ceiling() && self.enclaves.len() > 1 => {}
                    _ => {
                        self.last.store(number, Ordering::Relaxed);
                        return reply;
                    }
                }
                last = better(last, reply);
            }
            // A command or a document is for one enclave, and somebody who waits; it is duties that may not be missed.
            let waits = matches!(&last, Ok(Reply::Refused(Refusal::NotHolder(why))) if may_come(*why));
            if !waits {
                return last;
            }
            match &mut waiting {
                // What has changed since the answer is seen at once, in another turn.
                None => waiting = Some((Instant::now() + HANDOVER, self.standings.subscribe())),
                Some((until, changes)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if !matches!(timeout(left, changes.changed()).await, Ok(Ok(()))) {
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
        let mut changes = self.standings.subscribe();
        let heard = |standing: &Option<StatedStatus>| standing.is_some_and(|s| s != StatedStatus::Unknown);
        let _ = changes.wait_for(|standings| standings.iter().any(heard)).await;
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

/// Of two answers that are none, the one that says more.
fn better(a: Result<Reply, Unavailable>, b: Result<Reply, Unavailable>) -> Result<Reply, Unavailable> {
    let says = |answer: &Result<Reply, Unavailable>| match answer {
        Ok(Reply::Refused(Refusal::NotHolder(why))) if may_come(*why) => 3,
        Ok(Reply::Refused(Refusal::NotHolder(_))) => 2,
        Ok(_) => 1,
        Err(_) => 0,
    };
    if says(&b) >= says(&a) { b } else { a }
}
