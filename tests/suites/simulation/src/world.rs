//! What lies outside the enclaves: two stores, the parent's disk, KMS, NSMs and clocks; and all that can go wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_nitro_enclaves_nsm_api::api::{AttestationDoc, Digest, ErrorCode, Request, Response};
use casemate_fence::{GroupId, Holder, Record, StoreOp, StoreResponse};
use casemate_nsm::{ES384, cose_sign1};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::RecordKind;
use casemate_protocol::{Bytes, Network, Root, Slot};
use casemate_slashing::Ceilings;
use casemate_vault::Nsm;
use casemate_vault::fence::store::Store;
use casemate_vault::keys::cms::RecipientKey;
use casemate_vault::keys::custody::{EncryptionContext, KmsAnswer, ServiceError, Services};
use casemate_vault::platform::clock::Sources;
use serde_bytes::ByteBuf;

use crate::actor::{Time, Wait, pause};
use crate::random::Random;
use crate::trace::Trace;

/// When the chain began, in Unix seconds.
pub const GENESIS_TIME: u64 = 1_800_000_000;
/// The slot in which every episode begins.
pub const FIRST_SLOT: u64 = 1000;
/// The KMS key.
pub const KEY_ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555";
/// The group.
pub const GROUP: &str = "alpha";
/// How far a trusted clock may be off (`enclave/vault/src/platform/margins.rs`).
pub const CLOCK_TOLERANCE_MS: u64 = 2000;
/// The chain.
pub const GENESIS: Root = Bytes([5; 32]);

/// How often things go wrong, of a thousand.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// A question to the store is lost.
    pub lost: u64,
    /// It is carried out, and its answer is lost.
    pub unheard: u64,
    /// It arrives long after its asker has given up.
    pub late: u64,
    /// It takes its time.
    pub slow: u64,
    /// A call of KMS or of the disk fails.
    pub call: u64,
    /// The disk keeps a blob and says that it did not.
    pub denied: u64,
    /// The disk loses a blob and says so.
    pub dropped: u64,
}

/// What was counted.
#[derive(Clone, Copy, Default)]
#[allow(missing_docs, reason = "they are printed by their names")]
pub struct Stats {
    pub steps: u64,
    pub episodes: u64,
    pub boots: u64,
    pub claims: u64,
    pub imports: u64,
    pub deletions: u64,
    pub moves: u64,
    pub rollbacks: u64,
    pub records_made: u64,
    pub records_lost: u64,
    pub records_closed: u64,
    pub records_forged: u64,
    pub clocks: u64,
    pub credentials: u64,
    pub kills: u64,
    pub signatures: u64,
    pub refusals: u64,
    pub foreign: u64,
    pub commands: u64,
    pub unknown: u64,
}

impl Stats {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        let sums = [
            (&mut self.steps, other.steps),
            (&mut self.episodes, other.episodes),
            (&mut self.boots, other.boots),
            (&mut self.claims, other.claims),
            (&mut self.imports, other.imports),
            (&mut self.deletions, other.deletions),
            (&mut self.moves, other.moves),
            (&mut self.rollbacks, other.rollbacks),
            (&mut self.records_made, other.records_made),
            (&mut self.records_lost, other.records_lost),
            (&mut self.records_closed, other.records_closed),
            (&mut self.records_forged, other.records_forged),
            (&mut self.clocks, other.clocks),
            (&mut self.credentials, other.credentials),
            (&mut self.kills, other.kills),
            (&mut self.signatures, other.signatures),
            (&mut self.refusals, other.refusals),
            (&mut self.foreign, other.foreign),
            (&mut self.commands, other.commands),
            (&mut self.unknown, other.unknown),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
    }
}

