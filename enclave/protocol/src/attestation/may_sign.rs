//! Whether an enclave would sign now: one judgement, which the vault makes, the proxy passes on, and operators' tools make again of an
//! attested statement.
//!
//! It speaks of the fence and the clock alone. What a single key has signed, and policy, come on top.

use serde::{Deserialize, Serialize};

use crate::refusal::{NotHolder, StoreTrouble};
use crate::slot_clock::SlotClock;
use crate::statement::{FenceStatement, StatedFloors, StatedStatus};
use crate::{Epoch, Refusal, Slot};

/// What the fence grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Only above these.
    pub floors: StatedFloors,
    /// Up to this slot and this target; nothing where no store grants anything.
    pub ceilings: Option<(Slot, Epoch)>,
}

/// A store that has been asked and does not answer, or does not do what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Silence {
    /// For how long, in milliseconds.
    pub ms: u64,
    /// What came of the last question.
    pub trouble: StoreTrouble,
}

impl Silence {
    /// Above these ceilings a duty waits for the store alone: what it hears while that is silent.
    pub fn refusal(self, (slot_ceiling, target_ceiling): (Slot, Epoch)) -> Refusal {
        Refusal::StoreSilent { slot_ceiling, target_ceiling, seconds: self.ms / 1000, trouble: self.trouble }
    }
}

/// Whether blocks and attestations would be signed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaySign {
    /// Milliseconds until a block may be signed: 0 means now. Nothing where that cannot be foreseen.
    pub blocks_in_ms: Option<u64>,
    /// The same of an attestation.
    pub attestations_in_ms: Option<u64>,
    /// What a block of this slot hears now, or an attestation of this epoch where only that is refused; nothing where both are signed.
    pub reason: Option<Refusal>,
    /// No block above this slot is signed until the store has granted more.
    pub slot_ceiling: Option<Slot>,
}

impl MaySign {
    /// Nothing, because this enclave is that to the fence.
    pub fn not_holder(why: NotHolder) -> Self {
        Self::never(Refusal::NotHolder(why))
    }

    /// Whether a block would be signed now.
    pub fn blocks(&self) -> bool {
        self.blocks_in_ms == Some(0)
    }

    /// Where nothing but the standing is known.
    pub fn from_standing(standing: StatedStatus) -> Self {
        match not_holder(standing, Slot(0), 0, 0) {
            None => Self { blocks_in_ms: Some(0), attestations_in_ms: Some(0), reason: None, slot_ceiling: None },
            Some(why) => Self::never(Refusal::NotHolder(why)),
        }
    }

    fn never(reason: Refusal) -> Self {
        Self { blocks_in_ms: None, attestations_in_ms: None, reason: Some(reason), slot_ceiling: None }
    }
}

/// At `now_ms`, Unix milliseconds by trusted time: nothing where the clock is not trusted.
pub fn may_sign(
    now_ms: Option<u64>,
    clock: SlotClock,
    granted: Result<Grant, NotHolder>,
    silence: Option<Silence>,
) -> MaySign {
    // In the order in which a request meets them: the gate, then the clock, then floors, then ceilings.
    let Grant { floors, ceilings } = match granted {
        Ok(grant) => grant,
        Err(why) => return MaySign::never(Refusal::NotHolder(why)),
    };
    let Some(now_ms) = now_ms else { return MaySign::never(Refusal::ClockStopped) };
    let slot = clock.slot(now_ms);
    let target = clock.epoch(slot);
    let (slot_ceiling, target_ceiling) = ceilings.map_or((Slot::MAX, Epoch::MAX), |ceilings| ceilings);
    let above = |ceiling_of_its_own: Refusal| match (silence, ceilings) {
        (Some(silence), Some(ceilings)) => silence.refusal(ceilings),
        _ => ceiling_of_its_own,
    };
    let (blocks_in_ms, block) = match floors.slot.filter(|floor| slot <= *floor) {
        Some(floor) => {
            let first = floor.saturating_add(1);
            (Some(clock.until(first, now_ms)), Some(Refusal::BlockNotAboveFloor { slot, floor }))
        }
        None if slot > slot_ceiling => (None, Some(above(Refusal::BlockAboveCeiling { slot, ceiling: slot_ceiling }))),
        None => (Some(0), None),
    };
    let (attestations_in_ms, attestation) = match floors.target.filter(|floor| target <= *floor) {
        Some(floor) => {
            let first = clock.start(floor.saturating_add(1));
            (Some(clock.until(first, now_ms)), Some(Refusal::TargetNotAboveFloor { target, floor }))
        }
        None if target > target_ceiling => {
            (None, Some(above(Refusal::TargetAboveCeiling { target, ceiling: target_ceiling })))
        }
        None => (Some(0), None),
    };
    let slot_ceiling = ceilings.map(|(slot, _)| slot);
    MaySign { blocks_in_ms, attestations_in_ms, reason: block.or(attestation), slot_ceiling }
}

