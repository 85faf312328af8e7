//! `Recipient`: what a KMS hands out to an attestation document, the vault's own key opens; and to no other.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_document::{Anchor, Timestamp};
use casemate_local_kms::api::{Failure, Kms};
use casemate_local_kms::state::State;
use casemate_nsm::{Authority, Pcrs, Request, Response, SoftwareNsm, root_params};
use casemate_vault::keys::cms::{CmsError, EnvelopedData, RecipientKey};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

const NOW: u64 = 1_790_000_000_000;
const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";

struct Bench {
    folder: tempfile::TempDir,
    nsm: SoftwareNsm,
    kms: Kms,
    pcr0: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Authority::root(root_params()).unwrap();
        let anchor = Anchor::from_der(&root.der).unwrap();
        let measured = Pcrs::measure(b"boot", b"application", MODULE_ID);
        let pcr0 = const_hex::encode(measured.0[&0]);
        let nsm = SoftwareNsm::new(root, MODULE_ID, &measured, Box::new(|| NOW));
        let state = State::open(&folder.path().join("kms.json"), "eu-central-1", "123456789012").unwrap();
        Self { folder, nsm, kms: Kms { state, anchor: Some(anchor) }, pcr0 }
    }

    fn ask_at(&mut self, operation: &str, body: &Value, now: u64) -> Result<Value, Failure> {
        self.kms.handle(&format!("TrentService.{operation}"), body.to_string().as_bytes(), Timestamp(now))
    }

    fn ask(&mut self, operation: &str, body: &Value) -> Result<Value, Failure> {
        self.ask_at(operation, body, NOW)
    }

    /// A key whose policy wants this PCR0 for its data keys.
    fn key(&mut self, pcr0: &str) -> String {
        let policy = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Principal": "*", "Action": ["kms:DescribeKey", "kms:PutKeyPolicy"], "Resource": "*" },
            { "Effect": "Allow", "Principal": "*", "Action": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": "*",
              "Condition": { "StringEqualsIgnoreCase": { "kms:RecipientAttestation:PCR0": pcr0 } } },
        ] });
        let made = self.ask("CreateKey", &json!({ "Policy": policy.to_string() })).unwrap();
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    fn recipient(&self, key: Option<&[u8]>) -> Value {
        let request = Request::Attestation { user_data: None, nonce: None, public_key: key.map(ByteBuf::from) };
        let Response::Attestation { document } = self.nsm.process(request) else { panic!("no document") };
        json!({
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": BASE64_STANDARD.encode(document),
        })
    }
}

fn decoded(answer: &Value, field: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(answer[field].as_str().unwrap_or_else(|| panic!("no {field}: {answer}"))).unwrap()
}

#[test]
fn a_data_key_is_made_and_given_again_to_the_attested_enclave() {
    let mut bench = Bench::new();
    let pcr0 = bench.pcr0.clone();
    let arn = bench.key(&pcr0.to_uppercase());
    let recipient = RecipientKey::generate().unwrap();
    let with = bench.recipient(Some(recipient.spki()));
    let context = json!({ "group": "alpha" });
    let asked = json!({ "KeyId": arn, "KeySpec": "AES_256", "EncryptionContext": context, "Recipient": with });
    let made = bench.ask("GenerateDataKey", &asked).unwrap();
    assert_eq!(made["KeyId"], arn);
    assert!(made["Plaintext"].is_null(), "{made}");
    let message = decoded(&made, "CiphertextForRecipient");
    // The shape of AWS's own: indefinite outside, the content constructed.
    assert_eq!(&message[..2], &[0x30, 0x80]);
    assert!(EnvelopedData::parse(&message).is_ok());
    let data_key = recipient.open(&message).unwrap();
    assert_eq!(data_key.len(), 32);
    assert_eq!(RecipientKey::generate().unwrap().open(&message).unwrap_err(), CmsError::OtherRecipient);

    // After a restart, from the file.
    bench.kms.state = State::open(&bench.folder.path().join("kms.json"), "eu-central-1", "123456789012").unwrap();
    let blob = made["CiphertextBlob"].clone();
    let asked = json!({ "CiphertextBlob": blob, "KeyId": arn, "EncryptionContext": context, "Recipient": with });
    let again = bench.ask("Decrypt", &asked).unwrap();
    assert_eq!(recipient.open(&decoded(&again, "CiphertextForRecipient")).unwrap().to_vec(), data_key.to_vec());
    assert_eq!(again["KeyId"], arn);

    // Not in another context, not with another key named, not with a changed blob.
    let refused = |bench: &mut Bench, change: &dyn Fn(&mut Value)| {
        let mut changed = asked.clone();
        change(&mut changed);
        bench.ask("Decrypt", &changed).unwrap_err().code
    };
    let other = bench.key(&pcr0);
    let context = |v: &mut Value| v["EncryptionContext"] = json!({ "group": "beta" });
    assert_eq!(refused(&mut bench, &context), "InvalidCiphertextException");
    assert_eq!(refused(&mut bench, &|v| v["KeyId"] = json!(other)), "IncorrectKeyException");
    assert_eq!(refused(&mut bench, &|v| v["KeyId"] = json!("nobody")), "NotFoundException");
    assert_eq!(refused(&mut bench, &|v| v["CiphertextBlob"] = json!("AQ==")), "InvalidCiphertextException");
    let longer = |v: &mut Value| {
        v["CiphertextBlob"] = json!(BASE64_STANDARD.encode([decoded(v, "CiphertextBlob"), vec![0]].concat()));
    };
    assert_eq!(refused(&mut bench, &longer), "InvalidCiphertextException");
}

