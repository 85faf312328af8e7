//! `casemate attest` against a running signer, and against proxies that lie.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate::Exit;
use casemate_e2e::Stack;
use casemate_e2e::stack::eventually;
use casemate_e2e::tls::Authority;
use rustix::process::Signal;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const AWS_ROOT: &str = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b";

struct Told {
    exit: Exit,
    out: String,
    err: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }

    /// The last line of the answer.
    fn verdict(&self) -> &str {
        self.out.lines().last().unwrap_or_default()
    }

    /// Refused, with these words in the reason.
    fn refused(&self, words: &str) {
        assert_eq!(self.exit, Exit::Refused, "{}{}", self.out, self.err);
        assert!(self.verdict().starts_with("REFUSED: ") && self.verdict().contains(words), "{}", self.out);
    }
}

fn casemate<S: AsRef<str>>(arguments: &[S]) -> Told {
    let arguments: Vec<OsString> =
        std::iter::once("casemate").chain(arguments.iter().map(AsRef::as_ref)).map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = casemate::run(&arguments, &mut out, &mut err);
    Told { exit, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// The line of the banner, without the program's name.
fn line(stack: &Stack) -> Vec<String> {
    let line = stack.banner.split("casemate attest fetch").nth(1).expect("the banner has the line");
    let line = line.split("\n\n").next().unwrap().replace('\\', " ");
    let mut words = vec!["attest".to_owned(), "fetch".to_owned()];
    for (number, part) in line.split('\'').enumerate() {
        // What stands in quotes is one word.
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(ToOwned::to_owned));
        }
    }
    words
}

fn with(line: &[String], more: &[&str]) -> Vec<String> {
    line.iter().cloned().chain(more.iter().map(ToString::to_string)).collect()
}

/// The line without an option and its value.
fn without(line: &[String], option: &str) -> Vec<String> {
    let at = line.iter().position(|word| word == option).unwrap();
    line[..at].iter().chain(&line[at + 2..]).cloned().collect()
}

#[test]
fn the_banners_line_accepts_the_running_signer_and_awss_root_refuses_it() {
    let stack = Stack::start(PROGRAM, &["--interop-keys", "5"]);
    let line = line(&stack);
    let told = casemate(&line);
    assert_eq!((told.exit, told.verdict()), (Exit::Accepted, "ACCEPTED"), "{}{}", told.out, told.err);
    for words in [
        "i-0ca5e0ca5e0ca5e00-enc",
        "NOT AWS's root",
        "5 that sign",
        "the proxy lists the same keys",
        "hoodi",
        "fence",
        "blocks are signed until they are 2 slots old",
        "votes are signed until their target is 1 epoch old",
        "as expected",
    ] {
        assert!(told.out.contains(words), "{words}: {}", told.out);
    }
    casemate(&without(&line, "--root")).refused(AWS_ROOT);
    casemate(&without(&line, "--measurements")).refused("nothing was expected of PCR0, PCR1 and PCR2");
    let described = casemate(&with(&without(&line, "--measurements"), &["--describe-only"]));
    assert_eq!(described.exit, Exit::Accepted);
    assert!(described.verdict().starts_with("DESCRIBED, not accepted"), "{}", described.out);
    casemate(&with(&without(&line, "--measurements"), &["--pcr0", &"ab".repeat(48), "--describe-only"]))
        .refused("PCR0 is");

    // Each PCR by itself.
    let measured = casemate(&with(&line, &["--json"])).json();
    assert_eq!(measured["verdict"], "accepted");
    assert_eq!(measured["proxy_lists_the_same_keys"], true);
    assert_eq!(measured["statement"]["window"], json!({ "max_block_age_slots": 2, "max_target_age_epochs": 1 }));
    let pins: Vec<String> =
        (0..3).map(|i| measured["document"]["pcrs"][i.to_string()].as_str().unwrap().to_owned()).collect();
    let pinned = |pins: &[String]| {
        let options = ["--pcr0", &pins[0], "--pcr1", &pins[1], "--pcr2", &pins[2]];
        casemate(&with(&without(&line, "--measurements"), &options))
    };
    assert_eq!(pinned(&pins).exit, Exit::Accepted);
    for index in 0..3 {
        let mut wrong = pins.clone();
        wrong[index] = "0d".repeat(48);
        pinned(&wrong).refused(&format!("PCR{index} is"));
    }
    // PCR8 is zero here: nobody signed the image.
    casemate(&with(&line, &["--pcr8", &"00".repeat(48)])).refused("PCR8 is all zero");
    // At another time.
    casemate(&with(&line, &["--at", "2020-01-01T00:00:00Z"])).refused("not valid yet");
    casemate(&with(&line, &["--at", "2047-01-01T00:00:00Z"])).refused("expired");
}

