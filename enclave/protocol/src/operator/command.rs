//! Operators' commands: what changes an enclave's keys, signed by M of N operators that its measured configuration names.
//!
//! A command is CBOR with names, so that anyone who signs it on another machine can read it there: everything but the secret keys
//! is in clear. It is for one boot of one enclave (its boot nonce stands in it) and can be carried out once (its counter rises).
//! The parent carries it and can at most lose it.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::bytes::BoundedBytes;
use crate::cbor::{self, Form};
use crate::watermarks::Watermarks;
use crate::{Bytes, Epoch, ExecutionAddress, PublicKey, Root, Signature, Slot};

/// The one version.
pub const VERSION: u64 = 1;
/// Longest command with its signatures, in bytes.
pub const MAX_SIGNED_LEN: usize = 1024 * 1024;
/// Longest command, in bytes: there is room for the signatures beside it.
pub const MAX_COMMAND_LEN: usize = MAX_SIGNED_LEN - 8192;
/// Most keys in one command.
pub const MAX_KEYS: usize = 1000;
/// Most operators, and most signatures.
pub const MAX_OPERATORS: usize = 32;
/// Bytes of a secret key.
pub const SECRET_LEN: usize = 32;
/// Bytes that HPKE adds: the tag of AES-256-GCM.
pub const HPKE_TAG_LEN: usize = 16;
/// What a signature is over, besides the command: no other use of the key can be mistaken for it.
pub const SIGNATURE_DOMAIN: &[u8] = b"casemate operator command v1\n";
/// HPKE's `info` for secret keys; its `aad` is the boot nonce.
pub const HPKE_INFO: &[u8] = b"casemate import v1";
/// The same for credentials of the fence's store.
pub const FENCE_HPKE_INFO: &[u8] = b"casemate fence v1";
/// Longest credentials of the fence's store, in bytes.
pub const MAX_CREDENTIALS_LEN: usize = 24 * 1024;
/// Longest id of an access key, and longest secret, in bytes.
pub const MAX_ACCESS_KEY_LEN: usize = 256;

/// An Ed25519 public key.
pub type OperatorKey = Bytes<32>;
/// A command with its signatures, encoded.
pub type Envelope = BoundedBytes<1, MAX_SIGNED_LEN>;

/// What operators order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    version: u64,
    /// The group that it is for.
    pub group: String,
    /// The chain that it is for.
    pub genesis_validators_root: Root,
    /// The boot of the enclave that it is for.
    pub boot_nonce: Bytes<32>,
    /// Above that of every command carried out before in this boot; Unix milliseconds do.
    pub counter: u64,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Action {
    /// Take in keys.
    Import {
        /// The keys.
        keys: Vec<ImportedKey>,
        /// Their secret keys in this order, encrypted to the enclave.
        secrets: EncryptedSecrets,
    },
    /// Make keys, and sign their deposits.
    Generate {
        /// How many.
        count: u32,
        /// Where the stake goes when it is withdrawn.
        withdrawal_credentials: Root,
        /// The deposits' amount, in Gwei.
        amount: u64,
    },
    /// Sign deposits of keys that are there.
    Deposit {
        /// The keys.
        keys: Vec<PublicKey>,
        /// Where the stake goes when it is withdrawn.
        withdrawal_credentials: Root,
        /// The deposits' amount, in Gwei.
        amount: u64,
    },
    /// Delete keys. What they have signed is remembered.
    Delete {
        /// The keys.
        keys: Vec<PublicKey>,
    },
    /// Make the fence's record, or exchange the credentials of its store.
    FenceInit {
        /// Which of it.
        record: RecordOrder,
        /// [`StoreCredentials`], encrypted to the enclave; nothing where the store needs none.
        credentials: Option<EncryptedSecrets>,
        /// Which credentials those are, for anyone who signs the command: the enclave compares it with what it decrypts.
        credentials_id: Option<CredentialsId>,
    },
    /// Leave in order: sign no more, and leave the exact state for a successor.
    #[serde(rename = "hand_over")]
    Handover,
    /// End the fence's record for good: nobody claims or extends it any more, so that the next one can be made in another store.
    FenceClose,
    /// Claim the fence at once, without waiting for the holder's ceilings to pass.
    #[serde(rename = "take_over")]
    Takeover,
    /// Sign voluntary exits, and let validator clients have them signed too.
    Exit {
        /// Who leaves.
        exits: Vec<ExitOrder>,
        /// No exit of a later epoch is signed for this order.
        last_epoch: Epoch,
    },
    /// Where the fees of keys go: nobody is told another address.
    FeeRecipient {
        /// The keys.
        keys: Vec<PublicKey>,
        /// Nothing for the one that the configuration names.
        fee_recipient: Option<ExecutionAddress>,
    },
    /// Add to what keys have signed.
    #[serde(rename = "raise_history")]
    RaiseHistory {
        /// The keys.
        keys: Vec<KeyHistory>,
    },
}

