//! What several words need: nonces, and how long a frame is at most.

use crate::bytes::BoundedBytes;

/// Most bytes of a frame after its length.
pub const MAX_FRAME_LEN: usize = 64 * 1024;
/// Shortest and longest nonce of a request for an attestation document, in bytes.
pub const NONCE_LEN: std::ops::RangeInclusive<usize> = MIN_NONCE_LEN..=MAX_NONCE_LEN;
const MIN_NONCE_LEN: usize = 8;
const MAX_NONCE_LEN: usize = 64;

/// A nonce that anyone who asks for an attestation document made up, so that the answer cannot be an old one.
pub type Nonce = BoundedBytes<MIN_NONCE_LEN, MAX_NONCE_LEN>;
