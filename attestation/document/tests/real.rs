//! Real documents: each verifies at its own time, and is refused a second outside its leaf's validity.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use casemate_document::{Anchor, At, CertPosition, Document, Error, Expected, Timestamp, Unverified};
use serde_json::Value;

fn verify(bytes: &[u8], at: At) -> Result<Document, Error> {
    Unverified::parse(bytes)?.verify(&Anchor::aws().unwrap(), at)
}

/// What the index says of a document, and its bytes.
type Entry = (Value, Vec<u8>);

/// Every entry of the index with its bytes.
fn documents() -> Option<Vec<Entry>> {
    let folder = casemate_testdata::folder("nitro-attestation")?;
    let index = casemate_testdata::json(&folder.join("INDEX.json"));
    let entries = index["documents"].as_array().unwrap();
    assert!(!entries.is_empty());
    Some(
        entries
            .iter()
            .map(|entry| {
                (entry.clone(), std::fs::read(folder.join(Path::new(entry["file"].as_str().unwrap()))).unwrap())
            })
            .collect(),
    )
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "what filters hand over")]
fn is_valid(document: &&Entry) -> bool {
    let (entry, _) = document;
    entry["verdict"] == "valid" && entry["nitrotpm_pcrs"].is_null()
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_str().map(|text| const_hex::decode(text).unwrap())
}

fn rfc3339(value: &Value) -> Timestamp {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(value.as_str().unwrap(), format).unwrap();
    Timestamp::from_seconds(u64::try_from(time.unix_timestamp()).unwrap())
}

#[test]
fn real_documents_verify_at_their_own_time() {
    let Some(documents) = documents() else { return };
    let mut verified = 0;
    for (entry, raw) in documents.iter().filter(is_valid) {
        let file = &entry["file"];
        let timestamp = Timestamp(entry["timestamp_ms"].as_u64().unwrap());
        let document = verify(raw, At::Document).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(document, verify(raw, At::Time(timestamp)).unwrap(), "{file}");

        assert_eq!(document.timestamp(), timestamp, "{file}");
        assert_eq!(document.module_id(), entry["module_id"].as_str().unwrap(), "{file}");
        assert_eq!(document.nonce().map(<[u8]>::to_vec), bytes(&entry["nonce"]), "{file}");
        assert_eq!(document.user_data().map(<[u8]>::to_vec), bytes(&entry["user_data"]), "{file}");
        assert_eq!(document.public_key().map(<[u8]>::to_vec), bytes(&entry["public_key"]), "{file}");
        assert_eq!(serde_json::json!(document.pcrs().len()), entry["pcr_count"], "{file}");
        for index in [0, 1, 2, 3, 4, 8] {
            let expected = bytes(&entry[format!("pcr{index}")]).unwrap();
            assert_eq!(document.pcrs()[&index].to_vec(), expected, "{file}: PCR{index}");
        }
        assert_eq!(document.is_debug(), entry["debug_mode_pcrs_zero"].as_bool().unwrap(), "{file}");
        let chain = entry["cert_chain"].as_array().unwrap();
        assert_eq!(document.chain().len(), chain.len(), "{file}");
        for (found, expected) in document.chain().iter().zip(chain) {
            assert_eq!(const_hex::encode(found.sha256), expected["sha256"].as_str().unwrap(), "{file}");
            assert_eq!(found.not_before, rfc3339(&expected["not_before"]), "{file}");
            assert_eq!(found.not_after, rfc3339(&expected["not_after"]), "{file}");
        }
        verified += 1;
    }
    assert!(verified > 0);
    println!("{verified} real documents verified");
}

#[test]
fn real_documents_are_refused_outside_their_validity() {
    let Some(documents) = documents() else { return };
    for (entry, raw) in documents.iter().filter(is_valid) {
        let file = &entry["file"];
        let (not_before, not_after) = (rfc3339(&entry["leaf_not_before"]), rfc3339(&entry["leaf_not_after"]));
        // The last second counts, to its end.
        let last = Timestamp(not_after.0 + 999);
        assert!(verify(raw, At::Time(last)).is_ok(), "{file}");
        let late = Timestamp::from_seconds(not_after.seconds() + 1);
        let expired = Error::Expired { place: CertPosition::Leaf, not_after, at: late };
        assert_eq!(verify(raw, At::Time(late)).unwrap_err(), expired, "{file}");
        // A clock may be behind by the tolerance, no more; where an instance's certificate is younger, it says so first.
        let early = Timestamp(not_before.0 - 5001);
        let refused = verify(raw, At::Time(early)).unwrap_err();
        assert!(matches!(refused, Error::NotYetValid { at, .. } if at == early), "{file}: {refused}");
    }
}

