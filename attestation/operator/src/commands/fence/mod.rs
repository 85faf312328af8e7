//! The fence: made, handed over, looked at.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_protocol::command::{Action, ClosedRecord, FENCE_HPKE_INFO, LastState, RecordOrder, StoreCredentials};
use casemate_protocol::statement::{FenceKind, FenceStatement, StatedNetwork, StatedRecord, StatedState, StatedStatus};
use casemate_protocol::{BoundedBytes, Bytes, Epoch, Slot, Statement};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{FenceCommand, FenceInit, FencePolicy, Order, Status};
use crate::commands::keys::import;
use crate::commands::kms_policy;
use crate::sending::{self, Answer};
use crate::session::{Session, ToldRecord, sha256};
use crate::{Exit, input, report};

/// `casemate fence`.
pub fn run(command: FenceCommand) -> Result<Answer> {
    match command {
        FenceCommand::Init(options) => init(*options),
        FenceCommand::Close(options) => order(*options, Action::FenceClose),
    }
}

fn init(options: FenceInit) -> Result<Answer> {
    let credentials = credentials(&options)?;
    let record = match (&options.after, options.record_lost, options.credentials_only) {
        (Some(path), ..) => RecordOrder::After { closed: closed(path)? },
        (_, true, _) => {
            let keys_root = options.expect_keys.as_deref().context("--expect-keys")?;
            let keys_root = crate::session::hex(keys_root, "--expect-keys")?;
            let fence_version = options.expect_version.context("--expect-version")?;
            RecordOrder::Lost { last: LastState { keys_root, fence_version } }
        }
        (_, _, true) => RecordOrder::Keep,
        _ => RecordOrder::New,
    };
    let mut session = Session::open(options.connection, options.pins)?;
    let needed = matches!(session.statement.fence.kind, FenceKind::Etcd | FenceKind::Dynamodb);
    if needed && credentials.is_none() {
        bail!(
            "the fence's store needs credentials: --client-certificate and --client-key for etcd, --access-key for DynamoDB"
        );
    }
    let commands = [session.command(0, init_action(&session, record, credentials.as_ref())?)?];
    sending::give(&mut session, &commands, &options.signing, None)
}

/// A record that has ended, from a file: the line of `casemate fence close`, or the answer of `casemate status --json`.
fn closed(path: &Path) -> Result<ClosedRecord> {
    let text = input::read(path)?;
    let read = || -> Result<ClosedRecord> {
        // People paste what stood around it too.
        let lines = text.split(|byte| *byte == b'\n').filter(|line| line.first() == Some(&b'{'));
        let whole = std::iter::once(text.as_slice()).chain(lines);
        let value = whole.filter_map(|text| serde_json::from_slice::<Value>(text).ok()).find(Value::is_object);
        let value = value.context("there is no JSON object in it")?;
        let record = value.pointer("/fence/record").unwrap_or(&value);
        if record.get("closed") != Some(&Value::Bool(true)) {
            bail!("the record in it has not ended: casemate fence close");
        }
        serde_json::from_value::<ToldRecord>(record.clone())?.record()
    };
    read().with_context(|| format!("in {}", path.display()))
}

/// A record that has ended, for people who keep it and for [`closed`].
pub fn closed_json(record: &ClosedRecord) -> Value {
    json!({
        "closed": true,
        "version": record.version,
        "term": record.term,
        "slot_ceiling": record.slot_ceiling.0,
        "target_ceiling": record.target_ceiling.0,
        "source_ceiling": record.source_ceiling.0,
        "min_state_version": record.min_state_version,
        "released_state": record.released_state.map(|state| state.to_string()),
    })
}

/// `casemate hand-over` and `casemate take-over`.
pub fn order(options: Order, action: Action) -> Result<Answer> {
    let mut session = Session::open(options.connection, options.pins)?;
    let commands = [session.command(0, action)?];
    sending::give(&mut session, &commands, &options.signing, None)
}

