//! The vault's process: the production vault, its keys unsealed through the local KMS or (`--plain`) from the stack's pipe, its
//! watermarks in a file.

use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use casemate_protocol::configuration::Window;
use casemate_protocol::{Bytes, Network, PublicKey};
use casemate_slashing::{Ceilings, Limits, SlashingHistory, Watermarks};
use casemate_vault::boot::{Start, serve};
use casemate_vault::fence::store::DynamodbAt;
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::link::kms::Endpoint;
use casemate_vault::link::server;
use casemate_vault::platform::clock::KernelClocks;
use casemate_vault::platform::margins;
use casemate_vault::{Attestor, Clock, Identity, KeyError, Keys, Policy, SystemClock, TrustedClock, Vault};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

use crate::boot::{Boot, BootKeys};
use crate::journal::{FileJournal, floor_at};
use crate::{kms, nsm};

/// A clock that stands still.
struct FixedClock(u64);

impl Clock for FixedClock {
    fn unix_ms(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// Reads the boot message from standard input, then serves the socket that is standard output.
pub fn run() -> Result<()> {
    crate::part_of_a_stack()?;
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().read_to_string(&mut text).context("reading the boot message")?;
    let boot: Boot = serde_json::from_str(&text).context("the boot message")?;
    drop(text);
    let broker = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned().context("the broker's socket")?);

    let workers = NonZeroUsize::new(boot.workers).unwrap_or(NonZeroUsize::MIN);
    match boot.keys {
        BootKeys::Plain { .. } => plain(boot, &broker, workers),
        BootKeys::Sealed { .. } => sealed(boot, &broker, workers),
    }
}

/// Keys from the stack, in clear.
fn plain(boot: Boot, broker: &UnixStream, workers: NonZeroUsize) -> Result<()> {
    let BootKeys::Plain { network, proof_of_validation, any_age, keys, bare } = boot.keys else {
        bail!("another boot message")
    };
    let network = casemate_config::parse(&network)?;
    let clock = clock(boot.fixed_time_ms);
    let journal = boot.journal.as_deref().map(|path| journal(path, &network, clock.as_ref())).transpose()?;
    if !bare {
        close_sandbox()?;
    }
    let mut secrets = Vec::with_capacity(keys.len());
    let mut histories = Vec::with_capacity(keys.len());
    for key in keys {
        secrets.push(const_hex::decode_to_array::<_, 32>(&key.secret.0).context("a secret key")?);
        histories.push(key.history.map(Watermarks::from));
    }
    let mut starts = Starts::default();
    let loaded = Keys::load(&mut secrets, |number, key| {
        let told = histories.get(number).copied().flatten();
        match &journal {
            Some(journal) => starts.add(journal, *key, told),
            None => told.map_or(SlashingHistory::Missing, SlashingHistory::Known),
        }
    });
    secrets.zeroize();
    let keys = loaded.map_err(told)?;
    let nsm = nsm::device(&boot.nsm, boot.fixed_time_ms, boot.number)?;
    let (configuration_sha256, group) = (Bytes(boot.nsm.configuration_sha256), nsm::GROUP.to_owned());
    let identity = Identity { group, configuration_sha256 };
    let attestor = Attestor::new(nsm, identity, &network, &keys).context("the software NSM")?;
    let window = if any_age { Window::ANY } else { Window::default() };
    let policy = Policy { proof_of_validation, window, ..Policy::permissive() };
    let Some(journal) = journal else {
        let vault = Vault::new(network, keys, Limits::NONE, policy, clock, Box::new(NullJournal)).attested_by(attestor);
        return server::serve(&vault, broker, workers).context("serving the broker");
    };
    let marks = journal.start(&starts.0)?;
    let close = marks.closer();
    let vault = Vault::new(network, keys, Limits::NONE, policy, clock, Box::new(marks)).attested_by(attestor);
    // A broker that was killed may leave half a frame: that ends the service, not the order of closing.
    let served = server::serve(&vault, broker, workers);
    close().context("closing the watermarks")?;
    served.context("serving the broker")
}

/// Keys as in the image: unsealed through KMS.
fn sealed(boot: Boot, broker: &UnixStream, workers: NonZeroUsize) -> Result<()> {
    let BootKeys::Sealed { configuration, kms } = boot.keys else { bail!("another boot message") };
    let configuration = casemate_config::configuration(&configuration, Bytes(boot.nsm.configuration_sha256))?;
    let network = configuration.network.clone();
    // The NSM is a program here, on the clock of this machine: the checks are the production vault's all the same.
    let clock: Arc<dyn Clock> = Arc::new(TrustedClock::new(KernelClocks::default()));
    let nsm = nsm::device(&boot.nsm, boot.fixed_time_ms, boot.number)?;
    clock.check(nsm.timestamp_ms().context("the software NSM")?);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(kms.root.as_bytes()).context("the root of the local KMS")?)?;
    let kms = Endpoint::new(kms::HOST, kms.port, roots).context("the address of the local KMS")?;
    let journal = boot.journal.as_deref().map(|path| journal(path, &network, clock.as_ref())).transpose()?;
    close_sandbox()?;
    let link = server::Link::open(broker).context("the broker's socket")?;
    let mut unsealed = Start { configuration, nsm, kms }.unseal(&link).context("unsealing")?;
    let contents = std::mem::take(&mut unsealed.contents);
    let seen = contents.fence_version;
    let (fence_gate, keeping) = unsealed.fence(&clock, &DynamodbAt::aws())?.split();
    let Some(journal) = journal else {
        let keys = Keys::unsealed(contents, |_, _, history| history).map_err(told)?;
        let vault = unsealed.vault(keys, fence_gate, clock, Box::new(NullJournal)).context("the software NSM")?;
        return serve(link, &vault, keeping, seen, workers).context("serving the broker");
    };
    let mut starts = Starts::default();
    let keys = Keys::unsealed(contents, |_, key, history| starts.add(&journal, *key, history.watermarks().ok()));
    let keys = keys.map_err(told)?;
    let marks = journal.start(&starts.0)?;
    let close = marks.closer();
    let vault = unsealed.vault(keys, fence_gate, clock, Box::new(marks)).context("the software NSM")?;
    let served = serve(link, &vault, keeping, seen, workers);
    close().context("closing the watermarks")?;
    served.context("serving the broker")
}

