//! The keeper by itself, on time that passes as it waits: when it asks, when it claims, and what its errands come back with.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_nitro_enclaves_nsm_api::api::{ErrorCode, Request as NsmRequest, Response as NsmResponse};
use casemate_fence::Beginning;
use casemate_protocol::network::NetworkFields;
use casemate_protocol::statement::RecordKind;
use casemate_protocol::{Bytes, Epoch, Fork, ForkName, Network, Preset, PublicKey};
use casemate_slashing::{GroupFloor, Limits, SlashingHistory, Watermarks};

use super::*;
use crate::fence::FenceParts;
use crate::keys::journal::NotSaved;
use crate::platform::runtime::Bell;
use crate::{Attestor, Clock, Identity, Journal, Keys, Nsm, Policy};

/// Milliseconds that pass as somebody waits; the clock too.
#[derive(Clone, Default)]
struct Time {
    passed: Arc<AtomicU64>,
    began: u64,
}

impl Time {
    fn ms(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

impl Runtime for Time {
    fn now(&self) -> Duration {
        Duration::from_millis(self.ms())
    }

    fn sleep(&self, length: Duration) {
        self.passed.fetch_add(u64::try_from(length.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::new(self.clone())
    }
}

impl Bell for Time {
    fn ring(&self) {}

    fn wait(&self, at_most: Duration) {
        self.sleep(at_most);
    }
}

impl Clock for Time {
    fn unix_ms(&self) -> Option<u64> {
        Some(self.began + self.ms())
    }
}

/// A store that does what it is told, and remembers what it was asked, and when.
#[derive(Default)]
struct Script {
    record: Option<Record>,
    away: bool,
    /// It can be read, and takes no writes.
    full: bool,
    closed: bool,
    /// The next creation or swap does not take place: this is there instead.
    instead: VecDeque<Record>,
    asked: Vec<(u64, StoreOp)>,
}

struct Shop(Arc<Mutex<Script>>, Time);

impl Store for Shop {
    fn kind(&self) -> RecordKind {
        RecordKind::Etcd
    }

    fn identity(&self) -> Option<String> {
        None
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        let mut script = self.0.lock().unwrap();
        script.asked.push((self.1.ms(), *question));
        if script.away {
            return (StoreResponse::Unclear, Some(StoreTrouble::Away));
        }
        if script.full && !matches!(question, StoreOp::Read) {
            return (StoreResponse::Unclear, Some(StoreTrouble::Status { status: 429 }));
        }
        let heard = match question {
            StoreOp::Read => StoreResponse::Record(script.record),
            StoreOp::Create(_) | StoreOp::Swap { .. } if !script.instead.is_empty() => {
                script.record = script.instead.pop_front();
                StoreResponse::Conflict
            }
            StoreOp::Create(new) if script.record.is_none() => {
                script.record = Some(*new);
                StoreResponse::Swapped
            }
            StoreOp::Swap { old, new } if script.record == Some(*old) => {
                script.record = Some(*new);
                StoreResponse::Swapped
            }
            StoreOp::Create(_) | StoreOp::Swap { .. } => StoreResponse::Conflict,
        };
        (heard, None)
    }

    /// Those for DynamoDB are of another store.
    fn open(&mut self, credentials: &StoreCredentials) -> bool {
        matches!(credentials, StoreCredentials::Etcd { .. })
    }

    fn is_open(&self) -> bool {
        !self.0.lock().unwrap().closed
    }
}

/// A disk that may be full, and may be trusted.
#[derive(Clone, Default)]
struct Disk {
    leaves: Option<Root>,
    full: Arc<AtomicBool>,
}

impl Journal for Disk {
    fn record(&self, _: &PublicKey, _: &Watermarks) -> Result<(), NotSaved> {
        if self.full.load(Ordering::SeqCst) { Err(NotSaved) } else { Ok(()) }
    }

    fn durable_state_digest(&self) -> Option<Root> {
        self.leaves
    }

    fn raise_floor(&self, _: GroupFloor) -> Result<(), NotSaved> {
        if self.full.load(Ordering::SeqCst) { Err(NotSaved) } else { Ok(()) }
    }
}

/// Entropy that is none: boots are told apart by nobody here.
struct Sevens;

impl Nsm for Sevens {
    fn process(&self, request: NsmRequest) -> NsmResponse {
        match request {
            NsmRequest::GetRandom => NsmResponse::GetRandom { random: vec![7; 32] },
            _ => NsmResponse::Error(ErrorCode::InvalidOperation),
        }
    }
}

const ME: Holder = Bytes([7; 32]);
const OTHER: Holder = Bytes([9; 32]);
/// The slot in which every test begins.
const NOW: u64 = 100;

fn network(slot_duration_ms: u64) -> Network {
    NetworkFields {
        name: "slow".into(),
        preset: Preset::Minimal,
        genesis_time: 1_000_000,
        genesis_validators_root: Bytes([5; 32]),
        slot_duration_ms,
        slots_per_epoch: 4,
        forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
    }
    .try_into()
    .unwrap()
}

/// A vault, its store and its disk.
struct World {
    time: Time,
    script: Arc<Mutex<Script>>,
    vault: Vault,
    keeping: Mutex<Option<Keeping>>,
}

impl World {
    fn new(slot_ms: u64, record: Option<Record>) -> Self {
        Self::on(slot_ms, record, &Disk::default())
    }

    fn on(slot_ms: u64, record: Option<Record>, disk: &Disk) -> Self {
        let time = Time { passed: Arc::default(), began: 1_000_000_000 + NOW * slot_ms };
        let script = Arc::new(Mutex::new(Script { record, ..Script::default() }));
        let network = network(slot_ms);
        let keys = Keys::load(&mut [[1; 32]], |_, _| SlashingHistory::Known(Watermarks::NONE)).unwrap();
        let identity = Identity { group: "alpha".into(), configuration_sha256: Bytes([9; 32]) };
        let attestor = Attestor::new(Arc::new(Sevens), identity, &network, &keys).unwrap();
        let shop = Box::new(Shop(Arc::clone(&script), time.clone()));
        let (fence_gate, keeping) = FenceParts::with_record(shop).split();
        let fence_gate = fence_gate.running_on(Arc::new(time.clone()));
        let (clock, disk) = (Box::new(time.clone()), Box::new(disk.clone()));
        let vault = Vault::new(network, keys, Limits::NONE, Policy::default(), clock, disk)
            .fenced_by(fence_gate, Arc::new(time.clone()))
            .attested_by(attestor);
        Self { time, script, vault, keeping: Mutex::new(Some(keeping)) }
    }

    /// From a sealed state that has seen this version of the record.
    fn keeper(&self, seen: u64) -> FenceKeeper<'_> {
        FenceKeeper::new(&self.vault, self.keeping.lock().unwrap().take().unwrap(), seen)
    }

    /// Goes on until so many milliseconds have passed.
    fn go(&self, keeper: &mut FenceKeeper<'_>, until: u64) {
        while self.time.ms() < until {
            keeper.step();
            assert!(keeper.wait().is_none());
        }
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    fn record(&self) -> Record {
        self.script().record.unwrap()
    }

    fn put(&self, record: Record) {
        self.script().record = Some(record);
    }

    fn asked(&self) -> Vec<u64> {
        self.script().asked.iter().map(|(at, _)| *at).collect()
    }

    /// When it first asked for a change.
    fn claimed(&self) -> Option<u64> {
        let change = |(at, question): &(u64, StoreOp)| (!matches!(question, StoreOp::Read)).then_some(*at);
        self.script().asked.iter().find_map(change)
    }

    fn standing(&self) -> StatedStatus {
        self.vault.fence_gate().standing()
    }

    fn signs(&self) -> bool {
        self.vault.fence_gate().pass().is_ok()
    }
}

/// Of another enclave, which may sign up to this slot.
fn others(slot: u64) -> Record {
    let ceilings = Ceilings { slot: Slot(slot), target: Epoch(slot / 4), source: Epoch(1) };
    Record { version: 5, holder: OTHER, term: 3, ceilings, min_state_version: 0, released_state: None, closed: false }
}

/// As operators have it made.
fn new() -> Record {
    Record { holder: Holder::ZERO, ..others(NOW) }
}

/// A keeper that has held the record for a while: in term 4.
fn holds(world: &World) -> FenceKeeper<'_> {
    let mut keeper = world.keeper(0);
    world.go(&mut keeper, 1000);
    assert_eq!((world.standing(), world.record().term), (StatedStatus::Holding, 4));
    keeper
}

#[test]
fn a_store_that_is_away_is_asked_less_and_less_often_and_one_that_is_back_as_often_as_ever() {
    let world = World::new(12_000, None);
    let mut keeper = world.keeper(0);
    world.script().away = true;
    world.go(&mut keeper, 8000);
    assert_eq!(world.asked(), [0, 100, 300, 700, 1500, 3100, 5100, 7100]);
    world.script().away = false;
    world.go(&mut keeper, 9700);
    assert_eq!(world.asked()[8..], [9100, 9600]);
    world.script().away = true;
    world.go(&mut keeper, 11_000);
    assert_eq!(world.asked()[10..], [10_100, 10_200, 10_400, 10_800]);
}

#[test]
fn one_that_stands_by_looks_twice_a_second() {
    for record in [None, Some(others(NOW + 3)), Some(Record { closed: true, ..others(NOW) })] {
        let world = World::new(12_000, record);
        let mut keeper = world.keeper(0);
        world.go(&mut keeper, 2100);
        assert_eq!(world.asked(), [0, 500, 1000, 1500, 2000], "{record:?}");
    }
}

#[test]
fn a_record_is_claimed_in_the_first_slot_above_its_ceilings() {
    let world = World::new(1000, Some(others(NOW + 2)));
    let mut keeper = world.keeper(0);
    world.go(&mut keeper, 5000);
    assert_eq!(world.claimed(), Some(3000));
    assert_eq!((world.standing(), world.record().holder), (StatedStatus::Holding, ME));
}

#[test]
fn a_record_whose_ceilings_have_passed_is_claimed_once_it_has_stayed_the_same() {
    // For two seconds, or a slot where that is shorter, from when it was first considered.
    for (slot_ms, after) in [(12_000, 2100), (1000, 1100)] {
        let world = World::new(slot_ms, Some(others(NOW - 5)));
        let mut keeper = world.keeper(0);
        world.go(&mut keeper, 4000);
        assert_eq!(world.claimed(), Some(after));
    }
    // Its holder lives: anyone who waits begins anew.
    let world = World::new(12_000, Some(others(NOW - 5)));
    let mut keeper = world.keeper(0);
    world.go(&mut keeper, 900);
    world.put(Record { version: 6, ..others(NOW - 5) });
    world.go(&mut keeper, 5000);
    assert_eq!(world.claimed(), Some(3100), "it was seen in the look at 1000");
}

#[test]
fn a_store_that_comes_back_leaves_the_former_holder_a_slot_before_a_standby_claims() {
    let slot_ms = 4000;
    let away = |world: &World, keeper: &mut FenceKeeper<'_>| {
        // It has stood by, and the store goes away until the ceilings have long passed.
        world.go(keeper, 2000);
        world.script().away = true;
        world.go(keeper, 40_000);
        assert_eq!(world.claimed(), None);
        world.script().away = false;
    };
    let world = World::new(slot_ms, Some(others(NOW + 2)));
    let mut keeper = world.keeper(0);
    away(&world, &mut keeper);
    // Its holder lives, and goes on within that slot: it stays the holder.
    world.go(&mut keeper, 43_000);
    world.put(Record { version: 6, ..others(NOW + 20) });
    world.go(&mut keeper, 60_000);
    assert_eq!((world.claimed(), world.standing()), (None, StatedStatus::Standby));

    // It is dead: it is followed a slot after the store's first answer.
    let world = World::new(slot_ms, Some(others(NOW + 2)));
    let mut keeper = world.keeper(0);
    away(&world, &mut keeper);
    let mut back = 40_000;
    while world.vault.fence_gate().silence().is_some() {
        back += 100;
        world.go(&mut keeper, back);
    }
    world.go(&mut keeper, back + 3 * slot_ms);
    let claimed = world.claimed().unwrap();
    assert!((back + slot_ms - 200..=back + slot_ms + 700).contains(&claimed), "back at {back}, claimed at {claimed}");
}

#[test]
fn a_store_is_silent_from_the_first_question_that_it_leaves_open() {
    let world = World::new(1000, Some(new()));
    let mut keeper = holds(&world);
    let gate = world.vault.fence_gate();
    assert_eq!(gate.silence(), None);
    world.script().away = true;
    let begun = world.time.ms();
    world.go(&mut keeper, begun + 6000);
    let silence = gate.silence().unwrap();
    assert!((4500..=6000).contains(&silence.ms) && silence.trouble == StoreTrouble::Away, "{silence:?}");
    world.script().away = false;
    world.go(&mut keeper, begun + 9000);
    assert_eq!(gate.silence(), None);
    assert!(gate.store_answered_ms().unwrap() < 1500);
}

#[test]
fn a_full_store_is_silent_though_it_can_be_read() {
    let world = World::new(1000, Some(new()));
    let mut keeper = holds(&world);
    world.script().full = true;
    world.go(&mut keeper, 8000);
    let silence = world.vault.fence_gate().silence().unwrap();
    assert!(silence.ms > 5000 && silence.trouble == StoreTrouble::Status { status: 429 }, "{silence:?}");
    world.script().full = false;
    world.go(&mut keeper, 12_000);
    assert_eq!(world.vault.fence_gate().silence(), None);
}

#[test]
fn nobody_waits_for_a_record_that_was_made_left_behind_or_ordered_to_be_taken() {
    let (state, unpassed) = (Bytes([4; 32]), others(NOW + 2));
    let trusted = Disk { leaves: Some(state), ..Disk::default() };
    for (record, disk, takeover, at) in [
        (Record { holder: Holder::ZERO, ..unpassed }, Disk::default(), false, 100),
        (Record { released_state: Some(state), ..unpassed }, trusted.clone(), false, 100),
        (unpassed, Disk::default(), true, 100),
        // None of these is a reason.
        (unpassed, Disk::default(), false, 3000),
        (Record { released_state: Some(Bytes([3; 32])), ..unpassed }, trusted, false, 3000),
        (Record { released_state: Some(state), ..unpassed }, Disk::default(), false, 3000),
    ] {
        let world = World::on(1000, Some(record), &disk);
        let mut keeper = world.keeper(0);
        keeper.takeover = takeover;
        world.go(&mut keeper, 5000);
        assert_eq!(world.claimed(), Some(at), "{record:?}");
        assert_eq!(world.standing(), StatedStatus::Holding);
    }
}

#[test]
fn one_that_has_left_comes_back_after_five_seconds_or_when_it_is_ordered_to() {
    let leave = |world: &World, keeper: &mut FenceKeeper<'_>| {
        world.vault.fence_gate().close().unwrap();
        let left = keeper.carry_out(KeeperRequest::Leave { state: Bytes([4; 32]), term: 4 });
        assert!(matches!(left, Ok(KeeperReply::Yes)), "{left:?}");
        assert_eq!(world.record().released_state, Some(Bytes([4; 32])));
        assert_eq!(world.standing(), StatedStatus::Standby);
    };
    let world = World::new(500, Some(new()));
    let mut keeper = holds(&world);
    leave(&world, &mut keeper);
    world.script().asked.clear();
    world.go(&mut keeper, 8000);
    // From then on it has to stay the same for a slot, as any other.
    assert_eq!(world.claimed(), Some(6500));
    assert_eq!((world.standing(), world.signs()), (StatedStatus::Holding, true));

    let world = World::new(500, Some(new()));
    let mut keeper = holds(&world);
    leave(&world, &mut keeper);
    let took = keeper.carry_out(KeeperRequest::Takeover);
    assert!(matches!(took, Ok(KeeperReply::Record(Some(Record { term: 5, holder: ME, .. })))), "{took:?}");
    assert_eq!((world.time.ms(), world.signs()), (1000, true));
}

#[test]
fn a_disk_that_stands_for_the_past_has_it_before_the_record_says_so() {
    let state = Bytes([4; 32]);
    for (clean, leaves, full, claims) in [
        // The very state: what it lacks, the disk has.
        (Some(state), Some(state), true, true),
        // Whatever the last holder has left, or nothing: the floors go onto the disk first.
        (None, Some(state), true, false),
        (Some(Bytes([3; 32])), Some(state), true, false),
        (None, Some(state), false, true),
        // One that leaves nothing need not.
        (None, None, true, true),
    ] {
        let disk = Disk { leaves, full: Arc::new(AtomicBool::new(full)) };
        let world = World::on(1000, Some(Record { released_state: clean, ..new() }), &disk);
        let mut keeper = world.keeper(0);
        world.go(&mut keeper, 2000);
        assert_eq!(world.claimed().is_some(), claims, "{clean:?} {leaves:?} {full}");
        assert_eq!(world.record().holder == ME, claims);
    }
}

#[test]
fn one_whose_keys_cannot_be_raised_to_the_floors_signs_nothing_and_keeps_nobody_from_it() {
    let disk = Disk::default();
    disk.full.store(true, Ordering::SeqCst);
    let world = World::on(1000, Some(new()), &disk);
    let mut keeper = world.keeper(0);
    world.go(&mut keeper, 5000);
    let changes = |script: &Script| script.asked.iter().filter(|(_, q)| !matches!(q, StoreOp::Read)).count();
    assert_eq!(changes(&world.script()), 1, "it claims, and extends nothing");
    assert_eq!((world.record().holder, world.signs()), (ME, false));
    disk.full.store(false, Ordering::SeqCst);
    world.go(&mut keeper, 6000);
    assert_eq!((world.standing(), world.signs()), (StatedStatus::Holding, true));
    assert!(changes(&world.script()) > 1);
}

#[test]
fn a_gate_that_is_closed_for_a_handover_stays_closed_while_the_record_is_held() {
    let world = World::new(1000, Some(new()));
    let mut keeper = holds(&world);
    assert!(world.signs());
    world.vault.fence_gate().close().unwrap();
    world.go(&mut keeper, 3000);
    assert_eq!((world.standing(), world.signs()), (StatedStatus::HandingOver, false));
    world.vault.fence_gate().reopen();
    world.go(&mut keeper, 3200);
    assert_eq!((world.standing(), world.signs()), (StatedStatus::Holding, true));
}

#[test]
fn looks_say_at_once_what_the_store_shows() {
    let look = |record, seen| {
        let world = World::new(1000, record);
        let mut keeper = world.keeper(seen);
        let done = keeper.carry_out(KeeperRequest::Look);
        assert_eq!((world.time.ms(), world.asked()), (0, vec![0]));
        done
    };
    assert!(matches!(look(None, 0), Ok(KeeperReply::Record(None))));
    assert!(matches!(look(Some(others(NOW)), 5), Ok(KeeperReply::Record(Some(Record { version: 5, .. })))));
    let closed = Record { closed: true, ..others(NOW) };
    assert!(matches!(look(Some(closed), 0), Ok(KeeperReply::Record(Some(Record { closed: true, .. })))));
    let far = Record { version: 1 << 50, ..others(NOW) };
    assert!(matches!(look(Some(far), 0), Err(Refusal::StoreAway(StoreTrouble::Record))));
    let back = look(Some(others(NOW)), 9);
    assert!(matches!(back, Err(Refusal::NotHolder(NotHolder::RolledBack { seen: 9, found: 5 }))), "{back:?}");
}

fn beginning(term: u64) -> Beginning {
    let ceilings = others(NOW + 3).ceilings;
    Beginning { above_version: 10, term, ceilings, min_state_version: 4, exact: None, lost: false }
}

#[test]
fn a_record_is_made_where_there_is_none_and_where_one_has_ended() {
    let create = |record, instead: &[Record]| {
        let world = World::new(1000, record);
        world.script().instead.extend(instead);
        let mut keeper = world.keeper(0);
        let done = keeper.carry_out(KeeperRequest::Create(beginning(8)));
        assert_eq!(world.time.ms(), 0);
        (done, world.record())
    };
    let made = Record { version: 11, holder: Holder::ZERO, term: 8, min_state_version: 4, ..others(NOW + 3) };
    let ended = |term| Record { closed: true, term, ..others(NOW) };
    for before in [None, Some(ended(3))] {
        let (done, record) = create(before, &[]);
        assert!(matches!(done, Ok(KeeperReply::Yes)), "{done:?}");
        assert_eq!(record, made);
    }
    // It must begin above the one that has ended.
    assert!(matches!(create(Some(ended(8)), &[]), (Err(Refusal::FenceClosed), record) if record == ended(8)));
    // One that is there stays, also one that was made with the same number and that nobody has claimed.
    let same = Record { min_state_version: 4, ..new() };
    for there in [others(NOW), same] {
        assert!(matches!(create(Some(there), &[]), (Err(Refusal::FenceExists), record) if record == there));
    }
    // Somebody was faster, and has claimed it, or ended it.
    for faster in [Record { version: 11, min_state_version: 4, ..others(NOW) }, ended(3)] {
        assert!(matches!(create(None, &[faster]), (Err(Refusal::FenceExists), record) if record == faster));
    }
}

#[test]
fn older_states_are_refused_by_the_term_that_was_told_to() {
    let world = World::new(1000, Some(new()));
    let mut keeper = holds(&world);
    let before = world.record();
    let other = keeper.carry_out(KeeperRequest::Raise { sealed: 9, term: 3 });
    assert!(matches!(other, Err(Refusal::NotHolder(NotHolder::StoreUnknown(_)))), "{other:?}");
    assert_eq!(world.record(), before);
    assert!(matches!(keeper.carry_out(KeeperRequest::Raise { sealed: 9, term: 4 }), Ok(KeeperReply::Yes)));
    assert_eq!(world.record().min_state_version, 9);
    // They are refused already.
    let asked = world.asked().len();
    for sealed in [9, 8] {
        assert!(matches!(keeper.carry_out(KeeperRequest::Raise { sealed, term: 4 }), Ok(KeeperReply::Yes)));
    }
    assert_eq!((world.asked().len(), world.record().min_state_version, world.time.ms()), (asked, 9, 1000));
}

#[test]
fn one_leaves_in_the_term_that_was_sealed_with_its_gate_closed() {
    let world = World::new(1000, Some(new()));
    let mut keeper = holds(&world);
    let before = world.record();
    let leave =
        |keeper: &mut FenceKeeper<'_>, term| keeper.carry_out(KeeperRequest::Leave { state: Bytes([4; 32]), term });
    assert!(matches!(leave(&mut keeper, 4), Err(Refusal::NotHolder(NotHolder::StoreUnknown(_)))), "it signs");
    world.vault.fence_gate().close().unwrap();
    assert!(matches!(leave(&mut keeper, 3), Err(Refusal::NotHolder(NotHolder::StoreUnknown(_)))), "another term");
    assert_eq!((world.record(), world.time.ms()), (before, 1000));
    assert!(matches!(leave(&mut keeper, 4), Ok(KeeperReply::Yes)));
    assert_eq!(world.record().released_state, Some(Bytes([4; 32])));
    // Having left, it has.
    assert!(matches!(leave(&mut keeper, 4), Ok(KeeperReply::Yes)));
}

#[test]
fn what_cannot_be_taken_over_is_said_at_once() {
    let takeover = |record, seen| {
        let world = World::new(1000, record);
        let mut keeper = world.keeper(seen);
        let done = keeper.carry_out(KeeperRequest::Takeover);
        assert!(world.time.ms() <= 100 && !keeper.takeover, "{}", world.time.ms());
        done.map(|_| world.record().term)
    };
    assert_eq!(takeover(None, 0), Err(Refusal::NotHolder(NotHolder::NoRecord)));
    assert_eq!(takeover(Some(others(NOW + 2)), 0), Ok(4));
    assert_eq!(takeover(Some(Record { closed: true, ..others(NOW) }), 0), Err(Refusal::FenceClosed));
    let back = NotHolder::RolledBack { seen: 9, found: 5 };
    assert_eq!(takeover(Some(others(NOW)), 9), Err(Refusal::NotHolder(back)));
    let far = NotHolder::FromFuture { slot_ceiling: Slot(NOW + 500), now: Slot(NOW) };
    assert_eq!(takeover(Some(others(NOW + 500)), 0), Err(Refusal::NotHolder(far)));
}

#[test]
fn a_record_is_ended_by_its_holder_with_its_gate_closed_or_by_another_with_nothing_to_leave() {
    let state = Bytes([4; 32]);
    let world = World::new(1000, Some(new()));
    let mut keeper = holds(&world);
    let before = world.record();
    let other =
        |done: Result<KeeperReply, Refusal>| matches!(done, Err(Refusal::NotHolder(NotHolder::StoreUnknown(_))));
    assert!(other(keeper.carry_out(KeeperRequest::Close(Some((state, 4))))), "it signs");
    assert!(other(keeper.carry_out(KeeperRequest::Close(None))), "it holds, and leaves nothing");
    world.vault.fence_gate().close().unwrap();
    assert!(other(keeper.carry_out(KeeperRequest::Close(Some((state, 3))))), "another term");
    assert_eq!(world.record(), before);
    let closed = keeper.carry_out(KeeperRequest::Close(Some((state, 4))));
    assert!(matches!(closed, Ok(KeeperReply::Record(Some(Record { closed: true, .. })))), "{closed:?}");
    assert_eq!((world.record().released_state, world.time.ms()), (Some(state), 1000));

    let close = |record, seen, left| {
        let world = World::new(1000, record);
        let mut keeper = world.keeper(seen);
        let done = keeper.carry_out(KeeperRequest::Close(left));
        assert_eq!(world.time.ms(), 0);
        done.map(|_| world.record())
    };
    let there = others(NOW + 2);
    assert_eq!(close(Some(there), 0, None), Ok(Record { version: 6, closed: true, ..there }));
    let refused = close(Some(there), 0, Some((state, 3)));
    assert!(matches!(refused, Err(Refusal::NotHolder(NotHolder::StoreUnknown(_)))), "{refused:?}");
    assert_eq!(close(None, 0, None), Err(Refusal::NotHolder(NotHolder::NoRecord)));
    let far = Record { version: 1 << 50, ..there };
    assert_eq!(close(Some(far), 0, None), Err(Refusal::StoreAway(StoreTrouble::Record)));
    assert_eq!(close(Some(there), 9, None), Err(Refusal::NotHolder(NotHolder::RolledBack { seen: 9, found: 5 })));
}

#[test]
fn credentials_must_show_the_record_that_is_known() {
    let etcd = StoreCredentials::Etcd {
        certificates: Vec::new(),
        key: casemate_protocol::BoundedBytes::new(vec![1]).unwrap(),
    };
    let dynamodb = StoreCredentials::Dynamodb { access_key_id: "AKID".into(), secret_access_key: "s".into() };
    let try_them = |record, seen, credentials: &StoreCredentials| {
        let world = World::new(1000, record);
        let mut keeper = world.keeper(seen);
        keeper.carry_out(KeeperRequest::Credentials(credentials.clone())).map(drop)
    };
    for seen in [0, 4, 5] {
        assert_eq!(try_them(Some(others(NOW)), seen, &etcd), Ok(()));
    }
    let back = NotHolder::RolledBack { seen: 6, found: 5 };
    assert_eq!(try_them(Some(others(NOW)), 6, &etcd), Err(Refusal::NotHolder(back)));
    assert_eq!(try_them(None, 0, &etcd), Err(Refusal::NotHolder(NotHolder::NoRecord)));
    assert_eq!(try_them(Some(others(NOW)), 0, &dynamodb), Err(Refusal::StoreCredentials));
}

#[test]
fn an_order_that_gets_no_answer_is_given_up_and_asked_no_more_often_than_needed() {
    let world = World::new(1000, None);
    world.script().away = true;
    let mut keeper = world.keeper(0);
    let unclear = keeper.carry_out(KeeperRequest::Look);
    assert!(matches!(unclear, Err(Refusal::FenceUnclear(StoreTrouble::Away))), "{unclear:?}");
    let given_up = ORDER_TIMEOUT + MIN_BACKOFF;
    assert_eq!(world.time.now(), given_up, "after the first look at the clock beyond its time");
    let looks = given_up.as_millis() / MIN_BACKOFF.as_millis() + 2;
    assert_eq!(u128::try_from(world.asked().len()).unwrap(), looks);
    // Where nothing can be asked nothing is unclear.
    let world = World::new(1000, Some(others(NOW)));
    let mut keeper = world.keeper(0);
    world.go(&mut keeper, 100);
    world.script().closed = true;
    let away = keeper.carry_out(KeeperRequest::Takeover);
    assert!(matches!(away, Err(Refusal::StoreAway(StoreTrouble::NoCredentials))), "{away:?}");
}

#[test]
fn nobody_waits_for_a_keeper_that_has_ended() {
    let world = World::new(1000, None);
    world.keeper(0).run(|| true).unwrap();
    let refused = world.vault.fence_gate().ask_keeper(KeeperRequest::Look);
    assert!(matches!(refused, Err(Refusal::NoFenceRecord(_))), "{refused:?}");
    assert_eq!(world.time.ms(), 0);
}