/// What a command orders, without what it is about. The order of the variants is part of the signing log's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of the actions")]
pub enum ActionKind {
    Import,
    Generate,
    Deposit,
    Delete,
    FenceInit,
    Handover,
    FenceClose,
    Takeover,
    Exit,
    FeeRecipient,
    RaiseHistory,
}

impl ActionKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Import,
        Self::Generate,
        Self::Deposit,
        Self::Delete,
        Self::FenceInit,
        Self::Handover,
        Self::FenceClose,
        Self::Takeover,
        Self::Exit,
        Self::FeeRecipient,
        Self::RaiseHistory,
    ];

    /// One word, for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Generate => "generate",
            Self::Deposit => "deposit",
            Self::Delete => "delete",
            Self::FenceInit => "fence_init",
            Self::Handover => "handover",
            Self::FenceClose => "fence_close",
            Self::Takeover => "takeover",
            Self::Exit => "exit",
            Self::FeeRecipient => "fee_recipient",
            Self::RaiseHistory => "raise_history",
        }
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Action {
    /// What it orders.
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Import { .. } => ActionKind::Import,
            Self::Generate { .. } => ActionKind::Generate,
            Self::Deposit { .. } => ActionKind::Deposit,
            Self::Delete { .. } => ActionKind::Delete,
            Self::FenceInit { .. } => ActionKind::FenceInit,
            Self::Handover => ActionKind::Handover,
            Self::FenceClose => ActionKind::FenceClose,
            Self::Takeover => ActionKind::Takeover,
            Self::Exit { .. } => ActionKind::Exit,
            Self::FeeRecipient { .. } => ActionKind::FeeRecipient,
            Self::RaiseHistory { .. } => ActionKind::RaiseHistory,
        }
    }

    /// The keys that it names, in its order; none of those that are yet to be made.
    pub fn public_keys(&self) -> Vec<PublicKey> {
        match self {
            Self::Import { keys, .. } => keys.iter().map(|key| key.public_key).collect(),
            Self::Deposit { keys, .. } | Self::Delete { keys } | Self::FeeRecipient { keys, .. } => keys.clone(),
            Self::Exit { exits, .. } => exits.iter().map(|exit| exit.public_key).collect(),
            Self::RaiseHistory { keys } => keys.iter().map(|key| key.public_key).collect(),
            Self::Generate { .. } | Self::FenceInit { .. } | Self::FenceClose | Self::Handover | Self::Takeover => {
                Vec::new()
            }
        }
    }
}

/// A validator that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitOrder {
    /// Its key.
    pub public_key: PublicKey,
    /// Its index on the chain.
    pub validator_index: u64,
}

/// A key and what it has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyHistory {
    /// The key.
    pub public_key: PublicKey,
    /// The highest that it has signed.
    pub past: Watermarks,
}

/// What is to become of the fence's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RecordOrder {
    /// Make the first one: no key of the group has signed under a fence before.
    New,
    /// Make it anew, because the store has lost it. The first holder stays above what can have been signed until now.
    Lost {
        /// What the enclave's state must be: an older one would bring deleted keys back.
        last: LastState,
    },
    /// Leave it as it is: only the credentials are new.
    Keep,
    /// Make the next one after a record that has ended: in another store, or in the same.
    After {
        /// That record.
        closed: ClosedRecord,
    },
}

