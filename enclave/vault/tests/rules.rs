//! The vault as a whole: what it signs, what it refuses, and that it saves before it signs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use casemate_protocol::configuration::Window;
use casemate_protocol::frame::{self, HighWatermark};
use casemate_protocol::network::NetworkFields;
use casemate_protocol::refusal::MalformedFrame;
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName, Network, Preset,
    PublicKey, Refusal, Reply, ReplyFrame, Request, RequestFrame, Root, SignRequest, Signature, Slot,
};
use casemate_slashing::{Ceilings, Floors, Limits, SlashingHistory, Watermarks};
use casemate_vault::link::server;
use casemate_vault::{Clock, Journal, Keys, NotSaved, Policy, Vault};

const GENESIS: Root = Bytes([4; 32]);
/// Slot 320, the first of epoch 10.
const NOW_MS: u64 = 320 * 12_000;

#[derive(Clone)]
struct FixedClock(Arc<AtomicU64>);

impl Clock for FixedClock {
    fn unix_ms(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst))
    }
}

/// Keeps what was saved, and fails when told to.
#[derive(Clone, Default)]
struct Memory {
    saved: Arc<Mutex<Vec<(PublicKey, Watermarks)>>>,
    full: Arc<AtomicBool>,
}

impl Journal for Memory {
    fn record(&self, key: &PublicKey, watermarks: &Watermarks) -> Result<(), NotSaved> {
        if self.full.load(Ordering::SeqCst) {
            return Err(NotSaved);
        }
        self.saved.lock().unwrap().push((*key, *watermarks));
        Ok(())
    }
}

struct Bench {
    vault: Vault,
    keys: Vec<PublicKey>,
    clock: FixedClock,
    journal: Memory,
}

fn network() -> Network {
    let fork = |name, byte, epoch| Fork { name, version: Bytes([byte; 4]), epoch: Some(Epoch(epoch)) };
    NetworkFields {
        name: "test".into(),
        preset: Preset::Mainnet,
        genesis_time: 0,
        genesis_validators_root: GENESIS,
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks: vec![fork(ForkName::Phase0, 0, 0), fork(ForkName::Capella, 3, 2), fork(ForkName::Deneb, 4, 5)],
    }
    .try_into()
    .unwrap()
}

fn bench_with(histories: &[SlashingHistory], limits: Limits, policy: Policy) -> Bench {
    let mut secrets: Vec<[u8; 32]> = (0..histories.len()).map(|i| [u8::try_from(i + 1).unwrap(); 32]).collect();
    let mut public_keys = Vec::new();
    let keys = Keys::load(&mut secrets, |i, key| {
        public_keys.push(*key);
        histories[i]
    })
    .unwrap();
    assert!(secrets.iter().all(|s| *s == [0; 32]), "secrets stay behind in the caller's memory");
    let clock = FixedClock(Arc::new(AtomicU64::new(NOW_MS)));
    let journal = Memory::default();
    let vault = Vault::new(network(), keys, limits, policy, Box::new(clock.clone()), Box::new(journal.clone()));
    Bench { vault, keys: public_keys, clock, journal }
}

fn bench() -> Bench {
    bench_with(
        &[SlashingHistory::Known(Watermarks::NONE); 2],
        Limits::NONE,
        Policy { proof_of_validation: false, ..Policy::permissive() },
    )
}

fn fork_info() -> ForkInfo {
    ForkInfo {
        previous_version: Bytes([3; 4]),
        current_version: Bytes([4; 4]),
        epoch: Epoch(5),
        genesis_validators_root: GENESIS,
    }
}

fn attestation(source: u64, target: u64, root: u8) -> Duty {
    Duty::Attestation(AttestationData {
        slot: Slot(target * 32),
        index: 0,
        beacon_block_root: Bytes([root; 32]),
        source: Checkpoint { epoch: Epoch(source), root: Bytes([1; 32]) },
        target: Checkpoint { epoch: Epoch(target), root: Bytes([2; 32]) },
    })
}

