//! Commands: signed here or in a file, sent, and told what became of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::command::{
    Action, Command, MAX_OPERATORS, OperatorSignature, SignedCommand, withdrawal_address,
};
use casemate_protocol::{BoundedBytes, PublicKey};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{CommandFileCommand, Signing};
use crate::operator::{OperatorPair, is_signed};
use crate::session::{Refused, Session, Told, hex};
use crate::{Exit, deposit, progress};

/// Longest command file, in bytes: a hundred commands of the largest kind.
const MAX_FILE_LEN: u64 = 160 * 1024 * 1024;
/// The one version of command files.
const FILE_VERSION: u32 = 1;

/// A file of commands, for one boot of one enclave.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    casemate_command_file: u32,
    commands: Vec<FileCommand>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCommand {
    /// CBOR in base64.
    command: String,
    signatures: Vec<FileSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSignature {
    operator: String,
    signature: String,
}

/// What is to be said at the end, and how it ended.
pub type Answer = (String, Exit);

/// Where the deposit data of keys that are made goes.
pub struct DepositPlace<'a> {
    pub folder: &'a Path,
    pub genesis_fork_version: Option<&'a str>,
}

/// Signs commands with the keys at hand, and sends them or writes them down.
pub fn give(
    session: &mut Session,
    commands: &[Command],
    signing: &Signing,
    deposits: Option<&DepositPlace<'_>>,
) -> Result<Answer> {
    let pairs = signing.operator_key.iter().map(|path| OperatorPair::read(path)).collect::<Result<Vec<_>>>()?;
    let mut signed = Vec::with_capacity(commands.len());
    for command in commands {
        let bytes = command.encode()?;
        let signatures = pairs.iter().map(|pair| pair.sign(bytes.as_ref())).collect();
        signed.push(SignedCommand::new(bytes, signatures));
    }
    let Some(path) = &signing.command_out else {
        if pairs.is_empty() {
            bail!(
                "nobody signs: --operator-key for operators who sign here, --command-out for those who sign elsewhere"
            );
        }
        return send(session, &signed, deposits);
    };
    write(path, &signed)?;
    let text = format!(
        "{}\nwritten to {} with {} of the signatures. Each further operator: casemate command sign {} --operator-key KEY.pem\n\
         then: casemate command send {} URL, before the enclave starts anew\n",
        summary(commands)?,
        path.display(),
        pairs.len(),
        path.display(),
        path.display()
    );
    Ok((text, Exit::Accepted))
}

