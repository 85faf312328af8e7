//! Time and waiting, for the keeper of the fence's record and for anyone who waits for it.
//!
//! Every program runs on [`Kernel`]. The simulator (tests/suites/simulation) has one of its own, so that it decides who goes on, and a run can be
//! repeated step by step.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time that only counts, and ways to wait.
pub trait Runtime: Send + Sync {
    /// Since any moment.
    fn now(&self) -> Duration;

    /// Waits for so long.
    fn sleep(&self, length: Duration);

    /// Something to wait for.
    fn bell(&self) -> Arc<dyn Bell>;
}

/// Wakes one who waits. A ring that nobody hears is kept until somebody waits.
pub trait Bell: Send + Sync {
    /// Wakes anyone who waits, or who waits next.
    fn ring(&self);

    /// Waits until it rings, at most so long.
    fn wait(&self, at_most: Duration);
}

/// The kernel's clock and its ways to wait.
pub struct Kernel(Instant);

impl Default for Kernel {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Runtime for Kernel {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, length: Duration) {
        std::thread::sleep(length);
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::<KernelBell>::default()
    }
}

#[derive(Default)]
struct KernelBell {
    rung: Mutex<bool>,
    woken: Condvar,
}

impl Bell for KernelBell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_one();
    }

    fn wait(&self, at_most: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.woken.wait_timeout_while(rung, at_most, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_kept_for_who_waits_next_and_heard_once() {
        let kernel = Kernel::default();
        let bell = kernel.bell();
        bell.ring();
        bell.ring();
        let begun = kernel.now();
        bell.wait(Duration::from_mins(1));
        assert!(kernel.now().saturating_sub(begun) < Duration::from_secs(30), "it had rung");
        let begun = kernel.now();
        bell.wait(Duration::from_millis(20));
        assert!(kernel.now().saturating_sub(begun) >= Duration::from_millis(20), "it has not rung again");
    }
}
