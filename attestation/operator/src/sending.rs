//! Commands: signed here or in a file, sent, and told what became of them.

use std::fmt::Write as _;
use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::command::{
    Action, Command, CredentialsId, GeneratedKey, KeyOutcome, MAX_OPERATORS, MIN_DEPOSIT, OperatorSignature, Outcome,
    RecordOrder, SignedCommand, SignedExit, withdrawal_address,
};
use casemate_protocol::history::Past;
use casemate_protocol::statement::CommandResult;
use casemate_protocol::{BoundedBytes, PublicKey, Root};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{CommandFileCommand, Signing};
use crate::operator_key::{OperatorPair, is_signed};
use crate::session::{CommandStatus, Refused, ReportedOutcome, Session, hex, sha256};
use crate::{Exit, deposit_data, plain, progress};

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
pub struct DepositOutput<'a> {
    pub folder: &'a Path,
    pub genesis_fork_version: Option<&'a str>,
}

/// Signs commands with the keys at hand, and sends them or writes them down.
pub fn give(
    session: &mut Session,
    commands: &[Command],
    signing: &Signing,
    deposits: Option<&DepositOutput<'_>>,
) -> Result<Answer> {
    let mut pairs: Vec<OperatorPair> = Vec::new();
    for path in &signing.operator_key {
        let pair = OperatorPair::read(path)?;
        if pairs.iter().all(|other| other.public() != pair.public()) {
            pairs.push(pair);
        }
    }
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
    if path.exists() {
        bail!("{} exists already and is not overwritten", path.display());
    }
    write(path, &signed)?;
    let text = format!(
        "{}\nwritten to {}, signed by {} so far. Each further operator: casemate command sign {} --operator-key KEY.pem\n\
         then: casemate command send {} URL, before the enclave starts anew\n",
        summary(commands)?,
        path.display(),
        plural(pairs.len(), "operator"),
        path.display(),
        path.display()
    );
    Ok((text, Exit::Accepted))
}

