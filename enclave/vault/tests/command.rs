//! Operators' commands: who may give them, what they change, and that it is sealed first.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

mod common;

use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_protocol::command::{
    Action, Command, EncryptedSecrets, HPKE_INFO, ImportedKey, KeyOutcome, MAX_KEYS, OperatorSignature, Outcome,
    SignedCommand, withdrawal_credentials,
};
use casemate_protocol::configuration::Operators;
use casemate_protocol::history::{Past, PastAttestation, PastBlock};
use casemate_protocol::network::NetworkFields;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, BoundedBytes, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName,
    Network, Preset, PublicKey, Refusal, Reply, Request, Root, SignRequest, Slot, Statement,
};
use casemate_slashing::{Limits, Watermarks};
use casemate_vault::custody::{ServiceError, Unsealed};
use casemate_vault::journal::Forgetful;
use casemate_vault::{Attestor, Clock, Deposits, Identity, Keys, Loaded, Office, Vault, bls::SecretKey};
use common::{Bench, GROUP};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};

const GENESIS: Root = Bytes([5; 32]);

struct FixedClock;

impl Clock for FixedClock {
    fn unix_ms(&self) -> Option<u64> {
        Some(1000 * 12_000)
    }
}

fn network() -> Network {
    NetworkFields {
        name: "test".into(),
        preset: Preset::Mainnet,
        genesis_time: 0,
        genesis_validators_root: GENESIS,
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
    }
    .try_into()
    .unwrap()
}

fn operator(n: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[n; 32]).unwrap()
}

fn public(operator: &Ed25519KeyPair) -> Bytes<32> {
    Bytes(operator.public_key().as_ref().try_into().unwrap())
}

const ADDRESS: Bytes<20> = Bytes([0xaa; 20]);

/// An enclave whose configuration names three operators, of whom two must sign.
struct Enclave<'a> {
    bench: &'a Bench,
    vault: Vault,
    /// What its first document said: its HPKE key and its boot nonce.
    boot: std::cell::OnceCell<(Bytes<32>, Bytes<32>)>,
}

