//! What the stack hands to the vault's process through a pipe, before the first frame.

use std::path::PathBuf;

use casemate_protocol::{Bytes, Epoch, Root, Slot};
use casemate_slashing::{AttestationMark, BlockMark, Watermarks};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Everything that a vault needs.
#[derive(Clone, Serialize, Deserialize)]
pub struct Boot {
    pub keys: BootKeys,
    /// File that keeps the watermarks; none where the fence alone stands for the past, as in an enclave.
    pub journal: Option<PathBuf>,
    /// Which of the group's enclaves.
    pub number: u8,
    pub workers: usize,
    pub fixed_time_ms: Option<u64>,
    pub nsm: BootNsm,
}

/// Where the keys come from.
#[derive(Clone, Serialize, Deserialize)]
pub enum BootKeys {
    /// From the stack.
    Plain { network: String, proof_of_validation: bool, any_age: bool, keys: Vec<BootKey>, bare: bool },
    /// Sealed, from the parent's disk. In the image it is init that hands over the configuration.
    Sealed { configuration: String, kms: BootKms },
}

/// The local KMS.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootKms {
    pub port: u16,
    /// Its root, PEM.
    pub root: String,
}

/// What the local KMS's process is told.
#[derive(Clone, Serialize, Deserialize)]
pub struct KmsBoot {
    pub port: u16,
    pub state: PathBuf,
    /// PEM: its certificate, and its key.
    pub certificate: String,
    pub key: SecretHex,
    /// Root of attestation documents, PEM.
    pub attestation_root: String,
}

/// The software NSM, and what it measured.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootNsm {
    /// Folder with the development root, for anyone who verifies.
    pub folder: PathBuf,
    /// The root's certificate and key, PEM: a vault that starts again uses the same, whatever became of the files.
    pub root: String,
    pub root_key: SecretHex,
    /// PCR0, PCR1 and PCR2, hex.
    pub pcrs: [String; 3],
    /// SHA-256 of the configuration.
    pub configuration_sha256: [u8; 32],
}

/// A key and what is known of its past.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootKey {
    pub secret: SecretHex,
    /// `None`: nobody knows. The journal may.
    pub history: Option<BootHistory>,
}

/// A secret key as text; cleared when dropped.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct SecretHex(pub String);

/// Watermarks as an import gave them.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct BootHistory {
    pub block: Option<(u64, Option<[u8; 32]>)>,
    pub attestation: Option<(u64, u64, Option<[u8; 32]>)>,
}

impl From<Watermarks> for BootHistory {
    fn from(w: Watermarks) -> Self {
        let root = |r: Option<Root>| r.map(|r| r.0);
        Self {
            block: w.block.map(|b| (b.slot.0, root(b.signing_root))),
            attestation: w.attestation.map(|a| (a.source.0, a.target.0, root(a.signing_root))),
        }
    }
}

impl From<BootHistory> for Watermarks {
    fn from(h: BootHistory) -> Self {
        Self {
            block: h.block.map(|(slot, root)| BlockMark { slot: Slot(slot), signing_root: root.map(Bytes) }),
            attestation: h.attestation.map(|(source, target, root)| AttestationMark {
                source: Epoch(source),
                target: Epoch(target),
                signing_root: root.map(Bytes),
            }),
        }
    }
}
