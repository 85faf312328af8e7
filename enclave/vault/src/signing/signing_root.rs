//! Domains and signing roots, computed from the message: the vault signs no root that it was handed for a slashable
//! type.
//!
//! Sources: consensus-specs phase0 `compute_domain`, `compute_signing_root`; builder-specs for registrations and builder
//! authentication; EIP-7044 for exits.

use casemate_protocol::{
    AttestationData, BeaconBlockHeader, Checkpoint, Duty, Epoch, ForkInfo, ForkName, Network, Refusal, Root, Version,
};

use crate::platform::ssz::{boolean, hash_pair, key, leaf, root2, root4, root5, uint};

/// Domain types of the specifications, in their byte order on the wire.
mod domain_type {
    pub const BEACON_PROPOSER: [u8; 4] = [0x00, 0, 0, 0];
    pub const BEACON_ATTESTER: [u8; 4] = [0x01, 0, 0, 0];
    pub const RANDAO: [u8; 4] = [0x02, 0, 0, 0];
    pub const DEPOSIT: [u8; 4] = [0x03, 0, 0, 0];
    pub const VOLUNTARY_EXIT: [u8; 4] = [0x04, 0, 0, 0];
    pub const SELECTION_PROOF: [u8; 4] = [0x05, 0, 0, 0];
    pub const AGGREGATE_AND_PROOF: [u8; 4] = [0x06, 0, 0, 0];
    pub const SYNC_COMMITTEE: [u8; 4] = [0x07, 0, 0, 0];
    pub const SYNC_COMMITTEE_SELECTION_PROOF: [u8; 4] = [0x08, 0, 0, 0];
    pub const CONTRIBUTION_AND_PROOF: [u8; 4] = [0x09, 0, 0, 0];
    pub const APPLICATION_BUILDER: [u8; 4] = [0x00, 0, 0, 0x01];
    pub const BEACON_BUILDER: [u8; 4] = [0x0b, 0, 0, 0];
    pub const BUILDER_REQUEST_AUTH: [u8; 4] = [0x0b, 0, 0, 0x01];
    pub const PTC_ATTESTER: [u8; 4] = [0x0c, 0, 0, 0];
    pub const PROPOSER_PREFERENCES: [u8; 4] = [0x0d, 0, 0, 0];
}

/// Which fork version goes into a duty's domain.
enum DomainVersion {
    /// The version at this epoch, by the client's `fork_info`.
    At(Epoch),
    /// An exit at this epoch: EIP-7044 decides by the network's own fork table.
    Exit(Epoch),
    /// The network's genesis version, with a zero root: valid on every fork.
    Genesis,
}

/// The signing root of a duty.
pub fn compute(duty: &Duty, fork_info: Option<&ForkInfo>, network: &Network) -> Result<Root, Refusal> {
    let domain = domain(duty, fork_info, network)?;
    Ok(hash_pair(object_root(duty), domain))
}

fn domain_of(duty: &Duty, network: &Network) -> ([u8; 4], DomainVersion) {
    let at = |slot| DomainVersion::At(network.epoch_of(slot));
    match *duty {
        Duty::Block(header) => (domain_type::BEACON_PROPOSER, at(header.slot)),
        Duty::Attestation(data) => (domain_type::BEACON_ATTESTER, DomainVersion::At(data.target.epoch)),
        Duty::AggregationSlot { slot } => (domain_type::SELECTION_PROOF, at(slot)),
        Duty::AggregateAndProof { slot, .. } => (domain_type::AGGREGATE_AND_PROOF, at(slot)),
        Duty::RandaoReveal { epoch } => (domain_type::RANDAO, DomainVersion::At(epoch)),
        Duty::VoluntaryExit { epoch, .. } => (domain_type::VOLUNTARY_EXIT, DomainVersion::Exit(epoch)),
        Duty::SyncCommitteeMessage { slot, .. } => (domain_type::SYNC_COMMITTEE, at(slot)),
        Duty::SyncCommitteeSelectionProof { slot, .. } => (domain_type::SYNC_COMMITTEE_SELECTION_PROOF, at(slot)),
        Duty::ContributionAndProof { slot, .. } => (domain_type::CONTRIBUTION_AND_PROOF, at(slot)),
        Duty::ValidatorRegistration { .. } => (domain_type::APPLICATION_BUILDER, DomainVersion::Genesis),
        Duty::Deposit { .. } => (domain_type::DEPOSIT, DomainVersion::Genesis),
        Duty::ExecutionPayloadBid { slot, .. } | Duty::ExecutionPayloadEnvelope { slot, .. } => {
            (domain_type::BEACON_BUILDER, at(slot))
        }
        Duty::PayloadAttestation { slot, .. } => (domain_type::PTC_ATTESTER, at(slot)),
        Duty::ProposerPreferences { proposal_slot, .. } => (domain_type::PROPOSER_PREFERENCES, at(proposal_slot)),
        Duty::BuilderRequestAuth { .. } => (domain_type::BUILDER_REQUEST_AUTH, DomainVersion::Genesis),
    }
}

