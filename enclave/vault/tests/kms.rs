//! TLS between the vault and a KMS that ends it in every way.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::sync::Arc;

use casemate_protocol::Bytes;
use casemate_protocol::broker::NoResponse;
use casemate_vault::link::kms::{Endpoint, Exchange, KmsRequest, Response};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

/// A KMS with a certificate for localhost, in memory.
struct Kms {
    roots: RootCertStore,
    config: Arc<ServerConfig>,
}

impl Kms {
    fn new(versions: &[&'static rustls::SupportedProtocolVersion]) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)
            .unwrap();
        Self { roots, config: Arc::new(config) }
    }

    /// An exchange whose request has come; KMS is to answer.
    fn asked(&self) -> (Exchange, ServerConnection) {
        let asked = KmsRequest { key_arn: "arn", group: "g", network: Bytes([5; 32]), document: b"d", wrapped: None };
        let headers =
            [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", "TrentService.GenerateDataKey")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let body = format!(
            r#"{{"KeyId":"arn","EncryptionContext":{{"casemate:group":"g","casemate:network":"{}"}},"KeySpec":"AES_256","Recipient":{{"KeyEncryptionAlgorithm":"RSAES_OAEP_SHA_256","AttestationDocument":"ZA=="}}}}"#,
            Bytes([5_u8; 32])
        );
        let endpoint = Endpoint::new("localhost", 443, self.roots.clone()).unwrap();
        let mut exchange = Exchange::begin(&endpoint, &asked, &headers, body.as_bytes()).unwrap();
        let mut kms = ServerConnection::new(Arc::clone(&self.config)).unwrap();
        let mut request = Vec::new();
        for _ in 0..10 {
            let out = exchange.outgoing();
            let mut out = out.as_slice();
            while !out.is_empty() {
                kms.read_tls(&mut out).unwrap();
                kms.process_new_packets().unwrap();
            }
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = kms.reader().read(&mut chunk) {
                request.extend_from_slice(&chunk[..n]);
            }
            if request.ends_with(body.as_bytes()) {
                return (exchange, kms);
            }
            assert_eq!(exchange.incoming(&sent(&mut kms)), Ok(None));
        }
        panic!("the request did not come: {request:?}");
    }
}

fn sent(kms: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while kms.wants_write() {
        kms.write_tls(&mut bytes).unwrap();
    }
    bytes
}

const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

#[test]
fn a_response_comes_whole_whatever_the_pieces() {
    let kms = Kms::new(&[&rustls::version::TLS13]);
    for piece in [1, 7, 1000] {
        let (mut exchange, mut server) = kms.asked();
        server.writer().write_all(WHOLE).unwrap();
        let bytes = sent(&mut server);
        let mut came: Option<Response> = None;
        for piece in bytes.chunks(piece) {
            assert!(came.is_none());
            came = exchange.incoming(piece).unwrap();
        }
        assert_eq!(came.unwrap().status, 200);
    }
}

/// Anyone who carries the bytes may append what he likes behind KMS's end of TLS.
#[test]
fn what_follows_the_end_of_tls_ends_the_exchange() {
    let kms = Kms::new(&[&rustls::version::TLS13]);
    for (text, whole) in [(WHOLE, true), (&WHOLE[..20], false), (b"", false)] {
        for junk in [0, 1, 5000, 30_000] {
            let (mut exchange, mut server) = kms.asked();
            server.writer().write_all(text).unwrap();
            server.send_close_notify();
            let mut bytes = sent(&mut server);
            bytes.extend(vec![0x17; junk]);
            let came = exchange.incoming(&bytes);
            if whole {
                assert!(matches!(came, Ok(Some(_))), "{junk}: {came:?}");
            } else {
                assert_eq!(came, Err(NoResponse::Closed), "{junk}");
            }
            // And again, behind it.
            let after = exchange.incoming(&vec![0x17; 5000]);
            assert!(after.is_err(), "{after:?}");
        }
    }
}

#[test]
fn a_changed_byte_breaks_tls_and_older_tls_is_not_spoken() {
    let kms = Kms::new(&[&rustls::version::TLS13]);
    let (mut exchange, mut server) = kms.asked();
    server.writer().write_all(WHOLE).unwrap();
    let mut bytes = sent(&mut server);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(matches!(exchange.incoming(&bytes), Err(NoResponse::Tls(_))));
    let old = Kms::new(&[&rustls::version::TLS12]);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| old.asked())).is_err());
}
