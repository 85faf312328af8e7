//! `casemate attest verify` as a program: forms of input, exit codes, real documents.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_nsm::{Authority, Pcrs, Request, Response, SoftwareNsm, root_params};
use serde_json::{Value, json};

fn casemate(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["attest", "verify"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its options does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn verdict(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().last().unwrap_or_else(|| panic!("{output:?}")).to_owned()
}

/// A document that was made just now, with its root and its pins.
struct Made {
    folder: tempfile::TempDir,
    document: Vec<u8>,
    pins: Vec<String>,
}

impl Made {
    fn new(pcrs: &Pcrs) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Authority::root(root_params()).unwrap();
        std::fs::write(folder.path().join("root.der"), &root.der).unwrap();
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE", root.der.as_slice()));
        std::fs::write(folder.path().join("root.pem"), pem).unwrap();
        let nsm = SoftwareNsm::new(root, "i-0123456789abcdef0-enc0123456789abcdef", pcrs, Box::new(now));
        let request = Request::Attestation {
            user_data: Some(serde_bytes::ByteBuf::from(b"data")),
            nonce: Some(serde_bytes::ByteBuf::from(b"nonce")),
            public_key: None,
        };
        let Response::Attestation { document } = nsm.process(request) else { panic!("no document") };
        let pins = (0..3).map(|i| const_hex::encode(pcrs.0.get(&i).copied().unwrap_or([0; 48]))).collect();
        Self { folder, document, pins }
    }

    fn good() -> Self {
        Self::new(&Pcrs::measure(b"boot", b"application", "i-0123456789abcdef0"))
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// With root and pins, and more.
    fn verify(&self, input: &[u8], more: &[&str]) -> Output {
        let root = self.file("root.pem");
        let mut options = vec!["-", "--root", &root, "--pcr0", &self.pins[0], "--pcr1", &self.pins[1]];
        options.extend(["--pcr2", &self.pins[2]]);
        options.extend(more);
        casemate(&options, input)
    }
}

fn now() -> u64 {
    u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

#[test]
fn every_form_of_a_document_is_accepted() {
    let made = Made::good();
    let raw = &made.document;
    for form in [
        raw.clone(),
        [&[0xd2], raw.as_slice()].concat(),
        BASE64_STANDARD.encode(raw).into_bytes(),
        const_hex::encode(raw).into_bytes(),
        pem::encode(&pem::Pem::new("ATTESTATION DOCUMENT", raw.as_slice())).into_bytes(),
        json!({ "attestation_document": BASE64_STANDARD.encode(raw) }).to_string().into_bytes(),
    ] {
        let output = made.verify(&form, &[]);
        assert_eq!((code(&output), verdict(&output).as_str()), (0, "ACCEPTED"), "{output:?}");
    }
    // From a file, with a DER root.
    std::fs::write(made.file("document"), raw).unwrap();
    let [pcr0, pcr1, pcr2] = [&made.pins[0], &made.pins[1], &made.pins[2]];
    let (file, root) = (made.file("document"), made.file("root.der"));
    let output = casemate(&[&file, "--root", &root, "--pcr0", pcr0, "--pcr1", pcr1, "--pcr2", pcr2], &[]);
    assert_eq!(code(&output), 0, "{output:?}");
}

#[test]
fn expectations_decide() {
    let made = Made::good();
    let judged = |more: &[&str]| {
        let output = made.verify(&made.document, more);
        (code(&output), verdict(&output))
    };
    let nonce = const_hex::encode("nonce");
    assert_eq!(judged(&["--nonce", &nonce]).0, 0);
    assert_eq!(judged(&["--nonce", &format!("0x{nonce}")]).0, 0);
    assert_eq!(judged(&["--nonce", "00"]), (1, "REFUSED: the nonce is 6e6f6e6365; 00 was expected".to_owned()));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (exit, told) = judged(&["--max-age", "0"]);
    assert!(exit == 1 && told.contains("0 s are allowed"), "{told}");
    let (exit, told) = judged(&["--pcr8", &"11".repeat(48)]);
    assert!(exit == 1 && told.contains("PCR8 is all zero"), "{told}");
    let (exit, told) = judged(&["--at", "2001-01-01T00:00:00Z"]);
    assert!(exit == 1 && told.contains("not valid yet"), "{told}");
    assert_eq!(judged(&["--at", "document"]).0, 0);

    let measured = json!({ "Measurements": {
        "HashAlgorithm": "Sha384 { ... }", "PCR0": made.pins[0], "PCR1": made.pins[1], "PCR2": made.pins[2],
    } });
    std::fs::write(made.file("measurements.json"), measured.to_string()).unwrap();
    let (root, measurements) = (made.file("root.pem"), made.file("measurements.json"));
    let by_file = |more: &[&str]| {
        let options = [&["-", "--root", &root, "--measurements", &measurements], more].concat();
        code(&casemate(&options, &made.document))
    };
    assert_eq!(by_file(&[]), 0);
    assert_eq!(by_file(&["--pcr0", &made.pins[0]]), 0);
    // Two words for one PCR.
    assert_eq!(by_file(&["--pcr0", &"22".repeat(48)]), 2);

    // A statement that is not the one behind user_data.
    std::fs::write(made.file("statement"), b"\xa0").unwrap();
    let (exit, told) = judged(&["--statement", &made.file("statement")]);
    assert!(exit == 1 && told.contains("does not bind this statement"), "{told}");
    // Keys can only be told by a statement.
    std::fs::write(made.file("keys"), "ab".repeat(48)).unwrap();
    let (exit, told) = judged(&["--public-keys", &made.file("keys")]);
    assert!(exit == 1 && told.contains("public_keys expected, but no statement came with the document"), "{told}");
}

#[test]
fn debug_images_are_accepted_only_by_name() {
    let made = Made::new(&Pcrs(std::collections::BTreeMap::from([(4, [7; 48])])));
    let root = made.file("root.pem");
    let judged = |more: &[&str]| {
        let output = casemate(&[&["-", "--root", &root], more].concat(), &made.document);
        (code(&output), verdict(&output), String::from_utf8(output.stdout).unwrap())
    };
    let zeros = "00".repeat(48);
    for more in [&[][..], &["--pcr0", &zeros, "--pcr1", &zeros, "--pcr2", &zeros]] {
        let (exit, told, _) = judged(more);
        assert!(exit == 1 && told.contains("debug mode"), "{told}");
    }
    // By name alone it is not enough: zeros must be expected, for they say nothing about what runs.
    let (exit, told, _) = judged(&["--allow-debug"]);
    assert!(exit == 1 && told.contains("nothing was expected of PCR0, PCR1 and PCR2"), "{told}");
    assert!(told.contains("expect zeros"), "{told}");
    let (exit, told, text) = judged(&["--allow-debug", "--pcr0", &zeros, "--pcr1", &zeros, "--pcr2", &zeros]);
    assert!(exit == 0 && told.starts_with("ACCEPTED in debug mode"), "{told}");
    assert!(text.contains("IN DEBUG MODE"), "{text}");
    let (exit, told, _) = judged(&["--allow-debug", "--pcr0", &"33".repeat(48), "--pcr1", &zeros, "--pcr2", &zeros]);
    assert!(exit == 1 && told.contains("PCR0 is"), "{told}");
    // Shown without being accepted.
    let (exit, told, text) = judged(&["--describe-only"]);
    assert!(exit == 0 && told.starts_with("DESCRIBED, not accepted"), "{told}");
    assert!(text.contains("IN DEBUG MODE"), "{text}");
    assert_eq!(judged(&["--describe-only", "--nonce", "00"]).0, 1);
}

#[test]
fn unusable_input_is_2_and_says_what_to_do() {
    let made = Made::good();
    std::fs::write(made.file("empty"), b"").unwrap();
    std::fs::write(made.file("text"), b"hello, world!").unwrap();
    std::fs::write(made.file("blank"), b" \n").unwrap();
    std::fs::write(made.file("large"), vec![0x84; (1 << 20) + 1]).unwrap();
    let file = |name: &str| made.file(name);
    for (options, words) in [
        (vec!["/nowhere/at/all".to_owned()], "opening /nowhere/at/all"),
        (vec![file("empty")], "is empty"),
        (vec!["-".to_owned()], "standard input is empty"),
        (vec![file("text")], "neither PEM nor base64 nor hex"),
        (vec![file("large")], "longer than 1048576 bytes"),
        (vec![made.folder.path().to_str().unwrap().to_owned()], "reading"),
        (vec![file("root.der"), "--root".to_owned(), file("text")], "neither PEM"),
        (vec![file("root.der"), "--root".to_owned(), file("large")], "longer than"),
        (vec![file("root.der"), "--pcr0".to_owned(), "abc".to_owned()], "3 characters; a PCR is 96 hex digits"),
        (vec![file("root.der"), "--nonce".to_owned(), "xyz".to_owned()], "--nonce is not hex"),
        (vec![file("root.der"), "--nonce".to_owned(), String::new()], "--nonce is 0 bytes long"),
        (vec![file("root.der"), "--at".to_owned(), "yesterday".to_owned()], "neither now, document"),
        (vec![file("root.der"), "--max-age=-1".to_owned()], "max-age"),
        (vec![file("root.der"), "--measurements".to_owned(), file("text")], "not a file of measurements"),
        (vec![file("root.der")], "neither CBOR nor PEM"),
        (vec![file("root.der"), "--max-age=5".to_owned(), "--at=document".to_owned()], "--max-age says nothing"),
        (vec![file("root.der"), "--public-keys".to_owned(), file("blank")], "there is no key in it"),
        (vec![file("root.der"), "--fence".to_owned(), "wall".to_owned()], "wall"),
        (vec![file("root.der"), "--fence".to_owned(), "dynamodb:casemate-fence".to_owned()], "dynamodb:ARN"),
        (vec![file("root.der"), "--fence".to_owned(), "etcd:cdf8".to_owned()], "16 hex digits"),
        (vec![file("root.der"), "--unknown".to_owned()], "--unknown"),
        (vec![], "FILE"),
    ] {
        let output = casemate(&options.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        let told = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(code(&output), 2, "{options:?}: {output:?}");
        assert!(told.contains(words), "{options:?}: {told}");
        assert!(output.stdout.is_empty());
    }
    // What could be a document and is none is refused.
    let output = casemate(&["-"], &[0x84, 0x44]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(verdict(&output).starts_with("REFUSED: malformed CBOR"), "{output:?}");
}

fn real() -> Option<Vec<(Value, PathBuf)>> {
    let folder = casemate_testdata::folder("nitro-attestation")?;
    let index = casemate_testdata::json(&folder.join("INDEX.json"));
    let entries = index["documents"].as_array().unwrap().clone();
    Some(entries.into_iter().map(|e| (e.clone(), folder.join(Path::new(e["file"].as_str().unwrap())))).collect())
}

#[test]
fn real_documents_are_judged_as_the_index_says() {
    let Some(documents) = real() else { return };
    for (entry, path) in documents {
        let path = path.to_str().unwrap();
        let [pcr0, pcr1, pcr2] = [0, 1, 2].map(|i| entry[format!("pcr{i}")].as_str().unwrap_or_default().to_owned());
        if pcr0.is_empty() {
            continue;
        }
        let pins = ["--pcr0", &pcr0, "--pcr1", &pcr1, "--pcr2", &pcr2];
        let judge = |more: &[&str]| casemate(&[&[path, "--at", "document", "--json"], more].concat(), &[]);
        let output = judge(&pins);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (valid, debug) = (entry["verdict"] == "valid", entry["debug_mode_pcrs_zero"] == true);
        assert_eq!(code(&output), i32::from(!valid || debug), "{path}: {told:#}");
        assert_eq!(told["verdict"], if valid && !debug { "accepted" } else { "refused" }, "{path}");
        assert_eq!(told["document_sha256"], entry["sha256"], "{path}");
        if valid {
            assert_eq!(told["root_is_aws_g1"], true);
            assert_eq!(told["document"]["module_id"], entry["module_id"], "{path}");
            assert_eq!(told["document"]["debug"], entry["debug_mode_pcrs_zero"], "{path}");
            let output = judge(&[&pins[..], &["--allow-debug"]].concat());
            assert_eq!(code(&output), 0, "{path}: {output:?}");
            // Today its leaf is long expired.
            let output = casemate(&[&[path], &pins[..]].concat(), &[]);
            assert!(code(&output) == 1 && verdict(&output).contains("--at document"), "{path}: {output:?}");
        } else {
            assert!(told["document"].is_null(), "what is not verified is not shown: {told:#}");
        }
    }
}
