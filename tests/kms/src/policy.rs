//! Key policies, as far as attestation needs them: Allow and Deny, actions, and string conditions on the attested PCRs. What is
//! not understood is refused when the policy is given, never passed over.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// PCRs of the verified document, in hex; none without a `Recipient`.
pub type Attested<'a> = Option<&'a BTreeMap<u8, String>>;

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
    /// Everybody who can sign a request is one principal here.
    #[serde(rename = "Principal")]
    _principal: serde_json::Value,
    #[serde(rename = "Action")]
    actions: OneOrMany<String>,
    #[serde(rename = "Resource")]
    _resource: serde_json::Value,
    #[serde(rename = "Condition", default)]
    conditions: BTreeMap<Operator, BTreeMap<String, OneOrMany<String>>>,
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
enum Key {
    Pcr(u8),
}

impl Key {
    fn parse(name: &str) -> Result<Self> {
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
            for action in statement.actions.as_slice() {
                if !action.starts_with("kms:") && action != "*" {
                    bail!("unknown action {action}");
                }
            }
        }
        Ok(policy)
    }

    /// Whether `action` (`kms:Decrypt`) is allowed: by a statement that allows it, and by none that denies it.
    pub fn allows(&self, action: &str, attested: Attested<'_>) -> bool {
        let applies = |effect| {
            let statements = self.statements.as_slice().iter().filter(move |s| s.effect == effect);
            statements.filter(|statement| statement.is_for(action, attested)).count() > 0
        };
        applies(Effect::Allow) && !applies(Effect::Deny)
    }
}

impl Statement {
    fn is_for(&self, action: &str, attested: Attested<'_>) -> bool {
        let named = self.actions.as_slice().iter().any(|pattern| {
            pattern == action || pattern.strip_suffix('*').is_some_and(|start| action.starts_with(start))
        });
        named
            && self.conditions.iter().all(|(operator, keys)| {
                keys.iter().all(|(name, values)| operator.holds(found(name, attested), values.as_slice()))
            })
    }
}

fn found<'a>(name: &str, attested: Attested<'a>) -> Option<&'a str> {
    let Key::Pcr(index) = Key::parse(name).ok()?;
    attested?.get(&index).map(String::as_str)
}

impl Operator {
    /// As AWS: a positive operator needs the key to be there, a negative one holds without it.
    fn holds(self, found: Option<&str>, values: &[String]) -> bool {
        let equals = |value: &String| match (self, found) {
            (_, None) => false,
            (Self::StringEquals, Some(found)) => value == found,
            (_, Some(found)) => value.eq_ignore_ascii_case(found),
        };
        let any = values.iter().any(equals);
        if self == Self::StringNotEqualsIgnoreCase { !any } else { any }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(both.allows("kms:Decrypt", attested));
        assert!(both.allows("kms:GenerateDataKeyWithoutPlaintext", attested));
        assert!(!both.allows("kms:Encrypt", attested));
        assert!(!both.allows("kms:Decrypt", None), "no recipient, no attested PCR");
        for wrong in ["PCR1\": \"ab", "PCR2\": \"ab", "PCR0\": \"a"] {
            let condition = format!(r#"{{"StringEqualsIgnoreCase": {{"kms:RecipientAttestation:{wrong}"}}}}"#);
            assert!(!policy(&condition).allows("kms:Decrypt", attested), "{wrong}");
        }
        let case = policy(r#"{"StringEquals": {"kms:RecipientAttestation:PCR0": "AB"}}"#);
        assert!(!case.allows("kms:Decrypt", attested));
        let denied = Policy::parse(
            r#"{"Statement": [
                {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"},
                {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
                 "Condition": {"StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "ab"}}}]}"#,
        )
        .unwrap();
        assert!(denied.allows("kms:Decrypt", attested));
        assert!(!denied.allows("kms:Decrypt", None));
        assert!(denied.allows("kms:DescribeKey", None));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (part, words) in [
            (r#""Condition": {"StringLike": {"kms:RecipientAttestation:PCR0": "a*"}}"#, "unknown variant"),
            (r#""Condition": {"StringEquals": {"aws:SourceIp": "1"}}"#, "unknown condition key"),
            (r#""Condition": {"StringEquals": {"kms:RecipientAttestation:PCR32": "1"}}"#, "unknown condition key"),
            (r#""NotAction": "kms:*""#, "unknown field"),
        ] {
            let text = format!(
                r#"{{"Statement": {{"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*", {part}}}}}"#
            );
            let error = format!("{:#}", Policy::parse(&text).map(|_| ()).unwrap_err());
            assert!(error.contains(words) || error.contains("did not match any variant"), "{part}: {error}");
        }
    }
}
