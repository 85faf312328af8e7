//! The vault's calls to the broker, over the one socket there is.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_protocol::calls::{self, Answer, Call, Failure, PART_LEN};
use casemate_protocol::{BoundedBytes, FrameError};

use crate::custody::{EncryptionContext, KmsAnswer, ServiceError, Services};
use crate::seal::MAX_BLOB_LEN;

/// Longest wait for an answer: the broker gives KMS 45 s, with all attempts.
const TIMEOUT: Duration = Duration::from_mins(2);

/// The vault's side of channel 0. Frames go out under the lock that replies go out under too.
pub struct Calls {
    output: Arc<Mutex<UnixStream>>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, SyncSender<Answer>>>,
}

impl Calls {
    pub(crate) fn new(output: Arc<Mutex<UnixStream>>) -> Self {
        Self { output, next: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// An answer from the broker. One to a number that nobody waits for any more is dropped.
    pub(crate) fn deliver(&self, frame: &[u8]) -> Result<(), FrameError> {
        let answer = calls::decode_answer(frame)?;
        let asker = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&answer.id);
        if let Some(asker) = asker {
            // There is room for one, and one is sent.
            let _ = asker.try_send(answer.content);
        }
        Ok(())
    }

    /// Nobody will answer any more.
    pub(crate) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn call(&self, call: &Call) -> Result<Answer, ServiceError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (asker, answer) = sync_channel(1);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, asker);
        let mut bytes = Vec::new();
        calls::encode(id, call, &mut bytes);
        let written = self.output.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes);
        let answered = match written {
            Ok(()) => answer.recv_timeout(TIMEOUT).map_err(|_| ServiceError::Away),
            Err(_) => Err(ServiceError::Away),
        };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        match answered? {
            Answer::Failed(Failure::Away) => Err(ServiceError::Away),
            Answer::Failed(Failure::Credentials) => Err(ServiceError::Credentials),
            Answer::Failed(Failure::Denied) => Err(ServiceError::Denied),
            Answer::Failed(Failure::Refused) => Err(ServiceError::Refused),
            answer => Ok(answer),
        }
    }

    fn data_key(&self, call: &Call) -> Result<KmsAnswer, ServiceError> {
        match self.call(call)? {
            Answer::DataKey { key_arn, wrapped, for_recipient } => {
                Ok(KmsAnswer { key_arn, wrapped: wrapped.into_vec(), for_recipient: for_recipient.into_vec() })
            }
            _ => Err(ServiceError::Refused),
        }
    }
}

fn bounded<const MIN: usize, const MAX: usize>(bytes: &[u8]) -> Result<BoundedBytes<MIN, MAX>, ServiceError> {
    BoundedBytes::new(bytes.to_vec()).ok_or(ServiceError::Refused)
}

fn offset(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Services for Calls {
    fn generate_data_key(
        &self,
        key_arn: &str,
        document: &[u8],
        context: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError> {
        self.data_key(&Call::GenerateDataKey {
            key_arn: key_arn.to_owned(),
            group: context.group.clone(),
            network: context.network,
            document: bounded(document)?,
        })
    }

    fn decrypt(
        &self,
        key_arn: &str,
        wrapped: &[u8],
        document: &[u8],
        context: &EncryptionContext,
    ) -> Result<KmsAnswer, ServiceError> {
        self.data_key(&Call::Decrypt {
            key_arn: key_arn.to_owned(),
            group: context.group.clone(),
            network: context.network,
            document: bounded(document)?,
            wrapped: bounded(wrapped)?,
        })
    }

    fn list_blobs(&self, group: &str) -> Result<Vec<u64>, ServiceError> {
        match self.call(&Call::ListBlobs { group: group.to_owned() })? {
            Answer::Blobs { generations } => Ok(generations),
            _ => Err(ServiceError::Refused),
        }
    }

    fn load_blob(&self, group: &str, generation: u64) -> Result<Vec<u8>, ServiceError> {
        let mut blob = Vec::new();
        loop {
            let call = Call::LoadBlob { group: group.to_owned(), generation, offset: offset(blob.len()) };
            let Answer::Part { total, part } = self.call(&call)? else { return Err(ServiceError::Refused) };
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

    fn store_blob(&self, group: &str, generation: u64, blob: &[u8]) -> Result<(), ServiceError> {
        let total = offset(blob.len());
        let mut sent = 0_usize;
        for part in blob.chunks(PART_LEN) {
            let call = Call::StoreBlob {
                group: group.to_owned(),
                generation,
                offset: offset(sent),
                total,
                part: bounded(part)?,
            };
            sent = sent.saturating_add(part.len());
            match self.call(&call)? {
                Answer::Taken if sent < blob.len() => {}
                Answer::Stored if sent == blob.len() => return Ok(()),
                _ => return Err(ServiceError::Refused),
            }
        }
        Err(ServiceError::Refused)
    }
}