/// The sandbox of the image, and writing to the file of watermarks, which is open. Before anything from outside is read.
fn close_sandbox() -> Result<()> {
    casemate_vault::boot::prepare().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(casemate_sandbox::enter_vault(true)?)
}

/// What each key starts from: what it brings, what the file says, and the file's floor.
#[derive(Default)]
struct Starts(Vec<(PublicKey, Option<Watermarks>)>);

impl Starts {
    fn add(&mut self, journal: &FileJournal, key: PublicKey, brought: Option<Watermarks>) -> SlashingHistory {
        let start = match (brought, journal.watermarks(&key)) {
            (Some(brought), Some(kept)) => Some(brought.merge(kept)),
            (one, other) => one.or(other),
        }
        .map(|start| start.merge(journal.floor()));
        self.0.push((key, start));
        start.map_or(SlashingHistory::Missing, SlashingHistory::Known)
    }
}

fn told(error: KeyError) -> anyhow::Error {
    match error {
        KeyError::Invalid(number) => anyhow::anyhow!("key number {number} is no BLS secret key"),
        KeyError::Duplicate(key) => anyhow::anyhow!("key {key} occurs twice"),
        KeyError::TooMany => anyhow::anyhow!("too many keys"),
        KeyError::NotSaved => anyhow::anyhow!("the group's floor could not be written"),
    }
}

fn clock(fixed_time_ms: Option<u64>) -> Box<dyn Clock> {
    match fixed_time_ms {
        Some(ms) => Box::new(FixedClock(ms)),
        None => Box::new(SystemClock),
    }
}

fn journal(path: &Path, network: &Network, clock: &dyn Clock) -> Result<FileJournal> {
    // What the window rule has allowed until now at most (docs/decisions/0008-the-window-has-two-ends.md).
    let now = network.slot_at(clock.unix_ms().context("the clock has stopped")?);
    let Ceilings { slot, target: latest, source } = margins::latest_signed(network, now);
    let above = floor_at(slot, source, latest);
    let journal = FileJournal::open(path, network.genesis_validators_root(), above)?;
    if journal.maybe_behind {
        eprintln!(
            "casemate-dev (vault): the machine went down without closing the watermarks; to be safe, attestations \
             start above target epoch {latest} and from source epoch {latest}: two to three epochs of silence"
        );
    }
    Ok(journal)
}
