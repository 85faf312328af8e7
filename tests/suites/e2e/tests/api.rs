//! The HTTP contract over the three processes: every status, every refused pair, every way to be hostile.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::Duration;

use casemate_e2e::requests::{NETWORK, NOW_MS, attestation, block, fork_info, randao, root};
use casemate_e2e::stack::{alive, eventually};
use casemate_e2e::tls::Authority;
use casemate_e2e::{Client, Stack, blst_signature};
use casemate_protocol::frame::MAX_COMMAND_FRAME_LEN;
use rustix::process::Signal;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");

/// A folder with the network's file.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("network.toml"), NETWORK).unwrap();
        Self { folder }
    }

    fn network(&self) -> PathBuf {
        self.folder.path().join("network.toml")
    }

    /// A stack whose watermarks outlive it.
    fn start(&self, options: &[&str]) -> Stack {
        let network = self.network();
        let mut all = vec!["--network", network.to_str().unwrap(), "--plain", "--fixed-time-ms", NOW_MS];
        all.extend_from_slice(options);
        Stack::start_in(PROGRAM, &self.folder.path().join("data"), &all)
    }
}

fn stack(options: &[&str]) -> (Bench, Stack) {
    let bench = Bench::new();
    let mut all = vec!["--interop-keys", "4"];
    all.extend_from_slice(options);
    let stack = bench.start(&all);
    (bench, stack)
}

fn keys(client: &mut Client) -> Vec<String> {
    let answer = client.get("/api/v1/eth2/publicKeys", &[]);
    assert_eq!(answer.status, 200);
    answer.json().as_array().unwrap().iter().map(|k| k.as_str().unwrap().to_owned()).collect()
}

fn refused(client: &mut Client, key: &str, body: &Value, status: u16, words: &[&str]) {
    let answer = client.sign(key, body);
    assert_eq!(answer.status, status, "{body}: {answer:?}");
    let error = answer.error();
    for word in words {
        assert!(error.contains(word), "«{error}» does not say {word:?}");
    }
}

#[test]
fn the_banner_names_what_runs_and_its_request_is_signed() {
    let (_bench, stack) = stack(&[]);
    for part in ["vault", "broker", "proxy"] {
        assert!(alive(stack.pids[part]), "{part}");
    }
    assert_eq!(stack.pids.values().collect::<std::collections::BTreeSet<_>>().len(), 3);
    let curl = stack.banner.split("curl -s ").nth(1).expect("a request to try");
    let url = curl.split(' ').next().unwrap();
    let body = curl.split("-d '").nth(1).unwrap().split('\'').next().unwrap();
    let path = url.split_once("/api").map(|(_, path)| format!("/api{path}")).unwrap();
    let mut client = stack.client();
    client.post(&path, body).signature();
    // Tried twice, it is signed twice.
    client.post(&path, body).signature();
    assert!(stack.banner.contains("public knowledge"), "the banner must say what is a fake");
}

#[test]
fn answers_come_in_the_form_that_accept_asks_for() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = keys(&mut client)[0].clone();
    let body = randao(10).to_string();
    let path = format!("/api/v1/eth2/sign/{key}");
    let json = client.post_with(&path, &[("Accept", "application/json")], &body);
    let signature = json.signature();
    for accept in ["*/*", "text/html, application/json;q=0.5", "APPLICATION/JSON"] {
        assert_eq!(client.post_with(&path, &[("Accept", accept)], &body).signature(), signature);
    }
    for headers in [&[][..], &[("Accept", "text/plain")]] {
        let text = client.post_with(&path, headers, &body);
        assert_eq!((text.status, text.body.as_str()), (200, signature.as_str()));
        assert!(text.header("content-type").unwrap().starts_with("text/plain"));
    }
    // The key's form does not matter.
    let digits = key.strip_prefix("0x").unwrap();
    for form in [digits.to_owned(), digits.to_uppercase(), format!("0x{}", digits.to_uppercase())] {
        assert_eq!(client.post(&format!("/api/v1/eth2/sign/{form}"), &body).signature(), signature);
    }
}

