//! An enclave: what `boot::program` puts together, put together in the same order; its keeper and its commands as actors.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use casemate_protocol::configuration::Operators;
use casemate_protocol::{Bytes, Network, Reply, Request};
use casemate_slashing::Limits;
use casemate_vault::keys::cms::RecipientKey;
use casemate_vault::keys::custody::{Custody, CustodyError, Services, Unsealed};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::keys::seal::SealBinding;
use casemate_vault::platform::clock::Clock;
use casemate_vault::platform::runtime::{Bell, Runtime};
use casemate_vault::{
    Attestor, CommandProcessor, FenceKeeper, FenceParts, Identity, KeeperError, Keeping, Keys, Loaded, Nsm, Policy,
    TrustedClock, Vault,
};

use crate::actor::{Actor, SimBell, SimRuntime, Time};
use crate::random::Random;
use crate::say;
use crate::world::{Clocks, GENESIS, GROUP, KEY_ARN, Shared, SimNsm, SimServices, SimSources, SimStore, state_words};

/// How often the thread that carries out commands looks for what is due (`server.rs`).
const SETTLE: Duration = Duration::from_secs(1);

/// What an enclave starts from.
#[derive(Clone)]
pub struct Setup {
    /// The world.
    pub world: Shared,
    /// Its number.
    pub enclave: u32,
    /// The store that its measured configuration names.
    pub store: usize,
    /// The chain.
    pub network: Network,
    /// Its policy.
    pub policy: Policy,
    /// Who may give it commands.
    pub operators: Operators,
    /// The key for KMS's answers: one for all, since making one takes most of a start.
    pub recipient: Arc<RecipientKey>,
    /// Its clocks.
    pub clocks: Arc<Clocks>,
    /// What its entropy comes from.
    pub seed: u64,
}

/// A request that waits for KMS, the disk or the store, and its number.
pub struct Order {
    /// Its number.
    pub number: u64,
    /// The request.
    pub request: Request,
}

/// What the driver and the actors of an enclave share.
pub struct Inside {
    parts: Mutex<Parts>,
    ordered: SimBell,
    booted: SimBell,
}

/// See [`Inside`].
#[derive(Default)]
pub struct Parts {
    /// Once it has started.
    pub vault: Option<Arc<Vault>>,
    keeping: Option<(Keeping, u64)>,
    /// Waits to be carried out: one at most, as in the server.
    pub orders: VecDeque<Order>,
    /// Number of the order that is carried out now.
    pub at: Option<u64>,
    /// What was carried out.
    pub replies: Vec<(u64, Reply)>,
    /// It has ended by itself.
    pub has_ended: bool,
    /// It has said why: its clock.
    pub has_no_time: bool,
}

impl Inside {
    /// See [`Parts`].
    pub fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap()
    }

    /// Gives an order, where there is room for it.
    pub fn order(&self, order: Order) -> bool {
        let mut parts = self.parts();
        let room = parts.orders.is_empty() && parts.vault.is_some();
        if room {
            parts.orders.push_back(order);
            self.ordered.ring();
        }
        room
    }
}

/// An enclave that runs.
pub struct Enclave {
    /// Its number.
    pub number: u32,
    /// The store that it asks.
    pub store: usize,
    /// Shared with its actors.
    pub inside: Arc<Inside>,
    /// The keeper and the commands.
    pub actors: [Arc<Actor>; 2],
    /// Stopped until then, as by SIGSTOP.
    pub frozen_until: u64,
    /// Counter of the last command that it was given.
    pub counter: u64,
    /// Its boot, once it has started.
    pub boot: Option<Boot>,
    /// Its clocks.
    pub clocks: Arc<Clocks>,
    /// When they are right again, where they have jumped.
    pub right_at: Option<u64>,
}

/// What a first document says.
#[derive(Clone, Copy)]
pub struct Boot {
    /// Who it is.
    pub nonce: Bytes<32>,
    /// What secrets are encrypted to.
    pub hpke: Bytes<32>,
}

impl Enclave {
    /// Starts one.
    pub fn start(setup: Setup, time: &Arc<Time>) -> Self {
        let (number, store, clocks) = (setup.enclave, setup.store, Arc::clone(&setup.clocks));
        let inside =
            Arc::new(Inside { parts: Mutex::default(), ordered: SimBell::new(time), booted: SimBell::new(time) });
        let runtime: Arc<dyn Runtime> = Arc::new(SimRuntime(Arc::clone(time)));
        let (for_keeper, for_commands) = (Arc::clone(&inside), Arc::clone(&inside));
        let keeper = Actor::start("keeper", move || keep(&for_keeper));
        let commands = Actor::start("commands", move || commands(setup, &for_commands, &runtime));
        let actors = [keeper, commands];
        Self { number, store, inside, actors, frozen_until: 0, counter: 0, boot: None, clocks, right_at: None }
    }

