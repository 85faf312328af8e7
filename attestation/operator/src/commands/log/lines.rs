//! Records of a log, chosen and written in the form that someone wants.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use casemate_protocol::command::OperatorKey;
use casemate_protocol::log::text::{Line, Parsed, parse};
use casemate_protocol::log::{LogRecord, Message};
use casemate_protocol::{Bytes, PublicKey, Root, Statement};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::exit::refused;
use crate::input;
use crate::util::{hex, plain, plural, sha256, time};

/// Columns of CSV: what a record of any type can have.
const COLUMNS: [&str; 19] = [
    "boot_nonce",
    "sequence",
    "time_ms",
    "public_key",
    "type",
    "slot",
    "epoch",
    "source",
    "target",
    "validator_index",
    "amount",
    "kind",
    "counter",
    "operators",
    "keys",
    "keys_sha256",
    "signing_root",
    "result",
    "reason",
];

/// Which records.
#[derive(Args, Clone, Debug)]
pub struct Choice {
    /// Of this key alone
    #[arg(long, value_name = "0xKEY")]
    pub key: Option<String>,
    /// Operators' commands alone
    #[arg(long)]
    pub commands: bool,
    /// Refusals alone
    #[arg(long)]
    pub refused: bool,
    /// The measured configuration: it says which operators a command's places are
    #[arg(id = "configuration", long = "config", value_name = "FILE.toml")]
    pub configuration: Option<PathBuf>,
}

/// A form for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A JSON object a line
    Jsonl,
    /// Comma-separated values, with a line of names first
    Csv,
}

/// Reads lines of one file after the other.
pub struct Reader {
    key: Option<PublicKey>,
    choice: Choice,
    configured: Option<(Root, Vec<OperatorKey>)>,
    boot_nonce: Bytes<32>,
}

/// A record with what names it.
pub struct Shown {
    boot_nonce: Bytes<32>,
    sequence: u64,
    record: LogRecord,
    /// Who signed a command.
    operators: Vec<String>,
}

impl Reader {
    pub fn new(choice: &Choice) -> Result<Self> {
        let key = choice.key.as_deref().map(|text| hex(text, "--key")).transpose()?;
        let configured = choice.configuration.as_deref().map(|path| -> Result<_> {
            let bytes = input::read(path)?;
            let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
            let digest = sha256(&bytes);
            let configuration =
                casemate_config::configuration(text, digest).with_context(|| format!("in {}", path.display()))?;
            Ok((digest, configuration.operators.keys))
        });
        Ok(Self { key, choice: choice.clone(), configured: configured.transpose()?, boot_nonce: Bytes::ZERO })
    }

    /// A line of a file; nothing where it is no record, or none that was asked for.
    pub fn line(&mut self, line: &str) -> Result<Option<Shown>> {
        let parsed = match parse(line, self.boot_nonce) {
            Ok(Parsed { line, .. }) => line,
            Err(error) => return refused(error.to_string()),
        };
        match parsed {
            Line::Start { boot_nonce, statement, .. } => {
                self.boot_nonce = boot_nonce;
                self.begins(statement.as_ref())?;
                Ok(None)
            }
            Line::Head(_) => Ok(None),
            Line::Record { number, record } => Ok(self.wants(&record).then(|| self.shown(number, record))),
        }
    }

    /// The configuration that was given must be that of the boot: other operators would be named otherwise.
    fn begins(&self, statement: &[u8]) -> Result<()> {
        let Some((expected, _)) = &self.configured else { return Ok(()) };
        let stated = Statement::decode(statement)?.configuration_sha256;
        if stated == *expected {
            return Ok(());
        }
        refused(format!("the boot {} had the configuration with SHA-256 {stated}, not {expected}", self.boot_nonce))
    }

    fn wants(&self, record: &LogRecord) -> bool {
        let command = matches!(record.message, Message::Command { .. });
        self.key.is_none_or(|key| key == record.public_key)
            && (command || !self.choice.commands)
            && (record.refusal.is_some() || !self.choice.refused)
    }

    fn shown(&self, sequence: u64, record: LogRecord) -> Shown {
        let operators = match record.message {
            Message::Command { operators, .. } => self.operators(operators),
            _ => Vec::new(),
        };
        Shown { boot_nonce: self.boot_nonce, sequence, record, operators }
    }

