//! Connections to the enclave: persistent, multiplexed, pipelined; re-made when the enclave restarts.
//!
//! Each connection has a task that keeps it up, a queue that is written in batches, and a table of requests whose
//! replies are still to come. When a connection ends, everything outstanding on it fails at once: the client hears 503,
//! and a repeat is safe, because the vault signs an identical duty again.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use casemate_protocol::address::Address;
use casemate_protocol::frame::{self, Info, MAX_COMMAND_FRAME_LEN, MAX_FRAME_LEN, Readiness};
use casemate_protocol::{PublicKey, Refusal, Reply, Request, RequestFrame};
use casemate_socket::Socket;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_vsock::{VsockAddr, VsockStream};
use tracing::{info, warn};

/// Bytes read at once.
const READ_LEN: usize = 64 * 1024;
/// Requests that wait for a write at most, and go into one. The next body is parsed when there is room again: what has been parsed
/// goes out first, so that the enclave has work while the rest of a slot's burst is read.
const BATCH: usize = 32;
/// First wait before a connection is tried again; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest wait before a connection is tried again: a restarted enclave is found within it.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Longest wait for a connection and its first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for a command: KMS has 20 s, the vault's calls 2 minutes.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(150);

/// Why the enclave did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// No connection to it.
    Away,
    /// More requests outstanding than the settings allow.
    Busy,
    /// No answer in time.
    TimedOut,
}

/// The enclave, as far as the proxy sees it. Cheap to clone.
#[derive(Clone)]
pub struct Enclave {
    shared: Arc<Shared>,
}

struct Shared {
    lanes: Vec<Connection>,
    next: AtomicUsize,
    in_flight: Semaphore,
    max_in_flight: usize,
    /// Signatures in flight, by key.
    by_key: Mutex<HashMap<PublicKey, usize>>,
    /// A connection that is asked and gives no reply for so long is made anew.
    stall: Duration,
    /// What the enclave said about itself when it was last reached.
    info: RwLock<Option<Arc<Info>>>,
    /// Why it does not say more about itself: it has been reached, and it is starting.
    starting: RwLock<Option<Refusal>>,
    address: Address,
    /// Held while a command is carried out.
    command: tokio::sync::Mutex<()>,
}

struct Connection {
    queue: mpsc::Sender<Outgoing>,
    /// Whether the lane's connection is up.
    up: std::sync::atomic::AtomicBool,
}

struct Outgoing {
    request: Request,
    reply: oneshot::Sender<Reply>,
}

/// A place in the next write to an enclave.
pub struct SendSlot<'a> {
    enclave: &'a Enclave,
    turn: mpsc::Permit<'a, Outgoing>,
    _in_flight: SemaphorePermit<'a>,
}

impl SendSlot<'_> {
    /// Asks the enclave and waits for its reply, until then.
    pub async fn call(self, request: Request, until: Instant) -> Result<Reply, Unavailable> {
        let _one_of_its_key = match &request {
            Request::Sign(asked) => Some(self.enclave.shared.one_of(asked.public_key).ok_or(Unavailable::Busy)?),
            _ => None,
        };
        let (reply, answer) = oneshot::channel();
        self.turn.send(Outgoing { request, reply });
        match timeout_at(until, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(Unavailable::Away),
            Err(_) => Err(Unavailable::TimedOut),
        }
    }
}

impl Enclave {
    /// Keeps `connections` connections to `address` from now on. One that is asked and gives no reply for `stall` is made anew.
    pub fn connect(address: &Address, connections: usize, max_in_flight: usize, stall: Duration) -> Self {
        let (lanes, queues): (Vec<_>, Vec<_>) = (0..connections)
            .map(|_| {
                let (queue, queued) = mpsc::channel(BATCH);
                (Connection { queue, up: false.into() }, queued)
            })
            .unzip();
        let shared = Arc::new(Shared {
            lanes,
            next: AtomicUsize::new(0),
            in_flight: Semaphore::new(max_in_flight),
            max_in_flight,
            by_key: Mutex::default(),
            stall,
            info: RwLock::new(None),
            starting: RwLock::new(None),
            address: address.clone(),
            command: tokio::sync::Mutex::new(()),
        });
        for (number, queued) in queues.into_iter().enumerate() {
            tokio::spawn(keep_up(number, address.clone(), Arc::clone(&shared), queued));
        }
        Self { shared }
    }

