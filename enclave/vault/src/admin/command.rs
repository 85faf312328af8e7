//! Operators' commands: what changes the group's keys.
//!
//! A command is taken where M of the N operators that the measured configuration names have signed it, for this group, chain and
//! boot, and with a counter above the last. What it changed is sealed and on the parent's disk before it is answered and before a new key
//! signs. A parent that keeps a state and says that it did not could have it take effect at the next start: the answer says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_fence::{Beginning, Record};
use casemate_protocol::command::{
    Action, ClosedRecord, Command, CredentialsId, EncryptedSecrets, Envelope, ExitOrder, FENCE_HPKE_INFO, GeneratedKey,
    HPKE_INFO, ImportedKey, KeyHistory, KeyOutcome, LastState, MIN_DEPOSIT, Outcome, RecordOrder, SECRET_LEN,
    SignedCommand, SignedExit, StoreCredentials, max_deposit, withdrawal_address,
};
use casemate_protocol::configuration::Operators;
use casemate_protocol::frame::KeystoreToImport;
use casemate_protocol::log::{LogRecord, Message};
use casemate_protocol::refusal::{NotHolder, StoreTrouble, Waiting};
use casemate_protocol::statement::{CommandResult, StatedCommand, StatedState};
use casemate_protocol::{Duty, Epoch, ExecutionAddress, ForkInfo, Network, PublicKey, Refusal, Root, Slot};
use casemate_slashing::{Ceilings, Floors, GroupFloor, SlashingHistory, Watermarks, group};
use zeroize::{Zeroize, Zeroizing};

use crate::fence::{FenceGate, KeeperReply, KeeperRequest};
use crate::keys::custody::{Custody, CustodyError, ServiceError, Unsealed, digest_of};
use crate::keys::keyring::{Key, current};
use crate::keys::keystore;
use crate::keys::seal::Contents;
use crate::platform::attest::Attestor;
use crate::platform::margins::{self, latest_granted, latest_signed};
use crate::signing::bls::{HashedMessage, SecretKey};
use crate::signing::log::SigningLog;
use crate::signing::policy::Exits;
use crate::signing::signing_root;
use crate::{Clock, Journal, Keys, Nsm};

/// Most keys of a group: their sealed state stays far below the longest blob.
pub const MAX_GROUP_KEYS: usize = 100_000;
/// With those that were deleted: at some 220 bytes each, their sealed state still fits into the longest blob.
pub const MAX_KNOWN_KEYS: usize = 200_000;
/// More than a record's version rises in a second; until 2106 below what is believed at once (`MAX_VERSION_STEP`).
const VERSIONS_A_SECOND: u64 = 1 << 16;

/// Who may change the keys, and where changes are kept.
pub struct CommandProcessor {
    custody: Custody,
    nsm: Arc<dyn Nsm>,
    operators: Operators,
    withdrawal_addresses: Vec<ExecutionAddress>,
    book: Mutex<CommandState>,
    loaded: RwLock<Loaded>,
}

/// The sealed state that is in force.
#[derive(Clone, Default)]
pub struct Loaded {
    /// Its term; 0 where there is none.
    pub state_version: u64,
    /// What it is known by.
    pub loaded_state_digest: Option<Root>,
    /// What opens the fence's store.
    pub store: Option<StoreCredentials>,
    /// The store has taken these credentials, and no state has them yet: one that does not hold the fence must not seal.
    pub store_unsealed: bool,
    /// Version of the fence's record that it has seen.
    pub fence_version: u64,
}

impl Loaded {
    /// For the statement; nothing where no state was sealed yet.
    pub(crate) fn stated(&self) -> Option<StatedState> {
        let Self { state_version: number, fence_version, .. } = *self;
        self.loaded_state_digest.map(|sha256| StatedState { number, sha256, fence_version })
    }
}

/// A state that was sealed, and is on the parent's disk.
struct Sealed {
    state_version: u64,
    digest: Root,
    fence_version: u64,
}

/// One command at a time.
struct CommandState {
    /// The newest that this enclave has tried to store.
    tried: u64,
    counter: u64,
}

/// What a command is carried out on.
pub(crate) struct CommandContext<'a> {
    pub(crate) attestor: &'a Attestor,
    pub(crate) network: &'a Network,
    pub(crate) journal: &'a dyn Journal,
    /// Read and exchanged under the lock on the book alone.
    pub(crate) keys: &'a RwLock<Arc<Keys>>,
    pub(crate) fencing: &'a FenceGate,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) exits: &'a Exits,
    pub(crate) log: &'a SigningLog,
    /// By trusted time.
    pub(crate) now: Slot,
}

impl CommandProcessor {
    /// With what was unsealed.
    pub fn new(
        custody: Custody,
        nsm: Arc<dyn Nsm>,
        operators: Operators,
        withdrawal_addresses: Vec<ExecutionAddress>,
        loaded: Loaded,
    ) -> Self {
        let book = Mutex::new(CommandState { tried: loaded.state_version, counter: 0 });
        Self { custody, nsm, operators, withdrawal_addresses, book, loaded: RwLock::new(loaded) }
    }

