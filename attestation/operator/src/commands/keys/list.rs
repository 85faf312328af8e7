//! `casemate keys list`: the keys that sign, as the document proves them.

use anyhow::Result;
use clap::Args;

use crate::args::{Connection, PinOptions};
use crate::exit::{Answer, Exit};
use crate::session::Session;

#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    pub connection: Connection,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Lists them.
pub fn run(options: List) -> Result<Answer> {
    let session = Session::open(options.connection, options.pins)?;
    let mut keys: Vec<String> = session.keys()?.iter().map(ToString::to_string).collect();
    keys.sort_unstable();
    let text = if options.json {
        format!("{}\n", serde_json::to_string(&keys)?)
    } else {
        keys.iter().map(|key| format!("{key}\n")).collect()
    };
    Ok((text, Exit::Accepted))
}