/// The last state that was sealed under a record that is lost, as its last holder has stated it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastState {
    /// Root of the public keys that sign.
    pub keys_root: Root,
    /// Version of the fence's record that the state had seen, at least.
    pub fence_version: u64,
}

/// A record that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosedRecord {
    /// Its version.
    pub version: u64,
    /// Its term.
    #[serde(rename = "generation")]
    pub term: u64,
    /// No block above this slot was signed under it.
    pub slot_ceiling: Slot,
    /// No attestation with a target above this epoch.
    pub target_ceiling: Epoch,
    /// No attestation with a source above this epoch.
    pub source_ceiling: Epoch,
    /// The oldest sealed state that may be loaded.
    #[serde(rename = "sealed_generation")]
    pub min_state_version: u64,
    /// SHA-256 of the exact state that its last holder has left behind; nothing where it left none.
    #[serde(rename = "clean")]
    pub released_state: Option<Root>,
}

/// What opens the fence's store.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum StoreCredentials {
    /// A client's certificate.
    Etcd {
        /// DER, the client's own first.
        certificates: Vec<BoundedBytes<1, 4096>>,
        /// PKCS #8, DER.
        key: BoundedBytes<1, 4096>,
    },
    /// Of a user or role that may write one item.
    Dynamodb {
        /// Access key id.
        access_key_id: String,
        /// Its secret.
        secret_access_key: String,
    },
}

/// What credentials are known by, without what they are worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum CredentialsId {
    /// Of an access key: its id, which AWS shows too.
    AccessKey(String),
    /// Of a client's certificate: SHA-256 of its DER.
    Certificate(Root),
}

impl CredentialsId {
    fn is_bounded(&self) -> bool {
        match self {
            Self::AccessKey(id) => is_plain(id),
            Self::Certificate(_) => true,
        }
    }
}

/// What an access key has; it is shown on terminals and stands in a header.
fn is_plain(text: &str) -> bool {
    (1..=MAX_ACCESS_KEY_LEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

impl StoreCredentials {
    /// What they are known by. Nothing where there is no certificate, which [`Self::decode`] does not take.
    pub fn id(&self, sha256: impl FnOnce(&[u8]) -> Root) -> Option<CredentialsId> {
        match self {
            Self::Etcd { certificates, .. } => {
                certificates.first().map(|own| CredentialsId::Certificate(sha256(own.as_ref())))
            }
            Self::Dynamodb { access_key_id, .. } => Some(CredentialsId::AccessKey(access_key_id.clone())),
        }
    }

    /// Their bytes, to be encrypted.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(MAX_CREDENTIALS_LEN));
        let written = cbor::encode(self, Form::Named, &mut *out);
        debug_assert!(written);
        out
    }

    /// Reads exactly one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_CREDENTIALS_LEN {
            return None;
        }
        cbor::decode(bytes, Form::Named).filter(Self::is_bounded)
    }

    fn is_bounded(&self) -> bool {
        match self {
            Self::Etcd { certificates, .. } => (1..=4).contains(&certificates.len()),
            Self::Dynamodb { access_key_id, secret_access_key } => {
                is_plain(access_key_id) && is_plain(secret_access_key)
            }
        }
    }
}

/// A key to take in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedKey {
    /// Its public key.
    pub public_key: PublicKey,
    /// What it has signed so far; nothing where the operators accept that nobody knows.
    pub history: Option<Watermarks>,
}

/// HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncryptedSecrets {
    /// The encapsulated key.
    pub enc: Bytes<32>,
    /// The ciphertext.
    pub ciphertext: BoundedBytes<HPKE_TAG_LEN, { MAX_KEYS * SECRET_LEN + HPKE_TAG_LEN }>,
}

/// A command with its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedCommand {
    version: u64,
    /// The command's bytes, which are what is signed.
    pub command: BoundedBytes<1, MAX_COMMAND_LEN>,
    /// At most one of each operator.
    pub signatures: Vec<OperatorSignature>,
}

/// An operator's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorSignature {
    /// Whose.
    pub operator: OperatorKey,
    /// Ed25519 over [`SIGNATURE_DOMAIN`] and the command.
    pub signature: Bytes<64>,
}

