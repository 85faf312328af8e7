//! Sealed blobs in a directory: `DIR/GROUP/STATE_VERSION.sealed`. Written aside, synced, renamed, and the directory synced: a blob
//! is whole on the disk before it counts as stored. The newest state_versions are kept, the older ones removed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_protocol::BoundedBytes;
use casemate_protocol::host_services::{BlobBytes, MAX_BLOB_LEN};

/// State versions that are kept.
pub const KEPT: usize = 8;
const SUFFIX: &str = ".sealed";
const MAX_GROUP_LEN: usize = 64;

/// Where sealed blobs are kept: a directory, later S3. Its verbs may block; they are called where that disturbs nobody.
pub trait Blobs: Clone + Send + Sync + 'static {
    /// The state_versions of a group, the newest first, at most 1,000.
    fn list(&self, group: &str) -> Result<Vec<u64>>;

    /// A blob.
    fn load(&self, group: &str, state_version: u64) -> Result<BlobBytes>;

    /// Keeps a blob, and returns once it outlives a power cut. What is there already under this version is never written over:
    /// another enclave may have it.
    fn store(&self, group: &str, state_version: u64, blob: &[u8]) -> Result<()>;
}

/// A directory of blobs.
#[derive(Clone, Debug)]
pub struct BlobStore {
    folder: PathBuf,
}

impl BlobStore {
    /// In this directory, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }
}

impl Blobs for BlobStore {
    fn list(&self, group: &str) -> Result<Vec<u64>> {
        let folder = self.group(group)?;
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("listing {}", folder.display())),
        };
        let mut state_versions: Vec<u64> =
            entries.filter_map(|entry| state_version(entry.ok()?.file_name().to_str()?)).collect();
        state_versions.sort_unstable_by(|a, b| b.cmp(a));
        state_versions.truncate(1000);
        Ok(state_versions)
    }

    fn load(&self, group: &str, state_version: u64) -> Result<BlobBytes> {
        let path = self.group(group)?.join(name(state_version));
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_BLOB_LEN).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
        let len = bytes.len();
        BoundedBytes::new(bytes)
            .with_context(|| format!("{} is {len} bytes long; 1 to {MAX_BLOB_LEN} are allowed", path.display()))
    }

    fn store(&self, group: &str, state_version: u64, blob: &[u8]) -> Result<()> {
        let folder = self.group(group)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(|| said("making", &folder))?;
        let folder = fs::canonicalize(&folder).with_context(|| said("finding", &folder))?;
        let path = folder.join(name(state_version));
        // A name that nobody else has; it is gone again whatever happens.
        let mut file = tempfile::Builder::new()
            .prefix(&name(state_version))
            .suffix(".part")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(&folder)
            .with_context(|| said("making a file in", &folder))?;
        file.write_all(blob).and_then(|()| file.as_file().sync_all()).with_context(|| said("writing in", &folder))?;
        // It fails where the name is taken; a rename would replace it.
        file.persist_noclobber(&path).with_context(|| format!("storing {}", path.display()))?;
        // The folders above may be new: they too must outlive a power cut.
        for folder in folder.ancestors().take(4) {
            File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| said("syncing", folder))?;
        }
        for old in self.list(group)?.into_iter().skip(KEPT) {
            let _ = fs::remove_file(folder.join(name(old)));
        }
        Ok(())
    }
}

impl BlobStore {
    /// A group's folder. Its name comes from the enclave, which may have been taken over: no way out of the directory.
    fn group(&self, group: &str) -> Result<PathBuf> {
        Ok(self.folder.join(checked(group)?))
    }
}

/// A group's name that can be a file's.
pub(super) fn checked(group: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if group.is_empty() || group.len() > MAX_GROUP_LEN || !group.bytes().all(plain) {
        bail!("a group's name has 1 to {MAX_GROUP_LEN} letters, digits, - and _");
    }
    Ok(group)
}

/// Twenty digits, so that names sort as numbers do.
fn name(state_version: u64) -> String {
    format!("{state_version:020}{SUFFIX}")
}

fn state_version(file: &str) -> Option<u64> {
    let state_version = file.strip_suffix(SUFFIX)?.parse().ok()?;
    (name(state_version) == file).then_some(state_version)
}

fn said(doing: &str, path: &Path) -> String {
    format!("{doing} {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_kept_by_state_version_and_never_written_over() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let store = BlobStore::new(folder.path().join("blobs"));
        assert_eq!(store.list("alpha")?, Vec::<u64>::new());
        for state_version in [1, 2, u64::MAX] {
            store.store("alpha", state_version, &state_version.to_be_bytes())?;
        }
        assert_eq!(store.list("alpha")?, [u64::MAX, 2, 1]);
        assert_eq!(store.load("alpha", 2)?.as_ref(), 2_u64.to_be_bytes());
        assert!(store.store("alpha", 2, b"another").is_err());
        assert_eq!(store.load("alpha", 2)?.as_ref(), 2_u64.to_be_bytes());
        assert_eq!(store.list("beta")?, Vec::<u64>::new());
        assert!(store.load("alpha", 3).is_err());
        // What a kill left behind, and what else lies there, is no blob.
        let group = folder.path().join("blobs/alpha");
        for junk in ["00000000000000000009.sealed.7.part", "9.sealed", "x.sealed", "00000000000000000009.seale"] {
            fs::write(group.join(junk), b"junk")?;
        }
        assert_eq!(store.list("alpha")?.len(), 3);
        fs::write(group.join(name(8)), b"")?;
        assert!(store.load("alpha", 8).is_err(), "an empty file is no blob");
        Ok(())
    }

    #[test]
    fn the_newest_state_versions_are_kept() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let store = BlobStore::new(folder.path());
        let all = u64::try_from(KEPT)? + 3;
        for state_version in 1..=all {
            store.store("alpha", state_version, b"blob")?;
        }
        assert_eq!(store.list("alpha")?, (4..=all).rev().collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn a_groups_name_leads_nowhere_else() {
        let store = BlobStore::new("/nowhere");
        for group in ["", ".", "..", "../x", "a/b", "/etc", "a\0b", "ä", &"x".repeat(65)] {
            assert!(store.list(group).is_err(), "{group:?}");
            assert!(store.load(group, 1).is_err(), "{group:?}");
            assert!(store.store(group, 1, b"blob").is_err(), "{group:?}");
        }
    }
}
