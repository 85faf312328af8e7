//! A judgement, for people and for programs. It shows nothing that is not verified.

use std::fmt::Write;

use casemate_document::{AWS_ROOT_G1_SHA256, Document, Expected, Pcr};
use casemate_protocol::configuration::Window;
use casemate_protocol::statement::{FenceKind, FenceStatement, StatedRecord, StatedState, StatedStatus};
use casemate_protocol::{Bytes, PublicKey, Root, Statement};
use serde_json::{Map, Value, json};

use crate::keys;
use crate::util::plural;

/// The last word.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that was expected is there.
    Accepted,
    /// Verified and shown, compared with nothing.
    Described,
    /// With the reason.
    Refused(String),
}

/// What the proxy says that the keys are.
pub enum ProxysKeys {
    /// It was not asked.
    NotAsked,
    /// It was, and did not say.
    Unknown,
    /// Those of the statement.
    Same,
    /// Others.
    Others { count: usize, root: Root },
}

/// A judged document.
pub struct Report {
    pub len: usize,
    pub sha256: [u8; 32],
    pub root_sha256: [u8; 32],
    pub expected: Expected,
    pub archived: bool,
    pub statement_given: bool,
    /// What of the statement was expected.
    pub stated: Vec<&'static str>,
    /// The document once it is verified, and the statement that it binds.
    pub judged: Option<(Document, Option<Statement>)>,
    pub proxys_keys: ProxysKeys,
    /// What the measured configuration allows, where it was given and is the one that the statement names.
    pub policy: Option<Vec<(&'static str, String)>>,
    /// Which of the proxy's enclaves was asked.
    pub enclave: Option<u32>,
    pub verdict: Verdict,
}

impl ProxysKeys {
    /// A list, beside the statement.
    pub fn listed(keys: &[PublicKey], statement: &Statement) -> Self {
        let (count, root) = (keys.len(), keys::root(keys));
        if root == statement.public_keys.root { Self::Same } else { Self::Others { count, root } }
    }
}

impl Report {
    /// Whether the verdict is a refusal.
    pub fn is_refused(&self) -> bool {
        matches!(self.verdict, Verdict::Refused(_))
    }

    /// For people: it reads like a certificate, and the last line is the verdict.
    pub fn text(&self) -> String {
        let mut out = format!("Attestation document, {} bytes, SHA-256 {}\n", self.len, const_hex::encode(self.sha256));
        if let Some((document, statement)) = &self.judged {
            self.document(document, statement.is_some(), &mut out);
            if let Some(statement) = statement {
                self.statement(statement, &mut out);
            }
            for (number, (name, words)) in self.policy.iter().flatten().enumerate() {
                if number == 0 {
                    section(&mut out, "Is configured to");
                }
                line(&mut out, name, words);
            }
        }
        let _ = match &self.verdict {
            Verdict::Accepted if self.judged.as_ref().is_some_and(|(document, _)| document.is_debug()) => {
                writeln!(out, "\nACCEPTED in debug mode: nothing is measured, and the parent can read the memory")
            }
            Verdict::Accepted => writeln!(out, "\nACCEPTED"),
            Verdict::Described => writeln!(out, "\nDESCRIBED, not accepted (--describe-only)"),
            Verdict::Refused(reason) => writeln!(out, "\nREFUSED: {reason}"),
        };
        out
    }

    fn document(&self, document: &Document, has_statement: bool, out: &mut String) {
        section(out, "Who");
        line(out, "module", document.module_id());
        if document.is_debug() {
            line(out, "", "IN DEBUG MODE: PCR0, PCR1 and PCR2 are zero, and the parent can read its memory");
        }
        self.times(document, out);
        self.measured(document, out);
        self.signers(document, out);
        bound(document, has_statement, out);
    }

    fn times(&self, document: &Document, out: &mut String) {
        section(out, "When");
        line(out, "made", &document.timestamp().to_string());
        if self.archived {
            line(out, "verified", "for the document's own time: how old it is was not judged");
        } else {
            let age = document.verified_at().since(document.timestamp());
            let age = format!("{}.{:01} s later", age.as_secs(), age.subsec_millis() / 100);
            line(out, "verified", &format!("for {}, {age}", document.verified_at()));
        }
        let expected = self.expected.nonce.as_deref();
        let nonce = document.nonce().map(|nonce| format!("{}{}", shortened(nonce), mark(expected, nonce)));
        line(out, "nonce", nonce.as_deref().unwrap_or("none"));
    }

