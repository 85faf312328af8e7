//! What earlier versions wrote is still read: the folders of tests/suites/compatibility (docs/COMPATIBILITY.md).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_fence::{GroupId, Record};
use casemate_protocol::Slot;

/// The chain of all that was kept.
const HOODI: &str = "212f13fc4df078b6cb7db228f1c8307566dcecf900867401a92023d7ba99cb5f";

fn versions() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/suites/compatibility");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let versions: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    assert!(!versions.is_empty());
    versions
}

/// What `casemate` says where all is well.
fn casemate(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    text
}

struct Kept(PathBuf);

impl Kept {
    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A command with the pins of what was kept.
    fn judged(&self, command: &[&str]) -> String {
        let pins = ["--root", &self.path("root.pem"), "--measurements", &self.path("measurements.json")];
        casemate(&[command, &pins[..]].concat())
    }
}

#[test]
fn answers_that_were_kept_are_still_verified() {
    for kept in versions().into_iter().map(Kept) {
        let answer = kept.path("attestation.json");
        let verify = ["attest", "verify", &answer, "--at", "document"];
        let text = kept.judged(&verify);
        assert!(text.contains("ACCEPTED"), "{text}");
        let as_json = [&verify[..], &["--json"]].concat();
        let told: serde_json::Value = serde_json::from_str(&kept.judged(&as_json)).unwrap();
        assert_eq!(told["statement"]["group"], "dev", "{told}");
    }
}

#[test]
fn signing_logs_that_were_kept_are_still_verified() {
    for kept in versions().into_iter().map(Kept) {
        // Sentences may be worded better since.
        let text = kept.judged(&["log", "verify", "--accept-reworded", &kept.path("log")]);
        assert!(text.contains("1 signed, 1 refused"), "{text}");
    }
}

#[test]
fn commands_that_were_kept_are_still_shown() {
    for kept in versions().into_iter().map(Kept) {
        let text = casemate(&["command", "show", &kept.path("command.json")]);
        assert!(text.contains("SEND THE FEES of 1 key to 0x00000000219ab540356cbb839cbe05303d7705fa"), "{text}");
    }
}

#[test]
fn records_that_were_kept_are_still_read() {
    for kept in versions().into_iter().map(Kept) {
        let network = const_hex::decode_to_array(HOODI).map(casemate_protocol::Bytes).unwrap();
        let place = GroupId { group: "dev".into(), network };
        let record = Record::decode(&std::fs::read(kept.path("closed.record")).unwrap(), &place).unwrap();
        assert!(record.closed && record.version == 5, "{record:?}");
        assert_eq!(record.ceilings.slot, Slot(4_486_341));
    }
}
