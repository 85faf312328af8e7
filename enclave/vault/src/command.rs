//! Operators' commands: what changes the group's keys.
//!
//! A command is taken where M of the N operators that the measured configuration names have signed it, for this group, chain and
//! boot, and with a counter above the last. What it changed is sealed and on the parent's disk before it is answered and before a new key
//! signs; where it cannot be sealed, nothing has changed.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::command::{
    Action, COMPOUNDING_PREFIX, Command, Envelope, GeneratedKey, ImportedKey, KeyOutcome, Outcome, SECRET_LEN,
    SignedCommand, withdrawal_address,
};
use casemate_protocol::configuration::Operators;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::{Duty, ExecutionAddress, Network, PublicKey, Refusal, Root};
use casemate_slashing::{History, Watermarks};
use zeroize::{Zeroize, Zeroizing};

use crate::attest::Attestor;
use crate::bls::{HashedMessage, SecretKey};
use crate::custody::{Custody, CustodyError, ServiceError};
use crate::{Journal, Keys, Nsm, signing_root};

/// Most keys of a group: their sealed state stays far below the longest blob.
pub const MAX_GROUP_KEYS: usize = 100_000;
/// Gwei of one ether, the least that a deposit may be (`MIN_DEPOSIT_AMOUNT`).
const MIN_DEPOSIT: u64 = 1_000_000_000;
/// `MIN_ACTIVATION_BALANCE`: what a validator of 0x01 credentials counts for at most.
const MAX_DEPOSIT: u64 = 32_000_000_000;
/// `MAX_EFFECTIVE_BALANCE_ELECTRA`: with compounding (0x02) credentials.
const MAX_COMPOUNDING_DEPOSIT: u64 = 2_048_000_000_000;

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
    /// Of the state that is in force, or the newest that was seen.
    generation: u64,
    counter: u64,
}

