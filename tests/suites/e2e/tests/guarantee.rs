//! What an operator may rely on whatever the parent, the store and the network do: asked of the real programs over HTTP. Each test is a
//! way in which signatures that slash, or silence for good, once came out of the shipped programs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate::Exit;
use casemate_e2e::bench::{Frozen, Newcomer, copy, keys};
use casemate_e2e::hostile::{Message, Released, ask, ask_one, slashable_pairs};
use casemate_e2e::prober::{Probed, probe};
use casemate_e2e::requests::{attestation, block};
use casemate_e2e::stack::eventually;
use casemate_e2e::{Bench, Stack};
use casemate_fence::{GroupId, MAX_TERM, Record};
use casemate_protocol::{Bytes, Epoch, PublicKey, Refusal, Reply, Request, Slot};
use casemate_slashing::Ceilings;
use rustix::process::Signal;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const SLOT_MS: u64 = 500;
const SLOTS_PER_EPOCH: u64 = 8;
/// It is the fence that refuses here, not the window.
const ANY_AGE: &str = "--any-age";

fn bench() -> Bench {
    Bench::new(PROGRAM, SLOT_MS, SLOTS_PER_EPOCH)
}

fn has_etcd() -> bool {
    let has = casemate_local_etcd::program().is_some();
    if !has {
        println!("SKIPPED: etcd is not installed (apt-get install etcd-server etcd-client)");
    }
    has
}

/// A stack that does nothing by itself; it may wait for credentials, or for a record.
fn as_it_is(bench: &Bench, options: &[&str]) -> Stack {
    let options = [&[ANY_AGE, "--as-it-is"], options].concat();
    bench.try_start(&options).unwrap_or_else(|log| panic!("{log}"))
}

/// `casemate fence init` with these words and the credentials of an etcd.
fn init<'a>(words: &[&'a str], credentials: &'a [String]) -> Vec<&'a str> {
    ["fence", "init"].into_iter().chain(words.iter().copied()).chain(credentials.iter().map(String::as_str)).collect()
}

/// Signs a vote and a block for now as soon as there is nothing in the way; what was signed.
fn signs_on(bench: &Bench, stack: &Stack, key: &str) -> (u64, u64) {
    let mut signed = (0, 0);
    eventually("a new vote", || {
        signed.1 = bench.now().1;
        stack.client().sign(key, &attestation(signed.1 - 1, signed.1, 9)).status == 200
    });
    eventually("a new block", || {
        signed.0 = bench.now().0;
        stack.client().sign(key, &block(signed.0, 9)).status == 200
    });
    signed
}

/// Whether duties are refused by a slashing rule, and not for want of a holder.
fn refused_as_slashable(stack: &Stack, key: &str, duties: &[Value]) {
    for duty in duties {
        let answer = stack.until("an answer of the holder", |c| c.sign(key, duty), |a| a.status != 503);
        assert_eq!(answer.status, 412, "{duty}: {}", answer.body);
    }
}

/// Gives an order while the fence's store lets no byte through, and asks for a key's signatures all the while: none is given.
fn order_in_the_dark(bench: &Bench, stack: &Stack, words: &[&str], key: &str, duties: &[Value]) -> (Exit, String) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut signed) = (0, Vec::new());
            while !done.load(Ordering::Relaxed) {
                for duty in duties {
                    let answer = stack.client().sign(key, duty);
                    asked += 1;
                    if answer.status == 200 {
                        signed.push(duty.clone());
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            (asked, signed)
        });
        let told = bench.casemate(stack, words, true);
        done.store(true, Ordering::Relaxed);
        let (asked, signed) = asking.join().unwrap();
        assert!(asked > 20 && signed.is_empty(), "{signed:?} of {asked}; {told:?}");
        told
    })
}

/// The import of a key is not confirmed by the store: it is neither listed nor signs. The duties that it was asked for.
fn import_in_the_dark(bench: &Bench, stack: &Stack, newcomer: &Newcomer, more: &[&str]) -> Vec<Value> {
    let (slot, epoch) = bench.now();
    let duties = vec![attestation(epoch - 1, epoch, 1), block(slot, 1)];
    let words = [&newcomer.import()[..], more].concat();
    let (exit, text) = order_in_the_dark(bench, stack, &words, &newcomer.public_key, &duties);
    assert_eq!(exit, Exit::NoAnswer, "{text}");
    assert!(text.contains("Count it as done, and give it again"), "{text}");
    let (exit, listed) = bench.casemate(stack, &[&["keys", "list"], more].concat(), false);
    assert!(exit == Exit::Accepted && !listed.contains(&newcomer.public_key), "{listed}");
    for duty in &duties {
        let answer = stack.client().sign(&newcomer.public_key, duty);
        assert_ne!(answer.status, 200, "{duty}: {}", answer.body);
    }
    duties
}