/// Sends signed commands, one after the other. What became of each is what a document says afterwards: the proxy may lie about
/// success and about failure, and keep commands for later.
pub fn send(session: &mut Session, signed: &[SignedCommand], deposits: Option<&DepositOutput<'_>>) -> Result<Answer> {
    let commands = signed.iter().map(|one| Command::decode(one.command.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let is_deposit = |command: &Command| matches!(command.action, Action::Generate { .. } | Action::Deposit { .. });
    // Before there are keys: a place for their deposits.
    let mut file = match deposits {
        Some(place) if commands.iter().any(is_deposit) => Some(deposit_data::File::create(place, &session.statement)?),
        None if commands.iter().any(is_deposit) => bail!("there is no folder for the deposit data"),
        _ => None,
    };
    let bar = progress::bar(signed.len().try_into().unwrap_or(u64::MAX), "the enclave carries out commands");
    let mut report =
        Report { out: String::new(), exit: Exit::Accepted, deposits: Vec::new(), exits: Vec::new(), carried_out: 0 };
    for (command, one) in commands.iter().zip(signed) {
        let told = session.send(one);
        let refused = matches!(&told, Err(error) if error.is::<Refused>());
        let became = session.became(command, one.command.as_ref(), refused);
        let goes_on = report.tell(command, &told, became);
        // On the disk before anything else can go wrong; its name says that it is not finished.
        if let Some(file) = &mut file {
            file.write(&report.deposits)?;
        }
        bar.inc(1);
        if !goes_on {
            break;
        }
    }
    bar.finish_and_clear();
    let Report { mut out, exit, deposits: signed_deposits, exits, carried_out } = report;
    if !exits.is_empty() {
        let folder = deposits.map_or(Path::new("."), |place| place.folder);
        out.push_str(&write_exits(folder, &exits)?);
    }
    let deposits = signed_deposits;
    if carried_out > 0 {
        let count = session.statement.public_keys.count;
        let _ = writeln!(
            out,
            "\nconfirmed by this enclave's own document, for this boot: {} carried out, {count} keys sign now",
            plural(carried_out, "command")
        );
    }
    let skipped = commands.len().saturating_sub(carried_out);
    if exit != Exit::Accepted && skipped > 1 {
        let _ = writeln!(out, "{} not carried out, or not known to be", plural(skipped, "command"));
    }
    if let Some(file) = file {
        if deposits.is_empty() {
            file.discard();
        } else {
            let path = file.finish()?;
            let _ = writeln!(
                out,
                "deposit data of {}, each signature verified: {}",
                plural(deposits.len(), "key"),
                path.display()
            );
        }
    }
    Ok((out, exit))
}

/// What is to be told at the end.
struct Report {
    out: String,
    exit: Exit,
    deposits: Vec<deposit_data::Deposit>,
    exits: Vec<SignedExit>,
    carried_out: usize,
}

/// A file for each exit, as beacon nodes take it.
fn write_exits(folder: &Path, exits: &[SignedExit]) -> Result<String> {
    let mut out = String::new();
    for exit in exits {
        let SignedExit { epoch, validator_index, signature, .. } = exit;
        let text = format!(
            "{{\"message\":{{\"epoch\":\"{epoch}\",\"validator_index\":\"{validator_index}\"}},\"signature\":\"{signature}\"}}\n"
        );
        let path = folder.join(format!("exit-{validator_index}.json"));
        // What cannot be written is at least shown.
        fs::write(&path, &text).with_context(|| format!("writing {}; the exit: {text}", path.display()))?;
        let _ =
            writeln!(out, "written to {}; publish it with POST /eth/v1/beacon/pool/voluntary_exits", path.display());
    }
    Ok(out)
}

impl Report {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn worse(&mut self, exit: Exit) {
        if self.exit != Exit::NoAnswer {
            self.exit = exit;
        }
    }

    /// Tells what became of a command; whether the next one may follow.
    fn tell(&mut self, command: &Command, told: &Result<ReportedOutcome>, became: CommandStatus) -> bool {
        let says = match told {
            Ok(_) => "done".to_owned(),
            // Its words must not look like ours.
            Err(error) => plain(&format!("{error:#}")).split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let counter = command.counter;
        match became {
            CommandStatus::Known(CommandResult::Done { outcome_sha256 }) => {
                self.carried_out = self.carried_out.saturating_add(1);
                let outcome = told.as_ref().ok().and_then(ReportedOutcome::outcome);
                let outcome = outcome.filter(|outcome| sha256(&outcome.encode()) == outcome_sha256);
                let Some(outcome) = outcome else {
                    self.worse(Exit::Refused);
                    self.line(&format!(
                        "CARRIED OUT, by the enclave's own document; but what became of each key is not known, because the proxy tells something else \
                         (it says: {says}). Look with casemate keys; deposits are signed again by casemate deposit"
                    ));
                    return false;
                };
                self.outcome(command, outcome)
            }
            CommandStatus::Known(CommandResult::Refused) => {
                self.worse(Exit::Refused);
                self.line(&format!("REFUSED by the enclave, which has changed nothing; the proxy says why: {says}"));
                false
            }
            CommandStatus::Known(CommandResult::MaybeSealed) => {
                self.exit = Exit::NoAnswer;
                self.line(&format!(
                    "NOT KNOWN, to the enclave neither: the parent may have kept what the command changed, and it may take effect at the next start. Count \
                     it as done, and give it again once the parent's disk works. The proxy says: {says}"
                ));
                false
            }
            CommandStatus::NotYet if matches!(told, Err(error) if error.is::<Refused>()) => {
                self.worse(Exit::Refused);
                self.line(&format!(
                    "NOT CARRIED OUT so far; the proxy says: {says}\nWhoever has the command (counter {counter}) may still deliver it to this boot of the \
                     enclave, until a later command was carried out or the enclave has started anew. Until then count it as done: its keys sign nowhere \
                     else"
                ));
                false
            }
            CommandStatus::NotYet | CommandStatus::Unknown | CommandStatus::OtherBoot => {
                self.exit = Exit::NoAnswer;
                let why = match became {
                    CommandStatus::OtherBoot => "the enclave has started anew meanwhile, or this is another one",
                    CommandStatus::Unknown => "no document that tells it was to be had",
                    _ => "the enclave's own document does not have it",
                };
                self.line(&format!(
                    "UNKNOWN: {why}; the proxy says: {says}\nCount the command (counter {counter}) as carried out: keys that it imports sign nowhere else. Look \
                     with casemate keys before you give it again"
                ));
                false
            }
        }
    }

    /// An outcome that the enclave stands for.
    fn outcome(&mut self, command: &Command, outcome: Outcome) -> bool {
        match (&command.action, outcome) {
            (Action::Import { keys, .. }, Outcome::Imported { keys: outcomes }) => {
                for (key, outcome) in keys.iter().zip(outcomes) {
                    let line = match outcome {
                        KeyOutcome::Imported => "imported".to_owned(),
                        KeyOutcome::Duplicate => {
                            let stands =
                                key.history.map(|past| format!("; it stands at {} or above now", past_of(&past)));
                            format!("duplicate{}", stands.unwrap_or_default())
                        }
                        KeyOutcome::WrongSecret => "error: the secret key is not this public key's".to_owned(),
                        KeyOutcome::ImpossibleHistory => {
                            "error: its history lies in the future, or has a source above its target".to_owned()
                        }
                        _ => "error: an outcome that is none of an import".to_owned(),
                    };
                    if line.starts_with("error") {
                        self.worse(Exit::Refused);
                    }
                    self.line(&format!("{}  {line}", key.public_key));
                }
            }
            (Action::Delete { keys }, Outcome::Deleted { keys: outcomes }) => {
                for (key, outcome) in keys.iter().zip(outcomes) {
                    let deleted = outcome == KeyOutcome::Deleted;
                    if !deleted {
                        self.worse(Exit::Refused);
                    }
                    let line = if deleted { "deleted" } else { "error: the enclave does not hold it" };
                    self.line(&format!("{key}  {line}"));
                }
            }
            (
                Action::Generate { withdrawal_credentials, amount, .. }
                | Action::Deposit { withdrawal_credentials, amount, .. },
                Outcome::Generated { keys } | Outcome::Deposited { keys },
            ) => {
                let made = matches!(command.action, Action::Generate { .. });
                for GeneratedKey { public_key, deposit_signature: signature } in keys {
                    let (withdrawal_credentials, amount) = (*withdrawal_credentials, *amount);
                    self.deposits.push(deposit_data::Deposit { public_key, withdrawal_credentials, amount, signature });
                    self.line(&format!("{public_key}  {}", if made { "made" } else { "signed for" }));
                }
            }
            (Action::FenceInit { record, .. }, Outcome::FenceReady) => self.line(match record {
                RecordOrder::New => "the fence has its record; the enclave claims it now",
                RecordOrder::Lost { .. } => {
                    "the fence has a new record; the enclave claims it now and signs in two to three epochs"
                }
                RecordOrder::Keep => "the store's new credentials are sealed",
                RecordOrder::After { closed } if closed.released_state.is_some() => {
                    "the fence has its next record; an enclave with the state that the closed one names signs at once, and nobody \
                     else without floors"
                }
                RecordOrder::After { .. } => {
                    "the fence has its next record; its holder stays above the closed one's ceilings, which end in this epoch"
                }
            }),
            (Action::FenceInit { .. }, Outcome::CredentialsTaken) => self.line(
                "the store takes the new credentials, and they are used from now on. This enclave does not hold the fence: it seals \
                 them as soon as it does. Should it start anew before that, bring them in again",
            ),
            (Action::FenceClose, Outcome::FenceClosed { record }) => {
                self.line(
                    "the fence's record has ended: nobody claims or extends it any more. Keep this line for casemate fence init --after:",
                );
                self.line(&crate::commands::fence::closed_json(&record).to_string());
                let up_to = format!("slot {} and target epoch {}", record.slot_ceiling, record.target_ceiling);
                self.line(&match record.released_state {
                    Some(_) => format!(
                        "its holder has left in order and signs no more; nothing above {up_to} was signed under it"
                    ),
                    None => format!(
                        "its last holder may sign up to {up_to} yet, if it lives: casemate status shows when that has passed"
                    ),
                });
            }
            (Action::Exit { last_epoch, .. }, Outcome::ExitsSigned { exits }) => {
                for exit in &exits {
                    let SignedExit { public_key, epoch, validator_index, .. } = exit;
                    self.line(&format!(
                        "{public_key}  exit of validator {validator_index} signed at epoch {epoch}; until epoch {last_epoch} clients get it signed too"
                    ));
                }
                self.exits.extend(exits);
            }
            (Action::FeeRecipient { keys, fee_recipient }, Outcome::FeeRecipientsSet { keys: outcomes }) => {
                for (key, outcome) in keys.iter().zip(outcomes) {
                    let line = match (outcome, fee_recipient) {
                        (KeyOutcome::Changed, Some(address)) => format!("fees go to {address}"),
                        (KeyOutcome::Changed, None) => "fees go where the configuration says".to_owned(),
                        _ => {
                            self.worse(Exit::Refused);
                            "error: the enclave does not hold it".to_owned()
                        }
                    };
                    self.line(&format!("{key}  {line}"));
                }
            }
            (Action::RaisePasts { keys }, Outcome::PastsRaised { keys: outcomes }) => {
                for (key, outcome) in keys.iter().zip(outcomes) {
                    let line = match outcome {
                        KeyOutcome::Changed => format!("stands at {} or above now", past_of(&key.past)),
                        _ => "not here: nothing to raise".to_owned(),
                    };
                    self.line(&format!("{}  {line}", key.public_key));
                }
            }
            (Action::HandOver, Outcome::HandedOver) => {
                self.line(
                    "handed over: this enclave signs no more, and its exact state is on the disk for a successor",
                );
            }
            (Action::TakeOver, Outcome::TookOver { term }) => {
                self.line(&format!("this enclave holds the fence, in term {term}"));
            }
            _ => {
                self.worse(Exit::Refused);
                self.line("the enclave has carried out something else than was asked");
                return false;
            }
        }
        true
    }
}

/// `1 key`, `2 keys`.
pub fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `casemate command`.
pub fn run(command: CommandFileCommand) -> Result<Answer> {
    match command {
        CommandFileCommand::Show { file } => shown(&read(&file)?),
        CommandFileCommand::Sign { file, operator_key, yes } => {
            let mut signed = read(&file)?;
            let (text, _) = shown(&signed)?;
            if !yes && !agreed(&text, "Sign this?")? {
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
            let (text, exit) = shown(&signed)?;
            Ok((format!("{text}\nsigned and written to {}\n", file.display()), exit))
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
            let place = DepositOutput { folder: &options.out, genesis_fork_version: version };
            send(&mut session, &signed, Some(&place))
        }
    }
}

/// Asks on the terminal.
pub fn agreed(text: &str, question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask on; --yes goes on without asking");
    }
    eprint!("{text}\n{question} Type yes: ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(answer.trim() == "yes")
}

/// What commands order, for those who are to sign them.
fn summary(commands: &[Command]) -> Result<String> {
    let first = commands.first().context("there is no command in it")?;
    let keys: usize = commands.iter().map(Command::keys).sum();
    let mut out = format!(
        "{} about {} for the group {:?} on the chain {}\nboot nonce {}\n",
        plural(commands.len(), "command"),
        plural(keys, "key"),
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
                let _ = writeln!(out, "IMPORT {}:", plural(keys.len(), "key"));
                for key in keys {
                    let _ = writeln!(out, "  {}  {}", key.public_key, past(key.history.as_ref()));
                }
            }
            Action::Generate { count, withdrawal_credentials, amount } => {
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                let _ =
                    writeln!(out, "GENERATE {}, {}", plural(count, "key"), withdrawal(withdrawal_credentials, *amount));
            }
            Action::Deposit { keys, withdrawal_credentials, amount } => {
                let _ = writeln!(
                    out,
                    "SIGN DEPOSITS of {}, {}:",
                    plural(keys.len(), "key"),
                    withdrawal(withdrawal_credentials, *amount)
                );
                for key in keys {
                    let _ = writeln!(out, "  {key}");
                }
            }
            Action::FenceInit { record, credentials, credentials_id } => {
                let what = match record {
                    RecordOrder::New => {
                        "MAKE THE FENCE'S FIRST RECORD: no key of the group has signed under a fence before"
                    }
                    RecordOrder::Lost { .. } => "MAKE THE FENCE'S RECORD ANEW, because its store has lost it",
                    RecordOrder::Keep => "EXCHANGE THE CREDENTIALS of the fence's store",
                    RecordOrder::After { .. } => "MAKE THE FENCE'S NEXT RECORD, after one that has ended",
                };
                let with = match (credentials, credentials_id) {
                    (None, None) => String::new(),
                    (Some(_), Some(id)) => format!(", with credentials for its store: {}", credentials_shown(id)),
                    // The enclave refuses both.
                    (Some(_), None) => ", with CREDENTIALS THAT IT DOES NOT NAME: do not sign".to_owned(),
                    (None, Some(id)) => {
                        format!(", and NAMES CREDENTIALS WITHOUT BRINGING THEM ({})", credentials_shown(id))
                    }
                };
                let _ = writeln!(out, "{what}{with}");
                match record {
                    RecordOrder::Lost { last } => {
                        let _ = writeln!(
                            out,
                            "  only from a state whose keys have the root {}, and that has seen version {} of the record\n  \
                             every other enclave of the group must have ended: one that still holds the lost record signs up to its ceilings",
                            last.keys_root, last.fence_version
                        );
                    }
                    RecordOrder::After { closed } => {
                        let _ = writeln!(out, "  {}", crate::commands::fence::closed_json(closed));
                    }
                    RecordOrder::New | RecordOrder::Keep => {}
                }
            }
            Action::FenceClose => {
                let _ = writeln!(
                    out,
                    "END THE FENCE'S RECORD for good: nothing is signed until the next one is made (casemate fence init --after)"
                );
            }
            Action::Exit { exits, last_epoch } => {
                let _ = writeln!(
                    out,
                    "EXIT {} for good, and let clients have such exits signed until epoch {last_epoch}:",
                    plural(exits.len(), "validator")
                );
                for exit in exits {
                    let _ = writeln!(out, "  {}  validator {}", exit.public_key, exit.validator_index);
                }
            }
            Action::FeeRecipient { keys, fee_recipient } => {
                let to = fee_recipient.map_or("where the configuration says".to_owned(), |to| format!("to {to}"));
                let _ = writeln!(out, "SEND THE FEES of {} {to}:", plural(keys.len(), "key"));
                for key in keys {
                    let _ = writeln!(out, "  {key}");
                }
            }
            Action::RaisePasts { keys } => {
                let _ = writeln!(out, "RAISE what {} have signed:", plural(keys.len(), "key"));
                for key in keys {
                    let _ = writeln!(out, "  {}  {}", key.public_key, past_of(&key.past));
                }
            }
            Action::HandOver => out.push_str("HAND OVER: sign no more, and leave the exact state for a successor\n"),
            Action::TakeOver => out.push_str("TAKE OVER: claim the fence at once, from whoever holds it\n"),
            Action::Delete { keys } => {
                let _ = writeln!(out, "DELETE {}:", plural(keys.len(), "key"));
                for key in keys {
                    let _ = writeln!(out, "  {key}");
                }
            }
        }
    }
    Ok(out)
}

/// Credentials as AWS and `openssl x509 -fingerprint -sha256` show them too.
fn credentials_shown(id: &CredentialsId) -> String {
    match id {
        CredentialsId::AccessKey(id) => format!("access key {id}"),
        CredentialsId::Certificate(sha256) => format!("client certificate SHA-256 {}", const_hex::encode(sha256.0)),
    }
}

fn withdrawal(credentials: &Root, gwei: u64) -> String {
    let address = withdrawal_address(credentials).map(|address| address.to_string());
    let (eth, rest) = (gwei / MIN_DEPOSIT, gwei % MIN_DEPOSIT);
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:09}") };
    format!(
        "each with a deposit of {gwei} Gwei ({eth}{fraction} ETH) that withdraws to {} (credentials {credentials})",
        address.as_deref().unwrap_or("no address")
    )
}

fn past(history: Option<&Past>) -> String {
    history.map_or_else(|| "NO HISTORY: waived, it starts above the moment of the import".to_owned(), past_of)
}

fn past_of(past: &Past) -> String {
    let block = past.block.map_or("no block".to_owned(), |b| format!("block {}", b.slot));
    let attestation =
        past.attestation.map_or("no attestation".to_owned(), |a| format!("attestation {} → {}", a.source, a.target));
    format!("{block}, {attestation}")
}

fn shown(signed: &[SignedCommand]) -> Result<Answer> {
    let mut exit = Exit::Accepted;
    let commands = signed.iter().map(|one| Command::decode(one.command.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let mut out = summary(&commands)?;
    let first = signed.first().context("there is no command in it")?;
    out.push_str("\nsigned by:\n");
    for operator in first.signatures.iter().map(|signature| signature.operator) {
        let all = signed.iter().all(|one| {
            let its = one.signatures.iter().find(|signature| signature.operator == operator);
            its.is_some_and(|signature| is_signed(one.command.as_ref(), signature))
        });
        if !all {
            exit = Exit::Refused;
        }
        let _ =
            writeln!(out, "  {operator}{}", if all { "" } else { "  SIGNATURE NOT VALID, or not for all commands" });
    }
    if first.signatures.is_empty() {
        out.push_str("  nobody\n");
    }
    Ok((out, exit))
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
    fs::write(new, text).with_context(|| format!("writing {}", path.display()))?;
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
    use casemate_protocol::command::EncryptedSecrets;

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
        assert!(text.contains("DELETE 1 key:") && text.contains("2026-") && !text.contains("NOT VALID"), "{text}");
        let signed = read(&path).unwrap();
        assert_eq!(signed[0].signatures.len(), 2);
        // A signature over something else is seen.
        let mut forged = signed;
        forged[0].signatures[0].signature.0[5] ^= 1;
        write(&path, &forged).unwrap();
        let (text, exit) = run(CommandFileCommand::Show { file: path.clone() }).unwrap();
        assert!(text.contains("SIGNATURE NOT VALID"), "{text}");
        assert_eq!(exit, Exit::Refused);
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

    #[test]
    fn whoever_signs_sees_which_credentials_the_fences_store_gets() {
        let secrets = || EncryptedSecrets { enc: Bytes([1; 32]), ciphertext: BoundedBytes::new(vec![2; 48]).unwrap() };
        let told = |credentials: Option<EncryptedSecrets>, credentials_id: Option<CredentialsId>| {
            let action = Action::FenceInit { record: RecordOrder::New, credentials, credentials_id };
            let command = Command::new("main".into(), Bytes([5; 32]), Bytes([6; 32]), 7, action);
            // As `casemate command show` and `sign` read it from a file.
            let signed = SignedCommand::new(command.encode().unwrap(), Vec::new());
            shown(&[signed]).unwrap().0
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
