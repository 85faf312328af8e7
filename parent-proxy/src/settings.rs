//! Settings: flags, then the environment, then a TOML file, then defaults.
//!
//! An option stands once: as a field of [`Settings`]. Its flag, its environment variable, its line in the file and its
//! default are all of that field.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use casemate_protocol::address::Address;
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::egress::Allowed;
use crate::tls::TlsFiles;

/// Before the name of an option, in the name of its environment variable.
const ENVIRONMENT: &str = "CASEMATE_PROXY_";

/// Most enclaves of a group behind one proxy.
const MAX_ENCLAVES: usize = 8;

/// Web3Signer-compatible HTTP API in front of a Casemate enclave.
///
/// Every option can also be set by its environment variable or, under its name with underscores, in the TOML file of
/// --config. A flag wins over the environment, that over the file.
#[derive(Parser, Clone, Debug, PartialEq)]
#[command(name = "casemate-proxy", version = casemate_version::VERSION)]
pub struct Settings {
    /// TOML file with any of the options below
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to serve HTTP
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,
    /// The enclave: vsock:CID:PORT, unix:PATH or hybrid:PATH:PORT; several of one group with commas, of which the one that
    /// holds the fence is asked
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', value_parser = trimmed::<Address>, default_value = "vsock:16:5005")]
    pub enclave: Vec<Address>,
    /// Connections to the enclave; each carries any number of requests at once
    #[arg(long, value_name = "N", default_value = "1")]
    pub enclave_connections: NonZeroUsize,
    /// Requests that may wait for the enclave; beyond it clients get 503
    #[arg(long, value_name = "N", default_value = "2000")]
    pub max_in_flight: NonZeroUsize,
    /// Longest wait of a request for a signature, in milliseconds: for its turn, the enclave, the fence. Clients give up after three to
    /// five seconds
    #[arg(long = "request-timeout-ms", id = "request_timeout_ms", value_name = "MS", value_parser = milliseconds, default_value = "2500")]
    pub request_timeout: Duration,
    /// Largest request body, in bytes
    #[arg(long, value_name = "BYTES", default_value = "33554432")]
    pub max_body_bytes: NonZeroUsize,
    /// Clients' connections at once
    #[arg(long, value_name = "N", default_value = "2048")]
    pub max_connections: NonZeroUsize,
    /// Names that clients may use for this host, with commas; * allows all
    #[arg(long, value_name = "HOSTS", default_value = "localhost,127.0.0.1,[::1]")]
    pub http_host_allowlist: String,
    /// Serve TLS with this certificate chain (PEM, leaf first); POST /reload reads it again
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Serve only clients with a certificate of these authorities (PEM): mutual TLS
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Where the enclave dials out for KMS, credentials and its sealed blobs: vsock:3:PORT, unix:PATH or
    /// hybrid:PATH:PORT. Without it, none of this is served
    #[arg(long, value_name = "ADDRESS")]
    pub egress: Option<Address>,
    /// Hosts that the enclave may reach through this one, as HOST:PORT, with commas; HOST:PORT=HOST:PORT where one is found at another
    /// address, as an endpoint of a VPC
    #[arg(long, value_name = "TARGETS", value_delimiter = ',', value_parser = trimmed::<Allowed>)]
    pub egress_allow: Vec<Allowed>,
    /// Folder that keeps the enclave's sealed blobs
    #[arg(long, value_name = "DIR", default_value = "blobs")]
    pub blobs: PathBuf,
    /// Folder that keeps the records of fences whose kind is `file`. Anyone who can write there can have keys slashed: only on a
    /// disk that its owner trusts
    #[arg(long, value_name = "DIR")]
    pub fence_files: Option<PathBuf>,
    /// Whose AWS credentials the enclave gets: the instance's role, or those in AWS_ACCESS_KEY_ID and its kin
    #[arg(long, value_name = "SOURCE", value_enum, default_value = "imds")]
    pub credentials: CredentialsFrom,
    /// Folder for the signing log: what was signed and refused, chained by hashes and signed by the vault, for casemate log verify.
    /// Without it, none is written
    #[arg(long, value_name = "DIR")]
    pub signing_log: Option<PathBuf>,
    /// A file of the signing log that has grown to this gets a successor, in bytes
    #[arg(long, value_name = "BYTES", default_value = "67108864")]
    pub signing_log_file_bytes: NonZeroU64,
    /// Serve the key manager API (/eth/v1/keystores) to anyone who has the token in this file; made where there is none. Without it, the
    /// API is not there
    #[arg(long, value_name = "FILE")]
    pub key_manager_token_file: Option<PathBuf>,
    /// On SIGTERM, do not have the enclave hand over the fence: it runs on, behind another proxy or this one's next start
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    pub keep_fence: bool,
    /// On SIGTERM, wait this long for requests in flight, in seconds
    #[arg(long = "shutdown-timeout-s", id = "shutdown_timeout_s", value_name = "S", value_parser = seconds, default_value = "30")]
    pub shutdown_timeout: Duration,
    /// Threads that serve HTTP: one carries some ten thousand signatures a second [default: one for four cores]
    #[arg(long, value_name = "N", default_value_t = one_for_four_cores(), hide_default_value = true)]
    pub threads: NonZeroUsize,
    /// error, warn, info, debug or trace, or a filter such as casemate_proxy=debug
    #[arg(long, value_name = "LEVEL", value_parser = log_filter, default_value = "info")]
    pub log_level: Targets,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "human")]
    pub log_format: LogFormat,
}

