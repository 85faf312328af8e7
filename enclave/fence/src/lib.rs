//! The fence: a record in a store that only moves by compare-and-swap, and what it lets one enclave sign.
//!
//! Of all the enclaves with the same keys one signs. [`FenceStatement`] is the state machine that sees to it, without I/O and without a clock:
//! the vault's keeper puts its questions to a store and tells it what came of them. The record itself is [`Record`].
//!
//! ```
//! use casemate_fence::{Beginning, Fence, Heard, Standing};
//! use casemate_protocol::Bytes;
//!
//! // An enclave that has just started signs nothing: first it looks for the record.
//! let mut fence = Fence::new(Bytes([7; 32]), 0);
//! let ask = fence.look().unwrap();
//! // The store has none. Nobody signs before operators have one made.
//! fence.hear(ask.number, Heard::Record(None));
//! assert_eq!(fence.standing(), Standing::NoRecord);
//! assert!(fence.limits().is_none());
//! ```
#![forbid(unsafe_code)]

mod machine;
mod record;

pub use machine::*;
pub use record::{Beginning, GroupId, MAX_RECORD_LEN, MAX_TERM, Record, RecordError};
