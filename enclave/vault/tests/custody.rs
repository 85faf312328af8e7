//! Sealing and unsealing through a KMS, with a parent that lies in every way it can.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_document::{Anchor, Timestamp};
use casemate_local_kms::api::Kms;
use casemate_local_kms::state::State;
use casemate_nsm::{Authority, Pcrs, Request as NsmRequest, Response as NsmResponse, SoftwareNsm, root_params};
use casemate_protocol::Bytes;
use casemate_slashing::{History, Watermarks};
use casemate_vault::bls::SecretKey;
use casemate_vault::cms::CmsError;
use casemate_vault::custody::{Custody, CustodyError, EncryptionContext, KmsAnswer, ServiceError, Services};
use casemate_vault::seal::{Contents, Place, SealError, SealedKey, SecretBytes};
use casemate_vault::{Nsm, seal};
use serde_json::{Value, json};

const NOW: u64 = 1_790_000_000_000;
const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";
const GROUP: &str = "alpha";

struct Soft(SoftwareNsm);

impl Nsm for Soft {
    fn process(&self, request: NsmRequest) -> NsmResponse {
        self.0.process(request)
    }
}

/// KMS, a disk, and whatever comes between.
struct World {
    kms: Mutex<Kms>,
    blobs: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// What the parent does to KMS's answers.
    tamper: Mutex<Option<Tamper>>,
    _folder: tempfile::TempDir,
}

type Tamper = Box<dyn Fn(&mut KmsAnswer) + Send>;

impl World {
    fn ask(&self, operation: &str, body: &Value) -> Result<Value, ServiceError> {
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

    fn tamper(&self, how: impl Fn(&mut KmsAnswer) + Send + 'static) {
        *self.tamper.lock().unwrap() = Some(Box::new(how));
    }

    fn create_key(&self, policy: Option<&Value>) -> String {
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
        Ok(self.blobs.lock().unwrap().keys().rev().copied().collect())
    }

    fn load_blob(&self, _group: &str, generation: u64) -> Result<Vec<u8>, ServiceError> {
        self.blobs.lock().unwrap().get(&generation).cloned().ok_or(ServiceError::Refused)
    }

    fn store_blob(&self, _group: &str, generation: u64, blob: &[u8]) -> Result<(), ServiceError> {
        self.blobs.lock().unwrap().insert(generation, blob.to_vec());
        Ok(())
    }
}

struct Bench {
    world: Arc<World>,
    nsm: Arc<Soft>,
    place: Place,
}

impl Bench {
    fn new() -> Self {
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
        let world = Arc::new(World { kms, blobs, tamper, _folder: folder });
        let key_arn = world.create_key(Some(&policy));
        let place = Place { key_arn, group: GROUP.into(), network: Bytes([5; 32]) };
        Self { world, nsm, place }
    }

    /// An enclave that starts: a new RSA key, the same place.
    fn start(&self) -> Custody {
        self.start_at(&self.place)
    }

    fn start_at(&self, place: &Place) -> Custody {
        let services: Arc<dyn Services> = Arc::clone(&self.world) as _;
        Custody::new(services, Arc::clone(&self.nsm) as _, place.clone()).unwrap()
    }

    fn sealed(generations: &[u64]) -> Self {
        let bench = Self::new();
        for generation in generations {
            bench.start().seal(&contents(u8::try_from(*generation).unwrap()), *generation).unwrap();
        }
        bench
    }

