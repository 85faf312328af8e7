//! A group whose keys come and go, whose record is lost, closed and made anew: enclaves with operators, a store and a parent that keeps
//! every blob.
#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_fence::Record;
use casemate_protocol::command::{
    Action, ClosedRecord, Command, EncryptedSecrets, HPKE_INFO, ImportedKey, KeyOutcome, LastState, OperatorSignature,
    Outcome, RecordOrder, SignedCommand, signed_bytes,
};
use casemate_protocol::configuration::{Operators, Window};
use casemate_protocol::history_page::HistoryPage;
use casemate_protocol::refusal::{NotHolder, Waiting};
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::watermarks::Watermarks;
use casemate_protocol::{BoundedBytes, Bytes, Epoch, Network, PublicKey, Refusal, Reply, Request, Slot, Statement};
use casemate_slashing::{Ceilings, Limits, SlashingHistory};
use casemate_vault::keys::custody::Unsealed;
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::keys::seal::{Contents, SealedKey, SecretBytes};
use casemate_vault::signing::bls::SecretKey;
use casemate_vault::{
    Attestor, Clock, CommandProcessor, FenceParts, Identity, Keys, Loaded, Policy, SystemClock, Vault,
};
use common::fence::{GENESIS, Member, Memory, SLOTS_PER_EPOCH, block, network, now_ms, sign, vote};
use common::{Bench, GROUP};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};

/// Slots long enough for an order to a store that does not answer.
const SLOT_MS: u64 = 6000;

fn operator() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap()
}

/// An enclave of a group, with its keeper.
struct Enclave {
    member: Member,
    hpke_key: Bytes<32>,
    boot_nonce: Bytes<32>,
    counter: std::cell::Cell<u64>,
}

