//! Sealing and unsealing through a KMS, with a parent that lies in every way it can.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

mod common;

use std::sync::{Arc, Mutex};

use casemate_document::Anchor;
use casemate_nsm::{Authority, Pcrs, Request as NsmRequest, Response as NsmResponse, SoftwareNsm, root_params};
use casemate_protocol::Bytes;
use casemate_slashing::{SlashingHistory, Watermarks};
use casemate_vault::Nsm;
use casemate_vault::keys::cms::CmsError;
use casemate_vault::keys::custody::{Custody, CustodyError, EncryptionContext, ServiceError, Services, Unsealed};
use casemate_vault::keys::seal;
use casemate_vault::keys::seal::{Contents, SealBinding, SealError, SealedKey, SecretBytes};
use casemate_vault::signing::bls::SecretKey;
use common::{Bench, GROUP, MODULE_ID, NOW, Soft};

fn sealed(state_versions: &[u64]) -> Bench {
    let bench = Bench::new();
    for state_version in state_versions {
        bench.start().seal(&contents(u8::try_from(*state_version).unwrap()), *state_version).unwrap();
    }
    bench
}

fn refused(bench: &Bench, oldest: u64) -> CustodyError {
    bench.start().unseal(oldest).map(|_| ()).unwrap_err()
}

fn contents(n: u8) -> Contents {
    let keys = (1..=n).map(|n| {
        let secret = [n; 32];
        let public_key = SecretKey::from_be_bytes(&mut secret.clone()).unwrap().public_key();
        SealedKey {
            public_key,
            secret: Some(SecretBytes(secret)),
            history: SlashingHistory::Known(Watermarks::NONE),
            fee_recipient: None,
        }
    });
    Contents { keys: keys.collect(), ..Contents::default() }
}

#[test]
fn what_one_start_seals_the_next_unseals() {
    let bench = Bench::new();
    assert!(bench.start().unseal(0).unwrap().is_none(), "nothing is kept yet");
    bench.start().seal(&contents(3), 1).unwrap();
    bench.start().seal(&contents(2), 2).unwrap();
    let Unsealed { state_version, contents: opened, .. } = bench.start().unseal(2).unwrap().unwrap();
    assert_eq!((state_version, opened.keys.len()), (2, 2));
    assert_eq!(opened.keys[1].public_key, contents(2).keys[1].public_key);
    // A version is used once.
    let again = bench.start().seal(&contents(1), 2).unwrap_err();
    assert_eq!(again, CustodyError::NotNewer { asked: 2, kept: 2 });
}

#[test]
fn an_older_state_is_refused_where_the_fence_knows_better() {
    let bench = sealed(&[1, 2]);
    // The parent «loses» the newest.
    let newest = bench.world.blobs.lock().unwrap().remove(&2).unwrap();
    assert_eq!(refused(&bench, 2), CustodyError::Seal(SealError::OldState { found: 1, oldest: 2 }));
    // Or offers the older under the newer's name.
    let older = bench.world.blobs.lock().unwrap()[&1].clone();
    bench.world.blobs.lock().unwrap().insert(2, older);
    assert_eq!(refused(&bench, 0), CustodyError::Seal(SealError::OldState { found: 1, oldest: 2 }));
    bench.world.blobs.lock().unwrap().insert(2, newest);
    assert!(bench.start().unseal(2).is_ok());
}

#[test]
fn another_image_gets_no_data_key() {
    let bench = sealed(&[1]);
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
    let bench = sealed(&[1]);
    let unseal = |place: SealBinding| bench.start_at(&place).unseal(0).map(|_| ()).unwrap_err();
    let error = unseal(SealBinding { group: "beta".into(), ..bench.place.clone() });
    assert!(matches!(error, CustodyError::Seal(SealError::OtherGroup { .. })), "{error}");
    let error = unseal(SealBinding { network: Bytes([6; 32]), ..bench.place.clone() });
    assert!(matches!(error, CustodyError::Seal(SealError::OtherNetwork { .. })), "{error}");
    let other_arn = bench.world.create_key(None);
    let error = unseal(SealBinding { key_arn: other_arn, ..bench.place.clone() });
    assert!(matches!(error, CustodyError::Seal(SealError::OtherKey { .. })), "{error}");
}

/// The wrapped key is exchanged for one that the attacker had KMS make, under a key of the attacker's own or under ours.
#[test]
fn a_swapped_wrapped_key_opens_nothing() {
    let bench = sealed(&[1]);
    let blob = bench.world.blobs.lock().unwrap()[&1].clone();
    let ours = seal::header(&blob, &bench.place, 0).unwrap().wrapped_key.as_ref().to_vec();
    let attackers = bench.world.create_key(None);
    let with = EncryptionContext { group: GROUP.into(), network: bench.place.network };
    for arn in [&attackers, &bench.place.key_arn] {
        let document = bench.nsm.attestation(
            None,
            None,
            Some(casemate_vault::keys::cms::RecipientKey::generate().unwrap().spki()),
        );
        let made = bench.world.generate_data_key(arn, &document.unwrap(), &with).unwrap();
        assert_eq!(made.wrapped.len(), ours.len());
        let at = blob.windows(ours.len()).position(|window| window == ours).unwrap();
        let mut swapped = blob.clone();
        swapped[at..at + ours.len()].copy_from_slice(&made.wrapped);
        bench.world.blobs.lock().unwrap().insert(1, swapped);
        let error = refused(&bench, 0);
        let right =
            matches!(error, CustodyError::Seal(SealError::Decryption) | CustodyError::Service(ServiceError::Refused));
        assert!(right, "{arn}: {error}");
    }
}

#[test]
fn forged_and_changed_answers_of_kms_are_refused() {
    let bench = sealed(&[1]);
    // Another key's ARN: somebody else's KMS key answered.
    bench.world.tamper(|answer| answer.key_arn = answer.key_arn.replace("123456789012", "999999999999"));
    assert!(matches!(refused(&bench, 0), CustodyError::OtherKey { .. }));
    assert!(matches!(bench.start().seal(&contents(1), 2).unwrap_err(), CustodyError::OtherKey { .. }));
    // An answer for another start's key: replayed.
    let document =
        bench.nsm.attestation(None, None, Some(casemate_vault::keys::cms::RecipientKey::generate().unwrap().spki()));
    *bench.world.tamper.lock().unwrap() = None;
    let with = EncryptionContext { group: GROUP.into(), network: bench.place.network };
    let old = bench.world.generate_data_key(&bench.place.key_arn, &document.unwrap(), &with).unwrap();
    bench.world.tamper(move |answer| answer.for_recipient.clone_from(&old.for_recipient));
    assert_eq!(refused(&bench, 0), CustodyError::Cms(CmsError::OtherRecipient));
    bench.world.tamper(|answer| answer.for_recipient.clear());
    assert_eq!(refused(&bench, 0), CustodyError::Cms(CmsError::Malformed));
    bench.world.tamper(|answer| answer.for_recipient[200] ^= 1);
    assert!(matches!(refused(&bench, 0), CustodyError::Cms(_) | CustodyError::Seal(SealError::Decryption)));
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
    let bench = sealed(&[1]);
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
    let bench = sealed(&[1, 2]);
    let half = bench.world.blobs.lock().unwrap()[&2][..50].to_vec();
    for broken in [vec![], vec![0; 100], half] {
        bench.world.blobs.lock().unwrap().insert(2, broken);
        assert!(matches!(refused(&bench, 0), CustodyError::Seal(_)));
    }
}
