//! The fence at work: clones, rollbacks and stores that fail, on a store in memory; every signature that was released is held
//! against every other.
#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use casemate_fence::{MAX_TERM, Record};
use casemate_protocol::history_page::SignedHistoryPage;
use casemate_protocol::refusal::NotHolder;
use casemate_protocol::statement::{FenceKind, StatedStatus};
use casemate_protocol::{BoundedBytes, Bytes, Epoch, Refusal, Reply, Request};
use casemate_slashing::{Ceilings, Limits, SlashingHistory, Watermarks};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::platform::clock::Sources;
use casemate_vault::platform::runtime::{Bell, Runtime};
use casemate_vault::{Clock, FenceKeeper, FenceParts, KeeperError, Keys, Policy, SystemClock, TrustedClock, Vault};
use common::fence::{
    MEMORY, Member, Memory, SLOTS_PER_EPOCH, block, eventually_signs, first_record, judge, network, now_ms, siege, vote,
};
use common::{Bench, NOW};

fn begun() -> Memory {
    let memory = Memory::default();
    *memory.record.lock().unwrap() = Some(first_record());
    memory
}

#[test]
fn an_enclave_that_finds_no_record_signs_nothing_and_makes_none() {
    let (bench, network, memory) = (Bench::new(), network(50), Memory::default());
    let member = Member::start(&bench, &network, Box::new(memory.clone()));
    member.await_standing(StatedStatus::NoRecord);
    let epoch = network.slot_at(now_ms()).0 / SLOTS_PER_EPOCH;
    assert_eq!(member.sign(&vote(epoch - 1, epoch, 1)), Err(Refusal::NotHolder(NotHolder::NoRecord)));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(*memory.record.lock().unwrap(), None);
    // Once operators have made it, it is claimed.
    *memory.record.lock().unwrap() = Some(first_record());
    member.await_standing(StatedStatus::Holding);
    eventually_signs(&member, &network, Duration::from_secs(10));
}

#[test]
fn a_store_that_is_away_at_the_start_keeps_everything_from_being_signed() {
    let (bench, network, memory) = (Bench::new(), network(50), begun());
    memory.away.store(true, Ordering::SeqCst);
    let member = Member::start(&bench, &network, Box::new(memory.clone()));
    std::thread::sleep(Duration::from_millis(300));
    let refused = member.sign(&block(network.slot_at(now_ms()).0, 1));
    assert!(matches!(refused, Err(Refusal::NotHolder(NotHolder::StoreUnknown(_)))), "{refused:?}");
    memory.away.store(false, Ordering::SeqCst);
    member.await_standing(StatedStatus::Holding);
}

#[test]
fn one_holds_the_others_stand_by_and_say_until_when() {
    let (bench, network, memory) = (Bench::new(), network(1000), begun());
    let first = Member::start(&bench, &network, Box::new(memory.clone()));
    first.await_standing(StatedStatus::Holding);
    let second = Member::start(&bench, &network, Box::new(memory.clone()));
    second.await_standing(StatedStatus::Standby);
    let refused = second.sign(&block(network.slot_at(now_ms()).0, 1));
    assert!(matches!(refused, Err(Refusal::NotHolder(NotHolder::Standby { .. }))), "{refused:?}");
    // As it was half a second ago at most.
    std::thread::sleep(Duration::from_secs(1));
    let (holder, standby) = (first.statement(), second.statement());
    assert_eq!((holder.fence.term, standby.fence.term), (2, 0));
    // What is stated of the store comes from the store that is asked.
    assert_eq!(
        (holder.fence.kind, holder.fence.store, standby.fence.store),
        (FenceKind::Etcd, Some(MEMORY.to_owned()), Some(MEMORY.to_owned()))
    );
    let record = standby.fence.record.unwrap();
    assert_eq!((record.holder, record.term), (holder.boot_nonce, 2));
    assert!(record.slot_ceiling.0 > 0);
    // It stays so while the holder extends.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((first.standing(), second.standing()), (StatedStatus::Holding, StatedStatus::Standby));
}

