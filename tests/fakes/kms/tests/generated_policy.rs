//! The key policy that `casemate kms-policy` writes, as KMS judges it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use casemate::Exit;
use casemate_local_kms::policy::{Policy, PolicyRequest};
use serde_json::{Value, json};

const PARENT: &str = "arn:aws:iam::123456789012:role/parent";
const ADMINISTRATOR: &str = "arn:aws:iam::123456789012:role/keys";

fn pcr(byte: u8) -> String {
    const_hex::encode([byte; 48])
}

fn measurements(folder: &Path, name: &str, pcrs: [u8; 3]) -> String {
    let [a, b, c] = pcrs.map(pcr);
    let text = json!({ "Measurements": { "HashAlgorithm": "Sha384 { ... }", "PCR0": a, "PCR1": b, "PCR2": c } });
    let path = folder.join(name);
    std::fs::write(&path, text.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn casemate(more: &[&str]) -> Result<String, String> {
    let base = [
        "casemate",
        "kms-policy",
        "--account",
        "123456789012",
        "--parent-role",
        PARENT,
        "--administrator",
        ADMINISTRATOR,
        "--group",
        "main",
    ];
    let arguments: Vec<OsString> = base.iter().chain(more).map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    match casemate::run(&arguments, &mut out, &mut err) {
        Exit::Accepted => Ok(String::from_utf8(out).unwrap()),
        _ => Err(String::from_utf8(err).unwrap()),
    }
}

#[test]
fn the_generated_policy_lets_these_images_unseal_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (measurements(folder.path(), "1", [1, 2, 3]), measurements(folder.path(), "2", [4, 5, 6]));
    let text = casemate(&["--measurements", &one, "--measurements", &two]).unwrap();
    // AWS takes 32 KiB, and wants its version by name.
    assert!(text.len() < 32 * 1024);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["Version"], "2012-10-17");
    let policy = Policy::parse(&text).unwrap();
    let image = |pcrs: [u8; 3]| pcrs.iter().zip(0..).map(|(byte, n)| (n, pcr(*byte))).collect::<BTreeMap<u8, String>>();
    let group = |name: &str| BTreeMap::from([("casemate:group".to_owned(), name.to_owned())]);
    let allows = |principal: &str, action: &str, attested: Option<[u8; 3]>, name: &str| {
        let (pcrs, context) = (attested.map(image), group(name));
        policy.allows(&PolicyRequest { principal, action, attested: pcrs.as_ref(), context: &context })
    };
    for action in ["kms:Decrypt", "kms:GenerateDataKey"] {
        assert!(allows(PARENT, action, Some([1, 2, 3]), "main"));
        assert!(allows(PARENT, action, Some([4, 5, 6]), "main"));
        // Images are not mixed; debug images and none at all are none of them.
        for other in [Some([1, 2, 6]), Some([4, 2, 3]), Some([1, 5, 3]), Some([0, 0, 0]), None] {
            assert!(!allows(PARENT, action, other, "main"), "{action} {other:?}");
        }
        assert!(!allows(PARENT, action, Some([1, 2, 3]), "other"));
        for principal in [ADMINISTRATOR, "arn:aws:iam::123456789012:root", "arn:aws:iam::999999999999:role/parent"] {
            assert!(!allows(principal, action, Some([1, 2, 3]), "main"), "{principal}");
        }
    }
    // The parent's role does nothing else, the administrator nothing with data.
    for action in [
        "kms:PutKeyPolicy",
        "kms:CreateGrant",
        "kms:ScheduleKeyDeletion",
        "kms:DisableKey",
        "kms:Encrypt",
        "kms:ReEncryptFrom",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:UpdateAlias",
    ] {
        assert!(!allows(PARENT, action, Some([1, 2, 3]), "main"), "{action}");
    }
    for action in ["kms:PutKeyPolicy", "kms:GetKeyPolicy", "kms:ScheduleKeyDeletion"] {
        assert!(allows(ADMINISTRATOR, action, None, "main"), "{action}");
    }
    for action in ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:CreateGrant", "kms:ReEncryptFrom"] {
        assert!(!allows(ADMINISTRATOR, action, None, "main"), "{action}");
    }
    // What another right would give (a grant that is older than the policy), the denials take.
    let open = text.replacen(
        "\"Statement\": [",
        "\"Statement\": [{ \"Effect\": \"Allow\", \"Principal\": \"*\", \"Action\": \"kms:*\", \"Resource\": \"*\" },",
        1,
    );
    let open = Policy::parse(&open).unwrap();
    let stranger = "arn:aws:iam::123456789012:role/grantee";
    let context = group("main");
    for (principal, attested, allowed) in [
        (stranger, Some([1, 2, 3]), false),
        (stranger, None, false),
        (PARENT, Some([7, 2, 3]), false),
        (PARENT, Some([1, 2, 3]), true),
    ] {
        let pcrs = attested.map(image);
        let asked = PolicyRequest { principal, action: "kms:Decrypt", attested: pcrs.as_ref(), context: &context };
        assert_eq!(open.allows(&asked), allowed, "{principal} {attested:?}");
    }
    for action in ["kms:ListGrants", "kms:RevokeGrant"] {
        assert!(allows(ADMINISTRATOR, action, None, "main"), "{action}");
    }
    // Immutable: there is no way to another image.
    let fixed = Policy::parse(&casemate(&["--measurements", &one, "--immutable"]).unwrap()).unwrap();
    let context = group("main");
    for action in ["kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:DisableKey"] {
        assert!(!fixed.allows(&PolicyRequest { principal: ADMINISTRATOR, action, attested: None, context: &context }));
    }
}

