//! Clones of one enclave on one record, a hostile client that asks all of them for everything, and a judge.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_fence::{GroupId, Record, StoreOp, StoreResponse};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::configuration::Window;
use casemate_protocol::network::NetworkFields;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::{RecordKind, StatedStatus, Statement};
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, BoundedBytes, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName,
    Network, Preset, PublicKey, Refusal, Reply, Request, SignRequest, Slot,
};
use casemate_slashing::{Ceilings, Limits, SlashingHistory, Watermarks};
use casemate_vault::fence::store::{Carrier, Store};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::link::tls::{Endpoint, Exchange, Response};
use casemate_vault::{Attestor, Clock, FenceKeeper, FenceParts, Identity, Keeping, Keys, Policy, SystemClock, Vault};

use super::{Bench, GROUP};

pub const GENESIS: Bytes<32> = Bytes([5; 32]);
pub const SLOTS_PER_EPOCH: u64 = 4;

pub fn place() -> GroupId {
    GroupId { group: GROUP.into(), network: GENESIS }
}

pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A chain in a hurry, which has run for a while.
pub fn network(slot_ms: u64) -> Network {
    NetworkFields {
        name: "hurry".into(),
        preset: Preset::Minimal,
        genesis_time: now_ms() / 1000 - 1000,
        genesis_validators_root: GENESIS,
        slot_duration_ms: slot_ms,
        slots_per_epoch: SLOTS_PER_EPOCH,
        forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
    }
    .try_into()
    .unwrap()
}

/// The record as operators have it made.
pub fn first_record() -> Record {
    Record {
        version: 1,
        holder: Bytes::ZERO,
        term: 1,
        ceilings: Ceilings::ZERO,
        min_state_version: 0,
        released_state: None,
        closed: false,
    }
}

/// What statements say of [`Memory`].
pub const MEMORY: &str = "memory";

/// A store in memory, linearizable, whose answers get lost when it is told so.
#[derive(Clone, Default)]
pub struct Memory {
    pub record: Arc<Mutex<Option<Record>>>,
    /// Nothing arrives any more.
    pub away: Arc<AtomicBool>,
    /// One of so many questions is carried out without an answer, and one is not carried out; 0 for none.
    pub losses: Arc<AtomicU64>,
    pub asked: Arc<AtomicU64>,
    pub delay: Arc<Mutex<Duration>>,
    /// The credentials that it was opened with, one after the other.
    pub opened: Arc<Mutex<Vec<StoreCredentials>>>,
}

impl Store for Memory {
    fn kind(&self) -> RecordKind {
        RecordKind::Etcd
    }

    fn identity(&self) -> Option<String> {
        Some(MEMORY.into())
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        let delay = *self.delay.lock().unwrap();
        std::thread::sleep(delay);
        let losses = self.losses.load(Ordering::SeqCst);
        let unclear = (StoreResponse::Unclear, Some(StoreTrouble::Away));
        if self.away.load(Ordering::SeqCst) || (losses > 0 && number % losses == 1) {
            return unclear;
        }
        let mut record = self.record.lock().unwrap();
        let heard = match question {
            StoreOp::Read => StoreResponse::Record(*record),
            StoreOp::Create(_) if record.is_some() => StoreResponse::Conflict,
            StoreOp::Create(new) => {
                *record = Some(*new);
                StoreResponse::Swapped
            }
            StoreOp::Swap { old, new } if *record == Some(*old) => {
                *record = Some(*new);
                StoreResponse::Swapped
            }
            StoreOp::Swap { .. } => StoreResponse::Conflict,
        };
        if losses > 0 && number.is_multiple_of(losses) { unclear } else { (heard, None) }
    }

