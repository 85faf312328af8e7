//! Everything that can be wrong with a document, one sentence each.

use std::fmt;
use std::time::Duration;

use crate::limits::{MAX_DOCUMENT_LEN, MAX_PAYLOAD_LEN, PCR_LEN, SIGNATURE_LEN};
use crate::{TOLERANCE_MS, Timestamp};

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum Error {
    // The envelope.
    #[error("the document is {len} bytes long; 1 to {MAX_DOCUMENT_LEN} are allowed")]
    DocumentSize { len: usize },
    #[error("malformed CBOR in the {part} at byte {at}: {expected} belongs there")]
    Cbor { part: &'static str, at: usize, expected: &'static str },
    #[error("{count} byte(s) follow behind the {part}")]
    TrailingBytes { part: &'static str, count: usize },
    #[error("the document carries CBOR tag {found}; only 18 (COSE_Sign1) or none is allowed")]
    Tag { found: u64 },
    #[error("the document is an array of {found} items; a COSE_Sign1 has 4")]
    CoseItems { found: u64 },
    #[error("the protected header is {found}, not a1013822: the algorithm must be ES384 and nothing else be there")]
    Algorithm { found: String },
    #[error("the unprotected header is {found}; it must be an empty map")]
    UnprotectedHeader { found: String },
    #[error("the signature is {found} bytes long, not {SIGNATURE_LEN}")]
    SignatureLength { found: usize },
    #[error("the payload is {found} bytes long; 1 to {MAX_PAYLOAD_LEN} are allowed")]
    PayloadSize { found: usize },

    // The fields.
    #[error("this is a NitroTPM document (field nitrotpm_pcrs), not an enclave's")]
    NitroTpm,
    #[error("the field {field} is missing")]
    Missing { field: Field },
    #[error("the field {field} is null")]
    Null { field: Field },
    #[error("the field {field} occurs twice")]
    Duplicate { field: Field },
    #[error("unknown field {name:?}")]
    Unknown { name: String },
    #[error("the field {field} is not {expected}")]
    FieldType { field: Field, expected: &'static str },
    #[error("the field {field} is {len} bytes long; {min} to {max} are allowed")]
    FieldSize { field: Field, len: usize, min: usize, max: usize },
    #[error("module_id has a character that is not printable ASCII")]
    ModuleId,
    #[error("the digest is {found:?}, not \"SHA384\"")]
    Digest { found: String },
    #[error("the timestamp is 0")]
    TimestampZero,
    #[error("there are {found} PCRs; 1 to {max} are allowed")]
    PcrCount { found: u64, max: u64 },
    #[error("PCR index {found} is above {max}")]
    PcrIndex { found: u64, max: u8 },
    #[error("PCR{index} occurs twice")]
    PcrDuplicate { index: u8 },
    #[error("PCR{index} is {found} bytes long, not {PCR_LEN}")]
    PcrLength { index: u8, found: usize },
    #[error("cabundle has {found} certificates; 1 to {max} are allowed")]
    Bundle { found: u64, max: u64 },

    // The chain.
    #[error("the {place} is malformed: {problem}")]
    Certificate { place: CertPosition, problem: String },
    #[error("the chain starts at another root: SHA-256 {found}, the pinned root has {pinned}")]
    Root { found: String, pinned: String },
    #[error("the certificates are out of order: the {place} names as issuer ({issuer}), above it stands ({above})")]
    Order { place: CertPosition, issuer: String, above: String },
    #[error("the {place} is signed with algorithm {found}, not ecdsa-with-SHA384")]
    SignatureAlgorithm { place: CertPosition, found: String },
    #[error("the {place} has a key of algorithm {found}, not P-384")]
    KeyAlgorithm { place: CertPosition, found: String },
    #[error("the {place} is no authority (basicConstraints: cA is not set)")]
    NotAnAuthority { place: CertPosition },
    #[error("the leaf certificate is an authority (basicConstraints: cA is set)")]
    LeafIsAuthority,
    #[error("the {place} allows {allowed} authorities below it (pathLenConstraint), {found} are there")]
    PathLength { place: CertPosition, allowed: u8, found: usize },
    #[error("the {place} may not be used so: its keyUsage lacks {needed}")]
    KeyUsage { place: CertPosition, needed: &'static str },
    #[error("the {place} has the critical extension {oid}, which is unknown here")]
    CriticalExtension { place: CertPosition, oid: String },
    #[error("the {place} has expired: it was valid until {not_after}, the time is {at}")]
    Expired { place: CertPosition, not_after: Timestamp, at: Timestamp },
    #[error("the {place} is not valid yet: it becomes valid at {not_before}, the time is {at}")]
    NotYetValid { place: CertPosition, not_before: Timestamp, at: Timestamp },
    #[error("the chain does not hold: {problem}")]
    Path { problem: String },
    #[error("the signature is not the leaf certificate's over this document")]
    Signature,

    // The expectations.
    #[error(
        "the document was made at {timestamp}, {}.{:03} s in the future; {} s are allowed",
        ahead.as_secs(), ahead.subsec_millis(), TOLERANCE_MS / 1000
    )]
    Future { timestamp: Timestamp, ahead: Duration },
    #[error("the document is {}.{:03} s old; {} s are allowed", age.as_secs(), age.subsec_millis(), max.as_secs())]
    TooOld { age: Duration, max: Duration },
    #[error("the document has no nonce; {expected} was expected")]
    NonceAbsent { expected: String },
    #[error("the nonce is {found}; {expected} was expected")]
    NonceDiffers { expected: String, found: String },
    #[error("the document has no user_data; {expected} was expected")]
    UserDataAbsent { expected: String },
    #[error("user_data is {found}; {expected} was expected")]
    UserDataDiffers { expected: String, found: String },
    #[error(
        "nothing was expected of {}: a document that nothing is compared with proves nothing{}",
        Pcrs(missing), if *debug { " (of an enclave in debug mode, expect zeros)" } else { "" }
    )]
    NothingExpected { missing: Vec<u8>, debug: bool },
    #[error("PCR{index} was expected, but the document does not have it")]
    PcrAbsent { index: u8 },
    #[error("PCR{index} is all zero: it measures nothing")]
    PcrZero { index: u8 },
    #[error("PCR{index} is {found}; {expected} was expected")]
    PcrDiffers { index: u8, expected: String, found: String },
    #[error("this enclave runs in debug mode: PCR0, PCR1 and PCR2 are all zero, and its parent can read its memory")]
    Debug,
}

