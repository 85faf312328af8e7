//! The measured configuration: TOML in, checked types out.
//!
//! The vault never parses TOML: anyone who starts it reads the file here and hands it [`Configuration`].
//!
//! ```
//! let mainnet = casemate_config::named("mainnet").expect("it is built in")?;
//! assert_eq!((mainnet.slot_duration_ms(), mainnet.slots_per_epoch()), (12_000, 32));
//! // A file is taken whole or not at all.
//! assert!(casemate_config::configuration("group = \"main\"", casemate_protocol::Root::ZERO).is_err());
//! # Ok::<_, casemate_config::ConfigError>(())
//! ```
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use casemate_protocol::arn::{ArnError, KeyArn, TableArn};
use casemate_protocol::configuration::{
    ConfigurationError, FenceConfig, Operators, Policy, RecordStore, StoreEndpoint, Window,
};
use casemate_protocol::network::NetworkFields;
use casemate_protocol::store::{ClusterId, KeyPrefix, StoreNameError};
use casemate_protocol::{
    BoundedBytes, Bytes, Configuration, Epoch, ExecutionAddress, Fork, ForkName, Network, NetworkError, Preset, Root,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Deserializer, de};

/// The networks that need no file, with what they are called on the command line.
pub const NAMED: &[(&str, &str)] = &[
    ("mainnet", include_str!("../networks/mainnet.toml")),
    ("hoodi", include_str!("../networks/hoodi.toml")),
    ("sepolia", include_str!("../networks/sepolia.toml")),
    ("gnosis", include_str!("../networks/gnosis.toml")),
    ("chiado", include_str!("../networks/chiado.toml")),
];

/// Largest network file that is read, in bytes.
pub const MAX_FILE_LEN: usize = 64 * 1024;

/// Why a network file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum ConfigError {
    #[error("not a network file: {0}")]
    Malformed(String),
    #[error("not a configuration: {0}")]
    MalformedConfiguration(String),
    #[error(
        "the network {0:?} is not built in; known are mainnet, hoodi, sepolia, gnosis and chiado, or a [network] table"
    )]
    UnknownNetwork(String),
    #[error(
        "the fence's endpoint {0:?} is not of the form HOST:PORT, with a port of 1 to 65535 and an IPv6 address in brackets"
    )]
    Endpoint(String),
    #[error("the fence's table: {0}")]
    Table(#[from] ArnError),
    #[error(
        "the fence's table is named by its ARN alone: table = \"arn:aws:dynamodb:REGION:ACCOUNT:table/NAME\", and no region. A region and \
         a bare name would let the credentials choose the account"
    )]
    TableWithoutAccount,
    #[error("the fence's etcd: {0}")]
    StoreName(#[from] StoreNameError),
    #[error(
        "the policy does not say where fees go: write fee_recipient = \"0x…\" with the address that gets them, or fee_recipient = \"any\", with \
         which anyone who asks for signatures chooses it"
    )]
    FeeRecipientNotSaid,
    #[error("kms_key_arn: {0}")]
    KmsKey(ArnError),
    #[error("the graffiti has {0} bytes; 1 to 32 are allowed")]
    Graffiti(usize),
    #[error("the fence's root is no certificate in PEM of at most 4,096 bytes")]
    FenceRoot,
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error("the file has {0} bytes; {MAX_FILE_LEN} are allowed")]
    TooLong(usize),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// One of the networks that are built in.
pub fn named(name: &str) -> Option<Result<Network, ConfigError>> {
    NAMED.iter().find(|(n, _)| *n == name).map(|(_, text)| parse(text))
}

/// Reads a network from TOML.
pub fn parse(text: &str) -> Result<Network, ConfigError> {
    if text.len() > MAX_FILE_LEN {
        return Err(ConfigError::TooLong(text.len()));
    }
    network(toml::from_str(text).map_err(|e| ConfigError::Malformed(e.to_string()))?)
}

