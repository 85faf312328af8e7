//! What several words need: nonces, and how long a frame is at most.

use crate::bytes::{BoundedBytes, Bytes};

/// Most bytes of a frame after its length.
pub const MAX_FRAME_LEN: usize = 64 * 1024;
/// Shortest and longest nonce of a request for an attestation document, in bytes.
pub const NONCE_LEN: std::ops::RangeInclusive<usize> = MIN_NONCE_LEN..=MAX_NONCE_LEN;
const MIN_NONCE_LEN: usize = 8;
const MAX_NONCE_LEN: usize = 64;

/// A nonce that anyone who asks for an attestation document made up, so that the answer cannot be an old one.
pub type Nonce = BoundedBytes<MIN_NONCE_LEN, MAX_NONCE_LEN>;

/// What the vault signs where it tells something to who has made up a nonce: no such text passes for one of another kind (`domain`), of
/// another boot, or of another request.
pub fn signed_bytes(domain: &[u8], boot_nonce: &Bytes<32>, nonce: &Nonce, page: &[u8]) -> Vec<u8> {
    let nonce = nonce.as_ref();
    // At most 64 bytes long.
    let len = u8::try_from(nonce.len()).unwrap_or(u8::MAX);
    [domain, &boot_nonce.0, &[len], nonce, page].concat()
}