    fn open(&mut self, credentials: &StoreCredentials) -> bool {
        self.opened.lock().unwrap().push(credentials.clone());
        true
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// TCP from here: in the image it is the broker that carries.
pub struct Direct;

impl Carrier for Direct {
    fn exchange(&self, endpoint: &Endpoint, request: &[u8]) -> Result<Response, StoreTrouble> {
        let mut exchange = Exchange::open(endpoint, request).map_err(|_| StoreTrouble::Tls)?;
        let (host, port) = endpoint.address();
        let mut stream = TcpStream::connect((host, port)).map_err(|_| StoreTrouble::Away)?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            stream.write_all(&exchange.outgoing()).map_err(|_| StoreTrouble::Away)?;
            let len = stream.read(&mut buffer).map_err(|_| StoreTrouble::Away)?;
            if len == 0 {
                return Err(StoreTrouble::Away);
            }
            if let Some(response) = exchange.incoming(&buffer[..len]).map_err(|_| StoreTrouble::Tls)? {
                return Ok(response);
            }
        }
    }
}

/// An enclave that runs: a clone, from a state in which its key has signed nothing.
pub struct Member {
    pub vault: Arc<Vault>,
    ended: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Member {
    pub fn start(bench: &Bench, network: &Network, store: Box<dyn Store>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let keys = Keys::load(&mut [[1; 32]], |_, _| SlashingHistory::Known(Watermarks::NONE)).unwrap();
        let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
        let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, network, &keys).unwrap();
        // Of any age: what is refused here, the fence has refused.
        let policy = Policy { window: Window::ANY, ..Policy::default() };
        let vault =
            Vault::new(network.clone(), keys, Limits::NONE, policy, Box::new(SystemClock), Box::new(NullJournal));
        let (fence_gate, keeping) = FenceParts::with_record(store).split();
        Self::run(vault.fenced_by(fence_gate, clock).attested_by(attestor), keeping)
    }

    pub fn run(vault: Vault, keeping: Keeping) -> Self {
        Self::run_from(vault, keeping, 0)
    }

    /// The same, from a state that has seen this version of the record.
    pub fn run_from(vault: Vault, keeping: Keeping, seen: u64) -> Self {
        let (vault, ended) = (Arc::new(vault), Arc::new(AtomicBool::new(false)));
        let (kept, until) = (Arc::clone(&vault), Arc::clone(&ended));
        let keeper = std::thread::spawn(move || {
            FenceKeeper::new(&kept, keeping, seen).run(|| until.load(Ordering::SeqCst)).unwrap();
        });
        Self { vault, ended, keeper: Some(keeper) }
    }

    pub fn standing(&self) -> StatedStatus {
        match self.vault.handle(&Request::Info) {
            Reply::Info(info) => info.standing,
            other => panic!("{other:?}"),
        }
    }