    /// A place among the requests in flight, and in the next write: what is asked with it goes out at once. It is waited for while the
    /// enclave takes nothing; nothing where there is no connection.
    pub async fn place(&self, until: Instant) -> Result<Option<SendSlot<'_>>, Unavailable> {
        // Shedding load here keeps the latency of those that are in.
        let in_flight = self.shared.in_flight.try_acquire().map_err(|_| Unavailable::Busy)?;
        let Some(lane) = self.shared.pick() else { return Ok(None) };
        match timeout_at(until, lane.queue.reserve()).await {
            Ok(turn) => Ok(turn.ok().map(|turn| SendSlot { enclave: self, turn, _in_flight: in_flight })),
            Err(_) => Err(Unavailable::TimedOut),
        }
    }

    /// Asks the enclave and waits for its reply, as long as a connection may be without one.
    pub async fn call(&self, request: Request) -> Result<Reply, Unavailable> {
        self.call_until(request, Instant::now() + self.shared.stall).await
    }

    /// The same, until then.
    pub async fn call_until(&self, request: Request, until: Instant) -> Result<Reply, Unavailable> {
        match self.place(until).await? {
            Some(place) => place.call(request, until).await,
            None => self.starting().map(Reply::Refused).ok_or(Unavailable::Away),
        }
    }

    /// A connection that gives no reply for so long is made anew.
    pub(crate) fn stall(&self) -> Duration {
        self.shared.stall
    }

    /// Asks it over a connection of its own whether it would sign: what waits on the others must not make it look dead.
    pub(crate) fn observer(&self) -> Observer {
        Observer { enclave: self.clone(), stream: None, was_unknown: false }
    }

    /// What the enclave has said about itself.
    pub(crate) fn learn(&self, info: Info) {
        let mut known = self.shared.info.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != Some(&info) {
            *known = Some(Arc::new(info));
        }
    }

    /// Has an operators' command carried out, or the fence handed over. It goes over a connection of its own: it may wait for KMS,
    /// and must neither hold up signatures nor look like an enclave that hangs.
    pub async fn call_exclusive(&self, request: Request) -> Result<Reply, Unavailable> {
        let Ok(_alone) = self.shared.command.try_lock() else { return Ok(Reply::Refused(Refusal::CommandBusy)) };
        let exchange = async {
            let (mut stream, _) = match open(&self.shared.address).await? {
                Ok(opened) => opened,
                Err(refusal) => return Ok::<_, io::Error>(Reply::Refused(refusal)),
            };
            let reply = ask(&mut stream, request).await?;
            if let Ok(Reply::Info(info)) = ask(&mut stream, Request::Info).await {
                *self.shared.info.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(info));
            }
            Ok(reply)
        };
        match timeout(COMMAND_TIMEOUT, exchange).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                warn!(%error, "the connection for a command has failed");
                Err(Unavailable::Away)
            }
            Err(_) => Err(Unavailable::TimedOut),
        }
    }

    /// Why the enclave is reached and does not serve.
    pub fn starting(&self) -> Option<Refusal> {
        *self.shared.starting.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the enclave said about itself, while it is connected.
    pub fn info(&self) -> Option<Arc<Info>> {
        let connected = self.shared.lanes.iter().any(|lane| lane.up.load(Ordering::Acquire));
        connected.then(|| self.shared.info.read().unwrap_or_else(PoisonError::into_inner).clone()).flatten()
    }

    /// Resolves once the enclave is connected.
    pub async fn connected(&self) {
        while self.info().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many of the connections are up.
    pub fn connections_up(&self) -> usize {
        self.shared.lanes.iter().filter(|lane| lane.up.load(Ordering::Acquire)).count()
    }
}

/// Asks one enclave again and again what it would sign.
pub(crate) struct Observer {
    enclave: Enclave,
    /// The connection, and whether this enclave is asked for more there than who it is.
    stream: Option<(Box<dyn Stream>, bool)>,
    /// The last connection was ended by that question, as an image does that is older than this proxy. The next one is spared it; a later
    /// one may be another image's.
    was_unknown: bool,
}

impl Observer {
    /// What it says; nothing where there is no connection. Whoever gives this up ends the connection: an enclave that was frozen for a
    /// moment answers on the one that it has.
    pub(crate) async fn ask(&mut self) -> Option<Readiness> {
        let (mut stream, asks) = if let Some(open) = self.stream.take() {
            open
        } else {
            let stream = open(&self.enclave.shared.address).await.ok()?.ok()?.0;
            (stream, !std::mem::take(&mut self.was_unknown))
        };
        let Ok(Reply::Info(info)) = ask(&mut stream, Request::Info).await else { return None };
        let by_info = Readiness::from_standing(info.standing, info.keys);
        self.enclave.learn(info);
        if !asks {
            self.stream = Some((stream, asks));
            return Some(by_info);
        }
        match ask(&mut stream, Request::Readiness).await {
            Ok(Reply::Readiness(readiness)) => {
                self.stream = Some((stream, asks));
                Some(readiness)
            }
            Ok(Reply::Refused(Refusal::MalformedFrame(_))) => {
                self.was_unknown = true;
                Some(by_info)
            }
            _ => None,
        }
    }
}

/// A signature in flight, counted until it is dropped.
struct OneOf<'a> {
    by_key: &'a Mutex<HashMap<PublicKey, usize>>,
    key: PublicKey,
}

