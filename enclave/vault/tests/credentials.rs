//! Credentials of the fence's store in operators' commands: those who sign see which they are, and those alone are taken.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

mod common;

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_protocol::command::{
    Action, Command, CredentialsId, EncryptedSecrets, FENCE_HPKE_INFO, OperatorSignature, Outcome, RecordOrder,
    SignedCommand, StoreCredentials, signed_bytes,
};
use casemate_protocol::configuration::Operators;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{BoundedBytes, Bytes, Refusal, Reply, Request, Root, Statement};
use casemate_slashing::Limits;
use casemate_vault::keys::custody::ServiceError;
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::{
    Attestor, Clock, CommandProcessor, FenceParts, Identity, Keys, Loaded, Policy, SystemClock, Vault,
};
use common::fence::{GENESIS, Member, Memory, network};
use common::{Bench, GROUP};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};

fn operator() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap()
}

fn public() -> Bytes<32> {
    Bytes(operator().public_key().as_ref().try_into().unwrap())
}

/// An enclave of one operator, with the fence's record in memory.
struct Enclave {
    member: Member,
    /// What its document said: it gives few of them.
    hpke_key: HpkePublicKey,
    boot_nonce: Bytes<32>,
}

fn start(bench: &Bench, memory: &Memory) -> Enclave {
    let (network, clock) = (network(1000), Arc::new(SystemClock) as Arc<dyn Clock>);
    let keys = Keys::load(&mut [], |_, _| panic!("no key")).unwrap();
    let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
    let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, &network, &keys).unwrap();
    let operators = Operators { threshold: 1, keys: vec![public()] };
    let commands =
        CommandProcessor::new(bench.start(), Arc::clone(&bench.nsm) as _, operators, Vec::new(), Loaded::default());
    let (fence_gate, keeping) = FenceParts::with_record(Box::new(memory.clone())).split();
    let vault =
        Vault::new(network, keys, Limits::NONE, Policy::default(), Box::new(SystemClock), Box::new(NullJournal))
            .fenced_by(fence_gate, clock)
            .attested_by(attestor)
            .commanded_by(commands);
    let member = Member::run(vault, keeping);
    let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
    let Reply::Attestation { document, statement } = member.vault.handle(&Request::Attestation { nonce }) else {
        panic!("not attested")
    };
    let payload = casemate_protocol::cbor::cose_payload(document.as_ref()).unwrap();
    let document = aws_nitro_enclaves_nsm_api::api::AttestationDoc::from_binary(&payload).unwrap();
    let hpke_key = HpkePublicKey(document.public_key.unwrap().into_vec());
    let boot_nonce = Statement::decode(statement.as_ref()).unwrap().boot_nonce;
    Enclave { member, hpke_key, boot_nonce }
}

