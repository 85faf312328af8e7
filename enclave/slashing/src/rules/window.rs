//! The window: what trusted time allows to be signed now.
//!
//! **Nothing from the future**: a hostile client must not be able to burn the slots and epochs to come, nor have signed now what is
//! nobody's before its time (a RANDAO reveal tells the chain's randomness). Each type of duty has its own bound: as early as real
//! clients ask, and one slot of grace for a clock that runs behind; see [`check_early`].
//!
//! **Nothing slashable from long ago**: a second line of defence behind watermarks, floors and ceilings. Where all of them were lost
//! (a store that was rolled back, a history that was not whole), what was signed long ago still cannot be contradicted. How old a
//! block or a vote may be is measured policy ([`Window`]).
//!
//! `now` is trusted time; it comes from the caller, as everything here does.

use casemate_protocol::configuration::Window;
use casemate_protocol::{Duty, Epoch, Network, Refusal, Slot};

/// Slots of grace for a clock that runs behind those of the clients.
const GRACE_SLOTS: u64 = 1;
/// Epochs ahead that an exit or a registration may be for.
const ORDER_EPOCHS: u64 = 2;

/// A block's slot is at most one ahead, and as old as policy allows.
pub fn check_block(slot: Slot, now: Slot, window: &Window) -> Result<(), Refusal> {
    let latest = now.saturating_add(GRACE_SLOTS);
    if slot > latest {
        return Err(Refusal::BlockFromFuture { slot, now, latest });
    }
    match window.max_block_age_slots.map(|age| Slot(now.0.saturating_sub(age))) {
        Some(oldest) if slot < oldest => Err(Refusal::BlockTooOld { slot, now, oldest }),
        _ => Ok(()),
    }
}

/// An attestation's target is at most the epoch of the next slot, and as old as policy allows.
pub fn check_target(target: Epoch, now: Slot, network: &Network, window: &Window) -> Result<(), Refusal> {
    let latest = network.epoch_of(now.saturating_add(GRACE_SLOTS));
    let now = network.epoch_of(now);
    if target > latest {
        return Err(Refusal::TargetFromFuture { target, now, latest });
    }
    match window.max_target_age_epochs.map(|age| Epoch(now.0.saturating_sub(age))) {
        Some(oldest) if target < oldest => Err(Refusal::TargetTooOld { target, now, oldest }),
        _ => Ok(()),
    }
}

/// Until when a duty may not be asked for, counted from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// It has no slot.
    Never,
    /// Its slot: at most so many ahead, and the grace.
    Slot { slot: Slot, ahead: u64 },
    /// Its epoch: at most so many after the epoch of the slot that is so many ahead, with the grace.
    Epoch { epoch: Epoch, slots: u64, epochs: u64 },
    /// Its epoch: a few after this one. It waits for no slot, and needs no grace.
    Order { epoch: Epoch },
}

/// A duty that is not slashable may be asked for no earlier than real clients ask. There is no lower bound.
///
/// | duty | asked for at the earliest, by | bound, with n = the slot now and E(n) its epoch |
/// |---|---|---|
/// | RANDAO_REVEAL | in the slot before the block's: Nimbus (half a slot ahead, `block_service.nim`), Vero (`block_proposal.py`); the others in the block's slot | E(n+1), and the grace |
/// | AGGREGATION_SLOT | for the next epoch: Lodestar (`attestationDuties.ts`), Teku (`LOOKAHEAD_EPOCHS`), Nimbus (`duties_service.nim`), Vero; Prysm counts from the next slot's epoch (`UpdateDuties`); Lighthouse 8 slots ahead | E(n+1)+1, and the grace |
/// | SYNC_COMMITTEE_SELECTION_PROOF | two epochs ahead: Lighthouse (`AGGREGATION_PRE_COMPUTE_EPOCHS`); Nimbus one; the others in its slot | E(n)+2, and the grace |
/// | PROPOSER_PREFERENCES | for the next epoch: Gloas's `get_upcoming_proposal_slots`; Prysm counts as above; Lodestar a quarter of an epoch ahead | E(n+1)+1, and the grace |
/// | BUILDER_REQUEST_AUTH | for the next epoch's proposals: Lighthouse (`builder_preferences_service.rs`); Lodestar a quarter of an epoch ahead | E(n+1)+1, and the grace |
/// | EXECUTION_PAYLOAD_BID | for the next slot: Gloas's gossip takes a bid for this slot or the next | n+1, and the grace |
/// | AGGREGATE_AND_PROOF, SYNC_COMMITTEE_MESSAGE, SYNC_COMMITTEE_CONTRIBUTION_AND_PROOF, EXECUTION_PAYLOAD_ENVELOPE, PAYLOAD_ATTESTATION_MESSAGE | in its slot: all | n, and the grace |
/// | VOLUNTARY_EXIT, VALIDATOR_REGISTRATION | when it is ordered: policy decides | E(n)+2 |
/// | DEPOSIT | at any time: it has no slot | none |
///
/// Blocks and votes have their own checks, [`check_block`] and [`check_target`].
pub fn check_early(duty: &Duty, now: Slot, network: &Network) -> Result<(), Refusal> {
    let soon = |slots: u64| now.saturating_add(slots).saturating_add(GRACE_SLOTS);
    let (epoch, latest) = match bound(duty, network) {
        Bound::Never => return Ok(()),
        Bound::Slot { slot, ahead } => {
            let latest = soon(ahead);
            return if slot > latest { Err(Refusal::DutySlotFromFuture { slot, now, latest }) } else { Ok(()) };
        }
        Bound::Epoch { epoch, slots, epochs } => (epoch, network.epoch_of(soon(slots)).saturating_add(epochs)),
        Bound::Order { epoch } => (epoch, network.epoch_of(now).saturating_add(ORDER_EPOCHS)),
    };
    let now = network.epoch_of(now);
    if epoch > latest { Err(Refusal::DutyFromFuture { epoch, now, latest }) } else { Ok(()) }
}

