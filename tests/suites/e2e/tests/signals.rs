//! What every signal says, compared with what a request for a signature gets at that moment: `/readyz`, `/upcheck`, `/healthcheck`,
//! the metrics, `casemate fence status` and the log.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use casemate::Exit;
use casemate_e2e::bench::{Frozen, keys};
use casemate_e2e::http::Answer;
use casemate_e2e::requests::{attestation, block};
use casemate_e2e::stack::eventually;
use casemate_e2e::{Bench, Stack};
use rustix::process::Signal;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
/// Ceilings lie three of them ahead.
const SLOT_MS: u64 = 1000;
const SLOTS_PER_EPOCH: u64 = 8;
/// Clients give up after three to five.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

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

/// What all signals say together, and what a block gets.
struct Seen {
    ready: bool,
    readyz: Value,
    block: Answer,
    waited: Duration,
}

/// Asks every signal, and for a block, at one moment: a moment at which `/readyz` says the same before and after.
fn look(bench: &Bench, stack: &Stack, key: &str) -> Seen {
    for body in 1..=50 {
        let before = stack.client().get("/readyz", &[]);
        let signals = ["/upcheck", "/healthcheck"].map(|path| stack.client().get(path, &[]).status == 200);
        let metrics = stack.client().get("/metrics", &[]).body;
        let begun = Instant::now();
        // A block that nobody has asked for: it is signed where anything is.
        let answer = stack.client().sign(key, &block(bench.now().0, body));
        let waited = begun.elapsed();
        let after = stack.client().get("/readyz", &[]);
        let own_last = answer.status == 412 && answer.error().contains("last signed slot");
        if before.status != after.status || own_last {
            std::thread::sleep(Duration::from_millis(150));
            continue;
        }
        let (ready, readyz) = (before.status == 200, before.json());
        assert_eq!(readyz["ready"], ready, "{readyz}");
        assert_eq!(signals, [ready; 2], "/upcheck, /healthcheck; /readyz says {readyz}");
        assert_eq!(metric(&metrics, "casemate_ready"), Some(u64::from(ready)), "{readyz}");
        assert_eq!(answer.status == 200, ready, "{readyz}, a block gets {} {}", answer.status, answer.body);
        assert_eq!(readyz["blocks_in_seconds"] == 0, ready, "{readyz}");
        return Seen { ready, readyz, block: answer, waited };
    }
    panic!("no moment at which /readyz stayed the same");
}