/// Sends signed commands, one after the other; what became of them counts once a document says so.
pub fn send(session: &mut Session, signed: &[SignedCommand], deposits: Option<&DepositPlace<'_>>) -> Result<Answer> {
    let (mut out, mut failed) = (String::new(), 0_usize);
    let (mut there, mut gone, mut generated) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let bar = progress::bar(
        u64::try_from(signed.len()).unwrap_or(u64::MAX),
        "the enclave seals keys, in commands of up to 1000",
    );
    let mut stopped = None;
    for one in signed {
        let command = Command::decode(one.command.as_ref())?;
        let told = match session.send(one) {
            Ok(told) => told,
            // What was done before is done: it is told below.
            Err(error) => {
                stopped = Some(error);
                break;
            }
        };
        bar.inc(1);
        match (command.action, told) {
            (Action::Import { keys, .. }, Told::Imported { keys: words }) if keys.len() == words.len() => {
                for (key, word) in keys.iter().zip(words) {
                    let line = match word.as_str() {
                        "imported" | "duplicate" => {
                            there.insert(key.public_key);
                            word
                        }
                        "wrong_secret" => {
                            failed = failed.saturating_add(1);
                            "error: the secret key is not this public key's".to_owned()
                        }
                        _ => bail!("the proxy answered something else than it was asked"),
                    };
                    let _ = writeln!(out, "{}  {line}", key.public_key);
                }
            }
            (Action::Delete { keys }, Told::Deleted { keys: words }) if keys.len() == words.len() => {
                for (key, word) in keys.iter().zip(words) {
                    let line = match word.as_str() {
                        "deleted" => word,
                        "not_found" => {
                            failed = failed.saturating_add(1);
                            "error: the enclave does not hold it".to_owned()
                        }
                        _ => bail!("the proxy answered something else than it was asked"),
                    };
                    gone.insert(*key);
                    let _ = writeln!(out, "{key}  {line}");
                }
            }
            (Action::Generate { withdrawal_credentials, amount, count }, Told::Generated { keys })
                if u32::try_from(keys.len()) == Ok(count) =>
            {
                for key in keys {
                    let public_key = hex(&key.public_key, "the public key of a key that was made")?;
                    let signature = hex(&key.deposit_signature, "the signature of a deposit")?;
                    there.insert(public_key);
                    let _ = writeln!(out, "{public_key}  made");
                    generated.push(deposit::Deposit { public_key, withdrawal_credentials, amount, signature });
                }
            }
            _ => bail!("the proxy answered something else than it was asked"),
        }
    }
    bar.finish_and_clear();
    if !there.is_empty() || !gone.is_empty() {
        session.confirm(&there, &gone)?;
        let _ = writeln!(
            out,
            "\nconfirmed by the enclave's own document: {} keys sign now",
            session.statement.public_keys.count
        );
    }
    if !generated.is_empty() {
        let place = deposits.context("keys were made, and there is no folder for their deposit data")?;
        let path = deposit::write(&generated, &session.statement, place)?;
        let _ = writeln!(out, "deposit data of {} keys, each signature verified: {}", generated.len(), path.display());
    }
    match stopped {
        Some(error) if out.is_empty() => Err(error),
        Some(error) => {
            let _ = writeln!(out, "stopped: {error:#}");
            Ok((out, Exit::Refused))
        }
        None => Ok((out, if failed == 0 { Exit::Accepted } else { Exit::Refused })),
    }
}

/// `casemate command`.
pub fn run(command: CommandFileCommand) -> Result<Answer> {
    match command {
        CommandFileCommand::Show { file } => Ok((shown(&read(&file)?)?, Exit::Accepted)),
        CommandFileCommand::Sign { file, operator_key, yes } => {
            let mut signed = read(&file)?;
            let text = shown(&signed)?;
            if !yes && !agreed(&text)? {
                return Ok(("nothing was signed\n".to_owned(), Exit::Refused));
            }
            for pair in operator_key.iter().map(|path| OperatorPair::read(path)) {
                let pair = pair?;
                for one in &mut signed {
                    let signature = pair.sign(one.command.as_ref());
                    one.signatures.retain(|other| other.operator != signature.operator);
                    one.signatures.push(signature);
                }
            }
            write(&file, &signed)?;
            Ok((format!("{}\nsigned and written to {}\n", shown(&signed)?, file.display()), Exit::Accepted))
        }
        CommandFileCommand::Send(options) => {
            let signed = read(&options.file)?;
            let mut session = Session::open(options.connection, options.pins)?;
            for one in &signed {
                let command = Command::decode(one.command.as_ref())?;
                if command.boot_nonce != session.statement.boot_nonce {
                    let told = "the command is for another boot of the enclave: it has to be made and signed anew";
                    return Err(Refused(told.to_owned()).into());
                }
            }
            let version = options.genesis_fork_version.as_deref();
            let place = DepositPlace { folder: &options.out, genesis_fork_version: version };
            send(&mut session, &signed, Some(&place))
        }
    }
}

fn agreed(text: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask on: read it with casemate command show, then sign with --yes");
    }
    eprint!("{text}\nSign this? Type yes: ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(answer.trim() == "yes")
}

