//! Settings: flags, then the environment, then a TOML file, then defaults.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use casemate_protocol::address::Address;
use clap::{Parser, ValueEnum};
use serde::Deserialize;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::egress::Allowed;
use crate::tls::TlsFiles;

const LISTEN: &str = "127.0.0.1:9000";
const ENCLAVE: &str = "vsock:16:5005";
const HOSTS: &str = "localhost,127.0.0.1,[::1]";
const ENCLAVE_CONNECTIONS: NonZeroUsize = NonZeroUsize::MIN;
const MAX_IN_FLIGHT: usize = 2000;
const REQUEST_TIMEOUT_MS: u64 = 10_000;
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
const MAX_CONNECTIONS: usize = 2048;
const BLOBS: &str = "blobs";
const SIGNING_LOG_FILE_BYTES: u64 = 64 * 1024 * 1024;
const SHUTDOWN_TIMEOUT_S: u64 = 30;
const LOG_LEVEL: &str = "info";

/// Web3Signer-compatible HTTP API in front of a Casemate enclave.
///
/// Every option can also be set by its environment variable or, under its name with underscores, in the TOML file of
/// --config. A flag wins over the environment, that over the file.
#[derive(Parser, Default)]
#[command(name = "casemate-proxy", version = casemate_version::VERSION)]
struct Flags {
    /// TOML file with any of the options below
    #[arg(long, value_name = "FILE", env = "CASEMATE_PROXY_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Where to serve HTTP [default: 127.0.0.1:9000]
    #[arg(long, value_name = "IP:PORT", env = "CASEMATE_PROXY_LISTEN")]
    listen: Option<SocketAddr>,
    /// The enclave: vsock:CID:PORT, unix:PATH or hybrid:PATH:PORT; several of one group with commas, of which the one that
    /// holds the fence is asked [default: vsock:16:5005]
    #[arg(long, value_name = "ADDRESSES", env = "CASEMATE_PROXY_ENCLAVE")]
    enclave: Option<String>,
    /// Connections to the enclave; each carries any number of requests at once [default: 1]
    #[arg(long, value_name = "N", env = "CASEMATE_PROXY_ENCLAVE_CONNECTIONS")]
    enclave_connections: Option<NonZeroUsize>,
    /// Requests that may wait for the enclave; beyond it clients get 503 [default: 2000]
    #[arg(long, value_name = "N", env = "CASEMATE_PROXY_MAX_IN_FLIGHT")]
    max_in_flight: Option<NonZeroUsize>,
    /// Longest wait for the enclave's answer, in milliseconds [default: 10000]
    #[arg(long, value_name = "MS", env = "CASEMATE_PROXY_REQUEST_TIMEOUT_MS")]
    request_timeout_ms: Option<NonZeroU64>,
    /// Largest request body, in bytes [default: 33554432]
    #[arg(long, value_name = "BYTES", env = "CASEMATE_PROXY_MAX_BODY_BYTES")]
    max_body_bytes: Option<NonZeroUsize>,
    /// Clients' connections at once [default: 2048]
    #[arg(long, value_name = "N", env = "CASEMATE_PROXY_MAX_CONNECTIONS")]
    max_connections: Option<NonZeroUsize>,
    /// Names that clients may use for this host, with commas; * allows all [default: localhost,127.0.0.1,[::1]]
    #[arg(long, value_name = "HOSTS", env = "CASEMATE_PROXY_HTTP_HOST_ALLOWLIST")]
    http_host_allowlist: Option<String>,
    /// Serve TLS with this certificate chain (PEM, leaf first); POST /reload reads it again
    #[arg(long, value_name = "FILE", env = "CASEMATE_PROXY_TLS_CERTIFICATE")]
    tls_certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", env = "CASEMATE_PROXY_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Serve only clients with a certificate of these authorities (PEM): mutual TLS
    #[arg(long, value_name = "FILE", env = "CASEMATE_PROXY_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,
    /// Where the enclave dials out for KMS, credentials and its sealed blobs: vsock:3:PORT, unix:PATH or
    /// hybrid:PATH:PORT. Without it, none of this is served
    #[arg(long, value_name = "ADDRESS", env = "CASEMATE_PROXY_EGRESS")]
    egress: Option<String>,
    /// Hosts that the enclave may reach through this one, as HOST:PORT, with commas; HOST:PORT=HOST:PORT where one is found at another
    /// address, as an endpoint of a VPC
    #[arg(long, value_name = "TARGETS", env = "CASEMATE_PROXY_EGRESS_ALLOW")]
    egress_allow: Option<String>,
    /// Folder that keeps the enclave's sealed blobs [default: blobs]
    #[arg(long, value_name = "DIR", env = "CASEMATE_PROXY_BLOBS")]
    blobs: Option<PathBuf>,
    /// Folder that keeps the records of fences whose kind is `file`. Anyone who can write there can have keys slashed: only on a
    /// disk that its owner trusts
    #[arg(long, value_name = "DIR", env = "CASEMATE_PROXY_FENCE_FILES")]
    fence_files: Option<PathBuf>,
    /// Whose AWS credentials the enclave gets: the instance's role, or those in AWS_ACCESS_KEY_ID and its kin
    /// [default: imds]
    #[arg(long, value_name = "SOURCE", env = "CASEMATE_PROXY_CREDENTIALS")]
    credentials: Option<CredentialsFrom>,
    /// Folder for the signing log: what was signed and refused, chained by hashes and signed by the vault, for casemate log verify.
    /// Without it, none is written
    #[arg(long, value_name = "DIR", env = "CASEMATE_PROXY_SIGNING_LOG")]
    signing_log: Option<PathBuf>,
    /// A file of the signing log that has grown to this gets a successor, in bytes [default: 67108864]
    #[arg(long, value_name = "BYTES", env = "CASEMATE_PROXY_SIGNING_LOG_FILE_BYTES")]
    signing_log_file_bytes: Option<NonZeroU64>,
    /// Serve the key manager API (/eth/v1/keystores) to anyone who has the token in this file; made where there is none. Without it, the
    /// API is not there
    #[arg(long, value_name = "FILE", env = "CASEMATE_PROXY_KEY_MANAGER_TOKEN_FILE")]
    key_manager_token_file: Option<PathBuf>,
    /// On SIGTERM, do not have the enclave hand over the fence: it runs on, behind another proxy or this one's next start
    #[arg(long, env = "CASEMATE_PROXY_KEEP_FENCE", num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    keep_fence: Option<bool>,
    /// On SIGTERM, wait this long for requests in flight, in seconds [default: 30]
    #[arg(long, value_name = "S", env = "CASEMATE_PROXY_SHUTDOWN_TIMEOUT_S")]
    shutdown_timeout_s: Option<u64>,
    /// Threads that serve HTTP: one carries some ten thousand signatures a second [default: one for four cores]
    #[arg(long, value_name = "N", env = "CASEMATE_PROXY_THREADS")]
    threads: Option<NonZeroUsize>,
    /// error, warn, info, debug or trace, or a filter such as casemate_proxy=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "CASEMATE_PROXY_LOG_LEVEL")]
    log_level: Option<String>,
    /// How log lines look [default: human]
    #[arg(long, value_name = "FORMAT", env = "CASEMATE_PROXY_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Where the parent's AWS credentials come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialsFrom {
    /// The instance's metadata service (IMDSv2).
    #[default]
    Imds,
    /// The environment.
    Environment,
}

