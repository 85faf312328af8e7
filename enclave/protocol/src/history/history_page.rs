//! What a group's keys have signed, as the vault tells it: in pages, each signed.

use serde::{Deserialize, Serialize};

use crate::cbor::{self, Form};
use crate::nonce::{Nonce, signed_bytes};
use crate::watermarks::Watermarks;
use crate::{Bytes, PublicKey};

/// Most keys in one page: the longest stays below [`crate::nonce::MAX_FRAME_LEN`].
pub const MAX_ENTRIES_PER_PAGE: usize = 250;
/// What a page's signature is over, besides the page.
pub const SIGNATURE_DOMAIN: &[u8] = b"casemate pasts v1\n";

/// One page, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHistoryPage {
    /// The page.
    pub page: HistoryPage,
    /// Ed25519 by the key that the statement names, over [`HistoryPage::signed_bytes`].
    pub signature: Bytes<64>,
}

/// A part of the keys, in the enclave's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryPage {
    /// Index of the first.
    pub start: u32,
    /// How many there are in all.
    pub total: u32,
    /// By the enclave's clock, in Unix milliseconds; nothing where it does not trust it.
    pub time_ms: Option<u64>,
    /// What a key that is not listed on any page may have signed here at most.
    pub floor: Watermarks,
    /// The keys.
    pub keys: Vec<HistoryEntry>,
}

/// A key's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryEntry {
    /// The key.
    pub public_key: PublicKey,
    /// Whether it is held: a deleted key signs no more.
    pub held: bool,
    /// The highest that it has signed, with the floors that hold for it; nothing where nobody knows.
    pub highest: Option<Watermarks>,
}

impl HistoryPage {
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
        cbor::decode(bytes, Form::Numbered).filter(|page: &Self| page.keys.len() <= MAX_ENTRIES_PER_PAGE)
    }

    /// What a signature over this page is over.
    pub fn signed_bytes(&self, boot_nonce: &Bytes<32>, nonce: &Nonce) -> Vec<u8> {
        signed_bytes(SIGNATURE_DOMAIN, boot_nonce, nonce, &self.encode())
    }
}
