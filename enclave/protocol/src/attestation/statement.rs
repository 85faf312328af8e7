//! The statement: what an enclave says of itself, and binds into its attestation document.
//!
//! It travels beside the document; the document's user_data is the SHA-256 of its bytes. It is CBOR with names, so that
//! anyone who keeps one can still read it in years.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cbor::{self, Form};
use crate::slot_clock::SlotClock;
use crate::window::Window;
use crate::{Bytes, Epoch, Network, Root, Slot};

/// The one version of statements.
pub const VERSION: u64 = 1;
/// Longest statement, in bytes.
pub const MAX_STATEMENT_LEN: usize = 4096;
/// Longest text in a statement, in bytes.
pub const MAX_TEXT_LEN: usize = 128;
/// Longest name of a store, in bytes: a table's ARN is the longest.
pub const MAX_STORE_LEN: usize = 512;
/// Depth of the tree over the public keys: SSZ's `List[BLSPubkey, 2**40]`, as the registry of validators.
pub const KEYS_DEPTH: u32 = 40;

/// What an enclave says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    version: u64,
    /// Version of Casemate.
    pub product_version: String,
    /// The group whose keys it holds.
    pub group: String,
    /// The chain that it signs for.
    pub network: StatedNetwork,
    /// The keys that sign.
    pub public_keys: StatedKeys,
    /// SHA-256 of the measured configuration.
    pub configuration_sha256: Root,
    /// What stands for the past.
    pub fence: FenceStatement,
    /// How old blocks and votes may be and still be signed.
    pub window: Window,
    /// Drawn from the NSM's entropy when this enclave started: two starts never share it.
    pub boot_nonce: Bytes<32>,
    /// Ed25519: signs the heads of the log and the pages of history. Made anew at every start.
    pub record_key: Bytes<32>,
    /// The last operators' command of this boot, and what became of it.
    pub last_command: Option<StatedCommand>,
    /// The sealed state in force; nothing where none was sealed yet.
    pub state: Option<StatedState>,
}

/// A sealed state, by what tells it from every other: anyone who keeps copies of the parent's blobs can say which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedState {
    /// Its number, which rises with every sealing.
    pub number: u64,
    /// SHA-256 of its blob.
    pub sha256: Root,
    /// Version of the fence's record when it was sealed; 0 where there was none.
    pub fence_version: u64,
}

/// A command, by what identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedCommand {
    /// Its counter.
    pub counter: u64,
    /// SHA-256 of its bytes.
    pub sha256: Root,
    /// What became of it.
    pub result: CommandResult,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum CommandResult {
    /// It was carried out.
    Done {
        /// SHA-256 of its outcome ([`crate::command::Outcome::encode`]).
        outcome_sha256: Root,
    },
    /// It was refused, and has changed nothing.
    Refused,
    /// Whether the parent has kept what it changed is not known: it may take effect at the next start.
    MaybeSealed,
}

/// A chain, by what pins it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedNetwork {
    /// Its name in the configuration.
    pub name: String,
    /// Its root.
    pub genesis_validators_root: Root,
    /// Unix seconds.
    pub genesis_time: u64,
    /// Milliseconds of a slot.
    pub slot_duration_ms: u64,
    /// Slots of an epoch.
    pub slots_per_epoch: u64,
}

impl From<&Network> for StatedNetwork {
    fn from(network: &Network) -> Self {
        Self {
            name: network.name().to_owned(),
            genesis_validators_root: network.genesis_validators_root(),
            genesis_time: network.genesis_time(),
            slot_duration_ms: network.slot_duration_ms(),
            slots_per_epoch: network.slots_per_epoch(),
        }
    }
}

impl From<&StatedNetwork> for SlotClock {
    fn from(network: &StatedNetwork) -> Self {
        Self::new(network.genesis_time, network.slot_duration_ms, network.slots_per_epoch)
    }
}

/// The keys that sign, as one root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedKeys {
    /// How many.
    pub count: u64,
    /// SSZ hash tree root of `List[BLSPubkey, 2**40]` over them in ascending order of their bytes.
    pub root: Root,
}

/// The fence in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceStatement {
    /// Of which kind.
    pub kind: FenceKind,
    /// Which store has its record, as this enclave asks it: a table's ARN, or an etcd as [`crate::store::etcd_identity`] names it.
    /// Nothing where the kind has no store that could be another.
    pub store: Option<String>,
    /// The term that this enclave holds; 0 where it holds none, or the kind has none.
    #[serde(rename = "generation")]
    pub term: u64,
    /// What this enclave is to the record.
    pub standing: StatedStatus,
    /// The record as this enclave last saw it, where the kind has one.
    pub record: Option<StatedRecord>,
    /// What this enclave stays above, besides what each key has signed.
    pub floors: StatedFloors,
    /// By this enclave's clock, when it last looked: Unix milliseconds. Nothing where it does not trust its clock.
    pub time_ms: Option<u64>,
}

/// The record in the fence's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedRecord {
    /// Rises with every change.
    pub version: u64,
    /// Boot nonce of the enclave that holds it; zeros before the first.
    pub holder: Bytes<32>,
    /// Rises with every claim.
    #[serde(rename = "generation")]
    pub term: u64,
    /// The holder signs no block above this slot.
    pub slot_ceiling: Slot,
    /// The holder signs no attestation with a target above this epoch.
    pub target_ceiling: Epoch,
    /// The holder signs no attestation with a source above this epoch.
    pub source_ceiling: Epoch,
    /// The oldest sealed state that may be loaded.
    #[serde(rename = "sealed_generation")]
    pub min_state_version: u64,
    /// The exact state that its last holder has left behind, or that was sealed with a first record, by its SHA-256: anyone who has that
    /// one needs no floors.
    #[serde(rename = "clean")]
    pub released_state: Option<Root>,
    /// It has ended for good: nobody claims it any more.
    pub closed: bool,
}

