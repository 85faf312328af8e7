//! The signing log as it is kept in files: lines of words with single spaces between them, each in its one form.
//!
//! | line | words |
//! |---|---|
//! | the first | `casemate-signing-log 1`, boot nonce, statement, attestation document |
//! | a record | `+`, number, Unix milliseconds, key, type, its slot or epochs, signing root or `-`, `signed` or `refused`, code and sentence |
//! | an operators' command | `+`, number, Unix milliseconds, a key of zeros, `command`, kind, counter, operators as bits, number of keys, their SHA-256, SHA-256 of the command, `done` or `refused`, code and sentence |
//! | a head | `=`, number of the last record, fence's term, Unix milliseconds, hash, signature |

use std::fmt::{self, Write as _};

use super::{LogHead, LogRecord, Message};
use crate::cbor::{self, Form};
use crate::command::ActionKind;
use crate::frame::MAX_DOCUMENT_LEN;
use crate::statement::MAX_STATEMENT_LEN;
use crate::{BoundedBytes, Bytes, Epoch, Refusal, Slot};

/// What a file begins with.
pub const MAGIC: &str = "casemate-signing-log";
/// The one version.
pub const VERSION: &str = "1";
/// What stands in place of a message's type where operators have ordered something.
const COMMAND: &str = "command";
/// Longest line, in bytes.
pub const MAX_LINE_LEN: usize = 64 * 1024;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one at a time")]
pub enum Line {
    /// Of which boot, and what proves its key.
    Start {
        /// The boot.
        boot_nonce: Bytes<32>,
        /// A [`crate::Statement`], encoded.
        statement: BoundedBytes<1, MAX_STATEMENT_LEN>,
        /// The document that binds it.
        document: BoundedBytes<1, MAX_DOCUMENT_LEN>,
    },
    /// A record.
    Record {
        /// Its number.
        number: u64,
        /// What happened.
        record: LogRecord,
    },
    /// Where the chain stands. Its boot is that of the first line.
    Head(LogHead),
}

/// A line that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it says.
    pub line: Line,
    /// Whether a refusal's sentence is another one than this version has for its code. The enclave signs for the code alone, and a sentence may
    /// be worded better from one version to the next; or someone has changed it since.
    pub reworded: bool,
}

/// Why a line is none of a signing log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum LineError {
    #[error("the line has {0} bytes; {MAX_LINE_LEN} are allowed")]
    TooLong(usize),
    #[error("this is no line of a signing log in its one form: {0}")]
    Malformed(&'static str),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { boot_nonce, statement, document } => {
                write!(f, "{MAGIC} {VERSION} {boot_nonce} {statement:?} {document:?}")
            }
            Self::Record { number, record } => {
                let LogRecord { time_ms, public_key, message, signing_root, refusal } = record;
                write!(f, "+ {number} {time_ms} {public_key} {}", Shown(message))?;
                match signing_root {
                    Some(root) => write!(f, " {root}")?,
                    None => f.write_str(" -")?,
                }
                match refusal {
                    None => write!(f, " {}", done(message)),
                    Some(refusal) => {
                        let mut code = Vec::new();
                        let written = cbor::encode(refusal, Form::Numbered, &mut code);
                        debug_assert!(written);
                        write!(f, " refused {} {refusal}", const_hex::encode_prefixed(code))
                    }
                }
            }
            Self::Head(LogHead { term, number, time_ms, hash, signature, .. }) => {
                write!(f, "= {number} {term} {time_ms} {hash} {signature}")
            }
        }
    }
}

/// What a record says where nothing was refused.
fn done(message: &Message) -> &'static str {
    if matches!(message, Message::Command { .. }) { "done" } else { "signed" }
}

/// A message's type and numbers.
struct Shown<'a>(&'a Message);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Message::Command { kind, counter, operators, keys, keys_sha256 } = self.0 {
            return write!(f, "{COMMAND} {} {counter} {operators} {keys} {keys_sha256}", kind.name());
        }
        let (name, numbers) = words(self.0);
        f.write_str(name)?;
        numbers.iter().flatten().try_for_each(|number| write!(f, " {number}"))
    }
}

