//! One sign request: from a JSON body to a typed duty.
//!
//! Only the body key that the type needs is parsed; everything else is passed over. The rows are those of the remote
//! signing API v1.4.0 and of what clients really send.

use std::borrow::Cow;
use std::fmt::Display;

use casemate_protocol::frame::{BlockProof, MAX_PROOF_NODES, MAX_PROOFS};
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, BoundedBytes, Checkpoint, Duty, Epoch, ForkInfo, ForkName, Network, Root, Slot,
};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::json::{Hex, Uint, bounded, shown};
use crate::ssz::{self, Ssz};

/// What a body asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What to sign.
    pub duty: Duty,
    /// The client's fork, where the type has one.
    pub fork_info: Option<ForkInfo>,
    /// The client's signing root, if it sent one.
    pub signing_root: Option<Root>,
    /// What a block's body is proved to have.
    pub proofs: Vec<BlockProof>,
}

/// Why a body is no sign request: one sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRequest(pub String);

type Raw<'a> = Option<&'a RawValue>;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(rename = "signingRoot", alias = "signing_root")]
    signing_root: Option<Hex<32>>,
    #[serde(borrow)]
    fork_info: Raw<'a>,
    #[serde(borrow)]
    block: Raw<'a>,
    #[serde(borrow)]
    beacon_block: Raw<'a>,
    #[serde(borrow)]
    proofs: Raw<'a>,
    #[serde(borrow)]
    attestation: Raw<'a>,
    #[serde(borrow)]
    aggregation_slot: Raw<'a>,
    #[serde(borrow)]
    aggregate_and_proof: Raw<'a>,
    #[serde(borrow)]
    randao_reveal: Raw<'a>,
    #[serde(borrow)]
    voluntary_exit: Raw<'a>,
    #[serde(borrow)]
    sync_committee_message: Raw<'a>,
    #[serde(borrow)]
    sync_aggregator_selection_data: Raw<'a>,
    #[serde(borrow)]
    contribution_and_proof: Raw<'a>,
    #[serde(borrow)]
    validator_registration: Raw<'a>,
    #[serde(borrow)]
    deposit: Raw<'a>,
    #[serde(borrow)]
    execution_payload_bid: Raw<'a>,
    #[serde(borrow)]
    execution_payload_envelope: Raw<'a>,
    #[serde(borrow)]
    payload_attestation_message: Raw<'a>,
    #[serde(borrow)]
    proposer_preferences: Raw<'a>,
    #[serde(borrow)]
    builder_request_auth: Raw<'a>,
}

/// An attestation's body, read in one go: there are more of them than of all others together. Whatever does not look just like this
/// takes the general path, which also says what is wrong with it.
#[derive(Deserialize)]
struct AttestationBody {
    #[serde(rename = "type")]
    _kind: IsAttestation,
    #[serde(rename = "signingRoot", alias = "signing_root")]
    signing_root: Option<Hex<32>>,
    fork_info: ForkInfoBody,
    attestation: Attestation,
}

/// Its type, as clients write it.
struct IsAttestation;

impl<'de> Deserialize<'de> for IsAttestation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kind = <Cow<'de, str>>::deserialize(deserializer)?;
        if kind == "ATTESTATION" { Ok(Self) } else { Err(serde::de::Error::custom("another type")) }
    }
}

/// No attestation is longer; what is longer is not tried as one.
const LONG: usize = 2048;

/// Reads a body for the network that the enclave serves.
pub fn parse(body: &[u8], network: &Network) -> Result<Parsed, BadRequest> {
    // As text it is looked at once, and not again for each string in it.
    if body.len() <= LONG
        && let Ok(text) = std::str::from_utf8(body)
        // An array of the members' values would do for serde.
        && text.trim_ascii_start().starts_with('{')
        && let Ok(AttestationBody { signing_root, fork_info, attestation, .. }) = serde_json::from_str(text)
    {
        let (duty, fork_info) = (Duty::Attestation(attestation.into()), Some(fork_info.into()));
        return Ok(Parsed { duty, fork_info, signing_root: signing_root.map(|r| r.0), proofs: Vec::new() });
    }
    parse_any(body, network)
}

