//! What came out, compared with every rule.

use std::fmt::Write as _;
use std::time::Duration;

use casemate_e2e::hostile::{Released, slashable_pairs};
use casemate_e2e::prober::{Probed, Service};

use crate::world::{Change, World};

pub struct Report {
    pub text: String,
    pub is_good: bool,
}

/// Signatures of a key that was deleted: asked for after the deletion was confirmed, before the key was brought back.
fn of_deleted(released: &[Released], changes: &[Change]) -> Vec<Released> {
    let mut found = Vec::new();
    for (number, change) in changes.iter().enumerate().filter(|(_, change)| change.deleted) {
        let until = changes.get(number + 1).map(|next| next.begun);
        let within = |one: &&Released| {
            one.key == change.key && one.asked > change.done && until.is_none_or(|until| one.asked < until)
        };
        found.extend(released.iter().filter(within));
    }
    found
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

pub fn judge(world: &World, released: Vec<Released>, probed: &Probed) -> Report {
    let mut all = released;
    all.extend(probed.released.iter().copied());
    let pairs = slashable_pairs(&all);
    let deleted = of_deleted(&all, &world.changes);
    let mut text = String::new();
    let mut faults: Vec<String> = world.faults.iter().map(|(name, count)| format!("{count} × {name}")).collect();
    faults.sort();
    let _ = writeln!(text, "faults: {}", faults.join(", "));
    let outcomes: Vec<String> = world.outcomes.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let _ = writeln!(text, "of these: {}", outcomes.join(", "));
    let _ = writeln!(
        text,
        "signatures released: {} ({} of them asked for by the client that means well)",
        all.len(),
        probed.released.len()
    );
    let Service { block_slots, blocks, epochs, votes } = probed.service;
    let _ = writeln!(
        text,
        "duties: {blocks} of {block_slots} slots and {votes} of {epochs} epochs served; {} and {} missed",
        block_slots - blocks,
        epochs - votes
    );
    for (name, gaps) in probed.gaps_after(&world.marks) {
        let mut sorted = gaps.clone();
        sorted.sort_unstable();
        if let (Some(first), Some(last)) = (sorted.first(), sorted.last()) {
            let median = sorted[sorted.len() / 2];
            let _ = writeln!(
                text,
                "longest time without a signed block after {name}: measured {} times, {} to {}, median {}",
                sorted.len(),
                seconds(*first),
                seconds(*last),
                seconds(median)
            );
        }
    }
    let term = world.term();
    let _ = writeln!(text, "the fence is in term {}", term.map_or("?".to_owned(), |g| g.to_string()));
    let _ = writeln!(text, "slashable pairs: {}; signatures of deleted keys: {}", pairs.len(), deleted.len());
    for (key, a, b) in pairs.iter().take(10) {
        let _ = writeln!(text, "  SLASHABLE, key {key}: {a:?} and {b:?}");
    }
    for one in deleted.iter().take(10) {
        let _ = writeln!(text, "  OF A DELETED KEY: {one:?}");
    }
    let recovered = probed.signs_at_the_end;
    if !recovered {
        text.push_str("NOBODY SIGNS any more after everything was mended\n");
        text.push_str(&world.stack.log().lines().rev().take(40).collect::<Vec<_>>().join("\n"));
    }
    Report { text, is_good: pairs.is_empty() && deleted.is_empty() && recovered && blocks > 0 && votes > 0 }
}
