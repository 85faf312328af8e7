//! The files of a signing log.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The files of a folder, or one. Their names sort by boot, and within it by the number of their first record.
pub fn of(path: &Path) -> Result<Vec<PathBuf>> {
    let files = any(path)?;
    if files.is_empty() {
        bail!("there is no file of a signing log (*.log) in {}", path.display());
    }
    Ok(files)
}

/// The same; none where there is none yet.
pub fn any(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
        let path = entry.with_context(|| format!("reading {}", path.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The same, the ones that were written last at the end: boots follow on each other as they did.
pub fn in_time(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = of(path)?;
    files.sort_by_cached_key(|path| (fs::metadata(path).and_then(|about| about.modified()).ok(), path.clone()));
    Ok(files)
}