/// A field of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "named as in the document")]
pub enum Field {
    ModuleId,
    Digest,
    Timestamp,
    Pcrs,
    Certificate,
    Cabundle,
    PublicKey,
    UserData,
    Nonce,
}

impl Field {
    pub(crate) const ALL: [Self; 9] = [
        Self::ModuleId,
        Self::Digest,
        Self::Timestamp,
        Self::Pcrs,
        Self::Certificate,
        Self::Cabundle,
        Self::PublicKey,
        Self::UserData,
        Self::Nonce,
    ];

    /// Its key in the document.
    pub fn name(self) -> &'static str {
        match self {
            Self::ModuleId => "module_id",
            Self::Digest => "digest",
            Self::Timestamp => "timestamp",
            Self::Pcrs => "pcrs",
            Self::Certificate => "certificate",
            Self::Cabundle => "cabundle",
            Self::PublicKey => "public_key",
            Self::UserData => "user_data",
            Self::Nonce => "nonce",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which certificate of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertPosition {
    /// The trust anchor.
    Root,
    /// One of the bundle, by its index there; the root has index 0.
    Intermediate(usize),
    /// The certificate whose key signs documents.
    Leaf,
}

impl fmt::Display for CertPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root certificate"),
            Self::Intermediate(index) => write!(f, "intermediate certificate (cabundle[{index}])"),
            Self::Leaf => f.write_str("leaf certificate"),
        }
    }
}

struct Pcrs<'a>(&'a [u8]);

impl fmt::Display for Pcrs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, index) in self.0.iter().enumerate() {
            let comma = match number {
                0 => "",
                _ if number.saturating_add(1) == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{comma}PCR{index}")?;
        }
        Ok(())
    }
}

/// Bytes in hex, for a sentence: what is long is cut off, because it may be the sender's own.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let shown = bytes.get(..64).unwrap_or(bytes);
    let mut text: String = shown.iter().map(|b| format!("{b:02x}")).collect();
    if shown.is_empty() {
        text.push_str("empty");
    }
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}

/// Text for a sentence: cut off likewise, and nothing in it but printable ASCII.
pub(crate) fn shown(text: &str, max: usize) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c.to_string() } else { c.escape_unicode().to_string() };
    text.chars().take(max).map(plain).collect()
}
