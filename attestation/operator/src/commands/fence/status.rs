//! `casemate fence status`: who holds the fence, and when this enclave may sign.

use std::fmt::Write as _;

use anyhow::Result;
use casemate_protocol::may_sign::{Grant, MaySign, by_statement, may_sign};
use casemate_protocol::slot_clock::SlotClock;
use casemate_protocol::statement::{FenceStatement, StatedFloors, StatedRecord, StatedState, StatedStatus};
use casemate_protocol::{Bytes, Slot, Statement};
use clap::Args;
use serde_json::{Value, json};

use crate::args::{Connection, PinOptions};
use crate::exit::{Answer, Exit};
use crate::report;
use crate::session::Session;
use crate::util::time;

#[derive(Args, Debug)]
pub struct Status {
    #[command(flatten)]
    pub connection: Connection,
    /// Show every enclave of the group: all behind this proxy, and behind those that --peer names
    #[arg(long, conflicts_with = "enclave")]
    pub all: bool,
    /// With --all: another proxy of the group; once for each. A profile's further urls are peers
    #[arg(long, value_name = "URL")]
    pub peer: Vec<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Shows one enclave's.
pub fn run(options: Status) -> Result<Answer> {
    let session = Session::open(options.connection, options.pins)?;
    let statement = &session.statement;
    let text = if options.json { format!("{:#}\n", json_of(statement)) } else { text_of(statement) };
    Ok((text, Exit::Accepted))
}

/// What this enclave would sign, by what it has attested; and, of one that stands by, what it would if its holder does not go on.
fn when(statement: &Statement) -> MaySign {
    let Statement { fence, network, .. } = statement;
    let clock = SlotClock::from(network);
    match (fence.standing, &fence.record, fence.time_ms) {
        // It claims the record once the block ceiling has passed, and that becomes its floor.
        (StatedStatus::Standby, Some(record), Some(now)) => {
            let floors = StatedFloors {
                slot: Some(record.slot_ceiling),
                target: Some(record.target_ceiling),
                source: Some(record.source_ceiling),
            };
            may_sign(Some(now), clock, Ok(Grant { floors, ceilings: None }), None)
        }
        _ => by_statement(fence, clock),
    }
}

/// What an enclave is to the fence, in words.
pub fn standing(fence: &FenceStatement) -> &'static str {
    match fence.standing {
        StatedStatus::NoStore => "no record: this enclave signs by itself",
        StatedStatus::Unknown => "its store has not answered yet; nothing is signed",
        StatedStatus::NoRecord => "the store has no record (casemate fence init); nothing is signed",
        StatedStatus::Standby => "STANDBY: another enclave holds it, or did; nothing is signed here",
        StatedStatus::OldState => "the parent offers no sealed state that is new enough; nothing is signed",
        StatedStatus::Holding => "HOLDER",
        StatedStatus::HandingOver => "handing over; nothing is signed here",
        StatedStatus::RolledBack if fence.record.is_none() => {
            "the store has NO RECORD, though this group has had one: it was lost (casemate fence init --record-lost), or has ended in another \
             store (--after); nothing is signed"
        }
        StatedStatus::RolledBack => {
            "THE STORE SHOWS AN OLDER RECORD than before: it was restored; nothing is signed in this boot any more"
        }
        StatedStatus::Closed => {
            "the record HAS ENDED (casemate fence close); nothing is signed until the next one is made (casemate fence init --after)"
        }
    }
}

fn text_of(statement: &Statement) -> String {
    let Statement { fence, network, group, boot_nonce, .. } = statement;
    let chain = SlotClock::from(network);
    let mut out = String::new();
    line(&mut out, "enclave", &format!("{boot_nonce} (boot nonce), group {group}, {}", network.name));
    line(&mut out, "fence", &format!("{}; {}", fence.kind, standing(fence)));
    if let Some(store) = &fence.store {
        line(&mut out, "store", store);
    }
    if let Some(record) = &fence.record {
        record_lines(&mut out, record, statement, chain);
    }
    if let Some(StatedState { number, sha256, fence_version }) = &statement.state {
        let state = format!("number {number}, SHA-256 {sha256}, has seen version {fence_version} of the record");
        line(&mut out, "state", &state);
    }
    line(&mut out, "keys", &format!("{} sign, root {}", statement.public_keys.count, statement.public_keys.root));
    line(&mut out, "floors", &floors(fence));
    line(&mut out, "clock", &clock(fence, chain));
    line(&mut out, "signs", &signs(statement));
    out
}

