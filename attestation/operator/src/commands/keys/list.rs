//! `casemate keys list`: the keys that sign, as the document proves them; with `--long` what there is to know of each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use casemate_protocol::PublicKey;
use casemate_protocol::history_page::HistoryEntry;
use casemate_protocol::key_page::{KeyDetails, Origin, PendingExit};
use casemate_protocol::watermarks::Watermarks;
use clap::Args;
use serde_json::{Value, json};

use crate::args::{Connection, PinOptions};
use crate::exit::{Answer, Exit};
use crate::key_pages;
use crate::session::Session;
use crate::table::Table;
use crate::util::plural;

/// More rows than this are a summary, unless all are asked for.
const MAX_ROWS: usize = 20;

#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    pub connection: Connection,
    /// Of each key what it has signed, where its fees go, how it came, and which exit is ordered, as the enclave signs it. More than 20
    /// keys are summed up. Only the holder of the fence knows what keys have signed
    #[arg(long)]
    pub long: bool,
    /// With --long: a row for each key, however many there are
    #[arg(long, requires = "long")]
    pub all: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Lists them.
pub fn run(options: List) -> Result<Answer> {
    let session = Session::open(options.connection, options.pins)?;
    if options.long {
        let rows = rows(key_pages::history(&session)?.0, key_pages::details(&session)?);
        let text = if options.json { format!("{:#}\n", json_of(&rows)) } else { text_of(&rows, options.all) };
        return Ok((text, Exit::Accepted));
    }
    let mut keys: Vec<String> = session.keys()?.iter().map(ToString::to_string).collect();
    keys.sort_unstable();
    let text = if options.json {
        format!("{}\n", serde_json::to_string(&keys)?)
    } else {
        keys.iter().map(|key| format!("{key}\n")).collect()
    };
    Ok((text, Exit::Accepted))
}

/// A key that is held.
struct Row {
    public_key: PublicKey,
    /// Nothing where nobody knows: it does not sign.
    history: Option<Watermarks>,
    details: KeyDetails,
}

/// Of the keys that are held. One that came or went between the two tellings is left to the next time.
fn rows(histories: Vec<HistoryEntry>, details: Vec<KeyDetails>) -> Vec<Row> {
    let mut histories: BTreeMap<PublicKey, HistoryEntry> =
        histories.into_iter().map(|entry| (entry.public_key, entry)).collect();
    let row = |details: KeyDetails| {
        let HistoryEntry { public_key, highest: history, .. } = histories.remove(&details.public_key)?;
        details.held.then_some(Row { public_key, history, details })
    };
    let mut rows: Vec<Row> = details.into_iter().filter_map(row).collect();
    rows.sort_unstable_by_key(|row| row.public_key);
    rows
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::BeforeThisBoot => "before this boot",
        Origin::Imported => "imported",
        Origin::MadeHere => "made here",
    }
}

fn fees(row: &Row) -> String {
    row.details.fee_recipient.map_or("as configured".to_owned(), |to| to.to_string())
}

fn pending(exit: Option<PendingExit>) -> String {
    exit.map_or("-".to_owned(), |PendingExit { validator_index, last_epoch }| {
        format!("exit of validator {validator_index} until epoch {last_epoch}")
    })
}

fn block(row: &Row) -> String {
    match row.history {
        None => "UNKNOWN".to_owned(),
        Some(past) => past.block.map_or("-".to_owned(), |block| block.slot.to_string()),
    }
}

fn attestation(row: &Row) -> String {
    match row.history {
        None => "UNKNOWN".to_owned(),
        Some(past) => past.attestation.map_or("-".to_owned(), |vote| format!("{} → {}", vote.source, vote.target)),
    }
}

fn text_of(rows: &[Row], all: bool) -> String {
    let mut out = if rows.len() > MAX_ROWS && !all { summary(rows) } else { table(rows) };
    out.push_str("signed by the enclave's own key, which its document proves. How keys came before this boot, only the signing logs of earlier boots say\n");
    out
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(["KEY", "BLOCK", "ATTESTATION", "FEES TO", "ORIGIN", "ORDERED"]);
    for row in rows {
        let (from, exit) = (origin(row.details.origin).to_owned(), pending(row.details.exit));
        table.row([row.public_key.to_string(), block(row), attestation(row), fees(row), from, exit]);
    }
    table.to_string()
}

