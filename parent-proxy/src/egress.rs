//! The parent's side of what the enclave's broker asks: connections to an allow-list of hosts, credentials, and a disk for sealed blobs.
//!
//! Nothing here is trusted by the enclave. The allow-list protects the parent and its network from a broker that was taken over:
//! it reaches no hosts but those that the configuration names.

pub mod blobs;
pub mod credentials;
#[cfg(feature = "imds")]
mod imds;
pub mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use casemate_protocol::address::Address;
use casemate_protocol::frame::LENGTH_LEN;
use casemate_protocol::host_services::{self, HostReply, HostRequest, MAX_HOST_FRAME_LEN, MAX_TEXT_LEN};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use tracing::{debug, info, warn};

pub use blobs::{BlobStore, Blobs};
pub use credentials::Source;
pub use records::RecordFiles;

use crate::log_limit::LogLimit;

/// Connections at once over a Unix socket, and of each enclave over vsock.
const MAX_CONNECTIONS: usize = 64;
/// Frames with a blob that are read, worked on or written at once: each may take some 256 MiB, with what decoding makes of it.
const LARGE_FRAMES: usize = 1;
/// Longest wait for the enclave to take an answer. The broker waits no longer for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Before the next try where a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for a request, and for a host to accept.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest a relayed connection lives: a request to KMS takes seconds.
const MAX_RELAY: Duration = Duration::from_mins(10);

/// A host and port that the enclave may reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// A DNS name or an address, in lower case.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, port) = text.rsplit_once(':').with_context(|| format!("{text:?} is not of the form HOST:PORT"))?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).with_context(|| format!("{text:?} has no port"))?;
        if host.is_empty() || host.contains('=') {
            bail!("{text:?} has no host");
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A target that the enclave may reach, and where this host finds it: `HOST:PORT`, or `HOST:PORT=HOST:PORT` where it is at another
/// address, as with an endpoint of a VPC without private DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// As the enclave names it.
    pub target: Target,
    /// Where the connection goes.
    pub at: Target,
}

impl From<Target> for Allowed {
    fn from(target: Target) -> Self {
        Self { at: target.clone(), target }
    }
}

impl FromStr for Allowed {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((target, at)) => Ok(Self { target: target.parse()?, at: at.parse()? }),
            None => text.parse::<Target>().map(Self::from),
        }
    }
}

/// AWS credentials, handed to the enclave. They can at most refuse service.
#[derive(Clone)]
pub struct Credentials {
    /// Access key id.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// For temporary ones.
    pub session_token: Option<String>,
    /// Unix seconds.
    pub expires: Option<u64>,
}

/// Where credentials come from.
pub trait CredentialSource: Send + Sync {
    /// The ones in force.
    fn credentials(&self) -> impl Future<Output = Result<Credentials>> + Send;
}

/// Credentials that never change: for tests, and for the development stack.
#[derive(Clone)]
pub struct Static(pub Credentials);

impl CredentialSource for Static {
    async fn credentials(&self) -> Result<Credentials> {
        Ok(self.0.clone())
    }
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections to a target.
    pub connected: AtomicU64,
    /// Requests for a target that is not on the list.
    pub refused: AtomicU64,
    /// Targets that could not be reached.
    pub failed: AtomicU64,
    /// Credentials handed out.
    pub credentials: AtomicU64,
    /// Blobs that are on the disk.
    pub stored: AtomicU64,
}

/// What is logged of strangers and errors: each thing once a minute.
#[derive(Default)]
struct Log {
    accept: LogLimit<Option<i32>>,
    stranger: LogLimit<u32>,
    full: LogLimit<Option<u32>>,
}

/// The connections of an enclave; of all of them over a Unix socket.
struct Peer {
    cid: Option<u32>,
    places: Arc<Semaphore>,
    /// Held by the one that waits for its turn with a blob: so each enclave waits for one frame of each other, at most.
    blob: Arc<Semaphore>,
}

impl Peer {
    fn new(cid: Option<u32>) -> Arc<Self> {
        let places = |n| Arc::new(Semaphore::new(n));
        Arc::new(Self { cid, places: places(MAX_CONNECTIONS), blob: places(1) })
    }
}

/// Of an enclave, and of all.
type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// Descriptors that the egress of these enclaves may take: each connection goes on to a host.
pub fn descriptors(enclaves: &BTreeSet<u32>) -> usize {
    enclaves.len().max(1).saturating_mul(MAX_CONNECTIONS).saturating_mul(2)
}

