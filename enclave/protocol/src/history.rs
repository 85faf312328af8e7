//! What a key has signed, as it is written down: in sealed blobs, and in operators' commands.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Root, Slot};

/// The highest that a key has signed; nothing where it has signed nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    /// The highest block.
    pub block: Option<HighestBlock>,
    /// The highest attestation.
    pub attestation: Option<HighestAttestation>,
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighestBlock {
    /// Its slot.
    pub slot: Slot,
    /// Its signing root, where it is known: that one may be signed again.
    pub signing_root: Option<Root>,
}

/// An attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighestAttestation {
    /// The highest source epoch.
    pub source: Epoch,
    /// The highest target epoch.
    pub target: Epoch,
    /// Its signing root, where it is known.
    pub signing_root: Option<Root>,
}
