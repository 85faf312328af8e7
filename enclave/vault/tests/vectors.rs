//! Roots and signatures against vectors that we did not make.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_protocol::network::NetworkFields;
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, Bytes, Checkpoint, Duty, Epoch, Fork, ForkName, Network, Preset, Root, Slot,
    Version,
};
use casemate_testdata::{files, folder, json};
use casemate_vault::signing::bls::{HashedMessage, SecretKey};
use casemate_vault::signing::signing_root;
use serde_json::Value;

fn hex<const N: usize>(value: &Value) -> Bytes<N> {
    let text = value.as_str().unwrap_or_else(|| panic!("no hex: {value}"));
    Bytes(const_hex::decode_to_array(text).unwrap_or_else(|e| panic!("{text}: {e}")))
}

fn uint(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("no u64: {value}"))
}

fn network(genesis_version: Version) -> Network {
    NetworkFields {
        name: "vectors".into(),
        preset: Preset::Mainnet,
        genesis_time: 0,
        genesis_validators_root: Root::ZERO,
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks: vec![Fork { name: ForkName::Phase0, version: genesis_version, epoch: Some(Epoch(0)) }],
    }
    .try_into()
    .unwrap()
}

fn checkpoint(v: &Value) -> Checkpoint {
    Checkpoint { epoch: Epoch(uint(&v["epoch"])), root: hex(&v["root"]) }
}

/// The duty whose object has this SSZ type, from the value of an `ssz_static` case.
fn duty(ssz_type: &str, v: &Value) -> Option<Duty> {
    Some(match ssz_type {
        "AttestationData" => Duty::Attestation(AttestationData {
            slot: Slot(uint(&v["slot"])),
            index: uint(&v["index"]),
            beacon_block_root: hex(&v["beacon_block_root"]),
            source: checkpoint(&v["source"]),
            target: checkpoint(&v["target"]),
        }),
        "BeaconBlockHeader" => Duty::Block(BeaconBlockHeader {
            slot: Slot(uint(&v["slot"])),
            proposer_index: uint(&v["proposer_index"]),
            parent_root: hex(&v["parent_root"]),
            state_root: hex(&v["state_root"]),
            body_root: hex(&v["body_root"]),
        }),
        "VoluntaryExit" => {
            Duty::VoluntaryExit { epoch: Epoch(uint(&v["epoch"])), validator_index: uint(&v["validator_index"]) }
        }
        "SyncAggregatorSelectionData" => Duty::SyncCommitteeSelectionProof {
            slot: Slot(uint(&v["slot"])),
            subcommittee_index: uint(&v["subcommittee_index"]),
        },
        "DepositMessage" => Duty::Deposit {
            public_key: hex(&v["pubkey"]),
            withdrawal_credentials: hex(&v["withdrawal_credentials"]),
            amount: uint(&v["amount"]),
            genesis_fork_version: Version::ZERO,
        },
        "PayloadAttestationData" => Duty::PayloadAttestation {
            beacon_block_root: hex(&v["beacon_block_root"]),
            slot: Slot(uint(&v["slot"])),
            payload_present: v["payload_present"].as_bool().unwrap(),
            blob_data_available: v["blob_data_available"].as_bool().unwrap(),
        },
        "ProposerPreferences" => Duty::ProposerPreferences {
            dependent_root: hex(v.get("dependent_root")?),
            proposal_slot: Slot(uint(&v["proposal_slot"])),
            validator_index: uint(&v["validator_index"]),
            fee_recipient: hex(&v["fee_recipient"]),
            target_gas_limit: uint(v.get("target_gas_limit")?),
        },
        _ => return None,
    })
}

#[test]
fn object_roots_equal_the_official_ssz_static_ones() {
    let Some(folder) = folder("signing") else { return };
    let mut cases = 0;
    for path in files(&folder, ".jsonl") {
        let ssz_type = path.file_stem().unwrap().to_string_lossy().into_owned();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let Some(duty) = duty(&ssz_type, &case["value"]) else { break };
            assert_eq!(signing_root::object_root(&duty), hex(&case["root"]), "{}: {line}", path.display());
            cases += 1;
        }
    }
    println!("{cases} ssz_static cases");
    assert!(cases > 0);
}