impl Drop for OneOf<'_> {
    fn drop(&mut self) {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_key.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                by_key.remove(&self.key);
            }
        }
    }
}

impl Shared {
    /// Counts one more of this key. Nothing where the key has its share already: while more than half of all places are taken, a
    /// sixteenth of them, so that no key keeps the others out.
    fn one_of(&self, key: PublicKey) -> Option<OneOf<'_>> {
        let crowded = self.in_flight.available_permits() < self.max_in_flight / 2;
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_key.entry(key).or_default();
        if crowded && *count >= (self.max_in_flight / 16).max(1) {
            return None;
        }
        *count = count.saturating_add(1);
        Some(OneOf { by_key: &self.by_key, key })
    }

    /// The next lane that is up, in turn.
    fn pick(&self) -> Option<&Connection> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        (0..self.lanes.len())
            .filter_map(|i| self.lanes.get(first.wrapping_add(i) % self.lanes.len()))
            .find(|lane| lane.up.load(Ordering::Acquire))
    }
}

async fn keep_up(number: usize, address: Address, shared: Arc<Shared>, mut queued: mpsc::Receiver<Outgoing>) {
    let Some(lane) = shared.lanes.get(number) else { return };
    let mut backoff = MIN_BACKOFF;
    let mut complained = false;
    loop {
        match timeout(CONNECT_TIMEOUT, open(&address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Err(refusal)) => {
                let mut starting = shared.starting.write().unwrap_or_else(PoisonError::into_inner);
                if *starting != Some(refusal) {
                    info!(%address, "{refusal}");
                    *starting = Some(refusal);
                }
            }
            Ok(Ok((stream, enclave))) => {
                *shared.starting.write().unwrap_or_else(PoisonError::into_inner) = None;
                if number == 0 || complained {
                    info!(%address, network = enclave.network.name(), keys = enclave.keys, "connected to the enclave");
                }
                *shared.info.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(enclave));
                (backoff, complained) = (MIN_BACKOFF, false);
                lane.up.store(true, Ordering::Release);
                let error = serve(stream, &mut queued, shared.stall).await;
                lane.up.store(false, Ordering::Release);
                warn!(%address, %error, "the connection to the enclave has ended");
            }
            Err(error) => {
                *shared.starting.write().unwrap_or_else(PoisonError::into_inner) = None;
                if !complained {
                    warn!(%address, %error, "no connection to the enclave; trying again until there is one");
                    complained = true;
                }
            }
        }
        // Anyone who slipped in while the connection went away hears so now.
        while queued.try_recv().is_ok() {}
        if queued.is_closed() {
            return;
        }
        sleep(backoff).await;
        backoff = backoff.saturating_mul(2).min(MAX_BACKOFF);
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects and asks the enclave who it is; it may refuse to say.
async fn open(address: &Address) -> io::Result<Result<(Box<dyn Stream>, Info), Refusal>> {
    let mut stream: Box<dyn Stream> = match address {
        Address::Unix(path) => Box::new(Socket::new(UnixStream::connect(path).await?.into_std()?)?),
        Address::Vsock { cid, port } => Box::new(VsockStream::connect(VsockAddr::new(*cid, *port)).await?),
        Address::Hybrid { path, port } => {
            let mut stream = BufReader::new(UnixStream::connect(path).await?);
            stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
            let mut answer = String::new();
            (&mut stream).take(64).read_line(&mut answer).await?;
            if !answer.starts_with("OK ") {
                return Err(io::Error::other(format!("the vsock device answered {answer:?}")));
            }
            // The guest speaks only when asked: nothing can be buffered behind the answer.
            Box::new(Socket::new(stream.into_inner().into_std()?)?)
        }
    };
    match ask(&mut stream, Request::Info).await? {
        Reply::Info(info) => Ok(Ok((stream, info))),
        Reply::Refused(refusal) => Ok(Err(refusal)),
        other => Err(invalid(format!("the enclave did not say who it is, but {other:?}"))),
    }
}

/// One question and its answer, over a connection on which nothing else is asked.
async fn ask(stream: &mut Box<dyn Stream>, request: Request) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    frame::encode_request(&RequestFrame::new(0, request), &mut bytes);
    stream.write_all(&bytes).await?;
    let mut buffer = BytesMut::new();
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((frame, _)) = frame::split(&buffer, MAX_COMMAND_FRAME_LEN).map_err(invalid)? {
            return Ok(frame::decode_reply(frame).map_err(invalid)?.reply);
        }
    }
}