    /// By their keys where the configuration is here, by their places in it otherwise.
    fn operators(&self, bits: u32) -> Vec<String> {
        let places = (0..u32::BITS).filter(|place| bits.checked_shr(*place).is_some_and(|bits| bits & 1 == 1));
        let name = |place: u32| {
            let key = self.configured.as_ref().and_then(|(_, keys)| keys.get(usize::try_from(place).ok()?));
            key.map_or_else(|| format!("#{}", place.saturating_add(1)), ToString::to_string)
        };
        places.map(name).collect()
    }
}

impl Shown {
    /// For people.
    pub fn text(&self) -> String {
        let LogRecord { time_ms, public_key, message, .. } = &self.record;
        let what = if let Message::Command { kind, counter, keys, .. } = message {
            let (name, keys, operators) = (kind.name(), plural(*keys, "key"), self.operators.join(", "));
            format!("COMMAND {name} (counter {counter}, {keys}) by {operators}")
        } else {
            let fields: Vec<String> =
                self.fields().iter().map(|(name, value)| format!("{name} {}", shown(value))).collect();
            format!("{public_key} {} {}", self.kind(), fields.join(" "))
        };
        let reason =
            self.record.refusal.map(|refusal| format!(": {}", plain(&refusal.to_string()))).unwrap_or_default();
        format!("{}  {}  {what}  {}{reason}\n", time(*time_ms), self.sequence, self.result())
    }

    /// A JSON object in one line.
    pub fn json(&self) -> String {
        let LogRecord { time_ms, public_key, signing_root, refusal, .. } = &self.record;
        let mut object = Map::new();
        object.insert("boot_nonce".to_owned(), self.boot_nonce.to_string().into());
        object.insert("sequence".to_owned(), self.sequence.into());
        object.insert("time_ms".to_owned(), (*time_ms).into());
        object.insert("public_key".to_owned(), public_key.to_string().into());
        object.insert("type".to_owned(), self.kind().into());
        object.extend(self.fields().into_iter().map(|(name, value)| (name.to_owned(), value)));
        object.insert("signing_root".to_owned(), json!(signing_root.map(|root| root.to_string())));
        object.insert("result".to_owned(), self.result().into());
        if let Some(refusal) = refusal {
            object.insert("reason".to_owned(), refusal.to_string().into());
        }
        format!("{}\n", Value::Object(object))
    }

    /// A line of comma-separated values.
    pub fn csv(&self) -> String {
        let LogRecord { time_ms, public_key, signing_root, refusal, .. } = &self.record;
        let mut cells: BTreeMap<&str, String> =
            self.fields().into_iter().map(|(name, value)| (name, shown(&value))).collect();
        cells.insert("boot_nonce", self.boot_nonce.to_string());
        cells.insert("sequence", self.sequence.to_string());
        cells.insert("time_ms", time_ms.to_string());
        cells.insert("public_key", public_key.to_string());
        cells.insert("type", self.kind());
        cells.insert("signing_root", signing_root.map(|root| root.to_string()).unwrap_or_default());
        cells.insert("result", self.result().to_owned());
        cells.insert("reason", refusal.map(|refusal| refusal.to_string()).unwrap_or_default());
        let line: Vec<String> =
            COLUMNS.iter().map(|column| quoted(cells.get(column).map_or("", String::as_str))).collect();
        format!("{}\n", line.join(","))
    }

