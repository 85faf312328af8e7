//! Keystores in a folder, and the password of each.
//!
//! For a keystore `NAME.json` of key `0xPUBKEY`, the first of these that exists in the passwords' folder is its password:
//! `NAME.txt` (Web3Signer, Teku), `NAME`, `NAME.json.txt`, `0xPUBKEY.txt`, `0xPUBKEY` (Lighthouse, Nimbus). Where the
//! passwords are one file, it is the password of all. The keystores may be one file too: `all-accounts.keystore.json` of Prysm
//! holds a wallet. Line ends behind a password do not belong to it.
//!
//! No file is passed over in silence: each that brings no key is named with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use serde_json::Value;
use zeroize::Zeroizing;

use crate::{Keystore, KeystoreError, MAX_FILE_LEN, Opened, others_rights, without_bom};

/// How far below a folder keystores and passwords are looked for. Clients keep a folder a key; links that lead in circles end here.
const MAX_DEPTH: usize = 3;
/// Longest password file, in bytes.
const MAX_PASSWORD_LEN: u64 = 64 * 1024;

/// A keystore, where it was found, and its password.
pub struct Entry {
    /// The keystore's file.
    pub path: PathBuf,
    /// What it holds.
    pub keystore: Keystore,
    /// Its password.
    pub password: Zeroizing<String>,
}

/// What a folder holds.
#[derive(Default)]
pub struct Found {
    /// The keystores, in the order of their paths.
    pub entries: Vec<Entry>,
    /// Every other file, but for passwords that were used.
    pub unused: Vec<Unused>,
}

impl Found {
    /// Files that hold a key, or may: whoever means the whole folder does not mean to leave them out.
    pub fn unreadable(&self) -> impl Iterator<Item = &Unused> {
        self.unused.iter().filter(|unused| unused.reason.may_hold_a_key())
    }

    /// The keystores, if no file that may hold a key is left out.
    pub fn complete(self) -> Result<Vec<Entry>, FolderError> {
        let (unreadable, _): (Vec<Unused>, Vec<Unused>) =
            self.unused.into_iter().partition(|unused| unused.reason.may_hold_a_key());
        if unreadable.is_empty() { Ok(self.entries) } else { Err(FolderError::Unreadable(unreadable)) }
    }
}

/// A file that brings no key.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Unused {
    /// Where it is.
    pub path: PathBuf,
    /// Why it brings none.
    pub reason: Reason,
}

/// Why a file brings no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum Reason {
    #[error("not a keystore: {0}")]
    SomethingElse(&'static str),
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it ends within its JSON, at line {line}, column {column}: it was cut off. Copy it anew")]
    CutOff { line: usize, column: usize },
    #[error("it is no JSON, from line {line}, column {column} on")]
    NoJson { line: usize, column: usize },
    #[error("it is JSON without «crypto»: no EIP-2335 keystore. Move it away if it holds no key")]
    NoCrypto,
    #[error("it holds a keystore, but its name does not end in .json. Rename it, or move it away")]
    Name,
    #[error("folders more than {MAX_DEPTH} levels below are not looked into. Name a folder further down")]
    TooDeep,
    #[error("{0}")]
    Keystore(Box<KeystoreError>),
    #[error("no password; looked for {looked}, and in the folders below it")]
    NoPassword { looked: String },
    #[error("{0}")]
    Password(Box<FolderError>),
}

impl Reason {
    /// Whether a key may be lost with the file.
    pub fn may_hold_a_key(&self) -> bool {
        !matches!(self, Self::SomethingElse(_))
    }
}

/// Why a folder was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum FolderError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{0}: no keystore in this folder or below it")]
    Empty(PathBuf),
    #[error("{0} is empty: there is no password in it")]
    EmptyPassword(PathBuf),
    #[error("{0} is no text in UTF-8: save it as UTF-8")]
    PasswordText(PathBuf),
    #[error("{path} has {len} bytes; a password file has at most {MAX_PASSWORD_LEN}")]
    PasswordLen { path: PathBuf, len: u64 },
    #[error(
        "{path} has the mode {mode:04o}: others than its owner can read or write this password. Take their rights away: chmod 600 {path}"
    )]
    PasswordMode { path: PathBuf, mode: u32 },
    #[error("{}", list(.0))]
    Unreadable(Vec<Unused>),
}

/// One file as it is, several below each other.
fn list(unused: &[Unused]) -> String {
    if let [one] = unused {
        return one.to_string();
    }
    let mut out = format!("{} files cannot be used:", unused.len());
    for one in unused {
        let _ = write!(out, "\n  {one}");
    }
    out
}

