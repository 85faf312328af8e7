//! JSON's numbers and bytes as clients write them, strict in range and length.

use std::fmt;
use std::marker::PhantomData;

use casemate_protocol::Bytes;
use serde::{Deserialize, Deserializer, de};

/// A client's text as an error shows it: quoted, and cut off where it is long.
pub fn shown(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{:?} and so on, {} bytes", text.get(..end).unwrap_or_default(), text.len()),
        None => format!("{text:?}"),
    }
}

/// A `u64`: a decimal string, or a JSON number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uint(pub u64);

impl<'de> Deserialize<'de> for Uint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Uint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 0 to {}, as a string or a number", u64::MAX)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Uint, E> {
                Ok(Uint(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Uint, E> {
                // `parse` alone would take a plus sign.
                if text.bytes().all(|b| b.is_ascii_digit())
                    && let Ok(number) = text.parse()
                {
                    return Ok(Uint(number));
                }
                Err(E::custom(format_args!("{} is not {}", shown(text), Expected(&self))))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Shows what a visitor expects.
struct Expected<'a, V>(&'a V);

impl<'de, V: de::Visitor<'de>> fmt::Display for Expected<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

/// Up to a number of elements: beyond it the rest is not even read.
pub fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    max: usize,
) -> Result<Vec<T>, D::Error> {
    struct Visitor<T> {
        max: usize,
        element: PhantomData<T>,
    }

    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {} elements", self.max)
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = seq.next_element()? {
                if elements.len() >= self.max {
                    return Err(de::Error::invalid_length(elements.len().saturating_add(1), &self));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }

    deserializer.deserialize_seq(Visitor { max, element: PhantomData })
}

/// `0x`-hex of exactly `N` bytes, in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub Bytes<N>);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const N: usize>;

        impl<const N: usize> de::Visitor<'_> for Visitor<N> {
            type Value = Hex<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "0x and the hex of {N} bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Hex<N>, E> {
                digits(text)
                    .and_then(|digits| const_hex::decode_to_array(digits).ok())
                    .map(|bytes| Hex(Bytes(bytes)))
                    .ok_or_else(|| E::custom(format_args!("{} is not {}", shown(text), Expected(&self))))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// What stands behind the one `0x`: the decoder would pass over another.
pub fn digits(text: &str) -> Option<&str> {
    text.strip_prefix("0x").filter(|digits| !digits.starts_with("0x"))
}

/// `0x`-hex of any length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = HexBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("0x and hex digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HexBytes, E> {
                digits(text)
                    .and_then(|digits| const_hex::decode(digits).ok())
                    .map(HexBytes)
                    .ok_or_else(|| E::custom(format_args!("{} characters that are not 0x and hex digits", text.len())))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_as_strings_or_numbers_and_nothing_else() {
        for (text, number) in
            [("\"0\"", 0), ("7", 7), ("\"18446744073709551615\"", u64::MAX), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(serde_json::from_str::<Uint>(text).unwrap(), Uint(number));
        }
        for text in [
            "\"\"",
            "\"-1\"",
            "-1",
            "\"+1\"",
            "1.0",
            "\"1.0\"",
            "1e3",
            "\"0x1\"",
            "\" 1\"",
            "18446744073709551616",
            "\"18446744073709551616\"",
            "null",
            "true",
            "[]",
        ] {
            assert!(serde_json::from_str::<Uint>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_have_their_exact_length() {
        assert_eq!(serde_json::from_str::<Hex<2>>("\"0xaBCd\"").unwrap().0, Bytes([0xab, 0xcd]));
        for text in ["\"0xabc\"", "\"abcd\"", "\"0xabcdef\"", "\"0x\"", "\"0xabcg\"", "\"0x0xab\"", "5", "null"] {
            assert!(serde_json::from_str::<Hex<2>>(text).is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<HexBytes>("\"0x\"").unwrap().0, Vec::<u8>::new());
        assert!(serde_json::from_str::<HexBytes>("\"0x0\"").is_err());
    }
}