    /// The vault, once it has started.
    pub fn vault(&self) -> Option<Arc<Vault>> {
        self.inside.parts().vault.clone()
    }
}

fn keep(inside: &Inside) {
    let (vault, (keeping, seen)) = loop {
        {
            let mut parts = inside.parts();
            if let (Some(vault), Some(keeping)) = (parts.vault.clone(), parts.keeping.take()) {
                break (vault, keeping);
            }
        }
        inside.booted.wait(Duration::from_hours(1));
    };
    // Where the clock cannot be trusted any more the process ends.
    let Err(KeeperError::Clock { .. }) = FenceKeeper::new(&vault, keeping, seen).run(|| false) else { return };
    let mut parts = inside.parts();
    (parts.has_ended, parts.has_no_time) = (true, true);
}

fn commands(setup: Setup, inside: &Inside, runtime: &Arc<dyn Runtime>) {
    let (world, enclave) = (setup.world.clone(), setup.enclave);
    let Some((vault, keeping, seen)) = boot(setup, runtime) else {
        say!(world.lock(), "enclave {enclave} does not start: no state that it may load");
        inside.parts().has_ended = true;
        return;
    };
    let vault = Arc::new(vault);
    {
        let mut parts = inside.parts();
        parts.vault = Some(Arc::clone(&vault));
        parts.keeping = Some((keeping, seen));
    }
    inside.booted.ring();
    loop {
        let order = {
            let mut parts = inside.parts();
            let order = parts.orders.pop_front();
            parts.at = order.as_ref().map(|order| order.number);
            order
        };
        if let Some(Order { number, request }) = order {
            let reply = vault.handle(&request);
            let mut parts = inside.parts();
            parts.at = None;
            parts.replies.push((number, reply));
            continue;
        }
        inside.ordered.wait(SETTLE);
        if inside.parts().orders.is_empty() {
            vault.settle();
        }
    }
}

/// As `boot::program`, `boot::Start::unseal` and `boot::Unsealed::vault` do it, with the simulated outside.
fn boot(setup: Setup, runtime: &Arc<dyn Runtime>) -> Option<(Vault, Keeping, u64)> {
    let Setup { world, enclave, store, network, policy, operators, recipient, clocks, seed } = setup;
    let nsm: Arc<dyn Nsm> = Arc::new(SimNsm { random: Mutex::new(Random::new(seed)), clocks: Arc::clone(&clocks) });
    let clock = TrustedClock::new(SimSources(clocks));
    clock.check(nsm.timestamp_ms().ok()?);
    clock.unix_ms()?;
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let services: Arc<dyn Services> =
        Arc::new(SimServices { world: world.clone(), enclave, recipient: Arc::clone(&recipient) });
    let place = SealBinding { key_arn: KEY_ARN.into(), group: GROUP.into(), network: GENESIS };
    let custody = Custody::with_recipient(services, Arc::clone(&nsm), place, recipient);
    let found = loop {
        match custody.unseal(0) {
            Err(CustodyError::Service(_)) => runtime.sleep(Duration::from_millis(200)),
            Err(_) => return None,
            Ok(found) => break found,
        }
    };
    let digest = found.as_ref().map(|found| found.digest);
    let Unsealed { state_version, contents, .. } = found.unwrap_or_default();
    let (opens, fence_version) = (contents.store.clone(), contents.fence_version);
    say!(world.lock(), "enclave {enclave} starts with state {}", state_words(state_version));
    let loaded = Loaded {
        state_version,
        loaded_state_digest: digest,
        store: opens.clone(),
        store_unsealed: false,
        fence_version,
    };
    let keys = Keys::unsealed(contents, |_, _, history| history).ok()?;
    let mut asked = SimStore { world, number: store, enclave, credentials: None };
    if let Some(credentials) = &opens {
        casemate_vault::fence::store::Store::open(&mut asked, credentials);
    }
    let (fence_gate, keeping) = FenceParts::with_record(Box::new(asked)).split();
    let fence_gate = fence_gate.running_on(Arc::clone(runtime));
    let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
    let attestor = Attestor::new(Arc::clone(&nsm), identity, &network, &keys).ok()?.running_on(Arc::clone(runtime));
    let commands = CommandProcessor::new(custody, Arc::clone(&nsm), operators, Vec::new(), loaded);
    let vault = Vault::new(network, keys, Limits::NONE, policy, Box::new(Arc::clone(&clock)), Box::new(NullJournal))
        .fenced_by(fence_gate, clock)
        .attested_by(attestor)
        .commanded_by(commands)
        .timed_by(nsm);
    Some((vault, keeping, fence_version))
}
