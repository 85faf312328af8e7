//! Stores of the fence's record: they send requests ([`StoreOp`]) to a linearizable store and say what it answered.
//!
//! TLS ends here, with credentials that are sealed with the group: the broker carries bytes, and can neither forge an answer nor
//! write the record. Whatever is not clearly a yes or a no is [`StoreResponse::Unclear`].

pub mod dynamodb;
pub mod etcd;
pub mod file;
pub mod sigv4;

use std::sync::Arc;

use casemate_fence::{GroupId, StoreOp, StoreResponse};
use casemate_protocol::arn::TableArn;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::configuration::RecordStore;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::RecordKind;
use rustls::RootCertStore;

use crate::link::broker_client::BrokerClient;
use crate::link::kms::amazon_roots;
pub use crate::link::store::{Carrier, TIMEOUT};
use crate::link::tls::Endpoint;
use crate::platform::clock::Clock;

/// Why a store cannot be asked at all. It ends the start: no store is never taken for a fence that needs none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum StoreError {
    #[error(
        "the fence's store: {0:?} can be no server's name; the configuration must name a DNS name or an IP address"
    )]
    Host(String),
    #[error("the fence's store: the configured root is no certificate of an authority")]
    Root,
    #[error("the fence's store: the configuration names no endpoint")]
    NoEndpoint,
}

/// A store of one group's record.
pub trait Store: Send {
    /// Which kind of fence it makes.
    fn kind(&self) -> RecordKind;

    /// Which store it is, for the statement; nothing where the kind has no others.
    fn identity(&self) -> Option<String>;

    /// Puts a question. Unclear where there was no answer, or none that is clear.
    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>);

    /// From now on with these credentials. `false` where they are not of this kind of store, or damaged.
    fn open(&mut self, credentials: &StoreCredentials) -> bool;

    /// Whether it can ask: it needs no credentials, or has some.
    fn is_open(&self) -> bool;
}

/// Where DynamoDB is, and who may claim to be it. AWS's own unless a program is built otherwise.
pub struct DynamodbAt {
    /// Its host, for a table.
    pub host: fn(&TableArn) -> String,
    /// Port.
    pub port: u16,
    /// Roots.
    pub roots: RootCertStore,
}

impl DynamodbAt {
    /// AWS's own endpoint of each region, under Amazon's roots.
    pub fn aws() -> Self {
        Self { host: TableArn::host, port: 443, roots: amazon_roots() }
    }
}

/// The store that the measured configuration names, ready to be asked once it has credentials.
pub fn open(
    configured: &RecordStore,
    place: GroupId,
    calls: Arc<BrokerClient>,
    clock: Arc<dyn Clock>,
    dynamodb_at: &DynamodbAt,
) -> Result<Box<dyn Store>, StoreError> {
    Ok(match configured {
        RecordStore::File => Box::new(file::File::new(calls, place)),
        RecordStore::Etcd { endpoints, root, cluster, prefix } => {
            let which = etcd::Which { endpoints, root: root.as_ref(), cluster: *cluster, prefix };
            Box::new(etcd::Etcd::new(calls, place, &which)?)
        }
        RecordStore::Dynamodb { table } => {
            let host = (dynamodb_at.host)(table);
            let endpoint = Endpoint::new(&host, dynamodb_at.port, dynamodb_at.roots.clone());
            let endpoint = endpoint.ok_or(StoreError::Host(host))?;
            Box::new(dynamodb::Dynamodb::new(calls, clock, place, endpoint, table.clone()))
        }
    })
}

/// An HTTP request with a JSON body.
fn post(path: &str, endpoint: &Endpoint, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\n", endpoint.authority);
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.extend(["content-length: ", &body.len().to_string(), "\r\n\r\n"]);
    let mut request = head.into_bytes();
    request.extend_from_slice(body);
    request
}
