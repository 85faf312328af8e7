//! What the end-to-end suites share: a running stack, an HTTP client that sends exactly what it is told, requests.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "only tests use this crate, and a test may panic"
)]

pub mod bench;
pub mod hostile;
pub mod http;
pub mod prober;
pub mod requests;
pub mod stack;
pub mod tls;
pub mod vectors;

pub use bench::{Bench, write_secret};
pub use http::{Answer, Client};
pub use stack::Stack;

/// The signature of an interop key over a signing root, by blst alone.
pub fn blst_signature(secret: &[u8; 32], signing_root: &str) -> String {
    const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
    let root = const_hex::decode(signing_root).unwrap();
    let key = blst::min_pk::SecretKey::from_bytes(secret).unwrap();
    format!("0x{}", const_hex::encode(key.sign(&root, DST, &[]).to_bytes()))
}