#[test]
fn bls_signatures_equal_the_official_ones() {
    let Some(folder) = folder("signing") else { return };
    let mut cases = 0;
    for path in files(&folder.join("bls"), ".json") {
        if path.parent().and_then(|p| p.file_name()).is_none_or(|name| name != "sign") {
            continue;
        }
        let case = json(&path);
        let key = SecretKey::from_be_bytes(&mut hex::<32>(&case["input"]["privkey"]).0);
        let message: Root = hex(&case["input"]["message"]);
        match (key, &case["output"]) {
            (Err(_), Value::Null) => {}
            (Ok(key), output) => {
                assert_eq!(key.sign(&HashedMessage::new(&message.0)), hex(output), "{}", path.display());
            }
            (Err(_), _) => panic!("{}: a valid key was refused", path.display()),
        }
        cases += 1;
    }
    println!("{cases} BLS cases");
    assert!(cases > 0);
}

#[test]
fn interop_keys_have_their_published_public_keys() {
    let Some(folder) = folder("signing") else { return };
    let mut keys = 0;
    for path in files(&folder.join("keystore"), ".yaml") {
        let text = std::fs::read_to_string(&path).unwrap();
        let quoted: Vec<&str> = text.split('\'').filter(|s| s.starts_with("0x")).collect();
        for pair in quoted.chunks(2) {
            let [secret, public] = pair else { continue };
            if secret.len() != 66 || public.len() != 98 {
                continue;
            }
            let mut secret: [u8; 32] = const_hex::decode_to_array(secret).unwrap();
            let key = SecretKey::from_be_bytes(&mut secret).unwrap();
            assert_eq!(key.public_key().to_string(), *public);
            keys += 1;
        }
    }
    assert!(keys > 0);
}

/// Registrations and deposits have domains without a fork: genesis version and zero root.
#[test]
fn registrations_and_deposits_have_their_published_signing_roots() {
    let Some(folder) = folder("signing") else { return };
    let mut cases = 0;
    let networks = [
        ("mainnet", "0x00000000"),
        ("sepolia", "0x90000069"),
        ("holesky", "0x01017000"),
        ("hoodi", "0x10000910"),
        ("kiln", "0x70000069"),
    ];
    let registrations = json(&folder.join("validator-registration/INDEX.json"));
    for entry in registrations.as_array().unwrap() {
        let message = &entry["message"];
        let duty = Duty::ValidatorRegistration {
            fee_recipient: hex(&message["fee_recipient"]),
            gas_limit: uint(&message["gas_limit"]),
            timestamp: uint(&message["timestamp"]),
            public_key: hex(&message["pubkey"]),
        };
        assert_eq!(signing_root::object_root(&duty), hex(&entry["hash_tree_root"]), "{entry}");
        let version = networks.iter().find(|(name, _)| entry["network"] == *name);
        if let (Some((_, version)), false) = (version, entry["signing_root"].is_null()) {
            let network = network(Bytes(const_hex::decode_to_array(version).unwrap()));
            assert_eq!(signing_root::compute(&duty, None, &network), Ok(hex(&entry["signing_root"])), "{entry}");
            cases += 1;
        }
    }
    for entry in json(&folder.join("deposit/INDEX.json")).as_array().unwrap() {
        let path = folder.join("deposit").join(entry["file"].as_str().unwrap());
        if !path.exists() {
            continue;
        }
        let deposit = &json(&path)[usize::try_from(uint(&entry["index"])).unwrap()];
        let version = hex(&entry["fork_version"]);
        let duty = Duty::Deposit {
            public_key: hex(&deposit["pubkey"]),
            withdrawal_credentials: hex(&deposit["withdrawal_credentials"]),
            amount: uint(&deposit["amount"]),
            genesis_fork_version: version,
        };
        assert_eq!(signing_root::compute(&duty, None, &network(version)), Ok(hex(&entry["signing_root"])), "{entry}");
        cases += 1;
    }
    println!("{cases} signing roots");
    assert!(cases > 0);
}

#[test]
fn a_known_answer_from_key_to_signature() {
    let Some(folder) = folder("signing") else { return };
    let kat = json(&folder.join("kat/validator-registration-kat.json"));
    let key = SecretKey::from_be_bytes(&mut hex::<32>(&kat["secret_key"]).0).unwrap();
    assert_eq!(key.public_key(), hex(&kat["public_key_of_secret"]));
    let message = &kat["message"];
    let duty = Duty::ValidatorRegistration {
        fee_recipient: hex(&message["fee_recipient"]),
        gas_limit: uint(&message["gas_limit"]),
        timestamp: uint(&message["timestamp"]),
        public_key: hex(&message["pubkey"]),
    };
    let root = signing_root::compute(&duty, None, &network(hex(&kat["genesis_fork_version"]))).unwrap();
    assert_eq!(root, hex(&kat["signing_root"]));
    assert_eq!(key.sign(&HashedMessage::new(&root.0)), hex(&kat["signature"]));
}