#[test]
fn a_successor_takes_over_once_the_ceilings_have_passed_and_stays_above_them() {
    let (bench, network, memory) = (Bench::new(), network(100), begun());
    let first = Member::start(&bench, &network, Box::new(memory.clone()));
    first.await_standing(StatedStatus::Holding);
    let mut released = vec![eventually_signs(&first, &network, Duration::from_secs(10))];
    // The highest that it may sign, as late as it may.
    let now = network.slot_at(now_ms()).0;
    if first.sign(&block(now + 1, 1)).is_ok() {
        released.push(block(now + 1, 1));
    }
    drop(first);
    let ceilings = memory.record.lock().unwrap().unwrap().ceilings;
    let second = Member::start(&bench, &network, Box::new(memory.clone()));
    second.await_standing(StatedStatus::Holding);
    assert!(network.slot_at(now_ms()) > ceilings.slot, "claimed before the ceilings had passed");
    let floors = second.statement().fence.floors;
    assert_eq!((floors.slot, floors.target), (Some(ceilings.slot), Some(ceilings.target)));
    assert_eq!(floors.source, Some(ceilings.source));
    // Nothing at or below them, whatever its own watermarks are.
    for slot in ceilings.slot.0.saturating_sub(3)..=ceilings.slot.0 {
        assert!(second.sign(&block(slot, 2)).is_err(), "{slot}");
    }
    assert!(second.sign(&vote(ceilings.source.0, ceilings.target.0, 2)).is_err());
    released.push(eventually_signs(&second, &network, Duration::from_secs(10)));
    judge(&released);
}

#[test]
fn a_new_source_epoch_costs_one_question_for_all_who_wait() {
    let (bench, network, memory) = (Bench::new(), network(2000), begun());
    let member = Member::start(&bench, &network, Box::new(memory.clone()));
    member.await_standing(StatedStatus::Holding);
    std::thread::sleep(Duration::from_millis(300));
    let epoch = network.slot_at(now_ms()).0 / SLOTS_PER_EPOCH;
    let before = memory.asked.load(Ordering::SeqCst);
    let duty = vote(epoch - 1, epoch, 1);
    assert!(matches!(member.sign(&duty), Err(Refusal::SourceAboveCeiling { .. })));
    for _ in 0..50 {
        let _ = member.sign(&duty);
    }
    let begun = Instant::now();
    while member.sign(&duty).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    let questions = memory.asked.load(Ordering::SeqCst) - before;
    assert!(questions <= 2, "{questions} questions");
    // No further than was needed: a long time without finality locks nobody out.
    let ceilings = memory.record.lock().unwrap().unwrap().ceilings;
    assert_eq!(ceilings.source, Epoch(epoch - 1));
}