fn words(message: &Message) -> (&'static str, [Option<u64>; 2]) {
    let one = |slot: Slot| [Some(slot.0), None];
    match *message {
        Message::Block { slot } => ("block", one(slot)),
        Message::Attestation { source, target } => ("attestation", [Some(source.0), Some(target.0)]),
        Message::AggregationSlot { slot } => ("aggregation_slot", one(slot)),
        Message::AggregateAndProof { slot } => ("aggregate_and_proof", one(slot)),
        Message::RandaoReveal { epoch } => ("randao_reveal", [Some(epoch.0), None]),
        Message::VoluntaryExit { epoch, validator_index } => ("voluntary_exit", [Some(epoch.0), Some(validator_index)]),
        Message::SyncCommitteeMessage { slot } => ("sync_committee_message", one(slot)),
        Message::SyncCommitteeSelectionProof { slot } => ("sync_committee_selection_proof", one(slot)),
        Message::ContributionAndProof { slot } => ("contribution_and_proof", one(slot)),
        Message::ValidatorRegistration => ("validator_registration", [None, None]),
        Message::Deposit { amount } => ("deposit", [Some(amount), None]),
        Message::ExecutionPayloadBid { slot } => ("execution_payload_bid", one(slot)),
        Message::ExecutionPayloadEnvelope { slot } => ("execution_payload_envelope", one(slot)),
        Message::PayloadAttestation { slot } => ("payload_attestation", one(slot)),
        Message::ProposerPreferences { slot } => ("proposer_preferences", one(slot)),
        Message::BuilderRequestAuth { slot } => ("builder_request_auth", one(slot)),
        Message::ProofOfValidation => ("proof_of_validation", [None, None]),
        // It is written in a form of its own.
        Message::Command { counter, .. } => (COMMAND, [Some(counter), None]),
    }
}

fn command<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Message> {
    let kind = ActionKind::named(words.next()?)?;
    let counter = number(words.next()?)?;
    let (operators, keys) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Message::Command { kind, counter, operators, keys, keys_sha256: hex(words.next()?)? })
}

/// Reads the numbers of a message behind its name.
fn message<'a>(name: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Message> {
    if name == COMMAND {
        return command(words);
    }
    let mut next = || words.next().and_then(number);
    Some(match name {
        "block" => Message::Block { slot: Slot(next()?) },
        "attestation" => Message::Attestation { source: Epoch(next()?), target: Epoch(next()?) },
        "aggregation_slot" => Message::AggregationSlot { slot: Slot(next()?) },
        "aggregate_and_proof" => Message::AggregateAndProof { slot: Slot(next()?) },
        "randao_reveal" => Message::RandaoReveal { epoch: Epoch(next()?) },
        "voluntary_exit" => Message::VoluntaryExit { epoch: Epoch(next()?), validator_index: next()? },
        "sync_committee_message" => Message::SyncCommitteeMessage { slot: Slot(next()?) },
        "sync_committee_selection_proof" => Message::SyncCommitteeSelectionProof { slot: Slot(next()?) },
        "contribution_and_proof" => Message::ContributionAndProof { slot: Slot(next()?) },
        "validator_registration" => Message::ValidatorRegistration,
        "deposit" => Message::Deposit { amount: next()? },
        "execution_payload_bid" => Message::ExecutionPayloadBid { slot: Slot(next()?) },
        "execution_payload_envelope" => Message::ExecutionPayloadEnvelope { slot: Slot(next()?) },
        "payload_attestation" => Message::PayloadAttestation { slot: Slot(next()?) },
        "proposer_preferences" => Message::ProposerPreferences { slot: Slot(next()?) },
        "builder_request_auth" => Message::BuilderRequestAuth { slot: Slot(next()?) },
        "proof_of_validation" => Message::ProofOfValidation,
        _ => return None,
    })
}

fn number(word: &str) -> Option<u64> {
    word.parse().ok()
}

fn hex<const N: usize>(word: &str) -> Option<Bytes<N>> {
    const_hex::decode_to_array(word.strip_prefix("0x")?).ok().map(Bytes)
}

fn bounded<const MIN: usize, const MAX: usize>(word: &str) -> Option<BoundedBytes<MIN, MAX>> {
    BoundedBytes::new(const_hex::decode(word.strip_prefix("0x")?).ok()?)
}

