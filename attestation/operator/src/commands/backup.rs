//! `casemate backup`: which copy of the sealed states is the one in force.
//!
//! A sealed state proves nothing by its name: the parent gives it. The enclave's document names the state in force by its SHA-256; a file
//! with that digest is that state, byte for byte.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_protocol::host_services::MAX_BLOB_LEN;
use casemate_protocol::statement::{FenceKind, StatedState};
use casemate_protocol::{Root, Statement};
use clap::{Args, Subcommand};

use crate::args::{Connection, EXIT_CODES, PinOptions};
use crate::exit::{Answer, Exit, refused};
use crate::input;
use crate::session::Session;
use crate::util::{plain, plural, sha256};

/// What the parent puts behind a state's number.
const SUFFIX: &str = ".sealed";
/// Most files that are looked at.
const MAX_FILES: usize = 10_000;

#[derive(Subcommand, Debug)]
pub enum BackupCommand {
    /// Say which of the copies is the state in force, as the enclave's document proves it, and what a restore from it would lose
    #[command(after_help = EXIT_CODES)]
    Verify(Box<BackupVerify>),
}

#[derive(Args, Debug)]
pub struct BackupVerify {
    /// The copies: the proxy's --blobs folder, or one group's folder in it
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub pins: PinOptions,
}

pub fn run(command: BackupCommand) -> Result<Answer> {
    match command {
        BackupCommand::Verify(options) => verify(*options),
    }
}

/// A copy, by its name and what is in it.
struct Copy {
    path: PathBuf,
    /// As its name says: nothing proves it.
    number: u64,
    sha256: Root,
}

fn verify(options: BackupVerify) -> Result<Answer> {
    let session = Session::open(options.connection, options.pins)?;
    let statement = &session.statement;
    let Some(state) = statement.state else {
        return refused("the enclave has sealed no state yet: there is nothing to keep copies of");
    };
    let (copies, others) = copies(&options.folder, &statement.group)?;
    let (text, exit) = tell(statement, &state, &copies);
    Ok((not_looked_at(&others) + &text, exit))
}

/// All copies in a folder, or in the group's folder below it.
fn copies(folder: &Path, group: &str) -> Result<(Vec<Copy>, Vec<PathBuf>)> {
    let below = folder.join(group);
    let folder = if below.is_dir() { below } else { folder.to_owned() };
    let reading = || format!("reading {}", folder.display());
    let (mut copies, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(&folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if copies.len().saturating_add(others.len()) >= MAX_FILES {
            bail!("{} has more than {MAX_FILES} files", folder.display());
        }
        let Some(number) = name.strip_suffix(SUFFIX).and_then(|number| number.parse().ok()) else {
            others.push(path);
            continue;
        };
        let bytes = input::read_blob(&path, u64::try_from(MAX_BLOB_LEN)?)?;
        copies.push(Copy { number, sha256: sha256(&bytes), path });
    }
    if copies.is_empty() {
        bail!("{} has no file that is called NUMBER{SUFFIX}", folder.display());
    }
    copies.sort_by_key(|copy| copy.number);
    others.sort();
    Ok((copies, others))
}

/// A copy under another name may be the very state that is looked for.
fn not_looked_at(others: &[PathBuf]) -> String {
    others.iter().fold(String::new(), |out, path| {
        out + &format!("{}  not looked at: a copy is called NUMBER{SUFFIX}\n", plain(&path.display().to_string()))
    })
}

fn tell(statement: &Statement, state: &StatedState, copies: &[Copy]) -> Answer {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "the enclave's state in force has number {} and SHA-256 {}, with {} that sign",
        state.number,
        state.sha256,
        plural(statement.public_keys.count, "key")
    );
    let oldest = statement.fence.record.map_or(0, |record| record.min_state_version);
    for copy in copies {
        let _ = writeln!(out, "{}  {}", plain(&copy.path.display().to_string()), copy.against(state, oldest));
    }
    if !copies.iter().any(|copy| copy.is(state)) {
        let _ = writeln!(out, "\nREFUSED: none of these files is the state in force. Copy the parent's blobs anew");
        return (out, Exit::Refused);
    }
    let _ = writeln!(out, "\n{}", lost_by_a_restore(statement.fence.kind));
    (out, Exit::Accepted)
}

impl Copy {
    fn is(&self, state: &StatedState) -> bool {
        self.sha256 == state.sha256
    }

    /// What it is beside the state in force; the fence refuses states below `oldest`.
    fn against(&self, state: &StatedState, oldest: u64) -> &'static str {
        if self.is(state) {
            "IN FORCE: it has every key and every order of the operators"
        } else if self.number < oldest {
            "older; the fence refuses it. Without the fence it would bring deleted keys back, and lack newer ones"
        } else if self.number < state.number {
            "older: a restore from it loses every change of keys since"
        } else if self.number == state.number {
            "DAMAGED, or another state of the same number: its SHA-256 differs"
        } else {
            "not in force: of another enclave of the group, or of a change that was not confirmed"
        }
    }
}

/// What even the state in force does not have.
fn lost_by_a_restore(fence: FenceKind) -> &'static str {
    match fence {
        FenceKind::None | FenceKind::Solo => {
            "A restore from it loses what the keys have signed since it was sealed. To make up for that, the enclave stays silent for two \
             to three epochs, but nothing stops an enclave that still runs. End that one first."
        }
        FenceKind::File | FenceKind::Etcd | FenceKind::Dynamodb => {
            "A restore from it loses what the keys have signed since it was sealed. The fence's floors cover that: blocks wait for the \
             ceilings, attestations for the next epoch."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_known_by_what_is_in_them_and_not_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        assert!(copies(folder.path(), "alpha").is_err(), "an empty folder is no backup");
        let group = folder.path().join("alpha");
        fs::create_dir(&group).unwrap();
        fs::write(group.join("7.sealed"), b"seven").unwrap();
        fs::write(group.join("9.sealed"), b"nine").unwrap();
        fs::write(group.join("notes.txt"), b"").unwrap();
        for place in [folder.path(), &group] {
            let (found, others) = copies(place, "alpha").unwrap();
            assert!(not_looked_at(&others).contains("notes.txt  not looked at"), "no file is passed over in silence");
            let told: Vec<_> = found.iter().map(|copy| (copy.number, copy.sha256)).collect();
            assert_eq!(told, [(7, sha256(b"seven")), (9, sha256(b"nine"))]);
        }
    }
}
