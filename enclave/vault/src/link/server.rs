//! The vault's one door: frames in, frames out, over the socket pair to the broker.
//!
//! One thread reads and fills a bounded queue; workers, one per vCPU, decode, answer and write. A worker takes up to
//! sixteen requests at once when the queue is long, signs them together and writes their replies in one go; when it is short, each
//! reply leaves at once. If the broker stops reading, the workers block; if the queue is full, the reader stops reading:
//! memory is bounded either way. Operators' commands wait for KMS and the disk: they have a thread of their own.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use casemate_protocol::broker::CHANNEL;
use casemate_protocol::frame::{self, CHANNEL_LEN, LENGTH_LEN, MAX_COMMAND_FRAME_LEN};
use casemate_protocol::refusal::Waiting;
use casemate_protocol::{Refusal, Reply, ReplyFrame, Request as Asked, RequestFrame};

use crate::Vault;
use crate::link::broker_client::BrokerClient;
use crate::signing::bls::BATCH;
use crate::vault::Due;

/// Bytes of requests that wait for a worker, about: a duty takes 300 to 700.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// How often parked requests are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Longest time that a request waits for the fence to grant a higher ceiling: the store's answer, and one more try.
const PARKED: Duration = Duration::from_millis(1500);
/// How often it is looked whether anything is due that nobody has ordered.
const SETTLE: Duration = Duration::from_secs(1);
/// Requests that may wait for it; more are refused at once.
const MAX_PARKED: usize = 4096;
/// Bytes that are read at once: the longest frame and some.
const READ_LEN: usize = 1280 * 1024;

/// Serves until the broker closes its end.
pub fn serve(vault: &Vault, stream: &UnixStream, workers: NonZeroUsize) -> io::Result<()> {
    // The workers come at once: requests wait for them.
    Link::start(stream, true)?.serve(vault, workers)
}

/// The socket to the broker, being read. The vault can call out before it serves: it has to unseal its keys first.
pub struct Link {
    queue: Arc<Queue>,
    output: Arc<Mutex<UnixStream>>,
    calls: Arc<BrokerClient>,
    /// What requests hear before anybody serves them.
    waiting: Arc<Mutex<Waiting>>,
    reader: JoinHandle<io::Result<()>>,
}

impl Link {
    /// Starts to read. Until [`Self::serve`], requests are answered with [`Refusal::Starting`].
    pub fn open(stream: &UnixStream) -> io::Result<Self> {
        Self::start(stream, false)
    }

    fn start(stream: &UnixStream, served: bool) -> io::Result<Self> {
        let output = Arc::new(Mutex::new(stream.try_clone()?));
        let (queue, calls) = (Arc::new(Queue::default()), Arc::new(BrokerClient::new(Arc::clone(&output))));
        let waiting = Arc::new(Mutex::new(Waiting::Unsealing));
        if served {
            queue.open();
        }
        let reader = {
            let (stream, queue) = (stream.try_clone()?, Arc::clone(&queue));
            let (output, calls, waiting) = (Arc::clone(&output), Arc::clone(&calls), Arc::clone(&waiting));
            std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
                let ended = read(&stream, &queue, &output, &calls, &waiting);
                queue.close();
                calls.close();
                ended
            })?
        };
        Ok(Self { queue, output, calls, waiting, reader })
    }

    /// The vault's calls to the broker.
    pub fn calls(&self) -> Arc<BrokerClient> {
        Arc::clone(&self.calls)
    }

    /// What requests hear until they are served.
    pub fn waits_for(&self, waiting: Waiting) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// Whether the broker has closed its end.
    pub fn is_closed(&self) -> bool {
        self.reader.is_finished()
    }

    /// Serves until the broker closes its end.
    pub fn serve(self, vault: &Vault, workers: NonZeroUsize) -> io::Result<()> {
        self.queue.open();
        std::thread::scope(|scope| {
            let (commands, ordered) = sync_channel(1);
            let (queue, output) = (&self.queue, &self.output);
            scope.spawn(move || carry_out(vault, &ordered, output));
            scope.spawn(move || unpark(vault, queue));
            for _ in 0..workers.get() {
                let commands = commands.clone();
                scope.spawn(move || work(vault, queue, output, workers.get(), &commands));
            }
        });
        self.reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader has panicked")))
    }
}

struct Request {
    channel: u64,
    frame: Vec<u8>,
    /// Until when it may wait for the fence; nothing where it has not waited yet.
    patience: Option<Instant>,
}

