//! A fence's record that has ended, in the form that people keep for `casemate fence init --after`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_protocol::command::ClosedRecord;
use casemate_protocol::reported::ReportedRecord;
use serde_json::{Value, json};

use crate::input;

/// For people who keep it, and for [`read`].
pub fn line(record: &ClosedRecord) -> String {
    json!(ReportedRecord::from(record)).to_string()
}

/// From a file: the line of `casemate fence close`, or the answer of `casemate fence status --json`.
pub fn read(path: &Path) -> Result<ClosedRecord> {
    parse(&input::read(path)?).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &[u8]) -> Result<ClosedRecord> {
    // People paste what stood around it too.
    let lines = text.split(|byte| *byte == b'\n').filter(|line| line.first() == Some(&b'{'));
    let whole = std::iter::once(text).chain(lines);
    let value = whole.filter_map(|text| serde_json::from_slice::<Value>(text).ok()).find(Value::is_object);
    let value = value.context("there is no JSON object in it")?;
    let record = value.pointer("/fence/record").unwrap_or(&value);
    if record.get("closed") != Some(&Value::Bool(true)) {
        bail!("the record in it has not ended: end it with casemate fence close");
    }
    Ok(serde_json::from_value::<ReportedRecord>(record.clone())?.record()?)
}

#[cfg(test)]
mod tests {
    use casemate_protocol::{Bytes, Epoch, Slot};

    use super::*;

    #[test]
    fn what_was_kept_of_a_record_is_read_back() {
        let record = ClosedRecord {
            version: 7,
            term: 3,
            slot_ceiling: Slot(900),
            target_ceiling: Epoch(29),
            source_ceiling: Epoch(28),
            min_state_version: 12,
            released_state: Some(Bytes([0xab; 32])),
        };
        let line = line(&record);
        let status = json!({ "fence": { "record": ReportedRecord::from(&record) } });
        for text in [line.clone(), format!("ended:\n{line}\nits holder has left\n"), format!("{status:#}")] {
            assert_eq!(parse(text.as_bytes()).ok(), Some(record), "{text}");
        }
        let open = line.replace("\"closed\":true", "\"closed\":false");
        assert!(parse(open.as_bytes()).unwrap_err().to_string().contains("has not ended"));
        assert!(parse(b"ended").unwrap_err().to_string().contains("no JSON"));
    }
}
