//! Images for tests: those of production, and the same with the vault that trusts the local KMS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use casemate_eif::build::{Checkout, MeasuredConfig, Programs, image};
use casemate_eif::kernel::{From, kernel};
use casemate_eif::pinned::Pinned;
use casemate_eif::report;

/// Makes images of one checkout.
pub struct Images {
    kernel: Vec<u8>,
    linux: String,
    init: Vec<u8>,
    vault: Vec<u8>,
    broker: Vec<u8>,
}

impl Images {
    /// With the production vault.
    pub fn production() -> Result<Self> {
        Self::with_vault("casemate-vault")
    }

    /// With the vault whose KMS may be the local one.
    pub fn with_local_kms() -> Result<Self> {
        Self::with_vault("casemate-vm-vault")
    }

    fn with_vault(vault: &str) -> Result<Self> {
        let cache = std::env::var_os("CASEMATE_CACHE").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/casemate"));
        let cache = cache.or_else(home).context("HOME is not set")?;
        let checkout = Checkout::find(Path::new(env!("CARGO_MANIFEST_DIR")))?;
        let [init, vault, broker] = checkout.compile(["casemate-init", vault, "casemate-broker"])?;
        let kernel = kernel(&cache, &From::Apt)?.image;
        Ok(Self { kernel, linux: Pinned::read()?.linux().to_owned(), init, vault, broker })
    }

    /// Writes the image of this configuration, and its measurements; the digest of the configuration.
    pub fn write(&self, configuration: &str, path: &Path, measurements: &Path) -> Result<()> {
        let Self { init, vault, broker, .. } = self;
        let programs = Programs { init: init.clone(), vault: vault.clone(), broker: broker.clone() };
        let bytes = image(&self.kernel, &self.linux, programs, &MeasuredConfig::from_text(configuration.to_owned())?)?;
        fs::write(path, &bytes).with_context(|| format!("writing {}", path.display()))?;
        let json = report::ImageReport::from_bytes(&bytes)?.json(casemate_eif::report::nothing_else());
        fs::write(measurements, format!("{json:#}\n")).with_context(|| format!("writing {}", measurements.display()))
    }

    /// Process 1 and the broker: the same in every image.
    pub fn shared(&self) -> [&[u8]; 2] {
        [&self.init, &self.broker]
    }
}
