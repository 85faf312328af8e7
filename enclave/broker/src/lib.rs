//! The network compartment: accepts connections and passes frames to the vault without opening them.
//!
//! It reads lengths and nothing else. Each connection gets a channel number, which goes in front of its frames on the
//! one socket to the vault; a reply comes back with the number of its connection. Nothing here is trusted with a key:
//! taken over, it can refuse service.
//!
//! Every queue is bounded: a connection has at most [`IN_FLIGHT`] requests outstanding and is not read from beyond
//! that; all connections share one short queue to the vault; a connection that leaves [`UNREAD_BYTES`] of replies
//! unread is closed.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BytesMut};
use casemate_protocol::address::Address;
use casemate_protocol::frame::{self, CHANNEL_LEN, MAX_FRAME_LEN};
use casemate_protocol::{Refusal, Reply, ReplyFrame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use tracing::{debug, info, warn};

/// Requests that one connection may have outstanding.
pub const IN_FLIGHT: usize = 2048;
/// Bytes of replies that one connection may leave unread.
pub const UNREAD_BYTES: usize = 1024 * 1024;
/// Connections at once.
pub const MAX_CONNECTIONS: usize = 64;
/// Batches of frames that wait for the vault, from all connections together; each is at most a read's worth.
const VAULT_QUEUE: usize = 64;
/// Bytes read at once.
const READ_LEN: usize = 64 * 1024;

/// Serves connections on `listen` until the vault closes `vault`.
pub async fn run(listen: &Address, vault: StdUnixStream) -> Result<()> {
    vault.set_nonblocking(true).context("the socket to the vault")?;
    let vault = tokio::net::UnixStream::from_std(vault).context("the socket to the vault")?;
    let (from_vault, to_vault) = vault.into_split();
    let connections = Arc::new(Connections::default());
    let (requests, queued) = mpsc::channel(VAULT_QUEUE);

    let writing = tokio::spawn(write_to_vault(to_vault, queued));
    let reading = tokio::spawn(read_from_vault(from_vault, Arc::clone(&connections)));
    let accepting = accept(listen, connections, requests);
    tokio::select! {
        ended = accepting => ended,
        _ = writing => bail!("the vault no longer takes requests"),
        ended = reading => ended.context("the reader ended")?.and_then(|()| bail!("the vault has closed its socket")),
    }
}

#[derive(Default)]
struct Connections {
    open: Mutex<HashMap<u64, Connection>>,
}

struct Connection {
    replies: mpsc::UnboundedSender<Replies>,
    unread: Arc<AtomicUsize>,
    /// Dropped to close the connection.
    _open: oneshot::Sender<()>,
}

/// Replies of one connection, one after the other with their lengths.
#[derive(Default)]
struct Replies {
    bytes: Vec<u8>,
    count: usize,
    /// The vault orders the connection closed behind them.
    close: bool,
}

async fn accept(listen: &Address, connections: Arc<Connections>, requests: mpsc::Sender<Vec<u8>>) -> Result<()> {
    let mut channel: u64 = 0;
    let mut serve = |stream: Stream| {
        if connections.lock().len() >= MAX_CONNECTIONS {
            warn!(max = MAX_CONNECTIONS, "connection refused: too many");
            return;
        }
        channel = channel.wrapping_add(1);
        let (connections, requests) = (Arc::clone(&connections), requests.clone());
        match stream {
            Stream::Unix(stream) => drop(tokio::spawn(connection(channel, stream, connections, requests))),
            Stream::Vsock(stream) => drop(tokio::spawn(connection(channel, stream, connections, requests))),
        }
    };
    match listen {
        Address::Unix(path) => {
            // A socket left behind by a process that was killed would refuse the next one.
            if path.exists() && StdUnixStream::connect(path).is_err() {
                std::fs::remove_file(path).with_context(|| format!("removing the stale {}", path.display()))?;
            }
            let listener = UnixListener::bind(path).with_context(|| format!("listening on {listen}"))?;
            info!(%listen, "broker listening");
            loop {
                let (stream, _) = listener.accept().await.with_context(|| format!("accepting on {listen}"))?;
                serve(Stream::Unix(stream));
            }
        }
        Address::Vsock { port, .. } => {
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port))
                .with_context(|| format!("listening on {listen}"))?;
            info!(%listen, "broker listening");
            loop {
                let (stream, _) = listener.accept().await.with_context(|| format!("accepting on {listen}"))?;
                serve(Stream::Vsock(stream));
            }
        }
        Address::Hybrid { .. } => bail!("{listen} is the parent's side of a vsock device; an enclave listens on vsock:CID:PORT"),
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Vsock(tokio_vsock::VsockStream),
}

