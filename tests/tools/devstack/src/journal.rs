//! Watermarks in a file on a disk that is trusted.
//!
//! Each key has a place with two copies, written in turn, each with a number and a checksum: a cut-off write leaves the
//! other copy. A copy is written before the signature is computed, so whatever dies, the file is never behind what was
//! signed. The writes are not synced one by one: they outlive every process, but a machine that loses power may
//! lose the last of them. The header tells: where the machine has booted anew since the file was last closed in
//! order, the file may be behind; then the header gets a floor above everything that could have been signed until
//! now, and it binds every key from that start on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use casemate_protocol::{Epoch, PublicKey, Root, Slot};
use casemate_slashing::{AttestationMark, BlockMark, GroupFloor, Watermarks};
use casemate_vault::{Journal, NotSaved};
use sha2::{Digest, Sha256};

/// Longest wait for a vault that is about to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const MAGIC: &[u8; 16] = b"casemate-marks-2";
/// Magic, genesis validators root, the machine's boot id, whether the file was closed in order, the floor, the file's id.
const HEADER_LEN: usize = 160;
const BOOT_ID_LEN: usize = 36;
const BOOT_ID_AT: u64 = 48;
const CLEAN_AT: u64 = 96;
const FLOOR_AT: u64 = 104;
/// 16 bytes that no other file has; zeros in a file of an earlier version.
const ID_AT: u64 = 136;
/// Whether there is one, slot, source, target.
const FLOOR_LEN: usize = 1 + 8 + 8 + 8;
/// Public key, number, block, attestation, checksum.
const COPY_LEN: usize = 48 + 8 + BLOCK_LEN + ATTESTATION_LEN + 32;
const BLOCK_LEN: usize = 1 + 8 + 1 + 32;
const ATTESTATION_LEN: usize = 1 + 8 + 8 + 1 + 32;
const PLACE_LEN: usize = 2 * COPY_LEN;

/// The file, open.
pub struct FileJournal {
    file: File,
    places: HashMap<PublicKey, Place>,
    floor: Watermarks,
    id: Root,
    /// The machine went down without the file being closed: what was written last may be lost.
    pub maybe_behind: bool,
}

/// The last copy of a place.
#[derive(Clone, Copy)]
struct Last {
    number: u64,
    /// Nothing for a key without history.
    watermarks: Option<Watermarks>,
}

struct Place {
    index: u64,
    number: u64,
    watermarks: Watermarks,
}

/// The part that the vault holds.
pub struct Marks {
    file: Arc<File>,
    /// The keys with a place in the file: which, and its last copy.
    keys: RwLock<HashMap<PublicKey, (u64, Mutex<Last>)>>,
    /// Keys that the vault does not hold, and the first place that nobody has.
    others: Mutex<(HashMap<PublicKey, Place>, u64)>,
    floor: Mutex<Watermarks>,
    id: Root,
}

