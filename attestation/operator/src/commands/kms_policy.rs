//! The key policy that makes KMS unseal for these measurements alone.
//!
//! What it says, and what an AWS administrator can still do, is in docs/operations/key-ceremony.md and docs/operations/aws-administrators.md.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use casemate_document::Pcr;
use casemate_protocol::arn::{KeyArn, Partition};
use serde_json::{Map, Value, json};

use crate::cli::KmsPolicy;
use crate::pins;

/// PCRs that every image must be pinned by; PCR8 where it is signed.
const NEEDED: [u8; 3] = [0, 1, 2];

/// `casemate kms-policy`.
pub fn run(options: &KmsPolicy) -> Result<String> {
    let KmsPolicy { key_arn, account, parent_role, administrator, group, .. } = options;
    let (partition, account) = match (key_arn, account) {
        (Some(arn), _) => {
            let arn = KeyArn::parse(arn).context("--key-arn")?;
            (arn.partition(), arn.account().to_owned())
        }
        // Without the key's ARN the parent's role says which partition it is.
        (None, Some(account)) => (partition_of(parent_role)?, account.clone()),
        (None, None) => bail!("whose key? --key-arn, or --account before there is a key"),
    };
    check_account(&account)?;
    for (name, arn) in [("--parent-role", parent_role), ("--administrator", administrator)] {
        check_arn(name, arn, partition, &account)?;
    }
    if parent_role == administrator {
        bail!(
            "the parent's role must not administer the key: whoever takes the parent would write a policy of their own"
        );
    }
    let mut images = Vec::new();
    for path in &options.measurements {
        images.push(pins::file(path)?);
    }
    let given = [(0, &options.pcr0), (1, &options.pcr1), (2, &options.pcr2), (8, &options.pcr8)];
    let mut own = BTreeMap::new();
    for (index, text) in given {
        if let Some(text) = text {
            own.insert(index, pins::pcr(text)?);
        }
    }
    match (images.as_mut_slice(), own.is_empty()) {
        (_, true) => {}
        ([], false) => images.push(own),
        // PCR8 is not among what every builder measures.
        ([image], false) => image.append(&mut own),
        _ => bail!("PCRs beside several files of measurements: of which image are they?"),
    }
    if images.is_empty() {
        bail!("which image? --measurements FILE, or --pcr0, --pcr1 and --pcr2");
    }
    let mut statements = vec![administration(administrator, options.immutable)];
    for (number, image) in images.iter().enumerate() {
        statements.push(unsealing(number.saturating_add(1), parent_role, group, image)?);
    }
    let pcr0: Vec<Value> =
        images.iter().filter_map(|image| image.get(&0)).map(|value| const_hex::encode(value).into()).collect();
    statements.extend(denials(parent_role, &pcr0));
    let policy = json!({ "Version": "2012-10-17", "Id": "casemate", "Statement": statements });
    Ok(format!("{policy:#}\n"))
}

/// Twelve digits.
fn check_account(account: &str) -> Result<()> {
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        bail!("--account {account:?} is not 12 digits");
    }
    Ok(())
}

fn partition_of(arn: &str) -> Result<Partition> {
    let name = arn.split(':').nth(1).unwrap_or_default();
    Partition::named(name)
        .with_context(|| format!("--parent-role {arn:?} is no ARN of a role in aws, aws-cn or aws-us-gov"))
}

/// A role or user of the account and its partition: not its root, and no pattern.
pub fn check_arn(name: &str, arn: &str, partition: Partition, account: &str) -> Result<()> {
    let of_account = arn.starts_with(&format!("arn:{partition}:iam::{account}:"));
    if !of_account || arn.ends_with(":root") || arn.contains(['*', '"', ' ']) {
        bail!("{name} {arn:?} is no ARN of a role in the account {account} of the partition {partition}");
    }
    Ok(())
}

fn administration(administrator: &str, immutable: bool) -> Value {
    let mut actions = vec![
        "kms:CancelKeyDeletion",
        "kms:DescribeKey",
        "kms:EnableKey",
        "kms:GetKeyPolicy",
        "kms:GetKeyRotationStatus",
        "kms:ListGrants",
        "kms:ListKeyPolicies",
        "kms:ListResourceTags",
        "kms:RevokeGrant",
    ];
    if !immutable {
        actions.extend(["kms:DisableKey", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:TagResource"]);
        actions.sort_unstable();
    }
    json!({
        "Sid": "Administration",
        "Effect": "Allow",
        "Principal": { "AWS": administrator },
        "Action": actions,
        "Resource": "*",
    })
}

/// One statement for each image: PCRs of different images must not be mixed.
fn unsealing(number: usize, parent_role: &str, group: &str, image: &BTreeMap<u8, Pcr>) -> Result<Value> {
    if let Some(missing) = NEEDED.into_iter().find(|index| !image.contains_key(index)) {
        bail!("PCR{missing} of image {number} is missing");
    }
    if let Some((index, _)) = image.iter().find(|(_, value)| value.iter().all(|byte| *byte == 0)) {
        bail!("PCR{index} of image {number} is zero: that is a debug image, whose memory its parent can read");
    }
    let pinned = image.iter().filter(|(index, _)| NEEDED.contains(index) || **index == 8);
    let pcrs: Map<String, Value> = pinned
        .map(|(index, value)| (format!("kms:RecipientAttestation:PCR{index}"), const_hex::encode(value).into()))
        .collect();
    Ok(json!({
        "Sid": format!("UnsealImage{number}"),
        "Effect": "Allow",
        "Principal": { "AWS": parent_role },
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": "*",
        "Condition": {
            "StringEqualsIgnoreCase": pcrs,
            "StringEquals": { "kms:EncryptionContext:casemate:group": group },
        },
    }))
}

fn denials(parent_role: &str, pcr0: &[Value]) -> Vec<Value> {
    let deny = |sid: &str, more: Value| {
        let mut statement = json!({ "Sid": sid, "Effect": "Deny", "Resource": "*" });
        if let (Value::Object(statement), Value::Object(more)) = (&mut statement, more) {
            statement.extend(more);
        }
        statement
    };
    let data = json!(["kms:Decrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*", "kms:Encrypt"]);
    vec![
        // Whatever IAM gives it besides.
        deny(
            "ParentDoesNothingElse",
            json!({ "Principal": { "AWS": parent_role }, "NotAction": ["kms:Decrypt", "kms:GenerateDataKey"] }),
        ),
        // Nobody, by whatever right, without an enclave's document; and nothing that could be encrypted for an enclave to load.
        deny(
            "NothingWithoutAnEnclave",
            json!({
                "Principal": "*", "Action": data,
                "Condition": { "Null": { "kms:RecipientAttestation:PCR0": "true" } },
            }),
        ),
        // A grant that was made before this policy must not help another enclave.
        deny(
            "NothingForOtherEnclaves",
            json!({
                "Principal": "*", "Action": data,
                "Condition": { "StringNotEqualsIgnoreCase": { "kms:RecipientAttestation:PCR0": pcr0 } },
            }),
        ),
        deny(
            "NothingForOtherPrincipals",
            json!({
                "Principal": "*", "Action": data,
                "Condition": { "ArnNotEquals": { "aws:PrincipalArn": parent_role } },
            }),
        ),
        // Grants stand beside the policy.
        deny("NoGrants", json!({ "Principal": "*", "Action": "kms:CreateGrant" })),
    ]
}
