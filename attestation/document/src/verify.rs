//! From bytes to a document whose every word Nitro signed.

use std::collections::BTreeMap;

use crate::chain::{self, Anchor, CertificateSummary};
use crate::cose::CoseSign1;
use crate::payload::{Payload, Pcr};
use crate::{Error, TOLERANCE_MS, Timestamp};

/// The time for which a document is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A document made just now: certificates must be valid at this time, and the document not from the future.
    Time(Timestamp),
    /// An archived document: certificates must have been valid when it says it was made. How old it is then says nothing.
    Document,
}

/// A well-formed document. Nothing in it can be read before it is verified.
pub struct Unverified<'a> {
    envelope: CoseSign1<'a>,
    payload: Payload<'a>,
}

impl<'a> Unverified<'a> {
    /// Reads exactly one document.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let envelope = CoseSign1::parse(bytes)?;
        let payload = Payload::parse(envelope.payload)?;
        Ok(Self { envelope, payload })
    }

    /// Checks the chain up to `anchor` and the signature.
    pub fn verify(self, anchor: &Anchor, at: At) -> Result<Document, Error> {
        let Self { envelope, payload } = self;
        let time = match at {
            At::Time(now) => now,
            At::Document => payload.timestamp,
        };
        let chain = chain::verify(payload.certificate, &payload.cabundle, anchor, time)?;
        envelope.verify(&chain.leaf_point)?;
        // Only now does the timestamp mean anything.
        if payload.timestamp > time.plus(TOLERANCE_MS) {
            return Err(Error::Future { timestamp: payload.timestamp, ahead: payload.timestamp.since(time) });
        }
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        Ok(Document {
            module_id: payload.module_id.to_owned(),
            timestamp: payload.timestamp,
            verified_at: time,
            pcrs: payload.pcrs.into_iter().map(|(index, value)| (index, *value)).collect(),
            public_key: owned(payload.public_key),
            user_data: owned(payload.user_data),
            nonce: owned(payload.nonce),
            chain: chain.certificates,
        })
    }
}

/// A document that an NSM under the trust anchor has signed. Whether it is the right enclave's, [`Document::accept`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub(crate) module_id: String,
    pub(crate) timestamp: Timestamp,
    pub(crate) verified_at: Timestamp,
    pub(crate) pcrs: BTreeMap<u8, Pcr>,
    pub(crate) public_key: Option<Vec<u8>>,
    pub(crate) user_data: Option<Vec<u8>>,
    pub(crate) nonce: Option<Vec<u8>>,
    pub(crate) chain: Vec<CertificateSummary>,
}

impl Document {
    /// The NSM's id: the instance's and the enclave's.
    pub fn module_id(&self) -> &str {
        &self.module_id
    }

    /// When the NSM made it.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// The time for which the certificates were valid.
    pub fn verified_at(&self) -> Timestamp {
        self.verified_at
    }

    /// All PCRs by index.
    pub fn pcrs(&self) -> &BTreeMap<u8, Pcr> {
        &self.pcrs
    }

    /// The key that the enclave put in.
    pub fn public_key(&self) -> Option<&[u8]> {
        self.public_key.as_deref()
    }

    /// The data that the enclave put in.
    pub fn user_data(&self) -> Option<&[u8]> {
        self.user_data.as_deref()
    }

    /// The nonce that anyone who asked for it gave.
    pub fn nonce(&self) -> Option<&[u8]> {
        self.nonce.as_deref()
    }

    /// From the root to the leaf.
    pub fn chain(&self) -> &[CertificateSummary] {
        &self.chain
    }

    /// Whether the enclave runs in debug mode: Nitro then shows PCR0, PCR1 and PCR2 as zero. PCR3 and PCR4 are not.
    pub fn is_debug(&self) -> bool {
        (0..=2).all(|index| self.pcrs.get(&index).is_some_and(is_zero))
    }
}

pub(crate) fn is_zero(pcr: &Pcr) -> bool {
    pcr.iter().all(|byte| *byte == 0)
}
