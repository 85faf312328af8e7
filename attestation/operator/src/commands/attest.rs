//! `casemate attest`: is this the enclave that the operator means?

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::args::{Connection, EXIT_CODES, ExpectedOptions};
use crate::exit::{Answer, Exit};
use crate::verify;

#[derive(Subcommand, Debug)]
pub enum AttestCommand {
    /// Verify a document from a file: PEM, base64, hex, CBOR, or the JSON that GET /attestation answers
    #[command(after_help = EXIT_CODES)]
    Verify(Box<Verify>),
    /// Ask a running signer for a document with a fresh nonce, and verify it with its statement
    #[command(after_help = EXIT_CODES)]
    Fetch(Box<Fetch>),
}

#[derive(Args, Debug)]
pub struct Verify {
    /// The document, or - for standard input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// The statement that the document binds in user_data: base64, hex or CBOR
    #[arg(long, value_name = "FILE")]
    pub statement: Option<PathBuf>,
    #[command(flatten)]
    pub expected: ExpectedOptions,
}

#[derive(Args, Debug)]
pub struct Fetch {
    #[command(flatten)]
    pub connection: Connection,
    /// Keep the answer in this file, for casemate attest verify --at document
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    #[command(flatten)]
    pub expected: ExpectedOptions,
}

/// Judges a document. An error is about the input, never about the document.
pub fn run(command: AttestCommand) -> Result<Answer> {
    let (report, json) = match command {
        AttestCommand::Verify(options) => {
            let Verify { file, statement, expected } = *options;
            (verify::file(&file, statement.as_deref(), &expected)?, expected.json)
        }
        AttestCommand::Fetch(options) => {
            let Fetch { connection, save, expected } = *options;
            (verify::running(&connection, &expected, save.as_deref())?, expected.json)
        }
    };
    let exit = if report.is_refused() { Exit::Refused } else { Exit::Accepted };
    Ok((if json { report.json() } else { report.text() }, exit))
}
