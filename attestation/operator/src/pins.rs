//! PCRs from options and measurement files.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use casemate_document::{MAX_PCRS, PCR_LEN, Pcr};
use serde_json::{Map, Value};

use crate::cli::ExpectedOptions;
use crate::input;

/// All PCRs that the options and the measurements file give.
pub fn pins(options: &ExpectedOptions) -> Result<BTreeMap<u8, Pcr>> {
    let mut pins = match &options.measurements {
        Some(path) => {
            let text = input::read(path)?;
            measurements(&text).with_context(|| format!("in {}", path.display()))?
        }
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

/// The JSON of `nitro-cli build-enclave`, `nitro-cli describe-eif` and `casemate-eif`: `Measurements` with `PCR0`, `PCR1`, … in
/// hex. Whatever stands beside `Measurements` is not looked at; within it nothing is passed over.
fn measurements(text: &[u8]) -> Result<BTreeMap<u8, Pcr>> {
    let file: Map<String, Value> = serde_json::from_slice(text).context("not a JSON object")?;
    let Some(Value::Object(measurements)) = file.get("Measurements") else { bail!("there is no object Measurements") };
    let mut pins = BTreeMap::new();
    for (name, value) in measurements {
        let value = value.as_str().with_context(|| format!("{name} is not a text"))?;
        if name == "HashAlgorithm" {
            if !value.to_ascii_lowercase().starts_with("sha384") {
                bail!("the hash algorithm is {value:?}, not SHA-384");
            }
            continue;
        }
        let index = name.strip_prefix("PCR").and_then(|n| n.parse::<u8>().ok()).filter(|index| *index < MAX_PCRS);
        let index =
            index.filter(|index| *name == format!("PCR{index}")).with_context(|| format!("unknown {name:?}"))?;
        pins.insert(index, pcr(value).with_context(|| name.clone())?);
    }
    if pins.is_empty() {
        bail!("there is no PCR in Measurements");
    }
    Ok(pins)
}

fn pcr(text: &str) -> Result<Pcr> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    const_hex::decode_to_array(digits)
        .with_context(|| format!("{} characters; a PCR is {} hex digits", digits.len(), PCR_LEN.saturating_mul(2)))
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
        let pins = measurements(text.as_bytes()).unwrap();
        assert_eq!(pins, BTreeMap::from([(0, [0xab; 48]), (8, [0xcd; 48])]));
    }

    #[test]
    fn measurement_files_with_a_fault_are_unusable() {
        assert!(told("[]").contains("not a JSON object"));
        assert!(told("{}").contains("no object Measurements"));
        assert!(told(r#"{"Measurements": {}}"#).contains("no PCR"));
        assert!(told(r#"{"Measurements": {"HashAlgorithm": "Sha256"}}"#).contains("not SHA-384"));
        assert!(told(r#"{"Measurements": {"PCR0": "abcd"}}"#).contains("4 characters; a PCR is 96 hex digits"));
        assert!(told(r#"{"Measurements": {"PCR0": 1}}"#).contains("not a text"));
        for name in ["PCR32", "PCR", "PCR00", "PCR-1", "pcr0", "PCR256"] {
            assert!(told(&format!(r#"{{"Measurements": {{"{name}": "{}"}}}}"#, "ab".repeat(48))).contains("unknown"));
        }
    }
}
