//! What an image is made with (pinned.toml), compared with what is here.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The file.
pub const TEXT: &str = include_str!("../pinned.toml");

/// pinned.toml.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Debian packages and their versions.
    pub tools: BTreeMap<String, String>,
    /// The kernel's source.
    pub kernel: Source,
}

/// A Debian package with a kernel's source.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the .deb.
    pub sha256: String,
    /// SHA-256 of the kernel.
    pub bzimage: String,
}

impl Pinned {
    /// What is pinned.
    pub fn read() -> Result<Self> {
        toml::from_str(TEXT).context("pinned.toml")
    }

    /// A sentence for each tool that is another one here.
    pub fn differences(&self) -> Vec<String> {
        let tools = self.tools.iter().map(|(package, pinned)| (package, pinned, installed(package)));
        tools
            .filter(|(_, pinned, found)| found.as_ref() != Some(pinned))
            .map(|(package, pinned, found)| {
                let found = found.map_or("missing".to_owned(), |found| format!("version {found}"));
                format!(
                    "{package} is {found} here; version {pinned} is pinned: PCRs may be others than everybody else's"
                )
            })
            .collect()
    }

    /// What is installed of the tools, in one line.
    pub fn found(&self) -> String {
        let tools = self.tools.keys().map(|package| format!("{package} {}", installed(package).unwrap_or_default()));
        tools.collect::<Vec<_>>().join(", ")
    }

    /// Linux's version.
    pub fn linux(&self) -> &str {
        self.kernel.version.split('-').next().unwrap_or(&self.kernel.version)
    }
}

/// The version of a Debian package that is installed.
pub fn installed(package: &str) -> Option<String> {
    let out = Command::new("dpkg-query").args(["-W", "-f", "${Status} ${Version}", package]).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.strip_prefix("install ok installed ").map(str::to_owned)
}
