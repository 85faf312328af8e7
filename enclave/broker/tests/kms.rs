//! The broker's KMS client, through the parent's egress and over the vault's TLS, against the local KMS; the vault's key opens
//! what comes back.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_broker::kms::{Kms, KmsError, KmsSettings};
use casemate_broker::parent::Parent;
use casemate_document::{Anchor, Timestamp};
use casemate_local_kms::api;
use casemate_local_kms::server::{Access, Server, Tls};
use casemate_local_kms::state::State;
use casemate_nsm::{Authority, Pcrs, Request, Response, SoftwareNsm, root_params};
use casemate_protocol::address::Address;
use casemate_proxy::egress::{BlobStore, Credentials, Egress, Static, Target};
use casemate_vault::keys::cms::RecipientKey;
use casemate_vault::link::kms::{Endpoint, amazon_roots};
use common::{Question, conversation};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_bytes::ByteBuf;
use serde_json::json;

const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";
const REGION: &str = "eu-central-1";

struct Bench {
    folder: tempfile::TempDir,
    nsm: SoftwareNsm,
    recipient: RecipientKey,
    key_arn: String,
    other_arn: String,
    port: u16,
    roots: RootCertStore,
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn store_of(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    roots
}

impl Bench {
    async fn new(secret: &str, listed: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Authority::root(root_params()).unwrap();
        let anchor = Anchor::from_der(&root.der).unwrap();
        let measured = Pcrs::measure(b"boot", b"application", MODULE_ID);
        let pcr0 = const_hex::encode(measured.0[&0]);
        let nsm = SoftwareNsm::new(root, MODULE_ID, &measured, Box::new(now_ms));
        let state = State::open(&folder.path().join("kms.json"), REGION, "123456789012").unwrap();
        let mut kms = api::Kms { state, anchor: Some(anchor) };
        let mut key = |pcr0: &str| {
            let policy = json!({ "Statement": { "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
                "Condition": { "StringEqualsIgnoreCase": { "kms:RecipientAttestation:PCR0": pcr0 } } } });
            let body = json!({ "Policy": policy.to_string() }).to_string();
            let made = kms.handle("TrentService.CreateKey", body.as_bytes(), Timestamp(now_ms())).unwrap();
            made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
        };
        let (key_arn, other_arn) = (key(&pcr0), key(&"11".repeat(48)));
        let tls = Tls::new(&["localhost".to_owned()]).unwrap();
        let access = Access {
            region: REGION.into(),
            secrets: BTreeMap::from([("AKID".to_owned(), "right".to_owned())]),
            account: "123456789012".into(),
        };
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), kms, access, Some(&tls)).await.unwrap();
        let port = server.address().unwrap().port();
        tokio::spawn(server.serve());

        let credentials =
            Credentials { access_key: "AKID".into(), secret_key: secret.into(), session_token: None, expires: None };
        let allowed = listed.then(|| format!("localhost:{port}").parse::<Target>().unwrap());
        let egress = Arc::new(Egress::new(allowed, Static(credentials), BlobStore::new(folder.path().join("blobs"))));
        let address = Address::Unix(folder.path().join("out.sock"));
        tokio::spawn(async move { egress.serve(&address).await });
        while !folder.path().join("out.sock").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let recipient = RecipientKey::generate().unwrap();
        Self { roots: store_of(&tls.root_pem), folder, nsm, recipient, key_arn, other_arn, port }
    }

    fn kms(&self) -> Kms {
        let parent = Parent::new(Address::Unix(self.folder.path().join("out.sock")));
        Kms::new(parent, KmsSettings { region: REGION.into(), host: "localhost".into(), port: self.port })
    }

    fn question(&self, roots: RootCertStore, key_arn: &str, wrapped: Option<&[u8]>) -> Question {
        Question {
            endpoint: Endpoint::new("localhost", self.port, roots).unwrap(),
            key_arn: key_arn.to_owned(),
            group: "alpha".to_owned(),
            document: self.document(),
            wrapped: wrapped.map(<[u8]>::to_vec),
        }
    }

    /// What KMS answers to the broker's client, over the vault's TLS.
    async fn ask(&self, question: Question) -> Result<serde_json::Value, KmsError> {
        let (talk, mut responses) = conversation(question.clone());
        let (arn, document, context) = (&question.key_arn, question.document.clone(), question.context());
        match question.wrapped {
            None => self.kms().generate_data_key(talk, arn, document, context).await?,
            Some(wrapped) => self.kms().decrypt(talk, arn, wrapped, document, context).await?,
        }
        Ok(serde_json::from_slice(responses.recv().await.unwrap().body.as_ref()).unwrap())
    }

    fn document(&self) -> Vec<u8> {
        let public_key = Some(ByteBuf::from(self.recipient.spki()));
        match self.nsm.process(Request::Attestation { user_data: None, nonce: None, public_key }) {
            Response::Attestation { document } => document,
            _ => panic!("no document"),
        }
    }

    async fn error(&self, roots: RootCertStore, key_arn: &str) -> KmsError {
        self.ask(self.question(roots, key_arn, None)).await.unwrap_err()
    }

    fn open(&self, answer: &serde_json::Value) -> Vec<u8> {
        let cms = BASE64_STANDARD.decode(answer["CiphertextForRecipient"].as_str().unwrap()).unwrap();
        self.recipient.open(&cms).unwrap().to_vec()
    }
}