/// Everything outside.
pub struct World {
    /// All choices.
    pub random: Random,
    /// The story.
    pub trace: Trace,
    /// What goes wrong now.
    pub faults: Faults,
    /// The group's store, and another.
    pub stores: Vec<StoreState>,
    /// Every blob that was ever kept, in this order.
    pub disk: Vec<Kept>,
    /// Whose next blob is kept and denied.
    pub deny: Option<u32>,
    /// The last that was denied so.
    pub denied: u64,
    /// The newest term that an enclave is shown; everything where there is none.
    pub views: BTreeMap<u32, u64>,
    /// Enclaves whose questions to the store are not answered until a time; and whether they are carried out.
    pub cuts: BTreeMap<u32, (u64, bool)>,
    /// What was counted.
    pub stats: Stats,
    /// Time.
    pub time: Arc<Time>,
    network: Network,
}

/// A blob on the disk.
pub struct Kept {
    /// Its term.
    pub term: u64,
    /// Its bytes.
    pub bytes: Arc<Vec<u8>>,
}

/// A store of the record: linearizable.
#[derive(Default)]
pub struct StoreState {
    /// The record.
    pub record: Option<Record>,
    /// Nothing arrives until then.
    pub away_until: u64,
    /// Those that it takes.
    pub credentials: BTreeSet<u64>,
    /// Questions that arrive when their asker has long given up.
    pub late: Vec<(u64, StoreOp)>,
    /// The highest ceilings of each term.
    pub granted: BTreeMap<u64, Ceilings>,
    /// The last term that each holder has claimed.
    pub claimed: BTreeMap<Holder, u64>,
    /// What somebody has put in the place of the record, until it is mended.
    pub forged: Option<Forged>,
}

/// A record that no enclave has asked for.
#[derive(Clone, Copy)]
pub struct Forged {
    /// What was there.
    pub before: Record,
    /// Whether an enclave can take it for the record at all: then what was there cannot come back, and the record is made anew.
    pub is_believed: bool,
    /// When it is mended.
    pub until: u64,
}

impl StoreState {
    fn carry_out(&mut self, question: &StoreOp, stats: &mut Stats) -> StoreResponse {
        let new = match question {
            // As a store's client reads it: bytes that are no record are no answer.
            StoreOp::Read if self.forged.is_some() && !self.record.is_none_or(|record| is_readable(&record)) => {
                return StoreResponse::Unclear;
            }
            StoreOp::Read => return StoreResponse::Record(self.record),
            StoreOp::Create(new) if self.record.is_none() => *new,
            StoreOp::Swap { old, new } if self.record == Some(*old) => *new,
            StoreOp::Create(_) | StoreOp::Swap { .. } => return StoreResponse::Conflict,
        };
        match self.record {
            Some(old) if old.term != new.term && new.holder != Bytes::ZERO => {
                stats.claims += 1;
                self.claimed.insert(new.holder, new.term);
            }
            None => stats.records_made += 1,
            Some(_) => {}
        }
        let granted = self.granted.entry(new.term).or_insert(new.ceilings);
        *granted = granted.max(new.ceilings);
        self.record = Some(new);
        StoreResponse::Swapped
    }
}

fn is_readable(record: &Record) -> bool {
    let place = GroupId { group: GROUP.into(), network: GENESIS };
    Record::decode(&record.encode(&place), &place).is_ok()
}

/// The world, for all who share it. Nobody holds it while a vault is asked for anything.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<World>>);

impl Shared {
    /// At the beginning of an episode.
    pub fn new(seed: u64, network: Network, time: Arc<Time>, is_loud: bool) -> Self {
        let stores = vec![StoreState::default(), StoreState::default()];
        let world = World {
            random: Random::new(seed),
            trace: Trace::new(is_loud),
            faults: Faults::default(),
            stores,
            disk: Vec::new(),
            deny: None,
            denied: 0,
            views: BTreeMap::new(),
            cuts: BTreeMap::new(),
            stats: Stats::default(),
            time,
            network,
        };
        Self(Arc::new(Mutex::new(world)))
    }

