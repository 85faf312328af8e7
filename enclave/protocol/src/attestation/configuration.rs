//! What the measured configuration tells the vault, as anyone who starts it hands it over: one CBOR map through a pipe.
//!
//! The TOML itself is read outside the vault (casemate-config); its digest stands in the statement.

use serde::{Deserialize, Serialize};

use crate::arn::TableArn;
use crate::cbor::{self, Form};
use crate::command::{MAX_OPERATORS, OperatorKey};
use crate::statement::{FenceKind, MAX_TEXT_LEN, RecordKind};
use crate::store::{ClusterId, KeyPrefix, is_host};
pub use crate::window::Window;
use crate::{BoundedBytes, ExecutionAddress, Network, Root};

/// The one version.
pub const VERSION: u64 = 1;
/// Longest configuration, in bytes.
pub const MAX_CONFIGURATION_LEN: usize = 64 * 1024;
/// Longest key ARN, in bytes.
pub const MAX_ARN_LEN: usize = 256;
/// Longest name of a group, in bytes: it is a folder's name too.
pub const MAX_GROUP_LEN: usize = 64;
/// Most withdrawal addresses.
pub const MAX_ADDRESSES: usize = 256;
/// Most endpoints of the fence's store.
pub const MAX_ENDPOINTS: usize = 9;

/// What an enclave is configured to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    version: u64,
    /// The group whose keys it holds.
    pub group: String,
    /// The chain that it signs for.
    pub network: Network,
    /// The KMS key that its keys are sealed under.
    pub kms_key_arn: String,
    /// Who may change its keys.
    pub operators: Operators,
    /// What it allows.
    pub policy: Policy,
    /// What covers what was signed before.
    pub fence: FenceConfig,
    /// SHA-256 of the configuration as it was measured.
    pub sha256: Root,
}

/// What stands for what was signed before: a record in a store, or nothing but time.
///
/// The two are apart in the type, so that no program can take a store that could not be made for a fence that needs none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum FenceConfig {
    /// No record: trusted time covers what was signed before. It does not stop clones.
    Solo,
    /// A record in this store.
    Record(RecordStore),
}

/// Where the fence's record is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RecordStore {
    /// In a file on the parent's disk: for a disk that its owner trusts.
    File,
    /// In etcd.
    Etcd {
        /// Hosts and ports of one cluster; each is tried in turn.
        endpoints: Vec<StoreEndpoint>,
        /// The certificate that its servers' certificates come from, DER.
        root: BoundedBytes<1, 4096>,
        /// Which cluster it is: an answer of another counts for nothing.
        cluster: ClusterId,
        /// In front of the record's key.
        prefix: KeyPrefix,
    },
    /// In DynamoDB.
    Dynamodb {
        /// The table. Its ARN says the account too, which the credentials would choose otherwise.
        table: TableArn,
    },
}

impl FenceConfig {
    /// Its kind, as the statement names it.
    pub fn kind(&self) -> FenceKind {
        match self {
            Self::Solo => FenceKind::Solo,
            Self::Record(store) => store.kind().into(),
        }
    }

    fn check(&self) -> Result<(), ConfigurationError> {
        match self {
            // An ARN that was read is right.
            Self::Solo | Self::Record(RecordStore::File | RecordStore::Dynamodb { .. }) => Ok(()),
            Self::Record(RecordStore::Etcd { endpoints, .. }) => {
                if !(1..=MAX_ENDPOINTS).contains(&endpoints.len()) {
                    return Err(ConfigurationError::Endpoints(endpoints.len()));
                }
                endpoints.iter().try_for_each(StoreEndpoint::check)
            }
        }
    }
}

impl RecordStore {
    /// Its kind.
    pub fn kind(&self) -> RecordKind {
        match self {
            Self::File => RecordKind::File,
            Self::Etcd { .. } => RecordKind::Etcd,
            Self::Dynamodb { .. } => RecordKind::Dynamodb,
        }
    }
}

/// A server of the fence's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreEndpoint {
    /// DNS name or address, as its certificate has it.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl StoreEndpoint {
    fn check(&self) -> Result<(), ConfigurationError> {
        if !is_host(&self.host) {
            return Err(ConfigurationError::Host(self.host.chars().take(80).collect()));
        }
        if self.port == 0 {
            return Err(ConfigurationError::Port(self.host.clone()));
        }
        Ok(())
    }
}

/// M of N operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operators {
    /// How many must sign a command.
    pub threshold: u32,
    /// All of them; none where nothing can be changed.
    pub keys: Vec<OperatorKey>,
}

