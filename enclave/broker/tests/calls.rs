//! The whole way: the vault's custody, over the socket to the broker, through the parent, to KMS and to the disk, and back.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use casemate_broker::kms::{Kms, KmsSettings};
use casemate_broker::parent::Parent;
use casemate_broker::services::Services;
use casemate_document::{Anchor, Timestamp};
use casemate_local_kms::api;
use casemate_local_kms::server::{Access, Server, Tls};
use casemate_local_kms::state::State;
use casemate_nsm::{Authority, Pcrs, Request as NsmRequest, Response as NsmResponse, SoftwareNsm, root_params};
use casemate_protocol::address::Address;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::{Bytes, Refusal, Reply, Request, RequestFrame, frame};
use casemate_proxy::egress::{BlobStore, Credentials, Egress, Static, Target};
use casemate_slashing::{SlashingHistory, Watermarks};
use casemate_vault::Nsm;
use casemate_vault::keys::custody::{Custody, CustodyError, EncryptionContext, ServiceError, Services as _, Unsealed};
use casemate_vault::keys::seal::{Contents, SealBinding, SealError, SealedKey, SecretBytes};
use casemate_vault::link::broker_client::BrokerServices;
use casemate_vault::link::kms::Endpoint;
use casemate_vault::link::server;
use casemate_vault::signing::bls::SecretKey;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";
const REGION: &str = "eu-central-1";

struct Soft(SoftwareNsm);

impl Nsm for Soft {
    fn process(&self, request: NsmRequest) -> NsmResponse {
        self.0.process(request)
    }
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// KMS, parent and broker on a runtime of their own; the vault's side is this thread.
struct Bench {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    nsm: Arc<Soft>,
    place: SealBinding,
    settings: KmsSettings,
    roots: RootCertStore,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = Authority::root(root_params()).unwrap();
        let anchor = Anchor::from_der(&root.der).unwrap();
        let measured = Pcrs::measure(b"boot", b"application", MODULE_ID);
        let policy = json!({ "Statement": { "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
            "Condition": { "StringEqualsIgnoreCase": {
                "kms:RecipientAttestation:PCR0": const_hex::encode(measured.0[&0]) } } } });
        let nsm = Arc::new(Soft(SoftwareNsm::new(root, MODULE_ID, &measured, Box::new(now_ms))));
        let state = State::open(&folder.path().join("kms.json"), REGION, "123456789012").unwrap();
        let mut kms = api::Kms { state, anchor: Some(anchor) };
        let body = json!({ "Policy": policy.to_string() }).to_string();
        let made = kms.handle("TrentService.CreateKey", body.as_bytes(), Timestamp(now_ms())).unwrap();
        let key_arn = made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
        let tls = Tls::new(&["localhost".to_owned()]).unwrap();
        let secrets = BTreeMap::from([("AKID".to_owned(), "secret".to_owned())]);
        let access = Access { region: REGION.into(), secrets, account: "123456789012".into() };
        let address = "127.0.0.1:0".parse().unwrap();
        let server = runtime.block_on(Server::bind(address, kms, access, Some(&tls))).unwrap();
        let port = server.address().unwrap().port();
        runtime.spawn(server.serve());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(tls.root_pem.as_bytes()).unwrap()).unwrap();
        let settings = KmsSettings { region: REGION.into(), host: "localhost".into(), port };
        let place = SealBinding { key_arn, group: "alpha".into(), network: Bytes([5; 32]) };
        let bench = Self { runtime, folder, nsm, place, settings, roots };
        bench.parent();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn parent(&self) {
        let (access_key, secret_key) = ("AKID".into(), "secret".into());
        let credentials = Credentials { access_key, secret_key, session_token: None, expires: None };
        let target = format!("localhost:{}", self.settings.port).parse::<Target>().unwrap();
        let egress = Arc::new(Egress::new([target], Static(credentials), BlobStore::new(self.path("blobs"))));
        let address = Address::Unix(self.path("out.sock"));
        self.runtime.spawn(async move { egress.serve(&address).await });
        wait_for(&self.path("out.sock"));
    }

    /// A broker with a vault's socket, and the vault's end.
    fn broker(&self, name: &str) -> server::Link {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let parent = Parent::new(Address::Unix(self.path("out.sock")));
        let services = Arc::new(Services::new(Kms::new(parent.clone(), self.settings.clone()), parent));
        let listen = Address::Unix(self.path(name));
        self.runtime.spawn(async move {
            casemate_broker::run(casemate_broker::Listener::bind(&listen)?, theirs, Some(services)).await
        });
        wait_for(&self.path(name));
        server::Link::open(&ours).unwrap()
    }

    fn outside(&self, link: &server::Link) -> Arc<BrokerServices> {
        let endpoint = Endpoint::new("localhost", self.settings.port, self.roots.clone()).unwrap();
        Arc::new(BrokerServices::new(link.calls(), endpoint))
    }

    fn custody(&self, link: &server::Link) -> Custody {
        Custody::new(self.outside(link) as _, Arc::clone(&self.nsm) as _, self.place.clone()).unwrap()
    }
}

