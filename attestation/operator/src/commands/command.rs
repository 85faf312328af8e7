//! `casemate command`: commands in files.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::args::{COMMAND_EXIT_CODES, Connection, PinOptions};
use crate::command_file;
use crate::deposit_data::DepositOutput;
use crate::exit::{Answer, Exit, refused};
use crate::operator_key::OperatorPair;
use crate::sending;
use crate::session::Session;
use crate::summary::signed_summary;
use crate::util::agreed;

#[derive(Subcommand, Debug)]
pub enum CommandFileCommand {
    /// Show what a file orders, and who has signed it
    Show {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show what a file orders, and sign it
    Sign {
        /// The file; the signature is added to it
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Operator's private key (PEM); once for each operator who signs here
        #[arg(long, value_name = "FILE", required = true)]
        operator_key: Vec<PathBuf>,
        /// Do not ask before signing
        #[arg(long)]
        yes: bool,
    },
    /// Send a signed file to the enclave that it is for
    #[command(after_help = COMMAND_EXIT_CODES)]
    Send(Box<Send>),
}

#[derive(Args, Debug)]
pub struct Send {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub connection: Connection,
    /// Folder for the deposit data of keys that are made
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// Genesis fork version of a chain that is not built in
    #[arg(long, value_name = "0xVERSION")]
    pub genesis_fork_version: Option<String>,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Shows, signs or sends a file.
pub fn run(command: CommandFileCommand) -> Result<Answer> {
    match command {
        CommandFileCommand::Show { file } => signed_summary(&command_file::read(&file)?),
        CommandFileCommand::Sign { file, operator_key, yes } => sign(&file, &operator_key, yes),
        CommandFileCommand::Send(options) => send(*options),
    }
}

fn sign(file: &Path, keys: &[PathBuf], yes: bool) -> Result<Answer> {
    let mut signed = command_file::read(file)?;
    let (text, _) = signed_summary(&signed)?;
    if !yes && !agreed(&text, "Sign this?")? {
        return Ok(("nothing was signed\n".to_owned(), Exit::Refused));
    }
    for pair in OperatorPair::read_all(keys)? {
        for one in &mut signed {
            let signature = pair.sign(one.command.as_ref());
            one.signatures.retain(|other| other.operator != signature.operator);
            one.signatures.push(signature);
        }
    }
    command_file::write(file, &signed)?;
    let (text, exit) = signed_summary(&signed)?;
    Ok((format!("{text}\nsigned and written to {}\n", file.display()), exit))
}

fn send(options: Send) -> Result<Answer> {
    let signed = command_file::read(&options.file)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let ours = session.statement.boot_nonce;
    if command_file::commands(&signed)?.iter().any(|command| command.boot_nonce != ours) {
        return refused("the command is for another boot of the enclave: make it anew, and have it signed anew");
    }
    let genesis_fork_version = options.genesis_fork_version.as_deref();
    sending::send(&mut session, &signed, Some(&DepositOutput { folder: &options.out, genesis_fork_version }))
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Bytes;
    use casemate_protocol::command::{Action, Command, SignedCommand};

    use super::*;

    #[test]
    fn a_file_is_signed_by_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("command.json");
        let action = Action::Delete { keys: vec![Bytes([9; 48])] };
        let command = Command::new("alpha".into(), Bytes([1; 32]), Bytes([2; 32]), 1_790_000_000_000, action);
        command_file::write(&path, &[SignedCommand::new(command.encode().unwrap(), vec![])]).unwrap();
        let mut keys = Vec::new();
        for name in ["a.pem", "b.pem"] {
            let key = folder.path().join(name);
            OperatorPair::generate().unwrap().write(&key).unwrap();
            keys.push(key);
        }
        let show = |path: &Path| run(CommandFileCommand::Show { file: path.to_owned() }).unwrap().0;
        assert!(show(&path).contains("no one"));
        // Without a terminal there is no one to ask, and nothing is signed.
        let sign = |key: &Path, yes| {
            run(CommandFileCommand::Sign { file: path.clone(), operator_key: vec![key.to_owned()], yes })
        };
        assert!(sign(&keys[0], false).is_err());
        sign(&keys[0], true).unwrap();
        sign(&keys[1], true).unwrap();
        // Twice is once.
        let (text, _) = sign(&keys[1], true).unwrap();
        for key in &keys {
            assert!(text.contains(&OperatorPair::read(key).unwrap().public().to_string()), "{text}");
        }
        assert!(text.contains("DELETE 1 key:") && text.contains("2026-") && !text.contains("NOT VALID"), "{text}");
        let signed = command_file::read(&path).unwrap();
        assert_eq!(signed[0].signatures.len(), 2);
        // A signature over something else is seen.
        let mut forged = signed;
        forged[0].signatures[0].signature.0[5] ^= 1;
        command_file::write(&path, &forged).unwrap();
        let (text, exit) = run(CommandFileCommand::Show { file: path.clone() }).unwrap();
        assert!(text.contains("SIGNATURE NOT VALID"), "{text}");
        assert_eq!(exit, Exit::Refused);
    }
}