    fn refused(&self, oldest: u64) -> CustodyError {
        self.start().unseal(oldest).map(|_| ()).unwrap_err()
    }
}

fn contents(n: u8) -> Contents {
    let keys = (1..=n).map(|n| {
        let secret = [n; 32];
        let public_key = SecretKey::from_be_bytes(&mut secret.clone()).unwrap().public_key();
        SealedKey { public_key, secret: Some(SecretBytes(secret)), history: History::Known(Watermarks::NONE) }
    });
    Contents { keys: keys.collect() }
}

#[test]
fn what_one_start_seals_the_next_unseals() {
    let bench = Bench::new();
    assert!(bench.start().unseal(0).unwrap().is_none(), "nothing is kept yet");
    bench.start().seal(&contents(3), 1).unwrap();
    bench.start().seal(&contents(2), 2).unwrap();
    let (generation, opened) = bench.start().unseal(2).unwrap().unwrap();
    assert_eq!((generation, opened.keys.len()), (2, 2));
    assert_eq!(opened.keys[1].public_key, contents(2).keys[1].public_key);
    // A generation is used once.
    let again = bench.start().seal(&contents(1), 2).unwrap_err();
    assert_eq!(again, CustodyError::NotNewer { asked: 2, kept: 2 });
}

#[test]
fn an_older_state_is_refused_where_the_fence_knows_better() {
    let bench = Bench::sealed(&[1, 2]);
    // The parent «loses» the newest.
    let newest = bench.world.blobs.lock().unwrap().remove(&2).unwrap();
    assert_eq!(bench.refused(2), CustodyError::Seal(SealError::OldGeneration { found: 1, oldest: 2 }));
    // Or offers the older under the newer's name.
    let older = bench.world.blobs.lock().unwrap()[&1].clone();
    bench.world.blobs.lock().unwrap().insert(2, older);
    assert_eq!(bench.refused(0), CustodyError::Seal(SealError::OldGeneration { found: 1, oldest: 2 }));
    bench.world.blobs.lock().unwrap().insert(2, newest);
    assert!(bench.start().unseal(2).is_ok());
}

#[test]
fn another_image_gets_no_data_key() {
    let bench = Bench::sealed(&[1]);
    let other = Pcrs::measure(b"boot", b"another application", MODULE_ID);
    let root = Authority::root(root_params()).unwrap();
    bench.world.kms.lock().unwrap().anchor = Some(Anchor::from_der(&root.der).unwrap());
    let nsm = Arc::new(Soft(SoftwareNsm::new(root, MODULE_ID, &other, Box::new(|| NOW))));
    let custody = Custody::new(Arc::clone(&bench.world) as _, nsm, bench.place.clone()).unwrap();
    assert_eq!(custody.unseal(0).map(|_| ()), Err(CustodyError::Service(ServiceError::Denied)));
    assert_eq!(custody.seal(&contents(1), 9), Err(CustodyError::Service(ServiceError::Denied)));
}

#[test]
fn blobs_of_another_group_chain_or_key_are_refused() {
    let bench = Bench::sealed(&[1]);
    let unseal = |place: Place| bench.start_at(&place).unseal(0).map(|_| ()).unwrap_err();
    let error = unseal(Place { group: "beta".into(), ..bench.place.clone() });
    assert!(matches!(error, CustodyError::Seal(SealError::OtherGroup { .. })), "{error}");
    let error = unseal(Place { network: Bytes([6; 32]), ..bench.place.clone() });
    assert!(matches!(error, CustodyError::Seal(SealError::OtherNetwork { .. })), "{error}");
    let other_arn = bench.world.create_key(None);
    let error = unseal(Place { key_arn: other_arn, ..bench.place.clone() });
    assert!(matches!(error, CustodyError::Seal(SealError::OtherKey { .. })), "{error}");
}

/// The wrapped key is exchanged for one that the attacker had KMS make, under a key of the attacker's own or under ours.
#[test]
fn a_swapped_wrapped_key_opens_nothing() {
    let bench = Bench::sealed(&[1]);
    let blob = bench.world.blobs.lock().unwrap()[&1].clone();
    let ours = seal::header(&blob, &bench.place, 0).unwrap().wrapped_key.as_ref().to_vec();
    let attackers = bench.world.create_key(None);
    let with = EncryptionContext { group: GROUP.into(), network: bench.place.network };
    for arn in [&attackers, &bench.place.key_arn] {
        let document =
            bench.nsm.attestation(None, None, Some(casemate_vault::cms::RecipientKey::generate().unwrap().spki()));
        let made = bench.world.generate_data_key(arn, &document.unwrap(), &with).unwrap();
        assert_eq!(made.wrapped.len(), ours.len());
        let at = blob.windows(ours.len()).position(|window| window == ours).unwrap();
        let mut swapped = blob.clone();
        swapped[at..at + ours.len()].copy_from_slice(&made.wrapped);
        bench.world.blobs.lock().unwrap().insert(1, swapped);
        let error = bench.refused(0);
        let right =
            matches!(error, CustodyError::Seal(SealError::Decryption) | CustodyError::Service(ServiceError::Refused));
        assert!(right, "{arn}: {error}");
    }
}

#[test]
fn forged_and_changed_answers_of_kms_are_refused() {
    let bench = Bench::sealed(&[1]);
    // Another key's ARN: somebody else's KMS key answered.
    bench.world.tamper(|answer| answer.key_arn = answer.key_arn.replace("123456789012", "999999999999"));
    assert!(matches!(bench.refused(0), CustodyError::OtherKey { .. }));
    assert!(matches!(bench.start().seal(&contents(1), 2).unwrap_err(), CustodyError::OtherKey { .. }));
    // An answer for another start's key: replayed.
    let document =
        bench.nsm.attestation(None, None, Some(casemate_vault::cms::RecipientKey::generate().unwrap().spki()));
    *bench.world.tamper.lock().unwrap() = None;
    let with = EncryptionContext { group: GROUP.into(), network: bench.place.network };
    let old = bench.world.generate_data_key(&bench.place.key_arn, &document.unwrap(), &with).unwrap();
    bench.world.tamper(move |answer| answer.for_recipient.clone_from(&old.for_recipient));
    assert_eq!(bench.refused(0), CustodyError::Cms(CmsError::OtherRecipient));
    bench.world.tamper(|answer| answer.for_recipient.clear());
    assert_eq!(bench.refused(0), CustodyError::Cms(CmsError::Malformed));
    bench.world.tamper(|answer| answer.for_recipient[200] ^= 1);
    assert!(matches!(bench.refused(0), CustodyError::Cms(_) | CustodyError::Seal(SealError::Decryption)));
}

/// Remembers the key of this start, as every document shows it.
struct Spy(Arc<Soft>, Arc<Mutex<Vec<u8>>>);

impl Nsm for Spy {
    fn process(&self, request: NsmRequest) -> NsmResponse {
        if let NsmRequest::Attestation { public_key: Some(key), .. } = &request {
            *self.1.lock().unwrap() = key.to_vec();
        }
        self.0.0.process(request)
    }
}

/// The attacker can encrypt to the enclave's key: it stands in every document. A data key of the attacker's choice opens nothing
/// that was sealed, and a blob of the attacker's making needs the policy's KMS key to be unwrapped.
#[test]
fn a_data_key_of_the_attackers_own_is_of_no_use() {
    let bench = Bench::sealed(&[1]);
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let spy = Arc::new(Spy(Arc::clone(&bench.nsm), Arc::clone(&seen)));
    let spied = Custody::new(Arc::clone(&bench.world) as _, spy, bench.place.clone()).unwrap();
    bench.world.tamper(move |answer| {
        let spki = seen.lock().unwrap().clone();
        answer.for_recipient = casemate_local_kms::cms::seal(&[7; 32], &spki).unwrap();
    });
    assert_eq!(spied.unseal(0).map(|_| ()), Err(CustodyError::Seal(SealError::Decryption)));
    let short = Arc::new(Mutex::new(Vec::new()));
    let spy = Arc::new(Spy(Arc::clone(&bench.nsm), Arc::clone(&short)));
    let spied = Custody::new(Arc::clone(&bench.world) as _, spy, bench.place.clone()).unwrap();
    bench.world.tamper(move |answer| {
        let spki = short.lock().unwrap().clone();
        answer.for_recipient = casemate_local_kms::cms::seal(&[7; 16], &spki).unwrap();
    });
    assert_eq!(spied.unseal(0).map(|_| ()), Err(CustodyError::DataKeyLength { len: 16 }));
}

#[test]
fn a_broken_newest_blob_is_an_error_and_no_reason_to_go_back() {
    let bench = Bench::sealed(&[1, 2]);
    let half = bench.world.blobs.lock().unwrap()[&2][..50].to_vec();
    for broken in [vec![], vec![0; 100], half] {
        bench.world.blobs.lock().unwrap().insert(2, broken);
        assert!(matches!(bench.refused(0), CustodyError::Seal(_)));
    }
}
