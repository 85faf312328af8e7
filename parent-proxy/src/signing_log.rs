//! The signing log on the parent's disk: what the vault tells of signatures and refusals, as it comes.
//!
//! The vault keeps the last records, chained and signed; here they are only fetched and written down, twice a second. A file holds
//! records of one boot of one enclave, behind the document that proves its key.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use casemate_protocol::frame::Nonce;
use casemate_protocol::log::text::{Line, MAX_LINE_LEN, parse};
use casemate_protocol::log::{LogHead, LogPage};
use casemate_protocol::{Bytes, Reply, Request, Statement};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::group::Group;

/// How often the vault is asked. It keeps far more than what it signs in that time.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for the last records at the end.
const LAST: Duration = Duration::from_secs(5);

/// Writes the log of every enclave behind this proxy.
pub struct SigningLog {
    group: Group,
    writers: Arc<[Mutex<Writer>]>,
}

/// The file of one enclave.
struct Writer {
    folder: PathBuf,
    /// A file that has grown to this gets a successor.
    max_len: u64,
    /// Held as long as this proxy runs: two that write into one file would make riddles of each other's lines.
    lock: Arc<File>,
    locked: bool,
    open: Option<Open>,
    /// Said once, until it works again.
    complained: bool,
}

struct Open {
    file: BufWriter<File>,
    len: u64,
    boot_nonce: Bytes<32>,
    /// Of the last record in it.
    number: u64,
    /// After that record; nothing where there is none yet.
    head: Option<LogHead>,
    /// What the file began with, for its successor.
    start: Line,
}

impl SigningLog {
    /// Begins to write into a folder.
    pub fn start(folder: &Path, max_len: u64, group: Group) -> Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("--signing-log: making {}", folder.display()))?;
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join("lock"));
        let lock = Arc::new(lock.with_context(|| format!("--signing-log: a lock in {}", folder.display()))?);
        let writer = |_| {
            let (folder, lock) = (folder.to_owned(), Arc::clone(&lock));
            Mutex::new(Writer { folder, max_len, lock, locked: false, open: None, complained: false })
        };
        let writers: Arc<[_]> = (0..group.len()).map(writer).collect();
        for number in 0..writers.len() {
            let (group, writers) = (group.clone(), Arc::clone(&writers));
            tokio::spawn(async move {
                loop {
                    catch_up(&group, &writers, number).await;
                    sleep(ASK_EVERY).await;
                }
            });
        }
        Ok(Self { group, writers })
    }

    /// Writes down what there is still; nothing is signed through this proxy any more.
    pub async fn finish(&self) {
        for number in 0..self.writers.len() {
            if timeout(LAST, catch_up(&self.group, &self.writers, number)).await.is_err() {
                warn!(enclave = number, "the last records of the signing log did not come in time");
            }
            if let Some(writer) = self.writers.get(number)
                && let Some(open) = &mut writer.lock().await.open
            {
                let _ = open.file.get_ref().sync_all();
            }
        }
    }
}

async fn catch_up(group: &Group, writers: &[Mutex<Writer>], number: usize) {
    let Some(writer) = writers.get(number) else { return };
    let mut writer = writer.lock().await;
    match writer.catch_up(group, number).await {
        Ok(()) => writer.complained = false,
        Err(told) if !writer.complained => {
            writer.complained = true;
            error!(enclave = number, error = %format_args!("{told:#}"), "the signing log is not written; it is tried again all the time");
        }
        Err(_) => {}
    }
}

impl Writer {
    /// Fetches and writes until there is nothing new.
    async fn catch_up(&mut self, group: &Group, enclave: usize) -> Result<()> {
        if !self.locked {
            // The lock is the process's: each of its writers may ask for it.
            if self.lock.try_lock().is_err() {
                bail!("{} is written by another proxy; this one goes on when that has ended", self.folder.display());
            }
            self.locked = true;
        }
        loop {
            let after = self.open.as_ref().map_or(0, |open| open.number);
            let Some(asked) = group.get(Some(enclave)) else { return Ok(()) };
            // An enclave that is away, or does not serve yet, has nothing to tell.
            let Ok(Reply::Log(page)) = asked.call(Request::Log { after, nonce: None }).await else { return Ok(()) };
            let boot_nonce = page.head.boot_nonce;
            if self.open.as_ref().is_none_or(|open| open.boot_nonce != boot_nonce) {
                // Another boot: what was asked for was of the one before.
                let Some(start) = started(group, enclave, boot_nonce).await else { return Ok(()) };
                let folder = self.folder.clone();
                self.open = Some(tokio::task::spawn_blocking(move || Open::at(&folder, start)).await??);
                continue;
            }
            let Some(mut open) = self.open.take() else { return Ok(()) };
            let last = page.last;
            let (folder, max_len) = (self.folder.clone(), self.max_len);
            // What could not be written is fetched again: the file is opened anew, and read to where it is whole.
            let open =
                tokio::task::spawn_blocking(move || open.append(&folder, max_len, &page).map(|()| open)).await??;
            let done = open.number >= last;
            self.open = Some(open);
            if done {
                return Ok(());
            }
        }
    }
}

