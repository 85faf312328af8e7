//! Messages with the signatures that they must get.

use std::path::Path;

use casemate_testdata::json;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::blst_signature;
use crate::requests::root;

pub const ZERO_ROOT: &str = "0x0000000000000000000000000000000000000000000000000000000000000000";

/// Gloas types that no recorded client sends yet, for the first interop key on the chain of [`crate::requests::NETWORK`]: type, request,
/// signature. The object roots are Lodestar's, the domains the API document's.
pub fn gloas_types() -> Vec<(String, Value, String)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../parent-proxy/tests/gloas-oracle/gloas.json");
    let secret = casemate_dev::interop::secret_key(0);
    let (root4, mut cases) = (root(4), Vec::new());
    for case in json(&file).as_array().unwrap() {
        let kind = case["type"].as_str().unwrap().to_owned();
        let (domain_type, version, chain) = match kind.as_str() {
            "EXECUTION_PAYLOAD_BID" | "EXECUTION_PAYLOAD_ENVELOPE" => ("0b000000", "07000001", root4.as_str()),
            "PAYLOAD_ATTESTATION_MESSAGE" => ("0c000000", "07000001", root4.as_str()),
            "PROPOSER_PREFERENCES" => ("0d000000", "07000001", root4.as_str()),
            "BUILDER_REQUEST_AUTH" => ("0b000001", "00000001", ZERO_ROOT),
            other => panic!("{other}"),
        };
        let object_root = case["root"].as_str().unwrap();
        let expected = blst_signature(&secret, &signing_root(object_root, domain_type, version, chain));
        let mut body = json!({ "type": kind, kind.to_lowercase(): { "version": "GLOAS", "data": case["data"] } });
        if kind != "BUILDER_REQUEST_AUTH" {
            body["fork_info"] = json!({
                "fork": { "previous_version": "0x06000001", "current_version": "0x07000001", "epoch": "0" },
                "genesis_validators_root": root4,
            });
        }
        cases.push((kind, body, expected));
    }
    cases
}

/// `compute_signing_root` and `compute_domain` of the specification, written here a second time with another SHA-256.
fn signing_root(object_root: &str, domain_type: &str, version: &str, genesis_validators_root: &str) -> String {
    let bytes = |hex: &str| const_hex::decode(hex).unwrap();
    let mut version = bytes(version);
    version.resize(32, 0);
    let fork_data_root = Sha256::new().chain_update(version).chain_update(bytes(genesis_validators_root)).finalize();
    let root = Sha256::new()
        .chain_update(bytes(object_root))
        .chain_update(bytes(domain_type))
        .chain_update(&fork_data_root[..28])
        .finalize();
    const_hex::encode_prefixed(root)
}

/// The key that every stack of interop keys has first.
pub fn interop_public_key() -> String {
    let secret = casemate_dev::interop::secret_key(0);
    let key = blst::min_pk::SecretKey::from_bytes(secret.as_slice()).unwrap();
    const_hex::encode_prefixed(key.sk_to_pk().to_bytes())
}
