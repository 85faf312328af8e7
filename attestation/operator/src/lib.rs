//! The operator's command line. It runs on the operator's own machine and trusts nothing that it fetches: not the parent, not
//! the proxy, not the network; only the pins that the operator gives it, and the root behind the document.
//!
//! `casemate attest verify FILE` and `casemate attest fetch URL` tell whether an enclave is the one that the operator means; what
//! changes its keys (`import`, `keygen`, `delete`) verifies it first, and believes what became of it only when a document says so.
//! Exit codes: 0 accepted, 1 refused, 2 unusable input, 3 no answer.
#![forbid(unsafe_code)]

mod address;
mod cli;
mod commands;
mod deposit_data;
mod fetch;
mod input;
mod keys;
mod operator_key;
mod pins;
mod progress;
mod report;
mod sending;
mod session;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use casemate_keystore::Secret;
use casemate_protocol::command::{
    Action, MIN_DEPOSIT, OperatorKey, StoreCredentials, max_deposit, withdrawal_credentials,
};
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{Epoch, ExecutionAddress, PublicKey, Root};
use casemate_slashing::interchange::Histories;
use clap::Parser;

use cli::Command;
use session::{Refused, Session};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for was done: a document was accepted, or shown where no more was asked for.
    Accepted,
    /// The document is not what was expected.
    Refused,
    /// There was nothing to judge: the input or the command line cannot be used.
    Unusable,
    /// The signer cannot be reached, or what became of a command is not known.
    NoAnswer,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Accepted => 0,
            Exit::Refused => 1,
            Exit::Unusable => 2,
            Exit::NoAnswer => 3,
        })
    }
}

/// The program, from its arguments to the end.
pub fn main(arguments: &[OsString]) -> ExitCode {
    // Standard error is not locked: progress bars are drawn by a thread of their own.
    run(arguments, &mut std::io::stdout(), &mut std::io::stderr()).into()
}

/// Runs a command line; answers go to `out`, complaints to `err`.
pub fn run(arguments: &[OsString], out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let options = match cli::Options::try_parse_from(arguments) {
        Ok(options) => options,
        // Help and version are answers too.
        Err(message) if !message.use_stderr() => {
            return written(write!(out, "{}", message.render()), Exit::Accepted);
        }
        Err(message) => return written(write!(err, "{}", message.render()), Exit::Unusable),
    };
    match carry_out(options.command) {
        Ok((text, exit)) => written(out.write_all(text.as_bytes()).and_then(|()| out.flush()), exit),
        Err(error) => {
            let exit = if error.is::<Refused>() {
                Exit::Refused
            } else if error.chain().any(<dyn std::error::Error>::is::<fetch::NoAnswer>) {
                Exit::NoAnswer
            } else {
                Exit::Unusable
            };
            written(writeln!(err, "casemate: {}", plain(&format!("{error:#}"))), exit)
        }
    }
}

fn carry_out(command: Command) -> Result<(String, Exit)> {
    match command {
        Command::Attest(attest) => verify::run(&attest.command),
        Command::Import(options) => commands::keys::import::run(*options),
        Command::Keygen(options) => keygen(*options),
        Command::Deposit(options) => deposit(*options),
        Command::Keys(options) => list(options),
        Command::Delete(options) => {
            let keys = public_keys(&options.public_keys)?;
            let mut session = Session::open(options.connection, options.pins)?;
            let commands = sending::delete(&session, &keys)?;
            let question = format!(
                "{} of {} keys are to be deleted. A key that the enclave has made exists nowhere else: it cannot be brought back.",
                keys.len(),
                session.statement.public_keys.count
            );
            let sending = options.signing.command_out.is_none();
            if sending && !options.yes && !sending::agreed(&question, "Delete them?")? {
                return Ok(("nothing was deleted\n".to_owned(), Exit::Refused));
            }
            let (mut text, exit) = sending::give(&mut session, &commands, &options.signing, None)?;
            text.push_str(commands::history::export::without_store(&session));
            Ok((text, exit))
        }
        Command::Exit(options) => exit(*options),
        Command::FeeRecipient(options) => fee_recipient(*options),
        Command::Slashing(options) => commands::history::export::run(options.command),
        Command::Log(options) => commands::log::run(options.command),
        Command::Operator(operator) => Ok((operator_key::run(&operator.command)?, Exit::Accepted)),
        Command::CommandFile(file) => sending::run(file.command),
        Command::Fence(options) => commands::fence::run(options.command),
        Command::Backup(options) => commands::backup::run(options.command),
        Command::HandOver(options) => commands::fence::order(*options, Action::HandOver),
        Command::TakeOver(options) => commands::fence::order(*options, Action::TakeOver),
        Command::Status(options) => commands::fence::status(options),
        Command::FencePolicy(options) => Ok((commands::fence::policy(&options)?, Exit::Accepted)),
        Command::KmsPolicy(options) => Ok((commands::kms_policy::run(&options)?, Exit::Accepted)),
    }
}