/// The table above.
fn bound(duty: &Duty, network: &Network) -> Bound {
    let by_epoch = |slot, slots, epochs| Bound::Epoch { epoch: network.epoch_of(slot), slots, epochs };
    match *duty {
        Duty::RandaoReveal { epoch } => Bound::Epoch { epoch, slots: 1, epochs: 0 },
        Duty::AggregationSlot { slot }
        | Duty::ProposerPreferences { proposal_slot: slot, .. }
        | Duty::BuilderRequestAuth { slot, .. } => by_epoch(slot, 1, 1),
        Duty::SyncCommitteeSelectionProof { slot, .. } => by_epoch(slot, 0, 2),
        Duty::ExecutionPayloadBid { slot, .. } => Bound::Slot { slot, ahead: 1 },
        Duty::AggregateAndProof { slot, .. }
        | Duty::SyncCommitteeMessage { slot, .. }
        | Duty::ContributionAndProof { slot, .. }
        | Duty::ExecutionPayloadEnvelope { slot, .. }
        | Duty::PayloadAttestation { slot, .. } => Bound::Slot { slot, ahead: 0 },
        Duty::VoluntaryExit { epoch, .. } => Bound::Order { epoch },
        // In Unix seconds. Relays take the newest: one for the days to come would outlive an order of another address.
        Duty::ValidatorRegistration { timestamp, .. } => {
            Bound::Order { epoch: network.epoch_of(network.slot_at(timestamp.saturating_mul(1000))) }
        }
        Duty::Deposit { .. } => Bound::Never,
        // As their own checks have it.
        Duty::Block(header) => Bound::Slot { slot: header.slot, ahead: 0 },
        Duty::Attestation(data) => Bound::Epoch { epoch: data.target.epoch, slots: 0, epochs: 0 },
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::network::NetworkFields;
    use casemate_protocol::{
        AttestationData, BeaconBlockHeader, Bytes, Checkpoint, ExecutionAddress, Fork, ForkName, Preset, PublicKey,
        Root, Version,
    };
    use proptest::prelude::*;

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

    const USUAL: Window = Window { max_block_age_slots: Some(2), max_target_age_epochs: Some(1) };

    #[test]
    fn the_window_ends_where_the_design_says() {
        let n = &network();
        assert_eq!(Window::default(), USUAL);
        assert!(check_block(Slot(101), Slot(100), &USUAL).is_ok());
        assert_eq!(
            check_block(Slot(102), Slot(100), &USUAL),
            Err(Refusal::BlockFromFuture { slot: Slot(102), now: Slot(100), latest: Slot(101) })
        );
        // Slot 94 is in epoch 2, slot 95 is its last, slot 96 starts epoch 3.
        assert!(check_target(Epoch(2), Slot(94), n, &USUAL).is_ok());
        assert_eq!(
            check_target(Epoch(3), Slot(94), n, &USUAL),
            Err(Refusal::TargetFromFuture { target: Epoch(3), now: Epoch(2), latest: Epoch(2) })
        );
        assert!(check_target(Epoch(3), Slot(95), n, &USUAL).is_ok());
        assert!(check_block(Slot::MAX, Slot::MAX, &USUAL).is_ok());
    }

    #[test]
    fn the_window_begins_where_policy_says() {
        let n = &network();
        assert!(check_block(Slot(98), Slot(100), &USUAL).is_ok());
        assert_eq!(
            check_block(Slot(97), Slot(100), &USUAL),
            Err(Refusal::BlockTooOld { slot: Slot(97), now: Slot(100), oldest: Slot(98) })
        );
        // Epoch 2 is slots 64 to 95: the vote before it may still be asked for in its last slot.
        assert!(check_target(Epoch(1), Slot(95), n, &USUAL).is_ok());
        assert_eq!(
            check_target(Epoch(1), Slot(96), n, &USUAL),
            Err(Refusal::TargetTooOld { target: Epoch(1), now: Epoch(3), oldest: Epoch(2) })
        );
        let narrow = Window { max_block_age_slots: Some(0), max_target_age_epochs: Some(0) };
        assert!(check_block(Slot(100), Slot(100), &narrow).is_ok());
        assert!(check_block(Slot(99), Slot(100), &narrow).is_err());
        assert!(check_target(Epoch(3), Slot(96), n, &narrow).is_ok());
        assert!(check_target(Epoch(2), Slot(96), n, &narrow).is_err());
        // One word for each bound.
        let any_block = Window { max_block_age_slots: None, ..USUAL };
        assert!(check_block(Slot(0), Slot::MAX, &any_block).is_ok());
        assert!(check_target(Epoch(0), Slot::MAX, n, &any_block).is_err());
        assert!(check_target(Epoch(0), Slot::MAX, n, &Window::ANY).is_ok());
        // At genesis nothing is too old yet.
        assert!(check_block(Slot(0), Slot(2), &USUAL).is_ok());
        assert!(check_block(Slot(0), Slot(3), &USUAL).is_err());
        assert!(check_target(Epoch(0), Slot(63), n, &USUAL).is_ok());
        // It has an upper bound all the same.
        assert!(check_block(Slot(102), Slot(100), &Window::ANY).is_err());
        assert!(check_target(Epoch(4), Slot(96), n, &Window::ANY).is_err());
    }

    /// Every type of duty that is not slashable, at a slot (an epoch's duty: in that slot's epoch).
    fn duties(slot: Slot, network: &Network) -> Vec<Duty> {
        let (epoch, object_root) = (network.epoch_of(slot), Root::ZERO);
        let (fee_recipient, public_key) = (ExecutionAddress::ZERO, PublicKey::ZERO);
        vec![
            Duty::RandaoReveal { epoch },
            Duty::AggregationSlot { slot },
            Duty::ProposerPreferences {
                dependent_root: object_root,
                proposal_slot: slot,
                validator_index: 1,
                fee_recipient,
                target_gas_limit: 1,
            },
            Duty::BuilderRequestAuth { slot, object_root },
            Duty::SyncCommitteeSelectionProof { slot, subcommittee_index: 0 },
            Duty::ExecutionPayloadBid { slot, object_root },
            Duty::AggregateAndProof { slot, object_root },
            Duty::SyncCommitteeMessage { slot, beacon_block_root: object_root },
            Duty::ContributionAndProof { slot, object_root },
            Duty::ExecutionPayloadEnvelope { slot, object_root },
            Duty::PayloadAttestation {
                beacon_block_root: object_root,
                slot,
                payload_present: true,
                blob_data_available: true,
            },
            Duty::VoluntaryExit { epoch, validator_index: 1 },
            Duty::ValidatorRegistration {
                fee_recipient,
                gas_limit: 1,
                timestamp: slot.0.saturating_mul(12),
                public_key,
            },
        ]
    }

    /// The latest slot whose duty of this kind is let through.
    fn latest(kind: usize, now: Slot, network: &Network) -> u64 {
        let ok = |slot: u64| check_early(&duties(Slot(slot), network)[kind], now, network).is_ok();
        let latest = (now.0..now.0 + 320).rev().find(|slot| ok(*slot)).unwrap();
        // Nothing is refused below the bound.
        assert!((0..=latest).all(ok), "kind {kind}");
        latest
    }

    #[test]
    fn each_type_may_be_asked_for_as_early_as_real_clients_do() {
        let n = &network();
        // In the middle of epoch 3; two slots before epoch 4; one before it; its first slot.
        let nows = [Slot(110), Slot(126), Slot(127), Slot(128)];
        // Each row: the last slot that is let through at each of these.
        let rows: [(&str, [u64; 4]); 13] = [
            ("RANDAO reveal", [127, 159, 159, 159]),
            ("aggregation slot", [159, 191, 191, 191]),
            ("proposer preferences", [159, 191, 191, 191]),
            ("builder request auth", [159, 191, 191, 191]),
            ("sync selection proof", [191, 191, 223, 223]),
            ("bid", [112, 128, 129, 130]),
            ("aggregate", [111, 127, 128, 129]),
            ("sync message", [111, 127, 128, 129]),
            ("contribution", [111, 127, 128, 129]),
            ("envelope", [111, 127, 128, 129]),
            ("payload attestation", [111, 127, 128, 129]),
            ("exit", [191, 191, 191, 223]),
            ("registration", [191, 191, 191, 223]),
        ];
        for (kind, (name, expected)) in rows.iter().enumerate() {
            assert_eq!(nows.map(|now| latest(kind, now, n)), *expected, "{name}");
        }
    }

    #[test]
    fn refusals_of_early_duties_have_their_numbers() {
        let n = &network();
        assert_eq!(
            check_early(&Duty::RandaoReveal { epoch: Epoch(4) }, Slot(110), n),
            Err(Refusal::DutyFromFuture { epoch: Epoch(4), now: Epoch(3), latest: Epoch(3) })
        );
        let message = Duty::SyncCommitteeMessage { slot: Slot(112), beacon_block_root: Root::ZERO };
        assert_eq!(
            check_early(&message, Slot(110), n),
            Err(Refusal::DutySlotFromFuture { slot: Slot(112), now: Slot(110), latest: Slot(111) })
        );
        for duty in duties(Slot::MAX, n) {
            assert!(check_early(&duty, Slot(110), n).is_err(), "{duty:?}");
        }
        let deposit = Duty::Deposit {
            public_key: PublicKey::ZERO,
            withdrawal_credentials: Bytes::ZERO,
            amount: 1,
            genesis_fork_version: Version::ZERO,
        };
        assert_eq!(check_early(&deposit, Slot(0), n), Ok(()));
    }

    /// Any clock, and what lies around it as often as what lies anywhere.
    fn around(now: u64) -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), (0..200u64).prop_map(move |d| now.saturating_sub(100).saturating_add(d))]
    }

    fn age() -> impl Strategy<Value = Option<u64>> {
        prop_oneof![Just(None), (0..5u64).prop_map(Some), any::<u64>().prop_map(Some)]
    }

    fn clock_and_slot() -> impl Strategy<Value = (u64, u64)> {
        prop_oneof![any::<u64>(), 0..400u64].prop_flat_map(|now| (Just(now), around(now)))
    }

    proptest! {
        /// What is let through lies between the oldest and the latest, and nothing between them is refused.
        #[test]
        fn whatever_is_let_through_lies_in_the_window(
            (now, slot) in clock_and_slot(), max_block_age_slots in age(), max_target_age_epochs in age(),
        ) {
            let n = &network();
            let window = Window { max_block_age_slots, max_target_age_epochs };
            // In i128, where nothing saturates: the clock and the ages as they are.
            let wide = |number: u64| i128::from(number);
            let oldest = max_block_age_slots.map_or(0, |age| wide(now) - wide(age));
            let within = (oldest..=wide(now) + 1).contains(&wide(slot));
            prop_assert_eq!(check_block(Slot(slot), Slot(now), &window).is_ok(), within);

            let (epoch_now, target) = (now / 32, slot / 32);
            let oldest = max_target_age_epochs.map_or(0, |age| wide(epoch_now) - wide(age));
            let within = (oldest..=(wide(now) + 1) / 32).contains(&wide(target));
            // At the very end of time the next slot is this one.
            if now != u64::MAX {
                prop_assert_eq!(check_target(Epoch(target), Slot(now), n, &window).is_ok(), within);
            }
            // Duties that cannot be slashed have no lower bound; a block's and a vote's upper one is that of their own checks.
            for duty in duties(Slot(slot), n) {
                prop_assert!(slot > now || check_early(&duty, Slot(now), n).is_ok(), "{:?}", duty);
            }
            let block = Duty::Block(BeaconBlockHeader { slot: Slot(slot), ..BeaconBlockHeader::default() });
            let early = check_early(&block, Slot(now), n).is_ok();
            prop_assert_eq!(check_block(Slot(slot), Slot(now), &Window::ANY).is_ok(), early);
            let checkpoint = Checkpoint { epoch: Epoch(target), root: Root::ZERO };
            let vote = Duty::Attestation(AttestationData { target: checkpoint, ..AttestationData::default() });
            let early = check_early(&vote, Slot(now), n).is_ok();
            prop_assert_eq!(check_target(Epoch(target), Slot(now), n, &Window::ANY).is_ok(), early);
        }
    }
}
