//! EIP-2335 keystores: parse, decrypt, and find them with their passwords in the layouts of the clients.
//!
//! This is for the operator's machine, where keys are imported from. The vault reads keystores with it too, for operators whose
//! measured policy lets the key manager API bring them (`key_manager_import`), and decrypts them itself: without the feature
//! `decrypt` this crate only reads.
//!
//! ```
//! let error = casemate_keystore::Keystore::parse(b"{}").err().expect("an empty object is no keystore");
//! assert!(!error.to_string().is_empty());
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "decrypt")]
pub mod folder;
#[cfg(feature = "decrypt")]
pub mod password;

use std::fmt;

#[cfg(feature = "decrypt")]
use aes::cipher::{KeyIvInit, StreamCipher};
#[cfg(feature = "decrypt")]
use base64::Engine;
#[cfg(feature = "decrypt")]
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::{Bytes, PublicKey};
use serde::{Deserialize, Deserializer, de};
#[cfg(feature = "decrypt")]
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

#[cfg(feature = "decrypt")]
use crate::password::{Form, forms};

/// Largest keystore file that is read, in bytes: a wallet of Prysm's holds all of its keys.
pub const MAX_FILE_LEN: usize = 4 * 1024 * 1024;
/// Most memory that scrypt may ask for: four times what EIP-2335 uses.
const MAX_SCRYPT_MEMORY: u64 = 1 << 30;
/// Most rounds of PBKDF2: forty times what EIP-2335 uses.
const MAX_PBKDF2_ROUNDS: u32 = 10_485_760;

/// A secret key, 32 bytes big-endian; cleared when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// The bytes without the mark that editors put in front of UTF-8.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

/// The mode of a file that others than its owner have rights to; nothing where they have none. For files with secrets.
#[cfg(feature = "decrypt")]
pub fn others_rights(metadata: &std::fs::Metadata) -> Option<u32> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

/// Why a keystore was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum KeystoreError {
    #[error("not an EIP-2335 keystore: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(
        "the file has {0} bytes, and no keystore of more than {MAX_FILE_LEN} bytes is read. A wallet of that size must be exported as several \
         keystores"
    )]
    TooLong(usize),
    #[error("keystore version {0}; version 4 (EIP-2335) is read here")]
    Version(u64),
    #[error(
        "scrypt with n = {n}, r = {r}, p = {p} is not allowed: n must be a power of two, and n·r·128 at most {MAX_SCRYPT_MEMORY} bytes"
    )]
    Scrypt { n: u64, r: u32, p: u32 },
    #[error("pbkdf2 with {0} rounds is not allowed; 1 to {MAX_PBKDF2_ROUNDS} are")]
    Pbkdf2(u32),
    #[error("dklen is {0}; it must be 32")]
    DerivedKeyLen(u64),
    #[error("the secret has {0} bytes; a BLS secret key has 32, and it is no wallet of Prysm's either")]
    SecretLen(usize),
    #[error("this keystore holds {0} keys: one is asked for")]
    ManyKeys(usize),
    #[error("scrypt takes {needed} bytes for this one; {allowed} are allowed in all")]
    Memory { needed: u64, allowed: u64 },
    #[error("wrong password: the checksum differs{}", tried(*.0))]
    WrongPassword(usize),
    #[error("the decrypted secret is no BLS secret key")]
    InvalidSecret,
    #[error("the secret's public key is {derived}, the keystore says {stated}")]
    OtherPublicKey { derived: PublicKey, stated: PublicKey },
}

/// A parsed keystore; its parameters are within their limits.
#[derive(Debug)]
pub struct Keystore {
    public_key: Option<PublicKey>,
    /// How its password becomes a key.
    pub kdf: Kdf,
    /// SHA-256 of the key's second half and the ciphertext.
    pub checksum: [u8; 32],
    /// Of AES-128 in counter mode, whose key is the first half.
    pub iv: [u8; 16],
    /// The secret.
    pub ciphertext: Vec<u8>,
}