/// Options that say nothing without another one.
const NEEDS: [(&str, &str); 6] = [
    ("tls_certificate", "tls_key"),
    ("tls_key", "tls_certificate"),
    ("tls_client_ca", "tls_certificate"),
    ("egress_allow", "egress"),
    ("blobs", "egress"),
    ("credentials", "egress"),
];

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Where the parent's AWS credentials come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CredentialsFrom {
    /// The instance's metadata service (IMDSv2).
    Imds,
    /// The environment.
    Environment,
}

impl Settings {
    /// Reads flags, environment and file. What clap has to say (`--help`, a mistake in a flag) is a [`clap::Error`].
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let command = Self::command().mut_args(|option| {
            let variable = format!("{ENVIRONMENT}{}", option.get_id().as_str().to_uppercase());
            option.env(variable)
        });
        let mut matches = command.clone().try_get_matches_from(&arguments)?;
        let file = match matches.get_one::<PathBuf>("config") {
            Some(path) => File::read(path, &command)?,
            None => File::default(),
        };
        if !file.values.is_empty() {
            // What is on the command line has passed already: the mistake can only be the file's.
            let mistake = |error: clap::Error| anyhow!("in {}: {}", file.path.display(), first_line(&error));
            matches = file.as_defaults(command).try_get_matches_from(&arguments).map_err(mistake)?;
        }
        let given = |option: &str| {
            let explicit = !matches!(matches.value_source(option), None | Some(ValueSource::DefaultValue));
            explicit || file.values.contains_key(option)
        };
        for (option, other) in NEEDS.into_iter().chain([("fence_files", "egress")]) {
            ensure!(!given(option) || given(other), "{} needs {}", flag(option), flag(other));
        }
        let settings = Self::from_arg_matches(&matches).map_err(|error| anyhow!(first_line(&error)))?;
        if settings.enclave.len() > MAX_ENCLAVES {
            bail!("--enclave: {} addresses; {MAX_ENCLAVES} are allowed", settings.enclave.len());
        }
        Ok(settings)
    }

    /// The names that clients may use; `None` for all.
    pub fn hosts(&self) -> Option<Vec<String>> {
        let hosts: Vec<String> = self.http_host_allowlist.split(',').map(|h| h.trim().to_owned()).collect();
        (!hosts.iter().any(|h| h == "*")).then_some(hosts)
    }

    /// The files of TLS, where it is served.
    pub fn tls(&self) -> Option<TlsFiles> {
        let (certificate, key) = (self.tls_certificate.clone()?, self.tls_key.clone()?);
        Some(TlsFiles { certificate, key, client_ca: self.tls_client_ca.clone() })
    }

    /// Logs to standard error from now on. A second call changes nothing.
    pub fn install_log(&self) {
        let filtered = tracing_subscriber::registry().with(self.log_level.clone());
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let _ = match self.log_format {
            LogFormat::Human => {
                filtered.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init()
            }
            LogFormat::Json => filtered.with(lines.json().flatten_event(true)).try_init(),
        };
    }
}

