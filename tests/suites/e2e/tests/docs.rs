//! The documents say what is true: the tests that they name exist, the bytes that they show are the golden ones, the
//! options that they list are those of `--help`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every document: the repository's own pages, and all below docs/.
fn documents() -> Vec<String> {
    fn below(folder: &str, pages: &mut Vec<String>) {
        let mut entries: Vec<_> =
            fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            let path = format!("{folder}/{}", entry.file_name().unwrap().to_str().unwrap());
            if entry.is_dir() {
                below(&path, pages);
            } else if entry.extension().is_some_and(|ext| ext == "md") {
                pages.push(path);
            }
        }
    }
    let mut pages: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "tests/README.md", "eif-build/README.md"]
            .map(String::from)
            .into();
    below("docs", &mut pages);
    assert!(pages.len() > 40, "only {} pages were found", pages.len());
    pages
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
fn the_proxys_page_lists_its_options_with_their_defaults() {
    let help = Command::new(env!("CARGO_BIN_EXE_casemate-e2e-stack")).args(["__proxy", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let page = read("docs/operations/proxy.md");
    let mut options = 0;
    for option in help.split_whitespace().filter(|w| w.starts_with("--") && w.len() > 2) {
        let option = option.trim_end_matches([',', ';', '.']);
        if !["--help", "--version", "--config"].contains(&option) {
            assert!(page.contains(option), "docs/operations/proxy.md does not mention {option}");
            options += 1;
        }
    }
    assert!(options >= 15, "{help}");
    // A default that help names stands on the page too.
    for default in help.split("[default: ").skip(1).filter_map(|d| d.split(']').next()) {
        let default = default.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = default.replace("one for each core", "one a core");
        assert!(page.contains(&default), "docs/operations/proxy.md does not say the default {default:?}");
    }
}

#[test]
fn the_page_on_verifying_lists_the_options_of_casemate_attest() {
    let page = read("docs/operations/verify.md");
    for verb in ["verify", "fetch"] {
        let (mut help, mut errors) = (Vec::new(), Vec::new());
        let arguments = ["casemate", "attest", verb, "--help"].map(std::ffi::OsString::from);
        assert_eq!(casemate::run(&arguments, &mut help, &mut errors), casemate::Exit::Accepted);
        let help = String::from_utf8(help).unwrap();
        let mut options = 0;
        for option in help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).filter(|w| w.len() > 2) {
            if option.starts_with("--") && option != "--help" {
                assert!(page.contains(option), "docs/operations/verify.md does not mention {option}");
                options += 1;
            }
        }
        assert!(options >= 12, "{help}");
    }
}

/// The name under which a heading can be linked to, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The lines of a page that are not inside a fence of three backticks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut links = 0;
    let mut sections = 0;
    for path in documents() {
        let text = read(&path);
        let folder = root().join(&path).parent().unwrap().to_owned();
        // `[words](target)`, and `[name]: target`.
        let inline = text.split("](").skip(1).filter_map(|t| t.split(')').next());
        let listed = text.lines().filter(|l| l.starts_with('[')).filter_map(|l| l.split_once("]: ")).map(|(_, t)| t);
        for target in inline.chain(listed) {
            links += 1;
            if target.starts_with("http") {
                continue;
            }
            let (file, section) =
                target.split_once('#').map_or((target, None), |(file, section)| (file, Some(section)));
            let to = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            assert!(to.exists(), "{path} links to {target}");
            let Some(section) = section else { continue };
            let page = fs::read_to_string(&to).unwrap();
            let mut headings =
                prose(&page).filter(|l| l.starts_with('#')).map(|l| anchor(l.trim_start_matches('#').trim()));
            assert!(headings.any(|heading| heading == section), "{path} links to {target}, which has no such section");
            sections += 1;
        }
    }
    assert!(links > 200, "only {links} links");
    assert!(sections > 25, "only {sections} links to sections");
}

/// A page that no other links to is read by nobody.
#[test]
fn every_document_is_linked_from_another() {
    let pages = documents();
    let targets: Vec<PathBuf> = pages
        .iter()
        .flat_map(|path| {
            let folder = root().join(path).parent().unwrap().to_owned();
            let text = read(path);
            let found: Vec<PathBuf> = text
                .split("](")
                .skip(1)
                .filter_map(|t| t.split([')', '#']).next())
                .filter(|t| !t.is_empty() && !t.starts_with("http"))
                .filter_map(|t| folder.join(t).canonicalize().ok())
                .collect();
            found
        })
        .collect();
    for page in pages.iter().filter(|page| !["README.md", "eif-build/README.md"].contains(&page.as_str())) {
        let at = root().join(page).canonicalize().unwrap();
        assert!(targets.contains(&at), "no document links to {page}");
    }
}