/// Why bytes are no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum CommandError {
    #[error("the command has {len} bytes; 1 to {max} are allowed")]
    Size { len: usize, max: usize },
    #[error("this is not the one encoding of a command")]
    Encoding,
    #[error("the command is of version {0}; {VERSION} is understood here")]
    Version(u64),
    #[error("the command has {keys} keys; 1 to {MAX_KEYS} are allowed")]
    Keys { keys: usize },
    #[error("the command has {signatures} signatures; {MAX_OPERATORS} are allowed at most")]
    Signatures { signatures: usize },
    #[error("the command has {bytes} bytes of encrypted secret keys for {keys} keys")]
    Secrets { bytes: usize, keys: usize },
    #[error("the command's access key id is not 1 to {MAX_ACCESS_KEY_LEN} printable characters without spaces")]
    CredentialsId,
}

impl Command {
    /// A command of this version.
    pub fn new(
        group: String,
        genesis_validators_root: Root,
        boot_nonce: Bytes<32>,
        counter: u64,
        action: Action,
    ) -> Self {
        Self { version: VERSION, group, genesis_validators_root, boot_nonce, counter, action }
    }

    /// Its bytes, where it is within the limits.
    pub fn encode(&self) -> Result<BoundedBytes<1, MAX_COMMAND_LEN>, CommandError> {
        self.check()?;
        let mut out = Vec::new();
        // Writing to memory cannot fail, and a command has nothing that CBOR cannot say.
        let written = cbor::encode(self, Form::Named, &mut out);
        debug_assert!(written);
        let len = out.len();
        BoundedBytes::new(out).ok_or(CommandError::Size { len, max: MAX_COMMAND_LEN })
    }

    /// Reads exactly one command.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        if bytes.is_empty() || bytes.len() > MAX_COMMAND_LEN {
            return Err(CommandError::Size { len: bytes.len(), max: MAX_COMMAND_LEN });
        }
        let command: Self = cbor::decode(bytes, Form::Named).ok_or(CommandError::Encoding)?;
        if command.version != VERSION {
            return Err(CommandError::Version(command.version));
        }
        command.check()?;
        Ok(command)
    }

    /// How many keys it is about.
    pub fn keys(&self) -> usize {
        match &self.action {
            Action::Import { keys, .. } => keys.len(),
            Action::Generate { count, .. } => usize::try_from(*count).unwrap_or(usize::MAX),
            Action::Deposit { keys, .. } | Action::Delete { keys } | Action::FeeRecipient { keys, .. } => keys.len(),
            Action::Exit { exits, .. } => exits.len(),
            Action::RaiseHistory { keys } => keys.len(),
            Action::FenceInit { .. } | Action::FenceClose | Action::Handover | Action::Takeover => 0,
        }
    }

    fn is_about_keys(&self) -> bool {
        !matches!(self.action, Action::FenceInit { .. } | Action::FenceClose | Action::Handover | Action::Takeover)
    }

    fn check(&self) -> Result<(), CommandError> {
        let keys = self.keys();
        if (keys == 0 && self.is_about_keys()) || keys > MAX_KEYS {
            return Err(CommandError::Keys { keys });
        }
        if let Action::Import { secrets, .. } = &self.action {
            let bytes = secrets.ciphertext.as_ref().len();
            if bytes != keys.saturating_mul(SECRET_LEN).saturating_add(HPKE_TAG_LEN) {
                return Err(CommandError::Secrets { bytes, keys });
            }
        }
        // It is shown to those who are to sign.
        if let Action::FenceInit { credentials_id: Some(id), .. } = &self.action
            && !id.is_bounded()
        {
            return Err(CommandError::CredentialsId);
        }
        Ok(())
    }
}

impl SignedCommand {
    /// A command with these signatures.
    pub fn new(command: BoundedBytes<1, MAX_COMMAND_LEN>, signatures: Vec<OperatorSignature>) -> Self {
        Self { version: VERSION, command, signatures }
    }

    /// What a signature is over.
    pub fn signed_bytes(&self) -> Vec<u8> {
        signed_bytes(self.command.as_ref())
    }