/// What a file of this boot begins with; nothing where no document is to be had now.
async fn started(group: &Group, enclave: usize, boot_nonce: Bytes<32>) -> Option<Line> {
    let nonce = Nonce::new(boot_nonce.0.to_vec())?;
    match group.get(Some(enclave))?.call(Request::Attestation { nonce }).await {
        Ok(Reply::Attestation { document, statement }) => {
            // It may have started anew meanwhile.
            let stated = Statement::decode(statement.as_ref()).ok()?;
            (stated.boot_nonce == boot_nonce).then_some(Line::Start { boot_nonce, statement, document })
        }
        _ => None,
    }
}

fn file_name(boot_nonce: &Bytes<32>, first: u64) -> String {
    format!("{}-{first:020}.log", const_hex::encode(boot_nonce))
}

impl Open {
    /// Goes on with the last file of this boot, or begins one.
    fn at(folder: &Path, start: Line) -> Result<Self> {
        let Line::Start { boot_nonce, .. } = &start else { bail!("no first line") };
        let boot = format!("{}-", const_hex::encode(boot_nonce));
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with(&boot)) && path.extension().is_some_and(|kind| kind == "log")
            })
            .collect();
        files.sort_unstable();
        match files.pop() {
            Some(path) => match Self::resume(&path, *boot_nonce)? {
                Some(open) => Ok(open),
                None => Self::create(folder, start, None),
            },
            None => Self::create(folder, start, None),
        }
    }

    /// `head`: where the file before it ends; it begins with that.
    fn create(folder: &Path, start: Line, head: Option<LogHead>) -> Result<Self> {
        let first = head.map_or(1, |head| head.number.saturating_add(1));
        let Line::Start { boot_nonce, .. } = &start else { bail!("no first line") };
        let path = folder.join(file_name(boot_nonce, first));
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path);
        let mut file = BufWriter::new(file.with_context(|| format!("making {}", path.display()))?);
        let mut text = format!("{start}\n");
        if let Some(head) = head {
            text.push_str(&Line::Head(head).to_string());
            text.push('\n');
        }
        file.write_all(text.as_bytes()).and_then(|()| file.flush()).context("writing the signing log")?;
        info!(file = %path.display(), "the signing log has a new file");
        let (boot_nonce, len) = (*boot_nonce, u64::try_from(text.len())?);
        Ok(Self { file, len, boot_nonce, number: first.saturating_sub(1), head, start })
    }

    /// Goes on behind the last head. What stands behind that was cut off by a crash, and is fetched again; a file that looks otherwise is
    /// put aside, and nothing of it is lost.
    fn resume(path: &Path, boot_nonce: Bytes<32>) -> Result<Option<Self>> {
        let context = || format!("reading {}", path.display());
        let file = OpenOptions::new().read(true).append(true).open(path).with_context(context)?;
        let mut lines = BufReader::new(&file);
        let (mut at, mut len, mut start, mut last): (u64, u64, Option<Line>, Option<LogHead>) = (0, 0, None, None);
        let mut bytes = Vec::new();
        let whole = loop {
            bytes.clear();
            let read = std::io::Read::take(&mut lines, u64::try_from(MAX_LINE_LEN)?.saturating_add(2))
                .read_until(b'\n', &mut bytes)
                .with_context(context)?;
            // The end, or the line in which a crash has cut it off.
            let Some(line) = bytes.strip_suffix(b"\n") else { break read <= MAX_LINE_LEN };
            at = at.saturating_add(u64::try_from(read)?);
            match std::str::from_utf8(line).ok().map(|line| parse(line, boot_nonce).map(|parsed| parsed.line)) {
                Some(Ok(Line::Record { .. })) if start.is_some() => {}
                Some(Ok(Line::Head(head))) if start.is_some() => {
                    last = Some(head);
                    len = at;
                }
                Some(Ok(line @ Line::Start { .. })) if start.is_none() => {
                    start = Some(line);
                    len = at;
                }
                _ => break false,
            }
        };
        drop(lines);
        let Some(start) = start.filter(|_| whole) else {
            let mut name = path.as_os_str().to_owned();
            name.push(".damaged");
            fs::rename(path, &name).with_context(|| format!("putting {} aside", path.display()))?;
            warn!(file = %path.display(), "this file of the signing log is damaged, and was put aside (.damaged)");
            return Ok(None);
        };
        file.set_len(len).with_context(context)?;
        let mut file = file;
        file.seek(SeekFrom::End(0)).with_context(context)?;
        let number = last.map_or(0, |head| head.number);
        Ok(Some(Self { file: BufWriter::new(file), len, boot_nonce, number, head: last, start }))
    }

    /// Writes a page.
    fn append(&mut self, folder: &Path, max_len: u64, page: &LogPage) -> Result<()> {
        if page.records.is_empty() && self.head.is_some() {
            return Ok(());
        }
        if page.first > self.number.saturating_add(1) {
            let (from, to) = (self.number.saturating_add(1), page.first.saturating_sub(1));
            warn!(from, to, "records of the signing log are lost: the enclave keeps them no more");
        }
        if self.len > max_len {
            let _ = self.file.get_ref().sync_all();
            *self = Self::create(folder, self.start.clone(), self.head)?;
        }
        let mut text = String::new();
        for (number, record) in (page.first..).zip(&page.records) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", Line::Record { number, record: *record });
        }
        text.push_str(&Line::Head(page.head).to_string());
        text.push('\n');
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush()).context("writing the signing log")?;
        self.len = self.len.saturating_add(u64::try_from(text.len())?);
        self.number = page.head.number;
        self.head = Some(page.head);
        Ok(())
    }
}
