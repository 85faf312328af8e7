//! What commands order, for the operators who are to sign them. An operator signs what stands here, so it must be all of it.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};

use anyhow::{Context, Result, bail};
use casemate_protocol::command::{
    Action, Command, CredentialsId, EncryptedSecrets, MIN_DEPOSIT, OperatorKey, RecordOrder, SignedCommand,
    withdrawal_address,
};
use casemate_protocol::watermarks::Watermarks;
use casemate_protocol::{Bytes, Root};

use crate::closed_record;
use crate::command_file;
use crate::exit::{Answer, Exit};
use crate::operator_key::is_signed;
use crate::util::{plain, plural, quoted, time};

/// What commands order.
pub fn summary(commands: &[Command]) -> Result<String> {
    let first = commands.first().context("there is no command in it")?;
    let keys: usize = commands.iter().map(Command::keys).sum();
    let mut out = format!(
        "{} about {} for the group {} on the chain {}\nboot nonce {}\n",
        plural(commands.len(), "command"),
        plural(keys, "key"),
        quoted(&first.group),
        first.genesis_validators_root,
        first.boot_nonce
    );
    for command in commands {
        if enclave_of(command) != enclave_of(first) {
            bail!("the commands are for different enclaves");
        }
        let _ = write!(out, "\ncounter {} ({})\n{}", command.counter, time(command.counter), ordered(&command.action));
    }
    Ok(out)
}

/// What commands order, and who has signed them.
pub fn signed_summary(signed: &[SignedCommand]) -> Result<Answer> {
    let mut exit = Exit::Accepted;
    let mut out = summary(&command_file::commands(signed)?)?;
    let (signers, valid) = (signers(signed), valid_signers(signed));
    out.push_str("\nsigned by:\n");
    for operator in &signers {
        let is_valid = valid.contains(operator);
        if !is_valid {
            exit = Exit::Refused;
        }
        let note = if is_valid { "" } else { "  SIGNATURE NOT VALID, or not for all commands" };
        let _ = writeln!(out, "  {operator}{note}");
    }
    if signers.is_empty() {
        out.push_str("  no one\n");
    }
    Ok((out, exit))
}

/// Everyone whose signature stands anywhere in the file, in the order of the file.
fn signers(signed: &[SignedCommand]) -> Vec<OperatorKey> {
    let mut signers = Vec::new();
    for signature in signed.iter().flat_map(|one| &one.signatures) {
        if !signers.contains(&signature.operator) {
            signers.push(signature.operator);
        }
    }
    signers
}

/// Those who have signed every command.
pub fn valid_signers(signed: &[SignedCommand]) -> BTreeSet<OperatorKey> {
    let signs_all = |operator: &OperatorKey| {
        signed.iter().all(|one| {
            let its = one.signatures.iter().find(|signature| signature.operator == *operator);
            its.is_some_and(|signature| is_signed(one.command.as_ref(), signature))
        })
    };
    signers(signed).into_iter().filter(signs_all).collect()
}

/// Until when commands are good.
pub fn lifetime(commands: &[Command]) -> String {
    let boot = commands.first().map(|command| command.boot_nonce.to_string()).unwrap_or_default();
    let counter = commands.iter().map(|command| command.counter).min().unwrap_or_default();
    format!(
        "good for the boot {boot} of the enclave alone: it is of no use once the enclave has started anew, or has carried out \
         a command with a counter from {counter} on\n"
    )
}

/// What a key has signed so far.
pub fn history(past: &Watermarks) -> String {
    let block = past.block.map_or("no block".to_owned(), |b| format!("block {}", b.slot));
    let attestation =
        past.attestation.map_or("no attestation".to_owned(), |a| format!("attestation {} → {}", a.source, a.target));
    format!("{block}, {attestation}")
}

fn enclave_of(command: &Command) -> (&str, Root, Bytes<32>) {
    (command.group.as_ref(), command.genesis_validators_root, command.boot_nonce)
}

/// What an action orders: a line that says it, and one for each key.
fn ordered(action: &Action) -> String {
    match action {
        Action::Import { keys, .. } => list(
            format!("IMPORT {}:", plural(keys.len(), "key")),
            keys.iter().map(|key| format!("{}  {}", key.public_key, imported_history(key.history.as_ref()))),
        ),
        Action::Generate { count, withdrawal_credentials, amount } => {
            format!("GENERATE {}, {}\n", plural(*count, "key"), deposit(withdrawal_credentials, *amount))
        }
        Action::Deposit { keys, withdrawal_credentials, amount } => {
            let deposit = deposit(withdrawal_credentials, *amount);
            list(format!("SIGN DEPOSITS of {}, {deposit}:", plural(keys.len(), "key")), keys)
        }
        Action::FenceInit { record, credentials, credentials_id } => {
            fence_init(record, credentials.as_ref(), credentials_id.as_ref())
        }
        Action::FenceClose => {
            "END THE FENCE'S RECORD for good: nothing is signed until the next one is made (casemate fence init --after)\n"
                .to_owned()
        }
        Action::Exit { exits, last_epoch } => list(
            format!(
                "EXIT {} for good, and let clients have such exits signed until epoch {last_epoch}:",
                plural(exits.len(), "validator")
            ),
            exits.iter().map(|exit| format!("{}  validator {}", exit.public_key, exit.validator_index)),
        ),
        Action::FeeRecipient { keys, fee_recipient } => {
            let to = fee_recipient.map_or("where the configuration says".to_owned(), |to| format!("to {to}"));
            list(format!("SEND THE FEES of {} {to}:", plural(keys.len(), "key")), keys)
        }
        Action::RaiseHistory { keys } => list(
            format!("RAISE what {} have signed:", plural(keys.len(), "key")),
            keys.iter().map(|key| format!("{}  {}", key.public_key, history(&key.past))),
        ),
        Action::Handover => "HAND OVER: sign no more, and leave the exact state for a successor\n".to_owned(),
        Action::Takeover => "TAKE OVER: acquire the fence at once, from any enclave that holds it\n".to_owned(),
        Action::Delete { keys } => list(format!("DELETE {}:", plural(keys.len(), "key")), keys),
    }
}

