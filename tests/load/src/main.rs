//! `casemate-load`: signs attestations over HTTP as fast as a signer answers, and prints one JSON line.
//!
//! Everything is a ratio to raw blst (`SecretKey::sign`, serialized) on as many threads, measured in the same run in turns
//! with the load, because a shared machine's speed drifts. Two loads: all validators of an epoch vote alike (one signing
//! root for all keys, as since Electra), and no two votes are alike.
#![forbid(unsafe_code)]

mod http;
mod raw;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use http::{Connection, Target};
use serde_json::{Value, json};

/// Load on a running signer with the Web3Signer API: attestations, each key's targets rising.
#[derive(Parser)]
#[command(name = "casemate-load", version)]
struct Options {
    /// The signer
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000")]
    url: String,
    /// How long to measure, all in all
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// Requests in flight, one to a connection; the signer needs at least as many keys
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Turns of raw blst and load; the medians are reported
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
    /// The chain's genesis validators root; a Casemate signer tells it by itself
    #[arg(long, value_name = "HEX")]
    genesis_validators_root: Option<String>,
}

/// Which votes are cast.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Votes {
    /// All keys sign one root an epoch.
    Shared,
    /// No two roots are alike.
    Distinct,
}

/// What one turn of load gave.
struct Sample {
    per_second: f64,
    latencies: Vec<Duration>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // One thread: what the generator takes from the signer's cores is then known.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(options))
}

async fn run(options: Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.connections > 0, "--rounds and --connections must be above 0");
    let target = Target::parse(&options.url)?;
    let mut first = Connection::open(&target).await?;
    let keys = public_keys(&mut first).await?;
    ensure!(
        keys.len() >= options.connections,
        "the signer has {} keys; {} connections need as many, so that no key's votes overtake each other",
        keys.len(),
        options.connections
    );
    let root = match options.genesis_validators_root {
        Some(root) => root,
        None => genesis_validators_root(&mut first, &keys).await?,
    };
    let (start, latest) = free_epochs(&mut first, &keys, &root).await?;
    eprintln!("{} keys, {} free epochs, {} connections", keys.len(), latest.saturating_sub(start), options.connections);

    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let turn = Duration::from_secs(options.seconds) / options.rounds.saturating_mul(3);
    let mut load = Load::open(&target, &keys, options.connections, root, start, latest).await?;
    load.run(Votes::Shared, turn.min(Duration::from_millis(300))).await?;
    let (mut raws, mut shared, mut distinct) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        raws.push(raw::signatures_per_second(threads, turn));
        shared.push(load.run(Votes::Shared, turn).await?);
        distinct.push(load.run(Votes::Distinct, turn).await?);
    }
    let line = json!({
        "url": options.url,
        "keys": keys.len(),
        "connections": options.connections,
        "threads": threads,
        "rounds": options.rounds,
        "raw_blst_per_s": median(raws.clone()).round(),
        "one_root_per_slot": report(&raws, shared),
        "all_roots_different": report(&raws, distinct),
    });
    println!("{line}");
    Ok(())
}