/// What a command is carried out on.
pub(crate) struct Desk<'a> {
    pub(crate) attestor: &'a Attestor,
    pub(crate) network: &'a Network,
    pub(crate) journal: &'a dyn Journal,
    pub(crate) keys: Arc<Keys>,
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
        let book = Mutex::new(Book { generation, counter: 0 });
        Self { custody, nsm, operators, withdrawal_addresses, book }
    }

    /// Carries out a command; the keys that are in force from then on, where it changed them.
    pub(crate) fn carry_out(
        &self,
        desk: &Desk<'_>,
        envelope: &Envelope,
    ) -> Result<(Outcome, Option<Arc<Keys>>), Refusal> {
        let mut book = match self.book.try_lock() {
            Ok(book) => book,
            Err(TryLockError::WouldBlock) => return Err(Refusal::CommandBusy),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let command = self.check(desk, envelope.as_ref(), book.counter)?;
        // From here on it counts as carried out, whatever comes of it.
        book.counter = command.counter;
        match command.action {
            Action::Import { keys, secrets } => {
                let opened = desk.attestor.open(&secrets).ok_or(Refusal::SecretsNotOpened)?;
                self.import(desk, &mut book, &keys, &opened)
            }
            Action::Generate { count, withdrawal_credentials, amount } => {
                self.generate(desk, &mut book, count, withdrawal_credentials, amount)
            }
            Action::Delete { keys } => self.delete(desk, &mut book, &keys),
        }
    }

    /// The command, if it is one of enough operators for this boot of this enclave.
    fn check(&self, desk: &Desk<'_>, envelope: &[u8], last: u64) -> Result<Command, Refusal> {
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
                return Err(Refusal::CommandSignature);
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
        Ok(command)
    }

    fn import(
        &self,
        desk: &Desk<'_>,
        book: &mut Book,
        keys: &[ImportedKey],
        opened: &[u8],
    ) -> Result<(Outcome, Option<Arc<Keys>>), Refusal> {
        let secrets: Vec<&[u8; SECRET_LEN]> =
            opened.chunks_exact(SECRET_LEN).filter_map(|s| s.try_into().ok()).collect();
        if secrets.len() != keys.len() {
            return Err(Refusal::SecretsNotOpened);
        }
        let derived = derive(&secrets);
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut added: Vec<(PublicKey, SecretKey, History)> = Vec::new();
        for (key, derived) in keys.iter().zip(derived) {
            let past = key.history.map(Watermarks::from);
            let Some((secret, _)) = derived.filter(|(_, public_key)| *public_key == key.public_key) else {
                outcomes.push(KeyOutcome::WrongSecret);
                continue;
            };
            let again = added.iter_mut().find(|(public_key, ..)| *public_key == key.public_key);
            match (again, desk.keys.find(&key.public_key)) {
                (Some((_, _, known)), _) => {
                    *known = past.map_or(*known, |past| known.with(past));
                    outcomes.push(KeyOutcome::Duplicate);
                }
                (None, Some((number, held, _))) => {
                    if let Some(past) = past {
                        raise(desk, number, held, past)?;
                    }
                    outcomes.push(KeyOutcome::Duplicate);
                }
                (None, None) => {
                    // Without a history it is the operators who say that there is none.
                    added.push((key.public_key, secret, History::Known(past.unwrap_or(Watermarks::NONE))));
                    outcomes.push(KeyOutcome::Imported);
                }
            }
        }
        let changed = self.add(desk, book, added)?;
        Ok((Outcome::Imported { keys: outcomes }, Some(changed)))
    }

    fn generate(
        &self,
        desk: &Desk<'_>,
        book: &mut Book,
        count: u32,
        withdrawal_credentials: Root,
        amount: u64,
    ) -> Result<(Outcome, Option<Arc<Keys>>), Refusal> {
        let address = withdrawal_address(&withdrawal_credentials);
        if !address.is_some_and(|address| self.withdrawal_addresses.contains(&address)) {
            return Err(Refusal::WithdrawalNotAllowed(withdrawal_credentials));
        }
        let compounding = withdrawal_credentials.0.first() == Some(&COMPOUNDING_PREFIX);
        let max = if compounding { MAX_COMPOUNDING_DEPOSIT } else { MAX_DEPOSIT };
        if !(MIN_DEPOSIT..=max).contains(&amount) {
            return Err(Refusal::DepositAmount { gwei: amount, min: MIN_DEPOSIT, max });
        }
        let (mut added, mut generated) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let secret = self.new_key()?;
            let public_key = secret.public_key();
            let genesis_fork_version = desk.network.genesis_version();
            let deposit = Duty::Deposit { public_key, withdrawal_credentials, amount, genesis_fork_version };
            let root = signing_root::compute(&deposit, None, desk.network)?;
            let deposit_signature = secret.sign(&HashedMessage::new(&root.0));
            generated.push(GeneratedKey { public_key, deposit_signature });
            // It has signed nothing that could be slashed, and nobody else has it.
            added.push((public_key, secret, History::Known(Watermarks::NONE)));
        }
        let changed = self.add(desk, book, added)?;
        Ok((Outcome::Generated { keys: generated }, Some(changed)))
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
        desk: &Desk<'_>,
        book: &mut Book,
        public_keys: &[PublicKey],
    ) -> Result<(Outcome, Option<Arc<Keys>>), Refusal> {
        let known = |key: &PublicKey| desk.keys.find(key).is_some();
        let outcome = |key| if known(key) { KeyOutcome::Deleted } else { KeyOutcome::NotFound };
        let outcomes: Vec<KeyOutcome> = public_keys.iter().map(outcome).collect();
        let changed = desk.keys.without(public_keys).map_err(|_| Refusal::MalformedCommand)?;
        self.seal(book, &changed)?;
        Ok((Outcome::Deleted { keys: outcomes }, Some(Arc::new(changed))))
    }

    /// The keys with more, sealed, and with room in the journal.
    fn add(
        &self,
        desk: &Desk<'_>,
        book: &mut Book,
        added: Vec<(PublicKey, SecretKey, History)>,
    ) -> Result<Arc<Keys>, Refusal> {
        let (held, more) = (desk.keys.len(), added.len());
        if held.saturating_add(more) > MAX_GROUP_KEYS {
            let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            return Err(Refusal::TooManyKeys { held: number(held), more: number(more), max: number(MAX_GROUP_KEYS) });
        }
        let is_new = |key: &PublicKey| desk.keys.past(key).is_none();
        let public_keys: Vec<PublicKey> = added.iter().map(|(key, ..)| *key).collect();
        let changed = desk.keys.with(added).map_err(|_| Refusal::MalformedCommand)?;
        self.seal(book, &changed)?;
        let mut fresh = Vec::new();
        for (public_key, number, key) in public_keys.iter().filter_map(|k| changed.past(k).map(|(n, key)| (*k, n, key)))
        {
            let watermarks = key.history().watermarks()?;
            if is_new(&public_key) {
                fresh.push((public_key, watermarks));
            } else {
                // It was deleted and has come back, perhaps with more of a past.
                desk.journal.record(number, &watermarks).map_err(|_| Refusal::NotSaved)?;
            }
        }
        let starts = desk.journal.admit(&fresh).map_err(|_| Refusal::NotSaved)?;
        for ((public_key, _), start) in fresh.iter().zip(starts) {
            if let Some((_, key)) = changed.past(public_key) {
                let mut history = key.lock();
                *history = history.with(start);
            }
        }
        Ok(Arc::new(changed))
    }

    fn seal(&self, book: &mut Book, keys: &Keys) -> Result<(), Refusal> {
        loop {
            let next = book.generation.saturating_add(1);
            match self.custody.seal(&keys.contents(), next) {
                Ok(()) => {
                    book.generation = next;
                    return Ok(());
                }
                // A blob of this number is on the disk: of a sealing whose end was not heard of, or of another enclave of this
                // group. It is never overwritten.
                Err(CustodyError::NotNewer { kept, .. }) if kept > book.generation && kept < u64::MAX => {
                    book.generation = kept;
                }
                Err(error) => return Err(Refusal::NotSealed(waiting_for(&error))),
            }
        }
    }
}

/// Adds to what is known of a key's past.
fn raise(desk: &Desk<'_>, number: usize, key: &crate::keys::Key, past: Watermarks) -> Result<(), Refusal> {
    let mut history = key.lock();
    let raised = history.with(past);
    if raised != *history {
        desk.journal.record(number, &raised.watermarks()?).map_err(|_| Refusal::NotSaved)?;
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
pub(crate) fn current(keys: &std::sync::RwLock<Arc<Keys>>) -> Arc<Keys> {
    Arc::clone(&keys.read().unwrap_or_else(PoisonError::into_inner))
}
