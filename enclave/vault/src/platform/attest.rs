//! Attestation documents for anyone who asks: the asker's nonce, the vault's HPKE key, the digest of the statement.

use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_protocol::command::EncryptedSecrets;
use casemate_protocol::configuration::Window;
use casemate_protocol::frame::Nonce;
use casemate_protocol::statement::{FenceStatement, StatedCommand, StatedKeys, StatedNetwork, StatedState};
use casemate_protocol::{BoundedBytes, Bytes, Network, Refusal, Reply, Root, Statement};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey};
use zeroize::Zeroizing;

use crate::Keys;
use crate::platform::nsm::{Nsm, NsmError};
use crate::platform::runtime::{Kernel, Runtime};
use crate::platform::ssz;

/// Documents that may be asked for at once, after a rest.
pub const BURST: u32 = 8;
/// One more may be asked for after so long.
pub const REFILL: Duration = Duration::from_millis(500);

/// What the configuration says of this enclave, for its statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The group whose keys it holds.
    pub group: String,
    /// SHA-256 of the measured configuration.
    pub configuration_sha256: Root,
}

/// Makes attestation documents.
pub struct Attestor {
    nsm: Arc<dyn Nsm>,
    /// Opens what operators encrypt to this enclave. Made anew at every start, never stored.
    hpke: HpkeKey,
    /// Signs the log and what is told of the keys' history. Made anew at every start, never stored.
    record_key: Ed25519KeyPair,
    identity: Identity,
    network: StatedNetwork,
    boot_nonce: Bytes<32>,
    stated: RwLock<Stated>,
    runtime: Arc<dyn Runtime>,
    bucket: Mutex<Bucket>,
    /// Held while a document is made.
    making: Mutex<()>,
}

/// What changes in the statement, besides the fence.
#[derive(Clone, Copy, Default)]
struct Stated {
    keys: Option<StatedKeys>,
    last_command: Option<StatedCommand>,
}

/// The vault's HPKE key (RFC 9180): DHKEM(X25519, HKDF-SHA256). Cleared when dropped.
struct HpkeKey {
    private: HpkePrivateKey,
    public: [u8; 32],
}

impl Attestor {
    /// Draws the boot nonce from the NSM, makes the HPKE key, and states what this enclave is.
    pub fn new(nsm: Arc<dyn Nsm>, identity: Identity, network: &Network, keys: &Keys) -> Result<Self, NsmError> {
        let mut boot_nonce = Bytes::ZERO;
        nsm.random(&mut boot_nonce.0)?;
        let network = StatedNetwork::from(network);
        let hpke = HpkeKey::generate().ok_or(NsmError::Unexpected)?;
        let record_key = Ed25519KeyPair::generate().map_err(|_| NsmError::Unexpected)?;
        let runtime: Arc<dyn Runtime> = Arc::new(Kernel::default());
        let bucket = Mutex::new(Bucket { tokens: BURST, since: runtime.now() });
        let (stated, making) = (RwLock::default(), Mutex::new(()));
        let attestor = Self { nsm, hpke, record_key, identity, network, boot_nonce, stated, runtime, bucket, making };
        attestor.state(keys);
        Ok(attestor)
    }

    /// On another's time than the kernel's: a simulator's.
    #[must_use]
    pub fn running_on(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.bucket = Mutex::new(Bucket { tokens: BURST, since: runtime.now() });
        self.runtime = runtime;
        self
    }

    /// From now on the statement names these keys.
    pub(crate) fn state(&self, keys: &Keys) {
        let mut signing = keys.signing().collect::<Vec<_>>();
        signing.sort_unstable();
        let count = u64::try_from(signing.len()).unwrap_or(u64::MAX);
        let keys = StatedKeys { count, root: ssz::list_of_keys(&signing) };
        self.restate(|stated| stated.keys = Some(keys));
    }

    /// From now on the statement tells this of the last command.
    pub(crate) fn note(&self, command: StatedCommand) {
        self.restate(|stated| stated.last_command = Some(command));
    }

