//! The vault's calls to the broker, over the one socket there is.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use casemate_protocol::broker::{self, BrokerReply, BrokerRequest, Failure, NoResponse, PART_LEN};
use casemate_protocol::host_services::RecordBytes;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::{BoundedBytes, FrameError};

use crate::keys::custody::{EncryptionContext, KmsAnswer, ServiceError, Services};
use crate::keys::seal::MAX_BLOB_LEN;
use crate::link::kms::{Endpoint, Exchange, KmsRequest};
use crate::link::store::{self, Carrier, Disk};
use crate::link::tls::Response;

/// Longest wait for an answer: the broker gives KMS 20 s, with all attempts, and blobs may be long.
const TIMEOUT: Duration = Duration::from_mins(2);
/// Answers of the broker that may wait to be taken: what KMS sends is a few parts.
const UNREAD: usize = 64;

/// The vault's side of channel 0. Frames go out under the lock that replies go out under too.
pub struct BrokerClient {
    output: Arc<Mutex<UnixStream>>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    calls: HashMap<u64, SyncSender<BrokerReply>>,
    closed: bool,
}

/// A call that is under way.
struct Conversation<'a> {
    calls: &'a BrokerClient,
    id: u64,
    answers: Receiver<BrokerReply>,
    deadline: Instant,
}

impl BrokerClient {
    pub(crate) fn new(output: Arc<Mutex<UnixStream>>) -> Self {
        Self { output, next: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// An answer from the broker. One to a number that nobody waits for any more is dropped.
    pub(crate) fn deliver(&self, frame: &[u8]) -> Result<(), FrameError> {
        let answer = broker::decode_reply(frame)?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // The reader must not wait. A broker that says more than is taken has ended the call.
        if waiting.calls.get(&answer.id).is_some_and(|asker| asker.try_send(answer.content).is_err()) {
            waiting.calls.remove(&answer.id);
        }
        Ok(())
    }

    /// Nobody will answer any more.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.closed = true;
        waiting.calls.clear();
    }

    fn begin(&self, call: &BrokerRequest) -> Result<Conversation<'_>, ServiceError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (asker, answers) = sync_channel(UNREAD);
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                return Err(ServiceError::Away);
            }
            waiting.calls.insert(id, asker);
        }
        let now = Instant::now();
        let conversation = Conversation { calls: self, id, answers, deadline: now.checked_add(TIMEOUT).unwrap_or(now) };
        conversation.say(call)?;
        Ok(conversation)
    }

    fn call(&self, call: &BrokerRequest) -> Result<BrokerReply, ServiceError> {
        self.begin(call)?.hear()
    }

    fn call_within(&self, timeout: Duration, call: &BrokerRequest) -> Result<BrokerReply, ServiceError> {
        let mut conversation = self.begin(call)?;
        conversation.deadline = Instant::now().checked_add(timeout).unwrap_or(conversation.deadline);
        conversation.hear()
    }

    /// A call of KMS: the broker writes the request, the vault sends it over TLS of its own.
    fn kms(
        &self,
        endpoint: &Endpoint,
        call: &BrokerRequest,
        asked: &KmsRequest<'_>,
    ) -> Result<KmsAnswer, ServiceError> {
        let conversation = self.begin(call)?;
        let (mut exchange, mut answer) = (None, None);
        loop {
            match conversation.hear()? {
                BrokerReply::Request { attempt, headers, body } => {
                    answer = None;
                    exchange = match Exchange::begin(endpoint, asked, &headers, body.as_ref()) {
                        Ok(mut begun) => {
                            conversation.carry(attempt, &begun.outgoing())?;
                            Some((attempt, begun))
                        }
                        Err(why) => {
                            conversation.say(&BrokerRequest::NoResponse { attempt, why })?;
                            None
                        }
                    };
                }
                BrokerReply::TlsIn { attempt, bytes } => {
                    // What belongs to an attempt that was given up is not looked at.
                    let Some((_, running)) = exchange.as_mut().filter(|(running, _)| *running == attempt) else {
                        continue;
                    };
                    let came = match &bytes {
                        Some(bytes) => running.incoming(bytes.as_ref()),
                        None => Err(NoResponse::Closed),
                    };
                    // An alert too, where TLS was broken.
                    conversation.carry(attempt, &running.outgoing())?;
                    let told = match came {
                        Ok(None) => continue,
                        Ok(Some(response)) => {
                            answer = asked.read(&response);
                            BrokerRequest::Response { attempt, status: response.status, body: response.body }
                        }
                        Err(why) => BrokerRequest::NoResponse { attempt, why },
                    };
                    exchange = None;
                    conversation.say(&told)?;
                }
                BrokerReply::Done => return answer.ok_or(ServiceError::Refused),
                _ => return Err(ServiceError::Refused),
            }
        }
    }
}

