//! A signer under load: its keys, its free epochs, its connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::http::{Connection, Target};
use crate::messages::{Chain, Duties};

/// What signers that are not Casemate do not tell.
pub struct OtherChain {
    /// The chain's root.
    pub genesis_validators_root: Option<String>,
    /// The first target epoch that no key has signed.
    pub start_epoch: Option<u64>,
}

/// What one turn of load gave.
#[derive(Default)]
pub struct Sample {
    /// Signatures a second.
    pub per_second: f64,
    /// From the time at which a request was to be sent.
    pub latencies: Vec<Duration>,
    /// Processor time of the signer's processes, where they are known.
    pub cpu: Option<Duration>,
}

/// A signer, its connections open. Each has keys of its own: a key's votes follow one another.
pub struct Signer {
    /// Where it is.
    pub url: String,
    workers: Vec<Worker>,
}

struct Worker {
    connection: Connection,
    keys: Vec<String>,
    /// Tells it apart from the others.
    number: u64,
    next_epoch: u64,
    latest: u64,
    turn: u64,
    chain: Arc<Chain>,
    /// Of a burst: one request for each of the first keys.
    prepared: Vec<Vec<u8>>,
    /// The request that is sent; kept for its room.
    request: Vec<u8>,
}

impl Signer {
    /// Looks what the signer may still sign, and opens connections.
    pub async fn open(url: &str, connections: usize, chain: &OtherChain) -> Result<Self> {
        let target = Target::parse(url)?;
        let mut first = Connection::open(&target).await?;
        let (status, body) = first.get("/api/v1/eth2/publicKeys").await?;
        ensure!(status == 200, "{url}: publicKeys answered {status}: {body}");
        let keys: Vec<String> = serde_json::from_str(&body).context("publicKeys")?;
        ensure!(
            keys.len() >= connections,
            "{url} has {} keys; {connections} connections need as many, so that no key's votes overtake each other",
            keys.len()
        );
        let root = match &chain.genesis_validators_root {
            Some(root) => root.clone(),
            None => genesis_validators_root(&mut first, &keys).await?,
        };
        let (start_epoch, chain) = (chain.start_epoch, Arc::new(Chain::new(root)));
        let (start, latest) = match start_epoch {
            // Another signer would sign the probe of the far future, and nothing after it.
            Some(start) => (start, u64::MAX),
            None => free_epochs(&mut first, &keys, &chain).await?,
        };
        eprintln!("{url}: {} keys, {} free epochs", keys.len(), latest.saturating_sub(start));
        let mut workers = Vec::with_capacity(connections);
        for number in 0..connections {
            workers.push(Worker {
                connection: Connection::open(&target).await?,
                keys: keys.iter().skip(number).step_by(connections).cloned().collect(),
                number: u64::try_from(number)?,
                next_epoch: start,
                latest,
                turn: 0,
                prepared: Vec::new(),
                request: Vec::new(),
                chain: Arc::clone(&chain),
            });
        }
        Ok(Self { url: url.to_owned(), workers })
    }

    /// How many keys it has.
    pub fn keys(&self) -> usize {
        self.workers.iter().map(|worker| worker.keys.len()).sum()
    }

    /// Each connection sends its next request as soon as the last one was answered.
    pub async fn closed(&mut self, duties: Duties, duration: Duration) -> Result<Sample> {
        let begun = Instant::now();
        let end = begun.checked_add(duration).context("--seconds")?;
        self.all(begun, |worker| worker.closed(duties, end)).await
    }

    /// `count` requests are due at once, as in a slot; how long until each is answered. Connections share them.
    pub async fn burst(&mut self, count: usize) -> Result<Sample> {
        ensure!(count <= self.keys(), "a burst of {count} needs as many keys; {} has {}", self.url, self.keys());
        let workers = self.workers.len();
        for worker in &mut self.workers {
            let number = usize::try_from(worker.number).unwrap_or(usize::MAX);
            // As even as it goes.
            let share = count / workers + usize::from(number < count % workers);
            worker.prepared = (0..share).map(|index| worker.prepared(Duties::OneRoot, index)).collect::<Result<_>>()?;
        }
        let begun = Instant::now();
        self.all(begun, move |worker| worker.burst(begun)).await
    }

    /// `per_second` requests are due, evenly, whatever becomes of those before.
    pub async fn open_loop(&mut self, per_second: f64, duration: Duration) -> Result<Sample> {
        let begun = Instant::now();
        #[allow(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count far below 2^52")]
        let workers = self.workers.len() as f64;
        let each = Duration::from_secs_f64(workers / per_second);
        let count = (duration.as_secs_f64() / each.as_secs_f64()).floor();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::as_conversions,
            reason = "small and positive"
        )]
        let count = count as usize;
        self.all(begun, |worker| {
            #[allow(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count far below 2^52")]
            let first = each.mul_f64(worker.number as f64 / workers);
            worker.scheduled(Duties::OneRoot, count, move |n| begun + first + each.saturating_mul(n))
        })
        .await
    }

    async fn all<F>(&mut self, begun: Instant, work: impl Fn(Worker) -> F) -> Result<Sample>
    where
        F: Future<Output = Result<(Worker, Vec<Duration>, Instant)>> + Send + 'static,
    {
        let tasks: Vec<_> = self.workers.drain(..).map(|worker| tokio::spawn(work(worker))).collect();
        let (mut latencies, mut last) = (Vec::new(), begun);
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
        Ok(Sample { per_second, latencies, cpu: None })
    }
}

