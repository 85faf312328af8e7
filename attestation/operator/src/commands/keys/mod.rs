//! `casemate keys`: the keys of an enclave.

pub mod delete;
pub mod deposit;
pub mod generate;
pub mod import;
pub mod list;

use anyhow::Result;
use clap::Subcommand;

use crate::args::COMMAND_EXIT_CODES;
use crate::exit::Answer;
use delete::Delete;
use deposit::Deposit;
use generate::Generate;
use import::Import;
use list::List;

#[derive(Subcommand, Debug)]
pub enum KeysCommand {
    /// List the keys of an enclave, as its document proves them
    #[command(after_help = COMMAND_EXIT_CODES)]
    List(Box<List>),
    /// Bring keys into an enclave: EIP-2335 keystores or raw keys, encrypted to the enclave that its document proves
    #[command(after_help = COMMAND_EXIT_CODES)]
    Import(Box<Import>),
    /// Have an enclave make keys, and write their deposit data for the launchpad
    #[command(after_help = COMMAND_EXIT_CODES)]
    Generate(Box<Generate>),
    /// Delete keys from an enclave; what they have signed is remembered
    #[command(after_help = COMMAND_EXIT_CODES)]
    Delete(Box<Delete>),
    /// Have an enclave sign deposits of keys that it holds, and write their deposit data
    #[command(after_help = COMMAND_EXIT_CODES)]
    Deposit(Box<Deposit>),
}

/// Runs one of them.
pub fn run(command: KeysCommand) -> Result<Answer> {
    match command {
        KeysCommand::List(options) => list::run(*options),
        KeysCommand::Import(options) => import::run(*options),
        KeysCommand::Generate(options) => generate::run(*options),
        KeysCommand::Delete(options) => delete::run(*options),
        KeysCommand::Deposit(options) => deposit::run(*options),
    }
}
