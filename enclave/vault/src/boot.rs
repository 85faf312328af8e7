//! From a configuration to a vault that serves: unseal, then put the parts together.

use std::error::Error;
use std::hint::black_box;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use casemate_protocol::Configuration;
use casemate_protocol::configuration::MAX_CONFIGURATION_LEN;
use casemate_protocol::refusal::Waiting;
use casemate_slashing::{Ceilings, Limits};

use crate::calls::{Calls, Outside};
use crate::clock::{KernelClocks, Sources};
use crate::command::waiting_for;
use crate::custody::{self, Custody, CustodyError};
use crate::journal::Forgetful;
use crate::kms::Endpoint;
use crate::margins::{self, CLOCK_TOLERANCE_MS, latest_signed};
use crate::nsm::NsmError;
use crate::seal::{Contents, Place};
use crate::server::Link;
use crate::store::{self, DynamodbAt, Store};
use crate::{
    Attestor, Clock, Fencing, Identity, Journal, Keeper, Keys, Loaded, Nsm, NsmDevice, Office, TrustedClock, Vault,
};

/// First wait before what was away is asked again; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// How often it is looked whether the broker has gone.
const TICK: Duration = Duration::from_millis(50);

/// What a vault starts from.
pub struct Start {
    /// As it was measured.
    pub configuration: Configuration,
    /// The NSM.
    pub nsm: Arc<dyn Nsm>,
    /// KMS, and its roots.
    pub kms: Endpoint,
}

/// A start whose keys are unsealed.
pub struct Unsealed {
    configuration: Configuration,
    nsm: Arc<dyn Nsm>,
    custody: Custody,
    loaded: Loaded,
    calls: Arc<Calls>,
    /// What was unsealed; empty where the parent keeps nothing.
    pub contents: Contents,
}

impl Start {
    /// Unseals. While KMS or the parent is away it asks again, and requests hear what is waited for; what is broken, or not ours, is
    /// an error. So is the end of the broker.
    pub fn unseal(self, link: &Link) -> Result<Unsealed, CustodyError> {
        let Self { configuration, nsm, kms } = self;
        let place = Place {
            key_arn: configuration.kms_key_arn.clone(),
            group: configuration.group.clone(),
            network: configuration.network.genesis_validators_root(),
        };
        let calls = link.calls();
        let outside = Arc::new(Outside::new(Arc::clone(&calls), kms));
        let custody = Custody::new(outside, Arc::clone(&nsm), place)?;
        let mut backoff = MIN_BACKOFF;
        loop {
            // What the fence refuses as too old is known only once it can be asked: it is looked at before it is held.
            match custody.unseal(0) {
                Err(CustodyError::Service(error)) if !link.is_closed() => {
                    link.waits_for(waiting_for(&CustodyError::Service(error)));
                    wait(link, backoff);
                    backoff = backoff.saturating_mul(2).min(MAX_BACKOFF);
                }
                Err(error) => return Err(error),
                Ok(found) => {
                    link.waits_for(Waiting::Unsealing);
                    let digest = found.as_ref().map(|found| found.digest);
                    let custody::Unsealed { generation, contents, .. } = found.unwrap_or_default();
                    let (store, fence_version) = (contents.store.clone(), contents.fence_version);
                    let loaded = Loaded { generation, digest, store, store_unsealed: false, fence_version };
                    return Ok(Unsealed { configuration, nsm, custody, loaded, calls, contents });
                }
            }
        }
    }
}

fn wait(link: &Link, duration: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < duration && !link.is_closed() {
        std::thread::sleep(TICK);
    }
}

impl Unsealed {
    /// The fence that the configuration names: with its store, or with floors where there is none. Nothing while the clock is not
    /// trusted.
    pub fn fence(&self, clock: &Arc<dyn Clock>, dynamodb: &DynamodbAt) -> Option<(Fencing, Option<Box<dyn Store>>)> {
        let Configuration { fence, network, group, .. } = &self.configuration;
        let place =
            casemate_slashing::fence::Place { group: group.clone(), network: network.genesis_validators_root() };
        let store = store::of(fence, place, Arc::clone(&self.calls), Arc::clone(clock), dynamodb);
        let Some(mut store) = store else {
            // No store stands for the past: whatever an earlier boot may have signed lies at or below what the window has allowed
            // until now.
            let floors = margins::floors(latest_signed(network, network.slot_at(clock.unix_ms()?)));
            return Some((Fencing::fixed(fence.kind(), Limits { floors, ceilings: Ceilings::NONE }), None));
        };
        if let Some(credentials) = &self.loaded.store {
            store.open(credentials);
        }
        Some((Fencing::kept(fence.kind()), Some(store)))
    }

