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
use casemate_vault::boot::{Start, serve};
use casemate_vault::clock::{KernelClocks, Sources, TOLERANCE_MS};
use casemate_vault::journal::Forgetful;
use casemate_vault::kms::Endpoint;
use casemate_vault::server::Link;
use casemate_vault::store::DynamodbAt;
use casemate_vault::{Clock, Keys, Nsm, NsmDevice, TrustedClock};

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
    let clock = TrustedClock::new(KernelClocks::default());
    let trusted = nsm.timestamp_ms()?;
    clock.check(trusted);
    if clock.unix_ms().is_none() {
        let wall = KernelClocks::default().wall_ms();
        return Err(format!("the clock says {wall} ms, the NSM {trusted} ms; {TOLERANCE_MS} ms are allowed").into());
    }
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let arn = &configuration.kms_key_arn;
    let kms = Endpoint::of_key(arn).ok_or_else(|| format!("kms_key_arn {arn:?} is no ARN of a KMS key"))?;

    let link = Link::open(&socket)?;
    let mut unsealed = Start { configuration, nsm, kms }.unseal(&link)?;
    let contents = std::mem::take(&mut unsealed.contents);
    let seen = contents.fence_version;
    let keys = Keys::unsealed(contents, |_, _, history| history).map_err(|e| format!("the sealed keys: {e:?}"))?;
    let fence = unsealed.fence(&clock, &DynamodbAt::aws());
    let (fencing, store) = fence.ok_or("the clock has stopped")?;
    let vault = unsealed.vault(keys, fencing, clock, Box::new(Forgetful))?;
    let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Ok(serve(link, &vault, store, seen, workers)?)
}
