//! Sealed blobs, format version 2: a group's keys and what they have signed, under a data key that KMS hands out to
//! these PCRs alone (docs/PROTOCOL.md, «Sealed blobs»).
//!
//! The parent keeps blobs and is only a disk. The header says under which KMS key, for which group, chain and version a
//! blob was sealed, with the wrapped data key; all of it is the additional data of AES-256-GCM, so no part can be
//! exchanged. What was read is compared with what the measured configuration says before KMS is asked, and every public
//! key is derived anew.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use casemate_protocol::cbor::{self, Form};
use casemate_protocol::command::{MAX_CREDENTIALS_LEN, StoreCredentials};
use casemate_protocol::watermarks::Watermarks;
use casemate_protocol::{BoundedBytes, Bytes, ExecutionAddress, PublicKey, Root};
use casemate_slashing::{GroupFloor, SlashingHistory};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::signing::bls::SecretKey;

/// The one format version.
pub const VERSION: u64 = 2;
/// Longest blob, in bytes: about two hundred thousand keys.
pub const MAX_BLOB_LEN: usize = 64 * 1024 * 1024;
/// Longest wrapped data key, in bytes: KMS's `CiphertextBlob` is at most 6,144.
pub const MAX_WRAPPED_KEY_LEN: usize = 6144;
/// Longest key ARN and group name, in bytes.
pub const MAX_TEXT_LEN: usize = 256;
/// Bytes of a data key.
pub const DATA_KEY_LEN: usize = 32;

const TAG_LEN: usize = 16;

/// What the measured configuration says that a blob must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealBinding {
    /// ARN of the KMS key.
    pub key_arn: String,
    /// The group.
    pub group: String,
    /// The chain's genesis validators root.
    pub network: Root,
}

/// What a blob says in clear: bound to its content, and nothing by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    version: u64,
    /// ARN of the KMS key that wrapped the data key.
    pub key_arn: String,
    /// The group.
    pub group: String,
    /// The chain's genesis validators root.
    pub network: Root,
    /// Rises with every sealing; the fence tells which is the oldest that may be loaded.
    pub state_version: u64,
    /// KMS's `CiphertextBlob`.
    pub wrapped_key: BoundedBytes<1, MAX_WRAPPED_KEY_LEN>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Blob {
    header: Header,
    nonce: Bytes<NONCE_LEN>,
    /// AES-256-GCM over the content, the tag behind it.
    sealed: BoundedBytes<TAG_LEN, MAX_BLOB_LEN>,
}

/// Why a blob is not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum SealError {
    #[error("the sealed blob is {len} bytes long; 1 to {MAX_BLOB_LEN} are allowed")]
    Size { len: usize },
    #[error("the sealed blob is malformed")]
    Malformed,
    #[error("the sealed blob is of version {0}; {VERSION} is understood here")]
    Version(u64),
    #[error("the sealed blob is under the KMS key {found}; the configuration names {expected}")]
    OtherKey { found: String, expected: String },
    #[error("the sealed blob is of the group {found:?}; this enclave serves {expected:?}")]
    OtherGroup { found: String, expected: String },
    #[error("the sealed blob is for the chain {found}; this enclave serves {expected}")]
    OtherNetwork { found: Root, expected: Root },
    #[error("the sealed blob has version {found}; {oldest} is the oldest that may be loaded")]
    OldState { found: u64, oldest: u64 },
    #[error("the sealed blob does not open with this data key")]
    Decryption,
    #[error("key number {number} of the sealed blob is not the secret key of the public key beside it")]
    OtherPublicKey { number: usize },
    #[error("a public key occurs twice in the sealed blob")]
    DuplicateKey,
    #[error("nothing could be sealed")]
    NotSealed,
}

/// A group's state in clear. Cleared when dropped.
#[derive(Default)]
pub struct Contents {
    /// Every key that is held, or was.
    pub keys: Vec<SealedKey>,
    /// What keys that are not listed may have signed at most.
    pub floor: GroupFloor,
    /// What opens the fence's store.
    pub store: Option<StoreCredentials>,
    /// Version of the fence's record when this was sealed: the store must not show an older one. 0 where there was none.
    pub fence_version: u64,
}

