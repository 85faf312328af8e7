//! Frames: a `u32` big-endian length, then one CBOR map in its one encoding.
//!
//! [`cbor`] re-encodes what it decoded and compares, so a frame has one reading and one writing.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::bytes::BoundedBytes;
use crate::cbor::{self, Form};
use crate::command::{Envelope, ImportedKey, MAX_KEYS, MAX_SIGNED_LEN, Outcome};
use crate::history_page::SignedHistoryPage;
use crate::key_page::SignedKeyPage;
use crate::log::LogPage;
use crate::may_sign::{MaySign, Silence};
pub use crate::nonce::{MAX_FRAME_LEN, NONCE_LEN, Nonce};
use crate::refusal::MalformedFrame;
use crate::statement::{MAX_STATEMENT_LEN, StatedStatus};
use crate::{Duty, Epoch, ForkInfo, Network, PublicKey, Refusal, Root, Signature, Slot};

/// The one protocol version.
pub const VERSION: u64 = 1;
/// Most bytes of a frame with an operator's command, or with what became of it.
pub const MAX_COMMAND_FRAME_LEN: usize = MAX_SIGNED_LEN + 1024;
/// Bytes of a frame's length.
pub const LENGTH_LEN: usize = 4;
/// Bytes of the channel number that a frame carries between broker and vault.
pub const CHANNEL_LEN: usize = 8;
/// Most public keys in one page: 48 bytes and a head each stay far below [`MAX_FRAME_LEN`].
pub const MAX_KEYS_PER_PAGE: u32 = 1000;
/// Longest platform name or timestamp in a proof of validation, in bytes.
pub const MAX_PROOF_TEXT_LEN: usize = 128;

/// Most keystores in one request.
pub const MAX_KEYSTORES: usize = 8;
/// Longest keystore in a request, in bytes: one of EIP-2335 has about 700.
pub const MAX_KEYSTORE_LEN: usize = 8192;
/// Longest password of a keystore, in bytes.
pub const MAX_PASSWORD_LEN: usize = 1024;
/// Most proofs that come with a block.
pub const MAX_PROOFS: usize = 4;
/// Most nodes of a proof: the deepest index in use has 9.
pub const MAX_PROOF_NODES: usize = 16;

/// Longest attestation document, in bytes: what the NSM gives at most is shorter.
pub const MAX_DOCUMENT_LEN: usize = 16 * 1024;

/// What the proxy may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::large_enum_variant, reason = "nearly all are of the largest")]
pub enum Request {
    /// What is behind this socket.
    Info,
    /// One page of the keys that sign.
    PublicKeys {
        /// Index of the first key.
        start: u32,
    },
    /// Sign a duty.
    Sign(SignRequest),
    /// The highest slot and target epoch that may be signed now.
    HighWatermark,
    /// Sign a proof of validation: the vault writes the text itself, so that no signing root can be smuggled in.
    ProofOfValidation {
        /// Key that signs.
        public_key: PublicKey,
        /// Who asks for the proof.
        platform: String,
        /// When, as the platform writes it.
        timestamp: String,
    },
    /// An attestation document, and the statement that it binds.
    Attestation {
        /// Comes back inside the document.
        nonce: Nonce,
    },
    /// Carry out an operators' command.
    Command {
        /// A [`crate::command::SignedCommand`], encoded.
        envelope: Envelope,
    },
    /// Hand over in order, because the parent is about to end this enclave. Who ends it can ask for that too.
    #[serde(rename = "HandOver")]
    Handover,
    /// One page of what the group's keys have signed, those that were deleted too.
    #[serde(rename = "Pasts")]
    SlashingProtection {
        /// Comes back under the signature, so that the page cannot be an old one.
        nonce: Nonce,
        /// Index of the first key.
        start: u32,
    },
    /// What was signed and refused.
    Log {
        /// Number of the last record that is known.
        after: u64,
        /// Where given, the head comes with a signature over it too.
        nonce: Option<Nonce>,
    },
    /// Take in keystores that the parent has seen: only where the measured policy allows it.
    ImportKeystores {
        /// At most [`MAX_KEYSTORES`].
        keys: Vec<KeystoreToImport>,
    },
    /// Delete keys without operators: only where the measured policy allows it.
    DeleteKeys {
        /// At most [`MAX_KEYS`].
        keys: Vec<PublicKey>,
    },
    /// Whether duties would be signed now.
    Readiness,
    /// One page of what operators want to know of the group's keys, those that were deleted too.
    KeyDetails {
        /// Comes back under the signature, so that the page cannot be an old one.
        nonce: Nonce,
        /// Index of the first key.
        start: u32,
    },
}

/// A keystore with its password, and the past of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeystoreToImport {
    /// Whose it is, and what that has signed.
    pub key: ImportedKey,
    /// EIP-2335, JSON.
    pub keystore: BoundedBytes<1, MAX_KEYSTORE_LEN>,
    /// UTF-8, normalised as EIP-2335 says: NFKD, without control characters.
    pub password: Password,
}

