//! Operators' commands: who may give them, what they change, and that it is sealed first.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

mod common;

use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use casemate_protocol::command::{
    Action, ActionKind, Command, EncryptedSecrets, ExitOrder, HPKE_INFO, ImportedKey, KeyHistory, KeyOutcome, MAX_KEYS,
    OperatorSignature, Outcome, SignedCommand, withdrawal_credentials,
};
use casemate_protocol::configuration::{Operators, Window};
use casemate_protocol::frame::{KeystoreToImport, Password};
use casemate_protocol::key_page::{KeyDetails, Origin, PendingExit};
use casemate_protocol::log::Message;
use casemate_protocol::network::NetworkFields;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::watermarks::{AttestationMark, BlockMark, Watermarks};
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, BoundedBytes, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName,
    Network, Preset, PublicKey, Refusal, Reply, Request, Root, SignRequest, Slot, Statement,
};
use casemate_slashing::Limits;
use casemate_vault::keys::custody::{ServiceError, Unsealed};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::signing::bls::SecretKey;
use casemate_vault::{Attestor, Clock, CommandProcessor, Deposits, Identity, Keys, Loaded, Vault};
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
        Self::start_with(bench, &casemate_vault::Policy::default())
    }

    fn start_with(bench: &'a Bench, policy: &casemate_vault::Policy) -> Self {
        let custody = bench.start();
        let Unsealed { state_version, contents, .. } = custody.unseal(0).unwrap().unwrap_or_default();
        let loaded = Loaded { state_version, ..Loaded::default() };
        let keys = Keys::unsealed(contents, |_, _, history| history).unwrap();
        let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
        let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, &network(), &keys).unwrap();
        let operators = Operators { threshold: 2, keys: [1, 2, 3].map(|n| public(&operator(n))).to_vec() };
        let commands = CommandProcessor::new(custody, Arc::clone(&bench.nsm) as _, operators, vec![ADDRESS], loaded);
        // Slots and epochs tell the tests' stories here: any has its time.
        let deposits = Deposits::To(vec![ADDRESS]);
        let policy = casemate_vault::Policy { deposits, window: Window::ANY, ..policy.clone() };
        let vault = Vault::new(network(), keys, Limits::NONE, policy, Box::new(FixedClock), Box::new(NullJournal))
            .attested_by(attestor)
            .commanded_by(commands);
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
        let request =
            SignRequest { public_key, duty, fork_info: Some(fork_info), signing_root: None, proofs: Vec::new() };
        self.vault.handle(&Request::Sign(request))
    }

    fn blobs(&self) -> Vec<u64> {
        self.bench.world.blobs.lock().unwrap().keys().copied().collect()
    }
}

fn key(n: u8, history: Option<Watermarks>) -> (ImportedKey, [u8; 32]) {
    let public_key = SecretKey::from_be_bytes(&mut [n; 32]).unwrap().public_key();
    (ImportedKey { public_key, history }, [n; 32])
}

/// It has signed nothing.
#[allow(clippy::unnecessary_wraps, reason = "it stands where there may be none")]
fn new() -> Option<Watermarks> {
    Some(Watermarks::default())
}