/// The same, without the fast path of attestations.
pub fn parse_any(body: &[u8], network: &Network) -> Result<Parsed, BadRequest> {
    let body: Body = serde_json::from_slice(body).map_err(|e| bad("the body is not a sign request", e))?;
    let kind = body.kind.to_ascii_uppercase();
    let duty = duty(&kind, &body, network)?;
    let fork_info = match duty {
        // Their domains have no fork: what a client sends all the same is not even looked at.
        Duty::ValidatorRegistration { .. } | Duty::Deposit { .. } | Duty::BuilderRequestAuth { .. } => None,
        _ => Some(fork_info(&kind, body.fork_info)?),
    };
    let proofs = match (&duty, body.proofs) {
        (Duty::Block(_), Some(proofs)) => proofs_of(proofs)?,
        _ => Vec::new(),
    };
    Ok(Parsed { duty, fork_info, signing_root: body.signing_root.map(|r| r.0), proofs })
}

fn duty(kind: &str, body: &Body, network: &Network) -> Result<Duty, BadRequest> {
    Ok(match kind {
        "ATTESTATION" => {
            let data: Attestation = field(kind, "attestation", body.attestation)?;
            Duty::Attestation(data.into())
        }
        "BLOCK_V2" => block(kind, body.beacon_block, network)?,
        "BLOCK" => phase0_block(&field(kind, "block", body.block)?, network)?,
        "AGGREGATION_SLOT" => {
            let data: AtSlot = field(kind, "aggregation_slot", body.aggregation_slot)?;
            Duty::AggregationSlot { slot: Slot(data.slot.0) }
        }
        // Clients send either form under either type.
        "AGGREGATE_AND_PROOF" | "AGGREGATE_AND_PROOF_V2" => aggregate(kind, body.aggregate_and_proof, network)?,
        "RANDAO_REVEAL" => {
            let data: AtEpoch = field(kind, "randao_reveal", body.randao_reveal)?;
            Duty::RandaoReveal { epoch: Epoch(data.epoch.0) }
        }
        "VOLUNTARY_EXIT" => {
            let data: VoluntaryExit = field(kind, "voluntary_exit", body.voluntary_exit)?;
            Duty::VoluntaryExit { epoch: Epoch(data.epoch.0), validator_index: data.validator_index.0 }
        }
        "SYNC_COMMITTEE_MESSAGE" => {
            let data: SyncCommitteeMessage = field(kind, "sync_committee_message", body.sync_committee_message)?;
            Duty::SyncCommitteeMessage { slot: Slot(data.slot.0), beacon_block_root: data.beacon_block_root.0 }
        }
        "SYNC_COMMITTEE_SELECTION_PROOF" => {
            let data: SyncSelection =
                field(kind, "sync_aggregator_selection_data", body.sync_aggregator_selection_data)?;
            Duty::SyncCommitteeSelectionProof { slot: Slot(data.slot.0), subcommittee_index: data.subcommittee_index.0 }
        }
        "SYNC_COMMITTEE_CONTRIBUTION_AND_PROOF" => {
            let key = "contribution_and_proof";
            let data: ssz::ContributionAndProof = field(kind, key, body.contribution_and_proof)?;
            Duty::ContributionAndProof {
                slot: Slot(data.contribution.slot.0),
                object_root: object_root(key, &data, network)?,
            }
        }
        "VALIDATOR_REGISTRATION" => registration(&field(kind, "validator_registration", body.validator_registration)?),
        "DEPOSIT" => deposit(&field(kind, "deposit", body.deposit)?),
        _ => match gloas_duty(kind, body, network)? {
            Some(duty) => duty,
            None => return Err(BadRequest(format!("unknown type {}", shown(&body.kind)))),
        },
    })
}

fn registration(data: &Registration) -> Duty {
    Duty::ValidatorRegistration {
        fee_recipient: data.fee_recipient.0,
        gas_limit: data.gas_limit.0,
        timestamp: data.timestamp.0,
        public_key: data.pubkey.0,
    }
}

fn deposit(data: &Deposit) -> Duty {
    Duty::Deposit {
        public_key: data.pubkey.0,
        withdrawal_credentials: data.withdrawal_credentials.0,
        amount: data.amount.0,
        genesis_fork_version: data.genesis_fork_version.0,
    }
}