#[test]
fn a_policy_that_would_not_protect_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let one = measurements(folder.path(), "1", [1, 2, 3]);
    let debug = measurements(folder.path(), "debug", [0, 0, 0]);
    let told = |more: &[&str]| casemate(more).unwrap_err();
    assert!(told(&[]).contains("which image?"));
    assert!(told(&["--measurements", &debug]).contains("debug image"));
    assert!(told(&["--pcr0", &pcr(1), "--pcr2", &pcr(2)]).contains("PCR1 of image 1 is missing"));
    assert!(told(&["--measurements", &one, "--measurements", &one, "--pcr8", &pcr(8)]).contains("of which image"));
    let with_pcr8 = casemate(&["--measurements", &one, "--pcr8", &pcr(8)]).unwrap();
    assert!(with_pcr8.contains("kms:RecipientAttestation:PCR8"), "{with_pcr8}");
    let other = |option: &str, value: &str| {
        let mut arguments = vec!["casemate", "kms-policy", "--measurements", &one];
        for (name, given) in [
            ("--account", "123456789012"),
            ("--parent-role", PARENT),
            ("--administrator", ADMINISTRATOR),
            ("--group", "main"),
        ] {
            arguments.extend([name, if name == option { value } else { given }]);
        }
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(casemate::run(&arguments, &mut out, &mut err), Exit::Unusable, "{option} {value}");
        String::from_utf8(err).unwrap()
    };
    assert!(other("--account", "1234").contains("not 12 digits"));
    assert!(other("--parent-role", "arn:aws:iam::999999999999:role/parent").contains("no ARN of a role"));
    assert!(other("--parent-role", "arn:aws:iam::123456789012:root").contains("no ARN of a role"));
    assert!(other("--parent-role", "*").contains("no ARN of a role"));
    assert!(other("--administrator", PARENT).contains("must not administer"));
}

#[test]
fn the_keys_arn_says_account_and_partition_of_everybody_in_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let one = measurements(folder.path(), "1", [1, 2, 3]);
    let policy = |key: &str, roles: &str, more: &[&str]| {
        let (parent, administrator) = (format!("{roles}:role/parent"), format!("{roles}:role/keys"));
        let words = ["casemate", "kms-policy", "--key-arn", key, "--parent-role", &parent, "--administrator"];
        let words = [&words[..], &[administrator.as_str(), "--group", "main", "--measurements", &one], more].concat();
        let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        match casemate::run(&arguments, &mut out, &mut err) {
            Exit::Accepted => Ok(String::from_utf8(out).unwrap()),
            _ => Err(String::from_utf8(err).unwrap()),
        }
    };
    for (partition, region) in [("aws", "eu-central-1"), ("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")] {
        let key = format!("arn:{partition}:kms:{region}:123456789012:key/0a1b");
        let roles = format!("arn:{partition}:iam::123456789012");
        let written = policy(&key, &roles, &[]).unwrap();
        assert!(written.contains(&format!("\"arn:{partition}:iam::123456789012:role/parent\"")), "{written}");
        for others in ["arn:aws:iam::999999999999", "arn:aws-iso:iam::123456789012"] {
            assert!(policy(&key, others, &[]).unwrap_err().contains("no ARN of a role"), "{others}");
        }
    }
    let (key, roles) = ("arn:aws-cn:kms:cn-north-1:123456789012:key/0a1b", "arn:aws:iam::123456789012");
    assert!(policy(key, roles, &[]).unwrap_err().contains("of the partition aws-cn"));
    assert!(policy("arn:aws:kms:eu-1:12345:key/0a1b", roles, &[]).unwrap_err().contains("not 12 digits"));
    let both = policy("arn:aws:kms:eu-1:123456789012:key/0a1b", roles, &["--account", "123456789012"]);
    assert!(both.unwrap_err().contains("cannot be used with"));
}