fn block(slot: u64, root: u8) -> Duty {
    Duty::Block(BeaconBlockHeader { slot: Slot(slot), body_root: Bytes([root; 32]), ..BeaconBlockHeader::default() })
}

impl Bench {
    fn ask(&self, request: SignRequest) -> Result<Signature, Refusal> {
        match self.vault.handle(&Request::Sign(request)) {
            Reply::Signature(signature) => Ok(signature),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn sign(&self, duty: Duty) -> Result<Signature, Refusal> {
        let request = SignRequest {
            public_key: self.keys[0],
            duty,
            fork_info: Some(fork_info()),
            signing_root: None,
            proofs: Vec::new(),
        };
        self.ask(request)
    }
}

#[test]
fn a_conflicting_duty_is_refused_and_a_repeat_signed_again() {
    let b = bench();
    let first = b.sign(attestation(8, 9, 1)).unwrap();
    assert_eq!(b.sign(attestation(8, 9, 1)), Ok(first));
    assert_eq!(b.sign(attestation(8, 9, 2)), Err(Refusal::TargetNotAboveLast { target: Epoch(9), last: Epoch(9) }));
    let proposal = b.sign(block(300, 1)).unwrap();
    assert_eq!(b.sign(block(300, 1)), Ok(proposal));
    assert_eq!(b.sign(block(300, 2)), Err(Refusal::BlockNotAboveLast { slot: Slot(300), last: Slot(300) }));
    assert_eq!(b.journal.saved.lock().unwrap().len(), 2, "a repeat changes no watermark");
}

#[test]
fn each_key_has_its_own_watermarks() {
    let b = bench();
    b.sign(attestation(8, 9, 1)).unwrap();
    let other = SignRequest {
        public_key: b.keys[1],
        duty: attestation(7, 9, 2),
        fork_info: Some(fork_info()),
        signing_root: None,
        proofs: Vec::new(),
    };
    assert!(b.ask(other).is_ok());
}

#[test]
fn nothing_is_signed_that_could_not_be_saved() {
    let b = bench();
    b.journal.full.store(true, Ordering::SeqCst);
    assert_eq!(b.sign(attestation(8, 9, 1)), Err(Refusal::NotSaved));
    assert_eq!(b.sign(block(300, 1)), Err(Refusal::NotSaved));
    // Duties without watermarks go on; and nothing was marked as signed.
    assert!(b.sign(Duty::RandaoReveal { epoch: Epoch(10) }).is_ok());
    b.journal.full.store(false, Ordering::SeqCst);
    assert!(b.sign(attestation(8, 9, 2)).is_ok());
}

#[test]
fn a_key_without_history_signs_nothing_and_is_not_listed() {
    let b = bench_with(
        &[SlashingHistory::Missing, SlashingHistory::Known(Watermarks::NONE)],
        Limits::NONE,
        Policy { proof_of_validation: false, ..Policy::permissive() },
    );
    assert_eq!(b.sign(attestation(8, 9, 1)), Err(Refusal::NoHistory));
    assert_eq!(b.sign(Duty::RandaoReveal { epoch: Epoch(10) }), Err(Refusal::NoHistory));
    assert_eq!(
        b.vault.handle(&Request::PublicKeys { start: 0 }),
        Reply::PublicKeys { total: 1, keys: vec![b.keys[1]] }
    );
    let Reply::Info(info) = b.vault.handle(&Request::Info) else { panic!() };
    assert_eq!((info.keys, info.keys_without_history), (1, 1));
}

#[test]
fn the_future_is_refused_until_it_comes() {
    let b = bench();
    let (now, latest) = (Slot(320), Slot(321));
    assert_eq!(b.sign(block(322, 1)), Err(Refusal::BlockFromFuture { slot: Slot(322), now, latest }));
    assert_eq!(b.sign(block(u64::MAX, 1)), Err(Refusal::BlockFromFuture { slot: Slot::MAX, now, latest }));
    assert!(b.sign(block(321, 1)).is_ok());
    assert_eq!(
        b.sign(attestation(9, 11, 1)),
        Err(Refusal::TargetFromFuture { target: Epoch(11), now: Epoch(10), latest: Epoch(10) })
    );
    assert!(b.sign(Duty::AggregationSlot { slot: Slot(12 * 32 - 1) }).is_ok());
    assert_eq!(
        b.sign(Duty::AggregationSlot { slot: Slot(12 * 32) }),
        Err(Refusal::DutyFromFuture { epoch: Epoch(12), now: Epoch(10), latest: Epoch(11) })
    );
    let message = |slot| Duty::SyncCommitteeMessage { slot: Slot(slot), beacon_block_root: GENESIS };
    assert!(b.sign(message(321)).is_ok());
    for slot in [322, u64::MAX] {
        let refused = Refusal::DutySlotFromFuture { slot: Slot(slot), now, latest };
        assert_eq!(b.sign(message(slot)), Err(refused));
    }
    for duty in [
        Duty::RandaoReveal { epoch: Epoch::MAX },
        Duty::VoluntaryExit { epoch: Epoch::MAX, validator_index: 1 },
        Duty::BuilderRequestAuth { slot: Slot::MAX, object_root: GENESIS },
    ] {
        assert!(matches!(b.sign(duty), Err(Refusal::DutyFromFuture { .. })), "{duty:?}");
    }
    b.clock.0.store(NOW_MS + 31 * 12_000, Ordering::SeqCst);
    assert!(b.sign(attestation(9, 11, 1)).is_ok(), "the last slot of epoch 10 is the one before epoch 11");
}

#[test]
fn a_randao_reveal_is_not_told_before_its_epoch() {
    let b = bench();
    // The first slot of epoch 10: 30 slots later the reveal for epoch 11 may be asked for, one slot ahead and one of grace.
    let refused = Refusal::DutyFromFuture { epoch: Epoch(11), now: Epoch(10), latest: Epoch(10) };
    assert!(b.sign(Duty::RandaoReveal { epoch: Epoch(10) }).is_ok());
    b.clock.0.store(NOW_MS + 30 * 12_000 - 1, Ordering::SeqCst);
    assert_eq!(b.sign(Duty::RandaoReveal { epoch: Epoch(11) }), Err(refused));
    b.clock.0.store(NOW_MS + 30 * 12_000, Ordering::SeqCst);
    assert!(b.sign(Duty::RandaoReveal { epoch: Epoch(11) }).is_ok());
}

#[test]
fn old_duties_are_refused_with_the_numbers_and_any_lets_them_through() {
    let with = |window| {
        let policy = Policy { window, ..Policy::permissive() };
        bench_with(&[SlashingHistory::Known(Watermarks::NONE)], Limits::NONE, policy)
    };
    // Slot 320, the first of epoch 10.
    let b = with(Window::default());
    let now = Slot(320);
    assert_eq!(b.sign(block(317, 1)), Err(Refusal::BlockTooOld { slot: Slot(317), now, oldest: Slot(318) }));
    assert_eq!(
        b.sign(attestation(7, 8, 1)),
        Err(Refusal::TargetTooOld { target: Epoch(8), now: Epoch(10), oldest: Epoch(9) })
    );
    assert!(b.journal.saved.lock().unwrap().is_empty(), "what is refused moves no watermark");
    let first = b.sign(block(318, 1)).unwrap();
    assert!(b.sign(attestation(8, 9, 1)).is_ok());
    // Also a repeat has its time.
    assert_eq!(b.sign(block(318, 1)), Ok(first));
    b.clock.0.store(NOW_MS + 12_000, Ordering::SeqCst);
    let refused = Refusal::BlockTooOld { slot: Slot(318), now: Slot(321), oldest: Slot(319) };
    assert_eq!(b.sign(block(318, 1)), Err(refused));
    // No duty that cannot be slashed is too old.
    assert!(b.sign(Duty::RandaoReveal { epoch: Epoch(1) }).is_ok());

    let b = with(Window::ANY);
    assert!(b.sign(block(1, 1)).is_ok());
    assert!(b.sign(attestation(0, 1, 1)).is_ok());
    let narrow = with(Window { max_block_age_slots: Some(0), max_target_age_epochs: None });
    assert!(matches!(narrow.sign(block(319, 1)), Err(Refusal::BlockTooOld { .. })));
    assert!(narrow.sign(attestation(0, 1, 1)).is_ok());
}

#[test]
fn a_vote_from_an_epoch_to_itself_moves_no_watermark() {
    let b = bench();
    assert_eq!(b.sign(attestation(10, 10, 1)), Err(Refusal::SourceIsTarget { epoch: Epoch(10) }));
    assert!(b.journal.saved.lock().unwrap().is_empty());
    // The source that it would have raised is still free.
    assert!(b.sign(attestation(9, 10, 1)).is_ok());
}

#[test]
fn another_network_or_another_root_is_refused_before_any_watermark_moves() {
    let b = bench();
    let mut request = SignRequest {
        public_key: b.keys[0],
        duty: attestation(8, 9, 1),
        fork_info: Some(ForkInfo { genesis_validators_root: Bytes([5; 32]), ..fork_info() }),
        signing_root: None,
        proofs: Vec::new(),
    };
    assert_eq!(b.ask(request.clone()), Err(Refusal::OtherNetwork { asked: Bytes([5; 32]), served: GENESIS }));
    request.fork_info = None;
    assert_eq!(b.ask(request.clone()), Err(Refusal::ForkInfoMissing));
    request.fork_info = Some(fork_info());
    request.signing_root = Some(Bytes([6; 32]));
    let Err(Refusal::SigningRootDiffers { asked, computed }) = b.ask(request.clone()) else { panic!() };
    assert_eq!(asked, Bytes([6; 32]));
    assert!(b.journal.saved.lock().unwrap().is_empty());
    request.signing_root = Some(computed);
    assert!(b.ask(request.clone()).is_ok());
    request.public_key = Bytes([9; 48]);
    assert_eq!(b.ask(request.clone()), Err(Refusal::UnknownKey));
    let deposit = Duty::Deposit {
        public_key: b.keys[0],
        withdrawal_credentials: GENESIS,
        amount: 32_000_000_000,
        genesis_fork_version: Bytes([9; 4]),
    };
    assert!(matches!(b.sign(deposit), Err(Refusal::OtherGenesisVersion { .. })));
}

#[test]
fn an_exits_domain_is_capellas_from_deneb_on_whatever_fork_info_says() {
    let b = bench();
    let exit = |epoch| Duty::VoluntaryExit { epoch: Epoch(epoch), validator_index: 7 };
    let sign = |epoch, previous, current, fork_epoch| {
        b.ask(SignRequest {
            public_key: b.keys[0],
            duty: exit(epoch),
            fork_info: Some(ForkInfo {
                previous_version: Bytes([previous; 4]),
                current_version: Bytes([current; 4]),
                epoch: Epoch(fork_epoch),
                genesis_validators_root: GENESIS,
            }),
            signing_root: None,
            proofs: Vec::new(),
        })
        .unwrap()
    };
    // Deneb starts at epoch 5, Capella's version is 3.
    let capella = sign(5, 3, 3, 0);
    assert_eq!(sign(5, 3, 4, 5), capella);
    assert_eq!(sign(5, 9, 9, 0), capella);
    // Before Deneb fork_info decides.
    assert_ne!(sign(4, 9, 9, 0), sign(4, 3, 3, 0));
    assert_eq!(sign(4, 3, 4, 5), sign(4, 3, 3, 0));
}

#[test]
fn the_version_changes_with_the_epoch_of_the_fork() {
    let b = bench();
    let sign = |previous, current, fork_epoch| {
        let fork_info = Some(ForkInfo {
            previous_version: Bytes([previous; 4]),
            current_version: Bytes([current; 4]),
            epoch: Epoch(fork_epoch),
            genesis_validators_root: GENESIS,
        });
        let duty = Duty::RandaoReveal { epoch: Epoch(7) };
        b.ask(SignRequest { public_key: b.keys[0], duty, fork_info, signing_root: None, proofs: Vec::new() }).unwrap()
    };
    let (three, four) = (sign(3, 3, 0), sign(4, 4, 0));
    assert_ne!(three, four);
    assert_eq!(sign(3, 4, 8), three);
    assert_eq!(sign(3, 4, 7), four);
    assert_eq!(sign(3, 4, 6), four);
}

#[test]
fn floors_and_ceilings_bind_every_key() {
    let limits = Limits {
        floors: Floors { slot: Some(Slot(310)), target: Some(Epoch(8)), source: Some(Epoch(6)) },
        ceilings: Ceilings { slot: Slot(315), target: Epoch(9), source: Epoch(7) },
    };
    let b = bench_with(
        &[SlashingHistory::Known(Watermarks::NONE)],
        limits,
        Policy { proof_of_validation: false, ..Policy::permissive() },
    );
    assert_eq!(b.sign(block(310, 1)), Err(Refusal::BlockNotAboveFloor { slot: Slot(310), floor: Slot(310) }));
    assert_eq!(b.sign(block(316, 1)), Err(Refusal::BlockAboveCeiling { slot: Slot(316), ceiling: Slot(315) }));
    assert!(b.sign(block(315, 1)).is_ok());
    assert!(matches!(b.sign(attestation(7, 8, 1)), Err(Refusal::TargetNotAboveFloor { .. })));
    assert!(matches!(b.sign(attestation(5, 9, 1)), Err(Refusal::SourceBelowFloor { .. })));
    assert!(matches!(b.sign(attestation(8, 9, 1)), Err(Refusal::SourceAboveCeiling { .. })));
    assert!(matches!(b.sign(attestation(7, 10, 1)), Err(Refusal::TargetAboveCeiling { .. })));
    assert!(b.sign(attestation(7, 9, 1)).is_ok());
    let granted = HighWatermark { slot: Slot(315), epoch: Epoch(9) };
    assert_eq!(b.vault.handle(&Request::HighWatermark), Reply::HighWatermark(Some(granted)));
    assert_eq!(bench().vault.handle(&Request::HighWatermark), Reply::HighWatermark(None));
}

#[test]
fn of_many_conflicting_requests_at_once_exactly_one_is_signed() {
    let duties: [fn(u8) -> Duty; 2] = [|i| attestation(8, 9, i), |i| block(300, i)];
    for duty in duties {
        let b = bench();
        let start = Barrier::new(32);
        let signed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for i in 0..32u8 {
                let (b, start, signed) = (&b, &start, &signed);
                scope.spawn(move || {
                    start.wait();
                    if b.sign(duty(i)).is_ok() {
                        signed.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(signed.load(Ordering::SeqCst), 1);
        assert_eq!(b.journal.saved.lock().unwrap().len(), 1);
    }
}

#[test]
fn proofs_of_validation_are_off_unless_turned_on_and_sign_no_foreign_text() {
    let ask = |b: &Bench, platform: &str, timestamp: &str| {
        b.vault.handle(&Request::ProofOfValidation {
            public_key: b.keys[0],
            platform: platform.into(),
            timestamp: timestamp.into(),
        })
    };
    assert_eq!(ask(&bench(), "dappnode", "1"), Reply::Refused(Refusal::ProofOfValidationOff));
    let on = bench_with(&[SlashingHistory::Known(Watermarks::NONE)], Limits::NONE, Policy::permissive());
    let Reply::ProofOfValidation { payload, .. } = ask(&on, "dappnode", "1711338489397") else { panic!() };
    assert_eq!(payload, r#"{"type":"PROOF_OF_VALIDATION","platform":"dappnode","timestamp":"1711338489397"}"#);
    assert_eq!(ask(&on, "\"", "1"), Reply::Refused(Refusal::BadText));
    assert_eq!(ask(&on, "a", "1\n"), Reply::Refused(Refusal::BadText));
    assert_eq!(ask(&on, &"a".repeat(129), "1"), Reply::Refused(Refusal::TooLong { len: 129, max: 128 }));
}

#[test]
fn duplicate_and_invalid_keys_are_refused() {
    use casemate_vault::KeyError;
    let known = |_: usize, _: &PublicKey| SlashingHistory::Known(Watermarks::NONE);
    assert!(matches!(Keys::load(&mut [[1; 32], [1; 32]], known), Err(KeyError::Duplicate(_))));
    assert!(matches!(Keys::load(&mut [[1; 32], [0; 32]], known), Err(KeyError::Invalid(1))));
    assert_eq!(Keys::load(&mut [], known).map(|k| k.len()), Ok(0));
}

/// The vault's process, reduced to a thread.
fn served(b: Bench, then: impl FnOnce(&mut UnixStream, &[PublicKey])) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let keys = b.keys.clone();
    let vault = std::thread::spawn(move || server::serve(&b.vault, &theirs, NonZeroUsize::new(2).unwrap()));
    then(&mut ours, &keys);
    drop(ours);
    vault.join().unwrap().unwrap();
}

fn send(stream: &mut UnixStream, channel: u64, frame: &[u8]) {
    let mut out = Vec::new();
    frame::encode_channel_frame(channel, frame, &mut out);
    stream.write_all(&out).unwrap();
}

fn receive(stream: &mut UnixStream) -> (u64, Vec<u8>) {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut inner = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
    stream.read_exact(&mut inner).unwrap();
    let (channel, frame) = frame::split_channel(&inner).unwrap();
    (channel, frame.to_vec())
}

#[test]
fn the_server_answers_each_channel_with_its_own_replies() {
    served(bench(), |stream, keys| {
        for id in 0..200u64 {
            let request = Request::Sign(SignRequest {
                public_key: keys[0],
                duty: Duty::AggregationSlot { slot: Slot(id) },
                fork_info: Some(fork_info()),
                signing_root: None,
                proofs: Vec::new(),
            });
            let mut bytes = Vec::new();
            frame::encode_request(&RequestFrame::new(id, request), &mut bytes);
            // Channel 0 is for the vault's own calls.
            send(stream, 1 + id % 3, &bytes[4..]);
        }
        let mut seen = vec![false; 200];
        for _ in 0..200 {
            let (channel, bytes) = receive(stream);
            let reply = frame::decode_reply(&bytes).unwrap();
            assert_eq!(channel, 1 + reply.id % 3);
            assert!(matches!(reply.reply, Reply::Signature(_)));
            seen[usize::try_from(reply.id).unwrap()] = true;
        }
        assert!(seen.into_iter().all(|s| s));
    });
}

#[test]
fn a_hostile_frame_costs_its_channel_and_nothing_else() {
    served(bench(), |stream, _| {
        send(stream, 1, &[0xff; 100]);
        let refused = Reply::Refused(Refusal::MalformedFrame(MalformedFrame::Encoding));
        assert_eq!(receive(stream).1, {
            let mut bytes = Vec::new();
            frame::encode_reply(&ReplyFrame::new(0, refused), &mut bytes);
            bytes.split_off(4)
        });
        assert_eq!(receive(stream), (1, Vec::new()), "the order to close");
        let mut bytes = Vec::new();
        frame::encode_request(&RequestFrame::new(9, Request::HighWatermark), &mut bytes);
        send(stream, 2, &bytes[4..]);
        let (channel, bytes) = receive(stream);
        assert_eq!((channel, frame::decode_reply(&bytes).unwrap().id), (2, 9));
    });
}