/// The duties that come with Gloas; nothing where it is none of them.
fn gloas_duty(kind: &str, body: &Body, network: &Network) -> Result<Option<Duty>, BadRequest> {
    Ok(Some(match kind {
        "EXECUTION_PAYLOAD_BID" => {
            let key = "execution_payload_bid";
            let data: ssz::ExecutionPayloadBid = gloas(kind, key, body.execution_payload_bid)?;
            Duty::ExecutionPayloadBid { slot: Slot(data.slot.0), object_root: object_root(key, &data, network)? }
        }
        "EXECUTION_PAYLOAD_ENVELOPE" => {
            let key = "execution_payload_envelope";
            let data: ssz::ExecutionPayloadEnvelope = gloas(kind, key, body.execution_payload_envelope)?;
            Duty::ExecutionPayloadEnvelope {
                slot: Slot(data.payload.slot_number.0),
                object_root: object_root(key, &data, network)?,
            }
        }
        "PAYLOAD_ATTESTATION_MESSAGE" => {
            let data: PayloadAttestation =
                gloas(kind, "payload_attestation_message", body.payload_attestation_message)?;
            Duty::PayloadAttestation {
                beacon_block_root: data.beacon_block_root.0,
                slot: Slot(data.slot.0),
                payload_present: data.payload_present,
                blob_data_available: data.blob_data_available,
            }
        }
        "PROPOSER_PREFERENCES" => {
            let data: ProposerPreferences = gloas(kind, "proposer_preferences", body.proposer_preferences)?;
            Duty::ProposerPreferences {
                dependent_root: data.dependent_root.0,
                proposal_slot: Slot(data.proposal_slot.0),
                validator_index: data.validator_index.0,
                fee_recipient: data.fee_recipient.0,
                target_gas_limit: data.target_gas_limit.0,
            }
        }
        "BUILDER_REQUEST_AUTH" => {
            let key = "builder_request_auth";
            let data: ssz::BuilderRequestAuth = gloas(kind, key, body.builder_request_auth)?;
            Duty::BuilderRequestAuth { slot: Slot(data.slot.0), object_root: object_root(key, &data, network)? }
        }
        _ => return Ok(None),
    }))
}

// Blocks.

#[derive(Deserialize)]
struct VersionedBlock<'a> {
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    block: Raw<'a>,
    #[serde(borrow)]
    block_header: Raw<'a>,
}

#[derive(Deserialize)]
struct FullBlock<B> {
    slot: Uint,
    proposer_index: Uint,
    parent_root: Hex<32>,
    state_root: Hex<32>,
    body: B,
}

fn block(kind: &str, beacon_block: Raw, network: &Network) -> Result<Duty, BadRequest> {
    let versioned: VersionedBlock = field(kind, "beacon_block", beacon_block)?;
    let name = versioned.version.ok_or_else(|| missing(kind, "beacon_block.version"))?;
    match (version(&name)?, versioned.block) {
        (ForkName::Phase0, Some(block)) => phase0_block(&read("beacon_block.block", block)?, network),
        (ForkName::Altair, Some(block)) => {
            let block: FullBlock<ssz::BodyAltair> = read("beacon_block.block", block)?;
            header_of(&block, network)
        }
        // A header has the root of its block: it does for the early forks too.
        _ => {
            let h: ssz::BeaconBlockHeader = field(kind, "beacon_block.block_header", versioned.block_header)?;
            Ok(Duty::Block(BeaconBlockHeader {
                slot: Slot(h.slot.0),
                proposer_index: h.proposer_index.0,
                parent_root: h.parent_root.0,
                state_root: h.state_root.0,
                body_root: h.body_root.0,
            }))
        }
    }
}

fn phase0_block(block: &FullBlock<ssz::BodyPhase0>, network: &Network) -> Result<Duty, BadRequest> {
    header_of(block, network)
}

fn header_of<B: Ssz>(block: &FullBlock<B>, network: &Network) -> Result<Duty, BadRequest> {
    Ok(Duty::Block(BeaconBlockHeader {
        slot: Slot(block.slot.0),
        proposer_index: block.proposer_index.0,
        parent_root: block.parent_root.0,
        state_root: block.state_root.0,
        body_root: object_root("block.body", &block.body, network)?,
    }))
}