/// Every keystore in `keystores` and below, in the order of their paths, with its password; and every file that is none.
pub fn find(keystores: &Path, passwords: &Path) -> Result<Found, FolderError> {
    let error = |error| FolderError::Read { path: passwords.to_owned(), error };
    if fs::metadata(passwords).map_err(error)?.is_file() {
        let one = read_password(passwords)?;
        let mut found = find_with(keystores, |_, _| Ok((one.clone(), Some(passwords.to_owned()))))?;
        found.unused.retain(|unused| !same_file(&unused.path, passwords));
        return Ok(found);
    }
    // Some clients keep keystores and passwords in two folders below one.
    let mut below = BTreeMap::new();
    index(passwords, 0, &mut below)?;
    find_with(keystores, |path, keystore| {
        password(path, keystore, passwords, &below).map(|(text, from)| (text, Some(from)))
    })
}

/// The same, with one password for all.
pub fn find_with_password(keystores: &Path, password: &Zeroizing<String>) -> Result<Found, FolderError> {
    find_with(keystores, |_, _| Ok((password.clone(), None)))
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// A password, and the file that it is from.
type WithFile = (Zeroizing<String>, Option<PathBuf>);

fn find_with(
    keystores: &Path,
    password: impl Fn(&Path, &Keystore) -> Result<WithFile, Reason>,
) -> Result<Found, FolderError> {
    let (mut paths, mut found) = (Vec::new(), Found::default());
    if keystores.is_file() {
        paths.push(keystores.to_owned());
    } else {
        collect(keystores, 0, &mut paths, &mut found.unused)?;
    }
    paths.sort();
    let mut used = BTreeSet::new();
    for path in paths {
        let entry = read_keystore(&path, path == keystores).and_then(|keystore| {
            let (password, from) = password(&path, &keystore)?;
            used.extend(from.and_then(|from| fs::canonicalize(from).ok()));
            Ok(Entry { path: path.clone(), keystore, password })
        });
        match entry {
            Ok(entry) => found.entries.push(entry),
            Err(reason) => found.unused.push(Unused { path, reason }),
        }
    }
    found.unused.retain(|unused| !fs::canonicalize(&unused.path).is_ok_and(|path| used.contains(&path)));
    if found.entries.is_empty() && found.unreadable().next().is_none() {
        return Err(FolderError::Empty(keystores.to_owned()));
    }
    Ok(found)
}

/// The keystore in a file. The name of one that was `named` itself does not count.
fn read_keystore(path: &Path, named: bool) -> Result<Keystore, Reason> {
    let is_json = named || path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
    let len = fs::metadata(path).map_err(Reason::Read)?.len();
    if let Some(len) = usize::try_from(len).ok().filter(|len| *len > MAX_FILE_LEN) {
        let too_long = Reason::Keystore(Box::new(KeystoreError::TooLong(len)));
        return Err(if is_json { too_long } else { Reason::SomethingElse("its name does not end in .json") });
    }
    let bytes = fs::read(path).map_err(Reason::Read)?;
    let json = without_bom(&bytes);
    if !is_json {
        // A copy under another name is a keystore all the same.
        let held = json.trim_ascii_start().starts_with(b"{") && json.windows(8).any(|part| part == b"\"crypto\"");
        return Err(if held { Reason::Name } else { Reason::SomethingElse("its name does not end in .json") });
    }
    if json.trim_ascii().is_empty() {
        return Err(Reason::Empty);
    }
    let value: Value = serde_json::from_slice(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        if error.is_eof() { Reason::CutOff { line, column } } else { Reason::NoJson { line, column } }
    })?;
    if value.get("crypto").is_none() {
        return Err(something_else(&value).map_or(Reason::NoCrypto, Reason::SomethingElse));
    }
    Keystore::parse(json).map_err(|error| Reason::Keystore(Box::new(error)))
}

/// What lies beside keystores in the clients' folders and holds no key.
fn something_else(value: &Value) -> Option<&'static str> {
    if value.is_array() {
        return Some("a JSON list, as deposit data is");
    }
    if !value.is_object() {
        return Some("JSON that is no object");
    }
    if value.pointer("/metadata/interchange_format_version").is_some() {
        return Some("a slashing protection history (EIP-3076)");
    }
    let has = |names: &[&str]| names.iter().all(|name| value.get(name).is_some());
    let known: [(&[&str], &str); 4] = [
        (&["direct_eip_version"], "options of Prysm's key manager"),
        (&["cipher", "uuids"], "Lighthouse's cache of keys"),
        (&["message", "signature"], "a signed message, as an exit is"),
        (&["pubkey", "type"], "a remote keystore of Nimbus: another signer has its key"),
    ];
    known.into_iter().find(|(names, _)| has(names)).map(|(_, what)| what)
}

/// What an entry holds, or why not.
pub type Decrypted = Result<Opened, KeystoreError>;

/// Memory that is shared: who needs some waits until there is enough.
struct Budget {
    whole: u64,
    left: Mutex<u64>,
    returned: Condvar,
}