fn metric(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// The block hears the very reason that `/readyz` gives, but for the numbers, which go on.
fn same_reason(seen: &Seen) {
    let reason = seen.readyz["reason"].as_str().unwrap();
    assert_eq!(without_digits(&seen.block.error()), without_digits(reason));
}

fn until_ready(stack: &Stack, ready: bool) {
    eventually(&format!("/readyz to say ready: {ready}"), || {
        (stack.client().get("/readyz", &[]).status == 200) == ready
    });
}

fn status(bench: &Bench, stack: &Stack, enclave: u8) -> (String, Value) {
    let (exit, text) = bench.casemate(stack, &["fence", "status", "--enclave", &enclave.to_string()], false);
    assert_eq!(exit, Exit::Accepted, "{text}");
    (text, bench.status(stack, enclave))
}

#[test]
fn while_a_holder_signs_every_signal_says_so() {
    let bench = bench();
    let stack = bench.start(&["--any-age", "--interop-keys", "1"]);
    let key = keys(&stack).remove(0);
    until_ready(&stack, true);
    let seen = look(&bench, &stack, &key);
    assert!(seen.ready && seen.readyz["reason"].is_null(), "{}", seen.readyz);
    let (text, json) = status(&bench, &stack, 0);
    assert_eq!(json["signs_blocks_in_ms"], 0, "{text}");
    let metrics = stack.client().get("/metrics", &[]).body;
    for (name, value) in [("casemate_fence_held", 1), ("casemate_enclave_keys", 1), ("casemate_blocks_in_seconds", 0)] {
        assert_eq!(metric(&metrics, name), Some(value), "{name}: {metrics}");
    }
    assert_eq!(stack.client().get("/livez", &[]).status, 200);
    assert_eq!(stack.client().get("/upcheck", &[]).body, "OK");
}

#[test]
fn a_frozen_store_is_named_by_every_signal_and_its_holder_goes_on_when_it_is_back() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let stack = bench.start(&["--any-age", "--interop-keys", "1", "--fence", "etcd", "--enclaves", "2"]);
    let key = keys(&stack).remove(0);
    until_ready(&stack, true);
    let holder = bench.holder(&stack, 2);
    let term = bench.status(&stack, holder)["fence"]["term"].as_u64().unwrap();
    let frozen = Frozen::etcd(&stack);
    until_ready(&stack, false);
    // The first question is open until it times out.
    eventually("the reason to be known", || stack.client().get("/readyz", &[]).body.contains("cannot be reached"));
    let seen = look(&bench, &stack, &key);
    assert!(!seen.ready && seen.block.status == 503, "{} {}", seen.block.status, seen.block.body);
    for words in ["the fence's store has acknowledged nothing for", "check the proxy's egress list"] {
        assert!(seen.block.error().contains(words), "{}", seen.block.error());
    }
    assert!(!seen.block.error().contains("another enclave"), "no other holds it: {}", seen.block.error());
    same_reason(&seen);
    assert!(seen.waited < LONGEST_WAIT, "{:?}", seen.waited);
    assert!(seen.readyz["blocks_in_seconds"].is_null(), "nobody can foresee it: {}", seen.readyz);
    // Since when: it goes on counting while nothing changes.
    let since = || stack.client().get("/readyz", &[]).json()["since_seconds"].as_u64().unwrap();
    let first = since();
    eventually("two more seconds of it", || since() >= first + 2);
    let metrics = stack.client().get("/metrics", &[]).body;
    assert_eq!(metric(&metrics, "casemate_fence_held"), Some(0));
    assert!(metric(&metrics, "casemate_fence_store_silent_seconds").unwrap() > 0);
    // The attested record's ceilings have passed.
    let (text, json) = status(&bench, &stack, holder);
    assert_eq!(json["signs_blocks_in_ms"], Value::Null, "{text}");
    assert!(!text.contains("blocks now"), "{text}");
    eventually("the log to say it", || {
        let log = stack.log();
        log.contains("the fence's store has acknowledged nothing") && log.contains("NO BLOCK IS SIGNED")
    });
    let log = stack.log();
    assert_eq!(log.matches("NO BLOCK IS SIGNED").count(), 1, "each transition once: {log}");
    drop(frozen);
    until_ready(&stack, true);
    look(&bench, &stack, &key);
    // The standby has left it the time: same holder, same term, no floors.
    let after = bench.status(&stack, holder);
    assert_eq!((&after["fence"]["standing"], &after["fence"]["term"]), (&"holding".into(), &term.into()), "{after}");
    eventually("the log to say that it is over", || {
        stack.log().contains("blocks are signed again") && stack.log().contains("store answers again")
    });
}

#[test]
fn a_full_store_that_can_be_read_is_named_too() {
    if !has_etcd() {
        return;
    }
    let bench = bench().with_environment("ETCD_QUOTA_BACKEND_BYTES", "16777216");
    let stack = bench.start(&["--any-age", "--interop-keys", "1", "--fence", "etcd"]);
    let key = keys(&stack).remove(0);
    until_ready(&stack, true);
    let megabyte = vec![b'x'; 1 << 20];
    let full = (0..40).any(|number| {
        casemate_local_etcd::ctl(&bench.etcd("etcd"), &["put", &format!("filler/{number}")], &megabyte).is_err()
    });
    assert!(full, "etcd takes more than its quota");
    until_ready(&stack, false);
    let seen = look(&bench, &stack, &key);
    assert_eq!(seen.block.status, 503, "{}", seen.block.body);
    for words in ["acknowledged nothing", "HTTP status", "etcdctl alarm list"] {
        assert!(seen.block.error().contains(words), "{}", seen.block.error());
    }
    same_reason(&seen);
    assert!(seen.waited < LONGEST_WAIT, "{:?}", seen.waited);
    let (text, json) = status(&bench, &stack, 0);
    assert_eq!(json["signs_blocks_in_ms"], Value::Null, "{text}");
}