#[test]
fn bad_requests_are_400_with_the_reason() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = &keys(&mut client)[0];
    let path = format!("/api/v1/eth2/sign/{key}");
    for (body, word) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "sign request"),
        ("{}", "type"),
        ("\u{0}\u{1}", "sign request"),
        (r#"{"type":"DANCE"}"#, "DANCE"),
        (r#"{"type":7}"#, "sign request"),
        (r#"{"type":"ATTESTATION"}"#, "attestation is missing"),
        (r#"{"type":"ATTESTATION","attestation":{"slot":"1"}}"#, "attestation: missing field"),
        (r#"{"type":"BLOCK_V2","beacon_block":{"version":"NOPE"}}"#, "NOPE"),
        (r#"{"type":"BLOCK_V2","beacon_block":{"version":"DENEB"}}"#, "block_header is missing"),
        (r#"{"type":"RANDAO_REVEAL","type":"RANDAO_REVEAL"}"#, "duplicate"),
        (&format!("{} x", randao(10)), "trailing"),
    ] {
        let answer = client.post(&path, body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.error().contains(word), "{body}: {}", answer.error());
    }
    let mut without_fork = randao(10);
    without_fork.as_object_mut().unwrap().remove("fork_info");
    refused(&mut client, key, &without_fork, 400, &["fork_info is missing"]);
    for number in ["18446744073709551616", "-1", "1.5", "0x10", "", " 1"] {
        let mut body = randao(10);
        body["randao_reveal"]["epoch"] = json!(number);
        refused(&mut client, key, &body, 400, &["whole number"]);
    }
    // Numbers are as good as strings, types in any case, unknown fields no harm, signing_root in either spelling.
    let mut lenient = randao(10);
    lenient["randao_reveal"]["epoch"] = json!(10);
    lenient["type"] = json!("randao_Reveal");
    lenient["colour"] = json!("blue");
    let signature = client.sign(key, &lenient).signature();
    assert_eq!(client.sign(key, &randao(10)).signature(), signature);
}

#[test]
fn unknown_keys_and_paths_are_404() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    refused(&mut client, &format!("0x{}", "ab".repeat(48)), &randao(10), 404, &["unknown key"]);
    refused(&mut client, "0x1234", &randao(10), 404, &["unknown key"]);
    refused(&mut client, "zz", &randao(10), 404, &["unknown key"]);
    refused(&mut client, "%ff", &randao(10), 404, &["unknown key"]);
    for path in ["/", "/api/v1/eth2/sign", "/api/v1/eth1/publicKeys", "/../etc/passwd"] {
        assert_eq!(client.get(path, &[]).status, 404, "{path}");
    }
    let answer = client.get(&format!("/api/v1/eth2/sign/{}", keys(&mut stack.client())[0]), &[]);
    assert_eq!(answer.status, 405);
    answer.error();
}

#[test]
fn a_signing_root_is_compared_and_never_signed() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = &keys(&mut client)[0];
    for name in ["signingRoot", "signing_root"] {
        let mut body = attestation(8, 9, 1);
        body[name] = json!(root(9));
        let error = client.sign(key, &body).error();
        refused(&mut client, key, &body, 400, &["signingRoot differs", &root(9)]);
        // Nothing was marked: another vote for the target is still free; and with the root that we computed it is signed.
        let computed = error.rsplit(' ').next().unwrap().to_owned();
        body[name] = json!(computed);
        client.sign(key, &body).signature();
    }
}

#[test]
fn a_double_proposal_is_refused() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = &keys(&mut client)[0];
    let first = client.sign(key, &block(300, 1)).signature();
    refused(&mut client, key, &block(300, 2), 412, &["block refused", "slot 300", "last signed slot 300"]);
    refused(&mut client, key, &block(299, 1), 412, &["slot 299", "last signed slot 300"]);
    assert_eq!(client.sign(key, &block(300, 1)).signature(), first);
    client.sign(key, &block(301, 2)).signature();
    refused(&mut client, key, &block(300, 1), 412, &["slot 300", "last signed slot 301"]);
}

#[test]
fn a_double_vote_and_both_surrounds_are_refused() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let all = keys(&mut client);
    let key = &all[0];
    let first = client.sign(key, &attestation(5, 8, 1)).signature();
    refused(
        &mut client,
        key,
        &attestation(5, 8, 2),
        412,
        &["target epoch 8 is not above the last signed target epoch 8, and its signing root differs"],
    );
    refused(&mut client, key, &attestation(4, 9, 1), 412, &["source epoch 4 is below the last signed source epoch 5"]);
    refused(&mut client, key, &attestation(6, 7, 1), 412, &["target epoch 7"]);
    refused(&mut client, key, &attestation(9, 8, 1), 412, &["source epoch 9 is above its target epoch 8"]);
    assert_eq!(client.sign(key, &attestation(5, 8, 1)).signature(), first);
    client.sign(key, &attestation(5, 9, 2)).signature();
    // Another key is another validator.
    client.sign(&all[1], &attestation(4, 9, 1)).signature();
}

#[test]
fn the_far_future_and_other_networks_are_refused() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = &keys(&mut client)[0];
    refused(&mut client, key, &block(322, 1), 412, &["future", "322", "current slot is 320"]);
    refused(&mut client, key, &attestation(10, 11, 1), 412, &["future", "11", "current epoch is 10"]);
    refused(&mut client, key, &block(u64::MAX, 1), 412, &["future"]);
    refused(&mut client, key, &attestation(10, u64::MAX / 32, 1), 412, &["future"]);
    refused(&mut client, key, &randao(11), 412, &["future", "11", "current epoch is 10"]);
    client.sign(key, &randao(10)).signature();
    client.sign(key, &block(321, 1)).signature();
    client.sign(key, &attestation(9, 10, 1)).signature();
    let mut other = block(321, 1);
    other["fork_info"]["genesis_validators_root"] = json!(root(5));
    refused(&mut client, key, &other, 412, &["another network", &root(5), &root(4)]);
    let deposit = json!({ "type": "DEPOSIT", "deposit": { "pubkey": key, "withdrawal_credentials": root(1),
        "amount": "32000000000", "genesis_fork_version": "0x00000000" } });
    refused(&mut client, key, &deposit, 412, &["another network", "0x00000000", "0x00000001"]);
}