/// What `casemate history export` says of one key.
fn exported(bench: &Bench, stack: &Stack, newcomer: &Newcomer, file: &str) -> (u64, u64, u64) {
    let file = bench.path(file);
    let words = ["history", "export", "--out", &file, "--public-keys", &newcomer.listed];
    let (exit, text) = bench.casemate(stack, &words, false);
    assert_eq!(exit, Exit::Accepted, "{text}");
    let told: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let key = &told["data"][0];
    assert_eq!(key["pubkey"], newcomer.public_key.as_str(), "{told}");
    let number = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{told}")).parse().unwrap();
    let vote = &key["signed_attestations"][0];
    (number(&key["signed_blocks"][0]["slot"]), number(&vote["source_epoch"]), number(&vote["target_epoch"]))
}

fn floors(status: &Value) -> (Option<u64>, Option<u64>, Option<u64>) {
    let floors = &status["fence"]["floors"];
    (floors["slot"].as_u64(), floors["source"].as_u64(), floors["target"].as_u64())
}

#[test]
fn an_import_that_was_rolled_back_before_it_was_confirmed_comes_back_above_the_groups_floor() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let options = [ANY_AGE, "--interop-keys", "1", "--fence", "etcd"];
    let stack = bench.start(&options);
    let newcomer = bench.newcomer(1);
    bench.keep_blobs("before");
    let frozen = Frozen::etcd(&stack);
    let duties = import_in_the_dark(&bench, &stack, &newcomer, &[]);
    let (slot, epoch) = bench.now();
    stack.kill_all();
    drop(frozen);
    // The parent never had it.
    bench.offer_blobs("before");
    let stack = bench.start(&options);
    let first = bench.await_standing(&stack, 0, "holding");
    let (Some(floor), Some(source), Some(target)) = floors(&first) else { panic!("{first}") };
    assert!(!keys(&stack).contains(&newcomer.public_key));
    // A signer elsewhere is told what the key may have signed here, though nobody here knows it.
    assert_eq!(exported(&bench, &stack, &newcomer, "floors.json"), (floor, source, target));
    // Exact again, and it says the same.
    bench.order(&stack, &["fence", "handover"]);
    let exact = bench.await_standing(&stack, 0, "holding");
    assert_eq!(floors(&exact), (None, None, None), "{exact}");
    assert_eq!(exported(&bench, &stack, &newcomer, "exact.json"), (floor, source, target));
    let text = bench.order(&stack, &newcomer.import());
    assert!(text.contains("imported"), "{text}");
    refused_as_slashable(&stack, &newcomer.public_key, &duties);
    let at_the_floor = [attestation(source, target, 2), block(floor, 2), attestation(source - 1, target + 1, 2)];
    refused_as_slashable(&stack, &newcomer.public_key, &at_the_floor);
    let signed = signs_on(&bench, &stack, &newcomer.public_key);
    assert!(signed.0 > slot && signed.1 > epoch, "{signed:?}");
}

#[test]
fn an_import_at_a_holder_that_was_cut_off_is_repeated_above_what_it_could_sign() {
    if !has_etcd() {
        return;
    }
    // Its ceilings last for longer than the order does.
    let bench = Bench::new(PROGRAM, 8000, SLOTS_PER_EPOCH);
    let stack = bench.start(&[ANY_AGE, "--interop-keys", "1", "--enclaves", "2", "--fence", "etcd"]);
    let newcomer = bench.newcomer(1);
    let holder = bench.holder(&stack, 2);
    let (at, other, next) = (holder.to_string(), 1 - holder, (1 - holder).to_string());
    let frozen = Frozen::etcd(&stack);
    let duties = import_in_the_dark(&bench, &stack, &newcomer, &["--enclave", &at]);
    Stack::signal(stack.vaults()[usize::from(holder)], Signal::KILL);
    drop(frozen);
    bench.order(&stack, &["fence", "takeover", "--yes", "--enclave", &next]);
    let taken = bench.await_standing(&stack, other, "holding");
    let (Some(floor), Some(source), Some(target)) = floors(&taken) else { panic!("{taken}") };
    // The one that was killed is there again before it is its turn.
    bench.await_standing(&stack, holder, "standby");
    bench.order(&stack, &["fence", "handover", "--enclave", &next]);
    let exact = bench.await_standing(&stack, holder, "holding");
    assert_eq!(floors(&exact), (None, None, None), "{exact}");
    let text = bench.order(&stack, &[&newcomer.import()[..], &["--enclave", &at]].concat());
    assert!(text.contains(&newcomer.public_key), "{text}");
    refused_as_slashable(&stack, &newcomer.public_key, &duties);
    refused_as_slashable(&stack, &newcomer.public_key, &[attestation(source, target, 2), block(floor, 2)]);
    assert_eq!(exported(&bench, &stack, &newcomer, "exact.json"), (floor, source, target));
}

