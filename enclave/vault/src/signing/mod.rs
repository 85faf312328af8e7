//! One message under one key: its domain and signing root, the policy, the multiplication, and what is written down of it.

pub mod bls;
pub mod hash_cache;
pub(crate) mod log;
pub(crate) mod policy;
pub mod signing_root;
