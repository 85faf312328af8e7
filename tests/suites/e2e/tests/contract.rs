//! What operators and their tools have besides duties: the key manager API, the signing log, history in and out, exits, fee recipients,
//! and the description of it all.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use casemate::Exit;
use casemate_e2e::bench::keys;
use casemate_e2e::requests::{attestation, block, fork_info, randao, root};
use casemate_e2e::stack::eventually;
use casemate_e2e::{Answer, Bench, Client, Stack};
use rustix::process::Signal;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const FEES: &str = "0x00000000000000000000000000000000000000fe";

/// A chain whose slots take long: what is signed now may be signed for the whole test.
fn bench() -> Bench {
    Bench::new(PROGRAM, 12_000, 32)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn policy(bench: &Bench, toml: &str) -> PathBuf {
    let path = bench.folder.path().join("policy.toml");
    fs::write(&path, toml).unwrap();
    path
}

/// The API of key managers.
struct Manager {
    client: Client,
    token: String,
}

impl Manager {
    fn of(stack: &Stack, file: &Path) -> Self {
        Self { client: stack.client(), token: fs::read_to_string(file).unwrap() }
    }

    fn ask(&mut self, method: &str, body: &Value) -> Answer {
        let authorization = format!("Bearer {}", self.token);
        self.ask_with(method, &[("Authorization", &authorization)], body)
    }

    fn ask_with(&mut self, method: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let len = body.len().to_string();
        let headers = [headers, &[("Content-Length", len.as_str())]].concat();
        self.client.send(method, "/eth/v1/keystores", &headers, body.as_bytes()).unwrap()
    }

    fn post(&mut self, keystores: &[String], passwords: &[&str], slashing: Option<&str>) -> Answer {
        let mut body = json!({ "keystores": keystores, "passwords": passwords });
        if let Some(slashing) = slashing {
            body["slashing_protection"] = slashing.into();
        }
        self.ask("POST", &body)
    }
}

fn statuses(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let data = answer.json()["data"].clone();
    data.as_array().unwrap().iter().map(|one| one["status"].as_str().unwrap().to_owned()).collect()
}

fn history(keys: &[(&str, u64, u64, u64)]) -> String {
    let data: Vec<Value> = keys
        .iter()
        .map(|(key, slot, source, target)| {
            json!({
                "pubkey": key,
                "signed_blocks": [{ "slot": slot.to_string() }],
                "signed_attestations": [{ "source_epoch": source.to_string(), "target_epoch": target.to_string() }],
            })
        })
        .collect();
    let metadata = json!({ "interchange_format_version": "5", "genesis_validators_root": root(4) });
    json!({ "metadata": metadata, "data": data }).to_string()
}

#[test]
fn the_key_manager_api_is_for_the_token_and_takes_what_operators_have_signed() {
    let bench = bench();
    let token = bench.folder.path().join("token");
    let stack = bench.start(&["--interop-keys", "2", "--", "--key-manager-token-file", text(&token)]);
    let mut manager = Manager::of(&stack, &token);
    assert_eq!(manager.token.len(), 64);
    let wrong = format!("Bearer {}", "0".repeat(64));
    for method in ["GET", "POST", "DELETE"] {
        for (headers, status) in [
            (&[][..], 401),
            (&[("Authorization", "Bearer")], 401),
            (&[("Authorization", "Bearer ")], 401),
            (&[("Authorization", "Basic YTpi")], 401),
            (&[("Authorization", &wrong)], 403),
        ] {
            let answer = manager.ask_with(method, headers, &json!({}));
            assert_eq!(answer.status, status, "{method} {headers:?}: {answer:?}");
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{answer:?}");
            answer.error();
        }
    }
    let listed = manager.ask("GET", &Value::Null).json()["data"].clone();
    let signing = keys(&stack);
    let names: Vec<&str> =
        listed.as_array().unwrap().iter().map(|key| key["validating_pubkey"].as_str().unwrap()).collect();
    assert_eq!(names, signing);
    assert!(listed.as_array().unwrap().iter().all(|key| key["readonly"] == true), "{listed}");

    // A keystore, and the reason why it is not taken.
    let keystore = json!({ "version": 4, "pubkey": "ab".repeat(48), "crypto": {} }).to_string();
    let refused = manager.post(std::slice::from_ref(&keystore), &["x"], None);
    assert_eq!(refused.status, 403);
    assert!(refused.error().contains("this host would see the secret keys"), "{refused:?}");
    for (keystores, passwords, slashing) in
        [(1, 0, None), (0, 1, None), (0, 0, Some("{")), (0, 0, Some(&*history(&[]).replace("0404", "0405")))]
    {
        let (keystores, passwords) = (vec![keystore.clone(); keystores], vec!["x"; passwords]);
        let answer = manager.post(&keystores, &passwords, slashing);
        assert_eq!(answer.status, 400, "{answer:?}");
        answer.error();
    }
    assert_eq!(manager.ask("POST", &json!({ "keystores": 5 })).status, 400);
    assert_eq!(statuses(&manager.post(&[], &[], None)), [""; 0]);

    // What operators have signed is taken, once for what it is and then as what is there already.
    let raw = bench.folder.path().join("raw-keys");
    casemate_e2e::write_secret(&raw, &"11".repeat(32));
    let envelope = |name: &str| {
        let file = bench.folder.path().join(name);
        let words =
            ["keys", "import", "--raw-keys", text(&raw), "--accept-unknown-history", "--command-out", text(&file)];
        let (exit, said) = bench.casemate(&stack, &words, true);
        assert_eq!(exit, Exit::Accepted, "{said}");
        fs::read_to_string(file).unwrap()
    };
    let first = envelope("first.json");
    assert_eq!(statuses(&manager.post(std::slice::from_ref(&first), &[""], None)), ["imported"]);
    assert_eq!(keys(&stack).len(), 3);
    let replayed = manager.post(std::slice::from_ref(&first), &[""], None);
    assert_eq!(statuses(&replayed), ["error"]);
    assert!(replayed.body.contains("counter"), "{replayed:?}");
    assert_eq!(
        statuses(&manager.post(&[envelope("again.json"), "{}".into()], &["", ""], None)),
        ["duplicate", "error"]
    );
    // A keystore beside it is an error of its own.
    let mixed = manager.post(&[keystore, envelope("third.json")], &["x", ""], None);
    assert_eq!(statuses(&mixed), ["error", "duplicate"]);

    // Deleting is for operators; nothing is told that could be taken for leave to sign elsewhere.
    let absent = format!("0x{}", "ab".repeat(48));
    let kept = manager.ask("DELETE", &json!({ "pubkeys": [signing[0], absent] }));
    assert_eq!(statuses(&kept), ["error", "not_found"]);
    assert!(kept.body.contains("casemate keys delete"), "{kept:?}");
    let told: Value = serde_json::from_str(kept.json()["slashing_protection"].as_str().unwrap()).unwrap();
    assert_eq!(told["data"], json!([]));
    assert_eq!(keys(&stack).len(), 3);
    assert_eq!(manager.ask("DELETE", &json!({ "pubkeys": ["0x11"] })).status, 400);
    // Once an operator has deleted it, it is told what it has signed.
    let list = bench.folder.path().join("keys");
    fs::write(&list, &signing[0]).unwrap();
    let (exit, said) = bench.casemate(&stack, &["keys", "delete", "--yes", "--public-keys", text(&list)], true);
    assert_eq!(exit, Exit::Accepted, "{said}");
    let gone = manager.ask("DELETE", &json!({ "pubkeys": [signing[0]] }));
    assert_eq!(statuses(&gone), ["not_active"]);
    assert!(gone.json()["slashing_protection"].as_str().unwrap().contains(&signing[0]), "{gone:?}");
}

#[test]
fn without_a_token_file_there_is_no_key_manager_api() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1"]);
    let answer = stack.client().get("/eth/v1/keystores", &[("Authorization", "Bearer x")]);
    assert_eq!(answer.status, 404);
    assert!(answer.error().contains("--key-manager-token-file"));
}