    /// Its bytes.
    pub fn encode(&self) -> Result<Envelope, CommandError> {
        if self.signatures.len() > MAX_OPERATORS {
            return Err(CommandError::Signatures { signatures: self.signatures.len() });
        }
        let mut out = Vec::new();
        let written = cbor::encode(self, Form::Named, &mut out);
        debug_assert!(written);
        let len = out.len();
        BoundedBytes::new(out).ok_or(CommandError::Size { len, max: MAX_SIGNED_LEN })
    }

    /// Reads exactly one signed command; its content is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        if bytes.is_empty() || bytes.len() > MAX_SIGNED_LEN {
            return Err(CommandError::Size { len: bytes.len(), max: MAX_SIGNED_LEN });
        }
        let signed: Self = cbor::decode(bytes, Form::Named).ok_or(CommandError::Encoding)?;
        if signed.version != VERSION {
            return Err(CommandError::Version(signed.version));
        }
        if signed.signatures.len() > MAX_OPERATORS {
            return Err(CommandError::Signatures { signatures: signed.signatures.len() });
        }
        Ok(signed)
    }
}

/// What an operator's signature over a command's bytes is over.
pub fn signed_bytes(command: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE_DOMAIN.to_vec();
    bytes.extend_from_slice(command);
    bytes
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Outcome {
    /// Of each key, in order. What was imported is sealed and on the disk.
    Imported {
        /// One for each.
        keys: Vec<KeyOutcome>,
    },
    /// The keys that were made; they are sealed and on the disk.
    Generated {
        /// Keys with their deposits' signatures.
        keys: Vec<GeneratedKey>,
    },
    /// Deposits of keys that are there.
    Deposited {
        /// Keys with their deposits' signatures.
        keys: Vec<GeneratedKey>,
    },
    /// Of each key, in order.
    Deleted {
        /// One for each.
        keys: Vec<KeyOutcome>,
    },
    /// The fence has a record, or its store other credentials.
    FenceReady,
    /// This enclave signs no more, and its state is on the disk for a successor.
    HandedOver,
    /// This enclave holds the fence.
    TookOver {
        /// In this term.
        #[serde(rename = "generation")]
        term: u64,
    },
    /// The exits, to be published; validator clients may have them signed too.
    ExitsSigned {
        /// One for each.
        exits: Vec<SignedExit>,
    },
    /// Of each key, in order. It is sealed and on the disk.
    FeeRecipientsSet {
        /// One for each.
        keys: Vec<KeyOutcome>,
    },
    /// Of each key, in order. It is sealed and on the disk.
    #[serde(rename = "pasts_raised")]
    HistoryRaised {
        /// One for each.
        keys: Vec<KeyOutcome>,
    },
    /// The store takes the credentials, and they are used from now on. They are sealed as soon as this enclave holds the fence: one that
    /// does not hold it must not seal.
    CredentialsTaken,
    /// The fence's record has ended.
    FenceClosed {
        /// As it ended: the next one is made above it.
        record: ClosedRecord,
    },
}

/// A `SignedVoluntaryExit` of the consensus specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedExit {
    /// Key that has signed.
    pub public_key: PublicKey,
    /// Earliest epoch of the exit.
    pub epoch: Epoch,
    /// Who leaves.
    pub validator_index: u64,
    /// In the domain of EIP-7044 from Deneb on.
    pub signature: Signature,
}

impl Outcome {
    /// Its bytes, whose digest the statement names.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to memory cannot fail, and an outcome has nothing that CBOR cannot say.
        let written = cbor::encode(self, Form::Named, &mut out);
        debug_assert!(written);
        out
    }
}

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyOutcome {
    /// It was taken in.
    Imported,
    /// It was there already. What was said of its past was added to what is known.
    Duplicate,
    /// The secret key is not the one of this public key, or none at all.
    WrongSecret,
    /// It was deleted.
    Deleted,
    /// It was not there.
    NotFound,
    /// It is said to have signed what lies in the future, or a source above its target: that would silence it.
    ImpossibleHistory,
    /// It was changed as ordered.
    Changed,
    /// Nobody says what it has signed.
    NoHistory,
    /// It is no keystore within the limits.
    Unreadable,
    /// The password is not its.
    WrongPassword,
}

