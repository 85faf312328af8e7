//! A keystore, decrypted, beside its KDF alone, on one core; and eight as an import decrypts them, on all cores, beside eight KDFs alone.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;

use casemate_keystore::Keystore;
use casemate_keystore::folder::{decrypt_all, find_with_password};
use criterion::{Criterion, criterion_group, criterion_main};

const PASSWORD: &str = "𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑";

fn decrypt(c: &mut Criterion) {
    let Some(folder) = casemate_testdata::folder("signing") else {
        println!("SKIPPED: the EIP's keystores are not here");
        return;
    };
    let mut group = c.benchmark_group("keystore");
    group.sample_size(10);
    for kdf in ["scrypt", "pbkdf2"] {
        let path = folder.join(format!("keystore/eip-2335/test-{kdf}.json"));
        let keystore = Keystore::parse(&std::fs::read(path).unwrap()).unwrap();
        group.bench_function(kdf, |b| b.iter(|| black_box(&keystore).decrypt(PASSWORD).unwrap()));
    }
    // The parameters of EIP-2335.
    group.bench_function("scrypt-alone", |b| {
        let params = scrypt::Params::new(18, 8, 1).unwrap();
        b.iter(|| {
            let mut key = [0; 32];
            scrypt::scrypt(black_box(b"testpassword"), &[7; 32], &params, &mut key).unwrap();
            key
        });
    });
    group.bench_function("pbkdf2-alone", |b| {
        b.iter(|| {
            let mut key = [0; 32];
            pbkdf2::pbkdf2_hmac::<sha2::Sha256>(black_box(b"testpassword"), &[7; 32], 262_144, &mut key);
            key
        });
    });
    // As `casemate keys import` does it: a folder, one password, all cores.
    let folder = casemate_testdata::folder("signing").unwrap().join("keystore/eip-2335/test-scrypt.json");
    let (found, many) = (tempfile::tempdir().unwrap(), 8);
    for number in 0..many {
        std::fs::copy(&folder, found.path().join(format!("{number}.json"))).unwrap();
    }
    let entries = find_with_password(found.path(), &PASSWORD.to_owned().into()).unwrap().entries;
    assert_eq!(entries.len(), many);
    group.bench_function("import-of-8", |b| {
        b.iter(|| assert!(decrypt_all(black_box(&entries), None, || ()).iter().all(Result::is_ok)));
    });
    group.bench_function("scrypt-alone-8", |b| {
        let params = scrypt::Params::new(18, 8, 1).unwrap();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        b.iter(|| {
            std::thread::scope(|scope| {
                for share in [(); 8].chunks(many.div_ceil(threads)) {
                    scope.spawn(move || {
                        for () in share {
                            let mut key = [0; 32];
                            scrypt::scrypt(black_box(b"testpassword"), &[7; 32], &params, &mut key).unwrap();
                            black_box(key);
                        }
                    });
                }
            });
        });
    });
    group.finish();
}

criterion_group!(benches, decrypt);
criterion_main!(benches);
