//! `casemate-vault`: the key compartment's process, started by the image's init.
//!
//! Standard input gives the configuration (docs/PROTOCOL.md), and ends; standard output is the socket to the broker. The only
//! NSM here is `/dev/nsm`, the only KMS that of the ARN's region under Amazon's roots. It says one sentence when it cannot go on,
//! and nothing else.
#![forbid(unsafe_code)]

use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use casemate_protocol::Configuration;
use casemate_protocol::configuration::MAX_CONFIGURATION_LEN;
use casemate_protocol::statement::{Fence, FenceKind};
use casemate_slashing::{Ceilings, Floors, Limits};
use casemate_vault::boot::Start;
use casemate_vault::journal::Forgetful;
use casemate_vault::kms::Endpoint;
use casemate_vault::server::Link;
use casemate_vault::{Clock, Keys, Nsm, NsmDevice, SystemClock};

/// How far the clock may be from the NSM's at the start.
const MAX_CLOCK_ERROR_MS: u64 = 2000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate-vault: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_CONFIGURATION_LEN)?.saturating_add(1);
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    let configuration = Configuration::decode(&bytes)?;
    let socket = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let nsm: Arc<dyn Nsm> = Arc::new(NsmDevice::open()?);
    let (now, trusted) = (SystemClock.unix_ms(), nsm.timestamp_ms()?);
    if now.abs_diff(trusted) > MAX_CLOCK_ERROR_MS {
        return Err(
            format!("the clock says {now} ms, the NSM {trusted} ms; {MAX_CLOCK_ERROR_MS} ms are allowed").into()
        );
    }
    let arn = &configuration.kms_key_arn;
    let kms = Endpoint::of_key(arn).ok_or_else(|| format!("kms_key_arn {arn:?} is no ARN of a KMS key"))?;
    let network = configuration.network.clone();

    let link = Link::open(&socket)?;
    let mut unsealed = Start { configuration, nsm, kms, oldest_generation: 0 }.unseal(&link)?;
    let contents = std::mem::take(&mut unsealed.contents);
    let keys = Keys::unsealed(contents, |_, _, history| history).map_err(|e| format!("the sealed keys: {e:?}"))?;
    // No store stands for the past: whatever an earlier boot may have signed lies at or below what the window has allowed until
    // now (docs/ARCHITECTURE.md, «The floor after an unclean end»).
    let latest_slot = network.slot_at(SystemClock.unix_ms()).saturating_add(1);
    let latest = network.epoch_of(latest_slot);
    let floors = Floors { slot: Some(latest_slot), target: Some(latest), source: Some(latest) };
    let limits = Limits { floors, ceilings: Ceilings::NONE };
    let fence = Fence { kind: FenceKind::Solo, generation: 0 };
    let vault = unsealed.vault(keys, limits, fence, Box::new(SystemClock), Box::new(Forgetful))?;
    let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Ok(link.serve(&vault, workers)?)
}