#[test]
fn of_64_conflicting_requests_at_once_exactly_one_is_signed() {
    let (_bench, stack) = stack(&[]);
    let keys = keys(&mut stack.client());
    let duties: [fn(u8) -> Value; 2] = [|i| attestation(8, 9, i), |i| block(300, i)];
    for (key, duty) in keys.iter().zip(duties) {
        let start = Barrier::new(64);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..64u8)
                .map(|i| {
                    let (start, stack) = (&start, &stack);
                    scope.spawn(move || {
                        let mut client = stack.client();
                        start.wait();
                        client.sign(key, &duty(i)).status
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|s| **s == 412).count(), 63, "{statuses:?}");
    }
}

#[test]
fn status_endpoints_say_what_is_up() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    assert_eq!(client.get("/upcheck", &[]).body, "OK");
    assert_eq!(client.get("/upcheck", &[("Accept", "*/*")]).body, "OK");
    assert_eq!(client.get("/upcheck", &[("Accept", "application/json")]).json()["status"], "OK");
    let health = client.get("/healthcheck", &[]);
    assert_eq!(health.status, 200);
    let health = health.json();
    assert_eq!((&health["status"], &health["outcome"]), (&json!("UP"), &json!("UP")));
    assert!(
        health["checks"]
            .as_array()
            .unwrap()
            .iter()
            .all(|c| c["id"].is_string() && c["status"] == "UP" && c["data"].is_object())
    );
    assert_eq!(client.get("/api/v1/eth2/highWatermark", &[]).json(), json!({}));
    assert_eq!(client.get("/reload", &[]).json()["status"], "idle");
    let accepted = client.post("/reload", "");
    assert_eq!((accepted.status, accepted.json()["status"].as_str()), (202, Some("accepted")));
    stack.until("the reload", |c| c.get("/reload", &[]), |a| a.json()["status"] == "completed");
    assert_eq!(keys(&mut client).len(), 4);
}

#[test]
fn proofs_of_validation_are_off_unless_turned_on() {
    let body = r#"{"type":"PROOF_OF_VALIDATION","platform":"dappnode","timestamp":"1711338489397"}"#;
    let (_bench, off) = stack(&[]);
    let mut client = off.client();
    let path = format!("/api/v1/eth2/ext/sign/{}", keys(&mut client)[0]);
    assert_eq!(client.post(&path, body).status, 404);
    drop(off);
    let (_bench, on) = stack(&["--proof-of-validation"]);
    let mut client = on.client();
    let answer = client.post(&path, body).json();
    // The payload is the JSON that was signed, and the signature is over exactly that.
    assert_eq!(
        answer["payload"],
        "eyJ0eXBlIjoiUFJPT0ZfT0ZfVkFMSURBVElPTiIsInBsYXRmb3JtIjoiZGFwcG5vZGUiLCJ0aW1lc3RhbXAiOiIxNzExMzM4NDg5Mzk3In0="
    );
    let secret = casemate_dev::interop::secret_key(0);
    assert_eq!(answer["signature"], blst_signature(&secret, &const_hex::encode(body)));
    for bad in [
        r#"{"type":"PROOF_OF_VALIDATION","platform":"dappnode"}"#,
        r#"{"type":"OTHER","platform":"dappnode","timestamp":"1"}"#,
        r#"{"type":"PROOF_OF_VALIDATION","platform":"a","timestamp":"1","more":1}"#,
        r#"{"type":"PROOF_OF_VALIDATION","platform":"a\"b","timestamp":"1"}"#,
        "{",
    ] {
        let answer = client.post(&path, bad);
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
        answer.error();
    }
    assert_eq!(client.post(&format!("/api/v1/eth2/ext/sign/0x{}", "ab".repeat(48)), body).status, 404);
}

#[test]
fn request_ids_come_back_and_foreign_hosts_do_not_get_in() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    assert_eq!(client.get("/upcheck", &[("X-Request-Id", "abc-1.2:3")]).header("x-request-id"), Some("abc-1.2:3"));
    let own = |c: &mut Client, id: &str| {
        c.get("/upcheck", &[("X-Request-Id", id)]).header("x-request-id").unwrap().to_owned()
    };
    let (first, second) = (own(&mut client, "bad id"), own(&mut client, &"a".repeat(65)));
    assert!(first.len() == 16 && second.len() == 16 && first != second, "{first} {second}");
    for host in ["evil.example", "evil.example:9000", "localhost.evil.example", ""] {
        assert_eq!(client.get("/upcheck", &[("Host", host)]).status, 403, "{host}");
    }
    for host in ["localhost", "localhost:9000", "127.0.0.1", "[::1]:9000", "LOCALHOST"] {
        assert_eq!(client.get("/upcheck", &[("Host", host)]).status, 200, "{host}");
    }
    let refused = client.get("/upcheck", &[("Host", "evil.example:9000")]);
    assert!(refused.error().contains("the host \"evil.example\""), "{}", refused.error());
}

#[test]
fn load_balancers_that_probe_by_address_hear_how_the_signer_is_and_nothing_else() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    for host in ["10.1.2.3", "10.1.2.3:9000", "[2001:db8::7]:9000"] {
        for path in ["/livez", "/readyz", "/upcheck", "/healthcheck"] {
            assert_eq!(client.get(path, &[("Host", host)]).status, 200, "{path} {host}");
        }
        assert_eq!(client.get("/api/v1/eth2/publicKeys", &[("Host", host)]).status, 403, "{host}");
    }
}

#[test]
fn a_version_that_is_null_is_called_missing() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = &keys(&mut client)[0];
    let mut body = block(10, 1);
    body["beacon_block"]["version"] = serde_json::Value::Null;
    let answer = client.sign(key, &body);
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.error().contains("beacon_block.version is missing"), "{}", answer.error());
}

