//! Sealed blobs in a directory: `DIR/GROUP/STATE_VERSION.sealed`. Written aside, synced, renamed, and the directory synced: a blob
//! is whole on the disk before it counts as stored.
//!
//! Whoever reaches the egress can bring blobs, and the highest number is the one that an enclave loads. So a number that leaps is refused;
//! nothing young ever leaves the folder; what leaves it goes to `DIR/GROUP/quarantine`, where a person removes it; and a folder that is
//! full takes no more, in place of giving up what it has.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use casemate_protocol::BoundedBytes;
use casemate_protocol::host_services::{BlobBytes, MAX_BLOB_LEN};

/// State versions that stay however old they are.
pub const KEPT: usize = 8;
/// Most state versions in a group's folder: as many as are listed.
const MAX_LISTED: usize = 1000;
/// A state's number in its term is at most so much above the newest that is here, and its term above the newest one's.
const MAX_STEP: u64 = 1000;
/// The first number that comes into an empty folder is at most that: thousands of years of an import a day.
const MAX_FIRST: u64 = 1_000_000;
/// A state's version begins with the fence's term, in the upper half. Terms begin with the seconds of the clock, and rise slower.
const TERM_SHIFT: u32 = 32;
const NUMBER_MASK: u64 = u64::MAX >> TERM_SHIFT;
/// How far the enclave's clock may be ahead of this one's, in seconds.
const AHEAD: u64 = 24 * 60 * 60;
/// For states that are neither young nor among the newest.
const QUARANTINE: &str = "quarantine";
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

/// How long blobs stay, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What is younger stays in its folder.
    pub keep: Duration,
    /// Most bytes of a group, those in quarantine too.
    pub max_bytes: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { keep: Duration::from_hours(30 * 24), max_bytes: 4 * 1024 * 1024 * 1024 }
    }
}

/// A directory of blobs.
#[derive(Clone, Debug)]
pub struct BlobStore {
    folder: PathBuf,
    rules: Rules,
    /// Held while one is stored: two at once could both find room.
    storing: Arc<Mutex<()>>,
}

impl BlobStore {
    /// In this directory, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), rules: Rules::default(), storing: Arc::default() }
    }

    /// Under other rules.
    #[must_use]
    pub fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }
}

impl Blobs for BlobStore {
    fn list(&self, group: &str) -> Result<Vec<u64>> {
        let mut state_versions: Vec<u64> = files(&self.group(group)?)?.iter().map(|file| file.state_version).collect();
        state_versions.sort_unstable_by(|a, b| b.cmp(a));
        state_versions.truncate(MAX_LISTED);
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
        let _alone = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        self.set_aside(&folder)?;
        self.refuse(&folder, state_version, blob.len())?;
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
        Ok(())
    }
}

impl BlobStore {
    /// Moves to the quarantine what is neither young nor among the newest.
    fn set_aside(&self, folder: &Path) -> Result<()> {
        let mut all = files(folder)?;
        all.sort_unstable_by_key(|file| std::cmp::Reverse(file.state_version));
        // What is said to be from the future is as young as can be.
        let old = |file: &Blob| file.modified.elapsed().is_ok_and(|age| age > self.rules.keep);
        for file in all.iter().skip(KEPT).filter(|file| old(file)) {
            let quarantine = folder.join(QUARANTINE);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&quarantine)
                .with_context(|| said("making", &quarantine))?;
            let name = name(file.state_version);
            // A name that is taken there stays as it is here: nothing is written over.
            if !quarantine.join(&name).exists() {
                fs::rename(folder.join(&name), quarantine.join(&name))
                    .with_context(|| said("moving a blob to", &quarantine))?;
            }
        }
        Ok(())
    }

    /// Why a blob is not taken.
    fn refuse(&self, folder: &Path, state_version: u64, len: usize) -> Result<()> {
        let all = files(folder)?;
        let newest = all.iter().map(|file| file.state_version).max();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let highest = highest(newest, state_version >> TERM_SHIFT, now);
        if state_version > highest {
            let newest =
                newest.map_or_else(|| "there is none yet".to_owned(), |newest| format!("the newest here is {newest}"));
            bail!(
                "state version {state_version} is not plausible: {newest}, and {highest} is the highest that is taken now. Look who brings it"
            );
        }
        if all.len() >= MAX_LISTED {
            bail!(
                "{} holds {} blobs, and {MAX_LISTED} is the most: look who brings so many, then move away what nobody needs",
                folder.display(),
                all.len()
            );
        }
        let kept: u64 =
            all.iter().chain(&files(&folder.join(QUARANTINE))?).map(|file| file.len).fold(0, u64::saturating_add);
        let with_it = kept.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        if with_it > self.rules.max_bytes {
            bail!(
                "{} would take {with_it} bytes, and {} are allowed (--blobs-max-bytes): empty its folder {QUARANTINE}, or allow more",
                folder.display(),
                self.rules.max_bytes
            );
        }
        Ok(())
    }

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

/// A blob in a folder.
struct Blob {
    state_version: u64,
    len: u64,
    modified: SystemTime,
}

/// The blobs in a folder; none where it is not there.
fn files(folder: &Path) -> Result<Vec<Blob>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| said("listing", folder)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| said("listing", folder))?;
        let Some(state_version) = entry.file_name().to_str().and_then(state_version) else { continue };
        let metadata = entry.metadata().with_context(|| said("looking at", &entry.path()))?;
        let modified = metadata.modified().with_context(|| said("looking at", &entry.path()))?;
        found.push(Blob { state_version, len: metadata.len(), modified });
    }
    Ok(found)
}