/// Where deposits withdraw to, and how much they are; checked before anybody signs.
fn credentials(options: &cli::DepositOptions) -> Result<Root> {
    let address = address::parse(&options.withdrawal_address).context("--withdrawal-address")?;
    let credentials = withdrawal_credentials(address, options.compounding);
    let max = max_deposit(&credentials);
    if !(MIN_DEPOSIT..=max).contains(&options.amount) {
        anyhow::bail!("--amount is {} Gwei; {MIN_DEPOSIT} (1 ETH) to {max} are allowed", options.amount);
    }
    Ok(credentials)
}

fn keygen(options: cli::Keygen) -> Result<(String, Exit)> {
    let credentials = credentials(&options.deposit)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let action =
        Action::Generate { count: options.count, withdrawal_credentials: credentials, amount: options.deposit.amount };
    let commands = [session.command(0, action)?];
    sending::give(&mut session, &commands, &options.signing, Some(&options.deposit.place()))
}

fn deposit(options: cli::Deposit) -> Result<(String, Exit)> {
    let credentials = credentials(&options.of)?;
    let keys = public_keys(&options.public_keys)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let commands = sending::portions(&keys).map(|(number, keys)| {
        let (keys, withdrawal_credentials) = (keys.to_vec(), credentials);
        session.command(number, Action::Deposit { keys, withdrawal_credentials, amount: options.of.amount })
    });
    let commands = commands.collect::<Result<Vec<_>>>()?;
    sending::give(&mut session, &commands, &options.signing, Some(&options.of.place()))
}

/// One day of mainnet.
const EXIT_EPOCHS: u64 = 225;

fn exit(options: cli::ExitOptions) -> Result<(String, Exit)> {
    let mut session = Session::open(options.connection, options.pins)?;
    let now = commands::fence::epoch_now(&session.statement).context("the enclave does not trust its clock")?;
    let last_epoch = options.until_epoch.map_or(Epoch(now.0.saturating_add(EXIT_EPOCHS)), Epoch);
    if last_epoch < now {
        anyhow::bail!("--until-epoch is {last_epoch}; the current epoch is {now}");
    }
    let commands = sending::portions(&options.validator)
        .map(|(number, exits)| session.command(number, Action::Exit { exits: exits.to_vec(), last_epoch }))
        .collect::<Result<Vec<_>>>()?;
    let place = sending::DepositOutput { folder: &options.out, genesis_fork_version: None };
    sending::give(&mut session, &commands, &options.signing, Some(&place))
}

fn fee_recipient(options: cli::FeeRecipient) -> Result<(String, Exit)> {
    let fee_recipient = options.address.as_deref().map(address::parse).transpose().context("--address")?;
    let keys = public_keys(&options.public_keys)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let commands = sending::portions(&keys)
        .map(|(number, keys)| session.command(number, Action::FeeRecipient { keys: keys.to_vec(), fee_recipient }))
        .collect::<Result<Vec<_>>>()?;
    sending::give(&mut session, &commands, &options.signing, None)
}

fn public_keys(path: &Path) -> Result<Vec<PublicKey>> {
    let keys = keys::parse(&input::read(path)?).with_context(|| format!("in {}", path.display()))?;
    if keys.is_empty() {
        anyhow::bail!("there is no key in {}", path.display());
    }
    Ok(keys)
}

fn list(options: cli::KeysOptions) -> Result<(String, Exit)> {
    let session = Session::open(options.connection, options.pins)?;
    let mut keys: Vec<String> = session.keys()?.iter().map(ToString::to_string).collect();
    keys.sort_unstable();
    let text = if options.json {
        format!("{}\n", serde_json::to_string(&keys)?)
    } else {
        keys.iter().map(|key| format!("{key}\n")).collect()
    };
    Ok((text, Exit::Accepted))
}

