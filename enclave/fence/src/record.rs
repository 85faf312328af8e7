//! The record of a group, and its bytes in a store: one CBOR map with names, in one encoding, bound to its group and chain.

use casemate_protocol::cbor::{self, Form};
use casemate_protocol::{Bytes, Root};
use serde::{Deserialize, Serialize};

use casemate_slashing::{Ceilings, Floors};

use crate::Holder;

/// The one format version.
const FORMAT: u64 = 2;
/// Longest record, in bytes.
pub const MAX_RECORD_LEN: usize = 1024;
/// Highest term: the numbers of sealed states begin with it, in their upper 32 bits.
pub const MAX_TERM: u64 = (1 << 32) - 2;

/// The record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Rises with every change.
    pub version: u64,
    /// The enclave that may sign; zeros before the first.
    pub holder: Holder,
    /// Rises with every claim. A record that was just made has one too, above all that there can have been before it.
    pub term: u64,
    /// Up to where it may sign. They never fall.
    pub ceilings: Ceilings,
    /// The oldest sealed state that may be loaded. It never falls.
    pub min_state_version: u64,
    /// What the exact state that a holder has left behind is known by, or the state that was sealed with a first record.
    pub released_state: Option<Root>,
    /// It has ended for good: nobody claims it, nobody extends it. The next record is made above it, in whatever store.
    pub closed: bool,
}

/// How a record begins: what stands for everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beginning {
    /// The record's version lies above this one, and above every one that was seen here.
    pub above_version: u64,
    /// From 1 on; above every term that there can have been.
    pub term: u64,
    /// At or above everything that was signed, or may yet be.
    pub ceilings: Ceilings,
    /// The number of the state that was sealed with it: older ones are refused.
    pub min_state_version: u64,
    /// What that state is known by, where it has everything that any key of the group has ever signed: then its holder needs no
    /// floors. Nothing where that is not so.
    pub exact: Option<Root>,
    /// Whether operators say that the store has lost the record before.
    pub lost: bool,
}

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupId {
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
    #[serde(rename = "generation")]
    term: u64,
    ceilings: Ceilings,
    #[serde(rename = "sealed_generation")]
    min_state_version: u64,
    #[serde(rename = "clean")]
    released_state: Option<Root>,
    closed: bool,
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
    #[error("the fence's record has term {0}; 1 to {MAX_TERM} are allowed")]
    Term(u64),
}

impl Record {
    /// Whether it is as operators have it made, and nobody has claimed it yet.
    pub fn is_new(&self, min_state_version: u64) -> bool {
        self.holder == Bytes::ZERO && self.min_state_version == min_state_version
    }

    /// What a successor without the exact state stays above.
    pub fn floors(&self) -> Floors {
        let Ceilings { slot, target, source } = self.ceilings;
        Floors { slot: Some(slot), target: Some(target), source: Some(source) }
    }

    /// Its bytes for a store.
    pub fn encode(&self, place: &GroupId) -> Vec<u8> {
        let Self { version, holder, term, ceilings, min_state_version, released_state: clean, closed } = *self;
        let (format, group, network) = (FORMAT, place.group.clone(), place.network);
        let stored = Stored {
            format,
            group,
            network,
            version,
            holder,
            term,
            ceilings,
            min_state_version,
            released_state: clean,
            closed,
        };
        let mut out = Vec::new();
        // Writing to memory cannot fail, and a record has nothing that CBOR cannot say.
        let written = cbor::encode(&stored, Form::Named, &mut out);
        debug_assert!(written);
        out
    }

