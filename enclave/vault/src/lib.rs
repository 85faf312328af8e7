//! The key compartment. Nothing outside this process ever holds a key in clear.
//!
//! What the fence ([`fence`], [`store`]) lets it sign is decided before all else.
//!
//! Bytes become types at one door ([`server`]); [`Vault::handle`] answers one request at a time:
//!
//! 1. find the key ([`keys`]); without a slashing history it signs nothing;
//! 2. compute the domain and the signing root from the message itself ([`signing_root`]); a root from outside is only
//!    compared;
//! 3. refuse what lies in the future, by trusted time;
//! 4. under the key's lock: check the slashing rules, save the new watermarks, and only then go on;
//! 5. multiply the hashed message with the key ([`bls`]); the hash is kept, because all attesters of a slot sign the
//!    same root ([`points`]).
//!
//! [`attest`] answers for all this: a document of the NSM ([`nsm`]) over what the vault is and holds. Keys come sealed from the
//! parent's disk, with a data key of KMS ([`custody`], [`seal`], [`kms`]); operators' commands change them ([`command`]).
//!
//! No async runtime, no logger, no file and no network: a test reads the dependency tree for it.
#![deny(unsafe_code)]

pub mod attest;
pub mod bls;
pub mod boot;
pub mod calls;
pub mod clock;
pub mod cms;
pub mod command;
pub mod custody;
pub mod fence;
pub mod journal;
pub mod keys;
#[cfg(test)]
mod keys_tests;
mod keystore;
pub mod kms;
mod log;
pub mod margins;
pub mod nsm;
pub mod points;
mod policy;
pub mod runtime;
pub mod seal;
pub mod server;
pub mod signing_root;
mod ssz;
pub mod store;
mod sync;
pub mod tls;
mod vault;

pub use attest::{Attestor, Identity};
pub use clock::{Clock, SystemClock, TrustedClock};
pub use command::{Loaded, Office};
pub use fence::{FenceParts, Fencing, Keeper, KeeperError, Keeping};
pub use journal::{Journal, NotSaved};
pub use keys::{KeyError, Keys};
pub use nsm::{Nsm, NsmDevice, NsmError};
pub use policy::{Deposits, Policy};
pub use vault::Vault;