#[test]
fn a_policy_can_let_the_key_manager_bring_keystores_and_take_keys_away() {
    let Some(data) = casemate_testdata::folder("signing/keystore/eip-2335") else { return };
    let bench = bench();
    let token = bench.folder.path().join("token");
    let policy = policy(&bench, "key_manager_import = true\nkey_manager_delete = true\n");
    let stack = bench.start(&[
        "--interop-keys",
        "1",
        "--policy",
        text(&policy),
        "--",
        "--key-manager-token-file",
        text(&token),
    ]);
    let mut manager = Manager::of(&stack, &token);
    let mut keystore: Value = casemate_testdata::json(&data.join("test-pbkdf2.json"));
    keystore = keystore.get("json").cloned().unwrap_or(keystore);
    let key = format!("0x{}", keystore["pubkey"].as_str().unwrap());
    let keystore = keystore.to_string();
    // The password of the EIP: the vault gets it normalised.
    let password = "𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑";
    let now = bench.now();
    let past = history(&[(&key.to_uppercase().replace("0X", "0x"), now.0, now.1, now.1)]);
    let tried = manager.post(&[keystore.clone(), keystore.clone()], &["wrong", password], None);
    assert_eq!(statuses(&tried), ["error", "error"]);
    assert!(tried.body.contains("a key whose past is not known is not taken"), "{tried:?}");
    let brought = manager.post(&[keystore.clone(), keystore.clone()], &["wrong", password], Some(&past));
    assert_eq!(statuses(&brought), ["error", "imported"]);
    assert!(brought.body.contains("wrong password"), "{brought:?}");
    assert_eq!(statuses(&manager.post(std::slice::from_ref(&keystore), &[password], Some(&past))), ["duplicate"]);
    let listed = manager.ask("GET", &Value::Null).json()["data"].clone();
    assert!(listed.as_array().unwrap().iter().any(|one| one["validating_pubkey"] == key && one["readonly"] == false));
    let mut client = stack.client();
    assert_eq!(client.sign(&key, &block(now.0, 1)).status, 412);
    // Deleted, it signs no more, and its past is told; so it is when asked again.
    for word in ["deleted", "not_active"] {
        let gone = manager.ask("DELETE", &json!({ "pubkeys": [key] }));
        assert_eq!(statuses(&gone), [word]);
        let told: Value = serde_json::from_str(gone.json()["slashing_protection"].as_str().unwrap()).unwrap();
        assert_eq!(told["metadata"]["genesis_validators_root"], root(4));
        assert_eq!(told["data"][0]["pubkey"], key);
        assert_eq!(told["data"][0]["signed_blocks"][0]["slot"], now.0.to_string());
        assert_eq!(client.sign(&key, &block(now.0 + 1, 1)).status, 404);
    }
    // It comes back to its past without being told it.
    assert_eq!(statuses(&manager.post(&[keystore], &[password], None)), ["imported"]);
    assert_eq!(client.sign(&key, &block(now.0, 1)).status, 412);
}

// The signing log.

