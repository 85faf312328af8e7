//! The Nitro Security Module: documents, PCRs, entropy and trusted time.
//!
//! [`Nsm::process`] is the device: one request, one response, in the words of aws-nitro-enclaves-nsm-api. Everything that the
//! vault asks for is built on it here, once, so that the device of the development stack is asked in the very same way.

use aws_nitro_enclaves_nsm_api::api::{AttestationDoc, ErrorCode, Request, Response};
use aws_nitro_enclaves_nsm_api::driver;
use casemate_protocol::cbor;
use serde_bytes::ByteBuf;

/// Bytes of a PCR: the digest is SHA-384.
pub const PCR_LEN: usize = 48;

/// The NSM did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NsmError {
    /// There is no device.
    #[error("there is no NSM here: /dev/nsm cannot be opened")]
    NoDevice,
    /// It refused; the code is the device's.
    #[error("the NSM refused: {0}")]
    Refused(&'static str),
    /// It answered something else, or something malformed.
    #[error("the NSM answered something else than it was asked")]
    Unexpected,
}

/// A PCR as the NSM shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pcr {
    /// Whether it can no longer be extended.
    pub locked: bool,
    /// Its value.
    pub value: [u8; PCR_LEN],
}

/// An NSM.
pub trait Nsm: Send + Sync {
    /// One request, one response.
    fn process(&self, request: Request) -> Response;

    /// An attestation document with these fields.
    fn attestation(
        &self,
        nonce: Option<&[u8]>,
        user_data: Option<&[u8]>,
        public_key: Option<&[u8]>,
    ) -> Result<Vec<u8>, NsmError> {
        let field = |bytes: Option<&[u8]>| bytes.map(ByteBuf::from);
        let request =
            Request::Attestation { user_data: field(user_data), nonce: field(nonce), public_key: field(public_key) };
        match self.process(request) {
            Response::Attestation { document } => Ok(document),
            other => Err(failure(&other)),
        }
    }

    /// A PCR.
    fn pcr(&self, index: u16) -> Result<Pcr, NsmError> {
        match self.process(Request::DescribePCR { index }) {
            Response::DescribePCR { lock, data } => {
                let value = data.try_into().map_err(|_| NsmError::Unexpected)?;
                Ok(Pcr { locked: lock, value })
            }
            other => Err(failure(&other)),
        }
    }

    /// Fills `out` with the device's entropy.
    fn random(&self, out: &mut [u8]) -> Result<(), NsmError> {
        let mut rest = out;
        while !rest.is_empty() {
            let random = match self.process(Request::GetRandom) {
                Response::GetRandom { random } if !random.is_empty() => random,
                other => return Err(failure(&other)),
            };
            let len = random.len().min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            for (to, from) in now.iter_mut().zip(&random) {
                *to = *from;
            }
            rest = later;
        }
        Ok(())
    }

    /// The hypervisor's time, milliseconds since the Unix epoch. Only documents carry it, so one is made.
    fn timestamp_ms(&self) -> Result<u64, NsmError> {
        let document = self.attestation(None, None, None)?;
        let payload = cbor::cose_payload(&document).ok_or(NsmError::Unexpected)?;
        AttestationDoc::from_binary(&payload).map(|doc| doc.timestamp).map_err(|_| NsmError::Unexpected)
    }
}

fn failure(response: &Response) -> NsmError {
    let Response::Error(code) = response else { return NsmError::Unexpected };
    NsmError::Refused(match code {
        ErrorCode::InvalidArgument => "invalid argument",
        ErrorCode::InvalidIndex => "invalid PCR index",
        ErrorCode::InvalidResponse => "invalid response",
        ErrorCode::ReadOnlyIndex => "the PCR is locked",
        ErrorCode::InvalidOperation => "invalid operation",
        ErrorCode::BufferTooSmall => "buffer too small",
        ErrorCode::InputTooLarge => "input too large",
        ErrorCode::InternalError | ErrorCode::Success => "internal error",
    })
}

/// The real one: `/dev/nsm`.
pub struct NsmDevice {
    descriptor: i32,
}

impl NsmDevice {
    /// Opens the device. It stays open when the sandbox closes.
    pub fn open() -> Result<Self, NsmError> {
        match driver::nsm_init() {
            descriptor @ 0.. => Ok(Self { descriptor }),
            _ => Err(NsmError::NoDevice),
        }
    }
}

impl Nsm for NsmDevice {
    fn process(&self, request: Request) -> Response {
        driver::nsm_process_request(self.descriptor, request)
    }
}

impl Drop for NsmDevice {
    fn drop(&mut self) {
        driver::nsm_exit(self.descriptor);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers what it was given, in order.
    struct Script(Mutex<Vec<Response>>);

    impl Nsm for Script {
        fn process(&self, _request: Request) -> Response {
            self.0.lock().ok().and_then(|mut all| all.pop()).unwrap_or(Response::Error(ErrorCode::InternalError))
        }
    }

    fn script(answers: Vec<Response>) -> Script {
        Script(Mutex::new(answers.into_iter().rev().collect()))
    }

    #[test]
    fn entropy_comes_in_pieces_and_never_short() {
        let mut out = [0; 5];
        let nsm =
            script(vec![Response::GetRandom { random: vec![1, 2, 3] }, Response::GetRandom { random: vec![4, 5, 6] }]);
        assert_eq!(nsm.random(&mut out), Ok(()));
        assert_eq!(out, [1, 2, 3, 4, 5]);
        let nsm = script(vec![Response::GetRandom { random: vec![1] }, Response::GetRandom { random: vec![] }]);
        assert_eq!(nsm.random(&mut out), Err(NsmError::Unexpected));
        assert_eq!(script(vec![]).random(&mut out), Err(NsmError::Refused("internal error")));
        assert_eq!(script(vec![]).random(&mut []), Ok(()));
    }

    #[test]
    fn answers_of_another_kind_or_size_are_refused() {
        let other = || script(vec![Response::LockPCR]);
        assert_eq!(other().attestation(None, None, None), Err(NsmError::Unexpected));
        assert_eq!(other().pcr(0), Err(NsmError::Unexpected));
        let short = script(vec![Response::DescribePCR { lock: true, data: vec![0; 32] }]);
        assert_eq!(short.pcr(0), Err(NsmError::Unexpected));
        let garbage = script(vec![Response::Attestation { document: vec![1, 2, 3] }]);
        assert_eq!(garbage.timestamp_ms(), Err(NsmError::Unexpected));
    }

    #[test]
    fn where_there_is_no_device_there_is_no_nsm() {
        if !std::path::Path::new("/dev/nsm").exists() {
            assert_eq!(NsmDevice::open().err(), Some(NsmError::NoDevice));
        }
    }
}
