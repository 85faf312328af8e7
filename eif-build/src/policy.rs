//! The policies that go with an image: the KMS key's, the parent's role's, and that of the fence's table.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_protocol::configuration::{FenceConfig, RecordStore};
use serde_json::json;

use crate::build::MeasuredConfig;

/// Whose policies.
pub struct Whose<'a> {
    /// The parent instance's role.
    pub parent_role: &'a str,
    /// Role that administers key and table.
    pub administrator: &'a str,
    /// The user or role whose credentials the enclave has for the fence's table.
    pub fence_writer: Option<&'a str>,
}

/// A file's name and what belongs into it.
pub type File = (&'static str, String);

/// The policies for a configuration and the measurements of its image. The key's and the table's are those of `casemate kms-policy`
/// and `casemate fence policy`.
pub fn policies(measured: &MeasuredConfig, measurements: &Path, whose: &Whose<'_>) -> Result<Vec<File>> {
    let configuration = &measured.configuration;
    let arn = &configuration.kms_key_arn;
    let Whose { parent_role, administrator, fence_writer } = *whose;
    let key = told(&[
        "kms-policy".as_ref(),
        "--key-arn".as_ref(),
        arn.as_ref(),
        "--parent-role".as_ref(),
        parent_role.as_ref(),
        "--administrator".as_ref(),
        administrator.as_ref(),
        "--group".as_ref(),
        configuration.group.as_ref(),
        "--measurements".as_ref(),
        measurements.as_os_str(),
    ])?;
    let mut files = vec![("kms-key-policy.json", key), ("parent-role-policy.json", parent(arn)?)];
    if let FenceConfig::Record(RecordStore::Dynamodb { table }) = &configuration.fence {
        let Some(writer) = fence_writer else {
            bail!("the fence is in DynamoDB: --fence-writer names whose credentials the enclave gets for it")
        };
        let root = configuration.network.genesis_validators_root().to_string();
        let table = table.to_string();
        let arguments = [
            ("--table", table.as_str()),
            ("--group", &configuration.group),
            ("--genesis-validators-root", &root),
            ("--writer", writer),
            ("--administrator", administrator),
            ("--parent-role", parent_role),
        ];
        let words: Vec<&std::ffi::OsStr> = ["fence", "policy"]
            .into_iter()
            .map(AsRef::as_ref)
            .chain(arguments.iter().flat_map(|(name, value)| [AsRef::as_ref(*name), AsRef::as_ref(*value)]))
            .collect();
        files.push(("fence-table-policy.json", told(&words)?));
    } else if fence_writer.is_some() {
        bail!("--fence-writer is for a fence in DynamoDB; this configuration has another");
    }
    Ok(files)
}

/// What the parent's role needs: asking for this one key. Whether KMS answers is the key policy's matter.
fn parent(arn: &str) -> Result<String> {
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "AskForTheEnclave",
        "Effect": "Allow",
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": arn,
    }] });
    Ok(format!("{}\n", serde_json::to_string_pretty(&policy)?))
}

fn told(words: &[&std::ffi::OsStr]) -> Result<String> {
    let arguments: Vec<OsString> =
        std::iter::once("casemate".as_ref()).chain(words.iter().copied()).map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    if casemate::run(&arguments, &mut out, &mut err) != casemate::Exit::Accepted {
        let told = String::from_utf8_lossy(&err);
        bail!("{}", told.trim_start_matches("casemate: ").trim_end());
    }
    String::from_utf8(out).context("a policy")
}