#[tokio::test]
async fn a_data_key_is_made_and_unwrapped_for_the_vault_alone() {
    let bench = Bench::new("right", true).await;
    let ask = |key_arn: &str, wrapped: Option<&[u8]>| bench.question(bench.roots.clone(), key_arn, wrapped);
    let made = bench.ask(ask(&bench.key_arn, None)).await.unwrap();
    assert_eq!(made["KeyId"], *bench.key_arn);
    let data_key = bench.open(&made);
    assert_eq!(data_key.len(), 32);
    let wrapped = BASE64_STANDARD.decode(made["CiphertextBlob"].as_str().unwrap()).unwrap();
    let again = bench.ask(ask(&bench.key_arn, Some(&wrapped))).await.unwrap();
    assert_eq!(bench.open(&again), data_key);
    // Another context, another key: KMS itself says no.
    let other = Question { group: "beta".to_owned(), ..ask(&bench.key_arn, Some(&wrapped)) };
    let error = bench.ask(other).await.unwrap_err();
    assert!(matches!(&error, KmsError::Refused(told) if told.contains("InvalidCiphertextException")), "{error}");
    let error = bench.ask(ask(&bench.other_arn, Some(&wrapped))).await.unwrap_err();
    assert!(matches!(&error, KmsError::Refused(told) if told.contains("IncorrectKeyException")), "{error}");
}

#[tokio::test]
async fn the_vault_sends_nothing_but_what_it_has_asked_for() {
    let bench = Bench::new("right", true).await;
    let question = bench.question(bench.roots.clone(), &bench.key_arn, None);
    // A broker that asks KMS for something else: another key, another context, another document, another call.
    let (talk, _responses) = conversation(Question { key_arn: bench.other_arn.clone(), ..question.clone() });
    let (document, context) = (question.document.clone(), question.context());
    let sent = bench.kms().generate_data_key(talk, &bench.key_arn, document.clone(), context.clone()).await;
    assert_eq!(sent, Err(KmsError::OtherRequest));
    let (talk, _responses) = conversation(question.clone());
    let sent = bench.kms().generate_data_key(talk, &bench.key_arn, document.clone(), vec![]).await;
    assert_eq!(sent, Err(KmsError::OtherRequest));
    let (talk, _responses) = conversation(question.clone());
    let sent = bench.kms().generate_data_key(talk, &bench.key_arn, vec![1], context.clone()).await;
    assert_eq!(sent, Err(KmsError::OtherRequest));
    let (talk, _responses) = conversation(question);
    let sent = bench.kms().decrypt(talk, &bench.key_arn, vec![1], document, context).await;
    assert_eq!(sent, Err(KmsError::OtherRequest));
}

#[tokio::test]
async fn each_failure_says_where_to_look() {
    let bench = Bench::new("right", true).await;
    // The policy wants other PCRs.
    let error = bench.error(bench.roots.clone(), &bench.other_arn).await;
    assert!(matches!(&error, KmsError::Denied(told) if told.contains("AccessDeniedException")), "{error}");
    // Another's certificate: a KMS of the parent's own.
    let foreign = store_of(&Tls::new(&["localhost".to_owned()]).unwrap().root_pem);
    let error = bench.error(foreign, &bench.key_arn).await;
    assert!(matches!(&error, KmsError::Tls(told) if told.contains("invalid peer certificate")), "{error}");
    let error = bench.error(amazon_roots(), &bench.key_arn).await;
    assert!(matches!(&error, KmsError::Tls(_)), "{error}");
    // No such key.
    let error = bench.error(bench.roots.clone(), "arn:aws:kms:eu-central-1:123456789012:key/none").await;
    assert!(matches!(&error, KmsError::Refused(told) if told.contains("NotFoundException")), "{error}");

    let wrong_secret = Bench::new("wrong", true).await;
    let error = wrong_secret.error(wrong_secret.roots.clone(), &wrong_secret.key_arn).await;
    assert!(matches!(&error, KmsError::Credentials(told) if told.contains("InvalidSignatureException")), "{error}");
}

#[tokio::test]
async fn a_parent_that_refuses_or_is_gone_is_away() {
    let unlisted = Bench::new("right", false).await;
    let error = unlisted.error(unlisted.roots.clone(), &unlisted.key_arn).await;
    assert!(matches!(&error, KmsError::Away(told) if told.contains("not on the parent's list")), "{error}");

    let bench = Bench::new("right", true).await;
    std::fs::remove_file(bench.folder.path().join("out.sock")).unwrap();
    let error = bench.error(bench.roots.clone(), &bench.key_arn).await;
    assert!(matches!(&error, KmsError::Credentials(told) if told.contains("the parent is away")), "{error}");
}
