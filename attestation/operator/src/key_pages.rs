//! What an enclave says of all its keys, in pages that it signs for a nonce of ours.

use anyhow::{Context, Result};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::Bytes;
use casemate_protocol::frame::Nonce;
use casemate_protocol::history_page::{HistoryEntry, HistoryPage};
use casemate_protocol::key_page::{KeyDetails, KeyPage};
use casemate_protocol::watermarks::Watermarks;

use crate::exit::refused;
use crate::progress;
use crate::session::Session;
use crate::util::fresh_nonce;

/// What the enclave says of all keys that it holds or has held, and of every other.
pub fn history(session: &Session) -> Result<(Vec<HistoryEntry>, Watermarks)> {
    let mut floor = Watermarks::NONE;
    let entries = all("the enclave tells what its keys have signed", |nonce, start| {
        let page = history_page(session, nonce, start)?;
        floor = page.floor;
        Ok((page.total, page.keys))
    })?;
    Ok((entries, floor))
}

/// Where the fees of all keys go, how they came, and which exits are ordered.
pub fn details(session: &Session) -> Result<Vec<KeyDetails>> {
    all("the enclave tells of its keys", |nonce, start| {
        let page = key_page(session, nonce, start)?;
        Ok((page.total, page.keys))
    })
}

/// All pages, one after the other. `page`: how many there are in all, and those from a number on.
fn all<T>(what: &'static str, mut page: impl FnMut(&Nonce, u32) -> Result<(u32, Vec<T>)>) -> Result<Vec<T>> {
    let nonce = fresh_nonce()?;
    let bar = progress::bar(0, what);
    let mut entries: Vec<T> = Vec::new();
    loop {
        let (total, keys) = page(&nonce, u32::try_from(entries.len()).context("too many keys")?)?;
        bar.set_length(u64::from(total));
        bar.inc(u64::try_from(keys.len()).unwrap_or(0));
        let (empty, total) = (keys.is_empty(), usize::try_from(total).unwrap_or(usize::MAX));
        entries.extend(keys);
        if entries.len() >= total {
            bar.finish_and_clear();
            return Ok(entries);
        }
        if empty {
            return refused(format!("the enclave told {} of {total} keys", entries.len()));
        }
    }
}

/// The page from a key on, under the enclave's signature and a nonce of ours.
fn history_page(session: &Session, nonce: &Nonce, start: u32) -> Result<HistoryPage> {
    let (told, signature) = session.history_page(nonce, start)?;
    let page = HistoryPage::decode(&told).context("a page of the history is malformed")?;
    verify(session, &page.signed_bytes(&session.statement.boot_nonce, nonce), &signature, "a page of the history")?;
    is_from(page.start, start)?;
    if page.time_ms.is_none() {
        return refused("the enclave does not trust its clock: what it tells may be old");
    }
    Ok(page)
}

fn key_page(session: &Session, nonce: &Nonce, start: u32) -> Result<KeyPage> {
    let (told, signature) = session.key_page(nonce, start)?;
    let page = KeyPage::decode(&told).context("a page of the keys is malformed")?;
    verify(session, &page.signed_bytes(&session.statement.boot_nonce, nonce), &signature, "a page of the keys")?;
    is_from(page.start, start)?;
    Ok(page)
}

fn verify(session: &Session, bytes: &[u8], signature: &Bytes<64>, what: &str) -> Result<()> {
    let key = UnparsedPublicKey::new(&ED25519, session.statement.record_key.0);
    if key.verify(bytes, &signature.0).is_err() {
        return refused(format!("{what} is not signed by the enclave's key for this request"));
    }
    Ok(())
}

fn is_from(start: u32, asked: u32) -> Result<()> {
    if start != asked {
        return refused(format!("the page from key {start} came instead of the one from key {asked}"));
    }
    Ok(())
}