fn encrypted(enclave: &Enclave, clear: &[u8]) -> EncryptedSecrets {
    let (enc, ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256
        .seal(FENCE_HPKE_INFO, &enclave.boot_nonce.0, clear, &enclave.hpke_key)
        .unwrap();
    EncryptedSecrets { enc: Bytes(enc.0.try_into().unwrap()), ciphertext: BoundedBytes::new(ciphertext).unwrap() }
}

fn init(
    enclave: &Enclave,
    counter: u64,
    credentials: Option<&StoreCredentials>,
    credentials_id: Option<CredentialsId>,
) -> Result<Outcome, Refusal> {
    let credentials = credentials.map(|credentials| encrypted(enclave, &credentials.encode()));
    order(enclave, counter, Action::FenceInit { record: RecordOrder::New, credentials, credentials_id })
}

/// Exchanges the store's credentials for these.
fn exchange(enclave: &Enclave, counter: u64, credentials: &StoreCredentials) -> Result<Outcome, Refusal> {
    let credentials_id = credentials.id(sha256);
    let credentials = Some(encrypted(enclave, &credentials.encode()));
    order(enclave, counter, Action::FenceInit { record: RecordOrder::Keep, credentials, credentials_id })
}

fn order(enclave: &Enclave, counter: u64, action: Action) -> Result<Outcome, Refusal> {
    let command = Command::new(GROUP.into(), GENESIS, enclave.boot_nonce, counter, action);
    let bytes = command.encode().unwrap();
    let signature = Bytes(operator().sign(&signed_bytes(bytes.as_ref())).as_ref().try_into().unwrap());
    let signed = SignedCommand::new(bytes, vec![OperatorSignature { operator: public(), signature }]);
    match enclave.member.vault.handle(&Request::Command { envelope: signed.encode().unwrap() }) {
        Reply::Command(outcome) => Ok(outcome),
        Reply::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

fn sha256(bytes: &[u8]) -> Root {
    Bytes(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

#[test]
fn only_the_credentials_that_the_signers_were_shown_are_taken() {
    let (bench, memory) = (Bench::new(), Memory::default());
    let enclave = start(&bench, &memory);
    enclave.member.await_standing(StatedStatus::NoRecord);
    let access_key = |id: &str| Some(CredentialsId::AccessKey(id.into()));
    let dynamodb = StoreCredentials::Dynamodb { access_key_id: "AKIDOURS".into(), secret_access_key: "s".into() };
    let der = |byte: u8| BoundedBytes::new(vec![byte; 40]).unwrap();
    let etcd = StoreCredentials::Etcd { certificates: vec![der(1), der(2)], key: der(3) };
    let certificate = |byte: u8| Some(CredentialsId::Certificate(sha256(&[byte; 40])));
    let refused = [
        (Some(&dynamodb), access_key("AKIDTHEIRS"), "another access key"),
        (Some(&dynamodb), None, "credentials that nobody was shown"),
        (None, access_key("AKIDOURS"), "a name without credentials"),
        (Some(&dynamodb), certificate(1), "another kind"),
        (Some(&etcd), certificate(2), "the issuer's certificate, not the client's own"),
        (Some(&etcd), access_key("AKIDOURS"), "another kind"),
    ];
    for ((credentials, id, what), counter) in refused.into_iter().zip(1..) {
        assert_eq!(init(&enclave, counter, credentials, id), Err(Refusal::StoreCredentials), "{what}");
        assert_eq!(*memory.record.lock().unwrap(), None, "{what}");
    }
    assert_eq!(init(&enclave, 20, Some(&etcd), certificate(1)), Ok(Outcome::FenceReady));
    // The record is there now: without credentials none are named.
    assert_eq!(init(&enclave, 21, Some(&dynamodb), access_key("AKIDOURS")), Err(Refusal::FenceExists));
    assert_eq!(init(&enclave, 22, None, None), Err(Refusal::FenceExists));
}

/// Of a client whose key is this byte.
fn etcd(n: u8) -> StoreCredentials {
    let der = |byte: u8| BoundedBytes::new(vec![byte; 40]).unwrap();
    StoreCredentials::Etcd { certificates: vec![der(n)], key: der(n) }
}

/// Whose credentials these are.
fn number(credentials: &StoreCredentials) -> u8 {
    match credentials {
        StoreCredentials::Etcd { key, .. } => key.as_ref()[0],
        StoreCredentials::Dynamodb { .. } => panic!("of another store"),
    }
}

/// Whose are in the newest state that the parent has.
fn sealed(bench: &Bench) -> Option<u8> {
    bench.start().unseal(0).unwrap().unwrap().contents.store.as_ref().map(number)
}

/// With whose the store was opened last.
fn opened(memory: &Memory) -> Option<u8> {
    memory.opened.lock().unwrap().last().map(number)
}

#[test]
fn a_holder_exchanges_credentials_and_has_them_sealed_or_stays_with_the_old_ones() {
    let (bench, memory) = (Bench::new(), Memory::default());
    let enclave = start(&bench, &memory);
    enclave.member.await_standing(StatedStatus::NoRecord);
    assert_eq!(init(&enclave, 1, Some(&etcd(1)), etcd(1).id(sha256)), Ok(Outcome::FenceReady));
    enclave.member.await_standing(StatedStatus::Holding);
    assert_eq!(sealed(&bench), Some(1));
    assert_eq!(exchange(&enclave, 2, &etcd(2)), Ok(Outcome::FenceReady));
    assert_eq!((sealed(&bench), opened(&memory)), (Some(2), Some(2)));
    let refused = memory.record.lock().unwrap().unwrap().min_state_version;
    assert_eq!(refused, bench.world.blobs.lock().unwrap().keys().copied().max().unwrap(), "states without them");
    // What is not sealed is not in force: the store is asked with the old ones again.
    *bench.world.fault.lock().unwrap() = Some(ServiceError::Away);
    assert_eq!(exchange(&enclave, 3, &etcd(3)), Err(Refusal::NotSealed(Waiting::Away)));
    assert_eq!(opened(&memory), Some(2));
    *bench.world.fault.lock().unwrap() = None;
    // Kept by the parent and denied: the old ones are sealed over the new ones.
    *bench.world.denials.lock().unwrap() = 1;
    assert_eq!(exchange(&enclave, 4, &etcd(4)), Err(Refusal::MaybeSealed(Waiting::Refused)));
    assert_eq!((sealed(&bench), opened(&memory)), (Some(2), Some(2)));
    // A store that does not answer to them is asked with the old ones again.
    memory.away.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(exchange(&enclave, 5, &etcd(5)).is_err());
    assert_eq!(opened(&memory), Some(2));
}

#[test]
fn one_that_does_not_hold_the_fence_takes_credentials_and_seals_them_once_it_holds_it() {
    let (bench, memory) = (Bench::new(), Memory::default());
    let holder = start(&bench, &memory);
    holder.member.await_standing(StatedStatus::NoRecord);
    assert_eq!(init(&holder, 1, Some(&etcd(1)), etcd(1).id(sha256)), Ok(Outcome::FenceReady));
    holder.member.await_standing(StatedStatus::Holding);
    let standby = start(&bench, &memory);
    standby.member.await_standing(StatedStatus::Standby);
    assert_eq!(exchange(&standby, 1, &etcd(2)), Ok(Outcome::CredentialsTaken));
    standby.member.vault.settle();
    assert_eq!(sealed(&bench), Some(1), "of two that seal one would lose the other's changes");
    // The holder's next state comes in between, and does not undo it.
    assert_eq!(order(&holder, 2, Action::Handover), Ok(Outcome::HandedOver));
    standby.member.await_standing(StatedStatus::Holding);
    assert_eq!(sealed(&bench), Some(1));
    standby.member.vault.settle();
    assert_eq!(sealed(&bench), Some(2));
    // Once.
    let states = bench.world.blobs.lock().unwrap().len();
    standby.member.vault.settle();
    assert_eq!(bench.world.blobs.lock().unwrap().len(), states);
}