#[test]
fn oversized_and_malformed_http_is_refused_and_the_rest_served() {
    let (_bench, stack) = stack(&["--", "--max-body-bytes", "100000"]);
    let mut client = stack.client();
    let key = keys(&mut client)[0].clone();
    let path = format!("/api/v1/eth2/sign/{key}");
    // Announced too long: refused without reading.
    let answer = client.send("POST", &path, &[("Content-Length", "100001")], b"").unwrap();
    assert_eq!(answer.status, 413);
    assert!(answer.error().contains("100001") && answer.error().contains("100000"));
    // Not announced: refused when it gets too long.
    let mut client = stack.client();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.raw(head.as_bytes()).unwrap();
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    for _ in 0..4 {
        let _ = client.raw(chunk.as_bytes());
    }
    assert_eq!(client.answer().unwrap().status, 413);
    // A body in chunks is as good as one of known length, large or small; many at once too.
    let chunked = |body: &str| {
        let mut client = stack.client();
        let (one, two) = body.split_at(body.len() / 2);
        let chunks: String = [one, two].map(|c| format!("{:x}\r\n{c}\r\n", c.len())).concat();
        client.raw(format!("{head}{chunks}0\r\n\r\n").as_bytes()).unwrap();
        client
    };
    let large = format!("{}{}", randao(10), " ".repeat(80_000));
    let clients: Vec<_> = (0..12).map(|i| chunked(if i % 2 == 0 { &large } else { large.trim_end() })).collect();
    for mut client in clients {
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for garbage in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/9.9\r\n\r\n", b"NONSENSE\r\n\r\n", &[0; 4096]] {
        let mut client = stack.client();
        let _ = client.raw(garbage);
        if let Ok(answer) = client.answer() {
            assert!((400..500).contains(&answer.status) || answer.status == 505, "{answer:?}");
        }
    }
    let mut many = String::from("GET /upcheck HTTP/1.1\r\nHost: localhost\r\n");
    for i in 0..100 {
        let _ = write!(many, "X-{i}: 1\r\n");
    }
    let mut client = stack.client();
    client.raw(format!("{many}\r\n").as_bytes()).unwrap();
    assert_eq!(client.answer().unwrap().status, 431);
    // Pipelined requests are answered in their order.
    let mut client = stack.client();
    let one = "GET /upcheck HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.raw(one.as_bytes()).unwrap();
    assert_eq!((client.answer().unwrap().status, client.answer().unwrap().status), (200, 404));
    stack.client().sign(&key, &randao(10)).signature();
}

#[test]
fn load_beyond_the_limit_is_shed_with_503() {
    let (_bench, stack) = stack(&["--", "--max-in-flight", "4", "--enclave-connections", "2"]);
    let key = &keys(&mut stack.client())[0];
    Stack::signal(stack.pids["vault"], Signal::STOP);
    let (sender, answers) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            let (sender, stack) = (sender.clone(), &stack);
            scope.spawn(move || sender.send(stack.client().sign(key, &randao(10))).unwrap());
        }
        let is_shed = |answer: &casemate_e2e::Answer| {
            answer.status == 503
                && answer.error().contains("too many requests")
                && answer.header("retry-after").is_some()
        };
        // Four at most wait for the vault; the others are told at once.
        for _ in 0..8 {
            let shed = answers.recv().unwrap();
            assert!(is_shed(&shed), "{shed:?}");
        }
        Stack::signal(stack.pids["vault"], Signal::CONT);
        // A place may be the proxy's own question; one key has few of the others.
        let rest: Vec<_> = (0..4).map(|_| answers.recv().unwrap()).collect();
        assert!(rest.iter().all(|answer| answer.status == 200 || is_shed(answer)), "{rest:?}");
        assert!(rest.iter().any(|answer| answer.status == 200), "{rest:?}");
    });
}

#[test]
fn a_killed_vault_answers_503_and_comes_back_with_its_watermarks() {
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = &keys(&mut client)[0];
    let first = client.sign(key, &attestation(7, 9, 1)).signature();
    for part in ["vault", "broker"] {
        // The second round kills what was started in place of the first.
        let pid = stack.processes(part)[0];
        Stack::signal(pid, Signal::KILL);
        let away = stack.until("a 503", |c| c.sign(key, &randao(10)), |a| a.status == 503);
        assert!(away.error().contains("enclave") && away.header("retry-after").is_some());
        stack.until("recovery", |c| c.sign(key, &randao(10)), |a| a.status == 200);
        let mut client = stack.client();
        refused(&mut client, key, &attestation(7, 9, 2), 412, &["target epoch 9"]);
        assert_eq!(client.sign(key, &attestation(7, 9, 1)).signature(), first);
        assert_eq!(keys(&mut client).len(), 4);
    }
}

#[test]
fn while_the_enclave_is_away_health_says_so() {
    let (_bench, stack) = stack(&[]);
    // Stopped, the stack cannot start the enclave again.
    Stack::signal(stack.pid(), Signal::STOP);
    Stack::signal(stack.pids["vault"], Signal::KILL);
    let health = stack.until("the health check to notice", |c| c.get("/healthcheck", &[]), |a| a.status == 503);
    assert_eq!(health.json()["status"], "DOWN");
    let mut client = stack.client();
    assert_eq!(client.get("/upcheck", &[]).status, 503);
    assert_eq!(client.get("/livez", &[]).status, 200);
    assert_eq!(client.get("/api/v1/eth2/publicKeys", &[]).status, 503);
    assert_eq!(client.get("/api/v1/eth2/highWatermark", &[]).status, 503);
    client.post("/reload", "");
    stack.until("the reload to fail", |c| c.get("/reload", &[]), |a| a.json()["status"] == "failed");
    Stack::signal(stack.pid(), Signal::CONT);
    stack.until("recovery", |c| c.get("/healthcheck", &[]), |a| a.status == 200);
}

