//! What is allowed beyond the slashing rules: by the measured configuration, and by operators' orders.

use std::sync::{Mutex, PoisonError};

use casemate_protocol::command::{ExitOrder, withdrawal_address};
use casemate_protocol::configuration::Window;
use casemate_protocol::frame::BlockProof;
use casemate_protocol::key_page::PendingExit;
use casemate_protocol::{
    BeaconBlockHeader, Duty, Epoch, ExecutionAddress, ForkName, Network, PublicKey, Refusal, Root, SignRequest,
};

use crate::platform::ssz::{hash_pair, leaf};

/// What the measured configuration allows beyond duties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a policy")]
pub struct Policy {
    /// Sign proofs of validation (Web3Signer's signing extension).
    pub proof_of_validation: bool,
    /// Sign voluntary exits for anyone who asks.
    pub voluntary_exits: bool,
    /// Which deposits are signed for anyone who asks.
    pub deposits: Deposits,
    /// Where the fees of keys go that operators have not given another address; nothing where anybody may say.
    pub fee_recipient: Option<ExecutionAddress>,
    /// What blocks say; nothing where anybody may say.
    pub graffiti: Option<Root>,
    /// Blocks must prove their fee recipient and graffiti.
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

/// Deposits that are signed. The first deposit of a key decides for good where its stake goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deposits {
    /// All: for a signer whose keys were made elsewhere.
    All,
    /// Those that withdraw to one of these addresses.
    To(Vec<ExecutionAddress>),
}

impl Default for Deposits {
    fn default() -> Self {
        Self::To(Vec::new())
    }
}

impl From<casemate_protocol::configuration::Policy> for Policy {
    fn from(policy: casemate_protocol::configuration::Policy) -> Self {
        Self {
            proof_of_validation: policy.proof_of_validation,
            voluntary_exits: policy.voluntary_exits,
            deposits: Deposits::To(policy.withdrawal_addresses),
            fee_recipient: policy.fee_recipient,
            graffiti: policy.graffiti,
            block_proofs: policy.block_proofs,
            key_manager_import: policy.key_manager_import,
            key_manager_delete: policy.key_manager_delete,
            window: policy.window,
            builder_bids: policy.builder_bids,
        }
    }
}

impl Policy {
    /// Everything is signed that is no slashable message, and blocks and votes of any age.
    pub fn permissive() -> Self {
        Self {
            proof_of_validation: true,
            voluntary_exits: true,
            deposits: Deposits::All,
            window: Window::ANY,
            builder_bids: true,
            ..Self::default()
        }
    }

