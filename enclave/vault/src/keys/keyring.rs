//! The keys of the enclave's group, each with its watermarks behind its own lock.

use std::collections::HashMap;

use casemate_protocol::history_page::HistoryEntry;
use casemate_protocol::key_page::{KeyDetails, Origin};
use casemate_protocol::{ExecutionAddress, PublicKey, Refusal};
use casemate_slashing::{Floors, GroupFloor, SlashingHistory, Watermarks, group};

use crate::keys::journal::{Journal, NotSaved};
use crate::keys::seal::{Contents, SealedKey, SecretBytes};
use crate::platform::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use crate::signing::bls::SecretKey;

/// A key and its past.
pub(crate) struct Key {
    public: PublicKey,
    /// Nothing where it was deleted: its past is remembered, in case that it comes back.
    secret: Option<SecretKey>,
    history: Arc<Mutex<SlashingHistory>>,
    /// Where operators have ordered its fees to go.
    fee_recipient: Option<ExecutionAddress>,
}

/// Why keys could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The secret key of this number is zero or beyond the order of the group.
    Invalid(usize),
    /// Two secret keys have this public key.
    Duplicate(PublicKey),
    /// More keys than a `u32` can count.
    TooMany,
    /// The journal did not take the group's floor.
    NotSaved,
}

/// All keys of a group, found by public key. A change makes another `Keys`, which shares the keys and their histories.
#[derive(Default)]
pub struct Keys {
    all: Vec<Arc<Key>>,
    /// What keys that are not listed may have signed at most. It only rises.
    floor: Arc<Mutex<GroupFloor>>,
    /// Numbers of four bytes: there may be a hundred thousand keys, and the enclave's memory is bounded.
    by_public_key: HashMap<PublicKey, u32>,
    /// Those that sign, in the order of loading.
    signing: Vec<u32>,
    /// How many there are, but for deleted ones.
    held: usize,
}

