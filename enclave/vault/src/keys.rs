//! The keys of the enclave's group, each with its watermarks behind its own lock.

use std::collections::HashMap;
use std::sync::Mutex;

use casemate_protocol::PublicKey;
use casemate_slashing::History;

use crate::bls::SecretKey;

/// A key and its past.
pub(crate) struct Key {
    pub(crate) secret: SecretKey,
    pub(crate) history: Mutex<History>,
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
}

/// All keys of a group, found by public key.
pub struct Keys {
    all: Vec<Key>,
    by_public_key: HashMap<PublicKey, usize>,
    /// The public keys that sign, in the order of loading.
    signing: Vec<PublicKey>,
}

impl Keys {
    /// Takes in secret keys (32 bytes, big-endian; cleared as they are read) with their histories.
    ///
    /// `history` is asked once a key, with its number and public key. Public keys are derived on as many threads as
    /// there are cores: that is nearly all the time that loading takes.
    pub fn load(
        secrets: &mut [[u8; 32]],
        mut history: impl FnMut(usize, &PublicKey) -> History,
    ) -> Result<Self, KeyError> {
        if u32::try_from(secrets.len()).is_err() {
            return Err(KeyError::TooMany);
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let chunk = secrets.len().div_ceil(threads).max(1);
        let derived: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                secrets.chunks_mut(chunk).map(|chunk| scope.spawn(|| chunk.iter_mut().map(derive).collect())).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_default()).collect::<Vec<Vec<_>>>()
        })
        .into_iter()
        .flatten()
        .collect();

        let mut keys = Self {
            all: Vec::with_capacity(derived.len()),
            by_public_key: HashMap::with_capacity(derived.len()),
            signing: Vec::with_capacity(derived.len()),
        };
        for (number, pair) in derived.into_iter().enumerate() {
            let (secret, public_key) = pair.ok_or(KeyError::Invalid(number))?;
            if keys.by_public_key.insert(public_key, number).is_some() {
                return Err(KeyError::Duplicate(public_key));
            }
            let history = history(number, &public_key);
            if history != History::Missing {
                keys.signing.push(public_key);
            }
            keys.all.push(Key { secret, history: Mutex::new(history) });
        }
        Ok(keys)
    }

    /// The number of a key and the key.
    pub(crate) fn find(&self, public_key: &PublicKey) -> Option<(usize, &Key)> {
        let number = *self.by_public_key.get(public_key)?;
        Some((number, self.all.get(number)?))
    }

    /// The public keys that sign: those with a history.
    pub fn signing(&self) -> &[PublicKey] {
        &self.signing
    }

    /// How many keys are held, with or without history.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

fn derive(bytes: &mut [u8; 32]) -> Option<(SecretKey, PublicKey)> {
    let secret = SecretKey::from_be_bytes(bytes).ok()?;
    let public_key = secret.public_key();
    Some((secret, public_key))
}
