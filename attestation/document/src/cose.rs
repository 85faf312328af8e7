//! COSE_Sign1 (RFC 9052, section 4.2), in the one form that Nitro writes.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use minicbor::Decoder;
use minicbor::data::Type;

use crate::Error;
use crate::error::hex;
use crate::limits::{MAX_DOCUMENT_LEN, MAX_PAYLOAD_LEN, SIGNATURE_LEN};

/// `{1: -35}`: the algorithm is ES384. Compared as bytes, so that no second reading is possible.
const PROTECTED: &[u8] = &[0xa1, 0x01, 0x38, 0x22];
const TAG: u64 = 18;
const PART: &str = "envelope";

/// The parts of an envelope; its headers are fixed.
pub(crate) struct CoseSign1<'a> {
    pub(crate) payload: &'a [u8],
    signature: &'a [u8; SIGNATURE_LEN],
}

impl<'a> CoseSign1<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.is_empty() || bytes.len() > MAX_DOCUMENT_LEN {
            return Err(Error::DocumentSize { len: bytes.len() });
        }
        let mut cbor = Reader::new(bytes, PART);
        if cbor.peek() == Some(Type::Tag) {
            let found = cbor.decode("a tag", Decoder::tag)?.as_u64();
            if found != TAG {
                return Err(Error::Tag { found });
            }
        }
        let items = cbor.decode("an array of 4 items", Decoder::array)?;
        match items {
            Some(4) => {}
            Some(found) => return Err(Error::CoseItems { found }),
            None => return Err(cbor.malformed(0, "an array of definite length")),
        }
        let protected = cbor.bytes("the protected header")?;
        if protected != PROTECTED {
            return Err(Error::Algorithm { found: hex(protected) });
        }
        let unprotected = |found: &str| Error::UnprotectedHeader { found: found.to_owned() };
        match cbor.peek() {
            Some(Type::Map | Type::MapIndef) => {}
            Some(Type::Null) => return Err(unprotected("null")),
            _ => return Err(unprotected("of another type")),
        }
        match cbor.decode("a map", Decoder::map)? {
            Some(0) => {}
            None if !cbor.more(None, 0) => {}
            Some(found) => return Err(unprotected(&format!("a map of {found} entries"))),
            None => return Err(unprotected("a map with entries")),
        }
        let payload = cbor.bytes("the payload")?;
        if payload.is_empty() || payload.len() > MAX_PAYLOAD_LEN {
            return Err(Error::PayloadSize { found: payload.len() });
        }
        let signature = cbor.bytes("the signature")?;
        let signature = signature.try_into().map_err(|_| Error::SignatureLength { found: signature.len() })?;
        cbor.finish()?;
        Ok(Self { payload, signature })
    }

    /// Checks the signature with a P-384 key: an uncompressed point of 97 bytes.
    pub(crate) fn verify(&self, point: &[u8]) -> Result<(), Error> {
        let message = sig_structure(self.payload);
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
            .verify(&message, self.signature)
            .map_err(|_| Error::Signature)
    }
}

/// What is signed: `["Signature1", protected, h'', payload]`.
fn sig_structure(payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(payload.len().saturating_add(24));
    message.extend_from_slice(&[0x84, 0x6a]);
    message.extend_from_slice(b"Signature1");
    message.push(0x44);
    message.extend_from_slice(PROTECTED);
    message.push(0x40);
    // The head of a byte string in its shortest form; a payload is shorter than 64 KiB.
    match u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes() {
        [0, len @ 0..=23] => message.push(0x40 | len),
        [0, len] => message.extend_from_slice(&[0x58, len]),
        [high, low] => message.extend_from_slice(&[0x59, high, low]),
    }
    message.extend_from_slice(payload);
    message
}

/// The byte that ends an item of indefinite length.
fn end(d: &mut Decoder<'_>) -> Result<(), minicbor::decode::Error> {
    match d.datatype()? {
        Type::Break => {
            d.set_position(d.position().saturating_add(1));
            Ok(())
        }
        _ => Err(minicbor::decode::Error::message("no end")),
    }
}

/// A pull decoder whose errors say where they are. It never recurses and never reserves memory.
pub(crate) struct Reader<'a> {
    decoder: Decoder<'a>,
    part: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], part: &'static str) -> Self {
        Self { decoder: Decoder::new(bytes), part }
    }

    /// The type of the next item; `None` at the end.
    pub(crate) fn peek(&self) -> Option<Type> {
        self.decoder.datatype().ok()
    }

    pub(crate) fn position(&self) -> usize {
        self.decoder.position()
    }

    pub(crate) fn malformed(&self, at: usize, expected: &'static str) -> Error {
        Error::Cbor { part: self.part, at, expected }
    }

    pub(crate) fn decode<T>(
        &mut self,
        expected: &'static str,
        read: impl FnOnce(&mut Decoder<'a>) -> Result<T, minicbor::decode::Error>,
    ) -> Result<T, Error> {
        let at = self.position();
        read(&mut self.decoder).map_err(|_| Error::Cbor { part: self.part, at, expected })
    }

    /// A byte string in one piece.
    pub(crate) fn bytes(&mut self, expected: &'static str) -> Result<&'a [u8], Error> {
        self.decode(expected, Decoder::bytes)
    }

    /// Whether another item of a map or array follows, of which `seen` have been read. `claimed` is its length, where it
    /// has one; its end byte is taken where it has none.
    pub(crate) fn more(&mut self, claimed: Option<u64>, seen: u64) -> bool {
        match claimed {
            Some(len) => seen < len,
            None => end(&mut self.decoder).is_err(),
        }
    }

    /// Nothing may follow.
    pub(crate) fn finish(self) -> Result<(), Error> {
        match self.decoder.input().len().saturating_sub(self.position()) {
            0 => Ok(()),
            count => Err(Error::TrailingBytes { part: self.part, count }),
        }
    }
}
