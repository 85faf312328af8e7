//! An episode: some thousand steps of a group of enclaves in a world that does its worst, and then a calm end in which everything has
//! to work again.

use std::sync::Arc;

use casemate_fence::StoreOp;
use casemate_protocol::command::LastState;
use casemate_protocol::configuration::{Operators, Window};
use casemate_protocol::network::NetworkFields;
use casemate_protocol::statement::{StatedStatus, Statement};
use casemate_protocol::watermarks::Watermarks;
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, BoundedBytes, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName,
    Network, Preset, PublicKey, Reply, Request, SignRequest, Slot,
};
use casemate_slashing::Ceilings;
use casemate_vault::Policy;
use casemate_vault::signing::bls::SecretKey;

use crate::actor::Time;
use crate::enclave::{Boot, Enclave, Order, Setup};
use crate::judge::{Message, Released, Signed};
use crate::operators::operator_keys;
use crate::random::Random;
use crate::say;
use crate::state::{
    ALL_KEYS, Episode, Job, KEYS, KeptCommand, Key, Options, Outcome, SLOTS_PER_EPOCH, Violation, Whereabouts,
};
use crate::world::{
    CLOCK_TOLERANCE_MS, Clocks, Faults, GENESIS, GENESIS_TIME, Shared, World, record_words, state_words,
};

