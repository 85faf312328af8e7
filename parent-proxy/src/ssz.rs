//! Hash tree roots of the objects that JSON carries and frames do not.
//!
//! Merkleization is `libssz-merkle`'s; here stand the containers of the specifications and their limits. The sizes that
//! differ between presets are an argument. From Gloas on, containers and lists are progressive (EIP-7495, EIP-7916).

use std::marker::PhantomData;

use casemate_protocol::{Preset, Root};
use libssz_merkle::{Node, Sha2Hasher, merkleize, merkleize_progressive, mix_in_active_fields, mix_in_length, pack};
use serde::{Deserialize, Deserializer};

use crate::json::{Hex, HexBytes, Uint, bounded, shown};

/// An object is larger or smaller than its type allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError(String);

impl std::fmt::Display for SizeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Anything with a hash tree root.
pub trait Ssz {
    /// The hash tree root under a preset's sizes.
    fn root(&self, preset: Preset) -> Result<Node, SizeError>;

    /// The root as the protocol's type.
    fn hash_tree_root(&self, preset: Preset) -> Result<Root, SizeError> {
        self.root(preset).map(Root::from)
    }
}

/// `MAX_COMMITTEES_PER_SLOT`.
fn committees_per_slot(preset: Preset) -> usize {
    match preset {
        Preset::Mainnet => 64,
        Preset::Minimal => 4,
    }
}

/// `SYNC_COMMITTEE_SIZE`.
fn sync_committee_size(preset: Preset) -> usize {
    match preset {
        Preset::Mainnet => 512,
        Preset::Minimal => 32,
    }
}

/// `SYNC_COMMITTEE_SUBNET_COUNT`.
const SYNC_SUBCOMMITTEES: usize = 4;
/// `MAX_VALIDATORS_PER_COMMITTEE`.
const VALIDATORS_PER_COMMITTEE: usize = 2048;

// Basic types and byte vectors.

impl Ssz for Uint {
    fn root(&self, _: Preset) -> Result<Node, SizeError> {
        let mut node = [0; 32];
        for (to, from) in node.iter_mut().zip(self.0.to_le_bytes()) {
            *to = from;
        }
        Ok(node)
    }
}

impl<const N: usize> Ssz for Hex<N> {
    fn root(&self, _: Preset) -> Result<Node, SizeError> {
        Ok(merkleize(&Sha2Hasher, &pack(&self.0.0), None))
    }
}

// Collections.

/// `List[T, N]` of composite elements.
#[derive(Debug)]
pub struct List<T, const N: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(deserializer, N).map(Self)
    }
}

impl<T: Ssz, const N: usize> Ssz for List<T, N> {
    fn root(&self, preset: Preset) -> Result<Node, SizeError> {
        within("a list", self.0.len(), N)?;
        let roots = roots(&self.0, preset)?;
        Ok(mix_in_length(&Sha2Hasher, &merkleize(&Sha2Hasher, &roots, Some(N)), self.0.len()))
    }
}

/// `List[uint64, N]`.
#[derive(Debug)]
pub struct UintList<const N: usize>(Vec<Uint>);

impl<'de, const N: usize> Deserialize<'de> for UintList<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(deserializer, N).map(Self)
    }
}

impl<const N: usize> Ssz for UintList<N> {
    fn root(&self, _: Preset) -> Result<Node, SizeError> {
        within("a list", self.0.len(), N)?;
        let bytes: Vec<u8> = self.0.iter().flat_map(|n| n.0.to_le_bytes()).collect();
        let root = merkleize(&Sha2Hasher, &pack(&bytes), Some(N.div_ceil(4)));
        Ok(mix_in_length(&Sha2Hasher, &root, self.0.len()))
    }
}

/// `ByteList[N]`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct ByteList<const N: usize>(HexBytes);

impl<const N: usize> Ssz for ByteList<N> {
    fn root(&self, _: Preset) -> Result<Node, SizeError> {
        let bytes = &self.0.0;
        within("a byte list", bytes.len(), N)?;
        let root = merkleize(&Sha2Hasher, &pack(bytes), Some(N.div_ceil(32)));
        Ok(mix_in_length(&Sha2Hasher, &root, bytes.len()))
    }
}

/// `Vector[T, N]` of composite elements.
#[derive(Debug)]
pub struct Vector<T, const N: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Vector<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(deserializer, N).map(Self)
    }
}

