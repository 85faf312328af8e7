//! Finds out which commit is built: `CASEMATE_COMMIT` where there is no repository (a source archive), git otherwise.
//!
//! A development build names none: it would have to be made anew with each edit, and all that is linked with it.

use std::path::Path;
use std::process::Command;

/// What goes into the programs. Documentation does not.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "attestation", "eif-build", "enclave", "parent-proxy"];

fn main() {
    println!("cargo::rerun-if-env-changed=CASEMATE_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=CASEMATE_BUILT_FROM={}", built_from());
}

fn built_from() -> String {
    if let Some(commit) = std::env::var("CASEMATE_COMMIT").ok().filter(|commit| is_commit(commit)) {
        return format!("commit {}", short(&commit));
    }
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return "development build".to_owned();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let git = |arguments: &[&str]| {
        let done = Command::new("git").arg("-C").arg(&root).args(arguments).output().ok()?;
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--verify", "HEAD"]).filter(|commit| is_commit(commit)) else {
        return "commit not known".to_owned();
    };
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={}", root.join(path).display());
        }
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(SOURCES);
    let modified = git(&status).is_none_or(|changes| !changes.is_empty());
    format!("commit {}{}", short(&commit), if modified { ", modified" } else { "" })
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn short(commit: &str) -> String {
    commit.chars().take(12).collect()
}