#[test]
fn a_record_declared_lost_brings_no_deleted_key_back() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let etcd = ["--fence", "etcd"];
    let stack = bench.start(&[&[ANY_AGE, "--interop-keys", "2"][..], &etcd].concat());
    let all = keys(&stack);
    let (slot, epoch) = bench.now();
    let signed = [attestation(epoch - 1, epoch, 1), block(slot, 1)];
    for (key, duty) in all.iter().flat_map(|key| signed.iter().map(move |duty| (key, duty))) {
        stack.client().sign(key, duty).signature();
    }
    bench.keep_blobs("yesterday");
    let gone = bench.file("gone", &all[1]);
    bench.order(&stack, &["keys", "delete", "--yes", "--public-keys", &gone]);
    let last = bench.status(&stack, 0);
    bench.keep_blobs("today");
    bench.etcdctl("etcd", &["del", "", "--prefix"], &[]);
    bench.await_standing(&stack, 0, "went_back");
    stack.kill_all();

    bench.offer_blobs("yesterday");
    let stack = as_it_is(&bench, &etcd);
    bench.await_standing(&stack, 0, "went_back");
    assert_eq!(keys(&stack).len(), 2, "the older state has the key");
    let credentials = bench.credentials("etcd");
    let (exit, text) = bench.casemate(&stack, &init(&["--record-lost"], &credentials), true);
    assert_eq!(exit, Exit::Unusable, "{text}");
    let root = last["public_keys"]["root"].as_str().unwrap();
    let version = last["state"]["fence_version"].to_string();
    let words = ["--record-lost", "--expect-keys", root, "--expect-version", &version];
    let before = bench.kept();
    bench.refused(&stack, &init(&words, &credentials), "is not the one that the command names");
    assert_eq!(bench.etcdctl("etcd", &["get", "", "--prefix"], &[]), "", "a record was made");
    assert!(bench.kept() == before, "a state was sealed");
    for (key, duty) in all.iter().flat_map(|key| signed.iter().map(move |duty| (key, duty))) {
        assert_ne!(stack.client().sign(key, duty).status, 200);
    }
    stack.kill_all();

    bench.offer_blobs("today");
    let stack = as_it_is(&bench, &etcd);
    bench.await_standing(&stack, 0, "went_back");
    assert_eq!(bench.status(&stack, 0)["state"], last["state"], "it is the very state that the last holder has stated");
    bench.order(&stack, &init(&words, &credentials));
    bench.await_standing(&stack, 0, "holding");
    assert_eq!(keys(&stack), all[..1]);
    let others = [attestation(epoch - 1, epoch, 2), block(slot, 2), signed[0].clone(), signed[1].clone()];
    refused_as_slashable(&stack, &all[0], &others);
    for duty in &others {
        assert_eq!(stack.client().sign(&all[1], duty).status, 404);
    }
    signs_on(&bench, &stack, &all[0]);
}

