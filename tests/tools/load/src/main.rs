//! `casemate-load`: has a signer sign over HTTP, and tells how fast it is beside raw blst.
//!
//! Everything is a ratio to raw blst (`SecretKey::sign`, serialized) on as many threads, measured in the same run just before each
//! load, because a shared machine's speed drifts. With `--compare` a second signer takes its turns too.
#![forbid(unsafe_code)]

mod http;
mod messages;
mod processes;
mod raw;
mod report;
mod signer;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use messages::Duties;
use processes::Processes;
use report::{Measured, Report};
use signer::{OtherChain, Signer};

/// Load on a running signer with the Web3Signer API: attestations and other duties, each key's targets rising.
#[derive(Parser)]
#[command(name = "casemate-load", version)]
struct Options {
    /// The signer
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000")]
    url: String,
    /// A second signer, measured in turns with the first
    #[arg(long, value_name = "URL")]
    compare: Option<String>,
    /// How long to measure, all in all
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// Connections, each with one request in flight; the signer needs at least as many keys
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Turns of each load, each behind one of raw blst; the medians are reported
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
    /// Also a slot's burst: N attestations of one root due at once; once for each N
    #[arg(long, value_name = "N")]
    burst: Vec<usize>,
    /// Also an open loop: requests come at this share of what raw blst signs, whatever becomes of those before; once for each share
    #[arg(long, value_name = "SHARE")]
    offered: Vec<f64>,
    /// Also mixed duties: seven attestations of one root, a selection proof, a RANDAO reveal, a sync committee's message
    #[arg(long)]
    mixed: bool,
    /// A process of the signer at --url, counted with all that it has started: tells the CPU efficiency, raw blst's processor time a
    /// signature, of theirs; once for each
    #[arg(long, value_name = "PID")]
    process: Vec<u32>,
    /// Measure raw blst by one thread on this CPU; once for each [default: a thread a core, on any]
    #[arg(long, value_name = "CPU")]
    raw_cpu: Vec<usize>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// The chain's genesis validators root; a Casemate signer tells it by itself
    #[arg(long, value_name = "HEX")]
    genesis_validators_root: Option<String>,
    /// First target epoch that no key has signed; a Casemate signer tells it by itself
    #[arg(long, value_name = "EPOCH")]
    start_epoch: Option<u64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // One thread: what the generator takes from the signer's cores is then known.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(options))
}

async fn run(options: Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.connections > 0, "--rounds and --connections must be above 0");
    ensure!(
        options.offered.iter().all(|share| *share > 0.0 && *share < 100.0),
        "--offered is a share of raw blst, such as 0.5"
    );
    let chain = OtherChain {
        genesis_validators_root: options.genesis_validators_root.clone(),
        start_epoch: options.start_epoch,
    };
    let mut signers = Vec::new();
    for url in std::iter::once(&options.url).chain(&options.compare) {
        signers.push(Signer::open(url, options.connections, &chain).await?);
    }
    let mut loads = vec![Measured::Closed(Duties::OneRoot), Measured::Closed(Duties::AllDifferent)];
    loads.extend(options.mixed.then_some(Measured::Closed(Duties::Mixed)));
    loads.extend(options.burst.iter().map(|count| Measured::Burst(*count)));
    loads.extend(options.offered.iter().map(|share| Measured::Offered(*share)));
    // Raw blst has a turn before each load; bursts take what they take.
    let turns = loads.len().saturating_mul(signers.len()).saturating_mul(2);
    let turn = Duration::from_secs(options.seconds) / options.rounds.saturating_mul(u32::try_from(turns)?);
    for signer in &mut signers {
        signer.closed(Duties::OneRoot, turn.min(Duration::from_millis(300))).await?;
    }
    let processes: Vec<Processes> = options.process.iter().map(|pid| Processes::of(*pid)).collect::<Result<_>>()?;
    let mut report = Report::new(options.connections, options.rounds);
    for _ in 0..options.rounds {
        for load in &loads {
            for (number, signer) in signers.iter_mut().enumerate() {
                let raw = raw::measure(&options.raw_cpu, turn)?;
                report.raw(raw);
                let counted = number == 0 && !processes.is_empty();
                let cpu = || counted.then(|| processes.iter().map(Processes::cpu).sum::<Duration>());
                let before = cpu();
                let mut sample = match *load {
                    Measured::Closed(duties) => signer.closed(duties, turn).await?,
                    Measured::Burst(count) => signer.burst(count).await?,
                    Measured::Offered(share) => signer.open_loop(raw.per_second * share, turn).await?,
                };
                sample.cpu = cpu().zip(before).map(|(after, before)| after.saturating_sub(before));
                report.add(&signer.url, signer.keys(), *load, raw, sample);
            }
        }
    }
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(())
}