/// Makes the first record of an enclave of this machine, if it has none yet.
pub fn begin(session: &mut Session, operator_key: &Path, credentials: Option<&StoreCredentials>) -> Result<bool> {
    let commands = [session.command(0, init_action(session, RecordOrder::New, credentials)?)?];
    let signing = crate::cli::Signing { operator_key: vec![operator_key.to_owned()], command_out: None };
    let (text, exit) = sending::give(session, &commands, &signing, None)?;
    if exit == Exit::Accepted { Ok(true) } else { bail!("the fence was not made:\n{text}") }
}

/// With the credentials encrypted, and beside them in clear which they are: the other operators sign for these and for no others.
fn init_action(session: &Session, record: RecordOrder, credentials: Option<&StoreCredentials>) -> Result<Action> {
    let encrypted = credentials.map(|credentials| import::encrypt(session, FENCE_HPKE_INFO, &credentials.encode()));
    let credentials_id = credentials.and_then(|credentials| credentials.id(sha256));
    Ok(Action::FenceInit { record, credentials: encrypted.transpose()?, credentials_id })
}

fn credentials(options: &FenceInit) -> Result<Option<StoreCredentials>> {
    if let (Some(certificate), Some(key)) = (&options.client_certificate, &options.client_key) {
        return etcd_credentials(&input::read(certificate)?, &input::read(key)?).map(Some);
    }
    let Some(path) = &options.access_key else { return Ok(None) };
    let text = input::read(path)?;
    let file: Value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    // As `aws iam create-access-key` writes it.
    let key = file.get("AccessKey").unwrap_or(&file);
    let field = |name: &str| {
        let text = key.get(name).and_then(Value::as_str);
        text.map(str::to_owned).with_context(|| format!("{} has no {name}", path.display()))
    };
    let (access_key_id, secret_access_key) = (field("AccessKeyId")?, field("SecretAccessKey")?);
    Ok(Some(StoreCredentials::Dynamodb { access_key_id, secret_access_key }))
}

/// A client's certificate and key (PEM) as the enclave keeps them.
pub fn etcd_credentials(certificate: &[u8], key: &[u8]) -> Result<StoreCredentials> {
    let certificates = CertificateDer::pem_slice_iter(certificate)
        .map(|der| {
            BoundedBytes::new(der.context("the client's certificate")?.to_vec()).context("the certificate is too long")
        })
        .collect::<Result<Vec<_>>>()?;
    if !(1..=4).contains(&certificates.len()) {
        bail!("{} certificates for the client; 1 to 4 are allowed", certificates.len());
    }
    let key = PrivatePkcs8KeyDer::from_pem_slice(key).context("the client's key is no PKCS #8 in PEM")?;
    let key = BoundedBytes::new(key.secret_pkcs8_der().to_vec()).context("the client's key is too long")?;
    Ok(StoreCredentials::Etcd { certificates, key })
}

/// `casemate status`.
pub fn status(options: Status) -> Result<Answer> {
    let session = Session::open(options.connection, options.pins)?;
    let statement = &session.statement;
    let text = if options.json { format!("{:#}\n", json_of(statement)) } else { text_of(statement) };
    Ok((text, Exit::Accepted))
}

/// A chain's clock.
struct Chain<'a>(&'a StatedNetwork);

impl Chain<'_> {
    fn slot(&self, ms: u64) -> Slot {
        let since = ms.saturating_sub(self.0.genesis_time.saturating_mul(1000));
        Slot(since.checked_div(self.0.slot_duration_ms).unwrap_or(0))
    }

    fn epoch(&self, slot: Slot) -> Epoch {
        Epoch(slot.0.checked_div(self.0.slots_per_epoch).unwrap_or(0))
    }

    fn start(&self, epoch: Epoch) -> Slot {
        Slot(epoch.0.saturating_mul(self.0.slots_per_epoch))
    }

    /// Milliseconds from `now` to the beginning of a slot.
    fn until(&self, slot: Slot, now: u64) -> u64 {
        let begins =
            self.0.genesis_time.saturating_mul(1000).saturating_add(slot.0.saturating_mul(self.0.slot_duration_ms));
        begins.saturating_sub(now)
    }
}