#[test]
fn without_the_store_it_signs_up_to_its_ceilings_and_not_beyond() {
    let (bench, network, memory) = (Bench::new(), network(100), begun());
    let member = Member::start(&bench, &network, Box::new(memory.clone()));
    member.await_standing(StatedStatus::Holding);
    eventually_signs(&member, &network, Duration::from_secs(10));
    memory.away.store(true, Ordering::SeqCst);
    let Ceilings { slot, .. } = memory.record.lock().unwrap().unwrap().ceilings;
    let (mut last, begun) = (0, Instant::now());
    while begun.elapsed() < Duration::from_secs(2) {
        let now = network.slot_at(now_ms()).0;
        for ahead in 0..=1 {
            if member.sign(&block(now + ahead, 1)).is_ok() {
                last = now + ahead;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // One question may have been under way.
    let ceilings = memory.record.lock().unwrap().unwrap().ceilings;
    assert!(last > 0 && last <= ceilings.slot.0 && ceilings.slot.0 <= slot.0 + 1, "{last} {slot} {ceilings:?}");
    let refused = member.sign(&block(network.slot_at(now_ms()).0, 1));
    assert!(matches!(refused, Err(Refusal::BlockAboveCeiling { .. })), "{refused:?}");
    memory.away.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    while member.sign(&block(network.slot_at(now_ms()).0, 2)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_store_that_shows_an_older_record_ends_the_signing_of_this_boot() {
    let (bench, network, memory) = (Bench::new(), network(50), begun());
    let member = Member::start(&bench, &network, Box::new(memory.clone()));
    member.await_standing(StatedStatus::Holding);
    eventually_signs(&member, &network, Duration::from_secs(10));
    // Somebody restores it.
    *memory.record.lock().unwrap() = Some(first_record());
    member.await_standing(StatedStatus::RolledBack);
    let refused = member.sign(&block(network.slot_at(now_ms()).0, 1));
    assert!(matches!(refused, Err(Refusal::NotHolder(NotHolder::RolledBack { found: 1, .. }))), "{refused:?}");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(member.standing(), StatedStatus::RolledBack);
    assert_eq!(*memory.record.lock().unwrap(), Some(first_record()), "it does not write there any more");
}

/// Nobody can claim the last term. Anyone who stands by all the same hears of what is put in its place.
#[test]
fn a_record_whose_terms_are_used_up_is_looked_at_until_it_is_mended() {
    let (bench, network, memory) = (Bench::new(), network(50), Memory::default());
    let last = Record { term: MAX_TERM, ..first_record() };
    *memory.record.lock().unwrap() = Some(last);
    let member = Member::start(&bench, &network, Box::new(memory.clone()));
    member.await_standing(StatedStatus::Standby);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!((member.standing(), *memory.record.lock().unwrap()), (StatedStatus::Standby, Some(last)));
    *memory.record.lock().unwrap() = Some(Record { version: last.version + 1, ..first_record() });
    member.await_standing(StatedStatus::Holding);
    eventually_signs(&member, &network, Duration::from_secs(10));
}

#[test]
fn requests_without_a_holder_name_no_ceilings() {
    let (bench, network) = (Bench::new(), network(50));
    let member = Member::start(&bench, &network, Box::new(Memory::default()));
    let reply = member.vault.handle(&Request::HighWatermark);
    assert!(matches!(reply, casemate_protocol::Reply::Refused(Refusal::NotHolder(_))), "{reply:?}");
}

#[test]
fn clones_that_die_and_come_back_with_a_state_of_yesterday_sign_no_two_conflicting_messages() {
    let (bench, network, memory) = (Bench::new(), network(50), begun());
    memory.losses.store(7, Ordering::SeqCst);
    *memory.delay.lock().unwrap() = Duration::from_millis(2);
    let start = || Member::start(&bench, &network, Box::new(memory.clone()));
    let members = RwLock::new((0..3).map(|_| start()).collect::<Vec<_>>());
    let mut away = false;
    let outcome = siege(&network, &members, Duration::from_secs(12), 0xca5e, |random| {
        std::thread::sleep(Duration::from_millis(40 + random.below(250)));
        match random.below(5) {
            // It starts from the state in which nothing was signed.
            0 | 1 => {
                let number = usize::try_from(random.below(3)).unwrap();
                let new = start();
                let old = std::mem::replace(&mut members.write().unwrap()[number], new);
                drop(old);
            }
            2 => {
                away = !away;
                memory.away.store(away, Ordering::SeqCst);
            }
            _ => {}
        }
        if away && random.below(3) == 0 {
            away = false;
            memory.away.store(false, Ordering::SeqCst);
        }
    });
    let terms = memory.record.lock().unwrap().unwrap().term;
    println!("{} of {} signed, {terms} terms", outcome.released.len(), outcome.asked);
    assert!(outcome.released.len() > 20, "{} signed", outcome.released.len());
    assert!(terms > 3, "{terms} terms");
}

/// A page of what keys have signed, from the first key on.
fn history_page(member: &Member) -> Result<SignedHistoryPage, Refusal> {
    let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
    match member.vault.handle(&Request::SlashingProtection { nonce, start: 0 }) {
        Reply::SlashingProtection(page) => Ok(page),
        Reply::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn histories_are_told_only_by_whom_the_store_knows_as_the_holder_now() {
    let (bench, network, memory) = (Bench::new(), network(200), begun());
    let holder = Member::start(&bench, &network, Box::new(memory.clone()));
    holder.await_standing(StatedStatus::Holding);
    assert_eq!(history_page(&holder).unwrap().page.keys.len(), 1);
    // Cut off, it still signs below its ceilings, and cannot know whether somebody else does.
    memory.away.store(true, Ordering::SeqCst);
    let refused = history_page(&holder);
    assert!(matches!(refused, Err(Refusal::StoreAway(_) | Refusal::FenceUnclear(_))), "{refused:?}");
    assert_eq!(holder.standing(), StatedStatus::Holding);
    // Another has claimed meanwhile: the very next question finds out, however quiet the store has been.
    let claimed = {
        let mut record = memory.record.lock().unwrap();
        let before = record.unwrap();
        *record = Some(Record { version: before.version + 1, term: before.term + 1, holder: Bytes([9; 32]), ..before });
        record.unwrap()
    };
    memory.away.store(false, Ordering::SeqCst);
    let refused = history_page(&holder);
    assert!(matches!(refused, Err(Refusal::NotHolder(_))), "{refused:?}");
    assert_eq!(memory.record.lock().unwrap().unwrap().term, claimed.term);
    // A standby tells nothing either.
    let standby = Member::start(&bench, &network, Box::new(memory.clone()));
    standby.await_standing(StatedStatus::Standby);
    assert!(matches!(history_page(&standby), Err(Refusal::NotHolder(_))));
}

/// Time that passes as fast as somebody waits.
#[derive(Clone, Default)]
struct Fast(Arc<AtomicU64>);

impl Runtime for Fast {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn sleep(&self, length: Duration) {
        self.0.fetch_add(u64::try_from(length.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::new(self.clone())
    }
}

impl Bell for Fast {
    fn ring(&self) {}

    fn wait(&self, at_most: Duration) {
        self.sleep(at_most);
    }
}

/// The machine's clocks: the one that may jump has jumped by so much.
struct Jumped(Arc<AtomicU64>);

impl Sources for Jumped {
    fn wall_ms(&self) -> u64 {
        NOW + self.0.load(Ordering::SeqCst)
    }

    fn monotonic_ms(&self) -> u64 {
        0
    }
}

#[test]
fn a_clock_that_does_not_agree_again_ends_the_process_with_the_reason() {
    let (bench, network) = (Bench::new(), network(50));
    for (heals_after, ends) in [(None, true), (Some(119), false)] {
        let (fast, jump) = (Fast::default(), Arc::new(AtomicU64::new(0)));
        let clock: Arc<dyn Clock> = Arc::new(TrustedClock::new(Jumped(Arc::clone(&jump))));
        let keys = Keys::load(&mut [[1; 32]], |_, _| SlashingHistory::Known(Watermarks::NONE)).unwrap();
        let vault = Vault::new(
            network.clone(),
            keys,
            Limits::NONE,
            Policy::default(),
            Box::new(SystemClock),
            Box::new(NullJournal),
        );
        let (fence_gate, keeping) = FenceParts::with_record(Box::new(begun())).split();
        let fence_gate = fence_gate.running_on(Arc::new(fast.clone()));
        // This NSM says NOW, always.
        let vault = vault.fenced_by(fence_gate, Arc::clone(&clock)).timed_by(Arc::clone(&bench.nsm) as _);
        clock.check(NOW);
        assert_eq!(clock.unix_ms(), Some(NOW));
        jump.store(3_600_000, Ordering::SeqCst);
        assert_eq!(clock.unix_ms(), None);
        let (began, failing) = (fast.now(), Duration::from_secs(119));
        let ended = FenceKeeper::new(&vault, keeping, 0).run(|| {
            // Once it is right again it goes on, however near the end was.
            if heals_after.is_some() && fast.now().saturating_sub(began) > failing {
                jump.store(0, Ordering::SeqCst);
            }
            fast.now().saturating_sub(began) > Duration::from_mins(10)
        });
        if ends {
            assert_eq!(ended, Err(KeeperError::Clock { checks: 120 }));
            assert!(ended.unwrap_err().to_string().contains("120 checks"), "{ended:?}");
            assert!(fast.now().saturating_sub(began) < Duration::from_secs(130), "{:?}", fast.now());
        } else {
            assert_eq!((ended, clock.unix_ms()), (Ok(()), Some(NOW)));
        }
    }
}