impl Keys {
    /// Takes in secret keys (32 bytes, big-endian; cleared as they are read) with their histories.
    ///
    /// `history` is asked once a key, with its number and public key. Public keys are derived on as many threads as
    /// there are cores: that is nearly all the time that loading takes.
    pub fn load(
        secrets: &mut [[u8; 32]],
        mut history: impl FnMut(usize, &PublicKey) -> SlashingHistory,
    ) -> Result<Self, KeyError> {
        let threads = crate::platform::cpus::cores().get();
        let chunk = secrets.len().div_ceil(threads).max(1);
        let derived: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                secrets.chunks_mut(chunk).map(|chunk| scope.spawn(|| chunk.iter_mut().map(derive).collect())).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_default()).collect::<Vec<Vec<_>>>()
        })
        .into_iter()
        .flatten()
        .collect();
        let mut all = Vec::with_capacity(derived.len());
        for (number, pair) in derived.into_iter().enumerate() {
            let (secret, public_key) = pair.ok_or(KeyError::Invalid(number))?;
            let history = Arc::new(Mutex::new(history(number, &public_key)));
            all.push(Arc::new(Key { public: public_key, secret: Some(secret), history, fee_recipient: None }));
        }
        Self::new(all, Arc::default())
    }

    /// Takes in what was unsealed; unsealing has compared the public keys. `history` may add to what a key brings.
    pub fn unsealed(
        contents: Contents,
        mut history: impl FnMut(usize, &PublicKey, SlashingHistory) -> SlashingHistory,
    ) -> Result<Self, KeyError> {
        let mut all = Vec::with_capacity(contents.keys.len());
        let floor = Arc::new(Mutex::new(contents.floor));
        for (number, key) in contents.keys.into_iter().enumerate() {
            let secret = key.secret.map(|mut secret| SecretKey::from_be_bytes(&mut secret.0));
            let secret = secret.transpose().map_err(|_| KeyError::Invalid(number))?;
            let history = Arc::new(Mutex::new(history(number, &key.public_key, key.history)));
            all.push(Arc::new(Key { public: key.public_key, secret, history, fee_recipient: key.fee_recipient }));
        }
        Self::new(all, floor)
    }

    fn new(all: Vec<Arc<Key>>, floor: Arc<Mutex<GroupFloor>>) -> Result<Self, KeyError> {
        if u32::try_from(all.len()).is_err() {
            return Err(KeyError::TooMany);
        }
        let by_public_key = HashMap::with_capacity(all.len());
        let mut keys = Self { floor, by_public_key, ..Self::default() };
        for (number, key) in (0..).zip(&all) {
            if keys.by_public_key.insert(key.public, number).is_some() {
                return Err(KeyError::Duplicate(key.public));
            }
            if key.secret.is_some() {
                keys.held = keys.held.saturating_add(1);
                if key.history() != SlashingHistory::Missing {
                    keys.signing.push(number);
                }
            }
        }
        keys.all = all;
        Ok(keys)
    }

    /// A key and its secret.
    pub(crate) fn find(&self, public_key: &PublicKey) -> Option<(&Key, &SecretKey)> {
        let key = self.past(public_key)?;
        Some((key, key.secret.as_ref()?))
    }

    /// A key that has its secret, to be kept beyond this set.
    pub(crate) fn held(&self, public_key: &PublicKey) -> Option<&Arc<Key>> {
        self.of_public_key(public_key).filter(|key| key.secret.is_some())
    }

    /// A key, also one that was deleted.
    pub(crate) fn past(&self, public_key: &PublicKey) -> Option<&Key> {
        self.of_public_key(public_key).map(Arc::as_ref)
    }

    fn of_public_key(&self, public_key: &PublicKey) -> Option<&Arc<Key>> {
        self.all.get(self.number(public_key)?)
    }

    fn number(&self, public_key: &PublicKey) -> Option<usize> {
        self.by_public_key.get(public_key).and_then(|number| usize::try_from(*number).ok())
    }

    /// These keys and more. One that was deleted comes back to its past, to which what it brings is added.
    pub(crate) fn with(&self, more: Vec<(PublicKey, SecretKey, SlashingHistory)>) -> Result<Self, KeyError> {
        let mut all = self.all.clone();
        for (public_key, secret, history) in more {
            let known = self.number(&public_key).and_then(|number| all.get_mut(number));
            let Some(known) = known else {
                all.push(Arc::new(Key {
                    public: public_key,
                    secret: Some(secret),
                    history: Arc::new(Mutex::new(history)),
                    fee_recipient: None,
                }));
                continue;
            };
            if let SlashingHistory::Known(watermarks) = history {
                let mut past = known.lock();
                *past = past.with(watermarks);
            }
            let (history, fee_recipient) = (Arc::clone(&known.history), known.fee_recipient);
            *known = Arc::new(Key { public: public_key, secret: Some(secret), history, fee_recipient });
        }
        Self::new(all, Arc::clone(&self.floor))
    }

    /// What a key that is not listed here may have signed at most.
    pub(crate) fn floor(&self) -> GroupFloor {
        *self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the group's floor to that of another state too.
    fn raise_floor(&self, other: GroupFloor, journal: &dyn Journal) -> Result<(), NotSaved> {
        let mut floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        let raised = floor.merge(other);
        if raised != *floor {
            journal.raise_floor(raised)?;
            *floor = raised;
        }
        Ok(())
    }

    /// These keys, and the deleted ones' like the histories of those that only `before` knows: what was signed is not forgotten because a
    /// newer state does not list it. Nothing of `before` is held.
    pub(crate) fn remembering(self, before: &Self, most: usize, journal: &dyn Journal) -> Result<Self, KeyError> {
        let Self { mut all, floor, by_public_key, .. } = self;
        let mut forgotten = before.floor();
        for key in before.all.iter().filter(|key| !by_public_key.contains_key(&key.public)) {
            if all.len() < most {
                all.push(Arc::new(Key::past_of(key)));
            } else if let SlashingHistory::Known(known) = key.history() {
                // No room for it by its name: the floor stands for it.
                forgotten = forgotten.merge(GroupFloor::from_watermarks(known));
            }
        }
        let keys = Self::new(all, floor)?;
        keys.raise_floor(forgotten, journal).map_err(|NotSaved| KeyError::NotSaved)?;
        Ok(keys)
    }

    /// Raises the group's floor, and the past of every key whose past is known, deleted ones too, to the floors of a term.
    pub(crate) fn raise(&self, floors: &Floors, journal: &dyn Journal) -> Result<(), NotSaved> {
        self.raise_floor(GroupFloor::NONE.with_floors(floors), journal)?;
        let past = floors.watermarks();
        for key in &self.all {
            let mut history = key.lock();
            let SlashingHistory::Known(known) = *history else { continue };
            let raised = known.merge(past);
            if raised != known {
                // Of a deleted key the journal need not know.
                if key.secret.is_some() {
                    journal.record(&key.public, &raised)?;
                }
                *history = SlashingHistory::Known(raised);
            }
        }
        Ok(())
    }

    /// The keys that sign, each with its past.
    pub(crate) fn histories(&self) -> impl Iterator<Item = (PublicKey, Watermarks)> {
        let signing = self.all.iter().filter(|key| key.secret.is_some());
        signing.filter_map(|key| Some((key.public, key.history().watermarks().ok()?)))
    }

    /// These keys without the secrets of some.
    pub(crate) fn without(&self, public_keys: &[PublicKey]) -> Result<Self, KeyError> {
        let mut all = self.all.clone();
        for number in public_keys.iter().filter_map(|key| self.number(key)) {
            if let Some(key) = all.get_mut(number) {
                *key = Arc::new(Key::past_of(key));
            }
        }
        Self::new(all, Arc::clone(&self.floor))
    }

    /// These keys, the fees of some of which go elsewhere from now on.
    pub(crate) fn with_fee_recipient(
        &self,
        public_keys: &[PublicKey],
        fee_recipient: Option<ExecutionAddress>,
    ) -> Result<Self, KeyError> {
        let mut all = self.all.clone();
        for number in public_keys.iter().filter_map(|key| self.number(key)) {
            if let Some(key) = all.get_mut(number)
                && let Some(secret) = &key.secret
            {
                let secret =
                    SecretKey::from_be_bytes(&mut secret.to_be_bytes()).map_err(|_| KeyError::Invalid(number))?;
                *key = Arc::new(Key { secret: Some(secret), fee_recipient, ..Key::past_of(key) });
            }
        }
        Self::new(all, Arc::clone(&self.floor))
    }

    /// The same keys, where what is known of some has changed.
    pub(crate) fn again(&self) -> Result<Self, KeyError> {
        Self::new(self.all.clone(), Arc::clone(&self.floor))
    }

    /// How many there are, with deleted ones.
    pub(crate) fn known(&self) -> usize {
        self.all.len()
    }

    /// Some of them, with what they have signed and what they stay above.
    pub(crate) fn told(&self, start: usize, count: usize, floors: Watermarks) -> Vec<HistoryEntry> {
        let one = |key: &Arc<Key>| {
            let past = key.history().watermarks().ok().map(|past| past.merge(floors));
            HistoryEntry { public_key: key.public, held: key.secret.is_some(), highest: past }
        };
        self.all.iter().skip(start).take(count).map(one).collect()
    }

    /// Some of them, with where their fees go; how they came, others know.
    pub(crate) fn details(&self, start: usize, count: usize) -> Vec<KeyDetails> {
        let one = |key: &Arc<Key>| KeyDetails {
            public_key: key.public,
            held: key.secret.is_some(),
            fee_recipient: key.fee_recipient,
            origin: Origin::BeforeThisBoot,
            exit: None,
        };
        self.all.iter().skip(start).take(count).map(one).collect()
    }

    /// What a key starts from that comes in, whatever door it takes.
    pub(crate) fn entering(&self, public_key: &PublicKey, brought: Watermarks) -> Watermarks {
        group::entering(brought, self.past(public_key).map(Key::history), self.floor())
    }

    /// Everything, to be sealed.
    pub(crate) fn contents(&self) -> Contents {
        let sealed = |key: &Arc<Key>| SealedKey {
            public_key: key.public,
            secret: key.secret.as_ref().map(|secret| SecretBytes(*secret.to_be_bytes())),
            history: key.history(),
            fee_recipient: key.fee_recipient,
        };
        let keys = self.all.iter().map(sealed).collect();
        Contents { keys, floor: self.floor(), ..Contents::default() }
    }

    /// The public keys that sign: those with a history.
    pub fn signing(&self) -> impl ExactSizeIterator<Item = PublicKey> {
        self.signing.iter().map(|number| {
            let key = usize::try_from(*number).ok().and_then(|number| self.all.get(number));
            // Every number in the list is of a key.
            key.map_or(PublicKey::ZERO, |key| key.public)
        })
    }

    /// How many keys are held, with or without history; deleted ones are not.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }
}

