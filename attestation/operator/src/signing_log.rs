//! The signing log: the chain of a boot's records, and the heads that the enclave has signed.

use std::collections::BTreeMap;

use anyhow::Result;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::log::{LogHead, LogRecord, Message, chain_start};
use casemate_protocol::{Bytes, Root};
use serde_json::{Value, json};

use crate::exit::refused;
use crate::util::{plural, sha256, time};

/// Terms begin here where a record was made anew: with the seconds since 1970.
const MADE_ANEW: u64 = 1_000_000_000;

/// Boots by their nonces.
pub type Boots = BTreeMap<[u8; 32], Boot>;

/// What is known of a boot's chain.
pub struct Boot {
    pub nonce: Bytes<32>,
    /// Signs its heads.
    pub record_key: Bytes<32>,
    /// The number before its first record here: not 0 where one file is looked at alone.
    pub before: u64,
    number: u64,
    hash: Root,
    /// The last head: all records up to there are signed for.
    head: Option<LogHead>,
    /// Terms of the fence that its heads name.
    terms: Vec<u64>,
    signed: u64,
    refused: u64,
    /// Of operators, carried out or not.
    commands: u64,
    /// Refusals whose sentence is another one than this program has for their code.
    pub reworded: u64,
    /// First and last, in Unix milliseconds.
    times: Option<(u64, u64)>,
    /// The hash after each head's record, for the one that the enclave names.
    heads: BTreeMap<u64, Root>,
    buffer: Vec<u8>,
}

impl Boot {
    /// Before its first record.
    pub fn new(nonce: Bytes<32>, record_key: Bytes<32>) -> Self {
        Self {
            nonce,
            record_key,
            before: 0,
            number: 0,
            hash: sha256(&chain_start(&nonce)),
            head: None,
            terms: Vec::new(),
            signed: 0,
            refused: 0,
            commands: 0,
            reworded: 0,
            times: None,
            heads: BTreeMap::new(),
            buffer: Vec::new(),
        }
    }

    /// Takes the next record.
    pub fn record(&mut self, number: u64, record: &LogRecord, place: u64) -> Result<()> {
        let next = self.number.saturating_add(1);
        if number > next {
            let to = number.saturating_sub(1);
            return refused(format!(
                "line {place}: records {next} to {to} are missing: removed, or lost while no proxy wrote the log"
            ));
        }
        if number < next {
            return refused(format!("line {place}: record {number} stands behind record {}", self.number));
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(&self.hash.0);
        record.encode(&mut self.buffer);
        self.hash = sha256(&self.buffer);
        self.number = number;
        if matches!(record.message, Message::Command { .. }) {
            self.commands = self.commands.saturating_add(1);
        } else if record.refusal.is_some() {
            self.refused = self.refused.saturating_add(1);
        } else {
            self.signed = self.signed.saturating_add(1);
        }
        let first = self.times.map_or(record.time_ms, |(first, _)| first);
        self.times = Some((first, record.time_ms));
        Ok(())
    }

    /// `all`: the first file must be there. One alone begins with the head that the file before it ends with.
    pub fn head(&mut self, head: LogHead, place: u64, all: bool) -> Result<()> {
        if place == 2 && self.number == 0 && head.number > 0 {
            if all {
                return refused(format!(
                    "records 1 to {} are missing: the files before this one are not here",
                    head.number
                ));
            }
            self.before = head.number;
            self.number = head.number;
            self.hash = head.hash;
        }
        if head.number != self.number {
            return refused(format!(
                "line {place}: a head of record {} stands behind record {}",
                head.number, self.number
            ));
        }
        if head.hash != self.hash {
            return refused(format!(
                "line {place}: the records before this head are not those that the enclave has signed for"
            ));
        }
        let key = UnparsedPublicKey::new(&ED25519, self.record_key.0);
        if key.verify(&head.signed_bytes(), &head.signature.0).is_err() {
            return refused(format!("line {place}: this head is not signed by the enclave's key"));
        }
        if self.terms.last() != Some(&head.term) {
            self.terms.push(head.term);
        }
        self.heads.insert(head.number, head.hash);
        self.head = Some(head);
        Ok(())
    }

    fn name(&self) -> String {
        self.nonce.to_string().chars().take(18).collect()
    }

    /// Records that nothing signs for.
    pub fn unsigned(&self) -> Option<String> {
        let signed = self.head.map_or(0, |head| head.number);
        (signed < self.number || self.head.is_none()).then(|| {
            format!(
                "boot {}…: records from {} on are followed by no signed head",
                self.name(),
                signed.saturating_add(1)
            )
        })
    }

    /// For people.
    pub fn told(&self) -> String {
        let terms: Vec<String> = self.terms.iter().filter(|term| **term > 0).map(ToString::to_string).collect();
        let held = if terms.is_empty() {
            "without a term of the fence".to_owned()
        } else {
            format!("fence term {}", terms.join(", "))
        };
        let times =
            self.times.map_or("no record".to_owned(), |(first, last)| format!("{} to {}", time(first), time(last)));
        let front = match self.before {
            0 => String::new(),
            1 => "record 1 is not in this file; ".to_owned(),
            last => format!("records 1 to {last} are not in this file; "),
        };
        let (signed, refused, commands) = (self.signed, self.refused, plural(self.commands, "command"));
        format!("boot {}…  {signed} signed, {refused} refused, {commands}; {front}{times}; {held}", self.name())
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "boot_nonce": self.nonce.to_string(),
            "signed": self.signed,
            "refused": self.refused,
            "commands": self.commands,
            "records_before": self.before,
            "last_sequence": self.number,
            "first_time_ms": self.times.map(|(first, _)| first),
            "last_time_ms": self.times.map(|(_, last)| last),
            "fence_terms": self.terms,
            "reworded": self.reworded,
        })
    }
}

impl Boot {
    /// How many records there are here.
    pub fn records(&self) -> u64 {
        self.signed.saturating_add(self.refused).saturating_add(self.commands)
    }
}

/// Terms of the fence between those that the heads name. One of seconds since 1970 was made anew: there is no gap before it.
pub fn missing_terms(boots: &Boots) -> String {
    let mut held: Vec<u64> =
        boots.values().flat_map(|boot| boot.terms.iter().copied()).filter(|term| *term > 0).collect();
    held.sort_unstable();
    held.dedup();
    let gap = |pair: &[u64]| match pair {
        [a, b] if *a < MADE_ANEW && b.saturating_sub(*a) > 1 && *b < MADE_ANEW => {
            Some((a.saturating_add(1), b.saturating_sub(1)))
        }
        _ => None,
    };
    let told = held.windows(2).filter_map(gap).map(|(a, b)| if a == b { a.to_string() } else { format!("{a} to {b}") });
    told.collect::<Vec<_>>().join(", ")
}

/// Whether the files have everything that the enclave had when it signed this head.
pub fn compare(live: &LogHead, boots: &Boots) -> Result<()> {
    let Some(boot) = boots.get(&live.boot_nonce.0) else {
        return refused("there is no file of the boot of the enclave that runs now");
    };
    if live.number > boot.number {
        let from = boot.number.saturating_add(1);
        return refused(format!(
            "records {from} to {} of the enclave that runs now are missing at the end",
            live.number
        ));
    }
    match boot.heads.get(&live.number) {
        Some(hash) if *hash != live.hash => refused("the enclave that runs now has signed for other records"),
        _ => Ok(()),
    }
}
