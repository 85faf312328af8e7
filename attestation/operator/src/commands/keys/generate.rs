//! `casemate keys generate`: keys that an enclave makes.

use anyhow::Result;
use casemate_protocol::command::Action;
use clap::Args;

use crate::args::{Connection, DepositOptions, PinOptions, Signing};
use crate::exit::Answer;
use crate::sending;
use crate::session::Session;

#[derive(Args, Debug)]
pub struct Generate {
    #[command(flatten)]
    pub connection: Connection,
    /// How many keys to make, up to 1000
    #[arg(long, value_name = "N")]
    pub count: u32,
    #[command(flatten)]
    pub deposit: DepositOptions,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Has keys made.
pub fn run(options: Generate) -> Result<Answer> {
    options.signing.check()?;
    let withdrawal_credentials = options.deposit.credentials()?;
    let mut session = Session::open(options.connection, options.pins)?;
    let action = Action::Generate { count: options.count, withdrawal_credentials, amount: options.deposit.amount };
    let commands = [session.command(action)?];
    sending::give(&mut session, &commands, &options.signing, Some(&options.deposit.output()))
}
