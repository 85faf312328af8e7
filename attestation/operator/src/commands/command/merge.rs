//! `casemate command merge`: copies of a file that operators have signed at the same time become one.

use std::path::PathBuf;

use anyhow::{Result, bail};
use casemate_protocol::command::{MAX_OPERATORS, SignedCommand};
use clap::Args;

use crate::exit::{Answer, refused};
use crate::operator_key::is_signed;
use crate::summary::signed_summary;
use crate::util::plural;
use crate::{command_file, outputs};

#[derive(Args, Debug)]
pub struct Merge {
    /// The copies: the same commands, with signatures of their own
    #[arg(value_name = "FILE", num_args = 2.., required = true)]
    pub files: Vec<PathBuf>,
    /// The file to write; an existing one is not overwritten
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Merges copies.
pub fn run(options: &Merge) -> Result<Answer> {
    outputs::check_new(&options.out)?;
    let mut merged: Option<Vec<SignedCommand>> = None;
    for path in &options.files {
        let signed = command_file::read(path)?;
        check_signatures(&signed, path)?;
        match &mut merged {
            None => merged = Some(signed),
            Some(merged) => {
                let same = merged.len() == signed.len()
                    && merged.iter().zip(&signed).all(|(one, other)| one.command == other.command);
                if !same {
                    let first = options.files.first().map(|path| path.display().to_string()).unwrap_or_default();
                    bail!("{} has other commands than {first}: nothing was written", path.display());
                }
                merged.iter_mut().zip(signed).for_each(|(one, other)| join(one, other));
            }
        }
    }
    let Some(merged) = merged else { bail!("which files?") };
    if let Some(many) = merged.iter().map(|one| one.signatures.len()).find(|many| *many > MAX_OPERATORS) {
        bail!("{} together; {MAX_OPERATORS} are allowed: nothing was written", plural(many, "signature"));
    }
    command_file::write(&options.out, &merged)?;
    let (text, exit) = signed_summary(&merged)?;
    Ok((format!("{text}\nmerged into {}\n", options.out.display()), exit))
}

/// One bad signature would ruin the good ones of the others.
fn check_signatures(signed: &[SignedCommand], path: &std::path::Path) -> Result<()> {
    for one in signed {
        if let Some(bad) = one.signatures.iter().find(|signature| !is_signed(one.command.as_ref(), signature)) {
            return refused(format!(
                "the signature of {} in {} is not valid: take it out with casemate command unsign. Nothing was written",
                bad.operator,
                path.display()
            ));
        }
    }
    Ok(())
}

fn join(one: &mut SignedCommand, other: SignedCommand) {
    for signature in other.signatures {
        if one.signatures.iter().all(|known| known.operator != signature.operator) {
            one.signatures.push(signature);
        }
    }
}