#[test]
fn a_window_without_bounds_is_stated_in_words() {
    for plain in [&["--plain"][..], &[]] {
        let stack = Stack::start(PROGRAM, &[plain, &["--any-age", "--interop-keys", "1"]].concat());
        let told = casemate(&line(&stack));
        assert_eq!(told.exit, Exit::Accepted, "{}{}", told.out, told.err);
        for words in ["blocks of ANY age are signed", "votes of ANY age are signed"] {
            assert!(told.out.contains(words), "{words}: {}", told.out);
        }
    }
}

#[test]
fn the_statement_tells_keys_chain_configuration_and_start() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::start_in(PROGRAM, folder.path(), &["--interop-keys", "3"]);
    let keys = stack.client().get("/api/v1/eth2/publicKeys", &[]).body;
    let listed = folder.path().join("keys.json");
    std::fs::write(&listed, &keys).unwrap();
    let first = casemate(&with(&line(&stack), &["--json", "--public-keys", listed.to_str().unwrap()])).json();
    assert_eq!(first["verdict"], "accepted");
    assert_eq!(first["statement"]["public_keys"]["count"], 3);
    assert_eq!(first["statement"]["network"]["name"], "hoodi");
    let fence = &first["statement"]["fence"];
    assert_eq!((&fence["kind"], &fence["standing"]), (&"file".into(), &"holding".into()));
    // They begin with the time.
    assert!(fence["term"].as_u64().is_some_and(|term| term > 1_700_000_000), "{fence}");
    assert_eq!(fence["term"], fence["record"]["term"]);
    let state = &first["statement"]["state"];
    assert!(state["number"].as_u64().is_some_and(|number| number >= 1_700_000_000 << 32), "{state}");
    assert_eq!(fence["record"]["holder"], first["statement"]["boot_nonce"]);
    // Other keys than expected.
    let two = serde_json::from_str::<Vec<String>>(&keys).unwrap()[..2].join("\n");
    std::fs::write(&listed, two).unwrap();
    casemate(&with(&line(&stack), &["--public-keys", listed.to_str().unwrap()]))
        .refused("the keys that sign are others");
    assert!(stack.stop().success());

    // The root stays with the data; another start is another boot nonce and another HPKE key.
    let stack = Stack::start_in(PROGRAM, folder.path(), &["--interop-keys", "3"]);
    let second = casemate(&with(&line(&stack), &["--json"])).json();
    assert_eq!(first["root_sha256"], second["root_sha256"]);
    assert_eq!(first["statement"]["configuration_sha256"], second["statement"]["configuration_sha256"]);
    assert_eq!(first["statement"]["public_keys"], second["statement"]["public_keys"]);
    assert_ne!(first["statement"]["boot_nonce"], second["statement"]["boot_nonce"]);
    assert_ne!(first["document"]["public_key"], second["document"]["public_key"]);
    assert!(stack.stop().success());

    // Another configuration is another PCR2 and PCR0: the old measurements refuse it.
    let old = folder.path().join("old.json");
    let stack = Stack::start_in(PROGRAM, folder.path(), &["--interop-keys", "3", "--proof-of-validation"]);
    let measurements = json!({ "Measurements": {
        "HashAlgorithm": "Sha384 { ... }",
        "PCR0": first["document"]["pcrs"]["0"], "PCR1": first["document"]["pcrs"]["1"],
        "PCR2": first["document"]["pcrs"]["2"],
    } });
    std::fs::write(&old, measurements.to_string()).unwrap();
    let changed = with(&without(&line(&stack), "--measurements"), &["--measurements", old.to_str().unwrap()]);
    casemate(&changed).refused("PCR0 is");
    let third = casemate(&with(&line(&stack), &["--json"])).json();
    assert_ne!(third["statement"]["configuration_sha256"], first["statement"]["configuration_sha256"]);
    assert_eq!(third["document"]["pcrs"]["1"], first["document"]["pcrs"]["1"]);
}