#[test]
fn only_the_pcrs_of_the_policy_get_anything() {
    let mut bench = Bench::new();
    let pcr0 = bench.pcr0.clone();
    let recipient = RecipientKey::generate().unwrap();
    let good = bench.key(&pcr0);
    let other = bench.key(&"00".repeat(48));
    let with = bench.recipient(Some(recipient.spki()));
    let ask = |key: &str, with: &Value| json!({ "KeyId": key, "KeySpec": "AES_256", "Recipient": with });
    assert!(bench.ask("GenerateDataKey", &ask(&good, &with)).is_ok());
    assert_eq!(bench.ask("GenerateDataKey", &ask(&other, &with)).unwrap_err().code, "AccessDeniedException");
    // Without a document there are no PCRs: the parent's own credentials get nothing.
    let plain = json!({ "KeyId": good, "KeySpec": "AES_256" });
    assert_eq!(bench.ask("GenerateDataKey", &plain).unwrap_err().code, "AccessDeniedException");
    assert!(bench.ask("DescribeKey", &json!({ "KeyId": good })).is_ok());

    // Documents that are not good.
    let five_minutes = 300_000;
    assert!(bench.ask_at("GenerateDataKey", &ask(&good, &with), NOW + five_minutes).is_ok());
    let told = |result: Result<Value, Failure>| {
        let failure = result.unwrap_err();
        assert_eq!(failure.code, "ValidationException");
        failure.message
    };
    assert!(told(bench.ask_at("GenerateDataKey", &ask(&good, &with), NOW + five_minutes + 1)).contains("s old"));
    let without_key = bench.recipient(None);
    assert!(told(bench.ask("GenerateDataKey", &ask(&good, &without_key))).contains("no public key"));
    let no_rsa = bench.recipient(Some(&[1; 32]));
    assert!(told(bench.ask("GenerateDataKey", &ask(&good, &no_rsa))).contains("no RSA key"));
    let mut sha1 = with.clone();
    sha1["KeyEncryptionAlgorithm"] = json!("RSAES_OAEP_SHA_1");
    assert!(told(bench.ask("GenerateDataKey", &ask(&good, &sha1))).contains("RSAES_OAEP_SHA_256"));
    bench.kms.anchor = Some(Anchor::aws().unwrap());
    assert!(told(bench.ask("GenerateDataKey", &ask(&good, &with))).contains("another root"));
    bench.kms.anchor = None;
    assert!(told(bench.ask("GenerateDataKey", &ask(&good, &with))).contains("no attestation root"));
}

#[test]
fn random_bytes_come_sealed_to_a_recipient_or_plain() {
    let mut bench = Bench::new();
    let recipient = RecipientKey::generate().unwrap();
    let with = bench.recipient(Some(recipient.spki()));
    let sealed = bench.ask("GenerateRandom", &json!({ "NumberOfBytes": 64, "Recipient": with })).unwrap();
    assert_eq!(recipient.open(&decoded(&sealed, "CiphertextForRecipient")).unwrap().len(), 64);
    let plain = bench.ask("GenerateRandom", &json!({ "NumberOfBytes": 1024 })).unwrap();
    assert_eq!(decoded(&plain, "Plaintext").len(), 1024);
    for bytes in [0, 1025] {
        let failure = bench.ask("GenerateRandom", &json!({ "NumberOfBytes": bytes })).unwrap_err();
        assert_eq!(failure.code, "ValidationException");
    }
}

#[test]
fn requests_that_are_none_are_refused() {
    let mut bench = Bench::new();
    let code = |result: Result<Value, Failure>| result.unwrap_err().code;
    assert_eq!(code(bench.ask("Sign", &json!({}))), "UnknownOperationException");
    assert_eq!(code(bench.kms.handle("Decrypt", b"{}", Timestamp(NOW))), "UnknownOperationException");
    assert_eq!(code(bench.kms.handle("TrentService.Decrypt", b"", Timestamp(NOW))), "SerializationException");
    assert_eq!(
        code(bench.ask("Decrypt", &json!({ "CiphertextBlob": "AQ==", "Surprise": 1 }))),
        "SerializationException"
    );
    assert_eq!(code(bench.ask("Decrypt", &json!({ "CiphertextBlob": "?" }))), "SerializationException");
    assert_eq!(code(bench.ask("Decrypt", &json!({ "CiphertextBlob": "" }))), "ValidationException");
    assert_eq!(code(bench.ask("CreateKey", &json!({ "Policy": "{}" }))), "MalformedPolicyDocumentException");
    assert_eq!(code(bench.ask("CreateKey", &json!({ "KeySpec": "RSA_2048" }))), "UnsupportedOperationException");
    let arn = bench.ask("CreateKey", &json!({})).unwrap()["KeyMetadata"]["Arn"].clone();
    for lengths in [json!({}), json!({ "KeySpec": "AES_256", "NumberOfBytes": 32 }), json!({ "NumberOfBytes": 0 })] {
        let mut asked = lengths;
        asked["KeyId"] = arn.clone();
        assert_eq!(code(bench.ask("GenerateDataKey", &asked)), "ValidationException");
    }
}