    /// `ordered`: the address that operators have given the key's fees.
    pub(crate) fn check(
        &self,
        request: &SignRequest,
        ordered: Option<ExecutionAddress>,
        exits: &Exits,
        network: &Network,
    ) -> Result<(), Refusal> {
        let fee_recipient = ordered.or(self.fee_recipient);
        match &request.duty {
            Duty::Block(header) if self.block_proofs => {
                self.check_block(header, &request.proofs, fee_recipient, network)
            }
            Duty::ExecutionPayloadBid { .. } if !self.builder_bids => Err(Refusal::BuilderBidOff),
            Duty::VoluntaryExit { epoch, validator_index } if !self.voluntary_exits => {
                exits.check(&request.public_key, *validator_index, *epoch)
            }
            Duty::Deposit { withdrawal_credentials, .. } => match &self.deposits {
                Deposits::To(allowed)
                    if !withdrawal_address(withdrawal_credentials).is_some_and(|to| allowed.contains(&to)) =>
                {
                    Err(Refusal::WithdrawalNotAllowed(*withdrawal_credentials))
                }
                _ => Ok(()),
            },
            Duty::ValidatorRegistration { fee_recipient: asked, .. }
            | Duty::ProposerPreferences { fee_recipient: asked, .. } => match fee_recipient {
                Some(allowed) if *asked != allowed => Err(Refusal::FeeRecipientNotAllowed { asked: *asked, allowed }),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// The header's body root is what will be signed: what a branch proves against it stands in the block.
    fn check_block(
        &self,
        header: &BeaconBlockHeader,
        proofs: &[BlockProof],
        fee_recipient: Option<ExecutionAddress>,
        network: &Network,
    ) -> Result<(), Refusal> {
        // By the network's own table, never by what the client says of its fork.
        let fork = network.fork_at(network.epoch_of(header.slot));
        let wanted = [
            fee_recipient.and_then(|address| Some((fee_recipient_index(fork)?, leaf(&address.0)))),
            self.graffiti.map(|graffiti| (graffiti_index(fork), graffiti)),
        ];
        for (index, leaf) in wanted.into_iter().flatten() {
            let proof = proofs.iter().find(|proof| proof.index == index);
            let proof = proof.ok_or(Refusal::BlockProofMissing { index })?;
            if branch_root(leaf, proof) != Some(header.body_root) {
                return Err(Refusal::BlockProofWrong { index });
            }
        }
        Ok(())
    }
}

/// Generalised index of `execution_payload.fee_recipient` in a block's body. Before Bellatrix there is none; from Gloas on the block
/// carries a bid, and the proposer's preferences tell builders where the fees go.
fn fee_recipient_index(fork: ForkName) -> Option<u64> {
    match fork {
        ForkName::Bellatrix | ForkName::Capella => Some(401),
        ForkName::Deneb | ForkName::Electra | ForkName::Fulu => Some(801),
        _ => None,
    }
}

/// Generalised index of `graffiti`, a body's third field: phase0's has eight of them, later ones up to sixteen. From Gloas on the body is
/// a progressive container (EIP-7688): below the mix with the active fields (2), behind the first field's subtree (5), the second of
/// the next four (10).
fn graffiti_index(fork: ForkName) -> u64 {
    match fork {
        ForkName::Phase0 => 10,
        ForkName::Altair
        | ForkName::Bellatrix
        | ForkName::Capella
        | ForkName::Deneb
        | ForkName::Electra
        | ForkName::Fulu => 18,
        ForkName::Gloas | ForkName::Heze => 41,
    }
}

/// The root that a branch leads to (`is_valid_merkle_branch` of the consensus specification); nothing where its length is not that of
/// its index.
fn branch_root(leaf: Root, proof: &BlockProof) -> Option<Root> {
    let depth = proof.index.checked_ilog2()?;
    let nodes = proof.branch.as_ref();
    if u32::try_from(nodes.len()).ok()? != depth.checked_mul(32)? {
        return None;
    }
    let mut index = proof.index;
    let mut root = leaf;
    for node in nodes.chunks_exact(32) {
        let node = Root::from(<[u8; 32]>::try_from(node).ok()?);
        root = if index & 1 == 1 { hash_pair(node, root) } else { hash_pair(root, node) };
        index >>= 1;
    }
    Some(root)
}

/// Exits that operators have ordered in this boot: validator clients may have them signed.
#[derive(Default)]
pub(crate) struct Exits(Mutex<Vec<(ExitOrder, Epoch)>>);

impl Exits {
    /// From now on, up to this epoch. The last order for a validator counts.
    pub(crate) fn allow(&self, orders: &[ExitOrder], last_epoch: Epoch) {
        let mut allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.retain(|(known, _)| !orders.contains(known));
        allowed.extend(orders.iter().map(|order| (*order, last_epoch)));
    }

    /// The last order for a key.
    pub(crate) fn pending(&self, public_key: &PublicKey) -> Option<PendingExit> {
        let allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = allowed.iter().rev().find(|(order, _)| order.public_key == *public_key);
        of_key
            .map(|(order, last_epoch)| PendingExit { validator_index: order.validator_index, last_epoch: *last_epoch })
    }

    fn check(&self, public_key: &PublicKey, validator_index: u64, epoch: Epoch) -> Result<(), Refusal> {
        let asked = ExitOrder { public_key: *public_key, validator_index };
        let allowed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match allowed.iter().find(|(order, _)| *order == asked) {
            Some((_, last)) if epoch <= *last => Ok(()),
            Some((_, last)) => Err(Refusal::ExitTooLate { epoch, last: *last }),
            None => Err(Refusal::ExitNotAllowed),
        }
    }
}
