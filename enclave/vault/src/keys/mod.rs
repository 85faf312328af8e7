//! The keys: in memory, sealed on the parent's disk, and how they come in.

pub mod cms;
pub mod custody;
pub mod journal;
pub mod keyring;
#[cfg(test)]
mod keyring_tests;
pub(crate) mod keystore;
pub mod seal;
