//! Records that no enclave has asked for, and clocks that jump: what happens, what ends it, and what has to be so afterwards.

use casemate_fence::{MAX_TERM, MAX_VERSION_STEP, Record, StoreOp};
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{Bytes, Epoch, Slot};
use casemate_slashing::Ceilings;

use crate::judge::Message;
use crate::random::Random;
use crate::say;
use crate::state::{Episode, SLOTS_PER_EPOCH, Violation, Whereabouts};
use crate::world::{CLOCK_TOLERANCE_MS, Forged, record_words};

/// A keeper looks at a clock that has stopped every second, and gives up after 120 looks in a row; with room for what it may be doing.
const CLOCK_GIVEN_UP_MS: u64 = 150_000;

impl Episode {
    /// Somebody who may write to the store once puts a record there with numbers that nobody can have reached. Only where operators know
    /// what the last holder's state was: nothing else can help then.
    pub(crate) fn forge_record(&mut self) {
        if self.is_stale || self.last_stated.is_none() || self.job.is_some() || self.closed.is_some() {
            return;
        }
        let world = &mut *self.world.lock();
        let store = &mut world.stores[self.store];
        let Some(before) = store.record.filter(|record| !record.closed && store.forged.is_none()) else { return };
        let (record, is_believed) = forged(&mut world.random, before);
        let until = world.time.ms() + world.random.within(500, 12 * self.slot_ms);
        store.forged = Some(Forged { before, is_believed, until });
        store.record = Some(record);
        // A holder takes what it finds under its own name for a change of its own that it had not heard of.
        let granted = store.granted.entry(record.term).or_insert(record.ceilings);
        *granted = (*granted).max(record.ceilings);
        world.stats.records_forged += 1;
        say!(*world, "somebody puts a record into store {}: {}", self.store, record_words(&record));
    }

    /// Whether operators see numbers in the record that cannot be.
    pub(crate) fn is_forged(&self) -> bool {
        self.world.lock().stores[self.store].forged.is_some()
    }

    /// What was forged is mended, where its time is over.
    pub(crate) fn mend_record(&mut self, is_over: bool) {
        let world = &mut *self.world.lock();
        let now = world.time.ms();
        let store = &mut world.stores[self.store];
        let Some(Forged { before, is_believed, .. }) = store.forged.filter(|forged| is_over || forged.until <= now)
        else {
            return;
        };
        store.forged = None;
        // One that nobody has believed was never claimed or extended: the record before it is still the newest. So is one that was
        // believed and removed a record that is lost.
        if !is_believed && world.random.chance(600) {
            store.record = Some(before);
            say!(*world, "store {} has its record again", self.store);
        } else {
            store.record = None;
            store.late.retain(|(_, question)| !matches!(question, StoreOp::Create(_)));
            self.closed = None;
            world.stats.records_lost += 1;
            say!(*world, "what is no record is removed from store {}", self.store);
        }
    }

    /// A clock of an enclave jumps.
    pub(crate) fn disturb_clock(&mut self, number: u32) {
        let now = self.time.ms();
        let slot_ms = self.slot_ms;
        let Some(at) = self.enclaves.iter().position(|enclave| enclave.number == number) else { return };
        let enclave = &mut self.enclaves[at];
        let world = &mut *self.world.lock();
        let random = &mut world.random;
        let what = match random.below(100) {
            0..30 => {
                let by = random.below(enclave.clocks.leeway_ms() + 1);
                enclave.clocks.jump(0, i64::try_from(by).unwrap());
                enclave.right_at = None;
                format!("kernel's clock is {by} ms ahead: as much as it may")
            }
            30..55 if enclave.frozen_until <= now => {
                let until = now + random.within(200, 20 * slot_ms);
                enclave.frozen_until = until;
                enclave.clocks.pause(now, until);
                format!("machine is paused for {} ms", until - now)
            }
            roll => {
                let by = far(random);
                let (whose, nsm, wall) = match roll {
                    0..80 => ("kernel's clock jumps", 0, by),
                    80..92 => ("NSM's clock jumps", by, 0),
                    // What was told stays told: a clock that agrees with the NSM's an hour ago is not believed.
                    _ => ("clocks go back together", -by.abs(), -by.abs()),
                };
                enclave.clocks.jump(nsm, wall);
                let back = random.pick(&[1000, 5000, 60_000, 1_000_000]);
                enclave.right_at = Some(now + random.within(500, back));
                format!("{whose} by {} ms", if nsm == 0 { wall } else { nsm })
            }
        };
        world.stats.clocks += 1;
        world.say(format_args!("enclave {number}: its {what}"));
    }

    /// Clocks whose time has come are right again.
    pub(crate) fn mend_clocks(&mut self) {
        let now = self.time.ms();
        for enclave in self.enclaves.iter_mut().filter(|enclave| enclave.right_at.is_some_and(|at| at <= now)) {
            enclave.right_at = None;
            enclave.clocks.jump(0, 0);
            say!(self.world.lock(), "enclave {}: its clocks are right again", enclave.number);
        }
    }

    /// A lone enclave that signs, and a record that cannot be: it is mended, and the enclave signs again.
    pub(crate) fn outlives_forged_record(&mut self) -> Result<(), Violation> {
        self.look();
        self.forge_record();
        if !self.is_forged() {
            return Ok(());
        }
        let until = self.time.ms() + self.random(|random| random.below(8 * self.slot_ms));
        while self.time.ms() < until {
            self.calm_step()?;
        }
        self.mend_record(true);
        let bound = 6 * SLOTS_PER_EPOCH * self.slot_ms + 180_000;
        self.signs_again(bound, true, "a record that nobody can have reached was mended")
    }