/// Reads a measured configuration from TOML. `sha256` is the digest of the text, as the statement will have it.
pub fn configuration(text: &str, sha256: Root) -> Result<Configuration, ConfigError> {
    if text.len() > MAX_FILE_LEN {
        return Err(ConfigError::TooLong(text.len()));
    }
    let file: ConfigurationFile =
        toml::from_str(text).map_err(|e| ConfigError::MalformedConfiguration(e.to_string()))?;
    let network = match file.network {
        NetworkChoice::Named(name) => match named(&name) {
            Some(network) => network?,
            None => return Err(ConfigError::UnknownNetwork(name.chars().take(80).collect())),
        },
        NetworkChoice::Table(table) => network(*table)?,
    };
    let operators = Operators {
        threshold: file.operators.threshold,
        keys: file.operators.keys.into_iter().map(|key| key.0).collect(),
    };
    let usual = Window::default();
    let policy = Policy {
        proof_of_validation: file.policy.proof_of_validation,
        voluntary_exits: file.policy.voluntary_exits,
        withdrawal_addresses: file.policy.withdrawal_addresses.into_iter().map(|address| address.0).collect(),
        fee_recipient: match file.policy.fee_recipient {
            None => return Err(ConfigError::FeeRecipientNotSaid),
            Some(FeeRecipient::Any) => None,
            Some(FeeRecipient::To(address)) => Some(address),
        },
        graffiti: file.policy.graffiti.as_deref().map(graffiti).transpose()?,
        block_proofs: file.policy.block_proofs,
        key_manager_import: file.policy.key_manager_import,
        key_manager_delete: file.policy.key_manager_delete,
        window: Window {
            max_block_age_slots: age(file.policy.max_block_age_slots, usual.max_block_age_slots),
            max_target_age_epochs: age(file.policy.max_target_age_epochs, usual.max_target_age_epochs),
        },
        builder_bids: file.policy.builder_bids,
    };
    let fence = file.fence.read()?;
    let configuration = Configuration::new(file.group, network, file.kms_key_arn, operators, policy, fence, sha256)?;
    // The vault would refuse it too, at a start where no one sees why.
    KeyArn::parse(&configuration.kms_key_arn).map_err(ConfigError::KmsKey)?;
    Ok(configuration)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigurationFile {
    group: String,
    network: NetworkChoice,
    kms_key_arn: String,
    operators: OperatorsTable,
    #[serde(default)]
    policy: PolicyTable,
    fence: FenceTable,
}

/// What covers what was signed before: said expressly, never a default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
enum FenceTable {
    Solo {},
    File {},
    Etcd {
        endpoints: Vec<String>,
        /// PEM.
        root: String,
        /// 16 hex digits.
        cluster: String,
        prefix: Option<String>,
    },
    Dynamodb {
        /// Its ARN.
        table: String,
        /// Not taken any more: it gets an error that says what to write.
        region: Option<toml::Value>,
    },
}

impl FenceTable {
    fn read(self) -> Result<FenceConfig, ConfigError> {
        let store = match self {
            Self::Solo {} => return Ok(FenceConfig::Solo),
            Self::File {} => RecordStore::File,
            Self::Dynamodb { table, region } => {
                if region.is_some() || !table.starts_with("arn:") {
                    return Err(ConfigError::TableWithoutAccount);
                }
                RecordStore::Dynamodb { table: TableArn::parse(&table)? }
            }
            Self::Etcd { endpoints, root, cluster, prefix } => {
                let endpoints = endpoints
                    .iter()
                    .map(|text| endpoint(text).ok_or_else(|| ConfigError::Endpoint(text.chars().take(80).collect())))
                    .collect::<Result<_, _>>()?;
                let root = CertificateDer::from_pem_slice(root.as_bytes()).map_err(|_| ConfigError::FenceRoot)?;
                let root = BoundedBytes::new(root.to_vec()).ok_or(ConfigError::FenceRoot)?;
                let prefix = prefix.map_or_else(|| Ok(KeyPrefix::default()), |prefix| KeyPrefix::parse(&prefix))?;
                RecordStore::Etcd { endpoints, root, cluster: ClusterId::parse(&cluster)?, prefix }
            }
        };
        Ok(FenceConfig::Record(store))
    }
}

/// `HOST:PORT`, or `[ADDRESS]:PORT` for IPv6. Whether the host can be one, and the port, is judged with the whole configuration.
fn endpoint(text: &str) -> Option<StoreEndpoint> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok().then_some(address)?,
        // Without brackets nobody knows where the address ends.
        None => (!host.contains(':')).then_some(host)?,
    };
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    Some(StoreEndpoint { host: host.to_owned(), port: port.parse().ok().filter(|_| digits)? })
}

/// A built-in network by its name, or all of its facts.
enum NetworkChoice {
    Named(String),
    Table(Box<File>),
}

