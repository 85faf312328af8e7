//! What operators want to know of each key beside its history, as the vault tells it: in pages, each signed.

use serde::{Deserialize, Serialize};

use crate::cbor::{self, Form};
use crate::nonce::{Nonce, signed_bytes};
use crate::{Bytes, Epoch, ExecutionAddress, PublicKey};

/// Most keys in one page: the longest stays below [`crate::nonce::MAX_FRAME_LEN`].
pub const MAX_KEYS_PER_KEY_PAGE: usize = 250;
/// What a page's signature is over, besides the page.
pub const SIGNATURE_DOMAIN: &[u8] = b"casemate keys v1\n";

/// One page, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedKeyPage {
    /// The page.
    pub page: KeyPage,
    /// Ed25519 by the key that the statement names, over [`KeyPage::signed_bytes`].
    pub signature: Bytes<64>,
}

/// A part of the keys, in the enclave's order, deleted ones too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPage {
    /// Index of the first.
    pub start: u32,
    /// How many there are in all.
    pub total: u32,
    /// The keys.
    pub keys: Vec<KeyDetails>,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDetails {
    /// The key.
    pub public_key: PublicKey,
    /// Whether it is held: a deleted key signs no more.
    pub held: bool,
    /// Where operators have ordered its fees to go; nothing where the configuration decides.
    pub fee_recipient: Option<ExecutionAddress>,
    /// How it came.
    pub origin: Origin,
    /// The last exit that operators have ordered in this boot: clients get it signed until then.
    pub exit: Option<PendingExit>,
}

/// How a key came into the group. The order of the variants is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was there when this boot began: sealed states do not say how it came.
    BeforeThisBoot,
    /// It was brought in, in this boot: someone else has or had it.
    Imported,
    /// This enclave has made it, in this boot.
    MadeHere,
}

/// An exit that clients may have signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingExit {
    /// The validator's index.
    pub validator_index: u64,
    /// No exit of a later epoch is signed for the order.
    pub last_epoch: Epoch,
}

impl KeyPage {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to memory cannot fail, and a page has nothing that CBOR cannot say.
        let written = cbor::encode(self, Form::Numbered, &mut bytes);
        debug_assert!(written);
        bytes
    }

    /// Reads exactly one page.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > crate::nonce::MAX_FRAME_LEN {
            return None;
        }
        cbor::decode(bytes, Form::Numbered).filter(|page: &Self| page.keys.len() <= MAX_KEYS_PER_KEY_PAGE)
    }

    /// What a signature over this page is over.
    pub fn signed_bytes(&self, boot_nonce: &Bytes<32>, nonce: &Nonce) -> Vec<u8> {
        signed_bytes(SIGNATURE_DOMAIN, boot_nonce, nonce, &self.encode())
    }
}
