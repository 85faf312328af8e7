//! The command line: its tree, the old names of its branches, and where each leads.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::args::COMMAND_EXIT_CODES;
use crate::commands::attest::{self, AttestCommand};
use crate::commands::backup::{self, BackupCommand};
use crate::commands::command::{self, CommandFileCommand};
use crate::commands::exit::{self, VoluntaryExit};
use crate::commands::fee_recipient::{self, FeeRecipient};
use crate::commands::fence::order::Order;
use crate::commands::fence::policy::FencePolicy;
use crate::commands::fence::status::Status;
use crate::commands::fence::takeover::Takeover;
use crate::commands::fence::{self, FenceCommand};
use crate::commands::history::{self, HistoryCommand};
use crate::commands::keys::delete::Delete;
use crate::commands::keys::deposit::Deposit;
use crate::commands::keys::generate::Generate;
use crate::commands::keys::import::Import;
use crate::commands::keys::{self, KeysCommand};
use crate::commands::kms_policy::{self, KmsPolicy};
use crate::commands::log::{self, LogCommand};
use crate::commands::operator::{self, OperatorCommand};
use crate::commands::shell::{self, Completions, Manuals};
use crate::exit::Answer;
use crate::profile::Defaults;

/// The operator's side of Casemate: verify an enclave before you trust it.
#[derive(Parser, Debug)]
#[command(name = "casemate", version = casemate_version::VERSION)]
struct Options {
    /// Take from this profile what neither the command line nor the environment says: the URL, the pins, the TLS files, the operator's
    /// key. Also CASEMATE_PROFILE
    #[arg(long, value_name = "NAME", global = true, help_heading = "Everywhere")]
    profile: Option<String>,
    /// The file of profiles, which no one but its owner may write. Also CASEMATE_CONFIG [default: casemate/config.toml in XDG_CONFIG_HOME or
    /// ~/.config]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Everywhere")]
    profiles: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// A command line that was read.
pub struct Parsed {
    pub command: Command,
    /// Whether the answer is for programs.
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Attestation documents: is this the enclave that you mean?
    #[command(subcommand)]
    Attest(AttestCommand),
    /// Show who holds the fence, its ceilings and floors, and when this enclave may sign, as its document proves it
    #[command(after_help = COMMAND_EXIT_CODES)]
    Status(Box<Status>),
    /// The fence: its record, its holder, its table's policy
    #[command(subcommand)]
    Fence(FenceCommand),
    /// The keys of an enclave
    #[command(subcommand)]
    Keys(KeysCommand),
    /// What keys have signed: out of an enclave and into it, as EIP-3076 files
    #[command(subcommand, alias = "slashing")]
    History(HistoryCommand),
    /// Sign voluntary exits, and let validator clients have them signed for a while. An exit cannot be taken back
    #[command(after_help = COMMAND_EXIT_CODES)]
    Exit(Box<VoluntaryExit>),
    /// Say where the fees of keys go: the enclave signs no other recipient for them
    #[command(after_help = COMMAND_EXIT_CODES)]
    FeeRecipient(Box<FeeRecipient>),
    /// The signing log that casemate-proxy writes
    #[command(subcommand)]
    Log(LogCommand),
    /// Copies of the sealed states
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Commands in files: look at them, sign them on another machine, send them
    #[command(subcommand, name = "command")]
    Files(CommandFileCommand),
    /// Operators' keys, which sign commands
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Write a KMS key policy that lets only these measurements unseal, and keeps the parent's role from changing it
    KmsPolicy(Box<KmsPolicy>),
    /// Write what a shell needs to complete commands and options
    Completions(Completions),
    /// Write the manual's pages, one for each command
    Man(Manuals),
    #[command(flatten)]
    Old(OldCommand),
}

/// Names from before the commands had groups. They stay until 1.0, and no help shows them.
#[derive(Subcommand, Debug)]
pub enum OldCommand {
    #[command(hide = true)]
    Import(Box<Import>),
    #[command(hide = true)]
    Keygen(Box<Generate>),
    #[command(hide = true)]
    Deposit(Box<Deposit>),
    #[command(hide = true)]
    Delete(Box<Delete>),
    #[command(hide = true)]
    HandOver(Box<Order>),
    #[command(hide = true)]
    TakeOver(Box<Takeover>),
    #[command(hide = true)]
    FencePolicy(Box<FencePolicy>),
}

impl From<OldCommand> for Command {
    fn from(old: OldCommand) -> Self {
        match old {
            OldCommand::Import(options) => Self::Keys(KeysCommand::Import(options)),
            OldCommand::Keygen(options) => Self::Keys(KeysCommand::Generate(options)),
            OldCommand::Deposit(options) => Self::Keys(KeysCommand::Deposit(options)),
            OldCommand::Delete(options) => Self::Keys(KeysCommand::Delete(options)),
            OldCommand::HandOver(options) => Self::Fence(FenceCommand::Handover(options)),
            OldCommand::TakeOver(options) => Self::Fence(FenceCommand::Takeover(options)),
            OldCommand::FencePolicy(options) => Self::Fence(FenceCommand::Policy(options)),
        }
    }
}

impl Command {
    /// Whether its answer has a form of its own for programs.
    pub fn has_json(&self) -> bool {
        matches!(
            self,
            Self::Attest(_)
                | Self::Fence(FenceCommand::Status(_) | FenceCommand::Policy(_))
                | Self::Keys(KeysCommand::List(_))
                | Self::KmsPolicy(_)
                | Self::Log(_)
        )
    }
}

/// Reads a command line.
pub fn parse(arguments: &[OsString], defaults: &Defaults) -> Result<Parsed, clap::Error> {
    let tree = defaults.fill(Options::command(), arguments);
    let matches = tree.try_get_matches_from(with_list(arguments, defaults))?;
    let Options { json, command, .. } = Options::from_arg_matches(&matches)?;
    let command = match command {
        Command::Old(old) => old.into(),
        // The everyday name of it.
        Command::Status(options) => Command::Fence(FenceCommand::Status(options)),
        command => command,
    };
    Ok(Parsed { command, json })
}

/// `casemate keys URL` is `casemate keys list URL`, and so is `casemate keys` where a profile has the URL. A word that is neither a URL nor
/// an option is left to the parser, which knows the subcommands.
fn with_list(arguments: &[OsString], defaults: &Defaults) -> Vec<OsString> {
    let mut arguments = arguments.to_vec();
    let Some(at) = first_word(&arguments).filter(|at| arguments.get(*at).is_some_and(|word| word == "keys")) else {
        return arguments;
    };
    let behind = at.saturating_add(1);
    let next = arguments.get(behind).map(|word| word.to_string_lossy().into_owned());
    let lists = match next.as_deref() {
        None => defaults.has_url(),
        Some("-h" | "--help") => false,
        Some(next) => next.starts_with('-') || next.contains("://"),
    };
    if lists {
        arguments.insert(behind, "list".into());
    }
    arguments
}

/// Where the command is: behind the options that all commands have.
fn first_word(arguments: &[OsString]) -> Option<usize> {
    let mut words = arguments.iter().enumerate().skip(1);
    loop {
        let (at, word) = words.next()?;
        match word.to_str()? {
            "--profile" | "--profiles" => drop(words.next()),
            option if option.starts_with('-') => {}
            _ => return Some(at),
        }
    }
}

/// Carries a command out.
pub fn dispatch(command: Command, json: bool, out: &mut dyn Write) -> Result<Answer> {
    match command {
        Command::Attest(command) => attest::run(command),
        Command::Status(options) => fence::run(FenceCommand::Status(options)),
        Command::Fence(command) => fence::run(command),
        Command::Keys(command) => keys::run(command),
        Command::History(command) => history::run(command),
        Command::Exit(options) => exit::run(*options),
        Command::FeeRecipient(options) => fee_recipient::run(*options),
        Command::Log(command) => log::run(command, json, out),
        Command::Backup(command) => backup::run(command),
        Command::Files(command) => command::run(command),
        Command::Operator(command) => operator::run(&command),
        Command::KmsPolicy(options) => kms_policy::run(&options),
        Command::Completions(options) => shell::completions(&options, Options::command()),
        Command::Man(options) => shell::manuals(&options, Options::command()),
        Command::Old(old) => dispatch(old.into(), json, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:9000";

    #[test]
    fn the_version_says_what_it_was_built_from() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = crate::run(&["casemate", "--version"].map(OsString::from), &mut out, &mut err);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            (exit, text.as_str()),
            (crate::Exit::Accepted, &*format!("casemate {}\n", casemate_version::VERSION))
        );
    }

    fn parsed(words: &[&str]) -> String {
        let words: Vec<OsString> = std::iter::once(&"casemate").chain(words).map(OsString::from).collect();
        match parse(&words, &Defaults::default()) {
            Ok(parsed) => format!("{:?}", parsed.command),
            Err(error) => panic!("{words:?}: {error}"),
        }
    }

    #[test]
    fn every_old_spelling_is_the_same_command() {
        let history = ["--slashing-protection", "history.json"];
        let deposit = ["--withdrawal-address", "0x00", "--amount", "5", "--operator-key", "a.pem"];
        let policy = [
            "--table",
            "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate-fence",
            "--group",
            "main",
            "--genesis-validators-root",
            "0x04",
            "--writer",
            "a",
            "--administrator",
            "b",
            "--parent-role",
            "c",
        ];
        for (old, new, more) in [
            (&["import", URL][..], &["keys", "import", URL][..], &[&history[..], &["--raw-keys", "-"]].concat()[..]),
            (&["import", URL, "--no-history-i-accept"], &["keys", "import", URL, "--accept-unknown-history"], &[]),
            (&["keygen", URL, "--count", "2"], &["keys", "generate", URL, "--count", "2"], &deposit),
            (&["deposit", URL, "--public-keys", "k"], &["keys", "deposit", URL, "--public-keys", "k"], &deposit),
            (&["delete", URL, "--public-keys", "k"], &["keys", "delete", URL, "--public-keys", "k"], &["--yes"]),
            (&["keys", URL], &["keys", "list", URL], &["--json", "--enclave", "1"]),
            (&["keys", "--json", URL], &["keys", "list", "--json", URL], &["--group", "main"]),
            (&["hand-over", URL], &["fence", "handover", URL], &["--operator-key", "a.pem"]),
            (&["take-over", URL], &["fence", "takeover", URL], &["--command-out", "file"]),
            (&["status", URL], &["fence", "status", URL], &["--json"]),
            (&["fence-policy"], &["fence", "policy"], &policy),
            (&["slashing", "export", URL], &["history", "export", URL], &["--out", "history.json"]),
            (&["slashing", "import", URL], &["history", "import", URL], &["history.json"]),
        ] {
            assert_eq!(parsed(&[old, more].concat()), parsed(&[new, more].concat()), "{old:?}");
        }
    }

    #[test]
    fn no_help_shows_an_old_spelling() {
        let mut tree = Options::command();
        tree.build();
        let mut texts = vec![tree.render_long_help().to_string()];
        for group in tree.get_subcommands_mut().filter(|group| !group.is_hide_set()) {
            texts.push(group.render_long_help().to_string());
            texts.extend(group.get_subcommands_mut().map(|command| command.render_long_help().to_string()));
        }
        assert!(texts.len() > 25, "{}", texts.len());
        let shown = tree.render_long_help().to_string();
        let names: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
        for old in ["import", "keygen", "deposit", "delete", "hand-over", "take-over", "fence-policy", "slashing"] {
            assert!(!names.contains(&old), "{old}: {shown}");
            let command = format!("casemate {old}");
            assert!(texts.iter().all(|text| !text.contains(&command)), "{command}");
        }
        assert!(texts.iter().all(|text| !text.contains("no-history-i-accept")));
        assert!(
            names.contains(&"status")
                && names.contains(&"history")
                && names.contains(&"keys")
                && names.contains(&"fence"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_no_subcommand_of_keys_is_refused_by_name() {
        let error = parse(&["casemate", "keys", "exprot"].map(OsString::from), &Defaults::default());
        let error = error.err().unwrap().to_string();
        assert!(error.contains("unrecognized subcommand 'exprot'"), "{error}");
    }
}
