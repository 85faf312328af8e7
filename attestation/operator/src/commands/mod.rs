//! The subcommands, one file each, with its arguments beside it.

pub mod attest;
pub mod backup;
pub mod command;
pub mod exit;
pub mod fee_recipient;
pub mod fence;
pub mod history;
pub mod keys;
pub mod kms_policy;
pub mod log;
pub mod operator;
pub mod shell;
