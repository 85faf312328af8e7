//! What keeps a validator from being slashed, as pure functions over small types.
//!
//! A rule takes the key's [`Watermarks`], the duty, the [`Limits`] of this enclave and gives back either a refusal or
//! the new watermarks. No I/O, no clock, no lock: the caller holds the key's lock, stores the new watermarks, and
//! only then computes a signature.
//!
//! | rule | file |
//! |---|---|
//! | no two blocks at one slot | [`rules::block`] |
//! | no double vote, no surrounding or surrounded vote | [`rules::attestation`] |
//! | nothing from the future | [`rules::window`] |
//!
//! The watermarks are the minimal strategy of EIP-3076: the highest slot, source and target ever signed. They refuse
//! more than a complete history would, and never less.
#![forbid(unsafe_code)]

pub mod group;
pub mod history;
#[cfg(feature = "interchange")]
pub mod interchange;
pub mod limits;
pub mod rules;

pub use casemate_protocol::watermarks::{AttestationMark, BlockMark, Watermarks};
pub use group::GroupFloor;
pub use history::SlashingHistory;
pub use limits::{Ceilings, Floors, Limits};
