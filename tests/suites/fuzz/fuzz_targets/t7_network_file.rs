//! A network file that is accepted can be asked anything without a panic.
#![no_main]

use casemate_protocol::{Epoch, Slot};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(network) = casemate_config::parse(text) {
        for n in [0, 1, 1 << 40, u64::MAX] {
            let slot = network.slot_at(n);
            assert!(network.epoch_of(slot) <= Epoch(slot.0));
            network.fork_at(network.epoch_of(Slot(n)));
        }
        network.genesis_version();
    }
});
