//! Operators who follow the tool's words to the letter: «not known» counts as done and is given again, a key signs in one place, the
//! record is made anew from what the last holder has stated.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_protocol::command::{
    Action, ClosedRecord, Command, EncryptedSecrets, ExitOrder, FENCE_HPKE_INFO, HPKE_INFO, ImportedKey, KeyHistory,
    KeyOutcome, OperatorSignature, Outcome, RecordOrder, SignedCommand, signed_bytes,
};
use casemate_protocol::history_page::SignedHistoryPage;
use casemate_protocol::statement::{StatedRecord, StatedStatus, Statement};
use casemate_protocol::watermarks::{AttestationMark, BlockMark, Watermarks};
use casemate_protocol::{BoundedBytes, Bytes, Epoch, Refusal, Reply, Request, Slot};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};

use crate::enclave::Boot;
use crate::say;
use crate::state::{ALL_KEYS, Episode, Job, KEYS, KeptCommand, SLOTS_PER_EPOCH, Task, Whereabouts};
use crate::world::{GENESIS, GROUP, credentials, sha256, state_words};

/// So long an answer is waited for.
const PATIENCE_MS: u64 = 150_000;
/// The same where the parent keeps the command back.
const IMPATIENCE_MS: u64 = 3_000;

/// What the tool says of a command.
enum Told {
    /// Exit 0, or 1 for a key.
    Done(Outcome),
    /// A page of history, which is no command.
    SlashingProtection(Box<SignedHistoryPage>),
    /// Exit 1: refused, nothing has changed.
    Refused(Refusal),
    /// Exit 3.
    Unknown,
}

fn pair(n: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[n; 32]).unwrap()
}

fn public(pair: &Ed25519KeyPair) -> Bytes<32> {
    Bytes(pair.public_key().as_ref().try_into().unwrap())
}

/// Those that the measured configuration names.
pub fn operator_keys() -> Vec<Bytes<32>> {
    [1, 2, 3].map(|n| public(&pair(n))).to_vec()
}

