//! The documents say what is true: the tests that they name exist, the bytes that they show are the golden ones, the
//! options that they list are those of `--help`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_of_the_threat_model_exists() {
    let text = read("docs/THREAT_MODEL.md");
    let mut named = 0;
    for line in text.lines().filter(|l| l.starts_with('|')) {
        for (file, test) in code(line).filter_map(|c| c.split_once(".rs::")) {
            let source = read(&format!("{file}.rs"));
            assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
            named += 1;
        }
    }
    assert!(named > 25, "only {named} tests are named");
    // Each attack of the first table names one.
    let table = text.split("## Attacks").nth(1).unwrap().split("\n## ").next().unwrap();
    for row in table.lines().filter(|l| l.starts_with("| ")).skip(1) {
        assert!(row.contains(".rs::"), "no test is named for: {row}");
    }
}

#[test]
fn the_frames_of_the_protocol_document_are_golden() {
    let golden = read("enclave/protocol/tests/golden-frames.txt");
    let mut shown = 0;
    for line in read("docs/PROTOCOL.md").lines() {
        let text = line.trim();
        if text.len() > 12 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            assert!(golden.lines().any(|l| l.ends_with(&format!(" {text}"))), "{text} is no golden frame");
            shown += 1;
        }
    }
    assert_eq!(shown, 2);
}

#[test]
fn the_operations_page_lists_the_proxys_options_with_their_defaults() {
    let help = Command::new(env!("CARGO_BIN_EXE_casemate-e2e-stack")).args(["__proxy", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let page = read("docs/OPERATIONS.md");
    let mut options = 0;
    for option in help.split_whitespace().filter(|w| w.starts_with("--") && w.len() > 2) {
        let option = option.trim_end_matches([',', ';', '.']);
        if !["--help", "--version", "--config"].contains(&option) {
            assert!(page.contains(option), "docs/OPERATIONS.md does not mention {option}");
            options += 1;
        }
    }
    assert!(options >= 15, "{help}");
    // A default that help names stands on the page too.
    for default in help.split("[default: ").skip(1).filter_map(|d| d.split(']').next()) {
        let default = default.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = default.replace("one for each core", "one a core");
        assert!(page.contains(&default), "docs/OPERATIONS.md does not say the default {default:?}");
    }
}

#[test]
fn the_operations_page_lists_the_options_of_casemate_attest() {
    let page = read("docs/OPERATIONS.md");
    for verb in ["verify", "fetch"] {
        let (mut help, mut errors) = (Vec::new(), Vec::new());
        let arguments = ["casemate", "attest", verb, "--help"].map(std::ffi::OsString::from);
        assert_eq!(casemate::run(&arguments, &mut help, &mut errors), casemate::Exit::Accepted);
        let help = String::from_utf8(help).unwrap();
        let mut options = 0;
        for option in help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).filter(|w| w.len() > 2) {
            if option.starts_with("--") && option != "--help" {
                assert!(page.contains(option), "docs/OPERATIONS.md does not mention {option}");
                options += 1;
            }
        }
        assert!(options >= 12, "{help}");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut links = 0;
    for path in [
        "README.md",
        "docs/THREAT_MODEL.md",
        "docs/ARCHITECTURE.md",
        "docs/API.md",
        "docs/PROTOCOL.md",
        "docs/OPERATIONS.md",
        "docs/PERFORMANCE.md",
        "docs/MIGRATION.md",
        "docs/REPRODUCE.md",
        "docs/RELIABILITY.md",
    ] {
        let text = read(path);
        let folder = root().join(path).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            let file = target.split('#').next().unwrap();
            assert!(target.starts_with("http") || folder.join(file).exists(), "{path} links to {target}");
            links += 1;
        }
    }
    assert!(links > 5);
}

/// What a subcommand's help lists.
fn options_of(words: &[&str]) -> Option<String> {
    let arguments: Vec<_> = [&["casemate"], words, &["--help"]].concat().iter().map(std::ffi::OsString::from).collect();
    let mut help = Vec::new();
    (casemate::run(&arguments, &mut help, &mut Vec::new()) == casemate::Exit::Accepted)
        .then(|| String::from_utf8(help).unwrap())
}

#[test]
fn commands_in_the_documents_have_the_options_that_they_use() {
    let mut checked = 0;
    for page in ["README.md", "docs/OPERATIONS.md", "docs/MIGRATION.md", "docs/REPRODUCE.md", "docs/THREAT_MODEL.md"] {
        let text = read(page).replace("\\\n", " ").replace("-p casemate --", "casemate");
        let lines = text.lines().filter_map(|line| line.strip_prefix("    ")).map(str::trim);
        let inline = text.lines().flat_map(code);
        for command in lines.chain(inline) {
            let Some(at) = command.find("casemate ").filter(|at| command[..*at].split(' ').all(|w| !w.contains('`')))
            else {
                continue;
            };
            let words: Vec<&str> = command[at..].split('#').next().unwrap().split_whitespace().skip(1).collect();
            let plain =
                |word: &&&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !word.starts_with('-');
            let names: Vec<&str> = words.iter().take_while(plain).take(2).copied().collect();
            // `casemate import`, or `casemate slashing export`; whatever stands behind is an argument.
            let help = (1..=names.len()).rev().find_map(|n| options_of(&names[..n]));
            let Some(help) = help else { continue };
            for option in words.iter().filter_map(|word| word.strip_prefix("--")).filter(|word| !word.is_empty()) {
                let option: String = option.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
                assert!(
                    help.contains(&format!("--{option}")),
                    "{page}: `{command}` has --{option}, which `casemate {}` does not take",
                    names.join(" ")
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 60, "only {checked} options were checked");
}
