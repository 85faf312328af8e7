//! Options that several subcommands share.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use casemate_document::Timestamp;
use casemate_protocol::Root;
use casemate_protocol::command::{MIN_DEPOSIT, max_deposit, withdrawal_credentials};
use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::address;
use crate::deposit_data::DepositOutput;
use crate::fence_pin::FencePin;
use crate::outputs;

/// What a command to an enclave ends with.
pub const COMMAND_EXIT_CODES: &str = "Exit codes: 0 done; 1 refused, by the document's verification, by the enclave, or for one of the keys; 2 unusable input; 3 no answer: it is not known whether the command was carried out; 4 done, but not written here: the enclave has carried the command out, and what came of it could not be written on this machine.";

/// What a judgement ends with.
pub const EXIT_CODES: &str = "Exit codes: 0 accepted (or shown, where only --describe-only was asked for), 1 refused, 2 unusable input, 3 no answer, 4 accepted, but not written here: the answer could not be written.";

/// A running signer.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Where casemate-proxy listens, as http://HOST:PORT
    #[arg(value_name = "URL")]
    pub url: String,
    /// Authorities of the proxy's TLS certificate, PEM [default: those that this machine trusts]
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate for mutual TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Which of the proxy's enclaves, counted from 0 [default: the one that holds the fence]
    #[arg(long, value_name = "N")]
    pub enclave: Option<u32>,
}

/// The measurements of one image, as PCRs.
#[derive(Args, Clone, Debug, Default)]
pub struct PcrOptions {
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
}

impl PcrOptions {
    /// Those that are given, by their index.
    pub fn given(&self) -> impl Iterator<Item = (u8, &str)> {
        let all = [(0, &self.pcr0), (1, &self.pcr1), (2, &self.pcr2), (8, &self.pcr8)];
        all.into_iter().filter_map(|(index, text)| Some((index, text.as_deref()?)))
    }
}

/// Which enclave is meant: what its document must prove.
#[derive(Args, Clone, Debug, Default)]
pub struct PinOptions {
    #[command(flatten)]
    pub pcrs: PcrOptions,
    /// Measurements of the image, as casemate-eif and nitro-cli write them
    #[arg(long, value_name = "FILE")]
    pub measurements: Option<PathBuf>,
    /// Trust this root certificate (PEM or DER) in place of the AWS Nitro Enclaves root G1
    #[arg(long, value_name = "FILE")]
    pub root: Option<PathBuf>,
    /// The group that the statement must name
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// The chain that the statement must name, by its name or its genesis validators root
    #[arg(long, value_name = "NAME|0xROOT")]
    pub network: Option<String>,
    /// The fence that the statement must name: its kind (none, solo, file, etcd, dynamodb), or kind and store: dynamodb: and the
    /// table's ARN, etcd: and the cluster's id (16 hex digits) or all that casemate attest shows of it
    #[arg(long, value_name = "KIND|KIND:STORE", value_parser = FencePin::parse)]
    pub fence: Option<FencePin>,
    /// Accept an enclave in debug mode, whose memory its parent can read; expect zeros for PCR0, PCR1 and PCR2
    #[arg(long)]
    pub allow_debug: bool,
}

/// Who signs a command, and where it goes.
#[derive(Args, Debug)]
pub struct Signing {
    /// Operator's private key (PEM); once for each operator who signs here
    #[arg(long, value_name = "FILE")]
    pub operator_key: Vec<PathBuf>,
    /// Write the command to this file instead of sending it: for operators who sign on other machines
    #[arg(long, value_name = "FILE")]
    pub command_out: Option<PathBuf>,
}

impl Signing {
    /// Before anything is asked for or made: the file that the command goes to.
    pub fn check(&self) -> Result<()> {
        self.command_out.as_deref().map_or(Ok(()), outputs::check_new)
    }
}

/// Deposits, and the file that they go to.
#[derive(Args, Debug)]
pub struct DepositOptions {
    /// Where the stake goes when it is withdrawn; the enclave's configuration must allow it
    #[arg(long, value_name = "0xADDRESS")]
    pub withdrawal_address: String,
    /// Compounding withdrawal credentials (0x02, EIP-7251)
    #[arg(long)]
    pub compounding: bool,
    /// Amount of each deposit, in Gwei
    #[arg(long, value_name = "GWEI", default_value_t = 32_000_000_000)]
    pub amount: u64,
    /// Folder for deposit_data-TIME.json
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// Genesis fork version of a chain that is not built in
    #[arg(long, value_name = "0xVERSION")]
    pub genesis_fork_version: Option<String>,
}

impl DepositOptions {
    /// Where deposits withdraw to; checked, as their amount is, before anyone signs.
    pub fn credentials(&self) -> Result<Root> {
        let address = address::parse(&self.withdrawal_address).context("--withdrawal-address")?;
        let credentials = withdrawal_credentials(address, self.compounding);
        let max = max_deposit(&credentials);
        if !(MIN_DEPOSIT..=max).contains(&self.amount) {
            bail!("--amount is {} Gwei; {MIN_DEPOSIT} (1 ETH) to {max} are allowed", self.amount);
        }
        Ok(credentials)
    }

    /// Where the file goes.
    pub fn output(&self) -> DepositOutput<'_> {
        DepositOutput { folder: &self.out, genesis_fork_version: self.genesis_fork_version.as_deref() }
    }
}

#[derive(Args, Debug)]
pub struct ExpectedOptions {
    #[command(flatten)]
    pub pins: PinOptions,
    /// The nonce that the document must carry [fetch: 32 random bytes]
    #[arg(long, value_name = "HEX")]
    pub nonce: Option<String>,
    /// The time for which certificates must be valid: now, the document's own, or a time like 2026-11-21T12:00:00Z
    #[arg(long, value_name = "now|document|RFC3339", default_value = "now", value_parser = at)]
    pub at: AtOption,
    /// How old the document may be; with --at document its age is not judged [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub max_age: Option<u64>,
    /// File with the public keys that must be the ones that sign: one in hex a line, or a JSON array
    #[arg(long, value_name = "FILE")]
    pub public_keys: Option<PathBuf>,
    /// The measured configuration that the image must have: its SHA-256 is compared with the statement's, and what it allows is shown in
    /// words
    #[arg(id = "configuration", long = "config", value_name = "FILE.toml")]
    pub configuration: Option<PathBuf>,
    /// Show a document without accepting it. Its signature, chain and times, and all that is expected of it, are still verified
    #[arg(long)]
    pub describe_only: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

impl ExpectedOptions {
    /// A fresh document of an enclave that is meant by its pins.
    pub fn live(pins: PinOptions) -> Self {
        let (nonce, max_age, public_keys, configuration) = (None, None, None, None);
        Self { pins, nonce, at: AtOption::Now, max_age, public_keys, configuration, describe_only: false, json: false }
    }
}

/// For which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