#[test]
fn a_kept_answer_is_judged_again_later_and_not_taken_for_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::start_in(PROGRAM, folder.path(), &["--interop-keys", "1"]);
    let kept = folder.path().join("kept.json");
    let line = line(&stack);
    assert_eq!(casemate(&with(&line, &["--save", kept.to_str().unwrap()])).exit, Exit::Accepted);
    assert!(stack.stop().success());
    let verify = |more: &[&str]| {
        let mut options = with(&line[3..], more);
        options.splice(0..0, ["attest", "verify", kept.to_str().unwrap()].map(ToOwned::to_owned));
        casemate(&options)
    };
    let told = verify(&["--at", "document"]);
    assert_eq!(told.exit, Exit::Accepted, "{}{}", told.out, told.err);
    assert!(told.out.contains("1 that sign"), "{}", told.out);
    verify(&["--nonce", &"aa".repeat(32)]).refused("was expected");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    verify(&["--max-age", "1"]).refused("1 s are allowed");
    // A proxy that plays it back.
    let answer = std::fs::read_to_string(&kept).unwrap();
    let url = lie(&answer, 200);
    let mut fetch = line.clone();
    fetch[2] = url;
    casemate(&fetch).refused("the nonce is");
    // With another statement, or none.
    let mut json: Value = serde_json::from_str(&answer).unwrap();
    let statement = BASE64_STANDARD.decode(json["statement"].as_str().unwrap()).unwrap();
    let other = String::from_utf8_lossy(&statement).contains("hoodi");
    assert!(other);
    let mut changed = statement;
    let at = changed.windows(5).position(|w| w == b"hoodi").unwrap();
    changed[at] = b'H';
    json["statement"] = BASE64_STANDARD.encode(&changed).into();
    std::fs::write(&kept, json.to_string()).unwrap();
    let told = verify(&["--at", "document"]);
    told.refused("the document does not bind this statement");
    assert!(!told.out.contains("Hoodi"), "what is not bound is not shown: {}", told.out);
    json.as_object_mut().unwrap().remove("statement");
    fetch[2] = lie(&json.to_string(), 200);
    let told = casemate(&fetch);
    assert_eq!(told.exit, Exit::Unusable);
    assert!(told.err.contains("gave no statement"), "{}", told.err);
}