#[allow(clippy::unnecessary_wraps, reason = "it stands where there may be none")]
fn past(slot: u64) -> Option<Watermarks> {
    Some(Watermarks {
        block: Some(BlockMark { slot: Slot(slot), signing_root: None }),
        attestation: Some(AttestationMark { source: Epoch(1), target: Epoch(2), signing_root: None }),
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
        assert!(matches!(enclave.sign_block(first, 600), Reply::Refused(Refusal::BlockNotAboveHistory { .. })));
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
        assert!(matches!(enclave.sign_block(first, 500), Reply::Refused(Refusal::BlockNotAboveHistory { .. })));
    }
    import(6, past(600));
    assert!(matches!(enclave.sign_block(first, 600), Reply::Refused(Refusal::BlockNotAboveHistory { .. })));
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
        let attestation = AttestationMark { source: Epoch(source), target: Epoch(target), signing_root: None };
        let block = BlockMark { slot: Slot(slot), signing_root: None };
        key(n, Some(Watermarks { block: Some(block), attestation: Some(attestation) }))
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
    let root = casemate_vault::signing::signing_root::compute(&deposit, None, &network()).unwrap();
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
    // A parent that invents the last of all state_versions keeps nothing out for good.
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
    assert!(matches!(
        enclave.sign_block(waived.public_key, 1001),
        Reply::Refused(Refusal::BlockNotAboveHistory { .. })
    ));
    let vote = |target| {
        let checkpoint = |epoch| Checkpoint { epoch: Epoch(epoch), root: Bytes([1; 32]) };
        let data = AttestationData {
            slot: Slot(1000),
            index: 0,
            beacon_block_root: Bytes([1; 32]),
            source: checkpoint(30),
            target: checkpoint(target),
        };
        enclave.sign_duty(waived.public_key, Duty::Attestation(data))
    };
    assert!(matches!(vote(31), Reply::Refused(Refusal::TargetNotAboveHistory { .. })));
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
    let commands =
        CommandProcessor::new(custody, Arc::clone(&bench.nsm) as _, Operators::default(), vec![], Loaded::default());
    let policy = casemate_vault::Policy::default();
    let vault = Vault::new(network(), keys, Limits::NONE, policy, Box::new(FixedClock), Box::new(NullJournal));
    let envelope = SignedCommand::new(BoundedBytes::new(vec![0xa0]).unwrap(), vec![]).encode().unwrap();
    let command = Request::Command { envelope };
    assert_eq!(vault.handle(&command), Reply::Refused(Refusal::NoOperators));
    assert_eq!(
        vault.attested_by(attestor).commanded_by(commands).handle(&command),
        Reply::Refused(Refusal::NoOperators)
    );
}

fn exit(epoch: u64, validator_index: u64) -> Duty {
    Duty::VoluntaryExit { epoch: Epoch(epoch), validator_index }
}

/// Slot 1000 is in epoch 31.
#[test]
fn exits_are_signed_by_order_for_that_validator_until_that_epoch() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let (first, other) = (key(1, new()).0.public_key, key(2, new()).0.public_key);
    enclave.send(&enclave.command(1, enclave.import(&[key(1, new()), key(2, new())])), &[1, 2]).unwrap();
    let refused = |key, duty| match enclave.sign_duty(key, duty) {
        Reply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(first, exit(31, 5)), Refusal::ExitNotAllowed);
    let order = |counter, public_key, validator_index, last| {
        let exits = vec![ExitOrder { public_key, validator_index }];
        enclave.command(counter, Action::Exit { exits, last_epoch: Epoch(last) })
    };
    // One operator alone orders nothing.
    let alone = enclave.send(&order(2, first, 5, 32), &[1]);
    assert_eq!(alone, Err(Refusal::TooFewSignatures { signatures: 1, threshold: 2 }));
    assert_eq!(refused(first, exit(31, 5)), Refusal::ExitNotAllowed);
    let Ok(Outcome::ExitsSigned { exits }) = enclave.send(&order(2, first, 5, 32), &[1, 2]) else { panic!() };
    assert_eq!((exits[0].public_key, exits[0].epoch, exits[0].validator_index), (first, Epoch(31), 5));
    // What the operator gets is what a client is given from now on.
    assert_eq!(enclave.sign_duty(first, exit(31, 5)), Reply::Signature(exits[0].signature));
    assert!(matches!(enclave.sign_duty(first, exit(32, 5)), Reply::Signature(_)));
    assert_eq!(refused(first, exit(33, 5)), Refusal::ExitTooLate { epoch: Epoch(33), last: Epoch(32) });
    for (key, index) in [(first, 6), (other, 5), (other, 6)] {
        assert_eq!(refused(key, exit(31, index)), Refusal::ExitNotAllowed);
    }
    // The last order counts; one whose time is over signs nothing, nor does one for a key that is not there.
    enclave.send(&order(3, first, 5, 31), &[1, 2]).unwrap();
    assert_eq!(refused(first, exit(32, 5)), Refusal::ExitTooLate { epoch: Epoch(32), last: Epoch(31) });
    let late = enclave.send(&order(4, other, 7, 30), &[1, 2]);
    assert_eq!(late, Err(Refusal::ExitTooLate { epoch: Epoch(31), last: Epoch(30) }));
    assert_eq!(refused(other, exit(31, 7)), Refusal::ExitNotAllowed);
    let absent = key(9, None).0.public_key;
    assert_eq!(enclave.send(&order(5, absent, 7, 40), &[1, 2]), Err(Refusal::KeyNotHeld(absent)));
    // An order is for one boot.
    let next = Enclave::start(&bench);
    assert_eq!(next.sign_duty(first, exit(31, 5)), Reply::Refused(Refusal::ExitNotAllowed));
}