    fn measured(&self, document: &Document, out: &mut String) {
        section(out, "Measured");
        for (index, value) in document.pcrs() {
            let expected = self.expected.pcrs.get(index);
            if *value != [0; 48] || *index <= 2 || expected.is_some() {
                let mark = mark(expected.map(Pcr::as_slice), value);
                line(out, &format!("PCR{index}"), &format!("{}{mark}{}", const_hex::encode(value), meaning(*index)));
            }
        }
        let zeros = document.pcrs().values().filter(|value| **value == [0; 48]).count();
        if zeros > 0 {
            line(out, "", &format!("{zeros} of {} are zero", document.pcrs().len()));
        }
    }

    fn signers(&self, document: &Document, out: &mut String) {
        section(out, "Signed by");
        let chain = document.chain();
        for (number, certificate) in chain.iter().enumerate().rev() {
            let name = match number {
                0 => "root",
                _ if number.saturating_add(1) == chain.len() => "leaf",
                _ => "",
            };
            line(out, name, &certificate.subject);
            line(out, "", &format!("valid {} to {}", certificate.not_before, certificate.not_after));
        }
        let root = const_hex::encode(self.root_sha256);
        let whose =
            if root == AWS_ROOT_G1_SHA256 { "AWS Nitro Enclaves root G1" } else { "NOT AWS's root: given by --root" };
        line(out, "", &format!("SHA-256 {root} ({whose})"));
    }

    fn statement(&self, statement: &Statement, out: &mut String) {
        section(out, "States");
        line(out, "product", &format!("Casemate {}", statement.product_version));
        line(out, "group", &statement.group);
        line(out, "network", &statement.network.name);
        line(out, "", &format!("genesis_validators_root {}", statement.network.genesis_validators_root));
        let keys = &statement.public_keys;
        line(out, "keys", &format!("{} that sign, root {}", keys.count, keys.root));
        match &self.proxys_keys {
            ProxysKeys::NotAsked => {}
            ProxysKeys::Unknown => line(out, "", "the proxy does not list them"),
            ProxysKeys::Same => line(out, "", "the proxy lists the same keys"),
            ProxysKeys::Others { count, root } => {
                line(out, "", &format!("THE PROXY LISTS OTHERS: {count} keys, root {root}"));
            }
        }
        let same = if self.policy.is_some() { "  as expected" } else { "  not compared (--config FILE.toml)" };
        line(out, "config", &format!("SHA-256 {}{same}", statement.configuration_sha256));
        line(out, "fence", &fence(&statement.fence));
        if let Some(store) = &statement.fence.store {
            line(out, "", &format!("its record is in {store}"));
        }
        for (number, words) in window(statement.window).iter().enumerate() {
            line(out, if number == 0 { "window" } else { "" }, words);
        }
        if let Some(StatedState { number, sha256, .. }) = &statement.state {
            line(out, "state", &format!("sealed state {number}, SHA-256 {sha256} (casemate backup verify)"));
        }
        line(out, "boot nonce", &statement.boot_nonce.to_string());
    }

    /// For programs.
    pub fn json(&self) -> String {
        let (verdict, reason) = match &self.verdict {
            Verdict::Accepted => ("accepted", None),
            Verdict::Described => ("described", None),
            Verdict::Refused(reason) => ("refused", Some(reason)),
        };
        let mut compared: Vec<String> = self.expected.pcrs.keys().map(|index| format!("pcr{index}")).collect();
        let others = [
            ("nonce", self.expected.nonce.is_some()),
            ("user_data", self.statement_given),
            ("age", self.expected.max_age.is_some()),
        ];
        compared.extend(others.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned()));
        compared.extend(self.stated.iter().map(ToString::to_string));
        let mut report = json!({
            "verdict": verdict,
            "reason": reason,
            "expected": compared,
            "document_sha256": const_hex::encode(self.sha256),
            "root_sha256": const_hex::encode(self.root_sha256),
            "root_is_aws_g1": const_hex::encode(self.root_sha256) == AWS_ROOT_G1_SHA256,
        });
        if let (Some((document, statement)), Value::Object(report)) = (&self.judged, &mut report) {
            report.insert("document".to_owned(), document_json(document));
            report.insert("statement".to_owned(), statement.as_ref().map_or(Value::Null, statement_json));
            let same = match &self.proxys_keys {
                ProxysKeys::Same => json!(true),
                ProxysKeys::Others { .. } => json!(false),
                ProxysKeys::NotAsked | ProxysKeys::Unknown => Value::Null,
            };
            report.insert("proxy_lists_the_same_keys".to_owned(), same);
            let policy = self.policy.as_ref().map(|lines| lines.iter().map(|(_, words)| words).collect::<Vec<_>>());
            report.insert("policy".to_owned(), json!(policy));
        }
        format!("{report:#}\n")
    }
}