/// `casemate log verify`, with this stack's pins.
fn verify(bench: &Bench, path: &Path, more: &[&str]) -> (Exit, String) {
    let chain = bench.chain();
    let nsm = |name: &str| chain.join("nsm").join(name).to_str().unwrap().to_owned();
    let (root, measurements) = (nsm("root.pem"), nsm("measurements.json"));
    let words = ["casemate", "log", "verify", text(path), "--root", &root, "--measurements", &measurements];
    let arguments: Vec<OsString> = [&words, more].concat().iter().map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = casemate::run(&arguments, &mut out, &mut err);
    (exit, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    files
}

/// Records of duties: the stack's own commands have records too.
fn records(folder: &Path) -> usize {
    let duty = |line: &&str| line.starts_with('+') && !line.contains(" command ");
    let count = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().filter(duty).count();
    files(folder).iter().map(count).sum()
}

#[test]
fn the_signing_log_shows_what_was_removed_reordered_and_changed() {
    let bench = bench();
    let log = bench.folder.path().join("log");
    let stack = bench.start(&["--interop-keys", "2", "--", "--signing-log", text(&log)]);
    let key = keys(&stack)[0].clone();
    let mut client = stack.client();
    let (slot, epoch) = bench.now();
    client.sign(&key, &block(slot, 1)).signature();
    client.sign(&key, &attestation(epoch - 1, epoch, 1)).signature();
    assert_eq!(client.sign(&key, &block(slot, 2)).status, 412);
    // A page of its own, with a head.
    eventually("the first records", || log.exists() && records(&log) == 3);
    for n in 0..300 {
        client.sign(&key, &randao(epoch - n % 2)).signature();
    }
    eventually("the log to be written", || log.exists() && records(&log) == 303);
    let file = files(&log)[0].clone();
    let whole = fs::read_to_string(&file).unwrap();
    for words in [
        format!(" block {slot} 0x"),
        format!(" attestation {} {epoch} 0x", epoch - 1),
        "refused 0x".to_owned(),
        format!("block refused: slot {slot} is not above the last signed slot {slot}"),
    ] {
        assert!(whole.contains(&words), "the log does not say {words:?}:\n{}", &whole[..4000]);
    }
    let url = format!("http://{}", stack.address);
    for more in [&[][..], &["--url", &url]] {
        let (exit, said) = verify(&bench, &log, more);
        assert_eq!(exit, Exit::Accepted, "{said}");
        assert!(said.contains("302 signed, 1 refused") && said.contains("whole and in order"), "{said}");
    }

    // What a parent may do to it.
    let lines: Vec<&str> = whole.lines().collect();
    let at = |prefix: &str| lines.iter().position(|line| line.starts_with(prefix)).unwrap();
    // A record in the midst of a page, here called the tenth.
    let tenth = (10..lines.len() - 1)
        .find(|n| lines[n - 1..=n + 1].iter().all(|line| line.starts_with("+ ")) && !lines[*n].contains(" refused "))
        .unwrap();
    let number: u64 = lines[tenth].split(' ').nth(1).unwrap().parse().unwrap();
    let missing = format!("records {number} to {number} are missing");
    let twice = format!("record {number} stands behind record {number}");
    let (time, another_time) = (format!("+ {number} 1"), format!("+ {number} 2"));
    // The first may be of no record yet.
    let head = lines.iter().position(|line| line.starts_with("= ") && !line.starts_with("= 0 ")).unwrap();
    let without = |n: usize| [&lines[..n], &lines[n + 1..]].concat();
    let swapped = {
        let mut lines = lines.clone();
        lines.swap(tenth, tenth + 1);
        lines
    };
    let changed = |n: usize, from: &str, to: &str| {
        let line = lines[n].replacen(from, to, 1);
        assert_ne!(line, lines[n]);
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        lines[n] = line;
        lines
    };
    let refusal = lines.iter().position(|line| line.contains(" refused ")).unwrap();
    let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let copy = bench.folder.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for (what, tampered, word) in [
        ("a record removed", owned(without(tenth)), &*missing),
        // As a gap or as a head that stands too early, by where the page ends.
        (
            "the first record removed",
            owned(without(at("+ 1 "))),
            "records 1 to 1 are missing|a head of record 1 stands behind record 0",
        ),
        ("records in another order", owned(swapped), &missing),
        ("a record twice", owned([&lines[..=tenth], &lines[tenth..]].concat()), &twice),
        ("another time", changed(tenth, &time, &another_time), "not those that the enclave has signed for"),
        ("another key", changed(tenth, "0x", "0x0"), "no line of a signing log"),
        ("another outcome", changed(refusal, "is not above", "is just above"), "not what its code says"),
        (
            "a refusal as a signature",
            {
                let line = lines[refusal].split(" refused ").next().unwrap().to_owned() + " signed";
                let mut all = owned(lines.clone());
                all[refusal] = line;
                all
            },
            "not those that the enclave has signed for",
        ),
        ("a head removed and the next record with it", owned([&lines[..head], &lines[head + 2..]].concat()), "missing"),
        (
            "another signature",
            {
                let mut all = owned(lines.clone());
                let end = all[head].len() - 4;
                let other = if all[head].ends_with("0000") { "1111" } else { "0000" };
                all[head].replace_range(end.., other);
                all
            },
            "not signed by the enclave's key",
        ),
        ("no head at the end", owned(lines[..tenth].to_vec()), "no signed head"),
        ("half a line", owned([&lines[..tenth], &["+ 10 17"]].concat()), "no line of a signing log"),
        ("no beginning", owned(lines[1..].to_vec()), "the first line"),
    ] {
        let path = copy.join(file.file_name().unwrap());
        fs::write(&path, tampered.join("\n") + "\n").unwrap();
        let (exit, said) = verify(&bench, &copy, &[]);
        assert_eq!(exit, Exit::Refused, "{what}: {said}");
        assert!(word.split('|').any(|word| said.contains(word)), "{what}: {said}");
    }
    // What another version has worded in another way is taken by its code, where the operator says so.
    let path = copy.join(file.file_name().unwrap());
    fs::write(&path, changed(refusal, "is not above", "is just above").join("\n") + "\n").unwrap();
    let (exit, said) = verify(&bench, &copy, &["--accept-reworded"]);
    assert!(exit == Exit::Accepted && said.contains("note: 1 refusals have another sentence"), "{said}");
    // That the end is missing the enclave alone can tell.
    let path = copy.join(file.file_name().unwrap());
    fs::write(&path, lines[..=head].join("\n") + "\n").unwrap();
    assert_eq!(verify(&bench, &copy, &[]).0, Exit::Accepted);
    let (exit, said) = verify(&bench, &copy, &["--url", &url]);
    assert_eq!(exit, Exit::Refused);
    assert!(said.contains("are missing at the end"), "{said}");
    // One file alone may begin with any head: then it is said what stood before.
    fs::write(&path, [&lines[..1], &lines[head..]].concat().join("\n") + "\n").unwrap();
    let (exit, said) = verify(&bench, &copy, &[]);
    assert_eq!(exit, Exit::Refused);
    assert!(said.contains("the files before this one are not here"), "{said}");
    let (exit, said) = verify(&bench, &path, &[]);
    assert_eq!(exit, Exit::Accepted, "{said}");
    assert!(said.contains("not in this file; ") && !said.contains("whole"), "{said}");
    // Other pins, another enclave.
    let pcr = "11".repeat(48);
    let chain = bench.chain();
    let root = chain.join("nsm/root.pem");
    let words = [
        "casemate",
        "log",
        "verify",
        text(&log),
        "--root",
        text(&root),
        "--pcr0",
        &pcr,
        "--pcr1",
        &pcr,
        "--pcr2",
        &pcr,
    ];
    let mut out = Vec::new();
    assert_eq!(casemate::run(&words.map(OsString::from), &mut out, &mut Vec::new()), Exit::Refused);
    assert!(String::from_utf8(out).unwrap().contains("its attestation document is refused"));
}

// What an operator sees.

/// `casemate` with the profile that the stack has written, and nothing else.
fn by_profile(bench: &Bench, words: &[&str]) -> (Exit, String) {
    let profiles = bench.chain().join("profiles.toml");
    let front = ["casemate", "--profiles", text(&profiles), "--profile", "dev"];
    let arguments: Vec<OsString> = [&front, words].concat().iter().map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = casemate::run(&arguments, &mut out, &mut err);
    (exit, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
}

fn json_of(bench: &Bench, words: &[&str]) -> Value {
    let (exit, said) = by_profile(bench, words);
    assert_eq!(exit, Exit::Accepted, "{words:?}: {said}");
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{words:?}: {e}: {said}"))
}

#[test]
fn the_stacks_profile_is_all_that_an_operator_needs() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "3", "--enclaves", "2"]);
    let key = keys(&stack)[0].clone();
    let (exit, said) = by_profile(&bench, &["status"]);
    assert!(exit == Exit::Accepted && said.contains("HOLDER"), "{said}");
    // Every enclave of the group is a row, each proved by itself.
    let group = json_of(&bench, &["status", "--all", "--json"]);
    let standings: Vec<&str> = group["enclaves"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["status"]["fence"]["standing"].as_str().unwrap())
        .collect();
    assert_eq!(standings.len(), 2, "{group}");
    assert!(standings.contains(&"holding"), "{group}");
    assert_eq!(group["faults"], json!([]), "{group}");
    let (_, said) = by_profile(&bench, &["status", "--all"]);
    assert!(said.contains("PROXY") && said.contains("HOLDER") && said.contains("2 enclaves asked"), "{said}");

    // The measured configuration of the profile is compared, and told in words.
    let (exit, said) = by_profile(&bench, &["attest", "fetch"]);
    assert!(exit == Exit::Accepted && said.contains("a command takes 1 of 1 operator"), "{said}");
    assert!(said.contains("EXITS ARE SIGNED FOR ANYONE"), "{said}");
    let changed = fs::read_to_string(bench.chain().join("casemate.toml")).unwrap() + "\n";
    let changed = bench.file("changed.toml", &changed);
    let (exit, said) = by_profile(&bench, &["attest", "fetch", "--config", &changed]);
    assert!(exit == Exit::Refused && said.contains("every byte counts"), "{said}");
    assert!(!said.contains("a command takes"), "what is not the enclave's is not told as its policy: {said}");

    // Each key with its history, its fees, how it came and what is ordered.
    let (slot, _) = bench.now();
    assert_eq!(stack.client().sign(&key, &block(slot, 1)).status, 200);
    let file = bench.file("one-key", &key);
    let address = format!("0x{}", "ab".repeat(20));
    for words in [
        &["fee-recipient", "--public-keys", &file, "--address", &address][..],
        &["exit", "--validator", &format!("{key}=7"), "--out", text(bench.folder.path())],
    ] {
        let (exit, said) = by_profile(&bench, words);
        assert_eq!(exit, Exit::Accepted, "{words:?}: {said}");
    }
    let long = json_of(&bench, &["keys", "--long", "--json"]);
    let row = long.as_array().unwrap().iter().find(|row| row["public_key"] == key.as_str()).unwrap();
    assert_eq!((long.as_array().unwrap().len(), &row["fee_recipient"]), (3, &json!(address)), "{long}");
    assert_eq!((&row["origin"], &row["ordered_exit"]["validator_index"]), (&json!("imported"), &json!(7)), "{long}");
    assert!(row["block_slot"].as_u64().unwrap() >= slot, "{long}");
    let (_, said) = by_profile(&bench, &["keys", "list", "--long"]);
    assert!(said.contains("exit of validator 7 until epoch") && said.contains("as configured"), "{said}");
}