impl KeyOutcome {
    /// Every one.
    pub const ALL: [Self; 10] = [
        Self::Imported,
        Self::Duplicate,
        Self::WrongSecret,
        Self::Deleted,
        Self::NotFound,
        Self::ImpossibleHistory,
        Self::Changed,
        Self::NoHistory,
        Self::Unreadable,
        Self::WrongPassword,
    ];

    /// What it is called in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Duplicate => "duplicate",
            Self::WrongSecret => "wrong_secret",
            Self::Deleted => "deleted",
            Self::NotFound => "not_found",
            Self::ImpossibleHistory => "impossible_history",
            Self::Changed => "changed",
            Self::NoHistory => "no_history",
            Self::Unreadable => "unreadable",
            Self::WrongPassword => "wrong_password",
        }
    }

    /// The one that is called so.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.word() == word)
    }
}

/// A key that the vault has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratedKey {
    /// Its public key.
    pub public_key: PublicKey,
    /// Over the deposit message, in the deposit domain of this chain.
    pub deposit_signature: Signature,
}

/// Gwei of one ether, the least that a deposit may be (`MIN_DEPOSIT_AMOUNT`).
pub const MIN_DEPOSIT: u64 = 1_000_000_000;
/// `MIN_ACTIVATION_BALANCE`: what a validator of 0x01 credentials counts for at most.
pub const MAX_DEPOSIT: u64 = 32_000_000_000;
/// `MAX_EFFECTIVE_BALANCE_ELECTRA`: with compounding (0x02) credentials.
pub const MAX_COMPOUNDING_DEPOSIT: u64 = 2_048_000_000_000;

/// Most Gwei that a deposit for these credentials may have.
pub fn max_deposit(withdrawal_credentials: &Root) -> u64 {
    match withdrawal_credentials.0.first() {
        Some(&COMPOUNDING_PREFIX) => MAX_COMPOUNDING_DEPOSIT,
        _ => MAX_DEPOSIT,
    }
}

/// Prefixes of withdrawal credentials.
pub const ADDRESS_PREFIX: u8 = 0x01;
/// EIP-7251: rewards compound.
pub const COMPOUNDING_PREFIX: u8 = 0x02;

/// Withdrawal credentials of an address (0x01), compounding (0x02) where asked for.
pub fn withdrawal_credentials(address: ExecutionAddress, compounding: bool) -> Root {
    let mut credentials = [0; 32];
    let prefix = if compounding { COMPOUNDING_PREFIX } else { ADDRESS_PREFIX };
    let bytes = std::iter::once(prefix).chain([0; 11]).chain(address.0);
    for (to, from) in credentials.iter_mut().zip(bytes) {
        *to = from;
    }
    Bytes(credentials)
}