/// The parent's services for one enclave.
pub struct Egress<C, B = BlobStore> {
    allowed: BTreeMap<Target, Target>,
    credentials: C,
    blobs: B,
    /// The fence's records, where this disk is trusted with them.
    records: Option<RecordFiles>,
    /// Whom vsock is for.
    enclaves: BTreeSet<u32>,
    large: Arc<Semaphore>,
    log: Log,
    /// For metrics.
    pub counters: Arc<Counters>,
}

impl<C: CredentialSource + 'static, B: Blobs> Egress<C, B> {
    /// Serves these and nothing else.
    pub fn new<A: Into<Allowed>>(allowed: impl IntoIterator<Item = A>, credentials: C, blobs: B) -> Self {
        let allowed = allowed.into_iter().map(Into::into).map(|Allowed { target, at }| (target, at)).collect();
        let large = Arc::new(Semaphore::new(LARGE_FRAMES));
        let (enclaves, log) = (BTreeSet::new(), Log::default());
        Self { allowed, credentials, blobs, records: None, enclaves, large, log, counters: Arc::default() }
    }

    /// Over vsock these context ids are served, and no others.
    #[must_use]
    pub fn with_enclaves(mut self, cids: BTreeSet<u32>) -> Self {
        self.enclaves = cids;
        self
    }

    /// With the fence's records in files.
    #[must_use]
    pub fn with_records(mut self, records: Option<RecordFiles>) -> Self {
        self.records = records;
        self
    }

    /// Listens where the enclave dials out, until the process ends. No error of a connection ends it.
    ///
    /// `vsock:CID:PORT` listens for any CID; `hybrid:PATH:PORT` on the Unix socket `PATH_PORT`, where vhost-device-vsock and
    /// Firecracker connect for a guest that dials PORT.
    pub async fn serve(self: Arc<Self>, listen: &Address) -> Result<()> {
        match listen {
            Address::Unix(path) => self.serve_unix(path).await,
            Address::Hybrid { path, port } => {
                let mut name = path.clone().into_os_string();
                name.push(format!("_{port}"));
                self.serve_unix(&PathBuf::from(name)).await
            }
            Address::Vsock { port, .. } => {
                self.serve_vsock(*port).await.with_context(|| format!("listening on {listen}"))
            }
        }
    }

    async fn serve_unix(self: Arc<Self>, path: &Path) -> Result<()> {
        // For processes of this user alone: they get the role's credentials here. It has its name once it is closed to others.
        let mut aside = path.as_os_str().to_owned();
        aside.push("~");
        let aside = PathBuf::from(aside);
        let _ = std::fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).with_context(|| format!("listening on {}", aside.display()))?;
        std::fs::set_permissions(&aside, Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&aside, path))
            .with_context(|| format!("closing {} to other users", path.display()))?;
        info!(path = %path.display(), "listening for the enclave's egress");
        let peer = Peer::new(None);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.spawn(stream, &peer),
                Err(error) => self.accept_failed(&error).await,
            }
        }
    }

    async fn serve_vsock(self: Arc<Self>, port: u32) -> Result<()> {
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
        info!(port, enclaves = ?self.enclaves, "listening for the enclaves' egress");
        let peers = self.peers();
        loop {
            match listener.accept().await {
                Ok((stream, address)) => self.take_in(&peers, address.cid(), stream),
                Err(error) => self.accept_failed(&error).await,
            }
        }
    }

    /// Out of descriptors, or an enclave that has gone again: the next one is served all the same.
    async fn accept_failed(&self, error: &io::Error) {
        if let Some(left_out) = self.log.accept.passes(error.raw_os_error()) {
            warn!(%error, left_out, "a connection of the enclave could not be accepted; trying again");
        }
        tokio::time::sleep(ACCEPT_AGAIN).await;
    }

    fn peers(&self) -> BTreeMap<u32, Arc<Peer>> {
        self.enclaves.iter().map(|cid| (*cid, Peer::new(Some(*cid)))).collect()
    }

    /// From an enclave of the list, or not at all: another enclave of this parent, or a process of it, would get the role's credentials.
    fn take_in<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: &Arc<Self>,
        peers: &BTreeMap<u32, Arc<Peer>>,
        cid: u32,
        stream: S,
    ) {
        if let Some(peer) = peers.get(&cid) {
            self.spawn(stream, peer);
        } else if let Some(left_out) = self.log.stranger.passes(cid) {
            warn!(cid, enclaves = ?self.enclaves, left_out, "egress refused: this CID is none of --enclave");
        }
    }

    fn spawn<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self: &Arc<Self>, stream: S, peer: &Arc<Peer>) {
        let Ok(place) = Arc::clone(&peer.places).try_acquire_owned() else {
            if let Some(left_out) = self.log.full.passes(peer.cid) {
                warn!(cid = peer.cid, max = MAX_CONNECTIONS, left_out, "the enclave has too many connections out");
            }
            return;
        };
        let (this, peer) = (Arc::clone(self), Arc::clone(peer));
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = this.connection(stream, &peer).await {
                debug!(cid = peer.cid, %error, "a connection of the enclave has ended");
            }
        });
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, peer: &Peer) -> io::Result<()> {
        loop {
            let Some(len) = timeout(TIMEOUT, read_length(&mut stream)).await?? else { return Ok(()) };
            // What is longer than a request without a blob waits for its turn before it is read.
            let turn = if len > MAX_TEXT_LEN { Some(self.turn(peer).await?) } else { None };
            let request = timeout(TIMEOUT, read_request(&mut stream, len)).await??;
            if let HostRequest::Connect { host, port } = request {
                return self.relay(stream, Target { host: host.to_ascii_lowercase(), port }).await;
            }
            // A blob that goes out takes as much as one that comes in.
            let _turn = match (&request, turn) {
                (HostRequest::LoadBlob { .. }, None) => Some(self.turn(peer).await?),
                (_, turn) => turn,
            };
            let reply = self.answer(request).await.unwrap_or_else(|error| {
                warn!(error = format!("{error:#}"), "the enclave's request failed");
                HostReply::Refused { reason: short(&format!("{error:#}")) }
            });
            timeout(WRITE_TIMEOUT, write(&mut stream, &reply)).await??;
        }
    }

    /// A turn for a frame with a blob.
    async fn turn(&self, peer: &Peer) -> io::Result<Turn> {
        let turn = async {
            let own = Arc::clone(&peer.blob).acquire_owned().await.map_err(io::Error::other)?;
            Ok((own, Arc::clone(&self.large).acquire_owned().await.map_err(io::Error::other)?))
        };
        timeout(WRITE_TIMEOUT, turn).await?
    }

    async fn answer(&self, request: HostRequest) -> Result<HostReply> {
        match request {
            HostRequest::Credentials => {
                let Credentials { access_key, secret_key, session_token, expires } =
                    timeout(TIMEOUT, self.credentials.credentials()).await.context("credentials took too long")??;
                self.counters.credentials.fetch_add(1, Ordering::Relaxed);
                Ok(HostReply::Credentials { access_key, secret_key, session_token, expires })
            }
            HostRequest::ListBlobs { group } => {
                let state_versions = self.on_disk(move |blobs| blobs.list(&group)).await?;
                Ok(HostReply::Blobs { state_versions })
            }
            HostRequest::LoadBlob { group, state_version } => {
                let blob = self.on_disk(move |blobs| blobs.load(&group, state_version)).await?;
                Ok(HostReply::Blob { blob })
            }
            HostRequest::StoreBlob { group, state_version, blob } => {
                let bytes = blob.as_ref().len();
                let shown = group.clone();
                self.on_disk(move |blobs| blobs.store(&group, state_version, blob.as_ref())).await?;
                self.counters.stored.fetch_add(1, Ordering::Relaxed);
                info!(group = shown, state_version, bytes, "a sealed blob is on the disk");
                Ok(HostReply::Stored)
            }
            HostRequest::ReadRecord { group } => {
                let records = self.records()?;
                let record = tokio::task::spawn_blocking(move || records.read(&group)).await.context("the disk")??;
                Ok(HostReply::Record { record })
            }
            HostRequest::SwapRecord { group, old, new } => {
                let records = self.records()?;
                let swapped = tokio::task::spawn_blocking(move || records.swap(&group, old.as_ref(), &new));
                let swapped = swapped.await.context("the disk")??;
                Ok(if swapped { HostReply::Swapped } else { HostReply::Conflict })
            }
            HostRequest::Connect { .. } => bail!("a connection is no question"),
        }
    }

    fn records(&self) -> Result<RecordFiles> {
        self.records.clone().context("this proxy keeps no records of fences: --fence-files was not given")
    }

    /// Disks block: not on a thread that serves others.
    async fn on_disk<T: Send + 'static>(&self, op: impl FnOnce(&B) -> Result<T> + Send + 'static) -> Result<T> {
        let blobs = self.blobs.clone();
        tokio::task::spawn_blocking(move || op(&blobs)).await.context("the disk")?
    }

    async fn relay<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, target: Target) -> io::Result<()> {
        let Some(at) = self.allowed.get(&target) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            let shown = short(&target.to_string());
            warn!(target = shown, "refused: the enclave asked for a host that is not on the list");
            let reason = format!("{shown} is not on the parent's list");
            return write(&mut stream, &HostReply::Refused { reason }).await;
        };
        // A name may have addresses of both families: each is tried.
        let connecting = TcpStream::connect((at.host.as_str(), at.port));
        let mut tcp = match timeout(TIMEOUT, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(tcp) => tcp,
            Err(error) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                warn!(%target, %at, %error, "the enclave's target cannot be reached");
                return write(&mut stream, &HostReply::Refused { reason: short(&format!("{target}: {error}")) }).await;
            }
        };
        let _ = tcp.set_nodelay(true);
        self.counters.connected.fetch_add(1, Ordering::Relaxed);
        debug!(%target, %at, "the enclave is connected");
        write(&mut stream, &HostReply::Connected).await?;
        timeout(MAX_RELAY, copy_bidirectional(&mut stream, &mut tcp)).await??;
        Ok(())
    }
}

