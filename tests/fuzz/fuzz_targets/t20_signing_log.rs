//! Lines of the signing log, and pages of what keys have signed: each has one form.
#![no_main]

use casemate_protocol::Bytes;
use casemate_protocol::log::text::parse;
use casemate_protocol::history_page::HistoryPage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(line) = parse(text, Bytes([9; 32]))
    {
        assert_eq!(line.to_string(), text);
    }
    if let Some(page) = HistoryPage::decode(data) {
        assert_eq!(page.encode(), data);
    }
});