/// The epoch by the enclave's own clock, where it trusts it.
pub fn epoch_now(statement: &Statement) -> Option<Epoch> {
    let chain = Chain(&statement.network);
    Some(chain.epoch(chain.slot(statement.fence.time_ms?)))
}

/// When an enclave may sign: milliseconds from its own time; nothing where that cannot be told.
struct When {
    blocks_ms: Option<u64>,
    attestations_ms: Option<u64>,
}

fn when(statement: &Statement) -> When {
    let Statement { fence, network, .. } = statement;
    let chain = Chain(network);
    let Some(now) = fence.time_ms else { return When { blocks_ms: None, attestations_ms: None } };
    let above = |slot: Option<Slot>, target: Option<Epoch>| When {
        blocks_ms: Some(slot.map_or(0, |slot| chain.until(Slot(slot.0.saturating_add(1)), now))),
        attestations_ms: Some(
            target.map_or(0, |target| chain.until(chain.start(Epoch(target.0.saturating_add(1))), now)),
        ),
    };
    match (fence.standing, &fence.record) {
        (StatedStatus::NoStore | StatedStatus::Holding, _) => above(fence.floors.slot, fence.floors.target),
        // If nobody extends the record any more: it is claimed once the block ceiling has passed.
        (StatedStatus::Standby, Some(record)) => above(Some(record.slot_ceiling), Some(record.target_ceiling)),
        _ => When { blocks_ms: None, attestations_ms: None },
    }
}

fn standing(fence: &FenceStatement) -> &'static str {
    match fence.standing {
        StatedStatus::NoStore => "no record: this enclave signs by itself",
        StatedStatus::Unknown => "its store has not answered yet; nothing is signed",
        StatedStatus::NoRecord => "the store has no record (casemate fence init); nothing is signed",
        StatedStatus::Standby => "STANDBY: another enclave holds it, or did; nothing is signed here",
        StatedStatus::OldState => "the parent offers no sealed state that is new enough; nothing is signed",
        StatedStatus::Holding => "HOLDER: this enclave signs",
        StatedStatus::HandingOver => "handing over; nothing is signed here",
        StatedStatus::RolledBack if fence.record.is_none() => {
            "the store has NO RECORD, though this group has had one: it was lost (casemate fence init --record-lost), or has ended in another \
             store (--after); nothing is signed"
        }
        StatedStatus::RolledBack => {
            "THE STORE SHOWS AN OLDER RECORD than before: somebody has restored it; nothing is signed in this boot any more"
        }
        StatedStatus::Closed => {
            "the record HAS ENDED (casemate fence close); nothing is signed until the next one is made (casemate fence init --after)"
        }
    }
}

