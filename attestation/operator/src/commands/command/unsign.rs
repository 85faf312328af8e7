//! `casemate command unsign`: a signature leaves a file.

use std::path::PathBuf;

use anyhow::{Result, bail};
use casemate_protocol::command::OperatorKey;
use clap::Args;

use crate::command_file;
use crate::exit::Answer;
use crate::summary::signed_summary;
use crate::util::{hex, plural};

#[derive(Args, Debug)]
pub struct Unsign {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Whose signature: the public half of the key, as casemate command show lists it; once for each
    #[arg(long, value_name = "0xKEY", required = true, value_parser = operator)]
    pub operator: Vec<OperatorKey>,
}

fn operator(text: &str) -> Result<OperatorKey, String> {
    hex(text, "the operator").map_err(|error| error.to_string())
}

/// Takes signatures out.
pub fn run(options: &Unsign) -> Result<Answer> {
    let mut signed = command_file::read(&options.file)?;
    for operator in &options.operator {
        if !signed.iter().any(|one| one.signatures.iter().any(|signature| signature.operator == *operator)) {
            bail!("{operator} has not signed {}: nothing was changed", options.file.display());
        }
    }
    for one in &mut signed {
        one.signatures.retain(|signature| !options.operator.contains(&signature.operator));
    }
    command_file::write(&options.file, &signed)?;
    let (text, exit) = signed_summary(&signed)?;
    let out = plural(options.operator.len(), "signature");
    Ok((format!("{text}\n{out} taken out of {}\n", options.file.display()), exit))
}
