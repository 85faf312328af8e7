//! The rules, one file each.

pub mod attestation;
pub mod block;
pub mod window;
