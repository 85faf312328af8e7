//! A keystore parses within its limits, or is refused; nothing is derived.
#![no_main]

use casemate_keystore::Keystore;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Keystore::parse(bytes).map(|keystore| keystore.public_key());
});
