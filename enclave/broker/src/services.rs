//! The vault's calls, carried out: KMS through the parent, and the parent's disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_protocol::broker::{BrokerReply, BrokerRequest, Failure, PART_LEN};
use casemate_protocol::host_services::MAX_BLOB_LEN;
use casemate_protocol::{BoundedBytes, HostReply, HostRequest, Root};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::kms::{Conversation, EncryptionContext, Kms, KmsError};
use crate::parent::{Parent, ParentError};

/// Longest conversation with the fence's store: the vault waits for four seconds.
const MAX_DIAL: Duration = Duration::from_secs(10);
/// Blobs that are on their way in parts, at once: the vault sends one after the other.
const MAX_UNFINISHED: usize = 4;

/// A blob by group and version.
type Name = (String, u64);

/// KMS and the parent.
pub struct Services {
    kms: Kms,
    parent: Parent,
    /// The blob that was last loaded: its other parts are asked for next.
    loaded: Mutex<Option<(Name, Arc<Vec<u8>>)>>,
    /// Blobs of which parts have come.
    unfinished: Mutex<HashMap<Name, Vec<u8>>>,
}

impl Services {
    /// These two.
    pub fn new(kms: Kms, parent: Parent) -> Self {
        Self { kms, parent, loaded: Mutex::default(), unfinished: Mutex::default() }
    }

    /// Carries out a call. What went wrong goes into the log; the vault hears its kind.
    pub async fn answer(&self, call: BrokerRequest, conversation: Conversation) -> BrokerReply {
        self.carry_out(call, conversation).await.unwrap_or_else(|error| {
            warn!(%error, "a call of the vault failed");
            BrokerReply::Failed(error.failure())
        })
    }

    async fn carry_out(&self, call: BrokerRequest, conversation: Conversation) -> Result<BrokerReply, CallError> {
        match call {
            BrokerRequest::GenerateDataKey { key_arn, group, network, document } => {
                let context = context(group, network);
                self.kms.generate_data_key(conversation, &key_arn, document.into_vec(), context).await?;
                Ok(BrokerReply::Done)
            }
            BrokerRequest::Decrypt { key_arn, group, network, document, wrapped } => {
                let context = context(group, network);
                let (wrapped, document) = (wrapped.into_vec(), document.into_vec());
                self.kms.decrypt(conversation, &key_arn, wrapped, document, context).await?;
                Ok(BrokerReply::Done)
            }
            BrokerRequest::TlsOut { .. }
            | BrokerRequest::Response { .. }
            | BrokerRequest::NoResponse { .. }
            | BrokerRequest::Close => Err(CallError::Part),
            BrokerRequest::Connect { host, port } => self.dial(conversation, &host, port).await,
            BrokerRequest::ReadRecord { group } => match self.parent.ask(&HostRequest::ReadRecord { group }).await? {
                HostReply::Record { record } => Ok(BrokerReply::Record { record }),
                _ => Err(ParentError::Unexpected.into()),
            },
            BrokerRequest::SwapRecord { group, old, new } => {
                match self.parent.ask(&HostRequest::SwapRecord { group, old, new }).await? {
                    HostReply::Swapped => Ok(BrokerReply::Swapped),
                    HostReply::Conflict => Ok(BrokerReply::Conflict),
                    _ => Err(ParentError::Unexpected.into()),
                }
            }
            BrokerRequest::ListBlobs { group } => match self.parent.ask(&HostRequest::ListBlobs { group }).await? {
                HostReply::Blobs { mut state_versions } => {
                    state_versions.truncate(1000);
                    Ok(BrokerReply::Blobs { state_versions })
                }
                _ => Err(ParentError::Unexpected.into()),
            },
            BrokerRequest::LoadBlob { group, state_version, offset } => self.load((group, state_version), offset).await,
            BrokerRequest::StoreBlob { group, state_version, offset, total, part } => {
                self.store((group, state_version), offset, total, part.as_ref()).await
            }
        }
    }