/// The services for the enclave.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented on the flags")]
pub struct EgressSettings {
    pub address: Address,
    pub allowed: Vec<Allowed>,
    pub blobs: PathBuf,
    pub credentials: CredentialsFrom,
    pub fence_files: Option<PathBuf>,
}

/// What and how to log. Nothing secret ever reaches the proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    filter: Targets,
    format: LogFormat,
}

impl Log {
    /// Logs to standard error from now on. A second call changes nothing.
    pub fn install(&self) {
        let filtered = tracing_subscriber::registry().with(self.filter.clone());
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let _ = match self.format {
            LogFormat::Human => {
                filtered.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init()
            }
            LogFormat::Json => filtered.with(lines.json().flatten_event(true)).try_init(),
        };
    }
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "documented on the flags")]
pub struct Settings {
    pub listen: SocketAddr,
    pub enclaves: Vec<Address>,
    pub enclave_connections: NonZeroUsize,
    pub max_in_flight: usize,
    pub request_timeout: Duration,
    pub max_body_bytes: usize,
    pub max_connections: usize,
    pub http_host_allowlist: String,
    pub tls: Option<TlsFiles>,
    pub egress: Option<EgressSettings>,
    pub keep_fence: bool,
    pub signing_log: Option<PathBuf>,
    pub signing_log_file_bytes: u64,
    pub key_manager_token_file: Option<PathBuf>,
    pub shutdown_timeout: Duration,
    pub threads: NonZeroUsize,
    pub log: Log,
}

