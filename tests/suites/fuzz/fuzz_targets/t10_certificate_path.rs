//! Certificate paths: a list of certificates, each with its length in front, below AWS's root or below itself.
#![no_main]

use casemate_document::{Anchor, Timestamp, verify_chain};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static ANCHOR: Anchor = Anchor::aws().unwrap();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((time, mut rest)) = bytes.split_first_chunk::<4>() else { return };
    let at = Timestamp::from_seconds(u64::from(u32::from_be_bytes(*time)));
    let mut certificates: Vec<&[u8]> = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(tail.len());
        let (certificate, tail) = tail.split_at(len);
        certificates.push(certificate);
        rest = tail;
    }
    let Some((leaf, intermediates)) = certificates.split_last() else { return };
    let mut bundle = vec![casemate_document::AWS_ROOT_G1_DER];
    bundle.extend(intermediates);
    ANCHOR.with(|anchor| {
        if let Ok(chain) = verify_chain(leaf, &bundle, anchor, at) {
            assert_eq!(chain.len(), bundle.len() + 1);
            assert!(chain.iter().all(|c| c.not_before.0 <= at.0 + 5000 && at.seconds() <= c.not_after.seconds()));
        }
    });
    // The first as an anchor of its own.
    if let Some(first) = certificates.first()
        && let Ok(anchor) = Anchor::from_der(first)
    {
        let _ = verify_chain(leaf, &certificates[..certificates.len() - 1], &anchor, at);
    }
});
