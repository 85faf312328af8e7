//! Settings: flags, then the environment, then a TOML file, then defaults.
//!
//! An option stands once: as a field of [`Settings`]. Its flag, its environment variable, its line in the file and its
//! default are all of that field.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use casemate_protocol::address::Address;
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use tracing::warn;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::egress::Allowed;
use crate::egress::blobs::Rules;
use crate::tls::TlsFiles;

/// Before the name of an option, in the name of its environment variable.
const ENVIRONMENT: &str = "CASEMATE_PROXY_";

const DAY: Duration = Duration::from_hours(24);

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
    #[arg(long, value_name = "HOSTS", value_delimiter = ',', value_parser = trimmed::<Host>, default_value = "localhost,127.0.0.1,[::1]")]
    pub http_host_allowlist: Vec<Host>,
    /// Serve TLS with this certificate chain (PEM, leaf first); POST /reload reads it again
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Serve only clients with a certificate of these authorities (PEM): mutual TLS. Read again with the certificate; connections that
    /// other authorities admitted end then
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Serve an address that is not this machine's own without --tls-client-ca, or the key manager's token without TLS: then anyone who
    /// reaches the port can ask for signatures
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub allow_any_client: bool,
    /// Serve administration here and no longer with the clients: /reload, /commands, /slashing-protection, /signing-log/head and
    /// /eth/v1/keystores. Nothing is signed here
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Serve administration only to certificates of these authorities (PEM); without it, to those of --tls-client-ca
    #[arg(long, value_name = "FILE")]
    pub admin_tls_client_ca: Option<PathBuf>,
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
    /// Sealed blobs that are younger than this stay where they are; of the older ones the eight newest do, and the others are moved to
    /// the folder quarantine beside them. None is ever removed
    #[arg(long, value_name = "DAYS", default_value = "30")]
    pub blobs_keep_days: NonZeroU32,
    /// Most bytes that the blobs of a group may take, those in quarantine too; then no more are taken
    #[arg(long, value_name = "BYTES", default_value = "4294967296")]
    pub blobs_max_bytes: NonZeroU64,
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
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value = "false", hide_default_value = true)]
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

/// A name that clients may use for this host, as it stands in their requests: a DNS name, an IPv4 address, or an IPv6 address in
/// brackets, without a port; or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(String);

impl FromStr for Host {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            let address = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            return Ok(Self(address));
        }
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        ensure!(
            text == "*" || (!text.is_empty() && text.bytes().all(name)),
            "{text:?} matches no request: a host name, or an address, without scheme, port and path belongs here"
        );
        Ok(Self(text.to_owned()))
    }
}