/// What commands order, for those who are to sign them.
fn summary(commands: &[Command]) -> Result<String> {
    let first = commands.first().context("there is no command in it")?;
    let mut out = format!(
        "{} command(s) for the group {:?} on the chain {}\nboot nonce {}\n",
        commands.len(),
        first.group,
        first.genesis_validators_root,
        first.boot_nonce
    );
    for command in commands {
        let same = (&command.group, command.genesis_validators_root, command.boot_nonce)
            == (&first.group, first.genesis_validators_root, first.boot_nonce);
        if !same {
            bail!("the commands are for different enclaves");
        }
        let made = i128::from(command.counter).saturating_mul(1_000_000);
        let made = OffsetDateTime::from_unix_timestamp_nanos(made).ok().and_then(|time| time.format(&Rfc3339).ok());
        let _ = write!(out, "\ncounter {} ({})\n", command.counter, made.as_deref().unwrap_or("no time"));
        match &command.action {
            Action::Import { keys, .. } => {
                let _ = writeln!(out, "IMPORT {} keys:", keys.len());
                for key in keys {
                    let _ = writeln!(out, "  {}  {}", key.public_key, past(key.history.as_ref()));
                }
            }
            Action::Generate { count, withdrawal_credentials, amount } => {
                let address = withdrawal_address(withdrawal_credentials).map(|address| address.to_string());
                let _ = writeln!(
                    out,
                    "GENERATE {count} keys, each with a deposit of {amount} Gwei that withdraws to {} (credentials {withdrawal_credentials})",
                    address.as_deref().unwrap_or("no address")
                );
            }
            Action::Delete { keys } => {
                let _ = writeln!(out, "DELETE {} keys:", keys.len());
                for key in keys {
                    let _ = writeln!(out, "  {key}");
                }
            }
        }
    }
    Ok(out)
}

fn past(history: Option<&casemate_protocol::history::Past>) -> String {
    let Some(past) = history else { return "NO HISTORY: waived".to_owned() };
    let block = past.block.map_or("no block".to_owned(), |b| format!("block {}", b.slot));
    let attestation =
        past.attestation.map_or("no attestation".to_owned(), |a| format!("attestation {} → {}", a.source, a.target));
    format!("{block}, {attestation}")
}