#[test]
fn fee_recipients_are_the_configurations_until_operators_order_others() {
    let bench = Bench::new();
    let (default, ordered) = (Bytes([0xfe; 20]), Bytes([0xaf; 20]));
    let policy = casemate_vault::Policy { fee_recipient: Some(default), ..casemate_vault::Policy::default() };
    let enclave = Enclave::start_with(&bench, &policy);
    let keys = [key(1, new()), key(2, new())];
    enclave.send(&enclave.command(1, enclave.import(&keys)), &[1, 2]).unwrap();
    let (first, other) = (keys[0].0.public_key, keys[1].0.public_key);
    let registers = |enclave: &Enclave, public_key, fee_recipient| {
        let registration = Duty::ValidatorRegistration { fee_recipient, gas_limit: 1, timestamp: 1, public_key };
        let preferences = Duty::ProposerPreferences {
            dependent_root: GENESIS,
            proposal_slot: Slot(1001),
            validator_index: 5,
            fee_recipient,
            target_gas_limit: 1,
        };
        let told = [registration, preferences].map(|duty| match enclave.sign_duty(public_key, duty) {
            Reply::Signature(_) => None,
            Reply::Refused(Refusal::FeeRecipientNotAllowed { asked, allowed }) => {
                assert_eq!(asked, fee_recipient);
                Some(allowed)
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(told[0], told[1]);
        told[0]
    };
    assert_eq!([default, ordered].map(|to| registers(&enclave, first, to)), [None, Some(default)]);
    let order = |counter, fee_recipient, keys: &[PublicKey]| {
        enclave.command(counter, Action::FeeRecipient { keys: keys.to_vec(), fee_recipient })
    };
    assert!(enclave.send(&order(2, Some(ordered), &[first]), &[1]).is_err());
    let absent = key(9, None).0.public_key;
    let done = enclave.send(&order(2, Some(ordered), &[first, absent]), &[1, 2]);
    let outcomes = vec![KeyOutcome::Changed, KeyOutcome::NotFound];
    assert_eq!(done, Ok(Outcome::FeeRecipientsSet { keys: outcomes }));
    // It is sealed: the next start has it too, and what the key has signed.
    assert!(matches!(enclave.sign_block(first, 700), Reply::Signature(_)));
    let next = Enclave::start_with(&bench, &policy);
    for enclave in [&enclave, &next] {
        assert_eq!([default, ordered].map(|to| registers(enclave, first, to)), [Some(ordered), None]);
        assert_eq!([default, ordered].map(|to| registers(enclave, other, to)), [None, Some(default)]);
    }
    assert!(matches!(enclave.sign_block(first, 700), Reply::Signature(_)), "the same block again");
    assert!(matches!(enclave.sign_block(first, 699), Reply::Refused(Refusal::BlockNotAboveLast { .. })));
    enclave.send(&order(3, None, &[first]), &[1, 2]).unwrap();
    assert_eq!([default, ordered].map(|to| registers(&enclave, first, to)), [None, Some(default)]);
    // Deleted and brought back, a key keeps its address.
    enclave.send(&order(4, Some(ordered), &[first]), &[1, 2]).unwrap();
    enclave.send(&enclave.command(5, Action::Delete { keys: vec![first] }), &[1, 2]).unwrap();
    enclave.send(&enclave.command(6, enclave.import(&keys[..1])), &[1, 2]).unwrap();
    assert_eq!(registers(&enclave, first, default), Some(ordered));
    // Where nothing can be sealed, nothing changes.
    *bench.world.fault.lock().unwrap() = Some(ServiceError::Away);
    assert_eq!(enclave.send(&order(7, None, &[first]), &[1, 2]), Err(Refusal::NotSealed(Waiting::Away)));
    assert_eq!(registers(&enclave, first, default), Some(ordered));
}

#[test]
fn what_operators_have_signed_is_in_the_log_as_what_clients_have() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let (credentials, amount) = (withdrawal_credentials(ADDRESS, false), 32_000_000_000);
    let generate = Action::Generate { count: 1, withdrawal_credentials: credentials, amount };
    let Ok(Outcome::Generated { keys }) = enclave.send(&enclave.command(1, generate), &[1, 2]) else { panic!() };
    let public_key = keys[0].public_key;
    let exits = vec![ExitOrder { public_key, validator_index: 5 }];
    enclave.send(&enclave.command(2, Action::Exit { exits, last_epoch: Epoch(31) }), &[1, 2]).unwrap();
    let Reply::Log(page) = enclave.vault.handle(&Request::Log { after: 0, nonce: None }) else { panic!() };
    let duties = page.records.iter().filter(|record| !matches!(record.message, Message::Command { .. }));
    let told: Vec<_> = duties.map(|record| (record.public_key, record.message, record.refusal)).collect();
    let exit = Message::VoluntaryExit { epoch: Epoch(31), validator_index: 5 };
    assert_eq!(told, [(public_key, Message::Deposit { amount }, None), (public_key, exit, None)]);
    assert!(page.records.iter().all(|record| record.signing_root.is_some() && record.time_ms == 1000 * 12_000));
}

#[test]
fn operators_commands_are_in_the_log_carried_out_or_not() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let keys = [key(1, past(500)), key(2, new())];
    let import = enclave.command(1, enclave.import(&keys));
    enclave.send(&import, &[2, 1]).unwrap();
    let (credentials, amount) = (withdrawal_credentials(Bytes([0xbb; 20]), false), 32_000_000_000);
    let elsewhere = Action::Generate { count: 3, withdrawal_credentials: credentials, amount };
    let refusal = enclave.send(&enclave.command(2, elsewhere), &[1, 2]).unwrap_err();
    // By too few, and one that was given before: nobody's order.
    assert!(enclave.send(&enclave.command(3, Action::Takeover), &[1]).is_err());
    assert!(enclave.send(&import, &[1, 2]).is_err());
    let Reply::Log(page) = enclave.vault.handle(&Request::Log { after: 0, nonce: None }) else { panic!() };
    let sha256 =
        |bytes: &[u8]| Bytes(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap());
    let public_keys = keys.iter().flat_map(|(key, _)| key.public_key.0).collect::<Vec<u8>>();
    let imported = Message::Command {
        kind: ActionKind::Import,
        counter: 1,
        operators: 0b11,
        keys: 2,
        keys_sha256: sha256(&public_keys),
    };
    let generated =
        Message::Command { kind: ActionKind::Generate, counter: 2, operators: 0b11, keys: 3, keys_sha256: sha256(&[]) };
    let told: Vec<_> = page.records.iter().map(|record| (record.message, record.refusal)).collect();
    assert_eq!(told, [(imported, None), (generated, Some(refusal))]);
    assert_eq!(page.records[0].signing_root, Some(sha256(import.encode().unwrap().as_ref())));
}

#[test]
fn what_there_is_to_know_of_a_key_is_told_under_a_signature_of_this_boot_and_nonce() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let imported = key(1, past(500)).0.public_key;
    enclave.send(&enclave.command(1, enclave.import(&[key(1, past(500))])), &[1, 2]).unwrap();
    let (credentials, amount) = (withdrawal_credentials(ADDRESS, false), 32_000_000_000);
    let generate = Action::Generate { count: 1, withdrawal_credentials: credentials, amount };
    let Ok(Outcome::Generated { keys }) = enclave.send(&enclave.command(2, generate), &[1, 2]) else { panic!() };
    let made = keys[0].public_key;
    let exits = vec![ExitOrder { public_key: made, validator_index: 5 }];
    enclave.send(&enclave.command(3, Action::Exit { exits, last_epoch: Epoch(31) }), &[1, 2]).unwrap();
    let fee_recipient = Some(Bytes([0xfe; 20]));
    let fees = Action::FeeRecipient { keys: vec![imported], fee_recipient };
    enclave.send(&enclave.command(4, fees), &[1, 2]).unwrap();
    let nonce = BoundedBytes::new(vec![8; 16]).unwrap();
    let Reply::KeyDetails(told) = enclave.vault.handle(&Request::KeyDetails { nonce: nonce.clone(), start: 0 }) else {
        panic!()
    };
    let statement = enclave.attested().1;
    let verify = |nonce: &_| {
        UnparsedPublicKey::new(&ED25519, statement.record_key.0)
            .verify(&told.page.signed_bytes(&statement.boot_nonce, nonce), &told.signature.0)
            .is_ok()
    };
    assert!(verify(&nonce) && !verify(&BoundedBytes::new(vec![9; 16]).unwrap()));
    let exit = Some(PendingExit { validator_index: 5, last_epoch: Epoch(31) });
    let expected = [
        KeyDetails { public_key: imported, held: true, fee_recipient, origin: Origin::Imported, exit: None },
        KeyDetails { public_key: made, held: true, fee_recipient: None, origin: Origin::MadeHere, exit },
    ];
    assert_eq!((told.page.total, told.page.keys), (2, expected.to_vec()));
}

