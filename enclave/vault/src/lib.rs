//! The key compartment. Nothing outside this process ever holds a key in clear.
//!
//! What the fence ([`fence`], [`fence::store`]) lets it sign is decided before all else.
//!
//! Bytes become types at one door ([`link::server`]); [`Vault::handle`] answers one request at a time:
//!
//! 1. find the key ([`keys`]); without a slashing history it signs nothing;
//! 2. compute the domain and the signing root from the message itself ([`signing::signing_root`]); a root from outside is only
//!    compared;
//! 3. refuse what lies in the future, by trusted time;
//! 4. under the key's lock: check the slashing rules, save the new watermarks, and only then go on;
//! 5. multiply the hashed message with the key ([`signing::bls`]); the hash is kept, because all attesters of a slot sign the
//!    same root ([`signing::hash_cache`]).
//!
//! [`platform::attest`] answers for all this: a document of the NSM ([`platform::nsm`]) over what the vault is and holds. Keys come sealed from the
//! parent's disk, with a data key of KMS ([`keys::custody`], [`keys::seal`], [`link::kms`]); operators' commands change them ([`admin`]).
//!
//! No async runtime, no logger, no file and no network: a test reads the dependency tree for it.
//!
//! ```
//! use casemate_vault::signing::bls::{HashedMessage, SecretKey};
//!
//! // A key in this compartment: it gives its public key and signatures, and never itself.
//! let key = SecretKey::from_be_bytes(&mut [7; 32]).map_err(|_| "no key")?;
//! let signature = key.sign(&HashedMessage::new(&[1; 32]));
//! assert_eq!((key.public_key().0.len(), signature.0.len()), (48, 96));
//! # Ok::<_, &str>(())
//! ```
#![deny(unsafe_code)]

pub mod admin;
pub mod boot;
pub mod fence;
pub mod keys;
pub mod link;
pub mod platform;
pub mod signing;
mod vault;

pub use admin::{CommandProcessor, Loaded};
pub use fence::{FenceGate, FenceKeeper, FenceParts, KeeperError, Keeping};
pub use keys::journal::{Journal, NotSaved};
pub use keys::keyring::{KeyError, Keys};
pub use platform::attest::{Attestor, Identity};
pub use platform::clock::{Clock, SystemClock, TrustedClock};
pub use platform::nsm::{Nsm, NsmDevice, NsmError};
pub use signing::policy::{Deposits, Policy};
pub use vault::Vault;
