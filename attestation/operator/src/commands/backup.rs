//! `casemate backup`: which copy of the sealed states is the one in force.
//!
//! A sealed state proves nothing by its name: the parent gives it. The enclave's document names the state in force by its SHA-256; a file
//! with that digest is that state, byte for byte.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_protocol::outward::MAX_BLOB_LEN;
use casemate_protocol::statement::{FenceKind, StatedState};
use casemate_protocol::{Root, Statement};

use crate::cli::{BackupCommand, BackupVerify};
use crate::sending::{Answer, plural};
use crate::session::{Refused, Session, sha256};
use crate::{Exit, plain};

/// What the parent puts behind a state's number.
const SUFFIX: &str = ".sealed";
/// Most files that are looked at.
const MAX_FILES: usize = 10_000;

pub fn run(command: BackupCommand) -> Result<Answer> {
    match command {
        BackupCommand::Verify(options) => verify(*options),
    }
}

/// A copy, by its name and what is in it.
struct Copy {
    path: PathBuf,
    /// As its name says: nobody vouches for it.
    number: u64,
    sha256: Root,
}

fn verify(options: BackupVerify) -> Result<Answer> {
    let session = Session::open(options.connection, options.pins)?;
    let statement = &session.statement;
    let Some(state) = statement.state else {
        return Err(
            Refused("the enclave has sealed no state yet: there is nothing to keep copies of".to_owned()).into()
        );
    };
    let copies = copies(&options.folder, &statement.group)?;
    Ok(tell(statement, &state, &copies))
}

/// All copies in a folder, or in the group's folder below it.
fn copies(folder: &Path, group: &str) -> Result<Vec<Copy>> {
    let below = folder.join(group);
    let folder = if below.is_dir() { below } else { folder.to_owned() };
    let reading = || format!("reading {}", folder.display());
    let mut copies = Vec::new();
    for entry in fs::read_dir(&folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(number) = name.strip_suffix(SUFFIX).and_then(|number| number.parse().ok()) else { continue };
        if copies.len() >= MAX_FILES {
            bail!("{} has more than {MAX_FILES} files", folder.display());
        }
        let len = fs::metadata(&path).with_context(|| format!("opening {}", path.display()))?.len();
        if usize::try_from(len).map_or(true, |len| len > MAX_BLOB_LEN) {
            bail!("{} has {len} bytes; a sealed state has {MAX_BLOB_LEN} at most", path.display());
        }
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        copies.push(Copy { number, sha256: sha256(&bytes), path });
    }
    if copies.is_empty() {
        bail!("{} has no file that ends in {SUFFIX}", folder.display());
    }
    copies.sort_by_key(|copy| copy.number);
    Ok(copies)
}

fn tell(statement: &Statement, state: &StatedState, copies: &[Copy]) -> Answer {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "the enclave's state in force has number {} and SHA-256 {}, with {} that sign",
        state.number,
        state.sha256,
        plural(usize::try_from(statement.public_keys.count).unwrap_or(usize::MAX), "key")
    );
    let oldest = statement.fence.record.map_or(0, |record| record.min_state_version);
    let mut found = false;
    for copy in copies {
        let this = copy.sha256 == state.sha256;
        found |= this;
        let says = if this {
            "IN FORCE: every key and every order of the operators is in it"
        } else if copy.number < oldest {
            "older; the fence refuses it. Without the fence it would bring deleted keys back, and lack newer ones"
        } else if copy.number < state.number {
            "older: a restore from it loses every change of keys since"
        } else if copy.number == state.number {
            "DAMAGED, or another state of the same number: its SHA-256 differs"
        } else {
            "not in force: of another enclave of the group, or of a change that was not confirmed"
        };
        let _ = writeln!(out, "{}  {says}", plain(&copy.path.display().to_string()));
    }
    if !found {
        let _ = writeln!(out, "\nREFUSED: none of these files is the state in force. Copy the parent's blobs anew");
        return (out, Exit::Refused);
    }
    let lost = match statement.fence.kind {
        FenceKind::None | FenceKind::Solo => {
            "A restore from it loses what the keys have signed since it was sealed: the enclave stays silent for two to three epochs \
             instead, and nothing stops an enclave that still runs. End that one first."
        }
        FenceKind::File | FenceKind::Etcd | FenceKind::Dynamodb => {
            "A restore from it loses what the keys have signed since it was sealed; the fence's floors stand for that: blocks wait for \
             the ceilings, attestations for the next epoch."
        }
    };
    let _ = writeln!(out, "\n{lost}");
    (out, Exit::Accepted)
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
            let found = copies(place, "alpha").unwrap();
            let told: Vec<_> = found.iter().map(|copy| (copy.number, copy.sha256)).collect();
            assert_eq!(told, [(7, sha256(b"seven")), (9, sha256(b"nine"))]);
        }
    }
}
