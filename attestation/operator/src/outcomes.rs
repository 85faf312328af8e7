//! What became of commands, in words. Only what a document proves is told as done.

use std::collections::BTreeMap;

use anyhow::Result;
use casemate_protocol::command::{
    Action, ClosedRecord, Command, GeneratedKey, ImportedKey, KeyHistory, KeyOutcome, Outcome, RecordOrder, SignedExit,
};
use casemate_protocol::reported::ReportedOutcome;
use casemate_protocol::statement::CommandResult;
use casemate_protocol::{Epoch, ExecutionAddress, PublicKey, Root};

use crate::closed_record;
use crate::deposit_data::Deposit;
use crate::exit::{Exit, Refused};
use crate::reported::proved;
use crate::session::CommandStatus;
use crate::summary::history;
use crate::util::plain;

/// What is to be told at the end, and what the enclave has signed.
pub struct Report {
    pub out: String,
    pub exit: Exit,
    pub deposits: Vec<Deposit>,
    pub exits: Vec<SignedExit>,
    pub carried_out: usize,
    /// How many keys came to what.
    counted: BTreeMap<String, usize>,
}

/// More keys than this are summed up below their lines.
const MANY_KEYS: usize = 20;

impl Report {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            out: String::new(),
            exit: Exit::Accepted,
            deposits: Vec::new(),
            exits: Vec::new(),
            carried_out: 0,
            counted: BTreeMap::new(),
        }
    }

    /// Many keys once more, in one line: nobody reads hundreds to find the two that were not taken.
    pub fn sum_up(&mut self) {
        let keys: usize = self.counted.values().sum();
        if keys > MANY_KEYS {
            let parts: Vec<String> = self.counted.iter().map(|(what, count)| format!("{count} {what}")).collect();
            self.line(&format!("{keys} keys in all: {}", parts.join(", ")));
        }
    }

    /// Adds a line.
    pub fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// Tells what became of a command; whether the next one may follow.
    pub fn tell(&mut self, command: &Command, told: &Result<ReportedOutcome>, status: CommandStatus) -> bool {
        let proxy = says(told);
        let counter = command.counter;
        match status {
            CommandStatus::Known(CommandResult::Done { outcome_sha256 }) => {
                return self.done(command, told, outcome_sha256);
            }
            CommandStatus::Known(CommandResult::Refused) => {
                self.refused(&format!("REFUSED by the enclave, which has changed nothing; the proxy says why: {proxy}"));
            }
            CommandStatus::Known(CommandResult::MaybeSealed) => self.unknown(&format!(
                "NOT KNOWN, to the enclave neither: the parent may have kept what the command changed, and it may take effect at the next start. Count \
                 it as done, and give it again once the parent's disk works. The proxy says: {proxy}"
            )),
            CommandStatus::NotYet if matches!(told, Err(error) if error.is::<Refused>()) => self.refused(&format!(
                "NOT CARRIED OUT so far; the proxy says: {proxy}\nAnyone who has the command (counter {counter}) may still deliver it to this boot of the \
                 enclave, until a later command was carried out or the enclave has started anew. Until then count it as done: let its keys sign \
                 nowhere else"
            )),
            CommandStatus::NotYet | CommandStatus::Unknown | CommandStatus::OtherBoot => self.unknown(&format!(
                "UNKNOWN: {}; the proxy says: {proxy}\nCount the command (counter {counter}) as carried out: let keys that it imports sign nowhere else. \
                 Look with casemate keys list before you give it again",
                why_unknown(status)
            )),
        }
        false
    }

    /// The enclave's document says that it was carried out, with this digest of its outcome.
    fn done(&mut self, command: &Command, told: &Result<ReportedOutcome>, outcome_sha256: Root) -> bool {
        self.carried_out = self.carried_out.saturating_add(1);
        let outcome = told.as_ref().ok().and_then(|reported| proved(reported, outcome_sha256));
        let Some(outcome) = outcome else {
            self.refused(&format!(
                "CARRIED OUT, by the enclave's own document; but what became of each key is not known, because the proxy tells something else \
                 (it says: {}). Look with casemate keys list; casemate keys deposit has deposits signed again",
                says(told)
            ));
            return false;
        };
        self.outcome(&command.action, outcome)
    }

    /// An outcome that a document proves; whether it is one of this action.
    fn outcome(&mut self, action: &Action, outcome: Outcome) -> bool {
        match (action, outcome) {
            (Action::Import { keys, .. }, Outcome::Imported { keys: outcomes }) => self.imported(keys, &outcomes),
            (Action::Delete { keys }, Outcome::Deleted { keys: outcomes }) => self.deleted(keys, &outcomes),
            (
                Action::Generate { withdrawal_credentials, amount, .. }
                | Action::Deposit { withdrawal_credentials, amount, .. },
                Outcome::Generated { keys } | Outcome::Deposited { keys },
            ) => {
                let what = if matches!(action, Action::Generate { .. }) { "made" } else { "signed for" };
                self.deposited(what, *withdrawal_credentials, *amount, keys);
            }
            (Action::FenceInit { record, .. }, Outcome::FenceReady) => self.line(fence_ready(record)),
            (Action::FenceInit { .. }, Outcome::CredentialsTaken) => self.line(
                "the store takes the new credentials, and they are used from now on. This enclave does not hold the fence: it seals \
                 them as soon as it does. If it starts anew before that, bring them in again",
            ),
            (Action::FenceClose, Outcome::FenceClosed { record }) => self.fence_closed(&record),
            (Action::Exit { last_epoch, .. }, Outcome::ExitsSigned { exits }) => self.exits_signed(*last_epoch, exits),
            (Action::FeeRecipient { keys, fee_recipient }, Outcome::FeeRecipientsSet { keys: outcomes }) => {
                self.fee_recipients_set(keys, *fee_recipient, &outcomes);
            }
            (Action::RaiseHistory { keys }, Outcome::HistoryRaised { keys: outcomes }) => {
                self.histories_raised(keys, &outcomes);
            }
            (Action::Handover, Outcome::HandedOver) => {
                self.line("handed over: this enclave signs no more, and its exact state is on the disk for a successor");
            }
            (Action::Takeover, Outcome::TookOver { term }) => {
                self.line(&format!("this enclave holds the fence, in term {term}"));
            }
            _ => {
                self.refused("the enclave has carried out something else than was asked");
                return false;
            }
        }
        true
    }

    fn imported(&mut self, keys: &[ImportedKey], outcomes: &[KeyOutcome]) {
        for (key, outcome) in keys.iter().zip(outcomes) {
            let told = match outcome {
                KeyOutcome::Imported => Ok("imported".to_owned()),
                KeyOutcome::Duplicate => {
                    let at = key.history.map(|past| format!("; it stands at {} or above now", history(&past)));
                    Ok(format!("duplicate{}", at.unwrap_or_default()))
                }
                KeyOutcome::WrongSecret => Err("the secret key is not this public key's"),
                KeyOutcome::ImpossibleHistory => {
                    Err("its history lies in the future, or has a source above its target")
                }
                _ => Err("an outcome that is none of an import"),
            };
            self.key(&key.public_key, told);
        }
    }

    fn deleted(&mut self, keys: &[PublicKey], outcomes: &[KeyOutcome]) {
        for (key, outcome) in keys.iter().zip(outcomes) {
            let deleted = *outcome == KeyOutcome::Deleted;
            self.key(key, if deleted { Ok("deleted".to_owned()) } else { Err(NOT_HELD) });
        }
    }

    fn deposited(&mut self, what: &str, withdrawal_credentials: Root, amount: u64, keys: Vec<GeneratedKey>) {
        for GeneratedKey { public_key, deposit_signature: signature } in keys {
            self.deposits.push(Deposit { public_key, withdrawal_credentials, amount, signature });
            self.key(&public_key, Ok(what.to_owned()));
        }
    }

    fn fence_closed(&mut self, record: &ClosedRecord) {
        self.line(
            "the fence's record has ended: no enclave claims or extends it any more. Keep this line for casemate fence init --after:",
        );
        self.line(&closed_record::line(record));
        let up_to = format!("slot {} and target epoch {}", record.slot_ceiling, record.target_ceiling);
        self.line(&match record.released_state {
            Some(_) => format!("its holder has released it and signs no more; nothing above {up_to} was signed under it"),
            None => format!(
                "its last holder, if it lives, may still sign up to {up_to}; casemate fence status shows when that has passed"
            ),
        });
    }

    fn exits_signed(&mut self, last_epoch: Epoch, exits: Vec<SignedExit>) {
        for SignedExit { public_key, epoch, validator_index, .. } in &exits {
            self.line(&format!(
                "{public_key}  exit of validator {validator_index} signed at epoch {epoch}; until epoch {last_epoch} clients get it signed too"
            ));
        }
        self.exits.extend(exits);
    }

    fn fee_recipients_set(&mut self, keys: &[PublicKey], to: Option<ExecutionAddress>, outcomes: &[KeyOutcome]) {
        for (key, outcome) in keys.iter().zip(outcomes) {
            let told = match (outcome, to) {
                (KeyOutcome::Changed, Some(address)) => Ok(format!("fees go to {address}")),
                (KeyOutcome::Changed, None) => Ok("fees go where the configuration says".to_owned()),
                _ => Err(NOT_HELD),
            };
            self.key(key, told);
        }
    }

    fn histories_raised(&mut self, keys: &[KeyHistory], outcomes: &[KeyOutcome]) {
        for (key, outcome) in keys.iter().zip(outcomes) {
            let told = match outcome {
                KeyOutcome::Changed => format!("stands at {} or above now", history(&key.past)),
                _ => "not here: nothing to raise".to_owned(),
            };
            self.key(&key.public_key, Ok(told));
        }
    }

    /// What became of a key.
    fn key(&mut self, key: &PublicKey, told: Result<String, &str>) {
        let what = match &told {
            // What differs from key to key stands behind.
            Ok(text) => text.split(';').next().unwrap_or_default().to_owned(),
            Err(text) => format!("error ({text})"),
        };
        let count = self.counted.entry(what).or_default();
        *count = count.saturating_add(1);
        match told {
            Ok(text) => self.line(&format!("{key}  {text}")),
            Err(text) => self.refused(&format!("{key}  error: {text}")),
        }
    }

    fn refused(&mut self, text: &str) {
        if self.exit != Exit::NoAnswer {
            self.exit = Exit::Refused;
        }
        self.line(text);
    }

    /// What the enclave has made and this machine could not write: it is at least shown.
    pub fn not_written(&mut self, why: &str, what: &str) {
        if self.exit == Exit::Accepted {
            self.exit = Exit::NotWritten;
        }
        self.line(&format!("DONE, BUT NOT WRITTEN: {why}. Keep this:\n{}", what.trim_end()));
    }

    fn unknown(&mut self, text: &str) {
        self.exit = Exit::NoAnswer;
        self.line(text);
    }
}

