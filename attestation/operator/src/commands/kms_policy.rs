//! The key policy that makes KMS unseal for these measurements alone.
//!
//! What it says, and what an AWS administrator can still do, is in docs/operations/key-ceremony.md and docs/operations/aws-administrators.md.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use casemate_document::Pcr;
use casemate_protocol::arn::KeyArn;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::args::PcrOptions;
use crate::arn::{check_account, check_arn, partition_of};
use crate::exit::{Answer, Exit};
use crate::pins;

/// PCRs that every image must be pinned by; PCR8 where it is signed.
const NEEDED: [u8; 3] = [0, 1, 2];

#[derive(Args, Debug)]
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
    /// The enclave's group, which the encryption context names
    #[arg(long, value_name = "NAME")]
    pub group: String,
    #[command(flatten)]
    pub pcrs: PcrOptions,
    /// Measurements of the image, as casemate-eif and nitro-cli write them; several while one image follows another
    #[arg(long, value_name = "FILE")]
    pub measurements: Vec<PathBuf>,
    /// Let no one change the policy any more, not even its administrator. There is no way back, and no way to another image. AWS
    /// takes it only with --bypass-policy-lockout-safety-check
    #[arg(long)]
    pub immutable: bool,
}

/// Writes a policy for the key.
pub fn run(options: &KmsPolicy) -> Result<Answer> {
    check_principals(options)?;
    let images = images(options)?;
    let KmsPolicy { parent_role, administrator, group, immutable, .. } = options;
    let mut statements = vec![administration(administrator, *immutable)];
    for (number, image) in (1..).zip(&images) {
        statements.push(unsealing(number, parent_role, group, image)?);
    }
    let pcr0: Vec<Value> =
        images.iter().filter_map(|image| image.get(&0)).map(|value| const_hex::encode(value).into()).collect();
    statements.extend(denials(parent_role, &pcr0));
    let policy = json!({ "Version": "2012-10-17", "Id": "casemate", "Statement": statements });
    Ok((format!("{policy:#}\n"), Exit::Accepted))
}

/// The two roles are of the key's account and partition, and not the same.
fn check_principals(options: &KmsPolicy) -> Result<()> {
    let KmsPolicy { key_arn, account, parent_role, administrator, .. } = options;
    let (partition, account) = match (key_arn, account) {
        (Some(arn), _) => {
            let arn = KeyArn::parse(arn).context("--key-arn")?;
            (arn.partition(), arn.account().to_owned())
        }
        // Without the key's ARN the parent's role says which partition it is.
        (None, Some(account)) => (partition_of("--parent-role", parent_role)?, account.clone()),
        (None, None) => bail!("whose key? --key-arn, or --account before there is a key"),
    };
    check_account(&account)?;
    for (name, arn) in [("--parent-role", parent_role), ("--administrator", administrator)] {
        check_arn(name, arn, partition, &account)?;
    }
    if parent_role == administrator {
        bail!(
            "the parent's role must not administer the key: anyone who takes the parent over could write a policy of their own"
        );
    }
    Ok(())
}

/// The PCRs of each image.
fn images(options: &KmsPolicy) -> Result<Vec<BTreeMap<u8, Pcr>>> {
    let mut images = options.measurements.iter().map(|path| pins::file(path)).collect::<Result<Vec<_>>>()?;
    let mut own = BTreeMap::new();
    for (index, text) in options.pcrs.given() {
        own.insert(index, pins::pcr(text)?);
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
    Ok(images)
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
        // No matter what else IAM gives it.
        deny(
            "ParentDoesNothingElse",
            json!({ "Principal": { "AWS": parent_role }, "NotAction": ["kms:Decrypt", "kms:GenerateDataKey"] }),
        ),
        // No one, with any right, without an enclave's document; and nothing that could be encrypted for an enclave to load.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_policy_is_written_for_a_multi_region_key() {
        let role = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
        let options = KmsPolicy {
            key_arn: Some("arn:aws:kms:eu-central-1:123456789012:key/mrk-0a1b".into()),
            account: None,
            parent_role: role("parent"),
            administrator: role("admin"),
            group: "main".into(),
            pcrs: PcrOptions::default(),
            measurements: Vec::new(),
            immutable: false,
        };
        let error = format!("{:#}", run(&options).map(drop).unwrap_err());
        assert!(error.contains("--key-arn: the key \"mrk-0a1b\" is a multi-Region key"), "{error}");
    }
}