#[test]
fn watermarks_survive_the_end_and_the_kill_of_everything() {
    let bench = Bench::new();
    let options = ["--interop-keys", "4"];
    let stack = bench.start(&options);
    let keys = keys(&mut stack.client());
    stack.client().sign(&keys[0], &attestation(5, 6, 1)).signature();
    stack.client().sign(&keys[0], &block(200, 1)).signature();
    assert!(stack.stop().success());

    let stack = bench.start(&options);
    let mut client = stack.client();
    refused(&mut client, &keys[0], &attestation(5, 6, 2), 412, &["target epoch 6"]);
    refused(&mut client, &keys[0], &block(200, 2), 412, &["slot 200"]);
    client.sign(&keys[0], &attestation(5, 7, 1)).signature();
    stack.kill();

    let stack = bench.start(&["--interop-keys", "2"]);
    let mut client = stack.client();
    refused(&mut client, &keys[0], &attestation(5, 7, 2), 412, &["target epoch 7"]);
    client.sign(&keys[0], &attestation(5, 8, 2)).signature();
    // Two stacks cannot share a data directory.
    let network = bench.network();
    let second =
        Stack::try_start(PROGRAM, &bench.folder.path().join("data"), &["--network", network.to_str().unwrap()]);
    assert!(second.err().expect("a second stack must not start").contains("in use"));
    // Keys that were away keep their marks.
    drop(stack);
    let stack = bench.start(&["--interop-keys", "4"]);
    refused(&mut stack.client(), &keys[0], &attestation(5, 8, 1), 412, &["target epoch 8"]);
}

#[test]
fn sigterm_answers_what_is_in_flight() {
    let (_bench, stack) = stack(&[]);
    let key = &keys(&mut stack.client())[0];
    let proxy = stack.pids["proxy"];
    let vault = stack.pids["vault"];
    Stack::signal(vault, Signal::STOP);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stack.client().sign(key, &randao(10)));
        // The request is with the vault when the stack is told to end.
        std::thread::sleep(Duration::from_millis(300));
        Stack::signal(stack.pid(), Signal::TERM);
        std::thread::sleep(Duration::from_millis(300));
        assert!(alive(proxy), "the proxy went before it had answered");
        Stack::signal(vault, Signal::CONT);
        waiting.join().unwrap().signature();
    });
    eventually("the proxy to end", || !alive(proxy));
    eventually("the vault to end", || !alive(vault));
}