#[test]
fn histories_are_only_raised_sealed_and_all_or_none() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let keys = [key(1, past(500)), key(2, new())];
    enclave.send(&enclave.command(1, enclave.import(&keys)), &[1, 2]).unwrap();
    let (first, other) = (keys[0].0.public_key, keys[1].0.public_key);
    let order = |counter, keys: &[(PublicKey, Option<Watermarks>)]| {
        let keys = keys.iter().map(|(public_key, past)| KeyHistory { public_key: *public_key, past: past.unwrap() });
        enclave.command(counter, Action::RaiseHistory { keys: keys.collect() })
    };
    // One that cannot be true: nothing of it is taken.
    let future = enclave.send(&order(2, &[(first, past(800)), (other, past(1002))]), &[1, 2]);
    assert_eq!(future, Err(Refusal::ImpossiblePast(other)));
    assert!(matches!(enclave.sign_block(first, 501), Reply::Signature(_)));
    let absent = key(9, None).0.public_key;
    let done = enclave.send(&order(3, &[(first, past(600)), (other, past(700)), (absent, past(1))]), &[1, 2]);
    let outcomes = vec![KeyOutcome::Changed, KeyOutcome::Changed, KeyOutcome::NotFound];
    assert_eq!(done, Ok(Outcome::HistoryRaised { keys: outcomes }));
    // Lower ones change nothing; that of a deleted key counts when it comes back.
    enclave.send(&order(4, &[(first, past(10))]), &[1, 2]).unwrap();
    enclave.send(&enclave.command(5, Action::Delete { keys: vec![other] }), &[1, 2]).unwrap();
    enclave.send(&order(6, &[(other, past(900))]), &[1, 2]).unwrap();
    let next = Enclave::start(&bench);
    for enclave in [&enclave, &next] {
        enclave.send(&enclave.command(9, enclave.import(&keys[1..])), &[1, 2]).unwrap();
        assert!(matches!(enclave.sign_block(first, 600), Reply::Refused(Refusal::BlockNotAboveHistory { .. })));
        assert!(matches!(enclave.sign_block(first, 601), Reply::Signature(_)));
        assert!(matches!(enclave.sign_block(other, 900), Reply::Refused(Refusal::BlockNotAboveHistory { .. })));
        assert!(matches!(enclave.sign_block(other, 901), Reply::Signature(_)));
        bench.world.blobs.lock().unwrap().retain(|state_version, _| *state_version <= 5);
    }
}