/// By an attested statement. It does not say how long the store has been silent: that shows once the ceilings have passed.
pub fn by_statement(fence: &FenceStatement, clock: SlotClock) -> MaySign {
    let record = fence.record.as_ref();
    let slot_ceiling = record.map_or(Slot(0), |record| record.slot_ceiling);
    let (version, oldest) = record.map_or((0, 0), |record| (record.version, record.min_state_version));
    let ceilings = record.map(|record| (record.slot_ceiling, record.target_ceiling));
    let granted = match not_holder(fence.standing, slot_ceiling, version, oldest) {
        None => Ok(Grant { floors: fence.floors, ceilings }),
        Some(why) => Err(why),
    };
    may_sign(fence.time_ms, clock, granted, None)
}

fn not_holder(standing: StatedStatus, slot_ceiling: Slot, version: u64, oldest: u64) -> Option<NotHolder> {
    Some(match standing {
        StatedStatus::NoStore | StatedStatus::Holding => return None,
        StatedStatus::Unknown => NotHolder::StoreUnknown(StoreTrouble::NotAsked),
        StatedStatus::NoRecord => NotHolder::NoRecord,
        StatedStatus::Standby => NotHolder::Standby { slot_ceiling },
        StatedStatus::OldState => NotHolder::OldState { found: 0, oldest },
        StatedStatus::HandingOver => NotHolder::HandingOver,
        StatedStatus::RolledBack => NotHolder::RolledBack { seen: version, found: 0 },
        StatedStatus::Closed => NotHolder::Closed { slot_ceiling },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;
    use crate::statement::StatedNetwork;

    /// Ten seconds a slot, eight slots an epoch, from the Unix epoch on.
    fn clock() -> SlotClock {
        SlotClock::from(&StatedNetwork {
            name: "test".into(),
            genesis_validators_root: Bytes::ZERO,
            genesis_time: 0,
            slot_duration_ms: 10_000,
            slots_per_epoch: 8,
        })
    }

    /// Slot 100, of epoch 12, three seconds old.
    const NOW: Option<u64> = Some(1_003_000);

    fn grant(slot_floor: Option<u64>, target_floor: Option<u64>, ceilings: (u64, u64)) -> Grant {
        let floors = StatedFloors { slot: slot_floor.map(Slot), target: target_floor.map(Epoch), source: None };
        Grant { floors, ceilings: Some((Slot(ceilings.0), Epoch(ceilings.1))) }
    }

    #[test]
    fn between_floors_and_ceilings_everything_is_signed_now() {
        let signs =
            MaySign { blocks_in_ms: Some(0), attestations_in_ms: Some(0), reason: None, slot_ceiling: Some(Slot(103)) };
        assert_eq!(may_sign(NOW, clock(), Ok(grant(Some(99), Some(11), (103, 12))), None), signs);
        // A store that is silent changes nothing until the ceilings have passed.
        let silence = Silence { ms: 9_000, trouble: StoreTrouble::Away };
        assert_eq!(may_sign(NOW, clock(), Ok(grant(None, None, (103, 12))), Some(silence)), signs);
        let without = may_sign(NOW, clock(), Ok(Grant { floors: StatedFloors::default(), ceilings: None }), None);
        assert_eq!(without, MaySign { slot_ceiling: None, ..signs });
    }

    #[test]
    fn floors_say_until_when() {
        let above = may_sign(NOW, clock(), Ok(grant(Some(101), Some(13), (103, 12))), None);
        // Slot 102 begins 17 s from now; epoch 14 with slot 112, in 117 s.
        assert_eq!((above.blocks_in_ms, above.attestations_in_ms), (Some(17_000), Some(117_000)));
        assert_eq!(above.reason, Some(Refusal::BlockNotAboveFloor { slot: Slot(100), floor: Slot(101) }));
        let votes = may_sign(NOW, clock(), Ok(grant(Some(99), Some(12), (103, 12))), None);
        assert_eq!((votes.blocks_in_ms, votes.attestations_in_ms), (Some(0), Some(37_000)));
        assert_eq!(votes.reason, Some(Refusal::TargetNotAboveFloor { target: Epoch(12), floor: Epoch(12) }));
    }

    #[test]
    fn above_a_ceiling_the_store_is_to_blame_where_it_is_silent() {
        let silence = Silence { ms: 45_200, trouble: StoreTrouble::Away };
        let blocks = may_sign(NOW, clock(), Ok(grant(None, None, (99, 12))), Some(silence));
        let silent = Refusal::StoreSilent {
            slot_ceiling: Slot(99),
            target_ceiling: Epoch(12),
            seconds: 45,
            trouble: StoreTrouble::Away,
        };
        assert_eq!((blocks.blocks_in_ms, blocks.attestations_in_ms), (None, Some(0)));
        assert_eq!(blocks.reason, Some(silent));
        let slow = may_sign(NOW, clock(), Ok(grant(None, None, (99, 11))), None);
        assert_eq!((slow.blocks_in_ms, slow.attestations_in_ms), (None, None));
        assert_eq!(slow.reason, Some(Refusal::BlockAboveCeiling { slot: Slot(100), ceiling: Slot(99) }));
    }

    #[test]
    fn without_the_fence_or_a_clock_nothing_is_foreseen() {
        let standby = NotHolder::Standby { slot_ceiling: Slot(103) };
        assert_eq!(may_sign(NOW, clock(), Err(standby), None), MaySign::never(Refusal::NotHolder(standby)));
        assert_eq!(
            may_sign(None, clock(), Ok(grant(None, None, (103, 12))), None),
            MaySign::never(Refusal::ClockStopped)
        );
    }
}
