//! Keystores in a folder, and the password of each.
//!
//! For a keystore `NAME.json` of key `0xPUBKEY`, the first of these that exists in the passwords' folder is its password:
//! `NAME.txt` (Web3Signer, Teku), `NAME`, `NAME.json.txt`, `0xPUBKEY.txt`, `0xPUBKEY` (Lighthouse, Nimbus). Where the
//! passwords are one file, it is the password of all. The keystores may be one file too: `all-accounts.keystore.json` of Prysm
//! holds a wallet. Line ends behind a password do not belong to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

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
    #[error("{keystore}: no password; looked for {looked}")]
    NoPassword { keystore: PathBuf, looked: String },
}

/// Every keystore in `keystores` and below, in the order of their paths, with its password.
pub fn find(keystores: &Path, passwords: &Path) -> Result<Vec<Entry>, FolderError> {
    find_with(keystores, |path, keystore| password(path, keystore, passwords))
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
        return Err(FolderError::Empty(keystores.to_owned()));
    }
    Ok(entries)
}

/// What an entry holds, or why not.
pub type Decrypted = Result<Vec<(Secret, PublicKey)>, KeystoreError>;

/// Decrypts all on every core, in order: scrypt takes 0.6 s and 256 MiB for each. `done` is called after each.
pub fn decrypt_all(entries: &[Entry], done: impl Fn() + Sync) -> Vec<Decrypted> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(entries.len())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(entries.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(entry) = entries.get(number) else { return };
                    let decrypted = entry.keystore.decrypt_all(&entry.password);
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

fn password(path: &Path, keystore: &Keystore, passwords: &Path) -> Result<Zeroizing<String>, FolderError> {
    if passwords.is_file() {
        return read_password(passwords);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut names = vec![format!("{stem}.txt"), stem.to_string(), format!("{stem}.json.txt")];
    if let Some(key) = keystore.public_key() {
        names.push(format!("{key}.txt"));
        names.push(key.to_string());
    }
    if let Some(file) = names.iter().map(|name| passwords.join(name)).find(|p| p.is_file()) {
        return read_password(&file);
    }
    let looked = format!("{} in {}", names.join(", "), passwords.display());
    Err(FolderError::NoPassword { keystore: path.to_owned(), looked })
}

fn read_password(path: &Path) -> Result<Zeroizing<String>, FolderError> {
    let error = |error| FolderError::Read { path: path.to_owned(), error };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(error)?);
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, FolderError> {
    let error = |error| FolderError::Read { path: path.to_owned(), error };
    let len = fs::metadata(path).map_err(error)?.len();
    if usize::try_from(len).map_or(true, |len| len > MAX_FILE_LEN) {
        return Ok(Vec::new());
    }
    fs::read(path).map_err(error)
}
