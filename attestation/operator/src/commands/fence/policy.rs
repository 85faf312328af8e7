//! `casemate fence policy`: the resource policy of the fence's DynamoDB table.

use anyhow::{Result, bail};
use casemate_protocol::Root;
use casemate_protocol::arn::TableArn;
use clap::Args;
use serde_json::{Value, json};

use crate::arn::check_arn;
use crate::exit::{Answer, Exit};
use crate::util::hex;

#[derive(Args, Debug)]
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

/// Writes the policy.
pub fn run(options: &FencePolicy) -> Result<Answer> {
    check_principals(options)?;
    let statements = statements(options, &item(options)?);
    let policy = json!({ "Version": "2012-10-17", "Id": "casemate-fence", "Statement": statements });
    Ok((format!("{policy:#}\n"), Exit::Accepted))
}

/// Three principals of the table's account and partition.
fn check_principals(options: &FencePolicy) -> Result<()> {
    let FencePolicy { table, writer, administrator, parent_role, .. } = options;
    for (name, arn) in [("--writer", writer), ("--administrator", administrator), ("--parent-role", parent_role)] {
        check_arn(name, arn, table.partition(), table.account())?;
    }
    if parent_role == writer || parent_role == administrator || writer == administrator {
        bail!(
            "the parent's role, the writer and the administrator must be three: anyone who is two of them could roll the record back"
        );
    }
    Ok(())
}

/// The key of the group's item in the table.
fn item(options: &FencePolicy) -> Result<String> {
    let group = &options.group;
    let plain = !group.is_empty() && group.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !plain {
        bail!("--group has letters, digits, _, . and - only");
    }
    let root: Root = hex(&options.genesis_validators_root, "--genesis-validators-root")?;
    Ok(format!("{group}/{root}"))
}

/// What each principal may do with the table, and what no one may.
fn statements(options: &FencePolicy, item: &str) -> Value {
    let FencePolicy { table, writer, administrator, parent_role, .. } = options;
    let arn = table.to_string();
    let all = json!([arn, format!("{arn}/*")]);
    json!([
        {
            "Sid": "EnclaveReadsAndSwapsItsRecord",
            "Effect": "Allow",
            "Principal": { "AWS": writer },
            "Action": ["dynamodb:GetItem", "dynamodb:PutItem"],
            "Resource": arn,
            "Condition": {
                "ForAllValues:StringEquals": { "dynamodb:LeadingKeys": [item] },
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
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "123456789012";

    fn text_of(options: &FencePolicy) -> Result<String> {
        run(options).map(|(text, _)| text)
    }

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
        let text = text_of(&options()).unwrap();
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
            let text = text_of(&options_in(partition, region)).unwrap();
            let written: Value = serde_json::from_str(&text).unwrap();
            let arn = format!("arn:{partition}:dynamodb:{region}:{ACCOUNT}:table/casemate-fence");
            assert_eq!(written["Statement"][0]["Resource"], arn.as_str());
            assert!(!text.contains("arn:aws:"), "{text}");
            // Principals of another partition do not exist there: AWS would refuse the policy, or the policy would name no one.
            let foreign = FencePolicy { table: options_in(partition, region).table, ..options() };
            let error = format!("{:#}", text_of(&foreign).unwrap_err());
            assert!(error.contains(&format!("of the partition {partition}")), "{error}");
        }
    }

    #[test]
    fn a_principal_that_is_two_of_the_three_is_refused() {
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
            let error = format!("{:#}", text_of(&options).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