/// Floors; nothing where none are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedFloors {
    /// Blocks only above this slot.
    pub slot: Option<Slot>,
    /// Attestations only with a target above this epoch.
    pub target: Option<Epoch>,
    /// Attestations only with a source at or above this epoch.
    pub source: Option<Epoch>,
}

/// What an enclave is to the fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatedStatus {
    /// The kind has no record: it may sign.
    #[default]
    NoStore,
    /// It has not heard from the store yet.
    #[serde(rename = "apart")]
    Unknown,
    /// There is no record in the store.
    NoRecord,
    /// Another enclave holds the record, or did; this one stands by.
    Standby,
    /// The parent offers no sealed state that is new enough.
    OldState,
    /// It holds the record: it may sign.
    Holding,
    /// It hands over: it signs no more, and its successor does not yet.
    HandingOver,
    /// The store shows an older record than before: nothing is signed in this boot any more.
    #[serde(rename = "went_back")]
    RolledBack,
    /// The record has ended for good; operators make the next one, here or in another store.
    Closed,
}

impl StatedStatus {
    /// Whether the fence lets it sign.
    pub fn signs(self) -> bool {
        matches!(self, Self::NoStore | Self::Holding)
    }
}

impl FenceStatement {
    /// A fence without a record.
    pub fn without_store(kind: FenceKind, floors: StatedFloors) -> Self {
        let standing = StatedStatus::NoStore;
        Self { kind, store: None, term: 0, standing, record: None, floors, time_ms: None }
    }
}

/// Kinds of fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceKind {
    /// None: watermarks in a file on a disk that is trusted, as the development stack keeps them.
    None,
    /// Trusted time alone.
    Solo,
    /// A record in a file on a disk that is trusted.
    File,
    /// A record in etcd.
    Etcd,
    /// A record in DynamoDB.
    Dynamodb,
}

impl fmt::Display for FenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Solo => "solo",
            Self::File => "file",
            Self::Etcd => "etcd",
            Self::Dynamodb => "dynamodb",
        })
    }
}

/// Kinds of fence that have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// In a file on a disk that is trusted.
    File,
    /// In etcd.
    Etcd,
    /// In DynamoDB.
    Dynamodb,
}

impl From<RecordKind> for FenceKind {
    fn from(kind: RecordKind) -> Self {
        match kind {
            RecordKind::File => Self::File,
            RecordKind::Etcd => Self::Etcd,
            RecordKind::Dynamodb => Self::Dynamodb,
        }
    }
}

/// Why bytes are no statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum StatementError {
    #[error("the statement is {len} bytes long; 1 to {MAX_STATEMENT_LEN} are allowed")]
    Size { len: usize },
    #[error("the statement is not the one encoding of a statement")]
    Encoding,
    #[error("the statement is of version {0}; {VERSION} is understood here")]
    Version(u64),
    #[error(
        "a text of the statement is longer than {MAX_TEXT_LEN} bytes ({MAX_STORE_LEN} for the fence's store) or has a character that is \
         not printable ASCII"
    )]
    Text,
}

impl Statement {
    /// A statement of this version.
    #[allow(clippy::too_many_arguments, reason = "each is a field")]
    pub fn new(
        product_version: String,
        group: String,
        network: StatedNetwork,
        public_keys: StatedKeys,
        configuration_sha256: Root,
        fence: FenceStatement,
        window: Window,
        boot_nonce: Bytes<32>,
        record_key: Bytes<32>,
    ) -> Self {
        Self {
            version: VERSION,
            product_version,
            group,
            network,
            public_keys,
            configuration_sha256,
            fence,
            window,
            boot_nonce,
            record_key,
            last_command: None,
            state: None,
        }
    }

    /// With a sealed state in force.
    #[must_use]
    pub fn with_state(mut self, state: Option<StatedState>) -> Self {
        self.state = state;
        self
    }

    /// After a command.
    #[must_use]
    pub fn after(mut self, command: Option<StatedCommand>) -> Self {
        self.last_command = command;
        self
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to memory cannot fail, and a statement has nothing that CBOR cannot say.
        let written = cbor::encode(self, Form::Named, &mut out);
        debug_assert!(written);
        out
    }

    /// Reads exactly one statement.
    pub fn decode(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.is_empty() || bytes.len() > MAX_STATEMENT_LEN {
            return Err(StatementError::Size { len: bytes.len() });
        }
        let statement: Self = cbor::decode(bytes, Form::Named).ok_or(StatementError::Encoding)?;
        if statement.version != VERSION {
            return Err(StatementError::Version(statement.version));
        }
        // They are shown on terminals.
        let plain = |text: &String, max: usize| {
            text.len() <= max && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        };
        let texts = [&statement.product_version, &statement.group, &statement.network.name];
        let store = statement.fence.store.as_ref().is_none_or(|store| plain(store, MAX_STORE_LEN));
        if store && texts.into_iter().all(|text| plain(text, MAX_TEXT_LEN)) {
            Ok(statement)
        } else {
            Err(StatementError::Text)
        }
    }
}