/// A proxy that answers everything with this.
fn lie(body: &str, status: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!(
        "HTTP/1.1 {status} Word\r\nContent-Type: application/json\r\nLocation: http://127.0.0.1:1/\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn answers_of_a_hostile_proxy_are_unusable_and_bounded() {
    let fetch = |url: &str| casemate(&["attest", "fetch", url]);
    let long = format!("{{\"message\": \"{}\\u001b[2J\"}}", "x".repeat(100_000));
    for (url, words) in [
        (lie("{}", 200), "not an answer of GET /attestation"),
        (lie("<html>", 200), "not an answer of GET /attestation"),
        (lie("{\"attestation_document\": \"not base64!\", \"statement\": \"\"}", 200), "is not base64"),
        (lie("{\"message\": \"the enclave is away\"}", 503), "503 Service Unavailable: the enclave is away"),
        (lie("", 302), "302"),
        (lie(&long, 500), "xxxx"),
        ("http://127.0.0.1:1".to_owned(), "127.0.0.1:1"),
        ("ftp://127.0.0.1:1".to_owned(), "not of the form"),
        // Without --tls-ca this machine's own authorities are enough to ask.
        ("https://127.0.0.1:1".to_owned(), "127.0.0.1:1"),
        ("127.0.0.1:9000".to_owned(), ""),
        ("http://127.0.0.1:1/?nonce=1".to_owned(), "has more in it"),
        ("http://127.0.0.1:1/#x".to_owned(), "has more in it"),
        ("http://me:secret@127.0.0.1:1".to_owned(), "has more in it"),
        (lie("{\"message\": \"\u{202e}DETPECCA\"}", 500), "u{202e}DETPECCA"),
        (lie(&format!("\"{}\"", "x".repeat(1_000_000)), 200), "not an answer"),
    ] {
        let told = fetch(&url);
        let nobody = words.starts_with("503") || url.ends_with("://127.0.0.1:1") && !url.starts_with("ftp");
        assert_eq!(told.exit, if nobody { Exit::NoAnswer } else { Exit::Unusable }, "{url}: {}", told.out);
        assert!(told.out.is_empty(), "{}", told.out);
        assert!(!told.err.contains("secret"), "{}", told.err);
        assert!(told.err.contains(words) && told.err.len() < 1000, "{words}: {}", told.err);
        assert!(!told.err.contains('\u{1b}'), "{:?}", told.err);
    }
    // More than any answer may have.
    let giant = fetch(&lie(&"x".repeat(17 << 20), 200));
    assert_eq!(giant.exit, Exit::Unusable);
    assert!(giant.err.len() < 1000, "{}", giant.err.len());
}

#[test]
fn nonces_are_checked_and_documents_are_rate_limited() {
    let stack = Stack::start(PROGRAM, &["--interop-keys", "1"]);
    let mut client = stack.client();
    for (query, words) in [
        ("", "one nonce is needed"),
        ("?nonce=", "0 hex digits"),
        ("?nonce=00112233445566", "14 hex digits; 16 to 128"),
        ("?nonce=zz112233445566778899", "not hex"),
        ("?nonce=0011223344556677&nonce=0011223344556677", "one nonce"),
    ] {
        let answer = client.get(&format!("/attestation{query}"), &[]);
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(answer.error().contains(words), "{query}: {answer:?}");
    }
    assert_eq!(client.post("/attestation?nonce=0011223344556677", "").status, 405);
    // A document for HEAD would be made and thrown away.
    let mut head = std::net::TcpStream::connect(stack.address).unwrap();
    let request = b"HEAD /attestation?nonce=0011223344556677 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    head.write_all(request).unwrap();
    let mut answer = String::new();
    head.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");

    // Eight at once; then each waits for its turn, and is not refused.
    let begun = Instant::now();
    for _ in 0..12 {
        assert_eq!(stack.client().get("/attestation?nonce=0011223344556677", &[]).status, 200);
    }
    assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());

    // More than the queue takes: the rest hears 429 at once, and an operator still gets through.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..40).map(|_| scope.spawn(|| stack.client().get("/attestation?nonce=0011223344556677", &[]))).collect();
        let operator = scope.spawn(|| casemate(&line(&stack)));
        let answers = all.into_iter().map(|one| one.join().unwrap()).collect();
        let told = operator.join().unwrap();
        assert_eq!(told.exit, Exit::Accepted, "{}{}", told.out, told.err);
        answers
    });
    let limited: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(answers.len() - limited.len() >= 8, "{} of 40", answers.len() - limited.len());
    assert!(!limited.is_empty());
    for answer in limited {
        assert_eq!(answer.status, 429, "{answer:?}");
        assert!(answer.error().contains("too many attestation documents"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    // Signing goes on meanwhile, and what was refused is in the log.
    assert_eq!(client.get("/upcheck", &[]).status, 200);
    eventually("the log", || stack.log().contains("not attested"));
}

/// A proxy in front of another proxy, which lists keys of its own.
fn relay(to: std::net::SocketAddr, keys: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            let len = stream.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..len]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let body = if path.starts_with("/attestation") {
                casemate_e2e::Client::connect(to).get(path, &[]).body
            } else {
                keys.clone()
            };
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    format!("http://{address}")
}

#[test]
fn a_proxy_of_another_enclave_is_found_out() {
    let stack = Stack::start(PROGRAM, &["--interop-keys", "2"]);
    let keys = stack.client().get("/api/v1/eth2/publicKeys", &[]).body;
    let mut line = line(&stack);
    line[2] = relay(stack.address, keys.clone());
    assert_eq!(casemate(&line).exit, Exit::Accepted, "a relay that changes nothing");
    let one: Vec<String> = serde_json::from_str::<Vec<String>>(&keys).unwrap()[..1].to_vec();
    line[2] = relay(stack.address, json!(one).to_string());
    casemate(&line).refused("the proxy lists other keys (1) than the enclave states (2)");
    line[2] = relay(stack.address, "nonsense".to_owned());
    assert!(casemate(&line).out.contains("the proxy does not list them"));
    // What the statement must say.
    let root = stack.client().get("/healthcheck", &[]).body;
    assert!(root.contains("hoodi"), "{root}");
    for (options, words) in [
        (["--network", "mainnet"], "the network is hoodi"),
        (["--group", "alpha"], "the group is dev; alpha was expected"),
        (["--fence", "etcd"], "the fence is of kind file; etcd was expected"),
    ] {
        casemate(&with(&line, &options)).refused(words);
    }
    let good = ["--network", "0x212f13fc4df078b6cb7db228f1c8307566dcecf900867401a92023d7ba99cb5f", "--group", "dev"];
    assert_eq!(casemate(&with(&line, &good)).exit, Exit::Accepted);
}

#[test]
fn what_runs_is_what_was_measured() {
    // A program whose file is exchanged while it runs: a vault that starts again is still the one that was measured.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    std::fs::copy(PROGRAM, &program).unwrap();
    let program: &'static str = Box::leak(program.to_str().unwrap().to_owned().into_boxed_str());
    let stack = Stack::start_in(program, &folder.path().join("my data"), &["--interop-keys", "1"]);
    std::fs::rename(program, folder.path().join("old")).unwrap();
    std::fs::write(program, b"another program").unwrap();
    let vault = stack.pids["vault"];
    let inode = |pid: u32| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!("/proc/{pid}/exe")).unwrap());
    let before = inode(vault);
    Stack::signal(vault, Signal::KILL);
    eventually("another vault", || stack.processes("vault").iter().any(|pid| *pid != vault));
    eventually("a document", || stack.client().get("/attestation?nonce=0011223344556677", &[]).status == 200);
    let vault = stack.processes("vault")[0];
    assert_eq!(inode(vault), before);
    // Its data lies in a folder with a space in its name, which the line quotes.
    let told = casemate(&line(&stack));
    assert_eq!(told.exit, Exit::Accepted, "{}{}", told.out, told.err);
}

