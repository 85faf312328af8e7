//! Operators' commands: what changes the group's keys.
//!
//! A command is taken where M of the N operators that the measured configuration names have signed it, for this group, chain and
//! boot, and with a counter above the last. What it changed is sealed and on the parent's disk before it is answered and before a new key
//! signs. A parent that keeps a state and says that it did not could have it take effect at the next start: the answer says so.

use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use aws_lc_rs::{digest, rand};
use casemate_protocol::command::{
    Action, Command, Envelope, GeneratedKey, ImportedKey, KeyOutcome, MIN_DEPOSIT, Outcome, SECRET_LEN, SignedCommand,
    max_deposit, withdrawal_address,
};
use casemate_protocol::configuration::Operators;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::statement::{CommandResult, StatedCommand};
use casemate_protocol::{Duty, ExecutionAddress, Network, PublicKey, Refusal, Root, Slot};
use casemate_slashing::{AttestationMark, BlockMark, History, Watermarks};
use zeroize::{Zeroize, Zeroizing};

use crate::attest::Attestor;
use crate::bls::{HashedMessage, SecretKey};
use crate::custody::{Custody, CustodyError, ServiceError};
use crate::keys::Key;
use crate::{Journal, Keys, Nsm, signing_root};

/// Most keys of a group: their sealed state stays far below the longest blob.
pub const MAX_GROUP_KEYS: usize = 100_000;
/// Who may change the keys, and where changes are kept.
pub struct Office {
    custody: Custody,
    nsm: Arc<dyn Nsm>,
    operators: Operators,
    withdrawal_addresses: Vec<ExecutionAddress>,
    book: Mutex<Book>,
}

/// One command at a time.
struct Book {
    /// Of the state that is in force.
    generation: u64,
    /// The newest that this enclave has tried to store.
    tried: u64,
    counter: u64,
}

/// What a command is carried out on.
pub(crate) struct Desk<'a> {
    pub(crate) attestor: &'a Attestor,
    pub(crate) network: &'a Network,
    pub(crate) journal: &'a dyn Journal,
    /// Read and exchanged under the lock on the book alone.
    pub(crate) keys: &'a RwLock<Arc<Keys>>,
    /// By trusted time.
    pub(crate) now: Slot,
}

impl Office {
    /// With what was unsealed in this generation; 0 where there was nothing.
    pub fn new(
        custody: Custody,
        nsm: Arc<dyn Nsm>,
        operators: Operators,
        withdrawal_addresses: Vec<ExecutionAddress>,
        generation: u64,
    ) -> Self {
        let book = Mutex::new(Book { generation, tried: generation, counter: 0 });
        Self { custody, nsm, operators, withdrawal_addresses, book }
    }

    /// Carries out a command.
    pub(crate) fn carry_out(&self, desk: &Desk<'_>, envelope: &Envelope) -> Result<Outcome, Refusal> {
        let mut book = match self.book.try_lock() {
            Ok(book) => book,
            Err(TryLockError::WouldBlock) => return Err(Refusal::CommandBusy),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let (command, sha256) = self.check(desk, envelope.as_ref(), book.counter)?;
        // From here on it counts as carried out, whatever comes of it; and the statement says what does.
        book.counter = command.counter;
        let counter = command.counter;
        let done = self.act(desk, &mut book, command);
        let result = match &done {
            Ok(outcome) => CommandResult::Done { outcome_sha256: digest_of(&outcome.encode()) },
            Err(Refusal::MaybeSealed(_)) => CommandResult::MaybeSealed,
            Err(_) => CommandResult::Refused,
        };
        desk.attestor.note(StatedCommand { counter, sha256, result });
        done
    }

    fn act(&self, desk: &Desk<'_>, book: &mut Book, command: Command) -> Result<Outcome, Refusal> {
        match command.action {
            Action::Import { keys, secrets } => {
                let opened = desk.attestor.open(&secrets).ok_or(Refusal::SecretsNotOpened)?;
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
            Action::Delete { keys } => self.delete(desk, book, &keys),
        }
    }

    /// The command, if it is one of enough operators for this boot of this enclave, and its digest.
    fn check(&self, desk: &Desk<'_>, envelope: &[u8], last: u64) -> Result<(Command, Root), Refusal> {
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
        desk: &Desk<'_>,
        book: &mut Book,
        keys: &[ImportedKey],
        opened: &[u8],
    ) -> Result<Outcome, Refusal> {
        let secrets: Vec<&[u8; SECRET_LEN]> =
            opened.chunks_exact(SECRET_LEN).filter_map(|s| s.try_into().ok()).collect();
        if secrets.len() != keys.len() {
            return Err(Refusal::SecretsNotOpened);
        }
        let derived = derive(&secrets);
        let held = desk.keys();
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut added: Vec<(PublicKey, SecretKey, History)> = Vec::new();
        for (key, derived) in keys.iter().zip(derived) {
            let past = key.history.map(Watermarks::from);
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
                    added.push((key.public_key, secret, History::Known(past.unwrap_or_else(|| now(desk)))));
                    outcomes.push(KeyOutcome::Imported);
                }
            }
        }
        self.add(desk, book, added)?;
        Ok(Outcome::Imported { keys: outcomes })
    }