#[test]
fn histories_are_told_under_a_signature_of_this_boot_and_nonce() {
    let bench = Bench::new();
    let enclave = Enclave::start(&bench);
    let keys = [key(1, past(500)), key(2, new())];
    enclave.send(&enclave.command(1, enclave.import(&keys)), &[1, 2]).unwrap();
    enclave.send(&enclave.command(2, Action::Delete { keys: vec![keys[1].0.public_key] }), &[1, 2]).unwrap();
    // Given again, as after an answer that got lost.
    let again = enclave.send(&enclave.command(3, Action::Delete { keys: vec![keys[1].0.public_key] }), &[1, 2]);
    assert_eq!(again, Ok(Outcome::Deleted { keys: vec![KeyOutcome::Deleted] }));
    assert!(matches!(enclave.sign_block(keys[0].0.public_key, 700), Reply::Signature(_)));
    let nonce = BoundedBytes::new(vec![8; 16]).unwrap();
    let Reply::SlashingProtection(told) =
        enclave.vault.handle(&Request::SlashingProtection { nonce: nonce.clone(), start: 0 })
    else {
        panic!()
    };
    let statement = enclave.attested().1;
    let verify = |boot_nonce, nonce: &_, page: &casemate_protocol::history_page::HistoryPage| {
        UnparsedPublicKey::new(&ED25519, statement.record_key.0)
            .verify(&page.signed_bytes(&boot_nonce, nonce), &told.signature.0)
            .is_ok()
    };
    assert!(verify(statement.boot_nonce, &nonce, &told.page));
    assert!(!verify(Bytes([1; 32]), &nonce, &told.page));
    assert!(!verify(statement.boot_nonce, &BoundedBytes::new(vec![9; 16]).unwrap(), &told.page));
    let other = casemate_protocol::history_page::HistoryPage { start: 1, ..told.page.clone() };
    assert!(!verify(statement.boot_nonce, &nonce, &other));
    let page = told.page.clone();
    assert_eq!((page.start, page.total, page.time_ms), (0, 2, Some(1000 * 12_000)));
    let heights: Vec<_> =
        page.keys.iter().map(|told| (told.held, told.highest.unwrap().block.map(|b| b.slot))).collect();
    assert_eq!(heights, [(true, Some(Slot(700))), (false, None)]);
    let Reply::SlashingProtection(rest) = enclave.vault.handle(&Request::SlashingProtection { nonce, start: 1 }) else {
        panic!()
    };
    assert_eq!(rest.page.keys, page.keys[1..]);
}

