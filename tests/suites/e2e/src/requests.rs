//! Sign requests, and the network that they are for.

use serde_json::{Value, json};

/// A chain whose clock stands at slot 320, the first of epoch 10, with all forks from the start.
pub const NETWORK: &str = r#"
name = "e2e"
preset = "mainnet"
genesis_time = 0
genesis_validators_root = "0x0404040404040404040404040404040404040404040404040404040404040404"
slot_duration_ms = 12000
slots_per_epoch = 32
[forks]
phase0 = { version = "0x00000001", epoch = 0 }
altair = { version = "0x01000001", epoch = 0 }
bellatrix = { version = "0x02000001", epoch = 0 }
capella = { version = "0x03000001", epoch = 0 }
deneb = { version = "0x04000001", epoch = 0 }
electra = { version = "0x05000001", epoch = 0 }
fulu = { version = "0x06000001", epoch = 0 }
gloas = { version = "0x07000001", epoch = 8 }
"#;
/// The clock of [`NETWORK`]'s stacks.
pub const NOW_MS: &str = "3840000";

pub fn root(byte: u8) -> String {
    format!("0x{}", const_hex::encode([byte; 32]))
}

pub fn fork_info() -> Value {
    json!({
        "fork": { "previous_version": "0x06000001", "current_version": "0x07000001", "epoch": "8" },
        "genesis_validators_root": root(4),
    })
}

pub fn attestation(source: u64, target: u64, head: u8) -> Value {
    json!({
        "type": "ATTESTATION",
        "fork_info": fork_info(),
        "attestation": {
            "slot": (target * 32).to_string(),
            "index": "0",
            "beacon_block_root": root(head),
            "source": { "epoch": source.to_string(), "root": root(1) },
            "target": { "epoch": target.to_string(), "root": root(2) },
        },
    })
}

pub fn block(slot: u64, body: u8) -> Value {
    json!({
        "type": "BLOCK_V2",
        "fork_info": fork_info(),
        "beacon_block": {
            "version": "FULU",
            "block_header": {
                "slot": slot.to_string(),
                "proposer_index": "7",
                "parent_root": root(1),
                "state_root": root(2),
                "body_root": root(body),
            },
        },
    })
}

pub fn randao(epoch: u64) -> Value {
    json!({ "type": "RANDAO_REVEAL", "fork_info": fork_info(), "randao_reveal": { "epoch": epoch.to_string() } })
}
