//! The network compartment: accepts connections and passes frames to the vault without opening them.
//!
//! It reads lengths and nothing else. Each connection gets a channel number, which goes in front of its frames on the
//! one socket to the vault; a reply comes back with the number of its connection. Nothing here is trusted with a key:
//! taken over, it can refuse service.
//!
//! Every queue is bounded: a connection has at most [`IN_FLIGHT`] requests outstanding and is not read from beyond
//! that; all connections share one short queue to the vault; a connection that leaves [`UNREAD_BYTES`] of replies
//! unread is closed.
//!
//! ```
//! # use casemate_protocol::address::Address;
//! let folder = std::env::temp_dir().join(format!("casemate-doc-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let address: Address = format!("unix:{}", folder.join("broker.sock").display()).parse().expect("an address");
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! // Listening is the one thing that the broker does before its sandbox closes.
//! assert!(casemate_broker::Listener::bind(&address).is_ok());
//! # });
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<_, std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod kms;
pub mod parent;
pub mod services;

use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Buf, BytesMut};
use casemate_protocol::address::Address;
use casemate_protocol::broker::{self, CHANNEL, Numbered};
use casemate_protocol::frame::{self, CHANNEL_LEN, LENGTH_LEN, MAX_COMMAND_FRAME_LEN, MAX_FRAME_LEN};
use casemate_protocol::{FrameError, Refusal, Reply, ReplyFrame};
use casemate_socket::Socket;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use tracing::{debug, info, warn};

use crate::kms::Conversation;
use crate::services::Services;

/// Requests that one connection may have outstanding.
pub const IN_FLIGHT: usize = 2048;
/// Bytes of replies that one connection may leave unread.
pub const UNREAD_BYTES: usize = 1024 * 1024;
/// Connections at once.
pub const MAX_CONNECTIONS: usize = 64;
/// Batches of frames that wait for the vault, from all connections together; each is at most a read's worth.
const VAULT_QUEUE: usize = 64;
/// Frames passed on at once; far fewer than [`IN_FLIGHT`].
const BATCH: u32 = 512;
/// Connections that may be sending a frame longer than [`MAX_FRAME_LEN`], an operators' command, at once.
const LONG_FRAMES: usize = 2;
/// Wait after a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes read at once.
const READ_LEN: usize = 64 * 1024;

/// Where the parent's connections arrive.
pub enum Listener {
    /// A Unix socket: the development stack.
    Unix(UnixListener),
    /// From any CID: only the parent can reach an enclave.
    Vsock(VsockListener),
}

impl Listener {
    /// Starts to listen. Needs a runtime.
    pub fn bind(listen: &Address) -> Result<Self> {
        let told = || format!("listening on {listen}");
        let listener = match listen {
            Address::Unix(path) => {
                // A socket left behind by a process that was killed would refuse the next one.
                if path.exists() && StdUnixStream::connect(path).is_err() {
                    std::fs::remove_file(path).with_context(|| format!("removing the stale {}", path.display()))?;
                }
                Self::Unix(UnixListener::bind(path).with_context(told)?)
            }
            Address::Vsock { port, .. } => {
                Self::Vsock(VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port)).with_context(told)?)
            }
            Address::Hybrid { .. } => {
                bail!("{listen} is the parent's side of a vsock device; an enclave listens on vsock:CID:PORT")
            }
        };
        info!(%listen, "broker listening");
        Ok(listener)
    }
}