#[test]
fn credentials_that_are_dead_are_exchanged_after_a_restart_though_nobody_holds_the_fence() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let etcd = ["--fence", "etcd"];
    let stack = bench.start(&[&[ANY_AGE, "--interop-keys", "1"][..], &etcd].concat());
    let key = keys(&stack).remove(0);
    signs_on(&bench, &stack, &key);
    // The store takes clients of another root from its next start on; the enclave has the old certificate.
    copy(&bench.etcd("etcd"), &bench.folder.path().join("old"));
    copy(&bench.etcd("etcd"), &bench.folder.path().join("foreign"));
    casemate_local_etcd::replace_client(&bench.etcd("etcd")).unwrap();
    casemate_local_etcd::replace_client(&bench.folder.path().join("foreign")).unwrap();
    assert!(stack.stop().success());
    let stack = as_it_is(&bench, &etcd);
    let sealed = bench.await_standing(&stack, 0, "apart")["state"]["number"].as_u64().unwrap();
    let (slot, _) = bench.now();
    let answer = stack.client().sign(&key, &block(slot, 1));
    assert_eq!(answer.status, 503, "{}", answer.body);
    // Neither the old ones nor a stranger's show the record.
    let of = |folder: &str| {
        let file = |name: &str| bench.path(&format!("{folder}/{name}"));
        ["--client-certificate".to_owned(), file("client.pem"), "--client-key".into(), file("client-key.pem")]
    };
    for wrong in ["old", "foreign"] {
        bench.refused(&stack, &init(&["--credentials-only"], &of(wrong)), "could not be changed");
    }
    let text = bench.order(&stack, &init(&["--credentials-only"], &bench.credentials("etcd")));
    assert!(text.contains("does not hold the fence: it seals them as soon as it does"), "{text}");
    // It claims by itself, and then seals what works.
    bench.await_standing(&stack, 0, "holding");
    eventually("the new credentials to be sealed", || {
        bench.status(&stack, 0)["state"]["number"].as_u64().unwrap() > sealed
    });
    signs_on(&bench, &stack, &key);
    // Others are refused where it holds, too, and it goes on with those that work.
    bench.refused(&stack, &init(&["--credentials-only"], &of("foreign")), "could not be changed");
    let ceiling = bench.status(&stack, 0)["fence"]["record"]["slot_ceiling"].as_u64().unwrap();
    eventually("higher ceilings", || {
        bench.status(&stack, 0)["fence"]["record"]["slot_ceiling"].as_u64().unwrap() > ceiling + 3
    });
    stack.kill_all();
    // They are in the sealed state: nobody brings any.
    let stack = as_it_is(&bench, &etcd);
    bench.await_standing(&stack, 0, "holding");
    signs_on(&bench, &stack, &key);
    // A store that has no record is not the one that is meant, whatever it takes.
    bench.etcdctl("etcd", &["del", "", "--prefix"], &[]);
    bench.refused(&stack, &init(&["--credentials-only"], &bench.credentials("etcd")), "no record");
}

#[test]
fn what_solo_has_signed_is_not_forgotten_under_a_first_record() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let (before, _) = bench.now();
    let stack = bench.start(&[ANY_AGE, "--interop-keys", "1", "--fence", "solo"]);
    let key = keys(&stack).remove(0);
    // The floor lies above what another enclave can have signed by a clock that is off: two seconds either way.
    let margin = 4000 / SLOT_MS;
    let (floor, ..) = floors(&bench.status(&stack, 0));
    assert!((before + 1 + margin..=bench.now().0 + 1 + margin).contains(&floor.unwrap()), "{before} {floor:?}");
    let (slot, epoch) = signs_on(&bench, &stack, &key);
    let others = [attestation(epoch - 1, epoch, 2), block(slot, 2)];
    stack.kill_all();
    bench.keep_blobs("solo");

    // A first record where the parent offers the keys: anyone who claims it stays above everything.
    let beside = bench.copied_without("etcd");
    let stack = beside.start(&[ANY_AGE, "--interop-keys", "1", "--fence", "file"]);
    assert!(floors(&beside.status(&stack, 0)).0.is_some_and(|floor| floor >= slot));
    refused_as_slashable(&stack, &key, &others);
    assert!(stack.stop().success());

    // One that is made while the parent withholds them names the empty state, and no other is taken.
    std::fs::remove_dir_all(bench.blobs()).unwrap();
    let etcd = ["--fence", "etcd"];
    let stack = as_it_is(&bench, &etcd);
    bench.order(&stack, &init(&[], &bench.credentials("etcd")));
    let first = bench.await_standing(&stack, 0, "holding");
    assert_eq!(floors(&first), (None, None, None), "{first}");
    stack.kill_all();
    bench.keep_blobs("empty");
    bench.offer_blobs("solo");
    let stack = as_it_is(&bench, &etcd);
    assert_eq!(keys(&stack), std::slice::from_ref(&key), "the old state opens");
    bench.order(&stack, &init(&["--credentials-only"], &bench.credentials("etcd")));
    bench.await_standing(&stack, 0, "old_state");
    bench.refused(&stack, &["fence", "takeover", "--yes"], "");
    bench.refused(&stack, &init(&[], &bench.credentials("etcd")), "has a record already");
    for duty in &others {
        let answer = stack.client().sign(&key, duty);
        assert_eq!(answer.status, 503, "{}", answer.body);
    }
    stack.kill_all();
    // Under the name of the state that belongs there.
    let newest = std::fs::read_dir(bench.folder.path().join("empty")).unwrap().map(|e| e.unwrap().file_name()).max();
    let (old, _) = bench.kept().pop().unwrap();
    std::fs::rename(bench.blobs().join(old), bench.blobs().join(newest.unwrap())).unwrap();
    match bench.try_start(&[ANY_AGE, "--as-it-is", "--fence", "etcd"]) {
        Ok(_) => panic!("an old state was taken under a new one's name"),
        Err(log) => assert!(log.contains("is the oldest that may be loaded"), "{log}"),
    }
}

