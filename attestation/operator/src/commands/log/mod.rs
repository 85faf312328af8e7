//! `casemate log`: the signing log that casemate-proxy writes.

mod export;
mod files;
mod follow;
mod lines;
mod show;
mod verify;

use std::io::Write;

use anyhow::Result;
use clap::Subcommand;

use crate::args::EXIT_CODES;
use crate::exit::Answer;
use export::Export;
use follow::Follow;
use show::Show;
use verify::LogVerify;

#[derive(Subcommand, Debug)]
pub enum LogCommand {
    /// Verify that a log is whole, in order, and the enclave's own
    #[command(after_help = EXIT_CODES)]
    Verify(Box<LogVerify>),
    /// Show what a log says, for people. It is not verified
    Show(Box<Show>),
    /// Show what is written into a log from now on. It is not verified
    Follow(Box<Follow>),
    /// Write what a log says for programs. It is not verified: do that first
    Export(Box<Export>),
}

/// Runs one of them; what may be long goes to `out` as it comes.
pub fn run(command: LogCommand, json: bool, out: &mut dyn Write) -> Result<Answer> {
    match command {
        LogCommand::Verify(options) => verify::run(&options, json),
        LogCommand::Show(options) => show::run(&options, json, out),
        LogCommand::Follow(options) => follow::run(&options, json, out),
        LogCommand::Export(options) => export::run(&options, out),
    }
}
