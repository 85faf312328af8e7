//! A chain's clock, as a statement pins it.

use casemate_protocol::slot_clock::SlotClock;
use casemate_protocol::{Epoch, Statement};

/// The epoch by the enclave's own clock, where it trusts it.
pub fn epoch_now(statement: &Statement) -> Option<Epoch> {
    let clock = SlotClock::from(&statement.network);
    Some(clock.epoch(clock.slot(statement.fence.time_ms?)))
}
