//! Trusted time.
//!
//! In the image the kernel's clock is kvm-clock, kept by the hypervisor. Nothing is taken on trust: it is compared with the
//! timestamp of the NSM's documents at the start and every few minutes ([`TrustedClock::check`]), and against the monotonic clock
//! at every reading. A jump either way beyond two seconds stops it, until it agrees with the NSM's again. It never goes back.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::platform::margins::CLOCK_TOLERANCE_MS as TOLERANCE_MS;

/// Longest time without a check.
pub const MAX_UNCHECKED: Duration = Duration::from_mins(10);

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Milliseconds since the Unix epoch; nothing while the clock is not trusted.
    fn unix_ms(&self) -> Option<u64>;

    /// Holds the clock against another one that is trusted. A clock that needs no check passes.
    fn check(&self, trusted_ms: u64) {
        let _ = trusted_ms;
    }
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn unix_ms(&self) -> Option<u64> {
        self.as_ref().unix_ms()
    }

    fn check(&self, trusted_ms: u64) {
        self.as_ref().check(trusted_ms);
    }
}

/// The kernel's clock as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_ms(&self) -> Option<u64> {
        // Before 1970 nothing has started: slot 0, and nothing later is signed.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Some(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// What a [`TrustedClock`] reads.
pub trait Sources: Send + Sync {
    /// The clock that may jump: milliseconds since the Unix epoch.
    fn wall_ms(&self) -> u64;

    /// The clock that only counts: milliseconds since any moment.
    fn monotonic_ms(&self) -> u64;
}

/// The kernel's two clocks.
pub struct KernelClocks(Instant);