impl Settings {
    /// Reads flags, environment and file. `--help` and mistakes in flags end the process, as clap does.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let flags = Flags::parse_from(arguments);
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => Options::default(),
        };
        flags.options.or(file).settle()
    }

    /// The names that clients may use; `None` for all.
    pub fn hosts(&self) -> Option<Vec<String>> {
        let hosts: Vec<String> = self.http_host_allowlist.split(',').map(|h| h.trim().to_owned()).collect();
        (!hosts.iter().any(|h| h == "*")).then_some(hosts)
    }
}

fn read(path: &Path) -> Result<Options> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// Most enclaves of a group behind one proxy.
const MAX_ENCLAVES: usize = 8;

fn addresses(text: &str) -> Result<Vec<Address>> {
    let addresses: Vec<Address> =
        text.split(',').map(|address| address.trim().parse()).collect::<Result<_, _>>().context("--enclave")?;
    if addresses.len() > MAX_ENCLAVES {
        bail!("--enclave: {} addresses; {MAX_ENCLAVES} are allowed", addresses.len());
    }
    Ok(addresses)
}

impl Options {
    fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            enclave: self.enclave.or(other.enclave),
            enclave_connections: self.enclave_connections.or(other.enclave_connections),
            max_in_flight: self.max_in_flight.or(other.max_in_flight),
            request_timeout_ms: self.request_timeout_ms.or(other.request_timeout_ms),
            max_body_bytes: self.max_body_bytes.or(other.max_body_bytes),
            max_connections: self.max_connections.or(other.max_connections),
            http_host_allowlist: self.http_host_allowlist.or(other.http_host_allowlist),
            tls_certificate: self.tls_certificate.or(other.tls_certificate),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            egress: self.egress.or(other.egress),
            egress_allow: self.egress_allow.or(other.egress_allow),
            blobs: self.blobs.or(other.blobs),
            credentials: self.credentials.or(other.credentials),
            fence_files: self.fence_files.or(other.fence_files),
            keep_fence: self.keep_fence.or(other.keep_fence),
            signing_log: self.signing_log.or(other.signing_log),
            signing_log_file_bytes: self.signing_log_file_bytes.or(other.signing_log_file_bytes),
            key_manager_token_file: self.key_manager_token_file.or(other.key_manager_token_file),
            shutdown_timeout_s: self.shutdown_timeout_s.or(other.shutdown_timeout_s),
            threads: self.threads.or(other.threads),
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
        }
    }

    fn settle(self) -> Result<Settings> {
        let tls = match (self.tls_certificate, self.tls_key, self.tls_client_ca) {
            (Some(certificate), Some(key), client_ca) => Some(TlsFiles { certificate, key, client_ca }),
            (None, None, None) => None,
            (None, None, Some(_)) => bail!("--tls-client-ca needs --tls-certificate and --tls-key"),
            _ => bail!("--tls-certificate and --tls-key go together"),
        };
        let others =
            [self.egress_allow.is_some(), self.blobs.is_some(), self.credentials.is_some(), self.fence_files.is_some()];
        let egress = match &self.egress {
            Some(address) => {
                let listed = self.egress_allow.iter().flat_map(|list| list.split(','));
                let allowed =
                    listed.map(|target| target.trim().parse()).collect::<Result<_>>().context("--egress-allow")?;
                Some(EgressSettings {
                    address: address.parse().context("--egress")?,
                    allowed,
                    blobs: self.blobs.unwrap_or_else(|| BLOBS.into()),
                    credentials: self.credentials.unwrap_or_default(),
                    fence_files: self.fence_files,
                })
            }
            None if others.contains(&true) => {
                bail!("--egress-allow, --blobs, --credentials and --fence-files need --egress")
            }
            None => None,
        };
        let level = self.log_level.unwrap_or_else(|| LOG_LEVEL.into());
        let filter: Targets = level.parse().with_context(|| format!("--log-level {level}"))?;
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Settings {
            listen: self.listen.map_or_else(|| LISTEN.parse(), Ok).context("the default of --listen")?,
            enclaves: addresses(self.enclave.as_deref().unwrap_or(ENCLAVE))?,
            enclave_connections: self.enclave_connections.unwrap_or(ENCLAVE_CONNECTIONS),
            max_in_flight: self.max_in_flight.map_or(MAX_IN_FLIGHT, NonZeroUsize::get),
            request_timeout: Duration::from_millis(self.request_timeout_ms.map_or(REQUEST_TIMEOUT_MS, NonZeroU64::get)),
            max_body_bytes: self.max_body_bytes.map_or(MAX_BODY_BYTES, NonZeroUsize::get),
            max_connections: self.max_connections.map_or(MAX_CONNECTIONS, NonZeroUsize::get),
            http_host_allowlist: self.http_host_allowlist.unwrap_or_else(|| HOSTS.into()),
            tls,
            egress,
            keep_fence: self.keep_fence.unwrap_or_default(),
            signing_log: self.signing_log,
            signing_log_file_bytes: self.signing_log_file_bytes.map_or(SIGNING_LOG_FILE_BYTES, NonZeroU64::get),
            key_manager_token_file: self.key_manager_token_file,
            shutdown_timeout: Duration::from_secs(self.shutdown_timeout_s.unwrap_or(SHUTDOWN_TIMEOUT_S)),
            threads: self.threads.or(NonZeroUsize::new(cores / 4)).unwrap_or(NonZeroUsize::MIN),
            log: Log { filter, format: self.log_format.unwrap_or_default() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Settings> {
        let all = std::iter::once("casemate-proxy").chain(arguments.iter().copied()).map(OsString::from);
        Settings::from_arguments(all)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let path = std::env::temp_dir().join(format!("casemate-proxy-settings-{}.toml", std::process::id()));
        std::fs::write(&path, "listen = \"127.0.0.1:9100\"\nmax_in_flight = 7\nlog_format = \"json\"\n").unwrap();
        let settings = parse(&["--config", path.to_str().unwrap(), "--listen", "127.0.0.1:9200"]).unwrap();
        assert_eq!(settings.listen.port(), 9200);
        assert_eq!(settings.max_in_flight, 7);
        assert_eq!(settings.log.format, LogFormat::Json);
        assert_eq!(settings.enclaves, [Address::Vsock { cid: 16, port: 5005 }]);
        std::fs::write(&path, "colour = 1\n").unwrap();
        assert!(format!("{:#}", parse(&["--config", path.to_str().unwrap()]).unwrap_err()).contains("colour"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        assert!(parse(&["--tls-key", "k.pem"]).is_err());
        assert!(parse(&["--tls-client-ca", "ca.pem"]).is_err());
        assert!(parse(&["--enclave", "tcp:1:2"]).is_err());
        assert!(parse(&["--log-level", "a=b=c"]).is_err());
        assert!(parse(&["--egress-allow", "host:443"]).is_err());
        assert!(parse(&["--egress", "unix:/x", "--egress-allow", "host"]).is_err());
        let egress = parse(&["--egress", "vsock:3:7000", "--egress-allow", "a:1, b:2"]).unwrap().egress.unwrap();
        assert_eq!(egress.allowed, ["a:1=a:1", "b:2"].map(|target| target.parse().unwrap()));
        let elsewhere: Allowed = "kms.example:443=[::1]:4443".parse().unwrap();
        assert_eq!(
            (elsewhere.target.to_string(), elsewhere.at.to_string()),
            ("kms.example:443".into(), "[::1]:4443".into())
        );
        for wrong in ["a:1=", "=a:1", "a:1=b", "a=b:1", "a:1=b:2=c:3"] {
            assert!(wrong.parse::<Allowed>().is_err(), "{wrong}");
        }
        assert_eq!(egress.credentials, CredentialsFrom::Imds);
    }

    #[test]
    fn a_star_allows_every_host() {
        assert_eq!(parse(&[]).unwrap().hosts().unwrap(), ["localhost", "127.0.0.1", "[::1]"]);
        assert_eq!(parse(&["--http-host-allowlist", "*"]).unwrap().hosts(), None);
        let hosts = parse(&["--http-host-allowlist", "signer.internal, 10.0.0.1"]).unwrap().hosts().unwrap();
        assert_eq!(hosts, ["signer.internal", "10.0.0.1"]);
    }
}