/// A key derivation function, its parameters within their limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kdf {
    /// RFC 7914.
    Scrypt {
        /// Logarithm of its cost.
        log_n: u8,
        /// Block size.
        r: u32,
        /// Parallelisation.
        p: u32,
        /// Its salt.
        salt: Vec<u8>,
    },
    /// RFC 8018, with HMAC-SHA256.
    Pbkdf2 {
        /// How often.
        rounds: u32,
        /// Its salt.
        salt: Vec<u8>,
    },
}

impl Kdf {
    /// Bytes that it takes while it runs.
    pub fn memory(&self) -> u64 {
        match self {
            // RFC 7914, section 6: 128·r bytes, N times.
            Self::Scrypt { log_n, r, .. } => 1_u64
                .checked_shl(u32::from(*log_n))
                .unwrap_or(u64::MAX)
                .saturating_mul(u64::from(*r))
                .saturating_mul(128),
            Self::Pbkdf2 { .. } => 0,
        }
    }
}

impl Keystore {
    /// Reads a keystore.
    pub fn parse(json: &[u8]) -> Result<Self, KeystoreError> {
        if json.len() > MAX_FILE_LEN {
            return Err(KeystoreError::TooLong(json.len()));
        }
        let json = without_bom(json);
        // The version first: another version's fields would only confuse.
        let version: VersionOnly = serde_json::from_slice(json)?;
        if version.version != 4 {
            return Err(KeystoreError::Version(version.version));
        }
        let file: File = serde_json::from_slice(json)?;
        let CipherParams { iv } = file.crypto.cipher.params;
        let ciphertext = file.crypto.cipher.message.0;
        Ok(Self {
            public_key: file.pubkey.map(|p| Bytes(p.0)),
            kdf: file.crypto.kdf.check()?,
            checksum: file.crypto.checksum.message.0,
            iv: iv.0,
            ciphertext,
        })
    }

    /// The public key that the file states.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.public_key
    }

    /// Decrypts the one secret key; its public key must be the stated one. The KDF takes its time.
    #[cfg(feature = "decrypt")]
    pub fn decrypt(&self, password: &str) -> Result<(Secret, PublicKey), KeystoreError> {
        let mut all = self.decrypt_all(password)?;
        match all.len() {
            1 => all.pop().ok_or(KeystoreError::ManyKeys(0)),
            many => Err(KeystoreError::ManyKeys(many)),
        }
    }

    /// Decrypts all secret keys: Prysm keeps all accounts of a wallet in one file. The KDF takes its time.
    #[cfg(feature = "decrypt")]
    pub fn decrypt_all(&self, password: &str) -> Result<Vec<(Secret, PublicKey)>, KeystoreError> {
        self.open(password).map(|opened| opened.keys)
    }

    /// The same, and which form of the password it was. Each form that is tried takes the KDF's time; of most passwords there is one.
    #[cfg(feature = "decrypt")]
    pub fn open(&self, password: &str) -> Result<Opened, KeystoreError> {
        let forms = forms(password);
        for (form, bytes) in &forms {
            match self.decrypt_with(bytes) {
                Err(KeystoreError::WrongPassword(_)) => {}
                other => return other.map(|keys| Opened { keys, form: *form }),
            }
        }
        Err(KeystoreError::WrongPassword(forms.len()))
    }

    /// With a password as the KDF takes it.
    #[cfg(feature = "decrypt")]
    fn decrypt_with(&self, password: &str) -> Result<Vec<(Secret, PublicKey)>, KeystoreError> {
        let derived = self.kdf.derive(password)?;
        let (cipher_key, checksum_key) = derived.split_at(16);
        let checksum = Sha256::new().chain_update(checksum_key).chain_update(&self.ciphertext).finalize();
        if checksum.as_slice() != self.checksum {
            return Err(KeystoreError::WrongPassword(1));
        }
        let mut clear = Zeroizing::new(self.ciphertext.clone());
        let mut cipher = ctr::Ctr128BE::<aes::Aes128>::new_from_slices(cipher_key, &self.iv)
            .map_err(|_| KeystoreError::InvalidSecret)?;
        cipher.apply_keystream(clear.as_mut_slice());
        let Ok(secret) = <[u8; 32]>::try_from(clear.as_slice()) else { return accounts(&clear) };
        let (secret, derived) = key(Zeroizing::new(secret))?;
        match self.public_key {
            Some(stated) if stated != derived => Err(KeystoreError::OtherPublicKey { derived, stated }),
            _ => Ok(vec![(secret, derived)]),
        }
    }
}

