//! A KMS of one machine: the JSON 1.1 protocol with Signature Version 4, keys in a file, key policies with the conditions on
//! attestation, and answers to a `Recipient` as CMS in the shape that AWS writes.
//!
//! It is as strict as AWS where a client could come to rely on it, and its keys lie in clear in its file: for development
//! and tests alone. No production program contains it.
#![forbid(unsafe_code)]

pub mod api;
pub mod cms;
pub mod policy;
pub mod recipient;
pub mod server;
pub mod sigv4;
pub mod state;
