//! Whatever a store answers: a swap counts only where the answer clearly says so, a record only where it is one of this group.
#![no_main]

use std::sync::{Arc, LazyLock, Mutex};

use casemate_fence::{GroupId, Record, StoreOp, StoreResponse};
use casemate_protocol::arn::TableArn;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::configuration::StoreEndpoint;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::RecordKind;
use casemate_protocol::store::{ClusterId, KeyPrefix};
use casemate_protocol::{BoundedBytes, Bytes};
use casemate_slashing::Ceilings;
use casemate_vault::SystemClock;
use casemate_vault::fence::store::dynamodb::Dynamodb;
use casemate_vault::fence::store::etcd::{Etcd, Which};
use casemate_vault::fence::store::{Carrier, Store};
use casemate_vault::link::tls::{Endpoint, Response, response};
use libfuzzer_sys::fuzz_target;

/// The configured cluster: seeds and mutations find it.
const CLUSTER: u64 = 7;

/// Answers with what it has.
struct Canned(Mutex<Option<Response>>);

impl Carrier for Canned {
    fn exchange(&self, _: &Endpoint, _: &[u8]) -> Result<Response, StoreTrouble> {
        self.0.lock().unwrap().take().ok_or(StoreTrouble::Away)
    }
}

/// Of a real client, so that the endpoints can be made.
static CLIENT: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["c".into()]).unwrap().self_signed(&key).unwrap();
    (certificate.der().to_vec(), key.serialize_der())
});

fuzz_target!(|bytes: &[u8]| {
    let place = GroupId { group: "alpha".into(), network: Bytes([5; 32]) };
    let old = Record {
        version: 1,
        holder: Bytes::ZERO,
        term: 1,
        ceilings: Ceilings::ZERO,
        min_state_version: 0,
        released_state: None,
        closed: false,
    };
    let new = Record { version: 2, term: 2, ..old };
    let (whole, text) = match response(bytes) {
        Ok(Some(response)) => (Some(response), None),
        _ => (None, BoundedBytes::new(bytes.to_vec())),
    };
    let Some(answer) = whole.or_else(|| Some(Response { status: 200, body: text? })) else { return };
    let (status, body) = (answer.status, answer.body);
    let carrier = Arc::new(Canned(Mutex::new(None)));
    let (certificate, key) = &*CLIENT;
    let endpoint = StoreEndpoint { host: "localhost".into(), port: 1 };
    let (endpoints, prefix) = ([endpoint], KeyPrefix::default());
    let which = Which { endpoints: &endpoints, root: certificate, cluster: ClusterId::from(CLUSTER), prefix: &prefix };
    let mut etcd = Etcd::new(Arc::clone(&carrier), place.clone(), &which).unwrap();
    assert!(etcd.open(&StoreCredentials::Etcd {
        certificates: vec![BoundedBytes::new(certificate.clone()).unwrap()],
        key: BoundedBytes::new(key.clone()).unwrap(),
    }));
    let at = Endpoint::new("localhost", 1, rustls::RootCertStore::empty()).unwrap();
    let table = TableArn::parse("arn:aws:dynamodb:r-1:123456789012:table/abc").unwrap();
    let mut dynamodb = Dynamodb::new(Arc::clone(&carrier), Arc::new(SystemClock), place, at, table);
    assert!(dynamodb.open(&StoreCredentials::Dynamodb { access_key_id: "A".into(), secret_access_key: "s".into() }));
    let stores: [&mut dyn Store; 2] = [&mut etcd, &mut dynamodb];
    for store in stores {
        for question in [StoreOp::Read, StoreOp::Create(old), StoreOp::Swap { old, new }] {
            *carrier.0.lock().unwrap() = Some(Response { status, body: body.clone() });
            let (heard, _) = store.ask(&question);
            match (&question, heard) {
                (StoreOp::Read, StoreResponse::Record(_) | StoreResponse::Unclear) => {}
                (StoreOp::Read, other) => panic!("{other:?} to a read"),
                (_, StoreResponse::Swapped) => {
                    assert_eq!(status, 200);
                    // Of etcd only the configured cluster's answers count.
                    let whose = serde_json::from_slice::<serde_json::Value>(body.as_ref()).unwrap_or_default();
                    let ours = whose["header"]["cluster_id"] == CLUSTER.to_string();
                    assert!(store.kind() != RecordKind::Etcd || ours);
                }
                (_, StoreResponse::Conflict | StoreResponse::Unclear) => {}
                (_, StoreResponse::Record(_)) => panic!("a record to a swap"),
            }
        }
    }
});
