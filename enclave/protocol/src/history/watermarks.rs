//! The highest messages that a key has signed: what the rules need of its slashing protection history.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Root, Slot};

/// The highest block signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockMark {
    /// Its slot.
    pub slot: Slot,
    /// Its signing root, where exactly one is known: that block may be signed again.
    pub signing_root: Option<Root>,
}

/// The highest attestation signed: source and target are each the highest, and need not be of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationMark {
    /// Highest source epoch.
    pub source: Epoch,
    /// Highest target epoch.
    pub target: Epoch,
    /// Signing root of the attestation with that target, where exactly one is known: it may be signed again.
    pub signing_root: Option<Root>,
}

/// What a key has signed, as far as the rules need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watermarks {
    /// Highest block, if any.
    pub block: Option<BlockMark>,
    /// Highest attestation, if any.
    pub attestation: Option<AttestationMark>,
}

impl Watermarks {
    /// Nothing signed yet.
    pub const NONE: Self = Self { block: None, attestation: None };

    /// Both histories in one: never below either.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            block: merge_with(self.block, other.block, BlockMark::merge),
            attestation: merge_with(self.attestation, other.attestation, AttestationMark::merge),
        }
    }
}

fn merge_with<T>(a: Option<T>, b: Option<T>, both: impl Fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(both(a, b)),
        (one, None) | (None, one) => one,
    }
}

impl BlockMark {
    fn merge(self, other: Self) -> Self {
        let signing_root = root_of_higher((self.slot, self.signing_root), (other.slot, other.signing_root));
        Self { slot: self.slot.max(other.slot), signing_root }
    }
}

impl AttestationMark {
    fn merge(self, other: Self) -> Self {
        let signing_root = root_of_higher((self.target, self.signing_root), (other.target, other.signing_root));
        Self { source: self.source.max(other.source), target: self.target.max(other.target), signing_root }
    }
}

/// The root of the higher message; of two at the same height only a root that both agree on.
fn root_of_higher<H: Ord + Copy>(a: (H, Option<Root>), b: (H, Option<Root>)) -> Option<Root> {
    match a.0.cmp(&b.0) {
        std::cmp::Ordering::Greater => a.1,
        std::cmp::Ordering::Less => b.1,
        std::cmp::Ordering::Equal => a.1.filter(|_| a.1 == b.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(slot: u64, root: Option<u8>) -> Watermarks {
        let mark = BlockMark { slot: Slot(slot), signing_root: root.map(|r| Root::from([r; 32])) };
        Watermarks { block: Some(mark), attestation: None }
    }

    fn attestation(source: u64, target: u64, root: Option<u8>) -> Watermarks {
        let signing_root = root.map(|r| Root::from([r; 32]));
        let mark = AttestationMark { source: Epoch(source), target: Epoch(target), signing_root };
        Watermarks { block: None, attestation: Some(mark) }
    }

    #[test]
    fn merging_only_raises() {
        assert_eq!(block(5, Some(1)).merge(block(4, Some(2))), block(5, Some(1)));
        assert_eq!(block(4, Some(1)).merge(block(5, None)), block(5, None));
        assert_eq!(attestation(3, 9, Some(1)).merge(attestation(5, 7, Some(2))), attestation(5, 9, Some(1)));
        let both = block(5, None).merge(attestation(1, 2, None));
        assert_eq!(both.merge(Watermarks::NONE), both);
        assert_eq!(Watermarks::NONE.merge(both), both);
    }

    #[test]
    fn two_roots_at_one_height_leave_none_to_repeat() {
        assert_eq!(block(5, Some(1)).merge(block(5, Some(2))), block(5, None));
        assert_eq!(block(5, Some(1)).merge(block(5, None)), block(5, None));
        assert_eq!(block(5, Some(1)).merge(block(5, Some(1))), block(5, Some(1)));
        assert_eq!(attestation(1, 5, Some(1)).merge(attestation(1, 5, Some(2))), attestation(1, 5, None));
    }
}
