//! Byte strings of fixed length: CBOR byte strings on the wire, `0x`-hex for people.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroize;

/// A byte string of exactly `N` bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// A 32-byte hash tree root, block root, signing root or domain.
pub type Root = Bytes<32>;
/// A compressed BLS public key in G1.
pub type PublicKey = Bytes<48>;
/// A compressed BLS signature in G2.
pub type Signature = Bytes<96>;
/// A fork version.
pub type Version = Bytes<4>;
/// An address of the execution layer.
pub type ExecutionAddress = Bytes<20>;

impl<const N: usize> Bytes<N> {
    /// All bytes zero.
    pub const ZERO: Self = Self([0; N]);
}

impl<const N: usize> Default for Bytes<N> {
    fn default() -> Self {
        Self::ZERO
    }
}

impl<const N: usize> AsRef<[u8]> for Bytes<N> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<const N: usize> From<[u8; N]> for Bytes<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

/// `0x` and the digits; not byte by byte, because every record of the signing log is written down in this way.
fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut digits = [0; 64];
    f.write_str("0x")?;
    bytes.chunks(digits.len() / 2).try_for_each(|bytes| {
        let digits = digits.get_mut(..bytes.len().saturating_mul(2)).ok_or(fmt::Error)?;
        const_hex::encode_to_slice(bytes, digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(digits).map_err(|_| fmt::Error)?)
    })
}

impl<const N: usize> fmt::Display for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const N: usize>;

        impl<const N: usize> de::Visitor<'_> for Visitor<N> {
            type Value = Bytes<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a byte string of {N} bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes<N>, E> {
                bytes.try_into().map(Bytes).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }

        deserializer.deserialize_bytes(Visitor)
    }
}

/// A byte string of `MIN` to `MAX` bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BoundedBytes<const MIN: usize, const MAX: usize>(Vec<u8>);

impl<const MIN: usize, const MAX: usize> BoundedBytes<MIN, MAX> {
    /// Takes bytes of an allowed length; `None` for others.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (MIN..=MAX).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The bytes.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MIN: usize, const MAX: usize> Zeroize for BoundedBytes<MIN, MAX> {
    fn zeroize(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

impl<const MIN: usize, const MAX: usize> AsRef<[u8]> for BoundedBytes<MIN, MAX> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Debug for BoundedBytes<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl<const MIN: usize, const MAX: usize> Serialize for BoundedBytes<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for BoundedBytes<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MIN: usize, const MAX: usize>;

        impl<const MIN: usize, const MAX: usize> de::Visitor<'_> for Visitor<MIN, MAX> {
            type Value = BoundedBytes<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a byte string of {MIN} to {MAX} bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                // The length first: nothing is kept of what is too long.
                if (MIN..=MAX).contains(&bytes.len()) {
                    Ok(BoundedBytes(bytes.to_vec()))
                } else {
                    Err(E::invalid_length(bytes.len(), &self))
                }
            }
        }

        deserializer.deserialize_bytes(Visitor)
    }
}
