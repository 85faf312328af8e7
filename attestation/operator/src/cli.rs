//! The command line.

use std::path::PathBuf;

use casemate_document::Timestamp;
use clap::{Args, Parser, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The operator's side of Casemate: verify an enclave before you trust it.
#[derive(Parser)]
#[command(name = "casemate", version)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Attestation documents: is this the enclave that you mean?
    Attest(Attest),
}

#[derive(Args)]
pub struct Attest {
    #[command(subcommand)]
    pub command: AttestCommand,
}

#[derive(Subcommand)]
pub enum AttestCommand {
    /// Verify a document from a file: PEM, base64, hex, CBOR, or the JSON that GET /attestation answers
    #[command(after_help = EXIT_CODES)]
    Verify(Verify),
    /// Ask a running signer for a document with a fresh nonce, and verify it with its statement
    #[command(after_help = EXIT_CODES)]
    Fetch(Fetch),
}

const EXIT_CODES: &str =
    "Exit codes: 0 accepted (or shown, where only --describe-only was asked for), 1 refused, 2 unusable input.";

#[derive(Args)]
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

#[derive(Args)]
pub struct Fetch {
    /// Where casemate-proxy listens, as http://HOST:PORT
    #[arg(value_name = "URL")]
    pub url: String,
    /// Keep the answer in this file, for casemate attest verify --at document
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Authorities of the proxy's TLS certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate for mutual TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    #[command(flatten)]
    pub expected: ExpectedOptions,
}

#[derive(Args)]
pub struct ExpectedOptions {
    /// PCR0: the whole image
    #[arg(long, value_name = "HEX")]
    pub pcr0: Option<String>,
    /// PCR1: kernel and boot ramdisk
    #[arg(long, value_name = "HEX")]
    pub pcr1: Option<String>,
    /// PCR2: the application and its configuration
    #[arg(long, value_name = "HEX")]
    pub pcr2: Option<String>,
    /// PCR8: the certificate that signed the image
    #[arg(long, value_name = "HEX")]
    pub pcr8: Option<String>,
    /// Measurements of the image, as casemate-eif and nitro-cli write them
    #[arg(long, value_name = "FILE")]
    pub measurements: Option<PathBuf>,
    /// The nonce that the document must carry [fetch: 32 random bytes]
    #[arg(long, value_name = "HEX")]
    pub nonce: Option<String>,
    /// The time for which certificates must be valid: now, the document's own, or a time like 2026-11-21T12:00:00Z
    #[arg(long, value_name = "now|document|RFC3339", default_value = "now", value_parser = at)]
    pub at: AtOption,
    /// How old the document may be; with --at document its age is not judged [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub max_age: Option<u64>,
    /// Trust this root certificate (PEM or DER) in place of the AWS Nitro Enclaves root G1
    #[arg(long, value_name = "FILE")]
    pub root: Option<PathBuf>,
    /// File with the public keys that must be the ones that sign: one in hex a line, or a JSON array
    #[arg(long, value_name = "FILE")]
    pub public_keys: Option<PathBuf>,
    /// The group that the statement must name
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// The chain that the statement must name, by its name or its genesis validators root
    #[arg(long, value_name = "NAME|0xROOT")]
    pub network: Option<String>,
    /// The kind of fence that the statement must name
    #[arg(long, value_name = "KIND", value_parser = ["none", "solo", "file", "etcd", "dynamodb"])]
    pub fence: Option<String>,
    /// Accept an enclave in debug mode, whose memory its parent can read; expect zeros for PCR0, PCR1 and PCR2
    #[arg(long)]
    pub allow_debug: bool,
    /// Show a document without accepting it: signature, chain, times and whatever is expected are still verified
    #[arg(long)]
    pub describe_only: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// For which time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AtOption {
    Now,
    Document,
    Time(Timestamp),
}

fn at(text: &str) -> Result<AtOption, String> {
    match text {
        "now" => Ok(AtOption::Now),
        "document" => Ok(AtOption::Document),
        _ => {
            let time = OffsetDateTime::parse(text, &Rfc3339)
                .map_err(|_| "neither now, document, nor a time like 2026-11-21T12:00:00Z".to_owned())?;
            let ms = time.unix_timestamp_nanos() / 1_000_000;
            u64::try_from(ms).map(|ms| AtOption::Time(Timestamp(ms))).map_err(|_| "the time is before 1970".to_owned())
        }
    }
}