/// A client that signs every slot and hostile ones that ask for conflicts.
struct Load {
    stop: Arc<AtomicBool>,
    hostile: JoinHandle<Vec<Released>>,
    prober: JoinHandle<Probed>,
}

impl Load {
    /// On a stack; messages of `first` and the variants after it.
    fn start(bench: &Bench, stack: &Stack, keys: &[PublicKey], first: u8) -> Self {
        let (chain, address, sockets) = (bench.clock(), stack.address, stack.sockets());
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_too, ours, theirs) = (Arc::clone(&stop), keys.to_vec(), keys.to_vec());
        let hostile = std::thread::spawn(move || ask(chain, &theirs, &sockets, first, 7 + u64::from(first), &stop_too));
        let stop_too = Arc::clone(&stop);
        let prober = std::thread::spawn(move || probe(chain, &ours, address, first + 7, &stop_too));
        Self { stop, hostile, prober }
    }

    /// Everything that was signed.
    fn end(self) -> Vec<Released> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = self.hostile.join().unwrap();
        all.extend(self.prober.join().unwrap().released);
        all
    }
}

/// Lets the load work for so many slots.
fn slots_pass(bench: &Bench, slots: u64) {
    let (from, _) = bench.now();
    eventually("slots to pass", || bench.now().0 > from + slots);
}

/// Ends the record; what is to be kept of it, and when it had ended.
fn close(bench: &Bench, stack: &Stack, more: &[&str], file: &str) -> (String, Value, Instant) {
    let text = bench.order(stack, &[&["fence", "close"], more].concat());
    let closed_at = Instant::now();
    let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{text}"));
    let record = serde_json::from_str(line).unwrap();
    (bench.file(file, &text), record, closed_at)
}

