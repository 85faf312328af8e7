//! Bounds that hold for every key of an enclave: floors taken over from an earlier holder, ceilings granted by the fence.

use casemate_protocol::{Epoch, Slot};

/// What an earlier holder of the same keys may have signed: this enclave stays above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floors {
    /// Blocks only above this slot.
    pub slot: Option<Slot>,
    /// Attestations only with a target above this epoch.
    pub target: Option<Epoch>,
    /// Attestations only with a source at or above this epoch.
    pub source: Option<Epoch>,
}

/// What the fence has granted: this enclave stays at or below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Blocks only up to this slot.
    pub slot: Slot,
    /// Attestations only with a target up to this epoch.
    pub target: Epoch,
    /// Attestations only with a source up to this epoch.
    pub source: Epoch,
}

impl Ceilings {
    /// No ceiling: for a signer without a fence, which stops neither rollback nor clones.
    pub const NONE: Self = Self { slot: Slot::MAX, target: Epoch::MAX, source: Epoch::MAX };
}

/// Floors and ceilings together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Stay above these.
    pub floors: Floors,
    /// Stay at or below these.
    pub ceilings: Ceilings,
}

impl Limits {
    /// Neither floors nor ceilings.
    pub const NONE: Self = Self { floors: Floors { slot: None, target: None, source: None }, ceilings: Ceilings::NONE };
}
