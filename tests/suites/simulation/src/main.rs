//! `casemate-simulation`: runs episodes until the time is over or something happens that must never happen.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test program: whatever is not as it should be ends it with an error"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use casemate_simulation::world::Stats;
use casemate_simulation::{Episode, Options, Outcome};
use clap::Parser;

/// Runs the fence's protocol under everything that can go wrong, and judges every signature that comes out
#[derive(Parser)]
#[command(name = "casemate-simulation", version)]
struct Arguments {
    /// How long to run
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// The run's choices; the same seed makes the same run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Run so many steps, however long that takes
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Run one episode of a run again, with its whole story
    #[arg(long, value_name = "SEED:EPISODE", value_parser = parsed)]
    replay: Option<(u64, u64)>,
    /// Print every line of the story as it happens
    #[arg(long)]
    verbose: bool,
    /// A store that forgets: to see that the judge sees it
    #[arg(long)]
    forgetful: bool,
    /// A parent that shows every blob that it has: what is found then needs no rollback
    #[arg(long)]
    no_rollbacks: bool,
}

fn parsed(text: &str) -> Result<(u64, u64), String> {
    let (seed, episode) = text.split_once(':').ok_or("a seed and an episode with a colon between them")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    Ok((number(seed)?, number(episode)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (seed, only) = match arguments.replay {
        Some((seed, episode)) => (seed, Some(episode)),
        None => (arguments.seed, None),
    };
    let options = Options {
        is_loud: arguments.verbose || only.is_some(),
        is_forgetful: arguments.forgetful,
        has_honest_disk: arguments.no_rollbacks,
        ..Options::new(seed)
    };
    let begun = Instant::now();
    let mut all = Stats::default();
    let is_over = |all: &Stats| match (only, arguments.steps) {
        (Some(_), _) => all.episodes == 1,
        (None, Some(steps)) => all.steps >= steps,
        (None, None) => begun.elapsed() >= Duration::from_secs(arguments.seconds),
    };
    let mut episode = only.unwrap_or(0);
    while !is_over(&all) {
        let Outcome { stats, digest, violation, trace } = Episode::new(&options, episode).run(u64::MAX);
        all.add(&stats);
        if let Some(violation) = violation {
            if !options.is_loud {
                for line in trace {
                    println!("{line}");
                }
            }
            println!("VIOLATION: {violation}");
            println!("again: casemate-simulation --replay {seed}:{episode}   (digest {digest:016x})");
            report(&all, begun.elapsed());
            return ExitCode::FAILURE;
        }
        if only.is_some() {
            println!("digest {digest:016x}");
        }
        episode += 1;
    }
    report(&all, begun.elapsed());
    ExitCode::SUCCESS
}

fn report(all: &Stats, took: Duration) {
    let per_second = u128::from(all.steps) * 1000 / took.as_millis().max(1);
    println!(
        "{} steps in {} episodes, {:.1} s, {per_second} steps/s: {} boots, {} kills, {} claims, {} records made, {} removed, {} closed, {} forged\n\
         {} commands ({} not known): {} imports, {} deletions, {} exchanges of credentials; {} keys moved away; {} rollbacks; {} jumps of clocks\n\
         {} signatures judged, {} of them of the foreign signer; {} refusals",
        all.steps,
        all.episodes,
        took.as_secs_f64(),
        all.boots,
        all.kills,
        all.claims,
        all.records_made,
        all.records_lost,
        all.records_closed,
        all.records_forged,
        all.commands,
        all.unknown,
        all.imports,
        all.deletions,
        all.credentials,
        all.moves,
        all.rollbacks,
        all.clocks,
        all.signatures + all.foreign,
        all.foreign,
        all.refusals,
    );
}