    pub fn await_standing(&self, wanted: StatedStatus) {
        let begun = Instant::now();
        while self.standing() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}, not {wanted:?}", self.standing());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn statement(&self) -> Statement {
        let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
        match self.vault.handle(&Request::Attestation { nonce }) {
            Reply::Attestation { statement, .. } => Statement::decode(statement.as_ref()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub fn sign(&self, duty: &Duty) -> Result<(), Refusal> {
        sign(&self.vault, duty)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(keeper) = self.keeper.take() {
            keeper.join().unwrap();
        }
    }
}

pub fn public_key() -> PublicKey {
    casemate_vault::signing::bls::SecretKey::from_be_bytes(&mut [1; 32]).unwrap().public_key()
}

pub fn sign(vault: &Vault, duty: &Duty) -> Result<(), Refusal> {
    sign_with(vault, public_key(), duty)
}

/// With another key than the first.
pub fn sign_with(vault: &Vault, public_key: PublicKey, duty: &Duty) -> Result<(), Refusal> {
    let version = Bytes([0; 4]);
    let fork_info = ForkInfo {
        previous_version: version,
        current_version: version,
        epoch: Epoch(0),
        genesis_validators_root: GENESIS,
    };
    let request =
        SignRequest { public_key, duty: *duty, fork_info: Some(fork_info), signing_root: None, proofs: Vec::new() };
    match vault.handle(&Request::Sign(request)) {
        Reply::Signature(_) => Ok(()),
        Reply::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

pub fn block(slot: u64, variant: u8) -> Duty {
    Duty::Block(BeaconBlockHeader {
        slot: Slot(slot),
        proposer_index: 1,
        parent_root: Bytes([1; 32]),
        state_root: Bytes([2; 32]),
        body_root: Bytes([variant; 32]),
    })
}

pub fn vote(source: u64, target: u64, variant: u8) -> Duty {
    let checkpoint = |epoch| Checkpoint { epoch: Epoch(epoch), root: Bytes([variant; 32]) };
    Duty::Attestation(AttestationData {
        slot: Slot(target * SLOTS_PER_EPOCH),
        index: 0,
        beacon_block_root: Bytes([variant; 32]),
        source: checkpoint(source),
        target: checkpoint(target),
    })
}

/// Whether two duties of one key get it slashed.
pub fn slashable(a: &Duty, b: &Duty) -> bool {
    match (a, b) {
        (Duty::Block(a), Duty::Block(b)) => a.slot == b.slot && a != b,
        (Duty::Attestation(a), Duty::Attestation(b)) => {
            let surrounds = |a: &AttestationData, b: &AttestationData| {
                a.source.epoch < b.source.epoch && b.target.epoch < a.target.epoch
            };
            (a.target.epoch == b.target.epoch && a != b) || surrounds(a, b) || surrounds(b, a)
        }
        _ => false,
    }
}

/// All pairs of what was released.
pub fn judge(released: &[Duty]) {
    for (number, a) in released.iter().enumerate() {
        for b in &released[..number] {
            assert!(!slashable(a, b), "{a:?}\n{b:?}");
        }
    }
}

/// What came out of a siege.
pub struct Outcome {
    pub released: Vec<Duty>,
    pub asked: u64,
}

/// For so long, asks every member for everything that conflicts, while `disturb` does what it likes with them.
pub fn siege(
    network: &Network,
    members: &RwLock<Vec<Member>>,
    length: Duration,
    seed: u64,
    mut disturb: impl FnMut(&mut Random),
) -> Outcome {
    let (released, asked, over) = (Mutex::new(Vec::new()), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (released, asked, over) = (&released, &asked, &over);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(31).wrapping_add(thread + 1));
                while !over.load(Ordering::SeqCst) {
                    let now = network.slot_at(now_ms()).0;
                    let epoch = now / SLOTS_PER_EPOCH;
                    let variant = u8::try_from(random.below(3)).unwrap();
                    let duty = if random.below(2) == 0 {
                        block((now + random.below(4)).saturating_sub(2), variant)
                    } else {
                        let target = (epoch + random.below(3)).saturating_sub(1);
                        vote(target.saturating_sub(1 + random.below(4)), target, variant)
                    };
                    let members = members.read().unwrap();
                    for member in members.iter() {
                        asked.fetch_add(1, Ordering::Relaxed);
                        if member.sign(&duty).is_ok() {
                            released.lock().unwrap().push(duty);
                        }
                    }
                    drop(members);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let begun = Instant::now();
        let mut random = Random(seed);
        while begun.elapsed() < length {
            disturb(&mut random);
        }
        over.store(true, Ordering::SeqCst);
    });
    let outcome = Outcome { released: released.into_inner().unwrap(), asked: asked.into_inner() };
    judge(&outcome.released);
    outcome
}

/// xorshift64*: seeded, so that a run can be told again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Signs as soon as it can; the duty that was signed.
pub fn eventually_signs(member: &Member, network: &Network, at_most: Duration) -> Duty {
    let begun = Instant::now();
    loop {
        let epoch = network.slot_at(now_ms()).0 / SLOTS_PER_EPOCH;
        let duty = vote(epoch.saturating_sub(1), epoch, 9);
        match member.sign(&duty) {
            Ok(()) => return duty,
            Err(refusal) => assert!(begun.elapsed() < at_most, "{refusal}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
