//! `casemate log export`: what a log says, for programs.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::lines::{Choice, Format, csv_names};
use super::show;
use crate::exit::{Answer, Exit};
use crate::util::{must_be_new, plural, write_whole};

#[derive(Args, Debug)]
pub struct Export {
    /// The proxy's --signing-log folder, or one file of it
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// In which form
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "jsonl")]
    pub format: Format,
    /// Write it to this file, which must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub choice: Choice,
}

/// Writes it.
pub fn run(options: &Export, out: &mut dyn Write) -> Result<Answer> {
    let Some(path) = &options.out else {
        write(options, out)?;
        return Ok((String::new(), Exit::Accepted));
    };
    must_be_new(path)?;
    let mut records = 0;
    write_whole(path, |file| {
        records = write(options, file)?;
        Ok(())
    })?;
    Ok((format!("{} written to {}\n", plural(records, "record"), path.display()), Exit::Accepted))
}

/// How many records there were.
fn write(options: &Export, out: &mut dyn Write) -> Result<u64> {
    let mut records: u64 = 0;
    let mut put = |text: String| out.write_all(text.as_bytes()).context("writing the records");
    if options.format == Format::Csv {
        put(csv_names())?;
    }
    show::each(&options.path, &options.choice, &mut |shown| {
        records = records.saturating_add(1);
        put(match options.format {
            Format::Jsonl => shown.json(),
            Format::Csv => shown.csv(),
        })
    })?;
    Ok(records)
}
