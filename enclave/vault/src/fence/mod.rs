//! The fence at work: the gate that every signature passes, and the one thread that keeps the record.
//!
//! What may be signed is decided by [`casemate_fence::Fence`]; here its questions are put to the store and its limits put in
//! force.

pub(crate) mod gate;
#[cfg(test)]
mod gate_tests;
mod keeper;
pub mod store;

pub(crate) use self::gate::{Done, Errand};
pub use self::gate::{FenceParts, Fencing, Keeping};
pub use self::keeper::{Keeper, KeeperError};
