//! `casemate-broker`: the network compartment's process. Its standard input is the socket to the vault. What it is told here is
//! nothing that the vault trusts: another region or another parent gets it no answer that the vault would take.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Result};
use casemate_broker::kms::{Kms, KmsSettings};
use casemate_broker::parent::Parent;
use casemate_broker::services::Services;
use casemate_protocol::address::Address;
use casemate_sandbox::Family;
use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Passes frames between the parent and the vault. Started by the image's init, with the vault's socket as standard
/// input.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Where to accept the parent's connections: vsock:CID:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "vsock:4294967295:5005")]
    listen: Address,
    /// Where the parent serves egress: vsock:CID:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "vsock:3:5006")]
    egress: Address,
    /// Region of the KMS key
    #[arg(long, value_name = "NAME")]
    kms_region: String,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let filter: Option<Targets> = std::env::var("RUST_LOG").ok().and_then(|wanted| wanted.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::ERROR));
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false))
        .init();
    let vault = std::io::stdin().as_fd().try_clone_to_owned().context("standard input is not the vault's socket")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?.block_on(
        async {
            let listener = casemate_broker::Listener::bind(&options.listen)?;
            let family = match options.egress {
                Address::Unix(_) => Family::Unix,
                _ => Family::Vsock,
            };
            // From here on nothing new can be opened but sockets to the parent.
            casemate_sandbox::enter_broker(family)?;
            let parent = Parent::new(options.egress);
            let kms = Kms::new(parent.clone(), KmsSettings::aws(&options.kms_region));
            let services = Arc::new(Services::new(kms, parent));
            casemate_broker::run(listener, UnixStream::from(vault), Some(services)).await
        },
    )
}
