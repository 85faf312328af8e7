//! Object roots against vectors that we did not make.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_protocol::{Duty, Network, Preset, Root};
use casemate_proxy::request;
use casemate_proxy::ssz::{self, Ssz};
use casemate_testdata::{files, folder, json};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn root(value: &Value) -> Root {
    Root::from(const_hex::decode_to_array::<_, 32>(value.as_str().unwrap()).unwrap())
}

fn network(preset: Preset) -> Network {
    let text = casemate_config::NAMED[0].1;
    let text = match preset {
        Preset::Mainnet => text.to_owned(),
        Preset::Minimal => text.replace("preset = \"mainnet\"", "preset = \"minimal\""),
    };
    casemate_config::parse(&text).unwrap()
}

/// The root of a case's value as a type of ours.
fn root_of<T: Ssz + DeserializeOwned>(value: &Value, preset: Preset) -> Root {
    let object: T = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"));
    object.hash_tree_root(preset).unwrap_or_else(|e| panic!("{e}: {value}"))
}

#[test]
fn object_roots_equal_the_official_ssz_static_ones() {
    let Some(folder) = folder("signing") else { return };
    let mut cases = 0;
    for path in files(&folder, ".jsonl") {
        let ssz_type = path.file_stem().unwrap().to_string_lossy().into_owned();
        let fork = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let preset =
            if path.components().any(|c| c.as_os_str() == "minimal") { Preset::Minimal } else { Preset::Mainnet };
        let compute: fn(&Value, Preset) -> Root = match (ssz_type.as_str(), fork.as_str()) {
            ("AggregateAndProof", "electra" | "fulu") => root_of::<ssz::AggregateAndProofElectra>,
            ("AggregateAndProof", "gloas") => root_of::<ssz::AggregateAndProofGloas>,
            ("AggregateAndProof", _) => root_of::<ssz::AggregateAndProofPhase0>,
            ("Attestation", "electra" | "fulu") => root_of::<ssz::AttestationElectra>,
            ("Attestation", "gloas") => root_of::<ssz::AttestationGloas>,
            ("Attestation", _) => root_of::<ssz::AttestationPhase0>,
            ("AttestationData", _) => root_of::<ssz::AttestationData>,
            ("BeaconBlockHeader", _) => root_of::<ssz::BeaconBlockHeader>,
            ("ContributionAndProof", _) => root_of::<ssz::ContributionAndProof>,
            ("SyncCommitteeContribution", _) => root_of::<ssz::SyncCommitteeContribution>,
            ("VoluntaryExit", _) => root_of::<ssz::VoluntaryExit>,
            _ => continue,
        };
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            assert_eq!(compute(&case["value"], preset), root(&case["root"]), "{}", path.display());
            cases += 1;
        }
    }
    println!("{cases} ssz_static cases");
    assert!(cases > 0);
}

#[test]
fn gloas_roots_equal_lodestars() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("gloas-oracle/gloas.json")).unwrap();
    let network = network(Preset::Mainnet);
    for case in &cases {
        let kind = case["type"].as_str().unwrap();
        let expected = root(&case["root"]);
        let body = json!({
            "type": kind.to_lowercase(),
            kind.to_lowercase(): { "version": "gloas", "data": case["data"] },
            "fork_info": {
                "fork": { "previous_version": "0x06000000", "current_version": "0x07000000", "epoch": 0 },
                "genesis_validators_root": network.genesis_validators_root().to_string(),
            },
        });
        let parsed = request::parse(body.to_string().as_bytes(), &network).unwrap_or_else(|e| panic!("{kind}: {e:?}"));
        assert_eq!(
            request::parse_any(body.to_string().as_bytes(), &network).as_ref(),
            Ok(&parsed),
            "{kind}: the general path"
        );
        match parsed.duty {
            Duty::ExecutionPayloadBid { object_root, .. }
            | Duty::ExecutionPayloadEnvelope { object_root, .. }
            | Duty::BuilderRequestAuth { object_root, .. } => assert_eq!(object_root, expected, "{kind}"),
            // The vault computes these; its own vectors and the end-to-end suite compare them.
            Duty::ProposerPreferences { .. } | Duty::PayloadAttestation { .. } => {}
            other => panic!("{kind} became {other:?}"),
        }
    }
    assert!(cases.len() > 15);
}

/// What Lodestar sent, and what was built in its form for later forks: each body parses, and its object root is the
/// recorded one wherever the proxy computes it.
#[test]
fn recorded_bodies_give_the_recorded_object_roots() {
    let Some(folder) = folder("lodestar") else { return };
    let (mut parsed, mut compared) = (0, 0);
    for path in files(&folder, ".json") {
        let case = json(&path);
        let Some(body) = case["request"].get("body").filter(|b| b.get("type").is_some()) else { continue };
        let minimal = path.components().any(|c| c.as_os_str() == "minimal");
        let network = network(if minimal { Preset::Minimal } else { Preset::Mainnet });
        let raw = case["request"]["raw_body"].as_str().map_or_else(|| body.to_string(), ToOwned::to_owned);
        let result = request::parse(raw.as_bytes(), &network);
        if body["type"] == "BLS_TO_EXECUTION_CHANGE" {
            assert!(result.is_err(), "a type outside the API was accepted: {}", path.display());
            continue;
        }
        let request = result.unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
        assert_eq!(request.signing_root, body.get("signingRoot").map(root));
        parsed += 1;
        if let Duty::AggregateAndProof { object_root, .. } | Duty::ContributionAndProof { object_root, .. } =
            request.duty
        {
            assert_eq!(object_root, root(&case["expected"]["object_root"]), "{}", path.display());
            compared += 1;
        }
    }
    println!("{parsed} bodies parsed, {compared} object roots compared");
    assert!(parsed > 0 && compared > 0);
}

/// serde would take an array of the members' values for the object: neither way does.
#[test]
fn an_array_is_no_body() {
    let network = network(Preset::Mainnet);
    let checkpoint = |epoch: &str| json!({ "epoch": epoch, "root": format!("0x{}", "11".repeat(32)) });
    let fork_info = json!({
        "fork": { "previous_version": "0x05000000", "current_version": "0x06000000", "epoch": "0" },
        "genesis_validators_root": network.genesis_validators_root().to_string(),
    });
    let attestation = json!({
        "slot": "65", "index": "0", "beacon_block_root": format!("0x{}", "22".repeat(32)),
        "source": checkpoint("1"), "target": checkpoint("2"),
    });
    let object = json!({ "type": "ATTESTATION", "fork_info": fork_info, "attestation": attestation });
    let array = json!(["ATTESTATION", null, fork_info, attestation]);
    for (body, right) in [(object.to_string(), true), (format!(" \r\n\t{object}"), true), (array.to_string(), false)] {
        let parsed = request::parse(body.as_bytes(), &network);
        assert_eq!(parsed.is_ok(), right, "{body}: {parsed:?}");
        assert_eq!(request::parse_any(body.as_bytes(), &network).is_ok(), right, "{body}");
    }
}
