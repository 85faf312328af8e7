//! What happened, in words: the last lines of it, and a digest of all.

use std::collections::VecDeque;
use std::fmt::Write as _;

/// So many lines are kept for a violation.
const KEPT: usize = 400;

/// The story of an episode.
#[derive(Default)]
pub struct Trace {
    lines: VecDeque<String>,
    digest: u64,
    /// Whether every line is printed as it comes.
    pub is_loud: bool,
}

impl Trace {
    /// An empty one.
    pub fn new(is_loud: bool) -> Self {
        Self { is_loud, ..Self::default() }
    }

    /// Adds a line.
    pub fn say(&mut self, at_ms: u64, slot: u64, what: std::fmt::Arguments<'_>) {
        let mut line = if self.lines.len() < KEPT { String::new() } else { self.lines.pop_front().unwrap() };
        line.clear();
        let _ = write!(line, "{:>9}.{:03} s, slot {slot}: {what}", at_ms / 1000, at_ms % 1000);
        self.fold(line.as_bytes());
        if self.is_loud {
            println!("{line}");
        }
        self.lines.push_back(line);
    }

    /// Adds to the digest what is not worth a line.
    pub fn fold(&mut self, bytes: &[u8]) {
        // FNV-1a.
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Of all that happened.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The last lines.
    pub fn last(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
