//! Amazon Resource Names of what the configuration names: the fence's table, and the KMS key.
//!
//! An ARN says partition, region **and** account. A table that is named by region and name alone is chosen by anyone who brings the
//! credentials: theirs say the account. Read strictly, because hosts are made of the parts: what is taken here is a DNS label there.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name of a table, in bytes.
pub const MAX_TABLE_LEN: usize = 255;

/// One of AWS's separate clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// All regions that are in neither of the others.
    Aws,
    /// China.
    China,
    /// The United States' government.
    UsGov,
}

impl Partition {
    /// As ARNs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::China => "aws-cn",
            Self::UsGov => "aws-us-gov",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Aws, Self::China, Self::UsGov].into_iter().find(|partition| partition.name() == name)
    }

    /// What its endpoints' names end with.
    pub fn dns_suffix(self) -> &'static str {
        match self {
            Self::Aws | Self::UsGov => "amazonaws.com",
            Self::China => "amazonaws.com.cn",
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is no ARN of what it should name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum ArnError {
    #[error("{found:?} is not of the form {form}")]
    Form { found: String, form: &'static str },
    #[error("the partition {0:?} of the ARN is none of aws, aws-cn and aws-us-gov")]
    Partition(String),
    #[error(
        "the region {0:?} of the ARN is no region: 1 to 63 lower case letters, digits and inner hyphens are allowed"
    )]
    Region(String),
    #[error("the account {0:?} of the ARN is not 12 digits")]
    Account(String),
    #[error("the table's name {0:?} is not 3 to {MAX_TABLE_LEN} of letters, digits, _, . and -")]
    Table(String),
    #[error("the key's id {0:?} is not letters, digits and hyphens")]
    Key(String),
    #[error(
        "the key {0:?} is a multi-Region key (mrk-): its replicas have key policies of their own, so the policy that was verified does not bind \
         them. Make a key for one Region, and name it here"
    )]
    MultiRegion(String),
}

/// Where something of AWS's is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    partition: Partition,
    region: String,
    account: String,
}

impl Scope {
    /// The place and the resource in `arn`, where that is one of `service`.
    fn parse<'a>(arn: &'a str, service: &str, form: &'static str) -> Result<(Self, &'a str), ArnError> {
        let wrong = || ArnError::Form { found: shown(arn), form };
        let parts: Vec<&str> = arn.split(':').collect();
        let ["arn", partition, of, region, account, resource] = parts.as_slice() else { return Err(wrong()) };
        if *of != service {
            return Err(wrong());
        }
        let partition = Partition::named(partition).ok_or_else(|| ArnError::Partition(shown(partition)))?;
        if !is_region(region) {
            return Err(ArnError::Region(shown(region)));
        }
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ArnError::Account(shown(account)));
        }
        Ok((Self { partition, region: (*region).to_owned(), account: (*account).to_owned() }, resource))
    }

    fn host(&self, service: &str) -> String {
        format!("{service}.{}.{}", self.region, self.partition.dns_suffix())
    }
}

/// A DNS label, in lower case as AWS writes its regions.
fn is_region(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Somebody else's text, for an error: not all of it.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A table of DynamoDB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableArn {
    place: Scope,
    table: String,
}

impl TableArn {
    const FORM: &str = "arn:PARTITION:dynamodb:REGION:ACCOUNT:table/NAME";

    /// Reads one.
    pub fn parse(arn: &str) -> Result<Self, ArnError> {
        let (place, resource) = Scope::parse(arn, "dynamodb", Self::FORM)?;
        let table = resource.strip_prefix("table/").ok_or(ArnError::Form { found: shown(arn), form: Self::FORM })?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if !(3..=MAX_TABLE_LEN).contains(&table.len()) || !table.bytes().all(allowed) {
            return Err(ArnError::Table(shown(table)));
        }
        Ok(Self { place, table: table.to_owned() })
    }

    /// Its partition.
    pub fn partition(&self) -> Partition {
        self.place.partition
    }

    /// Its region.
    pub fn region(&self) -> &str {
        &self.place.region
    }

    /// Its account: 12 digits.
    pub fn account(&self) -> &str {
        &self.place.account
    }

    /// AWS's endpoint for it.
    pub fn host(&self) -> String {
        self.place.host("dynamodb")
    }
}

impl fmt::Display for TableArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scope { partition, region, account } = &self.place;
        write!(f, "arn:{partition}:dynamodb:{region}:{account}:table/{}", self.table)
    }
}

impl TryFrom<String> for TableArn {
    type Error = ArnError;

    fn try_from(text: String) -> Result<Self, ArnError> {
        Self::parse(&text)
    }
}

impl From<TableArn> for String {
    fn from(arn: TableArn) -> Self {
        arn.to_string()
    }
}

/// A KMS key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyArn {
    place: Scope,
}

impl KeyArn {
    const FORM: &str = "arn:PARTITION:kms:REGION:ACCOUNT:key/ID";