impl Enclave {
    /// Starts from the newest blob that the parent offers.
    fn start(bench: &Bench, network: &Network, memory: &Memory) -> Self {
        let custody = bench.start();
        let found = custody.unseal(0).unwrap();
        let digest = found.as_ref().map(|found| found.digest);
        let Unsealed { state_version, contents, .. } = found.unwrap_or_default();
        let (store, fence_version) = (contents.store.clone(), contents.fence_version);
        let loaded = Loaded { state_version, loaded_state_digest: digest, store, store_unsealed: false, fence_version };
        let keys = Keys::unsealed(contents, |_, _, history| history).unwrap();
        let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
        let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, network, &keys).unwrap();
        let key = Bytes(operator().public_key().as_ref().try_into().unwrap());
        let operators = Operators { threshold: 1, keys: vec![key] };
        let commands = CommandProcessor::new(custody, Arc::clone(&bench.nsm) as _, operators, vec![], loaded);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let policy = Policy { window: Window::ANY, ..Policy::default() };
        let boxed = Box::new(SystemClock);
        let vault = Vault::new(network.clone(), keys, Limits::NONE, policy, boxed, Box::new(NullJournal));
        let (fence_gate, keeping) = FenceParts::with_record(Box::new(memory.clone())).split();
        let vault = vault.fenced_by(fence_gate, clock).attested_by(attestor).commanded_by(commands);
        let member = Member::run_from(vault, keeping, fence_version);
        let (hpke_key, statement) = attested(&member);
        Self { member, hpke_key, boot_nonce: statement.boot_nonce, counter: std::cell::Cell::new(0) }
    }

    fn order(&self, action: Action) -> Result<Outcome, Refusal> {
        self.counter.set(self.counter.get() + 1);
        let command = Command::new(GROUP.into(), GENESIS, self.boot_nonce, self.counter.get(), action);
        let bytes = command.encode().unwrap();
        let pair = operator();
        let signature = Bytes(pair.sign(&signed_bytes(bytes.as_ref())).as_ref().try_into().unwrap());
        let operator = Bytes(pair.public_key().as_ref().try_into().unwrap());
        let signed = SignedCommand::new(bytes, vec![OperatorSignature { operator, signature }]);
        match self.member.vault.handle(&Request::Command { envelope: signed.encode().unwrap() }) {
            Reply::Command(outcome) => Ok(outcome),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn record(&self, record: RecordOrder) -> Result<Outcome, Refusal> {
        self.order(Action::FenceInit { record, credentials: None, credentials_id: None })
    }

    /// Imports the key of these bytes with a history of nothing.
    fn import(&self, n: u8) -> Result<Outcome, Refusal> {
        let (enc, ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256
            .seal(HPKE_INFO, &self.boot_nonce.0, &[n; 32], &HpkePublicKey(self.hpke_key.0.to_vec()))
            .unwrap();
        let enc = Bytes(enc.0.try_into().unwrap());
        let secrets = EncryptedSecrets { enc, ciphertext: BoundedBytes::new(ciphertext).unwrap() };
        self.order(Action::Import {
            keys: vec![ImportedKey { public_key: key(n), history: Some(Watermarks::default()) }],
            secrets,
        })
    }

    fn listed(&self) -> Vec<PublicKey> {
        match self.member.vault.handle(&Request::PublicKeys { start: 0 }) {
            Reply::PublicKeys { keys, .. } => keys,
            other => panic!("{other:?}"),
        }
    }

    fn statement(&self) -> Statement {
        self.member.statement()
    }

    /// What a key that it does not know may have signed at most.
    fn floor(&self) -> Watermarks {
        let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
        match self.member.vault.handle(&Request::SlashingProtection { nonce, start: 0 }) {
            Reply::SlashingProtection(page) => HistoryPage::decode(&page.page.encode()).unwrap().floor,
            other => panic!("{other:?}"),
        }
    }
}

fn attested(member: &Member) -> (Bytes<32>, Statement) {
    let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
    let Reply::Attestation { document, statement } = member.vault.handle(&Request::Attestation { nonce }) else {
        panic!("not attested")
    };
    let payload = casemate_protocol::cbor::cose_payload(document.as_ref()).unwrap();
    let document = aws_nitro_enclaves_nsm_api::api::AttestationDoc::from_binary(&payload).unwrap();
    (Bytes(document.public_key.unwrap().into_vec().try_into().unwrap()), Statement::decode(statement.as_ref()).unwrap())
}

fn key(n: u8) -> PublicKey {
    SecretKey::from_be_bytes(&mut [n; 32]).unwrap().public_key()
}

/// A group with a record, and the first enclave that holds it.
fn begun(bench: &Bench, network: &Network, memory: &Memory) -> Enclave {
    let enclave = Enclave::start(bench, network, memory);
    enclave.member.await_standing(StatedStatus::NoRecord);
    assert_eq!(enclave.record(RecordOrder::New), Ok(Outcome::FenceReady));
    enclave.member.await_standing(StatedStatus::Holding);
    enclave
}

fn slot(network: &Network) -> u64 {
    network.slot_at(now_ms()).0
}

fn held(memory: &Memory) -> Record {
    memory.record.lock().unwrap().unwrap()
}

/// What the parent offers from now on.
fn offer(bench: &Bench, blobs: &std::collections::BTreeMap<u64, Vec<u8>>) {
    bench.world.blobs.lock().unwrap().clone_from(blobs);
}

fn kept(bench: &Bench) -> std::collections::BTreeMap<u64, Vec<u8>> {
    bench.world.blobs.lock().unwrap().clone()
}

#[test]
fn a_first_record_names_the_state_that_was_sealed_with_it_and_no_other_is_free_of_floors() {
    let (bench, network, memory) = (Bench::new(), network(SLOT_MS), Memory::default());
    let enclave = begun(&bench, &network, &memory);
    let statement = enclave.statement();
    assert_eq!(statement.fence.floors, casemate_protocol::statement::StatedFloors::default());
    let record = held(&memory);
    assert!(record.term > 1_700_000_000, "above every term of an earlier record: {record:?}");
    assert!(record.min_state_version >= (record.term - 1) << 32);
    drop(enclave);
    // The same number from another state: a parent that withholds the blobs gets an enclave that is too old, not one without floors.
    *memory.record.lock().unwrap() =
        Some(Record { holder: Bytes::ZERO, released_state: Some(Bytes([3; 32])), ..held(&memory) });
    let other = Enclave::start(&bench, &network, &memory);
    other.member.await_standing(StatedStatus::Holding);
    assert_eq!(other.statement().fence.floors.slot, Some(record.ceilings.slot));
    drop(other);
    offer(&bench, &std::collections::BTreeMap::new());
    let empty = Enclave::start(&bench, &network, &memory);
    empty.member.await_standing(StatedStatus::OldState);
}

#[test]
fn a_key_signs_only_once_every_state_without_it_is_refused_and_its_past_is_never_below_the_groups_floor() {
    let (bench, network, memory) = (Bench::new(), network(SLOT_MS), Memory::default());
    let holder = begun(&bench, &network, &memory);
    holder.import(1).unwrap();
    let before = kept(&bench);
    // The store keeps its answers back: the state is sealed, and nobody can say that older ones are refused.
    memory.away.store(true, Ordering::SeqCst);
    assert_eq!(holder.import(2), Err(Refusal::MaybeSealed(Waiting::Fence)));
    assert!(kept(&bench).len() > before.len(), "it was sealed");
    assert_eq!(holder.listed(), [key(1)]);
    let now = slot(&network);
    let refused = common::fence::sign_with(&holder.member.vault, key(2), &block(now, 1));
    assert_eq!(refused, Err(Refusal::UnknownKey));
    // What is in force signs on, and is what the statement names.
    assert_eq!(sign(&holder.member.vault, &block(now, 1)), Ok(()));
    let in_force = before.keys().max().copied();
    assert_eq!(holder.statement().state.map(|state| state.number), in_force);
    drop(holder);
    memory.away.store(false, Ordering::SeqCst);
    // The parent offers the state without it, which is as good as any: nothing was confirmed.
    offer(&bench, &before);
    let ceilings = held(&memory).ceilings;
    let next = Enclave::start(&bench, &network, &memory);
    next.member.await_standing(StatedStatus::Standby);
    let took = next.order(Action::Takeover).unwrap();
    assert!(matches!(took, Outcome::TookOver { .. }));
    // It leaves in order, and comes back exactly: without floors of its own.
    assert_eq!(next.order(Action::Handover), Ok(Outcome::HandedOver));
    let begun = Instant::now();
    while next.member.standing() != StatedStatus::Holding {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    let statement = next.statement();
    assert_eq!(statement.fence.floors.slot, None, "it holds exactly");
    // What the parent still has of the key is refused for good before anybody is told of it.
    assert_eq!(next.floor().block.unwrap().slot, ceilings.slot);
    assert!(held(&memory).min_state_version >= held(&memory).term << 32, "{:?}", held(&memory));
    // The import is given again, with the history that it had: the key starts above all that it can have signed anywhere.
    assert_eq!(next.import(2), Ok(Outcome::Imported { keys: vec![KeyOutcome::Imported] }));
    let floor = next.floor();
    assert_eq!(floor.block.unwrap().slot, ceilings.slot);
    assert_eq!(floor.attestation.unwrap().target, ceilings.target);
    for slot in [now, ceilings.slot.0] {
        let refused = common::fence::sign_with(&next.member.vault, key(2), &block(slot, 2));
        assert_eq!(refused, Err(Refusal::BlockNotAboveHistory { slot: Slot(slot), last: ceilings.slot }));
    }
    let (source, target) = (ceilings.target.0.saturating_sub(1), ceilings.target);
    let refused = common::fence::sign_with(&next.member.vault, key(2), &vote(source, target.0, 2));
    assert_eq!(refused, Err(Refusal::TargetNotAboveHistory { target, last: target }));
    // A key that comes in by the other door, or comes back, starts there too.
    assert!(matches!(next.order(Action::Delete { keys: vec![key(2)] }), Ok(Outcome::Deleted { .. })));
    assert_eq!(next.import(2), Ok(Outcome::Imported { keys: vec![KeyOutcome::Imported] }));
    let refused = common::fence::sign_with(&next.member.vault, key(2), &block(now, 3));
    assert_eq!(refused, Err(Refusal::BlockNotAboveHistory { slot: Slot(now), last: ceilings.slot }));
}

#[test]
fn what_is_told_of_keys_elsewhere_is_told_once_every_state_that_was_tried_is_refused() {
    let (bench, network, memory) = (Bench::new(), network(SLOT_MS), Memory::default());
    let holder = begun(&bench, &network, &memory);
    holder.import(1).unwrap();
    // The parent keeps the state with another key, denies it, and does the same with the one that is sealed over it.
    *bench.world.denials.lock().unwrap() = 2;
    assert_eq!(holder.import(2), Err(Refusal::MaybeSealed(Waiting::Refused)));
    let tried = kept(&bench).keys().max().copied().unwrap();
    assert!(held(&memory).min_state_version < tried, "nothing was confirmed");
    holder.floor();
    assert!(held(&memory).min_state_version > tried, "a state with a key that nobody knows of could be loaded yet");
}

#[test]
fn one_that_stands_by_loads_newer_states_as_they_come_and_asks_for_none_in_vain() {
    let (bench, network, memory) = (Bench::new(), network(SLOT_MS), Memory::default());
    let holder = begun(&bench, &network, &memory);
    let standby = Enclave::start(&bench, &network, &memory);
    standby.member.await_standing(StatedStatus::Standby);
    // States without the key are refused from now on; nothing was left behind.
    holder.import(1).unwrap();
    assert_eq!(held(&memory).released_state, None);
    let begun = Instant::now();
    while standby.listed() != [key(1)] {
        assert!(begun.elapsed() < Duration::from_secs(20), "it stays with the old state");
        std::thread::sleep(Duration::from_millis(20));
    }
    standby.member.await_standing(StatedStatus::Standby);
    std::thread::sleep(Duration::from_millis(700));
    let lists = bench.world.lists.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(bench.world.lists.load(Ordering::SeqCst), lists, "it has what the record asks for");
    // What is left behind is loaded at once, and nothing was signed beyond it.
    assert_eq!(holder.order(Action::Handover), Ok(Outcome::HandedOver));
    standby.member.await_standing(StatedStatus::Holding);
    assert_eq!(standby.statement().fence.floors.slot, None);
}

#[test]
fn a_lost_record_is_made_anew_from_the_last_state_alone() {
    let (bench, network, memory) = (Bench::new(), network(SLOT_MS), Memory::default());
    let holder = begun(&bench, &network, &memory);
    for n in [1, 2] {
        holder.import(n).unwrap();
    }
    let yesterday = kept(&bench);
    let older = holder.statement();
    holder.order(Action::Delete { keys: vec![key(2)] }).unwrap();
    let stated = holder.statement();
    let today = kept(&bench);
    let last = LastState { keys_root: stated.public_keys.root, fence_version: stated.state.unwrap().fence_version };
    assert!(stated.state.unwrap().fence_version >= older.state.unwrap().fence_version);
    drop(holder);
    *memory.record.lock().unwrap() = None;
    // The parent offers the state in which the key was there.
    offer(&bench, &yesterday);
    let enclave = Enclave::start(&bench, &network, &memory);
    enclave.member.await_standing(StatedStatus::RolledBack);
    let refused = enclave.record(RecordOrder::Lost { last });
    let seen = older.state.unwrap().fence_version;
    assert_eq!(refused, Err(Refusal::OtherLastState { keys_root: older.public_keys.root, fence_version: seen }));
    assert_eq!(*memory.record.lock().unwrap(), None);
    assert_eq!(kept(&bench), yesterday, "nothing was sealed");
    // A state that has seen less than the last one is none, whatever its keys.
    let later = LastState { keys_root: older.public_keys.root, fence_version: u64::MAX };
    assert!(matches!(enclave.record(RecordOrder::Lost { last: later }), Err(Refusal::OtherLastState { .. })));
    drop(enclave);
    offer(&bench, &today);
    let enclave = Enclave::start(&bench, &network, &memory);
    enclave.member.await_standing(StatedStatus::RolledBack);
    assert_eq!(enclave.record(RecordOrder::New), Err(Refusal::RecordLost));
    let now = slot(&network);
    assert_eq!(enclave.record(RecordOrder::Lost { last }), Ok(Outcome::FenceReady));
    enclave.member.await_standing(StatedStatus::Holding);
    assert_eq!(enclave.listed(), [key(1)]);
    let floors = enclave.statement().fence.floors;
    assert!(floors.slot.unwrap() >= Slot(now + 3), "above all that may be signed somewhere yet: {floors:?}");
    // Its version is above that of every record that there was, also of one that has ended in another store: were it not, the next one
    // could never be made there (found by the simulator).
    assert!(held(&memory).version > (slot(&network) * SLOT_MS / 1000) << 16);
    // No state of the lost record's time is loaded any more.
    drop(enclave);
    offer(&bench, &yesterday);
    let enclave = Enclave::start(&bench, &network, &memory);
    enclave.member.await_standing(StatedStatus::OldState);
}

#[test]
fn a_record_that_has_ended_is_followed_by_the_next_one_in_another_store_and_back() {
    let (bench, network, first, second) = (Bench::new(), network(SLOT_MS), Memory::default(), Memory::default());
    let holder = begun(&bench, &network, &first);
    holder.import(1).unwrap();
    let now = slot(&network);
    assert_eq!(sign(&holder.member.vault, &block(now, 1)), Ok(()));
    let Ok(Outcome::FenceClosed { record }) = holder.order(Action::FenceClose) else { panic!("not closed") };
    assert!(record.released_state.is_some());
    holder.member.await_standing(StatedStatus::Closed);
    let refused = sign(&holder.member.vault, &block(now + 1, 1));
    assert_eq!(refused, Err(Refusal::NotHolder(NotHolder::Closed { slot_ceiling: record.slot_ceiling })));
    assert_eq!(holder.order(Action::Takeover), Err(Refusal::FenceClosed));
    // Nobody else claims it either.
    let clone = Enclave::start(&bench, &network, &first);
    clone.member.await_standing(StatedStatus::Closed);
    assert_eq!(clone.order(Action::Takeover), Err(Refusal::FenceClosed));
    assert_eq!(clone.record(RecordOrder::New), Err(Refusal::FenceClosed));
    // The very state that was left behind goes on at once, with another store.
    let early = Enclave::start(&bench, &network, &second);
    early.member.await_standing(StatedStatus::RolledBack);
    let moved = Enclave::start(&bench, &network, &second);
    // The state has seen a record, and here is none: only operators who know of its end can say so.
    moved.member.await_standing(StatedStatus::RolledBack);
    assert_eq!(moved.record(RecordOrder::New), Err(Refusal::RecordLost));
    assert_eq!(moved.record(RecordOrder::After { closed: record }), Ok(Outcome::FenceReady));
    moved.member.await_standing(StatedStatus::Holding);
    assert_eq!(moved.statement().fence.floors.slot, None);
    let next = held(&second);
    assert!(next.term > record.term && next.version > record.version, "{next:?}");
    assert!(matches!(sign(&moved.member.vault, &block(now, 2)), Err(Refusal::BlockNotAboveLast { .. })));
    assert_eq!(sign(&moved.member.vault, &block(now, 1)), Ok(()), "what it has signed it signs again");
    // One that came before the record was made stands by, and does not have to start anew.
    early.member.await_standing(StatedStatus::Standby);
    // Closed by a standby, after its holder has died: floors.
    drop((holder, clone, early, moved));
    let standby = Enclave::start(&bench, &network, &second);
    standby.member.await_standing(StatedStatus::Standby);
    let Ok(Outcome::FenceClosed { record: closed }) = standby.order(Action::FenceClose) else { panic!("not closed") };
    assert_eq!(closed.released_state, None);
    drop(standby);
    // Back to the first store, over the record that has ended there.
    let back = Enclave::start(&bench, &network, &first);
    back.member.await_standing(StatedStatus::Closed);
    assert!(back.record(RecordOrder::After { closed }).is_ok());
    back.member.await_standing(StatedStatus::Holding);
    assert_eq!(back.statement().fence.floors.slot, Some(closed.slot_ceiling.max(record.slot_ceiling)));
    assert_eq!(back.listed(), [key(1)]);
}

#[test]
fn a_first_record_for_keys_that_were_there_before_it_has_floors() {
    let (bench, network, memory) = (Bench::new(), network(SLOT_MS), Memory::default());
    // As from an enclave without a record: what it has signed since it was sealed, the state does not say.
    let history = SlashingHistory::Known(Watermarks::NONE);
    let secret = Some(SecretBytes([1; 32]));
    let sealed = SealedKey { public_key: key(1), secret, history, fee_recipient: None };
    bench.start().seal(&Contents { keys: vec![sealed], ..Contents::default() }, 1).unwrap();
    let enclave = Enclave::start(&bench, &network, &memory);
    enclave.member.await_standing(StatedStatus::NoRecord);
    let now = slot(&network);
    assert_eq!(enclave.record(RecordOrder::New), Ok(Outcome::FenceReady));
    enclave.member.await_standing(StatedStatus::Holding);
    let floors = enclave.statement().fence.floors;
    assert!(floors.slot.unwrap() >= Slot(now + 3), "{floors:?}");
}

#[test]
fn the_next_record_has_floors_for_every_state_but_the_one_that_was_left_behind() {
    let (bench, network, first, second) = (Bench::new(), network(SLOT_MS), Memory::default(), Memory::default());
    let holder = begun(&bench, &network, &first);
    holder.import(1).unwrap();
    let Ok(Outcome::FenceClosed { record }) = holder.order(Action::FenceClose) else { panic!("not closed") };
    drop(holder);
    let other = ClosedRecord { released_state: Some(Bytes([3; 32])), ..record };
    let moved = Enclave::start(&bench, &network, &second);
    moved.member.await_standing(StatedStatus::RolledBack);
    assert_eq!(moved.record(RecordOrder::After { closed: other }), Ok(Outcome::FenceReady));
    moved.member.await_standing(StatedStatus::Holding);
    assert_eq!(moved.statement().fence.floors.slot, Some(record.slot_ceiling));
}

#[test]
fn the_next_record_comes_after_the_newest_that_was_seen_and_after_no_older_one() {
    let (bench, network, memory) = (Bench::new(), network(SLOT_MS), Memory::default());
    let holder = begun(&bench, &network, &memory);
    let Ok(Outcome::FenceClosed { record }) = holder.order(Action::FenceClose) else { panic!("not closed") };
    holder.member.await_standing(StatedStatus::Closed);
    let older = ClosedRecord { version: record.version - 1, ..record };
    let refused = holder.record(RecordOrder::After { closed: older });
    assert_eq!(refused, Err(Refusal::OlderEnd { seen: record.version, found: record.version - 1 }));
    assert_eq!(holder.record(RecordOrder::After { closed: record }), Ok(Outcome::FenceReady));
}

#[test]
fn an_older_state_does_not_follow_on_a_record_that_has_ended() {
    let (bench, network, first, second) = (Bench::new(), network(SLOT_MS), Memory::default(), Memory::default());
    let holder = begun(&bench, &network, &first);
    let before = kept(&bench);
    holder.import(1).unwrap();
    let Ok(Outcome::FenceClosed { record }) = holder.order(Action::FenceClose) else { panic!("not closed") };
    drop(holder);
    offer(&bench, &before);
    let moved = Enclave::start(&bench, &network, &second);
    let refused = moved.record(RecordOrder::After { closed: record });
    assert!(matches!(refused, Err(Refusal::StateBeforeClosed { .. })), "{refused:?}");
    assert_eq!(*second.record.lock().unwrap(), None);
}

#[test]
fn a_host_gets_a_handover_without_a_signature_once_in_a_while_alone() {
    let (bench, network, memory) = (Bench::new(), network(2000), Memory::default());
    let holder = begun(&bench, &network, &memory);
    let term = held(&memory).term;
    assert_eq!(holder.member.vault.handle(&Request::Handover), Reply::HandedOver);
    assert!(!holder.member.standing().signs(), "it has left");
    // It comes back by itself; the next one has to wait, and operators' do not.
    holder.member.await_standing(StatedStatus::Holding);
    assert_eq!(held(&memory).term, term + 1, "in another term");
    let refused = holder.member.vault.handle(&Request::Handover);
    assert_eq!(refused, Reply::Refused(Refusal::HandoverTooSoon { slots: 8 }));
    assert_eq!(holder.member.standing(), StatedStatus::Holding);
    assert_eq!(holder.order(Action::Handover), Ok(Outcome::HandedOver));
}

#[test]
fn a_record_that_nobody_can_have_written_is_not_believed_and_silences_nobody_for_good() {
    let (bench, network, memory) = (Bench::new(), network(1000), Memory::default());
    let holder = begun(&bench, &network, &memory);
    holder.import(1).unwrap();
    let last = holder.statement();
    drop(holder);
    let good = held(&memory);
    let far = Ceilings { slot: Slot(u64::MAX), target: Epoch(u64::MAX), source: Epoch(u64::MAX) };
    // Versions that are used up, and ceilings that would be floors for ever.
    for bad in [
        Record { version: u64::MAX, ..good },
        Record { version: good.version + 1, ceilings: far, ..good },
        Record { version: good.version + 1, ceilings: Ceilings { source: Epoch(u64::MAX), ..good.ceilings }, ..good },
        Record { version: good.version + 1, ceilings: Ceilings { target: Epoch(u64::MAX), ..good.ceilings }, ..good },
    ] {
        *memory.record.lock().unwrap() = Some(bad);
        let enclave = Enclave::start(&bench, &network, &memory);
        let refused = enclave.order(Action::Takeover);
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(held(&memory), bad, "it was not claimed");
        assert_ne!(enclave.member.standing(), StatedStatus::Holding);
        drop(enclave);
    }
    // Removed, it is made anew as any lost one.
    *memory.record.lock().unwrap() = None;
    let enclave = Enclave::start(&bench, &network, &memory);
    enclave.member.await_standing(StatedStatus::RolledBack);
    let (keys_root, state) = (last.public_keys.root, last.state.unwrap());
    let last = LastState { keys_root, fence_version: state.fence_version };
    assert_eq!(enclave.record(RecordOrder::Lost { last }), Ok(Outcome::FenceReady));
    enclave.member.await_standing(StatedStatus::Holding);
    let begun = Instant::now();
    while sign(&enclave.member.vault, &block(slot(&network), 1)).is_err() {
        assert!(begun.elapsed() < Duration::from_mins(1), "it stays silent");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_vote_does_not_move_the_groups_source_ceiling_to_its_own_target() {
    let (bench, network, memory) = (Bench::new(), network(500), Memory::default());
    let holder = begun(&bench, &network, &memory);
    holder.import(1).unwrap();
    let before = held(&memory).ceilings.source;
    // The next epoch has begun, so that the ceiling could rise.
    let begun = Instant::now();
    while slot(&network) / SLOTS_PER_EPOCH <= before.0 {
        assert!(begun.elapsed() < Duration::from_mins(2));
        std::thread::sleep(Duration::from_millis(20));
    }
    let epoch = slot(&network) / SLOTS_PER_EPOCH;
    let refused = sign(&holder.member.vault, &vote(epoch, epoch, 1));
    assert_eq!(refused, Err(Refusal::SourceIsTarget { epoch: Epoch(epoch) }));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(held(&memory).ceilings.source, before);
}