impl Worker {
    async fn closed(mut self, duties: Duties, end: Instant) -> Result<(Self, Vec<Duration>, Instant)> {
        let mut latencies = Vec::new();
        while Instant::now() < end {
            for index in 0..self.keys.len() {
                // With a hundred thousand keys a round of them takes longer than a turn.
                if index > 0 && Instant::now() >= end {
                    break;
                }
                let sent = Instant::now();
                self.ask(duties, index).await?;
                latencies.push(sent.elapsed());
            }
            self.next_epoch = self.next_epoch.saturating_add(1);
        }
        Ok((self, latencies, Instant::now()))
    }

    /// `count` requests, each due at its own time; one that comes late for that counts from when it was due.
    async fn scheduled(
        mut self,
        duties: Duties,
        count: usize,
        due: impl Fn(u32) -> Instant,
    ) -> Result<(Self, Vec<Duration>, Instant)> {
        let mut latencies = Vec::with_capacity(count);
        for number in 0..count {
            let due = due(u32::try_from(number)?);
            tokio::time::sleep_until(due.into()).await;
            let index = number % self.keys.len();
            self.ask(duties, index).await?;
            latencies.push(due.elapsed());
            if index.saturating_add(1) == self.keys.len() {
                self.next_epoch = self.next_epoch.saturating_add(1);
            }
        }
        self.next_epoch = self.next_epoch.saturating_add(1);
        Ok((self, latencies, Instant::now()))
    }

    /// All that was prepared, as fast as it is answered.
    async fn burst(mut self, begun: Instant) -> Result<(Self, Vec<Duration>, Instant)> {
        let prepared = std::mem::take(&mut self.prepared);
        let mut latencies = Vec::with_capacity(prepared.len());
        for request in &prepared {
            self.connection.signed(request).await?;
            latencies.push(begun.elapsed());
        }
        self.next_epoch = self.next_epoch.saturating_add(1);
        Ok((self, latencies, Instant::now()))
    }

    async fn ask(&mut self, duties: Duties, index: usize) -> Result<()> {
        let mut request = std::mem::take(&mut self.request);
        self.prepare(duties, index, &mut request)?;
        self.connection.signed(&request).await?;
        self.request = request;
        Ok(())
    }

    fn prepared(&mut self, duties: Duties, index: usize) -> Result<Vec<u8>> {
        let mut request = Vec::new();
        self.prepare(duties, index, &mut request)?;
        Ok(request)
    }

    fn prepare(&mut self, duties: Duties, index: usize, request: &mut Vec<u8>) -> Result<()> {
        let epoch = self.next_epoch;
        ensure!(epoch <= self.latest, "epoch {epoch} is in the signer's future: use a signer with fresh watermarks");
        let body = self.chain.duty(duties, self.number << 32 | u64::try_from(index)?, epoch, self.turn);
        self.turn = self.turn.wrapping_add(1);
        self.connection.prepare(self.keys.get(index).context("no key")?, &body, request)
    }
}

/// A Casemate signer refuses another network's message by naming its own.
async fn genesis_validators_root(connection: &mut Connection, keys: &[String]) -> Result<String> {
    let key = keys.first().context("the signer has no key")?;
    let nowhere = "0x".to_owned() + &"00".repeat(32);
    let (_, body) = connection.sign(key, &Chain::new(nowhere.clone()).attestation(0, 0, 0)).await?;
    body.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.len() == 66 && *word != nowhere)
        .map(ToOwned::to_owned)
        .next_back()
        .context("the signer does not tell its genesis validators root; give --genesis-validators-root")
}

/// The first target epoch that every key may still sign, and the last.
async fn free_epochs(connection: &mut Connection, keys: &[String], chain: &Chain) -> Result<(u64, u64)> {
    let mut start = 1;
    // A hundred thousand keys of one signer stand where its first ones stand, about.
    for key in keys.iter().take(1024) {
        let (status, body) = connection.sign(key, &chain.attestation(0, 0, 0)).await?;
        if body.contains("max_target_age_epochs") {
            bail!("the signer refuses votes of old epochs, which a load consists of: give its stack --any-age");
        }
        if status != 200 {
            // What it signed last, or a floor, or what its history says.
            let words = ["last signed target epoch ", "the floor, epoch ", "is not above epoch "];
            let last = words.iter().find_map(|words| number_after(&body, words));
            start = start.max(last.unwrap_or(0).saturating_add(1));
        }
    }
    let key = keys.first().context("the signer has no key")?;
    let (status, body) = connection.sign(key, &chain.attestation(0, u64::MAX, 0)).await?;
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
