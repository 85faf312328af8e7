//! The record in etcd: a key's value, through the JSON gateway of etcd's v3 API (HTTP/1.1; the same transactions as over gRPC).
//!
//! Which etcd it is says the cluster's id in every answer: TLS alone would take any cluster under the same root, with a copy of the
//! record. Reads are linearizable, which is etcd's default. A swap is a transaction that compares the key's `mod_revision` **and** its
//! value. The client's certificate is the credential.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_fence::{GroupId, Record, StoreOp, StoreResponse};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::configuration::StoreEndpoint;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::RecordKind;
use casemate_protocol::store::{ClusterId, KeyPrefix, etcd_identity};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use serde_json::json;

use super::{Carrier, Store, StoreError, post};
use crate::keys::custody::digest_of;
use crate::link::tls::{Endpoint, Response};

/// etcd.
pub struct Etcd<C> {
    carrier: Arc<C>,
    place: GroupId,
    configured: Vec<StoreEndpoint>,
    roots: RootCertStore,
    cluster: ClusterId,
    prefix: KeyPrefix,
    identity: String,
    /// With the client's certificate; empty without.
    endpoints: Vec<Endpoint>,
    /// Which is asked next: where one does not answer, another is asked.
    next: usize,
    /// The record that was last seen, and its `mod_revision`.
    revision: Option<(Record, i64)>,
}

/// Which etcd is asked.
pub struct Which<'a> {
    /// Its servers.
    pub endpoints: &'a [StoreEndpoint],
    /// The certificate that theirs come from, DER.
    pub root: &'a [u8],
    /// The cluster that they are.
    pub cluster: ClusterId,
    /// In front of the record's key.
    pub prefix: &'a KeyPrefix,
}

/// What every answer has.
#[derive(Deserialize)]
struct Headed {
    header: Option<ClusterHeader>,
}

#[derive(Deserialize)]
struct ClusterHeader {
    #[serde(default)]
    cluster_id: String,
}

/// 64-bit numbers are strings in proto3's JSON; what is zero or empty is left out.
#[derive(Deserialize)]
struct RangeResponse {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    value: String,
    mod_revision: String,
}

#[derive(Deserialize)]
struct TxnResponse {
    header: Header,
    #[serde(default)]
    succeeded: bool,
}

#[derive(Deserialize)]
struct Header {
    revision: String,
}

impl<C: Carrier> Etcd<C> {
    /// This etcd. An error where its servers or its root cannot be what they should be, so that it shows at the start.
    pub fn new(carrier: Arc<C>, place: GroupId, which: &Which<'_>) -> Result<Self, StoreError> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(which.root.to_vec())).map_err(|_| StoreError::Root)?;
        if which.endpoints.is_empty() {
            return Err(StoreError::NoEndpoint);
        }
        for StoreEndpoint { host, port } in which.endpoints {
            Endpoint::new(host, *port, roots.clone()).ok_or_else(|| StoreError::Host(host.clone()))?;
        }
        let identity = etcd_identity(which.cluster, which.prefix, &digest_of(which.root));
        Ok(Self {
            carrier,
            place,
            configured: which.endpoints.to_vec(),
            roots,
            cluster: which.cluster,
            prefix: which.prefix.clone(),
            identity,
            endpoints: Vec::new(),
            next: 0,
            revision: None,
        })
    }

    fn key(&self) -> String {
        BASE64_STANDARD.encode(format!("{}{}/{}/fence", self.prefix, self.place.group, self.place.network))
    }

    /// Whether an answer is one of the configured cluster's. One that does not say whose it is is not.
    fn check_cluster(&self, response: &Response) -> Result<(), StoreTrouble> {
        let Headed { header } = serde_json::from_slice(response.body.as_ref()).map_err(|_| StoreTrouble::Record)?;
        let ours = header.is_some_and(|header| self.cluster.is(&header.cluster_id));
        if ours { Ok(()) } else { Err(StoreTrouble::OtherStore) }
    }