impl<T: Ssz, const N: usize> Ssz for Vector<T, N> {
    fn root(&self, preset: Preset) -> Result<Node, SizeError> {
        if self.0.len() != N {
            return Err(SizeError(format!("a vector has {} elements, its type has {N}", self.0.len())));
        }
        Ok(merkleize(&Sha2Hasher, &roots(&self.0, preset)?, None))
    }
}

/// Bits with their delimiter, as SSZ writes a bit list.
#[derive(Debug)]
pub struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = HexBytes::deserialize(deserializer)?.0;
        let Some(last) = bytes.last_mut().filter(|last| **last != 0) else {
            return Err(serde::de::Error::custom("a bit list without its delimiting bit"));
        };
        let delimiter = last.ilog2();
        *last ^= 1 << delimiter;
        let whole = bytes.len().saturating_sub(1).saturating_mul(8);
        let len = whole.saturating_add(usize::try_from(delimiter).unwrap_or(0));
        if delimiter == 0 {
            bytes.pop();
        }
        Ok(Self { bytes, len })
    }
}

impl Bits {
    fn list_root(&self, limit: usize) -> Result<Node, SizeError> {
        within("a bit list", self.len, limit)?;
        let root = merkleize(&Sha2Hasher, &pack(&self.bytes), Some(limit.div_ceil(256)));
        Ok(mix_in_length(&Sha2Hasher, &root, self.len))
    }
}

/// Which bit vector of the specification: its length depends on the preset.
pub trait BitVectorLen {
    /// Length in bits.
    fn bits(preset: Preset) -> usize;
}

/// `Bitvector[N]`, with `N` by the preset.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct BitVector<L> {
    bytes: HexBytes,
    #[serde(skip)]
    len: PhantomData<L>,
}

impl<L: BitVectorLen> Ssz for BitVector<L> {
    fn root(&self, preset: Preset) -> Result<Node, SizeError> {
        let (bits, bytes) = (L::bits(preset), &self.bytes.0);
        let used = u32::try_from(bits % 8).unwrap_or(0);
        let clean = used == 0 || bytes.last().is_none_or(|last| last >> used == 0);
        if bytes.len() != bits.div_ceil(8) || !clean {
            return Err(SizeError(format!(
                "a bit vector of {} bytes does not hold exactly {bits} bits (preset {preset:?})",
                bytes.len()
            )));
        }
        Ok(merkleize(&Sha2Hasher, &pack(bytes), None))
    }
}

/// `ProgressiveList[T]` of composite elements.
#[derive(Debug)]
pub struct ProgressiveList<T>(Vec<T>);

/// Most elements of a progressive list: its type has no limit, `MAX_TRANSACTIONS_PER_PAYLOAD` is beyond any payload.
const PROGRESSIVE_LIST_LEN: usize = 1 << 20;

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ProgressiveList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(deserializer, PROGRESSIVE_LIST_LEN).map(Self)
    }
}

impl<T: Ssz> Ssz for ProgressiveList<T> {
    fn root(&self, preset: Preset) -> Result<Node, SizeError> {
        let root = merkleize_progressive(&Sha2Hasher, &roots(&self.0, preset)?);
        Ok(mix_in_length(&Sha2Hasher, &root, self.0.len()))
    }
}

/// `ProgressiveByteList`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct ProgressiveByteList(HexBytes);

impl Ssz for ProgressiveByteList {
    fn root(&self, _: Preset) -> Result<Node, SizeError> {
        let bytes = &self.0.0;
        let root = merkleize_progressive(&Sha2Hasher, &pack(bytes));
        Ok(mix_in_length(&Sha2Hasher, &root, bytes.len()))
    }
}

/// `ProgressiveBitlist`, bounded by the committees of a slot.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct ProgressiveBits(Bits);

impl Ssz for ProgressiveBits {
    fn root(&self, preset: Preset) -> Result<Node, SizeError> {
        within("a bit list", self.0.len, slot_attesters(preset))?;
        let root = merkleize_progressive(&Sha2Hasher, &pack(&self.0.bytes));
        Ok(mix_in_length(&Sha2Hasher, &root, self.0.len))
    }
}

fn roots<T: Ssz>(elements: &[T], preset: Preset) -> Result<Vec<Node>, SizeError> {
    elements.iter().map(|e| e.root(preset)).collect()
}

