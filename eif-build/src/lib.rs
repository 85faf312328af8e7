//! Builds, measures and signs enclave images. What an image is: docs/IMAGE.md.
//!
//! ```
//! // What is no image is refused with a reason; nothing of it is measured.
//! assert!(casemate_eif::report::ImageReport::from_bytes(b"no image").is_err());
//! ```
#![forbid(unsafe_code)]

pub mod build;
pub mod cli;
pub mod cpio;
mod crates;
pub mod eif;
pub mod kernel;
pub mod pinned;
pub mod policy;
mod progress;
pub mod report;
pub mod signature;