const NOT_HELD: &str = "the enclave does not hold it";

/// What the proxy says, on one line. It must not look like what we say.
fn says(told: &Result<ReportedOutcome>) -> String {
    match told {
        Ok(_) => "done".to_owned(),
        Err(error) => plain(&format!("{error:#}")).split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn why_unknown(status: CommandStatus) -> &'static str {
    match status {
        CommandStatus::OtherBoot => "the enclave has started anew meanwhile, or this is another one",
        CommandStatus::Unknown => "there was no document that tells it",
        CommandStatus::NotYet | CommandStatus::Known(_) => "the enclave's own document does not have it",
    }
}

fn fence_ready(record: &RecordOrder) -> &'static str {
    match record {
        RecordOrder::New => "the fence has its record; the enclave claims it now",
        RecordOrder::Lost { .. } => {
            "the fence has a new record; the enclave claims it now and signs in two to three epochs"
        }
        RecordOrder::Keep => "the store's new credentials are sealed",
        RecordOrder::After { closed } if closed.released_state.is_some() => {
            "the fence has its next record; an enclave with the state that the closed one names signs at once, and no other \
             signs without floors"
        }
        RecordOrder::After { .. } => {
            "the fence has its next record; its holder stays above the closed one's ceilings, which end in this epoch"
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Bytes;

    use super::*;

    fn refusal() -> Result<ReportedOutcome> {
        Err(Refused("done\n\u{1b}[2Jimported".to_owned()).into())
    }

    fn command() -> Command {
        let keys = vec![Bytes([9; 48])];
        Command::new("alpha".into(), Bytes([1; 32]), Bytes([2; 32]), 77, Action::Delete { keys })
    }

    #[test]
    fn what_no_document_proves_is_not_told_as_done() {
        let done = CommandStatus::Known(CommandResult::Done { outcome_sha256: Bytes([7; 32]) });
        let maybe = CommandStatus::Known(CommandResult::MaybeSealed);
        for (status, exit, told) in [
            (
                done,
                Exit::Refused,
                "CARRIED OUT, by the enclave's own document; but what became of each key is not known",
            ),
            (CommandStatus::Known(CommandResult::Refused), Exit::Refused, "REFUSED by the enclave"),
            (maybe, Exit::NoAnswer, "Count it as done"),
            (CommandStatus::NotYet, Exit::Refused, "(counter 77) may still deliver it to this boot"),
            (CommandStatus::Unknown, Exit::NoAnswer, "UNKNOWN: there was no document that tells it"),
            (CommandStatus::OtherBoot, Exit::NoAnswer, "UNKNOWN: the enclave has started anew"),
        ] {
            let mut report = Report::new();
            assert!(!report.tell(&command(), &refusal(), status));
            assert_eq!(report.exit, exit, "{}", report.out);
            assert!(report.out.contains(told) && !report.out.contains('\u{1b}'), "{}", report.out);
        }
    }

    #[test]
    fn what_is_not_known_stays_the_last_word() {
        let mut report = Report::new();
        report.tell(&command(), &refusal(), CommandStatus::Unknown);
        report.tell(&command(), &refusal(), CommandStatus::NotYet);
        assert_eq!(report.exit, Exit::NoAnswer);
    }

    #[test]
    fn each_key_has_a_line_with_what_became_of_it() {
        let (held, never) = (Bytes([1; 48]), Bytes([2; 48]));
        let action = Action::Delete { keys: vec![held, never] };
        let keys = vec![KeyOutcome::Deleted, KeyOutcome::NotFound];
        let mut report = Report::new();
        assert!(report.outcome(&action, Outcome::Deleted { keys }));
        assert_eq!(report.out, format!("{held}  deleted\n{never}  error: the enclave does not hold it\n"));
        assert_eq!(report.exit, Exit::Refused);
        // An outcome of another action ends it.
        assert!(!report.outcome(&action, Outcome::HandedOver));
    }

    #[test]
    fn more_than_twenty_keys_are_summed_up() {
        let key = |n: u8| Bytes([n; 48]);
        for (count, summed) in [(20_u8, false), (21, true)] {
            let mut report = Report::new();
            let keys: Vec<PublicKey> = (0..count).map(key).collect();
            let mut outcomes = vec![KeyOutcome::Deleted; usize::from(count)];
            outcomes[3] = KeyOutcome::NotFound;
            report.deleted(&keys, &outcomes);
            report.sum_up();
            let last = report.out.lines().last().unwrap();
            assert_eq!(last == "21 keys in all: 20 deleted, 1 error (the enclave does not hold it)", summed, "{last}");
        }
    }
}
