//! What an operator expects of a document.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use crate::error::hex;
use crate::payload::Pcr;
use crate::verify::is_zero;
use crate::{Document, Error};

/// PCR0 measures the whole image, PCR1 the kernel and the boot ramdisk, PCR2 the application. Lengths of sections are
/// not hashed, so PCR0 alone does not say where one ends: all three are needed.
const NEEDED: [u8; 3] = [0, 1, 2];

/// What a document is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// PCRs by index. 0, 1 and 2 must be among them; for debug images, as zeros.
    pub pcrs: BTreeMap<u8, Pcr>,
    /// The nonce that was asked with; `None` where nobody asked.
    pub nonce: Option<Vec<u8>>,
    /// What user_data must be: the SHA-256 of the statement.
    pub user_data: Option<Vec<u8>>,
    /// How old it may be when it is verified.
    pub max_age: Option<Duration>,
    /// Let debug images through: their memory is an open book to the parent.
    pub debug_allowed: bool,
}

/// A document that is all that was expected.
#[derive(Clone, Copy, Debug)]
pub struct Accepted<'a>(&'a Document);

impl Deref for Accepted<'_> {
    type Target = Document;

    fn deref(&self) -> &Document {
        self.0
    }
}

impl Document {
    /// Compares the document with what was expected. An expectation that is missing is an error, never a pass.
    pub fn accept(&self, expected: &Expected) -> Result<Accepted<'_>, Error> {
        let debug = self.is_debug();
        if debug && !expected.debug_allowed {
            return Err(Error::Debug);
        }
        let missing: Vec<u8> = NEEDED.into_iter().filter(|index| !expected.pcrs.contains_key(index)).collect();
        if !missing.is_empty() {
            return Err(Error::NothingExpected { missing, debug });
        }
        for index in expected.pcrs.keys() {
            let zero = self.pcrs().get(index).is_some_and(is_zero);
            // A debug image has zeros in these three, and they had to be expected.
            if zero && !(debug && NEEDED.contains(index)) {
                return Err(Error::PcrZero { index: *index });
            }
        }
        self.compare(expected)?;
        Ok(Accepted(self))
    }

    /// Compares what was expected and nothing else: for showing a document, not for trusting it.
    pub fn compare(&self, expected: &Expected) -> Result<(), Error> {
        if let Some(expected) = &expected.nonce {
            let found = self.nonce().ok_or_else(|| Error::NonceAbsent { expected: hex(expected) })?;
            if found != expected {
                return Err(Error::NonceDiffers { expected: hex(expected), found: hex(found) });
            }
        }
        if let Some(expected) = &expected.user_data {
            let found = self.user_data().ok_or_else(|| Error::UserDataAbsent { expected: hex(expected) })?;
            if found != expected {
                return Err(Error::UserDataDiffers { expected: hex(expected), found: hex(found) });
            }
        }
        let age = self.verified_at().since(self.timestamp());
        if let Some(max) = expected.max_age.filter(|max| age > *max) {
            return Err(Error::TooOld { age, max });
        }
        for (&index, expected) in &expected.pcrs {
            let found = self.pcrs().get(&index).ok_or(Error::PcrAbsent { index })?;
            if found != expected {
                return Err(Error::PcrDiffers { index, expected: hex(expected), found: hex(found) });
            }
        }
        Ok(())
    }
}
