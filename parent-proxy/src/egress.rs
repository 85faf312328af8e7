//! The parent's side of what the enclave's broker asks: connections to an allow-list of hosts, credentials, and a disk for sealed blobs.
//!
//! Nothing here is trusted by the enclave. The allow-list protects the parent and its network from a broker that was taken over:
//! it reaches no hosts but those that the configuration names.

pub mod blobs;
pub mod credentials;
#[cfg(feature = "imds")]
mod imds;
pub mod records;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use casemate_protocol::address::Address;
use casemate_protocol::frame;
use casemate_protocol::host_services::{self, HostReply, HostRequest, MAX_HOST_FRAME_LEN};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use tracing::{debug, info, warn};

pub use blobs::{BlobStore, Blobs};
pub use credentials::Source;
pub use records::RecordFiles;

/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
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

/// The parent's services for one enclave.
pub struct Egress<C, B = BlobStore> {
    allowed: BTreeMap<Target, Target>,
    credentials: C,
    blobs: B,
    /// The fence's records, where this disk is trusted with them.
    records: Option<RecordFiles>,
    /// For metrics.
    pub counters: Arc<Counters>,
}

impl<C: CredentialSource + 'static, B: Blobs> Egress<C, B> {
    /// Serves these and nothing else.
    pub fn new<A: Into<Allowed>>(allowed: impl IntoIterator<Item = A>, credentials: C, blobs: B) -> Self {
        let allowed = allowed.into_iter().map(Into::into).map(|Allowed { target, at }| (target, at)).collect();
        Self { allowed, credentials, blobs, records: None, counters: Arc::default() }
    }

    /// With the fence's records in files.
    #[must_use]
    pub fn with_records(mut self, records: Option<RecordFiles>) -> Self {
        self.records = records;
        self
    }

    /// Listens where the enclave dials out, until the process ends.
    ///
    /// `vsock:CID:PORT` listens for any CID; `hybrid:PATH:PORT` on the Unix socket `PATH_PORT`, where vhost-device-vsock and
    /// Firecracker connect for a guest that dials PORT.
    pub async fn serve(self: Arc<Self>, listen: &Address) -> Result<()> {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let unix = match listen {
            Address::Unix(path) => Some(path.clone()),
            Address::Hybrid { path, port } => {
                let mut name = path.clone().into_os_string();
                name.push(format!("_{port}"));
                Some(name.into())
            }
            Address::Vsock { .. } => None,
        };
        if let Some(path) = unix {
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
            info!(path = %path.display(), "listening for the enclave's egress");
            loop {
                let (stream, _) = listener.accept().await.context("accepting from the enclave")?;
                self.spawn(stream, &places);
            }
        }
        let Address::Vsock { port, .. } = listen else { bail!("{listen} cannot be listened on") };
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port))
            .with_context(|| format!("listening on {listen}"))?;
        info!(%listen, "listening for the enclave's egress");
        loop {
            let (stream, _) = listener.accept().await.context("accepting from the enclave")?;
            self.spawn(stream, &places);
        }
    }

    fn spawn<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self: &Arc<Self>, stream: S, places: &Arc<Semaphore>) {
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            warn!(max = MAX_CONNECTIONS, "the enclave has too many connections out");
            return;
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = this.connection(stream).await {
                debug!(%error, "a connection of the enclave has ended");
            }
        });
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        loop {
            let Some(request) = timeout(TIMEOUT, read_request(&mut stream, &mut buffer)).await?? else { return Ok(()) };
            if let HostRequest::Connect { host, port } = request {
                return self.relay(stream, &buffer, Target { host: host.to_ascii_lowercase(), port }).await;
            }
            let reply = self.answer(request).await.unwrap_or_else(|error| {
                warn!(error = format!("{error:#}"), "the enclave's request failed");
                HostReply::Refused { reason: short(&format!("{error:#}")) }
            });
            write(&mut stream, &reply).await?;
        }
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

    async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        early: &[u8],
        target: Target,
    ) -> io::Result<()> {
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
        tcp.write_all(early).await?;
        timeout(MAX_RELAY, copy_bidirectional(&mut stream, &mut tcp)).await??;
        Ok(())
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> io::Result<Option<HostRequest>> {
    loop {
        if let Some((frame, used)) = frame::split(buffer, MAX_HOST_FRAME_LEN).map_err(invalid)? {
            let request = host_services::decode_request(frame).map_err(invalid)?;
            let _ = buffer.split_to(used);
            return Ok(Some(request));
        }
        if stream.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
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
