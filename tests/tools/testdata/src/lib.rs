//! Where the real test data lies: `CASEMATE_DATA`, or `../shared/data` beside the checkout.
//!
//! A test takes whatever files its folder holds, never a fixed list, and says so when the folder is absent.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "only tests use this crate, and a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder `name` of the test data, or `None` after saying on standard error that the test was skipped.
pub fn folder(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("CASEMATE_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/data"), PathBuf::from);
    let folder = root.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no test data at {} (set CASEMATE_DATA)", folder.display());
    None
}

/// Every file below `folder` whose name ends with `suffix`, in a fixed order.
pub fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(folder) = todo.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.to_string_lossy().ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A JSON file, parsed.
pub fn json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