#[test]
fn after_a_takeover_the_floors_say_until_when() {
    let bench = bench();
    let stack = bench.start(&["--any-age", "--interop-keys", "1", "--enclaves", "2"]);
    let key = keys(&stack).remove(0);
    until_ready(&stack, true);
    let holder = bench.holder(&stack, 2);
    let other = (1 - holder).to_string();
    let (exit, text) = bench.casemate(&stack, &["fence", "takeover", "--yes", "--enclave", &other], true);
    assert_eq!(exit, Exit::Accepted, "{text}");
    // Until it sees that, the former holder signs up to its ceilings: those are the floors now.
    bench.await_standing(&stack, holder, "standby");
    // Blocks after three slots; votes with the next epoch.
    let seen = look(&bench, &stack, &key);
    if !seen.ready {
        assert_eq!(seen.block.status, 412, "{}", seen.block.body);
        assert!(seen.block.error().contains("an enclave before this one may have signed"), "{}", seen.block.error());
        same_reason(&seen);
        assert!(seen.readyz["blocks_in_seconds"].as_u64().is_some_and(|s| (1..=5).contains(&s)), "{}", seen.readyz);
    }
    let (_, epoch) = bench.now();
    let floor = bench.status(&stack, 1 - holder)["fence"]["floors"]["target"].as_u64().unwrap();
    let vote = stack.client().sign(&key, &attestation(epoch - 1, epoch, 1));
    let readyz = stack.client().get("/readyz", &[]).json();
    if floor >= epoch && bench.now().1 == epoch {
        assert_eq!(vote.status, 412, "{}", vote.body);
        assert!(vote.error().contains("the floor, epoch"), "{}", vote.error());
        let seconds = readyz["attestations_in_seconds"].as_u64().unwrap();
        assert!((1..=2 * SLOTS_PER_EPOCH).contains(&seconds), "{readyz}");
    }
    until_ready(&stack, true);
    look(&bench, &stack, &key);
}

#[test]
fn a_solo_enclave_says_after_its_start_that_it_waits_and_until_when() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1", "--fence", "solo"]);
    let key = keys(&stack).remove(0);
    eventually("the key to be known", || !stack.client().get("/readyz", &[]).body.contains("no key that signs"));
    let vote = |epoch: u64| stack.client().sign(&key, &attestation(epoch - 1, epoch, 1));
    let (_, epoch) = bench.now();
    let floor = bench.status(&stack, 0)["fence"]["floors"]["target"].as_u64().unwrap();
    let refused = vote(epoch);
    if floor >= epoch && bench.now().1 == epoch {
        // Nothing was signed: no sentence says that something was.
        assert_eq!(refused.status, 412, "{}", refused.body);
        assert!(refused.error().contains("the floor, epoch"), "{}", refused.error());
        assert!(!refused.error().contains("last signed"), "{}", refused.error());
        let readyz = stack.client().get("/readyz", &[]).json();
        assert!(readyz["attestations_in_seconds"].as_u64().is_some_and(|s| s > 0), "{readyz}");
    }
    until_ready(&stack, true);
    look(&bench, &stack, &key);
}

#[test]
fn an_enclave_that_hangs_is_not_ready() {
    let bench = bench();
    let stack = bench.start(&["--any-age", "--interop-keys", "1"]);
    let key = keys(&stack).remove(0);
    until_ready(&stack, true);
    let vault = stack.vaults()[0];
    Stack::signal(vault, Signal::STOP);
    until_ready(&stack, false);
    let begun = Instant::now();
    let answer = stack.client().sign(&key, &block(bench.now().0, 1));
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(begun.elapsed() < LONGEST_WAIT, "{:?}", begun.elapsed());
    assert_eq!(stack.client().get("/livez", &[]).status, 200, "the proxy lives");
    Stack::signal(vault, Signal::CONT);
    until_ready(&stack, true);
    look(&bench, &stack, &key);
}

#[test]
fn a_key_that_may_have_signed_elsewhere_hears_that_and_until_when() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1"]);
    until_ready(&stack, true);
    // Imported with a history that ends in this epoch and does not say which vote it was.
    let newcomer = bench.newcomer(9);
    let (_, epoch) = bench.now();
    let history = serde_json::json!({
        "metadata": { "interchange_format_version": "5", "genesis_validators_root": casemate_e2e::requests::root(4) },
        "data": [{
            "pubkey": newcomer.public_key,
            "signed_blocks": [],
            "signed_attestations": [{ "source_epoch": (epoch - 1).to_string(), "target_epoch": epoch.to_string() }],
        }],
    });
    std::fs::write(&newcomer.history, history.to_string()).unwrap();
    let text = bench.order(&stack, &newcomer.import());
    assert!(text.contains("imported"), "{text}");
    let answer = stack.client().sign(&newcomer.public_key, &attestation(epoch - 1, epoch, 1));
    assert_eq!(answer.status, 412, "{}", answer.body);
    for words in ["may have signed elsewhere: its imported history says so", &format!("from target {}", epoch + 1)] {
        assert!(answer.error().contains(words), "{}", answer.error());
    }
}
