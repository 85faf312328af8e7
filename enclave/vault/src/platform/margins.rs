//! How far from the clock anything may be: each distance once, with its name.
//!
//! All that may be signed is bounded by a clock that is trusted to [`CLOCK_TOLERANCE_MS`]. Anyone who has to lie above what another may have
//! signed, or may sign yet, allows for two such clocks that are off in opposite ways ([`clock_margin`]).

use casemate_fence::Record;
use casemate_protocol::{Network, Slot};
use casemate_slashing::{Ceilings, Floors};

/// How far two clocks may be apart.
pub const CLOCK_TOLERANCE_MS: u64 = 2000;
/// How many slots ahead of the clock ceilings are kept: the store may be away for two slots before a block is missed, and a
/// successor waits for so long after a holder that died.
pub const CEILING_LEAD_SLOTS: u64 = 3;
/// How many slots ahead of the clock the window lets blocks and targets lie.
pub const WINDOW_LEAD_SLOTS: u64 = 1;
/// What the parent asks for without a signature, a handover, is carried out once in so many slots at most.
pub const HANDOVER_REST: u64 = 8;

/// In slots: as much as two clocks can differ that are each off by the tolerance.
pub fn clock_margin(network: &Network) -> u64 {
    let slot_ms = network.slot_duration_ms().max(1);
    CLOCK_TOLERANCE_MS.saturating_mul(2).div_ceil(slot_ms)
}

/// Above everything that the window has allowed anywhere until now: the latest slot and epoch that can have been signed.
pub fn latest_signed(network: &Network, now: Slot) -> Ceilings {
    all_up_to(network, now.saturating_add(WINDOW_LEAD_SLOTS).saturating_add(clock_margin(network)))
}

/// Above everything that a holder somewhere may sign yet, though its record is lost: its ceilings lay [`CEILING_LEAD_SLOTS`] slots ahead of its clock.
pub fn latest_granted(network: &Network, now: Slot) -> Ceilings {
    all_up_to(network, now.saturating_add(CEILING_LEAD_SLOTS).saturating_add(clock_margin(network)))
}

/// Whether a record's ceilings are such as a holder can have asked for by now. Others would silence every key that takes them for
/// floors, for as long as they lie ahead.
pub fn is_plausible(network: &Network, record: &Record, now: Slot) -> bool {
    // A record that was made anew stands above what is granted, by a clock that may differ from ours once more.
    let most = latest_granted(network, now.saturating_add(clock_margin(network)));
    let Ceilings { slot, target, source } = record.ceilings;
    slot <= most.slot && target <= most.target && source <= most.source
}

/// The same as floors.
pub fn floors(ceilings: Ceilings) -> Floors {
    let Ceilings { slot, target, source } = ceilings;
    Floors { slot: Some(slot), target: Some(target), source: Some(source) }
}

fn all_up_to(network: &Network, slot: Slot) -> Ceilings {
    let epoch = network.epoch_of(slot);
    Ceilings { slot, target: epoch, source: epoch }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::network::NetworkFields;
    use casemate_protocol::{Bytes, Epoch, Fork, ForkName, Preset};

    use super::*;

    fn network(slot_duration_ms: u64) -> Network {
        NetworkFields {
            name: "test".into(),
            preset: Preset::Minimal,
            genesis_time: 0,
            genesis_validators_root: Bytes([5; 32]),
            slot_duration_ms,
            slots_per_epoch: 4,
            forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
        }
        .try_into()
        .unwrap()
    }

    fn up_to(slot: u64, target: u64, source: u64) -> Ceilings {
        Ceilings { slot: Slot(slot), target: Epoch(target), source: Epoch(source) }
    }

    #[test]
    fn two_clocks_that_are_off_in_opposite_ways_differ_by_so_many_slots() {
        for (slot_ms, slots) in [(12_000, 1), (4000, 1), (3999, 2), (2000, 2), (500, 8)] {
            assert_eq!(clock_margin(&network(slot_ms)), slots, "{slot_ms}");
        }
    }

    #[test]
    fn what_was_signed_and_what_is_granted_lie_that_far_ahead_of_the_clock() {
        let network = network(12_000);
        assert_eq!(latest_signed(&network, Slot(100)), up_to(102, 25, 25));
        assert_eq!(latest_granted(&network, Slot(100)), up_to(104, 26, 26));
        let stated = floors(up_to(102, 25, 24));
        assert_eq!((stated.slot, stated.target, stated.source), (Some(Slot(102)), Some(Epoch(25)), Some(Epoch(24))));
    }

    #[test]
    fn each_ceiling_of_a_record_must_be_one_that_a_holder_can_have_asked_for() {
        let plausible = |ceilings| {
            let (holder, clean, closed) = (Bytes([1; 32]), None, false);
            let record =
                Record { version: 5, holder, term: 3, ceilings, min_state_version: 0, released_state: clean, closed };
            is_plausible(&network(12_000), &record, Slot(100))
        };
        assert!(plausible(up_to(105, 26, 26)) && plausible(Ceilings::ZERO));
        for far in [up_to(106, 26, 26), up_to(105, 27, 26), up_to(105, 26, 27)] {
            assert!(!plausible(far), "{far:?}");
        }
    }
}
