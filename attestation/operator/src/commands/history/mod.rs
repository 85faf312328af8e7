//! `casemate history`: what keys have signed, out of an enclave and into it (EIP-3076).

pub mod export;
pub mod import;

use anyhow::Result;
use clap::Subcommand;

use crate::args::COMMAND_EXIT_CODES;
use crate::exit::Answer;
use export::Export;
use import::Import;

#[derive(Subcommand, Debug)]
pub enum HistoryCommand {
    /// Write what the enclave's keys have signed, deleted ones too, each page signed by the enclave
    #[command(after_help = COMMAND_EXIT_CODES)]
    Export(Box<Export>),
    /// Add to what keys have signed; it only ever raises
    #[command(after_help = COMMAND_EXIT_CODES)]
    Import(Box<Import>),
}

/// Runs one of them.
pub fn run(command: HistoryCommand) -> Result<Answer> {
    match command {
        HistoryCommand::Export(options) => export::run(*options),
        HistoryCommand::Import(options) => import::run(*options),
    }
}
