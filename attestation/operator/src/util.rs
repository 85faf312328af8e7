//! Small things that several modules need.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use casemate_protocol::frame::Nonce;
use casemate_protocol::{Bytes, Root};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Bytes of a nonce of our own.
const FRESH_NONCE_LEN: usize = 32;
/// Longest sentence that is shown, in characters.
const MAX_SHOWN: usize = 800;

/// Hex of exactly `N` bytes, from outside.
pub fn hex<const N: usize>(text: &str, what: &str) -> Result<Bytes<N>> {
    const_hex::decode_to_array(text)
        .map(Bytes)
        .map_err(|_| anyhow::anyhow!("{what}: {} characters; 0x and {} hex digits belong there", text.len(), N * 2))
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Root {
    array(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().iter().copied())
}

/// The first `N` bytes; zeros where there are fewer. For bytes whose number is known, or which are padded so.
pub fn array<const N: usize>(bytes: impl IntoIterator<Item = u8>) -> Bytes<N> {
    let mut array = Bytes::ZERO;
    for (to, from) in array.0.iter_mut().zip(bytes) {
        *to = from;
    }
    array
}

/// A nonce of our own.
pub fn fresh_nonce() -> Result<Nonce> {
    let mut fresh = vec![0; FRESH_NONCE_LEN];
    aws_lc_rs::rand::fill(&mut fresh).map_err(|_| no_random_bytes())?;
    Nonce::new(fresh).context("a nonce")
}

/// Unix time, in milliseconds.
pub fn now_ms() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// This machine's random number generator failed.
pub fn no_random_bytes() -> anyhow::Error {
    anyhow::anyhow!("this machine gives no random bytes")
}

/// A sentence that may quote what came from outside: of bounded length, and harmless on a terminal.
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(MAX_SHOWN) {
        if c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric() || "…«»".contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "{}", c.escape_unicode());
        }
    }
    if text.chars().nth(MAX_SHOWN).is_some() {
        out.push('…');
    }
    out
}

/// A quotation of what came from outside; it cannot end before its last quotation mark.
pub fn quoted(text: &str) -> String {
    format!("«{}»", plain(text).replace('«', "\\u{ab}").replace('»', "\\u{bb}"))
}

/// `1 key`, `2 keys`, `2 histories`.
pub fn plural(n: impl TryInto<u64>, what: &str) -> String {
    let n: u64 = n.try_into().unwrap_or(u64::MAX);
    match (n, what.strip_suffix('y').filter(|stem| !stem.ends_with('e'))) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{n} {stem}ies"),
        (_, None) => format!("{n} {what}s"),
    }
}

/// A time as people write it.
pub fn time(ms: u64) -> String {
    let nanos = i128::from(ms).saturating_mul(1_000_000);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| format!("{ms} ms"))
}

/// Asks on the terminal.
pub fn agreed(text: &str, question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask on; --yes goes on without asking");
    }
    eprint!("{text}\n{question} Type yes: ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(answer.trim() == "yes")
}

/// Refuses to write over a file.
pub fn must_be_new(path: &Path) -> Result<()> {
    if path.exists() {
        bail!("{} exists already and is not overwritten", path.display());
    }
    Ok(())
}

/// Writes a file whole or not at all: under another name first.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    let written = || -> Result<()> {
        let mut file = BufWriter::new(fs::File::create(new)?);
        write(&mut file)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        Ok(fs::rename(new, path)?)
    };
    written().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_outside_cannot_steer_a_terminal() {
        assert_eq!(quoted("a\u{1b}[2J\n»ß"), "«a\\u{1b}[2J\\u{a}\\u{bb}ß»");
        let long = plain(&"x".repeat(MAX_SHOWN + 1));
        assert!(long.len() == MAX_SHOWN + '…'.len_utf8() && long.ends_with('…'));
    }

    #[test]
    fn things_are_counted_as_people_count() {
        assert_eq!(plural(1, "key"), "1 key");
        assert_eq!(plural(2, "key"), "2 keys");
        assert_eq!(plural(0, "history"), "0 histories");
    }

    #[test]
    fn a_file_that_cannot_be_finished_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_whole(&path, |file| Ok(file.write_all(b"old")?)).unwrap();
        assert!(write_whole(&path, |_| bail!("no")).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(must_be_new(&path).is_err());
    }
}
