//! Keys from the keystores of a folder. No file of it is passed over in silence.

use std::fmt::Write as _;
use std::path::Path;

use casemate_keystore::folder::{self, Entry, Found};
use casemate_keystore::password::Form;
use casemate_keystore::{KeystoreError, Opened, Secret};
use casemate_protocol::PublicKey;

use crate::progress;
use crate::util::{plain, plural};

/// A key.
pub type Key = (Secret, PublicKey);

/// What came out of a folder.
#[derive(Default)]
pub struct Opening {
    /// The keys.
    pub keys: Vec<Key>,
    /// A line for each file that holds a key, or may, and brought none.
    pub unreadable: Vec<String>,
    /// A line for each file that holds no key.
    pub others: Vec<String>,
    /// A line for each keystore whose wallet had read the password in a way of its own.
    pub forms: Vec<String>,
}

/// Decrypts on every core, within so many bytes.
pub fn open(found: &Found, memory: Option<u64>) -> Opening {
    let mut opening = Opening::default();
    for unused in &found.unused {
        let lines = if unused.reason.may_hold_a_key() { &mut opening.unreadable } else { &mut opening.others };
        lines.push(line(&unused.path, &unused.reason));
    }
    for (entry, decrypted) in found.entries.iter().zip(decrypt(&found.entries, memory)) {
        match decrypted {
            Ok(Opened { keys, form }) => {
                opening.keys.extend(keys);
                if form != Form::Standard {
                    opening.forms.push(line(&entry.path, format_args!("opened with {form}")));
                }
            }
            Err(error) => opening.unreadable.push(line(&entry.path, error)),
        }
    }
    opening
}

fn decrypt(entries: &[Entry], memory: Option<u64>) -> Vec<Result<Opened, KeystoreError>> {
    let bar = progress::bar(u64::try_from(entries.len()).unwrap_or(u64::MAX), "decrypting keystores");
    let decrypted = folder::decrypt_all(entries, memory, || bar.inc(1));
    bar.finish_and_clear();
    decrypted
}

impl Opening {
    /// Why nothing is sent.
    pub fn refusal(&self) -> String {
        let mut out = section(&format!("{} cannot be used:", plural(self.unreadable.len(), "file")), &self.unreadable);
        out.push_str("\nnothing was sent. Mend these files, or move them away");
        if !self.keys.is_empty() {
            let others = plural(self.keys.len(), "other key");
            let _ = write!(out, "; --skip-unreadable imports the {others} without them");
        }
        out.push('\n');
        out
    }

    /// What is to be known beside what became of the keys.
    pub fn notes(&self) -> String {
        let (skipped, others) = (self.unreadable.len(), self.others.len());
        section(
            &format!("NOT IMPORTED, {} that cannot be used (--skip-unreadable):", plural(skipped, "file")),
            &self.unreadable,
        ) + &section(&format!("{} beside the keystores without a key:", plural(others, "file")), &self.others)
            + &section("passwords that were not as EIP-2335 says:", &self.forms)
    }
}

fn section(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    lines.iter().fold(format!("{title}\n"), |out, line| out + "  " + line + "\n")
}

fn line(path: &Path, what: impl std::fmt::Display) -> String {
    plain(&format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use casemate_keystore::folder::find_with_password;
    use zeroize::Zeroizing;

    use super::*;

    const PASSWORD: &str = "𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑";

    #[test]
    fn no_file_of_a_folder_is_passed_over_in_silence() {
        let Some(data) = casemate_testdata::folder("signing") else { return };
        let good = fs::read(data.join("keystore/eip-2335/test-pbkdf2.json")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        write("a.json", &good);
        write("b-bom.json", &[b"\xef\xbb\xbf", &good[..]].concat());
        write("c-upper.JSON", &good);
        write("deposit_data-1.json", b"[]");
        write("e-cut-off.json", &good[..good.len() / 2]);
        write("f-too-long.json", &vec![b' '; 5_300_000]);
        write("g.json.bak", &good);
        write("h-empty.json", b"");
        write("i-other.json", b"{\"version\": 4}");
        write("j-notes.txt", b"hello");
        write("k-exit.json", b"{\"message\": {}, \"signature\": \"0x\"}");
        let found = find_with_password(folder.path(), &Zeroizing::new(PASSWORD.to_owned())).unwrap();
        let opening = open(&found, None);
        assert_eq!(opening.keys.len(), 3, "a plain one, one with a byte-order mark, one in capitals");
        let told = opening.refusal();
        for expected in [
            "5 files cannot be used:",
            "e-cut-off.json: it ends within its JSON, at line",
            "f-too-long.json: the file has 5300000 bytes, and no keystore of more than 4194304 bytes is read",
            "g.json.bak: it holds a keystore, but its name does not end in .json",
            "h-empty.json: it is empty",
            "i-other.json: it is JSON without",
            "nothing was sent",
            "--skip-unreadable imports the 3 other keys",
        ] {
            assert!(told.contains(expected), "{expected}: {told}");
        }
        let notes = opening.notes();
        assert!(
            notes.contains("NOT IMPORTED, 5 files") && notes.contains("deposit_data-1.json: not a keystore"),
            "{notes}"
        );
        assert!(notes.contains("k-exit.json: not a keystore: a signed message"), "{notes}");
        assert!(notes.contains("j-notes.txt: not a keystore: its name does not end in .json"), "{notes}");
    }

    #[test]
    fn a_password_file_may_have_a_byte_order_mark_and_no_other_reader() {
        let Some(data) = casemate_testdata::folder("signing") else { return };
        let good = data.join("keystore/eip-2335/test-pbkdf2.json");
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        fs::write(&password, format!("\u{feff}{PASSWORD}\r\nof the second validator\r\n")).unwrap();
        let error = folder::find(&good, &password).map(drop).unwrap_err().to_string();
        assert!(error.contains("has the mode 0644") && error.contains("chmod 600"), "{error}");
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
        let opening = open(&folder::find(&good, &password).unwrap(), None);
        assert_eq!(opening.keys.len(), 1);
        assert!(opening.notes().contains("opened with the first line of the password alone"), "{}", opening.notes());
        fs::write(&password, "wrong\nin both lines\n").unwrap();
        let told = open(&folder::find(&good, &password).unwrap(), None).refusal();
        assert!(told.contains("for each of the 2 ways in which wallets read this password"), "{told}");
    }
}
