//! Statements: whatever decodes is the one encoding of what it decoded to, and safe to show.
#![no_main]

use casemate_protocol::Statement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(statement) = Statement::decode(bytes) {
        assert_eq!(statement.encode(), bytes);
        for text in [&statement.product_version, &statement.group, &statement.network.name] {
            assert!(text.len() <= 128 && text.bytes().all(|b| (0x20..0x7f).contains(&b)));
        }
    }
});
