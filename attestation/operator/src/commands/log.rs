//! `casemate log verify`: is this the log of that enclave, whole and in order?
//!
//! A boot's records are numbered from 1 and chained by SHA-256; heads of the chain are signed by a key that the boot's attestation
//! document names. What is missing between two records, or stands elsewhere, or says something else, is found from the files alone.
//! That the end is missing shows only against the enclave itself, which is asked with `--url`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::log::text::{Line, MAX_LINE_LEN, parse};
use casemate_protocol::log::{LogHead, LogRecord, chain_start};
use casemate_protocol::{Bytes, Root};

use crate::cli::{Connection, LogCommand, LogVerify};
use crate::input::Input;
use crate::report::Verdict;
use crate::sending::{Answer, plural};
use crate::session::{Refused, Session, fresh_nonce, sha256};
use crate::{Exit, plain, progress, verify};

/// Terms begin here where a record was made anew: with the seconds since 1970.
const MADE_ANEW: u64 = 1_000_000_000;

/// The proxy writes twice a second.
const WRITTEN: Duration = Duration::from_secs(3);

pub fn run(command: LogCommand) -> Result<Answer> {
    match command {
        LogCommand::Verify(options) => verify(&options),
    }
}

fn verify(options: &LogVerify) -> Result<Answer> {
    // First what the enclave says, then what is written: all of it must be there by then.
    let live = options.url.as_ref().map(|url| live(url, options)).transpose()?;
    if live.is_some() {
        std::thread::sleep(WRITTEN);
    }
    let files = files(&options.path)?;
    let len = files.iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum();
    let bar = progress::bar(len, "verifying the signing log");
    let mut boots: BTreeMap<[u8; 32], Boot> = BTreeMap::new();
    let mut faults = Vec::new();
    for path in &files {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        match read(path, &mut boots, options, &bar) {
            Ok(()) => {}
            Err(error) if error.is::<Refused>() => faults.push(format!("{}: {error}", plain(&name))),
            Err(error) => return Err(error.context(path.display().to_string())),
        }
    }
    bar.finish_and_clear();
    for boot in boots.values() {
        if let Some(fault) = boot.unsigned() {
            faults.push(fault);
        }
    }
    if let Some(live) = &live {
        faults.extend(against(live, &boots).err().map(|fault| fault.to_string()));
    }
    let mut out = String::new();
    for boot in boots.values() {
        let _ = writeln!(out, "{}", boot.told());
    }
    let records: u64 = boots.values().map(|boot| boot.signed.saturating_add(boot.refused)).sum();
    if faults.is_empty() {
        let missing = missing_terms(&boots);
        if !missing.is_empty() {
            let _ = writeln!(
                out,
                "note: no file is of the fence's term {missing}: of an enclave that another proxy served, that served nobody, or removed"
            );
        }
        let end = if live.is_some() {
            "the last boot up to now"
        } else {
            "each boot up to its last line; --url shows whether the running enclave has more"
        };
        // The files before this one may be anywhere, or removed.
        let whole = if boots.values().all(|boot| boot.before == 0) { "whole and in order" } else { "in order" };
        let _ = writeln!(out, "accepted: {records} records of {}, {whole} ({end})", plural(boots.len(), "boot"));
        return Ok((out, Exit::Accepted));
    }
    for fault in &faults {
        let _ = writeln!(out, "REFUSED: {fault}");
    }
    Ok((out, Exit::Refused))
}

