//! The measure: blst alone, on as many threads.

use std::time::{Duration, Instant};

use blst::min_pk::SecretKey;

const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

/// Signatures a second of `SecretKey::sign` and serialization, every message another.
pub fn signatures_per_second(threads: usize, duration: Duration) -> f64 {
    let begun = Instant::now();
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || sign_for(thread, duration))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or(0)).collect()
    });
    let elapsed = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count far below 2^52")]
    let count = counts.iter().sum::<u64>() as f64;
    count / elapsed
}

fn sign_for(thread: usize, duration: Duration) -> u64 {
    let seed = [u8::try_from(thread % 200).unwrap_or(0).wrapping_add(1); 32];
    let Ok(key) = SecretKey::key_gen(&seed, &[]) else { return 0 };
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
    count
}