fn shown(signed: &[SignedCommand]) -> Result<String> {
    let commands = signed.iter().map(|one| Command::decode(one.command.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let mut out = summary(&commands)?;
    let first = signed.first().context("there is no command in it")?;
    out.push_str("\nsigned by:\n");
    for operator in first.signatures.iter().map(|signature| signature.operator) {
        let all = signed.iter().all(|one| {
            let its = one.signatures.iter().find(|signature| signature.operator == operator);
            its.is_some_and(|signature| is_signed(one.command.as_ref(), signature))
        });
        let _ = writeln!(out, "  {operator}{}", if all { "" } else { "  NOT VALID FOR ALL" });
    }
    if first.signatures.is_empty() {
        out.push_str("  nobody\n");
    }
    Ok(out)
}

fn read(path: &Path) -> Result<Vec<SignedCommand>> {
    let len = fs::metadata(path).with_context(|| format!("opening {}", path.display()))?.len();
    if len > MAX_FILE_LEN {
        bail!("{} has {len} bytes; {MAX_FILE_LEN} are allowed", path.display());
    }
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &[u8]) -> Result<Vec<SignedCommand>> {
    let file: File = serde_json::from_slice(text).context("not a file of commands")?;
    if file.casemate_command_file != FILE_VERSION {
        bail!("version {} of command files; {FILE_VERSION} is understood here", file.casemate_command_file);
    }
    if file.commands.is_empty() {
        bail!("there is no command in it");
    }
    let one = |command: &FileCommand| {
        let bytes = BASE64_STANDARD.decode(&command.command).context("a command is not base64")?;
        Command::decode(&bytes)?;
        let bytes = BoundedBytes::new(bytes).context("the command is too long")?;
        if command.signatures.len() > MAX_OPERATORS {
            bail!("{} signatures; {MAX_OPERATORS} are allowed", command.signatures.len());
        }
        let signatures = command.signatures.iter().map(|one| {
            let (operator, signature) = (hex(&one.operator, "an operator")?, hex(&one.signature, "a signature")?);
            Ok(OperatorSignature { operator, signature })
        });
        Ok(SignedCommand::new(bytes, signatures.collect::<Result<_>>()?))
    };
    file.commands.iter().map(one).collect()
}

/// Whole or not at all: a file with half of the signatures would be a riddle.
fn write(path: &Path, signed: &[SignedCommand]) -> Result<()> {
    let commands = signed.iter().map(|one| FileCommand {
        command: BASE64_STANDARD.encode(&one.command),
        signatures: one
            .signatures
            .iter()
            .map(|s| FileSignature { operator: s.operator.to_string(), signature: s.signature.to_string() })
            .collect(),
    });
    let file = File { casemate_command_file: FILE_VERSION, commands: commands.collect() };
    let mut text = serde_json::to_string_pretty(&file).context("writing JSON")?;
    text.push('\n');
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    fs::write(new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(new, path).with_context(|| format!("writing {}", path.display()))
}

/// The commands for many things, in portions that a command takes.
pub fn portions<T>(all: &[T]) -> impl Iterator<Item = (u64, &[T])> {
    (0..).zip(all.chunks(casemate_protocol::command::MAX_KEYS))
}

/// `casemate delete`.
pub fn delete(session: &Session, keys: &[PublicKey]) -> Result<Vec<Command>> {
    portions(keys).map(|(number, keys)| session.command(number, Action::Delete { keys: keys.to_vec() })).collect()
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Bytes;

    use super::*;

    fn command() -> Command {
        let keys = vec![Bytes([9; 48])];
        Command::new("alpha".into(), Bytes([1; 32]), Bytes([2; 32]), 1_790_000_000_000, Action::Delete { keys })
    }

    fn file(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("command.json");
        write(&path, &[SignedCommand::new(command().encode().unwrap(), vec![])]).unwrap();
        path
    }

    #[test]
    fn a_file_is_signed_by_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        let mut keys = Vec::new();
        for name in ["a.pem", "b.pem"] {
            let key = folder.path().join(name);
            OperatorPair::generate().unwrap().write(&key).unwrap();
            keys.push(key);
        }
        let show = |path: &Path| run(CommandFileCommand::Show { file: path.to_owned() }).unwrap().0;
        assert!(show(&path).contains("nobody"));
        // Without a terminal nobody is asked, and nothing is signed.
        let sign = |key: &Path, yes| {
            run(CommandFileCommand::Sign { file: path.clone(), operator_key: vec![key.to_owned()], yes })
        };
        assert!(sign(&keys[0], false).is_err());
        sign(&keys[0], true).unwrap();
        sign(&keys[1], true).unwrap();
        // Twice is once.
        let (text, _) = sign(&keys[1], true).unwrap();
        for key in &keys {
            assert!(text.contains(&OperatorPair::read(key).unwrap().public().to_string()), "{text}");
        }
        assert!(text.contains("DELETE 1 keys") && text.contains("2026-") && !text.contains("NOT VALID"), "{text}");
        let signed = read(&path).unwrap();
        assert_eq!(signed[0].signatures.len(), 2);
        // A signature over something else is seen.
        let mut forged = signed;
        forged[0].signatures[0].signature.0[5] ^= 1;
        write(&path, &forged).unwrap();
        assert!(show(&path).contains("NOT VALID FOR ALL"));
    }

    #[test]
    fn files_with_a_fault_are_unusable() {
        let good = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::json!({ "casemate_command_file": 1, "commands": [
                { "command": BASE64_STANDARD.encode(command().encode().unwrap()), "signatures": [
                    { "operator": format!("0x{}", "11".repeat(32)), "signature": format!("0x{}", "22".repeat(64)) } ] } ] });
            change(&mut value);
            parse(value.to_string().as_bytes()).map(|_| ()).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(good(&|_| {}), Ok(()));
        let told = |change: &dyn Fn(&mut serde_json::Value)| good(change).unwrap_err();
        assert!(told(&|v| v["casemate_command_file"] = 2.into()).contains("version 2"));
        assert!(told(&|v| v["commands"] = serde_json::json!([])).contains("no command"));
        assert!(told(&|v| v["more"] = 1.into()).contains("unknown field"));
        assert!(told(&|v| v["commands"][0]["command"] = "?".into()).contains("not base64"));
        assert!(told(&|v| v["commands"][0]["command"] = "oA==".into()).contains("not the one encoding"));
        assert!(told(&|v| v["commands"][0]["signatures"][0]["operator"] = "0x11".into()).contains("64 hex digits"));
    }
}
