//! Where watermarks go before a signature is computed.

use casemate_protocol::{PublicKey, Root};
use casemate_slashing::{GroupFloor, Watermarks};

/// The watermarks could not be saved; the duty is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSaved;

/// Keeps watermarks beyond this process.
///
/// In the image it is the fence that stands for the past (docs/FENCE.md); a signer on a trusted disk writes
/// each change down.
pub trait Journal: Send + Sync {
    /// Saves a key's watermarks. Called under the key's lock, before signing.
    fn record(&self, key: &PublicKey, watermarks: &Watermarks) -> Result<(), NotSaved>;

    /// What the state is known by that this journal keeps, where each signature is in it before it is out, also after a kill: then the
    /// next start with this journal needs no floors. Nothing for an enclave, which has no disk to trust.
    fn durable_state_digest(&self) -> Option<Root> {
        None
    }

    /// Saves the group's floor. Where a journal stands for the past ([`Self::durable_state_digest`]), it must know that too.
    fn raise_floor(&self, floor: GroupFloor) -> Result<(), NotSaved> {
        let _ = floor;
        Ok(())
    }

    /// Makes room for keys that are about to be added, and tells what they start from: what they bring, and whatever is
    /// remembered of them besides. All of them or none; the same keys may come again.
    fn reserve(&self, keys: &[(PublicKey, Watermarks)]) -> Result<Vec<Watermarks>, NotSaved> {
        Ok(keys.iter().map(|(_, watermarks)| *watermarks).collect())
    }
}

/// Keeps nothing: where floors stand for the past, and for tests and benchmarks of the rules alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullJournal;

impl Journal for NullJournal {
    fn record(&self, _key: &PublicKey, _watermarks: &Watermarks) -> Result<(), NotSaved> {
        Ok(())
    }
}