/// What a document carries beside its measurements.
fn bound(document: &Document, has_statement: bool, out: &mut String) {
    section(out, "Binds");
    let (hpke, statement) = if has_statement {
        ("  HPKE key: DHKEM(X25519, HKDF-SHA256)", "  SHA-256 of the statement")
    } else {
        ("", "  not compared: no statement is here")
    };
    let shown = |bytes: Option<&[u8]>, about: &str| {
        bytes.map_or("none".to_owned(), |bytes| format!("{}{about}", shortened(bytes)))
    };
    line(out, "public_key", &shown(document.public_key(), hpke));
    line(out, "user_data", &shown(document.user_data(), statement));
}

fn document_json(document: &Document) -> Value {
    let pcrs: Map<String, Value> =
        document.pcrs().iter().map(|(index, value)| (index.to_string(), const_hex::encode(value).into())).collect();
    let chain: Vec<Value> = document
        .chain()
        .iter()
        .map(|certificate| {
            json!({
                "subject": certificate.subject,
                "not_before": certificate.not_before.to_string(),
                "not_after": certificate.not_after.to_string(),
                "sha256": const_hex::encode(certificate.sha256),
            })
        })
        .collect();
    json!({
        "module_id": document.module_id(),
        "timestamp_ms": document.timestamp().0,
        "timestamp": document.timestamp().to_string(),
        "verified_at": document.verified_at().to_string(),
        "debug": document.is_debug(),
        "pcrs": pcrs,
        "nonce": document.nonce().map(const_hex::encode),
        "user_data": document.user_data().map(const_hex::encode),
        "public_key": document.public_key().map(const_hex::encode),
        "chain": chain,
    })
}

fn statement_json(statement: &Statement) -> Value {
    json!({
        "product_version": statement.product_version,
        "group": statement.group,
        "network": {
            "name": statement.network.name,
            "genesis_validators_root": statement.network.genesis_validators_root.to_string(),
        },
        "public_keys": {
            "count": statement.public_keys.count,
            "root": statement.public_keys.root.to_string(),
        },
        "configuration_sha256": statement.configuration_sha256.to_string(),
        "fence": fence_json(&statement.fence),
        "state": state_json(statement.state.as_ref()),
        "window": {
            "max_block_age_slots": statement.window.max_block_age_slots,
            "max_target_age_epochs": statement.window.max_target_age_epochs,
        },
        "boot_nonce": statement.boot_nonce.to_string(),
    })
}

fn section(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n{title}");
}

fn line(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "  {name:<12}{text}");
}

/// Hex of bytes that may be many.
fn shortened(bytes: &[u8]) -> String {
    match bytes.get(..64) {
        Some(start) if bytes.len() > 64 => format!("{}… ({} bytes)", const_hex::encode(start), bytes.len()),
        _ if bytes.is_empty() => "empty".to_owned(),
        _ => const_hex::encode(bytes),
    }
}

fn mark(expected: Option<&[u8]>, found: &[u8]) -> &'static str {
    match expected {
        None => "  not compared",
        Some(expected) if expected == found => "  as expected",
        Some(_) => "  NOT AS EXPECTED",
    }
}

/// What AWS says of a PCR.
fn meaning(index: u8) -> &'static str {
    match index {
        0 => "  (the whole image)",
        1 => "  (kernel and boot ramdisk)",
        2 => "  (application)",
        3 => "  (the parent's IAM role)",
        4 => "  (the parent's instance id)",
        8 => "  (the image's signer)",
        _ => "",
    }
}

