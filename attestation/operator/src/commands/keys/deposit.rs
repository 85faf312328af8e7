//! `casemate keys deposit`: deposits of keys that an enclave holds.

use std::path::PathBuf;

use anyhow::Result;
use casemate_protocol::command::Action;
use clap::Args;

use crate::args::{Connection, DepositOptions, PinOptions, Signing};
use crate::exit::Answer;
use crate::keys;
use crate::sending;
use crate::session::Session;

#[derive(Args, Debug)]
pub struct Deposit {
    #[command(flatten)]
    pub connection: Connection,
    /// File with the public keys: one in hex a line, or a JSON array
    #[arg(long, value_name = "FILE")]
    pub public_keys: PathBuf,
    #[command(flatten)]
    pub of: DepositOptions,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Has deposits signed.
pub fn run(options: Deposit) -> Result<Answer> {
    options.signing.check()?;
    let (withdrawal_credentials, amount) = (options.of.credentials()?, options.of.amount);
    let keys = keys::read_some(&options.public_keys)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let commands =
        session.commands(&keys, |keys| Ok(Action::Deposit { keys: keys.to_vec(), withdrawal_credentials, amount }))?;
    sending::give(&mut session, &commands, &options.signing, Some(&options.of.output()))
}
