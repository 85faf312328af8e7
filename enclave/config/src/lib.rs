//! What the measured configuration says about a network: TOML in, checked types out.
//!
//! The vault never parses TOML: whoever starts it reads the file here and hands it [`Network`].
#![forbid(unsafe_code)]

use casemate_protocol::network::NetworkFields;
use casemate_protocol::{Bytes, Epoch, Fork, ForkName, Network, NetworkError, Preset};
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
    #[error("the network file has {0} bytes; {MAX_FILE_LEN} are allowed")]
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
    let file: File = toml::from_str(text).map_err(|e| ConfigError::Malformed(e.to_string()))?;
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
        let digits = text.strip_prefix("0x").ok_or_else(error)?;
        Ok(Self(Bytes(const_hex::decode_to_array(digits).map_err(|_| error())?)))
    }
}
