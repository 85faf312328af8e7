//! The fence through the whole stack: records, handovers, standbys, older states, as an operator and a client see them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;
use std::time::{Duration, Instant};

use casemate::Exit;
use casemate_e2e::bench::keys;
use casemate_e2e::requests::{attestation, block};
use casemate_e2e::stack::eventually;
use casemate_e2e::{Bench, Client, Stack};
use rustix::process::Signal;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const SLOT_MS: u64 = 500;
const SLOTS_PER_EPOCH: u64 = 8;

/// A stack on a chain in a hurry.
/// Its slots are short: what the tests ask for again after a start or a handover is old by then, so their stacks sign
/// duties of any age, and it is the fence that refuses.
fn bench() -> Bench {
    Bench::new(PROGRAM, SLOT_MS, SLOTS_PER_EPOCH)
}

fn has_etcd() -> bool {
    let has = Path::new("/usr/bin/etcd").exists();
    if !has {
        println!("SKIPPED: etcd is not installed (apt-get install etcd-server etcd-client)");
    }
    has
}

#[test]
fn a_handover_in_order_misses_no_duty_and_forgets_none() {
    let bench = bench();
    let stack = bench.start(&["--any-age", "--interop-keys", "2", "--enclaves", "2"]);
    let keys = keys(&stack);
    let mut client = stack.client();
    // In the middle of an epoch: nobody could sign again for it after a loss.
    while bench.now().0 % SLOTS_PER_EPOCH > 2 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (slot, epoch) = bench.now();
    let first_epoch = epoch;
    let first = client.sign(&keys[0], &attestation(epoch - 1, epoch, 1)).signature();
    let block_signature = client.sign(&keys[0], &block(slot, 1)).signature();
    let holder = u8::from(bench.standing(&stack, 1) == "holding");
    let term = bench.status(&stack, holder)["fence"]["term"].as_u64().unwrap();
    // Without a number it is the holder, before and after: the answer is that enclave's own.
    let (exit, text) = bench.casemate(&stack, &["fence", "handover"], true);
    assert_eq!(exit, Exit::Accepted, "{text}");
    assert!(text.contains("handed over"), "{text}");
    // At once, for the same epoch: the other key's duty, and what was signed before is known there.
    let begun = Instant::now();
    client.sign(&keys[1], &attestation(epoch - 1, epoch, 1)).signature();
    println!("signed again {:?} after the handover", begun.elapsed());
    assert_eq!(client.sign(&keys[0], &attestation(epoch - 1, epoch, 1)).signature(), first, "the very same one");
    assert_eq!(client.sign(&keys[0], &attestation(epoch - 1, epoch, 2)).status, 412);
    assert_eq!(client.sign(&keys[0], &block(slot, 1)).signature(), block_signature);
    assert_eq!(client.sign(&keys[0], &block(slot, 2)).status, 412);
    let now = bench.status(&stack, 1 - holder);
    assert_eq!((&now["fence"]["standing"], &now["fence"]["term"]), (&"holding".into(), &(term + 1).into()));
    assert_eq!(now["fence"]["floors"]["slot"], Value::Null, "an exact state needs no floors");
    assert_eq!(bench.standing(&stack, holder), "standby");
    // The end of the proxy does the same.
    let proxy = stack.processes("proxy")[0];
    Stack::signal(proxy, Signal::TERM);
    eventually("another proxy", || stack.processes("proxy").iter().any(|pid| *pid != proxy));
    eventually("the first enclave to hold the fence again", || {
        Client::try_connect(stack.address).is_some() && bench.standing(&stack, holder) == "holding"
    });
    let (slot, epoch) = bench.now();
    stack.client().sign(&keys[1], &block(slot, 1)).signature();
    assert_eq!(
        stack.client().sign(&keys[0], &attestation(epoch - 1, epoch, 2)).status,
        if epoch == first_epoch { 412 } else { 200 }
    );
    assert!(stack.log().contains("the fence was handed over in order"), "{}", stack.log());
    assert!(stack.stop().success());
}

