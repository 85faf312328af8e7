//! The software NSM of the stack: its root is kept in the data directory, its PCRs measure this program and the
//! configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use casemate_nsm::{Authority, Pcrs, Request, Response, SoftwareNsm};
use casemate_protocol::{Bytes, Root};
use casemate_vault::{Clock, Nsm, SystemClock};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::boot::{BootNsm, SecretHex};

/// The instance that this machine plays, as PCR4 measures it.
const INSTANCE: &str = "i-0ca5e0ca5e0ca5e00";
pub const GROUP: &str = "dev";

struct Device(SoftwareNsm);

impl Nsm for Device {
    fn process(&self, request: Request) -> Response {
        self.0.process(request)
    }
}

/// The development root in this folder, made where there is none; its certificate in PEM.
pub fn root(folder: &Path) -> Result<String> {
    Ok(Authority::keep_root(folder)?.pem())
}

/// Measures what is about to run. As in an image: PCR1 is what boots (this program), PCR2 what it is told (the
/// configuration), PCR0 both. Leaves root and measurements in `folder`, for `casemate attest`.
pub fn measure(folder: PathBuf, executable: &Path, configuration: &str) -> Result<BootNsm> {
    let program = fs::read(executable).with_context(|| format!("reading {}", executable.display()))?;
    let Pcrs(measured) = Pcrs::measure(&program, configuration.as_bytes(), INSTANCE);
    let pcr = |index| measured.get(&index).map(const_hex::encode).unwrap_or_default();
    let pcrs = [pcr(0), pcr(1), pcr(2)];
    let root = Authority::keep_root(&folder)?;
    let [whole, boots, runs] = &pcrs;
    // As nitro-cli and the EIF builder write them.
    let measurements = json!({ "Measurements": {
        "HashAlgorithm": "Sha384 { ... }", "PCR0": whole, "PCR1": boots, "PCR2": runs,
    } });
    let path = folder.join("measurements.json");
    fs::write(&path, format!("{measurements:#}\n")).with_context(|| format!("writing {}", path.display()))?;
    let configuration_sha256 = sha256(configuration).0;
    let root_key = SecretHex(root.key.serialize_pem());
    Ok(BootNsm { folder, root: root.pem(), root_key, pcrs, configuration_sha256 })
}

/// The same for an image, which was measured already.
pub fn of_image(folder: PathBuf, configuration: &str) -> Result<BootNsm> {
    let root = Authority::keep_root(&folder)?;
    let (root, root_key) = (root.pem(), SecretHex(root.key.serialize_pem()));
    Ok(BootNsm { folder, root, root_key, pcrs: Default::default(), configuration_sha256: sha256(configuration).0 })
}

/// SHA-256 of a configuration, as the statement has it.
pub fn sha256(configuration: &str) -> Root {
    Bytes(Sha256::digest(configuration.as_bytes()).into())
}

/// The vault's side: an NSM in the vault's process.
pub fn device(boot: &BootNsm, fixed_time_ms: Option<u64>, number: u8) -> Result<Arc<dyn Nsm>> {
    let root = Authority::read_root(&boot.root, &boot.root_key.0).context("the development root")?;
    let mut pcrs = Pcrs::measure(&[], &[], INSTANCE);
    for (index, value) in (0..).zip(&boot.pcrs) {
        pcrs.0.insert(index, const_hex::decode_to_array(value).context("a PCR")?);
    }
    let clock = Box::new(move || fixed_time_ms.or_else(|| SystemClock.unix_ms()).unwrap_or(0));
    // As on an instance: each enclave, and each start of it, has an id of its own.
    let enclave = const_hex::encode([[number; 4], std::process::id().to_be_bytes()].concat());
    Ok(Arc::new(Device(SoftwareNsm::new(root, &format!("{INSTANCE}-enc{enclave:0>16}"), &pcrs, clock))))
}
