//! `casemate operator`: operators' keys.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::exit::{Answer, Exit};
use crate::operator_key::OperatorPair;

#[derive(Subcommand, Debug)]
pub enum OperatorCommand {
    /// Make an Ed25519 key, and show its public half for the configuration
    Keygen {
        /// Where to write the private key (PEM, PKCS #8); an existing file is not overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show the public half of a key
    Public {
        /// The private key (PEM)
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Makes a key, or reads one, and shows its public half.
pub fn run(command: &OperatorCommand) -> Result<Answer> {
    let (pair, path) = match command {
        OperatorCommand::Keygen { out } => {
            let pair = OperatorPair::generate()?;
            pair.write(out)?;
            (pair, out)
        }
        OperatorCommand::Public { file } => (OperatorPair::read(file)?, file),
    };
    let public = pair.public();
    let text = format!(
        "{public}\n\nthe public half of {}, for the configuration:\n\n[operators]\nthreshold = M\nkeys = [\"{public}\", …]\n",
        path.display()
    );
    Ok((text, Exit::Accepted))
}