fn wait_for(path: &Path) {
    for _ in 0..1000 {
        if path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{} did not come", path.display());
}

/// Keys without secrets are as long and much cheaper to open.
fn contents(n: u32) -> Contents {
    let secret = [9; 32];
    let public_key = SecretKey::from_be_bytes(&mut secret.clone()).unwrap().public_key();
    let history = SlashingHistory::Known(Watermarks::NONE);
    let mut keys = vec![SealedKey { public_key, secret: Some(SecretBytes(secret)), history, fee_recipient: None }];
    keys.extend((0..n).map(|n| {
        let mut public_key = Bytes([1; 48]);
        public_key.0[..4].copy_from_slice(&n.to_be_bytes());
        SealedKey { public_key, secret: None, history, fee_recipient: None }
    }));
    Contents { keys, ..Contents::default() }
}

#[test]
fn a_vault_seals_through_the_broker_and_the_next_one_unseals() {
    let bench = Bench::new();
    let link = bench.broker("one.sock");
    let custody = bench.custody(&link);
    assert!(custody.unseal(0).unwrap().is_none());
    // Blobs of one part, of many, and of just one part's length and a little.
    for (state_version, n) in [(1, 0), (2, 20_000), (3, 400)] {
        custody.seal(&contents(n), state_version).unwrap();
        let next = bench.broker(&format!("{state_version}.sock"));
        let Unsealed { state_version: found, contents: opened, .. } =
            bench.custody(&next).unseal(state_version).unwrap().unwrap();
        assert_eq!((found, opened.keys.len()), (state_version, usize::try_from(n).unwrap() + 1));
        assert_eq!(opened.keys[0].secret.as_ref().unwrap().0, [9; 32]);
    }
    let stored = std::fs::read_dir(bench.path("blobs/alpha")).unwrap().count();
    assert_eq!(stored, 3);
    // The disk changes a byte in the middle of the newest.
    let path = bench.path("blobs/alpha").join(format!("{:020}.sealed", 3));
    let mut blob = std::fs::read(&path).unwrap();
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    std::fs::write(&path, blob).unwrap();
    assert_eq!(custody.unseal(0).map(|_| ()), Err(CustodyError::Seal(SealError::Decryption)));
    // And somebody restores an older state, which the fence knows to be old.
    std::fs::remove_file(&path).unwrap();
    let old = custody.unseal(3).map(|_| ());
    assert_eq!(old, Err(CustodyError::Seal(SealError::OldState { found: 2, oldest: 3 })));
}

#[test]
fn while_the_vault_unseals_its_clients_hear_that_it_starts() {
    let bench = Bench::new();
    let link = bench.broker("one.sock");
    let mut client = UnixStream::connect(bench.path("one.sock")).unwrap();
    let mut bytes = Vec::new();
    frame::encode_request(&RequestFrame::new(7, Request::Info), &mut bytes);
    client.write_all(&bytes).unwrap();
    let mut len = [0; 4];
    client.read_exact(&mut len).unwrap();
    let mut reply = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
    client.read_exact(&mut reply).unwrap();
    let reply = frame::decode_reply(&reply).unwrap();
    assert_eq!((reply.id, reply.reply), (7, Reply::Refused(Refusal::Starting(Waiting::Unsealing))));
    // Thousands more do not keep the answers of KMS from coming.
    let flood = std::thread::spawn(move || {
        for _ in 0..2000 {
            if client.write_all(&bytes).is_err() {
                break;
            }
        }
        client
    });
    bench.custody(&link).seal(&contents(10), 1).unwrap();
    drop(flood.join());
}

#[test]
fn failures_cross_as_their_kind() {
    let bench = Bench::new();
    let link = bench.broker("one.sock");
    let custody = bench.custody(&link);
    custody.seal(&contents(1), 1).unwrap();
    let other = SealBinding { key_arn: bench.place.key_arn.replace("key/", "key/0"), ..bench.place.clone() };
    let error =
        Custody::new(bench.outside(&link) as _, Arc::clone(&bench.nsm) as _, other).unwrap().seal(&contents(1), 2);
    assert_eq!(error, Err(CustodyError::Service(ServiceError::Refused)), "no such key");
    std::fs::remove_file(bench.path("out.sock")).unwrap();
    assert_eq!(custody.unseal(0).map(|_| ()), Err(CustodyError::Service(ServiceError::Away)));
    // The parent is back, and with it the way.
    bench.parent();
    assert!(custody.unseal(0).unwrap().is_some());
}

#[test]
fn without_a_broker_calls_fail_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let link = server::Link::open(&ours).unwrap();
    let bench = Bench::new();
    let custody = bench.custody(&link);
    drop(theirs);
    let begun = std::time::Instant::now();
    assert_eq!(custody.unseal(0).map(|_| ()), Err(CustodyError::Service(ServiceError::Away)));
    assert!(begun.elapsed() < std::time::Duration::from_secs(30));
}

/// A broker that was taken over, and answers in KMS's place: without KMS's certificate it gets nowhere.
#[test]
fn a_forged_answer_of_kms_is_no_answer() {
    use casemate_protocol::broker::{self, BrokerReply};

    let bench = Bench::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let link = server::Link::open(&ours).unwrap();
    let outside = bench.outside(&link);
    let context = EncryptionContext { group: "alpha".into(), network: Bytes([5; 32]) };
    let asking = std::thread::spawn(move || outside.generate_data_key("arn", b"document", &context));
    let mut head = [0; 4];
    theirs.read_exact(&mut head).unwrap();
    // The call is the first: number 1. Done, and nothing came over the vault's TLS.
    let mut bytes = Vec::new();
    broker::encode(1, &BrokerReply::Done, &mut bytes);
    theirs.write_all(&bytes).unwrap();
    assert_eq!(asking.join().unwrap(), Err(ServiceError::Refused));
}