    /// Carries the vault's TLS to the fence's store and back, until the vault has had enough.
    async fn dial(&self, conversation: Conversation, host: &str, port: u16) -> Result<BrokerReply, CallError> {
        let stream = self.parent.connect(host, port).await?;
        let carried = timeout(MAX_DIAL, conversation.relay(stream)).await;
        carried.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(CallError::Carry)?;
        Ok(BrokerReply::Done)
    }

    async fn load(&self, name: Name, offset: u64) -> Result<BrokerReply, CallError> {
        let cached = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let blob = if let Some((_, blob)) = cached.filter(|(loaded, _)| offset > 0 && *loaded == name) {
            blob
        } else {
            let request = HostRequest::LoadBlob { group: name.0.clone(), state_version: name.1 };
            let HostReply::Blob { blob } = self.parent.ask(&request).await? else {
                return Err(ParentError::Unexpected.into());
            };
            let blob = Arc::new(blob.into_vec());
            *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some((name, Arc::clone(&blob)));
            blob
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = blob.get(offset..).map(|rest| rest.get(..PART_LEN).unwrap_or(rest).to_vec());
        let part = part.and_then(BoundedBytes::new).ok_or(CallError::Part)?;
        if offset.saturating_add(part.as_ref().len()) == blob.len() {
            *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(BrokerReply::Part { total: u64::try_from(blob.len()).unwrap_or(u64::MAX), part })
    }

    async fn store(&self, name: Name, offset: u64, total: u64, part: &[u8]) -> Result<BrokerReply, CallError> {
        let total = usize::try_from(total).ok().filter(|total| *total <= MAX_BLOB_LEN).ok_or(CallError::Part)?;
        let whole = {
            let mut unfinished = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
            if offset == 0 {
                if unfinished.len() >= MAX_UNFINISHED && !unfinished.contains_key(&name) {
                    unfinished.clear();
                }
                unfinished.insert(name.clone(), Vec::new());
            }
            let held = unfinished.get_mut(&name).ok_or(CallError::Part)?;
            let in_order = usize::try_from(offset) == Ok(held.len());
            if !in_order || held.len().saturating_add(part.len()) > total {
                unfinished.remove(&name);
                return Err(CallError::Part);
            }
            held.extend_from_slice(part);
            if held.len() < total {
                return Ok(BrokerReply::Taken);
            }
            unfinished.remove(&name).unwrap_or_default()
        };
        let (group, state_version) = name;
        let blob = BoundedBytes::new(whole).ok_or(CallError::Part)?;
        let request = HostRequest::StoreBlob { group: group.clone(), state_version, blob };
        match self.parent.ask(&request).await? {
            HostReply::Stored => {
                info!(group, state_version, bytes = total, "the vault's state is sealed and stored");
                Ok(BrokerReply::Stored)
            }
            _ => Err(ParentError::Unexpected.into()),
        }
    }
}

fn context(group: String, network: Root) -> EncryptionContext {
    vec![("casemate:group".to_owned(), group), ("casemate:network".to_owned(), network.to_string())]
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Kms(#[from] KmsError),
    #[error(transparent)]
    Parent(#[from] ParentError),
    #[error("a part that does not follow the last one")]
    Part,
    #[error("carrying for the fence's store: {0}")]
    Carry(std::io::Error),
}

impl CallError {
    fn failure(&self) -> Failure {
        match self {
            Self::Kms(KmsError::Away(_) | KmsError::Tls(_)) | Self::Parent(ParentError::Away(_)) | Self::Carry(_) => {
                Failure::Away
            }
            Self::Kms(KmsError::Credentials(_)) => Failure::Credentials,
            Self::Kms(KmsError::Denied(_)) => Failure::Denied,
            Self::Kms(KmsError::Refused(_) | KmsError::OtherRequest) | Self::Parent(_) | Self::Part => Failure::Refused,
        }
    }
}
