//! A body of a sign request parses or is refused with a sentence, on both presets; an attestation's fast path says what the long one
//! says.
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
        let (parsed, the_long_way) = (request::parse(bytes, network), request::parse_any(bytes, network));
        match (&parsed, &the_long_way) {
            (Err(refused), _) => assert!(!refused.0.is_empty()),
            // Alone it also refuses keys of other types that come twice.
            (Ok(_), Err(_)) => {}
            (Ok(short), Ok(long)) => assert_eq!(short, long),
        }
        assert!(parsed.is_ok() || the_long_way.is_err());
    }
});
