//! A software NSM, shaped like the device: requests and responses of the aws-nitro-enclaves-nsm-api, PCRs that can be extended and
//! locked, documents signed by a leaf that lives three hours, under a chain as deep as AWS's.
//!
//! Its root is its own, so no document of it passes where AWS's root is pinned. It exists for development and tests; no
//! production program can be switched to it, because none contains it.
#![forbid(unsafe_code)]

mod document;
mod nsm;
mod pki;

pub use aws_nitro_enclaves_nsm_api::api::{ErrorCode, Request, Response};
pub use document::{ES384, cose_sign1, sign};
pub use nsm::{Pcrs, SoftwareNsm};
pub use pki::{Authority, Chain, LEAF_SECONDS, authority_params, leaf_params, root_params};
