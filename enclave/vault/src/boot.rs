//! From a configuration to a vault that serves: unseal, then put the parts together.

use std::error::Error;
use std::hint::black_box;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate_protocol::command::StoreCredentials;
use casemate_protocol::configuration::{FenceConfig, MAX_CONFIGURATION_LEN, RecordStore};
use casemate_protocol::refusal::Waiting;
use casemate_protocol::{Configuration, Network};
use casemate_slashing::{Ceilings, Limits};

use crate::admin::sealing::waiting_for;
use crate::fence::store::{self, DynamodbAt, StoreError};
use crate::keys::custody::{self, Custody, CustodyError};
use crate::keys::journal::NullJournal;
use crate::keys::seal::{Contents, SealBinding};
use crate::link::broker_client::{BrokerClient, BrokerServices};
use crate::link::kms::Endpoint;
use crate::link::server::Link;
use crate::platform::clock::{KernelClocks, Sources};
use crate::platform::cpus::cores;
use crate::platform::margins::{self, CLOCK_TOLERANCE_MS, latest_signed};
use crate::platform::nsm::NsmError;
use crate::{
    Attestor, Clock, CommandProcessor, FenceGate, FenceKeeper, FenceParts, Identity, Journal, Keeping, Keys, Loaded,
    Nsm, NsmDevice, TrustedClock, Vault,
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
    calls: Arc<BrokerClient>,
    /// What was unsealed; empty where the parent keeps nothing.
    pub contents: Contents,
}

impl Start {
    /// Unseals. While KMS or the parent is away it asks again, and requests hear what is waited for; what is broken, or not ours, is
    /// an error. So is the end of the broker.
    pub fn unseal(self, link: &Link) -> Result<Unsealed, CustodyError> {
        let Self { configuration, nsm, kms } = self;
        let place = SealBinding {
            key_arn: configuration.kms_key_arn.clone(),
            group: configuration.group.clone(),
            network: configuration.network.genesis_validators_root(),
        };
        let calls = link.calls();
        let outside = Arc::new(BrokerServices::new(Arc::clone(&calls), kms));
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
                    let custody::Unsealed { state_version, contents, .. } = found.unwrap_or_default();
                    let (store, fence_version) = (contents.store.clone(), contents.fence_version);
                    let loaded = Loaded {
                        state_version,
                        loaded_state_digest: digest,
                        store,
                        store_unsealed: false,
                        fence_version,
                    };
                    return Ok(Unsealed { configuration, nsm, custody, loaded, calls, contents });
                }
            }
        }
    }
}

/// Why there is no fence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum FenceError {
    #[error("the clock has stopped: without it nothing covers what an earlier boot has signed")]
    ClockStopped,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// No store covers what was signed before: whatever an earlier boot may have signed lies at or below what the window has allowed
/// until now.
fn solo_limits(network: &Network, clock: &dyn Clock) -> Result<Limits, FenceError> {
    let now = network.slot_at(clock.unix_ms().ok_or(FenceError::ClockStopped)?);
    Ok(Limits { floors: margins::floors(latest_signed(network, now)), ceilings: Ceilings::NONE })
}

/// A fence with its record in this store, which is asked with `credentials` where some are sealed.
fn record_fence(
    configured: &RecordStore,
    group: &str,
    network: &Network,
    calls: &Arc<BrokerClient>,
    clock: &Arc<dyn Clock>,
    dynamodb: &DynamodbAt,
    credentials: Option<&StoreCredentials>,
) -> Result<FenceParts, FenceError> {
    let place = casemate_fence::GroupId { group: group.to_owned(), network: network.genesis_validators_root() };
    let mut store = store::open(configured, place, Arc::clone(calls), Arc::clone(clock), dynamodb)?;
    if let Some(credentials) = credentials {
        // Those that do not fit are told by the keeper, which goes without.
        store.open(credentials);
    }
    Ok(FenceParts::with_record(store))
}

fn wait(link: &Link, duration: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < duration && !link.is_closed() {
        std::thread::sleep(TICK);
    }
}