    /// Everything.
    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

/// Adds a line to the story.
#[macro_export]
macro_rules! say {
    ($world:expr, $($what:tt)*) => {{
        let world: &mut $crate::world::World = &mut $world;
        world.say(format_args!($($what)*))
    }};
}

impl World {
    /// Unix milliseconds.
    pub fn unix_ms(&self) -> u64 {
        unix_ms(&self.network, &self.time)
    }

    /// By the true time.
    pub fn slot(&self) -> Slot {
        self.network.slot_at(self.unix_ms())
    }

    /// Adds a line to the story.
    pub fn say(&mut self, what: std::fmt::Arguments<'_>) {
        let (at, slot) = (self.time.ms(), self.slot().0);
        self.trace.say(at, slot, what);
    }

    /// What the parent shows of its disk to an enclave.
    fn shown(&self, enclave: u32) -> impl Iterator<Item = &Kept> {
        let newest = self.views.get(&enclave).copied().unwrap_or(u64::MAX);
        self.disk.iter().filter(move |kept| kept.term <= newest)
    }

    /// Questions that are late arrive.
    pub fn deliver_late(&mut self) {
        let now = self.time.ms();
        for number in 0..self.stores.len() {
            let due = |(at, _): &(u64, StoreOp)| *at <= now;
            while let Some(at) = self.stores[number].late.iter().position(due) {
                let (_, question) = self.stores[number].late.remove(at);
                let heard = self.stores[number].carry_out(&question, &mut self.stats);
                self.say(format_args!(
                    "store {number}: a late question arrives, {}: {}",
                    words(&question),
                    said(&heard)
                ));
            }
        }
    }
}

/// Unix milliseconds at the simulated time.
pub fn unix_ms(network: &Network, time: &Time) -> u64 {
    network.genesis_time() * 1000 + FIRST_SLOT * network.slot_duration_ms() + time.ms()
}

/// Credentials number `n`.
pub fn credentials(n: u64) -> StoreCredentials {
    StoreCredentials::Dynamodb { access_key_id: n.to_string(), secret_access_key: "secret".into() }
}

/// A store as one enclave asks it.
pub struct SimStore {
    /// The world.
    pub world: Shared,
    /// Which store.
    pub number: usize,
    /// Who asks.
    pub enclave: u32,
    /// What it has to open it.
    pub credentials: Option<u64>,
}

enum Fate {
    Away(StoreTrouble),
    Lost,
    Unheard,
    Late,
    Carried { after: u64, back: u64 },
}

impl SimStore {
    fn fate(&self, world: &mut World) -> Fate {
        let now = world.time.ms();
        let store = &world.stores[self.number];
        if store.away_until > now {
            return Fate::Away(StoreTrouble::Away);
        }
        if !self.credentials.is_some_and(|which| store.credentials.contains(&which)) {
            return Fate::Away(StoreTrouble::Status { status: 400 });
        }
        if let Some((until, carried)) = world.cuts.get(&self.enclave)
            && *until > now
        {
            return if *carried { Fate::Unheard } else { Fate::Lost };
        }
        let Faults { lost, unheard, late, slow, .. } = world.faults;
        let random = &mut world.random;
        let roll = random.below(1000);
        match roll {
            _ if roll < lost => Fate::Lost,
            _ if roll < lost + unheard => Fate::Unheard,
            _ if roll < lost + unheard + late => Fate::Late,
            _ if roll < lost + unheard + late + slow => {
                Fate::Carried { after: random.below(2500), back: random.below(2500) }
            }
            _ => Fate::Carried { after: random.below(10), back: random.below(10) },
        }
    }

    fn carry_out(&self, question: &StoreOp, heard_of: bool) -> StoreResponse {
        let world = &mut *self.world.lock();
        let heard = world.stores[self.number].carry_out(question, &mut world.stats);
        let (enclave, number) = (self.enclave, self.number);
        if !matches!(question, StoreOp::Read) {
            let lost = if heard_of { "" } else { "; the answer is lost" };
            world.say(format_args!(
                "enclave {enclave} asks store {number} {}: {}{lost}",
                words(question),
                said(&heard)
            ));
        }
        heard
    }
}

impl Store for SimStore {
    fn kind(&self) -> RecordKind {
        RecordKind::Dynamodb
    }

