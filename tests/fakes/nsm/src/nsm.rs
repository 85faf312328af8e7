//! The device: one request, one response.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA384, digest};
use aws_nitro_enclaves_nsm_api::api::{AttestationDoc, Digest, ErrorCode, Request, Response};
use serde_bytes::ByteBuf;
use time::OffsetDateTime;

use crate::document::{ES384, cose_sign1, sign};
use crate::pki::{Authority, Chain};

/// PCRs of a Nitro NSM; documents show the first half.
const PCRS: u16 = 32;
const SHOWN: u16 = 16;
const PCR_LEN: usize = 48;
/// Bytes that one request for entropy gets.
const RANDOM_LEN: usize = 256;
/// A leaf is used for so long, then the chain is made anew.
const REISSUE_MS: u64 = 3600 * 1000;
const MAX_USER_DATA: usize = 512;
const MAX_NONCE: usize = 512;
const MAX_PUBLIC_KEY: usize = 1024;

/// What the measured PCRs are at the start; the others are zero.
#[derive(Clone, Debug, Default)]
pub struct Pcrs(pub BTreeMap<u16, [u8; PCR_LEN]>);

impl Pcrs {
    /// As Nitro measures an image: PCR1 over what boots, PCR2 over what is run, PCR0 over both; PCR4 over the instance's
    /// id. Each is SHA-384 over 48 zero bytes and the content's own SHA-384.
    pub fn measure(boot: &[u8], application: &[u8], module_id: &str) -> Self {
        let instance = module_id.split("-enc").next().unwrap_or(module_id);
        let whole = [boot, application].concat();
        Self(BTreeMap::from([
            (0, extend(&[0; PCR_LEN], &sha384(&whole))),
            (1, extend(&[0; PCR_LEN], &sha384(boot))),
            (2, extend(&[0; PCR_LEN], &sha384(application))),
            (4, extend(&[0; PCR_LEN], instance.as_bytes())),
        ]))
    }
}

/// The software NSM.
pub struct SoftwareNsm {
    root: Authority,
    module_id: String,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    pcrs: Mutex<Vec<Pcr>>,
    issued: Mutex<Option<(u64, Chain)>>,
}

#[derive(Clone, Copy)]
struct Pcr {
    value: [u8; PCR_LEN],
    locked: bool,
}

impl SoftwareNsm {
    /// An NSM under `root`, whose first 16 PCRs are locked, as in an enclave; `clock` tells milliseconds since 1970.
    pub fn new(root: Authority, module_id: &str, pcrs: &Pcrs, clock: Box<dyn Fn() -> u64 + Send + Sync>) -> Self {
        let bank = (0..PCRS)
            .map(|index| Pcr { value: pcrs.0.get(&index).copied().unwrap_or([0; PCR_LEN]), locked: index < SHOWN })
            .collect();
        Self { root, module_id: module_id.to_owned(), clock, pcrs: Mutex::new(bank), issued: Mutex::new(None) }
    }

    /// The certificate that verifiers pin.
    pub fn root_der(&self) -> &[u8] {
        &self.root.der
    }

    /// Answers a request as the device does.
    pub fn process(&self, request: Request) -> Response {
        match request {
            Request::DescribePCR { index } => {
                self.with_pcr(index, |pcr| Response::DescribePCR { lock: pcr.locked, data: pcr.value.to_vec() })
            }
            Request::ExtendPCR { index, data } => self.with_pcr(index, |pcr| {
                if pcr.locked {
                    return Response::Error(ErrorCode::ReadOnlyIndex);
                }
                pcr.value = extend(&pcr.value, &data);
                Response::ExtendPCR { data: pcr.value.to_vec() }
            }),
            Request::LockPCR { index } => self.with_pcr(index, |pcr| {
                if pcr.locked {
                    return Response::Error(ErrorCode::ReadOnlyIndex);
                }
                pcr.locked = true;
                Response::LockPCR
            }),
            Request::LockPCRs { range } => {
                if range > PCRS {
                    return Response::Error(ErrorCode::InvalidIndex);
                }
                let mut pcrs = self.pcrs.lock().unwrap_or_else(PoisonError::into_inner);
                pcrs.iter_mut().take(usize::from(range)).for_each(|pcr| pcr.locked = true);
                Response::LockPCRs
            }
            Request::DescribeNSM => self.describe(),
            Request::Attestation { user_data, nonce, public_key } => self.attest(user_data, nonce, public_key),
            Request::GetRandom => {
                let mut random = vec![0; RANDOM_LEN];
                match aws_lc_rs::rand::fill(&mut random) {
                    Ok(()) => Response::GetRandom { random },
                    Err(_) => Response::Error(ErrorCode::InternalError),
                }
            }
            _ => Response::Error(ErrorCode::InvalidOperation),
        }
    }

