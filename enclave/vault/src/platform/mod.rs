//! What the machine gives: the NSM, trusted time, processors, locks; and what is built of it alone.

pub mod attest;
pub mod clock;
pub mod cpus;
pub mod margins;
pub mod nsm;
pub mod runtime;
pub(crate) mod ssz;
pub(crate) mod sync;
