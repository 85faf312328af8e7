//! `Recipient`: the attestation document that comes with a request.

use std::collections::BTreeMap;
use std::time::Duration;

use casemate_document::{Anchor, At, Error, Expected, Timestamp, Unverified};

/// How old a document may be, as with AWS.
const MAX_AGE: Duration = Duration::from_mins(5);

/// A document that was verified.
#[derive(Debug)]
pub struct Recipient {
    /// SubjectPublicKeyInfo of the key that it carries.
    pub spki: Vec<u8>,
    /// PCRs by index, in hex; those that are zero measure nothing and are left out.
    pub pcrs: BTreeMap<u8, String>,
}

/// Verifies a document for this time. Its PCRs are for the key policy to judge.
pub fn verify(document: &[u8], anchor: &Anchor, now: Timestamp) -> Result<Recipient, Refused> {
    let document = Unverified::parse(document)?.verify(anchor, At::Time(now))?;
    document.compare(&Expected { max_age: Some(MAX_AGE), ..Expected::default() })?;
    let spki = document.public_key().ok_or(Refused::NoKey)?.to_vec();
    let measured = document.pcrs().iter().filter(|(_, value)| value.iter().any(|byte| *byte != 0));
    let pcrs = measured.map(|(index, value)| (*index, const_hex::encode(value))).collect();
    Ok(Recipient { spki, pcrs })
}

/// Why a recipient is none.
#[derive(Debug)]
pub enum Refused {
    /// The document is not good.
    Document(Error),
    /// It carries no key.
    NoKey,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Document(error)
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Document(error) => write!(f, "the attestation document is refused: {error}"),
            Self::NoKey => f.write_str("the attestation document carries no public key"),
        }
    }
}