    fn identity(&self) -> Option<String> {
        Some(format!("store-{}", self.number))
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        pause(Wait::Turn);
        let (fate, now) = {
            let world = &mut *self.world.lock();
            (self.fate(world), world.time.ms())
        };
        let away = |trouble| (StoreResponse::Unclear, Some(trouble));
        match fate {
            Fate::Away(trouble) => {
                let wait = self.world.lock().random.pick(&[1, 20, 4000]);
                pause(Wait::Until(now + wait));
                away(trouble)
            }
            Fate::Lost => {
                pause(Wait::Until(now + 1000));
                away(StoreTrouble::Away)
            }
            Fate::Unheard => {
                self.carry_out(question, false);
                pause(Wait::Until(now + 1000));
                away(StoreTrouble::Away)
            }
            Fate::Late => {
                let world = &mut *self.world.lock();
                let due = now + world.random.below(30_000);
                world.stores[self.number].late.push((due, *question));
                let (enclave, number) = (self.enclave, self.number);
                if !matches!(question, StoreOp::Read) {
                    world.say(format_args!(
                        "enclave {enclave} asks store {number} {}: it is on its way",
                        words(question)
                    ));
                }
                away(StoreTrouble::Away)
            }
            Fate::Carried { after, back } => {
                pause(Wait::Until(now + after));
                let heard = self.carry_out(question, true);
                pause(Wait::Until(now + after + back));
                (heard, (heard == StoreResponse::Unclear).then_some(StoreTrouble::Record))
            }
        }
    }

    fn open(&mut self, credentials: &StoreCredentials) -> bool {
        let StoreCredentials::Dynamodb { access_key_id, .. } = credentials else { return false };
        self.credentials = access_key_id.parse().ok();
        self.credentials.is_some()
    }

    fn is_open(&self) -> bool {
        self.credentials.is_some()
    }
}

/// A record in words.
pub fn record_words(record: &Record) -> String {
    let Record { version, term, ceilings, min_state_version, released_state: clean, closed, .. } = record;
    let Ceilings { slot, target, source } = ceilings;
    let left = if clean.is_some() { ", names a state" } else { "" };
    let closed = if *closed { ", closed" } else { "" };
    format!(
        "version {version}, term {term}, up to slot {slot}, target {target}, source {source}, states from {}{left}{closed}",
        state_words(*min_state_version)
    )
}

/// A sealed state's number in words: the term of the fence, and how many in it.
pub fn state_words(number: u64) -> String {
    format!("{}.{}", number >> 32, number & 0xffff_ffff)
}

fn words(question: &StoreOp) -> String {
    match question {
        StoreOp::Read => "for the record".into(),
        StoreOp::Create(new) => format!("to make the record ({})", record_words(new)),
        StoreOp::Swap { old, new } if old.holder != new.holder => format!("for a claim ({})", record_words(new)),
        StoreOp::Swap { new, .. } => format!("for a change ({})", record_words(new)),
    }
}

fn said(heard: &StoreResponse) -> &'static str {
    match heard {
        StoreResponse::Record(Some(_)) => "there it is",
        StoreResponse::Record(None) => "there is none",
        StoreResponse::Swapped => "done",
        StoreResponse::Conflict => "another one is there",
        StoreResponse::Unclear => "unclear",
    }
}

/// KMS and the parent's disk, as one enclave asks them.
pub struct SimServices {
    /// The world.
    pub world: Shared,
    /// Who asks.
    pub enclave: u32,
    /// The key that KMS's answers are for.
    pub recipient: Arc<RecipientKey>,
}

