//! Enclaves as machines: an image of the configuration, booted in QEMU.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use casemate_nitro_vm::{Images, Machine, Nsm, Tools};
use casemate_nsm::Authority;

use crate::boot::BootNsm;

/// What machines are booted from.
pub struct Machines {
    tools: Tools,
    image: PathBuf,
}

impl Machines {
    /// Looks whether machines can be booted here.
    pub fn tools() -> Result<Tools> {
        Tools::find().context(
            "--vm needs QEMU with its nitro-enclave machine: tests/tools/nitro-vm/tools builds it, in some minutes",
        )
    }

    /// Builds the image of a configuration; its measurements are left for `casemate attest`.
    pub fn build(tools: Tools, configuration: &str, data_dir: &Path, nsm: &Path) -> Result<Self> {
        let image = data_dir.join("casemate.eif");
        fs::create_dir_all(nsm).with_context(|| format!("making {}", nsm.display()))?;
        Images::with_local_kms()?.write(configuration, &image, &nsm.join("measurements.json"))?;
        Ok(Self { tools, image })
    }

    /// Boots one of the group's enclaves; its egress ends at `egress`.
    pub fn boot(&self, folder: &Path, number: u8, nsm: &BootNsm, egress: &Path) -> Result<Machine> {
        let root = Authority::read_root(&nsm.root, &nsm.root_key.0)?;
        let machine = Machine::boot(&self.tools, &self.image, folder, number, &Nsm::Signed(&root))?;
        // The proxy listens once for all enclaves, as on a parent.
        let dialled = Machine::egress(folder);
        symlink(egress, &dialled).with_context(|| format!("making {}", dialled.display()))?;
        Ok(machine)
    }
}
