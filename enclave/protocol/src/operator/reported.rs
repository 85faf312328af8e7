//! Outcomes of commands as JSON: the proxy writes it, operators' tools read it, and people keep parts of it.
//!
//! What it says counts once an attestation document has the digest of the outcome.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::command::{ClosedRecord, GeneratedKey, KeyOutcome, Outcome, SignedExit};
use crate::{Bytes, Epoch, Slot};

/// Why JSON tells no outcome.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Misreported {
    /// Bytes that are not written as they should be.
    #[error("{what}: {len} characters; 0x and {digits} hex digits belong there")]
    Hex {
        /// Which.
        what: &'static str,
        /// How many characters there are.
        len: usize,
        /// How many digits belong there.
        digits: usize,
    },
    /// No outcome of a key is called so.
    #[error("an outcome of a key that is not known here")]
    KeyOutcome,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ReportedOutcome {
    /// One word for each key.
    Imported {
        /// The words.
        keys: Vec<String>,
    },
    /// The keys.
    Generated {
        /// One for each.
        keys: Vec<ReportedKey>,
    },
    /// The keys, with their deposits.
    Deposited {
        /// One for each.
        keys: Vec<ReportedKey>,
    },
    /// One word for each key.
    Deleted {
        /// The words.
        keys: Vec<String>,
    },
    /// The fence has a record.
    FenceReady,
    /// The store takes the credentials.
    CredentialsTaken,
    /// The record has ended.
    FenceClosed {
        /// Its last content.
        record: ReportedRecord,
    },
    /// It signs no more.
    HandedOver,
    /// It holds the fence.
    TookOver {
        /// Since when.
        term: u64,
    },
    /// The exits.
    ExitsSigned {
        /// One for each.
        exits: Vec<ReportedExit>,
    },
    /// One word for each key.
    FeeRecipientsSet {
        /// The words.
        keys: Vec<String>,
    },
    /// One word for each key.
    HistoryRaised {
        /// The words.
        keys: Vec<String>,
    },
}

/// A fence's record that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedRecord {
    /// It has ended. Kept, so that nobody takes another for it.
    pub closed: bool,
    version: u64,
    term: u64,
    slot_ceiling: u64,
    target_ceiling: u64,
    source_ceiling: u64,
    min_state_version: u64,
    released_state: Option<String>,
}

/// An exit that was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedExit {
    public_key: String,
    epoch: u64,
    validator_index: u64,
    signature: String,
}

/// A key that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedKey {
    public_key: String,
    deposit_signature: String,
}

impl From<&Outcome> for ReportedOutcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Imported { keys } => Self::Imported { keys: words(keys) },
            Outcome::Generated { keys } => Self::Generated { keys: all(keys) },
            Outcome::Deposited { keys } => Self::Deposited { keys: all(keys) },
            Outcome::Deleted { keys } => Self::Deleted { keys: words(keys) },
            Outcome::FenceReady => Self::FenceReady,
            Outcome::CredentialsTaken => Self::CredentialsTaken,
            Outcome::FenceClosed { record } => Self::FenceClosed { record: record.into() },
            Outcome::HandedOver => Self::HandedOver,
            Outcome::TookOver { term } => Self::TookOver { term: *term },
            Outcome::ExitsSigned { exits } => Self::ExitsSigned { exits: all(exits) },
            Outcome::FeeRecipientsSet { keys } => Self::FeeRecipientsSet { keys: words(keys) },
            Outcome::HistoryRaised { keys } => Self::HistoryRaised { keys: words(keys) },
        }
    }
}

impl ReportedOutcome {
    /// As the enclave has put it, if it is told rightly.
    pub fn outcome(&self) -> Result<Outcome, Misreported> {
        Ok(match self {
            Self::Imported { keys } => Outcome::Imported { keys: key_outcomes(keys)? },
            Self::Generated { keys } => Outcome::Generated { keys: each(keys, ReportedKey::key)? },
            Self::Deposited { keys } => Outcome::Deposited { keys: each(keys, ReportedKey::key)? },
            Self::Deleted { keys } => Outcome::Deleted { keys: key_outcomes(keys)? },
            Self::FenceReady => Outcome::FenceReady,
            Self::CredentialsTaken => Outcome::CredentialsTaken,
            Self::FenceClosed { record } => Outcome::FenceClosed { record: record.record()? },
            Self::HandedOver => Outcome::HandedOver,
            Self::TookOver { term } => Outcome::TookOver { term: *term },
            Self::ExitsSigned { exits } => Outcome::ExitsSigned { exits: each(exits, ReportedExit::exit)? },
            Self::FeeRecipientsSet { keys } => Outcome::FeeRecipientsSet { keys: key_outcomes(keys)? },
            Self::HistoryRaised { keys } => Outcome::HistoryRaised { keys: key_outcomes(keys)? },
        })
    }
}

impl From<&ClosedRecord> for ReportedRecord {
    fn from(record: &ClosedRecord) -> Self {
        Self {
            closed: true,
            version: record.version,
            term: record.term,
            slot_ceiling: record.slot_ceiling.0,
            target_ceiling: record.target_ceiling.0,
            source_ceiling: record.source_ceiling.0,
            min_state_version: record.min_state_version,
            released_state: record.released_state.map(|state| state.to_string()),
        }
    }
}

