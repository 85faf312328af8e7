//! The proxy on the parent instance: validator clients speak HTTP to it, it speaks frames to the enclave.
//!
//! It is not trusted with anything. It turns JSON into typed duties, computes the hash tree roots of objects of
//! variable size, and words refusals; the enclave judges, signs and never believes it. It depends on no room that
//! handles keys.
//!
//! | module | does |
//! |---|---|
//! | [`settings`] | flags, environment, TOML file |
//! | [`server`] | sockets, TLS, connections, graceful end |
//! | [`api`] | routes, answers, status codes |
//! | [`request`] | one JSON body in, one duty out |
//! | [`ssz`] | hash tree roots of what JSON carries |
//! | [`enclave`] | connections to the enclave, re-made when it restarts |
//! | [`group`] | which of a group's enclaves holds the fence |
//! | [`readiness`] | whether a request would be signed now, for every signal alike |
//! | [`signing_log`] | what the enclave has signed and refused, written down |
//! | [`egress`] | what the enclave asks of the parent: egress, credentials, a disk for sealed blobs |
//!
//! ```
//! // The enclave reaches the hosts on a list, each with its port, and no others.
//! use casemate_proxy::egress::Target;
//!
//! assert!("kms.eu-central-1.amazonaws.com:443".parse::<Target>().is_ok());
//! assert!("kms.eu-central-1.amazonaws.com".parse::<Target>().is_err());
//! ```
#![forbid(unsafe_code)]

pub mod api;
pub mod egress;
pub mod enclave;
pub mod group;
pub mod json;
pub mod readiness;
pub mod request;
pub mod server;
pub mod settings;
pub mod signing_log;
pub mod ssz;
pub mod tls;

use std::ffi::OsString;
use std::sync::Arc;

use anyhow::{Context, Result};
use egress::{BlobStore, Egress, RecordFiles, Source};
use settings::CredentialsFrom;
use tokio::signal::unix::{SignalKind, signal};

pub use settings::Settings;

/// The whole program, from its arguments (the program's name first) to the end on SIGTERM or SIGINT.
pub fn start(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let settings = Settings::from_arguments(arguments)
        .or_else(|error| error.downcast::<clap::Error>().and_then(|said_by_clap| said_by_clap.exit()))?;
    settings.install_log();
    let mut runtime = match settings.threads.get() {
        // Everything that has come in is taken up before anything goes on to the enclave: few writes, few wake-ups.
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(settings.threads.get()).enable_all().build().context("starting the runtime")?.block_on(
        async {
            let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
            let shutdown = async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            };
            let Some(egress) = &settings.egress else { return server::run(&settings, None, shutdown).await };
            let source = match settings.credentials {
                CredentialsFrom::Imds => Source::imds(None)?,
                CredentialsFrom::Environment => Source::environment()?,
            };
            let blobs = BlobStore::new(settings.blobs.clone());
            let services = Egress::new(settings.egress_allow.clone(), source, blobs);
            let services = Arc::new(services.with_records(settings.fence_files.clone().map(RecordFiles::new)));
            tokio::select! {
                ended = server::run(&settings, Some(Arc::clone(&services.counters)), shutdown) => ended,
                ended = services.serve(egress) => ended.context("serving the enclave's egress"),
            }
        },
    )
}