/// Nimbus's `verifying-web3signer`: Merkle branches against the body's root, which the vault checks.
fn proofs_of(raw: &RawValue) -> Result<Vec<BlockProof>, BadRequest> {
    #[derive(Deserialize)]
    struct Proof {
        index: Uint,
        #[serde(deserialize_with = "nodes")]
        proof: Vec<Hex<32>>,
    }

    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Proofs(#[serde(deserialize_with = "proofs")] Vec<Proof>);

    fn nodes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Hex<32>>, D::Error> {
        bounded(deserializer, MAX_PROOF_NODES)
    }

    fn proofs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Proof>, D::Error> {
        bounded(deserializer, MAX_PROOFS)
    }

    let Proofs(proofs) = read("proofs", raw)?;
    let one = |Proof { index, proof }: Proof| {
        let branch = proof.iter().flat_map(|node| node.0.0).collect();
        Some(BlockProof { index: index.0, branch: BoundedBytes::new(branch)? })
    };
    let proofs: Option<Vec<_>> = proofs.into_iter().map(one).collect();
    proofs.ok_or_else(|| BadRequest("proofs: a branch is too long".to_owned()))
}

// Aggregates.

#[derive(Deserialize)]
struct Versioned<'a> {
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Raw<'a>,
    #[serde(borrow)]
    aggregate: Raw<'a>,
}

/// Tells the layouts of an aggregate apart where no version does.
#[derive(Deserialize)]
struct AggregateShape<'a> {
    data: AtSlot,
    #[serde(borrow)]
    committee_bits: Raw<'a>,
}

fn aggregate(kind: &str, body: Raw, network: &Network) -> Result<Duty, BadRequest> {
    let key = "aggregate_and_proof";
    let raw = body.ok_or_else(|| missing(kind, key))?;
    let versioned: Versioned = read(key, raw)?;
    let (layout, data) = match (versioned.version, versioned.data) {
        (Some(name), Some(data)) => (version(&name)?, data),
        (Some(_), None) => return Err(missing(kind, "aggregate_and_proof.data")),
        // A bare aggregate has no data of its own.
        (None, Some(_)) => return Err(missing(kind, "aggregate_and_proof.version")),
        (None, _) => {
            let shape: AggregateShape = field(kind, "aggregate_and_proof.aggregate", versioned.aggregate)?;
            let layout = if shape.committee_bits.is_none() {
                ForkName::Phase0
            } else {
                network.fork_at(network.epoch_of(Slot(shape.data.slot.0))).max(ForkName::Electra)
            };
            (layout, raw)
        }
    };
    let (slot, object_root) = if layout < ForkName::Electra {
        let data: ssz::AggregateAndProofPhase0 = read(key, data)?;
        (data.aggregate.data.slot.0, object_root(key, &data, network)?)
    } else if layout < ForkName::Gloas {
        let data: ssz::AggregateAndProofElectra = read(key, data)?;
        (data.aggregate.data.slot.0, object_root(key, &data, network)?)
    } else {
        let data: ssz::AggregateAndProofGloas = read(key, data)?;
        (data.aggregate.data.slot.0, object_root(key, &data, network)?)
    };
    Ok(Duty::AggregateAndProof { slot: Slot(slot), object_root })
}

// Gloas: every body comes as `{version, data}`.

#[derive(Deserialize)]
struct Wrapped<'a> {
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

fn gloas<'a, T: Deserialize<'a>>(kind: &str, key: &str, body: Raw<'a>) -> Result<T, BadRequest> {
    let wrapped: Wrapped = field(kind, key, body)?;
    let name = wrapped.version.ok_or_else(|| missing(kind, &format!("{key}.version")))?;
    if version(&name)? != ForkName::Gloas {
        let version = shown(&name);
        return Err(BadRequest(format!("{key}: version {version} is not known for type {kind}; GLOAS is")));
    }
    read(key, wrapped.data)
}

fn version(name: &str) -> Result<ForkName, BadRequest> {
    const NAMES: [(&str, ForkName); 9] = [
        ("PHASE0", ForkName::Phase0),
        ("ALTAIR", ForkName::Altair),
        ("BELLATRIX", ForkName::Bellatrix),
        ("CAPELLA", ForkName::Capella),
        ("DENEB", ForkName::Deneb),
        ("ELECTRA", ForkName::Electra),
        ("FULU", ForkName::Fulu),
        ("GLOAS", ForkName::Gloas),
        ("HEZE", ForkName::Heze),
    ];
    NAMES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, fork)| *fork)
        .ok_or_else(|| BadRequest(format!("unknown version {}", shown(name))))
}