#[test]
fn a_record_moves_under_load_to_another_kind_to_another_cluster_and_back() {
    if !has_etcd() {
        return;
    }
    let bench = Bench::new(PROGRAM, 1000, SLOTS_PER_EPOCH);
    let two = [ANY_AGE, "--interop-keys", "3", "--enclaves", "2"];
    let stack = bench.start(&[&two[..], &["--fence", "file"]].concat());
    let listed: Vec<PublicKey> =
        keys(&stack).iter().map(|key| Bytes(const_hex::decode_to_array(key).unwrap())).collect();
    let mut all = Vec::new();

    // Closed by its holder: it has left its exact state behind.
    let load = Load::start(&bench, &stack, &listed, 0);
    bench.holder(&stack, 2);
    slots_pass(&bench, 4);
    let (first, record, closed_at) = close(&bench, &stack, &[], "closed-1");
    assert!(record["released_state"].is_string(), "{record}");
    // One that starts anew is no better.
    for pid in stack.processes("vault") {
        Stack::signal(pid, Signal::KILL);
    }
    for enclave in [0, 1] {
        bench.await_standing(&stack, enclave, "closed");
    }
    slots_pass(&bench, 2);
    let (exit, text) = bench.casemate(&stack, &["fence", "status"], false);
    assert!(exit == Exit::Accepted && text.contains("HAS ENDED"), "{text}");
    let released = load.end();
    assert!(released.len() > 5, "{} signed", released.len());
    let late: Vec<_> = released.iter().filter(|one| one.asked > closed_at).collect();
    assert!(late.is_empty(), "signed after the end: {late:?}");
    all.extend(released);
    assert!(stack.stop().success());

    // To etcd: on at once, without floors, and nothing is forgotten.
    let etcd = [&["--interop-keys", "3", "--enclaves", "2"][..], &["--fence", "etcd"]].concat();
    let stack = as_it_is(&bench, &etcd);
    let text = bench.order(&stack, &init(&["--after", &first], &bench.credentials("etcd")));
    assert!(text.contains("next record"), "{text}");
    let status = bench.await_standing(&stack, 0, "holding");
    assert_eq!(floors(&status), (None, None, None), "{status}");
    assert!(status["fence"]["record"]["version"].as_u64() > record["version"].as_u64());
    not_forgotten(&stack, &listed, &all);
    // The standby learns of the store from the state that has its credentials.
    Stack::signal(stack.vaults()[1], Signal::KILL);
    bench.await_standing(&stack, 1, "standby");
    let load = Load::start(&bench, &stack, &listed, 20);
    slots_pass(&bench, 4);

    // Its holder falls silent, and the standby ends the record: up to the ceilings the old one may sign yet.
    let frozen = stack.vaults()[0];
    Stack::signal(frozen, Signal::STOP);
    let (second, record, closed_at) = close(&bench, &stack, &["--enclave", "1"], "closed-2");
    assert!(record["released_state"].is_null(), "{record}");
    let beside = bench.copied_without("etcd");
    let other = [&etcd[..], &["--etcd-folder", "etcd-2"]].concat();
    let after = as_it_is(&beside, &other);
    beside.order(&after, &init(&["--after", &second], &beside.credentials("etcd-2")));
    let status = beside.await_standing(&after, 0, "holding");
    let number = |name: &str| record[name].as_u64();
    assert_eq!(floors(&status), (number("slot_ceiling"), number("source_ceiling"), number("target_ceiling")));
    let more = Load::start(&beside, &after, &listed, 40);
    // The old one goes on, and is asked for everything while the new one signs.
    Stack::signal(frozen, Signal::CONT);
    bench.await_standing(&stack, 0, "closed");
    slots_pass(&bench, SLOTS_PER_EPOCH + 2);
    let released = load.end();
    let above = |one: &&Released| match one.message {
        Message::Block { slot, .. } => Some(slot) > number("slot_ceiling"),
        Message::Vote { target, .. } => Some(target) > number("target_ceiling"),
    };
    let late: Vec<_> = released.iter().filter(|one| one.asked > closed_at).filter(above).collect();
    assert!(late.is_empty(), "signed above the end: {late:?}");
    assert!(released.len() > 5, "{} signed", released.len());
    all.extend(released);
    assert!(stack.stop().success());

    // Back into the first cluster, where the ended record still lies.
    let (third, record, closed_at) = close(&beside, &after, &[], "closed-3");
    slots_pass(&bench, 1);
    let released = more.end();
    assert!(released.len() > 5, "{} signed", released.len());
    assert!(released.iter().all(|one| one.asked <= closed_at), "signed after the end");
    all.extend(released);
    assert!(after.stop().success());
    copy(&bench.etcd("etcd"), &beside.etcd("etcd"));
    let back = as_it_is(&beside, &etcd);
    let credentials = beside.credentials("etcd");
    // What ended before is not what ended last.
    let before = beside.kept();
    beside.refused(&back, &init(&["--after", &second], &credentials), "name the end of the newest");
    assert!(beside.kept() == before, "a state was sealed");
    beside.order(&back, &init(&["--after", &third], &credentials));
    let status = beside.await_standing(&back, 0, "holding");
    assert_eq!(floors(&status), (None, None, None), "{status}");
    assert!(status["fence"]["record"]["version"].as_u64() > record["version"].as_u64());
    not_forgotten(&back, &listed, &all);
    let load = Load::start(&beside, &back, &listed, 60);
    slots_pass(&bench, 4);
    let released = load.end();
    assert!(released.len() > 5, "{} signed", released.len());
    all.extend(released);
    println!("{} signatures under four records", all.len());
    assert_eq!(slashable_pairs(&all), []);
}

