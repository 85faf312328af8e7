//! `casemate history export`: what the enclave's keys have signed, as an EIP-3076 file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use casemate_protocol::PublicKey;
use casemate_protocol::history_page::HistoryEntry;
use casemate_protocol::watermarks::Watermarks;
use casemate_slashing::interchange::{self, Histories};
use clap::Args;

use crate::args::{Connection, PinOptions};
use crate::exit::{Answer, Exit};
use crate::key_pages::history;
use crate::session::Session;
use crate::util::{plural, write_whole};
use crate::{keys, outputs};

#[derive(Args, Debug)]
pub struct Export {
    #[command(flatten)]
    pub connection: Connection,
    /// The EIP-3076 file to write; an existing one is not overwritten
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Only these keys: a file with one in hex a line, or a JSON array. For a key that the enclave does not know, the most that it
    /// can have signed here is written
    #[arg(long, value_name = "FILE")]
    pub public_keys: Option<PathBuf>,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Writes the file.
pub fn run(options: Export) -> Result<Answer> {
    outputs::check_new(&options.out)?;
    let wanted = options.public_keys.as_deref().map(keys::read_some).transpose()?;
    let wanted = wanted.map(BTreeSet::from_iter);
    let session = Session::open(options.connection, options.pins)?;
    let (entries, floor) = history(&session)?;
    let exported = Exported::select(&entries, wanted.as_ref(), floor);
    write(&options.out, &exported.histories, &session)?;
    Ok((exported.text(&options.out) + session.without_store(), Exit::Accepted))
}

/// What goes into the file, and what is to be said of it.
struct Exported {
    histories: Histories,
    /// How many of the keys sign on here.
    held: usize,
    /// How many have no history.
    without: usize,
    /// How many the enclave does not know.
    unknown: usize,
}

impl Exported {
    fn select(entries: &[HistoryEntry], wanted: Option<&BTreeSet<PublicKey>>, floor: Watermarks) -> Self {
        let mut exported = Self { histories: Histories::new(), held: 0, without: 0, unknown: 0 };
        for entry in entries.iter().filter(|entry| wanted.is_none_or(|wanted| wanted.contains(&entry.public_key))) {
            if let Some(past) = entry.highest {
                exported.histories.insert(entry.public_key, past);
                exported.held = exported.held.saturating_add(usize::from(entry.held));
            } else {
                exported.without = exported.without.saturating_add(1);
            }
        }
        // An import that was rolled back, or never confirmed, may have had them sign here all the same.
        let known: BTreeSet<PublicKey> = entries.iter().map(|entry| entry.public_key).collect();
        for key in wanted.into_iter().flatten().filter(|key| !known.contains(key)) {
            exported.histories.insert(*key, floor);
            exported.unknown = exported.unknown.saturating_add(1);
        }
        exported
    }

    fn text(&self, out: &Path) -> String {
        let mut text = format!(
            "{} written to {}, each page signed by the enclave's own key: of each key the highest block and attestation\n",
            plural(self.histories.len(), "history"),
            out.display()
        );
        if self.held > 0 {
            let _ = writeln!(
                text,
                "{} of them sign on here. Before they sign anywhere else: casemate keys delete, and export again",
                plural(self.held, "key")
            );
        }
        if self.unknown > 0 {
            let _ = writeln!(
                text,
                "{} not known to the enclave: what is written of them is the group's floor, the most that any key can have signed here \
                 before it was known. Before they sign anywhere else, no import of them may be on its way yet: an enclave that was given one \
                 must have ended, or have carried out a later command",
                plural(self.unknown, "key")
            );
        }
        if self.without > 0 {
            let _ = writeln!(text, "{} without any history left out", plural(self.without, "key"));
        }
        text
    }
}

/// Whole or not at all.
fn write(path: &Path, histories: &Histories, session: &Session) -> Result<()> {
    write_whole(path, |mut file| {
        interchange::write(histories, session.statement.network.genesis_validators_root, &mut file)?;
        Ok(file.write_all(b"\n")?)
    })
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Bytes;
    use casemate_protocol::watermarks::Watermarks;

    use super::*;

    fn entry(number: u8, highest: Option<Watermarks>, held: bool) -> HistoryEntry {
        HistoryEntry { public_key: Bytes([number; 48]), highest, held }
    }

    #[test]
    fn a_key_that_the_enclave_does_not_know_gets_the_groups_floor() {
        let past = Watermarks::default();
        let entries = [entry(1, Some(past), true), entry(2, None, false), entry(3, Some(past), false)];
        let all = Exported::select(&entries, None, past);
        assert_eq!((all.histories.len(), all.held, all.without, all.unknown), (2, 1, 1, 0));
        let wanted = BTreeSet::from([Bytes([3; 48]), Bytes([9; 48])]);
        let some = Exported::select(&entries, Some(&wanted), past);
        assert_eq!((some.histories.len(), some.held, some.without, some.unknown), (2, 0, 0, 1));
        assert!(some.histories.contains_key(&Bytes([9; 48])));
        let text = some.text(Path::new("out.json"));
        assert!(text.starts_with("2 histories written to out.json") && text.contains("1 key not known"), "{text}");
    }
}
