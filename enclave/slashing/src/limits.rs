//! Bounds that hold for every key of an enclave: floors taken over from an earlier holder, ceilings granted by the fence.

use casemate_protocol::{Epoch, Slot};
use serde::{Deserialize, Serialize};

use crate::{AttestationMark, BlockMark, Watermarks};

/// What an earlier holder of the same keys may have signed: this enclave stays above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Floors {
    /// Blocks only above this slot.
    pub slot: Option<Slot>,
    /// Attestations only with a target above this epoch.
    pub target: Option<Epoch>,
    /// Attestations only with a source at or above this epoch.
    pub source: Option<Epoch>,
}

/// What the fence has granted: this enclave stays at or below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceilings {
    /// Blocks only up to this slot.
    pub slot: Slot,
    /// Attestations only with a target up to this epoch.
    pub target: Epoch,
    /// Attestations only with a source up to this epoch.
    pub source: Epoch,
}

impl Floors {
    /// These floors as watermarks: what a key may have signed at most, before this enclave.
    ///
    /// Anyone who seals a state in a term adds them to each history: the state stands for that term's past too.
    pub fn watermarks(&self) -> Watermarks {
        let block = self.slot.map(|slot| BlockMark { slot, signing_root: None });
        let attestation = match (self.source, self.target) {
            (None, None) => None,
            (source, target) => Some(AttestationMark {
                source: source.unwrap_or_default(),
                target: target.unwrap_or_default(),
                signing_root: None,
            }),
        };
        Watermarks { block, attestation }
    }
}

impl Ceilings {
    /// The lowest: nothing is granted.
    pub const ZERO: Self = Self { slot: Slot(0), target: Epoch(0), source: Epoch(0) };

    /// The higher of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            slot: self.slot.max(other.slot),
            target: self.target.max(other.target),
            source: self.source.max(other.source),
        }
    }

    /// No ceiling: for a signer without a fence, which stops neither rollback nor clones.
    pub const NONE: Self = Self { slot: Slot::MAX, target: Epoch::MAX, source: Epoch::MAX };
}

/// Floors and ceilings together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