/// What an enclave allows beyond duties.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a policy")]
pub struct Policy {
    /// Sign proofs of validation.
    pub proof_of_validation: bool,
    /// Sign voluntary exits for anyone who asks.
    pub voluntary_exits: bool,
    /// Addresses that deposits may withdraw to.
    pub withdrawal_addresses: Vec<ExecutionAddress>,
    /// Where fees go, unless operators have ordered another address for a key; nothing where anybody may say.
    pub fee_recipient: Option<ExecutionAddress>,
    /// What blocks say, padded with zeros; nothing where anybody may say.
    pub graffiti: Option<Root>,
    /// Blocks come with proofs that their bodies have this fee recipient and graffiti.
    pub block_proofs: bool,
    /// Take in keystores that the parent has seen.
    pub key_manager_import: bool,
    /// Delete keys without operators.
    pub key_manager_delete: bool,
    /// How old blocks and votes may be.
    pub window: Window,
    /// Sign bids of builders, which commit their balance.
    pub builder_bids: bool,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum ConfigurationError {
    #[error("the configuration has {len} bytes; 1 to {MAX_CONFIGURATION_LEN} are allowed")]
    Size { len: usize },
    #[error("this is not the one encoding of a configuration")]
    Encoding,
    #[error("the configuration is of version {0}; {VERSION} is understood here")]
    Version(u64),
    #[error(
        "the group's name {0:?} is not allowed: 1 to {MAX_GROUP_LEN} letters, digits, - and _, with a letter or digit first"
    )]
    Group(String),
    #[error("kms_key_arn has {0} bytes; 1 to {MAX_ARN_LEN} are allowed")]
    ArnLength(usize),
    #[error("the network's name has a character that is not printable ASCII, or more than {MAX_TEXT_LEN} bytes")]
    NetworkName,
    #[error("there are {0} operators; {MAX_OPERATORS} are allowed at most")]
    TooManyOperators(usize),
    #[error("the operator {0} is named twice")]
    OperatorTwice(OperatorKey),
    #[error("the threshold is {threshold} of {operators} operators")]
    Threshold { threshold: u32, operators: usize },
    #[error("the fence's store has {0} endpoints; 1 to {MAX_ENDPOINTS} are allowed")]
    Endpoints(usize),
    #[error(
        "the fence's store: {0:?} is no host. A DNS name is allowed (labels of letters, digits and inner hyphens), or an IP address"
    )]
    Host(String),
    #[error("the fence's store: the port of {0:?} is 0; 1 to 65535 are allowed")]
    Port(String),
    #[error(
        "the policy wants proofs of blocks (block_proofs), and names neither fee_recipient nor graffiti to be proved"
    )]
    NothingToProve,
    #[error(
        "the policy names a graffiti, and does not want proofs of blocks (block_proofs): nothing would hold blocks to it"
    )]
    GraffitiWithoutProofs,
    #[error("there are {0} withdrawal addresses; {MAX_ADDRESSES} are allowed at most")]
    TooManyAddresses(usize),
}

impl Configuration {
    /// A configuration whose parts are right.
    pub fn new(
        group: String,
        network: Network,
        kms_key_arn: String,
        operators: Operators,
        policy: Policy,
        fence: FenceConfig,
        sha256: Root,
    ) -> Result<Self, ConfigurationError> {
        let configuration = Self { version: VERSION, group, network, kms_key_arn, operators, policy, fence, sha256 };
        configuration.check()?;
        Ok(configuration)
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to memory cannot fail, and a configuration has nothing that CBOR cannot say.
        let written = cbor::encode(self, Form::Named, &mut out);
        debug_assert!(written);
        out
    }

    /// Reads exactly one configuration.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigurationError> {
        if bytes.is_empty() || bytes.len() > MAX_CONFIGURATION_LEN {
            return Err(ConfigurationError::Size { len: bytes.len() });
        }
        let configuration: Self = cbor::decode(bytes, Form::Named).ok_or(ConfigurationError::Encoding)?;
        if configuration.version != VERSION {
            return Err(ConfigurationError::Version(configuration.version));
        }
        configuration.check()?;
        Ok(configuration)
    }

    fn check(&self) -> Result<(), ConfigurationError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let group = self.group.as_bytes();
        let named = (1..=MAX_GROUP_LEN).contains(&group.len()) && group.iter().all(|b| allowed(*b));
        if !named || !group.first().is_some_and(u8::is_ascii_alphanumeric) {
            return Err(ConfigurationError::Group(self.group.chars().take(80).collect()));
        }
        if !(1..=MAX_ARN_LEN).contains(&self.kms_key_arn.len()) {
            return Err(ConfigurationError::ArnLength(self.kms_key_arn.len()));
        }
        let name = self.network.name();
        // It stands in the statement.
        if name.len() > MAX_TEXT_LEN || !name.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(ConfigurationError::NetworkName);
        }
        let Operators { threshold, keys } = &self.operators;
        if keys.len() > MAX_OPERATORS {
            return Err(ConfigurationError::TooManyOperators(keys.len()));
        }
        if let Some((_, twice)) = keys.iter().enumerate().find(|(n, key)| keys.iter().take(*n).any(|k| k == *key)) {
            return Err(ConfigurationError::OperatorTwice(*twice));
        }
        // One of none is no threshold either; none of none says that nothing can be changed.
        let reachable = usize::try_from(*threshold).is_ok_and(|threshold| threshold <= keys.len());
        if !reachable || (*threshold == 0) != keys.is_empty() {
            return Err(ConfigurationError::Threshold { threshold: *threshold, operators: keys.len() });
        }
        self.fence.check()?;
        let Policy { fee_recipient, graffiti, block_proofs, .. } = &self.policy;
        if *block_proofs && fee_recipient.is_none() && graffiti.is_none() {
            return Err(ConfigurationError::NothingToProve);
        }
        if graffiti.is_some() && !block_proofs {
            return Err(ConfigurationError::GraffitiWithoutProofs);
        }
        if self.policy.withdrawal_addresses.len() > MAX_ADDRESSES {
            return Err(ConfigurationError::TooManyAddresses(self.policy.withdrawal_addresses.len()));
        }
        Ok(())
    }
}