#[test]
fn a_dead_holder_is_followed_once_its_ceilings_have_passed() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1", "--enclaves", "2"]);
    let key = keys(&stack).remove(0);
    let (slot, _) = bench.now();
    stack.client().sign(&key, &block(slot, 1)).signature();
    let holder = u8::from(bench.standing(&stack, 1) == "holding");
    let ceiling = bench.status(&stack, holder)["fence"]["record"]["slot_ceiling"].as_u64().unwrap();
    assert!(ceiling >= slot);
    // Kept down: the stack starts it again, and it stays a standby behind the other one.
    let vaults = stack.processes("vault");
    let mut numbered: Vec<u32> = stack
        .banner
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.first() == Some(&"vault")).then(|| words[2].parse().unwrap())
        })
        .collect();
    assert_eq!(numbered.len(), vaults.len());
    let begun = Instant::now();
    Stack::signal(numbered.remove(usize::from(holder)), Signal::KILL);
    let signed_slot = loop {
        let (slot, _) = bench.now();
        let answer = stack.client().sign(&key, &block(slot, 2));
        if answer.status == 200 {
            break slot;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", answer.body);
        std::thread::sleep(Duration::from_millis(20));
    };
    println!("a block again {:?} after the kill", begun.elapsed());
    assert!(signed_slot > ceiling, "slot {signed_slot}, ceiling {ceiling}");
    let floors = &bench.status(&stack, 1 - holder)["fence"]["floors"];
    assert!(floors.is_null() || floors["slot"].as_u64().is_none_or(|floor| floor >= ceiling), "{floors}");
}

#[test]
fn a_deleted_key_does_not_come_back_with_an_older_state_and_finds_its_past_when_imported() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let stack = bench.start(&["--any-age", "--interop-keys", "2", "--fence", "etcd"]);
    let all = keys(&stack);
    let (_, epoch) = bench.now();
    stack.client().sign(&all[1], &attestation(epoch - 1, epoch, 1)).signature();
    let before = bench.folder.path().join("yesterday");
    copy(&bench.blobs(), &before);
    let file = bench.folder.path().join("key");
    std::fs::write(&file, &all[1]).unwrap();
    let (exit, text) =
        bench.casemate(&stack, &["keys", "delete", "--yes", "--public-keys", file.to_str().unwrap()], true);
    assert_eq!(exit, Exit::Accepted, "{text}");
    assert_eq!(keys(&stack), all[..1]);
    stack.kill();
    // The parent offers the state in which the key was there.
    let today = bench.folder.path().join("today");
    std::fs::rename(bench.blobs(), &today).unwrap();
    copy(&before, &bench.blobs());
    let log = bench.try_start(&["--any-age", "--interop-keys", "0", "--fence", "etcd"]).err().unwrap();
    assert!(log.contains("older than the fence's record allows"), "{log}");
    std::fs::remove_dir_all(bench.blobs()).unwrap();
    std::fs::rename(&today, bench.blobs()).unwrap();
    let stack = bench.start(&["--any-age", "--interop-keys", "0", "--fence", "etcd"]);
    assert_eq!(keys(&stack), all[..1]);
    // Imported again with a past of nothing, it still has its own.
    let secret = const_hex::encode(*casemate_dev::interop::secret_key(1));
    std::fs::write(&file, secret).unwrap();
    let empty = bench.folder.path().join("empty.json");
    let root = casemate_e2e::requests::NETWORK.lines().find(|l| l.starts_with("genesis_validators_root")).unwrap();
    let root = root.split('"').nth(1).unwrap();
    std::fs::write(&empty, format!(
        r#"{{"metadata":{{"interchange_format_version":"5","genesis_validators_root":"{root}"}},"data":[{{"pubkey":"{}","signed_blocks":[],"signed_attestations":[]}}]}}"#,
        all[1]
    )).unwrap();
    let (exit, text) = bench.casemate(
        &stack,
        &["keys", "import", "--raw-keys", file.to_str().unwrap(), "--slashing-protection", empty.to_str().unwrap()],
        true,
    );
    assert_eq!(exit, Exit::Accepted, "{text}");
    let answer = stack.client().sign(&all[1], &attestation(epoch - 1, epoch, 2));
    assert_eq!(answer.status, 412, "{}", answer.body);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_record_is_made_once_and_anew_only_where_it_was_lost() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1"]);
    let key = keys(&stack).remove(0);
    let (exit, text) = bench.casemate(&stack, &["fence", "init"], true);
    assert_eq!(exit, Exit::Refused, "{text}");
    assert!(text.contains("has a record already"), "{text}");
    let (_, text) = bench.casemate(&stack, &["fence", "status"], false);
    for line in ["HOLDER", ", holder this enclave", "blocks now, attestations now"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let (slot, _) = bench.now();
    stack.client().sign(&key, &block(slot, 1)).signature();
    assert!(stack.stop().success());
    // Somebody deletes the record: the next start finds none, and makes none.
    std::fs::remove_dir_all(bench.chain().join("fence")).unwrap();
    let log = bench.try_start(&["--interop-keys", "0"]).err().unwrap();
    assert!(log.contains("the fence's record"), "{log}");
}