impl ReportedRecord {
    /// As the enclave has put it.
    pub fn record(&self) -> Result<ClosedRecord, Misreported> {
        Ok(ClosedRecord {
            version: self.version,
            term: self.term,
            slot_ceiling: Slot(self.slot_ceiling),
            target_ceiling: Epoch(self.target_ceiling),
            source_ceiling: Epoch(self.source_ceiling),
            min_state_version: self.min_state_version,
            released_state: self.released_state.as_deref().map(|text| hex(text, "released_state")).transpose()?,
        })
    }
}

impl From<&SignedExit> for ReportedExit {
    fn from(exit: &SignedExit) -> Self {
        Self {
            public_key: exit.public_key.to_string(),
            epoch: exit.epoch.0,
            validator_index: exit.validator_index,
            signature: exit.signature.to_string(),
        }
    }
}

impl ReportedExit {
    fn exit(&self) -> Result<SignedExit, Misreported> {
        Ok(SignedExit {
            public_key: hex(&self.public_key, "a key")?,
            epoch: Epoch(self.epoch),
            validator_index: self.validator_index,
            signature: hex(&self.signature, "a signature")?,
        })
    }
}

impl From<&GeneratedKey> for ReportedKey {
    fn from(key: &GeneratedKey) -> Self {
        Self { public_key: key.public_key.to_string(), deposit_signature: key.deposit_signature.to_string() }
    }
}

impl ReportedKey {
    fn key(&self) -> Result<GeneratedKey, Misreported> {
        Ok(GeneratedKey {
            public_key: hex(&self.public_key, "a key")?,
            deposit_signature: hex(&self.deposit_signature, "a signature")?,
        })
    }
}

fn all<'a, T: 'a, U: From<&'a T>>(items: &'a [T]) -> Vec<U> {
    items.iter().map(U::from).collect()
}

fn each<T, U>(reported: &[T], one: impl Fn(&T) -> Result<U, Misreported>) -> Result<Vec<U>, Misreported> {
    reported.iter().map(one).collect()
}

fn words(keys: &[KeyOutcome]) -> Vec<String> {
    keys.iter().map(|key| key.word().to_owned()).collect()
}

fn key_outcomes(words: &[String]) -> Result<Vec<KeyOutcome>, Misreported> {
    each(words, |word| KeyOutcome::from_word(word).ok_or(Misreported::KeyOutcome))
}

fn hex<const N: usize>(text: &str, what: &'static str) -> Result<Bytes<N>, Misreported> {
    let wrong = |_| Misreported::Hex { what, len: text.len(), digits: N * 2 };
    const_hex::decode_to_array(text).map(Bytes).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<GeneratedKey> {
        vec![GeneratedKey { public_key: Bytes([1; 48]), deposit_signature: Bytes([2; 96]) }]
    }

    fn every_outcome() -> Vec<Outcome> {
        let all = KeyOutcome::ALL.to_vec();
        let record = ClosedRecord {
            version: 7,
            term: 3,
            slot_ceiling: Slot(900),
            target_ceiling: Epoch(29),
            source_ceiling: Epoch(28),
            min_state_version: 12,
            released_state: Some(Bytes([0xab; 32])),
        };
        let exit =
            SignedExit { public_key: Bytes([1; 48]), epoch: Epoch(5), validator_index: 6, signature: Bytes([2; 96]) };
        vec![
            Outcome::Imported { keys: all.clone() },
            Outcome::Generated { keys: keys() },
            Outcome::Deposited { keys: keys() },
            Outcome::Deleted { keys: all.clone() },
            Outcome::FenceReady,
            Outcome::CredentialsTaken,
            Outcome::FenceClosed { record },
            Outcome::FenceClosed { record: ClosedRecord { released_state: None, ..record } },
            Outcome::HandedOver,
            Outcome::TookOver { term: 9 },
            Outcome::ExitsSigned { exits: vec![exit] },
            Outcome::FeeRecipientsSet { keys: all.clone() },
            Outcome::HistoryRaised { keys: all },
        ]
    }

    #[test]
    fn what_is_reported_is_read_back_as_the_same_outcome() {
        for outcome in every_outcome() {
            assert_eq!(ReportedOutcome::from(&outcome).outcome(), Ok(outcome));
        }
    }

    #[test]
    fn what_is_told_wrongly_is_no_outcome() {
        let words = ReportedOutcome::Deleted { keys: vec!["erased".into()] };
        assert_eq!(words.outcome(), Err(Misreported::KeyOutcome));
        let mut record = ReportedRecord::from(&match every_outcome().remove(6) {
            Outcome::FenceClosed { record } => record,
            other => panic!("{other:?}"),
        });
        record.released_state = Some("0xab".into());
        let wrong = Misreported::Hex { what: "released_state", len: 4, digits: 64 };
        assert_eq!(record.record(), Err(wrong));
    }
}
