//! `casemate log show`: what a log says, for people.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use casemate_protocol::log::text::MAX_LINE_LEN;
use clap::Args;

use super::files;
use super::lines::{Choice, Reader, Shown};
use crate::exit::{Answer, Exit, refused};

#[derive(Args, Debug)]
pub struct Show {
    /// The proxy's --signing-log folder, or one file of it
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// The last records alone
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    #[command(flatten)]
    pub choice: Choice,
}

/// Shows it.
pub fn run(options: &Show, json: bool, out: &mut dyn Write) -> Result<Answer> {
    let form = |shown: &Shown| if json { shown.json() } else { shown.text() };
    let mut last = std::collections::VecDeque::new();
    each(&options.path, &options.choice, &mut |shown| {
        let text = form(&shown);
        match options.last {
            None => out.write_all(text.as_bytes()).context("writing the answer")?,
            Some(most) => {
                last.push_back(text);
                if last.len() > most {
                    last.pop_front();
                }
            }
        }
        Ok(())
    })?;
    Ok((last.into_iter().collect(), Exit::Accepted))
}

/// Goes through the records of a log that were asked for.
pub fn each(path: &Path, choice: &Choice, take: &mut dyn FnMut(Shown) -> Result<()>) -> Result<()> {
    let mut reader = Reader::new(choice)?;
    for path in files::in_time(path)? {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut lines = BufReader::new(file);
        let mut bytes = Vec::new();
        for place in 1_u64.. {
            bytes.clear();
            let limit = u64::try_from(MAX_LINE_LEN)?.saturating_add(2);
            let read = (&mut lines).take(limit).read_until(b'\n', &mut bytes);
            if read.with_context(|| format!("reading {}", path.display()))? == 0 {
                break;
            }
            // The proxy may be writing the last one just now.
            let Some(line) = bytes.strip_suffix(b"\n") else { break };
            let Ok(line) = std::str::from_utf8(line) else {
                return refused(format!("{}: line {place} is no text", path.display()));
            };
            let shown = reader.line(line).with_context(|| format!("{}, line {place}", path.display()))?;
            shown.map_or(Ok(()), &mut *take)?;
        }
    }
    Ok(())
}
