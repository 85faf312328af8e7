//! A chain's clock: from Unix milliseconds to slots and epochs, and back.

use crate::{Epoch, Network, Slot};

/// What a chain's time is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClock {
    /// Unix milliseconds.
    genesis_ms: u64,
    slot_duration_ms: u64,
    slots_per_epoch: u64,
}

impl From<&Network> for SlotClock {
    fn from(network: &Network) -> Self {
        Self::new(network.genesis_time(), network.slot_duration_ms(), network.slots_per_epoch())
    }
}

impl SlotClock {
    /// Of a chain that began at `genesis_time`, Unix seconds.
    pub fn new(genesis_time: u64, slot_duration_ms: u64, slots_per_epoch: u64) -> Self {
        Self { genesis_ms: genesis_time.saturating_mul(1000), slot_duration_ms, slots_per_epoch }
    }

    /// The slot of a Unix time in milliseconds; 0 before genesis.
    pub fn slot(&self, ms: u64) -> Slot {
        Slot(ms.saturating_sub(self.genesis_ms).checked_div(self.slot_duration_ms).unwrap_or(0))
    }

    /// The epoch of a slot.
    pub fn epoch(&self, slot: Slot) -> Epoch {
        Epoch(slot.0.checked_div(self.slots_per_epoch).unwrap_or(0))
    }

    /// The first slot of an epoch.
    pub fn start(&self, epoch: Epoch) -> Slot {
        Slot(epoch.0.saturating_mul(self.slots_per_epoch))
    }

    /// Milliseconds from `now_ms` to the beginning of a slot; 0 where it has begun.
    pub fn until(&self, slot: Slot, now_ms: u64) -> u64 {
        let begins = self.genesis_ms.saturating_add(slot.0.saturating_mul(self.slot_duration_ms));
        begins.saturating_sub(now_ms)
    }
}
