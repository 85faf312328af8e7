//! `casemate history import`: adds to what keys have signed.

use std::path::PathBuf;

use anyhow::{Result, bail};
use casemate_protocol::command::{Action, KeyHistory};
use clap::Args;

use crate::args::{Connection, PinOptions, Signing};
use crate::exit::Answer;
use crate::session::Session;
use crate::{histories, sending};

#[derive(Args, Debug)]
pub struct Import {
    #[command(flatten)]
    pub connection: Connection,
    /// The EIP-3076 file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Raises what keys have signed.
pub fn run(options: Import) -> Result<Answer> {
    options.signing.check()?;
    let mut session = Session::open(options.connection, options.pins)?;
    // All of the file is read, and must be right, before anything is sent.
    let histories = histories::read(&options.file, session.statement.network.genesis_validators_root)?;
    if histories.is_empty() {
        bail!("there is no key in {}", options.file.display());
    }
    let keys: Vec<KeyHistory> =
        histories.into_iter().map(|(public_key, watermarks)| KeyHistory { public_key, past: watermarks }).collect();
    let commands = session.commands(&keys, |keys| Ok(Action::RaiseHistory { keys: keys.to_vec() }))?;
    sending::give(&mut session, &commands, &options.signing, None)
}