    fn generate(
        &self,
        desk: &Desk<'_>,
        book: &mut Book,
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
            added.push((public_key, secret, History::Known(Watermarks::NONE)));
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

    fn delete(&self, desk: &Desk<'_>, book: &mut Book, public_keys: &[PublicKey]) -> Result<Outcome, Refusal> {
        let before = desk.keys();
        let known = |key: &PublicKey| before.find(key).is_some();
        let outcome = |key| if known(key) { KeyOutcome::Deleted } else { KeyOutcome::NotFound };
        let outcomes: Vec<KeyOutcome> = public_keys.iter().map(outcome).collect();
        let changed = Arc::new(before.without(public_keys).map_err(|_| Refusal::MalformedCommand)?);
        // They sign no more before their past is written down.
        desk.publish(&changed);
        self.seal(book, &changed, &before).inspect_err(|_| desk.publish(&before))?;
        Ok(Outcome::Deleted { keys: outcomes })
    }

    /// Adds keys: room in the journal first, then sealed, and only then in force.
    fn add(
        &self,
        desk: &Desk<'_>,
        book: &mut Book,
        mut added: Vec<(PublicKey, SecretKey, History)>,
    ) -> Result<(), Refusal> {
        let before = desk.keys();
        let (held, more) = (before.len(), added.len());
        if held.saturating_add(more) > MAX_GROUP_KEYS {
            let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            return Err(Refusal::TooManyKeys { held: number(held), more: number(more), max: number(MAX_GROUP_KEYS) });
        }
        // What the vault remembers of a deleted key, and what the journal remembers of any.
        for (public_key, _, history) in &mut added {
            if let Some(History::Known(past)) = before.past(public_key).map(Key::history) {
                *history = history.with(past);
            }
        }
        let brought = added.iter().map(|(public_key, _, history)| Ok((*public_key, history.watermarks()?)));
        let brought = brought.collect::<Result<Vec<_>, Refusal>>()?;
        let starts = desk.journal.admit(&brought).map_err(|_| Refusal::NotSaved)?;
        for ((_, _, history), start) in added.iter_mut().zip(starts) {
            *history = history.with(start);
        }
        let changed = Arc::new(before.with(added).map_err(|_| Refusal::MalformedCommand)?);
        self.seal(book, &changed, &before)?;
        desk.publish(&changed);
        Ok(())
    }

    /// Seals a state. Where it cannot be known whether the parent has kept it, the state before is sealed over it.
    fn seal(&self, book: &mut Book, keys: &Keys, before: &Keys) -> Result<(), Refusal> {
        let next = book.tried.saturating_add(1);
        match self.seal_as(book, keys, next) {
            Err(CustodyError::NotStored(error)) => {
                let waiting = waiting_for(&CustodyError::Service(error));
                match self.seal_as(book, before, next.saturating_add(1)) {
                    Ok(()) => Err(Refusal::NotSealed(waiting)),
                    Err(_) => Err(Refusal::MaybeSealed(waiting)),
                }
            }
            // Of another enclave of this group: its keys and their past would be lost.
            Err(CustodyError::NotNewer { kept, .. }) => Err(Refusal::OtherState { kept, ours: book.generation }),
            Err(error) => Err(Refusal::NotSealed(waiting_for(&error))),
            Ok(()) => Ok(()),
        }
    }

    fn seal_as(&self, book: &mut Book, keys: &Keys, generation: u64) -> Result<(), CustodyError> {
        let sealed = self.custody.seal(&keys.contents(), generation);
        if matches!(sealed, Ok(()) | Err(CustodyError::NotStored(_))) {
            book.tried = generation;
        }
        if sealed.is_ok() {
            book.generation = generation;
        }
        sealed
    }
}

impl Desk<'_> {
    fn keys(&self) -> Arc<Keys> {
        current(self.keys)
    }

    /// From now on these keys are in force, and the statement names them.
    fn publish(&self, keys: &Arc<Keys>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(keys);
        self.attestor.state(keys);
    }
}

/// Above everything that the window has allowed until now (docs/ARCHITECTURE.md, «The floor after an unclean end»).
fn now(desk: &Desk<'_>) -> Watermarks {
    let slot = desk.now.saturating_add(1);
    let epoch = desk.network.epoch_of(slot);
    Watermarks {
        block: Some(BlockMark { slot, signing_root: None }),
        attestation: Some(AttestationMark { source: epoch, target: epoch, signing_root: None }),
    }
}

fn digest_of(bytes: &[u8]) -> Root {
    let mut root = Root::ZERO;
    // SHA-256 gives 32 bytes, always.
    for (to, from) in root.0.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()) {
        *to = *from;
    }
    root
}

/// A key's signature over its deposit message.
fn deposit(
    desk: &Desk<'_>,
    secret: &SecretKey,
    public_key: PublicKey,
    withdrawal_credentials: Root,
    amount: u64,
) -> Result<GeneratedKey, Refusal> {
    let genesis_fork_version = desk.network.genesis_version();
    let duty = Duty::Deposit { public_key, withdrawal_credentials, amount, genesis_fork_version };
    let root = signing_root::compute(&duty, None, desk.network)?;
    Ok(GeneratedKey { public_key, deposit_signature: secret.sign(&HashedMessage::new(&root.0)) })
}

/// Whether a key may have signed that by now. What lies in the future would silence it until then: a slip, or an attack.
fn is_possible(past: Watermarks, desk: &Desk<'_>) -> bool {
    let latest = desk.now.saturating_add(1);
    let block = past.block.is_none_or(|block| block.slot <= latest);
    let vote =
        past.attestation.is_none_or(|vote| vote.source <= vote.target && vote.target <= desk.network.epoch_of(latest));
    block && vote
}

/// Adds to what is known of a key's past.
fn raise(desk: &Desk<'_>, public_key: &PublicKey, key: &Key, past: Watermarks) -> Result<(), Refusal> {
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
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
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

/// A vault's lock on its keys is short; poisoning changes nothing that it guards.
pub(crate) fn current(keys: &RwLock<Arc<Keys>>) -> Arc<Keys> {
    Arc::clone(&keys.read().unwrap_or_else(PoisonError::into_inner))
}
