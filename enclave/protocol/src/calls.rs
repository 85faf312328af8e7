//! What the vault asks of the broker, on channel 0 of the socket between them: KMS, and the parent's disk.
//!
//! The broker carries it and is trusted with nothing: what KMS hands out is encrypted to the vault's key, blobs are sealed. Blobs
//! cross in parts, so that frames stay small.

use serde::{Deserialize, Serialize};

use crate::Root;
use crate::bytes::BoundedBytes;
use crate::cbor::{self, Form};
use crate::frame::{self, FrameError, MAX_DOCUMENT_LEN};
use crate::refusal::MalformedFrame;

/// The one version.
pub const VERSION: u64 = 1;
/// The channel of these frames; connections of the parent are numbered from 1.
pub const CHANNEL: u64 = 0;
/// Most bytes of a blob in one frame.
pub const PART_LEN: usize = 32 * 1024;
/// Longest wrapped data key, in bytes.
pub const MAX_WRAPPED_LEN: usize = 6144;
/// Longest `CiphertextForRecipient`, in bytes.
pub const MAX_RECIPIENT_LEN: usize = 8192;

/// An attestation document.
pub type Document = BoundedBytes<1, MAX_DOCUMENT_LEN>;
/// A part of a blob.
pub type Part = BoundedBytes<1, PART_LEN>;

/// What the vault asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Call {
    /// KMS `GenerateDataKey` with a `Recipient`.
    GenerateDataKey {
        /// ARN of the KMS key.
        key_arn: String,
        /// For the encryption context.
        group: String,
        /// For the encryption context.
        network: Root,
        /// With the key for the answer.
        document: Document,
    },
    /// KMS `Decrypt` with a `Recipient`.
    Decrypt {
        /// ARN of the KMS key.
        key_arn: String,
        /// For the encryption context.
        group: String,
        /// For the encryption context.
        network: Root,
        /// With the key for the answer.
        document: Document,
        /// `CiphertextBlob`.
        wrapped: BoundedBytes<1, MAX_WRAPPED_LEN>,
    },
    /// The generations that the parent keeps.
    ListBlobs {
        /// The group.
        group: String,
    },
    /// A part of a blob.
    LoadBlob {
        /// The group.
        group: String,
        /// Its generation.
        generation: u64,
        /// Where the part begins.
        offset: u64,
    },
    /// A part of a blob to keep; parts come in order, and with the last one the blob is stored.
    StoreBlob {
        /// The group.
        group: String,
        /// Its generation.
        generation: u64,
        /// Where the part begins.
        offset: u64,
        /// Bytes of the whole blob.
        total: u64,
        /// The part.
        part: Part,
    },
}

/// What the broker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Answer {
    /// To the KMS calls.
    DataKey {
        /// ARN of the KMS key that answered.
        key_arn: String,
        /// `CiphertextBlob`.
        wrapped: BoundedBytes<1, MAX_WRAPPED_LEN>,
        /// `CiphertextForRecipient`.
        for_recipient: BoundedBytes<1, MAX_RECIPIENT_LEN>,
    },
    /// The newest first, at most 1,000.
    Blobs {
        /// Generations.
        generations: Vec<u64>,
    },
    /// A part of a blob.
    Part {
        /// Bytes of the whole blob.
        total: u64,
        /// The part.
        part: Part,
    },
    /// The part was taken; more are expected.
    Taken,
    /// The blob is on the disk.
    Stored,
    /// It did not work.
    Failed(Failure),
}

/// Why a call failed. The broker's log has the sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// KMS or the parent cannot be reached.
    Away,
    /// The parent's credentials do not work.
    Credentials,
    /// The key policy says no.
    Denied,
    /// Anything else.
    Refused,
}

/// A call or an answer under a number of the vault's choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbered<T> {
    version: u64,
    /// The number.
    pub id: u64,
    /// Call or answer.
    pub content: T,
}

/// Appends a call or an answer as a frame on channel 0, with its length.
pub fn encode<T: Serialize>(id: u64, content: &T, out: &mut Vec<u8>) {
    frame::encode(&Numbered { version: VERSION, id, content }, Some(CHANNEL), out);
}

/// Reads the one call in a frame of channel 0 (without length and channel).
pub fn decode_call(frame: &[u8]) -> Result<Numbered<Call>, FrameError> {
    decode(frame)
}

/// Reads the one answer in a frame of channel 0 (without length and channel).
pub fn decode_answer(frame: &[u8]) -> Result<Numbered<Answer>, FrameError> {
    decode(frame)
}

fn decode<T: Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<Numbered<T>, FrameError> {
    let frame: Numbered<T> = cbor::decode(bytes, Form::Numbered).ok_or(FrameError(MalformedFrame::Encoding))?;
    if frame.version == VERSION { Ok(frame) } else { Err(FrameError(MalformedFrame::Version(frame.version))) }
}
