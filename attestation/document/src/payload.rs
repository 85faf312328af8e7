//! The payload: one CBOR map with exactly the fields of an attestation document.

use std::collections::BTreeMap;

use minicbor::data::Type;

use crate::cose::Reader;
use crate::error::shown;
use crate::{Error, Field, MAX_CERTIFICATE_LEN, Timestamp};

/// Bytes of a PCR: the digest is SHA-384.
pub const PCR_LEN: usize = 48;
/// A PCR's value.
pub type Pcr = [u8; PCR_LEN];
/// Most PCRs of a document; indices end one below.
pub const MAX_PCRS: u8 = 32;
/// Most certificates in the bundle: the root, and as many below it as rustls-webpki follows.
pub const MAX_BUNDLE_LEN: u64 = 7;
/// Longest module id, in bytes; real ones have about 40.
pub const MAX_MODULE_ID_LEN: usize = 128;
/// Longest public key, in bytes (`NSM_PUBLIC_KEY_MAX_SIZE`).
pub const MAX_PUBLIC_KEY_LEN: usize = 1024;
/// Longest user data, in bytes (`NSM_USER_DATA_MAX_SIZE`).
pub const MAX_USER_DATA_LEN: usize = 512;
/// Longest nonce, in bytes (`NSM_NONCE_MAX_SIZE`).
pub const MAX_NONCE_LEN: usize = 512;

const PART: &str = "payload";

/// The fields, valid each by itself.
pub(crate) struct Payload<'a> {
    pub(crate) module_id: &'a str,
    pub(crate) timestamp: Timestamp,
    pub(crate) pcrs: BTreeMap<u8, &'a Pcr>,
    pub(crate) certificate: &'a [u8],
    pub(crate) cabundle: Vec<&'a [u8]>,
    pub(crate) public_key: Option<&'a [u8]>,
    pub(crate) user_data: Option<&'a [u8]>,
    pub(crate) nonce: Option<&'a [u8]>,
}

/// What has been read so far; the outer `Option` says whether the field was there at all.
#[derive(Default)]
struct Fields<'a> {
    module_id: Option<&'a str>,
    digest: Option<()>,
    timestamp: Option<Timestamp>,
    pcrs: Option<BTreeMap<u8, &'a Pcr>>,
    certificate: Option<&'a [u8]>,
    cabundle: Option<Vec<&'a [u8]>>,
    public_key: Option<Option<&'a [u8]>>,
    user_data: Option<Option<&'a [u8]>>,
    nonce: Option<Option<&'a [u8]>>,
}

impl<'a> Payload<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut cbor = Reader::new(bytes, PART);
        let mut fields = Fields::default();
        let claimed = cbor.decode("a map", |d| d.map())?;
        let mut seen = 0;
        while cbor.more(claimed, seen) {
            seen = seen.saturating_add(1);
            let name = cbor.decode("the name of a field", |d| d.str())?;
            match Field::ALL.into_iter().find(|field| field.name() == name) {
                Some(field) => fields.read(field, &mut cbor)?,
                None if name == "nitrotpm_pcrs" => return Err(Error::NitroTpm),
                None => return Err(Error::Unknown { name: shown(name) }),
            }
        }
        cbor.finish()?;
        fields.complete()
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self, field: Field, cbor: &mut Reader<'a>) -> Result<(), Error> {
        let duplicate = Err(Error::Duplicate { field });
        match field {
            Field::ModuleId if self.module_id.is_some() => duplicate,
            Field::ModuleId => set(&mut self.module_id, module_id(cbor)?),
            Field::Digest if self.digest.is_some() => duplicate,
            Field::Digest => set(&mut self.digest, digest(cbor)?),
            Field::Timestamp if self.timestamp.is_some() => duplicate,
            Field::Timestamp => set(&mut self.timestamp, timestamp(cbor)?),
            Field::Pcrs if self.pcrs.is_some() => duplicate,
            Field::Pcrs => set(&mut self.pcrs, pcrs(cbor)?),
            Field::Certificate if self.certificate.is_some() => duplicate,
            Field::Certificate => set(&mut self.certificate, bytes(cbor, field, 1, MAX_CERTIFICATE_LEN)?),
            Field::Cabundle if self.cabundle.is_some() => duplicate,
            Field::Cabundle => set(&mut self.cabundle, cabundle(cbor)?),
            Field::PublicKey if self.public_key.is_some() => duplicate,
            Field::PublicKey => set(&mut self.public_key, optional(cbor, field, 1, MAX_PUBLIC_KEY_LEN)?),
            Field::UserData if self.user_data.is_some() => duplicate,
            Field::UserData => set(&mut self.user_data, optional(cbor, field, 0, MAX_USER_DATA_LEN)?),
            Field::Nonce if self.nonce.is_some() => duplicate,
            Field::Nonce => set(&mut self.nonce, optional(cbor, field, 0, MAX_NONCE_LEN)?),
        }
    }

    fn complete(self) -> Result<Payload<'a>, Error> {
        let missing = |field| Error::Missing { field };
        self.digest.ok_or(missing(Field::Digest))?;
        Ok(Payload {
            module_id: self.module_id.ok_or(missing(Field::ModuleId))?,
            timestamp: self.timestamp.ok_or(missing(Field::Timestamp))?,
            pcrs: self.pcrs.ok_or(missing(Field::Pcrs))?,
            certificate: self.certificate.ok_or(missing(Field::Certificate))?,
            cabundle: self.cabundle.ok_or(missing(Field::Cabundle))?,
            // These three may be left out, and real documents have them as null.
            public_key: self.public_key.flatten(),
            user_data: self.user_data.flatten(),
            nonce: self.nonce.flatten(),
        })
    }
}