    /// A lone enclave that signs, and its clock: nothing is signed while that is wrong; when it is right again the enclave signs again,
    /// and where it stays wrong the process ends and says why.
    pub(crate) fn outlives_wrong_clock(&mut self) -> Result<(), Violation> {
        let Some(number) = self.running().first().copied() else { return Ok(()) };
        let begun = self.time.ms();
        let (by, length) = self.random(|random| (far(random), random.pick(&[300, 3000, 30_000, 90_000, u64::MAX])));
        say!(self.world.lock(), "enclave {number}: its kernel's clock jumps by {by} ms");
        self.world.lock().stats.clocks += 1;
        if let Some(enclave) = self.enclave(number) {
            enclave.clocks.jump(0, by);
        }
        while self.time.ms() - begun < length {
            if self.signs(number)? {
                return Err(Violation(format!("enclave {number} signs by a clock that has jumped by {by} ms")));
            }
            let inside = self.enclave(number).map(|enclave| std::sync::Arc::clone(&enclave.inside));
            self.calm_step()?;
            if self.enclave(number).is_none() {
                if inside.is_some_and(|inside| inside.parts().has_no_time) {
                    return Ok(());
                }
                return Err(Violation(format!("enclave {number} ends without a word while its clock is wrong")));
            }
            if self.time.ms() - begun > CLOCK_GIVEN_UP_MS {
                return Err(Violation(format!(
                    "not alive: enclave {number} neither signs nor ends {} s after its clock has jumped for good",
                    CLOCK_GIVEN_UP_MS / 1000
                )));
            }
        }
        if let Some(enclave) = self.enclave(number) {
            enclave.clocks.jump(0, 0);
        }
        say!(self.world.lock(), "enclave {number}: its clock is right again");
        let bound = 6 * SLOTS_PER_EPOCH * self.slot_ms + 30_000;
        self.signs_again(bound, false, "its clock was right again")
    }

    fn signs_again(&mut self, bound: u64, recovers: bool, since: &str) -> Result<(), Violation> {
        let begun = self.time.ms();
        let mut asked = 0;
        loop {
            self.calm_step()?;
            let now = self.time.ms();
            if now - begun > bound {
                return Err(Violation(format!(
                    "not alive: nothing was signed within {} s after {since}",
                    bound / 1000
                )));
            }
            if now < asked {
                continue;
            }
            asked = now + 300;
            if recovers {
                self.recover();
            }
            let Some(number) = self.running().first().copied() else { continue };
            if self.standing(number) == Some(StatedStatus::Holding) && self.signs(number)? {
                return Ok(());
            }
        }
    }

    /// Whether it signs a block now.
    fn signs(&mut self, number: u32) -> Result<bool, Violation> {
        let slot = self.slot().0;
        let here = |key: &crate::state::Key| matches!(key.place, Whereabouts::Here { .. });
        let Some(key) = self.keys.iter().position(here) else { return Ok(false) };
        self.ask(number, key, Message::Block { slot, variant: 9 })
    }
}

/// Farther than can pass for drift, by seconds or hours, either way.
fn far(random: &mut Random) -> i64 {
    let least = 2 * CLOCK_TOLERANCE_MS + 1;
    let by = if random.chance(500) { random.within(least, 20_000) } else { random.within(3_600_000, 18_000_000) };
    let by = i64::try_from(by).unwrap();
    if random.chance(500) { by } else { -by }
}

/// A record with a number that nobody can have reached; and whether an enclave can take it for the record at all.
fn forged(random: &mut Random, before: Record) -> (Record, bool) {
    let most = u64::MAX - random.below(2);
    let named = random.pick(&[None, before.released_state, Some(Bytes([9; 32]))]);
    let (version, term) = (before.version + random.pick(&[1, 1, 100]), before.term);
    let (holder, term) = random.pick(&[
        (before.holder, term),
        (Bytes([9; 32]), term + 1),
        // As one that was just made: anyone who sees it may claim it at once.
        (Bytes::ZERO, term + 1),
    ]);
    let next = Record { version, holder, term, released_state: named, ..before };
    match random.below(8) {
        // No record at all.
        0 => (Record { term: random.pick(&[0, MAX_TERM + 1, u64::MAX]), ..next }, false),
        1 => (Record { version: 0, ..next }, false),
        2 => (Record { version: most, ..next }, false),
        3 => (Record { version: before.version + MAX_VERSION_STEP + 1 + random.below(1 << 40), ..next }, false),
        // As far as is believed.
        4 => (Record { version: before.version + MAX_VERSION_STEP, ..next }, true),
        5 => {
            let ceilings = Ceilings { slot: Slot(most), target: Epoch(most), source: Epoch(most) };
            let slot = Ceilings { slot: Slot(most), ..before.ceilings };
            let source = Ceilings { source: Epoch(most), ..before.ceilings };
            (Record { ceilings: random.pick(&[ceilings, ceilings, slot, source]), ..next }, true)
        }
        6 => (Record { min_state_version: most, ..next }, true),
        _ => (Record { term: MAX_TERM, ..next }, true),
    }
}