impl SimServices {
    fn call(&self) -> Result<(), ServiceError> {
        pause(Wait::Turn);
        let world = &mut *self.world.lock();
        let call = world.faults.call;
        if world.random.chance(call) { Err(ServiceError::Away) } else { Ok(()) }
    }

    fn answer(&self, data_key: &[u8; 32], wrapped: Vec<u8>) -> KmsAnswer {
        let for_recipient = casemate_local_kms::cms::seal(data_key, self.recipient.spki()).unwrap();
        KmsAnswer { key_arn: KEY_ARN.into(), wrapped, for_recipient }
    }
}

/// What a data key is hidden under in its wrapped form: only this KMS knows.
fn pad(nonce: &[u8], context: &EncryptionContext) -> Vec<u8> {
    let mut hash = Context::new(&SHA256);
    hash.update(b"the simulated KMS's secret");
    hash.update(nonce);
    hash.update(context.group.as_bytes());
    hash.update(&context.network.0);
    hash.finish().as_ref().to_vec()
}

fn mask(key: &mut [u8], pad: &[u8]) {
    for (byte, with) in key.iter_mut().zip(pad) {
        *byte ^= with;
    }
}

impl Services for SimServices {
    fn generate_data_key(&self, _: &str, _: &[u8], context: &EncryptionContext) -> Result<KmsAnswer, ServiceError> {
        self.call()?;
        let (mut data_key, mut wrapped) = ([0; 32], vec![0; 16]);
        {
            let world = &mut *self.world.lock();
            world.random.fill(&mut data_key);
            world.random.fill(&mut wrapped);
        }
        let mut hidden = data_key;
        mask(&mut hidden, &pad(&wrapped, context));
        wrapped.extend_from_slice(&hidden);
        Ok(self.answer(&data_key, wrapped))
    }

    fn decrypt(
        &self,
        _: &str,
        wrapped: &[u8],
        _: &[u8],
        context: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError> {
        self.call()?;
        let (nonce, hidden) = wrapped.split_at(16);
        let mut data_key: [u8; 32] = hidden.try_into().unwrap();
        mask(&mut data_key, &pad(nonce, context));
        Ok(self.answer(&data_key, Vec::new()))
    }

    fn list_blobs(&self, _: &str) -> Result<Vec<u64>, ServiceError> {
        self.call()?;
        Ok(self.world.lock().shown(self.enclave).map(|kept| kept.term).collect())
    }

    fn load_blob(&self, _: &str, term: u64) -> Result<Vec<u8>, ServiceError> {
        self.call()?;
        let world = self.world.lock();
        // Two enclaves may have sealed under one number before either held the fence: the last one is kept.
        let found = world.shown(self.enclave).filter(|kept| kept.term == term).last();
        found.map(|kept| kept.bytes.as_ref().clone()).ok_or(ServiceError::Refused)
    }

    fn store_blob(&self, _: &str, term: u64, blob: &[u8]) -> Result<(), ServiceError> {
        self.call()?;
        let world = &mut *self.world.lock();
        let Faults { denied, dropped, .. } = world.faults;
        let denies = world.deny == Some(self.enclave);
        if denies {
            (world.deny, world.denied) = (None, term);
        }
        let roll = if denies { dropped } else { world.random.below(1000) };
        let (enclave, number) = (self.enclave, state_words(term));
        if roll < dropped {
            world.say(format_args!("enclave {enclave} seals state {number}: the parent loses it, and says so"));
            return Err(ServiceError::Refused);
        }
        world.disk.push(Kept { term, bytes: Arc::new(blob.to_vec()) });
        if denies || roll < dropped + denied {
            world.say(format_args!("enclave {enclave} seals state {number}: the parent keeps it, and denies it"));
            return Err(ServiceError::Refused);
        }
        world.say(format_args!("enclave {enclave} seals state {number}"));
        Ok(())
    }
}

/// The NSM of one enclave: the device's answers without certificates and signatures, which nobody in here reads.
pub struct SimNsm {
    /// Entropy.
    pub random: Mutex<Random>,
    /// What it takes for the time.
    pub clocks: Arc<Clocks>,
}

impl Nsm for SimNsm {
    fn process(&self, request: Request) -> Response {
        match request {
            Request::GetRandom => {
                let mut random = vec![0; 256];
                self.random.lock().unwrap().fill(&mut random);
                Response::GetRandom { random }
            }
            Request::Attestation { user_data, nonce, public_key } => {
                let bytes = |field: Option<ByteBuf>| field.map(ByteBuf::into_vec);
                let payload = AttestationDoc::new(
                    "simulated".into(),
                    Digest::SHA384,
                    self.clocks.trusted_ms(),
                    BTreeMap::new(),
                    Vec::new(),
                    Vec::new(),
                    bytes(user_data),
                    bytes(nonce),
                    bytes(public_key),
                )
                .to_binary();
                Response::Attestation { document: cose_sign1(ES384, &[0xa0], &payload, &[0; 96]).unwrap() }
            }
            _ => Response::Error(ErrorCode::InvalidOperation),
        }
    }
}

/// The clocks of one machine: each within what is allowed of the true time, and they need not agree with another machine's.
pub struct Clocks {
    /// Time.
    pub time: Arc<Time>,
    /// The chain.
    pub network: Network,
    /// How far the NSM's is off.
    nsm_ms: AtomicI64,
    /// How far the kernel's is off.
    wall_ms: AtomicI64,
    /// When the machine stood still, and the clock that only counts with it.
    pauses: Mutex<Vec<(u64, u64)>>,
    /// Where they belong.
    home: (i64, i64),
}

impl Clocks {
    /// These are off by so much where nothing has happened to them.
    pub fn new(time: Arc<Time>, network: Network, (nsm_ms, wall_ms): (i64, i64)) -> Self {
        let (nsm, wall) = (AtomicI64::new(nsm_ms), AtomicI64::new(wall_ms));
        Self { time, network, nsm_ms: nsm, wall_ms: wall, pauses: Mutex::default(), home: (nsm_ms, wall_ms) }
    }