impl Episode {
    /// Before its first step.
    pub fn new(options: &Options, number: u64) -> Self {
        let mut seeds = Random::new(options.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut random = Random::new(seeds.number());
        let slot_ms = random.pick(&[1000, 2000, 4000]);
        let network = network(slot_ms);
        let time = Arc::<Time>::default();
        let world = Shared::new(seeds.number(), network.clone(), Arc::clone(&time), options.is_loud);
        let window = if random.chance(700) { Window::ANY } else { Window::default() };
        let key_manager_delete = random.chance(300);
        let policy = Policy { window, key_manager_delete, ..Policy::default() };
        let keys = (0..ALL_KEYS).map(key).collect();
        let mut level = |levels: &[u64]| random.pick(levels);
        let mut faults = Faults {
            lost: level(&[0, 10, 60]),
            unheard: level(&[0, 10, 60]),
            late: level(&[0, 5, 30]),
            slow: level(&[0, 20, 150]),
            call: level(&[0, 5, 40]),
            denied: level(&[0, 50, 200]),
            dropped: level(&[0, 20, 100]),
        };
        let (mut wildness, mut lateness) = (level(&[150, 400, 1000]), level(&[0, 300, 1000, 2500]));
        let mut bent = (level(&[0, 0, 0, 20]), level(&[0, 0, 30]));
        let mut spite = (level(&[0, 200, 500]), level(&[0, 200, 500]));
        // Mostly things are let be, and hit where it hurts: as a key comes in.
        let has_plots = random.chance(500);
        if has_plots {
            faults = Faults { call: 0, lost: 0, late: 0, ..faults };
            (wildness, lateness, spite, bent) = (100, 800, (700, 700), (0, 35));
        }
        {
            let world = &mut *world.lock();
            world.faults = faults;
            for store in &mut world.stores {
                store.credentials.insert(1);
            }
            let any = if window == Window::ANY { "any age" } else { "recent" };
            world.say(format_args!("slots of {slot_ms} ms, duties of {any}"));
        }
        Self {
            world,
            time,
            network,
            options: options.clone(),
            policy,
            enclaves: Vec::new(),
            keys,
            kept: Vec::new(),
            job: None,
            next_enclave: 0,
            next_order: 0,
            next_counter: 0,
            next_credentials: 1,
            store: 0,
            made: false,
            closed: None,
            ended: 0,
            last_stated: None,
            is_stale: false,
            is_calm: false,
            spare: 0,
            older: 0,
            spite,
            plot: None,
            plots: if has_plots { 60 } else { 0 },
            wildness,
            lateness,
            bent,
            slot_ms,
        }
    }

    /// Runs it to its end.
    pub fn run(mut self, most: u64) -> Outcome {
        let steps = {
            let random = &mut self.world.lock().random;
            random.pick(&[1000, 2500, 5000, 8000]).min(most.max(1))
        };
        let ended = self.storm(steps).and_then(|()| self.calm());
        self.end_all();
        let world = &mut *self.world.lock();
        world.stats.episodes = 1;
        Outcome {
            stats: world.stats,
            digest: world.trace.digest(),
            violation: ended.err().map(|Violation(what)| what),
            trace: world.trace.last().map(str::to_owned).collect(),
        }
    }

    fn storm(&mut self, steps: u64) -> Result<(), Violation> {
        self.start_enclave(true);
        if self.random(|random| random.chance(850)) {
            self.prelude()?;
        }
        for _ in 0..steps {
            self.step()?;
        }
        Ok(())
    }

    /// Mostly a group is there already, with a key or none.
    fn prelude(&mut self) -> Result<(), Violation> {
        self.is_calm = true;
        let faults = std::mem::take(&mut self.world.lock().faults);
        let keys = self.random(|random| random.below(2));
        for _ in 0..self.random(|random| random.below(40)) {
            self.sign_elsewhere()?;
        }
        for _ in 0..600 {
            self.calm_step()?;
            let number = self.running().first().copied();
            let holds = number.is_some_and(|number| self.standing(number) == Some(StatedStatus::Holding));
            let here = self.keys.iter().any(|key| matches!(key.place, Whereabouts::Here { .. }));
            if holds && (keys == 0 || here) {
                break;
            }
            if !holds || keys > 0 {
                self.recover();
            }
        }
        self.is_calm = false;
        self.spare = KEYS - 1;
        self.world.lock().faults = faults;
        Ok(())
    }

    /// One step: an actor goes on, or something happens in the world.
    fn step(&mut self) -> Result<(), Violation> {
        let roll = {
            let world = &mut *self.world.lock();
            world.stats.steps += 1;
            world.deliver_late();
            world.random.below(1000)
        };
        self.mend_clocks();
        // An operator mends what was forged, and not while another order is under way.
        if self.job.is_none() {
            self.mend_record(false);
        }
        match roll {
            0..740 => self.let_go_on(),
            740..880 => self.ask_for_duties()?,
            880..900 => self.sign_elsewhere()?,
            900..960 => self.operate(),
            960..972 => self.parent(),
            972..977 => self.skip_time(),
            // Mostly while the one who holds the fence is about its own.
            977..983 if self.plots > 0 => {}
            977..990 if self.random(|random| random.chance(self.wildness)) => self.break_something(),
            _ => self.look(),
        }
        let often = if self.plots_to_ask() { 250 } else { self.plots };
        if self.plots > 0 && self.random(|random| random.chance(often)) {
            self.plot()?;
        }
        self.collect()
    }

    pub(crate) fn random<T>(&self, choose: impl FnOnce(&mut Random) -> T) -> T {
        choose(&mut self.world.lock().random)
    }

    /// An actor whose wait is over goes on; where there is none, time does.
    pub(crate) fn let_go_on(&mut self) {
        let now = self.time.ms();
        let alive = |enclave: &&Enclave| enclave.frozen_until <= now;
        let actors = self.enclaves.iter().filter(alive).flat_map(|enclave| &enclave.actors);
        let ready: Vec<_> = actors.clone().filter(|actor| actor.is_ready(now)).cloned().collect();
        if ready.is_empty() {
            let frozen = self.enclaves.iter().map(|enclave| enclave.frozen_until).filter(|until| *until > now);
            let next = actors.filter_map(|actor| actor.due()).chain(frozen).min().unwrap_or(now + 100);
            // A machine that has much to do wakes late: then more happens in as many steps.
            let late = if self.is_calm { 0 } else { self.random(|random| random.below(self.lateness + 1)) };
            self.time.advance_to(next.clamp(now + 1, now + 1000) + late);
            return;
        }
        let chosen = self.random(|random| random.index(ready.len()));
        ready[chosen].resume();
    }

    fn skip_time(&mut self) {
        let slots = self.random(|random| random.pick(&[1, 1, 3, 12]));
        let by = self.random(|random| random.below(slots * self.slot_ms));
        self.time.advance_to(self.time.ms() + by);
    }

    /// What actors have left behind: answers, and their own end.
    pub(crate) fn collect(&mut self) -> Result<(), Violation> {
        let mut replies = Vec::new();
        let mut ended = Vec::new();
        for enclave in &mut self.enclaves {
            let mut parts = enclave.inside.parts();
            replies.append(&mut parts.replies);
            if enclave.boot.is_none()
                && let Some(vault) = parts.vault.clone()
            {
                drop(parts);
                enclave.boot = stated(&vault).map(|(statement, hpke)| Boot { nonce: statement.boot_nonce, hpke });
                parts = enclave.inside.parts();
            }
            if let Some(said) = enclave.actors.iter().find_map(|actor| actor.panicked()) {
                return Err(Violation(format!("enclave {} panics: {said}", enclave.number)));
            }
            if parts.has_ended {
                ended.push(enclave.number);
            }
        }
        for number in ended {
            self.end(number, "ends by itself");
        }
        for (number, reply) in replies {
            self.answered(number, reply);
        }
        Ok(())
    }

    /// Starts an enclave; with everything that the disk has, or with what the parent likes to show.
    pub(crate) fn start_enclave(&mut self, is_honest: bool) -> u32 {
        self.start_in(self.store, is_honest || self.options.has_honest_disk)
    }

    fn start_in(&mut self, store: usize, is_honest: bool) -> u32 {
        let enclave = self.next_enclave;
        self.next_enclave += 1;
        let setup = {
            let world = &mut *self.world.lock();
            world.stats.boots += 1;
            if is_honest {
                world.views.remove(&enclave);
            } else {
                show_something(world, enclave);
            }
            let random = &mut world.random;
            // Two of them up to twice the tolerance apart.
            let most = i64::try_from(CLOCK_TOLERANCE_MS).unwrap();
            let nsm_ms = i64::try_from(random.below(2 * CLOCK_TOLERANCE_MS + 1)).unwrap() - most;
            let nsm_ms = random.pick(&[nsm_ms, nsm_ms, nsm_ms / 4, most, -most]);
            // Whose clock is off by more than a slot signs no block of the slot that it is: in the end it is to sign.
            let nsm_ms = if self.is_calm { nsm_ms / 2 } else { nsm_ms };
            let wall_ms = nsm_ms + i64::try_from(random.below(800)).unwrap() - 400;
            let clocks = Clocks::new(Arc::clone(&self.time), self.network.clone(), (nsm_ms, wall_ms));
            Setup {
                enclave,
                store,
                network: self.network.clone(),
                policy: self.policy.clone(),
                operators: Operators { threshold: 2, keys: operator_keys() },
                recipient: Arc::clone(&self.options.recipient),
                clocks: Arc::new(clocks),
                seed: random.number(),
                world: self.world.clone(),
            }
        };
        self.enclaves.push(Enclave::start(setup, &self.time));
        enclave
    }

    pub(crate) fn end(&mut self, number: u32, how: &str) {
        let Some(at) = self.enclaves.iter().position(|enclave| enclave.number == number) else { return };
        let enclave = self.enclaves.remove(at);
        for actor in &enclave.actors {
            actor.kill();
        }
        self.kept.retain(|kept| kept.enclave != number);
        say!(self.world.lock(), "enclave {number} {how}");
    }

    pub(crate) fn end_all(&mut self) {
        while let Some(number) = self.enclaves.first().map(|enclave| enclave.number) {
            self.end(number, "is ended");
        }
    }

    pub(crate) fn enclave(&self, number: u32) -> Option<&Enclave> {
        self.enclaves.iter().find(|enclave| enclave.number == number)
    }

    /// Those that run, and have started.
    pub(crate) fn running(&self) -> Vec<u32> {
        let now = self.time.ms();
        let running = self.enclaves.iter().filter(|enclave| enclave.boot.is_some() && enclave.frozen_until <= now);
        running.map(|enclave| enclave.number).collect()
    }

    pub(crate) fn statement(&self, number: u32) -> Option<Statement> {
        stated(&*self.enclave(number)?.vault()?).map(|(statement, _)| statement)
    }

    pub(crate) fn standing(&self, number: u32) -> Option<StatedStatus> {
        match self.enclave(number)?.vault()?.handle(&Request::Info) {
            Reply::Info(info) => Some(info.standing),
            _ => None,
        }
    }

    /// The term that an enclave has claimed last.
    fn term(&self, enclave: &Enclave) -> u64 {
        let nonce = enclave.boot.map_or(Bytes::ZERO, |boot| boot.nonce);
        let world = self.world.lock();
        world.stores[enclave.store].claimed.get(&nonce).copied().unwrap_or(0)
    }

    pub(crate) fn slot(&self) -> Slot {
        self.world.lock().slot()
    }

    /// A hostile client asks every enclave for messages that conflict.
    fn ask_for_duties(&mut self) -> Result<(), Violation> {
        // Of those that are in here, or may be, mostly.
        let near: Vec<usize> = (0..ALL_KEYS).filter(|key| self.keys[*key].place != Whereabouts::Foreign).collect();
        // And of the one that operators are about.
        let about = self.job.as_ref().and_then(Job::key);
        let key = self.random(|random| match about.filter(|_| random.chance(500)) {
            Some(key) => key,
            None if near.is_empty() || random.chance(150) => random.index(KEYS),
            None => random.pick(&near),
        });
        let message = self.some_question(key);
        self.asks(key, message)
    }

    /// Around now, or around what was signed.
    pub(crate) fn some_question(&self, key: usize) -> Message {
        let now = self.slot().0;
        let often = if self.plots_with(key) { 950 } else { 500 };
        let signed = &self.keys[key].signed;
        self.random(|random| {
            let known = if random.chance(often) { signed.some(random) } else { None };
            known.unwrap_or_else(|| some_message(random, now))
        })
    }

    /// Every enclave is asked for this, or for what conflicts with it.
    pub(crate) fn asks(&mut self, key: usize, message: Message) -> Result<(), Violation> {
        for number in self.running() {
            let message = self.random(|random| varied(random, message));
            self.ask(number, key, message)?;
        }
        Ok(())
    }

    /// Asks an enclave for a signature; whether it was given. Judged at once.
    pub(crate) fn ask(&mut self, number: u32, key: usize, message: Message) -> Result<bool, Violation> {
        let Some(enclave) = self.enclave(number) else { return Ok(false) };
        let Some(vault) = enclave.vault() else { return Ok(false) };
        let (term, store) = (self.term(enclave), enclave.store);
        let reply = vault.handle(&Request::Sign(sign_request(self.keys[key].public, message)));
        let given = matches!(reply, Reply::Signature(_));
        {
            let world = &mut *self.world.lock();
            world.trace.fold(&[u8::from(given)]);
            if !given {
                world.stats.refusals += 1;
                return Ok(false);
            }
            world.stats.signatures += 1;
            world.say(format_args!("enclave {number} signs {message} with key {key} in term {term}"));
            let granted = world.stores[store].granted.get(&term).copied().unwrap_or(Ceilings::ZERO);
            let within = match message {
                Message::Block { slot, .. } => slot <= granted.slot.0,
                Message::Vote { source, target, .. } => source <= granted.source.0 && target <= granted.target.0,
            };
            if !within {
                let what = format!("enclave {number} signs {message}, beyond all that term {term} was granted");
                return Err(Violation(what));
            }
        }
        let by = format!("enclave {number}, term {term}, {} ms", self.time.ms());
        self.release(key, message, by)?;
        if let Some(deleted) = self.keys[key].deleted.filter(|deleted| term >= *deleted) {
            return Err(Violation(format!(
                "enclave {number} signs {message} in term {term} with key {key}, whose deletion was acknowledged in \
                 term {deleted}"
            )));
        }
        Ok(true)
    }

    fn release(&mut self, key: usize, message: Message, by: String) -> Result<(), Violation> {
        let signed = &mut self.keys[key].signed;
        if let Some(other) = signed.conflict(&message) {
            return Err(Violation(format!(
                "slashable: key {key} has signed {} ({}) and {message} ({by})",
                other.message, other.by
            )));
        }
        signed.add(Released { message, by });
        Ok(())
    }

    /// The foreign signer signs whatever its own full history and what it was told allow.
    fn sign_elsewhere(&mut self) -> Result<(), Violation> {
        let key = self.random(|random| random.index(KEYS));
        self.sign_elsewhere_with(key)
    }

    /// The same with this key.
    pub(crate) fn sign_elsewhere_with(&mut self, key: usize) -> Result<(), Violation> {
        let now = self.slot().0;
        let message = self.random(|random| {
            let known = if random.chance(400) { self.keys[key].signed.some(random) } else { None };
            let message = known.unwrap_or_else(|| some_message(random, now.saturating_sub(1)));
            varied(random, message)
        });
        let Key { place, foreign, told, .. } = &self.keys[key];
        let above = match message {
            Message::Block { slot, .. } => slot <= now && told.block.is_none_or(|told| slot > told.slot.0),
            Message::Vote { source, target, .. } => {
                target <= now / SLOTS_PER_EPOCH
                    && told.attestation.is_none_or(|told| target > told.target.0 && source >= told.source.0)
            }
        };
        if *place != Whereabouts::Foreign || !above || foreign.conflict(&message).is_some() {
            return Ok(());
        }
        let by = format!("the foreign signer, {} ms", self.time.ms());
        {
            let world = &mut *self.world.lock();
            world.stats.foreign += 1;
            world.say(format_args!("the foreign signer signs {message} with key {key}"));
        }
        self.keys[key].foreign.add(Released { message, by: by.clone() });
        self.release(key, message, by)
    }

    /// The parent: commands late or again, handovers that nobody has signed.
    fn parent(&mut self) {
        if self.random(|random| random.chance(400)) {
            let running = self.running();
            if running.is_empty() {
                return;
            }
            let number = self.random(|random| random.pick(&running));
            if self.order(number, Request::Handover).is_some() {
                say!(self.world.lock(), "the parent asks enclave {number} to hand over");
            }
            return;
        }
        if self.kept.is_empty() {
            return;
        }
        let which = self.random(|random| random.index(self.kept.len()));
        let KeptCommand { enclave, counter, ref request, imports, deletes } = self.kept[which];
        // What nobody has signed can be asked for at any time: here it is while nothing else is under way about that key.
        let busy = |key: usize| {
            matches!(self.keys[key].place, Whereabouts::Entering { .. })
                || self.job.as_ref().is_some_and(|job| job.key() == Some(key))
        };
        if counter == 0 && deletes.is_some_and(busy) {
            return;
        }
        let request = request.clone();
        if self.order(enclave, request).is_some() {
            say!(self.world.lock(), "the parent gives enclave {enclave} command {counter} that it has kept");
            self.delivered(imports, deletes);
        }
    }

    /// A command is in an enclave's hands.
    pub(crate) fn delivered(&mut self, imports: Option<usize>, deletes: Option<usize>) {
        if let Some(key) = imports {
            self.keys[key].deleted = None;
        }
        // Ordered long ago, and not withdrawn: anyone who still had it in their hands could deliver it.
        if let Some(key) = deletes
            && let Whereabouts::Here { history } = self.keys[key].place
        {
            self.keys[key].place = Whereabouts::Leaving { history };
        }
    }

    /// Gives an enclave a request that takes its time; its number.
    pub(crate) fn order(&mut self, enclave: u32, request: Request) -> Option<u64> {
        let number = self.next_order;
        let taken = self.enclave(enclave)?.inside.order(Order { number, request });
        self.next_order += 1;
        taken.then_some(number)
    }

    fn break_something(&mut self) {
        let now = self.time.ms();
        let running: Vec<u32> = self.enclaves.iter().map(|enclave| enclave.number).collect();
        let what = self.random(|random| random.below(100));
        let chosen = if running.is_empty() { None } else { Some(self.random(|random| random.pick(&running))) };
        match (what, chosen) {
            (_, None) => {
                let honest = self.random(|random| random.chance(600));
                self.start_enclave(honest);
            }
            (0..30, _) if running.len() < 3 => {
                let honest = self.random(|random| random.chance(500));
                self.start_enclave(honest);
            }
            (0..45, Some(number)) => {
                self.world.lock().stats.kills += 1;
                self.end(number, "is killed");
            }
            (45..50, _) => {
                self.world.lock().stats.kills += 1;
                self.end_all();
                let honest = self.random(|random| random.chance(300));
                self.start_enclave(honest);
            }
            (50..60, Some(number)) => {
                let length = self.random(|random| random.within(200, 12 * self.slot_ms));
                if let Some(enclave) = self.enclaves.iter_mut().find(|enclave| enclave.number == number) {
                    enclave.frozen_until = now + length;
                }
                say!(self.world.lock(), "enclave {number} is stopped for {length} ms");
            }
            (60..72, Some(number)) => {
                self.cut_off(number, 500);
            }
            (72..76, Some(number)) => self.disturb_clock(number),
            (76..81, Some(number)) if !self.options.has_honest_disk => {
                let world = &mut *self.world.lock();
                show_something(world, number);
            }
            (81..89, _) => {
                let world = &mut *self.world.lock();
                let (number, length) = (world.random.index(2), world.random.within(500, 8 * self.slot_ms));
                world.stores[number].away_until = now + length;
                world.say(format_args!("store {number} is away for {length} ms"));
            }
            // One of the image before, that asks the store before.
            (89..91, _) if self.ended > 0 => {
                self.start_in(1 - self.store, self.options.has_honest_disk);
            }
            (89..94, _) => self.lose_record(),
            (94..98, _) if !self.options.is_forgetful => self.forge_record(),
            _ => self.revoke_credentials(),
        }
    }

    /// The store is not heard of for a while; or it does not hear either.
    pub(crate) fn cut_off(&mut self, enclave: u32, at_least: u64) {
        let world = &mut *self.world.lock();
        let length = world.random.within(at_least, at_least + 10 * self.slot_ms);
        let carried = world.random.chance(500);
        world.cuts.insert(enclave, (world.time.ms() + length, carried));
        let what = if carried { "hears no answer of the store" } else { "is cut off from the store" };
        world.say(format_args!("enclave {enclave} {what} for {length} ms"));
    }

    /// What went wrong is followed by the worst: everything is killed, and what starts is shown an older state.
    pub(crate) fn strike(&mut self) {
        self.world.lock().stats.kills += 1;
        self.end_all();
        let number = self.start_enclave(false);
        let world = &mut *self.world.lock();
        let numbers = world.disk.iter().map(|kept| kept.term);
        let newest = numbers.clone().max().unwrap_or(0);
        // The state before the change, mostly.
        let before = numbers.filter(|number| *number < newest).max();
        let hides = !self.options.has_honest_disk && world.random.chance(600);
        if let Some(before) = before.filter(|_| hides) {
            world.views.insert(number, before);
            say!(*world, "the parent shows enclave {number} states up to {}", state_words(before));
        }
    }

    /// Somebody removes the record. Only where operators know what the last holder's state was: nothing else can help then.
    fn lose_record(&mut self) {
        if self.options.is_forgetful {
            let world = &mut *self.world.lock();
            if let Some(record) = &mut world.stores[self.store].record {
                // As restored from a backup: the ceilings of some time ago.
                record.ceilings.slot = Slot(record.ceilings.slot.0.saturating_sub(20));
                record.ceilings.target = Epoch(record.ceilings.target.0.saturating_sub(5));
                record.ceilings.source = Epoch(record.ceilings.source.0.saturating_sub(5));
                say!(*world, "the store forgets what it has granted");
            }
            return;
        }
        if self.is_stale || self.last_stated.is_none() || self.job.is_some() || self.closed.is_some() {
            return;
        }
        let world = &mut *self.world.lock();
        let store = &mut world.stores[self.store];
        let closed = store.record.is_some_and(|record| record.closed);
        if closed || store.forged.is_some() || store.record.take().is_none() {
            return;
        }
        // One that is still on its way would be a record of long ago: a store that goes back (docs/THREAT_MODEL.md, «The fence's
        // assumptions»), which nothing here can stand.
        store.late.retain(|(_, question)| !matches!(question, StoreOp::Create(_)));
        world.stats.records_lost += 1;
        say!(*world, "somebody removes the record of store {}", self.store);
    }

    fn revoke_credentials(&mut self) {
        self.next_credentials += 1;
        let new = self.next_credentials;
        let world = &mut *self.world.lock();
        for store in &mut world.stores {
            store.credentials.clear();
            store.credentials.insert(new);
        }
        say!(*world, "the store's credentials are exchanged: from now on number {new}");
    }

    /// Operators look at the holder: what it states is what they know, should the record be lost.
    pub(crate) fn look(&mut self) {
        for number in self.running() {
            let Some(statement) = self.statement(number) else { continue };
            self.looked(&statement);
        }
    }

    pub(crate) fn looked(&mut self, statement: &Statement) {
        // While a command is carried out, the keys that are stated need not be those of the state that is stated: a deletion that comes to
        // nothing in the end has taken its key out of the former.
        let whose = |enclave: &&Enclave| enclave.boot.is_some_and(|boot| boot.nonce == statement.boot_nonce);
        if self.enclaves.iter().find(whose).is_some_and(|enclave| enclave.inside.parts().at.is_some()) {
            return;
        }
        let term = statement.fence.term;
        let (StatedStatus::Holding, Some(state)) = (statement.fence.standing, statement.state) else { return };
        if self.last_stated.is_some_and(|(last, _)| last > term) {
            return;
        }
        let last = LastState { keys_root: statement.public_keys.root, fence_version: state.fence_version };
        self.last_stated = Some((term, last));
        self.is_stale = false;
    }

    /// Everything works from now on: a lone enclave with everything that was ever sealed must come to sign.
    fn calm(&mut self) -> Result<(), Violation> {
        (self.is_calm, self.spare) = (true, KEYS - 1);
        self.end_all();
        self.give_up_now();
        self.mend_record(true);
        {
            let world = &mut *self.world.lock();
            world.faults = Faults::default();
            world.cuts.clear();
            world.views.clear();
            for store in &mut world.stores {
                store.away_until = 0;
                store.late.clear();
            }
            say!(*world, "from here on everything works");
            let stores: Vec<_> = world.stores.iter().map(|store| store.record).collect();
            for (number, record) in stores.iter().enumerate() {
                if let Some(record) = record {
                    say!(*world, "store {number}: {}", record_words(record));
                }
            }
        }
        let begun = self.time.ms();
        let bound = 6 * SLOTS_PER_EPOCH * self.slot_ms + 180_000;
        self.start_enclave(true);
        let (mut block, mut vote) = (false, false);
        let mut asked = 0;
        while !(block && vote) {
            let now = self.time.ms();
            if now - begun > bound {
                let missing = if block { "no vote" } else { "no block" };
                return Err(Violation(format!(
                    "not alive: {missing} was signed within {} s of an enclave alone with a healthy store",
                    bound / 1000
                )));
            }
            self.calm_step()?;
            if now < asked {
                continue;
            }
            asked = now + 300;
            self.recover();
            let slot = self.slot().0;
            let Some(number) = self.running().first().copied() else { continue };
            if self.standing(number) != Some(StatedStatus::Holding) {
                continue;
            }
            for key in 0..ALL_KEYS {
                if matches!(self.keys[key].place, Whereabouts::Here { .. }) {
                    let epoch = slot / SLOTS_PER_EPOCH;
                    if !block {
                        block = self.ask(number, key, Message::Block { slot, variant: 9 })?;
                    }
                    let duty = Message::Vote { source: epoch - 1, target: epoch, variant: 9 };
                    vote |= self.ask(number, key, duty)?;
                }
            }
        }
        self.check_keys()?;
        match self.random(|random| random.below(100)) {
            0..10 => self.nagged(),
            10..30 => self.outlives_forged_record(),
            30..50 => self.outlives_wrong_clock(),
            _ => Ok(()),
        }
    }

    pub(crate) fn calm_step(&mut self) -> Result<(), Violation> {
        self.world.lock().stats.steps += 1;
        self.let_go_on();
        self.collect()
    }

    /// No key is lost, and none has come back.
    fn check_keys(&mut self) -> Result<(), Violation> {
        let Some(number) = self.running().first().copied() else { return Ok(()) };
        let Some(vault) = self.enclave(number).and_then(Enclave::vault) else { return Ok(()) };
        let Reply::PublicKeys { keys: listed, .. } = vault.handle(&Request::PublicKeys { start: 0 }) else {
            return Ok(());
        };
        for (number, key) in self.keys.iter().enumerate() {
            let is_listed = listed.contains(&key.public);
            if matches!(key.place, Whereabouts::Here { .. }) && !is_listed {
                return Err(Violation(format!("key {number} was imported, and is lost")));
            }
            if key.deleted.is_some() && is_listed {
                return Err(Violation(format!("key {number} was deleted, and is back")));
            }
        }
        Ok(())
    }

    /// A parent that asks for handovers all the time costs some of the duties, not nearly all of them.
    fn nagged(&mut self) -> Result<(), Violation> {
        say!(self.world.lock(), "the parent asks for handovers all the time");
        let until = self.time.ms() + 24 * self.slot_ms.max(2000);
        let (mut looks, mut holding, mut next) = (0_u64, 0_u64, 0);
        while self.time.ms() < until {
            self.calm_step()?;
            let now = self.time.ms();
            if now < next {
                continue;
            }
            next = now + 200;
            let Some(number) = self.running().first().copied() else { continue };
            looks += 1;
            holding += u64::from(self.standing(number) == Some(StatedStatus::Holding));
            self.order(number, Request::Handover);
        }
        if holding * 5 < looks {
            let what =
                format!("not alive: handovers that nobody has signed leave {holding} of {looks} moments to sign in");
            return Err(Violation(what));
        }
        Ok(())
    }
}

/// The parent shows an enclave what it likes.
fn show_something(world: &mut World, enclave: u32) {
    if world.random.chance(350) || world.disk.is_empty() {
        world.views.remove(&enclave);
        return;
    }
    let newest = world.disk.iter().map(|kept| kept.term).max().unwrap_or(0);
    // Just before the last one, mostly.
    let back = world.random.pick(&[1, 1, 1, 2, 2, 3, 4, 5]).min(world.disk.len() - 1);
    let some = world.disk.len() - 1 - back;
    let shown = if world.random.chance(50) { 0 } else { world.disk[some].term };
    world.views.insert(enclave, shown);
    if shown < newest {
        world.stats.rollbacks += 1;
        say!(*world, "the parent shows enclave {enclave} states up to {}", state_words(shown));
    }
}

/// What an enclave states, and what secrets are encrypted to.
fn stated(vault: &casemate_vault::Vault) -> Option<(Statement, Bytes<32>)> {
    let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
    let Reply::Attestation { document, statement } = vault.handle(&Request::Attestation { nonce }) else { return None };
    let payload = casemate_protocol::cbor::cose_payload(document.as_ref()).unwrap();
    let document = aws_nitro_enclaves_nsm_api::api::AttestationDoc::from_binary(&payload).unwrap();
    let hpke = Bytes(document.public_key.unwrap().into_vec().try_into().unwrap());
    Some((Statement::decode(statement.as_ref()).unwrap(), hpke))
}

fn network(slot_ms: u64) -> Network {
    NetworkFields {
        name: "simulated".into(),
        preset: Preset::Minimal,
        genesis_time: GENESIS_TIME,
        genesis_validators_root: GENESIS,
        slot_duration_ms: slot_ms,
        slots_per_epoch: SLOTS_PER_EPOCH,
        forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
    }
    .try_into()
    .unwrap()
}

fn key(number: usize) -> Key {
    let secret = [u8::try_from(number + 1).unwrap(); 32];
    let public = SecretKey::from_be_bytes(&mut secret.clone()).unwrap().public_key();
    Key {
        secret,
        public,
        signed: Signed::default(),
        foreign: Signed::default(),
        told: Watermarks::default(),
        place: Whereabouts::Foreign,
        deleted: None,
    }
}

/// A block or a vote around a slot; of old ones too.
fn some_message(random: &mut Random, now: u64) -> Message {
    let back = if random.chance(700) { random.below(3) } else { random.below(24) };
    let ahead = random.below(3);
    if random.chance(500) {
        return Message::Block { slot: (now + ahead).saturating_sub(back), variant: 0 };
    }
    let target = ((now + ahead) / SLOTS_PER_EPOCH).saturating_sub(back / SLOTS_PER_EPOCH + random.below(2));
    let source = target.saturating_sub(1 + random.pick(&[0, 0, 0, 1, 2, 4]));
    Message::Vote { source, target, variant: 0 }
}

/// Another one that conflicts with it, often.
fn varied(random: &mut Random, message: Message) -> Message {
    let variant = u8::try_from(random.below(3)).unwrap();
    match message {
        Message::Block { slot, .. } => Message::Block { slot, variant },
        Message::Vote { source, target, .. } => match random.below(4) {
            // Around it, and within it.
            0 => Message::Vote { source: source.saturating_sub(1), target: target + 1, variant },
            1 if source + 2 < target => Message::Vote { source: source + 1, target: target - 1, variant },
            _ => Message::Vote { source, target, variant },
        },
    }
}

fn sign_request(public_key: PublicKey, message: Message) -> SignRequest {
    let checkpoint = |epoch, variant| Checkpoint { epoch: Epoch(epoch), root: Bytes([variant; 32]) };
    let duty = match message {
        Message::Block { slot, variant } => Duty::Block(BeaconBlockHeader {
            slot: Slot(slot),
            proposer_index: 1,
            parent_root: Bytes([1; 32]),
            state_root: Bytes([2; 32]),
            body_root: Bytes([variant; 32]),
        }),
        Message::Vote { source, target, variant } => Duty::Attestation(AttestationData {
            slot: Slot(target * SLOTS_PER_EPOCH),
            index: 0,
            beacon_block_root: Bytes([variant; 32]),
            source: checkpoint(source, variant),
            target: checkpoint(target, variant),
        }),
    };
    let version = Bytes([0; 4]);
    let fork_info = ForkInfo {
        previous_version: version,
        current_version: version,
        epoch: Epoch(0),
        genesis_validators_root: GENESIS,
    };
    SignRequest { public_key, duty, fork_info: Some(fork_info), signing_root: None, proofs: Vec::new() }
}
