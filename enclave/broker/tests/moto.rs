//! The broker's KMS client and the vault's TLS, against a KMS that we did not write: moto's. `tests/fakes/kms/moto.py` starts it and says
//! where it is; without it this test says that it was skipped.
//!
//! moto knows no Recipient: it answers with plaintexts, from which the vault takes nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_broker::kms::{Kms, KmsError, KmsSettings};
use casemate_broker::parent::Parent;
use casemate_protocol::Bytes;
use casemate_protocol::address::Address;
use casemate_proxy::egress::{BlobStore, Credentials, Egress, Static, Target};
use casemate_vault::link::kms::{Endpoint, KmsRequest};
use common::{Question, conversation};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const REGION: &str = "eu-central-1";

#[tokio::test]
async fn motos_kms_understands_the_brokers_client() {
    let (Ok(port), Ok(root), Ok(key_arn)) =
        (std::env::var("CASEMATE_MOTO_PORT"), std::env::var("CASEMATE_MOTO_ROOT"), std::env::var("CASEMATE_MOTO_KEY"))
    else {
        println!("SKIPPED: no moto here (tests/run starts it: tests/fakes/kms/moto.py)");
        return;
    };
    let port: u16 = port.parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let credentials =
        Credentials { access_key: "AKID".into(), secret_key: "any".into(), session_token: None, expires: None };
    let target = format!("localhost:{port}").parse::<Target>().unwrap();
    let egress = Arc::new(Egress::new([target], Static(credentials), BlobStore::new(folder.path().join("blobs"))));
    let address = Address::Unix(folder.path().join("out.sock"));
    tokio::spawn(async move { egress.serve(&address).await });
    while !folder.path().join("out.sock").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let parent = Parent::new(Address::Unix(folder.path().join("out.sock")));
    let kms = Kms::new(parent, KmsSettings { region: REGION.into(), host: "localhost".into(), port });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root).unwrap()).unwrap();
    let endpoint = Endpoint::new("localhost", port, roots).unwrap();
    let question = |wrapped: Option<&[u8]>, group: &str| Question {
        endpoint: endpoint.clone(),
        key_arn: key_arn.clone(),
        group: group.to_owned(),
        document: b"no document".to_vec(),
        wrapped: wrapped.map(<[u8]>::to_vec),
    };

    // GenerateDataKey: signed by the SDK, sent over the vault's TLS, understood, answered.
    let made = question(None, "alpha");
    let (talk, mut responses) = conversation(made.clone());
    kms.generate_data_key(talk, &key_arn, made.document.clone(), made.context()).await.unwrap();
    let response = responses.recv().await.unwrap();
    assert_eq!(response.status, 200);
    let answer: serde_json::Value = serde_json::from_slice(response.body.as_ref()).unwrap();
    assert_eq!(answer["KeyId"], *key_arn);
    let (plaintext, wrapped) = (answer["Plaintext"].clone(), answer["CiphertextBlob"].as_str().unwrap());
    assert_eq!(BASE64_STANDARD.decode(plaintext.as_str().unwrap()).unwrap().len(), 32);
    let asked = KmsRequest {
        key_arn: &key_arn,
        group: "alpha",
        network: Bytes([5; 32]),
        document: b"no document",
        wrapped: None,
    };
    assert_eq!(asked.read(&response), None, "a plaintext is nothing that the vault takes");

    // Decrypt gives the same; in another context it gives nothing.
    let wrapped = BASE64_STANDARD.decode(wrapped).unwrap();
    let again = question(Some(&wrapped), "alpha");
    let (talk, mut responses) = conversation(again.clone());
    kms.decrypt(talk, &key_arn, wrapped.clone(), again.document.clone(), again.context()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(responses.recv().await.unwrap().body.as_ref()).unwrap();
    assert_eq!(answer["Plaintext"], plaintext);
    let other = question(Some(&wrapped), "beta");
    let (talk, _responses) = conversation(other.clone());
    let error = kms.decrypt(talk, &key_arn, wrapped, other.document.clone(), other.context()).await.unwrap_err();
    assert!(matches!(&error, KmsError::Refused(told) if told.contains("InvalidCiphertext")), "{error}");

    // The calls that our client has no use for, by the same way: what AWS's SDK makes of them, our vault does not let through.
    let (talk, _responses) = conversation(question(None, "alpha"));
    let described = kms.client(talk).describe_key().key_id(&key_arn).send().await.unwrap_err();
    assert_eq!(casemate_broker::kms::explain(&described), KmsError::OtherRequest);
}
