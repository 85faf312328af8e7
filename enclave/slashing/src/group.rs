//! A group's keys come and go, and what they have signed must not go with them.
//!
//! A sealed state lists the keys that it knows. A key that it does not list may have signed all the same: imported into a state that
//! was rolled back, or never sealed as the newest. What such a key can have signed at most is the **group floor**: the floors of every
//! term that a holder of this state, or of one before it, ever held. Whatever door a key comes in by, it starts above that.
//!
//! Why that is enough: the state that is in force lists every key that has signed in its own term, because a key signs only
//! once the fence's store refuses every state that lacks it. A key that it does not list signed last in an earlier term. A
//! term that began with floors has them at or above everything that was signed before it; one that began with the exact state of
//! its predecessor has that state's keys, and its group floor.

use crate::{Floors, SlashingHistory, Watermarks};

/// What a key may have signed at most, where a state does not list it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GroupFloor(Watermarks);

impl GroupFloor {
    /// Of a group that has signed nothing yet.
    pub const NONE: Self = Self(Watermarks::NONE);

    /// As a sealed state has it. Roots are dropped: nothing at a floor can be signed again.
    pub fn from_watermarks(mut floor: Watermarks) -> Self {
        if let Some(block) = &mut floor.block {
            block.signing_root = None;
        }
        if let Some(attestation) = &mut floor.attestation {
            attestation.signing_root = None;
        }
        Self(floor)
    }

    /// With the floors of a term that is held now.
    #[must_use]
    pub fn with_floors(self, floors: &Floors) -> Self {
        Self::from_watermarks(self.0.merge(floors.watermarks()))
    }

    /// The higher of both.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self::from_watermarks(self.0.merge(other.0))
    }

    /// As watermarks: what a key that nobody lists may have signed at most.
    pub fn watermarks(self) -> Watermarks {
        self.0
    }
}

/// Where a key starts from that comes in: what it brings, what is remembered of it, and the group's floor.
///
/// `remembered` is what the state in force knows of the key, where it was there before.
pub fn entering(brought: Watermarks, remembered: Option<SlashingHistory>, floor: GroupFloor) -> Watermarks {
    let known = match remembered {
        Some(SlashingHistory::Known(known)) => brought.merge(known),
        Some(SlashingHistory::Missing) | None => brought,
    };
    known.merge(floor.watermarks())
}

/// What is known of a key after a newer state was loaded: nothing of what was known before is forgotten. Nothing where neither
/// knows the key.
pub fn reloaded(before: Option<SlashingHistory>, loaded: Option<SlashingHistory>) -> Option<SlashingHistory> {
    match (before, loaded) {
        (Some(SlashingHistory::Known(known)), Some(loaded)) => Some(loaded.with(known)),
        (_, Some(loaded)) => Some(loaded),
        (before, None) => before,
    }
}

/// Sealed states of one fence term: their numbers begin with it, so of states that two enclaves have sealed, the later holder's
/// is the newer, whatever numbers each has used.
const STATES_PER_TERM: u64 = 1 << 32;

/// The number of the next sealed state. `tried`: the highest that this enclave has loaded or tried to seal. Nothing where numbers end.
pub fn next_state(tried: u64, term: u64) -> Option<u64> {
    let first = term.checked_mul(STATES_PER_TERM)?;
    tried.max(first).checked_add(1)
}

#[cfg(test)]
mod tests {
    use casemate_protocol::{Epoch, Root, Slot};

    use super::*;
    use crate::{AttestationMark, BlockMark};

    fn signed(slot: u64, source: u64, target: u64, root: Option<u8>) -> Watermarks {
        let signing_root = root.map(|r| Root::from([r; 32]));
        Watermarks {
            block: Some(BlockMark { slot: Slot(slot), signing_root }),
            attestation: Some(AttestationMark { source: Epoch(source), target: Epoch(target), signing_root }),
        }
    }

    #[test]
    fn whatever_a_key_brings_it_starts_above_the_groups_floor_and_its_own_past() {
        let floor = GroupFloor::from_watermarks(signed(10, 3, 4, Some(9)));
        assert_eq!(entering(Watermarks::NONE, None, floor), signed(10, 3, 4, None));
        assert_eq!(entering(signed(5, 1, 2, Some(1)), None, floor), signed(10, 3, 4, None));
        // At the floor not even the message that it names can be signed again: others may have gone on from there.
        assert_eq!(entering(signed(10, 3, 4, Some(1)), None, floor), signed(10, 3, 4, None));
        assert_eq!(entering(signed(11, 4, 5, Some(1)), None, floor), signed(11, 4, 5, Some(1)));
        let remembered = Some(SlashingHistory::Known(signed(12, 4, 6, Some(2))));
        assert_eq!(entering(signed(11, 4, 5, Some(1)), remembered, floor), signed(12, 4, 6, Some(2)));
        assert_eq!(entering(Watermarks::NONE, Some(SlashingHistory::Missing), floor), signed(10, 3, 4, None));
    }

    #[test]
    fn the_floor_only_rises() {
        let floor = GroupFloor::NONE.with_floors(&Floors { slot: Some(Slot(7)), target: Some(Epoch(2)), source: None });
        assert_eq!(floor.watermarks().block.map(|mark| mark.slot), Some(Slot(7)));
        assert_eq!(floor.with_floors(&Floors::default()), floor);
        let lower = Floors { slot: Some(Slot(6)), target: Some(Epoch(1)), source: Some(Epoch(1)) };
        let raised = floor.with_floors(&lower).watermarks();
        assert_eq!(raised, signed(7, 1, 2, None));
        assert_eq!(floor.merge(GroupFloor::from_watermarks(signed(9, 0, 0, None))).watermarks(), signed(9, 0, 2, None));
    }

    #[test]
    fn a_newer_state_makes_nothing_forgotten() {
        let known = |slot| Some(SlashingHistory::Known(signed(slot, 1, 2, None)));
        assert_eq!(reloaded(known(5), None), known(5));
        assert_eq!(reloaded(known(5), known(4)), known(5));
        assert_eq!(reloaded(known(4), known(5)), known(5));
        assert_eq!(reloaded(known(4), Some(SlashingHistory::Missing)), known(4));
        assert_eq!(reloaded(Some(SlashingHistory::Missing), known(5)), known(5));
        assert_eq!(reloaded(Some(SlashingHistory::Missing), None), Some(SlashingHistory::Missing));
        assert_eq!(reloaded(None, None), None);
    }

    #[test]
    fn states_of_a_later_term_are_newer() {
        assert_eq!(next_state(0, 0), Some(1));
        assert_eq!(next_state(7, 0), Some(8));
        assert_eq!(next_state(7, 1), Some((1 << 32) + 1));
        assert_eq!(next_state((2 << 32) + 5, 1), Some((2 << 32) + 6));
        assert_eq!(next_state(u64::MAX, 1), None);
        assert_eq!(next_state(0, 1 << 32), None);
    }
}
