//! `casemate command`: commands in files.

pub mod merge;
pub mod send;
pub mod show;
pub mod sign;
pub mod unsign;

use anyhow::Result;
use clap::Subcommand;

use crate::args::COMMAND_EXIT_CODES;
use crate::exit::Answer;
use merge::Merge;
use send::Send;
use show::Show;
use sign::Sign;
use unsign::Unsign;

#[derive(Subcommand, Debug)]
pub enum CommandFileCommand {
    /// Show what a file orders, who has signed it, whose signatures are missing, and until when it is good
    Show(Show),
    /// Show what a file orders, and sign it
    Sign(Sign),
    /// Take an operator's signature out of a file
    Unsign(Unsign),
    /// Join the signatures of copies that operators have signed at the same time
    Merge(Merge),
    /// Send a signed file to the enclave that it is for
    #[command(after_help = COMMAND_EXIT_CODES)]
    Send(Box<Send>),
}

/// Runs one of them.
pub fn run(command: CommandFileCommand) -> Result<Answer> {
    match command {
        CommandFileCommand::Show(options) => show::run(&options),
        CommandFileCommand::Sign(options) => sign::run(&options),
        CommandFileCommand::Unsign(options) => unsign::run(&options),
        CommandFileCommand::Merge(options) => merge::run(&options),
        CommandFileCommand::Send(options) => send::run(*options),
    }
}