    fn with_pcr(&self, index: u16, answer: impl FnOnce(&mut Pcr) -> Response) -> Response {
        let mut pcrs = self.pcrs.lock().unwrap_or_else(PoisonError::into_inner);
        pcrs.get_mut(usize::from(index)).map_or(Response::Error(ErrorCode::InvalidIndex), answer)
    }

    fn describe(&self) -> Response {
        let pcrs = self.pcrs.lock().unwrap_or_else(PoisonError::into_inner);
        Response::DescribeNSM {
            version_major: 1,
            version_minor: 0,
            version_patch: 0,
            module_id: self.module_id.clone(),
            max_pcrs: PCRS,
            locked_pcrs: (0..PCRS).zip(pcrs.iter()).filter(|(_, pcr)| pcr.locked).map(|(index, _)| index).collect(),
            digest: Digest::SHA384,
        }
    }

    fn attest(&self, user_data: Option<ByteBuf>, nonce: Option<ByteBuf>, public_key: Option<ByteBuf>) -> Response {
        let too_large = |field: &Option<ByteBuf>, max| field.as_ref().is_some_and(|f| f.len() > max);
        if too_large(&user_data, MAX_USER_DATA)
            || too_large(&nonce, MAX_NONCE)
            || too_large(&public_key, MAX_PUBLIC_KEY)
        {
            return Response::Error(ErrorCode::InputTooLarge);
        }
        match self.document(user_data, nonce, public_key) {
            Ok(document) => Response::Attestation { document },
            Err(_) => Response::Error(ErrorCode::InternalError),
        }
    }

    fn document(
        &self,
        user_data: Option<ByteBuf>,
        nonce: Option<ByteBuf>,
        public_key: Option<ByteBuf>,
    ) -> Result<Vec<u8>> {
        let now = (self.clock)();
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back makes a leaf that is not valid yet.
        let usable = issued.as_ref().is_some_and(|(at, _)| (*at..at.saturating_add(REISSUE_MS)).contains(&now));
        if !usable {
            let seconds = i64::try_from(now / 1000).context("the time")?;
            let from = OffsetDateTime::from_unix_timestamp(seconds).context("the time")?;
            *issued = Some((now, Chain::issue(&self.root, &self.module_id, from)?));
        }
        let (_, chain) = issued.as_ref().context("no chain")?;
        let pcrs = self.pcrs.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = pcrs.iter().take(usize::from(SHOWN)).enumerate();
        let bytes = |field: Option<ByteBuf>| field.map(ByteBuf::into_vec);
        let payload = AttestationDoc::new(
            self.module_id.clone(),
            Digest::SHA384,
            now,
            shown.map(|(index, pcr)| (index, pcr.value.to_vec())).collect(),
            chain.leaf.der.clone(),
            chain.bundle.clone(),
            bytes(user_data),
            bytes(nonce),
            bytes(public_key),
        )
        .to_binary();
        let signature = sign(&chain.leaf.key, ES384, &payload)?;
        cose_sign1(ES384, &[0xa0], &payload, &signature)
    }
}

fn extend(value: &[u8; PCR_LEN], data: &[u8]) -> [u8; PCR_LEN] {
    sha384(&[value.as_slice(), data].concat())
}

fn sha384(bytes: &[u8]) -> [u8; PCR_LEN] {
    let mut sum = [0; PCR_LEN];
    // SHA-384 gives 48 bytes, always.
    sum.copy_from_slice(digest(&SHA384, bytes).as_ref());
    sum
}