/// Talks to the enclave's socket as a hostile parent would.
#[test]
fn hostile_frames_cost_their_connection_and_nothing_else() {
    let (_bench, stack) = stack(&[]);
    let key = &keys(&mut stack.client())[0];
    let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    let info = [0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0x00];
    let mut bad: Vec<(&str, Vec<u8>)> = vec![
        ("length 0", vec![0; 4]),
        ("length 2^32-1", vec![0xff; 4]),
        ("one byte too long", u32::try_from(MAX_COMMAND_FRAME_LEN + 1).unwrap().to_be_bytes().to_vec()),
        ("as long as only a command may be", frame(&[&info[..], &[0; 66_000]].concat())),
        ("no CBOR", frame(&[0xff; 64])),
        ("another version", frame(&[0xa3, 0x00, 0x02, 0x01, 0x05, 0x02, 0x00])),
        ("a trailing byte", frame(&[&info[..], &[0]].concat())),
        ("an unknown request", frame(&[0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0x18, 0x63])),
        ("the largest frame of nesting", frame(&vec![0x81; 65_536])),
        ("a reply for a request", frame(&[0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0xa1, 0x03, 0xf6])),
    ];
    for seed in 0..64u32 {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let junk: Vec<u8> = (0..=seed * 17 % 900)
            .map(|_| {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                state.to_be_bytes()[1]
            })
            .collect();
        bad.push(("junk", frame(&junk)));
    }
    for (what, bytes) in bad {
        let mut stream = UnixStream::connect(&stack.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // A good request first: it is answered, whatever follows.
        stream.write_all(&frame(&info)).unwrap();
        let _ = stream.write_all(&bytes);
        let mut replies = Vec::new();
        stream.read_to_end(&mut replies).unwrap_or_else(|e| panic!("{what}: the connection was not closed: {e}"));
        assert!(replies.windows(5).any(|w| w == b"\x00\x01\x01\x05\x02"), "{what}: the good request was not answered");
    }
    // A thousand good requests and a bad length in one write: all are answered, the refusal comes last, and the end at once.
    let mut stream = UnixStream::connect(&stack.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let burst = [frame(&info).repeat(1000), vec![0, 0x20, 0, 0]].concat();
    let mut writer = stream.try_clone().unwrap();
    std::thread::spawn(move || writer.write_all(&burst));
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).expect("the connection ends as soon as all is answered");
    let ids = frame_ids(&replies);
    assert_eq!(ids.len(), 1001);
    assert!(ids[..1000].iter().all(|id| *id == 5) && ids[1000] == 0);
    // Two malformed frames with good ones around them: both are refused, and no reply is lost over it.
    let mut stream = UnixStream::connect(&stack.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let bad = frame(&[0xff]);
    stream.write_all(&[&bad[..], &frame(&info).repeat(300), &bad, &frame(&info).repeat(300)].concat()).unwrap();
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).expect("the connection ends as soon as all is answered");
    assert_eq!(frame_ids(&replies).len(), 602);
    // More connections than there are places: those beyond are closed, and the places come free again.
    let crowd: Vec<_> = (0..200).map(|_| UnixStream::connect(&stack.socket).unwrap()).collect();
    let served = crowd
        .iter()
        .filter(|stream| {
            let mut stream = *stream;
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(&frame(&info)).is_ok() && stream.read(&mut [0; 64]).is_ok_and(|n| n > 0)
        })
        .count();
    assert!((1..=64).contains(&served), "{served} connections were served");
    drop(crowd);
    // Half a frame, and nothing more: it waits, and hurts nobody.
    let mut half = UnixStream::connect(&stack.socket).unwrap();
    half.write_all(&[0, 0, 1, 0, 0xa3]).unwrap();
    // Replies that nobody reads: the broker stops reading, keeps a bounded number of them, and the others go on.
    let resident = || ["vault", "broker"].map(|part| resident_bytes(stack.pids[part]));
    let before = resident();
    let mut deaf = UnixStream::connect(&stack.socket).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let many = frame(&info).repeat(2000);
    for _ in 0..20 {
        if deaf.write_all(&many).is_err() {
            break;
        }
    }
    stack.until("a signature beside it", |c| c.sign(key, &randao(10)), |a| a.status == 200);
    assert!(alive(stack.pids["vault"]) && alive(stack.pids["broker"]), "{}", stack.log());
    for (before, after) in before.into_iter().zip(resident()) {
        assert!(after < before + 32 * 1024 * 1024, "{before} bytes grew to {after}");
    }
}

/// The ids of all replies in a stream.
fn frame_ids(mut rest: &[u8]) -> Vec<u64> {
    let mut ids = Vec::new();
    while let Ok(Some((inner, used))) = casemate_protocol::frame::split(rest, 65_536) {
        ids.push(casemate_protocol::frame::decode_reply(inner).unwrap().id);
        rest = &rest[used..];
    }
    ids
}

fn peak_resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn resident_bytes(pid: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A client's words come back cut off: neither the answer nor the log grows with them.
#[test]
fn hostile_text_is_not_echoed_at_length() {
    let (_bench, stack) = stack(&["--proof-of-validation"]);
    let mut client = stack.client();
    let key = keys(&mut client)[0].clone();
    let long = "\u{7f}".repeat(1_000_000);
    let (sign, ext) = (format!("/api/v1/eth2/sign/{key}"), format!("/api/v1/eth2/ext/sign/{key}"));
    let mut number = randao(10);
    number["randao_reveal"]["epoch"] = json!(long);
    let mut version = block(300, 1);
    version["beacon_block"]["version"] = json!(long);
    let mut hex = block(300, 1);
    hex["beacon_block"]["block_header"]["body_root"] = json!(long);
    for (path, body) in [
        (&sign, json!({ "type": long })),
        (&sign, number),
        (&sign, version),
        (&sign, hex),
        (&ext, json!({ "type": long, "platform": "a", "timestamp": "1" })),
        (&ext, json!({ "type": "PROOF_OF_VALIDATION", "platform": long, "timestamp": "1" })),
        (&ext, json!({ "type": "PROOF_OF_VALIDATION", "platform": "a", "timestamp": long })),
        (&ext, json!({ "type": "PROOF_OF_VALIDATION", "platform": "a", "timestamp": "1", (long.as_str()): 1 })),
    ] {
        let answer = client.post(path, &body.to_string());
        assert_eq!(answer.status, 400);
        assert!(answer.body.len() < 8000, "{} bytes", answer.body.len());
        answer.error();
    }
    // Nor does it cost the others the connection to the enclave.
    client.sign(&key, &randao(10)).signature();
    assert!(!stack.log().contains("has ended"), "{}", stack.log());
    assert!(stack.log().lines().all(|line| line.len() < 8000));
}

/// Clients that hang up leave no parsing behind that nobody counts.
#[test]
fn large_bodies_of_clients_that_hang_up_stay_bounded() {
    let (_bench, stack) = stack(&[]);
    let key = keys(&mut stack.client())[0].clone();
    let transactions = vec!["\"0x00\""; 1_000_000].join(",");
    let body = format!(
        r#"{{"type":"EXECUTION_PAYLOAD_ENVELOPE","execution_payload_envelope":{{"version":"GLOAS","data":{{"payload":{{"transactions":[{transactions}]}}}}}}}}"#
    );
    let head =
        format!("POST /api/v1/eth2/sign/{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let mut client = stack.client();
                    let _ = client.raw(head.as_bytes());
                    let _ = client.raw(body.as_bytes());
                }
            });
        }
    });
    stack.until("a signature", |c| c.sign(&key, &randao(10)), |a| a.status == 200);
    // Four bodies at a time, with what parsing makes of them: some 60 MB each.
    let peak = peak_resident_bytes(stack.pids["proxy"]);
    println!("the proxy took {peak} bytes at most");
    assert!(peak < 640 * 1024 * 1024, "{peak} bytes");
}

/// Listing many keys from many sides at once must not cost the connection that everybody signs over.
#[test]
fn many_listings_of_many_keys_do_not_disturb_signing() {
    let bench = Bench::new();
    let stack = bench.start(&["--interop-keys", "3000"]);
    let key = keys(&mut stack.client())[0].clone();
    std::thread::scope(|scope| {
        let listings: Vec<_> =
            (0..40).map(|_| scope.spawn(|| stack.client().get("/api/v1/eth2/publicKeys", &[]))).collect();
        for _ in 0..50 {
            stack.client().sign(&key, &randao(10)).signature();
        }
        for listing in listings {
            let answer = listing.join().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert_eq!(answer.json().as_array().unwrap().len(), 3000);
        }
    });
    assert!(!stack.log().contains("closed"), "{}", stack.log());
}

