//! An EIP-3076 file that is accepted reads back, once written, as the same watermarks.
#![no_main]

use casemate_protocol::Root;
use casemate_slashing::interchange;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(histories) = interchange::read(bytes, Root::ZERO) {
        let mut file = Vec::new();
        interchange::write(&histories, Root::ZERO, &mut file).unwrap();
        assert_eq!(interchange::read(file.as_slice(), Root::ZERO).unwrap(), histories);
    }
});
