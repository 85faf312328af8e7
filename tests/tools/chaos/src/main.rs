//! `casemate-chaos`: two to four enclaves of one group behind one proxy, on etcd or a file, with everything that can go wrong at
//! random: processes killed and stopped, older sealed states restored, the store away, keys imported and deleted, the fence handed
//! over and taken over; and a hostile client that asks every enclave at once for duties that conflict.
//!
//! At the end every signature that was released is compared with every other of its key. The choices are seeded; the processes'
//! timing is the machine's.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test program: whatever is not as it should be ends it with an error"
)]

mod judge;
mod world;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate_e2e::{hostile, prober};
use clap::Parser;
use indicatif::ProgressBar;

use crate::world::World;

/// Breaks a group of enclaves at random for a while, and judges every signature that came out.
#[derive(Parser)]
#[command(name = "casemate-chaos", version)]
struct Options {
    /// How long to break things
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// The run's choices; the same seed makes the same choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Enclaves of the group
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=4))]
    enclaves: u8,
    /// Where the fence's record is; etcd where it is installed
    #[arg(long, value_name = "KIND", value_parser = ["etcd", "file"])]
    fence: Option<String>,
    /// Milliseconds of a slot
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    slot_ms: u64,
    /// Slots of an epoch
    #[arg(long, value_name = "N", default_value_t = 4)]
    slots_per_epoch: u64,
    /// Only these faults, by name, with commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        // The stack and its parts are this very program.
        Some("__stack") => casemate_dev::main(&[&arguments[..1], arguments.get(2..).unwrap_or_default()].concat()),
        Some(part) if part.starts_with("__") => casemate_dev::main(&arguments),
        _ => run(&Options::parse()),
    }
}

fn run(options: &Options) -> ExitCode {
    let fence = options
        .fence
        .clone()
        .unwrap_or_else(|| if std::path::Path::new("/usr/bin/etcd").exists() { "etcd" } else { "file" }.to_owned());
    println!(
        "casemate-chaos: {} s, seed {}, {} enclaves, fence {fence}, slots of {} ms, {} an epoch",
        options.seconds, options.seed, options.enclaves, options.slot_ms, options.slots_per_epoch
    );
    let Options { seconds, seed, enclaves, slot_ms, slots_per_epoch, only, .. } = options;
    let mut world = World::start(*enclaves, &fence, *slot_ms, *slots_per_epoch, *seed, only, *seconds);
    let stop = AtomicBool::new(false);
    let bar = ProgressBar::new(options.seconds).with_message("breaking things");
    let (keys, sockets) = (&world.keys.clone(), &world.sockets.clone());
    let (released, probed) = std::thread::scope(|scope| {
        let chain = world.chain;
        let (stop, address) = (&stop, world.stack.address);
        let hostile: Vec<_> = (0..2)
            .map(|thread| scope.spawn(move || hostile::ask(chain, keys, sockets, 0, options.seed + thread, stop)))
            .collect();
        let prober = scope.spawn(move || prober::probe(chain, keys, address, prober::VARIANT, stop));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(options.seconds) {
            bar.set_position(begun.elapsed().as_secs());
            world.disturb();
        }
        world.calm();
        // Time to recover: a claim waits for the ceilings, an attestation for the next epoch.
        let quiet = Duration::from_millis(chain.slot_ms * (chain.slots_per_epoch * 2 + 6)) + Duration::from_secs(5);
        std::thread::sleep(quiet);
        stop.store(true, Ordering::Relaxed);
        let released: Vec<_> = hostile.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (released, prober.join().unwrap())
    });
    bar.finish_and_clear();
    let report = judge::judge(&world, released, &probed);
    println!("{}", report.text);
    if report.is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
