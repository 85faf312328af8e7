//! Key policies, as far as attestation needs them: Allow and Deny, principals, actions, and conditions on the attested PCRs and the
//! encryption context. What is not understood is refused when the policy is given, never passed over.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// PCRs of the verified document, in hex; none without a `Recipient`.
pub type Attested<'a> = Option<&'a BTreeMap<u8, String>>;

/// What is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct PolicyRequest<'a> {
    /// ARN of anyone who asks.
    pub principal: &'a str,
    /// `kms:Decrypt`.
    pub action: &'a str,
    /// PCRs of the recipient.
    pub attested: Attested<'a>,
    /// The encryption context.
    pub context: &'a BTreeMap<String, String>,
}

/// A key policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(rename = "Version")]
    _version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    #[serde(rename = "Statement")]
    statements: OneOrMany<Statement>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    #[serde(rename = "Effect")]
    effect: Effect,
    #[serde(rename = "Principal")]
    principal: Principal,
    #[serde(rename = "Action", default)]
    actions: Option<OneOrMany<String>>,
    #[serde(rename = "NotAction", default)]
    not_actions: Option<OneOrMany<String>>,
    #[serde(rename = "Resource")]
    _resource: serde_json::Value,
    #[serde(rename = "Condition", default)]
    conditions: BTreeMap<Operator, BTreeMap<String, OneOrMany<String>>>,
}

/// `"*"`, or ARNs.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Principal {
    Everybody(String),
    Aws(Aws),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Aws {
    #[serde(rename = "AWS")]
    arns: OneOrMany<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[allow(clippy::enum_variant_names, reason = "AWS's names")]
enum Operator {
    StringEquals,
    StringEqualsIgnoreCase,
    StringNotEqualsIgnoreCase,
    ArnNotEquals,
    Null,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// What a condition looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key<'a> {
    Pcr(u8),
    Context(&'a str),
    PrincipalArn,
}

impl<'a> Key<'a> {
    fn parse(name: &'a str) -> Result<Self> {
        if let Some(name) = name.strip_prefix("kms:EncryptionContext:") {
            return Ok(Self::Context(name));
        }
        if name == "aws:PrincipalArn" {
            return Ok(Self::PrincipalArn);
        }
        let attested = name.strip_prefix("kms:RecipientAttestation:");
        match attested {
            // PCR0, by the name that it had first.
            Some("ImageSha384") => Ok(Self::Pcr(0)),
            Some(pcr) => {
                let index = pcr.strip_prefix("PCR").and_then(|n| n.parse().ok()).filter(|n| *n < 32);
                index.map(Self::Pcr).with_context(|| format!("unknown condition key {name}"))
            }
            None => bail!("unknown condition key {name}"),
        }
    }
}

impl Policy {
    /// Reads a policy and refuses what would not be judged.
    pub fn parse(text: &str) -> Result<Self> {
        let policy: Self = serde_json::from_str(text).context("malformed policy")?;
        for statement in policy.statements.as_slice() {
            for name in statement.conditions.values().flat_map(BTreeMap::keys) {
                Key::parse(name)?;
            }
            if statement.actions.is_some() == statement.not_actions.is_some() {
                bail!("a statement has either Action or NotAction");
            }
            for action in statement.actions.iter().chain(&statement.not_actions).flat_map(OneOrMany::as_slice) {
                if !action.starts_with("kms:") && action != "*" {
                    bail!("unknown action {action}");
                }
            }
            if let Principal::Everybody(text) = &statement.principal
                && text != "*"
            {
                bail!("unknown principal {text}");
            }
        }
        Ok(policy)
    }

    /// Whether it is allowed: by a statement that allows it, and by none that denies it.
    pub fn allows(&self, asked: &PolicyRequest<'_>) -> bool {
        let applies = |effect| {
            let statements = self.statements.as_slice().iter().filter(move |s| s.effect == effect);
            statements.filter(|statement| statement.is_for(asked)).count() > 0
        };
        applies(Effect::Allow) && !applies(Effect::Deny)
    }
}

impl Statement {
    fn is_for(&self, asked: &PolicyRequest<'_>) -> bool {
        let matches = |pattern: &String| {
            pattern == asked.action || pattern.strip_suffix('*').is_some_and(|start| asked.action.starts_with(start))
        };
        let named = |actions: &OneOrMany<String>| actions.as_slice().iter().any(matches);
        let action = self.actions.as_ref().is_none_or(named) && !self.not_actions.as_ref().is_some_and(named);
        let principal = match &self.principal {
            Principal::Everybody(_) => true,
            Principal::Aws(Aws { arns }) => arns.as_slice().iter().any(|arn| arn == "*" || arn == asked.principal),
        };
        action
            && principal
            && self.conditions.iter().all(|(operator, keys)| {
                keys.iter().all(|(name, values)| operator.holds(found(name, asked), values.as_slice()))
            })
    }
}

fn found<'a>(name: &str, asked: &PolicyRequest<'a>) -> Option<&'a str> {
    match Key::parse(name).ok()? {
        Key::Pcr(index) => asked.attested?.get(&index).map(String::as_str),
        Key::Context(name) => asked.context.get(name).map(String::as_str),
        Key::PrincipalArn => Some(asked.principal),
    }
}