/// What a keystore held.
#[cfg(feature = "decrypt")]
pub struct Opened {
    /// Its secret keys.
    pub keys: Vec<(Secret, PublicKey)>,
    /// How its wallet had read the password.
    pub form: Form,
}

/// Of a password that wallets read in several ways: that all of them were tried.
fn tried(forms: usize) -> String {
    if forms < 2 {
        String::new()
    } else {
        format!(", for each of the {forms} ways in which wallets read this password")
    }
}

#[cfg(feature = "decrypt")]
fn key(secret: Secret) -> Result<(Secret, PublicKey), KeystoreError> {
    let key = blst::min_pk::SecretKey::from_bytes(secret.as_slice()).map_err(|_| KeystoreError::InvalidSecret)?;
    Ok((secret, Bytes(key.sk_to_pk().to_bytes())))
}

/// The accounts of a Prysm wallet (`all-accounts.keystore.json`): JSON of two lists in base64, in the same order.
#[cfg(feature = "decrypt")]
fn accounts(clear: &[u8]) -> Result<Vec<(Secret, PublicKey)>, KeystoreError> {
    #[derive(Deserialize)]
    struct Accounts {
        private_keys: Vec<Zeroizing<String>>,
        public_keys: Vec<String>,
    }

    let accounts: Accounts = serde_json::from_slice(clear).map_err(|_| KeystoreError::SecretLen(clear.len()))?;
    if accounts.private_keys.len() != accounts.public_keys.len() {
        return Err(KeystoreError::InvalidSecret);
    }
    let mut all = Vec::with_capacity(accounts.private_keys.len());
    for (private, public) in accounts.private_keys.iter().zip(&accounts.public_keys) {
        let bytes =
            Zeroizing::new(BASE64_STANDARD.decode(private.as_bytes()).map_err(|_| KeystoreError::InvalidSecret)?);
        let secret = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeystoreError::InvalidSecret)?;
        let stated = BASE64_STANDARD.decode(public).ok().and_then(|bytes| bytes.try_into().ok()).map(Bytes);
        let stated: PublicKey = stated.ok_or(KeystoreError::InvalidSecret)?;
        let (secret, derived) = key(Zeroizing::new(secret))?;
        if derived != stated {
            return Err(KeystoreError::OtherPublicKey { derived, stated });
        }
        all.push((secret, derived));
    }
    Ok(all)
}

#[cfg(feature = "decrypt")]
impl Kdf {
    fn derive(&self, password: &str) -> Result<Zeroizing<[u8; 32]>, KeystoreError> {
        let mut key = Zeroizing::new([0; 32]);
        match self {
            Self::Scrypt { log_n, r, p, salt } => {
                let params = scrypt::Params::new(*log_n, *r, *p).map_err(|_| KeystoreError::DerivedKeyLen(32))?;
                scrypt::scrypt(password.as_bytes(), salt, &params, key.as_mut_slice())
                    .map_err(|_| KeystoreError::DerivedKeyLen(32))?;
            }
            Self::Pbkdf2 { rounds, salt } => {
                pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, *rounds, key.as_mut_slice());
            }
        }
        Ok(key)
    }
}