/// Terms of the fence between those that the heads name. One of seconds since 1970 was made anew: there is no gap before it.
fn missing_terms(boots: &BTreeMap<[u8; 32], Boot>) -> String {
    let mut held: Vec<u64> = boots.values().flat_map(|boot| boot.terms.iter().copied()).filter(|g| *g > 0).collect();
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

/// The files of a folder, or one. Their names sort by boot, and within it by the number of their first record.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
        let path = entry.with_context(|| format!("reading {}", path.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!("there is no file of a signing log (*.log) in {}", path.display());
    }
    files.sort_unstable();
    Ok(files)
}

/// What is known of a boot's chain.
struct Boot {
    nonce: Bytes<32>,
    record_key: Bytes<32>,
    /// The number before its first record here: not 0 where one file is looked at alone.
    before: u64,
    number: u64,
    hash: Root,
    /// The last head: all records up to there are signed for.
    head: Option<LogHead>,
    /// Terms of the fence that its heads name.
    terms: Vec<u64>,
    signed: u64,
    refused: u64,
    /// First and last, in Unix milliseconds.
    times: Option<(u64, u64)>,
    /// The hash after each head's record, for the one that the enclave names.
    heads: BTreeMap<u64, Root>,
    buffer: Vec<u8>,
}

fn refused<T>(text: impl Into<String>) -> Result<T> {
    Err(Refused(text.into()).into())
}

fn read(
    path: &Path,
    boots: &mut BTreeMap<[u8; 32], Boot>,
    options: &LogVerify,
    bar: &indicatif::ProgressBar,
) -> Result<()> {
    let mut lines = BufReader::new(bar.wrap_read(File::open(path).context("opening it")?));
    let mut bytes = Vec::new();
    let mut boot: Option<&mut Boot> = None;
    let mut place = 0_u64;
    loop {
        bytes.clear();
        place = place.saturating_add(1);
        let limit = u64::try_from(MAX_LINE_LEN)?.saturating_add(2);
        let read = (&mut lines).take(limit).read_until(b'\n', &mut bytes).context("reading it")?;
        if read == 0 {
            return match boot {
                Some(_) => Ok(()),
                None => refused("the file is empty"),
            };
        }
        let line = bytes.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let Some(line) = line else { return refused(format!("line {place} is not whole, or no text")) };
        let known = boot.as_ref().map_or(Bytes::ZERO, |boot| boot.nonce);
        let parsed = match parse(line, known) {
            Ok(parsed) => parsed,
            Err(error) => return refused(format!("line {place}: {error}")),
        };
        match (parsed, boot.as_mut()) {
            (Line::Start { boot_nonce, statement, document }, None) => {
                let record_key = proved(boot_nonce, statement.as_ref(), document.as_ref(), options)?;
                let begun = boots.entry(boot_nonce.0).or_insert_with(|| Boot::new(boot_nonce, record_key));
                if begun.record_key != record_key {
                    return refused("another file of this boot has another key");
                }
                boot = Some(begun);
            }
            (Line::Record { number, record }, Some(boot)) => boot.record(number, &record, place)?,
            (Line::Head(head), Some(boot)) => boot.head(head, place, options.path.is_dir())?,
            (_, None) => return refused("the first line is not the beginning of a signing log"),
            (Line::Start { .. }, Some(_)) => return refused(format!("line {place} begins another log")),
        }
    }
}

/// The key that signs the heads of this boot, as its document proves it to the operator's pins.
fn proved(boot_nonce: Bytes<32>, statement: &[u8], document: &[u8], options: &LogVerify) -> Result<Bytes<32>> {
    let input = Input { document: document.to_vec(), statement: Some(statement.to_vec()), enclave: None };
    let report = verify::archived(options.pins.clone(), boot_nonce.0.to_vec(), &input)?;
    if let Verdict::Refused(reason) = &report.verdict {
        return refused(format!("its attestation document is refused: {reason}"));
    }
    match report.judged {
        Some((_, Some(statement))) if statement.boot_nonce == boot_nonce => Ok(statement.record_key),
        _ => refused("its attestation document is of another boot"),
    }
}

impl Boot {
    fn new(nonce: Bytes<32>, record_key: Bytes<32>) -> Self {
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
            times: None,
            heads: BTreeMap::new(),
            buffer: Vec::new(),
        }
    }

    fn record(&mut self, number: u64, record: &LogRecord, place: u64) -> Result<()> {
        let next = self.number.saturating_add(1);
        if number > next {
            let to = number.saturating_sub(1);
            return refused(format!(
                "line {place}: records {next} to {to} are missing: removed, or lost while nobody wrote the log"
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
        if record.refusal.is_some() {
            self.refused = self.refused.saturating_add(1);
        } else {
            self.signed = self.signed.saturating_add(1);
        }
        let first = self.times.map_or(record.time_ms, |(first, _)| first);
        self.times = Some((first, record.time_ms));
        Ok(())
    }

    /// `all`: the first file must be there. One alone begins with the head that the file before it ends with.
    fn head(&mut self, head: LogHead, place: u64, all: bool) -> Result<()> {
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
    fn unsigned(&self) -> Option<String> {
        let signed = self.head.map_or(0, |head| head.number);
        (signed < self.number || self.head.is_none()).then(|| {
            format!(
                "boot {}…: records from {} on are followed by no signed head",
                self.name(),
                signed.saturating_add(1)
            )
        })
    }

    fn told(&self) -> String {
        let terms: Vec<String> = self.terms.iter().filter(|term| **term > 0).map(ToString::to_string).collect();
        let held = if terms.is_empty() {
            "without a term of the fence".to_owned()
        } else {
            format!("fence term {}", terms.join(", "))
        };
        let times = self.times.map_or("no record".to_owned(), |(first, last)| {
            format!("{} to {}", crate::commands::fence::time(first), crate::commands::fence::time(last))
        });
        let front = match self.before {
            0 => String::new(),
            1 => "record 1 is not in this file; ".to_owned(),
            last => format!("records 1 to {last} are not in this file; "),
        };
        format!("boot {}…  {} signed, {} refused; {front}{times}; {held}", self.name(), self.signed, self.refused)
    }
}

/// The head of the chain that the enclave has now: its own document says which boot it is, and it signs for our nonce.
fn live(url: &str, options: &LogVerify) -> Result<LogHead> {
    let connection = Connection {
        url: url.to_owned(),
        tls_ca: options.tls_ca.clone(),
        tls_certificate: options.tls_certificate.clone(),
        tls_key: options.tls_key.clone(),
        enclave: options.enclave,
    };
    Session::open(connection, options.pins.clone())?.signing_log_head(&fresh_nonce()?)
}

/// Whether the files have everything that the enclave had.
fn against(live: &LogHead, boots: &BTreeMap<[u8; 32], Boot>) -> Result<()> {
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