impl Budget {
    /// Runs `work` with that many bytes; fails where there are not so many in all.
    fn with<T>(&self, needed: u64, work: impl FnOnce() -> T) -> Result<T, KeystoreError> {
        if needed > self.whole {
            return Err(KeystoreError::Memory { needed, allowed: self.whole });
        }
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        while *left < needed {
            left = self.returned.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        *left = left.saturating_sub(needed);
        drop(left);
        let done = work();
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(needed);
        self.returned.notify_all();
        Ok(done)
    }
}

/// Decrypts all on every core, in order: scrypt takes 0.6 s and 256 MiB for each, and all together take no more than `memory` bytes at
/// a time, if that is given. `done` is called after each.
pub fn decrypt_all(entries: &[Entry], memory: Option<u64>, done: impl Fn() + Sync) -> Vec<Decrypted> {
    let whole = memory.unwrap_or(u64::MAX);
    let budget = Budget { whole, left: Mutex::new(whole), returned: Condvar::new() };
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(entries.len())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(entries.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(entry) = entries.get(number) else { return };
                    let work = || entry.keystore.open(&entry.password);
                    let decrypted = budget.with(entry.keystore.kdf.memory(), work).and_then(|decrypted| decrypted);
                    done();
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((number, decrypted));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, decrypted)| decrypted).collect()
}

fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>, unused: &mut Vec<Unused>) -> Result<(), FolderError> {
    let error = |error| FolderError::Read { path: folder.to_owned(), error };
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if !path.is_dir() {
            paths.push(path);
        } else if depth < MAX_DEPTH {
            collect(&path, depth.saturating_add(1), paths, unused)?;
        } else {
            unused.push(Unused { path, reason: Reason::TooDeep });
        }
    }
    Ok(())
}

/// Files by their names, those of the upper folders first.
fn index(folder: &Path, depth: usize, files: &mut BTreeMap<String, PathBuf>) -> Result<(), FolderError> {
    let error = |error| FolderError::Read { path: folder.to_owned(), error };
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.is_dir() {
            folders.push(path);
        } else if let Some(name) = path.file_name() {
            files.entry(name.to_string_lossy().into_owned()).or_insert(path);
        }
    }
    folders.sort();
    if depth < MAX_DEPTH {
        folders.iter().try_for_each(|folder| index(folder, depth.saturating_add(1), files))?;
    }
    Ok(())
}

fn password(
    path: &Path,
    keystore: &Keystore,
    passwords: &Path,
    below: &BTreeMap<String, PathBuf>,
) -> Result<(Zeroizing<String>, PathBuf), Reason> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut names = vec![format!("{stem}.txt"), stem.to_string(), format!("{stem}.json.txt")];
    let mut unique = Vec::new();
    if let Some(key) = keystore.public_key() {
        unique = vec![format!("{key}.txt"), key.to_string()];
    }
    // Where every key has a folder, all keystores have one name: only a key's own name finds its password further down.
    let direct = names.iter().chain(&unique).map(|name| passwords.join(name)).find(|file| file.is_file());
    let further = || {
        let unlike = |name: &&String| {
            !name.starts_with("voting-keystore") && name.as_str() != "keystore.txt" && name.as_str() != "keystore"
        };
        unique
            .iter()
            .chain(names.iter().filter(unlike))
            .find_map(|name| below.get(name))
            .filter(|file| *file != path)
            .cloned()
    };
    if let Some(file) = direct.or_else(further) {
        let text = read_password(&file).map_err(|error| Reason::Password(Box::new(error)))?;
        return Ok((text, file));
    }
    names.extend(unique);
    let looked = format!("{} in {}", names.join(", "), passwords.display());
    Err(Reason::NoPassword { looked })
}

fn read_password(path: &Path) -> Result<Zeroizing<String>, FolderError> {
    let error = |error| FolderError::Read { path: path.to_owned(), error };
    let metadata = fs::metadata(path).map_err(error)?;
    if let Some(mode) = others_rights(&metadata) {
        return Err(FolderError::PasswordMode { path: path.to_owned(), mode });
    }
    if metadata.len() > MAX_PASSWORD_LEN {
        return Err(FolderError::PasswordLen { path: path.to_owned(), len: metadata.len() });
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(error)?);
    let text = std::str::from_utf8(without_bom(&bytes)).map_err(|_| FolderError::PasswordText(path.to_owned()))?;
    let password = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if password.is_empty() { Err(FolderError::EmptyPassword(path.to_owned())) } else { Ok(password) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn no_more_memory_is_taken_than_there_is() {
        let budget = Budget { whole: 100, left: Mutex::new(100), returned: Condvar::new() };
        let (taken, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let done = budget.with(40, || {
                        let now = taken.fetch_add(40, Ordering::SeqCst) + 40;
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        taken.fetch_sub(40, Ordering::SeqCst);
                    });
                    assert!(done.is_ok());
                });
            }
        });
        assert_eq!(most.into_inner(), 80, "two at a time, and no more");
        let told = budget.with(101, || ()).unwrap_err().to_string();
        assert_eq!(told, "scrypt takes 101 bytes for this one; 100 are allowed in all");
    }
}
