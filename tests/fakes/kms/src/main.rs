//! `casemate-local-kms`: see the library.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use casemate_document::Anchor;
use casemate_local_kms::api::Kms;
use casemate_local_kms::server::{Access, Server, Tls};
use casemate_local_kms::state::State;
use clap::Parser;

/// A KMS of one machine that speaks the real wire protocol. Its keys lie in clear in its file: for development and tests.
#[derive(Parser)]
#[command(name = "casemate-local-kms", version)]
struct Options {
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8899")]
    listen: SocketAddr,
    /// File that keeps the keys
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// Root under which attestation documents must be (PEM); without it, no Recipient is served
    #[arg(long, value_name = "FILE")]
    attestation_root: Option<PathBuf>,
    /// Region in ARNs and signatures
    #[arg(long, value_name = "NAME", default_value = "eu-central-1")]
    region: String,
    /// Account in ARNs
    #[arg(long, value_name = "DIGITS", default_value = "000000000000")]
    account: String,
    /// The access key that may ask
    #[arg(long, value_name = "ID", default_value = "AKIDCASEMATE")]
    access_key: String,
    /// Its secret
    #[arg(long, value_name = "SECRET", default_value = "casemate")]
    secret_key: String,
    /// Serve TLS under a root made for it, and leave the root here (PEM)
    #[arg(long, value_name = "FILE")]
    tls_root: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let state = State::open(&options.state, &options.region, &options.account)?;
    let anchor = match &options.attestation_root {
        Some(path) => {
            let text = fs::read(path).with_context(|| format!("opening {}", path.display()))?;
            let der = pem::parse(text).with_context(|| format!("no certificate in {}", path.display()))?;
            Some(Anchor::from_der(der.contents())?)
        }
        None => None,
    };
    let tls = match &options.tls_root {
        Some(path) => {
            let names = [options.listen.ip().to_string(), "localhost".to_owned()];
            let tls = Tls::new(&names)?;
            fs::write(path, &tls.root_pem).with_context(|| format!("writing {}", path.display()))?;
            Some(tls)
        }
        None => None,
    };
    let secrets = BTreeMap::from([(options.access_key, options.secret_key)]);
    let access = Access { region: options.region, secrets, account: options.account };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let server = Server::bind(options.listen, Kms { state, anchor }, access, tls.as_ref()).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        println!("casemate-local-kms on {scheme}://{}", server.address()?);
        server.serve().await
    })
}
