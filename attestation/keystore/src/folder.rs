//! Keystores in a folder, and the password of each.
//!
//! For a keystore `NAME.json` of key `0xPUBKEY`, the first of these that exists in the passwords' folder is its password:
//! `NAME.txt` (Web3Signer, Teku), `NAME`, `NAME.json.txt`, `0xPUBKEY.txt`, `0xPUBKEY` (Lighthouse, Nimbus). Where the
//! passwords are one file, it is the password of all. Line ends behind a password do not belong to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::{Keystore, KeystoreError, MAX_FILE_LEN};

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

/// Every keystore in `keystores` and below, in the order of their paths.
pub fn find(keystores: &Path, passwords: &Path) -> Result<Vec<Entry>, FolderError> {
    let mut paths = Vec::new();
    collect(keystores, 0, &mut paths)?;
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
        let password = password(&path, &keystore, passwords)?;
        entries.push(Entry { path, keystore, password });
    }
    if entries.is_empty() {
        return Err(FolderError::Empty(keystores.to_owned()));
    }
    Ok(entries)
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
    if usize::try_from(len).map_or(true, |len| len > 16 * MAX_FILE_LEN) {
        return Ok(Vec::new());
    }
    fs::read(path).map_err(error)
}
