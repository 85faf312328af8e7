//! The client that means well: it asks the proxy for one block each slot and one attestation each epoch, again and again until it
//! has them, with a key of its own. What it gets tells when the group signs.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate_protocol::PublicKey;
use serde_json::{Value, json};

use crate::Client;
use crate::hostile::{Chain, Message, Released};

/// Between two questions.
const EVERY: Duration = Duration::from_millis(20);
/// A variant that nobody else asks for.
pub const VARIANT: u8 = 99;

/// When something was done to the group.
pub struct Mark {
    pub name: &'static str,
    pub at: Instant,
}

/// Duties that there were, and those that were served in their time.
#[derive(Clone, Copy, Default)]
pub struct Service {
    pub block_slots: u64,
    pub blocks: u64,
    pub epochs: u64,
    pub votes: u64,
}

#[derive(Default)]
pub struct Probed {
    pub released: Vec<Released>,
    pub service: Service,
    /// When a block was signed.
    served: Vec<Instant>,
    pub signs_at_the_end: bool,
}

impl Probed {
    /// Around each mark of a kind: the longest time without a signed block that begins within three seconds of it. What was done takes
    /// a moment to take effect, and until then the old holder signs.
    pub fn gaps_after(&self, marks: &[Mark]) -> Vec<(&'static str, Vec<Duration>)> {
        let mut names: Vec<&'static str> = marks.iter().map(|mark| mark.name).collect();
        names.sort_unstable();
        names.dedup();
        let gap = |mark: &Mark| {
            let until = mark.at + Duration::from_secs(3);
            let pairs = self.served.windows(2).filter(|pair| pair[1] > mark.at && pair[0] < until);
            let longest = pairs.map(|pair| pair[1].duration_since(pair[0])).max()?;
            // Only where somebody signed just before.
            let before = self.served.iter().rev().find(|at| **at <= mark.at)?;
            (mark.at.duration_since(*before) < Duration::from_millis(1500)).then_some(longest)
        };
        names
            .into_iter()
            .map(|name| (name, marks.iter().filter(|mark| mark.name == name).filter_map(gap).collect()))
            .collect()
    }
}

/// Block and attestation as validator clients send them.
fn body(chain: Chain, message: Message) -> Value {
    let hex = |byte: u8| format!("0x{}", const_hex::encode([byte; 32]));
    let version = chain.version.to_string();
    let fork_info = json!({
        "fork": { "previous_version": version, "current_version": version, "epoch": "0" },
        "genesis_validators_root": chain.root.to_string(),
    });
    match message {
        Message::Block { slot, variant } => json!({
            "type": "BLOCK_V2", "fork_info": fork_info,
            "beacon_block": { "version": "ELECTRA", "block_header": {
                "slot": slot.to_string(), "proposer_index": "1", "parent_root": hex(1), "state_root": hex(2),
                "body_root": hex(variant),
            } },
        }),
        Message::Vote { source, target, variant } => json!({
            "type": "ATTESTATION", "fork_info": fork_info,
            "attestation": {
                "slot": (target * chain.slots_per_epoch).to_string(), "index": "0", "beacon_block_root": hex(variant),
                "source": { "epoch": source.to_string(), "root": hex(variant) },
                "target": { "epoch": target.to_string(), "root": hex(variant) },
            },
        }),
    }
}

fn ask(client: &mut Option<Client>, address: SocketAddr, key: &PublicKey, body: &Value) -> bool {
    let Some(mut connected) = client.take().or_else(|| Client::try_connect(address)) else { return false };
    let path = format!("/api/v1/eth2/sign/{key}");
    let answer = connected.send("POST", &path, &[("Accept", "application/json")], body.to_string().as_bytes());
    let signed = answer.as_ref().is_ok_and(|answer| answer.status == 200);
    if answer.is_ok() {
        *client = Some(connected);
    }
    signed
}

/// Asks until it is told to stop, for messages of this variant. Its key is the first.
pub fn probe(chain: Chain, keys: &[PublicKey], address: SocketAddr, variant: u8, stop: &AtomicBool) -> Probed {
    let mut probed = Probed::default();
    let mut client = None;
    let (mut slot, mut epoch) = chain.now();
    let (mut block_served, mut vote_served) = (false, false);
    // The first slot and epoch have begun already.
    let mut counts = false;
    while !stop.load(Ordering::Relaxed) {
        let (now_slot, now_epoch) = chain.now();
        if now_slot != slot {
            if counts {
                // Slots in which this client waited for an answer are missed too.
                probed.service.block_slots += now_slot - slot;
                probed.service.blocks += u64::from(block_served);
                probed.signs_at_the_end = block_served;
            }
            (slot, block_served) = (now_slot, false);
        }
        if now_epoch != epoch {
            if counts {
                probed.service.epochs += now_epoch - epoch;
                probed.service.votes += u64::from(vote_served);
            }
            counts = true;
            (epoch, vote_served) = (now_epoch, false);
        }
        // The same block again and again: a repeat is signed as long as somebody signs at all.
        let block = Message::Block { slot, variant };
        let vote = Message::Vote { source: epoch.saturating_sub(1), target: epoch, variant };
        for (message, served) in [(block, &mut block_served), (vote, &mut vote_served)] {
            if matches!(message, Message::Vote { .. }) && *served {
                continue;
            }
            let asked = Instant::now();
            if ask(&mut client, address, &keys[0], &body(chain, message)) {
                probed.released.push(Released { key: 0, message, asked });
                *served = true;
                if matches!(message, Message::Block { .. }) {
                    probed.served.push(Instant::now());
                }
            }
        }
        std::thread::sleep(EVERY);
    }
    probed
}
