//! `casemate command send`: a signed file goes to the enclave that it is for.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::args::{Connection, PinOptions};
use crate::deposit_data::DepositOutput;
use crate::exit::{Answer, refused};
use crate::operators::Operators;
use crate::session::Session;
use crate::{command_file, sending};

#[derive(Args, Debug)]
pub struct Send {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub connection: Connection,
    /// The enclave's measured configuration (TOML): a file with a signature of someone whom it does not name is not sent
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for the deposit data of keys that are made, and for exits
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// Genesis fork version of a chain that is not built in
    #[arg(long, value_name = "0xVERSION")]
    pub genesis_fork_version: Option<String>,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Sends a file.
pub fn run(options: Send) -> Result<Answer> {
    let signed = command_file::read(&options.file)?;
    let operators = options.config.as_deref().map(Operators::read).transpose()?;
    let mut session = Session::open(options.connection, options.pins)?;
    let ours = session.statement.boot_nonce;
    if let Some(other) = command_file::commands(&signed)?.iter().find(|command| command.boot_nonce != ours) {
        return refused(format!(
            "the command is for another boot of the enclave ({}; this one is {ours}): make it anew, and have it signed anew",
            other.boot_nonce
        ));
    }
    if let Some(operators) = operators {
        operators.check_digest(session.statement.configuration_sha256)?;
        let signers = signed.iter().flat_map(|one| &one.signatures);
        signers.map(|signature| signature.operator).try_for_each(|operator| operators.check_signer(&operator))?;
    }
    let genesis_fork_version = options.genesis_fork_version.as_deref();
    sending::send(&mut session, &signed, Some(&DepositOutput { folder: &options.out, genesis_fork_version }))
}
