//! How a store of the fence's record is reached: bytes to its address, or the parent's disk.

use std::time::Duration;

use casemate_protocol::host_services::RecordBytes;
use casemate_protocol::refusal::StoreTrouble;

use crate::keys::custody::ServiceError;
use crate::link::tls::{Endpoint, Response};

/// Longest wait for an answer of a store.
pub const TIMEOUT: Duration = Duration::from_secs(4);

/// Carries one HTTP request to one of the store's servers, over TLS of the vault's own.
pub trait Carrier: Send + Sync {
    /// The response, or why there is none.
    fn exchange(&self, endpoint: &Endpoint, request: &[u8]) -> Result<Response, StoreTrouble>;
}

/// The parent's disk, through the broker.
pub trait Disk: Send + Sync {
    /// The record; nothing where there is no file.
    fn read_record(&self, group: &str) -> Result<Option<RecordBytes>, ServiceError>;

    /// Whether the new one was put in the place of the old one; returns once it is on the disk.
    fn swap_record(&self, group: &str, old: Option<RecordBytes>, new: RecordBytes) -> Result<bool, ServiceError>;
}