fn report(raws: &[f64], samples: Vec<Sample>) -> Value {
    let ratio = median(samples.iter().zip(raws).map(|(sample, raw)| sample.per_second / raw).collect());
    let per_second = median(samples.iter().map(|s| s.per_second).collect());
    let mut latencies: Vec<Duration> = samples.into_iter().flat_map(|s| s.latencies).collect();
    latencies.sort_unstable();
    let percentile = |per_mille: usize| {
        let at = latencies.len().saturating_mul(per_mille) / 1000;
        let at = at.min(latencies.len().saturating_sub(1));
        (latencies.get(at).copied().unwrap_or_default().as_secs_f64() * 1e5).round() / 100.0
    };
    json!({
        "signatures_per_s": per_second.round(),
        "ratio_to_raw_blst": (ratio * 1000.0).round() / 1000.0,
        "p50_ms": percentile(500),
        "p99_ms": percentile(990),
        "p99_9_ms": percentile(999),
        "signatures": latencies.len(),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn public_keys(connection: &mut Connection) -> Result<Vec<String>> {
    let (status, body) = connection.get("/api/v1/eth2/publicKeys").await?;
    ensure!(status == 200, "publicKeys answered {status}: {body}");
    let keys: Vec<String> = serde_json::from_str(&body).context("publicKeys")?;
    Ok(keys)
}

/// A Casemate signer refuses another network's message by naming its own.
async fn genesis_validators_root(connection: &mut Connection, keys: &[String]) -> Result<String> {
    let key = keys.first().context("the signer has no key")?;
    let nowhere = "0x".to_owned() + &"00".repeat(32);
    let (_, body) = connection.sign(key, &attestation(0, 0, 0, &nowhere)).await?;
    body.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.len() == 66 && *word != nowhere)
        .map(ToOwned::to_owned)
        .next_back()
        .context("the signer does not tell its genesis validators root; give --genesis-validators-root")
}

/// The first target epoch that every key may still sign, and the last.
async fn free_epochs(connection: &mut Connection, keys: &[String], root: &str) -> Result<(u64, u64)> {
    let mut start = 1;
    for key in keys {
        let (status, body) = connection.sign(key, &attestation(0, 0, 0, root)).await?;
        if status != 200 {
            start = start.max(number_after(&body, "last signed target epoch ").unwrap_or(0).saturating_add(1));
        }
    }
    let key = keys.first().context("the signer has no key")?;
    let (status, body) = connection.sign(key, &attestation(0, u64::MAX, 0, root)).await?;
    let latest = number_after(&body, " and ").unwrap_or(u64::MAX);
    if status == 200 || start >= latest {
        bail!("no epoch is free: last signed {start}, latest allowed {latest}; use a signer with fresh watermarks");
    }
    Ok((start, latest))
}

fn number_after(text: &str, words: &str) -> Option<u64> {
    let rest = text.split_once(words)?.1;
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// A vote for `target`; its source does not matter as long as it never falls.
fn attestation(source: u64, target: u64, head: u64, root: &str) -> String {
    format!(
        r#"{{"type":"ATTESTATION","attestation":{{"slot":"{}","index":"0","beacon_block_root":"0x{head:064x}","source":{{"epoch":"{source}","root":"{root}"}},"target":{{"epoch":"{target}","root":"{root}"}}}},"fork_info":{{"fork":{{"previous_version":"0x00000000","current_version":"0x00000000","epoch":"0"}},"genesis_validators_root":"{root}"}}}}"#,
        target.saturating_mul(32)
    )
}

/// The connections, each with its own keys: a key's votes follow one another.
struct Load {
    workers: Vec<Worker>,
}

struct Worker {
    connection: Connection,
    keys: Vec<String>,
    number: u64,
    next_epoch: u64,
    latest: u64,
    root: Arc<str>,
}

impl Load {
    async fn open(
        target: &Target,
        keys: &[String],
        connections: usize,
        root: String,
        start: u64,
        latest: u64,
    ) -> Result<Self> {
        let root: Arc<str> = root.into();
        let mut workers = Vec::with_capacity(connections);
        for number in 0..connections {
            workers.push(Worker {
                connection: Connection::open(target).await?,
                keys: keys.iter().skip(number).step_by(connections).cloned().collect(),
                number: u64::try_from(number)?,
                next_epoch: start,
                latest,
                root: Arc::clone(&root),
            });
        }
        Ok(Self { workers })
    }

    async fn run(&mut self, votes: Votes, duration: Duration) -> Result<Sample> {
        let begun = Instant::now();
        let end = begun.checked_add(duration).context("--seconds")?;
        let tasks: Vec<_> = self.workers.drain(..).map(|worker| tokio::spawn(worker.run(votes, end))).collect();
        let mut latencies = Vec::new();
        let mut last = begun;
        for task in tasks {
            let (worker, own, finished) = task.await??;
            latencies.extend(own);
            last = last.max(finished);
            self.workers.push(worker);
        }
        // All go on from the same epoch: a root is shared only by those who are there.
        let next = self.workers.iter().map(|w| w.next_epoch).max().unwrap_or(0);
        self.workers.iter_mut().for_each(|w| w.next_epoch = next);
        #[allow(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count far below 2^52")]
        let per_second = latencies.len() as f64 / last.duration_since(begun).as_secs_f64();
        Ok(Sample { per_second, latencies })
    }
}

impl Worker {
    async fn run(mut self, votes: Votes, end: Instant) -> Result<(Self, Vec<Duration>, Instant)> {
        let mut latencies = Vec::new();
        while Instant::now() < end {
            let epoch = self.next_epoch;
            ensure!(
                epoch <= self.latest,
                "epoch {epoch} is in the signer's future: use a signer with fresh watermarks"
            );
            for (index, key) in self.keys.iter().enumerate() {
                let head = match votes {
                    Votes::Shared => epoch,
                    Votes::Distinct => {
                        (self.number << 32 | u64::try_from(index)?) ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    }
                };
                let body = attestation(0, epoch, head, &self.root);
                let sent = Instant::now();
                let (status, answer) = self.connection.sign(key, &body).await?;
                latencies.push(sent.elapsed());
                ensure!(status == 200, "the signer answered {status}: {answer}");
            }
            self.next_epoch = epoch.saturating_add(1);
        }
        let finished = Instant::now();
        Ok((self, latencies, finished))
    }
}
