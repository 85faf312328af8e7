//! Random kills under a hostile client: whatever dies when, no two signatures that were released are slashable.
//!
//! `CASEMATE_SEED` repeats a run's choices; the processes' timing is the machine's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use casemate_e2e::requests::{NETWORK, attestation, block};
use casemate_e2e::{Client, Stack};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const KEYS: u64 = 3;
const CLIENTS: u64 = 4;

/// A message that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Signed {
    Block { key: u64, slot: u64, root: u8 },
    Vote { key: u64, source: u64, target: u64, root: u8 },
}

fn slashable(a: Signed, b: Signed) -> bool {
    match (a, b) {
        (Signed::Block { key: k1, slot: s1, root: r1 }, Signed::Block { key: k2, slot: s2, root: r2 }) => {
            k1 == k2 && s1 == s2 && r1 != r2
        }
        (
            Signed::Vote { key: k1, source: s1, target: t1, root: r1 },
            Signed::Vote { key: k2, source: s2, target: t2, root: r2 },
        ) => {
            let double = t1 == t2 && (s1, r1) != (s2, r2);
            k1 == k2 && (double || (s1 < s2 && t2 < t1) || (s2 < s1 && t1 < t2))
        }
        _ => false,
    }
}

/// A small generator: repeatable, and good enough to be hostile.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// The chain's height that the clients are at rises with the answers they get: after a restart they ask for what was
/// signed just before it.
static ANSWERED: AtomicU64 = AtomicU64::new(0);

fn attack(
    address: std::net::SocketAddr,
    keys: &[String],
    seed: u64,
    stop: &AtomicBool,
    signed: &Mutex<Vec<Signed>>,
) -> u64 {
    let mut random = Random(seed);
    let mut refused = 0;
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let height = 10 + ANSWERED.load(Ordering::Relaxed) / 40;
        let key = random.below(KEYS);
        let root = u8::try_from(random.below(3)).unwrap();
        let (message, body) = if random.below(3) == 0 {
            let slot = height * 3 + random.below(6);
            (Signed::Block { key, slot, root }, block(slot, root))
        } else {
            let target = height + random.below(4);
            let source = target.saturating_sub(1 + random.below(6));
            (Signed::Vote { key, source, target, root }, attestation(source, target, root))
        };
        let path = format!("/api/v1/eth2/sign/{}", keys[usize::try_from(key).unwrap()]);
        let headers = [("Accept", "application/json")];
        // The proxy may be dead or starting: then there is no connection.
        let connected = client.take().or_else(|| Client::try_connect(address));
        let Some(mut connected) = connected else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        match connected.send("POST", &path, &headers, body.to_string().as_bytes()) {
            Ok(answer) => {
                if answer.status != 503 {
                    ANSWERED.fetch_add(1, Ordering::Relaxed);
                }
                match answer.status {
                    200 => signed.lock().unwrap().push(message),
                    412 => refused += 1,
                    503 => std::thread::sleep(Duration::from_millis(2)),
                    _ => panic!("{answer:?}"),
                }
                client = Some(connected);
            }
            Err(_) => client = None,
        }
    }
    refused
}

#[test]
fn no_two_released_signatures_are_slashable_whatever_dies_when() {
    let seed = std::env::var("CASEMATE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x00c0_ffee_u64);
    println!("CASEMATE_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    let network = folder.path().join("network.toml");
    std::fs::write(&network, NETWORK.replace("slot_duration_ms = 12000", "slot_duration_ms = 1")).unwrap();
    let keys = ["--any-age", "--interop-keys", "3", "--", "--log-level", "error"];
    let options = [&["--network", network.to_str().unwrap()][..], &keys].concat();
    let mut random = Random(seed);
    let signed = Mutex::new(Vec::new());
    let (mut refused, mut kills) = (0, 0);
    // Three rounds are enough, but on a slow machine what was killed is hardly up again when it is killed next.
    for round in 0..12 {
        if round >= 3 && signed.lock().unwrap().len() > 200 && refused > 50 && kills >= 10 {
            break;
        }
        let stack = Stack::start_in(PROGRAM, &folder.path().join("data"), &options);
        // No key is lost, whatever died while it was being sealed or unsealed.
        let keys: Vec<String> = stack
            .client()
            .get("/api/v1/eth2/publicKeys", &[])
            .json()
            .as_array()
            .unwrap()
            .iter()
            .map(|k| k.as_str().unwrap().to_owned())
            .collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|n| {
                    let (keys, stop, signed, address) = (&keys, &stop, &signed, stack.address);
                    let seed = random.below(u64::MAX) | (n + 1);
                    scope.spawn(move || attack(address, keys, seed, stop, signed))
                })
                .collect();
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(100 + random.below(400)));
                let part = ["vault", "vault", "broker", "proxy", "kms"][usize::try_from(random.below(5)).unwrap()];
                for pid in stack.processes(part) {
                    // It may have gone by itself since it was listed.
                    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
                    kills += 1;
                }
            }
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            refused += clients.into_iter().map(|c| c.join().unwrap()).sum::<u64>();
        });
        stack.kill();
    }
    let mut signed = signed.into_inner().unwrap();
    let count = signed.len();
    signed.sort_unstable();
    signed.dedup();
    for (i, a) in signed.iter().enumerate() {
        for b in &signed[..i] {
            assert!(!slashable(*a, *b), "slashable, seed {seed}: {a:?} and {b:?}");
        }
    }
    println!("{count} signatures, {} different messages, {refused} refused, {kills} kills", signed.len());
    assert!(
        signed.len() > 50 && refused > 50 && kills >= 10,
        "{} signed, {refused} refused, {kills} kills",
        signed.len()
    );
}