impl FileJournal {
    /// Opens the file of this network, or makes it. `now` lies above everything that could have been signed until now.
    pub fn open(path: &Path, genesis_validators_root: Root, now: Watermarks) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        // A vault whose stack was killed may live a moment longer: while it signs, nobody else reads.
        let begun = Instant::now();
        while file.try_lock().is_err() {
            if begun.elapsed() > LOCK_TIMEOUT {
                bail!("{} is in use by another vault", path.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let boot_id = std::fs::read("/proc/sys/kernel/random/boot_id").context("reading the machine's boot id")?;
        let boot_id = boot_id.get(..BOOT_ID_LEN).context("the machine's boot id is too short")?.to_vec();
        let len = file.metadata().context("the file's length")?.len();
        let (floor, id) = (Watermarks::NONE, Root::ZERO);
        let mut journal = Self { file, places: HashMap::new(), floor, id, maybe_behind: false };
        if len == 0 {
            let mut header = [0; HEADER_LEN];
            write_parts(&mut header, &[MAGIC, &genesis_validators_root.0, &boot_id]);
            journal.file.write_all_at(&header, 0).context("writing the header")?;
        } else {
            journal.read(len, genesis_validators_root, &boot_id).with_context(|| format!("in {}", path.display()))?;
            if journal.maybe_behind {
                journal.floor = journal.floor.merge(now);
                journal.file.write_all_at(&encode_floor(&journal.floor), FLOOR_AT).context("writing the floor")?;
                // On the disk before the header forgets why.
                journal.file.sync_all().context("syncing the floor")?;
            }
            journal.file.write_all_at(&boot_id, BOOT_ID_AT).context("writing the header")?;
        }
        journal.name(&genesis_validators_root)?;
        journal.file.write_all_at(&[0], CLEAN_AT).context("writing the header")?;
        journal.file.sync_all().context("syncing the file")?;
        Ok(journal)
    }

    /// Gives the file an id, where it has none, and tells what its state is known by.
    fn name(&mut self, genesis_validators_root: &Root) -> Result<()> {
        let mut id = [0; 16];
        self.file.read_exact_at(&mut id, ID_AT).context("reading the header")?;
        if id == [0; 16] {
            let uuid = std::fs::read("/proc/sys/kernel/random/uuid").context("a random id")?;
            for (to, from) in id.iter_mut().zip(Sha256::digest(&uuid)) {
                *to = from;
            }
            self.file.write_all_at(&id, ID_AT).context("writing the header")?;
        }
        let known_by = Sha256::new().chain_update(b"casemate-dev watermarks").chain_update(genesis_validators_root.0);
        self.id = Root::from(<[u8; 32]>::from(known_by.chain_update(id).finalize()));
        Ok(())
    }

    fn read(&mut self, len: u64, genesis_validators_root: Root, boot_id: &[u8]) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(len).context("the file's length")?];
        self.file.read_exact_at(&mut bytes, 0).context("reading the watermarks")?;
        let mut rest = Reader(&bytes);
        if rest.take(MAGIC.len()) != Some(MAGIC) {
            bail!("this is no file of watermarks");
        }
        if rest.take(32) != Some(&genesis_validators_root.0) {
            bail!("these watermarks are of another network than {genesis_validators_root}");
        }
        let same_boot = rest.take(BOOT_ID_LEN) == Some(boot_id);
        let clean = bytes.get(usize::try_from(CLEAN_AT)?) == Some(&1);
        self.maybe_behind = !same_boot && !clean;
        self.floor = bytes
            .get(usize::try_from(FLOOR_AT)?..usize::try_from(ID_AT)?)
            .and_then(decode_floor)
            .context("a cut-off header")?;
        for (index, place) in bytes.get(HEADER_LEN..).unwrap_or_default().chunks(PLACE_LEN).enumerate() {
            let copies = [place.get(..COPY_LEN), place.get(COPY_LEN..)];
            let newest = copies.into_iter().flatten().filter_map(decode).max_by_key(|(_, number, _)| *number);
            let Some((key, number, watermarks)) = newest else {
                // A key's first write was cut off by a power cut: it had signed nothing. Anything else is damage.
                if place.iter().all(|b| *b == 0) || place.len() < PLACE_LEN {
                    continue;
                }
                bail!("the watermarks of key number {index} are damaged in both copies");
            };
            self.places.insert(key, Place { index: u64::try_from(index)?, number, watermarks });
        }
        Ok(())
    }

    /// What the file says of a key.
    pub fn watermarks(&self, key: &PublicKey) -> Option<Watermarks> {
        self.places.get(key).map(|p| p.watermarks)
    }

    /// What binds every key, whatever its own marks say.
    pub fn floor(&self) -> Watermarks {
        self.floor
    }

    /// Gives every key of the vault its place, writes where it starts from, and hands over.
    pub fn start(mut self, keys: &[(PublicKey, Option<Watermarks>)]) -> Result<Marks> {
        let mut next = self.places.values().map(|p| p.index.saturating_add(1)).max().unwrap_or(0);
        let mut places = HashMap::with_capacity(keys.len());
        for (key, start) in keys {
            let (index, number) = self.places.remove(key).map_or((next, 0), |p| (p.index, p.number));
            next = next.max(index.saturating_add(1));
            let mut last = number;
            // Keys without history leave no trace: a trace would be a history.
            if let Some(start) = start {
                last = write_both(&self.file, key, index, number, start).context("writing the watermarks")?;
            }
            places.insert(*key, (index, Mutex::new(Last { number: last, watermarks: *start })));
        }
        self.file.sync_all().context("syncing the watermarks")?;
        let (keys, others) = (RwLock::new(places), Mutex::new((self.places, next)));
        Ok(Marks { file: Arc::new(self.file), keys, others, floor: Mutex::new(self.floor), id: self.id })
    }
}

/// Writes both copies of a place; the number of the second.
fn write_both(file: &File, key: &PublicKey, index: u64, number: u64, start: &Watermarks) -> std::io::Result<u64> {
    let last = number.saturating_add(2);
    for number in [number.saturating_add(1), last] {
        file.write_all_at(&encode(key, number, start), copy_at(index, number))?;
    }
    Ok(last)
}