fn text_of(statement: &Statement) -> String {
    let Statement { fence, network, group, boot_nonce, .. } = statement;
    let chain = Chain(network);
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<10}{text}");
    };
    line("enclave", format!("{boot_nonce} (boot nonce), group {group}, {}", network.name));
    line("fence", format!("{}; {}", report::kind(fence.kind), standing(fence)));
    if let Some(store) = &fence.store {
        line("store", store.clone());
    }
    if let Some(record) = &fence.record {
        let StatedRecord { version, holder, term, slot_ceiling, target_ceiling, source_ceiling, .. } = record;
        let whose = if holder == boot_nonce {
            "this enclave".to_owned()
        } else if *holder == Bytes::ZERO {
            "nobody yet".to_owned()
        } else {
            holder.to_string()
        };
        // Of a first record it is the state that was sealed with it.
        let left = if record.released_state.is_some() && *holder != Bytes::ZERO { ", left in order" } else { "" };
        let ended = if record.closed { ", ended" } else { "" };
        line("record", format!("version {version}, term {term}, holder {whose}{left}{ended}"));
        if record.closed {
            let passed = fence.time_ms.is_some_and(|now| chain.slot(now) > *slot_ceiling);
            let until = chain.until(Slot(slot_ceiling.0.saturating_add(1)), fence.time_ms.unwrap_or(0)).div_ceil(1000);
            line(
                "ended",
                match (record.released_state, passed) {
                    (Some(_), _) => "its holder had left in order: nothing is signed under it any more".to_owned(),
                    (None, true) => "its ceilings have passed: nobody signs blocks under it any more".to_owned(),
                    (None, false) => format!("its last holder may sign for {until} s yet, if it lives"),
                },
            );
        }
        line(
            "ceilings",
            format!(
                "blocks up to slot {slot_ceiling}; attestations up to target {target_ceiling}, source {source_ceiling}"
            ),
        );
        line("sealed", format!("states with a number below {} are refused", record.min_state_version));
    }
    if let Some(StatedState { number, sha256, fence_version }) = &statement.state {
        line("state", format!("number {number}, SHA-256 {sha256}, has seen version {fence_version} of the record"));
    }
    line("keys", format!("{} sign, root {}", statement.public_keys.count, statement.public_keys.root));
    let floors = &fence.floors;
    let mut parts = Vec::new();
    parts.extend(floors.slot.map(|slot| format!("blocks above slot {slot}")));
    parts.extend(floors.target.map(|target| format!("attestations with a target above {target}")));
    parts.extend(floors.source.map(|source| format!("with a source from {source}")));
    line("floors", if parts.is_empty() { "none".to_owned() } else { parts.join(", ") });
    let clock = fence.time_ms.map_or("NOT TRUSTED: nothing is signed".to_owned(), |ms| {
        let slot = chain.slot(ms);
        format!("{} (slot {slot}, epoch {})", time(ms), chain.epoch(slot))
    });
    line("clock", clock);
    let When { blocks_ms, attestations_ms } = when(statement);
    let seconds = |ms: Option<u64>| match ms {
        Some(0) => "now".to_owned(),
        Some(ms) => format!("in {} s", ms.div_ceil(1000)),
        None => "not foreseeable".to_owned(),
    };
    let condition = if fence.standing == StatedStatus::Standby { " if its holder does not go on" } else { "" };
    line("signs", format!("blocks {}, attestations {}{condition}", seconds(blocks_ms), seconds(attestations_ms)));
    out
}

/// A time as people write it.
pub fn time(ms: u64) -> String {
    let nanos = i128::from(ms).saturating_mul(1_000_000);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| format!("{ms} ms"))
}

fn json_of(statement: &Statement) -> Value {
    let Statement { fence, group, boot_nonce, network, .. } = statement;
    let When { blocks_ms, attestations_ms } = when(statement);
    json!({
        "boot_nonce": boot_nonce.to_string(),
        "group": group,
        "network": network.name,
        "fence": report::fence_json(fence),
        "state": report::state_json(statement.state.as_ref()),
        "public_keys": { "count": statement.public_keys.count, "root": statement.public_keys.root.to_string() },
        "signs_blocks_in_ms": blocks_ms,
        "signs_attestations_in_ms": attestations_ms,
    })
}

