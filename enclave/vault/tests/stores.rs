//! What stores are asked and what they say of themselves, with answers that somebody else writes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_fence::{Record, StoreOp, StoreResponse};
use casemate_protocol::arn::TableArn;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::configuration::StoreEndpoint;
use casemate_protocol::refusal::{NotHolder, StoreTrouble};
use casemate_protocol::statement::{FenceKind, RecordKind, StatedStatus};
use casemate_protocol::store::{ClusterId, KeyPrefix};
use casemate_protocol::{BoundedBytes, Bytes, Refusal};
use casemate_vault::SystemClock;
use casemate_vault::fence::store::dynamodb::Dynamodb;
use casemate_vault::fence::store::etcd::{Etcd, Which};
use casemate_vault::fence::store::{Carrier, Store, StoreError};
use casemate_vault::link::tls::{Endpoint, Response};
use common::fence::{Member, block, first_record, network, now_ms, place};
use common::{Bench, GROUP};
use rustls::RootCertStore;
use serde_json::{Value, json};

/// The configured cluster, and as answers have it.
const CLUSTER: &str = "cdf818194e3a8c32";
const ANSWERED: &str = "14841639068965178418";

/// Answers everything with one body, and keeps what was asked.
#[derive(Clone)]
struct Canned(Arc<Mutex<(Value, Vec<String>)>>);

impl Canned {
    fn new(body: Value) -> Self {
        Self(Arc::new(Mutex::new((body, Vec::new()))))
    }

    fn answers(&self, body: Value) {
        self.0.lock().unwrap().0 = body;
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

impl Carrier for Canned {
    fn exchange(&self, _: &Endpoint, request: &[u8]) -> Result<Response, StoreTrouble> {
        let mut canned = self.0.lock().unwrap();
        canned.1.push(String::from_utf8(request.to_vec()).unwrap());
        let body = canned.0.to_string().into_bytes();
        Ok(Response { status: 200, body: BoundedBytes::new(body).unwrap() })
    }
}

/// A certificate and its key, DER.
fn certificate() -> (Vec<u8>, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["c".into()]).unwrap().self_signed(&key).unwrap();
    (certificate.der().to_vec(), key.serialize_der())
}

fn endpoint(host: &str) -> StoreEndpoint {
    StoreEndpoint { host: host.into(), port: 2379 }
}

fn etcd(carrier: &Canned, prefix: &str) -> Etcd<Canned> {
    let (root, key) = certificate();
    let (prefix, endpoints) = (KeyPrefix::parse(prefix).unwrap(), [endpoint("localhost")]);
    let which =
        Which { endpoints: &endpoints, root: &root, cluster: ClusterId::parse(CLUSTER).unwrap(), prefix: &prefix };
    let mut store = Etcd::new(Arc::new(carrier.clone()), place(), &which).unwrap();
    assert_eq!(store.kind(), RecordKind::Etcd);
    let root_sha256 = const_hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root));
    assert_eq!(store.identity(), Some(format!("{CLUSTER}/{prefix}#root-sha256={root_sha256}")));
    assert!(store.open(&StoreCredentials::Etcd {
        certificates: vec![BoundedBytes::new(root).unwrap()],
        key: BoundedBytes::new(key).unwrap(),
    }));
    store
}

/// What a server answers to a read: this record.
fn range(header: &Value, key: &str, record: &Record) -> Value {
    let kvs = json!([{
        "key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(record.encode(&place())), "mod_revision": "7",
    }]);
    json!({ "header": header, "kvs": kvs })
}

fn key(prefix: &str) -> String {
    format!("{prefix}{GROUP}/{}/fence", place().network)
}

#[test]
fn every_answer_of_etcd_must_be_the_configured_clusters() {
    let carrier = Canned::new(Value::Null);
    let mut store = etcd(&carrier, "casemate/");
    let (first, other) = (first_record(), (StoreResponse::Unclear, Some(StoreTrouble::OtherStore)));
    let second = Record { version: 2, holder: Bytes([1; 32]), term: 1, ..first };
    let swap = StoreOp::Swap { old: first, new: second };
    // Another's, none, and what only looks like it.
    for header in [
        json!({ "cluster_id": "14841639068965178419", "revision": "8" }),
        json!({ "cluster_id": format!("0{ANSWERED}"), "revision": "8" }),
        json!({ "cluster_id": CLUSTER, "revision": "8" }),
        json!({ "cluster_id": "", "revision": "8" }),
        json!({ "revision": "8" }),
        Value::Null,
    ] {
        carrier.answers(range(&header, &key("casemate/"), &first));
        assert_eq!(store.ask(&StoreOp::Read), other, "{header}");
        for succeeded in [true, false] {
            carrier.answers(json!({ "header": header, "succeeded": succeeded }));
            assert_eq!(store.ask(&swap), other, "{header}");
            assert_eq!(store.ask(&StoreOp::Create(first)), other, "{header}");
        }
        carrier.answers(json!({ "header": header }));
        assert_eq!(store.ask(&StoreOp::Read), other, "no record of another cluster: {header}");
    }
    let header = json!({ "cluster_id": ANSWERED, "member_id": "1", "revision": "8", "raft_term": "2" });
    carrier.answers(range(&header, &key("casemate/"), &first));
    assert_eq!(store.ask(&StoreOp::Read), (StoreResponse::Record(Some(first)), None));
    carrier.answers(json!({ "header": header, "succeeded": true }));
    assert_eq!(store.ask(&swap), (StoreResponse::Swapped, None));
    carrier.answers(json!({ "header": header }));
    assert_eq!(store.ask(&swap), (StoreResponse::Conflict, None));
}