impl Unsealed {
    /// The fence that the configuration names, or why it cannot be had: then nothing starts.
    pub fn fence(&self, clock: &Arc<dyn Clock>, dynamodb: &DynamodbAt) -> Result<FenceParts, FenceError> {
        let Configuration { fence, network, group, .. } = &self.configuration;
        let store = match fence {
            FenceConfig::Solo => return Ok(FenceParts::solo(solo_limits(network, clock.as_ref())?)),
            FenceConfig::Record(store) => store,
        };
        record_fence(store, group, network, &self.calls, clock, dynamodb, self.loaded.store.as_ref())
    }

    /// The vault, with keys that were made of the contents.
    pub fn vault(
        self,
        keys: Keys,
        fence_gate: FenceGate,
        clock: Arc<dyn Clock>,
        journal: Box<dyn Journal>,
    ) -> Result<Vault, NsmError> {
        let Configuration { group, network, operators, policy, sha256, .. } = self.configuration;
        let identity = Identity { group, configuration_sha256: sha256 };
        let attestor = Attestor::new(Arc::clone(&self.nsm), identity, &network, &keys)?;
        let addresses = policy.withdrawal_addresses.clone();
        let nsm = Arc::clone(&self.nsm);
        let commands = CommandProcessor::new(self.custody, self.nsm, operators, addresses, self.loaded);
        let vault = Vault::new(network, keys, Limits::NONE, policy.into(), Box::new(Arc::clone(&clock)), journal);
        Ok(vault.fenced_by(fence_gate, clock).attested_by(attestor).commanded_by(commands).timed_by(nsm))
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
    let (fence_gate, keeping) = unsealed.fence(&clock, &DynamodbAt::aws())?.split();
    let vault = unsealed.vault(keys, fence_gate, clock, Box::new(NullJournal))?;
    Ok(serve(link, &vault, keeping, seen, cores())?)
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

/// Serves until the broker closes its end, with the record kept meanwhile. `keeping` came with the vault's fence; `seen`: the version
/// of the record that the sealed state has seen.
pub fn serve(link: Link, vault: &Vault, keeping: Keeping, seen: u64, workers: NonZeroUsize) -> io::Result<()> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let kept = FenceKeeper::new(vault, keeping, seen).run(|| ended.load(Ordering::Relaxed));
            if let Err(error) = kept {
                // Nothing can be signed any more. Anyone who starts this process anew gives it another chance.
                eprintln!("casemate-vault: {error}");
                std::process::exit(1);
            }
        });
        let served = link.serve(vault, workers);
        ended.store(true, Ordering::Relaxed);
        served
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use casemate_protocol::arn::TableArn;
    use casemate_protocol::configuration::StoreEndpoint;
    use casemate_protocol::network::NetworkFields;
    use casemate_protocol::statement::{FenceKind, RecordKind, StatedStatus};
    use casemate_protocol::store::{ClusterId, KeyPrefix};
    use casemate_protocol::{BoundedBytes, Bytes, Epoch, Fork, ForkName, Preset, Refusal};
    use rustls::RootCertStore;

    use super::*;

    struct Stopped;

    impl Clock for Stopped {
        fn unix_ms(&self) -> Option<u64> {
            None
        }
    }

    fn network() -> Network {
        NetworkFields {
            name: "test".into(),
            preset: Preset::Mainnet,
            genesis_time: 0,
            genesis_validators_root: Bytes([5; 32]),
            slot_duration_ms: 12_000,
            slots_per_epoch: 32,
            forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
        }
        .try_into()
        .unwrap()
    }

    /// What a start does with this store.
    fn fence(store: &RecordStore, dynamodb: &DynamodbAt) -> Result<FenceParts, FenceError> {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let calls = Arc::new(BrokerClient::new(Arc::new(Mutex::new(ours))));
        let clock: Arc<dyn Clock> = Arc::new(crate::SystemClock);
        record_fence(store, "alpha", &network(), &calls, &clock, dynamodb, None)
    }

    fn etcd(hosts: &[&str], root: &[u8]) -> RecordStore {
        RecordStore::Etcd {
            endpoints: hosts.iter().map(|host| StoreEndpoint { host: (*host).to_owned(), port: 2379 }).collect(),
            root: BoundedBytes::new(root.to_vec()).unwrap(),
            cluster: ClusterId::from(7),
            prefix: KeyPrefix::default(),
        }
    }

    fn root() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(vec!["r".into()]).unwrap().self_signed(&key).unwrap().der().to_vec()
    }

    fn table() -> RecordStore {
        let arn = "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate";
        RecordStore::Dynamodb { table: TableArn::parse(arn).unwrap() }
    }

    /// A kind with a record whose store cannot be had ends the start; it never stands open as a fence without one does. A new kind has
    /// to say here what an unusable name of it is.
    #[test]
    fn a_store_whose_name_leads_nowhere_ends_the_start() {
        let aws = DynamodbAt::aws();
        for kind in [RecordKind::File, RecordKind::Etcd, RecordKind::Dynamodb] {
            match kind {
                // It has no name.
                RecordKind::File => {
                    let (fence_gate, _) = fence(&RecordStore::File, &aws).unwrap().split();
                    assert!(matches!(fence_gate.pass(), Err(Refusal::NotHolder(_))));
                }
                RecordKind::Etcd => {
                    for host in ["", "etcd-", "-etcd", "a..b", "a b", "eu-central-1-.internal", &"a".repeat(64)] {
                        let error = fence(&etcd(&["localhost", host], &root()), &aws).err();
                        assert_eq!(error, Some(FenceError::Store(StoreError::Host(host.into()))));
                    }
                    let error = fence(&etcd(&[], &root()), &aws).err();
                    assert_eq!(error, Some(FenceError::Store(StoreError::NoEndpoint)));
                    let error = fence(&etcd(&["localhost"], &[0x30, 0]), &aws).err();
                    assert_eq!(error, Some(FenceError::Store(StoreError::Root)));
                }
                RecordKind::Dynamodb => {
                    // Every ARN that can be read leads somewhere; were it not so, this is what would happen.
                    let at = |host| DynamodbAt { host, port: 443, roots: RootCertStore::empty() };
                    let error = fence(&table(), &at(|_| "dynamodb.eu-central-1-.amazonaws.com".into())).err();
                    let host = "dynamodb.eu-central-1-.amazonaws.com".to_owned();
                    assert_eq!(error, Some(FenceError::Store(StoreError::Host(host))));
                    assert!(fence(&table(), &at(|_| String::new())).is_err());
                }
            }
        }
    }

    #[test]
    fn a_fence_with_a_record_begins_closed_and_says_which_store_it_asks() {
        for (store, kind) in [
            (RecordStore::File, FenceKind::File),
            (etcd(&["etcd-1.internal", "::1"], &root()), FenceKind::Etcd),
            (table(), FenceKind::Dynamodb),
        ] {
            let (fence_gate, _) = fence(&store, &DynamodbAt::aws()).unwrap().split();
            assert!(matches!(fence_gate.pass(), Err(Refusal::NotHolder(_))), "{kind:?}");
            let stated = fence_gate.stated(None);
            assert_eq!((stated.kind, stated.standing), (kind, StatedStatus::Unknown));
            match stated.store {
                None => assert_eq!(kind, FenceKind::File),
                Some(store) if kind == FenceKind::Etcd => {
                    assert!(store.starts_with("0000000000000007/casemate/#root-sha256="), "{store}");
                }
                Some(store) => assert_eq!(store, "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate"),
            }
        }
    }

    #[test]
    fn without_a_record_a_clock_that_has_stopped_ends_the_start() {
        assert_eq!(solo_limits(&network(), &Stopped).err(), Some(FenceError::ClockStopped));
        let floors = solo_limits(&network(), &crate::SystemClock).unwrap().floors;
        assert!(floors.slot.is_some() && floors.target.is_some() && floors.source.is_some());
    }
}