/// How many there are of each sort, and the ends of what they have signed.
fn summary(rows: &[Row]) -> String {
    let mut out = format!("{}; --all has a row for each\n", plural(rows.len(), "key"));
    let mut counted = |what: &str, word: &dyn Fn(&Row) -> String| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for row in rows {
            let count = counts.entry(word(row)).or_default();
            *count = count.saturating_add(1);
        }
        for (word, count) in counts {
            let _ = writeln!(out, "  {what:<12}{word}: {}", plural(count, "key"));
        }
    };
    counted("fees to", &fees);
    counted("origin", &|row| origin(row.details.origin).to_owned());
    counted("ordered", &|row| row.details.exit.map_or("nothing", |_| "an exit").to_owned());
    let blocks: Vec<u64> = rows.iter().filter_map(|row| Some(row.history?.block?.slot.0)).collect();
    let targets: Vec<u64> = rows.iter().filter_map(|row| Some(row.history?.attestation?.target.0)).collect();
    for (what, numbers) in [("blocks", blocks), ("targets", targets)] {
        if let (Some(least), Some(most)) = (numbers.iter().min(), numbers.iter().max()) {
            let _ = writeln!(out, "  {what:<12}{least} to {most}: {}", plural(numbers.len(), "key"));
        }
    }
    let unknown = rows.iter().filter(|row| row.history.is_none()).count();
    if unknown > 0 {
        let _ = writeln!(out, "  {:<12}UNKNOWN, so they do not sign: {}", "history", plural(unknown, "key"));
    }
    out
}

fn json_of(rows: &[Row]) -> Value {
    let one = |row: &Row| {
        let KeyDetails { fee_recipient, exit, .. } = row.details;
        json!({
            "public_key": row.public_key.to_string(),
            "history_known": row.history.is_some(),
            "block_slot": row.history.and_then(|past| Some(past.block?.slot.0)),
            "attestation_source": row.history.and_then(|past| Some(past.attestation?.source.0)),
            "attestation_target": row.history.and_then(|past| Some(past.attestation?.target.0)),
            "fee_recipient": fee_recipient.map(|to| to.to_string()),
            "origin": row.details.origin,
            "ordered_exit": exit.map(|exit| json!({
                "validator_index": exit.validator_index,
                "last_epoch": exit.last_epoch.0,
            })),
        })
    };
    rows.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use casemate_protocol::watermarks::BlockMark;
    use casemate_protocol::{Bytes, Epoch, Slot};

    use super::*;

    fn key(number: u8, held: bool) -> (HistoryEntry, KeyDetails) {
        let public_key = Bytes([number; 48]);
        let block = BlockMark { slot: Slot(u64::from(number)), signing_root: None };
        let past = Watermarks { block: Some(block), attestation: None };
        let exit = (number == 1).then_some(PendingExit { validator_index: 7, last_epoch: Epoch(9) });
        let origin = if number == 2 { Origin::MadeHere } else { Origin::BeforeThisBoot };
        let fee_recipient = (number == 3).then_some(Bytes([0xfe; 20]));
        let details = KeyDetails { public_key, held, fee_recipient, origin, exit };
        (HistoryEntry { public_key, held, highest: (number != 4).then_some(past) }, details)
    }

    fn some(numbers: impl Iterator<Item = u8>) -> Vec<Row> {
        let (histories, details) = numbers.map(|number| key(number, number != 5)).unzip();
        rows(histories, details)
    }

    #[test]
    fn a_long_list_says_of_each_key_what_the_enclave_signs() {
        let rows = some(1..=5);
        assert_eq!(rows.len(), 4, "a deleted key is none that is held");
        let text = text_of(&rows, false);
        for part in ["exit of validator 7 until epoch 9", "made here", "0xfefe", "UNKNOWN", "as configured"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("0x")).count(), 4);
        let value = json_of(&rows);
        assert_eq!(
            (&value[0]["ordered_exit"]["validator_index"], &value[1]["origin"]),
            (&7.into(), &"made_here".into())
        );
        assert_eq!((&value[2]["block_slot"], &value[3]["history_known"]), (&3.into(), &false.into()));
    }

    #[test]
    fn more_keys_than_twenty_are_summed_up_unless_all_are_asked_for() {
        let rows = some(1..=40);
        let text = text_of(&rows, false);
        assert!(text.starts_with("39 keys; --all has a row for each"), "{text}");
        for part in
            ["as configured: 38 keys", "made here: 1 key", "an exit: 1 key", "1 to 40: 38 keys", "do not sign: 1 key"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.lines().count() < 15);
        assert_eq!(text_of(&rows, true).lines().filter(|line| line.starts_with("0x")).count(), 39);
    }
}