/// `casemate fence-policy`.
pub fn policy(options: &FencePolicy) -> Result<String> {
    let FencePolicy { table, group, genesis_validators_root, writer, administrator, parent_role } = options;
    for (name, arn) in [("--writer", writer), ("--administrator", administrator), ("--parent-role", parent_role)] {
        kms_policy::check_arn(name, arn, table.partition(), table.account())?;
    }
    if parent_role == writer || parent_role == administrator || writer == administrator {
        bail!(
            "the parent's role, the writer and the administrator must be three: who is two of them could roll the record back"
        );
    }
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !plain(group) {
        bail!("--group has letters, digits, _, . and - only");
    }
    let root: Bytes<32> = crate::session::hex(genesis_validators_root, "--genesis-validators-root")?;
    let arn = table.to_string();
    let all = json!([arn, format!("{arn}/*")]);
    let policy = json!({ "Version": "2012-10-17", "Id": "casemate-fence", "Statement": [
        {
            "Sid": "EnclaveReadsAndSwapsItsRecord",
            "Effect": "Allow",
            "Principal": { "AWS": writer },
            "Action": ["dynamodb:GetItem", "dynamodb:PutItem"],
            "Resource": arn,
            "Condition": {
                "ForAllValues:StringEquals": { "dynamodb:LeadingKeys": [format!("{group}/{root}")] },
                "Null": { "dynamodb:LeadingKeys": "false" },
            },
        },
        {
            "Sid": "AdministratorLooksAfterTheTable",
            "Effect": "Allow",
            "Principal": { "AWS": administrator },
            "Action": [
                "dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:GetResourcePolicy",
                "dynamodb:PutResourcePolicy", "dynamodb:TagResource", "dynamodb:UpdateTable",
            ],
            "Resource": arn,
        },
        {
            "Sid": "ParentTouchesNothing",
            "Effect": "Deny",
            "Principal": { "AWS": parent_role },
            "Action": "dynamodb:*",
            "Resource": all,
        },
        {
            "Sid": "NobodyElseWrites",
            "Effect": "Deny",
            "Principal": "*",
            "Action": [
                "dynamodb:BatchWriteItem", "dynamodb:DeleteItem", "dynamodb:PartiQLDelete", "dynamodb:PartiQLInsert",
                "dynamodb:PartiQLUpdate", "dynamodb:PutItem", "dynamodb:UpdateItem",
            ],
            "Resource": all,
            "Condition": { "ArnNotEquals": { "aws:PrincipalArn": writer } },
        },
        {
            "Sid": "WriterOnlySwaps",
            "Effect": "Deny",
            "Principal": { "AWS": writer },
            "NotAction": ["dynamodb:GetItem", "dynamodb:PutItem"],
            "Resource": all,
        },
        {
            "Sid": "NobodyElseChangesThis",
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["dynamodb:DeleteResourcePolicy", "dynamodb:PutResourcePolicy"],
            "Resource": arn,
            "Condition": { "ArnNotEquals": { "aws:PrincipalArn": administrator } },
        },
        {
            "Sid": "NobodyDeletes",
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["dynamodb:DeleteTable", "dynamodb:UpdateTimeToLive"],
            "Resource": arn,
        },
    ] });
    Ok(format!("{policy:#}\n"))
}

#[cfg(test)]
mod tests {
    use casemate_protocol::arn::TableArn;

    use super::*;

    const ACCOUNT: &str = "123456789012";

    fn options() -> FencePolicy {
        options_in("aws", "eu-central-1")
    }

    fn options_in(partition: &str, region: &str) -> FencePolicy {
        let arn = |name: &str| format!("arn:{partition}:iam::{ACCOUNT}:{name}");
        let table = format!("arn:{partition}:dynamodb:{region}:{ACCOUNT}:table/casemate-fence");
        FencePolicy {
            table: TableArn::parse(&table).unwrap(),
            group: "main".into(),
            genesis_validators_root: format!("0x{}", "04".repeat(32)),
            writer: arn("user/fence"),
            administrator: arn("role/admin"),
            parent_role: arn("role/parent"),
        }
    }