fn fence(fence: &FenceStatement) -> String {
    let FenceStatement { kind: of, term, standing, .. } = fence;
    let holds = match standing {
        StatedStatus::Holding => format!("held by this enclave in term {term}"),
        _ => "NOT held by this enclave, which signs nothing (casemate fence status)".to_owned(),
    };
    match of {
        FenceKind::None => {
            "NONE: a restored disk or a clone can get validators slashed; for development alone".to_owned()
        }
        FenceKind::Solo => "solo: trusted time after each start; a clone is NOT stopped".to_owned(),
        FenceKind::File => format!("file, {holds}: as good as the disk that keeps it"),
        FenceKind::Etcd | FenceKind::Dynamodb => format!("{of}, {holds}"),
    }
}

/// The sealed state in force, for programs.
pub fn state_json(state: Option<&StatedState>) -> Value {
    state.map_or(Value::Null, |state| {
        json!({ "number": state.number, "sha256": state.sha256.to_string(), "fence_version": state.fence_version })
    })
}

/// How old what it signs may be: a line for blocks, and one for votes.
pub fn window(window: Window) -> [String; 2] {
    let Window { max_block_age_slots, max_target_age_epochs } = window;
    let any = |what: &str| format!("{what} of ANY age are signed: for test networks and replays alone");
    [
        max_block_age_slots.map_or_else(
            || any("blocks"),
            |age| format!("blocks are signed until they are {} old", plural(age, "slot")),
        ),
        max_target_age_epochs.map_or_else(
            || any("votes"),
            |age| format!("votes are signed until their target is {} old", plural(age, "epoch")),
        ),
    ]
}

/// Whether the last holder has signed its last. While this enclave holds the fence it has not, whatever its record names: where watermarks
/// lie in a file, the record names at every moment the state that a successor would find. And a first record names the state that was
/// sealed with it.
pub fn is_released(fence: &FenceStatement, record: &StatedRecord) -> bool {
    fence.standing != StatedStatus::Holding && record.holder != Bytes::ZERO && record.released_state.is_some()
}

/// The fence, for programs.
pub fn fence_json(fence: &FenceStatement) -> Value {
    json!({
        "kind": fence.kind,
        "store": fence.store,
        "term": fence.term,
        "standing": fence.standing,
        "record": fence.record.map(|record| json!({
            "version": record.version,
            "holder": record.holder.to_string(),
            "term": record.term,
            "slot_ceiling": record.slot_ceiling.0,
            "target_ceiling": record.target_ceiling.0,
            "source_ceiling": record.source_ceiling.0,
            "min_state_version": record.min_state_version,
            "released": is_released(fence, &record),
            "released_state": record.released_state.map(|state| state.to_string()),
            "closed": record.closed,
        })),
        "floors": {
            "slot": fence.floors.slot.map(|slot| slot.0),
            "target": fence.floors.target.map(|epoch| epoch.0),
            "source": fence.floors.source.map(|epoch| epoch.0),
        },
        "time_ms": fence.time_ms,
    })
}

#[cfg(test)]
mod tests {
    use casemate_protocol::statement::StatedFloors;
    use casemate_protocol::{Epoch, Slot};

    use super::*;

    #[test]
    fn a_holder_is_not_said_to_have_released_the_fence() {
        let record = |holder, released_state| StatedRecord {
            version: 7,
            holder: Bytes([holder; 32]),
            term: 3,
            slot_ceiling: Slot(900),
            target_ceiling: Epoch(29),
            source_ceiling: Epoch(28),
            min_state_version: 12,
            released_state,
            closed: false,
        };
        let released = |standing, record: StatedRecord| {
            let without = FenceStatement::without_store(FenceKind::File, StatedFloors::default());
            let fence = FenceStatement { standing, record: Some(record), ..without };
            assert_eq!(fence_json(&fence)["record"]["released"], json!(is_released(&fence, &record)));
            is_released(&fence, &record)
        };
        let state = Some(Bytes([9; 32]));
        // As the development stack's holder stands, whose watermarks are in a file.
        assert!(!released(StatedStatus::Holding, record(1, state)));
        assert!(released(StatedStatus::Standby, record(1, state)));
        assert!(!released(StatedStatus::Standby, record(1, None)));
        assert!(!released(StatedStatus::Standby, record(0, state)), "a first record has had no holder");
    }
}