/// What was signed is not signed otherwise.
fn not_forgotten(stack: &Stack, keys: &[PublicKey], released: &[Released]) {
    let mut asked = 0;
    for (number, key) in keys.iter().enumerate() {
        let of = || released.iter().filter(|one| one.key == number).map(|one| one.message);
        let blocks = of().filter_map(|message| match message {
            Message::Block { slot, .. } => Some(block(slot, 200)),
            Message::Vote { .. } => None,
        });
        let votes = of().filter_map(|message| match message {
            Message::Vote { source, target, .. } => Some(attestation(source, target, 200)),
            Message::Block { .. } => None,
        });
        let duties: Vec<Value> = blocks.chain(votes).collect();
        asked += duties.len();
        // A few are enough: the others lie below the newest.
        refused_as_slashable(stack, &key.to_string(), &duties[duties.len().saturating_sub(12)..]);
    }
    assert!(asked > 0);
}

#[test]
fn the_parent_alone_gets_one_handover_in_eight_slots_and_operators_as_many_as_they_like() {
    let bench = Bench::new(PROGRAM, 2500, SLOTS_PER_EPOCH);
    let stack = bench.start(&[ANY_AGE, "--interop-keys", "1"]);
    let key = keys(&stack).remove(0);
    let socket: PathBuf = stack.socket.clone();
    let unsigned = || ask_one(&mut None, &socket, Request::Handover).expect("an answer");
    bench.await_standing(&stack, 0, "holding");
    let (slot, _) = bench.now();
    assert_eq!(unsigned(), Reply::HandedOver);
    bench.await_standing(&stack, 0, "holding");
    let again = unsigned();
    assert!(bench.now().0 < slot + 8, "the machine is too slow for this test's slots");
    assert_eq!(again, Reply::Refused(Refusal::HandoverTooSoon { slots: 8 }));
    let now = bench.now().0;
    stack.client().sign(&key, &block(now, 1)).signature();
    bench.order(&stack, &["fence", "handover"]);
    bench.await_standing(&stack, 0, "holding");
    eventually("the next one", || {
        let granted = unsigned() == Reply::HandedOver;
        assert!(!granted || bench.now().0 >= slot + 8, "too soon");
        granted
    });
    // It comes back as always.
    bench.await_standing(&stack, 0, "holding");
    let now = bench.now().0;
    stack.client().sign(&key, &block(now, 1)).signature();
}

/// What somebody makes of a record who may write it.
type Fake = fn(Record) -> Record;

#[test]
fn a_record_with_absurd_numbers_is_not_believed_and_silences_nobody_for_good() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let stack = bench.start(&[ANY_AGE, "--interop-keys", "1", "--fence", "etcd"]);
    let key = keys(&stack).remove(0);
    let place = GroupId { group: "dev".into(), network: Bytes([4; 32]) };
    let name = bench.etcdctl("etcd", &["get", "", "--prefix", "--keys-only"], &[]).trim().to_owned();
    let read = || {
        let told: Value = serde_json::from_str(&bench.etcdctl("etcd", &["get", &name, "-w", "json"], &[])).unwrap();
        let bytes = BASE64_STANDARD.decode(told["kvs"][0]["value"].as_str().unwrap()).unwrap();
        Record::decode(&bytes, &place).unwrap()
    };
    let (slot, epoch) = signs_on(&bench, &stack, &key);
    let others = [attestation(epoch - 1, epoch, 2), block(slot, 2)];
    let far = u64::MAX - 1;
    // By somebody who may write the record, with the production encoder.
    let fakes: [(&str, Fake); 4] = [
        ("version", |record| Record { version: u64::MAX - 1, ..record }),
        ("ceilings", |record| Record {
            ceilings: Ceilings { slot: Slot(u64::MAX - 1), target: Epoch(u64::MAX - 1), source: Epoch(u64::MAX - 1) },
            ..record
        }),
        ("min_state_version", |record| Record { min_state_version: u64::MAX - 1, ..record }),
        ("term", |record| Record { term: MAX_TERM, ..record }),
    ];
    for (what, fake) in fakes {
        let before = read();
        let record = Record { version: before.version + 100, holder: Bytes([9; 32]), released_state: None, ..before };
        let record = Record { term: before.term + 1, ..record };
        bench.etcdctl("etcd", &["put", &name], &fake(record).encode(&place));
        eventually(&format!("the holder to be none under an absurd {what}"), || bench.standing(&stack, 0) != "holding");
        if what == "ceilings" {
            bench.refused(&stack, &["fence", "takeover", "--yes"], "lies further ahead than any holder can ask for");
        }
        let (now, _) = bench.now();
        assert_ne!(stack.client().sign(&key, &block(now, 1)).status, 200, "{what}");
        let last = bench.status(&stack, 0);
        assert!(floors(&last).0.is_none_or(|floor| floor < far), "{last}");
        // Removed, it is a record that is lost: operators make it anew, in this very boot.
        bench.etcdctl("etcd", &["del", &name], &[]);
        let root = last["public_keys"]["root"].as_str().unwrap();
        let version = last["state"]["fence_version"].to_string();
        let words = ["--record-lost", "--expect-keys", root, "--expect-version", &version];
        bench.order(&stack, &init(&words, &bench.credentials("etcd")));
        let status = bench.await_standing(&stack, 0, "holding");
        let (Some(floor), ..) = floors(&status) else { panic!("{status}") };
        assert!(floor <= bench.now().0 + 3 + 4000 / SLOT_MS, "{what}: {status}");
        refused_as_slashable(&stack, &key, &others);
        signs_on(&bench, &stack, &key);
    }
    // Which store it is can be compared with it, by every command and by the full verification.
    for command in [&["attest", "fetch"][..], &["fence", "status"]] {
        let with = |fence: &str| bench.casemate(&stack, &[command, &["--fence", fence]].concat(), false);
        let store = bench.status(&stack, 0)["fence"]["store"].as_str().unwrap().to_owned();
        assert_eq!(with(&format!("etcd:{store}")).0, Exit::Accepted);
        let (exit, text) = with("etcd:00000000000000ff");
        assert_eq!(exit, Exit::Refused, "{text}");
    }
}

