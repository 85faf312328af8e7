//! The measure: blst alone, on as many threads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blst::min_pk::SecretKey;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

/// What blst alone does.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    /// Signatures a second, of all threads together.
    pub per_second: f64,
    /// Processor time of one signature.
    pub cpu: Duration,
    /// Threads.
    pub threads: usize,
}

impl Raw {
    /// How long one signature takes on a core.
    pub fn one(&self) -> Duration {
        #[allow(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count far below 2^52")]
        let threads = self.threads as f64;
        Duration::from_secs_f64(threads / self.per_second)
    }
}

/// `SecretKey::sign` and serialization, every message another, for so long. One thread on each of these CPUs; without any, as many
/// threads as there are cores, wherever the kernel puts them.
pub fn measure(cpus: &[usize], duration: Duration) -> Result<Raw> {
    let anywhere = std::thread::available_parallelism().map_or(1, usize::from);
    let places: Vec<Option<usize>> =
        if cpus.is_empty() { vec![None; anywhere] } else { cpus.iter().copied().map(Some).collect() };
    let begun = Instant::now();
    let ended: Result<Vec<(u64, Duration)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(number, cpu)| scope.spawn(move || sign_for(number, *cpu, duration)))
            .collect();
        threads.into_iter().map(|thread| thread.join().ok().context("a thread has panicked")?).collect()
    });
    let (elapsed, ended) = (begun.elapsed().as_secs_f64(), ended?);
    let (count, cpu) = ended
        .iter()
        .fold((0_u64, Duration::ZERO), |sum, one| (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1)));
    #[allow(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count far below 2^52")]
    let count = count as f64;
    Ok(Raw { per_second: count / elapsed, cpu: cpu.div_f64(count), threads: places.len() })
}

fn sign_for(number: usize, cpu: Option<usize>, duration: Duration) -> Result<(u64, Duration)> {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        anyhow::ensure!(cpu < CpuSet::MAX_CPU, "--raw-cpu {cpu}: there is no such CPU");
        set.set(cpu);
        sched_setaffinity(None, &set).with_context(|| format!("--raw-cpu {cpu}"))?;
    }
    let seed = [u8::try_from(number % 200)?.wrapping_add(1); 32];
    let key = SecretKey::key_gen(&seed, &[]).ok().context("no key")?;
    let before = thread_time();
    let begun = Instant::now();
    let mut count: u64 = 0;
    let mut message = [0; 32];
    while begun.elapsed() < duration {
        for (to, from) in message.iter_mut().zip(count.to_le_bytes()) {
            *to = from;
        }
        std::hint::black_box(key.sign(&message, DST, &[]).to_bytes());
        count = count.saturating_add(1);
    }
    Ok((count, thread_time().saturating_sub(before)))
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
