//! The operations, from JSON to JSON, as the AWS KMS API reference has them.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_document::{Anchor, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::policy::{Policy, PolicyRequest};
use crate::recipient::{self, Recipient};
use crate::state::{Key, State};
use crate::{cms, state};

/// Most bytes that a request for random bytes or a data key gets.
const MAX_BYTES: usize = 1024;
/// Most bytes of a `CiphertextBlob`.
const MAX_CIPHERTEXT_LEN: usize = 6144;
const MAX_DOCUMENT_LEN: usize = 262_144;

/// An error as AWS answers it: status 400, `__type` and `message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `__type`.
    pub code: &'static str,
    /// `message`.
    pub message: String,
}

fn failure(code: &'static str, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

fn validation(message: impl Into<String>) -> Failure {
    failure("ValidationException", message)
}

fn internal(error: &anyhow::Error) -> Failure {
    failure("KMSInternalException", format!("{error:#}"))
}

/// A KMS.
pub struct Kms {
    /// The keys.
    pub state: State,
    /// The root under which attestation documents must be.
    pub anchor: Option<Anchor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct CreateKey {
    #[serde(default)]
    description: String,
    policy: Option<String>,
    key_spec: Option<String>,
    key_usage: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct DescribeKey {
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct PutKeyPolicy {
    key_id: String,
    policy: String,
    #[serde(rename = "PolicyName")]
    _policy_name: Option<String>,
    #[serde(rename = "BypassPolicyLockoutSafetyCheck")]
    _bypass: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GenerateDataKey {
    key_id: String,
    key_spec: Option<String>,
    number_of_bytes: Option<usize>,
    #[serde(default)]
    encryption_context: BTreeMap<String, String>,
    recipient: Option<RecipientInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Decrypt {
    ciphertext_blob: String,
    key_id: Option<String>,
    encryption_algorithm: Option<String>,
    #[serde(default)]
    encryption_context: BTreeMap<String, String>,
    recipient: Option<RecipientInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GenerateRandom {
    number_of_bytes: Option<usize>,
    recipient: Option<RecipientInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RecipientInfo {
    key_encryption_algorithm: Option<String>,
    attestation_document: Option<String>,
}

impl Kms {
    /// One request of anyone who holds an account: `X-Amz-Target` and the body.
    pub fn handle(&mut self, target: &str, body: &[u8], now: Timestamp) -> Result<Value, Failure> {
        self.handle_as("arn:aws:iam::000000000000:root", target, body, now)
    }

    /// One request of a principal.
    pub fn handle_as(&mut self, who: &str, target: &str, body: &[u8], now: Timestamp) -> Result<Value, Failure> {
        match target.strip_prefix("TrentService.") {
            Some("CreateKey") => self.create_key(&parse(body)?, now),
            Some("DescribeKey") => self.describe_key(who, &parse(body)?),
            Some("PutKeyPolicy") => self.put_key_policy(who, &parse(body)?),
            Some("GenerateDataKey") => self.generate_data_key(who, &parse(body)?, now, true),
            Some("GenerateDataKeyWithoutPlaintext") => self.generate_data_key(who, &parse(body)?, now, false),
            Some("Decrypt") => self.decrypt(who, &parse(body)?, now),
            Some("GenerateRandom") => self.generate_random(&parse(body)?, now),
            _ => Err(failure("UnknownOperationException", format!("{target} is not spoken here"))),
        }
    }

    fn put_key_policy(&mut self, who: &str, asked: &PutKeyPolicy) -> Result<Value, Failure> {
        let key = self.key(&asked.key_id)?;
        allowed(&key, who, "kms:PutKeyPolicy", None, &BTreeMap::new())?;
        Policy::parse(&asked.policy).map_err(|e| failure("MalformedPolicyDocumentException", format!("{e:#}")))?;
        self.state.set_policy(&key.id, &asked.policy).map_err(|e| internal(&e))?;
        Ok(json!({}))
    }

    fn create_key(&mut self, asked: &CreateKey, now: Timestamp) -> Result<Value, Failure> {
        if asked.key_spec.as_deref().is_some_and(|spec| spec != "SYMMETRIC_DEFAULT")
            || asked.key_usage.as_deref().is_some_and(|usage| usage != "ENCRYPT_DECRYPT")
        {
            return Err(failure("UnsupportedOperationException", "only SYMMETRIC_DEFAULT for ENCRYPT_DECRYPT"));
        }
        if let Some(policy) = &asked.policy {
            Policy::parse(policy).map_err(|e| failure("MalformedPolicyDocumentException", format!("{e:#}")))?;
        }
        let seconds = i64::try_from(now.seconds()).unwrap_or(i64::MAX);
        let key = self.state.create(&asked.description, asked.policy.as_deref(), seconds).map_err(|e| internal(&e))?;
        Ok(json!({ "KeyMetadata": metadata(&key) }))
    }

    fn describe_key(&self, who: &str, asked: &DescribeKey) -> Result<Value, Failure> {
        let key = self.key(&asked.key_id)?;
        allowed(&key, who, "kms:DescribeKey", None, &BTreeMap::new())?;
        Ok(json!({ "KeyMetadata": metadata(&key) }))
    }

    fn generate_data_key(
        &self,
        who: &str,
        asked: &GenerateDataKey,
        now: Timestamp,
        plaintext_too: bool,
    ) -> Result<Value, Failure> {
        let len = match (asked.key_spec.as_deref(), asked.number_of_bytes) {
            (Some("AES_256"), None) => 32,
            (Some("AES_128"), None) => 16,
            (None, Some(len @ 1..=MAX_BYTES)) => len,
            _ => return Err(validation("Please specify either number of bytes or key spec.")),
        };
        let key = self.key(&asked.key_id)?;
        let recipient = self.recipient(asked.recipient.as_ref(), now)?;
        let action = if plaintext_too { "kms:GenerateDataKey" } else { "kms:GenerateDataKeyWithoutPlaintext" };
        allowed(&key, who, action, recipient.as_ref(), &asked.encryption_context)?;
        let plaintext = random(len)?;
        let blob = key.encrypt(&plaintext, &asked.encryption_context).map_err(|e| internal(&e))?;
        let mut answer = json!({ "CiphertextBlob": BASE64_STANDARD.encode(blob), "KeyId": key.arn });
        if plaintext_too {
            put(&mut answer, "Plaintext", &plaintext, recipient.as_ref())?;
        }
        Ok(answer)
    }

    fn decrypt(&self, who: &str, asked: &Decrypt, now: Timestamp) -> Result<Value, Failure> {
        if asked.encryption_algorithm.as_deref().is_some_and(|a| a != "SYMMETRIC_DEFAULT") {
            return Err(failure("InvalidKeyUsageException", "only SYMMETRIC_DEFAULT"));
        }
        let blob = bytes(&asked.ciphertext_blob, "ciphertextBlob", MAX_CIPHERTEXT_LEN)?;
        let invalid = || failure("InvalidCiphertextException", "the ciphertext is not of this KMS");
        let key = self.state.key_of(&blob).map_err(|e| internal(&e))?.ok_or_else(invalid)?;
        if let Some(named) = &asked.key_id
            && self.key(named)?.id != key.id
        {
            return Err(failure(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
            ));
        }
        let recipient = self.recipient(asked.recipient.as_ref(), now)?;
        allowed(&key, who, "kms:Decrypt", recipient.as_ref(), &asked.encryption_context)?;
        let plaintext = key.decrypt(&blob, &asked.encryption_context).map_err(|state::InvalidCiphertext| invalid())?;
        let mut answer = json!({ "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" });
        put(&mut answer, "Plaintext", &plaintext, recipient.as_ref())?;
        Ok(answer)
    }

    fn generate_random(&self, asked: &GenerateRandom, now: Timestamp) -> Result<Value, Failure> {
        let len = asked.number_of_bytes.filter(|len| (1..=MAX_BYTES).contains(len));
        let len = len.ok_or_else(|| validation(format!("NumberOfBytes must be 1 to {MAX_BYTES}")))?;
        let recipient = self.recipient(asked.recipient.as_ref(), now)?;
        let mut answer = json!({});
        put(&mut answer, "Plaintext", &random(len)?, recipient.as_ref())?;
        Ok(answer)
    }

    fn key(&self, name: &str) -> Result<Key, Failure> {
        let key = self.state.key(name).map_err(|e| internal(&e))?;
        key.ok_or_else(|| failure("NotFoundException", format!("Key '{name}' does not exist")))
    }

    fn recipient(&self, asked: Option<&RecipientInfo>, now: Timestamp) -> Result<Option<Recipient>, Failure> {
        let Some(asked) = asked else { return Ok(None) };
        if asked.key_encryption_algorithm.as_deref() != Some("RSAES_OAEP_SHA_256") {
            return Err(validation("KeyEncryptionAlgorithm must be RSAES_OAEP_SHA_256"));
        }
        let document = asked.attestation_document.as_deref().unwrap_or_default();
        let document = bytes(document, "attestationDocument", MAX_DOCUMENT_LEN)?;
        let anchor = self.anchor.as_ref().ok_or_else(|| validation("no attestation root is configured here"))?;
        recipient::verify(&document, anchor, now).map(Some).map_err(|e| validation(e.to_string()))
    }
}

/// The plaintext; or for a recipient its ciphertext, and never both.
fn put(answer: &mut Value, name: &str, plaintext: &[u8], recipient: Option<&Recipient>) -> Result<(), Failure> {
    let (name, value) = match recipient {
        None => (name, plaintext.to_vec()),
        Some(recipient) => {
            let sealed = cms::seal(plaintext, &recipient.spki).map_err(|e| validation(format!("{e:#}")))?;
            ("CiphertextForRecipient", sealed)
        }
    };
    if let Value::Object(answer) = answer {
        answer.insert(name.to_owned(), BASE64_STANDARD.encode(value).into());
    }
    Ok(())
}

fn allowed(
    key: &Key,
    principal: &str,
    action: &str,
    recipient: Option<&Recipient>,
    context: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let attested = recipient.map(|recipient| &recipient.pcrs);
    let asked = PolicyRequest { principal, action, attested, context };
    if key.policy.as_ref().is_none_or(|policy| policy.allows(&asked)) {
        return Ok(());
    }
    Err(failure(
        "AccessDeniedException",
        format!(
            "not authorized to perform: {action} on resource: {} because no resource-based policy allows it",
            key.arn
        ),
    ))
}

fn metadata(key: &Key) -> Value {
    json!({
        "KeyId": key.id,
        "Arn": key.arn,
        "AWSAccountId": key.arn.split(':').nth(4),
        "Description": key.description,
        "CreationDate": key.created,
        "Enabled": true,
        "KeyState": "Enabled",
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "KeyManager": "CUSTOMER",
        "Origin": "AWS_KMS",
        "MultiRegion": false,
    })
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| failure("SerializationException", e.to_string()))
}

fn bytes(text: &str, name: &str, max: usize) -> Result<Vec<u8>, Failure> {
    let bytes =
        BASE64_STANDARD.decode(text).map_err(|_| failure("SerializationException", format!("{name} is not base64")))?;
    if bytes.is_empty() || bytes.len() > max {
        return Err(validation(format!("{name} is {} bytes long; 1 to {max} are allowed", bytes.len())));
    }
    Ok(bytes)
}

fn random(len: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; len];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| failure("KMSInternalException", "no random bytes"))?;
    Ok(bytes)
}