#[test]
fn an_enclave_that_hangs_does_not_count_as_up() {
    let (_bench, stack) = stack(&["--", "--request-timeout-ms", "300"]);
    let mut client = stack.client();
    let key = keys(&mut client)[0].clone();
    Stack::signal(stack.pids["vault"], Signal::STOP);
    let late = client.sign(&key, &randao(10));
    assert_eq!(late.status, 503, "{late:?}");
    stack.until("the health check to notice", |c| c.get("/healthcheck", &[]), |a| a.status == 503);
    Stack::signal(stack.pids["vault"], Signal::CONT);
    stack.until("recovery", |c| c.sign(&key, &randao(10)), |a| a.status == 200);
}

/// A power cut may take the last watermarks with it: what was signed before must not be signed over, then or later.
#[test]
fn after_a_power_cut_every_key_starts_above_the_current_epoch_and_stays_there() {
    use std::os::unix::fs::FileExt;

    let bench = Bench::new();
    let stack = bench.start(&["--interop-keys", "2"]);
    let keys = keys(&mut stack.client());
    stack.kill();
    // A vote and a block that the disk never saw; and the machine boots anew.
    let marks = casemate_testdata::files(&bench.folder.path().join("data"), "watermarks");
    let file = std::fs::OpenOptions::new().write(true).open(&marks[0]).unwrap();
    file.write_all_at(&[b'0'; 36], 48).unwrap();
    // Slot 320, epoch 10: nothing up to slot 322 (one ahead of the clock, one for two clocks) and target 10 is signed any more, and
    // nothing from below source 10.
    let bound = |stack: &Stack| {
        let mut client = stack.client();
        for key in &keys {
            refused(
                &mut client,
                key,
                &attestation(9, 10, 1),
                412,
                &["target epoch 10 is not above epoch 10, up to which"],
            );
            refused(&mut client, key, &attestation(10, 10, 1), 412, &["both epoch 10"]);
            refused(&mut client, key, &block(321, 1), 412, &["slot 321 is not above slot 322, up to which"]);
            client.sign(key, &randao(10)).signature();
        }
    };
    let stack = bench.start(&["--interop-keys", "2"]);
    assert!(stack.log().contains("went down"), "{}", stack.log());
    bound(&stack);
    Stack::signal(stack.pids["vault"], Signal::KILL);
    stack.until("a 503", |c| c.sign(&keys[0], &randao(10)), |a| a.status == 503);
    stack.until("recovery", |c| c.sign(&keys[0], &randao(10)), |a| a.status == 200);
    bound(&stack);
    assert!(stack.stop().success());
    let stack = bench.start(&["--interop-keys", "2"]);
    bound(&stack);
}

/// Watermarks belong to the chain, whatever it is called.
#[test]
fn another_name_for_the_network_is_no_way_around_the_watermarks() {
    let bench = Bench::new();
    let stack = bench.start(&["--interop-keys", "1"]);
    let key = keys(&mut stack.client())[0].clone();
    stack.client().sign(&key, &attestation(8, 9, 1)).signature();
    std::fs::write(bench.network(), NETWORK.replace("name = \"e2e\"", "name = \"other\"")).unwrap();
    let network = bench.network();
    let second =
        Stack::try_start(PROGRAM, &bench.folder.path().join("data"), &["--network", network.to_str().unwrap()]);
    assert!(second.err().expect("the folder is locked").contains("in use"));
    drop(stack);
    let stack = bench.start(&["--interop-keys", "1"]);
    refused(&mut stack.client(), &key, &attestation(8, 9, 2), 412, &["target epoch 9"]);
}

#[test]
fn tls_and_mutual_tls_with_certificates_that_reload() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let authority = Authority::new("server authority");
    let clients = Authority::new("client authority");
    let (certificate, key) = authority.issue("localhost");
    std::fs::write(file("cert.pem"), &certificate).unwrap();
    std::fs::write(file("key.pem"), &key).unwrap();
    std::fs::write(file("clients.pem"), clients.pem()).unwrap();
    let tls = ["--tls-certificate", &file("cert.pem"), "--tls-key", &file("key.pem")].map(ToOwned::to_owned);
    let start = |more: &[&str]| {
        let mut options = vec!["--"];
        options.extend(tls.iter().map(String::as_str));
        options.extend_from_slice(more);
        stack(&options)
    };

    let (_bench, plain_tls) = start(&[]);
    // The stack cannot ask the proxy over TLS whether it has heard from the enclave.
    eventually("the proxy to have reached the enclave", || {
        let mut client = Client::connect_tls(plain_tls.address, authority.client(None)).unwrap();
        client.get("/healthcheck", &[]).status == 200
    });
    let mut client = Client::connect_tls(plain_tls.address, authority.client(None)).unwrap();
    let signer = keys(&mut client)[0].clone();
    client.sign(&signer, &randao(10)).signature();
    assert!(Client::connect_tls(plain_tls.address, clients.client(None)).is_err(), "another authority's server");
    // Without TLS nothing is to be had.
    let mut bare = plain_tls.client();
    let _ = bare.raw(b"GET /upcheck HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(bare.answer().is_err());
    // New files, served without a restart; broken files leave the old ones in force.
    let renewed = Authority::new("renewed authority");
    let (certificate, key) = renewed.issue("localhost");
    std::fs::write(file("cert.pem"), certificate).unwrap();
    let reload = |client: &mut Client, outcome: &str| {
        assert_eq!(client.post("/reload", "").status, 202);
        eventually(outcome, || client.get("/reload", &[]).json()["status"] == outcome);
    };
    reload(&mut client, "completed_with_errors");
    assert!(Client::connect_tls(plain_tls.address, authority.client(None)).is_ok());
    std::fs::write(file("key.pem"), key).unwrap();
    reload(&mut client, "completed");
    assert!(Client::connect_tls(plain_tls.address, renewed.client(None)).is_ok());
    assert!(Client::connect_tls(plain_tls.address, authority.client(None)).is_err());
    drop(plain_tls);

    let (_bench, mutual) = start(&["--tls-client-ca", &file("clients.pem")]);
    let with = |who: &Authority| {
        let config = renewed.client(Some(who.issue("validator")));
        // TLS 1.3 tells a client of its refusal with the first answer.
        let mut client = Client::connect_tls(mutual.address, config).ok()?;
        client.send("GET", "/upcheck", &[], b"").ok()
    };
    assert_eq!(with(&clients).expect("a client of the authority").status, 200);
    assert!(with(&authority).is_none(), "a client of another authority");
    let none = Client::connect_tls(mutual.address, renewed.client(None));
    assert!(none.is_err() || none.unwrap().send("GET", "/upcheck", &[], b"").is_err(), "a client without certificate");
}