/// A password: cleared when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Password(pub BoundedBytes<0, MAX_PASSWORD_LEN>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// A Merkle branch from a block's body root to one of its fields (Nimbus's `verifying-web3signer`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockProof {
    /// Generalised index of the field in the body.
    pub index: u64,
    /// The nodes beside the way up, 32 bytes each, the lowest first.
    pub branch: BoundedBytes<0, { MAX_PROOF_NODES * 32 }>,
}

/// A duty with what the client says about its fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    /// Key that signs.
    pub public_key: PublicKey,
    /// What is signed.
    pub duty: Duty,
    /// The client's fork, where the duty's domain depends on one.
    pub fork_info: Option<ForkInfo>,
    /// The signing root that the client computed, compared with ours.
    pub signing_root: Option<Root>,
    /// Of a block: what its body has in it. At most [`MAX_PROOFS`].
    pub proofs: Vec<BlockProof>,
}

/// What the vault answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Reply {
    /// To [`Request::Info`].
    Info(Info),
    /// To [`Request::PublicKeys`].
    PublicKeys {
        /// How many there are in all.
        total: u32,
        /// This page.
        keys: Vec<PublicKey>,
    },
    /// To [`Request::Sign`].
    Signature(Signature),
    /// To [`Request::HighWatermark`]; nothing where no fence grants ceilings.
    HighWatermark(Option<HighWatermark>),
    /// To [`Request::ProofOfValidation`].
    ProofOfValidation {
        /// The text that was signed.
        payload: String,
        /// Its signature.
        signature: Signature,
    },
    /// To any of them.
    Refused(Refusal),
    /// To [`Request::Attestation`].
    Attestation {
        /// COSE_Sign1 by the NSM: the nonce, the vault's HPKE key as public_key, the statement's SHA-256 as user_data.
        document: BoundedBytes<1, MAX_DOCUMENT_LEN>,
        /// A [`crate::Statement`], encoded.
        statement: BoundedBytes<1, MAX_STATEMENT_LEN>,
    },
    /// To [`Request::Command`], and to what stands for one.
    Command(Outcome),
    /// To [`Request::Handover`]: whatever was signed is in the state that was left behind.
    HandedOver,
    /// To [`Request::SlashingProtection`].
    #[serde(rename = "Pasts")]
    SlashingProtection(SignedHistoryPage),
    /// To [`Request::Log`].
    Log(LogPage),
    /// To [`Request::Readiness`].
    Readiness(Readiness),
    /// To [`Request::KeyDetails`].
    KeyDetails(SignedKeyPage),
}

/// Whether an enclave would sign now. Unauthenticated, as [`Info`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readiness {
    /// What it is to the fence.
    pub standing: StatedStatus,
    /// The term that it holds; 0 for none.
    pub term: u64,
    /// What it would sign.
    pub may_sign: MaySign,
    /// Its fence's store, where that is asked and does not answer.
    pub silence: Option<Silence>,
    /// Milliseconds since the store's last clear answer.
    pub store_answered_ms: Option<u64>,
    /// How many keys sign.
    pub keys: u32,
}

/// What an enclave says about itself. Unauthenticated: an operator verifies it by attestation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// The measured network.
    pub network: Network,
    /// How many keys sign.
    pub keys: u32,
    /// How many keys are held but refused, for want of a slashing history.
    pub keys_without_history: u32,
    /// What it is to the fence: only the holder signs.
    pub standing: StatedStatus,
    /// Whether the measured policy lets the key manager API delete keys.
    pub key_manager_delete: bool,
}

impl Readiness {
    /// Of an enclave that says no more than what it is to the fence.
    pub fn from_standing(standing: StatedStatus, keys: u32) -> Self {
        let may_sign = MaySign::from_standing(standing);
        Self { standing, term: 0, may_sign, silence: None, store_answered_ms: None, keys }
    }
}

/// The ceilings in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWatermark {
    /// No block above this slot.
    pub slot: Slot,
    /// No attestation with a target above this epoch.
    pub epoch: Epoch,
}

/// A request and the number under which its reply comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestFrame {
    version: u64,
    /// Chosen by the asker; replies come in any order.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// A reply to the request of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplyFrame {
    version: u64,
    /// Number of the request; 0 where it could not be read.
    pub id: u64,
    /// The answer.
    pub reply: Reply,
}

/// Why bytes are no frame. The connection that brought them is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct FrameError(pub MalformedFrame);

impl RequestFrame {
    /// A request of this protocol version.
    pub fn new(id: u64, request: Request) -> Self {
        Self { version: VERSION, id, request }
    }
}

impl ReplyFrame {
    /// A reply of this protocol version.
    pub fn new(id: u64, reply: Reply) -> Self {
        Self { version: VERSION, id, reply }
    }
}