    /// The sealed state that is in force.
    pub(crate) fn loaded(&self) -> Loaded {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_loaded(&self, change: impl FnOnce(&mut Loaded)) {
        change(&mut self.loaded.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn book(&self) -> Result<MutexGuard<'_, CommandState>, Refusal> {
        match self.book.try_lock() {
            Ok(book) => Ok(book),
            Err(TryLockError::WouldBlock) => Err(Refusal::CommandBusy),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        }
    }

    /// Loads the newest state that the parent offers, where it is newer than the one in force. Only one that does not sign does that.
    pub(crate) fn reload(&self, desk: &CommandContext<'_>, oldest: u64) -> Option<Loaded> {
        let mut book = self.book().ok()?;
        self.reload_in(desk, &mut book, oldest)
    }

    fn reload_in(&self, desk: &CommandContext<'_>, book: &mut CommandState, oldest: u64) -> Option<Loaded> {
        if self.custody.newest().ok()? <= self.loaded().state_version {
            return None;
        }
        let Unsealed { state_version, digest, contents } = self.custody.unseal(oldest).ok()??;
        let fence_version = contents.fence_version;
        let at_hand = self.loaded();
        // Those that the store has taken here, and that no state has yet, are newer than any state's.
        let unsealed = at_hand.store.filter(|_| at_hand.store_unsealed);
        let store_unsealed = unsealed.is_some();
        let store = unsealed.or_else(|| contents.store.clone());
        // Nobody signs while histories go from the old keys to the new ones: what was signed in between would be forgotten.
        let _closed = desk.fencing.closed()?;
        let before = desk.keys();
        // What this enclave has signed itself, in an earlier term, is not forgotten: neither of keys that the newer state lists,
        // nor of those that it does not.
        let past = |key: &PublicKey, history: SlashingHistory| {
            group::reloaded(before.past(key).map(Key::history), Some(history)).unwrap_or(history)
        };
        let keys = Keys::unsealed(contents, |_, key, history| past(key, history)).ok()?;
        let keys = keys.remembering(&before, MAX_KNOWN_KEYS, desk.journal).ok()?;
        // A journal must know each key, and may know more of it.
        let signing: Vec<_> = keys.histories().collect();
        let starts = desk.journal.reserve(&signing).ok()?;
        for ((public_key, _), start) in signing.iter().zip(starts) {
            if let Some(key) = keys.past(public_key) {
                let mut history = key.lock();
                *history = history.with(start);
            }
        }
        desk.publish(&Arc::new(keys));
        book.tried = book.tried.max(state_version);
        let loaded = Loaded { state_version, loaded_state_digest: Some(digest), store, store_unsealed, fence_version };
        self.is_loaded(|now| *now = loaded.clone());
        Some(loaded)
    }

    /// Leaves in order: signs no more, seals what was signed, and says so in the record.
    pub(crate) fn handover(&self, desk: &CommandContext<'_>) -> Result<(), Refusal> {
        let mut book = self.book()?;
        self.handover_in(desk, &mut book)
    }

    fn handover_in(&self, desk: &CommandContext<'_>, book: &mut CommandState) -> Result<(), Refusal> {
        let fencing = desk.fencing;
        if !fencing.has_record() {
            return Err(Refusal::NoFenceRecord(fencing.kind()));
        }
        let (term, floors) = fencing.held()?;
        fencing.close()?;
        let left = self
            .leave_behind(desk, book, term, floors)
            .and_then(|state| fencing.ask_keeper(KeeperRequest::Leave { state, term }));
        if left.is_err() {
            fencing.reopen();
        }
        left.map(drop)
    }

    /// What the exact state is known by, once it is on the disk. Nothing is signed any more.
    fn leave_behind(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        term: u64,
        floors: Floors,
    ) -> Result<Root, Refusal> {
        // The state stands for the terms before too, also of keys that came later: the floors have held for them as well.
        desk.keys().raise(&floors, desk.journal).map_err(|_| Refusal::NotSaved)?;
        match desk.journal.durable_state_digest() {
            Some(state) => Ok(state),
            None => self.seal_exact(desk, book, term),
        }
    }

    /// The same for one who does not come back to a journal of this machine's: another image, with another store.
    fn seal_behind(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        term: u64,
        floors: Floors,
    ) -> Result<Root, Refusal> {
        desk.keys().raise(&floors, desk.journal).map_err(|_| Refusal::NotSaved)?;
        self.seal_exact(desk, book, term)
    }

    fn seal_exact(&self, desk: &CommandContext<'_>, book: &mut CommandState, term: u64) -> Result<Root, Refusal> {
        let next = next_state(book, term)?;
        let sealed = self.seal_as(desk, book, &desk.keys(), next);
        let sealed = sealed.map_err(|error| Refusal::NotSealed(waiting_for(&error)))?;
        Ok(self.set_in_force(&sealed))
    }

    fn fence_init(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        record: RecordOrder,
        credentials: Option<&EncryptedSecrets>,
        credentials_id: Option<&CredentialsId>,
    ) -> Result<Outcome, Refusal> {
        let fencing = desk.fencing;
        if !fencing.has_record() {
            return Err(Refusal::NoFenceRecord(fencing.kind()));
        }
        let credentials = match credentials {
            Some(encrypted) => {
                let opened = desk.attestor.open(encrypted, FENCE_HPKE_INFO).ok_or(Refusal::SecretsNotOpened)?;
                Some(StoreCredentials::decode(&opened).ok_or(Refusal::StoreCredentials)?)
            }
            None => None,
        };
        // Those who signed saw the id, not the credentials: they must have signed for these.
        if credentials.as_ref().and_then(|credentials| credentials.id(digest_of)).as_ref() != credentials_id {
            return Err(Refusal::StoreCredentials);
        }
        let before = self.loaded();
        if record == RecordOrder::Keep {
            let credentials = credentials.ok_or(Refusal::StoreCredentials)?;
            return self.replace_credentials(desk, book, credentials, before);
        }
        let KeeperReply::Record(found) = fencing.ask_keeper(KeeperRequest::Probe(credentials.clone()))? else {
            return Err(Refusal::StoreAway(StoreTrouble::NotAsked));
        };
        self.is_loaded(|loaded| loaded.store = credentials.or(loaded.store.take()));
        let made = self.make_record(desk, book, record, found);
        if made.is_err() {
            // What was refused changes nothing, the keeper's credentials neither.
            self.is_loaded(|loaded| loaded.store.clone_from(&before.store));
            if before.store.is_some() {
                let _ = fencing.ask_keeper(KeeperRequest::Probe(before.store));
            }
        }
        made.map(|()| Outcome::FenceReady)
    }

    /// Exchanges the store's credentials, also where the old ones are dead and nobody holds the fence: the new ones must show the record
    /// that this enclave knows. Sealed at once where it holds the fence, and otherwise as soon as it does: of two that seal, one would
    /// lose the other's changes.
    fn replace_credentials(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        credentials: StoreCredentials,
        before: Loaded,
    ) -> Result<Outcome, Refusal> {
        let fencing = desk.fencing;
        fencing.ask_keeper(KeeperRequest::Credentials(credentials.clone()))?;
        self.is_loaded(|loaded| (loaded.store, loaded.store_unsealed) = (Some(credentials), true));
        if fencing.held().is_err() {
            return Ok(Outcome::CredentialsTaken);
        }
        match self.seal_credentials(desk, book) {
            Ok(()) => Ok(Outcome::FenceReady),
            // The state with them is sealed, and they work.
            Err(unclear @ Refusal::MaybeSealed(Waiting::Fence)) => Err(unclear),
            Err(refusal) => {
                self.is_loaded(|loaded| {
                    (loaded.store, loaded.store_unsealed) = (before.store.clone(), before.store_unsealed);
                });
                if matches!(refusal, Refusal::MaybeSealed(_)) {
                    // Should the parent have kept the state with the new ones, the old ones are sealed over it.
                    let _ = self.seal_now(desk, book);
                }
                if let Some(old) = before.store {
                    let _ = fencing.ask_keeper(KeeperRequest::Probe(Some(old)));
                }
                Err(refusal)
            }
        }
    }

    /// Seals credentials that no state has yet, where this enclave holds the fence by now.
    pub(crate) fn settle_credentials(&self, desk: &CommandContext<'_>) {
        if self.loaded().store_unsealed
            && desk.fencing.held().is_ok()
            && let Ok(mut book) = self.book()
        {
            // Where it does not work now it is tried again.
            let _ = self.seal_credentials(desk, &mut book);
        }
    }

    fn seal_credentials(&self, desk: &CommandContext<'_>, book: &mut CommandState) -> Result<(), Refusal> {
        let (sealed, term) = self.seal_now(desk, book)?;
        self.is_loaded(|loaded| loaded.store_unsealed = false);
        desk.enforce(sealed, term)
    }

    /// Seals what is in force.
    fn seal_now(&self, desk: &CommandContext<'_>, book: &mut CommandState) -> Result<(u64, u64), Refusal> {
        let (term, _) = desk.fencing.held()?;
        let next = next_state(book, term)?;
        self.seal_in_force(desk, book, &desk.keys(), next)?;
        Ok((next, term))
    }

    /// Seals the state that a record begins with, and has the record made.
    fn make_record(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        order: RecordOrder,
        found: Option<Record>,
    ) -> Result<(), Refusal> {
        match (order, found) {
            (RecordOrder::After { .. }, Some(Record { closed: true, .. })) | (_, None) => {}
            (_, Some(Record { closed: true, .. })) => return Err(Refusal::FenceClosed),
            (_, Some(_)) => return Err(Refusal::FenceExists),
        }
        let at_hand = self.loaded();
        match order {
            RecordOrder::Lost { last } => check_last(desk, &at_hand, last)?,
            // There was one: sealing a state for another first would change what stands.
            RecordOrder::New if at_hand.fence_version > 0 => return Err(Refusal::RecordLost),
            // Before anything is sealed: the state that the closed record names stays the one at hand.
            RecordOrder::After { closed } => {
                let (seen, found) = (at_hand.fence_version.max(desk.fencing.version()), closed.version);
                if found < seen {
                    return Err(Refusal::OlderEnd { seen, found });
                }
            }
            RecordOrder::New | RecordOrder::Keep => {}
        }
        let keys = desk.keys();
        // Of a group that has no keys, and has never had any, the state says all that there is to say.
        let untouched = keys.known() == 0 && keys.floor() == GroupFloor::NONE && at_hand.fence_version == 0;
        let (closed, exact) = match order {
            RecordOrder::After { closed } if at_hand.state_version < closed.min_state_version => {
                let (found, oldest) = (at_hand.state_version, closed.min_state_version);
                return Err(Refusal::StateBeforeClosed { found, oldest });
            }
            // Nothing was signed since the closed record's last holder has left this very state behind.
            RecordOrder::After { closed } => {
                (Some(closed), closed.released_state.is_some() && closed.released_state == at_hand.loaded_state_digest)
            }
            RecordOrder::New => (None, untouched),
            RecordOrder::Lost { .. } | RecordOrder::Keep => (None, false),
        };
        // Above every term that there can have been, under whatever record: so are the numbers of the states that are sealed from
        // now on, and no older state is loaded any more. One term a second is more than there ever are.
        let seconds = desk.clock.unix_ms().ok_or(Refusal::ClockStopped)? / 1000;
        let after = closed.map_or(0, |closed| closed.term.saturating_add(1));
        let term = seconds.max(after).max(1);
        let next = next_state(book, term)?;
        let sealed = self.seal_as(desk, book, &keys, next);
        let sealed = sealed.map_err(|error| Refusal::NotSealed(waiting_for(&error)))?;
        let digest = self.set_in_force(&sealed);
        // Sealing takes its time: it is what may be signed somewhere now that counts. After a record that has ended it is what could be
        // signed under that.
        let now = desk.network.slot_at(desk.clock.unix_ms().ok_or(Refusal::ClockStopped)?);
        let ceilings = closed.map_or_else(|| latest_granted(desk.network, now), |closed| ceilings_of(&closed));
        let beginning = Beginning {
            above_version: match order {
                RecordOrder::After { closed } => closed.version,
                // Above all that there can have been, in whatever store: a record that has ended elsewhere must not be the newer one.
                RecordOrder::Lost { .. } => seconds.saturating_mul(VERSIONS_A_SECOND),
                RecordOrder::New | RecordOrder::Keep => 0,
            },
            term,
            ceilings,
            min_state_version: next,
            exact: exact.then_some(digest),
            lost: matches!(order, RecordOrder::Lost { .. }),
        };
        desk.fencing.ask_keeper(KeeperRequest::Create(beginning)).map(drop)
    }

    /// Ends the record for good; as it ended. A holder leaves its exact state behind.
    fn fence_close(&self, desk: &CommandContext<'_>, book: &mut CommandState) -> Result<Outcome, Refusal> {
        let fencing = desk.fencing;
        if !fencing.has_record() {
            return Err(Refusal::NoFenceRecord(fencing.kind()));
        }
        let done = match fencing.held() {
            Ok((term, floors)) => {
                fencing.close()?;
                let done = self
                    .seal_behind(desk, book, term, floors)
                    .and_then(|state| fencing.ask_keeper(KeeperRequest::Close(Some((state, term)))));
                if done.is_err() {
                    fencing.reopen();
                }
                done
            }
            Err(_) => fencing.ask_keeper(KeeperRequest::Close(None)),
        };
        match done? {
            KeeperReply::Record(Some(record)) => Ok(Outcome::FenceClosed { record: closed_record(&record) }),
            _ => Err(Refusal::StoreAway(StoreTrouble::NotAsked)),
        }
    }

    fn takeover(&self, desk: &CommandContext<'_>, book: &mut CommandState) -> Result<Outcome, Refusal> {
        // One that holds the fence no longer learns it now, and closes its gate.
        let KeeperReply::Record(found) = desk.fencing.ask_keeper(KeeperRequest::Look)? else {
            return Err(Refusal::StoreAway(StoreTrouble::NotAsked));
        };
        let found = found.ok_or(Refusal::NotHolder(NotHolder::NoRecord))?;
        if found.min_state_version > self.loaded().state_version {
            self.reload_in(desk, book, found.min_state_version);
        }
        match desk.fencing.ask_keeper(KeeperRequest::Takeover)? {
            KeeperReply::Record(Some(record)) => Ok(Outcome::TookOver { term: record.term }),
            _ => Err(Refusal::NotHolder(NotHolder::StoreUnknown(StoreTrouble::NotAsked))),
        }
    }

    /// Carries out a command.
    pub(crate) fn carry_out(&self, desk: &CommandContext<'_>, envelope: &Envelope) -> Result<Outcome, Refusal> {
        let mut book = self.book()?;
        let (command, sha256) = self.check(desk, envelope.as_ref(), book.counter)?;
        // From here on it counts as carried out, whatever comes of it; and the statement says what does.
        book.counter = command.counter;
        let counter = command.counter;
        let done = self.act(desk, &mut book, command);
        let result = match &done {
            Ok(outcome) => CommandResult::Done { outcome_sha256: digest_of(&outcome.encode()) },
            Err(Refusal::MaybeSealed(_) | Refusal::FenceUnclear(_)) => CommandResult::MaybeSealed,
            Err(_) => CommandResult::Refused,
        };
        desk.attestor.note(StatedCommand { counter, sha256, result });
        done
    }

    fn act(&self, desk: &CommandContext<'_>, book: &mut CommandState, command: Command) -> Result<Outcome, Refusal> {
        match command.action {
            Action::Import { keys, secrets } => {
                let opened = desk.attestor.open(&secrets, HPKE_INFO).ok_or(Refusal::SecretsNotOpened)?;
                self.import(desk, book, &keys, &opened)
            }
            Action::Generate { count, withdrawal_credentials, amount } => {
                self.generate(desk, book, count, withdrawal_credentials, amount)
            }
            Action::Deposit { keys, withdrawal_credentials, amount } => {
                self.check_deposit(withdrawal_credentials, amount)?;
                let held = desk.keys();
                let sign = |public_key: &PublicKey| {
                    let (_, secret) = held.find(public_key).ok_or(Refusal::KeyNotHeld(*public_key))?;
                    deposit(desk, secret, *public_key, withdrawal_credentials, amount)
                };
                Ok(Outcome::Deposited { keys: keys.iter().map(sign).collect::<Result<_, _>>()? })
            }
            Action::Delete { keys } => {
                let before = desk.keys();
                let deleted = self.delete(desk, book, &keys)?;
                // Given again because it was not known what had become of it: what was deleted before is as deleted as the rest.
                let again = |(key, outcome): (&PublicKey, KeyOutcome)| match outcome {
                    KeyOutcome::NotFound if before.past(key).is_some() => KeyOutcome::Deleted,
                    other => other,
                };
                match deleted {
                    Outcome::Deleted { keys: outcomes } => {
                        Ok(Outcome::Deleted { keys: keys.iter().zip(outcomes).map(again).collect() })
                    }
                    other => Ok(other),
                }
            }
            Action::FenceInit { record, credentials, credentials_id } => {
                self.fence_init(desk, book, record, credentials.as_ref(), credentials_id.as_ref())
            }
            Action::FenceClose => self.fence_close(desk, book),
            Action::Handover => self.handover_in(desk, book).map(|()| Outcome::HandedOver),
            Action::Takeover => self.takeover(desk, book),
            Action::Exit { exits, last_epoch } => exit(desk, &exits, last_epoch),
            Action::FeeRecipient { keys, fee_recipient } => self.fee_recipient(desk, book, &keys, fee_recipient),
            Action::RaiseHistory { keys } => self.raise_history(desk, book, &keys),
        }
    }

    fn fee_recipient(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        public_keys: &[PublicKey],
        fee_recipient: Option<ExecutionAddress>,
    ) -> Result<Outcome, Refusal> {
        let before = desk.keys();
        let changed = before.with_fee_recipient(public_keys, fee_recipient).map_err(|_| Refusal::MalformedCommand)?;
        let changed = Arc::new(changed);
        self.put_in_force(desk, book, &changed, &before)?;
        let outcome = |key| if before.find(key).is_some() { KeyOutcome::Changed } else { KeyOutcome::NotFound };
        Ok(Outcome::FeeRecipientsSet { keys: public_keys.iter().map(outcome).collect() })
    }

    /// Adds to what keys have signed, of deleted ones too. Nothing where one of them cannot be true.
    fn raise_history(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        keys: &[KeyHistory],
    ) -> Result<Outcome, Refusal> {
        desk.fencing.held()?;
        if let Some(wrong) = keys.iter().find(|key| !is_possible(key.past, desk)) {
            return Err(Refusal::ImpossiblePast(wrong.public_key));
        }
        let before = desk.keys();
        let mut outcomes = Vec::with_capacity(keys.len());
        for KeyHistory { public_key, past } in keys {
            let Some(key) = before.past(public_key) else {
                outcomes.push(KeyOutcome::NotFound);
                continue;
            };
            if before.find(public_key).is_some() {
                raise(desk, public_key, key, *past)?;
            } else {
                // Of a deleted key the journal need not know.
                let mut history = key.lock();
                *history = history.with(*past);
            }
            outcomes.push(KeyOutcome::Changed);
        }
        let changed = Arc::new(before.again().map_err(|_| Refusal::MalformedCommand)?);
        // What was raised stays raised whatever comes of this; it is on the disk before it is answered.
        self.put_in_force(desk, book, &changed, &before)?;
        Ok(Outcome::HistoryRaised { keys: outcomes })
    }

    /// What the key manager API brings, where the measured policy allows it: the parent has seen these keys.
    pub(crate) fn import_keystores(
        &self,
        desk: &CommandContext<'_>,
        keystores: &[KeystoreToImport],
    ) -> Result<Outcome, Refusal> {
        desk.fencing.held()?;
        let held = desk.keys();
        let mut outcomes = vec![KeyOutcome::Unreadable; keystores.len()];
        let (mut keys, mut places) = (Vec::new(), Vec::new());
        let mut secrets = Zeroizing::new(Vec::with_capacity(keystores.len().saturating_mul(SECRET_LEN)));
        for (place, (one, outcome)) in keystores.iter().zip(&mut outcomes).enumerate() {
            let known = held.past(&one.key.public_key).is_some_and(|key| key.history() != SlashingHistory::Missing);
            if one.key.history.is_none() && !known {
                *outcome = KeyOutcome::NoHistory;
                continue;
            }
            match keystore::decrypted(one) {
                Ok(secret) => {
                    secrets.extend_from_slice(secret.as_slice());
                    keys.push(one.key);
                    places.push(place);
                }
                Err(why) => *outcome = why,
            }
        }
        // Decrypting takes its time: commands are held up only by what follows.
        let mut book = self.book()?;
        if let Outcome::Imported { keys: imported } = self.import(desk, &mut book, &keys, &secrets)? {
            for (place, imported) in places.into_iter().zip(imported) {
                if let Some(outcome) = outcomes.get_mut(place) {
                    *outcome = imported;
                }
            }
        }
        Ok(Outcome::Imported { keys: outcomes })
    }

    /// What the key manager API deletes, where the measured policy allows it.
    pub(crate) fn delete_keys(&self, desk: &CommandContext<'_>, keys: &[PublicKey]) -> Result<Outcome, Refusal> {
        let mut book = self.book()?;
        self.delete(desk, &mut book, keys)
    }

    /// The command, if it is one of enough operators for this boot of this enclave, and its digest.
    fn check(&self, desk: &CommandContext<'_>, envelope: &[u8], last: u64) -> Result<(Command, Root), Refusal> {
        if self.operators.keys.is_empty() {
            return Err(Refusal::NoOperators);
        }
        let signed = SignedCommand::decode(envelope).map_err(|_| Refusal::MalformedCommand)?;
        let mut signatures: u32 = 0;
        let bytes = signed.signed_bytes();
        for (number, one) in signed.signatures.iter().enumerate() {
            let twice = signed.signatures.iter().take(number).any(|other| other.operator == one.operator);
            let named = self.operators.keys.contains(&one.operator);
            let key = UnparsedPublicKey::new(&ED25519, one.operator.0);
            if twice || !named || key.verify(&bytes, &one.signature.0).is_err() {
                return Err(Refusal::CommandSignature { operator: one.operator });
            }
            signatures = signatures.saturating_add(1);
        }
        let threshold = self.operators.threshold;
        if signatures < threshold {
            return Err(Refusal::TooFewSignatures { signatures, threshold });
        }
        let command = Command::decode(signed.command.as_ref()).map_err(|_| Refusal::MalformedCommand)?;
        if command.group != desk.attestor.group()
            || command.genesis_validators_root != desk.network.genesis_validators_root()
            || command.boot_nonce != desk.attestor.boot_nonce()
        {
            return Err(Refusal::CommandForAnother);
        }
        if command.counter <= last {
            return Err(Refusal::CommandCounter { counter: command.counter, last });
        }
        Ok((command, digest_of(signed.command.as_ref())))
    }

    fn import(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        keys: &[ImportedKey],
        opened: &[u8],
    ) -> Result<Outcome, Refusal> {
        let secrets: Vec<&[u8; SECRET_LEN]> =
            opened.chunks_exact(SECRET_LEN).filter_map(|s| s.try_into().ok()).collect();
        if secrets.len() != keys.len() {
            return Err(Refusal::SecretsNotOpened);
        }
        if secrets.is_empty() {
            return Ok(Outcome::Imported { keys: Vec::new() });
        }
        let derived = derive(&secrets);
        let held = desk.keys();
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut added: Vec<(PublicKey, SecretKey, SlashingHistory)> = Vec::new();
        for (key, derived) in keys.iter().zip(derived) {
            let past = key.history;
            let Some((secret, _)) = derived.filter(|(_, public_key)| *public_key == key.public_key) else {
                outcomes.push(KeyOutcome::WrongSecret);
                continue;
            };
            if past.is_some_and(|past| !is_possible(past, desk)) {
                outcomes.push(KeyOutcome::ImpossibleHistory);
                continue;
            }
            let again = added.iter_mut().find(|(public_key, ..)| *public_key == key.public_key);
            match (again, held.find(&key.public_key)) {
                (Some((_, _, known)), _) => {
                    *known = past.map_or(*known, |past| known.with(past));
                    outcomes.push(KeyOutcome::Duplicate);
                }
                (None, Some((known, _))) => {
                    if let Some(past) = past {
                        raise(desk, &key.public_key, known, past)?;
                    }
                    outcomes.push(KeyOutcome::Duplicate);
                }
                (None, None) => {
                    // Where nobody knows the past, it ends now: what may have been signed until here lies at or below that.
                    added.push((
                        key.public_key,
                        secret,
                        SlashingHistory::Known(past.unwrap_or_else(|| until_now(desk))),
                    ));
                    outcomes.push(KeyOutcome::Imported);
                }
            }
        }
        self.add(desk, book, added)?;
        Ok(Outcome::Imported { keys: outcomes })
    }

    fn generate(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        count: u32,
        withdrawal_credentials: Root,
        amount: u64,
    ) -> Result<Outcome, Refusal> {
        self.check_deposit(withdrawal_credentials, amount)?;
        let (mut added, mut generated) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let secret = self.new_key()?;
            let public_key = secret.public_key();
            generated.push(deposit(desk, &secret, public_key, withdrawal_credentials, amount)?);
            // It has signed nothing that could be slashed, and nobody else has it.
            added.push((public_key, secret, SlashingHistory::Known(Watermarks::NONE)));
        }
        self.add(desk, book, added)?;
        Ok(Outcome::Generated { keys: generated })
    }

    /// To an address that the configuration allows, and neither too little nor too much.
    fn check_deposit(&self, withdrawal_credentials: Root, gwei: u64) -> Result<(), Refusal> {
        let address = withdrawal_address(&withdrawal_credentials);
        if !address.is_some_and(|address| self.withdrawal_addresses.contains(&address)) {
            return Err(Refusal::WithdrawalNotAllowed(withdrawal_credentials));
        }
        let max = max_deposit(&withdrawal_credentials);
        if (MIN_DEPOSIT..=max).contains(&gwei) {
            Ok(())
        } else {
            Err(Refusal::DepositAmount { gwei, min: MIN_DEPOSIT, max })
        }
    }

    /// Out of the NSM's entropy and the kernel's: one of them may fail in silence.
    fn new_key(&self) -> Result<SecretKey, Refusal> {
        let mut entropy = Zeroizing::new([0; 64]);
        let (ours, kernels) = entropy.split_at_mut(32);
        self.nsm.random(ours).map_err(|_| Refusal::NsmFailed)?;
        rand::fill(kernels).map_err(|_| Refusal::NsmFailed)?;
        SecretKey::generate(entropy.as_slice()).ok_or(Refusal::NsmFailed)
    }

    fn delete(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        public_keys: &[PublicKey],
    ) -> Result<Outcome, Refusal> {
        let before = desk.keys();
        let known = |key: &PublicKey| before.find(key).is_some();
        let outcome = |key| if known(key) { KeyOutcome::Deleted } else { KeyOutcome::NotFound };
        let outcomes: Vec<KeyOutcome> = public_keys.iter().map(outcome).collect();
        let changed = Arc::new(before.without(public_keys).map_err(|_| Refusal::MalformedCommand)?);
        desk.fencing.held()?;
        // They sign no more before their past is written down: signatures look up their key behind the gate.
        desk.publish(&changed);
        desk.fencing.settle();
        let (sealed, term) = self.seal(desk, book, &changed, &before).inspect_err(|_| desk.publish(&before))?;
        self.set_in_force(&sealed);
        desk.enforce(sealed.state_version, term)?;
        Ok(Outcome::Deleted { keys: outcomes })
    }

    /// Adds keys: room in the journal first, then sealed, and only then in force.
    fn add(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        mut added: Vec<(PublicKey, SecretKey, SlashingHistory)>,
    ) -> Result<(), Refusal> {
        let before = desk.keys();
        check_room(before.len(), before.known(), added.len())?;
        // What the vault remembers of a deleted key, what any key may have signed that it does not remember, and what the journal
        // remembers.
        let (_, floors) = desk.fencing.held()?;
        for (public_key, _, history) in &mut added {
            let brought = history.with(floors.watermarks()).watermarks()?;
            *history = SlashingHistory::Known(before.entering(public_key, brought));
        }
        let brought = added.iter().map(|(public_key, _, history)| Ok((*public_key, history.watermarks()?)));
        let brought = brought.collect::<Result<Vec<_>, Refusal>>()?;
        let starts = desk.journal.reserve(&brought).map_err(|_| Refusal::NotSaved)?;
        for ((_, _, history), start) in added.iter_mut().zip(starts) {
            *history = history.with(start);
        }
        let changed = Arc::new(before.with(added).map_err(|_| Refusal::MalformedCommand)?);
        self.put_in_force(desk, book, &changed, &before)
    }

    /// Seals a change, has every state without it refused, and only then puts it in force: a key that signs is in every state that may be
    /// loaded. Where the fence does not confirm that, the change is not in force here; it may come with the sealed state, at the next
    /// start or in a successor.
    fn put_in_force(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        changed: &Arc<Keys>,
        before: &Keys,
    ) -> Result<(), Refusal> {
        let (sealed, term) = self.seal(desk, book, changed, before)?;
        desk.enforce(sealed.state_version, term)?;
        self.set_in_force(&sealed);
        desk.publish(changed);
        Ok(())
    }

    fn seal_in_force(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        keys: &Keys,
        next: u64,
    ) -> Result<(), Refusal> {
        let sealed = self.seal_as(desk, book, keys, next).map_err(|error| match error {
            CustodyError::NotStored(error) => Refusal::MaybeSealed(waiting_for(&CustodyError::Service(error))),
            error => Refusal::NotSealed(waiting_for(&error)),
        })?;
        self.set_in_force(&sealed);
        Ok(())
    }

    /// Seals a state; in which term. Where it cannot be known whether the parent has kept it, the state before is sealed over it.
    fn seal(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        keys: &Keys,
        before: &Keys,
    ) -> Result<(Sealed, u64), Refusal> {
        let (term, _) = desk.fencing.held()?;
        let next = next_state(book, term)?;
        match self.seal_as(desk, book, keys, next) {
            Err(CustodyError::NotStored(error)) => {
                let waiting = waiting_for(&CustodyError::Service(error));
                let over = next.saturating_add(1);
                let Ok(sealed) = self.seal_as(desk, book, before, over) else {
                    return Err(Refusal::MaybeSealed(waiting));
                };
                self.set_in_force(&sealed);
                // Nothing has changed only once the one that the parent may have kept is refused too.
                match desk.enforce(over, term) {
                    Ok(()) => Err(Refusal::NotSealed(waiting)),
                    Err(_) => Err(Refusal::MaybeSealed(waiting)),
                }
            }
            // Of another enclave of this group: its keys and their past would be lost.
            Err(CustodyError::NotNewer { kept, .. }) => {
                Err(Refusal::OtherState { kept, ours: self.loaded().state_version })
            }
            Err(error) => Err(Refusal::NotSealed(waiting_for(&error))),
            Ok(sealed) => Ok((sealed, term)),
        }
    }

    fn seal_as(
        &self,
        desk: &CommandContext<'_>,
        book: &mut CommandState,
        keys: &Keys,
        state_version: u64,
    ) -> Result<Sealed, CustodyError> {
        let at_hand = self.loaded();
        // It never falls: also where the store shows no record any more, the state has seen one.
        let fence_version = at_hand.fence_version.max(desk.fencing.version());
        let store = at_hand.store;
        let contents = Contents { store, fence_version, ..keys.contents() };
        let sealed = self.custody.seal(&contents, state_version);
        if matches!(sealed, Ok(_) | Err(CustodyError::NotStored(_))) {
            book.tried = state_version;
        }
        sealed.map(|digest| Sealed { state_version, digest, fence_version })
    }

    /// What was sealed is in force: it is what this enclave has loaded from now on, and what its statement names.
    fn set_in_force(&self, sealed: &Sealed) -> Root {
        let Sealed { state_version, digest, fence_version } = *sealed;
        self.is_loaded(|loaded| {
            loaded.state_version = state_version;
            loaded.loaded_state_digest = Some(digest);
            loaded.fence_version = fence_version;
        });
        digest
    }

    /// Has every state refused that was sealed before this term, or that this enclave has sealed and could not confirm: one of
    /// them may list a key that this enclave does not know. Only then can be told what such a key has signed at most.
    pub(crate) fn settle_states(&self, desk: &CommandContext<'_>, term: u64) -> Result<(), Refusal> {
        let mut book = self.book()?;
        let in_force = self.loaded().state_version;
        let first = group::next_state(0, term).ok_or(Refusal::MalformedCommand)?;
        if in_force >= first && in_force >= book.tried {
            return desk.enforce(in_force, term);
        }
        let (sealed, term) = self.seal_now(desk, &mut book)?;
        desk.enforce(sealed, term)
    }
}

impl CommandContext<'_> {
    fn keys(&self) -> Arc<Keys> {
        current(self.keys)
    }

