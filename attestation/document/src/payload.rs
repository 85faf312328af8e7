//! The payload: one CBOR map with exactly the fields of an attestation document.

use std::collections::BTreeMap;

use minicbor::Decoder;
use minicbor::data::Type;

use crate::cose::Reader;
use crate::error::shown;
use crate::limits::{
    MAX_BUNDLE_LEN, MAX_CERTIFICATE_LEN, MAX_MODULE_ID_LEN, MAX_NONCE_LEN, MAX_PCRS, MAX_PUBLIC_KEY_LEN,
    MAX_USER_DATA_LEN, PCR_LEN,
};
use crate::{Error, Field, Timestamp};

/// A PCR's value.
pub type Pcr = [u8; PCR_LEN];

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

/// What has been read so far.
#[derive(Default)]
struct Fields<'a> {
    /// Those that were there, null or not.
    seen: Vec<Field>,
    module_id: Option<&'a str>,
    timestamp: Option<Timestamp>,
    pcrs: Option<BTreeMap<u8, &'a Pcr>>,
    certificate: Option<&'a [u8]>,
    cabundle: Option<Vec<&'a [u8]>>,
    public_key: Option<&'a [u8]>,
    user_data: Option<&'a [u8]>,
    nonce: Option<&'a [u8]>,
}

impl<'a> Payload<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut cbor = Reader::new(bytes, PART);
        let mut fields = Fields::default();
        let claimed = cbor.decode("a map", Decoder::map)?;
        let mut seen = 0;
        while cbor.more(claimed, seen) {
            seen = seen.saturating_add(1);
            let name = cbor.decode("the name of a field", Decoder::str)?;
            match Field::ALL.into_iter().find(|field| field.name() == name) {
                Some(field) => fields.read(field, &mut cbor)?,
                None if name == "nitrotpm_pcrs" => return Err(Error::NitroTpm),
                None => return Err(Error::Unknown { name: shown(name, 32) }),
            }
        }
        cbor.finish()?;
        fields.complete()
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self, field: Field, cbor: &mut Reader<'a>) -> Result<(), Error> {
        if self.seen.contains(&field) {
            return Err(Error::Duplicate { field });
        }
        self.seen.push(field);
        match field {
            Field::ModuleId => self.module_id = Some(module_id(cbor)?),
            Field::Digest => digest(cbor)?,
            Field::Timestamp => self.timestamp = Some(timestamp(cbor)?),
            Field::Pcrs => self.pcrs = Some(pcrs(cbor)?),
            Field::Certificate => self.certificate = Some(bytes(cbor, field, 1, MAX_CERTIFICATE_LEN)?),
            Field::Cabundle => self.cabundle = Some(cabundle(cbor)?),
            Field::PublicKey => self.public_key = optional(cbor, field, 1, MAX_PUBLIC_KEY_LEN)?,
            Field::UserData => self.user_data = optional(cbor, field, 0, MAX_USER_DATA_LEN)?,
            Field::Nonce => self.nonce = optional(cbor, field, 0, MAX_NONCE_LEN)?,
        }
        Ok(())
    }

    fn complete(self) -> Result<Payload<'a>, Error> {
        let missing = |field| Error::Missing { field };
        if !self.seen.contains(&Field::Digest) {
            return Err(missing(Field::Digest));
        }
        Ok(Payload {
            module_id: self.module_id.ok_or(missing(Field::ModuleId))?,
            timestamp: self.timestamp.ok_or(missing(Field::Timestamp))?,
            pcrs: self.pcrs.ok_or(missing(Field::Pcrs))?,
            certificate: self.certificate.ok_or(missing(Field::Certificate))?,
            cabundle: self.cabundle.ok_or(missing(Field::Cabundle))?,
            // These three may be left out, and real documents have them as null.
            public_key: self.public_key,
            user_data: self.user_data,
            nonce: self.nonce,
        })
    }
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
        return cbor.decode("null", Decoder::null).map(|()| None);
    }
    bytes(cbor, field, min, max).map(Some)
}

fn text<'a>(cbor: &mut Reader<'a>, field: Field) -> Result<&'a str, Error> {
    expect(cbor, field, "a text", &[Type::String])?;
    cbor.decode("a text", Decoder::str)
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
        other => Err(Error::Digest { found: shown(other, 32) }),
    }
}

fn timestamp(cbor: &mut Reader<'_>) -> Result<Timestamp, Error> {
    let integers = [Type::U8, Type::U16, Type::U32, Type::U64];
    expect(cbor, Field::Timestamp, "an unsigned integer", &integers)?;
    match cbor.decode("an unsigned integer", Decoder::u64)? {
        0 => Err(Error::TimestampZero),
        ms => Ok(Timestamp(ms)),
    }
}

fn pcrs<'a>(cbor: &mut Reader<'a>) -> Result<BTreeMap<u8, &'a Pcr>, Error> {
    expect(cbor, Field::Pcrs, "a map", &[Type::Map, Type::MapIndef])?;
    let max = u64::from(MAX_PCRS);
    let claimed = cbor.decode("a map", Decoder::map)?;
    if let Some(found) = claimed.filter(|n| !(1..=max).contains(n)) {
        return Err(Error::PcrCount { found, max });
    }
    let mut pcrs = BTreeMap::new();
    let mut seen = 0;
    while cbor.more(claimed, seen) {
        seen = seen.saturating_add(1);
        let found = cbor.decode("a PCR's index", Decoder::u64)?;
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
    let claimed = cbor.decode("an array", Decoder::array)?;
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
