//! The record in a file on the parent's disk, for a disk that its owner trusts: the development stack's. Anyone who can write the
//! file can roll the record back.

use std::sync::Arc;

use casemate_fence::{GroupId, Record, StoreOp, StoreResponse};
use casemate_protocol::BoundedBytes;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::host_services::RecordBytes;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::RecordKind;

use super::Store;
use crate::link::store::Disk;

/// A file.
pub struct File<D> {
    disk: Arc<D>,
    place: GroupId,
}

impl<D: Disk> File<D> {
    /// Of this group.
    pub fn new(disk: Arc<D>, place: GroupId) -> Self {
        Self { disk, place }
    }

    fn bytes(&self, record: &Record) -> Option<RecordBytes> {
        BoundedBytes::new(record.encode(&self.place))
    }

    fn swap(&self, old: Option<&Record>, new: &Record) -> (StoreResponse, Option<StoreTrouble>) {
        let old = match old.map(|old| self.bytes(old)) {
            Some(None) => return (StoreResponse::Unclear, Some(StoreTrouble::Record)),
            Some(old) => old,
            None => None,
        };
        let Some(new) = self.bytes(new) else { return (StoreResponse::Unclear, Some(StoreTrouble::Record)) };
        match self.disk.swap_record(&self.place.group, old, new) {
            Ok(true) => (StoreResponse::Swapped, None),
            Ok(false) => (StoreResponse::Conflict, None),
            Err(_) => (StoreResponse::Unclear, Some(StoreTrouble::Away)),
        }
    }
}

impl<D: Disk> Store for File<D> {
    fn kind(&self) -> RecordKind {
        RecordKind::File
    }

    fn identity(&self) -> Option<String> {
        None
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        match question {
            StoreOp::Read => match self.disk.read_record(&self.place.group) {
                Ok(None) => (StoreResponse::Record(None), None),
                Ok(Some(bytes)) => match Record::decode(bytes.as_ref(), &self.place) {
                    Ok(record) => (StoreResponse::Record(Some(record)), None),
                    Err(_) => (StoreResponse::Unclear, Some(StoreTrouble::Record)),
                },
                Err(_) => (StoreResponse::Unclear, Some(StoreTrouble::Away)),
            },
            StoreOp::Create(new) => self.swap(None, new),
            StoreOp::Swap { old, new } => self.swap(Some(old), new),
        }
    }

    fn open(&mut self, _credentials: &StoreCredentials) -> bool {
        false
    }

    fn is_open(&self) -> bool {
        true
    }
}
