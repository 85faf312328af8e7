//! Reads values from CBOR (RFC 8949): the forms that our own types are written in, and no others.
//!
//! `serde_cbor`'s reader is compiled once for each type, variant and set of field names, over 2,000 lines of code each time: for the words
//! of this crate that was three quarters of its build. This one has a few lines for each. It need not judge what it reads:
//! [`super::decode`] writes the value again, through the library, and compares. Tests hold both readers against each other.
//!
//! Bounded: nothing is copied or reserved here, and nesting ends at [`MAX_DEPTH`].

use std::fmt;

use serde::de::{DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor};
use serde::{Deserializer, de};

/// Deepest nesting that is read. Our own types have less than half of it.
const MAX_DEPTH: u8 = 32;

/// What was read is not such a value. Who sent it learns no more.
#[derive(Debug)]
pub(super) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed CBOR")
    }
}

impl std::error::Error for Malformed {}

impl Error for Malformed {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }

    // The texts that the trait would compose are thrown away: they are not composed.
    fn invalid_type(_: Unexpected<'_>, _: &dyn de::Expected) -> Self {
        Self
    }

    fn invalid_value(_: Unexpected<'_>, _: &dyn de::Expected) -> Self {
        Self
    }

    fn invalid_length(_: usize, _: &dyn de::Expected) -> Self {
        Self
    }

    fn unknown_variant(_: &str, _: &'static [&'static str]) -> Self {
        Self
    }

    fn unknown_field(_: &str, _: &'static [&'static str]) -> Self {
        Self
    }

    fn missing_field(_: &'static str) -> Self {
        Self
    }

    fn duplicate_field(_: &'static str) -> Self {
        Self
    }
}

type Result<T> = std::result::Result<T, Malformed>;

/// The first byte of an item and its argument (RFC 8949, section 3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    Unsigned(u64),
    Negative(u64),
    Bytes(u64),
    Text(u64),
    Array(u64),
    Map(u64),
    Bool(bool),
    Null,
}

/// Reads the items of a slice one after another.
pub(super) struct Reader<'de> {
    rest: &'de [u8],
    depth: u8,
}

impl<'de> Reader<'de> {
    pub(super) fn new(bytes: &'de [u8]) -> Self {
        Self { rest: bytes, depth: MAX_DEPTH }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: u64) -> Result<&'de [u8]> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<u64> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn head(&mut self) -> Result<Head> {
        let (first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        let (major, low) = (first >> 5, first & 0x1f);
        if major == 7 {
            return match low {
                20 => Ok(Head::Bool(false)),
                21 => Ok(Head::Bool(true)),
                22 => Ok(Head::Null),
                _ => Err(Malformed),
            };
        }
        let argument = match low {
            0..=23 => u64::from(low),
            24 => self.number::<1>()?,
            25 => self.number::<2>()?,
            26 => self.number::<4>()?,
            27 => self.number::<8>()?,
            _ => return Err(Malformed),
        };
        match major {
            0 => Ok(Head::Unsigned(argument)),
            1 => Ok(Head::Negative(argument)),
            2 => Ok(Head::Bytes(argument)),
            3 => Ok(Head::Text(argument)),
            4 => Ok(Head::Array(argument)),
            5 => Ok(Head::Map(argument)),
            _ => Err(Malformed),
        }
    }

    fn peek(&self) -> Result<Head> {
        Reader { rest: self.rest, depth: self.depth }.head()
    }

