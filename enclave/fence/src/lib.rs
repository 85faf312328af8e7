//! The fence: a record in a store that only moves by compare-and-swap, and what it lets one enclave sign.
//!
//! Of all the enclaves with the same keys one signs. [`FenceMachine`] is the state machine that sees to it, without I/O and without a clock:
//! the vault's keeper sends its requests to a store and tells it the answers. The record itself is [`Record`].
//!
//! ```
//! use casemate_fence::{FenceMachine, FenceStatus, StoreResponse};
//! use casemate_protocol::Bytes;
//!
//! // An enclave that has just started signs nothing: first it looks for the record.
//! let mut fence = FenceMachine::new(Bytes([7; 32]), 0);
//! let request = fence.poll().unwrap();
//! // The store has none. Nobody signs before operators have one made.
//! fence.on_response(request.number, StoreResponse::Record(None));
//! assert_eq!(fence.status(), FenceStatus::NoRecord);
//! assert!(fence.limits().is_none());
//! ```
#![forbid(unsafe_code)]

mod machine;
mod record;

pub use machine::*;
pub use record::{Beginning, GroupId, MAX_RECORD_LEN, MAX_TERM, Record, RecordError};
