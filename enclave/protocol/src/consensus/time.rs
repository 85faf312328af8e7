//! Slots and epochs as types of their own, so that neither is taken for the other or for a plain number.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! time_unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The largest value there is.
            pub const MAX: Self = Self(u64::MAX);

            /// `self + n`, staying at the largest value instead of wrapping.
            #[must_use]
            pub const fn saturating_add(self, n: u64) -> Self {
                Self(self.0.saturating_add(n))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

time_unit! {
    /// A slot of the beacon chain: the full range of `u64` is legal.
    Slot
}
time_unit! {
    /// An epoch of the beacon chain: the full range of `u64` is legal.
    Epoch
}