    /// The vault, with keys that were made of the contents.
    pub fn vault(
        self,
        keys: Keys,
        fencing: Fencing,
        clock: Arc<dyn Clock>,
        journal: Box<dyn Journal>,
    ) -> Result<Vault, NsmError> {
        let Configuration { group, network, operators, policy, sha256, .. } = self.configuration;
        let identity = Identity { group, configuration_sha256: sha256 };
        let attestor = Attestor::new(Arc::clone(&self.nsm), identity, &network, &keys)?;
        let addresses = policy.withdrawal_addresses.clone();
        let nsm = Arc::clone(&self.nsm);
        let office = Office::new(self.custody, self.nsm, operators, addresses, self.loaded);
        let vault = Vault::new(network, keys, Limits::NONE, policy.into(), Box::new(Arc::clone(&clock)), journal);
        Ok(vault.fenced_by(fencing, clock).attested_by(attestor).commanded_by(office).timed_by(nsm))
    }
}

/// The program: what it needs is opened, the sandbox closes, and then it reads its configuration from `configuration` (which ends),
/// unseals and serves `socket`. `kms` gives KMS's address and roots for a key's ARN.
pub fn program(
    mut configuration: impl Read,
    socket: &UnixStream,
    kms: impl FnOnce(&str) -> Option<Endpoint>,
) -> Result<(), Box<dyn Error>> {
    let nsm = NsmDevice::open();
    prepare()?;
    casemate_sandbox::enter_vault(false)?;

    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_CONFIGURATION_LEN)?.saturating_add(1);
    configuration.by_ref().take(limit).read_to_end(&mut bytes)?;
    let configuration = Configuration::decode(&bytes)?;
    let nsm: Arc<dyn Nsm> = Arc::new(nsm?);
    let clock = TrustedClock::new(KernelClocks::default());
    let trusted = nsm.timestamp_ms()?;
    clock.check(trusted);
    if clock.unix_ms().is_none() {
        let wall = KernelClocks::default().wall_ms();
        return Err(
            format!("the clock says {wall} ms, the NSM {trusted} ms; {CLOCK_TOLERANCE_MS} ms are allowed").into()
        );
    }
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let arn = &configuration.kms_key_arn;
    let kms = kms(arn).ok_or_else(|| format!("kms_key_arn {arn:?} is no ARN of a KMS key"))?;

    let link = Link::open(socket)?;
    let mut unsealed = Start { configuration, nsm, kms }.unseal(&link)?;
    let contents = std::mem::take(&mut unsealed.contents);
    let seen = contents.fence_version;
    let keys = Keys::unsealed(contents, |_, _, history| history).map_err(|e| format!("the sealed keys: {e:?}"))?;
    let fence = unsealed.fence(&clock, &DynamodbAt::aws());
    let (fencing, store) = fence.ok_or("the clock has stopped")?;
    let vault = unsealed.vault(keys, fencing, clock, Box::new(Forgetful))?;
    Ok(serve(link, &vault, store, seen, cores())?)
}

/// How many threads run at once. Counting them reads files: once, before the sandbox.
pub fn cores() -> NonZeroUsize {
    static CORES: OnceLock<NonZeroUsize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

/// What libraries do once, at their first use, and may not do in the sandbox: the random number generator looks for a device of
/// machines that are copied, the C library sets up signals with the first thread.
pub fn prepare() -> Result<(), Box<dyn Error>> {
    // The first time that a thread's heap shrinks, the C library reads how the kernel counts memory (/proc/sys/vm).
    let shrunk = std::thread::spawn(|| {
        let mut blocks: Vec<Vec<u8>> = (0..16).map(|_| black_box(vec![1; 60_000])).collect();
        while let Some(block) = blocks.pop() {
            drop(black_box(block));
        }
    });
    shrunk.join().map_err(|_| "no thread can be started")?;
    cores();
    let mut byte = [0; 1];
    aws_lc_rs::rand::fill(&mut byte).map_err(|_| "there is no entropy")?;
    Ok(())
}

/// Serves until the broker closes its end, with the record kept meanwhile. `seen`: the version of the record that the sealed state
/// has seen.
pub fn serve(
    link: Link,
    vault: &Vault,
    store: Option<Box<dyn Store>>,
    seen: u64,
    workers: NonZeroUsize,
) -> io::Result<()> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let kept = Keeper::new(vault, store, seen).run(|| ended.load(Ordering::Relaxed));
            if let Err(error) = kept {
                // Nothing can be signed any more. Whoever starts this process anew gives it another chance.
                eprintln!("casemate-vault: {error}");
                std::process::exit(1);
            }
        });
        let served = link.serve(vault, workers);
        ended.store(true, Ordering::Relaxed);
        served
    })
}