#[test]
fn operators_commands_are_records_of_the_signed_log() {
    let bench = bench();
    let log = bench.folder.path().join("log");
    let stack = bench.start(&["--interop-keys", "2", "--", "--signing-log", text(&log)]);
    let key = keys(&stack)[0].clone();
    let file = bench.file("one-key", &key);
    let (exit, said) = by_profile(&bench, &["keys", "delete", "--yes", "--public-keys", &file]);
    assert_eq!(exit, Exit::Accepted, "{said}");
    let commands = || {
        let (exit, said) = by_profile(&bench, &["log", "export", text(&log), "--commands"]);
        assert_eq!(exit, Exit::Accepted, "{said}");
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    eventually("the command's record", || log.exists() && !files(&log).is_empty() && commands().len() == 3);
    let kinds: Vec<_> = commands().iter().map(|one| one["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["fence_init", "import", "delete"]);
    let deleted = &commands()[2];
    let operator = casemate::operator_key(&bench.chain().join("operator.pem")).unwrap().to_string();
    assert_eq!(
        (&deleted["operators"], &deleted["keys"], &deleted["result"]),
        (&json!([operator]), &json!(1), &json!("done"))
    );
    // Without the measured configuration operators are places in it; another one names nobody.
    let show = |more: &[&str]| {
        let words = [&["casemate", "log", "show", text(&log), "--commands"], more].concat();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = casemate::run(&words.iter().map(OsString::from).collect::<Vec<_>>(), &mut out, &mut err);
        (exit, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
    };
    let (exit, said) = show(&[]);
    assert!(exit == Exit::Accepted && said.contains("COMMAND delete") && said.contains("by #1  done"), "{said}");
    let other = fs::read_to_string(bench.chain().join("casemate.toml")).unwrap() + "\n";
    let (exit, said) = show(&["--config", &bench.file("other.toml", &other)]);
    assert!(exit == Exit::Refused && said.contains("had the configuration with SHA-256"), "{said}");
    let csv = bench.path("log.csv");
    let (exit, said) = by_profile(&bench, &["log", "export", text(&log), "--format", "csv", "--out", &csv]);
    assert!(exit == Exit::Accepted && said.contains("records written to"), "{said}");
    assert!(fs::read_to_string(&csv).unwrap().starts_with("boot_nonce,sequence,"));
    // What is written while someone follows.
    let (exit, said) = by_profile(&bench, &["log", "follow", text(&log), "--all", "--seconds", "0"]);
    assert!(exit == Exit::Accepted && said.contains("COMMAND fence_init"), "{said}");
    let (exit, said) = by_profile(&bench, &["log", "verify", text(&log)]);
    assert!(exit == Exit::Accepted && said.contains("3 commands"), "{said}");
    // Another outcome is found.
    let path = files(&log)[0].clone();
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replacen(" command delete ", " command import ", 1)).unwrap();
    let (exit, said) = by_profile(&bench, &["log", "verify", text(&log)]);
    assert!(exit == Exit::Refused && said.contains("not those that the enclave has signed for"), "{said}");
    // The proxy's own log names them too.
    assert!(stack.log().contains("kind=\"delete\"") && stack.log().contains(&operator), "{}", stack.log());
}

#[test]
fn the_signing_log_goes_on_after_the_proxy_and_the_enclave_have_ended() {
    let bench = bench();
    let log = bench.folder.path().join("log");
    let stack = bench.start(&["--interop-keys", "1", "--", "--signing-log", text(&log)]);
    let key = keys(&stack)[0].clone();
    let epoch = bench.now().1;
    let sign = |epoch: u64| {
        let body = randao(epoch);
        stack.until("a signature", |client| client.sign(&key, &body), |answer| answer.status == 200);
    };
    sign(epoch);
    eventually("the first record", || log.exists() && records(&log) >= 1);
    let before = records(&log);
    // The proxy is killed in the midst of a line.
    let killed = stack.processes("proxy");
    Stack::signal(killed[0], Signal::KILL);
    let file = files(&log)[0].clone();
    let mut torn = fs::read_to_string(&file).unwrap();
    torn.push_str("+ 2 179");
    fs::write(&file, torn).unwrap();
    eventually("another proxy", || {
        let runs = stack.processes("proxy");
        !runs.is_empty() && runs != killed && Client::try_connect(stack.address).is_some()
    });
    sign(epoch - 1);
    eventually("the next record", || records(&log) > before);
    let url = format!("http://{}", stack.address);
    let (exit, said) = verify(&bench, &log, &["--url", &url]);
    assert_eq!(exit, Exit::Accepted, "{said}");
    assert_eq!(files(&log).len(), 1);
    // The next boot has a file of its own.
    Stack::signal(stack.processes("vault")[0], Signal::KILL);
    sign(epoch - 2);
    eventually("the second file", || files(&log).len() == 2);
    assert!(stack.stop().success());
    let (exit, said) = verify(&bench, &log, &[]);
    assert_eq!(exit, Exit::Accepted, "{said}");
    assert!(said.contains("of 2 boots"), "{said}");
}

#[test]
fn files_of_the_signing_log_follow_on_each_other_and_each_stands_alone() {
    let bench = bench();
    let log = bench.folder.path().join("log");
    let size = "40000";
    let stack =
        bench.start(&["--interop-keys", "1", "--", "--signing-log", text(&log), "--signing-log-file-bytes", size]);
    let key = keys(&stack)[0].clone();
    let epoch = bench.now().1;
    let mut client = stack.client();
    for n in 0..600 {
        client.sign(&key, &randao(epoch - n % 2)).signature();
    }
    eventually("the log to be written", || log.exists() && records(&log) == 600);
    let all = files(&log);
    assert!(all.len() >= 3, "{all:?}");
    let (exit, said) = verify(&bench, &log, &[]);
    assert_eq!(exit, Exit::Accepted, "{said}");
    assert!(said.contains("600 signed, 0 refused"), "{said}");
    for file in &all {
        let (exit, said) = verify(&bench, file, &[]);
        assert_eq!(exit, Exit::Accepted, "{said}");
    }
    // One in the middle, or the first one, is missed where all should be.
    for missing in [0, 1] {
        let copy = bench.folder.path().join(format!("copy-{missing}"));
        fs::create_dir(&copy).unwrap();
        for (_, file) in all.iter().enumerate().filter(|(n, _)| *n != missing) {
            fs::copy(file, copy.join(file.file_name().unwrap())).unwrap();
        }
        let (exit, said) = verify(&bench, &copy, &[]);
        assert_eq!(exit, Exit::Refused, "{said}");
    }
    // A damaged file is put aside when the proxy starts again, and an archive beside it is left alone.
    let last = all.last().unwrap();
    let mut archive = last.as_os_str().to_owned();
    archive.push(".gz");
    fs::write(&archive, "packed").unwrap();
    let whole = fs::read_to_string(last).unwrap();
    fs::write(last, whole.replacen("+ ", "? ", 1)).unwrap();
    let killed = stack.processes("proxy");
    Stack::signal(killed[0], Signal::KILL);
    let mut damaged = last.as_os_str().to_owned();
    damaged.push(".damaged");
    eventually("the damaged file to be put aside", || Path::new(&damaged).exists());
    assert_eq!(fs::read_to_string(&archive).unwrap(), "packed");
}

// The window.

#[test]
fn what_is_too_old_or_too_early_is_refused_in_words() {
    // An old chain, where there is something to be too old for.
    let bench = Bench::since(PROGRAM, 0, 12_000, 32);
    let stack = bench.start(&["--interop-keys", "1"]);
    let key = keys(&stack)[0].clone();
    let mut client = stack.client();
    let mut refused = |body: &Value| {
        let answer = client.sign(&key, body);
        assert_eq!(answer.status, 412, "{body}: {answer:?}");
        answer.error()
    };
    // A slot may begin between a look at the clock and the answer.
    let (slot, epoch) = bench.now();
    let said = refused(&block(slot - 3, 1));
    assert!(
        (slot..=bench.now().0).any(|now| said
            == format!(
                "block refused: slot {} is too old, the current slot is {now} and {} is the oldest that policy allows \
                 (max_block_age_slots); ask in time, and compare the client's clock with the enclave's",
                slot - 3,
                now - 2
            )),
        "{said}"
    );
    let said = refused(&attestation(epoch - 3, epoch - 2, 1));
    assert!(said.contains("is too old") && said.contains("max_target_age_epochs"), "{said}");
    let said = refused(&attestation(epoch, epoch, 1));
    assert!(said.contains(&format!("both epoch {epoch}")), "{said}");
    // Two epochs on, whatever the clock says by then.
    let said = refused(&randao(epoch + 3));
    assert!(said.contains("is in the future"), "{said}");
    let mut early = block(slot, 1);
    early["type"] = json!("SYNC_COMMITTEE_MESSAGE");
    early["sync_committee_message"] = json!({ "beacon_block_root": root(1), "slot": (slot + 5).to_string() });
    let said = refused(&early);
    assert!(said.contains(&format!("slot {} is in the future", slot + 5)), "{said}");
    // What is due is signed.
    let (slot, epoch) = bench.now();
    client.sign(&key, &block(slot, 1)).signature();
    client.sign(&key, &attestation(epoch - 1, epoch, 1)).signature();
    client.sign(&key, &randao(epoch)).signature();
}

// History, exits, fee recipients.

#[test]
fn histories_go_out_and_come_in_and_only_rise() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "300"]);
    let all = keys(&stack);
    let mut client = stack.client();
    let (slot, epoch) = bench.now();
    client.sign(&all[0], &block(slot - 1, 1)).signature();
    client.sign(&all[299], &attestation(epoch - 2, epoch - 1, 1)).signature();
    let out = bench.folder.path().join("out.json");
    let export = |more: &[&str]| {
        let _ = fs::remove_file(&out);
        let (exit, said) = bench.casemate(&stack, &[&["history", "export", "--out", text(&out)], more].concat(), false);
        assert_eq!(exit, Exit::Accepted, "{said}");
        let told: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
        assert_eq!(told["metadata"]["interchange_format_version"], "5");
        assert_eq!(told["metadata"]["genesis_validators_root"], root(4));
        let by_key = told["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["pubkey"].as_str().unwrap().to_owned(), one.clone()));
        (by_key.collect::<BTreeMap<_, _>>(), said)
    };
    let (told, said) = export(&[]);
    assert!(said.contains("300 keys of them sign on here"), "{said}");
    assert_eq!(told.len(), 300);
    assert_eq!(told[&all[0]]["signed_blocks"][0]["slot"], (slot - 1).to_string());
    assert_eq!(told[&all[299]]["signed_attestations"][0]["target_epoch"], (epoch - 1).to_string());
    assert_eq!(told[&all[1]]["signed_blocks"], json!([]));
    // An existing file is not overwritten.
    assert_eq!(bench.casemate(&stack, &["history", "export", "--out", text(&out)], false).0, Exit::Unusable);
    // Some of them; one that is not there.
    let list = bench.folder.path().join("keys");
    fs::write(&list, &all[5]).unwrap();
    assert_eq!(export(&["--public-keys", text(&list)]).0.keys().collect::<Vec<_>>(), [&all[5]]);
    let _ = fs::remove_file(&out);
    // It may have signed here all the same, as far as the group's floor says: nothing in a group that has just begun.
    fs::write(&list, "ab".repeat(48)).unwrap();
    let (told, said) = export(&["--public-keys", text(&list)]);
    assert!(said.contains("1 key not known to the enclave"), "{said}");
    assert_eq!(told[&format!("0x{}", "ab".repeat(48))]["signed_blocks"], json!([]));
    let _ = fs::remove_file(&out);

    let file = bench.folder.path().join("in.json");
    let import = |text_of: &str| {
        fs::write(&file, text_of).unwrap();
        bench.casemate(&stack, &["history", "import", "--enclave", "0", text(&file)], true)
    };
    let stranger = format!("0x{}", "ab".repeat(48));
    let (exit, said) = import(&history(&[(&all[1], slot, epoch - 1, epoch), (&all[0], 1, 0, 0), (&stranger, 1, 0, 0)]));
    assert_eq!(exit, Exit::Accepted, "{said}");
    assert!(said.contains("nothing to raise"), "{said}");
    assert_eq!(client.sign(&all[1], &block(slot, 1)).status, 412);
    client.sign(&all[1], &block(slot + 1, 1)).signature();
    let (told, _) = export(&[]);
    assert_eq!(told[&all[0]]["signed_blocks"][0]["slot"], (slot - 1).to_string(), "it only rises");
    assert_eq!(told[&all[1]]["signed_blocks"][0]["slot"], (slot + 1).to_string());
    // Another chain's, a malformed one, and one from the future: refused whole.
    let good = history(&[(&all[2], slot, 1, 2)]);
    for (bad, word) in [
        (good.replace("0404", "0405"), "of another network"),
        (good.replace("\"5\"", "\"4\""), "version \"5\" is read here"),
        (good.replace(&format!("\"{slot}\""), "\"x\""), "not a decimal number"),
        (history(&[(&all[2], slot, 1, 2), (&all[3], slot + 100, 1, 2)]), "lies in the future"),
    ] {
        let (exit, said) = import(&bad);
        assert_ne!(exit, Exit::Accepted, "{said}");
        assert!(said.contains(word), "{said}");
        client.sign(&all[2], &randao(epoch)).signature();
        assert_eq!(export(&[]).0[&all[2]]["signed_blocks"], json!([]), "{word}");
    }
    // Without an operator nothing is raised.
    fs::write(&file, &good).unwrap();
    assert_ne!(bench.casemate(&stack, &["history", "import", "--enclave", "0", text(&file)], false).0, Exit::Accepted);
    // What was brought in is sealed: it is there after the next start, whatever this stack's own file says.
    Stack::signal(stack.processes("vault")[0], Signal::KILL);
    let again = block(slot, 3);
    stack.until("the enclave to refuse", |client| client.sign(&all[1], &again), |answer| answer.status == 412);
}

#[test]
fn exits_and_fee_recipients_are_the_operators() {
    let bench = bench();
    let policy = policy(&bench, &format!("voluntary_exits = false\nfee_recipient = \"{FEES}\"\n"));
    let stack = bench.start(&["--interop-keys", "2", "--policy", text(&policy)]);
    let all = keys(&stack);
    let mut client = stack.client();
    let epoch = bench.now().1;
    let exit = |epoch: u64, index: u64| {
        let message = json!({ "epoch": epoch.to_string(), "validator_index": index.to_string() });
        json!({ "type": "VOLUNTARY_EXIT", "fork_info": fork_info(), "voluntary_exit": message })
    };
    let refused = client.sign(&all[0], &exit(epoch, 5));
    assert_eq!(refused.status, 412);
    assert!(refused.error().contains("casemate exit"), "{refused:?}");
    let out = bench.folder.path().join("exits");
    fs::create_dir(&out).unwrap();
    let validator = format!("{}=5", all[0]);
    let words = ["exit", "--validator", &validator, "--out", text(&out)];
    assert_ne!(bench.casemate(&stack, &words, false).0, Exit::Accepted);
    assert_eq!(client.sign(&all[0], &exit(epoch, 5)).status, 412);
    // With a folder that is missing no exit is signed: it could not be taken back.
    let missing = bench.folder.path().join("missing");
    let nowhere = ["exit", "--validator", &validator, "--out", text(&missing)];
    let (exit_code, said) = bench.casemate(&stack, &nowhere, true);
    assert!(exit_code == Exit::Unusable && said.contains("nothing was sent"), "{said}");
    assert_eq!(client.sign(&all[0], &exit(epoch, 5)).status, 412);
    let (done, said) = bench.casemate(&stack, &words, true);
    assert_eq!(done, Exit::Accepted, "{said}");
    let signed: Value = serde_json::from_str(&fs::read_to_string(out.join("exit-5.json")).unwrap()).unwrap();
    let at = signed["message"]["epoch"].as_str().unwrap().parse().unwrap();
    assert_eq!(signed["message"]["validator_index"], "5");
    assert_eq!(client.sign(&all[0], &exit(at, 5)).signature(), signed["signature"].as_str().unwrap());
    for (key, index) in [(0, 6), (1, 5)] {
        assert_eq!(client.sign(&all[key], &exit(at, index)).status, 412);
    }
    let past = ["exit", "--validator", &validator, "--until-epoch", "1"];
    assert_eq!(bench.casemate(&stack, &past, true).0, Exit::Unusable);

    let registration = |key: &str, to: &str| {
        let message = json!({ "fee_recipient": to, "gas_limit": "1", "timestamp": "1", "pubkey": key });
        json!({ "type": "VALIDATOR_REGISTRATION", "validator_registration": message })
    };
    let other = "0x00000000000000000000000000000000000000aF";
    client.sign(&all[0], &registration(&all[0], FEES)).signature();
    let elsewhere = client.sign(&all[0], &registration(&all[0], other));
    assert_eq!(elsewhere.status, 412);
    assert!(elsewhere.error().contains(FEES), "{elsewhere:?}");
    let list = bench.folder.path().join("keys");
    fs::write(&list, &all[0]).unwrap();
    let other = other.to_lowercase();
    let (done, said) =
        bench.casemate(&stack, &["fee-recipient", "--public-keys", text(&list), "--address", &other], true);
    assert_eq!(done, Exit::Accepted, "{said}");
    client.sign(&all[0], &registration(&all[0], &other)).signature();
    assert_eq!(client.sign(&all[0], &registration(&all[0], FEES)).status, 412);
    client.sign(&all[1], &registration(&all[1], FEES)).signature();
    let (done, said) = bench.casemate(&stack, &["fee-recipient", "--public-keys", text(&list), "--default"], true);
    assert_eq!(done, Exit::Accepted, "{said}");
    client.sign(&all[0], &registration(&all[0], FEES)).signature();
}

#[test]
fn blocks_prove_their_fee_recipient_where_policy_says_so() {
    let bench = bench();
    let policy = policy(&bench, &format!("fee_recipient = \"{FEES}\"\nblock_proofs = true\n"));
    let stack = bench.start(&["--interop-keys", "1", "--policy", text(&policy)]);
    let key = keys(&stack)[0].clone();
    let mut client = stack.client();
    let (slot, epoch) = bench.now();
    let missing = client.sign(&key, &block(slot, 1));
    assert_eq!(missing.status, 400, "{missing:?}");
    assert!(missing.error().contains("generalised index"), "{missing:?}");
    let with = |proofs: Value| {
        let mut body = block(slot, 1);
        body["proofs"] = proofs;
        body
    };
    let index = missing.error().split("generalised index ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let node = root(7);
    for (proofs, word) in [
        (json!([{ "index": index, "proof": [node] }]), "does not have the value that the policy requires"),
        (json!([{ "index": 5, "proof": [node] }]), "the request has none"),
        (json!([]), "the request has none"),
        (json!({}), "proofs"),
        (json!([{ "index": index, "proof": vec![node.clone(); 17] }]), "at most 16"),
        (json!(vec![json!({ "index": "1", "proof": [] }); 5]), "at most 4"),
        (json!([{ "index": "x", "proof": [] }]), "whole number"),
        (json!([{ "index": index, "proof": ["0x12"] }]), "32 bytes"),
    ] {
        let answer = client.sign(&key, &with(proofs));
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.error().contains(word), "{word}: {answer:?}");
    }
    // Other duties need none, and what comes with them is not looked at.
    let mut reveal = randao(epoch);
    reveal["proofs"] = json!("?");
    client.sign(&key, &reveal).signature();
}

// The description.

/// What a path's parameter is called does not matter.
fn nameless(path: &str) -> String {
    path.split_once('{').map_or_else(|| path.to_owned(), |(head, _)| format!("{head}{{}}"))
}

/// Path and method of every route, out of the source.
fn routes() -> BTreeSet<(String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../parent-proxy/src/api/mod.rs");
    let source = fs::read_to_string(source).unwrap();
    let mut routes = BTreeSet::new();
    for route in source.split(".route(\"").skip(1) {
        let (path, rest) = route.split_once('"').unwrap();
        let rest = rest.split("\n        .").next().unwrap();
        for method in ["get", "post", "delete"] {
            if rest.contains(&format!("{method}(")) {
                routes.insert((nameless(path), method.to_owned()));
            }
        }
    }
    routes
}

#[test]
fn the_openapi_document_describes_every_route_and_no_other() {
    let bench = bench();
    let token = bench.folder.path().join("token");
    let stack = bench.start(&["--interop-keys", "1", "--", "--key-manager-token-file", text(&token)]);
    let mut client = stack.client();
    let answer = client.get("/openapi.json", &[]);
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{}", document["openapi"]);
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "delete", "put", "patch", "head"] {
            if !item[method].is_null() {
                described.insert((nameless(path), method.to_owned()));
            }
        }
    }
    assert!(described.len() > 14);
    assert_eq!(described, routes());
    // What it says of a simple question is what is answered.
    let authorization = format!("Bearer {}", fs::read_to_string(&token).unwrap());
    for (path, method) in &described {
        if method != "get" || path.contains('{') {
            continue;
        }
        let answer = client.get(path, &[("Authorization", &authorization), ("Accept", "application/json")]);
        let responses = &document["paths"][path]["get"]["responses"];
        let status = answer.status.to_string();
        assert!(!responses[&status].is_null(), "GET {path}: {status} is not described");
        let mut response = &responses[&status];
        if let Some(reference) = response["$ref"].as_str() {
            response = document.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        }
        let kind = answer.header("content-type").unwrap().split(';').next().unwrap().to_owned();
        let kinds: Vec<&String> = response["content"].as_object().unwrap().keys().collect();
        assert!(kinds.iter().any(|known| known.split(';').next() == Some(&kind)), "GET {path}: {kind}, {kinds:?}");
    }
}