#[test]
fn published_bad_documents_are_refused_for_the_right_reason() {
    let Some(documents) = documents() else { return };
    let mut refused = 0;
    for (entry, raw) in
        documents.iter().filter(|(entry, _)| entry["verdict"] == "invalid" && entry["nitrotpm_pcrs"].is_null())
    {
        let file = entry["file"].as_str().unwrap();
        let errors = entry["errors"].to_string();
        let error = verify(raw, At::Document).unwrap_err();
        let right = match &error {
            // One has null where the unprotected header belongs, and no cabundle either.
            Error::UnprotectedHeader { .. } => errors.contains("NoneType"),
            Error::Root { .. } => entry["root_is_aws_g1"] == false,
            Error::Signature => errors.contains("COSE signature") && entry["chain_valid_at_timestamp"] == true,
            _ => entry["chain_valid_at_timestamp"] == false,
        };
        assert!(right, "{file}: {errors}: {error:?}");
        refused += 1;
    }
    assert!(refused > 0);
}

#[test]
fn nitrotpm_documents_are_of_another_type() {
    let Some(documents) = documents() else { return };
    for (entry, raw) in documents.iter().filter(|(entry, _)| !entry["nitrotpm_pcrs"].is_null()) {
        assert_eq!(verify(raw, At::Document).unwrap_err(), Error::NitroTpm, "{}", entry["file"]);
    }
}

#[test]
fn real_documents_are_held_against_their_pcrs() {
    let Some(documents) = documents() else { return };
    let (mut debug, mut measured) = (0, 0);
    for (entry, raw) in documents.iter().filter(is_valid) {
        let document = verify(raw, At::Document).unwrap();
        let pins: BTreeMap<u8, [u8; 48]> = (0..=2).map(|index| (index, document.pcrs()[&index])).collect();
        let mut expected = Expected { pcrs: pins, max_age: Some(Duration::ZERO), ..Expected::default() };
        if document.is_debug() {
            debug += 1;
            assert_eq!(document.accept(&expected).unwrap_err(), Error::Debug);
            expected.debug_allowed = true;
            assert_eq!(document.accept(&expected).unwrap().module_id(), entry["module_id"]);
            expected.pcrs.get_mut(&1).unwrap()[47] ^= 1;
            assert!(matches!(document.accept(&expected).unwrap_err(), Error::PcrDiffers { index: 1, .. }));
            continue;
        }
        measured += 1;
        assert!(document.accept(&expected).is_ok());
        for index in 0..=2 {
            let mut wrong = expected.clone();
            wrong.pcrs.get_mut(&index).unwrap()[0] ^= 0x80;
            let refused = document.accept(&wrong).unwrap_err();
            assert!(matches!(refused, Error::PcrDiffers { index: found, .. } if found == index));
            wrong.pcrs.remove(&index);
            assert_eq!(
                document.accept(&wrong).unwrap_err(),
                Error::NothingExpected { missing: vec![index], debug: false }
            );
        }
    }
    assert!(debug > 0 && measured > 0, "{debug} debug, {measured} measured");
}

/// Every byte of a document is signed or checked: none can be changed.
#[test]
fn no_byte_of_a_real_document_can_be_changed() {
    let Some(documents) = documents() else { return };
    let (_, raw) = documents.iter().find(is_valid).unwrap();
    assert!(verify(raw, At::Document).is_ok());
    for at in 0..raw.len() {
        let mut changed = raw.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(verify(&changed, At::Document).is_err(), "byte {at}");
    }
    for len in 0..raw.len() {
        assert!(verify(&raw[..len], At::Document).is_err(), "{len} bytes");
    }
}
