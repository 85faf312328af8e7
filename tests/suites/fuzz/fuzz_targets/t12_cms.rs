//! KMS's CMS messages: whatever bytes come, they parse into parts of the right lengths or are refused.
#![no_main]

use casemate_vault::keys::cms::EnvelopedData;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(parsed) = EnvelopedData::parse(bytes) {
        assert!(!parsed.ciphertext.is_empty() && parsed.ciphertext.len() % 16 == 0);
        assert!(parsed.ciphertext.len() < bytes.len());
        // One message, no more and no less.
        assert!(EnvelopedData::parse(&bytes[..bytes.len() - 1]).is_err());
        let longer = [bytes, &[0]].concat();
        assert!(EnvelopedData::parse(&longer).is_err());
    }
});
