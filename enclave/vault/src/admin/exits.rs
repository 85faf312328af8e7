//! Voluntary exits.

use casemate_protocol::command::{ExitOrder, Outcome, SignedExit};
use casemate_protocol::{Duty, Epoch, ForkInfo, Refusal};

use super::CommandContext;
use crate::signing::bls::HashedMessage;
use crate::signing::signing_root;

/// Signs exits at the current epoch, and lets clients have such exits signed until the last one.
pub(super) fn exit(context: &CommandContext<'_>, orders: &[ExitOrder], last_epoch: Epoch) -> Result<Outcome, Refusal> {
    context.fence_gate.held()?;
    let network = context.network;
    let epoch = network.epoch_of(context.now);
    if epoch > last_epoch {
        return Err(Refusal::ExitTooLate { epoch, last: last_epoch });
    }
    // By the network's own fork table: EIP-7044 pins the version from Deneb on, before that it is the epoch's.
    let version = network.version_of(network.fork_at(epoch)).unwrap_or_default();
    let fork_info = ForkInfo {
        previous_version: version,
        current_version: version,
        epoch: Epoch(0),
        genesis_validators_root: network.genesis_validators_root(),
    };
    let held = context.keys();
    let one = |order: &ExitOrder| {
        let ExitOrder { public_key, validator_index } = *order;
        let (_, secret) = held.find(&public_key).ok_or(Refusal::KeyNotHeld(public_key))?;
        let duty = Duty::VoluntaryExit { epoch, validator_index };
        let root = signing_root::compute(&duty, Some(&fork_info), network)?;
        let signature = secret.sign(&HashedMessage::new(&root.0));
        context.log(public_key, &duty, root);
        Ok(SignedExit { public_key, epoch, validator_index, signature })
    };
    let exits = orders.iter().map(one).collect::<Result<_, Refusal>>()?;
    context.exits.allow(orders, last_epoch);
    Ok(Outcome::ExitsSigned { exits })
}
