//! The listening sockets and their connections.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::api::{self, Api, Door};
use crate::connections::{Connections, IDLE_TIMEOUT, Limits, Peer, Watched, network};
use crate::descriptors;
use crate::egress::Counters;
use crate::group::Group;
use crate::log_limit::LogLimit;
use crate::settings::Settings;
use crate::signing_log::SigningLog;
use crate::tls::{Admitted, Tls, fingerprint};

/// Longest wait for the enclave before the first client is served, or told that it is away.
const FIRST_CONNECTION: Duration = Duration::from_secs(2);
/// Longest time that a connection may take to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Before the next try where a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Longest head of a request, and most of a body that is read at once. It is a buffer of each connection: what hyper takes without
/// being told (400 KiB) would be 0.8 GB for 2,048 of them.
pub const MAX_HEAD_LEN: usize = 16 * 1024;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// Serves until `shutdown` resolves, then answers what is with the enclave and ends. `descriptors` is how many may be open.
pub async fn run(
    settings: &Settings,
    descriptors: usize,
    egress: Option<Arc<Counters>>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let clients = descriptors::clients(settings, descriptors)?;
    let tls = settings.tls().map(Tls::new).transpose().context("TLS")?.map(Arc::new);
    let admin_tls = settings.admin_tls().map(Tls::new).transpose().context("TLS of --admin-listen")?.map(Arc::new);
    let group = Group::connect(settings);
    let token = settings.key_manager_token_file.as_deref().map(api::Token::of_file).transpose()?;
    let log = settings
        .signing_log
        .as_deref()
        .map(|folder| SigningLog::start(folder, settings.signing_log_file_bytes.get(), group.clone()))
        .transpose()?;
    let all_tls = [&tls, &admin_tls].into_iter().flatten().cloned().collect();
    let api = api::api(settings, group.clone(), all_tls, egress, token);
    let mut listeners = vec![Listener::bind(settings.listen, tls, clients, api.clone()).await?];
    if let Some(address) = settings.admin_listen {
        let api = api.behind(Door::Admin);
        listeners.push(Listener::bind(address, admin_tls, descriptors::ADMIN_CLIENTS, api).await?);
    }
    settings.warn_of_open_doors();
    tokio::spawn(reload_on_hangup(api)?);
    // Clients that come with the first moment wait in the socket's queue: some give up for good on a 503 at their start.
    let _ = timeout(FIRST_CONNECTION, group.ready()).await;

    let (end, ending) = watch::channel(false);
    let (open, mut closed) = mpsc::channel::<()>(1);
    let serving: Vec<_> =
        listeners.into_iter().map(|listener| tokio::spawn(listener.serve(ending.clone(), open.clone()))).collect();
    drop((ending, open));
    shutdown.await;

    info!("shutting down: answering what is with the enclave");
    end.send_replace(true);
    for listener in serving {
        let _ = listener.await;
    }
    // Every connection has a sender: it ends when they have.
    if timeout(settings.shutdown_timeout, closed.recv()).await.is_err() {
        warn!(seconds = settings.shutdown_timeout.as_secs(), "some requests were not answered in time");
    }
    if let Some(log) = log {
        log.finish().await;
    }
    // Nothing comes through here any more: a successor may sign at once.
    if !settings.keep_fence {
        group.handover().await;
    }
    Ok(())
}

/// SIGHUP does what `POST /reload` does.
fn reload_on_hangup(api: Api) -> Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            if !api.reload() {
                warn!("SIGHUP: a reload is running already");
            }
        }
    })
}

/// A socket that is listened on, and all that its connections share.
struct Listener {
    socket: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    tls: Option<Arc<Tls>>,
    http: http1::Builder,
    api: Api,
    connections: Arc<Connections>,
    log: Log,
}

/// What is logged of strangers: each thing once a minute.
#[derive(Default)]
struct Log {
    accept: LogLimit<Option<i32>>,
    full: LogLimit<()>,
    connected: LogLimit<(IpAddr, Option<String>)>,
    handshake: LogLimit<(IpAddr, String)>,
}