/// Serves connections until the vault closes `vault`. Without services, the vault's calls fail.
pub async fn run(listener: Listener, vault: StdUnixStream, services: Option<Arc<Services>>) -> Result<()> {
    let vault = Socket::new(vault).context("the socket to the vault")?;
    let (from_vault, to_vault) = tokio::io::split(vault);
    let connections = Arc::new(Connections::default());
    let (requests, queued) = mpsc::channel(VAULT_QUEUE);
    let to_vault_queue = Requests { queue: requests.clone(), long: Arc::new(Semaphore::new(LONG_FRAMES)) };

    let writing = tokio::spawn(write_to_vault(to_vault, queued));
    let calls = VaultCalls { services, answers: requests.clone(), conversations: Arc::default() };
    let reading = tokio::spawn(read_from_vault(from_vault, Arc::clone(&connections), calls));
    let accepting = accept(listener, connections, to_vault_queue);
    tokio::select! {
        ended = accepting => ended,
        _ = writing => bail!("the vault no longer takes requests"),
        ended = reading => ended.context("the reader ended")?.and_then(|()| bail!("the vault has closed its socket")),
    }
}

/// The way to the vault for every connection.
#[derive(Clone)]
struct Requests {
    queue: mpsc::Sender<Vec<u8>>,
    /// A permit for each long frame, so that the memory of all connections is bounded.
    long: Arc<Semaphore>,
}

#[derive(Default)]
struct Connections {
    open: Mutex<HashMap<u64, Connection>>,
}

struct Connection {
    replies: mpsc::UnboundedSender<Replies>,
    unread: Arc<AtomicUsize>,
    /// Tells the connection to end.
    end: mpsc::UnboundedSender<End>,
}

/// How a connection ends before its peer ends it.
enum End {
    /// By the vault's order: what is outstanding is answered first.
    InOrder,
    /// It does not read its replies.
    AtOnce,
}

/// Replies of one connection, one after the other with their lengths.
#[derive(Default)]
struct Replies {
    bytes: Vec<u8>,
    count: usize,
    /// The vault orders the connection closed.
    close: bool,
}

/// Longest wait for outstanding replies of a connection that ends.
const END_TIMEOUT: Duration = Duration::from_secs(10);

async fn accept(listener: Listener, connections: Arc<Connections>, requests: Requests) -> Result<()> {
    let mut channel: u64 = 0;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut serve = |stream: Stream| {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            warn!(max = MAX_CONNECTIONS, "connection refused: too many");
            return;
        };
        channel = channel.wrapping_add(1);
        let (connections, requests) = (Arc::clone(&connections), requests.clone());
        match stream {
            Stream::Unix(stream) => drop(tokio::spawn(connection(channel, stream, connections, requests, place))),
            Stream::Vsock(stream) => drop(tokio::spawn(connection(channel, stream, connections, requests, place))),
        }
    };
    match listener {
        Listener::Unix(listener) => loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.into_std().and_then(Socket::new) {
                    Ok(stream) => serve(Stream::Unix(stream)),
                    Err(error) => refused(&error).await,
                },
                Err(error) => refused(&error).await,
            }
        },
        Listener::Vsock(listener) => loop {
            match listener.accept().await {
                Ok((stream, _)) => serve(Stream::Vsock(stream)),
                Err(error) => refused(&error).await,
            }
        },
    }
}

