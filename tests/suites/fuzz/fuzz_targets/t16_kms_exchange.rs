//! What a broker that was taken over, and a KMS that is none, may send the vault.
#![no_main]

use std::sync::LazyLock;

use casemate_protocol::Bytes;
use casemate_protocol::broker;
use casemate_vault::link::kms::{Endpoint, Exchange, KmsRequest, amazon_roots, response};
use libfuzzer_sys::fuzz_target;

static ENDPOINT: LazyLock<Endpoint> =
    LazyLock::new(|| Endpoint::new("kms.eu-central-1.amazonaws.com", 443, amazon_roots()).unwrap());

const BODY: &str = r#"{"KeyId":"arn","EncryptionContext":{"casemate:group":"g","casemate:network":"0x0505050505050505050505050505050505050505050505050505050505050505"},"KeySpec":"AES_256","Recipient":{"KeyEncryptionAlgorithm":"RSAES_OAEP_SHA_256","AttestationDocument":"ZA=="}}"#;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(response)) = response(bytes) {
        assert!(response.status >= 200 && response.body.as_ref().len() <= broker::MAX_KMS_BODY_LEN);
    }
    if let Ok(answer) = broker::decode_reply(bytes) {
        let mut out = Vec::new();
        broker::encode(answer.id, &answer.content, &mut out);
        assert_eq!(&out[12..], bytes);
    }
    let asked = KmsRequest { key_arn: "arn", group: "g", network: Bytes([5; 32]), document: b"d", wrapped: None };
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", "TrentService.GenerateDataKey")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // The fuzzer's body goes out only where it says what was asked for.
    if bytes != BODY.as_bytes() && Exchange::begin(&ENDPOINT, &asked, &headers, bytes).is_ok() {
        let same = serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(same["KeyId"], "arn");
        assert_eq!(same["Recipient"]["AttestationDocument"], "ZA==");
    }
    // Anyone who is not KMS gets no response out of it.
    let mut exchange = Exchange::begin(&ENDPOINT, &asked, &headers, BODY.as_bytes()).unwrap();
    let hello = exchange.outgoing();
    assert!(!hello.windows(4).any(|window| window == b"KeyI"), "nothing is sent before TLS stands");
    assert!(!matches!(exchange.incoming(bytes), Ok(Some(_))));
});
