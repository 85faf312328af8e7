//! 10,000 and 100,000 sealed keys: opened and ready to sign, beside the derivation of their public keys alone, on as many threads.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;

use casemate_protocol::Bytes;
use casemate_slashing::{SlashingHistory, Watermarks};
use casemate_vault::Keys;
use casemate_vault::keys::seal::{self, Contents, SealBinding, SealedKey, SecretBytes};
use casemate_vault::signing::bls::SecretKey;
use criterion::{Criterion, criterion_group, criterion_main};

const DATA_KEY: [u8; 32] = [7; 32];

fn secret(n: u64) -> [u8; 32] {
    let mut secret = [0x11; 32];
    secret[24..].copy_from_slice(&n.to_be_bytes());
    secret
}

fn unseal(c: &mut Criterion) {
    for keys in [10_000, 100_000] {
        unseal_so_many(c, keys);
    }
}

fn unseal_so_many(c: &mut Criterion, count: u64) {
    let place = SealBinding { key_arn: "arn".into(), group: "main".into(), network: Bytes([5; 32]) };
    let keys = (0..count).map(|n| {
        let public_key = SecretKey::from_be_bytes(&mut secret(n)).unwrap().public_key();
        SealedKey {
            public_key,
            secret: Some(SecretBytes(secret(n))),
            history: SlashingHistory::Known(Watermarks::NONE),
            fee_recipient: None,
        }
    });
    let blob =
        seal::seal(&Contents { keys: keys.collect(), ..Contents::default() }, &DATA_KEY, vec![1; 184], &place, 1)
            .unwrap();
    println!("{count} keys in a blob of {} bytes", blob.len());

    let mut group = c.benchmark_group(format!("{count}-keys"));
    group.sample_size(10);
    group.bench_function("opened-and-ready", |b| {
        b.iter(|| {
            let contents = seal::open(black_box(&blob), &DATA_KEY, &place, 1).unwrap();
            let keys = Keys::unsealed(contents, |_, _, history| history).unwrap();
            assert_eq!(keys.len(), usize::try_from(count).unwrap());
            keys
        });
    });
    let secrets: Vec<_> = (0..count).map(secret).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    group.bench_function("public-keys-alone-by-blst", |b| {
        b.iter(|| {
            std::thread::scope(|scope| {
                for share in secrets.chunks(secrets.len().div_ceil(threads)) {
                    scope.spawn(move || {
                        for secret in share {
                            black_box(blst::min_pk::SecretKey::from_bytes(secret).unwrap().sk_to_pk().to_bytes());
                        }
                    });
                }
            });
        });
    });
    group.finish();
}

criterion_group!(benches, unseal);
criterion_main!(benches);