impl Listener {
    async fn bind(address: SocketAddr, tls: Option<Arc<Tls>>, clients: usize, api: Api) -> Result<Self> {
        let socket = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let address = socket.local_addr().context("the listening address")?;
        info!(%address, tls = tls.is_some(), clients, serves = %api.door(), "proxy listening");
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD_LEN);
        let connections = Connections::new(Limits::new(clients));
        Ok(Self { socket, shared: Arc::new(Shared { tls, http, api, connections, log: Log::default() }) })
    }

    /// Until the end is told. No error ends it: neither a client that has gone again nor a lack of descriptors.
    async fn serve(self, mut ending: watch::Receiver<bool>, open: mpsc::Sender<()>) {
        loop {
            let accepted = tokio::select! {
                biased;
                _ = ending.wait_for(|ending| *ending) => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => self.shared.take_in(stream, address, ending.clone(), open.clone()),
                Err(error) => {
                    if let Some(left_out) = self.shared.log.accept.passes(error.raw_os_error()) {
                        warn!(%error, left_out, "a connection could not be accepted; trying again");
                    }
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
            if self.shared.connections.crowded() {
                // Those who were told to go do so.
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Shared {
    fn take_in(
        self: &Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        mut ending: watch::Receiver<bool>,
        open: mpsc::Sender<()>,
    ) {
        let Some(place) = self.connections.admit(address, self.tls.is_some()) else {
            if let Some(left_out) = self.log.full.passes(()) {
                let open = self.connections.open();
                warn!(%address, open, left_out, "connection refused: every place is taken by a request (--max-connections)");
            }
            return;
        };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            shared.connection(stream, &place.peer, &mut ending).await;
            drop((place, open));
        });
    }

    async fn connection(&self, stream: TcpStream, peer: &Arc<Peer>, ending: &mut watch::Receiver<bool>) {
        // Small answers must not wait for more to come.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            self.log_connected(peer, None);
            return self.serve(stream, peer, Admitted::without_tls(), ending).await;
        };
        let (acceptor, admitted) = tls.acceptor();
        let handshake = async {
            stream.readable().await?;
            peer.speaks();
            acceptor.accept(stream).await
        };
        let shaken = tokio::select! {
            biased;
            // Whoever has not finished asks for nothing yet.
            _ = ending.wait_for(|ending| *ending) => return,
            () = peer.evicted() => Err(io::Error::other("its place was needed: it was the oldest of the crowd")),
            shaken = timeout(HANDSHAKE_TIMEOUT, handshake) => shaken.unwrap_or_else(|_| {
                Err(io::Error::other(format!("it took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())))
            }),
        };
        match shaken {
            Ok(stream) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                self.log_connected(peer, certificate.map(fingerprint).as_deref());
                peer.may_ask();
                self.serve(stream, peer, admitted, ending).await;
            }
            Err(error) => {
                if let Some(left_out) = self.log.handshake.passes((network(peer.address.ip()), error.to_string())) {
                    warn!(peer = %peer.address, %error, left_out, "a TLS handshake has failed");
                }
            }
        }
    }

    fn log_connected(&self, peer: &Peer, certificate: Option<&str>) {
        if let Some(left_out) = self.log.connected.passes((network(peer.address.ip()), certificate.map(str::to_owned)))
        {
            info!(peer = %peer.address, certificate_sha256 = certificate, left_out, "connected");
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        peer: &Arc<Peer>,
        mut admitted: Admitted,
        ending: &mut watch::Receiver<bool>,
    ) {
        let stream = TokioIo::new(Watched::new(stream, Arc::clone(peer)));
        let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            let (api, peer) = (self.api.clone(), Arc::clone(peer));
            async move {
                let answer = api.answer(request.map(|body| peer.asks(body))).await;
                peer.answered();
                answer
            }
        });
        let mut connection = std::pin::pin!(self.http.serve_connection(stream, service));
        tokio::select! {
            served = connection.as_mut() => {
                if let Err(error) = served {
                    debug!(peer = %peer.address, %error, "connection ended");
                }
                return;
            }
            () = peer.stall() => return debug!(peer = %peer.address, "connection closed: nothing came or went"),
            () = peer.evicted() => debug!(peer = %peer.address, "connection closed: its place was needed"),
            () = admitted.revoked() => info!(peer = %peer.address, "connection closed: its authority is not in force any more"),
            _ = ending.wait_for(|ending| *ending) => {}
        }
        if peer.has_left() {
            return;
        }
        // What is with the enclave is answered; half requests are not waited for, as hyper would do it.
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            () = peer.done() => {}
        }
    }
}
