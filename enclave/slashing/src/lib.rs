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
//!
//! ```
//! use casemate_protocol::{Refusal, Root, Slot};
//! use casemate_slashing::{Limits, Watermarks, rules};
//!
//! let (root, other) = (Root::from([1; 32]), Root::from([2; 32]));
//! let signed = rules::block::check(Watermarks::NONE, Slot(5), root, &Limits::NONE)?;
//! // The very same block again slashes nobody; another one at its slot would.
//! assert_eq!(rules::block::check(signed, Slot(5), root, &Limits::NONE), Ok(signed));
//! let refused = rules::block::check(signed, Slot(5), other, &Limits::NONE);
//! assert_eq!(refused, Err(Refusal::BlockNotAboveLast { slot: Slot(5), last: Slot(5) }));
//! # Ok::<_, Refusal>(())
//! ```
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