impl Key {
    /// Its secret; nothing where it was deleted.
    pub(crate) fn secret(&self) -> Option<&SecretKey> {
        self.secret.as_ref()
    }

    /// Where operators have ordered its fees to go.
    pub(crate) fn fee_recipient(&self) -> Option<ExecutionAddress> {
        self.fee_recipient
    }

    /// The same key without its secret; its past is shared.
    fn past_of(key: &Self) -> Self {
        Self { public: key.public, secret: None, history: Arc::clone(&key.history), fee_recipient: key.fee_recipient }
    }

    /// Its past, locked: anyone who changes it holds this from the check to the end of the saving.
    pub(crate) fn lock(&self) -> MutexGuard<'_, SlashingHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a duty against its past, and writes down what its past becomes, in one step: of conflicting requests exactly one finds the old
    /// past. Saved before anything is signed.
    pub(crate) fn advance(
        &self,
        journal: &dyn Journal,
        check: impl FnOnce(Watermarks) -> Result<Watermarks, Refusal>,
    ) -> Result<(), Refusal> {
        let mut history = self.lock();
        let old = history.watermarks()?;
        let new = check(old)?;
        if new != old {
            journal.record(&self.public, &new).map_err(|_| Refusal::NotSaved)?;
            *history = SlashingHistory::Known(new);
        }
        Ok(())
    }

    /// Its past, now.
    pub(crate) fn history(&self) -> SlashingHistory {
        *self.lock()
    }
}

/// The keys that are in force. The lock is short; poisoning changes nothing that it guards.
pub(crate) fn current(keys: &RwLock<Arc<Keys>>) -> Arc<Keys> {
    Arc::clone(&keys.read().unwrap_or_else(PoisonError::into_inner))
}

fn derive(bytes: &mut [u8; 32]) -> Option<(SecretKey, PublicKey)> {
    let secret = SecretKey::from_be_bytes(bytes).ok()?;
    let public_key = secret.public_key();
    Some((secret, public_key))
}