impl Carrier for BrokerClient {
    fn exchange(&self, endpoint: &Endpoint, request: &[u8]) -> Result<Response, StoreTrouble> {
        let mut exchange = Exchange::open(endpoint, request).map_err(|why| trouble(&why))?;
        let dial = BrokerRequest::Connect { host: endpoint.host.clone(), port: endpoint.port };
        let mut conversation = self.begin(&dial).map_err(|_| StoreTrouble::Away)?;
        conversation.deadline = Instant::now().checked_add(store::TIMEOUT).unwrap_or(conversation.deadline);
        let response = conversation.converse(&mut exchange);
        // Where the broker has ended it already, nobody listens.
        let _ = conversation.say(&BrokerRequest::Close);
        response
    }
}

/// Why a store did not answer.
fn trouble(why: &NoResponse) -> StoreTrouble {
    match why {
        NoResponse::Tls(_) => StoreTrouble::Tls,
        NoResponse::Closed | NoResponse::OtherRequest => StoreTrouble::Away,
        NoResponse::Malformed => StoreTrouble::Record,
    }
}

impl Disk for BrokerClient {
    fn read_record(&self, group: &str) -> Result<Option<RecordBytes>, ServiceError> {
        match self.call_within(store::TIMEOUT, &BrokerRequest::ReadRecord { group: group.to_owned() })? {
            BrokerReply::Record { record } => Ok(record),
            _ => Err(ServiceError::Refused),
        }
    }

    fn swap_record(&self, group: &str, old: Option<RecordBytes>, new: RecordBytes) -> Result<bool, ServiceError> {
        match self.call_within(store::TIMEOUT, &BrokerRequest::SwapRecord { group: group.to_owned(), old, new })? {
            BrokerReply::Swapped => Ok(true),
            BrokerReply::Conflict => Ok(false),
            _ => Err(ServiceError::Refused),
        }
    }
}

impl Conversation<'_> {
    /// Carries TLS until the response is whole.
    fn converse(&self, exchange: &mut Exchange) -> Result<Response, StoreTrouble> {
        let away = |_| StoreTrouble::Away;
        self.carry(0, &exchange.outgoing()).map_err(away)?;
        loop {
            let BrokerReply::TlsIn { attempt: 0, bytes } = self.hear().map_err(away)? else {
                return Err(StoreTrouble::Away);
            };
            let came = match &bytes {
                Some(bytes) => exchange.incoming(bytes.as_ref()),
                None => Err(NoResponse::Closed),
            };
            // An alert too, where TLS was broken.
            self.carry(0, &exchange.outgoing()).map_err(away)?;
            if let Some(response) = came.map_err(|why| trouble(&why))? {
                return Ok(response);
            }
        }
    }

    fn say(&self, call: &BrokerRequest) -> Result<(), ServiceError> {
        let mut bytes = Vec::new();
        broker::encode(self.id, call, &mut bytes);
        let written = self.calls.output.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes);
        written.map_err(|_| ServiceError::Away)
    }

    fn carry(&self, attempt: u64, bytes: &[u8]) -> Result<(), ServiceError> {
        bytes.chunks(PART_LEN).try_for_each(|part| self.say(&BrokerRequest::TlsOut { attempt, bytes: bounded(part)? }))
    }

    fn hear(&self) -> Result<BrokerReply, ServiceError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.answers.recv_timeout(left).map_err(|_| ServiceError::Away)? {
            BrokerReply::Failed(Failure::Away) => Err(ServiceError::Away),
            BrokerReply::Failed(Failure::Credentials) => Err(ServiceError::Credentials),
            BrokerReply::Failed(Failure::Denied) => Err(ServiceError::Denied),
            BrokerReply::Failed(Failure::Refused) => Err(ServiceError::Refused),
            answer => Ok(answer),
        }
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        self.calls.waiting.lock().unwrap_or_else(PoisonError::into_inner).calls.remove(&self.id);
    }
}

