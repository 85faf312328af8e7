//! Documents: whatever bytes come, as a whole or as the payload of an envelope, they parse or are refused; and what passes
//! AWS's signatures is a document that was in the seeds.
#![no_main]

use casemate_document::{Anchor, At, Expected, Timestamp, Unverified};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static ANCHOR: Anchor = Anchor::aws().unwrap();
}

fuzz_target!(|bytes: &[u8]| {
    ANCHOR.with(|anchor| {
        for at in [At::Document, At::Time(Timestamp(1_722_457_107_047))] {
            let Ok(parsed) = Unverified::parse(bytes) else { break };
            if let Ok(document) = parsed.verify(anchor, at) {
                assert!(document.chain().len() >= 2);
                assert!(document.accept(&Expected::default()).is_err(), "accepted without an expectation");
                // Nothing but the optional tag may differ from what AWS signed.
                let untagged = bytes.strip_prefix(&[0xd2]).unwrap_or(bytes);
                let mut changed = untagged.to_vec();
                let middle = changed.len() / 2;
                changed[middle] ^= 1;
                assert!(Unverified::parse(&changed).and_then(|d| d.verify(anchor, at)).is_err());
            }
        }
        // As a payload: the envelope's checks do not stand in the way.
        if let Ok(len) = u16::try_from(bytes.len()) {
            let mut envelope = vec![0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x59];
            envelope.extend_from_slice(&len.to_be_bytes());
            envelope.extend_from_slice(bytes);
            envelope.extend_from_slice(&[0x58, 96]);
            envelope.resize(envelope.len() + 96, 0x11);
            if let Ok(parsed) = Unverified::parse(&envelope) {
                assert!(parsed.verify(anchor, At::Document).is_err(), "a made-up signature passed");
            }
        }
    });
});
