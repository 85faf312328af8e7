//! ARNs of roles and users in options.

use anyhow::{Context, Result, bail};
use casemate_protocol::arn::Partition;

use crate::util::quoted;

/// Twelve digits.
pub fn check_account(account: &str) -> Result<()> {
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        bail!("--account {} is not 12 digits", quoted(account));
    }
    Ok(())
}

/// The partition of a role that an option names.
pub fn partition_of(name: &str, arn: &str) -> Result<Partition> {
    let partition = arn.split(':').nth(1).unwrap_or_default();
    Partition::named(partition)
        .with_context(|| format!("{name} {} is no ARN of a role in aws, aws-cn or aws-us-gov", quoted(arn)))
}

/// A role or user of the account and its partition: not its root, and no pattern.
pub fn check_arn(name: &str, arn: &str, partition: Partition, account: &str) -> Result<()> {
    let of_account = arn.starts_with(&format!("arn:{partition}:iam::{account}:"));
    if !of_account || arn.ends_with(":root") || arn.contains(['*', '"', ' ']) {
        bail!("{name} {} is no ARN of a role in the account {account} of the partition {partition}", quoted(arn));
    }
    Ok(())
}
