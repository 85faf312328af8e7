//! The signing log: records that are chained by hashes, and kept until the proxy has had time to fetch them.
//!
//! A worker that signs only appends a record to a list; hashing and signing are done when the proxy asks.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use casemate_protocol::frame::Nonce;
use casemate_protocol::log::{LogHead, LogPage, LogRecord, MAX_RECORDS_PER_PAGE, chain_start};
use casemate_protocol::{Bytes, Root};

use crate::keys::custody::digest_of;
use crate::platform::attest::Attestor;

/// Records that are kept: ten slots of a hundred thousand validators, some 9 MiB.
pub const KEPT: usize = 32_768;
/// As many wait at most to be chained, about: then a worker does it.
const WAITING: usize = 1024;

/// What was signed and refused in this boot.
pub(crate) struct SigningLog {
    incoming: Mutex<Vec<LogRecord>>,
    chain: Mutex<Chain>,
}

struct Chain {
    boot_nonce: Bytes<32>,
    /// Each with the chain's hash after it.
    kept: VecDeque<(LogRecord, Root)>,
    /// The chain's hash before the first of them.
    before: Root,
    /// Number of the last record.
    last: u64,
    buffer: Vec<u8>,
}

impl SigningLog {
    pub(crate) fn new(boot_nonce: Bytes<32>) -> Self {
        let before = digest_of(&chain_start(&boot_nonce));
        let chain = Chain { boot_nonce, kept: VecDeque::new(), before, last: 0, buffer: Vec::new() };
        Self { incoming: Mutex::default(), chain: Mutex::new(chain) }
    }

    /// Adds a record.
    pub(crate) fn push(&self, record: LogRecord) {
        let waiting = {
            let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
            incoming.push(record);
            incoming.len()
        };
        // Nobody has asked for long: memory must not grow.
        if waiting >= WAITING
            && let Ok(mut chain) = self.chain.try_lock()
        {
            self.absorb(&mut chain);
        }
    }

    fn absorb(&self, chain: &mut Chain) {
        let records = std::mem::take(&mut *self.incoming.lock().unwrap_or_else(PoisonError::into_inner));
        for record in records {
            chain.push(record);
        }
    }

    /// The records after number `after`, and where the chain stands with them.
    pub(crate) fn page(
        &self,
        after: u64,
        nonce: Option<&Nonce>,
        attestor: &Attestor,
        term: u64,
        time_ms: u64,
    ) -> LogPage {
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        self.absorb(&mut chain);
        let last = chain.last;
        // How many of those that are kept are known already.
        let first_kept = last.saturating_sub(u64::try_from(chain.kept.len()).unwrap_or(u64::MAX)).saturating_add(1);
        let first = after.min(last).saturating_add(1).max(first_kept);
        let skipped = usize::try_from(first.saturating_sub(first_kept)).unwrap_or(usize::MAX);
        let before = match skipped.checked_sub(1) {
            None => chain.before,
            Some(index) => chain.kept.get(index).map_or(chain.before, |(_, hash)| *hash),
        };
        let page = chain.kept.iter().skip(skipped).take(MAX_RECORDS_PER_PAGE);
        let (mut records, mut hash, mut number) = (Vec::new(), before, first.saturating_sub(1));
        for (record, after) in page {
            records.push(*record);
            hash = *after;
            number = number.saturating_add(1);
        }
        let boot_nonce = chain.boot_nonce;
        drop(chain);
        let mut head = LogHead { boot_nonce, term, number, time_ms, hash, signature: Bytes::ZERO };
        head.signature = attestor.sign_record(&head.signed_bytes());
        let fresh = nonce.map(|nonce| attestor.sign_record(&head.fresh_bytes(nonce)));
        LogPage { first, before, records, head, last, fresh }
    }
}

impl Chain {
    fn push(&mut self, record: LogRecord) {
        let tip = self.kept.back().map_or(self.before, |(_, hash)| *hash);
        self.buffer.clear();
        self.buffer.extend_from_slice(&tip.0);
        record.encode(&mut self.buffer);
        let hash = digest_of(&self.buffer);
        if self.kept.len() >= KEPT
            && let Some((_, dropped)) = self.kept.pop_front()
        {
            self.before = dropped;
        }
        self.kept.push_back((record, hash));
        self.last = self.last.saturating_add(1);
    }
}
