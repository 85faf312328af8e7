//! `casemate fence init`: makes the fence's record, and brings the credentials of its store.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_protocol::command::{Action, FENCE_HPKE_INFO, LastState, RecordOrder, StoreCredentials};
use casemate_protocol::statement::FenceKind;
use clap::Args;

use crate::args::{Connection, PinOptions, Signing};
use crate::exit::{Answer, Exit};
use crate::session::Session;
use crate::util::{hex, sha256};
use crate::{closed_record, input, sending, store_credentials};

#[derive(Args, Debug)]
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
    /// group first. Nothing is signed for two to three epochs
    #[arg(long, conflicts_with_all = ["credentials_only", "after"], requires_all = ["expect_keys", "expect_version"])]
    pub record_lost: bool,
    /// With --record-lost: root of the public keys, as the last holder has stated it (casemate attest, casemate fence status). An older
    /// state, which would bring deleted keys back, has another one
    #[arg(long, value_name = "0xROOT", requires = "record_lost")]
    pub expect_keys: Option<String>,
    /// With --record-lost: the version of the fence's record that the last holder's sealed state had seen, as it has stated it
    /// (casemate fence status, line «state»). Later ones are taken too
    #[arg(long, value_name = "N", requires = "record_lost")]
    pub expect_version: Option<u64>,
    /// Exchange the credentials of the store, and nothing else. This also works when the old ones no longer do and no enclave holds
    /// the fence. The new ones must show the record that is there
    #[arg(long)]
    pub credentials_only: bool,
    /// The record has ended (casemate fence close): make the next one above it. The file has the line that casemate fence close
    /// printed, or the answer of casemate fence status --json after it
    #[arg(long, value_name = "FILE", conflicts_with = "credentials_only")]
    pub after: Option<PathBuf>,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Orders a record.
pub fn run(options: FenceInit) -> Result<Answer> {
    options.signing.check()?;
    let credentials = credentials(&options)?;
    let record = record(&options)?;
    let mut session = Session::open(options.connection, options.pins)?;
    let needed = matches!(session.statement.fence.kind, FenceKind::Etcd | FenceKind::Dynamodb);
    if needed && credentials.is_none() {
        bail!(
            "the fence's store needs credentials: give --client-certificate and --client-key for etcd, --access-key for DynamoDB"
        );
    }
    let commands = [session.command(action(&session, record, credentials.as_ref())?)?];
    sending::give(&mut session, &commands, &options.signing, None)
}

/// Makes the first record of an enclave of this machine, for programs that start one.
pub fn begin(session: &mut Session, operator_key: &Path, credentials: Option<&StoreCredentials>) -> Result<()> {
    let commands = [session.command(action(session, RecordOrder::New, credentials)?)?];
    let signing = Signing { operator_key: vec![operator_key.to_owned()], command_out: None };
    let (text, exit) = sending::give(session, &commands, &signing, None)?;
    if exit == Exit::Accepted { Ok(()) } else { bail!("the fence was not made:\n{text}") }
}

/// Which record.
fn record(options: &FenceInit) -> Result<RecordOrder> {
    Ok(match (&options.after, options.record_lost, options.credentials_only) {
        (Some(path), ..) => RecordOrder::After { closed: closed_record::read(path)? },
        (_, true, _) => {
            let keys_root = options.expect_keys.as_deref().context("--expect-keys")?;
            let keys_root = hex(keys_root, "--expect-keys")?;
            let fence_version = options.expect_version.context("--expect-version")?;
            RecordOrder::Lost { last: LastState { keys_root, fence_version } }
        }
        (_, _, true) => RecordOrder::Keep,
        _ => RecordOrder::New,
    })
}

/// With the credentials encrypted, and beside them in clear which they are: the other operators sign for these and for no others.
fn action(session: &Session, record: RecordOrder, credentials: Option<&StoreCredentials>) -> Result<Action> {
    let encrypted = credentials.map(|credentials| session.encrypt(FENCE_HPKE_INFO, &credentials.encode()));
    let credentials_id = credentials.and_then(|credentials| credentials.id(sha256));
    Ok(Action::FenceInit { record, credentials: encrypted.transpose()?, credentials_id })
}

fn credentials(options: &FenceInit) -> Result<Option<StoreCredentials>> {
    if let (Some(certificate), Some(key)) = (&options.client_certificate, &options.client_key) {
        return store_credentials::etcd(&input::read(certificate)?, &input::read_secret(key)?).map(Some);
    }
    options.access_key.as_deref().map(store_credentials::dynamodb).transpose()
}
