//! Operators' commands and configurations: whatever decodes is the one encoding of what it decoded to, and nothing that is not signed
//! changes a vault.
#![no_main]

use casemate_protocol::Configuration;
use casemate_protocol::command::{Command, SignedCommand};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(command) = Command::decode(bytes) {
        assert_eq!(command.encode().unwrap().as_ref(), bytes);
        assert!((1..=1000).contains(&command.keys()));
    }
    if let Ok(signed) = SignedCommand::decode(bytes) {
        assert_eq!(signed.encode().unwrap().as_ref(), bytes);
    }
    if let Ok(configuration) = Configuration::decode(bytes) {
        assert_eq!(configuration.encode(), bytes);
    }
});