#[test]
fn a_vote_from_an_epoch_to_itself_is_refused_in_words() {
    let bench = bench();
    let stack = bench.start(&[ANY_AGE, "--interop-keys", "1"]);
    let key = keys(&stack).remove(0);
    let (_, epoch) = bench.now();
    let answer = stack.client().sign(&key, &attestation(epoch, epoch, 1));
    assert_eq!(answer.status, 412, "{}", answer.body);
    assert!(answer.error().contains(&format!("epoch {epoch}")), "{}", answer.body);
    // It has moved nothing: the vote before is still signed.
    stack.client().sign(&key, &attestation(epoch - 1, epoch, 1)).signature();
}

#[test]
fn backups_are_told_by_what_is_in_them() {
    let bench = bench();
    let stack = bench.start(&[ANY_AGE, "--interop-keys", "2"]);
    let all = keys(&stack);
    let kept = bench.blobs();
    let verify = |folder: &str| bench.casemate(&stack, &["backup", "verify", folder], false);
    let newest = || bench.kept().into_iter().max_by_key(|(name, _)| number_of(name)).unwrap();
    let (exit, text) = verify(kept.to_str().unwrap());
    assert_eq!(exit, Exit::Accepted, "{text}");
    assert_eq!(line_of(&text, "IN FORCE"), Some(newest().0), "{text}");
    bench.keep_blobs("monday");
    assert_eq!(verify(&bench.path("monday")).0, Exit::Accepted);
    // A key is deleted: Monday's copy would bring it back.
    let gone = bench.file("gone", &all[1]);
    bench.order(&stack, &["keys", "delete", "--yes", "--public-keys", &gone]);
    let (exit, text) = verify(&bench.path("monday"));
    assert_eq!(exit, Exit::Refused, "{text}");
    assert!(text.contains("none of these files is the state in force") && line_of(&text, "IN FORCE").is_none());
    let (exit, text) = verify(kept.to_str().unwrap());
    assert!(exit == Exit::Accepted && line_of(&text, "IN FORCE") == Some(newest().0), "{text}");
    // One bit on the disk where the copy lies.
    bench.keep_blobs("tuesday");
    let (name, mut bytes) = newest();
    bytes[100] ^= 1;
    std::fs::write(bench.path(&format!("tuesday/{name}")), bytes).unwrap();
    let (exit, text) = verify(&bench.path("tuesday"));
    assert_eq!(exit, Exit::Refused, "{text}");
    assert_eq!(line_of(&text, "DAMAGED"), Some(name), "{text}");
}

fn number_of(name: &str) -> u64 {
    name.strip_suffix(".sealed").and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The file of which a report says that.
fn line_of(text: &str, says: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains(says))?;
    Some(line.split_whitespace().next()?.rsplit('/').next()?.to_owned())
}