fn within(what: &str, len: usize, limit: usize) -> Result<(), SizeError> {
    if len > limit {
        return Err(SizeError(format!("{what} of {len} is longer than its type allows, {limit}")));
    }
    Ok(())
}

fn slot_attesters(preset: Preset) -> usize {
    VALIDATORS_PER_COMMITTEE.saturating_mul(committees_per_slot(preset))
}

// Bit fields by name.

/// `Bitlist[MAX_VALIDATORS_PER_COMMITTEE]`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct CommitteeMembers(Bits);

impl Ssz for CommitteeMembers {
    fn root(&self, _: Preset) -> Result<Node, SizeError> {
        self.0.list_root(VALIDATORS_PER_COMMITTEE)
    }
}

/// `Bitlist[MAX_VALIDATORS_PER_COMMITTEE * MAX_COMMITTEES_PER_SLOT]` (Electra).
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct SlotMembers(Bits);

impl Ssz for SlotMembers {
    fn root(&self, preset: Preset) -> Result<Node, SizeError> {
        self.0.list_root(slot_attesters(preset))
    }
}

macro_rules! bit_vector_len {
    ($(#[$doc:meta])* $name:ident, $bits:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl BitVectorLen for $name {
            fn bits(preset: Preset) -> usize {
                let bits: fn(Preset) -> usize = $bits;
                bits(preset)
            }
        }
    };
}

bit_vector_len!(
    /// `committee_bits`.
    Committees,
    committees_per_slot
);
bit_vector_len!(
    /// `sync_committee_bits`.
    SyncCommittee,
    sync_committee_size
);
bit_vector_len!(
    /// `aggregation_bits` of a contribution.
    SyncSubcommittee,
    |preset| sync_committee_size(preset) / SYNC_SUBCOMMITTEES
);

// Containers.

