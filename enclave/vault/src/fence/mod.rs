//! The fence at work: the gate that every signature passes, and the one thread that keeps the record.
//!
//! What may be signed is decided by [`casemate_fence::FenceMachine`]; here its requests go to the store and its limits put in
//! force.

pub(crate) mod gate;
#[cfg(test)]
mod gate_tests;
mod keeper;
pub mod store;

pub use self::gate::{FenceGate, FenceParts, Keeping};
pub(crate) use self::gate::{KeeperReply, KeeperRequest};
pub use self::keeper::{FenceKeeper, KeeperError};
