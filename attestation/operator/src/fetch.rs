//! Asking a proxy, which is trusted with nothing: what it answers is bounded, and verified by whoever asked.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, http};

use crate::cli::Fetch;
use crate::input::MAX_INPUT_LEN;

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a proxy that says 429 is asked again, a second apart.
const TRIES: u32 = 5;
/// Longest answer: a hundred thousand public keys, about.
const MAX_ANSWER_LEN: u64 = 16 * MAX_INPUT_LEN;

/// A proxy.
pub struct Proxy {
    agent: Agent,
    url: String,
}

impl Proxy {
    /// The proxy that the command line names.
    pub fn new(options: &Fetch) -> Result<Self> {
        let url = options.url.trim_end_matches('/').to_owned();
        let uri: http::Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") if options.tls_ca.is_some() => {}
            Some("https") => bail!("{url} needs --tls-ca FILE: the authority of the proxy's certificate"),
            _ => bail!("{url} is not of the form http://HOST:PORT"),
        }
        if uri.query().is_some() {
            bail!("{url} has a query; give the proxy's address alone");
        }
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            // Nothing of the environment, nowhere else than the operator said.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("casemate/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls(options)?);
        Ok(Self { agent: config.build().new_agent(), url })
    }

    /// The body of an answer with status 200; a proxy that says 429 is asked again.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let url = format!("{}{path}", self.url);
        for tries_left in (0..TRIES).rev() {
            let mut answer = self.agent.get(&url).call().with_context(|| format!("asking {}", self.url))?;
            let body = read(answer.body_mut()).with_context(|| format!("the answer of {}", self.url))?;
            match answer.status() {
                http::StatusCode::OK => return Ok(body),
                http::StatusCode::TOO_MANY_REQUESTS if tries_left > 0 => std::thread::sleep(Duration::from_secs(1)),
                status => bail!("{} answered {status}: {}", self.url, sentence(&body)),
            }
        }
        bail!("{} has no document to give", self.url)
    }
}

fn read(body: &mut Body) -> Result<Vec<u8>> {
    Ok(body.with_config().limit(MAX_ANSWER_LEN).read_to_vec()?)
}

/// The sentence of an error's JSON, or the beginning of whatever came, safe for a terminal.
fn sentence(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let told = json.as_ref().and_then(|json| json.get("message")).and_then(|message| message.as_str());
    let text = told.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

fn tls(options: &Fetch) -> Result<TlsConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = TlsConfig::builder().provider(TlsProvider::Rustls).unversioned_rustls_crypto_provider(provider);
    if let Some(path) = &options.tls_ca {
        config = config.root_certs(RootCerts::new_with_certs(&certificates(path)?));
    }
    if let (Some(certificate), Some(key)) = (&options.tls_certificate, &options.tls_key) {
        let text = fs::read(key).with_context(|| format!("opening {}", key.display()))?;
        let secret = PrivateKey::from_pem(&text).with_context(|| format!("no private key in {}", key.display()))?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&certificates(certificate)?, secret)));
    }
    Ok(config.build())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let text = fs::read(path).with_context(|| format!("opening {}", path.display()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.with_context(|| format!("in {}", path.display()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        bail!("no certificate in {}", path.display());
    }
    Ok(certificates)
}