macro_rules! container {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)+ }) => {
        container!(@struct $(#[$doc])* $name { $($field: $type,)+ });

        impl Ssz for $name {
            fn root(&self, preset: Preset) -> Result<Node, SizeError> {
                let fields = [$(self.$field.root(preset)?),+];
                Ok(merkleize(&Sha2Hasher, &fields, None))
            }
        }
    };
    (progressive $(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)+ }) => {
        container!(@struct $(#[$doc])* $name { $($field: $type,)+ });

        impl Ssz for $name {
            fn root(&self, preset: Preset) -> Result<Node, SizeError> {
                let fields = [$(self.$field.root(preset)?),+];
                let root = merkleize_progressive(&Sha2Hasher, &fields);
                // No field of these containers has been retired yet: all are active.
                Ok(mix_in_active_fields(&Sha2Hasher, &root, &fields.map(|_| true)))
            }
        }
    };
    (@struct $(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[allow(missing_docs, reason = "fields of the specification's container")]
        pub struct $name {
            $(pub $field: $type,)+
        }
    };
}

type BlsSignature = Hex<96>;

container!(
    /// `Checkpoint`.
    Checkpoint { epoch: Uint, root: Hex<32>, }
);
container!(
    /// `AttestationData`.
    AttestationData { slot: Uint, index: Uint, beacon_block_root: Hex<32>, source: Checkpoint, target: Checkpoint, }
);
container!(
    /// `Attestation` before Electra.
    AttestationPhase0 { aggregation_bits: CommitteeMembers, data: AttestationData, signature: BlsSignature, }
);
container!(
    /// `Attestation` of Electra and Fulu.
    AttestationElectra {
        aggregation_bits: SlotMembers,
        data: AttestationData,
        signature: BlsSignature,
        committee_bits: BitVector<Committees>,
    }
);
container!(progressive
    /// `Attestation` from Gloas on.
    AttestationGloas {
        aggregation_bits: ProgressiveBits,
        data: AttestationData,
        signature: BlsSignature,
        committee_bits: BitVector<Committees>,
    }
);
container!(
    /// `AggregateAndProof` before Electra.
    AggregateAndProofPhase0 { aggregator_index: Uint, aggregate: AttestationPhase0, selection_proof: BlsSignature, }
);
container!(
    /// `AggregateAndProof` of Electra and Fulu.
    AggregateAndProofElectra { aggregator_index: Uint, aggregate: AttestationElectra, selection_proof: BlsSignature, }
);
container!(
    /// `AggregateAndProof` from Gloas on.
    AggregateAndProofGloas { aggregator_index: Uint, aggregate: AttestationGloas, selection_proof: BlsSignature, }
);
container!(
    /// `SyncCommitteeContribution`.
    SyncCommitteeContribution {
        slot: Uint,
        beacon_block_root: Hex<32>,
        subcommittee_index: Uint,
        aggregation_bits: BitVector<SyncSubcommittee>,
        signature: BlsSignature,
    }
);
container!(
    /// `ContributionAndProof`.
    ContributionAndProof { aggregator_index: Uint, contribution: SyncCommitteeContribution, selection_proof: BlsSignature, }
);

// Block bodies of phase0 and altair, which clients still send whole.

container!(
    /// `Eth1Data`.
    Eth1Data { deposit_root: Hex<32>, deposit_count: Uint, block_hash: Hex<32>, }
);
container!(
    /// `BeaconBlockHeader`.
    BeaconBlockHeader {
        slot: Uint,
        proposer_index: Uint,
        parent_root: Hex<32>,
        state_root: Hex<32>,
        body_root: Hex<32>,
    }
);
container!(
    /// `SignedBeaconBlockHeader`.
    SignedBeaconBlockHeader { message: BeaconBlockHeader, signature: BlsSignature, }
);
container!(
    /// `ProposerSlashing`.
    ProposerSlashing { signed_header_1: SignedBeaconBlockHeader, signed_header_2: SignedBeaconBlockHeader, }
);
container!(
    /// `IndexedAttestation` before Electra.
    IndexedAttestation { attesting_indices: UintList<2048>, data: AttestationData, signature: BlsSignature, }
);
container!(
    /// `AttesterSlashing` before Electra.
    AttesterSlashing { attestation_1: IndexedAttestation, attestation_2: IndexedAttestation, }
);
container!(
    /// `DepositData`.
    DepositData { pubkey: Hex<48>, withdrawal_credentials: Hex<32>, amount: Uint, signature: BlsSignature, }
);
container!(
    /// `Deposit`: the branch has the depth of the deposit tree and one more.
    Deposit { proof: Vector<Hex<32>, 33>, data: DepositData, }
);
container!(
    /// `VoluntaryExit`.
    VoluntaryExit { epoch: Uint, validator_index: Uint, }
);
container!(
    /// `SignedVoluntaryExit`.
    SignedVoluntaryExit { message: VoluntaryExit, signature: BlsSignature, }
);
container!(
    /// `SyncAggregate`.
    SyncAggregate { sync_committee_bits: BitVector<SyncCommittee>, sync_committee_signature: BlsSignature, }
);
container!(
    /// `BeaconBlockBody` of phase0.
    BodyPhase0 {
        randao_reveal: BlsSignature,
        eth1_data: Eth1Data,
        graffiti: Hex<32>,
        proposer_slashings: List<ProposerSlashing, 16>,
        attester_slashings: List<AttesterSlashing, 2>,
        attestations: List<AttestationPhase0, 128>,
        deposits: List<Deposit, 16>,
        voluntary_exits: List<SignedVoluntaryExit, 16>,
    }
);
container!(
    /// `BeaconBlockBody` of altair.
    BodyAltair {
        randao_reveal: BlsSignature,
        eth1_data: Eth1Data,
        graffiti: Hex<32>,
        proposer_slashings: List<ProposerSlashing, 16>,
        attester_slashings: List<AttesterSlashing, 2>,
        attestations: List<AttestationPhase0, 128>,
        deposits: List<Deposit, 16>,
        voluntary_exits: List<SignedVoluntaryExit, 16>,
        sync_aggregate: SyncAggregate,
    }
);

// Gloas (EIP-7732, EIP-7928, EIP-7843, EIP-8282).

container!(progressive
    /// `ExecutionPayloadBid`.
    ExecutionPayloadBid {
        parent_block_hash: Hex<32>,
        parent_block_root: Hex<32>,
        block_hash: Hex<32>,
        prev_randao: Hex<32>,
        fee_recipient: Hex<20>,
        gas_limit: Uint,
        builder_index: Uint,
        slot: Uint,
        value: Uint,
        execution_payment: Uint,
        blob_kzg_commitments: ProgressiveList<Hex<48>>,
        execution_requests_root: Hex<32>,
    }
);
container!(
    /// `Withdrawal`.
    Withdrawal { index: Uint, validator_index: Uint, address: Hex<20>, amount: Uint, }
);
container!(progressive
    /// `ExecutionPayload` of Gloas.
    ExecutionPayload {
        parent_hash: Hex<32>,
        fee_recipient: Hex<20>,
        state_root: Hex<32>,
        receipts_root: Hex<32>,
        logs_bloom: Hex<256>,
        prev_randao: Hex<32>,
        block_number: Uint,
        gas_limit: Uint,
        gas_used: Uint,
        timestamp: Uint,
        extra_data: ByteList<32>,
        base_fee_per_gas: Uint256,
        block_hash: Hex<32>,
        transactions: ProgressiveList<ProgressiveByteList>,
        withdrawals: ProgressiveList<Withdrawal>,
        blob_gas_used: Uint,
        excess_blob_gas: Uint,
        block_access_list: ProgressiveByteList,
        slot_number: Uint,
    }
);
container!(
    /// `DepositRequest`.
    DepositRequest {
        pubkey: Hex<48>,
        withdrawal_credentials: Hex<32>,
        amount: Uint,
        signature: BlsSignature,
        index: Uint,
    }
);
container!(
    /// `WithdrawalRequest`.
    WithdrawalRequest { source_address: Hex<20>, validator_pubkey: Hex<48>, amount: Uint, }
);
container!(
    /// `ConsolidationRequest`.
    ConsolidationRequest { source_address: Hex<20>, source_pubkey: Hex<48>, target_pubkey: Hex<48>, }
);
container!(
    /// `BuilderDepositRequest`.
    BuilderDepositRequest { pubkey: Hex<48>, withdrawal_credentials: Hex<32>, amount: Uint, signature: BlsSignature, }
);
container!(
    /// `BuilderExitRequest`.
    BuilderExitRequest { source_address: Hex<20>, pubkey: Hex<48>, }
);
container!(progressive
    /// `ExecutionRequests` of Gloas.
    ExecutionRequests {
        deposits: ProgressiveList<DepositRequest>,
        withdrawals: ProgressiveList<WithdrawalRequest>,
        consolidations: ProgressiveList<ConsolidationRequest>,
        builder_deposits: ProgressiveList<BuilderDepositRequest>,
        builder_exits: ProgressiveList<BuilderExitRequest>,
    }
);
container!(progressive
    /// `ExecutionPayloadEnvelope`.
    ExecutionPayloadEnvelope {
        payload: ExecutionPayload,
        execution_requests: ExecutionRequests,
        builder_index: Uint,
        beacon_block_root: Hex<32>,
        parent_beacon_block_root: Hex<32>,
    }
);
container!(
    /// `BuilderRequestAuth` (builder-specs).
    BuilderRequestAuth { data: ByteList<4096>, slot: Uint, }
);

/// `uint256`, as a decimal string or a JSON number.
#[derive(Debug)]
pub struct Uint256(Node);

impl<'de> Deserialize<'de> for Uint256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Most base fees fit 64 bits, and may come as numbers like every other integer.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form<'a> {
            Number(u64),
            Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Number(number) => number.to_string(),
            Form::Text(text) => text.into_owned(),
        };
        let error = || serde::de::Error::custom(format_args!("{} is not a decimal number below 2^256", shown(&text)));
        if text.is_empty() || text.len() > 78 {
            return Err(error());
        }
        let mut little_endian = [0u8; 32];
        for digit in text.bytes() {
            let digit = char::from(digit).to_digit(10).ok_or_else(error)?;
            let mut carry = digit;
            for byte in &mut little_endian {
                let value = u32::from(*byte).saturating_mul(10).saturating_add(carry);
                let [low, ..] = value.to_le_bytes();
                *byte = low;
                carry = value >> 8;
            }
            if carry != 0 {
                return Err(error());
            }
        }
        Ok(Self(little_endian))
    }
}

