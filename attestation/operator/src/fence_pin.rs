//! The fence that an operator expects a statement to name.

use casemate_protocol::Root;
use casemate_protocol::arn::TableArn;
use casemate_protocol::statement::{FenceKind, FenceStatement};
use casemate_protocol::store::{ClusterId, KeyPrefix, etcd_identity};

use crate::util::quoted;

/// The fence that a statement must name: its kind alone, or which store it is too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FencePin {
    /// Of this kind, in any store.
    Kind(FenceKind),
    /// In this table.
    Dynamodb(TableArn),
    /// In this cluster of etcd, under any root and prefix.
    Cluster(ClusterId),
    /// In this etcd, as statements name it: cluster, prefix and root.
    Etcd(String),
}

impl FencePin {
    const KINDS: [FenceKind; 5] =
        [FenceKind::None, FenceKind::Solo, FenceKind::File, FenceKind::Etcd, FenceKind::Dynamodb];

    /// Reads an option's value. The error says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let allowed = "none, solo, file, etcd and dynamodb are allowed, dynamodb:ARN with the table's ARN, and etcd:CLUSTER with the cluster's \
                       16 hex digits or all that casemate attest shows of the store";
        let Some((name, store)) = text.split_once(':') else {
            let kind = Self::KINDS.into_iter().find(|kind| kind.to_string() == text);
            return kind.map(Self::Kind).ok_or_else(|| format!("{} is no fence; {allowed}", quoted(text)));
        };
        match (name, store.split_once('/')) {
            ("dynamodb", _) => {
                TableArn::parse(store).map(Self::Dynamodb).map_err(|error| format!("{error}; {allowed}"))
            }
            ("etcd", None) => ClusterId::parse(store).map(Self::Cluster).map_err(|error| format!("{error}; {allowed}")),
            ("etcd", Some((cluster, rest))) => {
                let parts = rest.split_once("#root-sha256=").and_then(|(prefix, root)| {
                    let digits = root.len() == 64 && root.bytes().all(|b| b.is_ascii_hexdigit());
                    let root = const_hex::decode_to_array(root).ok().filter(|_| digits)?;
                    Some((ClusterId::parse(cluster).ok()?, KeyPrefix::parse(prefix).ok()?, Root::from(root)))
                });
                let (cluster, prefix, root) =
                    parts.ok_or_else(|| format!("{} names no etcd; {allowed}", quoted(store)))?;
                Ok(Self::Etcd(etcd_identity(cluster, &prefix, &root)))
            }
            _ => Err(format!("{} is no fence; {allowed}", quoted(text))),
        }
    }

    fn kind(&self) -> FenceKind {
        match self {
            Self::Kind(kind) => *kind,
            Self::Dynamodb(_) => FenceKind::Dynamodb,
            Self::Cluster(_) | Self::Etcd(_) => FenceKind::Etcd,
        }
    }

    /// Whether a statement names this one; why not.
    pub fn compare(&self, stated: &FenceStatement) -> Result<(), String> {
        let kind = self.kind();
        if stated.kind != kind {
            let (stated, expected) = (stated.kind, kind);
            return Err(format!("the fence is of kind {stated}; {expected} was expected"));
        }
        let found = stated.store.as_deref().unwrap_or("none that it names");
        let (expected, same) = match self {
            Self::Kind(_) => return Ok(()),
            Self::Dynamodb(table) => (table.to_string(), found == table.to_string()),
            Self::Cluster(cluster) => (cluster.to_string(), found.starts_with(&format!("{cluster}/"))),
            Self::Etcd(store) => (store.clone(), found == store),
        };
        if same { Ok(()) } else { Err(format!("the fence's store is {found}; {expected} was expected")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate-fence";
    const CLUSTER: &str = "cdf818194e3a8c32";

    fn stated(kind: FenceKind, store: Option<&str>) -> FenceStatement {
        let floors = casemate_protocol::statement::StatedFloors::default();
        FenceStatement { store: store.map(str::to_owned), ..FenceStatement::without_store(kind, floors) }
    }

    #[test]
    fn a_fence_is_pinned_by_its_kind_or_by_its_store() {
        let (table, other_table) = (TABLE.to_owned(), TABLE.replace("123456789012", "999999999999"));
        let etcd = format!("{CLUSTER}/casemate/#root-sha256={}", "ab".repeat(32));
        let other_root = format!("{CLUSTER}/casemate/#root-sha256={}", "cd".repeat(32));
        let other_cluster = etcd.replace("cdf8", "cdf9");
        let compare = |pin: &str, kind: FenceKind, store: Option<&str>| {
            FencePin::parse(pin).unwrap().compare(&stated(kind, store))
        };
        for (pin, kind, store) in [
            ("none", FenceKind::None, None),
            ("solo", FenceKind::Solo, None),
            ("file", FenceKind::File, None),
            ("etcd", FenceKind::Etcd, Some(&etcd)),
            ("dynamodb", FenceKind::Dynamodb, Some(&table)),
            (&format!("dynamodb:{table}"), FenceKind::Dynamodb, Some(&table)),
            (&format!("etcd:{CLUSTER}"), FenceKind::Etcd, Some(&etcd)),
            (&format!("etcd:{}", CLUSTER.to_uppercase()), FenceKind::Etcd, Some(&etcd)),
            (&format!("etcd:{etcd}"), FenceKind::Etcd, Some(&etcd)),
        ] {
            assert_eq!(compare(pin, kind, store.map(String::as_str)), Ok(()), "{pin}");
        }
        for (pin, kind, store, told) in [
            ("solo", FenceKind::None, None, "of kind none; solo was expected"),
            ("dynamodb", FenceKind::Etcd, Some(&etcd), "of kind etcd; dynamodb was expected"),
            (&format!("dynamodb:{table}"), FenceKind::Etcd, Some(&etcd), "of kind etcd; dynamodb was expected"),
            (&format!("dynamodb:{table}"), FenceKind::Dynamodb, Some(&other_table), ":999999999999:table"),
            (&format!("dynamodb:{table}"), FenceKind::Dynamodb, None, "none that it names"),
            (&format!("etcd:{CLUSTER}"), FenceKind::Etcd, Some(&other_cluster), "cdf8"),
            (&format!("etcd:{CLUSTER}"), FenceKind::Etcd, None, "none that it names"),
            (&format!("etcd:{CLUSTER}"), FenceKind::File, None, "of kind file"),
            (&format!("etcd:{etcd}"), FenceKind::Etcd, Some(&other_root), "abab"),
        ] {
            let error = compare(pin, kind, store.map(String::as_str)).unwrap_err();
            assert!(error.contains(told), "{pin}: {error}");
        }
    }

    #[test]
    fn what_is_no_fence_to_pin_is_refused_with_the_forms() {
        let etcd = format!("etcd:{CLUSTER}");
        for bad in [
            "",
            "wall",
            "ETCD",
            "etcd:",
            "etcd:cdf818194e3a8c3",
            "dynamodb:",
            "dynamodb:casemate-fence",
            "dynamodb:arn:aws:dynamodb:eu-central-1-:123456789012:table/abc",
            "file:/fence",
            "solo:",
            ":etcd",
            &format!("{etcd}/"),
            &format!("{etcd}/casemate/"),
            &format!("{etcd}/casemate#root-sha256={}", "ab".repeat(32)),
            &format!("{etcd}/casemate/#root-sha256=0x{}", "ab".repeat(31)),
        ] {
            let error = FencePin::parse(bad).unwrap_err();
            assert!(error.contains("dynamodb:ARN") && error.contains("etcd:CLUSTER"), "{bad}: {error}");
        }
    }
}