/// The address in withdrawal credentials of an address; nothing where they are others.
pub fn withdrawal_address(credentials: &Root) -> Option<ExecutionAddress> {
    let [ADDRESS_PREFIX | COMPOUNDING_PREFIX, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, address @ ..] = credentials.0 else {
        return None;
    };
    Some(Bytes(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(action: Action) -> Command {
        Command::new("alpha".into(), Bytes([5; 32]), Bytes([6; 32]), 7, action)
    }

    fn closed() -> ClosedRecord {
        let (slot_ceiling, target_ceiling, source_ceiling) = (Slot(9), Epoch(2), Epoch(1));
        let (version, term, min_state_version) = (7, 3, 3 << 32);
        let clean = Some(Bytes([1; 32]));
        ClosedRecord {
            version,
            term,
            slot_ceiling,
            target_ceiling,
            source_ceiling,
            min_state_version,
            released_state: clean,
        }
    }

    fn secrets(len: usize) -> EncryptedSecrets {
        EncryptedSecrets { enc: Bytes([1; 32]), ciphertext: BoundedBytes::new(vec![2; len]).unwrap() }
    }

    #[test]
    fn commands_are_read_as_they_were_written_and_in_no_other_way() {
        let key = ImportedKey { public_key: Bytes([3; 48]), history: Some(Watermarks::default()) };
        for action in [
            Action::Import { keys: vec![key, ImportedKey { history: None, ..key }], secrets: secrets(80) },
            Action::Generate { count: 1000, withdrawal_credentials: Bytes([1; 32]), amount: 32_000_000_000 },
            Action::Deposit { keys: vec![Bytes([9; 48])], withdrawal_credentials: Bytes([1; 32]), amount: 1 },
            Action::Delete { keys: vec![Bytes([9; 48])] },
            Action::FenceInit {
                record: RecordOrder::Lost { last: LastState { keys_root: Bytes([1; 32]), fence_version: 7 } },
                credentials: Some(secrets(80)),
                credentials_id: Some(CredentialsId::AccessKey("AKIDEXAMPLE".into())),
            },
            Action::FenceInit {
                record: RecordOrder::After { closed: closed() },
                credentials: None,
                credentials_id: None,
            },
            Action::FenceInit {
                record: RecordOrder::Keep,
                credentials: Some(secrets(80)),
                credentials_id: Some(CredentialsId::Certificate(Bytes([7; 32]))),
            },
            Action::FenceClose,
            Action::FenceInit { record: RecordOrder::New, credentials: None, credentials_id: None },
            Action::Handover,
            Action::Takeover,
            Action::Exit {
                exits: vec![ExitOrder { public_key: Bytes([9; 48]), validator_index: u64::MAX }],
                last_epoch: Epoch(7),
            },
            Action::FeeRecipient { keys: vec![Bytes([9; 48])], fee_recipient: Some(Bytes([1; 20])) },
            Action::FeeRecipient { keys: vec![Bytes([9; 48])], fee_recipient: None },
            Action::RaiseHistory { keys: vec![KeyHistory { public_key: Bytes([9; 48]), past: Watermarks::default() }] },
        ] {
            let written = command(action).encode().unwrap();
            let bytes = written.as_ref();
            assert_eq!(Command::decode(bytes).unwrap().encode().unwrap(), written);
            for len in 0..bytes.len() {
                assert!(Command::decode(&bytes[..len]).is_err());
            }
            let mut longer = bytes.to_vec();
            longer.push(0);
            assert_eq!(Command::decode(&longer), Err(CommandError::Encoding));
            let signature = OperatorSignature { operator: Bytes([4; 32]), signature: Bytes([5; 64]) };
            let signed = SignedCommand::new(written.clone(), vec![signature; 2]);
            assert_eq!(SignedCommand::decode(signed.encode().unwrap().as_ref()), Ok(signed));
        }
        assert_eq!(Command::decode(&[]), Err(CommandError::Size { len: 0, max: MAX_COMMAND_LEN }));
        assert_eq!(Command::decode(&[0xa0]), Err(CommandError::Encoding));
    }

    #[test]
    fn credentials_are_read_as_they_were_written_and_within_their_limits() {
        let der = |len: usize| BoundedBytes::new(vec![1; len]).unwrap();
        let etcd = |count: usize| StoreCredentials::Etcd { certificates: vec![der(4096); count], key: der(4096) };
        let dynamodb =
            |id: &str| StoreCredentials::Dynamodb { access_key_id: id.into(), secret_access_key: "s".into() };
        for good in [etcd(1), etcd(4), dynamodb("AKID"), dynamodb(&"x".repeat(256))] {
            let bytes = good.encode();
            assert!(bytes.len() <= MAX_CREDENTIALS_LEN);
            assert_eq!(StoreCredentials::decode(&bytes).unwrap().encode(), bytes);
            assert!(StoreCredentials::decode(&bytes[1..]).is_none());
        }
        for bad in [etcd(0), etcd(5), dynamodb(""), dynamodb("a b"), dynamodb(&"x".repeat(257)), dynamodb("a\r\nb")] {
            assert!(StoreCredentials::decode(&bad.encode()).is_none());
        }
    }

    #[test]
    fn credentials_are_known_by_what_is_no_secret() {
        let dynamodb = StoreCredentials::Dynamodb { access_key_id: "AKID".into(), secret_access_key: "s".into() };
        let none = |_: &[u8]| -> Root { panic!("nothing to hash") };
        assert_eq!(dynamodb.id(none), Some(CredentialsId::AccessKey("AKID".into())));
        let der = |byte: u8| BoundedBytes::new(vec![byte; 3]).unwrap();
        let etcd = |certificates| StoreCredentials::Etcd { certificates, key: der(9) };
        // The client's own certificate, no matter who issued it.
        let digest = |bytes: &[u8]| Bytes([bytes[0]; 32]);
        assert_eq!(etcd(vec![der(1), der(2)]).id(digest), Some(CredentialsId::Certificate(Bytes([1; 32]))));
        assert_eq!(etcd(Vec::new()).id(digest), None);
        // What would be shown to those who sign is printable.
        for bad in ["", "a b", "\u{1b}[2J", &"x".repeat(257)] {
            let id = Some(CredentialsId::AccessKey(bad.into()));
            let bad = command(Action::FenceInit { record: RecordOrder::New, credentials: None, credentials_id: id });
            assert_eq!(bad.encode(), Err(CommandError::CredentialsId));
            let mut bytes = Vec::new();
            assert!(cbor::encode(&bad, Form::Named, &mut bytes));
            assert_eq!(Command::decode(&bytes), Err(CommandError::CredentialsId));
        }
    }

    #[test]
    fn commands_beyond_the_limits_are_neither_written_nor_read() {
        let delete = |n| command(Action::Delete { keys: vec![Bytes([9; 48]); n] });
        assert_eq!(delete(0).encode(), Err(CommandError::Keys { keys: 0 }));
        assert!(delete(MAX_KEYS).encode().is_ok());
        assert_eq!(delete(MAX_KEYS + 1).encode(), Err(CommandError::Keys { keys: MAX_KEYS + 1 }));
        let generate = |count| {
            command(Action::Generate { count, withdrawal_credentials: Bytes::ZERO, amount: 0 }).encode().is_ok()
        };
        assert_eq!([0, 1, 1000, 1001, u32::MAX].map(generate), [false, true, true, false, false]);
        let key = ImportedKey { public_key: Bytes([3; 48]), history: None };
        let import = |keys: usize, len| {
            command(Action::Import { keys: vec![key; keys], secrets: secrets(len) }).encode().map(drop)
        };
        assert_eq!(import(1, 48), Ok(()));
        assert_eq!(import(1, 47), Err(CommandError::Secrets { bytes: 47, keys: 1 }));
        assert_eq!(import(2, 48), Err(CommandError::Secrets { bytes: 48, keys: 2 }));
        // The largest import fits with all its signatures.
        let past = Watermarks {
            block: Some(crate::watermarks::BlockMark { slot: crate::Slot::MAX, signing_root: Some(Bytes([1; 32])) }),
            attestation: Some(crate::watermarks::AttestationMark {
                source: crate::Epoch::MAX,
                target: crate::Epoch::MAX,
                signing_root: Some(Bytes([1; 32])),
            }),
        };
        let key = ImportedKey { public_key: Bytes([3; 48]), history: Some(past) };
        let largest = command(Action::Import { keys: vec![key; MAX_KEYS], secrets: secrets(MAX_KEYS * 32 + 16) });
        let signature = OperatorSignature { operator: Bytes([4; 32]), signature: Bytes([5; 64]) };
        let signed = |n| SignedCommand::new(largest.encode().unwrap(), vec![signature; n]).encode();
        assert!(signed(MAX_OPERATORS).is_ok());
        assert_eq!(signed(33), Err(CommandError::Signatures { signatures: 33 }));
    }

    #[test]
    fn withdrawal_credentials_hold_an_address() {
        let address = Bytes([7; 20]);
        for compounding in [false, true] {
            let credentials = withdrawal_credentials(address, compounding);
            assert_eq!(credentials.0[0], if compounding { 2 } else { 1 });
            assert_eq!(withdrawal_address(&credentials), Some(address));
        }
        // BLS credentials, and a byte where none belongs.
        let mut other = withdrawal_credentials(address, false);
        other.0[0] = 0;
        assert_eq!(withdrawal_address(&other), None);
        other.0[0] = 1;
        other.0[11] = 1;
        assert_eq!(withdrawal_address(&other), None);
    }
}
