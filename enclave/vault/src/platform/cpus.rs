//! How many processors there are.

use std::num::NonZeroUsize;
use std::sync::OnceLock;

/// How many threads run at once. Counting them reads files: once, before the sandbox.
pub fn cores() -> NonZeroUsize {
    static CORES: OnceLock<NonZeroUsize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}