/// An enclave that runs on this machine, for programs that start one.
pub struct Local<'a> {
    /// Where its proxy listens.
    pub url: &'a str,
    /// Authority of the proxy's certificate.
    pub tls_ca: Option<&'a Path>,
    /// Root of its documents.
    pub root: &'a Path,
    /// Its measurements.
    pub measurements: &'a Path,
    /// An operator's key.
    pub operator_key: &'a Path,
}

impl Local<'_> {
    fn open(&self) -> Result<Session> {
        let (tls_ca, url) = (self.tls_ca.map(Path::to_owned), self.url.to_owned());
        let connection = cli::Connection { url, tls_ca, tls_certificate: None, tls_key: None, enclave: None };
        let (root, measurements) = (Some(self.root.to_owned()), Some(self.measurements.to_owned()));
        Session::open(connection, cli::PinOptions { measurements, root, ..cli::PinOptions::default() })
    }

    /// Makes the fence's record as `casemate fence init` does, where there is none yet; `credentials` for its store.
    pub fn begin_fence(&self, credentials: Option<&StoreCredentials>) -> Result<bool> {
        let mut session = self.open()?;
        let standing = session.statement.fence.standing;
        let needed = match standing {
            StatedStatus::NoRecord => true,
            // Without credentials it cannot know.
            StatedStatus::Unknown => credentials.is_some(),
            _ => false,
        };
        if needed { commands::fence::begin(&mut session, self.operator_key, credentials) } else { Ok(false) }
    }

    /// What it is to the fence.
    pub fn standing(&self) -> Result<StatedStatus> {
        Ok(self.open()?.statement.fence.standing)
    }

    /// The keys that its document proves.
    pub fn keys(&self) -> Result<Vec<PublicKey>> {
        self.open()?.keys()
    }

    /// Imports keys as `casemate import` does; those whose past is not known are waived where `waived` says so. How many came in
    /// anew.
    pub fn import(&self, keys: &[(Secret, PublicKey)], known: Histories, waived: bool) -> Result<usize> {
        let mut session = self.open()?;
        let before = session.statement.public_keys.count;
        let commands =
            commands::keys::import::commands(&session, keys, &commands::keys::import::HistorySource { known, waived })?;
        let signing = cli::Signing { operator_key: vec![self.operator_key.to_owned()], command_out: None };
        let (text, exit) = sending::give(&mut session, &commands, &signing, None)?;
        if exit != Exit::Accepted {
            anyhow::bail!("the enclave has not taken all keys:\n{text}");
        }
        Ok(usize::try_from(session.statement.public_keys.count.saturating_sub(before)).unwrap_or(usize::MAX))
    }
}

/// A client's certificate and key for etcd (PEM), as `casemate fence init` brings them.
pub fn etcd_credentials(certificate: &str, key: &str) -> Result<StoreCredentials> {
    commands::fence::etcd_credentials(certificate.as_bytes(), key.as_bytes())
}

/// Makes an operator's key and leaves it in a new file; its public half.
pub fn make_operator_key(path: &Path) -> Result<OperatorKey> {
    let pair = operator_key::OperatorPair::generate()?;
    pair.write(path)?;
    Ok(pair.public())
}

/// An address of the execution layer, as people write it; a checksum in it must be right (EIP-55).
pub fn execution_address(text: &str) -> Result<ExecutionAddress> {
    address::parse(text)
}

/// The public half of an operator's key.
pub fn operator_key(path: &Path) -> Result<OperatorKey> {
    Ok(operator_key::OperatorPair::read(path)?.public())
}

/// A sentence that may quote what a stranger sent: of bounded length, and harmless on a terminal.
fn plain(text: &str) -> String {
    let shown = |c: char| {
        if c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric() || c == '…' {
            c.to_string()
        } else {
            c.escape_unicode().to_string()
        }
    };
    let mut out: String = text.chars().take(800).map(shown).collect();
    if text.chars().nth(800).is_some() {
        out.push('…');
    }
    out
}

/// What cannot be told was not done.
fn written(result: std::io::Result<()>, exit: Exit) -> Exit {
    result.map_or(Exit::Unusable, |()| exit)
}
