//! EIP-3076 version 5: read a file into watermarks, write watermarks as a file.
//!
//! Reading folds every record into the key's watermarks as it goes by, so memory does not grow with the history. A
//! file is taken whole or not at all: one bad record refuses it, with its place in the file.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;

use casemate_protocol::{Bytes, Epoch, PublicKey, Root, Slot};
use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{AttestationMark, BlockMark, Watermarks};

/// The one version of the format that is read and written.
pub const FORMAT_VERSION: &str = "5";

/// What a file says of each key. A key that is listed without any record was listed all the same.
pub type Histories = BTreeMap<PublicKey, Watermarks>;

/// Why a file was refused. Nothing of it was taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum InterchangeError {
    #[error("not a slashing protection file (EIP-3076): {0}")]
    Malformed(String),
    #[error("genesis_validators_root is {found}, of another network; this one's is {expected}")]
    OtherNetwork { found: Root, expected: Root },
}

impl From<serde_json::Error> for InterchangeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Reads a file of the network with `genesis_validators_root`.
pub fn read(file: impl Read, genesis_validators_root: Root) -> Result<Histories, InterchangeError> {
    let mut deserializer = serde_json::Deserializer::from_reader(file);
    let file = File::deserialize(&mut deserializer)?;
    deserializer.end()?;
    let found = file.metadata.genesis_validators_root.0;
    if found != genesis_validators_root {
        return Err(InterchangeError::OtherNetwork { found, expected: genesis_validators_root });
    }
    Ok(file.data.0)
}

/// Writes the histories as a minimal file: each key's highest block and attestation.
pub fn write(
    histories: &Histories,
    genesis_validators_root: Root,
    out: impl std::io::Write,
) -> Result<(), InterchangeError> {
    let data = histories.iter().map(|(key, watermarks)| OutRecord {
        pubkey: key.to_string(),
        signed_blocks: watermarks
            .block
            .iter()
            .map(|b| OutBlock { slot: b.slot.to_string(), signing_root: b.signing_root.map(|r| r.to_string()) })
            .collect(),
        signed_attestations: watermarks
            .attestation
            .iter()
            .map(|a| OutAttestation {
                source_epoch: a.source.to_string(),
                target_epoch: a.target.to_string(),
                signing_root: a.signing_root.map(|r| r.to_string()),
            })
            .collect(),
    });
    let file = OutFile {
        metadata: OutMetadata {
            interchange_format_version: FORMAT_VERSION,
            genesis_validators_root: genesis_validators_root.to_string(),
        },
        data: data.collect(),
    };
    Ok(serde_json::to_writer_pretty(out, &file)?)
}

// Reading. Unknown fields are ignored, as the schema of EIP-3076 allows them; known ones must be there and be right.

#[derive(Deserialize)]
struct File {
    metadata: Metadata,
    data: Data,
}

#[derive(Deserialize)]
struct Metadata {
    /// Decides how everything else reads, so another version is refused right where it stands.
    #[serde(rename = "interchange_format_version")]
    _version: FormatVersion,
    genesis_validators_root: Hex<32>,
}

struct FormatVersion;

impl<'de> Deserialize<'de> for FormatVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let version = std::borrow::Cow::<str>::deserialize(deserializer)?;
        if version == FORMAT_VERSION {
            return Ok(Self);
        }
        Err(de::Error::custom(format_args!(
            "interchange_format_version is {version:?}; version {FORMAT_VERSION:?} is read here"
        )))
    }
}

/// The array `data`, folded key by key. A key may occur in several records.
struct Data(Histories);

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut histories = Histories::new();
        fold(deserializer, "an array of validators", |record: Record| {
            let history = histories.entry(record.pubkey.0).or_default();
            *history = history.merge(record.signed_blocks.0).merge(record.signed_attestations.0);
        })?;
        Ok(Self(histories))
    }
}

#[derive(Deserialize)]
struct Record {
    pubkey: Hex<48>,
    signed_blocks: Folded<Block>,
    signed_attestations: Folded<Attestation>,
}