impl Request {
    /// What it weighs in the queue; even an empty frame takes some room.
    fn size(&self) -> usize {
        self.frame.len().saturating_add(size_of::<Self>())
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Request>,
    waiting_bytes: usize,
    /// Requests that wait for the fence.
    parked: Vec<Request>,
    idle_workers: usize,
    /// Somebody takes requests.
    served: bool,
    closed: bool,
}

impl Queue {
    /// Adds all of `requests`, waiting for room; `false` when the queue is closed.
    fn push(&self, requests: &mut Vec<Request>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.waiting_bytes >= QUEUE_BYTES && !state.closed {
            state = self.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let wake = state.idle_workers.min(requests.len());
        let more = requests.iter().map(Request::size).sum();
        state.waiting_bytes = state.waiting_bytes.saturating_add(more);
        state.waiting.extend(requests.drain(..));
        let open = !state.closed;
        drop(state);
        // A wake-up costs a system call even where nobody sleeps, so the sleepers are counted.
        for _ in 0..wake {
            self.filled.notify_one();
        }
        open
    }

    /// Takes this worker's share of what waits, into `batch`; `false` when there is nothing left to come.
    fn pop(&self, batch: &mut Vec<Request>, workers: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.waiting.is_empty() {
            if state.closed {
                return false;
            }
            state.idle_workers = state.idle_workers.saturating_add(1);
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle_workers = state.idle_workers.saturating_sub(1);
        }
        let was_full = state.waiting_bytes >= QUEUE_BYTES;
        let share = state.waiting.len().div_ceil(workers).clamp(1, BATCH);
        let share = share.min(state.waiting.len());
        batch.extend(state.waiting.drain(..share));
        let taken = batch.iter().map(Request::size).sum();
        state.waiting_bytes = state.waiting_bytes.saturating_sub(taken);
        drop(state);
        if was_full {
            self.drained.notify_one();
        }
        true
    }

    /// Sets a request aside until the fence's limits change. It comes back where there is no room.
    fn park(&self, request: Request) -> Option<Request> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.parked.len() >= MAX_PARKED || state.closed {
            return Some(request);
        }
        state.parked.push(request);
        None
    }

    /// Puts requests that were set aside in front again: all of them, or those whose patience has ended.
    fn unpark(&self, all: bool) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let parked = std::mem::take(&mut state.parked);
        let (back, stay): (Vec<_>, Vec<_>) =
            parked.into_iter().partition(|request| all || request.patience.is_none_or(|until| until <= now));
        state.parked = stay;
        let more = back.iter().map(Request::size).sum();
        state.waiting_bytes = state.waiting_bytes.saturating_add(more);
        let wake = state.idle_workers.min(back.len());
        for request in back.into_iter().rev() {
            state.waiting.push_front(request);
        }
        drop(state);
        for _ in 0..wake {
            self.filled.notify_one();
        }
    }

    fn is_closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    fn open(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).served = true;
    }

    fn is_served(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).served
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.filled.notify_all();
        self.drained.notify_all();
    }
}