fn line(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "{name:<10}{text}");
}

fn record_lines(out: &mut String, record: &StatedRecord, statement: &Statement, chain: SlotClock) {
    let StatedRecord { version, holder, term, slot_ceiling, target_ceiling, source_ceiling, .. } = record;
    let whose = if *holder == statement.boot_nonce {
        "this enclave".to_owned()
    } else if *holder == Bytes::ZERO {
        "none yet".to_owned()
    } else {
        holder.to_string()
    };
    let released = if report::is_released(&statement.fence, record) { ", released" } else { "" };
    let ended = if record.closed { ", ended" } else { "" };
    line(out, "record", &format!("version {version}, term {term}, holder {whose}{released}{ended}"));
    if record.closed {
        line(out, "ended", &ended_line(record, statement.fence.time_ms, chain));
    }
    let ceilings = format!(
        "blocks up to slot {slot_ceiling}; attestations up to target {target_ceiling}, source {source_ceiling}"
    );
    line(out, "ceilings", &ceilings);
    line(out, "sealed", &format!("states with a number below {} are refused", record.min_state_version));
}

/// What may still be signed under a record that has ended.
fn ended_line(record: &StatedRecord, now: Option<u64>, chain: SlotClock) -> String {
    let ceiling = record.slot_ceiling;
    let passed = now.is_some_and(|now| chain.slot(now) > ceiling);
    match (record.released_state, passed) {
        (Some(_), _) => "its holder had released it: nothing is signed under it any more".to_owned(),
        (None, true) => "its ceilings have passed: no enclave signs blocks under it any more".to_owned(),
        (None, false) => {
            let until = chain.until(Slot(ceiling.0.saturating_add(1)), now.unwrap_or(0)).div_ceil(1000);
            format!("its last holder, if it lives, may still sign for {until} s")
        }
    }
}

fn floors(fence: &FenceStatement) -> String {
    let floors = &fence.floors;
    let mut parts = Vec::new();
    parts.extend(floors.slot.map(|slot| format!("blocks above slot {slot}")));
    parts.extend(floors.target.map(|target| format!("attestations with a target above {target}")));
    parts.extend(floors.source.map(|source| format!("with a source from {source}")));
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn clock(fence: &FenceStatement, chain: SlotClock) -> String {
    fence.time_ms.map_or("NOT TRUSTED: nothing is signed".to_owned(), |ms| {
        let slot = chain.slot(ms);
        format!("{} (slot {slot}, epoch {})", time(ms), chain.epoch(slot))
    })
}

/// When it signs, in words.
pub fn signs(statement: &Statement) -> String {
    let MaySign { blocks_in_ms: blocks_ms, attestations_in_ms: attestations_ms, reason, .. } = when(statement);
    let seconds = |ms: Option<u64>| match ms {
        Some(0) => "now".to_owned(),
        Some(ms) => format!("in {} s", ms.div_ceil(1000)),
        None => "not foreseeable".to_owned(),
    };
    let sentence = format!("blocks {}, attestations {}", seconds(blocks_ms), seconds(attestations_ms));
    match (statement.fence.standing, reason) {
        (StatedStatus::Standby, _) => format!("{sentence} if its holder does not go on"),
        // Otherwise the line of the fence has said why.
        (StatedStatus::Holding | StatedStatus::NoStore, Some(reason)) => format!("{sentence}: {reason}"),
        _ => sentence,
    }
}

/// For programs.
pub fn json_of(statement: &Statement) -> Value {
    let Statement { fence, group, boot_nonce, network, .. } = statement;
    let MaySign { blocks_in_ms: blocks_ms, attestations_in_ms: attestations_ms, reason, .. } = when(statement);
    json!({
        "boot_nonce": boot_nonce.to_string(),
        "group": group,
        "network": network.name,
        "fence": report::fence_json(fence),
        "state": report::state_json(statement.state.as_ref()),
        "public_keys": { "count": statement.public_keys.count, "root": statement.public_keys.root.to_string() },
        "signs_blocks_in_ms": blocks_ms,
        "signs_attestations_in_ms": attestations_ms,
        "reason": reason.map(|reason| reason.to_string()),
    })
}
