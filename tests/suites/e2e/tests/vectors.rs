//! Recorded and published requests over real HTTP: each signed with the signature that the vector or blst alone gives.
//!
//! A vector set may vote twice for one target with one key: its messages come from several runs of a chain. Those that
//! the slashing rules refuse are asked again of a fresh signer, until all are signed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;

use casemate_e2e::vectors::{ZERO_ROOT, gloas_types, interop_public_key};
use casemate_e2e::{Answer, Stack, blst_signature};
use casemate_testdata::{files, folder, json};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");

/// The chain that a request is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chain {
    genesis_validators_root: String,
    minimal: bool,
    genesis_version: String,
    /// Capella's version, where the chain is past Deneb and exits are pinned to it (EIP-7044).
    capella: Option<String>,
}

impl Chain {
    fn toml(&self) -> String {
        let Self { genesis_validators_root, minimal, genesis_version, capella } = self;
        let later = capella.as_ref().map_or_else(String::new, |version| {
            format!("capella = {{ version = \"{version}\", epoch = 0 }}\ndeneb = {{ version = \"0xdededede\", epoch = 0 }}\n")
        });
        // Slots of a millisecond since 1970 by a clock at the end of time: no slot is in the future.
        format!(
            "preset = \"{}\"\ngenesis_time = 0\ngenesis_validators_root = \"{genesis_validators_root}\"\n\
             slot_duration_ms = 1\nslots_per_epoch = {}\n[forks]\nphase0 = {{ version = \"{genesis_version}\", epoch = 0 }}\n{later}",
            if *minimal { "minimal" } else { "mainnet" },
            if *minimal { 8 } else { 32 },
        )
    }
}

#[derive(Clone, Debug)]
enum Expect {
    /// This signature.
    Signature(String),
    /// 400, because the message's signing root is this and not the one sent.
    OtherRoot(String),
    /// 400.
    BadRequest,
}

