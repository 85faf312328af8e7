//! The software NSM of the stack: its root is kept in the data directory, its PCRs measure this program and the
//! configuration.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use casemate_nsm::{Authority, Pcrs, Request, Response, SoftwareNsm};
use casemate_protocol::statement::{Fence, FenceKind};
use casemate_protocol::{Bytes, Network};
use casemate_vault::{Attestor, Clock, Identity, Keys, Nsm, SystemClock};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::boot::{BootNsm, SecretHex};

/// The instance that this machine plays, as PCR4 measures it.
const INSTANCE: &str = "i-0ca5e0ca5e0ca5e00";
const GROUP: &str = "dev";

/// What of the command line is measured with the network.
#[derive(Clone, Copy)]
pub struct Policy {
    pub proof_of_validation: bool,
    /// A clock that stands still is no signer's clock: it must not be measured as one.
    pub fixed_time_ms: Option<u64>,
}

struct Device(SoftwareNsm);

impl Nsm for Device {
    fn process(&self, request: Request) -> Response {
        self.0.process(request)
    }
}

/// Measures what is about to run. As in an image: PCR1 is what boots (this program), PCR2 what it is told (the
/// configuration), PCR0 both. Leaves root and measurements in `folder`, for `casemate attest`.
pub fn measure(folder: PathBuf, executable: &Path, network: &str, policy: Policy) -> Result<BootNsm> {
    let program = fs::read(executable).with_context(|| format!("reading {}", executable.display()))?;
    let Policy { proof_of_validation, fixed_time_ms } = policy;
    let clock = fixed_time_ms.map(|ms| format!("fixed_time_ms = {ms}\n")).unwrap_or_default();
    let configuration = format!("{network}\n[policy]\nproof_of_validation = {proof_of_validation}\n{clock}");
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
    let configuration_sha256 = const_hex::encode(Sha256::digest(configuration.as_bytes()));
    let root_key = SecretHex(root.key.serialize_pem());
    Ok(BootNsm { folder, root: root.pem(), root_key, pcrs, configuration_sha256 })
}

/// The vault's side: an NSM in the vault's process, and the statement of what this is.
pub fn attestor(boot: &BootNsm, fixed_time_ms: Option<u64>, network: &Network, keys: &Keys) -> Result<Attestor> {
    let root = Authority::read_root(&boot.root, &boot.root_key.0).context("the development root")?;
    let mut pcrs = Pcrs::measure(&[], &[], INSTANCE);
    for (index, value) in (0..).zip(&boot.pcrs) {
        pcrs.0.insert(index, const_hex::decode_to_array(value).context("a PCR")?);
    }
    let clock = Box::new(move || fixed_time_ms.unwrap_or_else(|| SystemClock.unix_ms()));
    let enclave = const_hex::encode(std::process::id().to_be_bytes());
    let nsm = SoftwareNsm::new(root, &format!("{INSTANCE}-enc{enclave:0>16}"), &pcrs, clock);
    let identity = Identity {
        group: GROUP.to_owned(),
        configuration_sha256: Bytes(const_hex::decode_to_array(&boot.configuration_sha256).context("a digest")?),
        // Watermarks in a file, and nothing that stops a clone or a restored copy: the statement says so.
        fence: Fence { kind: FenceKind::None, generation: 0 },
    };
    Attestor::new(Box::new(Device(nsm)), identity, network, keys).context("the software NSM")
}