impl<'a> Enclave<'a> {
    /// Starts with what the parent keeps.
    fn start(bench: &'a Bench) -> Self {
        let custody = bench.start();
        let Unsealed { generation, contents, .. } = custody.unseal(0).unwrap().unwrap_or_default();
        let loaded = Loaded { generation, ..Loaded::default() };
        let keys = Keys::unsealed(contents, |_, _, history| history).unwrap();
        let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
        let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, &network(), &keys).unwrap();
        let operators = Operators { threshold: 2, keys: [1, 2, 3].map(|n| public(&operator(n))).to_vec() };
        let office = Office::new(custody, Arc::clone(&bench.nsm) as _, operators, vec![ADDRESS], loaded);
        let policy =
            casemate_vault::Policy { deposits: Deposits::To(vec![ADDRESS]), ..casemate_vault::Policy::default() };
        let vault = Vault::new(network(), keys, Limits::NONE, policy, Box::new(FixedClock), Box::new(Forgetful))
            .attested_by(attestor)
            .commanded_by(office);
        Self { bench, vault, boot: std::cell::OnceCell::new() }
    }

    fn attested(&self) -> (Bytes<32>, Statement) {
        let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
        let Reply::Attestation { document, statement } = self.vault.handle(&Request::Attestation { nonce }) else {
            panic!("not attested")
        };
        let payload = casemate_protocol::cbor::cose_payload(document.as_ref()).unwrap();
        let document = aws_nitro_enclaves_nsm_api::api::AttestationDoc::from_binary(&payload).unwrap();
        let key = document.public_key.unwrap().into_vec();
        (Bytes(key.try_into().unwrap()), Statement::decode(statement.as_ref()).unwrap())
    }

    fn boot(&self) -> (Bytes<32>, Bytes<32>) {
        *self.boot.get_or_init(|| {
            let (hpke_key, statement) = self.attested();
            (hpke_key, statement.boot_nonce)
        })
    }

    fn import(&self, keys: &[(ImportedKey, [u8; 32])]) -> Action {
        let (hpke_key, boot_nonce) = self.boot();
        let clear: Vec<u8> = keys.iter().flat_map(|(_, secret)| *secret).collect();
        let (enc, ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256
            .seal(HPKE_INFO, &boot_nonce.0, &clear, &HpkePublicKey(hpke_key.0.to_vec()))
            .unwrap();
        let secrets = EncryptedSecrets {
            enc: Bytes(enc.0.try_into().unwrap()),
            ciphertext: BoundedBytes::new(ciphertext).unwrap(),
        };
        Action::Import { keys: keys.iter().map(|(key, _)| *key).collect(), secrets }
    }

    fn command(&self, counter: u64, action: Action) -> Command {
        Command::new(GROUP.into(), GENESIS, self.boot().1, counter, action)
    }

    fn send(&self, command: &Command, signers: &[u8]) -> Result<Outcome, Refusal> {
        let bytes = command.encode().unwrap();
        let sign = |n: &u8| OperatorSignature {
            operator: public(&operator(*n)),
            signature: Bytes(
                operator(*n)
                    .sign(&casemate_protocol::command::signed_bytes(bytes.as_ref()))
                    .as_ref()
                    .try_into()
                    .unwrap(),
            ),
        };
        self.send_signed(&SignedCommand::new(bytes.clone(), signers.iter().map(sign).collect()))
    }

    fn send_signed(&self, signed: &SignedCommand) -> Result<Outcome, Refusal> {
        match self.vault.handle(&Request::Command { envelope: signed.encode().unwrap() }) {
            Reply::Command(outcome) => Ok(outcome),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn listed(&self) -> Vec<PublicKey> {
        match self.vault.handle(&Request::PublicKeys { start: 0 }) {
            Reply::PublicKeys { keys, .. } => keys,
            other => panic!("{other:?}"),
        }
    }

    fn sign_block(&self, public_key: PublicKey, slot: u64) -> Reply {
        let header = BeaconBlockHeader {
            slot: Slot(slot),
            proposer_index: 1,
            parent_root: Bytes([1; 32]),
            state_root: Bytes([2; 32]),
            body_root: Bytes([3; 32]),
        };
        self.sign_duty(public_key, Duty::Block(header))
    }

    fn sign_duty(&self, public_key: PublicKey, duty: Duty) -> Reply {
        let version = Bytes([0; 4]);
        let fork_info = ForkInfo {
            previous_version: version,
            current_version: version,
            epoch: Epoch(0),
            genesis_validators_root: GENESIS,
        };
        let request = SignRequest { public_key, duty, fork_info: Some(fork_info), signing_root: None };
        self.vault.handle(&Request::Sign(request))
    }

    fn blobs(&self) -> Vec<u64> {
        self.bench.world.blobs.lock().unwrap().keys().copied().collect()
    }
}

fn key(n: u8, history: Option<Past>) -> (ImportedKey, [u8; 32]) {
    let public_key = SecretKey::from_be_bytes(&mut [n; 32]).unwrap().public_key();
    (ImportedKey { public_key, history }, [n; 32])
}

/// It has signed nothing.
#[allow(clippy::unnecessary_wraps, reason = "it stands where there may be none")]
fn new() -> Option<Past> {
    Some(Past::default())
}

#[allow(clippy::unnecessary_wraps, reason = "it stands where there may be none")]
fn past(slot: u64) -> Option<Past> {
    Some(Past {
        block: Some(PastBlock { slot: Slot(slot), signing_root: None }),
        attestation: Some(PastAttestation { source: Epoch(1), target: Epoch(2), signing_root: None }),
    })
}

#[test]
fn imported_keys_sign_above_their_past_and_are_there_at_the_next_start() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    assert!(enclave.listed().is_empty());
    let before = enclave.attested().1;
    let keys = [key(1, past(500)), key(2, new()), key(1, past(600))];
    let done = enclave.send(&enclave.command(1, enclave.import(&keys)), &[1, 3]);
    let outcomes = vec![KeyOutcome::Imported, KeyOutcome::Imported, KeyOutcome::Duplicate];
    assert_eq!(done, Ok(Outcome::Imported { keys: outcomes }));
    assert_eq!(enclave.listed(), [keys[0].0.public_key, keys[1].0.public_key]);
    assert_eq!(enclave.blobs(), [1]);
    // The statement names them at once.
    let after = enclave.attested().1;
    assert_eq!((before.public_keys.count, after.public_keys.count), (0, 2));
    assert_eq!(before.boot_nonce, after.boot_nonce);

    let next = Enclave::start(&bench);
    for enclave in [&enclave, &next] {
        let first = keys[0].0.public_key;
        assert!(matches!(enclave.sign_block(first, 600), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
        assert!(matches!(enclave.sign_block(first, 601), Reply::Signature(_)));
        assert!(matches!(enclave.sign_block(keys[1].0.public_key, 1), Reply::Signature(_)));
    }
    assert_ne!(next.attested().1.boot_nonce, after.boot_nonce);
}

#[test]
fn what_a_key_has_signed_here_goes_into_the_next_sealing() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let first = key(1, new()).0.public_key;
    enclave.send(&enclave.command(1, enclave.import(&[key(1, new())])), &[1, 2]).unwrap();
    assert!(matches!(enclave.sign_block(first, 700), Reply::Signature(_)));
    enclave.send(&enclave.command(2, enclave.import(&[key(2, new())])), &[1, 2]).unwrap();
    assert_eq!(enclave.blobs(), [1, 2]);
    // The key is the same while others come: what it signs meanwhile binds it.
    assert!(matches!(enclave.sign_block(first, 800), Reply::Signature(_)));
    assert!(matches!(enclave.sign_block(first, 750), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
    let next = Enclave::start(&bench);
    assert!(matches!(next.sign_block(first, 700), Reply::Signature(_)), "the very same block");
    assert!(matches!(next.sign_block(first, 699), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
}

#[test]
fn importing_again_only_raises() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let first = key(1, new()).0.public_key;
    let import =
        |counter, past| enclave.send(&enclave.command(counter, enclave.import(&[key(1, past)])), &[1, 2]).unwrap();
    import(1, past(500));
    for (counter, past) in [(2, past(400)), (3, None), (5, new())] {
        assert_eq!(import(counter, past), Outcome::Imported { keys: vec![KeyOutcome::Duplicate] });
        assert!(matches!(enclave.sign_block(first, 500), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
    }
    import(6, past(600));
    assert!(matches!(enclave.sign_block(first, 600), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
    assert!(matches!(enclave.sign_block(first, 601), Reply::Signature(_)));
}

#[test]
fn a_deleted_key_signs_nothing_and_comes_back_to_its_past() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let (first, second) = (key(1, new()).0.public_key, key(2, new()).0.public_key);
    enclave.send(&enclave.command(1, enclave.import(&[key(1, new()), key(2, new())])), &[1, 2]).unwrap();
    assert!(matches!(enclave.sign_block(first, 700), Reply::Signature(_)));
    let delete = Action::Delete { keys: vec![first, Bytes([1; 48])] };
    let outcome = enclave.send(&enclave.command(2, delete), &[1, 2]).unwrap();
    assert_eq!(outcome, Outcome::Deleted { keys: vec![KeyOutcome::Deleted, KeyOutcome::NotFound] });
    for enclave in [&enclave, &Enclave::start(&bench)] {
        assert_eq!(enclave.listed(), [second]);
        assert_eq!(enclave.sign_block(first, 701), Reply::Refused(Refusal::UnknownKey));
    }
    // Neither here nor after another start is its past forgotten, whatever the import says.
    let again = |enclave: &Enclave, counter| {
        let import = enclave.import(&[key(1, new())]);
        let outcome = enclave.send(&enclave.command(counter, import), &[1, 2]).unwrap();
        assert_eq!(outcome, Outcome::Imported { keys: vec![KeyOutcome::Imported] });
        assert!(matches!(enclave.sign_block(first, 699), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
        assert!(matches!(enclave.sign_block(first, 701), Reply::Signature(_)));
    };
    again(&Enclave::start(&bench), 1);
    let enclave = Enclave::start(&bench);
    enclave.send(&enclave.command(1, Action::Delete { keys: vec![first] }), &[1, 2]).unwrap();
    again(&enclave, 2);
}

#[test]
fn secret_keys_of_other_public_keys_are_errors_of_their_own() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let (wrong, zero) = ((key(1, new()).0, [2; 32]), (key(3, new()).0, [0; 32]));
    let outcome = enclave.send(&enclave.command(1, enclave.import(&[wrong, key(4, new()), zero])), &[1, 2]).unwrap();
    let outcomes = vec![KeyOutcome::WrongSecret, KeyOutcome::Imported, KeyOutcome::WrongSecret];
    assert_eq!(outcome, Outcome::Imported { keys: outcomes });
    assert_eq!(enclave.listed(), [key(4, new()).0.public_key]);
}

#[test]
fn a_history_that_cannot_be_is_an_error_and_silences_nobody() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    // Slot 1000, epoch 31: the next slot may have been signed, nothing beyond it.
    let with = |n: u8, slot: u64, source: u64, target: u64| {
        let attestation = PastAttestation { source: Epoch(source), target: Epoch(target), signing_root: None };
        let block = PastBlock { slot: Slot(slot), signing_root: None };
        key(n, Some(Past { block: Some(block), attestation: Some(attestation) }))
    };
    let held = key(1, new()).0.public_key;
    enclave.send(&enclave.command(1, enclave.import(&[key(1, new())])), &[1, 2]).unwrap();
    let keys =
        [with(2, 1002, 1, 2), with(3, 1, 1, 32), with(4, 1, 3, 2), with(5, 1001, 31, 31), with(1, 1, 1, 9_999_999)];
    let outcome = enclave.send(&enclave.command(2, enclave.import(&keys)), &[1, 2]).unwrap();
    let impossible = KeyOutcome::ImpossibleHistory;
    let keys = vec![impossible, impossible, impossible, KeyOutcome::Imported, impossible];
    assert_eq!(outcome, Outcome::Imported { keys });
    assert_eq!(enclave.listed().len(), 2);
    assert!(matches!(enclave.sign_block(held, 1), Reply::Signature(_)));
}

#[test]
fn deposits_of_held_keys_are_signed_again() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let credentials = withdrawal_credentials(ADDRESS, true);
    let amount = 64_000_000_000;
    let generate = Action::Generate { count: 2, withdrawal_credentials: credentials, amount };
    let Outcome::Generated { keys } = enclave.send(&enclave.command(1, generate), &[1, 2]).unwrap() else { panic!() };
    let again = |counter, keys: Vec<PublicKey>, credentials| {
        let action = Action::Deposit { keys, withdrawal_credentials: credentials, amount };
        enclave.send(&enclave.command(counter, action), &[1, 2])
    };
    let public_keys: Vec<PublicKey> = keys.iter().map(|key| key.public_key).collect();
    assert_eq!(again(2, public_keys.clone(), credentials), Ok(Outcome::Deposited { keys }));
    let other = withdrawal_credentials(Bytes([0xab; 20]), true);
    assert_eq!(again(3, public_keys, other), Err(Refusal::WithdrawalNotAllowed(other)));
    assert_eq!(again(4, vec![Bytes([9; 48])], credentials), Err(Refusal::KeyNotHeld(Bytes([9; 48]))));
    assert_eq!(enclave.blobs(), [1], "nothing has changed");
}

#[test]
fn generated_keys_have_deposits_for_the_measured_address_alone() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let generate = |address, compounding, amount| Action::Generate {
        count: 3,
        withdrawal_credentials: withdrawal_credentials(address, compounding),
        amount,
    };
    let ask = |counter, action| enclave.send(&enclave.command(counter, action), &[1, 2]);
    let credentials = withdrawal_credentials(ADDRESS, false);
    let Outcome::Generated { keys } = ask(1, generate(ADDRESS, false, 32_000_000_000)).unwrap() else { panic!() };
    assert_eq!(enclave.listed(), keys.iter().map(|key| key.public_key).collect::<Vec<_>>());
    // blst itself verifies them: root of the deposit message, in the deposit domain.
    let deposit = Duty::Deposit {
        public_key: keys[0].public_key,
        withdrawal_credentials: credentials,
        amount: 32_000_000_000,
        genesis_fork_version: Bytes([0; 4]),
    };
    let root = casemate_vault::signing_root::compute(&deposit, None, &network()).unwrap();
    let public_key = blst::min_pk::PublicKey::from_bytes(&keys[0].public_key.0).unwrap();
    let signature = blst::min_pk::Signature::from_bytes(&keys[0].deposit_signature.0).unwrap();
    let suite = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
    assert_eq!(signature.verify(true, &root.0, suite, &[], &public_key, true), blst::BLST_ERROR::BLST_SUCCESS);
    assert_eq!(Enclave::start(&bench).listed(), enclave.listed());

    assert!(ask(2, generate(ADDRESS, true, 2_048_000_000_000)).is_ok());
    let other = Bytes([0xab; 20]);
    let refused = Refusal::WithdrawalNotAllowed(withdrawal_credentials(other, false));
    assert_eq!(ask(3, generate(other, false, 32_000_000_000)), Err(refused));
    let amount = |gwei, max| Err(Refusal::DepositAmount { gwei, min: 1_000_000_000, max });
    assert_eq!(ask(4, generate(ADDRESS, false, 999_999_999)), amount(999_999_999, 32_000_000_000));
    assert_eq!(ask(5, generate(ADDRESS, false, 32_000_000_001)), amount(32_000_000_001, 32_000_000_000));
    let max = 2_048_000_000_000;
    assert_eq!(ask(6, generate(ADDRESS, true, max + 1)), amount(max + 1, max));
    let bls = Action::Generate { count: 1, withdrawal_credentials: Root::ZERO, amount: 32_000_000_000 };
    assert_eq!(ask(7, bls), Err(Refusal::WithdrawalNotAllowed(Root::ZERO)));
    assert_eq!(enclave.listed().len(), 6);
}

#[test]
fn only_enough_of_the_named_operators_command_and_each_command_once() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let import = enclave.import(&[key(1, new())]);
    let command = enclave.command(5, import.clone());
    let send = |signers: &[u8]| enclave.send(&command, signers);
    let few = |signatures| Err(Refusal::TooFewSignatures { signatures, threshold: 2 });
    assert_eq!(send(&[]), few(0));
    assert_eq!(send(&[2]), few(1));
    // One twice, one who is not named: not even beside enough good ones.
    let bad = |n| Err(Refusal::CommandSignature { operator: public(&operator(n)) });
    assert_eq!(send(&[2, 2]), bad(2));
    assert_eq!(send(&[1, 2, 4]), bad(4));
    // A good signature over another command.
    let bytes = command.encode().unwrap();
    let signature = OperatorSignature {
        operator: public(&operator(1)),
        signature: Bytes(operator(1).sign(bytes.as_ref()).as_ref().try_into().unwrap()),
    };
    let without_domain = SignedCommand::new(bytes, vec![signature]);
    assert_eq!(enclave.send_signed(&without_domain), bad(1));
    // For another group, chain, boot.
    let nonce = enclave.attested().1.boot_nonce;
    for other in [
        Command::new("beta".into(), GENESIS, nonce, 5, import.clone()),
        Command::new(GROUP.into(), Bytes([6; 32]), nonce, 5, import.clone()),
        Command::new(GROUP.into(), GENESIS, Enclave::start(&bench).attested().1.boot_nonce, 5, import.clone()),
    ] {
        assert_eq!(enclave.send(&other, &[1, 2]), Err(Refusal::CommandForAnother));
    }
    // Secret keys for another enclave.
    let foreign = Enclave::start(&bench).import(&[key(1, new())]);
    assert_eq!(enclave.send(&enclave.command(1, foreign), &[1, 2]), Err(Refusal::SecretsNotOpened));
    assert!(enclave.listed().is_empty() && enclave.blobs().is_empty());
    // And now it is carried out; once.
    assert!(send(&[3, 2]).is_ok());
    assert_eq!(send(&[3, 2]), Err(Refusal::CommandCounter { counter: 5, last: 5 }));
    assert_eq!(
        enclave.send(&enclave.command(4, import), &[1, 2]),
        Err(Refusal::CommandCounter { counter: 4, last: 5 })
    );
    assert_eq!(enclave.blobs(), [1]);
    // Garbage.
    let garbage = SignedCommand::new(BoundedBytes::new(vec![0xa0]).unwrap(), vec![]);
    assert_eq!(enclave.send_signed(&garbage), few(0));
    let envelope = BoundedBytes::new(vec![1, 2, 3]).unwrap();
    assert_eq!(enclave.vault.handle(&Request::Command { envelope }), Reply::Refused(Refusal::MalformedCommand));
}

#[test]
fn what_cannot_be_sealed_does_not_happen() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let import = enclave.import(&[key(1, new())]);
    let nonce = enclave.attested().1.boot_nonce;
    let command = |counter| Command::new(GROUP.into(), GENESIS, nonce, counter, import.clone());
    for (counter, fault, waiting) in [
        (1, ServiceError::Away, Waiting::Away),
        (2, ServiceError::Credentials, Waiting::Credentials),
        (3, ServiceError::Denied, Waiting::Denied),
        (4, ServiceError::Refused, Waiting::Refused),
    ] {
        *bench.world.fault.lock().unwrap() = Some(fault);
        let refused = enclave.send(&command(counter), &[1, 2]);
        assert_eq!(refused, Err(Refusal::NotSealed(waiting)));
        assert!(enclave.listed().is_empty());
        assert_eq!(enclave.sign_block(key(1, new()).0.public_key, 1), Reply::Refused(Refusal::UnknownKey));
    }
    *bench.world.fault.lock().unwrap() = None;
    assert_eq!(enclave.attested().1.public_keys.count, 0);
    assert!(enclave.send(&command(5), &[1, 2]).is_ok());
    assert_eq!(enclave.listed().len(), 1);
}

#[test]
fn a_state_of_another_enclave_is_neither_overwritten_nor_passed_over() {
    let bench = Bench::new();
    let (one, other) = (Enclave::start(&bench), Enclave::start(&bench));
    one.send(&one.command(1, one.import(&[key(1, new())])), &[1, 2]).unwrap();
    let import = other.import(&[key(2, new())]);
    let refused = other.send(&other.command(1, import), &[1, 2]);
    assert_eq!(refused, Err(Refusal::OtherState { kept: 1, ours: 0 }));
    assert!(other.listed().is_empty());
    // Started anew it holds both.
    let other = Enclave::start(&bench);
    other.send(&other.command(1, other.import(&[key(2, new())])), &[1, 2]).unwrap();
    assert_eq!((other.listed().len(), one.blobs()), (2, vec![1, 2]));
    // A parent that invents the last of all generations keeps nothing out for good.
    bench.world.blobs.lock().unwrap().insert(u64::MAX, vec![]);
    let delete = Action::Delete { keys: vec![key(1, new()).0.public_key] };
    let refused = other.send(&other.command(2, delete.clone()), &[1, 2]);
    assert_eq!(refused, Err(Refusal::OtherState { kept: u64::MAX, ours: 2 }));
    bench.world.blobs.lock().unwrap().remove(&u64::MAX);
    other.send(&other.command(3, delete), &[1, 2]).unwrap();
    assert_eq!(one.blobs(), [1, 2, 3]);
}

#[test]
fn a_state_that_the_parent_keeps_and_denies_is_sealed_over_or_told() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let first = key(1, new()).0.public_key;
    enclave.send(&enclave.command(1, enclave.import(&[key(1, new())])), &[1, 2]).unwrap();
    // Once: the state before is sealed over it, so the key is not there after the next start either.
    *bench.world.denials.lock().unwrap() = 1;
    let refused = enclave.send(&enclave.command(2, enclave.import(&[key(2, new())])), &[1, 2]);
    assert_eq!(refused, Err(Refusal::NotSealed(Waiting::Refused)));
    assert_eq!((enclave.listed(), enclave.blobs()), (vec![first], vec![1, 2, 3]));
    assert_eq!(Enclave::start(&bench).listed(), [first]);
    // Always: nobody can know, and the answer says so.
    *bench.world.denials.lock().unwrap() = 100;
    let refused = enclave.send(&enclave.command(3, enclave.import(&[key(3, new())])), &[1, 2]);
    assert_eq!(refused, Err(Refusal::MaybeSealed(Waiting::Refused)));
    assert_eq!(enclave.listed(), [first]);
    let delete = Action::Delete { keys: vec![first] };
    assert_eq!(enclave.send(&enclave.command(4, delete), &[1, 2]), Err(Refusal::MaybeSealed(Waiting::Refused)));
    assert!(matches!(enclave.sign_block(first, 1), Reply::Signature(_)), "it is held on");
    *bench.world.denials.lock().unwrap() = 0;
    enclave.send(&enclave.command(5, enclave.import(&[key(4, new())])), &[1, 2]).unwrap();
    assert_eq!(Enclave::start(&bench).listed(), enclave.listed());
}

#[test]
fn where_nobody_knows_the_past_it_ends_with_the_import() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let (waived, secret) = key(1, None);
    enclave.send(&enclave.command(1, enclave.import(&[(waived, secret)])), &[1, 2]).unwrap();
    // Slot 1000 now: the next one could have been signed elsewhere.
    assert!(matches!(enclave.sign_block(waived.public_key, 1001), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
    let vote = |target| {
        let checkpoint = |epoch| Checkpoint { epoch: Epoch(epoch), root: Bytes([1; 32]) };
        let data = AttestationData {
            slot: Slot(1000),
            index: 0,
            beacon_block_root: Bytes([1; 32]),
            source: checkpoint(31),
            target: checkpoint(target),
        };
        enclave.sign_duty(waived.public_key, Duty::Attestation(data))
    };
    assert!(matches!(vote(31), Reply::Refused(Refusal::TargetNotAboveLast { .. })));
}

#[test]
fn exits_and_deposits_are_signed_as_the_configuration_allows() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let public_key = key(1, new()).0.public_key;
    enclave.send(&enclave.command(1, enclave.import(&[key(1, new())])), &[1, 2]).unwrap();
    let deposit = |address| Duty::Deposit {
        public_key,
        withdrawal_credentials: withdrawal_credentials(address, false),
        amount: 1_000_000_000,
        genesis_fork_version: Bytes([0; 4]),
    };
    assert!(matches!(enclave.sign_duty(public_key, deposit(ADDRESS)), Reply::Signature(_)));
    let foreign = Refusal::WithdrawalNotAllowed(withdrawal_credentials(Bytes([0xde; 20]), false));
    assert_eq!(enclave.sign_duty(public_key, deposit(Bytes([0xde; 20]))), Reply::Refused(foreign));
    let exit = Duty::VoluntaryExit { epoch: Epoch(1), validator_index: 1 };
    assert_eq!(enclave.sign_duty(public_key, exit), Reply::Refused(Refusal::ExitNotAllowed));
}

#[test]
fn as_many_keys_as_a_command_takes() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let keys: Vec<_> = (1..=MAX_KEYS)
        .map(|n| {
            let mut secret = [0; 32];
            secret[24..].copy_from_slice(&(n as u64).to_be_bytes());
            let public_key = SecretKey::from_be_bytes(&mut secret.clone()).unwrap().public_key();
            (ImportedKey { public_key, history: past(1001) }, secret)
        })
        .collect();
    enclave.send(&enclave.command(1, enclave.import(&keys)), &[1, 2, 3]).unwrap();
    assert_eq!(Enclave::start(&bench).listed().len(), MAX_KEYS);
}

#[test]
fn without_operators_there_are_no_commands() {
    let bench = Bench::new();
    let custody = bench.start();
    let keys = Keys::default();
    let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
    let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, &network(), &keys).unwrap();
    let office = Office::new(custody, Arc::clone(&bench.nsm) as _, Operators::default(), vec![], Loaded::default());
    let policy = casemate_vault::Policy::default();
    let vault = Vault::new(network(), keys, Limits::NONE, policy, Box::new(FixedClock), Box::new(Forgetful));
    let envelope = SignedCommand::new(BoundedBytes::new(vec![0xa0]).unwrap(), vec![]).encode().unwrap();
    let command = Request::Command { envelope };
    assert_eq!(vault.handle(&command), Reply::Refused(Refusal::NoOperators));
    assert_eq!(vault.attested_by(attestor).commanded_by(office).handle(&command), Reply::Refused(Refusal::NoOperators));
    assert_eq!(Watermarks::NONE, Watermarks::from(Past::default()));
}
