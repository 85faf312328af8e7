//! Outcomes of commands as the proxy passes them on. They count once a document has their digest.

use anyhow::Result;
use casemate_protocol::command::{ClosedRecord, GeneratedKey, KeyOutcome, Outcome, SignedExit};
use casemate_protocol::{Epoch, Root, Slot};
use serde::Deserialize;

use crate::util::{hex, sha256};

/// What became of a command, as the proxy passes it on.
#[derive(Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ReportedOutcome {
    /// One word for each key.
    Imported { keys: Vec<String> },
    /// The keys.
    Generated { keys: Vec<ReportedKey> },
    /// The keys, with their deposits.
    Deposited { keys: Vec<ReportedKey> },
    /// One word for each key.
    Deleted { keys: Vec<String> },
    /// The fence has a record.
    FenceReady,
    /// The store takes the credentials.
    CredentialsTaken,
    /// The record has ended.
    FenceClosed { record: ReportedRecord },
    /// It signs no more.
    HandedOver,
    /// It holds the fence.
    TookOver { term: u64 },
    /// The exits.
    ExitsSigned { exits: Vec<ReportedExit> },
    /// One word for each key.
    FeeRecipientsSet { keys: Vec<String> },
    /// One word for each key.
    HistoryRaised { keys: Vec<String> },
}

/// A record that has ended.
#[derive(Deserialize)]
pub struct ReportedRecord {
    version: u64,
    term: u64,
    slot_ceiling: u64,
    target_ceiling: u64,
    source_ceiling: u64,
    min_state_version: u64,
    /// SHA-256 of the state that was left behind.
    released_state: Option<String>,
}

/// An exit that was signed.
#[derive(Deserialize)]
pub struct ReportedExit {
    public_key: String,
    epoch: u64,
    validator_index: u64,
    signature: String,
}

/// A key that was made.
#[derive(Deserialize)]
pub struct ReportedKey {
    public_key: String,
    deposit_signature: String,
}

impl ReportedOutcome {
    /// The outcome with this digest, which a document has; nothing where the proxy tells another one.
    pub fn proved(&self, sha256_of_outcome: Root) -> Option<Outcome> {
        self.outcome().ok().filter(|outcome| sha256(&outcome.encode()) == sha256_of_outcome)
    }

    /// As the enclave has put it, if the proxy tells it rightly.
    fn outcome(&self) -> Result<Outcome> {
        Ok(match self {
            Self::Imported { keys } => Outcome::Imported { keys: key_outcomes(keys)? },
            Self::Deleted { keys } => Outcome::Deleted { keys: key_outcomes(keys)? },
            Self::Generated { keys } => Outcome::Generated { keys: all(keys, ReportedKey::key)? },
            Self::Deposited { keys } => Outcome::Deposited { keys: all(keys, ReportedKey::key)? },
            Self::FenceReady => Outcome::FenceReady,
            Self::CredentialsTaken => Outcome::CredentialsTaken,
            Self::FenceClosed { record } => Outcome::FenceClosed { record: record.record()? },
            Self::HandedOver => Outcome::HandedOver,
            Self::TookOver { term } => Outcome::TookOver { term: *term },
            Self::FeeRecipientsSet { keys } => Outcome::FeeRecipientsSet { keys: key_outcomes(keys)? },
            Self::HistoryRaised { keys } => Outcome::HistoryRaised { keys: key_outcomes(keys)? },
            Self::ExitsSigned { exits } => Outcome::ExitsSigned { exits: all(exits, ReportedExit::exit)? },
        })
    }
}

impl ReportedRecord {
    /// As the enclave has put it.
    pub fn record(&self) -> Result<ClosedRecord> {
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

impl ReportedExit {
    fn exit(&self) -> Result<SignedExit> {
        Ok(SignedExit {
            public_key: hex(&self.public_key, "a key")?,
            epoch: Epoch(self.epoch),
            validator_index: self.validator_index,
            signature: hex(&self.signature, "a signature")?,
        })
    }
}

impl ReportedKey {
    fn key(&self) -> Result<GeneratedKey> {
        Ok(GeneratedKey {
            public_key: hex(&self.public_key, "a key")?,
            deposit_signature: hex(&self.deposit_signature, "a signature")?,
        })
    }
}

fn all<T, U>(reported: &[T], one: impl Fn(&T) -> Result<U>) -> Result<Vec<U>> {
    reported.iter().map(one).collect()
}

fn key_outcomes(words: &[String]) -> Result<Vec<KeyOutcome>> {
    all(words, |word| key_outcome(word))
}

fn key_outcome(word: &str) -> Result<KeyOutcome> {
    Ok(match word {
        "imported" => KeyOutcome::Imported,
        "duplicate" => KeyOutcome::Duplicate,
        "wrong_secret" => KeyOutcome::WrongSecret,
        "impossible_history" => KeyOutcome::ImpossibleHistory,
        "deleted" => KeyOutcome::Deleted,
        "not_found" => KeyOutcome::NotFound,
        "changed" => KeyOutcome::Changed,
        "no_history" => KeyOutcome::NoHistory,
        "unreadable" => KeyOutcome::Unreadable,
        "wrong_password" => KeyOutcome::WrongPassword,
        _ => anyhow::bail!("an outcome of a key that is not known here"),
    })
}
