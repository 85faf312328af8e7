//! `casemate fence handover` and `close`: orders to the enclave.

use anyhow::Result;
use casemate_protocol::command::Action;
use clap::Args;

use crate::args::{Connection, PinOptions, Signing};
use crate::exit::Answer;
use crate::sending;
use crate::session::Session;

/// An order without anything else in it.
#[derive(Args, Debug)]
pub struct Order {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Gives an order.
pub fn run(options: Order, action: Action) -> Result<Answer> {
    options.signing.check()?;
    let mut session = Session::open(options.connection, options.pins)?;
    let commands = [session.command(action)?];
    sending::give(&mut session, &commands, &options.signing, None)
}
