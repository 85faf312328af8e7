//! The only place that knows `serde_cbor` (RUSTSEC-2021-0127: unmaintained; see docs/decisions/0003-one-encoding.md), so it can be
//! exchanged here.
//!
//! [`decode`] re-encodes what it read and compares: no second encoding, no duplicate or unknown field, no trailing byte
//! and no indefinite length gets through, whatever the library would allow.

mod reader;

use reader::Reader;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

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
    let value: T = read(bytes)?;
    is_encoding_of(bytes, &value, form).then_some(value)
}

/// Any encoding of a value, for a caller that looks at it before it asks [`is_encoding_of`].
pub(crate) fn decode_loosely<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    read(bytes)
}

/// Whether `bytes` are the one encoding of `value`.
pub(crate) fn is_encoding_of<T: Serialize>(bytes: &[u8], value: &T, form: Form) -> bool {
    let mut again = Comparer { expected: bytes };
    encode(value, form, &mut again) && again.expected.is_empty()
}

fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Option<T> {
    let mut reader = Reader::new(bytes);
    let value = T::deserialize(&mut reader).ok()?;
    reader.is_at_end().then_some(value)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::frame::{ReplyFrame, RequestFrame};
    use crate::statement::Statement;

    /// As the library reads it.
    fn decode_by_library<T: DeserializeOwned + Serialize>(bytes: &[u8], form: Form) -> Option<T> {
        let value: T = serde_cbor::from_slice(bytes).ok()?;
        is_encoding_of(bytes, &value, form).then_some(value)
    }

    /// What is accepted is the encoding of what was read: who accepts the same has read the same.
    fn agree<T: DeserializeOwned + Serialize>(bytes: &[u8], form: Form) -> bool {
        let (ours, library) = (decode::<T>(bytes, form).is_some(), decode_by_library::<T>(bytes, form).is_some());
        assert_eq!(ours, library, "{}", const_hex::encode(bytes));
        ours
    }

    fn agree_on_all(bytes: &[u8]) -> bool {
        let frames = [agree::<RequestFrame>(bytes, Form::Numbered), agree::<ReplyFrame>(bytes, Form::Numbered)];
        let kept = [agree::<Statement>(bytes, Form::Named), agree::<Command>(bytes, Form::Named)];
        frames.into_iter().chain(kept).any(|accepted| accepted)
    }

    fn golden() -> Vec<Vec<u8>> {
        let text = include_str!("../../../tests/golden-frames.txt");
        text.lines().map(|line| const_hex::decode(&line.split_once(' ').unwrap().1[8..]).unwrap()).collect()
    }

    #[test]
    fn both_readers_accept_the_same() {
        let mut accepted = 0;
        for frame in golden() {
            accepted += usize::from(agree_on_all(&frame));
            for cut in 0..frame.len().min(160) {
                agree_on_all(&frame[..cut]);
                let mut changed = frame.clone();
                for byte in [
                    0x00,
                    0x18,
                    0x5f,
                    0x80,
                    0x9f,
                    0xa1,
                    0xf5,
                    0xf6,
                    0xff,
                    frame[cut] ^ 1,
                    frame[cut].wrapping_add(0x20),
                ] {
                    changed[cut] = byte;
                    agree_on_all(&changed);
                }
            }
        }
        assert!(accepted > 20, "{accepted}");
    }

    proptest::proptest! {
        #[test]
        fn both_readers_refuse_the_same(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            agree_on_all(&bytes);
        }
    }

    #[test]
    fn nesting_and_lengths_are_bounded() {
        let nested = |depth: usize| [vec![0x81; depth], vec![0]].concat();
        assert!(read::<IgnoredAny>(&nested(32)).is_some());
        assert!(read::<IgnoredAny>(&nested(33)).is_none());
        assert!(read::<IgnoredAny>(&nested(100_000)).is_none());
        for hostile in [
            "9b7fffffffffffffff",
            "bbffffffffffffffff",
            "5bffffffffffffffff",
            "7b7fffffffffffffff",
            "3bffffffffffffffff",
        ] {
            assert!(read::<IgnoredAny>(&const_hex::decode(hostile).unwrap()).is_none(), "{hostile}");
            assert!(read::<Vec<u64>>(&const_hex::decode(hostile).unwrap()).is_none(), "{hostile}");
        }
        // Shorter than it says, longer than it says, and something after it.
        for (bytes, good) in [("8101", true), ("8201", false), ("810102", false), ("8100f6", false)] {
            assert_eq!(read::<Vec<u64>>(&const_hex::decode(bytes).unwrap()).is_some(), good, "{bytes}");
        }
    }
}
