//! The words that cross the enclave's border: requests, replies, refusals, and the frames that carry them.
//!
//! This crate depends on no other room. The parent's proxy, the broker and the vault all speak through it, so
//! everything here is written for hostile input: lengths are checked before a byte is kept, a frame has exactly
//! one encoding, and what comes out of [`frame::decode_request`] is already valid. docs/PROTOCOL.md describes
//! the bytes.
//!
//! ```
//! use casemate_protocol::frame::{self, RequestFrame};
//! use casemate_protocol::Request;
//!
//! let mut bytes = Vec::new();
//! frame::encode_request(&RequestFrame::new(7, Request::Info), &mut bytes);
//! // The length is in front, and what follows has one encoding.
//! let (inner, used) = frame::split(&bytes, casemate_protocol::nonce::MAX_FRAME_LEN)?.expect("it is whole");
//! assert_eq!((used, frame::decode_request(inner)?.id), (bytes.len(), 7));
//! # Ok::<_, casemate_protocol::frame::FrameError>(())
//! ```
#![forbid(unsafe_code)]

pub mod attestation;
pub mod consensus;
pub mod history;
pub mod host;
pub mod log;
pub mod operator;
pub mod refusal;
pub mod wire;

// Each module has a name of its own, so the rooms need not be named.
pub use attestation::{configuration, may_sign, statement};
pub use consensus::{duty, network, slot_clock, time, window};
pub use history::{history_page, key_page, watermarks};
pub use host::{arn, broker, host_services, store};
pub use operator::{command, reported};
pub use wire::{address, bytes, cbor, frame, nonce};

pub use bytes::{BoundedBytes, Bytes, ExecutionAddress, PublicKey, Root, Signature, Version};
pub use command::Command;
pub use configuration::Configuration;
pub use duty::{AttestationData, BeaconBlockHeader, Checkpoint, Duty, ForkInfo};
pub use frame::{FrameError, Reply, ReplyFrame, Request, RequestFrame, SignRequest};
pub use host_services::{HostReply, HostRequest};
pub use network::{Fork, ForkName, Network, NetworkError, Preset};
pub use refusal::Refusal;
pub use statement::Statement;
pub use time::{Epoch, Slot};