impl Ssz for Uint256 {
    fn root(&self, _: Preset) -> Result<Node, SizeError> {
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: for<'de> Deserialize<'de>>(hex: &str) -> Option<T> {
        serde_json::from_str(&format!("\"0x{hex}\"")).ok()
    }

    fn fits<T: Ssz + for<'de> Deserialize<'de>>(hex: &str, preset: Preset) -> bool {
        parse::<T>(hex).is_some_and(|object| object.root(preset).is_ok())
    }

    fn json<T: Ssz + for<'de> Deserialize<'de>>(text: &str) -> bool {
        serde_json::from_str::<T>(text).is_ok_and(|object| object.root(Preset::Mainnet).is_ok())
    }

    #[test]
    fn bit_vectors_hold_their_bits_and_no_more() {
        assert!(fits::<BitVector<Committees>>("0f", Preset::Minimal));
        assert!(!fits::<BitVector<Committees>>("10", Preset::Minimal), "a fifth committee");
        assert!(!fits::<BitVector<Committees>>("80", Preset::Minimal));
        assert!(!fits::<BitVector<Committees>>("", Preset::Minimal));
        assert!(!fits::<BitVector<Committees>>("0f00", Preset::Minimal));
        assert!(fits::<BitVector<Committees>>(&"ff".repeat(8), Preset::Mainnet));
        assert!(!fits::<BitVector<Committees>>("0f", Preset::Mainnet));
        assert!(fits::<BitVector<SyncSubcommittee>>("ff", Preset::Minimal));
        assert!(fits::<BitVector<SyncCommittee>>(&"ff".repeat(64), Preset::Mainnet));
    }

    #[test]
    fn bit_lists_need_their_delimiter_and_keep_their_limit() {
        assert!(parse::<Bits>("").is_none());
        assert!(parse::<Bits>("00").is_none());
        assert!(parse::<Bits>("ff00").is_none());
        assert_eq!(parse::<Bits>("01").map(|b| (b.len, b.bytes)), Some((0, vec![])));
        assert_eq!(parse::<Bits>("05").map(|b| (b.len, b.bytes)), Some((2, vec![1])));
        assert_eq!(parse::<Bits>("ff01").map(|b| (b.len, b.bytes)), Some((8, vec![0xff])));
        assert_eq!(parse::<Bits>("ff80").map(|b| (b.len, b.bytes)), Some((15, vec![0xff, 0])));
        assert!(fits::<CommitteeMembers>(&("00".repeat(256) + "01"), Preset::Mainnet));
        assert!(!fits::<CommitteeMembers>(&("00".repeat(256) + "02"), Preset::Mainnet), "2049 members");
        assert!(!fits::<SlotMembers>(&("00".repeat(2048) + "01"), Preset::Minimal), "more than four committees");
        assert!(fits::<SlotMembers>(&("00".repeat(2048) + "01"), Preset::Mainnet));
        assert!(!fits::<ProgressiveBits>(&("00".repeat(17_000) + "01"), Preset::Mainnet));
    }

    #[test]
    fn lists_beyond_their_limit_are_refused_and_do_not_panic() {
        let roots = |n: usize| format!("[{}]", vec![format!("\"0x{}\"", "00".repeat(32)); n].join(","));
        assert!(json::<List<Hex<32>, 16>>(&roots(16)));
        assert!(!json::<List<Hex<32>, 16>>(&roots(17)));
        assert!(json::<Vector<Hex<32>, 33>>(&roots(33)));
        assert!([32, 34, 0].iter().all(|n| !json::<Vector<Hex<32>, 33>>(&roots(*n))));
        assert!(fits::<ByteList<32>>(&"00".repeat(32), Preset::Mainnet));
        assert!(!fits::<ByteList<32>>(&"00".repeat(33), Preset::Mainnet));
        let uints = |n: usize| format!("[{}]", vec!["1"; n].join(","));
        assert!(json::<UintList<4>>(&uints(4)));
        assert!(!json::<UintList<4>>(&uints(5)));
        let endless = format!("[{}]", vec!["\"0x\""; PROGRESSIVE_LIST_LEN + 1].join(","));
        assert!(!json::<ProgressiveList<ProgressiveByteList>>(&endless));
    }

    #[test]
    fn numbers_of_256_bits_are_exact() {
        let parse = |text: &str| serde_json::from_str::<Uint256>(&format!("\"{text}\"")).ok().map(|n| n.0);
        let max = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!(parse(max), Some([0xff; 32]));
        assert_eq!(parse(&max.replace("935", "936")), None);
        assert_eq!(parse("256").map(|n| (n[0], n[1])), Some((0, 1)));
        assert_eq!(parse(""), None);
        assert_eq!(parse("-1"), None);
        assert_eq!(parse("0x1"), None);
        assert_eq!(serde_json::from_str::<Uint256>("7").ok().map(|n| n.0[0]), Some(7));
        assert!(serde_json::from_str::<Uint256>("-7").is_err());
    }
}