impl Operator {
    /// As AWS: a positive operator needs the key to be there, a negative one holds without it.
    fn holds(self, found: Option<&str>, values: &[String]) -> bool {
        if self == Self::Null {
            return values.iter().any(|value| (value == "true") == found.is_none());
        }
        let equals = |value: &String| match (self, found) {
            (_, None) => false,
            (Self::StringEquals | Self::ArnNotEquals, Some(found)) => value == found,
            (_, Some(found)) => value.eq_ignore_ascii_case(found),
        };
        let any = values.iter().any(equals);
        if matches!(self, Self::StringNotEqualsIgnoreCase | Self::ArnNotEquals) { !any } else { any }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    trait Allows {
        fn to(&self, action: &str, attested: Attested<'_>) -> bool;
    }

    impl Allows for Policy {
        fn to(&self, action: &str, attested: Attested<'_>) -> bool {
            self.allows(&PolicyRequest { principal: "arn:x", action, attested, context: &BTreeMap::new() })
        }
    }

    fn policy(condition: &str) -> Policy {
        Policy::parse(&format!(
            r#"{{"Version": "2012-10-17", "Statement": [
                {{"Effect": "Allow", "Principal": "*", "Action": ["kms:Decrypt", "kms:GenerateDataKey*"], "Resource": "*",
                  "Condition": {condition}}}]}}"#
        ))
        .unwrap_or_else(|e| panic!("{e:#}"))
    }

    #[test]
    fn conditions_on_pcrs_decide() {
        let pcrs = BTreeMap::from([(0, "ab".to_owned()), (2, "cd".to_owned())]);
        let attested = Some(&pcrs);
        let both = policy(
            r#"{"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": "AB",
                "kms:RecipientAttestation:PCR2": ["00", "cD"]}}"#,
        );
        assert!(both.to("kms:Decrypt", attested));
        assert!(both.to("kms:GenerateDataKeyWithoutPlaintext", attested));
        assert!(!both.to("kms:Encrypt", attested));
        assert!(!both.to("kms:Decrypt", None), "no recipient, no attested PCR");
        for wrong in ["PCR1\": \"ab", "PCR2\": \"ab", "PCR0\": \"a"] {
            let condition = format!(r#"{{"StringEqualsIgnoreCase": {{"kms:RecipientAttestation:{wrong}"}}}}"#);
            assert!(!policy(&condition).to("kms:Decrypt", attested), "{wrong}");
        }
        let case = policy(r#"{"StringEquals": {"kms:RecipientAttestation:PCR0": "AB"}}"#);
        assert!(!case.to("kms:Decrypt", attested));
        let denied = Policy::parse(
            r#"{"Statement": [
                {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"},
                {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
                 "Condition": {"StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "ab"}}}]}"#,
        )
        .unwrap();
        assert!(denied.to("kms:Decrypt", attested));
        assert!(!denied.to("kms:Decrypt", None));
        assert!(denied.to("kms:DescribeKey", None));
    }

    #[test]
    fn principals_contexts_and_absent_keys_decide() {
        let policy = Policy::parse(
            r#"{"Statement": [
                {"Effect": "Allow", "Principal": {"AWS": ["arn:a", "arn:b"]}, "Action": "kms:*", "Resource": "*",
                 "Condition": {"StringEquals": {"kms:EncryptionContext:casemate:group": "main"}}},
                {"Effect": "Deny", "Principal": {"AWS": "arn:b"}, "NotAction": ["kms:Decrypt"], "Resource": "*"},
                {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
                 "Condition": {"Null": {"kms:RecipientAttestation:PCR0": "true"}}}]}"#,
        )
        .unwrap();
        let pcrs = BTreeMap::from([(0, "ab".to_owned())]);
        let main = BTreeMap::from([("casemate:group".to_owned(), "main".to_owned())]);
        let allows = |principal, action, attested, context| {
            policy.allows(&PolicyRequest { principal, action, attested, context })
        };
        assert!(allows("arn:a", "kms:Decrypt", Some(&pcrs), &main));
        assert!(allows("arn:b", "kms:Decrypt", Some(&pcrs), &main));
        assert!(allows("arn:a", "kms:Encrypt", None, &main));
        assert!(!allows("arn:b", "kms:Encrypt", None, &main));
        assert!(!allows("arn:c", "kms:Decrypt", Some(&pcrs), &main));
        assert!(!allows("arn:a", "kms:Decrypt", None, &main));
        assert!(!allows("arn:a", "kms:Decrypt", Some(&pcrs), &BTreeMap::new()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (part, words) in [
            (r#""Condition": {"StringLike": {"kms:RecipientAttestation:PCR0": "a*"}}"#, "unknown variant"),
            (r#""Condition": {"StringEquals": {"aws:SourceIp": "1"}}"#, "unknown condition key"),
            (r#""Condition": {"StringEquals": {"kms:RecipientAttestation:PCR32": "1"}}"#, "unknown condition key"),
            (r#""NotAction": "kms:*""#, "either Action or NotAction"),
            (r#""NotResource": "*""#, "unknown field"),
        ] {
            let text = format!(
                r#"{{"Statement": {{"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*", {part}}}}}"#
            );
            let error = format!("{:#}", Policy::parse(&text).map(|_| ()).unwrap_err());
            assert!(error.contains(words) || error.contains("did not match any variant"), "{part}: {error}");
        }
    }
}
