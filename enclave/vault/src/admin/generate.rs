//! Keys that the enclave makes, and deposits.

use aws_lc_rs::rand;
use casemate_protocol::command::{GeneratedKey, MIN_DEPOSIT, Outcome, max_deposit, withdrawal_address};
use casemate_protocol::{Duty, PublicKey, Refusal, Root};
use casemate_slashing::{SlashingHistory, Watermarks};
use zeroize::Zeroizing;

use super::{CommandContext, CommandProcessor, CommandState};
use crate::signing::bls::{HashedMessage, SecretKey};
use crate::signing::signing_root;

impl CommandProcessor {
    pub(super) fn generate(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        count: u32,
        withdrawal_credentials: Root,
        amount: u64,
    ) -> Result<Outcome, Refusal> {
        self.check_deposit(withdrawal_credentials, amount)?;
        let (mut added, mut generated) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let secret = self.new_key()?;
            let public_key = secret.public_key();
            generated.push(deposit(context, &secret, public_key, withdrawal_credentials, amount)?);
            // It has signed nothing that could be slashed, and nobody else has it.
            added.push((public_key, secret, SlashingHistory::Known(Watermarks::NONE)));
        }
        self.add(context, command_state, added)?;
        Ok(Outcome::Generated { keys: generated })
    }

    /// Signs deposits of keys that are held.
    pub(super) fn deposits(
        &self,
        context: &CommandContext<'_>,
        keys: &[PublicKey],
        withdrawal_credentials: Root,
        amount: u64,
    ) -> Result<Outcome, Refusal> {
        self.check_deposit(withdrawal_credentials, amount)?;
        let held = context.keys();
        let sign = |public_key: &PublicKey| {
            let (_, secret) = held.find(public_key).ok_or(Refusal::KeyNotHeld(*public_key))?;
            deposit(context, secret, *public_key, withdrawal_credentials, amount)
        };
        Ok(Outcome::Deposited { keys: keys.iter().map(sign).collect::<Result<_, _>>()? })
    }

    /// To an address that the configuration allows, and neither too little nor too much.
    pub(super) fn check_deposit(&self, withdrawal_credentials: Root, gwei: u64) -> Result<(), Refusal> {
        let address = withdrawal_address(&withdrawal_credentials);
        if !address.is_some_and(|address| self.withdrawal_addresses.contains(&address)) {
            return Err(Refusal::WithdrawalNotAllowed(withdrawal_credentials));
        }
        let max = max_deposit(&withdrawal_credentials);
        if (MIN_DEPOSIT..=max).contains(&gwei) {
            Ok(())
        } else {
            Err(Refusal::DepositAmount { gwei, min: MIN_DEPOSIT, max })
        }
    }

    /// Out of the NSM's entropy and the kernel's: one of them may fail in silence.
    pub(super) fn new_key(&self) -> Result<SecretKey, Refusal> {
        let mut entropy = Zeroizing::new([0; 64]);
        let (ours, kernels) = entropy.split_at_mut(32);
        self.nsm.random(ours).map_err(|_| Refusal::NsmFailed)?;
        rand::fill(kernels).map_err(|_| Refusal::NsmFailed)?;
        SecretKey::generate(entropy.as_slice()).ok_or(Refusal::NsmFailed)
    }
}

/// A key's signature over its deposit message.
pub(super) fn deposit(
    context: &CommandContext<'_>,
    secret: &SecretKey,
    public_key: PublicKey,
    withdrawal_credentials: Root,
    amount: u64,
) -> Result<GeneratedKey, Refusal> {
    let genesis_fork_version = context.network.genesis_version();
    let duty = Duty::Deposit { public_key, withdrawal_credentials, amount, genesis_fork_version };
    let root = signing_root::compute(&duty, None, context.network)?;
    context.log(public_key, &duty, root);
    Ok(GeneratedKey { public_key, deposit_signature: secret.sign(&HashedMessage::new(&root.0)) })
}
