//! Bytes on a wire: addresses, fixed-length bytes, the one encoding, and frames with their requests and replies.

pub mod address;
pub mod bytes;
pub mod cbor;
pub mod frame;
pub mod nonce;
