//! The signing log: what an enclave has signed and refused, chained by hashes, its heads signed by the vault.
//!
//! The vault numbers records from 1 in each boot and keeps the last ones; the proxy fetches them and writes them down, and can
//! lose them, but not change, reorder or drop some of them unnoticed. docs/PROTOCOL.md has the formulas.

pub mod text;

use serde::{Deserialize, Serialize};

use crate::cbor::{self, Form};
use crate::command::ActionKind;
use crate::nonce::Nonce;
use crate::{Bytes, Duty, Epoch, PublicKey, Refusal, Root, Slot};

/// Most records in one page: the longest stays below [`crate::nonce::MAX_FRAME_LEN`].
pub const MAX_RECORDS_PER_PAGE: usize = 128;
/// What the chain of a boot begins with, before its boot nonce.
pub const CHAIN_DOMAIN: &[u8] = b"casemate signing log chain v1\n";
/// What a head's signature is over, besides the head.
pub const SIGNATURE_DOMAIN: &[u8] = b"casemate signing log v1\n";

/// What the signature for a nonce is over, besides nonce and head.
pub const FRESH_DOMAIN: &[u8] = b"casemate signing log now v1\n";

/// Something was signed, or was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRecord {
    /// By the enclave's clock, in Unix milliseconds; 0 where it does not trust it.
    pub time_ms: u64,
    /// Which key was asked for.
    pub public_key: PublicKey,
    /// What was to be signed.
    pub message: Message,
    /// Its signing root; nothing where it was refused before that was computed.
    pub signing_root: Option<Root>,
    /// Why it was not signed; nothing where it was.
    pub refusal: Option<Refusal>,
}

/// What a record says of a message. The order of the variants is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of the duties")]
pub enum Message {
    Block {
        slot: Slot,
    },
    Attestation {
        source: Epoch,
        target: Epoch,
    },
    AggregationSlot {
        slot: Slot,
    },
    AggregateAndProof {
        slot: Slot,
    },
    RandaoReveal {
        epoch: Epoch,
    },
    VoluntaryExit {
        epoch: Epoch,
        validator_index: u64,
    },
    SyncCommitteeMessage {
        slot: Slot,
    },
    SyncCommitteeSelectionProof {
        slot: Slot,
    },
    ContributionAndProof {
        slot: Slot,
    },
    ValidatorRegistration,
    Deposit {
        amount: u64,
    },
    ExecutionPayloadBid {
        slot: Slot,
    },
    ExecutionPayloadEnvelope {
        slot: Slot,
    },
    PayloadAttestation {
        slot: Slot,
    },
    ProposerPreferences {
        slot: Slot,
    },
    BuilderRequestAuth {
        slot: Slot,
    },
    ProofOfValidation,
    /// Not a message: an operators' command that enough of them had signed. The record's key is zeros, its signing root the SHA-256 of the
    /// command, and its refusal says what came of it: nothing where it was carried out.
    Command {
        kind: ActionKind,
        counter: u64,
        /// A bit for each operator who has signed, by the place in the measured configuration: the lowest is the first.
        operators: u32,
        /// How many keys it is about.
        keys: u32,
        /// SHA-256 of their public keys, one behind the other, as the command names them or as the outcome names those that were made.
        keys_sha256: Root,
    },
}

impl From<&Duty> for Message {
    fn from(duty: &Duty) -> Self {
        match *duty {
            Duty::Block(header) => Self::Block { slot: header.slot },
            Duty::Attestation(data) => Self::Attestation { source: data.source.epoch, target: data.target.epoch },
            Duty::AggregationSlot { slot } => Self::AggregationSlot { slot },
            Duty::AggregateAndProof { slot, .. } => Self::AggregateAndProof { slot },
            Duty::RandaoReveal { epoch } => Self::RandaoReveal { epoch },
            Duty::VoluntaryExit { epoch, validator_index } => Self::VoluntaryExit { epoch, validator_index },
            Duty::SyncCommitteeMessage { slot, .. } => Self::SyncCommitteeMessage { slot },
            Duty::SyncCommitteeSelectionProof { slot, .. } => Self::SyncCommitteeSelectionProof { slot },
            Duty::ContributionAndProof { slot, .. } => Self::ContributionAndProof { slot },
            Duty::ValidatorRegistration { .. } => Self::ValidatorRegistration,
            Duty::Deposit { amount, .. } => Self::Deposit { amount },
            Duty::ExecutionPayloadBid { slot, .. } => Self::ExecutionPayloadBid { slot },
            Duty::ExecutionPayloadEnvelope { slot, .. } => Self::ExecutionPayloadEnvelope { slot },
            Duty::PayloadAttestation { slot, .. } => Self::PayloadAttestation { slot },
            Duty::ProposerPreferences { proposal_slot: slot, .. } => Self::ProposerPreferences { slot },
            Duty::BuilderRequestAuth { slot, .. } => Self::BuilderRequestAuth { slot },
        }
    }
}

/// Where the chain stands, signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// Of which boot.
    pub boot_nonce: Bytes<32>,
    /// The term of the fence that this enclave holds; 0 where it holds none.
    pub term: u64,
    /// Number of the last record; 0 before the first.
    pub number: u64,
    /// By the enclave's clock, in Unix milliseconds; 0 where it does not trust it.
    pub time_ms: u64,
    /// The chain's hash after that record.
    pub hash: Root,
    /// Ed25519 by the key that the statement names, over [`Self::signed_bytes`].
    pub signature: Bytes<64>,
}

/// Some of the records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPage {
    /// Number of the first record here; above the one asked for where older ones are kept no more.
    pub first: u64,
    /// The chain's hash before that record.
    pub before: Root,
    /// The records.
    pub records: Vec<LogRecord>,
    /// The chain after them.
    pub head: LogHead,
    /// Number of the last record that there is.
    pub last: u64,
    /// Over [`LogHead::fresh_bytes`], where a nonce was given.
    pub fresh: Option<Bytes<64>>,
}

impl LogRecord {
    /// What is hashed, behind the hash before it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail, and a record has nothing that CBOR cannot say.
        let written = cbor::encode(self, Form::Numbered, out);
        debug_assert!(written);
    }
}

impl LogHead {
    /// What its signature is over.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = SIGNATURE_DOMAIN.to_vec();
        bytes.extend_from_slice(&self.boot_nonce.0);
        for number in [self.term, self.number, self.time_ms] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.hash.0);
        bytes
    }
}

impl LogHead {
    /// What says that this head was the enclave's when it was asked with this nonce.
    pub fn fresh_bytes(&self, nonce: &Nonce) -> Vec<u8> {
        let mut bytes = FRESH_DOMAIN.to_vec();
        let nonce = nonce.as_ref();
        // At most 64 bytes long.
        bytes.push(u8::try_from(nonce.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(nonce);
        bytes.extend_from_slice(&self.signed_bytes());
        bytes
    }
}

/// What is hashed for the chain's hash before the first record of a boot.
pub fn chain_start(boot_nonce: &Bytes<32>) -> Vec<u8> {
    let mut bytes = CHAIN_DOMAIN.to_vec();
    bytes.extend_from_slice(&boot_nonce.0);
    bytes
}
