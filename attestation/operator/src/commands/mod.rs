//! The subcommands, one file each, with its arguments beside it.

pub mod backup;
pub mod fence;
pub mod history;
pub mod keys;
pub mod kms_policy;
pub mod log;
