//! PCRs from options and measurement files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_document::{MAX_PCRS, PCR_LEN, Pcr};
use serde::{Deserialize, Deserializer, de};

use crate::args::PinOptions;
use crate::input;
use crate::util::quoted;

/// All PCRs that the options and the measurements file give.
pub fn pins(options: &PinOptions) -> Result<BTreeMap<u8, Pcr>> {
    let mut pins = match &options.measurements {
        Some(path) => file(path)?,
        None => BTreeMap::new(),
    };
    for (index, text) in options.pcrs.given() {
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
/// hex. Other fields beside `Measurements` are not read; within it nothing is ignored.
fn measurements(text: &[u8]) -> Result<BTreeMap<u8, Pcr>> {
    let file: File = serde_json::from_slice(text).context("not a file of measurements")?;
    let mut pins = BTreeMap::new();
    for (name, value) in &file.measurements.0 {
        if name == "HashAlgorithm" {
            if !value.to_ascii_lowercase().starts_with("sha384") {
                bail!("the hash algorithm is {}, not SHA-384", quoted(value));
            }
            continue;
        }
        let index = name.strip_prefix("PCR").and_then(|n| n.parse::<u8>().ok()).filter(|index| *index < MAX_PCRS);
        let index = index
            .filter(|index| *name == format!("PCR{index}"))
            .with_context(|| format!("unknown {}", quoted(name)))?;
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

    #[test]
    fn measurement_files_are_read_as_nitro_cli_writes_them() {
        let (a, b) = ("ab".repeat(48), "CD".repeat(48));
        let text = format!(
            r#"{{"EifVersion": 4, "Measurements": {{"HashAlgorithm": "Sha384 {{ ... }}", "PCR0": "{a}", "PCR8": "{b}"}}}}"#
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("measurements.json");
        std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
        assert_eq!(super::file(&path).unwrap().len(), 2);
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