    fn text(&mut self, length: u64) -> Result<&'de str> {
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed)
    }

    /// What is nested, and nothing left over of it.
    fn nested<T>(&mut self, items: u64, read: impl FnOnce(&mut Items<'_, 'de>) -> Result<T>) -> Result<T> {
        self.depth = self.depth.checked_sub(1).ok_or(Malformed)?;
        let mut items = Items { reader: self, left: items };
        let value = read(&mut items)?;
        if items.left > 0 {
            return Err(Malformed);
        }
        self.depth = self.depth.saturating_add(1);
        Ok(value)
    }
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Malformed;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.head()? {
            Head::Unsigned(number) => visitor.visit_u64(number),
            Head::Negative(number) => visitor.visit_i64(
                i64::try_from(number)
                    .map_err(|_| Malformed)?
                    .checked_neg()
                    .and_then(|n| n.checked_sub(1))
                    .ok_or(Malformed)?,
            ),
            Head::Bytes(length) => visitor.visit_borrowed_bytes(self.take(length)?),
            Head::Text(length) => visitor.visit_borrowed_str(self.text(length)?),
            Head::Array(items) => self.nested(items, |items| visitor.visit_seq(items)),
            Head::Map(pairs) => self.nested(pairs, |pairs| visitor.visit_map(pairs)),
            Head::Bool(value) => visitor.visit_bool(value),
            Head::Null => visitor.visit_unit(),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let Head::Unsigned(number) = self.head()? else { return Err(Malformed) };
        visitor.visit_u64(number)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let Head::Bytes(length) = self.head()? else { return Err(Malformed) };
        visitor.visit_borrowed_bytes(self.take(length)?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let Head::Text(length) = self.head()? else { return Err(Malformed) };
        visitor.visit_borrowed_str(self.text(length)?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    /// A field or a variant: its number or its name.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.head()? {
            Head::Unsigned(number) => visitor.visit_u64(number),
            Head::Text(length) => visitor.visit_borrowed_str(self.text(length)?),
            _ => Err(Malformed),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if self.peek()? == Head::Null {
            self.head()?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let Head::Array(items) = self.head()? else { return Err(Malformed) };
        self.nested(items, |items| visitor.visit_seq(items))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, _: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let Head::Map(pairs) = self.head()? else { return Err(Malformed) };
        self.nested(pairs, |pairs| visitor.visit_map(pairs))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_map(visitor)
    }

    /// A variant without content is its number or name; with content, a map of one.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        match self.peek()? {
            Head::Unsigned(_) | Head::Text(_) => visitor.visit_enum(Variant { reader: self, has_content: false }),
            Head::Map(1) => {
                self.head()?;
                self.nested(0, |items| visitor.visit_enum(Variant { reader: &mut *items.reader, has_content: true }))
            }
            _ => Err(Malformed),
        }
    }

    serde::forward_to_deserialize_any! { bool i8 i16 i32 i64 i128 u128 f32 f64 char unit unit_struct ignored_any }
}

/// The items of an array, or the pairs of a map.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: u64,
}

impl Items<'_, '_> {
    /// Whether one more is there.
    fn begin_next(&mut self) -> bool {
        let next = self.left.checked_sub(1);
        self.left = next.unwrap_or(0);
        next.is_some()
    }

    /// A hint: never more than there are bytes.
    fn most(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX).min(self.reader.rest.len())
    }
}

impl<'de> SeqAccess<'de> for &mut Items<'_, 'de> {
    type Error = Malformed;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        if self.begin_next() { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.most())
    }
}

impl<'de> MapAccess<'de> for &mut Items<'_, 'de> {
    type Error = Malformed;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        if self.begin_next() { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.most())
    }
}

struct Variant<'a, 'de> {
    reader: &'a mut Reader<'de>,
    has_content: bool,
}

impl<'a, 'de> Variant<'a, 'de> {
    fn content(self) -> Result<&'a mut Reader<'de>> {
        if self.has_content { Ok(self.reader) } else { Err(Malformed) }
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Malformed;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self)> {
        Ok((seed.deserialize(&mut *self.reader)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Malformed;

    fn unit_variant(self) -> Result<()> {
        if self.has_content { Err(Malformed) } else { Ok(()) }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self.content()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        self.content()?.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value> {
        self.content()?.deserialize_struct("", fields, visitor)
    }
}
