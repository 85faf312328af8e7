//! Attestation documents of AWS Nitro Enclaves: parsed, verified, compared with what an operator expects.
//!
//! Three steps, each with a type of its own, so that nothing of a document can be read before its signature is checked
//! and nothing counts as accepted before it was compared:
//!
//! 1. [`Unverified::parse`]: the bytes are one COSE_Sign1 with one attestation document in it, in every field of the
//!    right type and size, and nothing else (RFC 9052; the fields as in the AWS Nitro Enclaves NSM API's
//!    `attestation_process.md`);
//! 2. [`Unverified::verify`]: the leaf's signature, and the chain from the leaf to the pinned root ([`Anchor`]), at the
//!    given time;
//! 3. [`Document::accept`]: nonce, age, user data and PCRs are those that were [`Expected`]. A missing expectation of PCR0, PCR1
//!    or PCR2 is an error, never a pass.
//!
//! No I/O, no clock, no global state: the time and the root are arguments. Revocation lists are not consulted: AWS says to
//! turn that off, and leaves live three hours.
//!
//! ```
//! use casemate_document::{Anchor, At, Timestamp, Unverified};
//!
//! // The root is pinned; what comes from outside is not even parsed unless it has the one form of a document.
//! let aws = Anchor::aws()?;
//! assert_eq!(const_hex::encode(aws.sha256()), casemate_document::AWS_ROOT_G1_SHA256);
//! assert!(Unverified::parse(b"no document").and_then(|d| d.verify(&aws, At::Time(Timestamp(0)))).is_err());
//! # Ok::<_, casemate_document::Error>(())
//! ```
#![forbid(unsafe_code)]

mod accept;
mod chain;
mod cose;
mod error;
mod limits;
mod payload;
mod time;
mod verify;

pub use accept::{Accepted, Expected};
pub use chain::{Anchor, CertificateSummary, verify_chain};
pub use error::{CertPosition, Error, Field};
pub use limits::{
    MAX_BUNDLE_LEN, MAX_CERTIFICATE_LEN, MAX_DOCUMENT_LEN, MAX_MODULE_ID_LEN, MAX_NONCE_LEN, MAX_PAYLOAD_LEN, MAX_PCRS,
    MAX_PUBLIC_KEY_LEN, MAX_USER_DATA_LEN, PCR_LEN, SIGNATURE_LEN,
};
pub use payload::Pcr;
pub use time::{TOLERANCE_MS, Timestamp};
pub use verify::{At, Document, Unverified};

/// SHA-256 fingerprint of the AWS Nitro Enclaves root G1, as AWS publishes it
/// (docs.aws.amazon.com/enclaves/latest/user/verify-root.html).
pub const AWS_ROOT_G1_SHA256: &str = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b";
/// The AWS Nitro Enclaves root G1, DER. A test computes its fingerprint again.
pub const AWS_ROOT_G1_DER: &[u8] = include_bytes!("aws-nitro-root-g1.der");