    /// Asks one server; the next one the next time, where this one does not answer.
    fn call(&mut self, path: &str, body: &serde_json::Value) -> Result<Response, StoreTrouble> {
        let count = self.endpoints.len();
        let endpoint = self.endpoints.get(self.next.checked_rem(count).unwrap_or(0));
        let endpoint = endpoint.ok_or(StoreTrouble::NoCredentials)?;
        let headers = [("content-type", "application/json"), ("accept", "application/json")];
        let request = post(path, endpoint, &headers, body.to_string().as_bytes());
        let response = self.carrier.exchange(endpoint, &request).and_then(|response| match response.status {
            200 => self.check_cluster(&response).map(|()| response),
            status => Err(StoreTrouble::Status { status }),
        });
        if response.is_err() {
            self.next = self.next.wrapping_add(1);
        }
        response
    }

    fn read(&mut self) -> Result<Option<Record>, StoreTrouble> {
        let key = self.key();
        let response = self.call("/v3/kv/range", &json!({ "key": key }))?;
        let RangeResponse { kvs } = serde_json::from_slice(response.body.as_ref()).map_err(|_| StoreTrouble::Record)?;
        let found = match kvs.as_slice() {
            [] => None,
            [found] if found.key == key => Some(found),
            _ => return Err(StoreTrouble::Record),
        };
        let Some(found) = found else {
            self.revision = None;
            return Ok(None);
        };
        let bytes = BASE64_STANDARD.decode(&found.value).map_err(|_| StoreTrouble::Record)?;
        let record = Record::decode(&bytes, &self.place).map_err(|_| StoreTrouble::Record)?;
        self.revision = Some((record, found.mod_revision.parse().map_err(|_| StoreTrouble::Record)?));
        Ok(Some(record))
    }

    fn swap(&mut self, old: Option<&Record>, new: &Record) -> Result<bool, StoreTrouble> {
        let key = self.key();
        // Revision 0 is that of a key that is not there.
        let mut compare = Vec::new();
        match (old, self.revision) {
            (None, _) => {
                compare.push(json!({ "key": key, "target": "MOD", "result": "EQUAL", "modRevision": "0" }));
            }
            (Some(old), revision) => {
                let value = BASE64_STANDARD.encode(old.encode(&self.place));
                compare.push(json!({ "key": key, "target": "VALUE", "result": "EQUAL", "value": value }));
                if let Some((_, revision)) = revision.filter(|(record, _)| record == old) {
                    let revision = revision.to_string();
                    compare.push(json!({ "key": key, "target": "MOD", "result": "EQUAL", "modRevision": revision }));
                }
            }
        }
        let value = BASE64_STANDARD.encode(new.encode(&self.place));
        let body = json!({ "compare": compare, "success": [{ "requestPut": { "key": key, "value": value } }] });
        let response = self.call("/v3/kv/txn", &body)?;
        let TxnResponse { header, succeeded } =
            serde_json::from_slice(response.body.as_ref()).map_err(|_| StoreTrouble::Record)?;
        // The put's revision is the transaction's.
        self.revision = match header.revision.parse() {
            Ok(revision) if succeeded => Some((*new, revision)),
            _ => None,
        };
        Ok(succeeded)
    }
}

impl<C: Carrier> Store for Etcd<C> {
    fn kind(&self) -> RecordKind {
        RecordKind::Etcd
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        let heard = match question {
            StoreOp::Read => self.read().map(StoreResponse::Record),
            StoreOp::Create(new) => self.swap(None, new).map(heard),
            StoreOp::Swap { old, new } => self.swap(Some(old), new).map(heard),
        };
        heard.map_or_else(|trouble| (StoreResponse::Unclear, Some(trouble)), |heard| (heard, None))
    }

    fn open(&mut self, credentials: &StoreCredentials) -> bool {
        let StoreCredentials::Etcd { certificates, key } = credentials else { return false };
        let endpoint = |at: &StoreEndpoint| {
            let certificates = certificates.iter().map(|der| CertificateDer::from(der.as_ref().to_vec())).collect();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.as_ref().to_vec()));
            Endpoint::with_client(&at.host, at.port, self.roots.clone(), certificates, key)
        };
        let endpoints: Option<Vec<Endpoint>> = self.configured.iter().map(endpoint).collect();
        let opened = endpoints.is_some();
        if let Some(endpoints) = endpoints {
            self.endpoints = endpoints;
        }
        opened
    }

    fn is_open(&self) -> bool {
        !self.endpoints.is_empty()
    }
}

fn heard(succeeded: bool) -> StoreResponse {
    if succeeded { StoreResponse::Swapped } else { StoreResponse::Conflict }
}