#[test]
fn pictures_are_made_from_their_sources() {
    let check = Command::new(root().join("docs/diagrams/render")).arg("--check").output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
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
    for page in documents() {
        let text = read(&page).replace("\\\n", " ").replace("-p casemate --", "casemate");
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
            // `casemate keys import`, or `casemate history export`; whatever stands behind is an argument.
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

fn configuration(path: &str) -> casemate_protocol::Configuration {
    casemate_config::configuration(&read(path), casemate_protocol::Bytes([0; 32]))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn example_configurations_are_taken() {
    use casemate_protocol::statement::FenceKind;
    for (path, kind) in [
        ("docs/examples/casemate.toml", FenceKind::Dynamodb),
        ("docs/examples/casemate-etcd.toml", FenceKind::Etcd),
        ("docs/examples/casemate-solo.toml", FenceKind::Solo),
    ] {
        let configuration = configuration(path);
        assert_eq!(configuration.fence.kind(), kind, "{path}");
        assert_eq!((configuration.operators.threshold, configuration.operators.keys.len()), (2, 3), "{path}");
        let window = configuration.policy.window;
        assert_eq!(window, casemate_protocol::configuration::Window::default(), "{path}");
        assert!(configuration.policy.fee_recipient.is_some(), "{path}");
    }
    casemate_config::parse(&read("docs/examples/network.toml")).unwrap();
    // A network file and a policy fit into a configuration, as the development stack puts them there.
    let base: toml::Table = read("docs/examples/casemate.toml").parse().unwrap();
    for (name, path) in [("policy", "docs/examples/policy.toml"), ("network", "docs/examples/network.toml")] {
        let table: toml::Table = read(path).parse().unwrap();
        let mut whole = base.clone();
        whole.insert(name.to_owned(), table.into());
        let text = toml::to_string(&whole).unwrap();
        casemate_config::configuration(&text, casemate_protocol::Bytes([0; 32]))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}

/// The lines of TOML in a page's first fence.
fn toml_of(page: &str) -> String {
    let text = read(page);
    text.split("```toml\n")
        .nth(1)
        .and_then(|t| t.split("```").next())
        .unwrap_or_else(|| panic!("{page}: no TOML"))
        .to_owned()
}

#[test]
fn the_configurations_in_the_pages_are_taken() {
    // Their dots stand for what each operator fills in.
    let operators = ["1", "2", "3"].map(|digit| format!("\"0x{}\"", digit.repeat(64))).join(", ");
    let filled = toml_of("docs/operations/configuration.md").replace("\"0x…\", \"0x…\", \"0x…\"", &operators);
    let filled = filled.replace("0x…", &format!("0x{}", "22".repeat(20))).replace("key/…", "key/1");
    casemate_config::configuration(&filled, casemate_protocol::Bytes([0; 32]))
        .unwrap_or_else(|e| panic!("{e}:\n{filled}"));
    let network = toml_of("docs/operations/networks.md").replace('…', &"11".repeat(32));
    casemate_config::parse(&network).unwrap_or_else(|e| panic!("{e}:\n{network}"));
}

/// The words of `ExecStart=`, with its continued lines.
fn exec_start(path: &str) -> Vec<String> {
    let unit = read(path).replace("\\\n", " ");
    let line =
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap_or_else(|| panic!("{path}: no ExecStart"));
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_example_of_the_proxys_unit_starts_the_proxy() {
    let words = exec_start("docs/examples/casemate-proxy.service");
    assert!(words[0].ends_with("/casemate-proxy"));
    // The proxy's own parser: an option that it does not have, or a value that is none, is an error.
    let settings = casemate_proxy::settings::Settings::from_arguments(words.into_iter().map(Into::into)).unwrap();
    assert!(settings.tls().is_some_and(|tls| tls.client_ca.is_some()));
    let targets: Vec<String> = settings.egress_allow.iter().map(|allowed| allowed.target.to_string()).collect();
    // What the example of the configuration needs: KMS and the table, in its region.
    assert_eq!(targets, ["kms", "dynamodb"].map(|service| format!("{service}.eu-central-1.amazonaws.com:443")));
    assert!(settings.signing_log.is_some());

    let file = root().join("docs/examples/proxy.toml");
    let arguments = ["casemate-proxy", "--config", file.to_str().unwrap()].map(Into::into);
    let settings = casemate_proxy::settings::Settings::from_arguments(arguments).unwrap();
    assert_eq!(settings.enclave.len(), 2);
    assert_eq!(settings.hosts().unwrap(), ["signer.internal"]);
}

#[test]
fn every_direct_dependency_of_production_has_its_reason() {
    let page = read("docs/DEPENDENCIES.md");
    let words: Vec<&str> = page.split(|c: char| !(c.is_ascii_alphanumeric() || ['-', '_'].contains(&c))).collect();
    let mut named = 0;
    for folder in [
        "attestation/document",
        "attestation/operator",
        "eif-build",
        "enclave/broker",
        "enclave/config",
        "enclave/fence",
        "enclave/init",
        "enclave/keystore",
        "enclave/protocol",
        "enclave/sandbox",
        "enclave/slashing",
        "enclave/socket",
        "enclave/vault",
        "parent-proxy",
    ] {
        let manifest: toml::Table = read(&format!("{folder}/Cargo.toml")).parse().unwrap();
        for name in manifest["dependencies"].as_table().unwrap().keys().filter(|name| !name.starts_with("casemate")) {
            assert!(words.contains(&name.as_str()), "docs/DEPENDENCIES.md does not say why {folder} needs {name}");
            named += 1;
        }
    }
    assert!(named > 100, "only {named} dependencies");
}
