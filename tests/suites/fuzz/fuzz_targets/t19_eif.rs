//! Enclave images: reading, measuring, telling; and their signature sections alone, because few inputs have a right checksum.
#![no_main]

use casemate_eif::eif::{Eif, write};
use casemate_eif::report::{ImageReport, diff};
use casemate_eif::signature::Signature;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The fuzzer does not find checksums: they are made right for it.
    let mut bytes = data.to_vec();
    let mut hasher = crc32fast::Hasher::new();
    if bytes.len() >= 548 {
        hasher.update(&bytes[..544]);
        hasher.update(&bytes[548..]);
        bytes[544..548].copy_from_slice(&hasher.finalize().to_be_bytes());
    }
    if let Ok(image) = Eif::parse(&bytes) {
        let _ = image.measure();
        // What was read has one writing, but for defaults and versions that are not written here.
        if image.version == 4 && !image.arm && image.default_memory == 1 << 30 && image.default_cpus == 2 {
            let sections: Vec<_> = image.sections.iter().map(|s| (s.kind, s.content)).collect();
            assert_eq!(write(&sections), bytes);
        }
        if let Ok(measured) = ImageReport::from_bytes(&bytes) {
            let _ = measured.text();
            let _ = diff(&measured, &measured);
        }
    }
    if let Ok(signature) = Signature::parse(data) {
        let _ = signature.verify(&[0; 48]);
        let _ = signature.signer();
    }
});