    /// Writes into the signing log that this was signed.
    fn log(&self, public_key: PublicKey, duty: &Duty, root: Root) {
        let time_ms = self.clock.unix_ms().unwrap_or_default();
        let (message, signing_root) = (Message::from(duty), Some(root));
        self.log.push(LogRecord { time_ms, public_key, message, signing_root, refusal: None });
    }

    /// Has every older state refused, before the change is answered.
    fn enforce(&self, sealed: u64, term: u64) -> Result<(), Refusal> {
        if !self.fencing.has_record() {
            return Ok(());
        }
        let raised = self.fencing.ask_keeper(KeeperRequest::Raise { sealed, term });
        raised.map(drop).map_err(|_| Refusal::MaybeSealed(Waiting::Fence))
    }

    /// From now on these keys are in force, and the statement names them.
    fn publish(&self, keys: &Arc<Keys>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(keys);
        self.attestor.state(keys);
    }
}

/// Of a key of which nobody knows what it has signed: the most that it can have.
fn until_now(desk: &CommandContext<'_>) -> Watermarks {
    margins::floors(latest_signed(desk.network, desk.now)).watermarks()
}

/// Whether so many keys more have room, beside those that are held, and those that are known: deleted ones are remembered, and sealed with
/// the others.
fn check_room(held: usize, known: usize, more: usize) -> Result<(), Refusal> {
    let fits = |there: usize, max: usize| {
        if there.saturating_add(more) <= max {
            return Ok(());
        }
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Err(Refusal::TooManyKeys { held: number(there), more: number(more), max: number(max) })
    };
    fits(known, MAX_KNOWN_KEYS)?;
    fits(held, MAX_GROUP_KEYS)
}