/// A key with its past.
pub struct SealedKey {
    /// Its public key.
    pub public_key: PublicKey,
    /// The secret key, big-endian; `None` for one that was deleted, whose past is kept all the same.
    pub secret: Option<SecretBytes>,
    /// What it has signed.
    pub history: SlashingHistory,
    /// Where operators have ordered its fees to go; nothing where the configuration decides.
    pub fee_recipient: Option<ExecutionAddress>,
}

/// 32 secret bytes: cleared when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(pub [u8; 32]);

/// Reads a blob's header and compares it with what must be, before anything is asked of KMS.
pub fn header(blob: &[u8], place: &SealBinding, min_state_version: u64) -> Result<Header, SealError> {
    let header = parse(blob)?.header;
    check(&header, place, min_state_version)?;
    Ok(header)
}

/// Opens a blob.
pub fn open(
    blob: &[u8],
    data_key: &[u8; DATA_KEY_LEN],
    place: &SealBinding,
    min_state_version: u64,
) -> Result<Contents, SealError> {
    let Blob { header, nonce, sealed } = parse(blob)?;
    check(&header, place, min_state_version)?;
    let aad = encode(&header);
    let mut in_place = Zeroizing::new(sealed.into_vec());
    let key = RandomizedNonceKey::new(&AES_256_GCM, data_key).map_err(|_| SealError::Decryption)?;
    let clear = key
        .open_in_place(Nonce::assume_unique_for_key(nonce.0), Aad::from(aad), &mut in_place)
        .map_err(|_| SealError::Decryption)?;
    let content: Content = cbor::decode(clear, Form::Numbered).ok_or(SealError::Malformed)?;
    content.check()
}

/// Seals a group's state under a data key that KMS has just made, wrapped for later.
///
/// Each sealing has a data key of its own, so a nonce cannot meet itself.
pub fn seal(
    contents: &Contents,
    data_key: &[u8; DATA_KEY_LEN],
    wrapped_key: Vec<u8>,
    place: &SealBinding,
    state_version: u64,
) -> Result<Vec<u8>, SealError> {
    let header = Header {
        version: VERSION,
        key_arn: place.key_arn.clone(),
        group: place.group.clone(),
        network: place.network,
        state_version,
        wrapped_key: BoundedBytes::new(wrapped_key).ok_or(SealError::NotSealed)?,
    };
    if header.key_arn.len() > MAX_TEXT_LEN || header.group.len() > MAX_TEXT_LEN {
        return Err(SealError::NotSealed);
    }
    let content = Content::from(contents);
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(content.max_len()));
    if !cbor::encode(&content, Form::Numbered, &mut *buffer) {
        return Err(SealError::NotSealed);
    }
    let key = RandomizedNonceKey::new(&AES_256_GCM, data_key).map_err(|_| SealError::NotSealed)?;
    let nonce =
        key.seal_in_place_append_tag(Aad::from(encode(&header)), &mut *buffer).map_err(|_| SealError::NotSealed)?;
    // What is in the buffer now is ciphertext.
    let sealed = BoundedBytes::new(buffer.to_vec()).ok_or(SealError::NotSealed)?;
    let blob = encode(&Blob { header, nonce: Bytes(*nonce.as_ref()), sealed });
    if blob.len() > MAX_BLOB_LEN { Err(SealError::NotSealed) } else { Ok(blob) }
}

fn parse(bytes: &[u8]) -> Result<Blob, SealError> {
    if bytes.is_empty() || bytes.len() > MAX_BLOB_LEN {
        return Err(SealError::Size { len: bytes.len() });
    }
    let blob: Blob = cbor::decode(bytes, Form::Numbered).ok_or(SealError::Malformed)?;
    if blob.header.version != VERSION {
        return Err(SealError::Version(blob.header.version));
    }
    if blob.header.key_arn.len() > MAX_TEXT_LEN || blob.header.group.len() > MAX_TEXT_LEN {
        return Err(SealError::Malformed);
    }
    Ok(blob)
}