#[derive(Clone, Debug)]
struct Case {
    name: String,
    chain: Chain,
    path: String,
    body: String,
    expect: Expect,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn genesis_validators_root(body: &Value) -> String {
    body["fork_info"]["genesis_validators_root"].as_str().unwrap_or(ZERO_ROOT).to_owned()
}

fn past_deneb(fork: &str) -> bool {
    ["deneb", "electra", "fulu", "gloas", "heze"].contains(&fork)
}

/// Where a message stands in its chain: earlier ones are asked for first.
fn height(body: &Value) -> u64 {
    let number = |v: &Value| v.as_str().and_then(|t| t.parse().ok()).or_else(|| v.as_u64());
    let block = &body["beacon_block"];
    [
        &body["attestation"]["target"]["epoch"],
        &block["block_header"]["slot"],
        &block["block"]["slot"],
        &body["block"]["slot"],
    ]
    .into_iter()
    .find_map(number)
    .unwrap_or(0)
}

/// Asks for all cases, chain by chain; `options` bring in the keys.
fn replay(cases: Vec<Case>, options: &[&str]) {
    let mut by_chain: BTreeMap<Chain, Vec<Case>> = BTreeMap::new();
    let total = cases.len();
    for case in cases {
        by_chain.entry(case.chain.clone()).or_default().push(case);
    }
    let chains = by_chain.len();
    for (chain, mut cases) in by_chain {
        cases.sort_by_key(|case| height(&serde_json::from_str(&case.body).unwrap()));
        let folder = tempfile::tempdir().unwrap();
        let network = folder.path().join("network.toml");
        fs::write(&network, chain.toml()).unwrap();
        let mut all =
            vec!["--network", network.to_str().unwrap(), "--plain", "--fixed-time-ms", "18446744073709551615"];
        all.extend_from_slice(options);
        while !cases.is_empty() {
            let stack = Stack::start(PROGRAM, &all);
            let mut client = stack.client();
            let before = cases.len();
            cases.retain(|case| !judge(case, &client.post(&case.path, &case.body)));
            assert!(cases.len() < before, "refused even by a fresh signer: {:?}", cases[0]);
        }
    }
    println!("{total} requests on {chains} chains");
}

/// Whether the case is done; `false` where the slashing rules refused it after another case.
fn judge(case: &Case, answer: &Answer) -> bool {
    let name = &case.name;
    match &case.expect {
        Expect::Signature(signature) => {
            if answer.status == 412 {
                let error = answer.error();
                assert!(error.contains("last signed"), "{name}: {error}");
                return false;
            }
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
            assert_eq!(answer.signature(), *signature, "{name}");
        }
        Expect::OtherRoot(root) => {
            assert_eq!(answer.status, 400, "{name}: {answer:?}");
            assert!(answer.error().contains(root.as_str()), "{name}: {}", answer.error());
        }
        Expect::BadRequest => {
            assert_eq!(answer.status, 400, "{name}: {answer:?}");
            answer.error();
        }
    }
    true
}

#[test]
fn requests_of_lodestar_from_phase0_to_heze_in_both_presets() {
    let Some(folder) = folder("lodestar") else { return };
    let mut cases = Vec::new();
    for path in files(&folder, ".json") {
        let case = json(&path);
        let Some(body) = case["request"].get("body").filter(|b| b.get("type").is_some()) else { continue };
        let name = path.strip_prefix(&folder).unwrap().display().to_string();
        let expected = &case["expected"];
        let fork = text(&case["fork"]);
        let exit = body["type"] == "VOLUNTARY_EXIT";
        let chain = Chain {
            genesis_validators_root: genesis_validators_root(body),
            minimal: path.components().any(|c| c.as_os_str() == "minimal"),
            genesis_version: text(&case["genesis_fork_version"]),
            capella: (exit && past_deneb(&fork)).then(|| text(&expected["fork_version_used"])),
        };
        // The recorded signature and blst's own over the recorded root are one.
        let secret = const_hex::decode_to_array(text(&case["key"]["secret_key"])).unwrap();
        let signature = text(&expected["signature"]);
        assert_eq!(blst_signature(&secret, &text(&expected["signing_root"])), signature, "{name}");
        let raw = case["request"]["raw_body"].as_str().map_or_else(|| body.to_string(), ToOwned::to_owned);
        let known = body["type"] != "BLS_TO_EXECUTION_CHANGE";
        let expect = if known { Expect::Signature(signature) } else { Expect::BadRequest };
        cases.push(Case { name, chain, path: text(&case["request"]["path"]), body: raw, expect });
    }
    assert!(!cases.is_empty());
    replay(cases, &["--interop-keys", "64"]);
}

#[test]
fn examples_of_the_openapi_documents() {
    let Some(folder) = folder("signing") else { return };
    let path = format!("/api/v1/eth2/sign/{}", interop_public_key());
    let secret = casemate_dev::interop::secret_key(0);
    let mut cases = Vec::new();
    for example in json(&folder.join("web3signer-openapi-examples.json")).as_array().unwrap() {
        // Two of the examples are written in camel case, which no client sends.
        let body = snake_case(&example["request"]);
        let presets = example["matches_preset"].as_array().unwrap();
        let minimal = !presets.is_empty() && !presets.contains(&json!("mainnet"));
        let chain = Chain {
            genesis_validators_root: genesis_validators_root(&body),
            minimal,
            genesis_version: "0x00000001".into(),
            capella: None,
        };
        let published = text(&example["published_signing_root"]);
        let expect = if presets.is_empty() {
            // Published with a root that is of no reading of the message.
            Expect::OtherRoot(published)
        } else {
            Expect::Signature(blst_signature(&secret, &published))
        };
        let name = format!("{} {}", example["source"], example["example"]);
        cases.push(Case { name, chain, path: path.clone(), body: body.to_string(), expect });
    }
    assert!(!cases.is_empty());
    replay(cases, &[]);
}

#[test]
fn fixtures_of_teku() {
    let Some(folder) = folder("client-requests") else { return };
    let path = format!("/api/v1/eth2/sign/{}", interop_public_key());
    let secret = casemate_dev::interop::secret_key(0);
    let index = json(&folder.join("teku/INDEX.json"));
    let mut cases = Vec::new();
    for (name, entry) in index.as_object().unwrap() {
        let body = json(&folder.join("teku").join(name));
        let root = |preset: &str| text(&entry["recomputed"][preset]);
        // A block of one preset does not parse under the other.
        let minimal = !root("mainnet").starts_with("0x");
        let computed = root(if minimal { "minimal" } else { "mainnet" });
        let chain = Chain {
            genesis_validators_root: genesis_validators_root(&body),
            minimal: minimal && computed.starts_with("0x"),
            genesis_version: "0x00000000".into(),
            capella: None,
        };
        let expect = if !computed.starts_with("0x") {
            Expect::BadRequest
        } else if entry["consistent"] == true {
            Expect::Signature(blst_signature(&secret, &text(&body["signingRoot"])))
        } else if body["type"] == "VALIDATOR_REGISTRATION" {
            // Its root was recomputed with a genesis version that the fixture does not name.
            Expect::BadRequest
        } else {
            Expect::OtherRoot(computed)
        };
        cases.push(Case { name: name.clone(), chain, path: path.clone(), body: body.to_string(), expect });
    }
    assert!(!cases.is_empty());
    replay(cases, &[]);
}

#[test]
fn requests_of_newer_lodestar_signed_by_keystores_of_nimbus() {
    let Some(folder) = folder("client-requests") else { return };
    let constants = json(&folder.join("nimbus/constants.json"));
    let (public, secret) = (text(&constants["ValidatorPubKey1"]), text(&constants["ValidatorPrivateKey1"]));
    let secret = const_hex::decode_to_array(secret).unwrap();
    let mut cases = Vec::new();
    for recorded in json(&folder.join("lodestar/recorded-requests.json")).as_array().unwrap() {
        if recorded["method"] != "POST" || !text(&recorded["url"]).contains(&public) {
            continue;
        }
        let body = &recorded["body"];
        let label = text(&recorded["label"]);
        let hoodi = label.starts_with("hoodi");
        let exit = body["type"] == "VOLUNTARY_EXIT";
        let versions = if hoodi { ("0x10000910", "0x40000910") } else { ("0x00000000", "0x03000000") };
        let fork = label.split('/').nth(1).unwrap();
        let chain = Chain {
            genesis_validators_root: genesis_validators_root(body),
            minimal: false,
            genesis_version: versions.0.into(),
            capella: (exit && past_deneb(fork)).then(|| versions.1.into()),
        };
        let expect = Expect::Signature(blst_signature(&secret, &text(&body["signingRoot"])));
        let path = text(&recorded["url"]);
        cases.push(Case { name: label, chain, path, body: text(&recorded["raw_body"]), expect });
    }
    assert!(!cases.is_empty());
    let keys = tempfile::tempdir().unwrap();
    let (keystores, password) = (keys.path().join("keys"), keys.path().join("password"));
    fs::create_dir(&keystores).unwrap();
    fs::copy(folder.join("nimbus/ValidatorKeystore1.json"), keystores.join("1.json")).unwrap();
    casemate_e2e::write_secret(&password, &text(&constants["KeystorePassword"]));
    let (keystores, password) = (keystores.to_str().unwrap(), password.to_str().unwrap());
    replay(cases, &["--keystores", keystores, "--passwords", password, "--accept-unknown-history"]);
}

/// The proofs of a `verifying-web3signer` request do no harm where no policy asks for them.
#[test]
fn blocks_with_proofs_as_nimbus_sends_them() {
    let Some(folder) = folder("client-requests") else { return };
    let path = format!("/api/v1/eth2/sign/{}", interop_public_key());
    let secret = casemate_dev::interop::secret_key(0);
    let file = folder.join("nimbus/derived-verifying-web3signer-requests.json");
    let mut cases = Vec::new();
    for derived in json(&file).as_array().unwrap() {
        let body = &derived["request"];
        cases.push(Case {
            name: text(&derived["name"]),
            chain: Chain {
                genesis_validators_root: genesis_validators_root(body),
                minimal: false,
                genesis_version: "0x00000000".into(),
                capella: None,
            },
            path: path.clone(),
            body: body.to_string(),
            expect: Expect::Signature(blst_signature(&secret, &text(&body["signingRoot"]))),
        });
    }
    assert!(!cases.is_empty());
    replay(cases, &[]);
}

#[test]
fn gloas_types_by_lodestars_roots() {
    let folder = tempfile::tempdir().unwrap();
    let network = folder.path().join("network.toml");
    fs::write(&network, casemate_e2e::requests::NETWORK).unwrap();
    let options = ["--network", network.to_str().unwrap(), "--plain", "--fixed-time-ms", "18446744073709551615"];
    let stack = Stack::start(PROGRAM, &options);
    let mut client = stack.client();
    let path = format!("/api/v1/eth2/sign/{}", interop_public_key());
    for (kind, mut body, expected) in gloas_types() {
        assert_eq!(client.post(&path, &body.to_string()).signature(), expected, "{kind}");
        body[kind.to_lowercase()]["version"] = json!("FULU");
        assert_eq!(client.post(&path, &body.to_string()).status, 400, "{kind} before Gloas");
    }
}

fn snake_case(value: &Value) -> Value {
    let snake = |key: &str| {
        // The one camel case name of the API.
        if key == "signingRoot" {
            return key.to_owned();
        }
        key.chars().fold(String::new(), |mut out, c| {
            if c.is_ascii_uppercase() {
                out.push('_');
            }
            out.push(c.to_ascii_lowercase());
            out
        })
    };
    match value {
        Value::Object(fields) => fields.iter().map(|(k, v)| (snake(k), snake_case(v))).collect(),
        Value::Array(elements) => elements.iter().map(snake_case).collect(),
        other => other.clone(),
    }
}
