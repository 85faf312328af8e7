//! What a validator asks to have signed.
//!
//! A duty that can be slashed crosses with all its fields, so that the vault judges the message itself. A duty
//! whose object is of variable size crosses as its object root: safe, because the vault picks the domain from the
//! duty's type, and no such domain is a block's or an attestation's.

use serde::{Deserialize, Serialize};

use crate::{Epoch, ExecutionAddress, PublicKey, Root, Slot, Version};

/// `Checkpoint` of the consensus specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Epoch of the checkpoint.
    pub epoch: Epoch,
    /// Root of the block at its start.
    pub root: Root,
}

/// `AttestationData` of the consensus specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationData {
    /// Slot attested.
    pub slot: Slot,
    /// Committee index; 0 from Electra on (EIP-7549); payload status from Gloas on.
    pub index: u64,
    /// Head block voted for.
    pub beacon_block_root: Root,
    /// Justified checkpoint.
    pub source: Checkpoint,
    /// Checkpoint of the slot's epoch.
    pub target: Checkpoint,
}

/// `BeaconBlockHeader` of the consensus specification: it has the same hash tree root as the block itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeaconBlockHeader {
    /// Slot proposed.
    pub slot: Slot,
    /// Index of the proposing validator.
    pub proposer_index: u64,
    /// Root of the parent block.
    pub parent_root: Root,
    /// Root of the state after the block.
    pub state_root: Root,
    /// Hash tree root of the block's body.
    pub body_root: Root,
}

/// The `fork_info` of a request: what the client holds for the chain's fork at the message's epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkInfo {
    /// Version before `epoch`.
    pub previous_version: Version,
    /// Version from `epoch` on.
    pub current_version: Version,
    /// Epoch at which the current version starts.
    pub epoch: Epoch,
    /// Must be the network's own.
    pub genesis_validators_root: Root,
}

/// One message to be signed. The order of the variants is part of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Duty {
    /// Propose a block. Slashable.
    Block(BeaconBlockHeader),
    /// Vote. Slashable.
    Attestation(AttestationData),
    /// Selection proof of an aggregator.
    AggregationSlot {
        /// Slot of the committee.
        slot: Slot,
    },
    /// An aggregate with its proof, by object root.
    AggregateAndProof {
        /// Slot of the aggregate's data.
        slot: Slot,
        /// Hash tree root of the `AggregateAndProof`.
        object_root: Root,
    },
    /// Randomness for a block.
    RandaoReveal {
        /// Epoch of the proposal.
        epoch: Epoch,
    },
    /// Leave the validator set. Domain by EIP-7044 from Deneb on.
    VoluntaryExit {
        /// Earliest epoch of the exit.
        epoch: Epoch,
        /// Index of the leaving validator.
        validator_index: u64,
    },
    /// Sync committee's vote for the head.
    SyncCommitteeMessage {
        /// Slot of the vote.
        slot: Slot,
        /// Head block voted for: the signed object itself.
        beacon_block_root: Root,
    },
    /// Selection proof of a sync committee aggregator.
    SyncCommitteeSelectionProof {
        /// Slot of the contribution.
        slot: Slot,
        /// Subcommittee of the aggregator.
        subcommittee_index: u64,
    },
    /// A sync committee contribution with its proof, by object root.
    ContributionAndProof {
        /// Slot of the contribution.
        slot: Slot,
        /// Hash tree root of the `ContributionAndProof`.
        object_root: Root,
    },
    /// Registration with builders (builder-specs).
    ValidatorRegistration {
        /// Where the fees go.
        fee_recipient: ExecutionAddress,
        /// Preferred gas limit.
        gas_limit: u64,
        /// Unix time in seconds.
        timestamp: u64,
        /// Key that registers.
        public_key: PublicKey,
    },
    /// Deposit message: binds the stake to withdrawal credentials.
    Deposit {
        /// Key that is deposited for.
        public_key: PublicKey,
        /// Who may withdraw.
        withdrawal_credentials: Root,
        /// Amount in Gwei.
        amount: u64,
        /// Must be the network's own genesis fork version.
        genesis_fork_version: Version,
    },
    /// Builder's bid (Gloas), by object root.
    ExecutionPayloadBid {
        /// Slot of the bid.
        slot: Slot,
        /// Hash tree root of the `ExecutionPayloadBid`.
        object_root: Root,
    },
    /// Revealed payload (Gloas), by object root.
    ExecutionPayloadEnvelope {
        /// Slot of the payload.
        slot: Slot,
        /// Hash tree root of the `ExecutionPayloadEnvelope`.
        object_root: Root,
    },
    /// Payload timeliness committee's vote (Gloas): `PayloadAttestationData`.
    PayloadAttestation {
        /// Block voted on.
        beacon_block_root: Root,
        /// Slot of the block.
        slot: Slot,
        /// Payload seen in time.
        payload_present: bool,
        /// Blob data seen in time.
        blob_data_available: bool,
    },
    /// Proposer's wishes to builders (Gloas).
    ProposerPreferences {
        /// Block root that fixes the proposer shuffling.
        dependent_root: Root,
        /// Slot of the coming proposal.
        proposal_slot: Slot,
        /// Index of the proposing validator.
        validator_index: u64,
        /// Where the fees go.
        fee_recipient: ExecutionAddress,
        /// Preferred gas limit.
        target_gas_limit: u64,
    },
    /// Authentication towards a builder (Gloas builder-specs), by object root.
    BuilderRequestAuth {
        /// Slot the request is for.
        slot: Slot,
        /// Hash tree root of the `BuilderRequestAuth`.
        object_root: Root,
    },
}