fn check(header: &Header, place: &SealBinding, oldest: u64) -> Result<(), SealError> {
    if header.key_arn != place.key_arn {
        return Err(SealError::OtherKey { found: header.key_arn.clone(), expected: place.key_arn.clone() });
    }
    if header.group != place.group {
        return Err(SealError::OtherGroup { found: header.group.clone(), expected: place.group.clone() });
    }
    if header.network != place.network {
        return Err(SealError::OtherNetwork { found: header.network, expected: place.network });
    }
    if header.state_version < oldest {
        return Err(SealError::OldState { found: header.state_version, oldest });
    }
    Ok(())
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to memory cannot fail, and these types have nothing that CBOR cannot say.
    let written = cbor::encode(value, Form::Numbered, &mut out);
    debug_assert!(written);
    out
}

/// The content as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    keys: Vec<WrittenKey>,
    floor: Watermarks,
    store: Option<StoreCredentials>,
    fence_version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    public_key: PublicKey,
    secret: Option<SecretBytes>,
    history: Option<Watermarks>,
    fee_recipient: Option<ExecutionAddress>,
}

impl Content {
    /// At least as many bytes as the encoding takes, with room for the tag.
    fn max_len(&self) -> usize {
        let keys = self.keys.len().saturating_mul(256);
        keys.saturating_add(256).saturating_add(MAX_CREDENTIALS_LEN).saturating_add(TAG_LEN)
    }

    /// Derives every public key anew.
    fn check(self) -> Result<Contents, SealError> {
        let mut seen: Vec<PublicKey> = self.keys.iter().map(|key| key.public_key).collect();
        seen.sort_unstable();
        if seen.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(SealError::DuplicateKey);
        }
        // That is nearly all the time that opening takes: on as many threads as there are cores.
        let threads = crate::platform::cpus::cores().get();
        let share = self.keys.len().div_ceil(threads).max(1);
        let wrong = std::thread::scope(|scope| {
            let shares: Vec<_> =
                self.keys.chunks(share).map(|keys| scope.spawn(|| keys.iter().position(|key| !key.fits()))).collect();
            // A thread that ended without an answer has found nothing to be right.
            shares
                .into_iter()
                .map(|s| s.join().unwrap_or(Some(0)))
                .enumerate()
                .find_map(|(at, wrong)| Some((at, wrong?)))
        });
        if let Some((at, within)) = wrong {
            return Err(SealError::OtherPublicKey { number: at.saturating_mul(share).saturating_add(within) });
        }
        let keys = self.keys.into_iter().map(SealedKey::from).collect();
        let floor = GroupFloor::from_watermarks(self.floor);
        Ok(Contents { keys, floor, store: self.store, fence_version: self.fence_version })
    }
}

impl WrittenKey {
    /// Whether the secret key is the public key's; where it was deleted, there is nothing to compare.
    fn fits(&self) -> bool {
        let Some(secret) = &self.secret else { return true };
        let mut bytes = secret.0;
        // It clears the copy.
        SecretKey::from_be_bytes(&mut bytes).is_ok_and(|secret| secret.public_key() == self.public_key)
    }
}

impl From<&Contents> for Content {
    fn from(contents: &Contents) -> Self {
        let written = |key: &SealedKey| WrittenKey {
            public_key: key.public_key,
            secret: key.secret.clone(),
            history: match key.history {
                SlashingHistory::Missing => None,
                SlashingHistory::Known(watermarks) => Some(watermarks),
            },
            fee_recipient: key.fee_recipient,
        };
        let keys = contents.keys.iter().map(written).collect();
        let floor = contents.floor.watermarks();
        Self { keys, floor, store: contents.store.clone(), fence_version: contents.fence_version }
    }
}

impl From<WrittenKey> for SealedKey {
    fn from(key: WrittenKey) -> Self {
        let history = key.history.map_or(SlashingHistory::Missing, SlashingHistory::Known);
        Self { public_key: key.public_key, secret: key.secret, history, fee_recipient: key.fee_recipient }
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut bytes = Bytes::<32>::deserialize(deserializer)?;
        let secret = Self(bytes.0);
        bytes.0.zeroize();
        Ok(secret)
    }
}
