//! The fence's records in files, `DIR/GROUP.record`, for a disk that its owner trusts. A swap is atomic and on the disk when it is
//! answered; it holds a lock on a file beside it, so that enclaves behind several proxies exclude each other too.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use anyhow::{Context, Result};
use casemate_protocol::BoundedBytes;
use casemate_protocol::host_services::RecordBytes;

use super::blobs::checked;

/// A directory of records.
#[derive(Clone, Debug)]
pub struct RecordFiles {
    folder: PathBuf,
}

impl RecordFiles {
    /// In this directory, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The record of a group; nothing where there is no file.
    pub fn read(&self, group: &str) -> Result<Option<RecordBytes>> {
        let path = self.path(group, "record")?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let len = bytes.len();
        let record = BoundedBytes::new(bytes).with_context(|| format!("{} has {len} bytes", path.display()))?;
        Ok(Some(record))
    }

    /// Puts `new` where the file has `old`; whether it did. When it returns, the file outlives a power cut.
    pub fn swap(&self, group: &str, old: Option<&RecordBytes>, new: &RecordBytes) -> Result<bool> {
        let path = self.path(group, "record")?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).context("making the records' folder")?;
        let lock = File::create(self.path(group, "lock")?).context("the record's lock")?;
        lock.lock().context("the record's lock")?;
        if self.read(group)?.as_ref() != old {
            return Ok(false);
        }
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(&self.folder)
            .context("making a file for the record")?;
        file.write_all(new.as_ref()).and_then(|()| file.as_file().sync_all()).context("writing the record")?;
        file.persist(&path).with_context(|| format!("replacing {}", path.display()))?;
        let folder = fs::canonicalize(&self.folder).context("the records' folder")?;
        // The folders above may be new: they too must outlive a power cut.
        for folder in folder.ancestors().take(4) {
            File::open(folder).and_then(|folder| folder.sync_all()).context("syncing the records' folder")?;
        }
        Ok(true)
    }

    fn path(&self, group: &str, kind: &str) -> Result<PathBuf> {
        Ok(self.folder.join(format!("{}.{kind}", checked(group)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: &[u8]) -> RecordBytes {
        BoundedBytes::new(bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_swap_takes_place_where_the_old_record_is_and_only_there() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let files = RecordFiles::new(folder.path().join("records"));
        assert_eq!(files.read("alpha")?, None);
        let (one, two) = (record(b"one"), record(b"two"));
        assert!(!files.swap("alpha", Some(&one), &two)?, "there is none yet");
        assert!(files.swap("alpha", None, &one)?);
        assert!(!files.swap("alpha", None, &two)?, "there is one");
        assert!(!files.swap("alpha", Some(&two), &one)?);
        assert!(files.swap("alpha", Some(&one), &two)?);
        assert_eq!(files.read("alpha")?, Some(two));
        assert_eq!(files.read("beta")?, None);
        for group in ["", "..", "a/b"] {
            assert!(files.read(group).is_err() && files.swap(group, None, &one).is_err());
        }
        Ok(())
    }

    #[test]
    fn of_many_swaps_from_one_record_one_takes_place() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let files = RecordFiles::new(folder.path());
        assert!(files.swap("alpha", None, &record(b"0"))?);
        for round in 0..20_u8 {
            let old = files.read("alpha")?.unwrap();
            let swapped = std::thread::scope(|scope| {
                let swap = |number: u8| {
                    let (files, old) = (&files, &old);
                    scope.spawn(move || files.swap("alpha", Some(old), &record(&[round, number])).unwrap())
                };
                let all: Vec<_> = (0..8).map(swap).collect();
                all.into_iter().map(|one| usize::from(one.join().unwrap())).sum::<usize>()
            });
            assert_eq!(swapped, 1);
        }
        Ok(())
    }
}
