//! The command line.

use std::path::PathBuf;

use crate::pins::FencePin;
use crate::sending::DepositOutput;
use casemate_document::Timestamp;
use casemate_protocol::arn::TableArn;
use casemate_protocol::command::ExitOrder;
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
    /// Bring keys into an enclave: EIP-2335 keystores or raw keys, encrypted to the enclave that its document proves
    #[command(after_help = COMMAND_EXIT_CODES)]
    Import(Box<Import>),
    /// Have an enclave make keys, and write their deposit data for the launchpad
    #[command(after_help = COMMAND_EXIT_CODES)]
    Keygen(Box<Keygen>),
    /// Have an enclave sign deposits of keys that it holds, and write their deposit data
    #[command(after_help = COMMAND_EXIT_CODES)]
    Deposit(Box<Deposit>),
    /// List the keys of an enclave, as its document proves them
    #[command(after_help = COMMAND_EXIT_CODES)]
    Keys(KeysOptions),
    /// Sign voluntary exits, and let validator clients have them signed for a while. An exit cannot be taken back
    #[command(after_help = COMMAND_EXIT_CODES)]
    Exit(Box<ExitOptions>),
    /// Say where the fees of keys go: nothing else is signed for them
    #[command(after_help = COMMAND_EXIT_CODES)]
    FeeRecipient(Box<FeeRecipient>),
    /// What keys have signed: out of an enclave and into it, as EIP-3076 files
    Slashing(Slashing),
    /// The signing log that casemate-proxy writes
    Log(Log),
    /// Delete keys from an enclave; what they have signed is remembered
    #[command(after_help = COMMAND_EXIT_CODES)]
    Delete(Delete),
    /// Operators' keys, which sign commands
    Operator(Operator),
    /// Commands in files: look at them, sign them on another machine, send them
    #[command(name = "command")]
    CommandFile(CommandFile),
    /// The record in the fence's store
    Fence(Fence),
    /// Copies of the sealed states
    Backup(Backup),
    /// Have the holder of the fence leave in order: it signs no more, and a standby goes on without a gap
    #[command(after_help = COMMAND_EXIT_CODES)]
    HandOver(Box<Order>),
    /// Have a standby claim the fence at once, without waiting for the holder's ceilings to pass
    #[command(after_help = COMMAND_EXIT_CODES)]
    TakeOver(Box<Order>),
    /// Show who holds the fence, its ceilings and floors, and when this enclave may sign, as its document proves it
    #[command(after_help = COMMAND_EXIT_CODES)]
    Status(Status),
    /// Write a resource policy for the fence's DynamoDB table that keeps the parent's role, and everybody but the enclave, from
    /// writing it
    FencePolicy(FencePolicy),
    /// Write a KMS key policy that lets only these measurements unseal, and keeps the parent's role from changing it
    KmsPolicy(KmsPolicy),
}

const COMMAND_EXIT_CODES: &str = "Exit codes: 0 done; 1 refused, by the document's verification, by the enclave, or for one of the keys; 2 unusable input; 3 no answer: what became of it is not known.";