    fn restate(&self, change: impl FnOnce(&mut Stated)) {
        change(&mut self.stated.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The root of the public keys that sign, as the statement has it.
    pub(crate) fn keys_root(&self) -> Root {
        let stated = *self.stated.read().unwrap_or_else(PoisonError::into_inner);
        stated.keys.map_or(Root::ZERO, |keys| keys.root)
    }

    fn statement(&self, fence: FenceStatement, window: Window, state: Option<StatedState>) -> Vec<u8> {
        let Stated { keys, last_command } = *self.stated.read().unwrap_or_else(PoisonError::into_inner);
        Statement::new(
            env!("CARGO_PKG_VERSION").to_owned(),
            self.identity.group.clone(),
            self.network.clone(),
            keys.unwrap_or(StatedKeys { count: 0, root: Root::ZERO }),
            self.identity.configuration_sha256,
            fence,
            window,
            self.boot_nonce,
            self.record_key(),
        )
        .after(last_command)
        .with_state(state)
        .encode()
    }

    /// The group that it speaks for.
    pub(crate) fn group(&self) -> &str {
        &self.identity.group
    }

    /// Two starts never share it.
    pub(crate) fn boot_nonce(&self) -> Bytes<32> {
        self.boot_nonce
    }

    fn record_key(&self) -> Bytes<32> {
        // An Ed25519 public key has 32 bytes, always.
        self.record_key.public_key().as_ref().try_into().map_or(Bytes::ZERO, Bytes)
    }

    /// A signature by the key that the statement names.
    pub(crate) fn sign_record(&self, bytes: &[u8]) -> Bytes<64> {
        // An Ed25519 signature has 64 bytes, always.
        self.record_key.sign(bytes).as_ref().try_into().map_or(Bytes::ZERO, Bytes)
    }

    /// What operators have encrypted to the key in the documents of this start.
    pub(crate) fn open(&self, secrets: &EncryptedSecrets, info: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let enc = EncapsulatedSecret(secrets.enc.0.to_vec());
        let opened = DH_KEM_X25519_HKDF_SHA256_AES_256.open(
            &enc,
            info,
            &self.boot_nonce.0,
            secrets.ciphertext.as_ref(),
            &self.hpke.private,
        );
        opened.ok().map(Zeroizing::new)
    }

    /// Answers a request: one at a time, and not too often. A document keeps one worker from signing while it is made.
    pub(crate) fn attest(
        &self,
        nonce: &Nonce,
        fence: FenceStatement,
        window: Window,
        state: Option<StatedState>,
    ) -> Result<Reply, Refusal> {
        // No second worker waits for the NSM: it would not sign meanwhile. The proxy asks one at a time anyway.
        let _making = match self.making.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => return Err(Refusal::NsmBusy),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(self.runtime.now())?;
        let statement = self.statement(fence, window, state);
        let user_data = digest(&SHA256, &statement);
        let document = self
            .nsm
            .attestation(Some(nonce.as_ref()), Some(user_data.as_ref()), Some(&self.hpke.public))
            .map_err(|_| Refusal::NsmFailed)?;
        let document = BoundedBytes::new(document).ok_or(Refusal::NsmFailed)?;
        let statement = BoundedBytes::new(statement).ok_or(Refusal::NsmFailed)?;
        Ok(Reply::Attestation { document, statement })
    }
}

impl HpkeKey {
    fn generate() -> Option<Self> {
        let (public, private) = DH_KEM_X25519_HKDF_SHA256_AES_256.generate_key_pair().ok()?;
        Some(Self { private, public: public.0.try_into().ok()? })
    }
}

/// Tokens that come back with time.
struct Bucket {
    tokens: u32,
    since: Duration,
}

impl Bucket {
    fn take(&mut self, now: Duration) -> Result<(), Refusal> {
        let rested = now.saturating_sub(self.since);
        let refilled = u32::try_from(rested.as_nanos() / REFILL.as_nanos()).unwrap_or(u32::MAX);
        if refilled > 0 {
            self.tokens = self.tokens.saturating_add(refilled).min(BURST);
            // What was begun of the next token is kept, unless the bucket is full anyway.
            self.since = match self.tokens {
                BURST => now,
                _ => self.since.saturating_add(REFILL.saturating_mul(refilled)),
            };
        }
        self.tokens = self.tokens.checked_sub(1).ok_or(Refusal::TooManyAttestations { seconds: 1 })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_one_by_one_and_no_further_than_the_burst() {
        let start = Duration::from_secs(1000);
        let mut bucket = Bucket { tokens: BURST, since: start };
        let mut at = |ms| bucket.take(start + Duration::from_millis(ms)).is_ok();
        assert!((0..BURST).all(|_| at(0)));
        assert!(!at(0));
        assert!(!at(499));
        assert!(at(500));
        assert!(!at(500));
        // The half that had passed is not lost.
        assert!(!at(999));
        assert!(at(1250));
        assert!(at(1500));
        assert!(!at(1500));
        // A day's rest is worth no more than a burst.
        let day = 86_400_000;
        assert!((0..BURST).all(|_| at(day)));
        assert!(!at(day));
    }
}