/// The length of the next frame; nothing where the connection has ended in order.
async fn read_length<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<usize>> {
    let mut length = [0; LENGTH_LEN];
    let (first, rest) = length.split_at_mut(1);
    if stream.read(first).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(rest).await?;
    let len = u32::from_be_bytes(length);
    let allowed = usize::try_from(len).ok().filter(|len| (1..=MAX_HOST_FRAME_LEN).contains(len));
    allowed.map(Some).ok_or_else(|| invalid(format!("a frame of {len} bytes; 1 to {MAX_HOST_FRAME_LEN} are allowed")))
}

/// The request of this length, and nothing behind it. The buffer grows as bytes come: a length alone takes no memory.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, len: usize) -> io::Result<HostRequest> {
    let mut frame = Vec::new();
    let limit = u64::try_from(len).unwrap_or(u64::MAX);
    stream.take(limit).read_to_end(&mut frame).await?;
    if frame.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    host_services::decode_request(&frame).map_err(invalid)
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, reply: &HostReply) -> io::Result<()> {
    let mut bytes = Vec::new();
    host_services::encode_reply(reply, &mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// For a log line or a frame.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn egress() -> Arc<Egress<Static>> {
        let credentials =
            Credentials { access_key: "AKID".into(), secret_key: "secret".into(), session_token: None, expires: None };
        let none: [Target; 0] = [];
        let egress = Egress::new(none, Static(credentials), BlobStore::new("/nowhere"));
        Arc::new(egress.with_enclaves([16, 17].into()))
    }

    /// The first byte that comes back; nothing where the connection was closed.
    async fn asked(mut stream: tokio::io::DuplexStream) -> Option<u8> {
        let mut bytes = Vec::new();
        host_services::encode_request(&HostRequest::Credentials, &mut bytes);
        let _ = stream.write_all(&bytes).await;
        stream.read_u8().await.ok()
    }

    #[tokio::test]
    async fn a_cid_that_is_none_of_the_enclaves_is_not_served() {
        let egress = egress();
        let peers = egress.peers();
        // The loopback, the parent, another enclave.
        for (cid, served) in [(16, true), (17, true), (1, false), (3, false), (18, false), (VMADDR_CID_ANY, false)] {
            let (near, far) = tokio::io::duplex(4096);
            egress.take_in(&peers, cid, far);
            assert_eq!(asked(near).await.is_some(), served, "{cid}");
        }
    }

    #[tokio::test]
    async fn an_enclave_has_its_share_of_connections_and_leaves_the_others_theirs() {
        let egress = egress();
        let peers = egress.peers();
        let open = |cid| {
            let (near, far) = tokio::io::duplex(4096);
            egress.take_in(&peers, cid, far);
            near
        };
        let held: Vec<_> = (0..MAX_CONNECTIONS).map(|_| open(16)).collect();
        assert_eq!(asked(open(16)).await, None);
        assert!(asked(open(17)).await.is_some());
        drop(held);
    }
}
