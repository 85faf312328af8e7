//! The vault's dependency tree: no runtime, no logger, no way to a file or the network.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::process::Command;

/// Crates that would open a door. Matched by name, or by prefix where it ends in `-`.
const FORBIDDEN: &[&str] = &[
    "async-",
    "aws-config",
    "aws-sdk-",
    "aws-smithy-",
    "axum",
    "chrono",
    "clap",
    "env_logger",
    "fs-err",
    "futures-",
    "h2",
    "hyper",
    "hyper-",
    "indicatif",
    "mio",
    "opentelemetry",
    "polling",
    "quinn",
    "reqwest",
    "native-tls",
    "openssl-",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "tokio-",
    "toml",
    "tower",
    "tracing",
    "tracing-",
    "ureq",
    "vsock",
    "walkdir",
];

/// Everything that the vault is made of. A new name here is a decision: docs/DEPENDENCIES.md says why each is needed.
const EXPECTED: &[&str] = &[
    "aws-lc-rs",
    "aws-lc-sys",
    "aws-nitro-enclaves-nsm-api",
    "base64",
    "bcder",
    "bitflags",
    "blst",
    "bytes",
    "casemate-fence",
    "casemate-keystore",
    "casemate-protocol",
    "casemate-sandbox",
    "casemate-slashing",
    "casemate-vault",
    "cfg-if",
    "const-hex",
    "cpufeatures",
    "half",
    // Of aws-nitro-enclaves-nsm-api: the ioctl, and a logger's front without a logger behind it.
    "log",
    "nix",
    "serde",
    "serde_bytes",
    "serde_cbor",
    "serde_core",
    "serde_derive",
    "smallvec",
    "thiserror",
    "thiserror-impl",
    "zeroize",
    "zeroize_derive",
    // Named by blst for batch verification; its feature `no-threads` leaves their code out.
    "libc",
    "num_cpus",
    "threadpool",
    // TLS to KMS, without a socket: rustls, its certificate paths, Amazon's roots; the HTTP and JSON within.
    "httparse",
    "itoa",
    "memchr",
    "once_cell",
    "rustls",
    "rustls-pki-types",
    "rustls-webpki",
    "serde_json",
    "subtle",
    "untrusted",
    "webpki-roots",
    "zmij",
    // The sandbox: filters, limits, and the calls that set them.
    "linux-raw-sys",
    "rustix",
    "seccompiler",
    // Macros of serde, thiserror and zeroize: they run in the compiler, not in the vault.
    "proc-macro2",
    "quote",
    "syn",
    "unicode-ident",
];

#[test]
fn the_dependency_tree_opens_no_door() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "casemate-vault", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> =
        tree.lines().filter_map(|line| line.split(' ').next()).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.contains(&"blst"), "the tree was not read: {tree}");
    for name in &names {
        let forbidden = FORBIDDEN.iter().any(|f| if f.ends_with('-') { name.starts_with(f) } else { name == f });
        assert!(!forbidden, "the vault must not depend on {name}");
    }
    let new: Vec<_> = names.iter().filter(|n| !EXPECTED.contains(n)).collect();
    assert!(new.is_empty(), "new in the vault's tree: {new:?}; say why in docs/DEPENDENCIES.md and add it here");
}
