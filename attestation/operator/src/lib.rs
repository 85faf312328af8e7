//! The operator's command line. It runs on the operator's own machine and trusts nothing that it fetches: not the parent, not
//! the proxy, not the network; only the pins that the operator gives it, and the root of the document.
//!
//! `casemate attest verify FILE` and `casemate attest fetch URL` tell whether an enclave is the one that the operator means. What
//! changes it (`casemate keys import`, `generate`, `delete`, `casemate fence …`) verifies it first, and reports success only after
//! another document confirms it.
//!
//! [`run`] is the whole program. It ends with an [`Exit`]: 0 accepted, 1 refused, 2 unusable input, 3 no answer, 4 done, but
//! not written here.
//!
//! ```
//! let arguments = ["casemate", "attest", "verify", "/no/such/document"].map(Into::into);
//! let (mut out, mut err) = (Vec::new(), Vec::new());
//! assert_eq!(casemate::run(&arguments, &mut out, &mut err), casemate::Exit::Unusable);
//! assert!(String::from_utf8_lossy(&err).starts_with("casemate: opening /no/such/document"));
//! ```
//!
//! Programs that start an enclave on this machine use [`Local`] to make its fence and to import keys.
//!
//! Inside, each subcommand is a file in `commands/`, with its arguments beside it. They stand on the modules beside that folder, which
//! never import a subcommand; `cli` is the tree above them.
#![forbid(unsafe_code)]

mod address;
mod args;
mod arn;
mod chain;
mod cli;
mod closed_record;
mod colours;
mod command_file;
mod commands;
mod deposit_data;
mod exit;
mod fence_pin;
mod fetch;
mod histories;
mod input;
mod json_answer;
mod key_pages;
mod keys;
mod keystores;
mod local;
mod operator_key;
mod operators;
mod outcomes;
mod outputs;
mod pins;
mod policy_words;
mod profile;
mod progress;
mod report;
mod reported;
mod sending;
mod session;
mod signing_log;
mod store_credentials;
mod summary;
mod table;
mod util;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use casemate_protocol::ExecutionAddress;
use casemate_protocol::command::{OperatorKey, StoreCredentials};

use profile::Defaults;

pub use exit::Exit;
pub use local::Local;

/// The program, from its arguments to the end.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let colours = anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
    // Standard error is not locked: progress bars are drawn by a thread of their own.
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    Program { colours, out: &mut out, err: &mut err }.run(arguments).into()
}

/// Runs a command line; answers go to `out`, complaints to `err`, both without colours.
pub fn run(arguments: &[OsString], out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    Program { colours: false, out, err }.run(arguments)
}

/// Where a command line's answer goes.
struct Program<'a> {
    colours: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl Program<'_> {
    fn run(&mut self, arguments: &[OsString]) -> Exit {
        let defaults = match Defaults::gather(arguments, &|name| std::env::var_os(name)) {
            Ok(defaults) => defaults,
            Err(error) => return self.failed(&error, false),
        };
        let cli::Parsed { command, json } = match cli::parse(arguments, &defaults) {
            Ok(parsed) => parsed,
            Err(message) => return self.not_run(&message, &defaults),
        };
        let wrapped = json && !command.has_json();
        match cli::dispatch(command, json, self.out) {
            Ok((text, exit)) => self.answered(&text, exit, json, wrapped),
            Err(error) => self.failed(&error, json),
        }
    }

    /// Help and version are answers too.
    fn not_run(&mut self, message: &clap::Error, defaults: &Defaults) -> Exit {
        let rendered = message.render();
        let text = if self.colours { rendered.ansi().to_string() } else { rendered.to_string() };
        if !message.use_stderr() {
            return told(&write!(self.out, "{text}"), Exit::Accepted);
        }
        let from = defaults.source().map(|source| format!("\nWhat is not on the command line is of {source}.\n"));
        told(&write!(self.err, "{text}{}", from.unwrap_or_default()), Exit::Unusable)
    }

    fn answered(&mut self, text: &str, exit: Exit, json: bool, wrapped: bool) -> Exit {
        let text = match (wrapped, self.colours && !json) {
            (true, _) => json_answer::answer(text, exit),
            (false, true) => colours::paint(text),
            (false, false) => text.to_owned(),
        };
        told(&self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()), exit)
    }

    fn failed(&mut self, error: &anyhow::Error, json: bool) -> Exit {
        let sentence = match error.downcast_ref() {
            Some(exit::Lines(lines)) => lines.trim_end().to_owned(),
            None => util::plain(&format!("{error:#}")),
        };
        let exit = Exit::of(error);
        let written = writeln!(self.err, "casemate: {sentence}");
        // A program reads standard output alone.
        let written = written
            .and_then(|()| if json { write!(self.out, "{}", json_answer::error(&sentence, exit)) } else { Ok(()) });
        told(&written, exit)
    }
}

/// What was done and cannot be told was done all the same. Every other end keeps its code, which says more.
fn told(result: &std::io::Result<()>, exit: Exit) -> Exit {
    if result.is_err() && exit == Exit::Accepted { Exit::NotWritten } else { exit }
}

/// A client's certificate and key for etcd (PEM), as `casemate fence init` brings them.
pub fn etcd_credentials(certificate: &str, key: &str) -> Result<StoreCredentials> {
    store_credentials::etcd(certificate.as_bytes(), key.as_bytes())
}

/// Makes an operator's key and leaves it in a new file; its public half.
pub fn make_operator_key(path: &Path) -> Result<OperatorKey> {
    let pair = operator_key::OperatorPair::generate()?;
    pair.write(path, None)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_and_cannot_be_told_is_not_called_unusable_input() {
        let full = || Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(told(&full(), Exit::Accepted), Exit::NotWritten);
        assert_eq!(told(&full(), Exit::NoAnswer), Exit::NoAnswer);
        assert_eq!(told(&Ok(()), Exit::Accepted), Exit::Accepted);
        // The number is a promise to scripts.
        assert_eq!(format!("{:?}", ExitCode::from(Exit::NotWritten)), format!("{:?}", ExitCode::from(4)));
    }
}