/// The options that a file sets, by their names in it.
#[derive(Default)]
struct File {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

impl File {
    fn read(path: &Path, command: &clap::Command) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let place = || format!("in {}", path.display());
        let table: toml::Table = toml::from_str(&text).with_context(place)?;
        let known = |name: &str| name != "config" && command.get_arguments().any(|option| option.get_id() == name);
        let mut values = BTreeMap::new();
        for (name, value) in table {
            ensure!(known(&name), "in {}: {name:?} is no option; --help lists them", path.display());
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(yes) => yes.to_string(),
                other => bail!(
                    "in {}: {name} is of type {}; text, a number or true and false are understood (a list is one text with commas)",
                    path.display(),
                    other.type_str()
                ),
            };
            values.insert(name, value);
        }
        Ok(Self { path: path.to_owned(), values })
    }

    /// The command with this file's values for defaults: what stands on the command line or in the environment wins.
    fn as_defaults(&self, command: clap::Command) -> clap::Command {
        command.mut_args(|option| match self.values.get(option.get_id().as_str()) {
            Some(value) => option.default_value(value.clone()),
            None => option,
        })
    }
}

/// What clap says, without its advice on usage: a file has none.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn flag(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}

fn trimmed<T: FromStr>(text: &str) -> Result<T, T::Err> {
    text.trim().parse()
}

fn milliseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(|ms: NonZeroU64| Duration::from_millis(ms.get()))
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

fn one_for_four_cores() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores / 4).unwrap_or(NonZeroUsize::MIN)
}

/// A level, or what each part of the program logs. `Targets` takes any word for a part that logs everything, and a mistyped level
/// would silence all the others.
fn log_filter(text: &str) -> Result<Targets> {
    for part in text.split(',').map(str::trim) {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        ensure!(
            !level.is_empty() && level.parse::<LevelFilter>().is_ok(),
            "{level:?} is no level; there are off, error, warn, info, debug and trace"
        );
    }
    Ok(text.parse()?)
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
        assert_eq!(settings.max_in_flight.get(), 7);
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.enclave, [Address::Vsock { cid: 16, port: 5005 }]);
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", parse(&["--config", path.to_str().unwrap()]).unwrap_err());
            assert!(error.contains(path.to_str().unwrap()), "the file is named: {error}");
            error
        };
        assert!(refused("colour = 1\n").contains("colour"));
        assert!(refused("config = \"other.toml\"\n").contains("config"));
        assert!(refused("listen = \"nowhere\"\n").contains("--listen"));
        assert!(refused("listen = [\"127.0.0.1:1\"]\n").contains("array"));
        assert!(refused("max_in_flight = 0\n").contains("--max-in-flight"));
        std::fs::write(&path, "blobs = \"b\"\n").unwrap();
        let alone = parse(&["--config", path.to_str().unwrap()]).unwrap_err();
        assert_eq!(alone.to_string(), "--blobs needs --egress", "said in the file, it counts as said");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        assert!(parse(&["--tls-key", "k.pem"]).is_err());
        assert!(parse(&["--tls-client-ca", "ca.pem"]).is_err());
        assert!(parse(&["--enclave", "tcp:1:2"]).is_err());
        for level in ["a=b=c", "verbose", "info,casemate_proxy", "", "info,"] {
            assert!(parse(&["--log-level", level]).is_err(), "{level:?}");
        }
        for level in ["off", "INFO", "warn,casemate_proxy=debug", "casemate_proxy::server=trace"] {
            assert!(parse(&["--log-level", level]).is_ok(), "{level:?}");
        }
        assert!(parse(&["--egress-allow", "host:443"]).is_err());
        assert!(parse(&["--egress", "unix:/x", "--egress-allow", "host"]).is_err());
        let settings = parse(&["--egress", "vsock:3:7000", "--egress-allow", "a:1, b:2"]).unwrap();
        assert_eq!(settings.egress_allow, ["a:1=a:1", "b:2"].map(|target| target.parse().unwrap()));
        let elsewhere: Allowed = "kms.example:443=[::1]:4443".parse().unwrap();
        assert_eq!(
            (elsewhere.target.to_string(), elsewhere.at.to_string()),
            ("kms.example:443".into(), "[::1]:4443".into())
        );
        for wrong in ["a:1=", "=a:1", "a:1=b", "a=b:1", "a:1=b:2=c:3"] {
            assert!(wrong.parse::<Allowed>().is_err(), "{wrong}");
        }
        assert_eq!(settings.credentials, CredentialsFrom::Imds);
    }

    #[test]
    fn a_star_allows_every_host() {
        assert_eq!(parse(&[]).unwrap().hosts().unwrap(), ["localhost", "127.0.0.1", "[::1]"]);
        assert_eq!(parse(&["--http-host-allowlist", "*"]).unwrap().hosts(), None);
        let hosts = parse(&["--http-host-allowlist", "signer.internal, 10.0.0.1"]).unwrap().hosts().unwrap();
        assert_eq!(hosts, ["signer.internal", "10.0.0.1"]);
    }
}