#[test]
fn a_record_of_another_cluster_lets_nothing_be_signed() {
    let header = json!({ "cluster_id": "1", "revision": "8" });
    let carrier = Canned::new(range(&header, &key("casemate/"), &first_record()));
    let (bench, network) = (Bench::new(), network(50));
    let member = Member::start(&bench, &network, Box::new(etcd(&carrier, "casemate/")));
    while carrier.asked().len() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = member.sign(&block(network.slot_at(now_ms()).0, 1));
    assert_eq!(refused, Err(Refusal::NotHolder(NotHolder::StoreUnknown(StoreTrouble::OtherStore))));
    assert_eq!(member.standing(), StatedStatus::Unknown);
    // It has asked for the record, and never tried to write one.
    assert!(carrier.asked().iter().all(|request| request.starts_with("POST /v3/kv/range ")));
}

#[test]
fn etcds_key_begins_with_the_configured_prefix() {
    let header = json!({ "cluster_id": ANSWERED, "revision": "8" });
    let carrier = Canned::new(range(&header, &key("/ours/"), &first_record()));
    assert_eq!(etcd(&carrier, "/ours/").ask(&StoreOp::Read), (StoreResponse::Record(Some(first_record())), None));
    // Another prefix is another key: an answer about this one is none.
    assert_eq!(etcd(&carrier, "casemate/").ask(&StoreOp::Read), (StoreResponse::Unclear, Some(StoreTrouble::Record)));
    let asked = carrier.asked();
    for (request, prefix) in asked.iter().zip(["/ours/", "casemate/"]) {
        assert!(request.contains(&BASE64_STANDARD.encode(key(prefix))), "{request}");
    }
}

#[test]
fn an_etcd_that_cannot_be_one_is_refused_before_it_has_credentials() {
    let (root, _) = certificate();
    let prefix = KeyPrefix::default();
    let new = |endpoints: &[StoreEndpoint], root: &[u8]| {
        let which = Which { endpoints, root, cluster: ClusterId::parse(CLUSTER).unwrap(), prefix: &prefix };
        Etcd::new(Arc::new(Canned::new(Value::Null)), place(), &which).map(drop)
    };
    assert_eq!(new(&[endpoint("a.internal"), endpoint("::1")], &root), Ok(()));
    assert_eq!(new(&[], &root), Err(StoreError::NoEndpoint));
    assert_eq!(new(&[endpoint("a")], &[0x30, 0]), Err(StoreError::Root));
    for bad in ["", "a b", "-a", "a-.b", "a..b", "ä"] {
        assert_eq!(new(&[endpoint("a"), endpoint(bad)], &root), Err(StoreError::Host(bad.into())));
    }
}

/// The configuration measures the whole name: credentials of another account reach this table, or nothing.
#[test]
fn every_request_to_dynamodb_names_the_table_by_its_arn() {
    let arn = "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate-fence";
    let table = TableArn::parse(arn).unwrap();
    let carrier = Canned::new(json!({}));
    let endpoint = Endpoint::new(&table.host(), 443, RootCertStore::empty()).unwrap();
    let mut store = Dynamodb::new(Arc::new(carrier.clone()), Arc::new(SystemClock), place(), endpoint, table);
    assert_eq!((FenceKind::from(store.kind()), store.identity()), (FenceKind::Dynamodb, Some(arn.to_owned())));
    assert!(store.open(&StoreCredentials::Dynamodb { access_key_id: "A".into(), secret_access_key: "s".into() }));
    let first = first_record();
    assert_eq!(store.ask(&StoreOp::Read), (StoreResponse::Record(None), None));
    assert_eq!(store.ask(&StoreOp::Create(first)), (StoreResponse::Swapped, None));
    assert_eq!(store.ask(&StoreOp::Swap { old: first, new: first }), (StoreResponse::Swapped, None));
    let asked = carrier.asked();
    assert_eq!(asked.len(), 3);
    for request in asked {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["TableName"], arn);
        assert!(head.contains("\r\nhost: dynamodb.eu-central-1.amazonaws.com\r\n"), "{head}");
        assert!(head.contains("/eu-central-1/dynamodb/aws4_request"), "{head}");
    }
}
