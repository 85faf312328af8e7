//! The rules against an oracle that remembers everything.
//!
//! The oracle holds every message that a key ever signed, here or elsewhere (imported), and judges by the definitions
//! of EIP-3076 and the consensus specification alone. Over random duties, imports, restarts and repeats:
//! no signed message is slashable against any other, and nothing that is safe and above the watermarks is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_protocol::{Bytes, Epoch, PublicKey, Root, Slot};
use casemate_slashing::interchange::{self, Histories};
use casemate_slashing::{Ceilings, Floors, Limits, SlashingHistory, rules};
use proptest::prelude::*;

const KEY: PublicKey = Bytes([7; 48]);
const GENESIS: Root = Bytes([9; 32]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Block { slot: u64, root: u8 },
    Attestation { source: u64, target: u64, root: u8 },
}
use Message::{Attestation, Block};

/// The specification's definition, on two messages of one validator.
fn slashable(a: Message, b: Message) -> bool {
    match (a, b) {
        (Block { slot: s1, root: r1 }, Block { slot: s2, root: r2 }) => s1 == s2 && r1 != r2,
        (Attestation { source: s1, target: t1, root: r1 }, Attestation { source: s2, target: t2, root: r2 }) => {
            let double = t1 == t2 && (s1, r1) != (s2, r2);
            let surround = (s1 < s2 && t2 < t1) || (s2 < s1 && t1 < t2);
            double || surround
        }
        _ => false,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Sign(Message),
    /// Ask again for a message that was signed, counted from the last one.
    Repeat(usize),
    /// Take in messages that the key signed elsewhere; `bool`: whether the file carries signing roots.
    Import(Vec<Message>, bool),
    /// Export, forget, import: what a restart through a file does.
    Restart,
    /// Another enclave took over: everything signed so far is below its floors.
    Takeover {
        ceiling_slots: u64,
        ceiling_epochs: u64,
    },
}

fn message() -> impl Strategy<Value = Message> {
    // A root is a function of the message in reality: two messages never share one. Few values make collisions likely.
    prop_oneof![
        (0..24u64, 0..3u8).prop_map(|(slot, root)| Block { slot, root }),
        (0..12u64, 0..12u64, 0..3u8).prop_map(|(source, target, root)| Attestation { source, target, root }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => message().prop_map(Step::Sign),
        3 => (0..4usize).prop_map(Step::Repeat),
        1 => (prop::collection::vec(message(), 0..4), any::<bool>()).prop_map(|(m, roots)| Step::Import(m, roots)),
        1 => Just(Step::Restart),
        1 => (0..12u64, 0..6u64).prop_map(|(ceiling_slots, ceiling_epochs)| Step::Takeover { ceiling_slots, ceiling_epochs }),
    ]
}

/// Distinct messages have distinct roots, as with SHA-256.
fn signing_root(message: Message) -> Root {
    let mut root = [0; 32];
    match message {
        Block { slot, root: r } => {
            root[..8].copy_from_slice(&slot.to_le_bytes());
            root[30] = 1;
            root[31] = r;
        }
        Attestation { source, target, root: r } => {
            root[..8].copy_from_slice(&source.to_le_bytes());
            root[8..16].copy_from_slice(&target.to_le_bytes());
            root[30] = 2;
            root[31] = r;
        }
    }
    Bytes(root)
}

fn interchange_file(messages: &[Message], with_roots: bool) -> String {
    let root = |m: Message| {
        if with_roots { format!(r#","signing_root":"{}""#, signing_root(m)) } else { String::new() }
    };
    let blocks: Vec<String> = messages
        .iter()
        .filter_map(|m| match m {
            Block { slot, .. } => Some(format!(r#"{{"slot":"{slot}"{}}}"#, root(*m))),
            Attestation { .. } => None,
        })
        .collect();
    let attestations: Vec<String> = messages
        .iter()
        .filter_map(|m| match m {
            Attestation { source, target, .. } => {
                Some(format!(r#"{{"source_epoch":"{source}","target_epoch":"{target}"{}}}"#, root(*m)))
            }
            Block { .. } => None,
        })
        .collect();
    format!(
        r#"{{"metadata":{{"interchange_format_version":"5","genesis_validators_root":"{GENESIS}"}},
        "data":[{{"pubkey":"{KEY}","signed_blocks":[{}],"signed_attestations":[{}]}}]}}"#,
        blocks.join(","),
        attestations.join(",")
    )
}

/// The signer under test: the production rules and nothing else.
struct Signer {
    history: SlashingHistory,
    limits: Limits,
}

impl Signer {
    fn sign(&mut self, message: Message) -> bool {
        let Ok(watermarks) = self.history.watermarks() else { return false };
        let root = signing_root(message);
        let checked = match message {
            Block { slot, .. } => rules::block::check(watermarks, Slot(slot), root, &self.limits),
            Attestation { source, target, .. } => {
                rules::attestation::check(watermarks, Epoch(source), Epoch(target), root, &self.limits)
            }
        };
        if let Ok(new) = checked {
            self.history = SlashingHistory::Known(new);
        }
        checked.is_ok()
    }
}

/// What the oracle says of a message: safe, and above everything that the key ever signed and above the floors.
fn must_be_signed(past: &[Message], limits: &Limits, m: Message) -> bool {
    let within = match m {
        Block { slot, .. } => limits.floors.slot.is_none_or(|f| Slot(slot) > f) && Slot(slot) <= limits.ceilings.slot,
        Attestation { source, target, .. } => {
            limits.floors.target.is_none_or(|f| Epoch(target) > f)
                && limits.floors.source.is_none_or(|f| Epoch(source) >= f)
                && Epoch(target) <= limits.ceilings.target
                && Epoch(source) <= limits.ceilings.source
        }
    };
    let above = match m {
        Block { slot, .. } => past.iter().all(|p| !matches!(p, Block { slot: s, .. } if *s >= slot)),
        Attestation { source, target, .. } => {
            // No honest vote goes from an epoch to itself but at genesis.
            (source < target || (source, target) == (0, 0))
                && past
                    .iter()
                    .all(|p| !matches!(p, Attestation { source: s, target: t, .. } if *t >= target || *s > source))
        }
    };
    within && above
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut signer = Signer { history: SlashingHistory::Missing, limits: Limits::NONE };
    let mut ours: Vec<Message> = Vec::new();
    let mut past: Vec<Message> = Vec::new();
    for step in steps {
        match step {
            Step::Sign(m) => {
                let must = must_be_signed(&past, &signer.limits, m) && signer.history != SlashingHistory::Missing;
                let did = signer.sign(m);
                prop_assert!(did || !must, "refused although safe and above the watermarks: {:?}", m);
                // A copy of an earlier message makes no new pair.
                if did && !past.contains(&m) {
                    for other in &past {
                        prop_assert!(!slashable(m, *other), "slashable: {:?} and {:?}", m, other);
                    }
                    past.push(m);
                }
                if did {
                    ours.push(m);
                }
            }
            Step::Repeat(back) => {
                // A message at the watermark may be repeated; whatever is answered, it must not slash.
                let Some(m) = ours.iter().rev().nth(back).copied() else { continue };
                let highest = match m {
                    Block { slot, .. } => past.iter().all(|p| !matches!(p, Block { slot: s, .. } if *s > slot)),
                    Attestation { source, target, .. } => past
                        .iter()
                        .all(|p| !matches!(p, Attestation { source: s, target: t, .. } if *t > target || *s > source)),
                };
                let same_height = past.iter().any(|p| match (*p, m) {
                    (Block { slot: a, root: x }, Block { slot: b, root: y }) => a == b && x != y,
                    (Attestation { target: a, .. }, Attestation { target: b, .. }) => a == b && *p != m,
                    _ => false,
                });
                let floors = signer.limits.floors;
                let did = signer.sign(m);
                if highest && !same_height && floors == Floors::default() && signer.limits.ceilings == Ceilings::NONE {
                    // Imports without roots at the same height forget the root: then a refusal is right.
                    let rootless = past.iter().filter(|p| **p == m).count() > 1;
                    prop_assert!(did || rootless, "repeat of {:?} refused", m);
                }
            }
            Step::Import(messages, with_roots) => {
                let file = interchange_file(&messages, with_roots);
                let imported = interchange::read(file.as_bytes(), GENESIS).unwrap();
                signer.history = signer.history.with(imported[&KEY]);
                past.extend(messages);
            }
            Step::Restart => {
                if let Ok(watermarks) = signer.history.watermarks() {
                    let mut file = Vec::new();
                    interchange::write(&Histories::from([(KEY, watermarks)]), GENESIS, &mut file).unwrap();
                    let read = interchange::read(file.as_slice(), GENESIS).unwrap();
                    signer.history = SlashingHistory::Missing.with(read[&KEY]);
                }
            }
            Step::Takeover { ceiling_slots, ceiling_epochs } => {
                // The successor knows nothing of the past but the ceilings of its predecessor, and starts from these.
                let top_slot = past
                    .iter()
                    .filter_map(|p| match p {
                        Block { slot, .. } => Some(*slot),
                        Attestation { .. } => None,
                    })
                    .max();
                let top = |f: fn(Message) -> Option<u64>| past.iter().filter_map(|p| f(*p)).max();
                let source = top(|m| match m {
                    Attestation { source, .. } => Some(source),
                    Block { .. } => None,
                });
                let target = top(|m| match m {
                    Attestation { target, .. } => Some(target),
                    Block { .. } => None,
                });
                let floors = Floors { slot: top_slot.map(Slot), target: target.map(Epoch), source: source.map(Epoch) };
                let ceilings = Ceilings {
                    slot: Slot(top_slot.unwrap_or(0) + ceiling_slots),
                    target: Epoch(target.unwrap_or(0) + ceiling_epochs),
                    source: Epoch(source.unwrap_or(0) + ceiling_epochs),
                };
                signer = Signer {
                    history: SlashingHistory::Known(casemate_slashing::Watermarks::NONE),
                    limits: Limits { floors, ceilings },
                };
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn no_two_signed_messages_are_slashable_and_nothing_safe_is_refused(steps in prop::collection::vec(step(), 1..60)) {
        // A history is needed before anything is signed: an empty import is one.
        let mut all = vec![Step::Import(Vec::new(), true)];
        all.extend(steps);
        run(all)?;
    }

    /// Imports are by hearsay: a file may name messages that never were, with the roots of others. What this signer has signed
    /// itself is safe all the same.
    #[test]
    fn whatever_imports_claim_no_two_messages_of_our_own_are_slashable(
        steps in prop::collection::vec((message(), prop::option::weighted(0.3, message())), 1..40),
    ) {
        let mut signer = Signer { history: SlashingHistory::Known(casemate_slashing::Watermarks::NONE), limits: Limits::NONE };
        let mut ours: Vec<Message> = Vec::new();
        for (message, claimed) in steps {
            if let Some(claimed) = claimed {
                let file = interchange_file(&[claimed], true)
                    .replace(&signing_root(claimed).to_string(), &signing_root(message).to_string());
                let imported = interchange::read(file.as_bytes(), GENESIS).unwrap();
                signer.history = signer.history.with(imported[&KEY]);
            }
            if signer.sign(message) {
                for other in &ours {
                    prop_assert!(!slashable(message, *other), "slashable: {:?} and {:?}", message, other);
                }
                ours.push(message);
            }
        }
    }

    #[test]
    fn the_full_range_of_u64_is_judged_alike(
        a in (any::<u64>(), any::<u64>()), b in (any::<u64>(), any::<u64>()), slots in (any::<u64>(), any::<u64>()),
    ) {
        run(vec![
            Step::Import(Vec::new(), true),
            Step::Sign(Attestation { source: a.0, target: a.1, root: 0 }),
            Step::Sign(Attestation { source: b.0, target: b.1, root: 1 }),
            Step::Sign(Block { slot: slots.0, root: 0 }),
            Step::Sign(Block { slot: slots.1, root: 1 }),
            Step::Repeat(0),
            Step::Repeat(1),
        ])?;
    }
}

#[test]
fn a_key_without_history_signs_nothing() {
    let mut signer = Signer { history: SlashingHistory::Missing, limits: Limits::NONE };
    assert!(!signer.sign(Block { slot: 1, root: 0 }));
    assert!(!signer.sign(Attestation { source: 1, target: 2, root: 0 }));
}

#[test]
fn the_oracle_itself_finds_what_it_should() {
    let block = |slot, root| Block { slot, root };
    let vote = |source, target, root| Attestation { source, target, root };
    assert!(slashable(block(5, 0), block(5, 1)));
    assert!(!slashable(block(5, 0), block(5, 0)));
    assert!(slashable(vote(1, 5, 0), vote(2, 5, 0)));
    assert!(slashable(vote(1, 5, 0), vote(2, 4, 0)));
    assert!(slashable(vote(2, 4, 0), vote(1, 5, 0)));
    assert!(!slashable(vote(1, 2, 0), vote(2, 3, 0)));
    assert!(!slashable(vote(1, 5, 0), vote(1, 6, 0)));
}
