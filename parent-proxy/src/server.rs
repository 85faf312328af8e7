//! The listening socket and its connections.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::api;
use crate::enclave::Enclave;
use crate::settings::Settings;
use crate::tls::Tls;

/// Longest wait for the enclave before the first client is served, or told that it is away.
const FIRST_CONNECTION: Duration = Duration::from_secs(2);
/// Longest time that a connection may take to shake hands, or to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `shutdown` resolves, then answers what is in flight and ends.
pub async fn run(settings: &Settings, shutdown: impl Future<Output = ()>) -> Result<()> {
    let tls = settings.tls.clone().map(Tls::new).transpose().context("TLS")?.map(Arc::new);
    let enclave = Enclave::connect(
        &settings.enclave,
        settings.enclave_connections.get(),
        settings.max_in_flight,
        settings.request_timeout,
    );
    let service = TowerToHyperService::new(api::router(settings, enclave.clone(), tls.clone()));
    let listener =
        TcpListener::bind(settings.listen).await.with_context(|| format!("listening on {}", settings.listen))?;
    let address = listener.local_addr().context("the listening address")?;
    info!(%address, tls = tls.is_some(), enclave = %settings.enclave, "proxy listening");
    // Clients that come with the first moment wait in the socket's queue: some give up for good on a 503 at their start.
    let _ = timeout(FIRST_CONNECTION, enclave.connected()).await;

    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(settings.max_connections));
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
        let connection = connection(stream, tls.clone(), http.clone(), service.clone(), graceful.watcher());
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
    Ok(())
}

type Service = TowerToHyperService<axum::Router>;

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    http: http1::Builder,
    service: Service,
    watcher: Watcher,
) {
    // Small answers must not wait for more to come.
    let _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, &http, service, watcher).await,
        Some(tls) => match timeout(HEAD_TIMEOUT, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => serve(stream, &http, service, watcher).await,
            Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
            Err(_) => debug!("TLS handshake took too long"),
        },
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    http: &http1::Builder,
    service: Service,
    watcher: Watcher,
) {
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let served: Result<(), hyper::Error> = watcher.watch(connection).await;
    if let Err(error) = served {
        debug!(%error, "connection ended");
    }
}