/// Scrypt's cost in tests is small.
fn keystore(n: u8, password: &str) -> String {
    let secret = [n; 32];
    let salt = [n; 32];
    let mut derived = [0; 32];
    aws_lc_rs::pbkdf2::derive(
        aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256,
        std::num::NonZeroU32::new(2).unwrap(),
        &salt,
        password.as_bytes(),
        &mut derived,
    );
    let key = aws_lc_rs::cipher::UnboundCipherKey::new(&aws_lc_rs::cipher::AES_128, &derived[..16]).unwrap();
    let iv = aws_lc_rs::iv::FixedLength::<16>::from(&[7; 16]);
    let mut message = secret;
    aws_lc_rs::cipher::EncryptingKey::ctr(key)
        .unwrap()
        .less_safe_encrypt(&mut message, aws_lc_rs::cipher::EncryptionContext::Iv128(iv))
        .unwrap();
    let checksum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[&derived[16..], &message[..]].concat());
    let hex = |bytes: &[u8]| const_hex::encode(bytes);
    serde_json::json!({
        "version": 4,
        "uuid": "00000000-0000-0000-0000-000000000000",
        "path": "",
        "pubkey": hex(&SecretKey::from_be_bytes(&mut [n; 32]).unwrap().public_key().0),
        "crypto": {
            "kdf": { "function": "pbkdf2", "params": { "dklen": 32, "c": 2, "prf": "hmac-sha256", "salt": hex(&salt) }, "message": "" },
            "checksum": { "function": "sha256", "params": {}, "message": hex(checksum.as_ref()) },
            "cipher": { "function": "aes-128-ctr", "params": { "iv": hex(&[7; 16]) }, "message": hex(&message) },
        },
    })
    .to_string()
}