async fn connection(
    channel: u64,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    connections: Arc<Connections>,
    requests: mpsc::Sender<Vec<u8>>,
) {
    let (reader, writer) = tokio::io::split(stream);
    let (replies, queued) = mpsc::unbounded_channel();
    let (open, mut closed) = oneshot::channel();
    let unread = Arc::new(AtomicUsize::new(0));
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    let entry = Connection { replies: replies.clone(), unread: Arc::clone(&unread), _open: open };
    connections.lock().insert(channel, entry);
    let writing = tokio::spawn(write_replies(writer, queued, unread, Arc::clone(&permits)));
    let reading = read_requests(channel, reader, &requests, &permits, &replies);
    tokio::select! {
        () = reading => {}
        _ = &mut closed => debug!(channel, "connection closed on the vault's order"),
    }
    connections.lock().remove(&channel);
    // Replies that are still to come have lost their receiver; those that are here are written first.
    drop(replies);
    let _ = writing.await;
}

/// Reads frames and passes them on, until the connection ends or breaks the framing.
async fn read_requests(
    channel: u64,
    mut reader: impl AsyncRead + Unpin,
    requests: &mpsc::Sender<Vec<u8>>,
    permits: &Semaphore,
    replies: &mpsc::UnboundedSender<Replies>,
) {
    let mut buffer = BytesMut::with_capacity(READ_LEN);
    loop {
        buffer.reserve(READ_LEN);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) => {
                debug!(channel, error = %e, "connection lost");
                return;
            }
        }
        let mut batch = Vec::new();
        let mut count: u32 = 0;
        let ended = loop {
            match frame::split(&buffer, MAX_FRAME_LEN) {
                Ok(Some((frame, len))) => {
                    frame::encode_channel_frame(channel, frame, &mut batch);
                    buffer.advance(len);
                    count = count.saturating_add(1);
                }
                Ok(None) => break false,
                Err(error) => {
                    warn!(channel, %error, "connection closed");
                    let refused = ReplyFrame::new(0, Reply::Refused(Refusal::MalformedFrame(error.0)));
                    let mut bytes = Vec::new();
                    frame::encode_reply(&refused, &mut bytes);
                    let _ = replies.send(Replies { bytes, count: 0, close: true });
                    break true;
                }
            }
        };
        if count > 0 {
            // Waiting here is the back-pressure: a connection with too much outstanding is not read from.
            let Ok(permit) = permits.acquire_many(count).await else { return };
            permit.forget();
            if requests.send(batch).await.is_err() {
                return;
            }
        }
        if ended {
            return;
        }
    }
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
        if replies.close {
            let _ = writer.shutdown().await;
            return;
        }
    }
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

async fn read_from_vault(mut vault: impl AsyncRead + Unpin, connections: Arc<Connections>) -> Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_LEN);
    let mut by_channel: HashMap<u64, Replies> = HashMap::new();
    loop {
        buffer.reserve(READ_LEN);
        if vault.read_buf(&mut buffer).await.context("reading from the vault")? == 0 {
            return Ok(());
        }
        while let Some((inner, len)) =
            frame::split(&buffer, CHANNEL_LEN + MAX_FRAME_LEN).context("the vault broke the framing")?
        {
            let (channel, frame) = frame::split_channel(inner).context("the vault broke the framing")?;
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
        let close = replies.close;
        let _ = connection.replies.send(replies);
        if too_much {
            warn!(channel, max = UNREAD_BYTES, "connection closed: it does not read its replies");
        }
        if too_much || close {
            open.remove(&channel);
        }
    }
}
