//! `casemate exit`: voluntary exits.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use casemate_protocol::Epoch;
use casemate_protocol::command::{Action, ExitOrder};
use clap::Args;

use crate::args::{Connection, PinOptions, Signing};
use crate::chain::epoch_now;
use crate::deposit_data::DepositOutput;
use crate::exit::Answer;
use crate::sending;
use crate::session::Session;
use crate::util::{hex, quoted};

/// One day of mainnet.
const EXIT_EPOCHS: u64 = 225;

#[derive(Args, Debug)]
pub struct VoluntaryExit {
    #[command(flatten)]
    pub connection: Connection,
    /// A validator that leaves: its public key, and its index on the chain; once for each
    #[arg(long, value_name = "0xKEY=INDEX", required = true, value_parser = validator)]
    pub validator: Vec<ExitOrder>,
    /// Exits of no later epoch are signed for this order [default: 225 epochs on, a day of mainnet]
    #[arg(long, value_name = "EPOCH")]
    pub until_epoch: Option<u64>,
    /// Folder for exit-INDEX.json, which any beacon node takes at POST /eth/v1/beacon/pool/voluntary_exits
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

fn validator(text: &str) -> Result<ExitOrder, String> {
    let (key, index) = text.split_once('=').ok_or("not of the form 0xKEY=INDEX")?;
    let public_key = hex(key, "the key").map_err(|error| error.to_string())?;
    let validator_index = index.parse().map_err(|_| format!("{} is no validator's index", quoted(index)))?;
    Ok(ExitOrder { public_key, validator_index })
}

/// Has exits signed, and lets clients have them signed until an epoch.
pub fn run(options: VoluntaryExit) -> Result<Answer> {
    options.signing.check()?;
    let mut session = Session::open(options.connection, options.pins)?;
    let now = epoch_now(&session.statement).context("the enclave does not trust its clock")?;
    let last_epoch = options.until_epoch.map_or(Epoch(now.0.saturating_add(EXIT_EPOCHS)), Epoch);
    if last_epoch < now {
        bail!("--until-epoch is {last_epoch}; the current epoch is {now}");
    }
    let commands =
        session.commands(&options.validator, |exits| Ok(Action::Exit { exits: exits.to_vec(), last_epoch }))?;
    let output = DepositOutput { folder: &options.out, genesis_fork_version: None };
    sending::give(&mut session, &commands, &options.signing, Some(&output))
}
