//! Lines of the signing log, and pages of what keys have signed: each has one form.
#![no_main]

use casemate_protocol::Bytes;
use casemate_protocol::history_page::HistoryPage;
use casemate_protocol::log::text::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(parsed) = parse(text, Bytes([9; 32]))
    {
        // Only a refusal's sentence, behind its code, may be another one.
        let again = parsed.line.to_string();
        assert_eq!(again == text, !parsed.reworded);
        if parsed.reworded {
            assert_eq!(parse(&again, Bytes([9; 32])).map(|own| own.line), Ok(parsed.line));
        }
    }
    if let Some(page) = HistoryPage::decode(data) {
        assert_eq!(page.encode(), data);
    }
});
