//! What keys have signed, from the files that clients and signers export (EIP-3076).

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use casemate_protocol::Root;
use casemate_slashing::interchange::{self, Histories};

use crate::{input, progress};

/// The histories in a file, which must be of the chain with this root.
pub fn read(path: &Path, genesis_validators_root: Root) -> Result<Histories> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let bar = progress::bar(len, "reading what keys have signed");
    let read = input::skip_bom(BufReader::new(bar.wrap_read(file)))
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(interchange::read(file, genesis_validators_root)?));
    bar.finish_and_clear();
    read.with_context(|| format!("in {}", path.display()))
}
