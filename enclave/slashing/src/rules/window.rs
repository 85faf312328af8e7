//! Nothing from the future: a hostile client must not be able to burn the slots and epochs to come.
//!
//! `now` is trusted time; it comes from the caller, as everything here does. Slashable duties get one slot of grace
//! for a clock that runs behind; other duties until the end of the epoch after the next, because clients ask for
//! selection proofs that far ahead.

use casemate_protocol::{Epoch, Network, Refusal, Slot};

/// Slots of grace for slashable duties.
const GRACE_SLOTS: u64 = 1;
/// Epochs that clients prepare ahead.
const EPOCHS_AHEAD: u64 = 2;

/// A block's slot is at most one ahead.
pub fn check_block(slot: Slot, now: Slot) -> Result<(), Refusal> {
    let latest = now.saturating_add(GRACE_SLOTS);
    if slot > latest { Err(Refusal::BlockFromFuture { slot, now, latest }) } else { Ok(()) }
}

/// An attestation's target is at most the epoch of the next slot.
pub fn check_target(target: Epoch, now: Slot, network: &Network) -> Result<(), Refusal> {
    let latest = network.epoch_of(now.saturating_add(GRACE_SLOTS));
    if target > latest {
        return Err(Refusal::TargetFromFuture { target, now: network.epoch_of(now), latest });
    }
    Ok(())
}

/// Any other duty's epoch is at most two ahead.
pub fn check_other(epoch: Epoch, now: Slot, network: &Network) -> Result<(), Refusal> {
    let now = network.epoch_of(now);
    let latest = now.saturating_add(EPOCHS_AHEAD);
    if epoch > latest { Err(Refusal::DutyFromFuture { epoch, now, latest }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::network::NetworkFields;
    use casemate_protocol::{Fork, ForkName, Preset, Root, Version};

    use super::*;

    fn network() -> Network {
        let phase0 = Fork { name: ForkName::Phase0, version: Version::ZERO, epoch: Some(Epoch(0)) };
        NetworkFields {
            name: "test".into(),
            preset: Preset::Mainnet,
            genesis_time: 0,
            genesis_validators_root: Root::ZERO,
            slot_duration_ms: 12_000,
            slots_per_epoch: 32,
            forks: vec![phase0],
        }
        .try_into()
        .unwrap()
    }

    #[test]
    fn the_window_ends_where_the_design_says() {
        let n = &network();
        assert!(check_block(Slot(101), Slot(100)).is_ok());
        assert_eq!(
            check_block(Slot(102), Slot(100)),
            Err(Refusal::BlockFromFuture { slot: Slot(102), now: Slot(100), latest: Slot(101) })
        );
        // Slot 94 is in epoch 2, slot 95 is its last, slot 96 starts epoch 3.
        assert!(check_target(Epoch(2), Slot(94), n).is_ok());
        assert_eq!(
            check_target(Epoch(3), Slot(94), n),
            Err(Refusal::TargetFromFuture { target: Epoch(3), now: Epoch(2), latest: Epoch(2) })
        );
        assert!(check_target(Epoch(3), Slot(95), n).is_ok());
        assert!(check_other(Epoch(4), Slot(95), n).is_ok());
        assert_eq!(
            check_other(Epoch(5), Slot(95), n),
            Err(Refusal::DutyFromFuture { epoch: Epoch(5), now: Epoch(2), latest: Epoch(4) })
        );
        assert!(check_block(Slot::MAX, Slot::MAX).is_ok());
        assert!(check_other(Epoch::MAX, Slot(0), n).is_err());
    }
}
