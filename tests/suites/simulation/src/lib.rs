//! The fence's whole protocol under a seeded world: the production vault, keeper, commands and sealing, and everything outside of them
//! simulated (docs/RELIABILITY.md, «The simulator»).
//!
//! One seed is one run, step by step. What is judged: no two signatures of a key are slashable together, over all enclaves and a foreign
//! signer; a deleted key signs nothing; no imported key is lost; and when everything works again, a lone enclave comes to sign.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test program: whatever is not as it should be ends it with an error"
)]

pub mod actor;
pub mod enclave;
pub mod episode;
pub mod harm;
pub mod judge;
pub mod operators;
pub mod plot;
pub mod random;
pub mod state;
pub mod trace;
pub mod world;

pub use state::{Episode, Options, Outcome};
