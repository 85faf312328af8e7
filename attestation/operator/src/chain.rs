//! A chain's clock, as a statement pins it.

use casemate_protocol::statement::StatedNetwork;
use casemate_protocol::{Epoch, Slot, Statement};

/// A chain.
pub struct Chain<'a>(pub &'a StatedNetwork);

impl Chain<'_> {
    /// The slot of a Unix time in milliseconds.
    pub fn slot(&self, ms: u64) -> Slot {
        let since = ms.saturating_sub(self.genesis_ms());
        Slot(since.checked_div(self.0.slot_duration_ms).unwrap_or(0))
    }

    /// The epoch of a slot.
    pub fn epoch(&self, slot: Slot) -> Epoch {
        Epoch(slot.0.checked_div(self.0.slots_per_epoch).unwrap_or(0))
    }

    /// The first slot of an epoch.
    pub fn start(&self, epoch: Epoch) -> Slot {
        Slot(epoch.0.saturating_mul(self.0.slots_per_epoch))
    }

    /// Milliseconds from `now` to the beginning of a slot.
    pub fn until(&self, slot: Slot, now: u64) -> u64 {
        let begins = self.genesis_ms().saturating_add(slot.0.saturating_mul(self.0.slot_duration_ms));
        begins.saturating_sub(now)
    }

    fn genesis_ms(&self) -> u64 {
        self.0.genesis_time.saturating_mul(1000)
    }
}

/// The epoch by the enclave's own clock, where it trusts it.
pub fn epoch_now(statement: &Statement) -> Option<Epoch> {
    let chain = Chain(&statement.network);
    Some(chain.epoch(chain.slot(statement.fence.time_ms?)))
}
