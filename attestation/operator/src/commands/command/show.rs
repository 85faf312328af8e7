//! `casemate command show`: what a file orders, and what it still needs.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::command_file;
use crate::exit::Answer;
use crate::operators::Operators;
use crate::summary::{lifetime, signed_summary, valid_signers};

#[derive(Args, Debug)]
pub struct Show {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The enclave's measured configuration (TOML): it says whose signatures are missing
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Shows a file.
pub fn run(options: &Show) -> Result<Answer> {
    let signed = command_file::read(&options.file)?;
    let commands = command_file::commands(&signed)?;
    let (mut text, exit) = signed_summary(&signed)?;
    text.push('\n');
    match &options.config {
        Some(path) => {
            let operators = Operators::read(path)?;
            operators.check_commands(&commands)?;
            text.push_str(&operators.missing(&valid_signers(&signed)));
        }
        None => text.push_str("whose signatures are missing stands in the enclave's configuration: --config FILE\n"),
    }
    text.push_str(&lifetime(&commands));
    Ok((text, exit))
}
