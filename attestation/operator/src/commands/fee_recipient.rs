//! `casemate fee-recipient`: where the fees of keys go.

use std::path::PathBuf;

use anyhow::{Context, Result};
use casemate_protocol::command::Action;
use clap::Args;

use crate::args::{Connection, PinOptions, Signing};
use crate::exit::Answer;
use crate::sending;
use crate::session::Session;
use crate::{address, keys};

#[derive(Args, Debug)]
pub struct FeeRecipient {
    #[command(flatten)]
    pub connection: Connection,
    /// File with the public keys: one in hex a line, or a JSON array
    #[arg(long, value_name = "FILE")]
    pub public_keys: PathBuf,
    /// The address that gets the fees
    #[arg(long, value_name = "0xADDRESS", required_unless_present = "default", conflicts_with = "default")]
    pub address: Option<String>,
    /// Send the fees where the enclave's configuration says
    #[arg(long)]
    pub default: bool,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Orders where the fees of keys go.
pub fn run(options: FeeRecipient) -> Result<Answer> {
    options.signing.check()?;
    let fee_recipient = options.address.as_deref().map(address::parse).transpose().context("--address")?;
    let keys = keys::read_some(&options.public_keys)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let commands = session.commands(&keys, |keys| Ok(Action::FeeRecipient { keys: keys.to_vec(), fee_recipient }))?;
    sending::give(&mut session, &commands, &options.signing, None)
}
