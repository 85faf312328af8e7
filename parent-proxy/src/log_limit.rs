//! Log lines that anyone outside can cause: each kind once in a while, and never more than a few dozen.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For so long a line is not repeated.
const WINDOW: Duration = Duration::from_mins(1);
/// Different lines in that time.
const MOST: usize = 32;

/// Which lines were written of late.
pub struct LogLimit<K> {
    state: Mutex<State<K>>,
}

struct State<K> {
    written: HashMap<K, Instant>,
    left_out: u64,
}

impl<K: Eq + Hash> LogLimit<K> {
    /// None so far.
    pub fn new() -> Self {
        Self { state: Mutex::new(State { written: HashMap::new(), left_out: 0 }) }
    }

    /// Whether this line is to be written; with the number of those that were left out since the last one.
    pub fn passes(&self, key: K) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.written.retain(|_, at| at.elapsed() < WINDOW);
        if state.written.len() >= MOST || state.written.contains_key(&key) {
            state.left_out = state.left_out.saturating_add(1);
            return None;
        }
        state.written.insert(key, Instant::now());
        Some(std::mem::take(&mut state.left_out))
    }
}

impl<K: Eq + Hash> Default for LogLimit<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_writes_a_few_lines_and_the_next_one_counts_the_rest() {
        let limit = LogLimit::new();
        let written = (0..10_000_u64).filter(|n| limit.passes(n % 100).is_some()).count();
        assert_eq!(written, MOST);
        limit.state.lock().unwrap_or_else(PoisonError::into_inner).written.clear();
        assert_eq!(limit.passes(1), Some(9_968));
        assert_eq!(limit.passes(1), None);
    }
}
