//! One real document, verified in full at a fixed time: by casemate-document, by attestation-doc-validation, and what the five
//! P-384 signatures in it cost by themselves.
//!
//! The other crate asks the system for the time and cannot be told another. So this program answers `clock_gettime`
//! itself: for the real-time clock with the document's time, for every other clock with the kernel's.

use std::hint::black_box;
use std::process::ExitCode;

use attestation_doc_validation::validate_and_parse_attestation_doc;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use casemate_document::{Anchor, At, Timestamp, Unverified};
use criterion::Criterion;

/// 2024-07-31T20:18:27Z, when the document was made.
const FILE: &str = "docs/20240731T201827Z-i-0809070ca8037095f-e0f4ab40.cose";
const SECONDS: i64 = 1_722_457_107;

/// # Safety
/// As the C library's: `time` points to a timespec that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if clock == libc::CLOCK_REALTIME {
        // SAFETY: the caller gives a timespec that may be written.
        unsafe { time.write(libc::timespec { tv_sec: SECONDS, tv_nsec: 0 }) };
        return 0;
    }
    // SAFETY: the arguments are passed on as they came.
    let status = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    i32::try_from(status).unwrap_or(-1)
}

fn main() -> ExitCode {
    let Some(folder) = casemate_testdata::folder("nitro-attestation") else { return ExitCode::SUCCESS };
    let Ok(document) = std::fs::read(folder.join(FILE)) else {
        eprintln!("SKIPPED: no {FILE} among the test data");
        return ExitCode::SUCCESS;
    };
    let anchor = Anchor::aws().expect("the embedded root");
    let at = At::Time(Timestamp::from_seconds(SECONDS.unsigned_abs()));
    let ours = || Unverified::parse(black_box(&document)).and_then(|d| d.verify(&anchor, at)).map(|d| d.timestamp().0);
    let theirs = || validate_and_parse_attestation_doc(black_box(&document)).map(|d| d.timestamp);

    // Both must accept it, with the same words in it, and refuse it with a byte changed: else there is nothing to compare.
    assert_eq!(ours().expect("ours accepts"), theirs().expect("theirs accepts"));
    let mut changed = document.clone();
    if let Some(byte) = changed.last_mut() {
        *byte ^= 1;
    }
    assert!(Unverified::parse(&changed).and_then(|d| d.verify(&anchor, at)).is_err());
    assert!(validate_and_parse_attestation_doc(&changed).is_err());

    let (message, random) = (vec![7; document.len() - 110], SystemRandom::new());
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key");
    let signature = key.sign(&random, &message).expect("a signature");
    let public_key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.public_key());

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("attestation document");
    group.bench_function("five P-384 signatures alone (aws-lc)", |b| {
        b.iter(|| (0..5).all(|_| public_key.verify(black_box(&message), signature.as_ref()).is_ok()));
    });
    group.bench_function("casemate-document", |b| b.iter(|| ours().expect("ours accepts")));
    group.bench_function("attestation-doc-validation", |b| b.iter(|| theirs().expect("theirs accepts")));
    group.finish();
    criterion.final_summary();
    ExitCode::SUCCESS
}
