//! The operator's command line. It runs on the operator's own machine and trusts nothing that it fetches: not the parent, not
//! the proxy, not the network; only the pins that the operator gives it, and the root behind the document.
//!
//! `casemate attest verify FILE` and `casemate attest fetch URL` tell whether an enclave is the one that the operator means.
//! Exit codes: 0 accepted, 1 refused, 2 unusable input.
#![forbid(unsafe_code)]

mod attest;
mod cli;
mod fetch;
mod input;
mod keys;
mod pins;
mod report;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for was done: a document was accepted, or shown where no more was asked for.
    Accepted,
    /// The document is not what was expected.
    Refused,
    /// There was nothing to judge: the input or the command line cannot be used.
    Unusable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Accepted => 0,
            Exit::Refused => 1,
            Exit::Unusable => 2,
        })
    }
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
    let cli::Command::Attest(attest) = options.command;
    match attest::run(&attest.command) {
        Ok((text, exit)) => written(out.write_all(text.as_bytes()).and_then(|()| out.flush()), exit),
        Err(error) => written(writeln!(err, "casemate: {}", plain(&format!("{error:#}"))), Exit::Unusable),
    }
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