#[test]
fn documents_come_over_tls_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        casemate_e2e::write_secret(&path, text);
        path.to_str().unwrap().to_owned()
    };
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (certificate, key) = servers.issue("localhost");
    let (own, own_key) = clients.issue("operator");
    let (own, own_key) = (file("own.pem", &own), file("own-key.pem", &own_key));
    let servers = file("servers.pem", &servers.pem());
    let stack = Stack::start(
        PROGRAM,
        &[
            "--interop-keys",
            "1",
            "--",
            "--tls-certificate",
            &file("cert.pem", &certificate),
            "--tls-key",
            &file("key.pem", &key),
            "--tls-client-ca",
            &file("clients.pem", &clients.pem()),
        ],
    );
    assert!(stack.banner.contains("--tls-ca"), "{}", stack.banner);
    let mut line =
        ["--tls-ca", "--tls-certificate", "--tls-key"].iter().fold(line(&stack), |l, option| without(&l, option));
    line[2] = format!("https://localhost:{}", stack.address.port());
    let told = casemate(&with(&line, &["--tls-ca", &servers, "--tls-certificate", &own, "--tls-key", &own_key]));
    assert_eq!(told.exit, Exit::Accepted, "{}{}", told.out, told.err);
    // Without a certificate of one's own, or of another authority, there is no answer to judge.
    assert_eq!(casemate(&with(&line, &["--tls-ca", &servers])).exit, Exit::NoAnswer);
    assert_eq!(casemate(&with(&line, &["--tls-ca", &own])).exit, Exit::NoAnswer);
    assert_eq!(casemate(&with(&line, &["--tls-ca", &own_key])).exit, Exit::Unusable);
    // Without --tls-ca this machine's authorities count, which the server's is not, until the machine is told of it.
    let without_ca = with(&line, &["--tls-certificate", &own, "--tls-key", &own_key]);
    assert_eq!(casemate(&without_ca).exit, Exit::NoAnswer);
    let asked = |authorities: &str| {
        let mut program = std::process::Command::new(PROGRAM);
        program.arg("__casemate").args(&without_ca).env("SSL_CERT_FILE", authorities).output().unwrap()
    };
    let output = asked(&servers);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(asked(&own).status.code(), Some(3));
    assert!(Path::new(&own).exists());
}
