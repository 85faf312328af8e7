//! Milliseconds since the Unix epoch.

use std::fmt;
use std::time::Duration;

use x509_cert::der::DateTime;

/// How far clocks may be apart, in milliseconds: a document may be so far in the future, and a certificate's notBefore
/// (which Nitro does not date back) too.
pub const TOLERANCE_MS: u64 = 5_000;

/// Milliseconds since the Unix epoch: the unit of a document's timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// From whole seconds.
    pub fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Whole seconds, rounded down.
    pub fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// How much later this is than `other`; zero if it is not.
    pub fn since(self, other: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(other.0))
    }

    /// This many milliseconds later.
    pub(crate) fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_unix_duration(Duration::from_secs(self.seconds())) {
            // RFC 3339, UTC.
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{} ms after 1970", self.0),
        }
    }
}