/// An array of messages, folded into watermarks.
struct Folded<T>(Watermarks, PhantomData<T>);

impl<'de, T: Deserialize<'de> + Into<Watermarks>> Deserialize<'de> for Folded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut folded = Watermarks::NONE;
        fold(deserializer, "an array of signed messages", |message: T| folded = folded.merge(message.into()))?;
        Ok(Self(folded, PhantomData))
    }
}

struct Block {
    slot: Slot,
    signing_root: Option<Root>,
}

struct Attestation {
    source: Epoch,
    target: Epoch,
    signing_root: Option<Root>,
}

impl From<Block> for Watermarks {
    fn from(b: Block) -> Self {
        Self { block: Some(BlockMark { slot: b.slot, signing_root: b.signing_root }), attestation: None }
    }
}

impl From<Attestation> for Watermarks {
    fn from(a: Attestation) -> Self {
        let mark = AttestationMark { source: a.source, target: a.target, signing_root: a.signing_root };
        Self { block: None, attestation: Some(mark) }
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            slot: Decimal,
            signing_root: Option<Hex<32>>,
        }
        let f = Fields::deserialize(deserializer)?;
        Ok(Self { slot: Slot(f.slot.0), signing_root: f.signing_root.map(|r| r.0) })
    }
}

impl<'de> Deserialize<'de> for Attestation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            source_epoch: Decimal,
            target_epoch: Decimal,
            signing_root: Option<Hex<32>>,
        }
        let f = Fields::deserialize(deserializer)?;
        Ok(Self {
            source: Epoch(f.source_epoch.0),
            target: Epoch(f.target_epoch.0),
            signing_root: f.signing_root.map(|r| r.0),
        })
    }
}

/// Visits an array and hands each element on, keeping none.
fn fold<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    what: &'static str,
    take: impl FnMut(T),
) -> Result<(), D::Error> {
    struct Visitor<T, F> {
        what: &'static str,
        take: F,
        element: PhantomData<T>,
    }

    impl<'de, T: Deserialize<'de>, F: FnMut(T)> de::Visitor<'de> for Visitor<T, F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.what)
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(element) = seq.next_element()? {
                (self.take)(element);
            }
            Ok(())
        }
    }

    deserializer.deserialize_seq(Visitor { what, take, element: PhantomData })
}

/// `0x`-hex of exactly `N` bytes, in either case.
struct Hex<const N: usize>(Bytes<N>);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let digits = text
            .strip_prefix("0x")
            // The decoder would pass over another one.
            .filter(|digits| !digits.starts_with("0x"))
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} does not start with 0x")))?;
        let mut bytes = [0; N];
        const_hex::decode_to_slice(digits, &mut bytes)
            .map_err(|e| de::Error::custom(format_args!("{text:?} is not the hex of {N} bytes: {e}")))?;
        Ok(Self(Bytes(bytes)))
    }
}

/// A `u64` as a decimal string.
struct Decimal(u64);

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        // `parse` alone would take a plus sign.
        if text.bytes().all(|b| b.is_ascii_digit())
            && let Ok(number) = text.parse()
        {
            return Ok(Self(number));
        }
        Err(de::Error::custom(format_args!("{text:?} is not a decimal number up to {}", u64::MAX)))
    }
}

// Writing.

#[derive(Serialize)]
struct OutFile {
    metadata: OutMetadata,
    data: Vec<OutRecord>,
}

#[derive(Serialize)]
struct OutMetadata {
    interchange_format_version: &'static str,
    genesis_validators_root: String,
}

#[derive(Serialize)]
struct OutRecord {
    pubkey: String,
    signed_blocks: Vec<OutBlock>,
    signed_attestations: Vec<OutAttestation>,
}

#[derive(Serialize)]
struct OutBlock {
    slot: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_root: Option<String>,
}

#[derive(Serialize)]
struct OutAttestation {
    source_epoch: String,
    target_epoch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_root: Option<String>,
}
