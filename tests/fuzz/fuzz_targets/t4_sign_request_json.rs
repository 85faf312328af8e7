//! A body of a sign request parses or is refused with a sentence, on both presets.
#![no_main]

use std::sync::LazyLock;

use casemate_protocol::Network;
use casemate_proxy::request;
use libfuzzer_sys::fuzz_target;

static NETWORKS: LazyLock<[Network; 2]> = LazyLock::new(|| {
    let text = casemate_config::NAMED[0].1;
    let minimal = text.replace("preset = \"mainnet\"", "preset = \"minimal\"");
    [casemate_config::parse(text).unwrap(), casemate_config::parse(&minimal).unwrap()]
});

fuzz_target!(|bytes: &[u8]| {
    for network in &*NETWORKS {
        if let Err(refused) = request::parse(bytes, network) {
            assert!(!refused.0.is_empty());
        }
    }
});