/// Options that say nothing without another one.
const NEEDS: [(&str, &str); 10] = [
    ("tls_certificate", "tls_key"),
    ("tls_key", "tls_certificate"),
    ("tls_client_ca", "tls_certificate"),
    ("admin_tls_client_ca", "admin_listen"),
    ("admin_tls_client_ca", "tls_certificate"),
    ("egress_allow", "egress"),
    ("blobs", "egress"),
    ("blobs_keep_days", "egress"),
    ("blobs_max_bytes", "egress"),
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
        settings.check_doors()?;
        settings.check_peers()?;
        Ok(settings)
    }

    /// Each listener with the authorities whose clients it serves.
    fn doors(&self) -> impl Iterator<Item = (&'static str, SocketAddr, Option<PathBuf>)> {
        let admin_ca = self.admin_tls_client_ca.clone().or_else(|| self.tls_client_ca.clone());
        let admin = self.admin_listen.map(|address| ("admin_listen", address, admin_ca));
        std::iter::once(("listen", self.listen, self.tls_client_ca.clone())).chain(admin)
    }

    /// Anyone who reaches a port can ask for signatures: a port that others reach wants certificates, or a word that says otherwise.
    fn check_doors(&self) -> Result<()> {
        if let Some(admin) = self.admin_listen {
            let same = admin == self.listen && admin.port() != 0;
            ensure!(!same, "--admin-listen {admin} is the address of --listen; administration needs one of its own");
        }
        if self.allow_any_client {
            return Ok(());
        }
        for (option, address, authorities) in self.doors() {
            let own = address.ip().to_canonical().is_loopback();
            ensure!(
                own || authorities.is_some(),
                "{} {address} is reached from other machines, and no client needs a certificate there: give --tls-client-ca (mutual TLS), \
                 take an address of 127.0.0.0/8 or [::1], or say --allow-any-client if something else keeps strangers away",
                flag(option)
            );
        }
        Ok(())
    }

    /// Says at the start what stands open.
    pub fn warn_of_open_doors(&self) {
        for (option, address, authorities) in self.doors() {
            if !address.ip().to_canonical().is_loopback() && authorities.is_none() {
                warn!(%address, "{}: anyone who reaches this address is served (--allow-any-client)", flag(option));
            }
        }
    }

    /// The egress listener knows its enclaves by their CIDs.
    fn check_peers(&self) -> Result<()> {
        let vsock = matches!(self.egress, Some(Address::Vsock { .. }));
        ensure!(
            !vsock || !self.enclave_cids().is_empty(),
            "--egress vsock:… takes only the CIDs of --enclave, and no address there is of the form vsock:CID:PORT"
        );
        Ok(())
    }

    /// The context ids of the enclaves: who may use the egress.
    pub fn enclave_cids(&self) -> BTreeSet<u32> {
        let cid = |address: &Address| match address {
            Address::Vsock { cid, .. } => Some(*cid),
            _ => None,
        };
        self.enclave.iter().filter_map(cid).collect()
    }

    /// How blobs are kept.
    pub fn blob_rules(&self) -> Rules {
        Rules { keep: DAY.saturating_mul(self.blobs_keep_days.get()), max_bytes: self.blobs_max_bytes.get() }
    }

    /// The names that clients may use; `None` for all.
    pub fn hosts(&self) -> Option<Vec<String>> {
        let hosts: Vec<String> = self.http_host_allowlist.iter().map(|host| host.0.clone()).collect();
        (!hosts.iter().any(|host| host == "*")).then_some(hosts)
    }

    /// The files of TLS, where it is served.
    pub fn tls(&self) -> Option<TlsFiles> {
        let (certificate, key) = (self.tls_certificate.clone()?, self.tls_key.clone()?);
        Some(TlsFiles { certificate, key, client_ca: self.tls_client_ca.clone() })
    }

    /// Those of administration, where it has a listener of its own.
    pub fn admin_tls(&self) -> Option<TlsFiles> {
        let (_, _, client_ca) = self.doors().nth(1)?;
        Some(TlsFiles { client_ca, ..self.tls()? })
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
    fn a_port_that_others_reach_wants_certificates_or_a_word() {
        let tls = ["--tls-certificate", "c.pem", "--tls-key", "k.pem"];
        let mutual = [&tls[..], &["--tls-client-ca", "ca.pem"]].concat();
        let any = ["--allow-any-client"];
        for listen in ["0.0.0.0:9000", "[::]:9000", "10.0.0.1:9000", "[::ffff:10.0.0.1]:9000"] {
            let with = |more: &[&str]| parse(&[&["--listen", listen], more].concat());
            for open in [&[][..], &tls, &["--key-manager-token-file", "token"]] {
                let error = with(open).unwrap_err().to_string();
                assert!(error.contains(listen) && error.contains("--allow-any-client"), "{error}");
            }
            assert!(with(&mutual).is_ok() && with(&any).is_ok() && with(&["--allow-any-client=true"]).is_ok());
            let admin = |more: &[&str]| parse(&[&["--admin-listen", listen], more].concat());
            assert!(admin(&[]).unwrap_err().to_string().contains("--admin-listen"));
            let admin_ca = admin(&[&tls[..], &["--admin-tls-client-ca", "a.pem"]].concat()).unwrap();
            assert_eq!(admin_ca.admin_tls().unwrap().client_ca, Some("a.pem".into()));
            assert_eq!(admin_ca.tls().unwrap().client_ca, None);
            assert_eq!(admin(&mutual).unwrap().admin_tls().unwrap().client_ca, Some("ca.pem".into()));
        }
        for listen in ["127.0.0.1:9000", "127.0.0.2:9000", "[::1]:9000", "[::ffff:127.0.0.1]:9000"] {
            assert!(parse(&["--listen", listen]).is_ok(), "{listen}");
        }
        assert!(parse(&["--admin-tls-client-ca", "a.pem"]).is_err());
        assert!(parse(&["--admin-listen", "127.0.0.1:9000"]).unwrap_err().to_string().contains("--listen"));
    }

    #[test]
    fn a_vsock_egress_knows_its_enclaves() {
        let two = parse(&["--egress", "vsock:3:7000", "--enclave", "vsock:16:5005,unix:/x,vsock:17:5005"]).unwrap();
        assert_eq!(two.enclave_cids().into_iter().collect::<Vec<_>>(), [16, 17]);
        let none = parse(&["--egress", "vsock:3:7000", "--enclave", "unix:/x"]).unwrap_err().to_string();
        assert!(none.contains("vsock:CID:PORT"), "{none}");
    }

    #[test]
    fn a_star_allows_every_host() {
        assert_eq!(parse(&[]).unwrap().hosts().unwrap(), ["localhost", "127.0.0.1", "[::1]"]);
        assert_eq!(parse(&["--http-host-allowlist", "*"]).unwrap().hosts(), None);
        let hosts = parse(&["--http-host-allowlist", "signer.internal, 10.0.0.1"]).unwrap().hosts().unwrap();
        assert_eq!(hosts, ["signer.internal", "10.0.0.1"]);
        assert_eq!(parse(&["--http-host-allowlist", "::1"]).unwrap().hosts().unwrap(), ["[::1]"]);
    }

    #[test]
    fn entries_of_the_host_allow_list_that_can_never_match_are_refused() {
        for never in
            ["signer:9000", "http://signer", "signer/", "localhost,", "10.0.0.1:9000", "two names", "*.example"]
        {
            let error = parse(&["--http-host-allowlist", never]).unwrap_err().to_string();
            assert!(error.contains("matches no request"), "{never}: {error}");
        }
    }
}