/// KMS and the parent's disk, through the broker.
pub struct BrokerServices {
    calls: Arc<BrokerClient>,
    kms: Endpoint,
}

impl BrokerServices {
    /// With KMS at this endpoint.
    pub fn new(calls: Arc<BrokerClient>, kms: Endpoint) -> Self {
        Self { calls, kms }
    }
}

fn bounded<const MIN: usize, const MAX: usize>(bytes: &[u8]) -> Result<BoundedBytes<MIN, MAX>, ServiceError> {
    BoundedBytes::new(bytes.to_vec()).ok_or(ServiceError::Refused)
}

fn offset(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Services for BrokerServices {
    fn generate_data_key(
        &self,
        key_arn: &str,
        document: &[u8],
        context: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError> {
        let EncryptionContext { group, network } = context;
        let call = BrokerRequest::GenerateDataKey {
            key_arn: key_arn.to_owned(),
            group: group.clone(),
            network: *network,
            document: bounded(document)?,
        };
        self.calls.kms(&self.kms, &call, &KmsRequest { key_arn, group, network: *network, document, wrapped: None })
    }

    fn decrypt(
        &self,
        key_arn: &str,
        wrapped: &[u8],
        document: &[u8],
        context: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError> {
        let EncryptionContext { group, network } = context;
        let call = BrokerRequest::Decrypt {
            key_arn: key_arn.to_owned(),
            group: group.clone(),
            network: *network,
            document: bounded(document)?,
            wrapped: bounded(wrapped)?,
        };
        self.calls.kms(
            &self.kms,
            &call,
            &KmsRequest { key_arn, group, network: *network, document, wrapped: Some(wrapped) },
        )
    }

    fn list_blobs(&self, group: &str) -> Result<Vec<u64>, ServiceError> {
        match self.calls.call(&BrokerRequest::ListBlobs { group: group.to_owned() })? {
            BrokerReply::Blobs { state_versions } => Ok(state_versions),
            _ => Err(ServiceError::Refused),
        }
    }

    fn load_blob(&self, group: &str, state_version: u64) -> Result<Vec<u8>, ServiceError> {
        let mut blob = Vec::new();
        loop {
            let call = BrokerRequest::LoadBlob { group: group.to_owned(), state_version, offset: offset(blob.len()) };
            let BrokerReply::Part { total, part } = self.calls.call(&call)? else { return Err(ServiceError::Refused) };
            blob.extend_from_slice(part.as_ref());
            let total = usize::try_from(total).ok().filter(|total| *total <= MAX_BLOB_LEN && blob.len() <= *total);
            // Every part has at least one byte, so this ends.
            match total {
                Some(total) if total == blob.len() => return Ok(blob),
                Some(_) => {}
                None => return Err(ServiceError::Refused),
            }
        }
    }

    fn store_blob(&self, group: &str, state_version: u64, blob: &[u8]) -> Result<(), ServiceError> {
        let total = offset(blob.len());
        let mut sent = 0_usize;
        for part in blob.chunks(PART_LEN) {
            let call = BrokerRequest::StoreBlob {
                group: group.to_owned(),
                state_version,
                offset: offset(sent),
                total,
                part: bounded(part)?,
            };
            sent = sent.saturating_add(part.len());
            match self.calls.call(&call)? {
                BrokerReply::Taken if sent < blob.len() => {}
                BrokerReply::Stored if sent == blob.len() => return Ok(()),
                _ => return Err(ServiceError::Refused),
            }
        }
        Err(ServiceError::Refused)
    }
}
