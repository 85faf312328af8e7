//! Where a group's keys come from and go to: sealed blobs on the parent's disk, data keys from KMS for this enclave alone.
//!
//! Everything that crosses [`Services`] passes through the broker and the parent, and is trusted with nothing: what KMS answers
//! is for a key that was made at this start; the ARN that it names is compared; a blob is bound to its header, its header to the
//! measured configuration, its keys to their public keys.

use std::sync::Arc;

use aws_lc_rs::digest;
use casemate_protocol::Root;
use zeroize::Zeroizing;

use crate::keys::cms::{CmsError, RecipientKey};
use crate::keys::seal::{self, Contents, DATA_KEY_LEN, SealBinding, SealError};
use crate::platform::nsm::{Nsm, NsmError};

/// A data key, as KMS hands it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsAnswer {
    /// ARN of the KMS key that answered.
    pub key_arn: String,
    /// `CiphertextBlob`; empty where one was unwrapped.
    pub wrapped: Vec<u8>,
    /// `CiphertextForRecipient`.
    pub for_recipient: Vec<u8>,
}

/// What binds a data key to its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionContext {
    /// The group.
    pub group: String,
    /// The chain's genesis validators root.
    pub network: Root,
}

/// Why a service gave nothing. The broker's log says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum ServiceError {
    #[error("KMS or the parent is away")]
    Away,
    #[error("the parent's AWS credentials do not work")]
    Credentials,
    #[error("KMS denies it: the key policy requires other PCRs, or these credentials lack the right")]
    Denied,
    #[error("the service refused")]
    Refused,
}

/// What the vault needs of the world, carried by the broker.
pub trait Services: Send + Sync {
    /// KMS `GenerateDataKey` (AES-256) with a `Recipient`.
    fn generate_data_key(
        &self,
        key_arn: &str,
        document: &[u8],
        context: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError>;

    /// KMS `Decrypt` with a `Recipient`.
    fn decrypt(
        &self,
        key_arn: &str,
        wrapped: &[u8],
        document: &[u8],
        context: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError>;

    /// The state_versions that the parent keeps for a group, the newest first.
    fn list_blobs(&self, group: &str) -> Result<Vec<u64>, ServiceError>;

    /// One of them.
    fn load_blob(&self, group: &str, state_version: u64) -> Result<Vec<u8>, ServiceError>;

    /// Keeps a blob; returns once it is on the disk.
    fn store_blob(&self, group: &str, state_version: u64, blob: &[u8]) -> Result<(), ServiceError>;
}

/// Why keys could not be unsealed or sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum CustodyError {
    #[error(transparent)]
    Nsm(#[from] NsmError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Cms(#[from] CmsError),
    #[error("KMS answered with the key {found}; the configuration names {expected}")]
    OtherKey { found: String, expected: String },
    #[error("KMS gave a data key of {len} bytes, not {DATA_KEY_LEN}")]
    DataKeyLength { len: usize },
    #[error("the parent keeps a blob of version {kept}; version {asked} would not be newer")]
    NotNewer { asked: u64, kept: u64 },
    #[error("it is not known whether the parent has kept the sealed state: {0}")]
    NotStored(ServiceError),
    #[error("no RSA key could be made")]
    NoKey,
}

/// A state that was unsealed.
#[derive(Default)]
pub struct Unsealed {
    /// Its version; 0 where there was none.
    pub state_version: u64,
    /// What it is known by: the SHA-256 of its blob.
    pub digest: Root,
    /// What was in it.
    pub contents: Contents,
}

/// SHA-256.
pub(crate) fn digest_of(bytes: &[u8]) -> Root {
    let mut root = Root::ZERO;
    // SHA-256 gives 32 bytes, always.
    for (to, from) in root.0.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()) {
        *to = *from;
    }
    root
}

/// Seals and unseals for one group.
pub struct Custody {
    services: Arc<dyn Services>,
    nsm: Arc<dyn Nsm>,
    recipient: Arc<RecipientKey>,
    place: SealBinding,
}

impl Custody {
    /// With a key of its own, made now, to which alone KMS's answers are encrypted.
    pub fn new(services: Arc<dyn Services>, nsm: Arc<dyn Nsm>, place: SealBinding) -> Result<Self, CustodyError> {
        let recipient = Arc::new(RecipientKey::generate().ok_or(CustodyError::NoKey)?);
        Ok(Self::with_recipient(services, nsm, place, recipient))
    }

