//! How old a duty may be.

use serde::{Deserialize, Serialize};

/// How old a block or a vote may be and still be signed, by trusted time. Nothing in a field: any age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Slots that a block's slot may lie before the current one.
    pub max_block_age_slots: Option<u64>,
    /// Epochs that a vote's target may lie before the current one.
    pub max_target_age_epochs: Option<u64>,
}

impl Window {
    /// Any age: for test networks, and for replays of recorded duties.
    pub const ANY: Self = Self { max_block_age_slots: None, max_target_age_epochs: None };
}

impl Default for Window {
    /// What real duties need: a block is asked for in its slot, a vote in its epoch, and an answer may be late.
    fn default() -> Self {
        Self { max_block_age_slots: Some(2), max_target_age_epochs: Some(1) }
    }
}
