//! The EIP-3076 interchange tests of eth-clients, in the minimal strategy, and fixtures of other signers.
//!
//! `should_succeed` is what a signer that keeps watermarks must answer. We keep one thing more: the signing root of the
//! highest message, which may be signed again. There alone the vector's mark for complete histories,
//! `should_succeed_complete`, is the one to follow. Where a file holds slashable data we import it all the same, by
//! taking its maxima.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;

use casemate_protocol::{Bytes, Epoch, PublicKey, Root, Slot};
use casemate_slashing::{BlockMark, Limits, Watermarks, interchange, rules};
use casemate_testdata::{files, folder, json};
use serde_json::Value;

fn hex<const N: usize>(value: &Value) -> Bytes<N> {
    let text = value.as_str().unwrap();
    let digits = text.strip_prefix("0x").unwrap();
    let bytes: Vec<u8> =
        (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect();
    Bytes(bytes.try_into().unwrap())
}

fn number(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

/// A missing signing root stands for one that nothing else has.
fn root(value: &Value) -> Root {
    if value.is_null() { Root::from([0xfe; 32]) } else { hex(value) }
}

fn expected(message: &Value, repeat_of_the_highest: bool) -> bool {
    let minimal = message["should_succeed"].as_bool().unwrap();
    let complete = message["should_succeed_complete"].as_bool().unwrap_or(minimal);
    if repeat_of_the_highest { complete } else { minimal }
}

#[test]
fn interchange_tests_of_eth_clients() {
    let Some(folder) = folder("slashing") else { return };
    let mut files_run = 0;
    let mut signings = 0;
    for path in files(&folder, ".json") {
        let inside = path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
        if !inside.starts_with("interchange-tests-") || !inside.contains("/tests/") {
            continue;
        }
        let test = json(&path);
        let name = path.file_name().unwrap().to_string_lossy();
        let genesis_validators_root: Root = hex(&test["genesis_validators_root"]);
        let mut keys: BTreeMap<PublicKey, Watermarks> = BTreeMap::new();
        for (i, step) in test["steps"].as_array().unwrap().iter().enumerate() {
            let file = step["interchange"].to_string();
            let read = interchange::read(file.as_bytes(), genesis_validators_root);
            assert_eq!(read.is_ok(), step["should_succeed"].as_bool().unwrap(), "{name} step {i}: {read:?}");
            for (key, more) in read.unwrap_or_default() {
                let before = *keys.entry(key).or_default();
                keys.insert(key, before.merge(more));
            }
            for block in step["blocks"].as_array().unwrap() {
                let state = keys.entry(hex(&block["pubkey"])).or_default();
                let signing_root = root(&block["signing_root"]);
                let slot = Slot(number(&block["slot"]));
                let new = rules::block::check(*state, slot, signing_root, &Limits::NONE);
                let repeat = state.block == Some(BlockMark { slot, signing_root: Some(signing_root) });
                assert_eq!(new.is_ok(), expected(block, repeat), "{name} step {i}: {block} {new:?}");
                *state = new.unwrap_or(*state);
                signings += 1;
            }
            for attestation in step["attestations"].as_array().unwrap() {
                let state = keys.entry(hex(&attestation["pubkey"])).or_default();
                let source = Epoch(number(&attestation["source_epoch"]));
                let target = Epoch(number(&attestation["target_epoch"]));
                let signing_root = root(&attestation["signing_root"]);
                let new = rules::attestation::check(*state, source, target, signing_root, &Limits::NONE);
                let repeat =
                    state.attestation.is_some_and(|a| a.target == target && a.signing_root == Some(signing_root));
                assert_eq!(new.is_ok(), expected(attestation, repeat), "{name} step {i}: {attestation} {new:?}");
                *state = new.unwrap_or(*state);
                signings += 1;
            }
        }
        files_run += 1;
    }
    println!("{files_run} interchange tests, {signings} signings");
    assert!(files_run > 0, "the folder {} holds no interchange test", folder.display());
}

#[test]
fn exports_read_back_as_the_same_watermarks() {
    let Some(folder) = folder("lodestar") else { return };
    let mut read = 0;
    for path in files(&folder.join("eip3076"), ".json") {
        let file = json(&path);
        let name = path.display();
        let genesis_validators_root: Root = hex(&file["metadata"]["genesis_validators_root"]);
        let imported = interchange::read(std::fs::read(&path).unwrap().as_slice(), genesis_validators_root);
        if file["metadata"]["interchange_format_version"] != "5" {
            let error = imported.expect_err("a version that is not ours");
            assert!(error.to_string().contains("version"), "{name}: {error}");
            continue;
        }
        let imported = imported.unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut written = Vec::new();
        interchange::write(&imported, genesis_validators_root, &mut written).unwrap();
        assert_eq!(interchange::read(written.as_slice(), genesis_validators_root).unwrap(), imported, "{name}");
        // The maxima, counted independently from the file's JSON.
        for record in file["data"].as_array().unwrap() {
            let key: PublicKey = hex(&record["pubkey"]);
            let max =
                |list: &str, field: &str| record[list].as_array().unwrap().iter().map(|m| number(&m[field])).max();
            let marks = imported[&key];
            assert_eq!(marks.block.map(|b| b.slot.0), max("signed_blocks", "slot"));
            assert_eq!(marks.attestation.map(|a| a.source.0), max("signed_attestations", "source_epoch"));
            assert_eq!(marks.attestation.map(|a| a.target.0), max("signed_attestations", "target_epoch"));
        }
        read += 1;
    }
    assert!(read > 0, "no version 5 export among Lodestar's");
}

#[test]
fn files_with_a_fault_are_refused_whole() {
    let key = format!("0x{}", "ab".repeat(48));
    let root = format!("0x{}", "00".repeat(32));
    let file = |version: &str, root: &str, data: &str| {
        format!(
            r#"{{"metadata":{{"interchange_format_version":"{version}","genesis_validators_root":"{root}"}},"data":{data}}}"#
        )
    };
    let read = |text: &str| interchange::read(text.as_bytes(), Root::ZERO);
    let record = |blocks: &str, attestations: &str| {
        format!(r#"[{{"pubkey":"{key}","signed_blocks":{blocks},"signed_attestations":{attestations}}}]"#)
    };

    assert!(read(&file("5", &root, &record("[]", "[]"))).unwrap().values().all(|w| *w == Watermarks::NONE));
    for (what, text) in [
        ("another version", file("4", &root, "[]")),
        ("another network", file("5", &format!("0x{}", "11".repeat(32)), "[]")),
        ("short root", file("5", "0x00", "[]")),
        ("a number for a string", file("5", &root, &record(r#"[{"slot":1}]"#, "[]"))),
        ("a negative slot", file("5", &root, &record(r#"[{"slot":"-1"}]"#, "[]"))),
        ("a plus sign", file("5", &root, &record(r#"[{"slot":"+1"}]"#, "[]"))),
        ("an empty slot", file("5", &root, &record(r#"[{"slot":""}]"#, "[]"))),
        ("2^64", file("5", &root, &record(r#"[{"slot":"18446744073709551616"}]"#, "[]"))),
        ("a missing target", file("5", &root, &record("[]", r#"[{"source_epoch":"1"}]"#))),
        ("a missing list", file("5", &root, &format!(r#"[{{"pubkey":"{key}","signed_blocks":[]}}]"#))),
        ("a short key", file("5", &root, r#"[{"pubkey":"0xab","signed_blocks":[],"signed_attestations":[]}]"#)),
        ("data that is no array", file("5", &root, "{}")),
        ("trailing text", file("5", &root, "[]") + "x"),
        ("a cut-off file", file("5", &root, "[]").trim_end_matches('}').to_owned()),
    ] {
        assert!(read(&text).is_err(), "{what} was accepted");
    }
    // What belongs there is said.
    let said = |text: &str| read(text).unwrap_err().to_string();
    assert!(said(&file("5", &root, "{}")).contains("an array of validators"));
    assert!(said(&file("5", &root, &record("7", "[]"))).contains("an array of signed messages"));
    // Fixtures of other signers that must not import, each for the reason its name gives.
    let Some(folder) = folder("slashing") else { return };
    for name in ["teku/invalid_json.json", "teku/minimal_invalidKey.json", "teku/oldMetadata.json"] {
        let path = folder.join(name);
        if let Ok(bytes) = std::fs::read(&path) {
            let mut root = Root::ZERO;
            root.0[30..].copy_from_slice(&[0x34, 0x56]);
            root.0[29] = 0x12;
            assert!(interchange::read(bytes.as_slice(), root).is_err(), "{name} was accepted");
        }
    }
}

#[test]
fn the_hex_case_of_a_key_does_not_matter() {
    let text = |key: &str| {
        format!(
            r#"{{"metadata":{{"interchange_format_version":"5","genesis_validators_root":"0x{}"}},"data":[
            {{"pubkey":"0x{}","signed_blocks":[{{"slot":"7"}}],"signed_attestations":[]}},
            {{"pubkey":"0x{}","signed_blocks":[{{"slot":"9"}}],"signed_attestations":[]}}]}}"#,
            "00".repeat(32),
            key.to_lowercase(),
            key.to_uppercase()
        )
    };
    let read = interchange::read(text(&"aB".repeat(48)).as_bytes(), Root::ZERO).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read.values().next().unwrap().block.unwrap().slot, Slot(9));
}