    /// Reads exactly one record, of this group.
    pub fn decode(bytes: &[u8], place: &GroupId) -> Result<Self, RecordError> {
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
        // Term 0 would be free of floors by its number.
        if !(1..=MAX_TERM).contains(&stored.term) {
            return Err(RecordError::Term(stored.term));
        }
        let Stored { version, holder, term, ceilings, min_state_version, released_state: clean, closed, .. } = stored;
        Ok(Self { version, holder, term, ceilings, min_state_version, released_state: clean, closed })
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::{Epoch, Slot};

    use super::*;

    #[test]
    fn records_are_read_as_they_were_written_and_of_their_group_alone() {
        let place = GroupId { group: "alpha".into(), network: Bytes([5; 32]) };
        for (clean, closed) in [(None, false), (Some(Bytes([9; 32])), false), (Some(Bytes([9; 32])), true)] {
            let ceilings = Ceilings { slot: Slot(u64::MAX), target: Epoch(2), source: Epoch(1) };
            let (version, term) = (7, 3);
            let (holder, min_state_version) = (Bytes([1; 32]), 4);
            let record = Record { version, holder, term, ceilings, min_state_version, released_state: clean, closed };
            let bytes = record.encode(&place);
            assert!(bytes.len() < MAX_RECORD_LEN / 2);
            assert_eq!(Record::decode(&bytes, &place), Ok(record));
            let other = GroupId { group: "beta".into(), ..place.clone() };
            assert_eq!(Record::decode(&bytes, &other), Err(RecordError::OtherPlace));
            let other = GroupId { network: Bytes([6; 32]), ..place.clone() };
            assert_eq!(Record::decode(&bytes, &other), Err(RecordError::OtherPlace));
            for len in 0..bytes.len() {
                assert!(Record::decode(&bytes[..len], &place).is_err());
            }
            let none = Record { version: 0, ..record }.encode(&place);
            assert_eq!(Record::decode(&none, &place), Err(RecordError::Version));
            for term in [0, MAX_TERM + 1, u64::MAX] {
                let bytes = Record { term, ..record }.encode(&place);
                assert_eq!(Record::decode(&bytes, &place), Err(RecordError::Term(term)));
            }
        }
        let long = [0; MAX_RECORD_LEN + 1];
        assert_eq!(Record::decode(&long, &place), Err(RecordError::Size { len: MAX_RECORD_LEN + 1 }));
    }

    #[test]
    fn every_term_that_is_allowed_has_room_for_its_states_and_one_more_follows_it() {
        for term in [1, MAX_TERM, MAX_TERM + 1] {
            assert!(casemate_slashing::group::next_state(0, term).is_some(), "{term}");
        }
        assert_eq!(casemate_slashing::group::next_state(0, MAX_TERM + 2), None);
    }

    #[test]
    fn a_record_is_new_until_somebody_claims_it_and_for_the_state_that_was_sealed_with_it_alone() {
        let (ceilings, min_state_version) = (Ceilings::ZERO, 4);
        let (holder, term) = (Bytes::ZERO, 3);
        let new = Record { version: 7, holder, term, ceilings, min_state_version, released_state: None, closed: false };
        assert!(new.is_new(4));
        assert!(!new.is_new(3) && !new.is_new(5));
        let claimed = Record { holder: Bytes([1; 32]), ..new };
        assert!(!claimed.is_new(4) && !claimed.is_new(5));
    }

    #[test]
    fn a_record_may_be_as_long_as_is_allowed_and_no_longer() {
        let (ceilings, term) = (Ceilings::ZERO, 3);
        let (holder, clean, min_state_version) = (Bytes::ZERO, None, 4);
        let record =
            Record { version: 7, holder, term, ceilings, min_state_version, released_state: clean, closed: false };
        let place = |len| GroupId { group: "g".repeat(len), network: Bytes([5; 32]) };
        // From 256 on a name of one letter more makes a record of one byte more.
        let longest = 256 + MAX_RECORD_LEN - record.encode(&place(256)).len();
        let bytes = record.encode(&place(longest));
        assert_eq!(bytes.len(), MAX_RECORD_LEN);
        assert_eq!(Record::decode(&bytes, &place(longest)), Ok(record));
        let long = record.encode(&place(longest + 1));
        let refused = Record::decode(&long, &place(longest + 1));
        assert_eq!(refused, Err(RecordError::Size { len: MAX_RECORD_LEN + 1 }));
    }
}
