//! `casemate fence`: the record in the fence's store.

pub mod init;
pub mod order;
pub mod policy;
pub mod status;
mod status_all;
pub mod takeover;

use anyhow::Result;
use casemate_protocol::command::Action;
use clap::Subcommand;

use crate::args::COMMAND_EXIT_CODES;
use crate::exit::Answer;
use init::FenceInit;
use order::Order;
use policy::FencePolicy;
use status::Status;
use takeover::Takeover;

#[derive(Subcommand, Debug)]
pub enum FenceCommand {
    /// Make the record: once for each group, before anything is signed. It also brings the credentials of the store
    #[command(after_help = COMMAND_EXIT_CODES)]
    Init(Box<FenceInit>),
    /// Show who holds the fence, its ceilings and floors, and when this enclave may sign, as its document proves it
    #[command(after_help = COMMAND_EXIT_CODES)]
    Status(Box<Status>),
    /// Have the holder release the fence: it signs no more, and a standby goes on without a gap
    #[command(after_help = COMMAND_EXIT_CODES)]
    Handover(Box<Order>),
    /// Have a standby acquire the fence at once, without waiting for the holder's ceilings to pass. What is not signed then, and for how
    /// long, is stated before it is asked for
    #[command(after_help = COMMAND_EXIT_CODES)]
    Takeover(Box<Takeover>),
    /// End the record for good, so that the next one can be made: in another store, account or region, or of another kind. Nothing is
    /// signed until then
    #[command(after_help = COMMAND_EXIT_CODES)]
    Close(Box<Order>),
    /// Write a resource policy for the fence's DynamoDB table. Under it only the enclave's credentials can write the record, and the
    /// parent's role can do nothing
    Policy(Box<FencePolicy>),
}

/// Runs one of them.
pub fn run(command: FenceCommand) -> Result<Answer> {
    match command {
        FenceCommand::Init(options) => init::run(*options),
        FenceCommand::Status(options) if options.all => status_all::run(*options),
        FenceCommand::Status(options) => status::run(*options),
        FenceCommand::Handover(options) => order::run(*options, Action::Handover),
        FenceCommand::Takeover(options) => takeover::run(*options),
        FenceCommand::Close(options) => order::run(*options, Action::FenceClose),
        FenceCommand::Policy(options) => policy::run(&options),
    }
}
