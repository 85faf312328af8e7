//! The record of a group, and its bytes in a store: one CBOR map with names, in one encoding, bound to its group and chain.

use casemate_protocol::cbor::{self, Form};
use casemate_protocol::{Bytes, Root};
use serde::{Deserialize, Serialize};

use super::Holder;
use crate::Ceilings;

/// The one format version.
const FORMAT: u64 = 1;
/// Longest record, in bytes.
pub const MAX_RECORD_LEN: usize = 1024;

/// The record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Rises with every change.
    pub version: u64,
    /// The enclave that may sign; zeros before the first.
    pub holder: Holder,
    /// Rises with every claim.
    pub generation: u64,
    /// Up to where it may sign. They never fall.
    pub ceilings: Ceilings,
    /// The oldest sealed state that may be loaded. It never falls.
    pub sealed_generation: u64,
    /// What the exact state that a holder has left behind is known by.
    pub clean: Option<Root>,
}

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The group.
    pub group: String,
    /// The chain's genesis validators root.
    pub network: Root,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u64,
    group: String,
    network: Root,
    version: u64,
    holder: Bytes<32>,
    generation: u64,
    ceilings: Ceilings,
    sealed_generation: u64,
    clean: Option<Root>,
}

/// Why bytes are no record of this group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum RecordError {
    #[error("the fence's record is {len} bytes long; 1 to {MAX_RECORD_LEN} are allowed")]
    Size { len: usize },
    #[error("the fence's record is not the one encoding of a record")]
    Encoding,
    #[error("the fence's record is of format {0}; {FORMAT} is understood here")]
    Format(u64),
    #[error("the fence's record is of another group or chain")]
    OtherPlace,
    #[error("the fence's record has version 0")]
    Version,
}

impl Record {
    /// Whether it is as operators have it made, and nobody has claimed it yet.
    pub fn is_new(&self, sealed_generation: u64) -> bool {
        self.holder == Bytes::ZERO && self.sealed_generation == sealed_generation
    }

    /// Its bytes for a store.
    pub fn encode(&self, place: &Place) -> Vec<u8> {
        let Self { version, holder, generation, ceilings, sealed_generation, clean } = *self;
        let (group, network) = (place.group.clone(), place.network);
        let stored =
            Stored { format: FORMAT, group, network, version, holder, generation, ceilings, sealed_generation, clean };
        let mut out = Vec::new();
        // Writing to memory cannot fail, and a record has nothing that CBOR cannot say.
        let written = cbor::encode(&stored, Form::Named, &mut out);
        debug_assert!(written);
        out
    }

    /// Reads exactly one record, of this group.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, RecordError> {
        if bytes.is_empty() || bytes.len() > MAX_RECORD_LEN {
            return Err(RecordError::Size { len: bytes.len() });
        }
        let stored: Stored = cbor::decode(bytes, Form::Named).ok_or(RecordError::Encoding)?;
        if stored.format != FORMAT {
            return Err(RecordError::Format(stored.format));
        }
        if stored.group != place.group || stored.network != place.network {
            return Err(RecordError::OtherPlace);
        }
        // Version 0 stands for «no record».
        if stored.version == 0 {
            return Err(RecordError::Version);
        }
        let Stored { version, holder, generation, ceilings, sealed_generation, clean, .. } = stored;
        Ok(Self { version, holder, generation, ceilings, sealed_generation, clean })
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::{Epoch, Slot};

    use super::*;

    #[test]
    fn records_are_read_as_they_were_written_and_of_their_group_alone() {
        let place = Place { group: "alpha".into(), network: Bytes([5; 32]) };
        for clean in [None, Some(Bytes([9; 32]))] {
            let ceilings = Ceilings { slot: Slot(u64::MAX), target: Epoch(2), source: Epoch(1) };
            let (version, generation) = (7, 3);
            let record = Record { version, holder: Bytes([1; 32]), generation, ceilings, sealed_generation: 4, clean };
            let bytes = record.encode(&place);
            assert!(bytes.len() < MAX_RECORD_LEN / 2);
            assert_eq!(Record::decode(&bytes, &place), Ok(record));
            let other = Place { group: "beta".into(), ..place.clone() };
            assert_eq!(Record::decode(&bytes, &other), Err(RecordError::OtherPlace));
            let other = Place { network: Bytes([6; 32]), ..place.clone() };
            assert_eq!(Record::decode(&bytes, &other), Err(RecordError::OtherPlace));
            for len in 0..bytes.len() {
                assert!(Record::decode(&bytes[..len], &place).is_err());
            }
            let none = Record { version: 0, ..record }.encode(&place);
            assert_eq!(Record::decode(&none, &place), Err(RecordError::Version));
        }
        let long = [0; MAX_RECORD_LEN + 1];
        assert_eq!(Record::decode(&long, &place), Err(RecordError::Size { len: MAX_RECORD_LEN + 1 }));
    }
}