impl Marks {
    /// A handle that closes the file in order.
    pub fn closer(&self) -> impl FnOnce() -> std::io::Result<()> + use<> {
        let file = Arc::clone(&self.file);
        move || {
            file.sync_all()?;
            file.write_all_at(&[1], CLEAN_AT)?;
            file.sync_all()
        }
    }
}

impl Journal for Marks {
    fn record(&self, public_key: &PublicKey, watermarks: &Watermarks) -> Result<(), NotSaved> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let (index, last) = keys.get(public_key).ok_or(NotSaved)?;
        // The key's lock is held: nobody else takes this number.
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let number = last.number.saturating_add(1);
        self.file
            .write_all_at(&encode(public_key, number, watermarks), copy_at(*index, number))
            .map_err(|_| NotSaved)?;
        *last = Last { number, watermarks: Some(*watermarks) };
        Ok(())
    }

    fn durable_state_digest(&self) -> Option<Root> {
        Some(self.id)
    }

    fn raise_floor(&self, floor: GroupFloor) -> Result<(), NotSaved> {
        let mut held = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        let raised = held.merge(floor.watermarks());
        self.file.write_all_at(&encode_floor(&raised), FLOOR_AT).map_err(|_| NotSaved)?;
        *held = raised;
        Ok(())
    }

    fn reserve(&self, keys: &[(PublicKey, Watermarks)]) -> Result<Vec<Watermarks>, NotSaved> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let (others, next) = &mut *others;
        let floor = *self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let mut starts = Vec::with_capacity(keys.len());
        for (key, brought) in keys {
            let (index, known) = match (held.get(key), others.get(key)) {
                (Some((index, last)), _) => (*index, *last.lock().unwrap_or_else(PoisonError::into_inner)),
                (None, Some(place)) => (place.index, Last { number: place.number, watermarks: Some(place.watermarks) }),
                (None, None) => {
                    let index = *next;
                    *next = next.saturating_add(1);
                    (index, Last { number: 0, watermarks: None })
                }
            };
            // Whatever is remembered of it, in the vault or not: a sealing that failed does not make it forgotten.
            let start = brought.merge(floor).merge(known.watermarks.unwrap_or(Watermarks::NONE));
            let number = write_both(&self.file, key, index, known.number, &start).map_err(|_| NotSaved)?;
            held.insert(*key, (index, Mutex::new(Last { number, watermarks: Some(start) })));
            starts.push(start);
        }
        self.file.sync_all().map_err(|_| NotSaved)?;
        Ok(starts)
    }
}

fn encode_floor(floor: &Watermarks) -> [u8; FLOOR_LEN] {
    let slot = floor.block.map_or(0, |b| b.slot.0);
    let (source, target) = floor.attestation.map_or((0, 0), |a| (a.source.0, a.target.0));
    let mut bytes = [0; FLOOR_LEN];
    write_parts(&mut bytes, &[&[1], &slot.to_le_bytes(), &source.to_le_bytes(), &target.to_le_bytes()]);
    bytes
}

fn decode_floor(bytes: &[u8]) -> Option<Watermarks> {
    let mut rest = Reader(bytes);
    let (known, slot, source, target) = (rest.flag()?, rest.u64()?, rest.u64()?, rest.u64()?);
    Some(if known { floor_at(Slot(slot), Epoch(source), Epoch(target)) } else { Watermarks::NONE })
}

/// Marks without roots: nothing at or below them is signed, not even again.
pub fn floor_at(slot: Slot, source: Epoch, target: Epoch) -> Watermarks {
    Watermarks {
        block: Some(BlockMark { slot, signing_root: None }),
        attestation: Some(AttestationMark { source, target, signing_root: None }),
    }
}

fn copy_at(index: u64, number: u64) -> u64 {
    let len = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    len(HEADER_LEN)
        .saturating_add(index.saturating_mul(len(PLACE_LEN)))
        .saturating_add((number % 2).saturating_mul(len(COPY_LEN)))
}

fn encode(key: &PublicKey, number: u64, watermarks: &Watermarks) -> [u8; COPY_LEN] {
    let root = |r: Option<Root>| (u8::from(r.is_some()), r.unwrap_or(Root::ZERO));
    let (block_root, attestation_root) = (
        root(watermarks.block.and_then(|b| b.signing_root)),
        root(watermarks.attestation.and_then(|a| a.signing_root)),
    );
    let slot = watermarks.block.map_or(0, |b| b.slot.0);
    let (source, target) = watermarks.attestation.map_or((0, 0), |a| (a.source.0, a.target.0));
    let mut copy = [0; COPY_LEN];
    write_parts(
        &mut copy,
        &[
            &key.0,
            &number.to_le_bytes(),
            &[u8::from(watermarks.block.is_some())],
            &slot.to_le_bytes(),
            &[block_root.0],
            &block_root.1.0,
            &[u8::from(watermarks.attestation.is_some())],
            &source.to_le_bytes(),
            &target.to_le_bytes(),
            &[attestation_root.0],
            &attestation_root.1.0,
        ],
    );
    let (body, checksum) = copy.split_at_mut(COPY_LEN - 32);
    checksum.copy_from_slice(&Sha256::digest(body));
    copy
}

