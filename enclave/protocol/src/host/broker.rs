//! What the vault asks of the broker, on channel 0 of the socket between them: KMS, and the parent's disk.
//!
//! The broker carries it and is trusted with nothing: blobs are sealed, and TLS to KMS begins in the vault. A call of KMS is a
//! conversation under one number: the broker writes and signs the request ([`BrokerReply::Request`]), the vault checks it, sends it
//! over TLS of its own ([`BrokerRequest::TlsOut`], [`BrokerReply::TlsIn`]) and tells the broker what came ([`BrokerRequest::Response`]), so that its
//! client can explain and try again. What KMS handed out the vault takes from its own TLS, never from the broker.
//! Blobs cross in parts, so that frames stay small.

use serde::{Deserialize, Serialize};

use crate::Root;
use crate::bytes::BoundedBytes;
use crate::cbor::{self, Form};
use crate::frame::{self, FrameError, MAX_DOCUMENT_LEN};
use crate::host_services::RecordBytes;
use crate::refusal::MalformedFrame;

/// The one version.
pub const VERSION: u64 = 1;
/// The channel of these frames; connections of the parent are numbered from 1.
pub const CHANNEL: u64 = 0;
/// Most bytes of a blob in one frame.
pub const PART_LEN: usize = 32 * 1024;
/// Longest wrapped data key, in bytes.
pub const MAX_WRAPPED_LEN: usize = 6144;
/// Longest request and response of KMS, without heads, in bytes.
pub const MAX_KMS_BODY_LEN: usize = 48 * 1024;
/// Most headers of a request.
pub const MAX_HEADERS: usize = 24;
/// Longest value of a header, in bytes: session tokens are long.
pub const MAX_HEADER_LEN: usize = 8192;

/// An attestation document.
pub type Document = BoundedBytes<1, MAX_DOCUMENT_LEN>;
/// A part of a blob.
pub type Part = BoundedBytes<1, PART_LEN>;

/// What the vault asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum BrokerRequest {
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
    /// The state_versions that the parent keeps.
    ListBlobs {
        /// The group.
        group: String,
    },
    /// A part of a blob.
    LoadBlob {
        /// The group.
        group: String,
        /// Its version.
        state_version: u64,
        /// Where the part begins.
        offset: u64,
    },
    /// A part of a blob to keep; parts come in order, and with the last one the blob is stored.
    StoreBlob {
        /// The group.
        group: String,
        /// Its version.
        state_version: u64,
        /// Where the part begins.
        offset: u64,
        /// Bytes of the whole blob.
        total: u64,
        /// The part.
        part: Part,
    },
    /// Within a KMS call: TLS for KMS.
    #[serde(rename = "Carry")]
    TlsOut {
        /// Of which request.
        attempt: u64,
        /// Bytes as they go out.
        bytes: Part,
    },
    /// Within a KMS call: what KMS answered.
    Response {
        /// To which request.
        attempt: u64,
        /// HTTP status.
        status: u16,
        /// JSON.
        body: BoundedBytes<0, MAX_KMS_BODY_LEN>,
    },
    /// Within a KMS call: nothing came.
    NoResponse {
        /// To which request.
        attempt: u64,
        /// Why.
        why: NoResponse,
    },
    /// The fence's record, where it is a file on the parent's disk.
    ReadRecord {
        /// The group.
        group: String,
    },
    /// Put a record where the file has `old`, and only there.
    SwapRecord {
        /// The group.
        group: String,
        /// What must be there; nothing where there must be no file.
        old: Option<RecordBytes>,
        /// What is put there.
        new: RecordBytes,
    },
    /// A conversation with the fence's store: the vault's TLS, carried in [`BrokerRequest::TlsOut`] and [`BrokerReply::TlsIn`] of attempt 0.
    #[serde(rename = "Dial")]
    Connect {
        /// DNS name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Ends a conversation with the fence's store.
    #[serde(rename = "HangUp")]
    Close,
}

/// Why a request to KMS had no response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum NoResponse {
    /// Anyone who answered is not KMS under the vault's roots, or broke TLS; with rustls's sentence.
    Tls(String),
    /// The connection ended before the response did.
    Closed,
    /// What came is not the HTTP that KMS speaks.
    Malformed,
    /// The broker's request is not what the vault has asked for.
    OtherRequest,
}

/// A header of a request: name in lower case, value.
pub type Header = (String, String);

/// What the broker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum BrokerReply {
    /// Within a KMS call: the signed request. The vault opens TLS for it and checks it first.
    Request {
        /// Its number within the call: a client that was left without a response tries again.
        attempt: u64,
        /// Headers, without `host` and `content-length`.
        headers: Vec<Header>,
        /// JSON.
        body: BoundedBytes<1, MAX_KMS_BODY_LEN>,
    },
    /// Within a KMS call: TLS from KMS; nothing where the connection has ended.
    #[serde(rename = "Carried")]
    TlsIn {
        /// Of which request.
        attempt: u64,
        /// Bytes as they came in.
        bytes: Option<Part>,
    },
    /// To the KMS calls: the last response was a success.
    Done,
    /// The newest first, at most 1,000.
    Blobs {
        /// State versions.
        state_versions: Vec<u64>,
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
    /// To [`BrokerRequest::ReadRecord`]; nothing where there is no file.
    Record {
        /// The record.
        record: Option<RecordBytes>,
    },
    /// To [`BrokerRequest::SwapRecord`].
    Swapped,
    /// To [`BrokerRequest::SwapRecord`]: something else is there.
    Conflict,
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
pub fn decode_request(frame: &[u8]) -> Result<Numbered<BrokerRequest>, FrameError> {
    decode(frame)
}

/// Reads the one answer in a frame of channel 0 (without length and channel).
pub fn decode_reply(frame: &[u8]) -> Result<Numbered<BrokerReply>, FrameError> {
    decode(frame)
}

fn decode<T: Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<Numbered<T>, FrameError> {
    let frame: Numbered<T> = cbor::decode(bytes, Form::Numbered).ok_or(FrameError(MalformedFrame::Encoding))?;
    if frame.version == VERSION { Ok(frame) } else { Err(FrameError(MalformedFrame::Version(frame.version))) }
}