impl Default for KernelClocks {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Sources for KernelClocks {
    fn wall_ms(&self) -> u64 {
        SystemClock.unix_ms().unwrap_or(0)
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that stops where it cannot be right.
pub struct TrustedClock<S = KernelClocks> {
    sources: S,
    state: Mutex<State>,
}

struct State {
    /// The two clocks at the last check that passed.
    wall_ms: u64,
    monotonic_ms: u64,
    /// What the kernel's clock lacked then, against the NSM's. Nobody sets it inside an enclave, and it drifts by seconds in days.
    correction_ms: i64,
    /// The latest time that was told.
    told_ms: u64,
    stopped: bool,
}

impl<S: Sources> TrustedClock<S> {
    /// Starts stopped: a first check lets it go.
    pub fn new(sources: S) -> Self {
        let state = State { wall_ms: 0, monotonic_ms: 0, correction_ms: 0, told_ms: 0, stopped: true };
        Self { sources, state: Mutex::new(state) }
    }
}

impl<S: Sources> Clock for TrustedClock<S> {
    fn unix_ms(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (wall, monotonic) = (self.sources.wall_ms(), self.sources.monotonic_ms());
        let passed = monotonic.saturating_sub(state.monotonic_ms);
        let expected = state.wall_ms.saturating_add(passed);
        let unchecked = Duration::from_millis(passed) > MAX_UNCHECKED;
        if state.stopped || unchecked || wall.abs_diff(expected) > TOLERANCE_MS {
            state.stopped = true;
            return None;
        }
        state.told_ms = state.told_ms.max(wall.saturating_add_signed(state.correction_ms));
        Some(state.told_ms)
    }

    fn check(&self, trusted_ms: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (wall, monotonic) = (self.sources.wall_ms(), self.sources.monotonic_ms());
        // Held against what was told since the last check, so that drift is taken back each time and never adds up.
        let now = wall.saturating_add_signed(state.correction_ms);
        let agrees = now.abs_diff(trusted_ms) <= TOLERANCE_MS;
        // A time told earlier stays told: if it was too late by more than is allowed, nothing is told until then.
        let behind = state.told_ms.saturating_sub(trusted_ms) > TOLERANCE_MS;
        let correction = trusted_ms.checked_signed_diff(wall).filter(|_| agrees && !behind);
        state.stopped = correction.is_none();
        if let Some(correction_ms) = correction {
            state.correction_ms = correction_ms;
            state.wall_ms = wall;
            state.monotonic_ms = monotonic;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Clone, Default)]
    struct Fake(Arc<(AtomicU64, AtomicU64)>);

    impl Fake {
        fn set(&self, wall: u64, monotonic: u64) {
            self.0.0.store(wall, Ordering::Relaxed);
            self.0.1.store(monotonic, Ordering::Relaxed);
        }
    }

    impl Sources for Fake {
        fn wall_ms(&self) -> u64 {
            self.0.0.load(Ordering::Relaxed)
        }

        fn monotonic_ms(&self) -> u64 {
            self.0.1.load(Ordering::Relaxed)
        }
    }

    fn started() -> (Fake, TrustedClock<Fake>) {
        let fake = Fake::default();
        fake.set(1_000_000, 500);
        let clock = TrustedClock::new(fake.clone());
        assert_eq!(clock.unix_ms(), None, "nothing has been checked yet");
        clock.check(1_000_000);
        assert_eq!(clock.unix_ms(), Some(1_000_000));
        (fake, clock)
    }

    #[test]
    fn it_goes_with_its_sources_and_never_back() {
        let (fake, clock) = started();
        fake.set(1_060_000, 60_500);
        assert_eq!(clock.unix_ms(), Some(1_060_000));
        // Corrected by less than is allowed.
        fake.set(1_059_000, 60_600);
        assert_eq!(clock.unix_ms(), Some(1_060_000));
        fake.set(1_061_000, 62_000);
        assert_eq!(clock.unix_ms(), Some(1_061_000));
    }

    #[test]
    fn a_jump_either_way_stops_it_until_it_agrees_with_the_nsm_again() {
        for jump in [1_000_000 + TOLERANCE_MS + 1, 1_000_000 - TOLERANCE_MS - 1] {
            let (fake, clock) = started();
            fake.set(jump, 500);
            assert_eq!(clock.unix_ms(), None, "{jump}");
            // Gone back to where it was: it has jumped all the same.
            fake.set(1_000_000, 500);
            assert_eq!(clock.unix_ms(), None);
            clock.check(1_000_000 + TOLERANCE_MS + 1);
            assert_eq!(clock.unix_ms(), None);
            clock.check(1_000_000 + TOLERANCE_MS);
            assert_eq!(clock.unix_ms(), Some(1_000_000 + TOLERANCE_MS), "the NSM's time");
        }
        let (fake, clock) = started();
        fake.set(1_000_000 + TOLERANCE_MS, 500);
        assert_eq!(clock.unix_ms(), Some(1_000_000 + TOLERANCE_MS));
    }

    #[test]
    fn a_check_that_fails_stops_it() {
        let (_, clock) = started();
        clock.check(1_000_000 - TOLERANCE_MS - 1);
        assert_eq!(clock.unix_ms(), None);
    }

    #[test]
    fn it_is_not_trusted_without_checks() {
        let (fake, clock) = started();
        let most = u64::try_from(MAX_UNCHECKED.as_millis()).unwrap();
        fake.set(1_000_000 + most, 500 + most);
        assert!(clock.unix_ms().is_some());
        fake.set(1_000_001 + most, 501 + most);
        assert_eq!(clock.unix_ms(), None);
        clock.check(1_000_001 + most);
        assert!(clock.unix_ms().is_some());
    }

    /// Days without anybody who sets the kernel's clock: the NSM's time is told, however far the other one has gone.
    #[test]
    fn drift_is_taken_back_at_every_check_and_never_adds_up() {
        for drift in [59_000, 59_999, 60_001, 61_000] {
            let (fake, clock) = started();
            for minute in 1..5000 {
                // Up to a second a minute: too much after three minutes without a check, and more than an hour in the end.
                fake.set(1_000_000 + minute * drift, 500 + minute * 60_000);
                clock.check(1_000_000 + minute * 60_000);
                let told = clock.unix_ms();
                assert_eq!(told, Some(1_000_000 + minute * 60_000), "minute {minute}, {drift} ms a minute");
            }
            // A jump is none the less one.
            let (wall, monotonic) = (fake.wall_ms(), fake.monotonic_ms());
            fake.set(wall + TOLERANCE_MS + 1, monotonic);
            assert_eq!(clock.unix_ms(), None);
        }
    }
}