/// Reads a line, without its end. `boot_nonce`: that of the file's first line, for heads.
pub fn parse(line: &str, boot_nonce: Bytes<32>) -> Result<Parsed, LineError> {
    if line.len() > MAX_LINE_LEN {
        return Err(LineError::TooLong(line.len()));
    }
    let mut words = line.split(' ');
    let first = words.next().unwrap_or_default();
    let parsed = match first {
        MAGIC => start(&mut words).ok_or(LineError::Malformed("the first line"))?,
        "+" => record(&mut words).ok_or(LineError::Malformed("a record"))?,
        "=" => head(&mut words, boot_nonce).ok_or(LineError::Malformed("a head"))?,
        _ => return Err(LineError::Malformed("it begins with none of + and =")),
    };
    // One form: anything else in the line, or in another way, was not written by a proxy.
    let mut again = Comparer { expected: line };
    if write!(again, "{parsed}").is_ok() && again.expected.is_empty() {
        return Ok(Parsed { line: parsed, reworded: false });
    }
    if reworded(line, &parsed) {
        return Ok(Parsed { line: parsed, reworded: true });
    }
    Err(LineError::Malformed("what it says is not what its code says"))
}

/// Whether all but the sentence behind a refusal's code is in its one form, and there is a sentence of printable text.
fn reworded(line: &str, parsed: &Line) -> bool {
    let Line::Record { record: LogRecord { refusal: Some(refusal), .. }, .. } = parsed else { return false };
    let (own, sentence) = (parsed.to_string(), refusal.to_string());
    let up_to_code = own.strip_suffix(&sentence);
    let other = up_to_code.and_then(|up_to_code| line.strip_prefix(up_to_code));
    other.is_some_and(|other| !other.trim().is_empty() && other.trim() == other && !other.chars().any(char::is_control))
}

fn start<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Line> {
    if words.next()? != VERSION {
        return None;
    }
    let (boot_nonce, statement, document) = (hex(words.next()?)?, bounded(words.next()?)?, bounded(words.next()?)?);
    Some(Line::Start { boot_nonce, statement, document })
}

fn record<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Line> {
    let (number, time_ms) = (number(words.next()?)?, number(words.next()?)?);
    let public_key = hex(words.next()?)?;
    let name = words.next()?;
    let message = message(name, words)?;
    let signing_root = match words.next()? {
        "-" => None,
        root => Some(hex(root)?),
    };
    let refusal = match words.next()? {
        word if word == done(&message) => None,
        "refused" => {
            let code: BoundedBytes<1, 1024> = bounded(words.next()?)?;
            Some(cbor::decode::<Refusal>(code.as_ref(), Form::Numbered)?)
        }
        _ => return None,
    };
    Some(Line::Record { number, record: LogRecord { time_ms, public_key, message, signing_root, refusal } })
}

fn head<'a>(words: &mut impl Iterator<Item = &'a str>, boot_nonce: Bytes<32>) -> Option<Line> {
    let mut next = || number(words.next()?);
    let (number, term, time_ms) = (next()?, next()?, next()?);
    let (hash, signature) = (hex(words.next()?)?, hex(words.next()?)?);
    Some(Line::Head(LogHead { boot_nonce, term, number, time_ms, hash, signature }))
}

/// Takes what is written and compares it with what is expected.
struct Comparer<'a> {
    expected: &'a str,
}

