//! What the enclave's broker asks of the parent, over a connection of its own: connections to hosts, credentials, and a disk.
//!
//! The parent is trusted with none of it: TLS begins behind [`HostRequest::Connect`] and ends inside the enclave, credentials
//! that do not work refuse service, and blobs are sealed. One frame asks, one answers; after `Connected` the connection
//! carries bytes.

use serde::{Deserialize, Serialize};

use crate::bytes::BoundedBytes;
use crate::cbor::{self, Form};
use crate::frame::{self, FrameError};
use crate::refusal::MalformedFrame;

/// The one version.
pub const VERSION: u64 = 1;
/// Longest frame, in bytes: a sealed blob and its envelope.
pub const MAX_HOST_FRAME_LEN: usize = MAX_BLOB_LEN + 4096;
/// Longest sealed blob, in bytes.
pub const MAX_BLOB_LEN: usize = 64 * 1024 * 1024;
/// Longest request but for a blob to store: what is read before it is known what is asked.
pub const MAX_TEXT_LEN: usize = 4096;

/// A blob as the parent keeps it.
pub type BlobBytes = BoundedBytes<1, MAX_BLOB_LEN>;

/// A record of the fence, as its store keeps it.
pub type RecordBytes = BoundedBytes<1, 1024>;

/// What the broker asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum HostRequest {
    /// Open TCP to a host that is on the parent's list, and carry bytes from then on.
    Connect {
        /// A DNS name, resolved on the parent.
        host: String,
        /// Its port.
        port: u16,
    },
    /// The parent's AWS credentials.
    Credentials,
    /// The blobs that are kept for a group, the newest first.
    ListBlobs {
        /// The group.
        group: String,
    },
    /// One of them.
    LoadBlob {
        /// The group.
        group: String,
        /// Its version.
        state_version: u64,
    },
    /// Keep a blob; answered once it is on the disk.
    StoreBlob {
        /// The group.
        group: String,
        /// Its version.
        state_version: u64,
        /// The blob.
        blob: BlobBytes,
    },
    /// The fence's record, where it is a file on the parent's disk.
    ReadRecord {
        /// The group.
        group: String,
    },
    /// Put a record where the file has `old`, and only there; answered once it is on the disk.
    SwapRecord {
        /// The group.
        group: String,
        /// What must be there; nothing where there must be no file.
        old: Option<RecordBytes>,
        /// What is put there.
        new: RecordBytes,
    },
}

/// What the parent answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum HostReply {
    /// Bytes from here on.
    Connected,
    /// To [`HostRequest::Credentials`].
    Credentials {
        /// Access key id.
        access_key: String,
        /// Its secret.
        secret_key: String,
        /// For temporary ones.
        session_token: Option<String>,
        /// Unix seconds.
        expires: Option<u64>,
    },
    /// State versions, the newest first.
    Blobs {
        /// At most 1,000.
        state_versions: Vec<u64>,
    },
    /// To [`HostRequest::LoadBlob`].
    Blob {
        /// The blob.
        blob: BlobBytes,
    },
    /// To [`HostRequest::StoreBlob`].
    Stored,
    /// To [`HostRequest::ReadRecord`]; nothing where there is no file.
    Record {
        /// The record.
        record: Option<RecordBytes>,
    },
    /// To [`HostRequest::SwapRecord`]: the new record is on the disk.
    Swapped,
    /// To [`HostRequest::SwapRecord`]: something else is there, and nothing was changed.
    Conflict,
    /// No; with a sentence for the log.
    Refused {
        /// Why.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Frame<T> {
    version: u64,
    content: T,
}

/// Appends a request with its length.
pub fn encode_request(request: &HostRequest, out: &mut Vec<u8>) {
    frame::encode(&Frame { version: VERSION, content: request }, None, out);
}

/// Appends a reply with its length.
pub fn encode_reply(reply: &HostReply, out: &mut Vec<u8>) {
    frame::encode(&Frame { version: VERSION, content: reply }, None, out);
}

/// Reads the one request in `frame` (without its length).
pub fn decode_request(frame: &[u8]) -> Result<HostRequest, FrameError> {
    decode(frame)
}

/// Reads the one reply in `frame` (without its length).
pub fn decode_reply(frame: &[u8]) -> Result<HostReply, FrameError> {
    decode(frame)
}

fn decode<T: Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let encoding = FrameError(MalformedFrame::Encoding);
    let frame: Frame<T> = cbor::decode(bytes, Form::Numbered).ok_or(encoding)?;
    if frame.version == VERSION { Ok(frame.content) } else { Err(FrameError(MalformedFrame::Version(frame.version))) }
}
