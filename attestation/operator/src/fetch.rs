//! Asking a proxy, which is trusted with nothing: what it answers is bounded, and the caller verifies it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use casemate_protocol::Bytes;
use casemate_protocol::log::LogHead;
use serde::Deserialize;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, http};

use crate::args::Connection;
use crate::exit::NoAnswer;
use crate::input::{self, MAX_INPUT_LEN};
use crate::util::{hex, plain, quoted};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a proxy that says 429 is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for a command: the proxy gives the enclave 150 s.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(3);
/// Most enclaves that a proxy is believed to have.
const MAX_ENCLAVES: u32 = 64;
/// Longest wait for the list of keys, which proves nothing and is asked for once; longest list: a hundred thousand keys, about.
const LIST_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_LIST_LEN: u64 = 16 * MAX_INPUT_LEN;

fn no_answer(url: &str) -> impl Fn(ureq::Error) -> NoAnswer {
    move |error| NoAnswer(format!("asking {url}: {error}"))
}

/// A proxy.
pub struct Proxy {
    agent: Agent,
    url: String,
    /// Which of its enclaves.
    enclave: Option<u32>,
}

impl Proxy {
    /// The proxy that the command line names.
    pub fn new(options: &Connection) -> Result<Self> {
        let url = options.url.trim_end_matches('/').to_owned();
        let uri: http::Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            _ => bail!("{url} is not of the form http://HOST:PORT"),
        }
        if url.contains(['?', '#', '@']) {
            bail!("the URL has more in it than the proxy's address: give http://HOST:PORT");
        }
        if uri.scheme_str() == Some("http") && (options.tls_ca.is_some() || options.tls_certificate.is_some()) {
            bail!("TLS files were given, but {url} is not https");
        }
        let config = Agent::config_builder()
            // Nothing of the environment, nowhere else than the operator said.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("casemate/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls(options)?);
        Ok(Self { agent: config.build().new_agent(), url, enclave: options.enclave })
    }

    /// From now on this one of its enclaves, where the command line names none.
    pub fn stay_with(&mut self, enclave: Option<u32>) {
        self.enclave = self.enclave.or(enclave);
    }

    /// What `GET /attestation` answers to a nonce; a proxy that says 429 is asked again.
    pub fn attestation(&self, nonce: &[u8]) -> Result<Vec<u8>> {
        let enclave = self.enclave.map(|number| format!("&enclave={number}")).unwrap_or_default();
        let path = format!("/attestation?nonce={}{enclave}", const_hex::encode(nonce));
        let begun = Instant::now();
        loop {
            let (status, body) = self.get(&path, TIMEOUT, MAX_INPUT_LEN)?;
            match status {
                http::StatusCode::OK => return Ok(body),
                http::StatusCode::TOO_MANY_REQUESTS if begun.elapsed() < PATIENCE => {
                    // Not in step with others who ask.
                    let mut jitter = [0];
                    let _ = aws_lc_rs::rand::fill(&mut jitter);
                    let [jitter] = jitter;
                    std::thread::sleep(Duration::from_millis(300_u64.saturating_add(u64::from(jitter) * 3)));
                }
                http::StatusCode::SERVICE_UNAVAILABLE => {
                    return Err(NoAnswer(format!("{} answered {status}: {}", self.url, sentence(&body))).into());
                }
                _ => bail!("{} answered {status}: {}", self.url, sentence(&body)),
            }
        }
    }

    /// How many enclaves it says to have behind it. One that tells less hides some, and can refuse service anyway.
    pub fn enclaves(&self) -> Result<u32> {
        let (_, body) = self.get("/healthcheck", TIMEOUT, MAX_INPUT_LEN)?;
        let health: serde_json::Value =
            serde_json::from_slice(&body).map_err(|_| NoAnswer(format!("{} is no casemate-proxy", self.url)))?;
        let checks = health.get("checks").and_then(serde_json::Value::as_array);
        let fence = checks.into_iter().flatten().find(|check| check.get("id").is_some_and(|id| id == "fence"));
        let enclaves = fence.and_then(|check| check.get("data")?.get("enclaves")?.as_array()).map(Vec::len);
        let count =
            enclaves.and_then(|count| u32::try_from(count).ok()).filter(|count| (1..=MAX_ENCLAVES).contains(count));
        count.ok_or_else(|| NoAnswer(format!("{} does not say how many enclaves it has", self.url)).into())
    }

    /// The keys that the proxy lists.
    pub fn public_keys(&self) -> Result<Vec<u8>> {
        let enclave = self.enclave.map(|number| format!("?enclave={number}")).unwrap_or_default();
        let (status, body) = self.get(&format!("/api/v1/eth2/publicKeys{enclave}"), LIST_TIMEOUT, MAX_LIST_LEN)?;
        if status != http::StatusCode::OK {
            bail!("{} answered {status}", self.url);
        }
        Ok(body)
    }

    /// What `GET /slashing-protection` answers: a page of the history and its signature.
    pub fn history_page(&self, nonce: &[u8], start: u32) -> Result<(Vec<u8>, Bytes<64>)> {
        self.page("/slashing-protection", nonce, start)
    }

    /// What `GET /key-details` answers: a page and its signature.
    pub fn key_page(&self, nonce: &[u8], start: u32) -> Result<(Vec<u8>, Bytes<64>)> {
        self.page("/key-details", nonce, start)
    }

    fn page(&self, path: &str, nonce: &[u8], start: u32) -> Result<(Vec<u8>, Bytes<64>)> {
        #[derive(Deserialize)]
        struct Answer {
            page: String,
            signature: String,
        }

        let enclave = self.enclave.map(|number| format!("&enclave={number}")).unwrap_or_default();
        let path = format!("{path}?nonce={}&start={start}{enclave}", const_hex::encode(nonce));
        let answer: Answer = self.json(&path)?;
        let page = const_hex::decode(&answer.page).context("a page of the keys is not hex")?;
        Ok((page, hex(&answer.signature, "a signature")?))
    }

    /// What `GET /signing-log/head` answers: a head, and its signature for this nonce.
    pub fn signing_log_head(&self, nonce: &[u8]) -> Result<(LogHead, Bytes<64>)> {
        #[derive(Deserialize)]
        struct Answer {
            boot_nonce: String,
            term: String,
            sequence: String,
            time_ms: String,
            hash: String,
            signature: String,
            fresh: String,
        }

        let enclave = self.enclave.map(|number| format!("&enclave={number}")).unwrap_or_default();
        let answer: Answer = self.json(&format!("/signing-log/head?nonce={}{enclave}", const_hex::encode(nonce)))?;
        let number = |text: &str| text.parse().with_context(|| format!("{} is no number", quoted(text)));
        let head = LogHead {
            boot_nonce: hex(&answer.boot_nonce, "a boot nonce")?,
            term: number(&answer.term)?,
            number: number(&answer.sequence)?,
            time_ms: number(&answer.time_ms)?,
            hash: hex(&answer.hash, "a hash")?,
            signature: hex(&answer.signature, "a signature")?,
        };
        Ok((head, hex(&answer.fresh, "a signature")?))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let begun = Instant::now();
        let (status, body) = loop {
            let (status, body) = self.get(path, TIMEOUT, MAX_INPUT_LEN)?;
            // A command is being carried out.
            if status != http::StatusCode::TOO_MANY_REQUESTS || begun.elapsed() > PATIENCE {
                break (status, body);
            }
            std::thread::sleep(Duration::from_millis(500));
        };
        match status {
            http::StatusCode::OK => {
                serde_json::from_slice(&body).with_context(|| format!("the answer of {}", self.url))
            }
            http::StatusCode::SERVICE_UNAVAILABLE => {
                Err(NoAnswer(format!("{} answered {status}: {}", self.url, sentence(&body))).into())
            }
            _ => bail!("{} answered {status}: {}", self.url, sentence(&body)),
        }
    }

    /// What `POST /commands` answers: the body of a success, or the sentence of a refusal.
    pub fn command(&self, envelope: &[u8]) -> Result<Result<Vec<u8>, String>> {
        let begun = Instant::now();
        loop {
            let enclave = self.enclave.map(|number| format!("?enclave={number}")).unwrap_or_default();
            let request = self.agent.post(format!("{}/commands{enclave}", self.url));
            let request = request.config().timeout_global(Some(COMMAND_TIMEOUT)).build();
            let mut answer = request
                .content_type("application/cbor")
                .send(envelope)
                .with_context(|| format!("asking {}", self.url))?;
            let body = answer.body_mut().with_config().limit(MAX_INPUT_LEN).read_to_vec();
            let body = body.with_context(|| format!("the answer of {}", self.url))?;
            match answer.status() {
                http::StatusCode::OK => return Ok(Ok(body)),
                // Another operator's command is being carried out.
                http::StatusCode::TOO_MANY_REQUESTS if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                status => return Ok(Err(format!("{} answered {status}: {}", self.url, sentence(&body)))),
            }
        }
    }

    fn get(&self, path: &str, timeout: Duration, max_len: u64) -> Result<(http::StatusCode, Vec<u8>)> {
        let request = self.agent.get(format!("{}{path}", self.url)).config().timeout_global(Some(timeout)).build();
        let mut answer = request.call().map_err(no_answer(&self.url))?;
        let body = answer.body_mut().with_config().limit(max_len).read_to_vec();
        Ok((answer.status(), body.with_context(|| format!("the answer of {}", self.url))?))
    }
}

/// The sentence of an error's JSON, or the beginning of the answer.
fn sentence(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let told = json.as_ref().and_then(|json| json.get("message")).and_then(|message| message.as_str());
    let text = told.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    // It goes to a terminal.
    plain(&text.chars().take(400).collect::<String>())
}

fn tls(options: &Connection) -> Result<TlsConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = TlsConfig::builder().provider(TlsProvider::Rustls).unversioned_rustls_crypto_provider(provider);
    // What this machine trusts is enough: TLS keeps others from listening, and what an enclave says proves itself.
    config = config.root_certs(match &options.tls_ca {
        Some(path) => RootCerts::new_with_certs(&certificates(path)?),
        None => RootCerts::PlatformVerifier,
    });
    if let (Some(certificate), Some(key)) = (&options.tls_certificate, &options.tls_key) {
        let text = input::read_secret(key)?;
        let secret = PrivateKey::from_pem(&text).with_context(|| format!("no private key in {}", key.display()))?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&certificates(certificate)?, secret)));
    }
    Ok(config.build())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let text = input::read(path)?;
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