#[test]
fn keystores_and_deletions_without_operators_are_for_policies_that_say_so() {
    let bench = Bench::new();
    let posted = |n: u8, history, text: &str, password: &str| KeystoreToImport {
        key: key(n, history).0,
        keystore: BoundedBytes::new(text.as_bytes().to_vec()).unwrap(),
        password: Password(BoundedBytes::new(password.as_bytes().to_vec()).unwrap()),
    };
    let import = |keys: Vec<KeystoreToImport>| Request::ImportKeystores { keys };
    let delete = |n: u8| Request::DeleteKeys { keys: vec![key(n, None).0.public_key] };
    let first = posted(1, past(500), &keystore(1, "secret"), "secret");
    let closed = Enclave::start(&bench);
    assert_eq!(closed.vault.handle(&import(vec![first.clone()])), Reply::Refused(Refusal::KeyManagerImportOff));
    assert_eq!(closed.vault.handle(&delete(1)), Reply::Refused(Refusal::KeyManagerDeleteOff));
    assert!(closed.listed().is_empty());

    let policy = casemate_vault::Policy {
        key_manager_import: true,
        key_manager_delete: true,
        ..casemate_vault::Policy::default()
    };
    let enclave = Enclave::start_with(&bench, &policy);
    let expensive = keystore(7, "x").replace(
        r#""function":"pbkdf2","message":"","params":{"c":2,"dklen":32,"prf":"hmac-sha256""#,
        r#""function":"scrypt","message":"","params":{"n":1048576,"r":8,"p":1,"dklen":32"#,
    );
    assert!(expensive.contains("scrypt"), "{expensive}");
    let all = vec![
        first,
        posted(2, new(), &keystore(2, "secret"), "other"),
        posted(3, None, &keystore(3, "secret"), "secret"),
        posted(4, new(), &keystore(5, "secret"), "secret"),
        posted(6, new(), "{}", "secret"),
        posted(7, new(), &expensive, "x"),
        posted(8, past(1002), &keystore(8, "secret"), "secret"),
    ];
    let Reply::Command(outcome) = enclave.vault.handle(&import(all)) else { panic!() };
    let outcomes = vec![
        KeyOutcome::Imported,
        KeyOutcome::WrongPassword,
        KeyOutcome::NoHistory,
        KeyOutcome::WrongSecret,
        KeyOutcome::Unreadable,
        KeyOutcome::Unreadable,
        KeyOutcome::ImpossibleHistory,
    ];
    assert_eq!(outcome, Outcome::Imported { keys: outcomes });
    let key1 = key(1, None).0.public_key;
    assert_eq!(enclave.listed(), [key1]);
    assert!(matches!(enclave.sign_block(key1, 500), Reply::Refused(Refusal::BlockNotAboveHistory { .. })));
    // It is sealed as any other.
    assert_eq!(Enclave::start(&bench).listed(), [key1]);
    let deleted = Reply::Command(Outcome::Deleted { keys: vec![KeyOutcome::Deleted] });
    assert_eq!(enclave.vault.handle(&delete(1)), deleted);
    assert!(enclave.listed().is_empty() && Enclave::start(&bench).listed().is_empty());
    let absent = Reply::Command(Outcome::Deleted { keys: vec![KeyOutcome::NotFound] });
    assert_eq!(enclave.vault.handle(&delete(1)), absent);
    // Its past is known here, and need not come again; it holds.
    let again = import(vec![posted(1, None, &keystore(1, "secret"), "secret")]);
    let imported = Reply::Command(Outcome::Imported { keys: vec![KeyOutcome::Imported] });
    assert_eq!(enclave.vault.handle(&again), imported);
    assert!(matches!(enclave.sign_block(key1, 500), Reply::Refused(Refusal::BlockNotAboveHistory { .. })));
}
