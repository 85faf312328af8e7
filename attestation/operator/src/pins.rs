//! PCRs from options and measurement files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_document::{MAX_PCRS, PCR_LEN, Pcr};
use casemate_protocol::Root;
use casemate_protocol::arn::TableArn;
use casemate_protocol::statement::{FenceKind, FenceStatement};
use casemate_protocol::store::{ClusterId, KeyPrefix, etcd_identity};
use serde::{Deserialize, Deserializer, de};

use crate::cli::PinOptions;
use crate::{input, report};

/// All PCRs that the options and the measurements file give.
pub fn pins(options: &PinOptions) -> Result<BTreeMap<u8, Pcr>> {
    let mut pins = match &options.measurements {
        Some(path) => file(path)?,
        None => BTreeMap::new(),
    };
    for (index, given) in [(0, &options.pcr0), (1, &options.pcr1), (2, &options.pcr2), (8, &options.pcr8)] {
        let Some(text) = given else { continue };
        let value = pcr(text).with_context(|| format!("--pcr{index}"))?;
        if pins.insert(index, value).is_some_and(|measured| measured != value) {
            bail!("--pcr{index} differs from PCR{index} of the measurements");
        }
    }
    Ok(pins)
}

/// All PCRs of a measurements file.
pub fn file(path: &Path) -> Result<BTreeMap<u8, Pcr>> {
    let text = input::read(path)?;
    measurements(&text).with_context(|| format!("in {}", path.display()))
}

/// The JSON of `nitro-cli build-enclave`, `nitro-cli describe-eif` and `casemate-eif`: `Measurements` with `PCR0`, `PCR1`, … in
/// hex. Whatever stands beside `Measurements` is not looked at; within it nothing is passed over.
fn measurements(text: &[u8]) -> Result<BTreeMap<u8, Pcr>> {
    let file: File = serde_json::from_slice(input::without_bom(text)).context("not a file of measurements")?;
    let mut pins = BTreeMap::new();
    for (name, value) in &file.measurements.0 {
        if name == "HashAlgorithm" {
            if !value.to_ascii_lowercase().starts_with("sha384") {
                bail!("the hash algorithm is {value:?}, not SHA-384");
            }
            continue;
        }
        let index = name.strip_prefix("PCR").and_then(|n| n.parse::<u8>().ok()).filter(|index| *index < MAX_PCRS);
        let index =
            index.filter(|index| *name == format!("PCR{index}")).with_context(|| format!("unknown {name:?}"))?;
        if pins.insert(index, pcr(value).with_context(|| name.clone())?).is_some() {
            bail!("{name} occurs twice");
        }
    }
    if pins.is_empty() {
        bail!("there is no PCR in Measurements");
    }
    Ok(pins)
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "Measurements")]
    measurements: Pairs,
}

/// Names and texts in the order of the file, those that occur twice too: a map would keep the last in silence.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

/// The fence that a statement must name: its kind alone, or which store it is too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FencePin {
    /// Of this kind, whichever store.
    Kind(FenceKind),
    /// In this table.
    Dynamodb(TableArn),
    /// In this cluster of etcd, under whatever root and prefix.
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
            let kind = Self::KINDS.into_iter().find(|kind| report::kind(*kind) == text);
            return kind.map(Self::Kind).ok_or_else(|| format!("{text:?} is no fence; {allowed}"));
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
                let (cluster, prefix, root) = parts.ok_or_else(|| format!("{store:?} names no etcd; {allowed}"))?;
                Ok(Self::Etcd(etcd_identity(cluster, &prefix, &root)))
            }
            _ => Err(format!("{text:?} is no fence; {allowed}")),
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
            let (stated, expected) = (report::kind(stated.kind), report::kind(kind));
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

pub fn pcr(text: &str) -> Result<Pcr> {
    let text = text.trim();
    const_hex::decode_to_array(text)
        .with_context(|| format!("{} characters; a PCR is {} hex digits", text.len(), PCR_LEN.saturating_mul(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        format!("{:#}", measurements(text.as_bytes()).map(|_| ()).unwrap_err())
    }

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

    #[test]
    fn measurement_files_are_read_as_nitro_cli_writes_them() {
        let (a, b) = ("ab".repeat(48), "CD".repeat(48));
        let text = format!(
            r#"{{"EifVersion": 4, "Measurements": {{"HashAlgorithm": "Sha384 {{ ... }}", "PCR0": "{a}", "PCR8": "{b}"}}}}"#
        );
        assert_eq!(measurements(format!("\u{feff}{text}").as_bytes()).unwrap().len(), 2);
        let pins = measurements(text.as_bytes()).unwrap();
        assert_eq!(pins, BTreeMap::from([(0, [0xab; 48]), (8, [0xcd; 48])]));
    }

    #[test]
    fn measurement_files_with_a_fault_are_unusable() {
        assert!(told("[]").contains("not a file of measurements"));
        assert!(told("{}").contains("missing field `Measurements`"));
        assert!(told(r#"{"Measurements": []}"#).contains("an object of texts"));
        assert!(told(r#"{"Measurements": {}}"#).contains("no PCR"));
        assert!(told(r#"{"Measurements": {"HashAlgorithm": "Sha256"}}"#).contains("not SHA-384"));
        assert!(told(r#"{"Measurements": {"PCR0": "abcd"}}"#).contains("4 characters; a PCR is 96 hex digits"));
        assert!(told(r#"{"Measurements": {"PCR0": 1}}"#).contains("expected a string"));
        let twice = format!(r#"{{"Measurements": {{"PCR0": "{}", "PCR0": "{}"}}}}"#, "ab".repeat(48), "cd".repeat(48));
        assert!(told(&twice).contains("PCR0 occurs twice"));
        let half = format!(r#""Measurements": {{"PCR0": "{}"}}"#, "ab".repeat(48));
        assert!(told(&format!("{{{half}, {half}}}")).contains("duplicate field `Measurements`"));
        for name in ["PCR32", "PCR", "PCR00", "PCR-1", "pcr0", "PCR256"] {
            assert!(told(&format!(r#"{{"Measurements": {{"{name}": "{}"}}}}"#, "ab".repeat(48))).contains("unknown"));
        }
    }
}