    fn result(&self) -> &'static str {
        match (self.record.refusal, self.record.message) {
            (Some(_), _) => "refused",
            (None, Message::Command { .. }) => "done",
            (None, _) => "signed",
        }
    }

    /// The type, as the log's files call it.
    fn kind(&self) -> String {
        match serde_json::to_value(self.record.message) {
            Ok(Value::String(name)) => name,
            Ok(Value::Object(object)) => object.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        }
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let one = |name, number: u64| vec![(name, number.into())];
        match self.record.message {
            Message::Block { slot }
            | Message::AggregationSlot { slot }
            | Message::AggregateAndProof { slot }
            | Message::SyncCommitteeMessage { slot }
            | Message::SyncCommitteeSelectionProof { slot }
            | Message::ContributionAndProof { slot }
            | Message::ExecutionPayloadBid { slot }
            | Message::ExecutionPayloadEnvelope { slot }
            | Message::PayloadAttestation { slot }
            | Message::ProposerPreferences { slot }
            | Message::BuilderRequestAuth { slot } => one("slot", slot.0),
            Message::Attestation { source, target } => {
                vec![("source", source.0.into()), ("target", target.0.into())]
            }
            Message::RandaoReveal { epoch } => one("epoch", epoch.0),
            Message::VoluntaryExit { epoch, validator_index } => {
                vec![("epoch", epoch.0.into()), ("validator_index", validator_index.into())]
            }
            Message::ValidatorRegistration | Message::ProofOfValidation => Vec::new(),
            Message::Deposit { amount } => one("amount", amount),
            Message::Command { kind, counter, keys, keys_sha256, .. } => vec![
                ("kind", kind.name().into()),
                ("counter", counter.into()),
                ("operators", json!(self.operators)),
                ("keys", keys.into()),
                ("keys_sha256", keys_sha256.to_string().into()),
            ],
        }
    }
}

/// The names of the columns.
pub fn csv_names() -> String {
    format!("{}\n", COLUMNS.join(","))
}

/// A value without JSON's quotation marks; a list with spaces.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// A cell as RFC 4180 has it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::command::ActionKind;
    use casemate_protocol::{Epoch, Refusal, Slot};

    use super::*;

    fn reader(more: impl FnOnce(&mut Choice)) -> Reader {
        let mut choice = Choice { key: None, commands: false, refused: false, configuration: None };
        more(&mut choice);
        Reader::new(&choice).unwrap()
    }

    fn line(message: Message, refusal: Option<Refusal>) -> String {
        let record =
            LogRecord { time_ms: 1_790_000_000_000, public_key: Bytes([7; 48]), message, signing_root: None, refusal };
        Line::Record { number: 3, record }.to_string()
    }

    #[test]
    fn operators_commands_are_seen_in_the_log_with_who_signed_them() {
        let keys_sha256 = Bytes([9; 32]);
        let message = Message::Command { kind: ActionKind::Delete, counter: 5, operators: 0b101, keys: 2, keys_sha256 };
        let command = line(message, None);
        let shown = reader(|choice| choice.commands = true).line(&command).unwrap().unwrap();
        assert!(shown.text().contains("COMMAND delete (counter 5, 2 keys) by #1, #3  done"), "{}", shown.text());
        let value: Value = serde_json::from_str(&shown.json()).unwrap();
        assert_eq!(
            (&value["type"], &value["kind"], &value["result"]),
            (&"command".into(), &"delete".into(), &"done".into())
        );
        assert_eq!((&value["operators"], &value["keys"]), (&json!(["#1", "#3"]), &2.into()));
        assert!(shown.csv().contains(",command,,,,,,,delete,5,#1 #3,2,0x0909"), "{}", shown.csv());
        let none = reader(|choice| choice.commands = true).line(&line(Message::ValidatorRegistration, None)).unwrap();
        assert!(none.is_none());
    }

    #[test]
    fn every_record_has_one_line_in_each_form_with_as_many_columns() {
        let refusal = Refusal::BlockNotAboveLast { slot: Slot(4), last: Slot(5) };
        let names = csv_names();
        for (message, refusal) in [
            (Message::Block { slot: Slot(4) }, Some(refusal)),
            (Message::Attestation { source: Epoch(1), target: Epoch(2) }, None),
            (Message::ValidatorRegistration, None),
        ] {
            let shown = reader(|_| {}).line(&line(message, refusal)).unwrap().unwrap();
            assert_eq!(shown.json().lines().count(), 1);
            // The one comma that a sentence has stands in quotes.
            let bare = shown.csv().split('"').step_by(2).collect::<String>();
            assert_eq!(bare.matches(',').count(), names.matches(',').count(), "{}", shown.csv());
        }
        assert_eq!(quoted("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert!(
            reader(|choice| choice.refused = true).line(&line(Message::ProofOfValidation, None)).unwrap().is_none()
        );
        let other = format!("0x{}", "08".repeat(48));
        assert!(
            reader(|choice| choice.key = Some(other)).line(&line(Message::ProofOfValidation, None)).unwrap().is_none()
        );
        assert!(reader(|_| {}).line("hello").is_err());
    }
}