fn decode(copy: &[u8]) -> Option<(PublicKey, u64, Watermarks)> {
    let (body, checksum) = copy.split_at_checked(COPY_LEN - 32)?;
    if Sha256::digest(body).as_slice() != checksum {
        return None;
    }
    let known = |(known, root): (bool, Root)| known.then_some(root);
    let mut rest = Reader(body);
    let key = PublicKey::from(rest.array()?);
    let number = rest.u64()?;
    let (has_block, slot, block_root) = (rest.flag()?, rest.u64()?, rest.known_root()?);
    let (has_attestation, source, target, attestation_root) =
        (rest.flag()?, rest.u64()?, rest.u64()?, rest.known_root()?);
    let watermarks = Watermarks {
        block: has_block.then_some(BlockMark { slot: Slot(slot), signing_root: known(block_root) }),
        attestation: has_attestation.then_some(AttestationMark {
            source: Epoch(source),
            target: Epoch(target),
            signing_root: known(attestation_root),
        }),
    };
    Some((key, number, watermarks))
}

fn write_parts(to: &mut [u8], parts: &[&[u8]]) {
    let parts = parts.iter().flat_map(|p| p.iter());
    for (to, from) in to.iter_mut().zip(parts) {
        *to = *from;
    }
}

/// Reads fields one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.array::<1>()? == [1])
    }

    fn known_root(&mut self) -> Option<(bool, Root)> {
        Some((self.flag()?, Root::from(self.array()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENESIS: Root = casemate_protocol::Bytes([3; 32]);

    /// Slot 1001, source 31, target 32.
    const NOW: Watermarks = Watermarks {
        block: Some(BlockMark { slot: Slot(1001), signing_root: None }),
        attestation: Some(AttestationMark { source: Epoch(31), target: Epoch(32), signing_root: None }),
    };

    fn open(path: &Path) -> Result<FileJournal> {
        FileJournal::open(path, GENESIS, NOW)
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from([byte; 48])
    }

    fn marks(slot: u64, target: u64) -> Watermarks {
        Watermarks {
            block: Some(BlockMark { slot: Slot(slot), signing_root: Some(Root::from([1; 32])) }),
            attestation: Some(AttestationMark { source: Epoch(1), target: Epoch(target), signing_root: None }),
        }
    }

    #[test]
    fn what_was_recorded_is_there_after_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        let journal = open(&path).unwrap();
        assert_eq!(journal.watermarks(&key(1)), None);
        let start = [(key(1), Some(Watermarks::NONE)), (key(2), None), (key(3), Some(marks(1, 2)))];
        let marked = journal.start(&start).unwrap();
        for slot in 5..20 {
            marked.record(&key(1), &marks(slot, slot)).unwrap();
        }
        // Dropped without being closed, as a kill leaves it; the machine did not boot anew.
        drop(marked);
        let journal = open(&path).unwrap();
        assert!(!journal.maybe_behind);
        assert_eq!(journal.watermarks(&key(1)), Some(marks(19, 19)));
        assert_eq!(journal.watermarks(&key(2)), None, "a key without history must not get one by starting");
        assert_eq!(journal.watermarks(&key(3)), Some(marks(1, 2)));
        // Other keys, another order: each keeps its place.
        let marked = journal.start(&[(key(3), Some(marks(1, 2))), (key(4), Some(Watermarks::NONE))]).unwrap();
        marked.record(&key(3), &marks(7, 8)).unwrap();
        marked.record(&key(4), &marks(9, 9)).unwrap();
        drop(marked);
        let journal = open(&path).unwrap();
        assert_eq!(journal.watermarks(&key(1)), Some(marks(19, 19)));
        assert_eq!(journal.watermarks(&key(3)), Some(marks(7, 8)));
        assert_eq!(journal.watermarks(&key(4)), Some(marks(9, 9)));
    }

    #[test]
    fn keys_that_come_later_find_what_the_file_remembers_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        let marked = open(&path).unwrap().start(&[(key(1), Some(marks(5, 5))), (key(2), Some(marks(7, 7)))]).unwrap();
        marked.record(&key(2), &marks(8, 8)).unwrap();
        drop(marked);
        // The vault holds one of them, then the other comes back, and one that is new.
        let marked = open(&path).unwrap().start(&[(key(1), Some(marks(5, 5)))]).unwrap();
        let starts = marked.reserve(&[(key(2), marks(3, 9)), (key(3), marks(1, 1))]).unwrap();
        assert_eq!(starts.iter().map(|s| s.block.map(|b| b.slot.0)).collect::<Vec<_>>(), [Some(8), Some(1)]);
        assert_eq!(starts[0].attestation.map(|a| a.target.0), Some(9));
        // The same again, as after a sealing that failed: no place is used twice.
        let again = marked.reserve(&[(key(2), marks(3, 9)), (key(3), marks(1, 1))]).unwrap();
        assert_eq!(again, starts);
        // Less than before, as an operator may bring it after a sealing that failed: what is remembered stays.
        let less = marked.reserve(&[(key(2), Watermarks::NONE)]).unwrap();
        assert_eq!(less[0], starts[0]);
        for (byte, slot) in [(1, 10), (2, 20), (3, 30)] {
            marked.record(&key(byte), &marks(slot, slot)).unwrap();
        }
        assert!(marked.record(&key(9), &marks(1, 1)).is_err());
        drop(marked);
        let journal = open(&path).unwrap();
        for (byte, slot) in [(1, 10), (2, 20), (3, 30)] {
            assert_eq!(journal.watermarks(&key(byte)), Some(marks(slot, slot)));
        }
    }

    #[test]
    fn one_damaged_copy_leaves_the_other_and_two_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        let marked = open(&path).unwrap().start(&[(key(1), Some(Watermarks::NONE))]).unwrap();
        marked.record(&key(1), &marks(5, 5)).unwrap();
        marked.record(&key(1), &marks(6, 6)).unwrap();
        drop(marked);
        let damage = |number: u64| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[0xff; 10], copy_at(0, number) + 60).unwrap();
        };
        damage(4);
        assert_eq!(open(&path).unwrap().watermarks(&key(1)), Some(marks(5, 5)));
        damage(3);
        assert!(format!("{:#}", open(&path).err().unwrap()).contains("damaged"));
    }

    #[test]
    fn the_groups_floor_outlives_a_kill_and_holds_for_keys_that_come_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        let marked = open(&path).unwrap().start(&[(key(1), Some(Watermarks::NONE))]).unwrap();
        let floor = floor_at(Slot(70), Epoch(2), Epoch(3));
        marked.raise_floor(GroupFloor::from_watermarks(floor)).unwrap();
        // It never falls.
        marked.raise_floor(GroupFloor::from_watermarks(floor_at(Slot(60), Epoch(1), Epoch(1)))).unwrap();
        assert_eq!(marked.reserve(&[(key(2), Watermarks::NONE)]).unwrap(), [floor]);
        drop(marked);
        assert_eq!(open(&path).unwrap().floor(), floor);
    }

    #[test]
    fn after_an_unclean_end_of_the_machine_a_floor_binds_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        let boot_anew = || {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[b'0'; BOOT_ID_LEN], BOOT_ID_AT).unwrap();
        };
        let journal = open(&path).unwrap();
        assert_eq!(journal.floor(), Watermarks::NONE);
        drop(journal.start(&[(key(1), Some(marks(5, 5)))]).unwrap());
        boot_anew();
        let journal = open(&path).unwrap();
        assert!(journal.maybe_behind);
        assert_eq!(journal.floor(), NOW);
        drop(journal);
        // Started again in the same boot, even killed before: the floor stays.
        let journal = open(&path).unwrap();
        assert!(!journal.maybe_behind);
        assert_eq!(journal.floor(), NOW);
        // Closed in order, a new boot raises nothing, and lowers nothing.
        journal.start(&[]).unwrap().closer()().unwrap();
        boot_anew();
        let later = floor_at(Slot(5000), Epoch(100), Epoch(101));
        let journal = FileJournal::open(&path, GENESIS, later).unwrap();
        assert!(!journal.maybe_behind);
        assert_eq!(journal.floor(), NOW);
        drop(journal);
        boot_anew();
        assert_eq!(FileJournal::open(&path, GENESIS, later).unwrap().floor(), later);
    }

    #[test]
    fn files_of_other_networks_and_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marks");
        drop(open(&path).unwrap());
        let error = FileJournal::open(&path, Root::from([4; 32]), NOW).err().unwrap();
        assert!(format!("{error:#}").contains("another network"));
        std::fs::write(&path, "hello, I am not a file of watermarks at all").unwrap();
        assert!(open(&path).is_err());
    }
}