/// A running signer.
#[derive(Args)]
pub struct Connection {
    /// Where casemate-proxy listens, as http://HOST:PORT
    #[arg(value_name = "URL")]
    pub url: String,
    /// Authorities of the proxy's TLS certificate, PEM
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

#[derive(Args)]
pub struct Fence {
    #[command(subcommand)]
    pub command: FenceCommand,
}

#[derive(Subcommand)]
pub enum FenceCommand {
    /// Make the record: once for each group, before anything is signed. It also brings the credentials of the store
    #[command(after_help = COMMAND_EXIT_CODES)]
    Init(Box<FenceInit>),
    /// End the record for good, so that the next one can be made: in another store, account or region, or of another kind. Nothing is
    /// signed until then
    #[command(after_help = COMMAND_EXIT_CODES)]
    Close(Box<Order>),
}

#[derive(Args)]
pub struct Backup {
    #[command(subcommand)]
    pub command: BackupCommand,
}

#[derive(Subcommand)]
pub enum BackupCommand {
    /// Say which of the copies is the state in force, as the enclave's document proves it, and what a restore from it would lose
    #[command(after_help = EXIT_CODES)]
    Verify(Box<BackupVerify>),
}

#[derive(Args)]
pub struct BackupVerify {
    /// The copies: the proxy's --blobs folder, or one group's folder in it
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct FenceInit {
    #[command(flatten)]
    pub connection: Connection,
    /// etcd: the client's certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "client_key", conflicts_with = "access_key")]
    pub client_certificate: Option<PathBuf>,
    /// etcd: its private key (PEM, PKCS #8)
    #[arg(long, value_name = "FILE", requires = "client_certificate")]
    pub client_key: Option<PathBuf>,
    /// DynamoDB: the access key, as aws iam create-access-key writes it (JSON)
    #[arg(long, value_name = "FILE")]
    pub access_key: Option<PathBuf>,
    /// The store has lost the record: make it anew, from the last state that was sealed under it. End every other enclave of the
    /// group first; two to three epochs are not signed for
    #[arg(long, conflicts_with_all = ["credentials_only", "after"], requires_all = ["expect_keys", "expect_version"])]
    pub record_lost: bool,
    /// With --record-lost: root of the public keys, as the last holder has stated it (casemate attest, casemate status). An older
    /// state, which would bring deleted keys back, has another one
    #[arg(long, value_name = "0xROOT", requires = "record_lost")]
    pub expect_keys: Option<String>,
    /// With --record-lost: the version of the fence's record that the last holder's sealed state had seen, as it has stated it
    /// (casemate status, line «state»). Later ones are taken too
    #[arg(long, value_name = "N", requires = "record_lost")]
    pub expect_version: Option<u64>,
    /// Exchange the credentials of the store alone: also where the old ones do not work any more, and nobody holds the fence. The new
    /// ones must show the record that is there
    #[arg(long)]
    pub credentials_only: bool,
    /// The record before has ended (casemate fence close): make the next one above it. The file has the line that told of its end, or
    /// what casemate status --json said after it
    #[arg(long, value_name = "FILE", conflicts_with = "credentials_only")]
    pub after: Option<PathBuf>,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// An order without anything else in it.
#[derive(Args)]
pub struct Order {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    pub connection: Connection,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct FencePolicy {
    /// The table: arn:PARTITION:dynamodb:REGION:ACCOUNT:table/NAME, as the configuration has it
    #[arg(long, value_name = "ARN", value_parser = TableArn::parse)]
    pub table: TableArn,
    /// The enclave's group
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// The chain's genesis validators root
    #[arg(long, value_name = "0xROOT")]
    pub genesis_validators_root: String,
    /// The user or role whose credentials the enclave has
    #[arg(long, value_name = "ARN")]
    pub writer: String,
    /// Role that looks after the table; it can change this policy, but neither write nor restore the record under it
    #[arg(long, value_name = "ARN")]
    pub administrator: String,
    /// Role of the parent instance
    #[arg(long, value_name = "ARN")]
    pub parent_role: String,
}

/// Which enclave is meant.
#[derive(Args, Clone, Default)]
pub struct PinOptions {
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
#[derive(Args)]
pub struct Signing {
    /// Operator's private key (PEM); once for each operator who signs here
    #[arg(long, value_name = "FILE")]
    pub operator_key: Vec<PathBuf>,
    /// Write the command to this file instead of sending it: for operators who sign on other machines
    #[arg(long, value_name = "FILE")]
    pub command_out: Option<PathBuf>,
}

#[derive(Args)]
pub struct Import {
    #[command(flatten)]
    pub connection: Connection,
    /// Folder with EIP-2335 keystores (Lighthouse's, Teku's, Prysm's and Nimbus's layouts), or one keystore
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "raw_keys")]
    pub keystores: Option<PathBuf>,
    /// Folder with the keystores' passwords, or one file with the password of all [default: asked for]
    #[arg(long, value_name = "DIR|FILE", requires = "keystores")]
    pub passwords: Option<PathBuf>,
    /// Memory for decrypting keystores, all at once, in MiB: one with scrypt takes 256 [default: as much as it takes on every core]
    #[arg(long, value_name = "MIB", requires = "keystores", value_parser = clap::value_parser!(u32).range(1..))]
    pub memory_mib: Option<u32>,
    /// File with secret keys, one in hex a line, or - for standard input
    #[arg(long, value_name = "FILE|-")]
    pub raw_keys: Option<PathBuf>,
    /// What the keys have signed so far: an EIP-3076 file
    #[arg(long, value_name = "FILE")]
    pub slashing_protection: Option<PathBuf>,
    /// Take keys of which nobody knows what they have signed so far: they start above the moment of the import, two to three
    /// epochs later. Where another signer still has them, this is how validators get slashed
    #[arg(long)]
    pub no_history_i_accept: bool,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct Keygen {
    #[command(flatten)]
    pub connection: Connection,
    /// How many keys to make, up to 1000
    #[arg(long, value_name = "N")]
    pub count: u32,
    #[command(flatten)]
    pub deposit: DepositOptions,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Deposits, and the file that they go to.
#[derive(Args)]
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
    /// Where the file goes.
    pub fn place(&self) -> DepositOutput<'_> {
        DepositOutput { folder: &self.out, genesis_fork_version: self.genesis_fork_version.as_deref() }
    }
}

#[derive(Args)]
pub struct Deposit {
    #[command(flatten)]
    pub connection: Connection,
    /// File with the public keys: one in hex a line, or a JSON array
    #[arg(long, value_name = "FILE")]
    pub public_keys: PathBuf,
    #[command(flatten)]
    pub of: DepositOptions,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct KeysOptions {
    #[command(flatten)]
    pub connection: Connection,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct Delete {
    #[command(flatten)]
    pub connection: Connection,
    /// File with the public keys to delete: one in hex a line, or a JSON array. Keys that the enclave has made cannot be brought back
    #[arg(long, value_name = "FILE")]
    pub public_keys: PathBuf,
    /// Do not ask before deleting
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct ExitOptions {
    #[command(flatten)]
    pub connection: Connection,
    /// Who leaves: a public key and the validator's index on the chain; once for each
    #[arg(long, value_name = "0xKEY=INDEX", required = true, value_parser = validator)]
    pub validator: Vec<ExitOrder>,
    /// Exits of no later epoch are signed for this order [default: 225 epochs on, a day of mainnet]
    #[arg(long, value_name = "EPOCH")]
    pub until_epoch: Option<u64>,
    /// Folder for exit-INDEX.json, which any beacon node takes at POST /eth/v1/beacon/pool/voluntary_exits
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

fn validator(text: &str) -> Result<ExitOrder, String> {
    let (key, index) = text.split_once('=').ok_or("not of the form 0xKEY=INDEX")?;
    let public_key = crate::session::hex(key, "the key").map_err(|error| error.to_string())?;
    let validator_index = index.parse().map_err(|_| format!("{index:?} is no validator's index"))?;
    Ok(ExitOrder { public_key, validator_index })
}

#[derive(Args)]
pub struct FeeRecipient {
    #[command(flatten)]
    pub connection: Connection,
    /// File with the public keys: one in hex a line, or a JSON array
    #[arg(long, value_name = "FILE")]
    pub public_keys: PathBuf,
    /// Where their fees go
    #[arg(long, value_name = "0xADDRESS", required_unless_present = "default", conflicts_with = "default")]
    pub address: Option<String>,
    /// Where the enclave's configuration says
    #[arg(long)]
    pub default: bool,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct Slashing {
    #[command(subcommand)]
    pub command: SlashingCommand,
}

#[derive(Subcommand)]
pub enum SlashingCommand {
    /// Write what the enclave's keys have signed, deleted ones too, each page signed by the enclave
    #[command(after_help = COMMAND_EXIT_CODES)]
    Export(Box<SlashingExport>),
    /// Add to what keys have signed; it only ever raises
    #[command(after_help = COMMAND_EXIT_CODES)]
    Import(Box<SlashingImport>),
}

#[derive(Args)]
pub struct SlashingExport {
    #[command(flatten)]
    pub connection: Connection,
    /// The EIP-3076 file to write; an existing one is not overwritten
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Only these keys: a file with one in hex a line, or a JSON array. Of one that the enclave does not know, the most that it can
    /// have signed here is written
    #[arg(long, value_name = "FILE")]
    pub public_keys: Option<PathBuf>,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct SlashingImport {
    #[command(flatten)]
    pub connection: Connection,
    /// The EIP-3076 file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct Log {
    #[command(subcommand)]
    pub command: LogCommand,
}

#[derive(Subcommand)]
pub enum LogCommand {
    /// Verify that a log is whole, in order, and the enclave's own
    #[command(after_help = EXIT_CODES)]
    Verify(Box<LogVerify>),
}

#[derive(Args)]
pub struct LogVerify {
    /// The proxy's --signing-log folder, or one file of it
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// The proxy of an enclave that runs: what its log ends with must be there too
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Authorities of the proxy's TLS certificate, PEM
    #[arg(long, value_name = "FILE", requires = "url")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate for mutual TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Which of the proxy's enclaves, counted from 0 [default: the one that holds the fence]
    #[arg(long, value_name = "N", requires = "url")]
    pub enclave: Option<u32>,
    #[command(flatten)]
    pub pins: PinOptions,
}

#[derive(Args)]
pub struct Operator {
    #[command(subcommand)]
    pub command: OperatorCommand,
}

#[derive(Subcommand)]
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

#[derive(Args)]
pub struct CommandFile {
    #[command(subcommand)]
    pub command: CommandFileCommand,
}

#[derive(Subcommand)]
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

#[derive(Args)]
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

#[derive(Args)]
pub struct KmsPolicy {
    /// The key, as the configuration has it: its account and partition are those of the roles too
    #[arg(long, value_name = "ARN", conflicts_with = "account")]
    pub key_arn: Option<String>,
    /// The AWS account of a key that is not there yet: 12 digits
    #[arg(long, value_name = "DIGITS", required_unless_present = "key_arn")]
    pub account: Option<String>,
    /// Role of the parent instance: it may ask KMS for an enclave with these measurements, and nothing else
    #[arg(long, value_name = "ARN")]
    pub parent_role: String,
    /// Role that may change this policy: not the parent's, and best one that takes two people
    #[arg(long, value_name = "ARN")]
    pub administrator: String,
    /// The enclave's group, which its encryption context names
    #[arg(long, value_name = "NAME")]
    pub group: String,
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
    /// Measurements of the image, as casemate-eif and nitro-cli write them; several while one image follows another
    #[arg(long, value_name = "FILE")]
    pub measurements: Vec<PathBuf>,
    /// Let no one change the policy any more, its administrator neither. There is no way back, and no way to another image; AWS
    /// takes it with --bypass-policy-lockout-safety-check alone
    #[arg(long)]
    pub immutable: bool,
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

const EXIT_CODES: &str = "Exit codes: 0 accepted (or shown, where only --describe-only was asked for), 1 refused, 2 unusable input, 3 no answer.";

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
    #[command(flatten)]
    pub connection: Connection,
    /// Keep the answer in this file, for casemate attest verify --at document
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    #[command(flatten)]
    pub expected: ExpectedOptions,
}

#[derive(Args)]
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
    /// Show a document without accepting it: signature, chain, times and whatever is expected are still verified
    #[arg(long)]
    pub describe_only: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

impl ExpectedOptions {
    /// A fresh document of an enclave that is meant by its pins.
    pub fn live(pins: PinOptions) -> Self {
        let (nonce, max_age, public_keys) = (None, None, None);
        Self { pins, nonce, at: AtOption::Now, max_age, public_keys, describe_only: false, json: false }
    }
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
