//! The only place that knows `serde_cbor` (RUSTSEC-2021-0127: unmaintained; see docs/ARCHITECTURE.md), so it can be
//! exchanged here.
//!
//! [`decode`] re-encodes what it read and compares: no second encoding, no duplicate or unknown field, no trailing byte
//! and no indefinite length gets through, whatever the library would allow.

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::bytes::BoundedBytes;

/// How structs and variants are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By the numbers of their fields: frames, where every byte counts.
    Numbered,
    /// By the names of their fields: what people keep and other programs read.
    Named,
}

/// Appends the one encoding of a value.
pub fn encode<T: Serialize>(value: &T, form: Form, out: impl std::io::Write) -> bool {
    let mut serializer = serde_cbor::Serializer::new(serde_cbor::ser::IoWrite::new(out));
    if form == Form::Numbered {
        serializer = serializer.packed_format();
    }
    value.serialize(&mut serializer).is_ok()
}

/// The value of which `bytes` are the one encoding.
pub fn decode<T: DeserializeOwned + Serialize>(bytes: &[u8], form: Form) -> Option<T> {
    let value: T = serde_cbor::from_slice(bytes).ok()?;
    is_encoding_of(bytes, &value, form).then_some(value)
}

/// Any encoding of a value, for a caller that looks at it before it asks [`is_encoding_of`].
pub(crate) fn decode_loosely<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_cbor::from_slice(bytes).ok()
}

/// Whether `bytes` are the one encoding of `value`.
pub(crate) fn is_encoding_of<T: Serialize>(bytes: &[u8], value: &T, form: Form) -> bool {
    let mut again = Comparer { expected: bytes };
    encode(value, form, &mut again) && again.expected.is_empty()
}

/// The payload of a COSE_Sign1 whose maker is trusted: the NSM's own documents, inside the enclave. Checks nothing.
pub fn cose_payload(document: &[u8]) -> Option<Vec<u8>> {
    type Bytes = BoundedBytes<0, { 64 * 1024 }>;
    let (_, _, payload, _): (Bytes, IgnoredAny, Bytes, Bytes) = serde_cbor::from_slice(document).ok()?;
    Some(payload.into_vec())
}

/// Takes what is written and compares it with what is expected, without keeping any of it.
struct Comparer<'a> {
    expected: &'a [u8],
}

impl std::io::Write for Comparer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.expected.strip_prefix(bytes) {
            Some(rest) => {
                self.expected = rest;
                Ok(bytes.len())
            }
            None => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
