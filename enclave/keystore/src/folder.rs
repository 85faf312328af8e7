//! Keystores in a folder, and the password of each.
//!
//! For a keystore `NAME.json` of key `0xPUBKEY`, the first of these that exists in the passwords' folder is its password:
//! `NAME.txt` (Web3Signer, Teku), `NAME`, `NAME.json.txt`, `0xPUBKEY.txt`, `0xPUBKEY` (Lighthouse, Nimbus). Where the
//! passwords are one file, it is the password of all. The keystores may be one file too: `all-accounts.keystore.json` of Prysm
//! holds a wallet. Line ends behind a password do not belong to it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use casemate_protocol::PublicKey;
use zeroize::Zeroizing;

use crate::{Keystore, KeystoreError, MAX_FILE_LEN, Secret};

/// A keystore, where it was found, and its password.
pub struct Entry {
    /// The keystore's file.
    pub path: PathBuf,
    /// What it holds.
    pub keystore: Keystore,
    /// Its password.
    pub password: Zeroizing<String>,
}

/// Why a folder was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum FolderError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}")]
    Keystore { path: PathBuf, error: Box<KeystoreError> },
    #[error("{0}: no keystore in this folder or below it")]
    Empty(PathBuf),
    #[error("{0} is no EIP-2335 keystore")]
    NoKeystore(PathBuf),
    #[error("{0} is empty: there is no password in it")]
    EmptyPassword(PathBuf),
    #[error("{keystore}: no password; looked for {looked}, and in the folders below it")]
    NoPassword { keystore: PathBuf, looked: String },
}

/// Every keystore in `keystores` and below, in the order of their paths, with its password.
pub fn find(keystores: &Path, passwords: &Path) -> Result<Vec<Entry>, FolderError> {
    let error = |error| FolderError::Read { path: passwords.to_owned(), error };
    if fs::metadata(passwords).map_err(error)?.is_file() {
        let one = read_password(passwords)?;
        return find_with(keystores, |_, _| Ok(one.clone()));
    }
    // Some clients keep keystores and passwords in two folders below one.
    let mut below = BTreeMap::new();
    index(passwords, 0, &mut below)?;
    find_with(keystores, |path, keystore| password(path, keystore, passwords, &below))
}

/// The same, with one password for all.
pub fn find_with_password(keystores: &Path, password: &Zeroizing<String>) -> Result<Vec<Entry>, FolderError> {
    find_with(keystores, |_, _| Ok(password.clone()))
}

fn find_with(
    keystores: &Path,
    password: impl Fn(&Path, &Keystore) -> Result<Zeroizing<String>, FolderError>,
) -> Result<Vec<Entry>, FolderError> {
    let mut paths = Vec::new();
    if keystores.is_file() {
        paths.push(keystores.to_owned());
    } else {
        collect(keystores, 0, &mut paths)?;
    }
    paths.sort();
    let mut entries = Vec::with_capacity(paths.len());
    for path in paths {
        let json = read(&path)?;
        // Deposit data and other lists lie beside keystores in the clients' folders.
        if !serde_json::from_slice::<serde_json::Value>(&json).is_ok_and(|v| v.get("crypto").is_some()) {
            continue;
        }
        let keystore = Keystore::parse(&json)
            .map_err(|error| FolderError::Keystore { path: path.clone(), error: Box::new(error) })?;
        let password = password(&path, &keystore)?;
        entries.push(Entry { path, keystore, password });
    }
    if entries.is_empty() {
        if keystores.is_file() {
            return Err(FolderError::NoKeystore(keystores.to_owned()));
        }
        return Err(FolderError::Empty(keystores.to_owned()));
    }
    Ok(entries)
}

/// What an entry holds, or why not.
pub type Decrypted = Result<Vec<(Secret, PublicKey)>, KeystoreError>;

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
                    let work = || entry.keystore.decrypt_all(&entry.password);
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

fn collect(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), FolderError> {
    let error = |error| FolderError::Read { path: folder.to_owned(), error };
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        // Clients keep a folder a key; links that lead in circles end here.
        if path.is_dir() && depth < 3 {
            collect(&path, depth.saturating_add(1), paths)?;
        } else if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
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
    if depth < 3 {
        folders.iter().try_for_each(|folder| index(folder, depth.saturating_add(1), files))?;
    }
    Ok(())
}

fn password(
    path: &Path,
    keystore: &Keystore,
    passwords: &Path,
    below: &BTreeMap<String, PathBuf>,
) -> Result<Zeroizing<String>, FolderError> {
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
        return read_password(&file);
    }
    names.extend(unique);
    let looked = format!("{} in {}", names.join(", "), passwords.display());
    Err(FolderError::NoPassword { keystore: path.to_owned(), looked })
}

fn read_password(path: &Path) -> Result<Zeroizing<String>, FolderError> {
    let error = |error| FolderError::Read { path: path.to_owned(), error };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(error)?);
    let password = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if password.is_empty() { Err(FolderError::EmptyPassword(path.to_owned())) } else { Ok(password) }
}

fn read(path: &Path) -> Result<Vec<u8>, FolderError> {
    let error = |error| FolderError::Read { path: path.to_owned(), error };
    let len = fs::metadata(path).map_err(error)?.len();
    if usize::try_from(len).map_or(true, |len| len > MAX_FILE_LEN) {
        return Ok(Vec::new());
    }
    fs::read(path).map_err(error)
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