#[allow(clippy::unnecessary_wraps, reason = "an arm of the match above")]
fn set<T>(field: &mut Option<T>, value: T) -> Result<(), Error> {
    *field = Some(value);
    Ok(())
}

/// Refuses what is null or of another type before it is read.
fn expect(cbor: &Reader<'_>, field: Field, expected: &'static str, types: &[Type]) -> Result<(), Error> {
    match cbor.peek() {
        Some(Type::Null) => Err(Error::Null { field }),
        Some(found) if types.contains(&found) => Ok(()),
        Some(_) => Err(Error::FieldType { field, expected }),
        None => Err(cbor.malformed(cbor.position(), expected)),
    }
}

fn size(field: Field, len: usize, min: usize, max: usize) -> Result<(), Error> {
    if (min..=max).contains(&len) { Ok(()) } else { Err(Error::FieldSize { field, len, min, max }) }
}

fn bytes<'a>(cbor: &mut Reader<'a>, field: Field, min: usize, max: usize) -> Result<&'a [u8], Error> {
    expect(cbor, field, "a byte string", &[Type::Bytes])?;
    let bytes = cbor.bytes("a byte string")?;
    size(field, bytes.len(), min, max)?;
    Ok(bytes)
}

fn optional<'a>(cbor: &mut Reader<'a>, field: Field, min: usize, max: usize) -> Result<Option<&'a [u8]>, Error> {
    if cbor.peek() == Some(Type::Null) {
        return cbor.decode("null", |d| d.null()).map(|()| None);
    }
    bytes(cbor, field, min, max).map(Some)
}

fn text<'a>(cbor: &mut Reader<'a>, field: Field) -> Result<&'a str, Error> {
    expect(cbor, field, "a text", &[Type::String])?;
    cbor.decode("a text", |d| d.str())
}

fn module_id<'a>(cbor: &mut Reader<'a>) -> Result<&'a str, Error> {
    let id = text(cbor, Field::ModuleId)?;
    size(Field::ModuleId, id.len(), 1, MAX_MODULE_ID_LEN)?;
    // It is shown on terminals.
    if id.bytes().all(|b| b.is_ascii_graphic()) { Ok(id) } else { Err(Error::ModuleId) }
}

fn digest(cbor: &mut Reader<'_>) -> Result<(), Error> {
    match text(cbor, Field::Digest)? {
        "SHA384" => Ok(()),
        other => Err(Error::Digest { found: shown(other) }),
    }
}

fn timestamp(cbor: &mut Reader<'_>) -> Result<Timestamp, Error> {
    let integers = [Type::U8, Type::U16, Type::U32, Type::U64];
    expect(cbor, Field::Timestamp, "an unsigned integer", &integers)?;
    match cbor.decode("an unsigned integer", |d| d.u64())? {
        0 => Err(Error::TimestampZero),
        ms => Ok(Timestamp(ms)),
    }
}

fn pcrs<'a>(cbor: &mut Reader<'a>) -> Result<BTreeMap<u8, &'a Pcr>, Error> {
    expect(cbor, Field::Pcrs, "a map", &[Type::Map, Type::MapIndef])?;
    let max = u64::from(MAX_PCRS);
    let claimed = cbor.decode("a map", |d| d.map())?;
    if let Some(found) = claimed.filter(|n| !(1..=max).contains(n)) {
        return Err(Error::PcrCount { found, max });
    }
    let mut pcrs = BTreeMap::new();
    let mut seen = 0;
    while cbor.more(claimed, seen) {
        seen = seen.saturating_add(1);
        let found = cbor.decode("a PCR's index", |d| d.u64())?;
        let index = u8::try_from(found).ok().filter(|i| *i < MAX_PCRS);
        let index = index.ok_or(Error::PcrIndex { found, max: MAX_PCRS.saturating_sub(1) })?;
        let value = cbor.bytes("a PCR's value")?;
        let value = value.try_into().map_err(|_| Error::PcrLength { index, found: value.len() })?;
        // Indices are below 32 and occur once: a map of indefinite length ends too.
        if pcrs.insert(index, value).is_some() {
            return Err(Error::PcrDuplicate { index });
        }
    }
    if pcrs.is_empty() { Err(Error::PcrCount { found: 0, max }) } else { Ok(pcrs) }
}

fn cabundle<'a>(cbor: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, Error> {
    expect(cbor, Field::Cabundle, "an array", &[Type::Array, Type::ArrayIndef])?;
    let max = MAX_BUNDLE_LEN;
    let claimed = cbor.decode("an array", |d| d.array())?;
    if let Some(found) = claimed.filter(|n| !(1..=max).contains(n)) {
        return Err(Error::Bundle { found, max });
    }
    let mut bundle = Vec::new();
    let mut seen = 0;
    while cbor.more(claimed, seen) {
        seen = seen.saturating_add(1);
        if seen > max {
            return Err(Error::Bundle { found: seen, max });
        }
        bundle.push(bytes(cbor, Field::Cabundle, 1, MAX_CERTIFICATE_LEN)?);
    }
    if bundle.is_empty() { Err(Error::Bundle { found: 0, max }) } else { Ok(bundle) }
}