impl fmt::Write for Comparer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.expected = self.expected.strip_prefix(text).ok_or(fmt::Error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PublicKey, Root};

    const BOOT: Bytes<32> = Bytes([5; 32]);

    fn all() -> Vec<Line> {
        let record = |message, signing_root, refusal| {
            let record =
                LogRecord { time_ms: u64::MAX, public_key: PublicKey::from([7; 48]), message, signing_root, refusal };
            Line::Record { number: 17, record }
        };
        let (slot, epoch, root) = (Slot(u64::MAX), Epoch(3), Some(Root::from([9; 32])));
        let mut lines: Vec<Line> = [
            Message::Block { slot },
            Message::Attestation { source: epoch, target: Epoch(4) },
            Message::AggregationSlot { slot },
            Message::AggregateAndProof { slot },
            Message::RandaoReveal { epoch },
            Message::VoluntaryExit { epoch, validator_index: 8 },
            Message::SyncCommitteeMessage { slot },
            Message::SyncCommitteeSelectionProof { slot },
            Message::ContributionAndProof { slot },
            Message::ValidatorRegistration,
            Message::Deposit { amount: 32 },
            Message::ExecutionPayloadBid { slot },
            Message::ExecutionPayloadEnvelope { slot },
            Message::PayloadAttestation { slot },
            Message::ProposerPreferences { slot },
            Message::BuilderRequestAuth { slot },
            Message::ProofOfValidation,
        ]
        .into_iter()
        .map(|message| record(message, root, None))
        .collect();
        let keys_sha256 = Root::from([3; 32]);
        for kind in ActionKind::ALL {
            let message = Message::Command { kind, counter: u64::MAX, operators: 5, keys: 2, keys_sha256 };
            lines.push(record(message, root, None));
            lines.push(record(message, root, Some(Refusal::CommandBusy)));
        }
        lines.push(record(Message::Block { slot }, root, Some(Refusal::BlockNotAboveLast { slot, last: Slot(5) })));
        lines.push(record(Message::Block { slot }, None, Some(Refusal::UnknownKey)));
        let asked = Root::from([1; 32]);
        lines.push(record(Message::Block { slot }, None, Some(Refusal::OtherNetwork { asked, served: asked })));
        lines.push(Line::Head(LogHead {
            boot_nonce: BOOT,
            term: 2,
            number: 0,
            time_ms: 1,
            hash: asked,
            signature: Bytes([4; 64]),
        }));
        let (statement, document) = (BoundedBytes::new(vec![1]).unwrap(), BoundedBytes::new(vec![2; 5]).unwrap());
        lines.push(Line::Start { boot_nonce: BOOT, statement, document });
        lines
    }

    #[test]
    fn lines_are_read_as_they_were_written_and_in_no_other_way() {
        for line in all() {
            let text = line.to_string();
            let refused = text.contains(" refused ");
            assert_eq!(parse(&text, BOOT), Ok(Parsed { line: line.clone(), reworded: false }), "{text}");
            for other in
                [format!("{text} "), format!(" {text}"), text.replacen(' ', "  ", 1), text.replacen("0x", "0X", 1)]
            {
                assert!(parse(&other, BOOT).is_err(), "{other}");
            }
            for other in [format!("{text}x"), text.get(..text.len() - 1).unwrap().to_owned()] {
                let parsed = parse(&other, BOOT);
                if refused {
                    assert_eq!(parsed, Ok(Parsed { line: line.clone(), reworded: true }), "{other}");
                } else {
                    assert!(parsed.is_err(), "{other}");
                }
            }
        }
        let line = all().remove(0).to_string();
        assert!(parse(&line.replace("+ 17", "+ 017"), BOOT).is_err());
        assert!(parse(&line.replace("+ 17", "+ +17"), BOOT).is_err());
        assert!(parse(&line.replace("0707", "070G"), BOOT).is_err());
        assert_eq!(parse(&"x".repeat(MAX_LINE_LEN + 1), BOOT), Err(LineError::TooLong(MAX_LINE_LEN + 1)));
        for bad in ["", "+", "=", MAGIC, "+ 1", "hello"] {
            assert!(parse(bad, BOOT).is_err(), "{bad}");
        }
        // A command is done, and a message signed; neither is the other.
        let command = all().into_iter().find(|line| line.to_string().ends_with(" done")).unwrap().to_string();
        assert!(parse(&command.replace(" done", " signed"), BOOT).is_err());
        assert!(parse(&line.replace(" signed", " done"), BOOT).is_err());
        // Another sentence than its code's is told; a code that is another one than the line's is not a line at all.
        let refused = all().into_iter().find(|line| line.to_string().contains("last signed slot")).unwrap().to_string();
        let parsed = |text: &str| parse(text, BOOT).map(|parsed| parsed.reworded);
        assert_eq!(parsed(&refused), Ok(false));
        assert_eq!(parsed(&refused.replace("last signed slot 5", "last signed slot 6")), Ok(true));
        let (up_to_code, _) = refused.split_once(" block refused").unwrap();
        assert_eq!(parsed(&format!("{up_to_code} another sentence")), Ok(true));
        for sentence in ["", " ", "\u{1b}[2J", " two spaces before", "behind "] {
            assert!(parsed(&format!("{up_to_code} {sentence}")).is_err(), "{sentence:?}");
        }
    }
}
