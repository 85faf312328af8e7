//! The listening socket and its connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::api::{self, Api};
use crate::egress::Counters;
use crate::group::Group;
use crate::settings::Settings;
use crate::signing_log::SigningLog;
use crate::tls::Tls;

/// Longest wait for the enclave before the first client is served, or told that it is away.
const FIRST_CONNECTION: Duration = Duration::from_secs(2);
/// Longest time that a connection may take to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time without a byte read or written: well above a slot, so that clients find their connections again, and yet
/// one that does not read its answers, or sends a head drop by drop, ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Serves until `shutdown` resolves, then answers what is in flight and ends.
pub async fn run(settings: &Settings, egress: Option<Arc<Counters>>, shutdown: impl Future<Output = ()>) -> Result<()> {
    let tls = settings.tls().map(Tls::new).transpose().context("TLS")?.map(Arc::new);
    let group = Group::connect(settings);
    let token = settings.key_manager_token_file.as_deref().map(api::Token::of_file).transpose()?;
    let log = settings
        .signing_log
        .as_deref()
        .map(|folder| SigningLog::start(folder, settings.signing_log_file_bytes.get(), group.clone()))
        .transpose()?;
    let api = api::api(settings, group.clone(), tls.clone(), egress, token);
    let listener =
        TcpListener::bind(settings.listen).await.with_context(|| format!("listening on {}", settings.listen))?;
    let address = listener.local_addr().context("the listening address")?;
    info!(%address, tls = tls.is_some(), enclaves = ?settings.enclave, "proxy listening");
    // Clients that come with the first moment wait in the socket's queue: some give up for good on a 503 at their start.
    let _ = timeout(FIRST_CONNECTION, group.ready()).await;

    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT).max_headers(64);
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(settings.max_connections.get()));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or a client that has gone again: neither ends the service.
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            warn!(max = settings.max_connections, "connection refused: too many");
            continue;
        };
        let connection = connection(stream, tls.clone(), http.clone(), api.clone(), graceful.watcher());
        tokio::spawn(async move {
            connection.await;
            drop(permit);
        });
    }

    drop(listener);
    info!(open = graceful.count(), "shutting down: answering what is in flight");
    if timeout(settings.shutdown_timeout, graceful.shutdown()).await.is_err() {
        warn!(seconds = settings.shutdown_timeout.as_secs(), "some connections did not end in time");
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

async fn connection(stream: TcpStream, tls: Option<Arc<Tls>>, http: http1::Builder, api: Api, watcher: Watcher) {
    // Small answers must not wait for more to come.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, &http, api, watcher).await,
        Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => serve(stream, &http, api, watcher).await,
            Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
            Err(_) => debug!("TLS handshake took too long"),
        },
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    http: &http1::Builder,
    api: Api,
    watcher: Watcher,
) {
    let progress = Arc::new(Progress::default());
    let stream = Watched { stream, progress: Arc::clone(&progress) };
    let connection =
        http.serve_connection(TokioIo::new(stream), service_fn(move |request| api.clone().answer(request)));
    tokio::select! {
        served = watcher.watch(connection) => {
            let served: Result<(), hyper::Error> = served;
            if let Err(error) = served {
                debug!(%error, "connection ended");
            }
        }
        () = progress.stall() => debug!("connection closed: nothing came or went"),
    }
}

/// Whether a connection got anywhere since somebody looked: a flag, because this is noted several times a request.
#[derive(Default)]
struct Progress(AtomicBool);

impl Progress {
    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Resolves when nothing was read or written for [`IDLE_TIMEOUT`], or up to a third longer.
    async fn stall(&self) {
        let mut idle = Duration::ZERO;
        while idle < IDLE_TIMEOUT {
            tokio::time::sleep(IDLE_TIMEOUT / 3).await;
            idle = if self.0.swap(false, Ordering::Relaxed) { Duration::ZERO } else { idle + IDLE_TIMEOUT / 3 };
        }
    }
}

/// A stream that notes its progress.
struct Watched<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.progress.note();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.progress.note();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        if written.is_ready() {
            self.progress.note();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
