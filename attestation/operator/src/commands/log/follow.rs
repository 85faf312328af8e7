//! `casemate log follow`: what is written into a log from now on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use casemate_protocol::log::text::MAX_LINE_LEN;
use clap::Args;

use super::files;
use super::lines::{Choice, Reader};
use crate::exit::{Answer, Exit};

/// The proxy writes twice a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Args, Debug)]
pub struct Follow {
    /// The proxy's --signing-log folder, or one file of it
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// Begin with what is there already
    #[arg(long)]
    pub all: bool,
    /// End after this time [default: go on until it is stopped]
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    #[command(flatten)]
    pub choice: Choice,
}

/// A file, and up to where it was read.
struct Followed {
    reader: Reader,
    at: u64,
}

/// Follows it.
pub fn run(options: &Follow, json: bool, out: &mut dyn Write) -> Result<Answer> {
    if !options.path.exists() {
        bail!("{} does not exist: give the proxy's --signing-log folder", options.path.display());
    }
    let begun = Instant::now();
    let mut followed = BTreeMap::new();
    let mut quiet = !options.all;
    loop {
        for path in files::any(&options.path)? {
            let file = match followed.remove(&path) {
                Some(file) => file,
                None => Followed { reader: Reader::new(&options.choice)?, at: 0 },
            };
            let read = read(&path, file, quiet, json, out).with_context(|| path.display().to_string())?;
            followed.insert(path, read);
        }
        out.flush().context("writing the answer")?;
        // Files that come later are new from their beginning.
        quiet = false;
        if options.seconds.is_some_and(|seconds| begun.elapsed() >= Duration::from_secs(seconds)) {
            return Ok((String::new(), Exit::Accepted));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Reads what is new in a file, as far as its lines are whole.
fn read(path: &Path, followed: Followed, quiet: bool, json: bool, out: &mut dyn Write) -> Result<Followed> {
    let Followed { mut reader, mut at } = followed;
    let mut file = File::open(path).context("opening it")?;
    // After a crash the proxy cuts a torn line off, and writes it anew.
    at = at.min(file.metadata().context("looking at it")?.len());
    file.seek(SeekFrom::Start(at)).context("reading it")?;
    let mut lines = BufReader::new(file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let limit = u64::try_from(MAX_LINE_LEN)?.saturating_add(2);
        let read = (&mut lines).take(limit).read_until(b'\n', &mut bytes).context("reading it")?;
        let Some(line) = bytes.strip_suffix(b"\n") else { return Ok(Followed { reader, at }) };
        at = at.saturating_add(u64::try_from(read)?);
        let line = std::str::from_utf8(line).context("a line is no text")?;
        if let Some(shown) = reader.line(line)?.filter(|_| !quiet) {
            let text = if json { shown.json() } else { shown.text() };
            out.write_all(text.as_bytes()).context("writing the answer")?;
        }
    }
}