    /// Reads one.
    pub fn parse(arn: &str) -> Result<Self, ArnError> {
        let (place, resource) = Scope::parse(arn, "kms", Self::FORM)?;
        let id = resource.strip_prefix("key/").ok_or(ArnError::Form { found: shown(arn), form: Self::FORM })?;
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(ArnError::Key(shown(id)));
        }
        if id.starts_with("mrk-") {
            return Err(ArnError::MultiRegion(shown(id)));
        }
        Ok(Self { place })
    }

    /// Its partition.
    pub fn partition(&self) -> Partition {
        self.place.partition
    }

    /// Its account: 12 digits.
    pub fn account(&self) -> &str {
        &self.place.account
    }

    /// AWS's endpoint for it.
    pub fn host(&self) -> String {
        self.place.host("kms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_of_tables_are_read_and_written_as_they_were() {
        let long = format!("arn:aws:dynamodb:{}:123456789012:table/{}", "r".repeat(63), "t".repeat(255));
        for (arn, partition, host) in [
            (
                "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate-fence",
                Partition::Aws,
                "dynamodb.eu-central-1.amazonaws.com",
            ),
            (
                "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/a.b",
                Partition::China,
                "dynamodb.cn-north-1.amazonaws.com.cn",
            ),
            (
                "arn:aws-us-gov:dynamodb:us-gov-west-1:000000000000:table/A_0",
                Partition::UsGov,
                "dynamodb.us-gov-west-1.amazonaws.com",
            ),
            (&long, Partition::Aws, &format!("dynamodb.{}.amazonaws.com", "r".repeat(63))),
        ] {
            let read = TableArn::parse(arn).unwrap();
            assert_eq!((read.to_string().as_str(), read.partition(), read.host().as_str()), (arn, partition, host));
            assert_eq!(read.account().len(), 12);
        }
    }

    #[test]
    fn what_names_no_table_is_refused_with_the_part_at_fault() {
        let arn = |partition: &str, region: &str, account: &str, resource: &str| {
            TableArn::parse(&format!("arn:{partition}:dynamodb:{region}:{account}:{resource}"))
        };
        let (region, account, table) = ("eu-central-1", "123456789012", "table/casemate");
        assert!(arn("aws", region, account, table).is_ok());
        for partition in ["", "AWS", "aws-", "aws-iso", "aws cn"] {
            assert_eq!(arn(partition, region, account, table), Err(ArnError::Partition(partition.into())));
        }
        for bad in
            ["", "eu-central-1-", "-eu", "EU-central-1", "eu.central", "eu_central", "eu/1", "ü", &"r".repeat(64)]
        {
            assert_eq!(arn("aws", bad, account, table), Err(ArnError::Region(bad.into())));
        }
        for bad in ["", "12345678901", "1234567890123", "12345678901a", "١٢٣٤٥٦٧٨٩٠١٢"] {
            assert_eq!(arn("aws", region, bad, table), Err(ArnError::Account(bad.into())));
        }
        for bad in ["", "ab", "a b", "a/b", "abc/index/x", "tä", "a*c"] {
            assert_eq!(arn("aws", region, account, &format!("table/{bad}")), Err(ArnError::Table(bad.into())));
        }
        assert!(matches!(arn("aws", region, account, &format!("table/{}", "t".repeat(256))), Err(ArnError::Table(_))));
        for bad in [
            "",
            "casemate",
            "arn:aws:dynamodb:eu-central-1:123456789012:table",
            "arn:aws:s3:eu-1:123456789012:table/abc",
        ] {
            assert!(matches!(TableArn::parse(bad), Err(ArnError::Form { .. })), "{bad}");
        }
        let more = format!("arn:aws:dynamodb:{region}:{account}:{table}:more");
        assert!(matches!(TableArn::parse(&more), Err(ArnError::Form { .. })));
        assert!(matches!(arn("aws", region, account, "global-table/abc"), Err(ArnError::Form { .. })));
    }

    #[test]
    fn arns_of_keys_lead_to_their_own_partition() {
        let read = |arn: &str| KeyArn::parse(arn).map(|key| (key.partition(), key.account().to_owned(), key.host()));
        let account = "123456789012".to_owned();
        assert_eq!(
            read("arn:aws-cn:kms:cn-north-1:123456789012:key/0a1b"),
            Ok((Partition::China, account.clone(), "kms.cn-north-1.amazonaws.com.cn".into()))
        );
        assert_eq!(
            read("arn:aws-us-gov:kms:us-gov-east-1:123456789012:key/0a1b"),
            Ok((Partition::UsGov, account, "kms.us-gov-east-1.amazonaws.com".into()))
        );
        assert!(matches!(read("arn:aws:kms:eu-central-1-:123456789012:key/0a"), Err(ArnError::Region(_))));
        assert!(matches!(read("arn:aws:kms:eu-central-1:123456789012:key/"), Err(ArnError::Key(_))));
        assert!(matches!(read("arn:aws:kms:eu-central-1:123456789012:alias/a"), Err(ArnError::Form { .. })));
    }

    #[test]
    fn a_multi_region_key_whose_replicas_have_policies_of_their_own_is_refused() {
        let told = KeyArn::parse("arn:aws:kms:eu-central-1:123456789012:key/mrk-0a1b").unwrap_err();
        assert_eq!(told, ArnError::MultiRegion("mrk-0a1b".into()));
        assert!(told.to_string().contains("Make a key for one Region"), "{told}");
    }
}
