//! A KMS, a disk, an NSM, and whatever comes between.
#![allow(dead_code, reason = "not every test needs all of it")]

pub mod fence;
pub mod linearizable;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_document::{Anchor, Timestamp};
use casemate_local_kms::api::Kms;
use casemate_local_kms::state::State;
use casemate_nsm::{Authority, Pcrs, Request as NsmRequest, Response as NsmResponse, SoftwareNsm, root_params};
use casemate_protocol::Bytes;
use casemate_vault::Nsm;
use casemate_vault::keys::custody::{Custody, EncryptionContext, KmsAnswer, ServiceError, Services};
use casemate_vault::keys::seal::SealBinding;
use serde_json::{Value, json};

pub const NOW: u64 = 1_790_000_000_000;
pub const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";
pub const GROUP: &str = "alpha";

pub struct Soft(pub SoftwareNsm);

impl Nsm for Soft {
    fn process(&self, request: NsmRequest) -> NsmResponse {
        self.0.process(request)
    }
}

/// KMS, a disk, and whatever comes between.
pub struct World {
    pub kms: Mutex<Kms>,
    pub blobs: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// What the parent does to KMS's answers.
    pub tamper: Mutex<Option<Tamper>>,
    /// So many blobs are kept and denied.
    pub denials: Mutex<u32>,
    /// How often the parent was asked which blobs it has.
    pub lists: AtomicU64,
    /// Every service fails with it.
    pub fault: Mutex<Option<ServiceError>>,
    _folder: tempfile::TempDir,
}

type Tamper = Box<dyn Fn(&mut KmsAnswer) + Send>;

impl World {
    fn faulty(&self) -> Result<(), ServiceError> {
        self.fault.lock().unwrap().map_or(Ok(()), Err)
    }

    fn ask(&self, operation: &str, body: &Value) -> Result<Value, ServiceError> {
        self.faulty()?;
        let answer = self.kms.lock().unwrap().handle(
            &format!("TrentService.{operation}"),
            body.to_string().as_bytes(),
            Timestamp(NOW),
        );
        answer.map_err(|failure| match failure.code {
            "AccessDeniedException" => ServiceError::Denied,
            _ => ServiceError::Refused,
        })
    }

    fn answer(&self, value: &Value) -> KmsAnswer {
        let bytes = |name: &str| value[name].as_str().map(|text| BASE64_STANDARD.decode(text).unwrap());
        let mut answer = KmsAnswer {
            key_arn: value["KeyId"].as_str().unwrap().to_owned(),
            wrapped: bytes("CiphertextBlob").unwrap_or_default(),
            for_recipient: bytes("CiphertextForRecipient").unwrap(),
        };
        if let Some(tamper) = &*self.tamper.lock().unwrap() {
            tamper(&mut answer);
        }
        answer
    }

    pub fn tamper(&self, how: impl Fn(&mut KmsAnswer) + Send + 'static) {
        *self.tamper.lock().unwrap() = Some(Box::new(how));
    }

    pub fn create_key(&self, policy: Option<&Value>) -> String {
        let body = policy.map_or(json!({}), |policy| json!({ "Policy": policy.to_string() }));
        self.ask("CreateKey", &body).unwrap()["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }
}

fn context(of: &EncryptionContext) -> Value {
    json!({ "group": of.group, "network": of.network.to_string() })
}

fn recipient(document: &[u8]) -> Value {
    json!({
        "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": BASE64_STANDARD.encode(document),
    })
}

impl Services for World {
    fn generate_data_key(&self, arn: &str, document: &[u8], of: &EncryptionContext) -> Result<KmsAnswer, ServiceError> {
        let body = json!({
            "KeyId": arn, "KeySpec": "AES_256", "EncryptionContext": context(of), "Recipient": recipient(document),
        });
        Ok(self.answer(&self.ask("GenerateDataKey", &body)?))
    }

    fn decrypt(
        &self,
        arn: &str,
        wrapped: &[u8],
        document: &[u8],
        of: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError> {
        let body = json!({
            "KeyId": arn, "CiphertextBlob": BASE64_STANDARD.encode(wrapped), "EncryptionContext": context(of),
            "Recipient": recipient(document),
        });
        Ok(self.answer(&self.ask("Decrypt", &body)?))
    }

    fn list_blobs(&self, _group: &str) -> Result<Vec<u64>, ServiceError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.faulty()?;
        Ok(self.blobs.lock().unwrap().keys().rev().copied().collect())
    }

    fn load_blob(&self, _group: &str, state_version: u64) -> Result<Vec<u8>, ServiceError> {
        self.blobs.lock().unwrap().get(&state_version).cloned().ok_or(ServiceError::Refused)
    }

    fn store_blob(&self, _group: &str, state_version: u64, blob: &[u8]) -> Result<(), ServiceError> {
        self.faulty()?;
        self.blobs.lock().unwrap().insert(state_version, blob.to_vec());
        let mut denials = self.denials.lock().unwrap();
        if *denials > 0 {
            *denials -= 1;
            return Err(ServiceError::Refused);
        }
        Ok(())
    }
}

pub struct Bench {
    pub world: Arc<World>,
    pub nsm: Arc<Soft>,
    pub place: SealBinding,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Authority::root(root_params()).unwrap();
        let anchor = Anchor::from_der(&root.der).unwrap();
        let measured = Pcrs::measure(b"boot", b"application", MODULE_ID);
        let policy = json!({ "Statement": { "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
            "Condition": { "StringEqualsIgnoreCase": {
                "kms:RecipientAttestation:PCR0": const_hex::encode(measured.0[&0]),
                "kms:RecipientAttestation:PCR2": const_hex::encode(measured.0[&2]),
            } } } });
        let nsm = Arc::new(Soft(SoftwareNsm::new(root, MODULE_ID, &measured, Box::new(|| NOW))));
        let state = State::open(&folder.path().join("kms.json"), "eu-central-1", "123456789012").unwrap();
        let kms = Mutex::new(Kms { state, anchor: Some(anchor) });
        let (blobs, tamper) = (Mutex::default(), Mutex::default());
        let world = Arc::new(World {
            kms,
            blobs,
            tamper,
            denials: Mutex::default(),
            lists: AtomicU64::default(),
            fault: Mutex::default(),
            _folder: folder,
        });
        let key_arn = world.create_key(Some(&policy));
        let place = SealBinding { key_arn, group: GROUP.into(), network: Bytes([5; 32]) };
        Self { world, nsm, place }
    }

    /// An enclave that starts: a new RSA key, the same place.
    pub fn start(&self) -> Custody {
        self.start_at(&self.place)
    }

    pub fn start_at(&self, place: &SealBinding) -> Custody {
        let services: Arc<dyn Services> = Arc::clone(&self.world) as _;
        Custody::new(services, Arc::clone(&self.nsm) as _, place.clone()).unwrap()
    }
}