fn encrypted(boot: &Boot, info: &[u8], clear: &[u8]) -> EncryptedSecrets {
    let key = HpkePublicKey(boot.hpke.0.to_vec());
    let (enc, ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256.seal(info, &boot.nonce.0, clear, &key).unwrap();
    EncryptedSecrets { enc: Bytes(enc.0.try_into().unwrap()), ciphertext: BoundedBytes::new(ciphertext).unwrap() }
}

impl Episode {
    /// Operators do something, or wait.
    pub(crate) fn operate(&mut self) {
        self.give_up();
        // Who sees numbers that cannot be changes nothing before they are mended.
        if self.job.is_some() || self.is_forged() {
            return;
        }
        // They have time for little else.
        if self.is_plotting() && self.random(|random| random.chance(800)) {
            return;
        }
        let running = self.running();
        if running.is_empty() {
            return;
        }
        let number = self.random(|random| random.pick(&running));
        let Some(statement) = self.statement(number) else { return };
        self.looked(&statement);
        // What is needed comes first, mostly.
        if self.random(|random| random.chance(700))
            && let Some(task) = self.needed(&statement)
        {
            self.begin(number, task);
            return;
        }
        let holder = running.iter().copied().find(|one| self.standing(*one) == Some(StatedStatus::Holding));
        let key = self.random(|random| random.index(KEYS - 1));
        // What operators are about, in this episode.
        let roll = match self.random(|random| random.below(100)) {
            roll if roll < self.bent.0 => 82,
            roll if roll < self.bent.0 + self.bent.1 => 50,
            _ => self.random(|random| random.below(100)),
        };
        let place = self.keys[key].place;
        // Nearly always at the holder; sometimes at one that stands by.
        let at = if self.random(|random| random.chance(900)) { holder.unwrap_or(number) } else { number };
        let is_of_use = holder.is_some() || self.random(|random| random.chance(100));
        match roll {
            0..50 if is_of_use => match place {
                // Or back where it was: then it must be out of here first, whether it ever came in or not.
                Whereabouts::Entering { perhaps: true, .. } if roll < 20 => self.begin(at, Task::Delete(key)),
                Whereabouts::Foreign | Whereabouts::Entering { .. } => self.begin(at, Task::Import(key)),
                // A script that is run again.
                Whereabouts::Here { .. } if roll < 8 => self.begin(at, Task::Import(key)),
                Whereabouts::Here { .. } if roll < 12 && self.policy.key_manager_delete => {
                    self.begin(at, Task::DeleteUnsigned(key));
                }
                Whereabouts::Here { .. } if roll < 25 => self.begin(at, Task::Delete(key)),
                Whereabouts::Leaving { .. } => self.begin(at, Task::Delete(key)),
                Whereabouts::Gone { .. } if roll < 12 => self.begin(at, Task::Import(key)),
                Whereabouts::Gone { .. } => self.begin(at, Task::MoveAway(key)),
                Whereabouts::Here { .. } => {}
            },
            50..66 => self.begin(at, Task::Handover),
            66..78 => self.begin(number, Task::Takeover),
            78..82 => self.begin(number, Task::Credentials),
            // Of the store that they are in, not of one that they have left.
            82..86 if self.closed.is_none() && self.made && self.is_current(&statement) => {
                self.begin(number, Task::Close);
            }
            86..90 => self.begin(at, Task::FeeRecipient(key)),
            90..92 => self.begin(at, Task::Exit(key)),
            92..94 => self.begin(at, Task::Raise(key)),
            _ => {}
        }
    }

    /// What an enclave's statement asks for.
    pub(crate) fn needed(&mut self, statement: &Statement) -> Option<Task> {
        // One of the image before is not asked for anything.
        if !self.is_current(statement) {
            return None;
        }
        self.made |= !self.is_record_missing();
        // That it has ended, and how, its status tells too.
        if let (None, StatedStatus::Closed, Some(record)) =
            (&self.closed, statement.fence.standing, &statement.fence.record)
            && record.closed
            && self.is_current(statement)
            // Not one that they have dealt with long ago, as an enclave that is cut off still has it.
            && record.version > self.ended
        {
            self.ended = record.version;
            self.closed = Some(closed_record(record));
        }
        if let Some(closed) = &self.closed {
            let next = self.is_current(statement)
                && closed.version > 0
                && matches!(
                    statement.fence.standing,
                    StatedStatus::NoRecord | StatedStatus::Closed | StatedStatus::RolledBack | StatedStatus::Unknown
                );
            return next.then_some(Task::After);
        }
        match statement.fence.standing {
            // Anyone who brings in credentials hears too that there is no record.
            StatedStatus::NoRecord | StatedStatus::RolledBack | StatedStatus::Unknown
                if self.made && self.is_record_missing() =>
            {
                let last = self.last_stated.filter(|_| !self.is_stale);
                last.map(|(_, last)| Task::Lost(last))
            }
            StatedStatus::NoRecord | StatedStatus::Unknown if !self.made => Some(Task::New),
            StatedStatus::Unknown => self.are_credentials_dead(statement).then_some(Task::Credentials),
            _ => None,
        }
    }

    fn is_current(&self, statement: &Statement) -> bool {
        statement.fence.store.as_deref() == Some(&format!("store-{}", self.store))
    }

    fn is_record_missing(&self) -> bool {
        self.world.lock().stores[self.store].record.is_none()
    }

    /// As the store's own log tells its administrator: it is there, and refuses these credentials.
    fn are_credentials_dead(&self, statement: &Statement) -> bool {
        let world = self.world.lock();
        let store = &world.stores[self.store];
        self.is_current(statement) && store.away_until <= self.time.ms()
    }

    /// What has to be done so that a lone enclave with everything that was sealed can sign.
    pub(crate) fn recover(&mut self) {
        self.give_up();
        if self.job.is_some() {
            return;
        }
        let Some(number) = self.running().first().copied() else {
            if self.enclaves.is_empty() {
                self.start_enclave(true);
            }
            return;
        };
        // Where operators have moved to another store meanwhile, this one is of the old image.
        if self.enclave(number).is_some_and(|enclave| enclave.store != self.store) {
            self.end(number, "is ended: it asks the old store");
            return;
        }
        let Some(statement) = self.statement(number) else { return };
        self.looked(&statement);
        if let Some(task) = self.needed(&statement) {
            self.begin(number, task);
            return;
        }
        if statement.fence.standing != StatedStatus::Holding {
            return;
        }
        // Something must be there to sign with; and what was given before is given again until it is known.
        for key in 0..ALL_KEYS {
            match self.keys[key].place {
                Whereabouts::Entering { .. } => {
                    self.begin(number, Task::Import(key));
                    return;
                }
                Whereabouts::Leaving { .. } => {
                    self.begin(number, Task::Delete(key));
                    return;
                }
                _ => {}
            }
        }
        let here = |key: &crate::state::Key| matches!(key.place, Whereabouts::Here { .. });
        if !self.keys.iter().any(here) {
            self.begin(number, Task::Import(self.spare));
        }
    }

    /// Gives an enclave what a task takes.
    pub(crate) fn begin(&mut self, enclave: u32, task: Task) {
        let now = self.time.ms();
        // The tool refuses documents of another time.
        if !self.enclave(enclave).is_some_and(|enclave| enclave.clocks.is_nsm_right()) {
            return;
        }
        if let Task::MoveAway(_) = task {
            let nonce = BoundedBytes::new(vec![3; 16]).unwrap();
            let Some(order) = self.order(enclave, Request::SlashingProtection { nonce, start: 0 }) else { return };
            self.job = Some(Job { task, enclave, order: Some(order), until: now + PATIENCE_MS, was: None });
            return;
        }
        if let Task::Lost(_) = task {
            // «End every enclave of the group»: all but the one that makes it.
            let others: Vec<u32> = self.enclaves.iter().map(|one| one.number).filter(|one| *one != enclave).collect();
            for other in others {
                self.end(other, "is ended, because the record is lost");
            }
        }
        let Some(boot) = self.enclave(enclave).and_then(|enclave| enclave.boot) else { return };
        let (counter, request) = self.request(&boot, task);
        let (imports, deletes) = match task {
            Task::Import(key) => (Some(key), None),
            Task::Delete(key) | Task::DeleteUnsigned(key) => (None, Some(key)),
            _ => (None, None),
        };
        let was = imports.or(deletes).map(|key| self.keys[key].place);
        if let Task::Import(key) = task {
            self.enters(key);
        }
        // From now on it may be gone at any time.
        if let (Some(key), Some(Whereabouts::Here { history })) = (deletes, was) {
            self.keys[key].place = Whereabouts::Leaving { history };
        }
        {
            let world = &mut *self.world.lock();
            world.stats.commands += 1;
            match task {
                Task::Import(_) => world.stats.imports += 1,
                Task::Delete(_) | Task::DeleteUnsigned(_) => world.stats.deletions += 1,
                Task::Credentials => world.stats.credentials += 1,
                _ => {}
            }
            say!(*world, "operators give enclave {enclave} command {counter}: {task:?}");
        }
        // A plot has trouble enough of its own.
        let calm = self.is_calm || self.is_plotting();
        let (kept_back, unheard) = self.random(|random| (random.chance(60), random.chance(60)));
        let about_keys = imports.is_some() || deletes.is_some();
        if !calm && about_keys && self.random(|random| random.chance(self.spite.0)) {
            // For longer than the vault tries.
            self.cut_off(enclave, 13_000);
        }
        let order = if kept_back && !calm { None } else { self.order(enclave, request.clone()) };
        if order.is_some() {
            self.delivered(imports, None);
        } else {
            say!(self.world.lock(), "the parent keeps it back");
        }
        self.kept.push(KeptCommand { enclave, counter, request, imports, deletes });
        let patience = if order.is_some() { PATIENCE_MS } else { IMPATIENCE_MS };
        let order = order.filter(|_| calm || !unheard);
        self.job = Some(Job { task, enclave, order, until: now + patience, was });
    }

    /// What is sent for it, and its counter.
    fn request(&mut self, boot: &Boot, task: Task) -> (u64, Request) {
        if let Task::DeleteUnsigned(key) = task {
            return (0, Request::DeleteKeys { keys: vec![self.keys[key].public] });
        }
        let action = self.action(boot, task);
        self.next_counter += 1;
        let command = Command::new(GROUP.into(), GENESIS, boot.nonce, self.next_counter, action);
        let bytes = command.encode().unwrap();
        let sign = |n| {
            let pair = pair(n);
            let signature = pair.sign(&signed_bytes(bytes.as_ref()));
            OperatorSignature { operator: public(&pair), signature: Bytes(signature.as_ref().try_into().unwrap()) }
        };
        let envelope = SignedCommand::new(bytes.clone(), vec![sign(1), sign(2)]).encode().unwrap();
        (self.next_counter, Request::Command { envelope })
    }

    /// From now on a key signs nowhere else; its history is fixed the first time.
    fn enters(&mut self, key: usize) {
        if self.keys[key].place != Whereabouts::Foreign {
            return;
        }
        let (block, vote) = self.keys[key].foreign.highest();
        let block = block.map(|slot| BlockMark { slot: Slot(slot), signing_root: None });
        let attestation = vote.map(|(source, target)| AttestationMark {
            source: Epoch(source),
            target: Epoch(target),
            signing_root: None,
        });
        let history = Watermarks { block, attestation }.merge(self.keys[key].told);
        // Sometimes nobody has kept it, and operators say so.
        let unknown = self.random(|random| random.chance(100));
        self.keys[key].place = Whereabouts::Entering { history: (!unknown).then_some(history), perhaps: false };
    }

    fn action(&mut self, boot: &Boot, task: Task) -> Action {
        let init = |record| {
            let opens = credentials(self.next_credentials);
            Action::FenceInit {
                record,
                credentials: Some(encrypted(boot, FENCE_HPKE_INFO, &opens.encode())),
                credentials_id: opens.id(sha256),
            }
        };
        match task {
            Task::Import(key) => {
                self.enters(key);
                let key = &self.keys[key];
                let history = match key.place {
                    Whereabouts::Entering { history, .. }
                    | Whereabouts::Here { history }
                    | Whereabouts::Leaving { history }
                    | Whereabouts::Gone { history, .. } => history,
                    Whereabouts::Foreign => None,
                };
                let imported = ImportedKey { public_key: key.public, history };
                Action::Import { keys: vec![imported], secrets: encrypted(boot, HPKE_INFO, &key.secret) }
            }
            Task::Delete(key) | Task::DeleteUnsigned(key) => Action::Delete { keys: vec![self.keys[key].public] },
            Task::FeeRecipient(key) => {
                let fee_recipient = self.random(|random| random.chance(700)).then_some(Bytes([4; 20]));
                Action::FeeRecipient { keys: vec![self.keys[key].public], fee_recipient }
            }
            Task::Exit(key) => {
                let exits = vec![ExitOrder { public_key: self.keys[key].public, validator_index: 7 }];
                Action::Exit { exits, last_epoch: Epoch(self.slot().0 / SLOTS_PER_EPOCH + 2) }
            }
            Task::Raise(key) => {
                let slot = self.slot().0 - 1;
                let target = slot / SLOTS_PER_EPOCH;
                let block = Some(BlockMark { slot: Slot(slot), signing_root: None });
                let attestation =
                    Some(AttestationMark { source: Epoch(target - 1), target: Epoch(target), signing_root: None });
                let past = Watermarks { block, attestation };
                Action::RaiseHistory { keys: vec![KeyHistory { public_key: self.keys[key].public, past }] }
            }
            // To move away is no command: it was asked for before.
            Task::Handover | Task::MoveAway(_) => Action::Handover,
            Task::Takeover => Action::Takeover,
            Task::New => init(RecordOrder::New),
            Task::Lost(last) => init(RecordOrder::Lost { last }),
            Task::Credentials => init(RecordOrder::Keep),
            Task::Close => Action::FenceClose,
            Task::After => match self.closed {
                Some(closed) => init(RecordOrder::After { closed }),
                None => init(RecordOrder::New),
            },
        }
    }

    /// An answer that nobody waits for any more.
    pub(crate) fn give_up_now(&mut self) {
        if let Some(job) = self.job.take() {
            self.finish(&job, &Told::Unknown);
        }
    }

    /// The same where its time is over, or its enclave has ended.
    fn give_up(&mut self) {
        let now = self.time.ms();
        let gone = |job: &Job| self.enclave(job.enclave).is_none() || now >= job.until;
        if self.job.as_ref().is_some_and(gone)
            && let Some(job) = self.job.take()
        {
            self.finish(&job, &Told::Unknown);
        }
    }

    /// An enclave has answered.
    pub(crate) fn answered(&mut self, number: u64, reply: Reply) {
        if self.job.as_ref().is_none_or(|job| job.order != Some(number)) {
            say!(self.world.lock(), "order {number} is answered to nobody: {}", short(&reply));
            return;
        }
        let Some(job) = self.job.take() else { return };
        say!(self.world.lock(), "enclave {} answers {:?}: {}", job.enclave, job.task, short(&reply));
        let told = match reply {
            Reply::Command(outcome) => Told::Done(outcome),
            Reply::SlashingProtection(page) => Told::SlashingProtection(Box::new(page)),
            Reply::Refused(
                Refusal::MaybeSealed(_)
                | Refusal::FenceUnclear(_)
                // Not carried out so far: anyone who has it may deliver it yet.
                | Refusal::CommandBusy
                | Refusal::ClockStopped
                | Refusal::CommandCounter { .. },
            ) => Told::Unknown,
            Reply::Refused(refusal) => Told::Refused(refusal),
            _ => Told::Unknown,
        };
        self.finish(&job, &told);
    }

    fn finish(&mut self, job: &Job, told: &Told) {
        if matches!(told, Told::Unknown) {
            self.world.lock().stats.unknown += 1;
            say!(self.world.lock(), "operators do not know what became of {:?} at enclave {}", job.task, job.enclave);
        }
        let failed = !self.is_calm
            && !self.is_plotting()
            && matches!(told, Told::Unknown | Told::Refused(Refusal::NotSealed(_)));
        // What has changed the keys makes what was stated before old.
        self.is_stale |= matches!(told, Told::Done(Outcome::Imported { .. } | Outcome::Deleted { .. }));
        match job.task {
            Task::Import(key) => self.imported(key, told),
            Task::Delete(key) | Task::DeleteUnsigned(key) => self.deleted(key, job, told),
            Task::MoveAway(key) => self.moved_away(key, job.enclave, told),
            // Whether it is there, the next look shows.
            Task::New => self.made |= !self.is_record_missing(),
            Task::After => {
                // An enclave that has the state that the record wants is started with everything there is.
                if let Told::Refused(_) = told {
                    self.learn_newer_end(job.enclave);
                    self.end(job.enclave, "is ended, to start anew with the newest blobs");
                    self.start_enclave(true);
                }
                let world = self.world.lock();
                if world.stores[self.store].record.is_some_and(|record| !record.closed) {
                    drop(world);
                    self.closed = None;
                    self.made = true;
                }
            }
            Task::Lost(_) => {
                if let Told::Refused(refusal) = told {
                    say!(self.world.lock(), "the record is not made: {refusal:?}");
                    // «Bring the newest blobs to the parent.»
                    self.end(job.enclave, "is ended, to start anew with the newest blobs");
                    let number = self.start_enclave(true);
                    // Where the newest have a change of which nobody knows whether it was made, the ones before.
                    if matches!(refusal, Refusal::OtherLastState { .. }) {
                        self.show_older(number);
                    }
                }
            }
            Task::Close => {
                if let Told::Done(Outcome::FenceClosed { record }) = told {
                    let record = *record;
                    self.world.lock().stats.records_closed += 1;
                    self.ended = self.ended.max(record.version);
                    self.closed = Some(record);
                    // To the other store, mostly: the enclaves of the new image ask that.
                    let is_plot = self.plots_a_move();
                    if is_plot || self.random(|random| random.chance(800)) {
                        self.store = 1 - self.store;
                    }
                    if !is_plot && self.random(|random| random.chance(500)) {
                        self.end_all();
                    }
                    self.start_enclave(true);
                }
            }
            Task::Credentials
            | Task::Handover
            | Task::Takeover
            | Task::FeeRecipient(_)
            | Task::Exit(_)
            | Task::Raise(_) => {}
        }
        if let Some(statement) = self.statement(job.enclave) {
            self.looked(&statement);
        }
        let about_keys = matches!(job.task, Task::Import(_) | Task::Delete(_) | Task::DeleteUnsigned(_));
        if failed && about_keys && self.random(|random| random.chance(self.spite.1)) {
            self.strike();
        }
    }

    /// «Name the end of the newest»: where the status shows another end than the one that was named.
    fn learn_newer_end(&mut self, enclave: u32) {
        let Some(statement) = self.statement(enclave).filter(|statement| self.is_current(statement)) else { return };
        if let (Some(known), Some(record)) = (&self.closed, &statement.fence.record)
            && record.closed
            && record.version > known.version
        {
            self.ended = record.version;
            self.closed = Some(closed_record(record));
        }
    }

    fn imported(&mut self, key: usize, told: &Told) {
        let outcome = match told {
            Told::Done(Outcome::Imported { keys }) => keys.first().copied(),
            _ => None,
        };
        let place = &mut self.keys[key].place;
        let refused = matches!(told, Told::Refused(_)) || matches!(outcome, Some(KeyOutcome::ImpossibleHistory));
        match (*place, outcome) {
            (
                Whereabouts::Entering { history, .. }
                | Whereabouts::Gone { history, .. }
                | Whereabouts::Here { history },
                Some(KeyOutcome::Imported | KeyOutcome::Duplicate),
            ) => *place = Whereabouts::Here { history },
            // «Refused by the enclave, which has changed nothing»: the key is where it was.
            (Whereabouts::Entering { perhaps: false, .. }, _) if refused => *place = Whereabouts::Foreign,
            (Whereabouts::Entering { history, .. }, _) if !refused => {
                *place = Whereabouts::Entering { history, perhaps: true };
            }
            (Whereabouts::Gone { history, .. }, _) if !refused => {
                *place = Whereabouts::Entering { history, perhaps: true };
            }
            _ => {}
        }
    }

    fn deleted(&mut self, key: usize, job: &Job, told: &Told) {
        let history = match self.keys[key].place {
            Whereabouts::Here { history }
            | Whereabouts::Leaving { history }
            | Whereabouts::Gone { history, .. }
            | Whereabouts::Entering { history, .. } => history,
            Whereabouts::Foreign => return,
        };
        let outcome = match told {
            Told::Done(Outcome::Deleted { keys }) => keys.first(),
            _ => None,
        };
        let Some(outcome) = outcome else {
            // «Refused by the enclave, which has changed nothing.»
            self.keys[key].place = match (told, job.was) {
                (Told::Refused(_), Some(was)) => was,
                _ => Whereabouts::Leaving { history },
            };
            return;
        };
        let term = self.claimed(job.enclave);
        self.keys[key].place = Whereabouts::Gone { history, term };
        // An import that somebody may still deliver, or that is being carried out, is one of later.
        if *outcome == KeyOutcome::Deleted && !self.is_import_out(key) {
            self.keys[key].deleted = Some(term);
        }
    }

    /// The parent is brought one older state after another.
    fn show_older(&mut self, enclave: u32) {
        self.older += 1;
        let world = &mut *self.world.lock();
        let mut numbers: Vec<u64> = world.disk.iter().map(|kept| kept.term).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let back = self.older % (numbers.len().min(8) + 1);
        if let Some(number) = numbers.iter().rev().nth(back) {
            world.views.insert(enclave, *number);
            say!(*world, "operators bring enclave {enclave} the states up to {}", state_words(*number));
        }
    }

    /// Whether an enclave has an import of this key in its hands.
    fn is_import_out(&self, key: usize) -> bool {
        let imports = |enclave: u32| self.kept.iter().any(|kept| kept.enclave == enclave && kept.imports == Some(key));
        let busy = |one: &&crate::enclave::Enclave| {
            let parts = one.inside.parts();
            parts.at.is_some() || !parts.orders.is_empty()
        };
        self.enclaves.iter().filter(busy).any(|one| imports(one.number))
    }

    fn claimed(&self, enclave: u32) -> u64 {
        let Some(enclave) = self.enclave(enclave) else { return 0 };
        let nonce = enclave.boot.map_or(Bytes::ZERO, |boot| boot.nonce);
        self.world.lock().stores[enclave.store].claimed.get(&nonce).copied().unwrap_or(0)
    }

    /// A deleted key signs elsewhere from now on, above what the enclave tells.
    fn moved_away(&mut self, key: usize, enclave: u32, told: &Told) {
        let (Told::SlashingProtection(page), Whereabouts::Gone { .. }) = (told, self.keys[key].place) else { return };
        if page.page.time_ms.is_none() {
            return;
        }
        let listed = page.page.keys.iter().find(|told| told.public_key == self.keys[key].public);
        let past = match listed {
            // It is there: it has come in again, or was never deleted.
            Some(told) if told.held => return,
            Some(told) => told.highest,
            None => Some(page.page.floor),
        };
        let Some(past) = past else { return };
        // «Anyone who has the command may still deliver it, until a later one was carried out or the enclave has started anew»: enclaves that
        // might still take such an import are ended first.
        let open: Vec<u32> =
            self.kept.iter().filter(|kept| kept.imports == Some(key)).map(|kept| kept.enclave).collect();
        for number in open {
            if number != enclave {
                self.end(number, "is ended: somebody may still deliver an import to it");
            }
        }
        // At this very enclave the deletion came later, or there was none here: then it is ended too.
        let last = |wanted: fn(&KeptCommand) -> Option<usize>| {
            let all = self.kept.iter().filter(|kept| kept.enclave == enclave && wanted(kept) == Some(key));
            all.map(|kept| kept.counter).max()
        };
        if last(|kept| kept.imports) > last(|kept| kept.deletes) {
            self.end(enclave, "is ended: somebody may still deliver an import to it");
        }
        let (block, vote) = self.keys[key].foreign.highest();
        let own = Watermarks {
            block: block.map(|slot| BlockMark { slot: Slot(slot), signing_root: None }),
            attestation: vote.map(|(source, target)| AttestationMark {
                source: Epoch(source),
                target: Epoch(target),
                signing_root: None,
            }),
        };
        let one = &mut self.keys[key];
        one.told = past.merge(one.told).merge(own);
        one.place = Whereabouts::Foreign;
        let world = &mut *self.world.lock();
        world.stats.moves += 1;
        say!(*world, "key {key} goes to the foreign signer, above {:?}", self.keys[key].told);
    }
}

fn closed_record(record: &StatedRecord) -> ClosedRecord {
    let StatedRecord { version, term, slot_ceiling, target_ceiling, source_ceiling, .. } = *record;
    let StatedRecord { min_state_version, released_state: clean, .. } = *record;
    ClosedRecord {
        version,
        term,
        slot_ceiling,
        target_ceiling,
        source_ceiling,
        min_state_version,
        released_state: clean,
    }
}

fn short(reply: &Reply) -> String {
    match reply {
        Reply::Refused(Refusal::OtherLastState { fence_version, .. }) => {
            format!("refused: another last state, which has seen version {fence_version}")
        }
        Reply::Refused(refusal) => format!("refused, {refusal:?}"),
        Reply::Command(Outcome::Imported { keys }) => format!("imported, {keys:?}"),
        Reply::Command(Outcome::Deleted { keys }) => format!("deleted, {keys:?}"),
        Reply::Command(Outcome::FenceClosed { record }) => format!("closed, version {}", record.version),
        Reply::Command(_) => "done".into(),
        Reply::SlashingProtection(_) => "history".into(),
        Reply::HandedOver => "handed over".into(),
        _ => "something else".into(),
    }
}