/// Reads the one request in `frame` (without its length).
pub fn decode_request(frame: &[u8]) -> Result<RequestFrame, FrameError> {
    let decoded = decode(frame, |f: &RequestFrame| f.version)?;
    let within = match &decoded.request {
        Request::Sign(request) => request.proofs.len() <= MAX_PROOFS,
        Request::ImportKeystores { keys } => (1..=MAX_KEYSTORES).contains(&keys.len()),
        Request::DeleteKeys { keys } => (1..=MAX_KEYS).contains(&keys.len()),
        _ => true,
    };
    if !within {
        return Err(FrameError(MalformedFrame::Encoding));
    }
    length_fits(frame, matches!(decoded.request, Request::Command { .. } | Request::ImportKeystores { .. }))?;
    Ok(decoded)
}

/// Reads the one reply in `frame` (without its length).
pub fn decode_reply(frame: &[u8]) -> Result<ReplyFrame, FrameError> {
    let decoded = decode(frame, |f: &ReplyFrame| f.version)?;
    length_fits(frame, matches!(decoded.reply, Reply::Command(_)))?;
    Ok(decoded)
}

/// Only commands have long frames.
fn length_fits(frame: &[u8], command: bool) -> Result<(), FrameError> {
    if command || frame.len() <= MAX_FRAME_LEN {
        return Ok(());
    }
    let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Err(FrameError(MalformedFrame::Length { len: number(frame.len()), max: number(MAX_FRAME_LEN) }))
}

/// Appends a request with its length.
pub fn encode_request(frame: &RequestFrame, out: &mut Vec<u8>) {
    encode(frame, None, out);
}

/// Appends a reply with its length.
pub fn encode_reply(frame: &ReplyFrame, out: &mut Vec<u8>) {
    encode(frame, None, out);
}

/// Appends a reply for the connection `channel`, with its length, as the vault writes it to the broker.
pub fn encode_channel_reply(channel: u64, frame: &ReplyFrame, out: &mut Vec<u8>) {
    encode(frame, Some(channel), out);
}

/// Appends the order to close the connection `channel`: a channel number with nothing behind it.
pub fn encode_channel_close(channel: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 8]);
    out.extend_from_slice(&channel.to_be_bytes());
}

/// Puts the channel number in front of a frame, as the broker does before it passes it to the vault.
pub fn encode_channel_frame(channel: u64, frame: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(frame.len().saturating_add(CHANNEL_LEN)).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(frame);
}

/// The first whole frame of `buffer` (without its length), and how many bytes it takes up there.
///
/// `None` until it is complete. A length beyond `max` is refused as soon as its four bytes are here: nothing is ever
/// reserved for bytes that were only announced.
pub fn split(buffer: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, FrameError> {
    let Some((head, rest)) = buffer.split_first_chunk::<LENGTH_LEN>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*head);
    let length_error = || {
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        FrameError(MalformedFrame::Length { len: u64::from(len), max })
    };
    let len = usize::try_from(len).map_err(|_| length_error())?;
    if len == 0 || len > max {
        return Err(length_error());
    }
    Ok(rest.get(..len).map(|frame| (frame, LENGTH_LEN.saturating_add(len))))
}

/// Parts a frame between broker and vault into its channel number and the frame proper.
pub fn split_channel(frame: &[u8]) -> Result<(u64, &[u8]), FrameError> {
    let (channel, frame) = frame.split_first_chunk::<CHANNEL_LEN>().ok_or(FrameError(MalformedFrame::Encoding))?;
    Ok((u64::from_be_bytes(*channel), frame))
}

fn decode<T: DeserializeOwned + Serialize>(frame: &[u8], version: impl Fn(&T) -> u64) -> Result<T, FrameError> {
    let value: T = cbor::decode_loosely(frame).ok_or(FrameError(MalformedFrame::Encoding))?;
    if version(&value) != VERSION {
        return Err(FrameError(MalformedFrame::Version(version(&value))));
    }
    let exact = cbor::is_encoding_of(frame, &value, Form::Numbered);
    if exact { Ok(value) } else { Err(FrameError(MalformedFrame::Encoding)) }
}

pub(crate) fn encode<T: Serialize>(value: &T, channel: Option<u64>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_LEN]);
    if let Some(channel) = channel {
        out.extend_from_slice(&channel.to_be_bytes());
    }
    // Writing to memory cannot fail, and the types have no map with odd keys: there is no other error.
    let written = cbor::encode(value, Form::Numbered, &mut *out);
    debug_assert!(written);
    let len = out.len().saturating_sub(start).saturating_sub(LENGTH_LEN);
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if let Some(head) = out.get_mut(start..).and_then(|tail| tail.first_chunk_mut::<LENGTH_LEN>()) {
        *head = len.to_be_bytes();
    }
}