    #[test]
    fn the_fences_policy_lets_the_enclave_swap_its_item_and_keeps_everybody_else_from_writing() {
        let text = policy(&options()).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        let statements = written["Statement"].as_array().unwrap();
        let by = |sid: &str| statements.iter().find(|statement| statement["Sid"] == sid).unwrap();
        let allowed: Vec<&Value> = statements.iter().filter(|statement| statement["Effect"] == "Allow").collect();
        // Of all that is allowed, one statement lets anything be written: the enclave's, one item.
        let writes = |statement: &&&Value| statement["Action"].to_string().contains("PutItem");
        assert_eq!(allowed.iter().filter(writes).count(), 1);
        let swaps = by("EnclaveReadsAndSwapsItsRecord");
        assert_eq!(swaps["Principal"]["AWS"], options().writer);
        let key = format!("main/0x{}", "04".repeat(32));
        assert_eq!(swaps["Condition"]["ForAllValues:StringEquals"]["dynamodb:LeadingKeys"], json!([key]));
        assert_eq!(swaps["Resource"], "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate-fence");
        assert_eq!(by("ParentTouchesNothing")["Action"], "dynamodb:*");
        assert_eq!(by("ParentTouchesNothing")["Principal"]["AWS"], options().parent_role);
        assert_eq!(by("NobodyElseWrites")["Condition"]["ArnNotEquals"]["aws:PrincipalArn"], options().writer);
        assert_eq!(
            by("NobodyElseChangesThis")["Condition"]["ArnNotEquals"]["aws:PrincipalArn"],
            options().administrator
        );
    }

    #[test]
    fn in_china_and_for_the_government_all_arns_are_of_the_tables_partition() {
        for (partition, region) in [("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")] {
            let text = policy(&options_in(partition, region)).unwrap();
            let written: Value = serde_json::from_str(&text).unwrap();
            let arn = format!("arn:{partition}:dynamodb:{region}:{ACCOUNT}:table/casemate-fence");
            assert_eq!(written["Statement"][0]["Resource"], arn.as_str());
            assert!(!text.contains("arn:aws:"), "{text}");
            // Principals of another partition do not exist there: AWS would refuse the policy, or name nobody.
            let foreign = FencePolicy { table: options_in(partition, region).table, ..options() };
            let error = format!("{:#}", policy(&foreign).unwrap_err());
            assert!(error.contains(&format!("of the partition {partition}")), "{error}");
        }
    }

    #[test]
    fn who_is_two_of_the_three_is_refused() {
        type Change = fn(&mut FencePolicy);
        let changes: [(Change, &str); 9] = [
            (|o| o.writer.clone_from(&o.parent_role), "must be three"),
            (|o| o.administrator.clone_from(&o.parent_role), "must be three"),
            (|o| o.administrator.clone_from(&o.writer), "must be three"),
            (|o| o.writer = "arn:aws:iam::123456789012:root".into(), "--writer"),
            (|o| o.writer = "arn:aws:iam::999999999999:user/fence".into(), "in the account 123456789012"),
            (|o| o.writer = "arn:aws-cn:iam::123456789012:user/fence".into(), "of the partition aws"),
            (|o| o.table = TableArn::parse(&o.table.to_string().replace("arn:aws:", "arn:aws-cn:")).unwrap(), "aws-cn"),
            (|o| o.group = "a/b".into(), "--group"),
            (|o| o.genesis_validators_root = "0x04".into(), "64 hex digits"),
        ];
        for (change, told) in changes {
            let mut options = options();
            change(&mut options);
            let error = format!("{:#}", policy(&options).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn credentials_of_etcd_are_read_from_pem() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["c".into()]).unwrap().self_signed(&key).unwrap();
        let read = |certificate: &str, key: &str| etcd_credentials(certificate.as_bytes(), key.as_bytes());
        let StoreCredentials::Etcd { ref certificates, .. } = read(&certificate.pem(), &key.serialize_pem()).unwrap()
        else {
            panic!("credentials of another kind")
        };
        assert_eq!(certificates.first().map(AsRef::as_ref), Some(certificate.der().as_ref()));
        assert!(read("", &key.serialize_pem()).is_err());
        assert!(read(&certificate.pem(), "").is_err());
        assert!(read(&certificate.pem().repeat(5), &key.serialize_pem()).is_err());
    }
}