impl<'de> Deserialize<'de> for NetworkChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(name) => Ok(Self::Named(name)),
            // With its own error, not that of a choice that failed both ways.
            table => File::deserialize(table).map(|file| Self::Table(Box::new(file))).map_err(de::Error::custom),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperatorsTable {
    threshold: u32,
    keys: Vec<Hex<32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a policy")]
struct PolicyTable {
    #[serde(default)]
    proof_of_validation: bool,
    #[serde(default)]
    voluntary_exits: bool,
    #[serde(default)]
    withdrawal_addresses: Vec<Hex<20>>,
    fee_recipient: Option<FeeRecipient>,
    graffiti: Option<String>,
    #[serde(default)]
    block_proofs: bool,
    #[serde(default)]
    key_manager_import: bool,
    #[serde(default)]
    key_manager_delete: bool,
    #[serde(default)]
    builder_bids: bool,
    max_block_age_slots: Option<Age>,
    max_target_age_epochs: Option<Age>,
}

/// Where fees go: said expressly, never a default.
enum FeeRecipient {
    Any,
    To(ExecutionAddress),
}

impl<'de> Deserialize<'de> for FeeRecipient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "any" {
            return Ok(Self::Any);
        }
        let address = Hex::<20>::deserialize(de::value::StringDeserializer::new(text));
        address.map(|address| Self::To(address.0))
    }
}

/// How old a duty may be: a number, or the word that lifts the bound.
#[derive(Clone, Copy)]
enum Age {
    Any,
    AtMost(u64),
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        match &value {
            toml::Value::Integer(age) => u64::try_from(*age).ok().map(Self::AtMost),
            toml::Value::String(word) if word == "any" => Some(Self::Any),
            _ => None,
        }
        .ok_or_else(|| de::Error::custom(format_args!("{value} is neither a number from 0 on nor \"any\"")))
    }
}

/// As the file has it; the usual where it says nothing.
fn age(told: Option<Age>, usual: Option<u64>) -> Option<u64> {
    match told {
        None => usual,
        Some(Age::Any) => None,
        Some(Age::AtMost(age)) => Some(age),
    }
}

/// A text of at most 32 bytes, as clients put it into blocks: padded with zeros.
fn graffiti(text: &str) -> Result<Root, ConfigError> {
    let mut padded = Root::ZERO;
    if text.is_empty() || text.len() > padded.0.len() {
        return Err(ConfigError::Graffiti(text.len()));
    }
    for (to, from) in padded.0.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    Ok(padded)
}

fn network(file: File) -> Result<Network, ConfigError> {
    let forks = file.forks.rows();
    Ok(Network::try_from(NetworkFields {
        name: file.name,
        preset: file.preset,
        genesis_time: file.genesis_time,
        genesis_validators_root: file.genesis_validators_root.0,
        slot_duration_ms: file.slot_duration_ms,
        slots_per_epoch: file.slots_per_epoch,
        forks,
    })?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "custom")]
    name: String,
    preset: Preset,
    genesis_time: u64,
    genesis_validators_root: Hex<32>,
    slot_duration_ms: u64,
    slots_per_epoch: u64,
    forks: Forks,
}

fn custom() -> String {
    "custom".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forks {
    phase0: Option<Row>,
    altair: Option<Row>,
    bellatrix: Option<Row>,
    capella: Option<Row>,
    deneb: Option<Row>,
    electra: Option<Row>,
    fulu: Option<Row>,
    gloas: Option<Row>,
    heze: Option<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    version: Hex<4>,
    epoch: Option<u64>,
}

impl Forks {
    fn rows(self) -> Vec<Fork> {
        [
            (ForkName::Phase0, self.phase0),
            (ForkName::Altair, self.altair),
            (ForkName::Bellatrix, self.bellatrix),
            (ForkName::Capella, self.capella),
            (ForkName::Deneb, self.deneb),
            (ForkName::Electra, self.electra),
            (ForkName::Fulu, self.fulu),
            (ForkName::Gloas, self.gloas),
            (ForkName::Heze, self.heze),
        ]
        .into_iter()
        .filter_map(|(name, row)| row.map(|r| Fork { name, version: r.version.0, epoch: r.epoch.map(Epoch) }))
        .collect()
    }
}

/// `0x`-hex of exactly `N` bytes.
struct Hex<const N: usize>(Bytes<N>);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let error = || de::Error::custom(format_args!("{text:?} is not 0x and the hex of {N} bytes"));
        let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with("0x")).ok_or_else(error)?;
        Ok(Self(Bytes(const_hex::decode_to_array(digits).map_err(|_| error())?)))
    }
}