#[test]
fn solo_signs_nothing_below_what_the_clock_has_allowed_before() {
    let bench = bench();
    // Before the start, which may take longer than a slot or an epoch.
    let (slot, epoch) = bench.now();
    let stack = bench.start(&["--any-age", "--interop-keys", "1", "--fence", "solo"]);
    let key = keys(&stack).remove(0);
    assert_eq!(stack.client().sign(&key, &block(slot.saturating_sub(3), 1)).status, 412);
    let answer = stack.client().sign(&key, &attestation(epoch - 1, epoch, 1));
    assert_eq!(answer.status, 412, "{}", answer.body);
    let begun = Instant::now();
    loop {
        let (_, epoch) = bench.now();
        if stack.client().sign(&key, &attestation(epoch, epoch + 1, 1)).status == 200 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("solo: an attestation {:?} after the start, epochs of {} ms", begun.elapsed(), SLOT_MS * SLOTS_PER_EPOCH);
    let (exit, text) = bench.casemate(&stack, &["fence", "handover"], true);
    assert_eq!(exit, Exit::Refused, "{text}");
    assert!(text.contains("has no record"), "{text}");
}

#[test]
fn an_etcd_of_the_stack_keeps_the_fence_across_starts() {
    if !has_etcd() {
        return;
    }
    let bench = bench();
    let stack = bench.start(&["--any-age", "--interop-keys", "1", "--fence", "etcd"]);
    let key = keys(&stack).remove(0);
    let (_, epoch) = bench.now();
    let first = stack.client().sign(&key, &attestation(epoch - 1, epoch, 1)).signature();
    // In order: the next start has the exact state.
    assert!(stack.stop().success());
    let stack = bench.start(&["--any-age", "--interop-keys", "1", "--fence", "etcd"]);
    assert_eq!(stack.client().sign(&key, &attestation(epoch - 1, epoch, 1)).signature(), first);
    assert_eq!(stack.client().sign(&key, &attestation(epoch - 1, epoch, 2)).status, 412);
    // Killed: the floors stand for what nobody knows.
    stack.kill();
    let stack = bench.start(&["--any-age", "--interop-keys", "1", "--fence", "etcd"]);
    let status = bench.status(&stack, 0);
    assert!(status["fence"]["floors"]["target"].as_u64().is_some_and(|floor| floor >= epoch), "{status}");
    // Which etcd it is: the document says it, and an operator can hold the enclave to it.
    let store = status["fence"]["store"].as_str().unwrap().to_owned();
    let (cluster, rest) = store.split_once('/').unwrap();
    assert!(cluster.len() == 16 && rest.starts_with("casemate/#root-sha256="), "{store}");
    let pinned = |fence: String| bench.casemate(&stack, &["fence", "status", "--fence", &fence], false).0;
    assert_eq!(pinned(format!("etcd:{cluster}")), Exit::Accepted);
    assert_eq!(pinned(format!("etcd:{store}")), Exit::Accepted);
    assert_eq!(pinned("etcd:00000000000000ff".into()), Exit::Refused);
    assert_eq!(pinned("dynamodb".into()), Exit::Refused);
    assert_eq!(stack.client().sign(&key, &attestation(epoch - 1, epoch, 1)).status, 412);
    // Nothing that opens the store lies in the clear where the parent can read it, but for what the stack has made itself.
    for entry in std::fs::read_dir(bench.blobs()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let key = std::fs::read_to_string(bench.chain().join("etcd/client-key.pem")).unwrap();
        let der = key.lines().filter(|line| !line.starts_with('-')).collect::<String>();
        let der = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, der).unwrap();
        assert!(!bytes.windows(32).any(|window| window == &der[der.len() - 32..]));
    }
}