    /// With a key that others may have too: for a simulator that starts thousands of enclaves, where making a key would take most of the
    /// time.
    #[doc(hidden)]
    pub fn with_recipient(
        services: Arc<dyn Services>,
        nsm: Arc<dyn Nsm>,
        place: SealBinding,
        recipient: Arc<RecipientKey>,
    ) -> Self {
        Self { services, nsm, recipient, place }
    }

    /// The newest state that the parent keeps, with its version; `None` where it keeps none.
    ///
    /// The parent can withhold the newest and offer an older one: `oldest` is what the fence says is the oldest that may be
    /// loaded. It is always the newest offered that is opened; one that is broken is an error, not a reason to go back.
    pub fn unseal(&self, oldest: u64) -> Result<Option<Unsealed>, CustodyError> {
        let Some(newest) = self.services.list_blobs(&self.place.group)?.into_iter().max() else { return Ok(None) };
        let blob = self.services.load_blob(&self.place.group, newest)?;
        let header = seal::header(&blob, &self.place, oldest.max(newest))?;
        let document = self.document()?;
        let wrapped = header.wrapped_key.as_ref();
        let answer = self.services.decrypt(&self.place.key_arn, wrapped, &document, &self.context())?;
        let data_key = self.data_key(&answer)?;
        let contents = seal::open(&blob, &data_key, &self.place, oldest.max(newest))?;
        Ok(Some(Unsealed { state_version: header.state_version, digest: digest_of(&blob), contents }))
    }

    /// The newest version that the parent offers; 0 where it offers none.
    pub fn newest(&self) -> Result<u64, CustodyError> {
        Ok(self.services.list_blobs(&self.place.group)?.into_iter().max().unwrap_or(0))
    }

    /// Seals a state under a fresh data key and has the parent keep it. When this returns, it is on the disk; what it is known by.
    pub fn seal(&self, contents: &Contents, state_version: u64) -> Result<Root, CustodyError> {
        if let Some(kept) =
            self.services.list_blobs(&self.place.group)?.into_iter().max().filter(|k| *k >= state_version)
        {
            return Err(CustodyError::NotNewer { asked: state_version, kept });
        }
        let document = self.document()?;
        let answer = self.services.generate_data_key(&self.place.key_arn, &document, &self.context())?;
        let data_key = self.data_key(&answer)?;
        let blob = seal::seal(contents, &data_key, answer.wrapped, &self.place, state_version)?;
        self.services.store_blob(&self.place.group, state_version, &blob).map_err(CustodyError::NotStored)?;
        Ok(digest_of(&blob))
    }

    /// A document that carries the key for KMS's answer. It needs no nonce: KMS looks at its age.
    fn document(&self) -> Result<Vec<u8>, CustodyError> {
        Ok(self.nsm.attestation(None, None, Some(self.recipient.spki()))?)
    }

    fn context(&self) -> EncryptionContext {
        EncryptionContext { group: self.place.group.clone(), network: self.place.network }
    }

    fn data_key(&self, answer: &KmsAnswer) -> Result<Zeroizing<[u8; DATA_KEY_LEN]>, CustodyError> {
        if answer.key_arn != self.place.key_arn {
            let (found, expected) = (answer.key_arn.clone(), self.place.key_arn.clone());
            return Err(CustodyError::OtherKey { found, expected });
        }
        let opened = self.recipient.open(&answer.for_recipient)?;
        let mut data_key = Zeroizing::new([0; DATA_KEY_LEN]);
        if opened.len() != data_key.len() {
            return Err(CustodyError::DataKeyLength { len: opened.len() });
        }
        data_key.copy_from_slice(&opened);
        Ok(data_key)
    }
}
