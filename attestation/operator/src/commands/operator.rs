//! `casemate operator`: operators' keys.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::exit::{Answer, Exit};
use crate::operator_key::{OperatorPair, new_passphrase};
use crate::util::must_be_new;

#[derive(Subcommand, Debug)]
pub enum OperatorCommand {
    /// Make an Ed25519 key, and show its public half for the configuration
    Keygen {
        /// Where to write the private key (PEM, PKCS #8); an existing file is not overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Encrypt the key (PBES2) under a passphrase, which is asked for now, and whenever the key signs
        #[arg(long)]
        encrypt: bool,
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
        OperatorCommand::Keygen { out, encrypt } => {
            // Before the passphrase is asked for.
            must_be_new(out)?;
            let passphrase = encrypt.then(new_passphrase).transpose()?;
            let pair = OperatorPair::generate()?;
            pair.write(out, passphrase.as_deref().map(String::as_str))?;
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