fn domain(duty: &Duty, fork_info: Option<&ForkInfo>, network: &Network) -> Result<Root, Refusal> {
    let (domain_type, version) = domain_of(duty, network);
    let (version, genesis_validators_root) = match version {
        DomainVersion::Genesis => {
            if let Duty::Deposit { genesis_fork_version: asked, .. } = *duty {
                let served = network.genesis_version();
                if asked != served {
                    return Err(Refusal::OtherGenesisVersion { asked, served });
                }
            }
            (network.genesis_version(), Root::ZERO)
        }
        DomainVersion::At(epoch) => {
            let fork_info = checked(fork_info, network)?;
            (version_at(epoch, fork_info), network.genesis_validators_root())
        }
        DomainVersion::Exit(epoch) => {
            let fork_info = checked(fork_info, network)?;
            let pinned =
                if network.fork_at(epoch) >= ForkName::Deneb { network.version_of(ForkName::Capella) } else { None };
            (pinned.unwrap_or(version_at(epoch, fork_info)), network.genesis_validators_root())
        }
    };
    let fork_data_root = hash_pair(leaf(&version.0), genesis_validators_root);
    let mut domain = [0; 32];
    let (head, tail) = domain.split_at_mut(4);
    head.copy_from_slice(&domain_type);
    for (to, from) in tail.iter_mut().zip(fork_data_root.0) {
        *to = from;
    }
    Ok(domain.into())
}

/// The chain is pinned by the measured configuration: a message for another one is refused.
fn checked<'a>(fork_info: Option<&'a ForkInfo>, network: &Network) -> Result<&'a ForkInfo, Refusal> {
    let fork_info = fork_info.ok_or(Refusal::ForkInfoMissing)?;
    let served = network.genesis_validators_root();
    if fork_info.genesis_validators_root != served {
        return Err(Refusal::OtherNetwork { asked: fork_info.genesis_validators_root, served });
    }
    Ok(fork_info)
}

fn version_at(epoch: Epoch, fork_info: &ForkInfo) -> Version {
    if epoch < fork_info.epoch { fork_info.previous_version } else { fork_info.current_version }
}

/// The hash tree root of the signed object.
pub fn object_root(duty: &Duty) -> Root {
    match *duty {
        Duty::Block(header) => header_root(&header),
        Duty::Attestation(data) => attestation_root(&data),
        Duty::AggregationSlot { slot } => uint(slot.0),
        Duty::RandaoReveal { epoch } => uint(epoch.0),
        Duty::VoluntaryExit { epoch, validator_index } => root2([uint(epoch.0), uint(validator_index)]),
        Duty::SyncCommitteeMessage { beacon_block_root, .. } => beacon_block_root,
        Duty::SyncCommitteeSelectionProof { slot, subcommittee_index } => {
            root2([uint(slot.0), uint(subcommittee_index)])
        }
        Duty::ValidatorRegistration { fee_recipient, gas_limit, timestamp, public_key } => {
            root4([leaf(&fee_recipient.0), uint(gas_limit), uint(timestamp), key(&public_key.0)])
        }
        Duty::Deposit { public_key, withdrawal_credentials, amount, .. } => {
            root4([key(&public_key.0), withdrawal_credentials, uint(amount), Root::ZERO])
        }
        Duty::PayloadAttestation { beacon_block_root, slot, payload_present, blob_data_available } => {
            root4([beacon_block_root, uint(slot.0), boolean(payload_present), boolean(blob_data_available)])
        }
        Duty::ProposerPreferences {
            dependent_root,
            proposal_slot,
            validator_index,
            fee_recipient,
            target_gas_limit,
        } => root5([
            dependent_root,
            uint(proposal_slot.0),
            uint(validator_index),
            leaf(&fee_recipient.0),
            uint(target_gas_limit),
        ]),
        Duty::AggregateAndProof { object_root, .. }
        | Duty::ContributionAndProof { object_root, .. }
        | Duty::ExecutionPayloadBid { object_root, .. }
        | Duty::ExecutionPayloadEnvelope { object_root, .. }
        | Duty::BuilderRequestAuth { object_root, .. } => object_root,
    }
}

fn header_root(header: &BeaconBlockHeader) -> Root {
    root5([uint(header.slot.0), uint(header.proposer_index), header.parent_root, header.state_root, header.body_root])
}

fn attestation_root(data: &AttestationData) -> Root {
    let checkpoint = |c: &Checkpoint| root2([uint(c.epoch.0), c.root]);
    root5([
        uint(data.slot.0),
        uint(data.index),
        data.beacon_block_root,
        checkpoint(&data.source),
        checkpoint(&data.target),
    ])
}
