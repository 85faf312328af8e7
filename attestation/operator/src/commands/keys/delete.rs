//! `casemate keys delete`: keys leave an enclave; what they have signed stays.

use std::path::PathBuf;

use anyhow::Result;
use casemate_protocol::command::Action;
use clap::Args;

use crate::args::{Connection, PinOptions, Signing};
use crate::exit::{Answer, Exit};
use crate::keys;
use crate::sending;
use crate::session::Session;
use crate::util::agreed;

#[derive(Args, Debug)]
pub struct Delete {
    #[command(flatten)]
    pub connection: Connection,
    /// File with the public keys to delete: one in hex a line, or a JSON array. Keys that the enclave has made cannot be brought back
    #[arg(long, value_name = "FILE")]
    pub public_keys: PathBuf,
    /// Do not ask before deleting
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Has keys deleted.
pub fn run(options: Delete) -> Result<Answer> {
    options.signing.check()?;
    let keys = keys::read_some(&options.public_keys)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let commands = session.commands(&keys, |keys| Ok(Action::Delete { keys: keys.to_vec() }))?;
    let question = format!(
        "{} of {} keys are to be deleted. A key that the enclave has made exists nowhere else: it cannot be brought back.",
        keys.len(),
        session.statement.public_keys.count
    );
    let sending = options.signing.command_out.is_none();
    if sending && !options.yes && !agreed(&question, "Delete them?")? {
        return Ok(("nothing was deleted\n".to_owned(), Exit::Refused));
    }
    let (mut text, exit) = sending::give(&mut session, &commands, &options.signing, None)?;
    text.push_str(session.without_store());
    Ok((text, exit))
}