fn list<T: Display>(title: String, lines: impl IntoIterator<Item = T>) -> String {
    let mut out = title + "\n";
    for line in lines {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn imported_history(known: Option<&Watermarks>) -> String {
    known.map_or_else(
        || "NO HISTORY: accepted as unknown, the key starts above the moment of the import".to_owned(),
        history,
    )
}

fn deposit(credentials: &Root, gwei: u64) -> String {
    let address = withdrawal_address(credentials).map(|address| address.to_string());
    let (eth, rest) = (gwei / MIN_DEPOSIT, gwei % MIN_DEPOSIT);
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:09}") };
    format!(
        "each with a deposit of {gwei} Gwei ({eth}{fraction} ETH) that withdraws to {} (credentials {credentials})",
        address.as_deref().unwrap_or("no address")
    )
}

fn fence_init(record: &RecordOrder, secrets: Option<&EncryptedSecrets>, id: Option<&CredentialsId>) -> String {
    let (what, on_condition) = record_order(record);
    let condition = on_condition.map(|condition| format!("  {condition}\n")).unwrap_or_default();
    format!("{what}{}\n{condition}", credentials(secrets, id))
}

/// What becomes of the record, and under which condition.
fn record_order(record: &RecordOrder) -> (&'static str, Option<String>) {
    match record {
        RecordOrder::New => {
            ("MAKE THE FENCE'S FIRST RECORD: no key of the group has signed under a fence before", None)
        }
        RecordOrder::Lost { last } => (
            "MAKE THE FENCE'S RECORD ANEW, because its store has lost it",
            Some(format!(
                "only from a state whose keys have the root {}, and that has seen version {} of the record\n  \
                 every other enclave of the group must have ended: one that still holds the lost record signs up to its ceilings",
                last.keys_root, last.fence_version
            )),
        ),
        RecordOrder::Keep => ("EXCHANGE THE CREDENTIALS of the fence's store", None),
        RecordOrder::After { closed } => {
            ("MAKE THE FENCE'S NEXT RECORD, after one that has ended", Some(closed_record::line(closed)))
        }
    }
}

fn credentials(secrets: Option<&EncryptedSecrets>, id: Option<&CredentialsId>) -> String {
    match (secrets, id.map(credentials_id)) {
        (None, None) => String::new(),
        (Some(_), Some(id)) => format!(", with credentials for its store: {id}"),
        // The enclave refuses both.
        (Some(_), None) => ", with CREDENTIALS THAT IT DOES NOT NAME: do not sign".to_owned(),
        (None, Some(id)) => format!(", and NAMES CREDENTIALS WITHOUT BRINGING THEM ({id})"),
    }
}

/// Credentials as AWS and `openssl x509 -fingerprint -sha256` show them too.
fn credentials_id(id: &CredentialsId) -> String {
    match id {
        CredentialsId::AccessKey(id) => format!("access key {}", plain(id)),
        CredentialsId::Certificate(sha256) => format!("client certificate SHA-256 {}", const_hex::encode(sha256.0)),
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::BoundedBytes;

    use super::*;

    #[test]
    fn operators_who_sign_see_which_credentials_the_fences_store_gets() {
        let secrets = || EncryptedSecrets { enc: Bytes([1; 32]), ciphertext: BoundedBytes::new(vec![2; 48]).unwrap() };
        let told = |credentials: Option<EncryptedSecrets>, credentials_id: Option<CredentialsId>| {
            let action = Action::FenceInit { record: RecordOrder::New, credentials, credentials_id };
            let command = Command::new("main".into(), Bytes([5; 32]), Bytes([6; 32]), 7, action);
            // As `casemate command show` and `sign` read it from a file.
            let signed = SignedCommand::new(command.encode().unwrap(), Vec::new());
            signed_summary(&[signed]).unwrap().0
        };
        let access_key = || Some(CredentialsId::AccessKey("AKIDEXAMPLE".into()));
        let text = told(Some(secrets()), access_key());
        assert!(text.contains("with credentials for its store: access key AKIDEXAMPLE\n"), "{text}");
        let text = told(Some(secrets()), Some(CredentialsId::Certificate(Bytes([0xab; 32]))));
        assert!(text.contains(&format!("client certificate SHA-256 {}\n", "ab".repeat(32))), "{text}");
        assert!(told(Some(secrets()), None).contains("do not sign"));
        assert!(told(None, access_key()).contains("WITHOUT BRINGING THEM (access key AKIDEXAMPLE)"));
        assert!(!told(None, None).contains("credentials"));
    }
}