fn read(
    mut stream: &UnixStream,
    queue: &Queue,
    output: &Mutex<UnixStream>,
    calls: &BrokerClient,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    let mut buffer = vec![0; READ_LEN];
    let mut held = 0;
    let mut requests = Vec::new();
    loop {
        // A frame is far smaller than the buffer, so there is always room behind what is held.
        let room = buffer.get_mut(held..).unwrap_or_default();
        match stream.read(room) {
            Ok(0) => return Ok(()),
            Ok(n) => held = held.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        let mut used = 0;
        while let Some((inner, len)) =
            frame::split(buffer.get(used..held).unwrap_or_default(), CHANNEL_LEN + MAX_COMMAND_FRAME_LEN)
                .map_err(broken)?
        {
            let (channel, frame) = frame::split_channel(inner).map_err(broken)?;
            if channel == CHANNEL {
                calls.deliver(frame).map_err(broken)?;
            } else {
                requests.push(Request { channel, frame: frame.to_vec(), patience: None });
            }
            used = used.saturating_add(len);
        }
        buffer.copy_within(used..held, 0);
        held = held.saturating_sub(used);
        // Answers to calls come over this socket too: nothing may wait here for workers that are not there yet.
        if !requests.is_empty() && !queue.is_served() {
            let mut replies = Vec::new();
            let waiting = *waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for request in requests.drain(..) {
                answer_with(|_| Some(Reply::Refused(Refusal::Starting(waiting))), &request, &mut replies);
            }
            output.lock().unwrap_or_else(PoisonError::into_inner).write_all(&replies)?;
        }
        if !requests.is_empty() && !queue.push(&mut requests) {
            return Ok(());
        }
    }
}

// The buffer must hold one frame of any length.
const _: () = assert!(READ_LEN > LENGTH_LEN + CHANNEL_LEN + MAX_COMMAND_FRAME_LEN);

/// The broker itself broke the framing: nothing that follows can be trusted to start where a frame starts.
fn broken(error: frame::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A command, and the connection that it came over.
type Ordered = (u64, RequestFrame);

fn work(vault: &Vault, queue: &Queue, output: &Mutex<UnixStream>, workers: usize, commands: &SyncSender<Ordered>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut replies = Vec::new();
    let (mut whose, mut due) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    while queue.pop(&mut batch, workers) {
        for request in batch.drain(..) {
            if let Some((channel, id, one)) = answer(vault, queue, request, &mut replies, commands) {
                whose.push((channel, id));
                due.push(one);
            }
        }
        // Together what came together; one alone has waited for nobody.
        for ((channel, id), signature) in whose.drain(..).zip(Due::sign(&due)) {
            let reply = signature.map_or(Reply::Refused(Refusal::UnknownKey), Reply::Signature);
            frame::encode_channel_reply(channel, &ReplyFrame::new(id, reply), &mut replies);
        }
        due.clear();
        let mut stream = output.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.write_all(&replies).is_err() {
            // The broker is gone; the reader notices too.
            queue.close();
            return;
        }
        replies.clear();
    }
}

/// Carries out commands, one after the other; and what is due without one.
fn carry_out(vault: &Vault, ordered: &Receiver<Ordered>, output: &Mutex<UnixStream>) {
    loop {
        let (channel, asked) = match ordered.recv_timeout(SETTLE) {
            Ok(ordered) => ordered,
            Err(RecvTimeoutError::Timeout) => {
                vault.settle();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut bytes = Vec::new();
        let reply = ReplyFrame::new(asked.id, vault.handle(&asked.request));
        frame::encode_channel_reply(channel, &reply, &mut bytes);
        if output.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Brings requests back that wait for the fence: all when its limits have changed, each when its patience ends.
fn unpark(vault: &Vault, queue: &Queue) {
    let mut seen = vault.fence_gate().changes();
    while !queue.is_closed() {
        let changes = vault.fence_gate().wait_for_change(seen, TICK);
        queue.unpark(changes != seen);
        seen = changes;
    }
}

/// Answers a request, or says for whom which signature is due.
fn answer(
    vault: &Vault,
    queue: &Queue,
    mut request: Request,
    replies: &mut Vec<u8>,
    commands: &SyncSender<Ordered>,
) -> Option<(u64, u64, Due)> {
    let mut due = None;
    let channel = request.channel;
    let patient = request.patience.is_none_or(|until| Instant::now() < until);
    let (mut parks, seen) = (false, vault.fence_gate().changes());
    let handle = |asked: RequestFrame| match asked.request {
        // They wait for KMS, the disk or the fence's store.
        Asked::Command { .. }
        | Asked::Handover
        | Asked::ImportKeystores { .. }
        | Asked::DeleteKeys { .. }
        | Asked::SlashingProtection { .. }
        | Asked::KeyDetails { .. } => match commands.try_send((request.channel, asked)) {
            Ok(()) => None,
            Err(_) => Some(Reply::Refused(Refusal::CommandBusy)),
        },
        other => {
            let reply = match &other {
                Asked::Sign(asked_for) => match vault.judge(asked_for) {
                    Ok(one) => {
                        due = Some((channel, asked.id, one));
                        return None;
                    }
                    Err(refusal) => Reply::Refused(refusal),
                },
                _ => vault.handle(&other),
            };
            // It waits for the store of the fence, together with all others, and keeps no worker from signing.
            let above = matches!(&reply, Reply::Refused(refusal) if refusal.is_above_ceiling());
            parks = patient && above;
            match reply {
                _ if parks => None,
                Reply::Refused(refusal) if above => Some(still_above(vault, &other, refusal)),
                reply => Some(reply),
            }
        }
    };
    answer_with(handle, &request, replies);
    if parks {
        request.patience = request.patience.or_else(|| Instant::now().checked_add(PARKED));
        if let Some(request) = queue.park(request) {
            let answered = |asked: RequestFrame| {
                Some(match vault.handle(&asked.request) {
                    Reply::Refused(refusal) if refusal.is_above_ceiling() => {
                        still_above(vault, &asked.request, refusal)
                    }
                    reply => reply,
                })
            };
            answer_with(answered, &request, replies);
        } else if vault.fence_gate().changes() != seen {
            // They changed before it was parked.
            queue.unpark(true);
        }
    }
    due
}

/// The refusal of a request that has waited in vain, or may not wait. The vault has not logged it: it might have been signed yet.
fn still_above(vault: &Vault, request: &Asked, refusal: Refusal) -> Reply {
    let refusal = vault.still_above(refusal);
    vault.note_refused(request, &refusal);
    Reply::Refused(refusal)
}

/// Decodes and answers; nothing is answered yet where `handle` gives nothing.
fn answer_with(handle: impl FnOnce(RequestFrame) -> Option<Reply>, request: &Request, replies: &mut Vec<u8>) {
    match frame::decode_request(&request.frame) {
        Ok(asked) => {
            let id = asked.id;
            if let Some(reply) = handle(asked) {
                frame::encode_channel_reply(request.channel, &ReplyFrame::new(id, reply), replies);
            }
        }
        Err(error) => {
            let reply = ReplyFrame::new(0, Reply::Refused(Refusal::MalformedFrame(error.0)));
            frame::encode_channel_reply(request.channel, &reply, replies);
            frame::encode_channel_close(request.channel, replies);
        }
    }
}