/// A connection that is gone before it is taken, or a moment without memory, ends nothing: the others go on.
async fn refused(error: &std::io::Error) {
    warn!(%error, "accepting a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

enum Stream {
    Unix(Socket),
    Vsock(tokio_vsock::VsockStream),
}

async fn connection(
    channel: u64,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    connections: Arc<Connections>,
    requests: Requests,
    _place: OwnedSemaphorePermit,
) {
    let (reader, writer) = tokio::io::split(stream);
    let (replies, queued) = mpsc::unbounded_channel();
    let (end, mut ended) = mpsc::unbounded_channel();
    let unread = Arc::new(AtomicUsize::new(0));
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    let entry = Connection { replies: replies.clone(), unread: Arc::clone(&unread), end };
    connections.lock().insert(channel, entry);
    let mut writing = tokio::spawn(write_replies(writer, queued, Arc::clone(&unread), Arc::clone(&permits)));
    let mut refused = None;
    let mut end = tokio::select! {
        broken = read_requests(channel, reader, &requests, &permits) => {
            refused = broken;
            Some(End::InOrder)
        }
        end = ended.recv() => end,
        // The peer is gone.
        _ = &mut writing => None,
    };
    if matches!(end, Some(End::InOrder)) {
        // All permits are back when all replies are written.
        let answered = permits.acquire_many(u32::try_from(IN_FLIGHT).unwrap_or(u32::MAX));
        tokio::select! {
            _ = timeout(END_TIMEOUT, answered) => {}
            () = told_at_once(&mut ended) => end = Some(End::AtOnce),
            _ = &mut writing => {}
        }
    }
    if let Some(error) = refused {
        warn!(channel, %error, "connection closed");
        let mut bytes = Vec::new();
        let refused = Reply::Refused(Refusal::MalformedFrame(error.0));
        frame::encode_reply(&ReplyFrame::new(0, refused), &mut bytes);
        unread.fetch_add(bytes.len(), Ordering::Relaxed);
        let _ = replies.send(Replies { bytes, ..Replies::default() });
    }
    connections.lock().remove(&channel);
    // Without senders the writer ends behind what is queued; a peer that does not read ends it here.
    drop(replies);
    let at_once = matches!(end, Some(End::AtOnce));
    if !writing.is_finished() && (at_once || timeout(END_TIMEOUT, &mut writing).await.is_err()) {
        writing.abort();
    }
}

/// Resolves on the order to end at once. More orders to end in order change nothing: each malformed frame brings one.
async fn told_at_once(ended: &mut mpsc::UnboundedReceiver<End>) {
    while let Some(end) = ended.recv().await {
        if matches!(end, End::AtOnce) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Reads frames and passes them on, until the connection ends (`None`) or breaks the framing.
async fn read_requests(
    channel: u64,
    mut reader: impl AsyncRead + Unpin,
    requests: &Requests,
    permits: &Semaphore,
) -> Option<FrameError> {
    let mut buffer = BytesMut::with_capacity(READ_LEN);
    let mut long = None;
    loop {
        if long.is_none() && announces_long(&buffer) {
            long = Some(requests.long.acquire().await.ok()?);
        }
        buffer.reserve(READ_LEN);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) => {
                debug!(channel, error = %e, "connection lost");
                return None;
            }
        }
        loop {
            let mut batch = Vec::new();
            let mut count = 0;
            let mut broken = None;
            while count < BATCH {
                match frame::split(&buffer, MAX_COMMAND_FRAME_LEN) {
                    Ok(Some((frame, len))) => {
                        frame::encode_channel_frame(channel, frame, &mut batch);
                        buffer.advance(len);
                        count = count.saturating_add(1);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            // Waiting here is the back-pressure: a connection with too much outstanding is not read from.
            if count > 0 {
                permits.acquire_many(count).await.ok()?.forget();
                requests.queue.send(batch).await.ok()?;
                long = None;
            }
            if broken.is_some() {
                return broken;
            }
            if count < BATCH {
                break;
            }
        }
    }
}

/// Whether the frame that begins here is an operators' command by its length.
fn announces_long(buffer: &[u8]) -> bool {
    let length = buffer.first_chunk::<LENGTH_LEN>().map(|length| u32::from_be_bytes(*length));
    length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > MAX_FRAME_LEN))
}

async fn write_replies(
    mut writer: impl AsyncWrite + Unpin,
    mut queued: mpsc::UnboundedReceiver<Replies>,
    unread: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
) {
    while let Some(replies) = queued.recv().await {
        if writer.write_all(&replies.bytes).await.is_err() {
            return;
        }
        unread.fetch_sub(replies.bytes.len(), Ordering::Relaxed);
        permits.add_permits(replies.count);
    }
    let _ = writer.shutdown().await;
}

async fn write_to_vault(mut vault: impl AsyncWrite + Unpin, mut queued: mpsc::Receiver<Vec<u8>>) {
    let mut batches = Vec::with_capacity(VAULT_QUEUE);
    let mut bytes = Vec::new();
    while queued.recv_many(&mut batches, VAULT_QUEUE).await > 0 {
        bytes.clear();
        for batch in batches.drain(..) {
            bytes.extend_from_slice(&batch);
        }
        if vault.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What the vault asks for on channel 0.
struct VaultCalls {
    services: Option<Arc<Services>>,
    /// To the vault, like the parent's requests.
    answers: mpsc::Sender<Vec<u8>>,
    /// Calls under way, in which the vault may say more.
    conversations: Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<broker::BrokerRequest>>>>,
}

impl VaultCalls {
    /// Each in a task of its own: KMS takes its time, and the vault's replies must not wait for it.
    fn carry_out(&self, frame: &[u8]) -> Result<(), FrameError> {
        use broker::BrokerRequest::{Close, NoResponse, Response, TlsOut};

        let Numbered { id, content: call, .. } = broker::decode_request(frame)?;
        if matches!(call, TlsOut { .. } | Response { .. } | NoResponse { .. } | Close) {
            // To a call that has ended nothing more is said.
            if let Some(conversation) = self.lock().get(&id) {
                let _ = conversation.send(call);
            }
            return Ok(());
        }
        let (services, answers) = (self.services.clone(), self.answers.clone());
        let (says, said) = mpsc::unbounded_channel();
        self.lock().insert(id, says);
        let conversations = Arc::clone(&self.conversations);
        tokio::spawn(async move {
            let answer = match services {
                Some(services) => services.answer(call, Conversation::new(id, answers.clone(), said)).await,
                None => broker::BrokerReply::Failed(broker::Failure::Refused),
            };
            conversations.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            let mut bytes = Vec::new();
            broker::encode(id, &answer, &mut bytes);
            let _ = answers.send(bytes).await;
        });
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, mpsc::UnboundedSender<broker::BrokerRequest>>> {
        self.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_from_vault(
    mut vault: impl AsyncRead + Unpin,
    connections: Arc<Connections>,
    vault_calls: VaultCalls,
) -> Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_LEN);
    let mut by_channel: HashMap<u64, Replies> = HashMap::new();
    loop {
        buffer.reserve(READ_LEN);
        if vault.read_buf(&mut buffer).await.context("reading from the vault")? == 0 {
            return Ok(());
        }
        while let Some((inner, len)) =
            frame::split(&buffer, CHANNEL_LEN + MAX_COMMAND_FRAME_LEN).context("the vault broke the framing")?
        {
            let (channel, frame) = frame::split_channel(inner).context("the vault broke the framing")?;
            if channel == CHANNEL {
                vault_calls.carry_out(frame).context("the vault broke the framing")?;
                buffer.advance(len);
                continue;
            }
            let replies = by_channel.entry(channel).or_default();
            if frame.is_empty() {
                replies.close = true;
            } else {
                let length = u32::try_from(frame.len()).context("a frame longer than its length can say")?;
                replies.bytes.extend_from_slice(&length.to_be_bytes());
                replies.bytes.extend_from_slice(frame);
                replies.count = replies.count.saturating_add(1);
            }
            buffer.advance(len);
        }
        for (channel, replies) in by_channel.drain() {
            connections.deliver(channel, replies);
        }
    }
}

impl Connections {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, channel: u64, replies: Replies) {
        let mut open = self.lock();
        // A connection that is gone wants no replies.
        let Some(connection) = open.get(&channel) else { return };
        let waiting = connection.unread.fetch_add(replies.bytes.len(), Ordering::Relaxed);
        let too_much = waiting.saturating_add(replies.bytes.len()) > UNREAD_BYTES;
        if replies.close {
            let _ = connection.end.send(End::InOrder);
        }
        let _ = connection.replies.send(replies);
        if too_much {
            warn!(channel, max = UNREAD_BYTES, "connection closed: it does not read its replies");
            let _ = connection.end.send(End::AtOnce);
            open.remove(&channel);
        }
    }
}