fn next_state(book: &CommandState, term: u64) -> Result<u64, Refusal> {
    group::next_state(book.tried, term).ok_or(Refusal::MalformedCommand)
}

/// Whether the state at hand is the last that was sealed under a record that is lost, by what operators say of it.
fn check_last(desk: &CommandContext<'_>, at_hand: &Loaded, last: LastState) -> Result<(), Refusal> {
    let (keys_root, fence_version) = (desk.attestor.keys_root(), at_hand.fence_version);
    if keys_root == last.keys_root && fence_version >= last.fence_version {
        Ok(())
    } else {
        Err(Refusal::OtherLastState { keys_root, fence_version })
    }
}

fn closed_record(record: &Record) -> ClosedRecord {
    let Record { version, term, ceilings, min_state_version, released_state: clean, .. } = *record;
    let Ceilings { slot: slot_ceiling, target: target_ceiling, source: source_ceiling } = ceilings;
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

fn ceilings_of(closed: &ClosedRecord) -> Ceilings {
    let ClosedRecord { slot_ceiling: slot, target_ceiling: target, source_ceiling: source, .. } = *closed;
    Ceilings { slot, target, source }
}

/// A key's signature over its deposit message.
fn deposit(
    desk: &CommandContext<'_>,
    secret: &SecretKey,
    public_key: PublicKey,
    withdrawal_credentials: Root,
    amount: u64,
) -> Result<GeneratedKey, Refusal> {
    let genesis_fork_version = desk.network.genesis_version();
    let duty = Duty::Deposit { public_key, withdrawal_credentials, amount, genesis_fork_version };
    let root = signing_root::compute(&duty, None, desk.network)?;
    desk.log(public_key, &duty, root);
    Ok(GeneratedKey { public_key, deposit_signature: secret.sign(&HashedMessage::new(&root.0)) })
}

/// Signs exits at the current epoch, and lets clients have such exits signed until the last one.
fn exit(desk: &CommandContext<'_>, orders: &[ExitOrder], last_epoch: Epoch) -> Result<Outcome, Refusal> {
    desk.fencing.held()?;
    let network = desk.network;
    let epoch = network.epoch_of(desk.now);
    if epoch > last_epoch {
        return Err(Refusal::ExitTooLate { epoch, last: last_epoch });
    }
    // By the network's own fork table: EIP-7044 pins the version from Deneb on, before that it is the epoch's.
    let version = network.version_of(network.fork_at(epoch)).unwrap_or_default();
    let fork_info = ForkInfo {
        previous_version: version,
        current_version: version,
        epoch: Epoch(0),
        genesis_validators_root: network.genesis_validators_root(),
    };
    let held = desk.keys();
    let one = |order: &ExitOrder| {
        let ExitOrder { public_key, validator_index } = *order;
        let (_, secret) = held.find(&public_key).ok_or(Refusal::KeyNotHeld(public_key))?;
        let duty = Duty::VoluntaryExit { epoch, validator_index };
        let root = signing_root::compute(&duty, Some(&fork_info), network)?;
        let signature = secret.sign(&HashedMessage::new(&root.0));
        desk.log(public_key, &duty, root);
        Ok(SignedExit { public_key, epoch, validator_index, signature })
    };
    let exits = orders.iter().map(one).collect::<Result<_, Refusal>>()?;
    desk.exits.allow(orders, last_epoch);
    Ok(Outcome::ExitsSigned { exits })
}

/// Whether a key may have signed that by now. What lies in the future would silence it until then: a slip, or an attack.
fn is_possible(past: Watermarks, desk: &CommandContext<'_>) -> bool {
    let latest = desk.now.saturating_add(1);
    let block = past.block.is_none_or(|block| block.slot <= latest);
    let vote =
        past.attestation.is_none_or(|vote| vote.source <= vote.target && vote.target <= desk.network.epoch_of(latest));
    block && vote
}

/// Adds to what is known of a key's past.
fn raise(desk: &CommandContext<'_>, public_key: &PublicKey, key: &Key, past: Watermarks) -> Result<(), Refusal> {
    let mut history = key.lock();
    let raised = history.with(past);
    if raised != *history {
        desk.journal.record(public_key, &raised.watermarks()?).map_err(|_| Refusal::NotSaved)?;
        *history = raised;
    }
    Ok(())
}

/// Keys with their public keys, on as many threads as there are cores.
fn derive(secrets: &[&[u8; SECRET_LEN]]) -> Vec<Option<(SecretKey, PublicKey)>> {
    let one = |secret: &&[u8; SECRET_LEN]| {
        let mut bytes = **secret;
        // It clears the copy.
        let key = SecretKey::from_be_bytes(&mut bytes).ok();
        bytes.zeroize();
        key.map(|key| {
            let public_key = key.public_key();
            (key, public_key)
        })
    };
    let threads = crate::platform::cpus::cores().get();
    let share = secrets.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let shares: Vec<_> = secrets
            .chunks(share)
            .map(|secrets| (secrets.len(), scope.spawn(move || secrets.iter().map(one).collect::<Vec<_>>())))
            .collect();
        let none = |len| std::iter::repeat_with(|| None).take(len).collect();
        shares.into_iter().flat_map(|(len, share)| share.join().unwrap_or_else(|_| none(len))).collect()
    })
}

/// What an operator should look at.
pub fn waiting_for(error: &CustodyError) -> Waiting {
    match error {
        CustodyError::Service(ServiceError::Away) => Waiting::Away,
        CustodyError::Service(ServiceError::Credentials) => Waiting::Credentials,
        CustodyError::Service(ServiceError::Denied) => Waiting::Denied,
        _ => Waiting::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_keys_as_are_allowed_have_room_and_not_one_more() {
        let full = |held, more, max| Err(Refusal::TooManyKeys { held, more, max });
        assert_eq!(check_room(0, 0, MAX_GROUP_KEYS), Ok(()));
        assert_eq!(check_room(99_999, 199_999, 1), Ok(()));
        assert_eq!(check_room(99_999, 99_999, 2), full(99_999, 2, 100_000));
        assert_eq!(check_room(100_000, 100_000, 1), full(100_000, 1, 100_000));
        // Of deleted ones too there are only so many.
        assert_eq!(check_room(5, 199_999, 2), full(199_999, 2, 200_000));
        assert_eq!(check_room(100_000, 200_000, 1), full(200_000, 1, 200_000));
        assert_eq!(check_room(0, 0, usize::MAX), full(0, u64::MAX, 200_000));
    }
}
