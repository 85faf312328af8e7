//! What was measured, in a table or in JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::messages::Duties;
use crate::raw::Raw;
use crate::signer::Sample;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measured {
    /// Each connection asks again when it was answered.
    Closed(Duties),
    /// So many at once.
    Burst(usize),
    /// This share of raw blst, evenly.
    Offered(f64),
}

impl Measured {
    fn name(self) -> String {
        match self {
            Self::Closed(duties) => duties.name().to_owned(),
            Self::Burst(count) => format!("burst_{count}"),
            Self::Offered(share) => format!("offered_{share}"),
        }
    }
}

/// A kind of load on one signer.
struct Row {
    url: String,
    keys: usize,
    what: Measured,
    /// Of each round: raw blst, and what the signer gave.
    rounds: Vec<(Raw, Sample)>,
}

/// Everything that was measured.
pub struct Report {
    connections: usize,
    rounds: u32,
    raws: Vec<Raw>,
    rows: Vec<Row>,
}

impl Report {
    /// Nothing yet.
    pub fn new(connections: usize, rounds: u32) -> Self {
        Self { connections, rounds, raws: Vec::new(), rows: Vec::new() }
    }

    /// Raw blst of a round.
    pub fn raw(&mut self, raw: Raw) {
        self.raws.push(raw);
    }

    /// A turn of load.
    pub fn add(&mut self, url: &str, keys: usize, what: Measured, raw: Raw, sample: Sample) {
        match self.rows.iter_mut().find(|row| row.url == url && row.what == what) {
            Some(row) => row.rounds.push((raw, sample)),
            None => self.rows.push(Row { url: url.to_owned(), keys, what, rounds: vec![(raw, sample)] }),
        }
    }

    fn raw_per_second(&self) -> f64 {
        median(self.raws.iter().map(|raw| raw.per_second).collect())
    }

    /// The rows of the first signer, then those of the second.
    fn by_signer(&self) -> impl Iterator<Item = &Row> {
        let first = self.rows.first().map_or("", |row| row.url.as_str());
        self.rows.iter().filter(move |row| row.url == first).chain(self.rows.iter().filter(move |row| row.url != first))
    }

    fn threads(&self) -> usize {
        self.raws.first().map_or(0, |raw| raw.threads)
    }

    /// For programs: one line.
    pub fn json(&self) -> Value {
        let mut signers: Vec<&str> = self.by_signer().map(|row| row.url.as_str()).collect();
        signers.dedup();
        let of = |url: &str| {
            let mut out = serde_json::Map::new();
            out.insert("url".into(), url.into());
            for row in self.rows.iter().filter(|row| row.url == url) {
                out.insert("keys".into(), row.keys.into());
                out.insert(row.what.name(), row.json());
            }
            Value::Object(out)
        };
        json!({
            "connections": self.connections,
            "threads": self.threads(),
            "rounds": self.rounds,
            "raw_blst_per_s": self.raw_per_second().round(),
            "signers": signers.into_iter().map(of).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "raw blst: {:.0} signatures/s on {} threads; {} connections; medians of {} rounds\n",
            self.raw_per_second(),
            self.threads(),
            self.connections,
            self.rounds
        );
        let mut url = "";
        for row in self.by_signer() {
            if url != row.url {
                url = &row.url;
                let _ = writeln!(out, "\n{url}, {} keys", row.keys);
                let _ = writeln!(
                    out,
                    "{:<22}{:>14}{:>13}{:>11}{:>10}{:>10}{:>10}",
                    "load", "signatures/s", "of raw blst", "CPU", "p50 ms", "p99 ms", "p99.9 ms"
                );
            }
            let latencies = row.latencies();
            let ms = |per_mille| percentile(&latencies, per_mille);
            let _ = writeln!(
                out,
                "{:<22}{:>14.0}{:>13.3}{:>11}{:>10.2}{:>10.2}{:>10.2}{}",
                row.what.name(),
                row.per_second(),
                row.ratio(),
                row.efficiency().map_or_else(|| "-".to_owned(), |efficiency| format!("{efficiency:.3}")),
                ms(500),
                ms(990),
                ms(999),
                row.note(self.connections)
            );
        }
        out
    }
}

impl Row {
    fn per_second(&self) -> f64 {
        median(self.rounds.iter().map(|(_, sample)| sample.per_second).collect())
    }

    /// Signatures a second, of raw blst's in the same round. Of a burst: its time, of the time that raw blst takes for as many.
    fn ratio(&self) -> f64 {
        let one = |(raw, sample): &(Raw, Sample)| match self.what {
            Measured::Burst(_) => raw.per_second / sample.per_second,
            _ => sample.per_second / raw.per_second,
        };
        median(self.rounds.iter().map(one).collect())
    }

    /// Processor time of a raw signature, of what the signer's processes took for one.
    fn efficiency(&self) -> Option<f64> {
        let one = |(raw, sample): &(Raw, Sample)| {
            #[allow(clippy::cast_precision_loss, clippy::as_conversions, reason = "a count far below 2^52")]
            let count = sample.latencies.len() as f64;
            Some(raw.cpu.as_secs_f64() * count / sample.cpu?.as_secs_f64())
        };
        self.rounds.iter().map(one).collect::<Option<Vec<_>>>().map(median)
    }

    /// What the median request took beyond one raw signature, in milliseconds: means something where one is in flight.
    fn beyond_raw(&self) -> f64 {
        let one = |(raw, sample): &(Raw, Sample)| {
            let mut latencies = sample.latencies.clone();
            latencies.sort_unstable();
            percentile(&latencies, 500) - raw.one().as_secs_f64() * 1e3
        };
        median(self.rounds.iter().map(one).collect())
    }

    fn note(&self, connections: usize) -> String {
        match self.what {
            Measured::Burst(_) => "  (of raw blst's time for as many)".to_owned(),
            Measured::Closed(_) if connections == 1 => format!("  (p50: a raw signature {:+.3} ms)", self.beyond_raw()),
            _ => String::new(),
        }
    }

    fn latencies(&self) -> Vec<Duration> {
        let mut all: Vec<Duration> =
            self.rounds.iter().flat_map(|(_, sample)| sample.latencies.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    fn json(&self) -> Value {
        let latencies = self.latencies();
        let rounded = (self.ratio() * 1000.0).round() / 1000.0;
        let mut out = json!({
            "signatures_per_s": self.per_second().round(),
            "p50_ms": percentile(&latencies, 500),
            "p99_ms": percentile(&latencies, 990),
            "p99_9_ms": percentile(&latencies, 999),
            "signatures": latencies.len(),
            "cpu_efficiency": self.efficiency().map(|efficiency| (efficiency * 1000.0).round() / 1000.0),
            "p50_beyond_raw_ms": (self.beyond_raw() * 1000.0).round() / 1000.0,
        });
        let name = if matches!(self.what, Measured::Burst(_)) { "time_of_raw_blsts" } else { "ratio_to_raw_blst" };
        if let Some(fields) = out.as_object_mut() {
            fields.insert(name.to_owned(), rounded.into());
        }
        out
    }
}

fn percentile(sorted: &[Duration], per_mille: usize) -> f64 {
    let at = sorted.len().saturating_mul(per_mille) / 1000;
    let at = at.min(sorted.len().saturating_sub(1));
    (sorted.get(at).copied().unwrap_or_default().as_secs_f64() * 1e5).round() / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
