//! What names a store of the fence's record, besides a table's ARN ([`crate::arn`]): an etcd by the id of its cluster, the root of
//! its certificates and the prefix of its keys.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Root;

/// Longest prefix of keys in etcd, in bytes.
pub const MAX_PREFIX_LEN: usize = 128;

/// Which cluster an etcd is: every answer of its servers says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(u64);

/// In front of the record's key in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyPrefix(String);

/// Why a text names nothing in etcd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum StoreNameError {
    #[error(
        "the cluster {0:?} is not the id of an etcd cluster: 16 hex digits, not all zero, as etcd's log says cluster-id"
    )]
    Cluster(String),
    #[error(
        "the prefix {0:?} of etcd's keys is not 1 to {MAX_PREFIX_LEN} of letters, digits, _, ., - and /, with / at its end"
    )]
    Prefix(String),
}

impl ClusterId {
    /// Reads one: 16 hex digits.
    pub fn parse(text: &str) -> Result<Self, StoreNameError> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        // No cluster has the id 0: its answers would leave it out.
        let id = u64::from_str_radix(text, 16).ok().filter(|id| digits && *id != 0);
        id.map(Self).ok_or_else(|| StoreNameError::Cluster(shown(text)))
    }

    /// Whether `header.cluster_id` of an answer is this one: a decimal number.
    pub fn is(self, answered: &str) -> bool {
        // One form: `parse` would take a sign and zeros in front.
        answered == self.0.to_string()
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<u64> for ClusterId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl TryFrom<String> for ClusterId {
    type Error = StoreNameError;

    fn try_from(text: String) -> Result<Self, StoreNameError> {
        Self::parse(&text)
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.to_string()
    }
}

impl KeyPrefix {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, StoreNameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-/".contains(&b);
        let right = text.len() <= MAX_PREFIX_LEN && text.bytes().all(allowed) && text.ends_with('/');
        if right { Ok(Self(text.to_owned())) } else { Err(StoreNameError::Prefix(shown(text))) }
    }
}

impl Default for KeyPrefix {
    fn default() -> Self {
        Self("casemate/".to_owned())
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for KeyPrefix {
    type Error = StoreNameError;

    fn try_from(text: String) -> Result<Self, StoreNameError> {
        Self::parse(&text)
    }
}

impl From<KeyPrefix> for String {
    fn from(prefix: KeyPrefix) -> Self {
        prefix.0
    }
}

/// What the statement says of an etcd. The id alone proves nothing to anyone who does not know who answers: it stands with the root
/// that TLS was held to.
pub fn etcd_identity(cluster: ClusterId, prefix: &KeyPrefix, root_sha256: &Root) -> String {
    format!("{cluster}/{prefix}#root-sha256={}", const_hex::encode(root_sha256.0))
}

/// Whether this can be the name of a server: a DNS name, or an address.
pub fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_dns_name(text)
}

fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits is an address that is none.
    let top = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && !top.bytes().all(|b| b.is_ascii_digit())
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_named_by_sixteen_hex_digits() {
        let id = ClusterId::parse("cdf818194e3a8c32").unwrap();
        assert_eq!(id.to_string(), "cdf818194e3a8c32");
        assert_eq!(ClusterId::parse("CDF818194E3A8C32"), Ok(id));
        assert_eq!(ClusterId::parse("00000000000000ff").unwrap().to_string(), "00000000000000ff");
        for bad in
            ["", "cdf818194e3a8c3", "0cdf818194e3a8c32", "cdf818194e3a8c3g", "+df818194e3a8c32", "0000000000000000"]
        {
            assert_eq!(ClusterId::parse(bad), Err(StoreNameError::Cluster(bad.into())));
        }
        // As answers have it.
        assert!(id.is("14841639068965178418"));
        for other in ["", "14841639068965178419", "014841639068965178418", "+14841639068965178418", "cdf818194e3a8c32"]
        {
            assert!(!id.is(other), "{other}");
        }
    }

    #[test]
    fn prefixes_end_with_a_slash_and_have_nothing_strange() {
        for good in ["casemate/", "/", "/registry/a_b.c-d/", &format!("{}/", "p".repeat(127))] {
            assert_eq!(KeyPrefix::parse(good).unwrap().to_string(), *good);
        }
        for bad in ["", "casemate", "a b/", "a\n/", "a#/", "ä/", &format!("{}/", "p".repeat(128))] {
            assert_eq!(KeyPrefix::parse(bad), Err(StoreNameError::Prefix(shown(bad))));
        }
    }

    #[test]
    fn hosts_are_dns_names_or_addresses() {
        let label = "a".repeat(63);
        let longest = [label.as_str(); 4].join(".");
        for good in
            ["a", "etcd-1.internal", "A.example", "1.a", "xn--a", "127.0.0.1", "::1", "fd00::1", &longest[..253]]
        {
            assert!(is_host(good), "{good}");
        }
        let (long, label) = (format!("{}.a", &longest[..253]), "a".repeat(64));
        for bad in [
            "",
            "a_b",
            "etcd_1.internal",
            "etcd-",
            "-etcd",
            "a-.b",
            "a..b",
            ".a",
            "a.",
            "a b",
            "a/b",
            "a:1",
            "[::1]",
            "ä",
            "1.2.3",
            "1.2.3.256",
            "a.1",
            "127.0.0.1.",
            &label,
            &long,
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn an_etcds_identity_has_cluster_prefix_and_root() {
        let id = etcd_identity(ClusterId(0xff), &KeyPrefix::default(), &crate::Bytes([0xab; 32]));
        assert_eq!(id, format!("00000000000000ff/casemate/#root-sha256={}", "ab".repeat(32)));
        assert!(id.len() <= crate::statement::MAX_STORE_LEN);
    }
}