// The file. Unknown fields are allowed, as the EIP's schema allows them.

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

#[derive(Deserialize)]
struct File {
    crypto: Crypto,
    pubkey: Option<Hex<48>>,
}

#[derive(Deserialize)]
struct Crypto {
    kdf: KdfModule,
    checksum: ChecksumModule,
    cipher: CipherModule,
}

#[derive(Deserialize)]
#[serde(tag = "function", content = "params", rename_all = "lowercase")]
enum KdfModule {
    Scrypt { dklen: u64, n: u64, p: u32, r: u32, salt: HexVec },
    Pbkdf2 { dklen: u64, c: u32, prf: Prf, salt: HexVec },
}

#[derive(Deserialize)]
enum Prf {
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
}

#[derive(Deserialize)]
struct ChecksumModule {
    #[serde(rename = "function")]
    _function: ChecksumFunction,
    message: Hex<32>,
}

#[derive(Deserialize)]
enum ChecksumFunction {
    #[serde(rename = "sha256")]
    Sha256,
}

#[derive(Deserialize)]
struct CipherModule {
    #[serde(rename = "function")]
    _function: CipherFunction,
    params: CipherParams,
    message: HexVec,
}

#[derive(Deserialize)]
enum CipherFunction {
    #[serde(rename = "aes-128-ctr")]
    Aes128Ctr,
}

#[derive(Deserialize)]
struct CipherParams {
    iv: Hex<16>,
}

impl KdfModule {
    fn check(self) -> Result<Kdf, KeystoreError> {
        let (Self::Scrypt { dklen, .. } | Self::Pbkdf2 { dklen, .. }) = self;
        if dklen != 32 {
            return Err(KeystoreError::DerivedKeyLen(dklen));
        }
        match self {
            Self::Scrypt { n, p, r, salt, .. } => {
                let error = KeystoreError::Scrypt { n, r, p };
                let memory = n.checked_mul(u64::from(r)).and_then(|m| m.checked_mul(128));
                let allowed = n.is_power_of_two() && n > 1 && memory.is_some_and(|m| m <= MAX_SCRYPT_MEMORY) && p <= 16;
                let Some(log_n) = u8::try_from(n.trailing_zeros()).ok().filter(|_| allowed) else {
                    return Err(error);
                };
                // RFC 7914, section 2: N < 2^(128·r/8), and p at most (2^32 - 1)·32 / (128·r).
                let right = r > 0
                    && p > 0
                    && u32::from(log_n) < r.saturating_mul(16)
                    && r.checked_mul(p).is_some_and(|rp| rp < 1 << 30);
                if right { Ok(Kdf::Scrypt { log_n, r, p, salt: salt.0 }) } else { Err(error) }
            }
            Self::Pbkdf2 { c, prf: Prf::HmacSha256, salt, .. } => {
                if c == 0 || c > MAX_PBKDF2_ROUNDS {
                    return Err(KeystoreError::Pbkdf2(c));
                }
                Ok(Kdf::Pbkdf2 { rounds: c, salt: salt.0 })
            }
        }
    }
}

/// Hex of exactly `N` bytes, with or without `0x`.
struct Hex<const N: usize>([u8; N]);

/// Hex of any length, with or without `0x`.
struct HexVec(Vec<u8>);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = HexVec::deserialize(deserializer)?.0;
        let len = bytes.len();
        bytes.try_into().map(Self).map_err(|_| de::Error::custom(Expected { len, expected: N }))
    }
}

struct Expected {
    len: usize,
    expected: usize,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hex of {} bytes where {} belong", self.len, self.expected)
    }
}

impl<'de> Deserialize<'de> for HexVec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        const_hex::decode(text.as_ref())
            .map(Self)
            .map_err(|e| de::Error::custom(format_args!("{} characters that are no hex: {e}", text.len())))
    }
}