    /// They jump: by so much from where they belong.
    pub fn jump(&self, nsm_by: i64, wall_by: i64) {
        self.nsm_ms.store(self.home.0 + nsm_by, Ordering::Relaxed);
        self.wall_ms.store(self.home.1 + wall_by, Ordering::Relaxed);
    }

    /// How far the kernel's may jump beyond where it belongs so that what is told stays within the tolerance of the true time.
    pub fn leeway_ms(&self) -> u64 {
        CLOCK_TOLERANCE_MS - self.home.0.unsigned_abs()
    }

    /// Whether the NSM's is where it belongs: an operator's tool takes no document of another time.
    pub fn is_nsm_right(&self) -> bool {
        self.nsm_ms.load(Ordering::Relaxed) == self.home.0
    }

    /// The whole machine stands still, as a virtual machine that is paused: afterwards the clocks that tell a time are right again.
    pub fn pause(&self, from: u64, until: u64) {
        self.pauses.lock().unwrap().push((from, until));
    }

    fn trusted_ms(&self) -> u64 {
        unix_ms(&self.network, &self.time).saturating_add_signed(self.nsm_ms.load(Ordering::Relaxed))
    }
}

/// What a trusted clock reads.
pub struct SimSources(pub Arc<Clocks>);

impl Sources for SimSources {
    fn wall_ms(&self) -> u64 {
        unix_ms(&self.0.network, &self.0.time).saturating_add_signed(self.0.wall_ms.load(Ordering::Relaxed))
    }

    fn monotonic_ms(&self) -> u64 {
        let now = self.0.time.ms();
        let stood = |(from, until): &(u64, u64)| now.min(*until).saturating_sub(*from);
        now - self.0.pauses.lock().unwrap().iter().map(stood).sum::<u64>()
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Root {
    Bytes(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}