#[test]
fn keystores_load_and_sign_only_with_a_history() {
    let Some(data) = casemate_testdata::folder("client-requests") else { return };
    let nimbus = data.join("nimbus");
    let bench = Bench::new();
    let (keystores, passwords) = (bench.folder.path().join("keys"), bench.folder.path().join("password"));
    std::fs::create_dir(&keystores).unwrap();
    let constants = casemate_testdata::json(&nimbus.join("constants.json"));
    casemate_e2e::write_secret(&passwords, constants["KeystorePassword"].as_str().unwrap());
    let mut count = 0;
    for path in casemate_testdata::files(&nimbus, ".json") {
        let name = path.file_name().unwrap();
        if name.to_string_lossy().starts_with("ValidatorKeystore") {
            std::fs::copy(&path, keystores.join(name)).unwrap();
            count += 1;
        }
    }
    let key = constants["ValidatorPubKey1"].as_str().unwrap();
    let path_options = ["--keystores", keystores.to_str().unwrap(), "--passwords", passwords.to_str().unwrap()];

    // Nobody knows their history: none is listed, none signs, and the banner says what to do.
    let stack = bench.start(&path_options);
    let mut client = stack.client();
    assert_eq!(keys(&mut client).len(), 0);
    refused(&mut client, key, &randao(10), 412, &["no slashing protection history"]);
    assert!(stack.banner.contains("--slashing-protection"), "{}", stack.banner);
    assert_eq!(client.get("/healthcheck", &[]).status, 503);
    drop(stack);

    // With a history for one, that one signs, above it.
    let history = bench.folder.path().join("history.json");
    std::fs::write(
        &history,
        json!({
            "metadata": { "interchange_format_version": "5", "genesis_validators_root": root(4) },
            "data": [{ "pubkey": key, "signed_blocks": [{ "slot": "100" }],
                "signed_attestations": [{ "source_epoch": "3", "target_epoch": "4" }] }],
        })
        .to_string(),
    )
    .unwrap();
    let mut with_history = path_options.to_vec();
    with_history.extend(["--slashing-protection", history.to_str().unwrap()]);
    let stack = bench.start(&with_history);
    let mut client = stack.client();
    assert_eq!(keys(&mut client), [key]);
    refused(
        &mut client,
        key,
        &block(100, 1),
        412,
        &["not above slot 100, up to which this key may have signed elsewhere"],
    );
    refused(&mut client, key, &attestation(2, 5, 1), 412, &["last signed source epoch 3"]);
    client.sign(key, &attestation(3, 5, 1)).signature();
    drop(stack);

    // The journal remembers it: no file is needed any more; the others are let in by an express waiver.
    let stack = bench.start(&path_options);
    assert_eq!(keys(&mut stack.client()), [key]);
    refused(&mut stack.client(), key, &attestation(3, 5, 2), 412, &["target epoch 5"]);
    drop(stack);
    let mut waived = path_options.to_vec();
    waived.push("--accept-unknown-history");
    let stack = bench.start(&waived);
    assert_eq!(keys(&mut stack.client()).len(), count);
    refused(&mut stack.client(), key, &attestation(3, 5, 2), 412, &["target epoch 5"]);
    drop(stack);

    // A file of another network changes nothing.
    std::fs::write(&history, std::fs::read_to_string(&history).unwrap().replace(&root(4), &root(5))).unwrap();
    let network = bench.network();
    with_history.extend(["--network", network.to_str().unwrap()]);
    let error = Stack::try_start(PROGRAM, &bench.folder.path().join("data"), &with_history).err().unwrap();
    assert!(error.contains("another network"), "{error}");
}

#[test]
fn minimal_preset_blocks_and_unversioned_aggregates_are_understood() {
    // Sizes differ: what fits mainnet's sync committee does not fit minimal's.
    let (_bench, stack) = stack(&[]);
    let mut client = stack.client();
    let key = &keys(&mut client)[0];
    let contribution = |bits: usize| {
        json!({
            "type": "SYNC_COMMITTEE_CONTRIBUTION_AND_PROOF",
            "fork_info": fork_info(),
            "contribution_and_proof": {
                "aggregator_index": "1",
                "selection_proof": format!("0x{}", "01".repeat(96)),
                "contribution": {
                    "slot": "300", "beacon_block_root": root(1), "subcommittee_index": "0",
                    "aggregation_bits": format!("0x{}", "ff".repeat(bits / 8)),
                    "signature": format!("0x{}", "02".repeat(96)),
                },
            },
        })
    };
    client.sign(key, &contribution(128)).signature();
    refused(&mut client, key, &contribution(8), 400, &["128 bits"]);
}