// Fixed-size bodies: their fields go to the vault as they are.

#[derive(Deserialize)]
struct AtSlot {
    slot: Uint,
}

#[derive(Deserialize)]
struct AtEpoch {
    epoch: Uint,
}

#[derive(Deserialize)]
struct Attestation {
    slot: Uint,
    index: Uint,
    beacon_block_root: Hex<32>,
    source: ssz::Checkpoint,
    target: ssz::Checkpoint,
}

impl From<Attestation> for AttestationData {
    fn from(a: Attestation) -> Self {
        let checkpoint = |c: ssz::Checkpoint| Checkpoint { epoch: Epoch(c.epoch.0), root: c.root.0 };
        Self {
            slot: Slot(a.slot.0),
            index: a.index.0,
            beacon_block_root: a.beacon_block_root.0,
            source: checkpoint(a.source),
            target: checkpoint(a.target),
        }
    }
}

#[derive(Deserialize)]
struct VoluntaryExit {
    epoch: Uint,
    validator_index: Uint,
}

#[derive(Deserialize)]
struct SyncCommitteeMessage {
    beacon_block_root: Hex<32>,
    slot: Uint,
}

#[derive(Deserialize)]
struct SyncSelection {
    slot: Uint,
    subcommittee_index: Uint,
}

#[derive(Deserialize)]
struct Registration {
    fee_recipient: Hex<20>,
    gas_limit: Uint,
    timestamp: Uint,
    pubkey: Hex<48>,
}

#[derive(Deserialize)]
struct Deposit {
    pubkey: Hex<48>,
    withdrawal_credentials: Hex<32>,
    amount: Uint,
    genesis_fork_version: Hex<4>,
}

#[derive(Deserialize)]
struct PayloadAttestation {
    beacon_block_root: Hex<32>,
    slot: Uint,
    payload_present: bool,
    blob_data_available: bool,
}

#[derive(Deserialize)]
struct ProposerPreferences {
    dependent_root: Hex<32>,
    proposal_slot: Uint,
    validator_index: Uint,
    fee_recipient: Hex<20>,
    target_gas_limit: Uint,
}

// fork_info.

#[derive(Deserialize)]
struct ForkInfoBody {
    fork: ForkBody,
    genesis_validators_root: Hex<32>,
}

#[derive(Deserialize)]
struct ForkBody {
    #[serde(alias = "previousVersion")]
    previous_version: Hex<4>,
    #[serde(alias = "currentVersion")]
    current_version: Hex<4>,
    epoch: Uint,
}

fn fork_info(kind: &str, body: Raw) -> Result<ForkInfo, BadRequest> {
    field::<ForkInfoBody>(kind, "fork_info", body).map(ForkInfo::from)
}

impl From<ForkInfoBody> for ForkInfo {
    fn from(body: ForkInfoBody) -> Self {
        Self {
            previous_version: body.fork.previous_version.0,
            current_version: body.fork.current_version.0,
            epoch: Epoch(body.fork.epoch.0),
            genesis_validators_root: body.genesis_validators_root.0,
        }
    }
}

// Reading with a name in the error.

fn field<'a, T: Deserialize<'a>>(kind: &str, key: &str, body: Raw<'a>) -> Result<T, BadRequest> {
    read(key, body.ok_or_else(|| missing(kind, key))?)
}

fn read<'a, T: Deserialize<'a>>(key: &str, body: &'a RawValue) -> Result<T, BadRequest> {
    serde_json::from_str(body.get()).map_err(|e| bad(key, e))
}

fn missing(kind: &str, key: &str) -> BadRequest {
    BadRequest(format!("{key} is missing; type {kind} needs it"))
}

fn bad(what: &str, why: impl Display) -> BadRequest {
    BadRequest(format!("{what}: {why}"))
}

fn object_root(key: &str, object: &impl Ssz, network: &Network) -> Result<Root, BadRequest> {
    object.hash_tree_root(network.preset()).map_err(|e| bad(key, e))
}
