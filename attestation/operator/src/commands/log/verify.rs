//! `casemate log verify`: is this the log of that enclave, whole and in order?
//!
//! A boot's records are numbered from 1 and chained by SHA-256; heads of the chain are signed by a key that the boot's attestation
//! document names. What is missing between two records, or stands elsewhere, or says something else, is found from the files alone.
//! To find that the end is missing, the enclave itself must be asked: `--url`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use casemate_protocol::Bytes;
use casemate_protocol::log::LogHead;
use casemate_protocol::log::text::{Line, MAX_LINE_LEN, Parsed, parse};
use clap::Args;
use serde_json::json;

use super::files;
use crate::args::{Connection, PinOptions};
use crate::exit::{Answer, Exit, Refused, refused};
use crate::input::Input;
use crate::report::Verdict;
use crate::session::Session;
use crate::signing_log::{Boot, Boots, compare, missing_terms};
use crate::util::{fresh_nonce, plain, plural};
use crate::{progress, verify};

/// The proxy writes twice a second.
const WRITTEN: Duration = Duration::from_secs(3);

#[derive(Args, Debug)]
pub struct LogVerify {
    /// The proxy's --signing-log folder, or one file of it
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// The proxy of an enclave that runs: the log must have everything up to the head that the enclave signs now
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Authorities of the proxy's TLS certificate, PEM [default: those that this machine trusts]
    #[arg(long, value_name = "FILE", requires = "url")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate for mutual TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Which of the proxy's enclaves, counted from 0 [default: the one that holds the fence]
    #[arg(long, value_name = "N", requires = "url")]
    pub enclave: Option<u32>,
    /// Take refusals whose sentence is another one than this program has for their code: another version of Casemate wrote the log. The
    /// enclave signs for the code alone
    #[arg(long)]
    pub accept_reworded: bool,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Verifies a log.
pub fn run(options: &LogVerify, json: bool) -> Result<Answer> {
    // First what the enclave says, then what is written: all of it must be there by then.
    let live = options.url.as_ref().map(|url| live(url, options)).transpose()?;
    if live.is_some() {
        std::thread::sleep(WRITTEN);
    }
    let (boots, mut faults) = read_all(options)?;
    faults.extend(boots.values().filter_map(Boot::unsigned));
    if let Some(live) = &live {
        faults.extend(compare(live, &boots).err().map(|fault| fault.to_string()));
    }
    if json {
        return Ok(for_programs(&boots, &faults, live.is_some()));
    }
    let mut out = String::new();
    for boot in boots.values() {
        let _ = writeln!(out, "{}", boot.told());
    }
    if faults.is_empty() {
        out.push_str(&accepted(&boots, live.is_some()));
        return Ok((out, Exit::Accepted));
    }
    for fault in &faults {
        let _ = writeln!(out, "REFUSED: {fault}");
    }
    Ok((out, Exit::Refused))
}

fn for_programs(boots: &Boots, faults: &[String], live: bool) -> Answer {
    let exit = if faults.is_empty() { Exit::Accepted } else { Exit::Refused };
    let boots: Vec<_> = boots.values().map(Boot::json).collect();
    (
        format!(
            "{:#}\n",
            json!({ "verdict": exit.name(), "boots": boots, "faults": faults, "compared_with_the_enclave": live })
        ),
        exit,
    )
}

/// All boots that the files are of, and what is wrong with the files.
fn read_all(options: &LogVerify) -> Result<(Boots, Vec<String>)> {
    let files = files::of(&options.path)?;
    let len = files.iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum();
    let bar = progress::bar(len, "verifying the signing log");
    let (mut boots, mut faults) = (Boots::new(), Vec::new());
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
    Ok((boots, faults))
}

/// What is proved of files without a fault.
fn accepted(boots: &Boots, live: bool) -> String {
    let mut out = String::new();
    let missing = missing_terms(boots);
    if !missing.is_empty() {
        let _ = writeln!(
            out,
            "note: no file is of the fence's term {missing}: its enclave was behind another proxy, or was asked for nothing, or the file was removed"
        );
    }
    let reworded: u64 = boots.values().map(|boot| boot.reworded).sum();
    if reworded > 0 {
        let _ = writeln!(
            out,
            "note: {reworded} refusals have another sentence than this program has for their code; the enclave signs for the code alone"
        );
    }
    let end = if live {
        "the last boot up to now"
    } else {
        "each boot up to its last line; --url shows whether the running enclave has more"
    };
    // The files before this one may be anywhere, or removed.
    let whole = if boots.values().all(|boot| boot.before == 0) { "whole and in order" } else { "in order" };
    let records: u64 = boots.values().map(Boot::records).sum();
    let _ = writeln!(out, "accepted: {records} records of {}, {whole} ({end})", plural(boots.len(), "boot"));
    out
}

fn read(path: &Path, boots: &mut Boots, options: &LogVerify, bar: &indicatif::ProgressBar) -> Result<()> {
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
        let Parsed { line, reworded } = match parse(line, known) {
            Ok(parsed) => parsed,
            Err(error) => return refused(format!("line {place}: {error}")),
        };
        if reworded && !options.accept_reworded {
            return refused(format!(
                "line {place}: its sentence is not what its code says. Someone changed it, or another version of Casemate wrote it: in that case \
                 --accept-reworded takes it, by its code alone"
            ));
        }
        match (line, boot.as_mut()) {
            (Line::Start { boot_nonce, statement, document }, None) => {
                let record_key = proved(boot_nonce, statement.as_ref(), document.as_ref(), options)?;
                let begun = boots.entry(boot_nonce.0).or_insert_with(|| Boot::new(boot_nonce, record_key));
                if begun.record_key != record_key {
                    return refused("another file of this boot has another key");
                }
                boot = Some(begun);
            }
            (Line::Record { number, record }, Some(boot)) => {
                boot.reworded = boot.reworded.saturating_add(u64::from(reworded));
                boot.record(number, &record, place)?;
            }
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
