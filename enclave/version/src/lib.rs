//! What `--version` says: the version, and the commit that a program was built from.
//!
//! The programs outside the image use it. Those in the image do not: PCRs tell which image runs, and a commit in its bytes would change the
//! PCRs with each sentence of the documentation.
//!
//! ```
//! // `0.1.0 (commit 0123456789ab)`, `0.1.0 (commit 0123456789ab, modified)`, or why no commit is named.
//! assert!(casemate_version::VERSION.starts_with(env!("CARGO_PKG_VERSION")));
//! assert!(casemate_version::VERSION.ends_with(')'));
//! ```
#![forbid(unsafe_code)]

/// Version and commit. The same sources of one commit give the same text, wherever they are built.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("CASEMATE_BUILT_FROM"), ")");