/// The highest version that is plausible in this term, or in the last plausible one.
fn highest(newest: Option<u64>, term: u64, now: u64) -> u64 {
    let (newest_term, newest_number) = newest.map_or((0, 0), |newest| (newest >> TERM_SHIFT, newest & NUMBER_MASK));
    let last_term = now.saturating_add(AHEAD).max(newest_term.saturating_add(MAX_STEP)).min(NUMBER_MASK);
    let number = match newest {
        None => MAX_FIRST,
        Some(_) if term == newest_term => newest_number.saturating_add(MAX_STEP),
        Some(_) => MAX_STEP,
    };
    (term.min(last_term) << TERM_SHIFT).saturating_add(number).max(newest.unwrap_or_default())
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
        for state_version in [1, 2, 1002] {
            store.store("alpha", state_version, &state_version.to_be_bytes())?;
        }
        assert_eq!(store.list("alpha")?, [1002, 2, 1]);
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

    /// As if it had been stored so long ago.
    fn age(store: &BlobStore, state_version: u64, days: u64) -> Result<()> {
        let file = File::options().write(true).open(store.group("alpha")?.join(name(state_version)))?;
        Ok(file.set_modified(SystemTime::now() - Duration::from_hours(24 * days))?)
    }

    #[test]
    fn eight_one_byte_blobs_with_the_highest_numbers_push_nothing_out() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let store = BlobStore::new(folder.path());
        store.store("alpha", 5, b"the state")?;
        age(&store, 5, 1000)?;
        for leap in 0..8 {
            let error = store.store("alpha", u64::MAX - leap, b"x").unwrap_err().to_string();
            assert!(error.contains("the newest here is 5, and "), "{error}");
            assert!(store.store("alpha", 1006 + leap, b"x").is_err());
        }
        // Nor do those that go step by step.
        for step in 0..8 {
            store.store("alpha", 1005 + step, b"x")?;
        }
        store.store("alpha", 1013, b"x")?;
        assert!(!store.list("alpha")?.contains(&5));
        let aside = folder.path().join("alpha").join(QUARANTINE).join(name(5));
        assert_eq!(fs::read(aside)?, b"the state", "it is old, and lies aside");
        assert!(BlobStore::new(folder.path()).store("beta", MAX_FIRST + 1, b"x").is_err());
        Ok(())
    }

    #[test]
    fn the_versions_of_every_honest_enclave_are_plausible() {
        let (now, term) = (1_800_000_000, |term: u64, number: u64| (term << TERM_SHIFT) + number);
        let taken = |newest, version: u64| version <= highest(newest, version >> TERM_SHIFT, now);
        // In solo mode; the first record; the next term; the next state; a record that was lost.
        for (newest, version) in [
            (None, 1),
            (Some(7), 8),
            (Some(7), term(now, 1)),
            (None, term(now, 1)),
            (Some(term(now - 5000, 3)), term(now - 4999, 1)),
            (Some(term(now - 5000, 3)), term(now - 5000, 4)),
            (Some(term(now - 5000, 3)), term(now, 1)),
            // A clock that was wrong for long.
            (Some(term(now + 1_000_000, 3)), term(now + 1_000_001, 1)),
            (Some(term(NUMBER_MASK, 3)), term(NUMBER_MASK, 4)),
        ] {
            assert!(taken(newest, version), "{newest:?} {version}");
        }
        for (newest, version) in [
            (None, u64::MAX),
            (None, term(now + 2 * AHEAD, 1)),
            (Some(7), 1008),
            (Some(term(now, 7)), term(now, 1008)),
            (Some(term(now, 7)), term(now + 1, 1001)),
            (Some(term(now, 7)), term(now + 2 * AHEAD, 1)),
        ] {
            assert!(!taken(newest, version), "{newest:?} {version}");
        }
    }

    #[test]
    fn nothing_young_leaves_the_folder_and_what_is_old_goes_to_quarantine() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let store = BlobStore::new(folder.path());
        let all = u64::try_from(KEPT)? + 3;
        for state_version in 1..=all {
            store.store("alpha", state_version, b"blob")?;
        }
        assert_eq!(store.list("alpha")?, (1..=all).rev().collect::<Vec<_>>());
        age(&store, 1, 31)?;
        age(&store, 2, 29)?;
        age(&store, all, 31)?;
        store.store("alpha", all + 1, b"blob")?;
        assert_eq!(store.list("alpha")?, (2..=all + 1).rev().collect::<Vec<_>>());
        assert_eq!(fs::read(folder.path().join("alpha").join(QUARANTINE).join(name(1)))?, b"blob");
        Ok(())
    }

    #[test]
    fn a_folder_that_is_full_refuses_and_gives_nothing_up() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let store = BlobStore::new(folder.path()).with_rules(Rules { max_bytes: 10, ..Rules::default() });
        store.store("alpha", 1, b"five5")?;
        store.store("alpha", 2, b"five5")?;
        let error = store.store("alpha", 3, b"x").unwrap_err().to_string();
        assert!(error.contains("11 bytes, and 10 are allowed (--blobs-max-bytes)"), "{error}");
        assert_eq!(store.list("alpha")?, [2, 1]);
        let many = BlobStore::new(folder.path());
        for state_version in 1..=1000 {
            fs::write(folder.path().join("alpha").join(name(state_version)), b"x")?;
        }
        let error = many.store("alpha", 1001, b"x").unwrap_err().to_string();
        assert!(error.contains("1000 blobs"), "{error}");
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