/// Requests that wait for their replies, and when the enclave last gave one.
struct Waiting {
    by_id: HashMap<u64, oneshot::Sender<Reply>>,
    progress: Instant,
}

/// Serves the lane's queue over one connection, until it ends; the error says why.
async fn serve(stream: Box<dyn Stream>, queued: &mut mpsc::Receiver<Outgoing>, patience: Duration) -> io::Error {
    let (reader, writer) = tokio::io::split(stream);
    let waiting = Mutex::new(Waiting { by_id: HashMap::new(), progress: Instant::now() });
    tokio::select! {
        ended = write(writer, queued, &waiting) => ended,
        ended = read(reader, &waiting) => ended,
        () = stall(&waiting, patience) => Err(io::Error::new(io::ErrorKind::TimedOut, "the enclave does not answer")),
    }
    .err()
    .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Resolves when requests have waited for so long without any reply: a hung enclave must not count as up.
async fn stall(waiting: &Mutex<Waiting>, patience: Duration) {
    loop {
        sleep((patience / 4).max(Duration::from_millis(10))).await;
        let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.by_id.is_empty() && waiting.progress.elapsed() > patience {
            return;
        }
    }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    queued: &mut mpsc::Receiver<Outgoing>,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    let mut id: u64 = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let mut bytes = Vec::new();
    while queued.recv_many(&mut batch, BATCH).await > 0 {
        bytes.clear();
        {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.by_id.is_empty() {
                waiting.progress = Instant::now();
            }
            for outgoing in batch.drain(..).filter(|outgoing| !outgoing.reply.is_closed()) {
                id = id.wrapping_add(1);
                let start = bytes.len();
                frame::encode_request(&RequestFrame::new(id, outgoing.request), &mut bytes);
                // Too long a frame would cost everyone the connection; its asker alone hears that it failed.
                if bytes.len().saturating_sub(start) > MAX_FRAME_LEN {
                    bytes.truncate(start);
                    continue;
                }
                waiting.by_id.insert(id, outgoing.reply);
            }
        }
        writer.write_all(&bytes).await?;
    }
    Ok(())
}

async fn read(mut reader: impl AsyncRead + Unpin, waiting: &Mutex<Waiting>) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_LEN);
    loop {
        buffer.reserve(READ_LEN);
        if reader.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let now = Instant::now();
        while let Some((frame, len)) = frame::split(&buffer, MAX_FRAME_LEN).map_err(invalid)? {
            let reply = frame::decode_reply(frame).map_err(invalid)?;
            let asker = {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.progress = now;
                waiting.by_id.remove(&reply.id)
            };
            if let Some(asker) = asker {
                let _ = asker.send(reply.reply);
            }
            buffer.advance(len);
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use casemate_protocol::{AttestationData, Checkpoint, Duty, Epoch, ReplyFrame, Root, SignRequest, Slot};
    use tokio::net::UnixListener;

    use super::*;

    fn info() -> Info {
        let network = casemate_config::parse(casemate_config::NAMED[0].1).unwrap();
        let standing = casemate_protocol::statement::StatedStatus::NoStore;
        Info { network, keys: 2, keys_without_history: 0, standing, key_manager_delete: false }
    }

    fn request(key: u8) -> Request {
        let checkpoint = Checkpoint { epoch: Epoch(0), root: Root::ZERO };
        let data = AttestationData {
            slot: Slot(0),
            index: 0,
            beacon_block_root: Root::ZERO,
            source: checkpoint,
            target: checkpoint,
        };
        Request::Sign(SignRequest {
            public_key: PublicKey::from([key; 48]),
            duty: Duty::Attestation(data),
            fork_info: None,
            signing_root: None,
            proofs: Vec::new(),
        })
    }

    #[tokio::test]
    async fn a_key_that_asks_too_much_leaves_places_to_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("enclave.sock");
        let listener = UnixListener::bind(&path).unwrap();
        // It says who it is, and then nothing.
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = BytesMut::new();
            while stream.read_buf(&mut buffer).await.unwrap() > 0 {
                if let Ok(Some((asked, _))) = frame::split(&buffer, MAX_FRAME_LEN)
                    && let Ok(asked) = frame::decode_request(asked)
                    && asked.request == Request::Info
                {
                    let mut bytes = Vec::new();
                    frame::encode_reply(&ReplyFrame::new(asked.id, Reply::Info(info())), &mut bytes);
                    stream.write_all(&bytes).await.unwrap();
                    buffer.clear();
                }
            }
        });
        let max_in_flight = 32;
        let enclave = Enclave::connect(&Address::Unix(path), 1, max_in_flight, Duration::from_mins(1));
        enclave.connected().await;
        let ask = |key: u8| {
            let enclave = enclave.clone();
            tokio::spawn(async move { enclave.call(request(key)).await })
        };
        let settle = || sleep(Duration::from_millis(50));

        // Up to half of all places one key may have; the one that makes it more than half has its share long since.
        let mut first: Vec<_> = (0..17).map(|_| ask(1)).collect();
        settle().await;
        let refused = first.iter().filter(|asked| asked.is_finished()).count();
        assert_eq!(refused, 1);
        let refused = first.extract_if(.., |asked| asked.is_finished()).next().unwrap();
        assert_eq!(refused.await.unwrap(), Err(Unavailable::Busy));
        // Another key has its share, and no more.
        let second: Vec<_> = (0..3).map(|_| ask(2)).collect();
        settle().await;
        assert_eq!(second.iter().filter(|asked| asked.is_finished()).count(), 1);
        // Who hangs up gives his place back.
        first.iter().for_each(tokio::task::JoinHandle::abort);
        settle().await;
        let third: Vec<_> = (0..8).map(|_| ask(1)).collect();
        settle().await;
        assert!(third.iter().all(|asked| !asked.is_finished()));
    }

    /// Answers each request of a connection, until there is no answer or it is the last one.
    async fn answer_requests(stream: &mut UnixStream, answers: impl Fn(&Request) -> Option<(Reply, bool)>) {
        let mut buffer = BytesMut::new();
        while stream.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
            while let Ok(Some((asked, len))) = frame::split(&buffer, MAX_FRAME_LEN) {
                let asked = frame::decode_request(asked).unwrap();
                buffer.advance(len);
                let Some((reply, last)) = answers(&asked.request) else { return };
                let mut bytes = Vec::new();
                frame::encode_reply(&ReplyFrame::new(asked.id, reply), &mut bytes);
                stream.write_all(&bytes).await.unwrap();
                if last {
                    return;
                }
            }
        }
    }

    #[tokio::test]
    async fn an_older_image_is_spared_a_question_that_it_does_not_know_and_the_next_image_is_asked_again() {
        use casemate_protocol::refusal::{MalformedFrame, StoreTrouble};
        use casemate_protocol::statement::StatedStatus;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("enclave.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let said = Readiness {
            store_answered_ms: Some(7),
            silence: Some(casemate_protocol::may_sign::Silence { ms: 1, trouble: StoreTrouble::Away }),
            ..Readiness::from_standing(StatedStatus::Holding, 2)
        };
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            for connection in 0..4_usize {
                let (mut stream, _) = listener.accept().await.unwrap();
                let log = Arc::clone(&log);
                let infos = AtomicUsize::new(0);
                answer_requests(&mut stream, |request| {
                    log.lock().unwrap().push((connection, matches!(request, Request::Readiness)));
                    match (request, connection) {
                        // The old image takes four questions on its second connection, and then it is exchanged.
                        (Request::Info, 1) => Some((Reply::Info(info()), infos.fetch_add(1, Ordering::Relaxed) == 3)),
                        (Request::Info, _) => Some((Reply::Info(info()), false)),
                        (_, 0 | 1) => Some((Reply::Refused(Refusal::MalformedFrame(MalformedFrame::Encoding)), true)),
                        _ => Some((Reply::Readiness(said), false)),
                    }
                })
                .await;
            }
        });
        // Without connections of its own: only the observer's are counted.
        let mut observer = Enclave::connect(&Address::Unix(path), 0, 8, Duration::from_mins(1)).observer();
        let by_info = Readiness::from_standing(StatedStatus::NoStore, 2);
        assert_eq!(observer.ask().await, Some(by_info), "what it says without that question");
        for _ in 0..3 {
            assert_eq!(observer.ask().await, Some(by_info));
        }
        // The connection has ended with the image; the new one knows the question.
        while observer.ask().await != Some(said) {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(observer.ask().await, Some(said));
        let asked = asked.lock().unwrap();
        let readiness = |connection: usize| asked.iter().filter(|one| **one == (connection, true)).count();
        assert_eq!((readiness(0), readiness(1)), (1, 0));
    }
}
