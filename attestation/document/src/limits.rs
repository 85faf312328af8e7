//! How large a document and its parts may be.

/// Longest document, in bytes. The NSM's answers end at 12 KiB (`NSM_RESPONSE_MAX_SIZE`).
pub const MAX_DOCUMENT_LEN: usize = 16 * 1024;
/// Longest payload, in bytes: what remains of a document beside the shortest envelope.
pub const MAX_PAYLOAD_LEN: usize = MAX_DOCUMENT_LEN - 108;
/// Bytes of an ES384 signature: r and s (RFC 9053, section 2.1).
pub const SIGNATURE_LEN: usize = 96;
/// Longest certificate, in bytes.
pub const MAX_CERTIFICATE_LEN: usize = 1024;
/// Bytes of a PCR: the digest is SHA-384.
pub const PCR_LEN: usize = 48;
/// Most PCRs of a document; indices end one below.
pub const MAX_PCRS: u8 = 32;
/// Most certificates in the bundle: the root, and as many below it as rustls-webpki follows.
pub const MAX_BUNDLE_LEN: u64 = 7;
/// Longest module id, in bytes; real ones have about 40.
pub const MAX_MODULE_ID_LEN: usize = 128;
/// Longest public key, in bytes (`NSM_PUBLIC_KEY_MAX_SIZE`).
pub const MAX_PUBLIC_KEY_LEN: usize = 1024;
/// Longest user data, in bytes: as AWS's description of documents has it. The NSM takes 512 (`NSM_USER_DATA_MAX_SIZE`).
pub const MAX_USER_DATA_LEN: usize = 1024;
/// Longest nonce, in bytes, likewise.
pub const MAX_NONCE_LEN: usize = 1024;
