//! KMS, over TLS that begins in the vault.
//!
//! KMS does not sign its answers. Anyone who ends TLS can therefore answer `GenerateDataKey` with a data key of its own, and read
//! what is sealed with it; so TLS ends here and not in the broker. The broker's client writes and signs the request, for which it
//! has the credentials; `KmsRequest::check` lets it through only if it is the request that the vault has asked for. Bytes go in and
//! out through [`Exchange`]: there is no socket here.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::Root;
use casemate_protocol::arn::KeyArn;
use casemate_protocol::broker::{Header, MAX_HEADER_LEN, MAX_HEADERS, NoResponse};
use rustls::RootCertStore;
use serde::{Deserialize, Serialize};

use crate::keys::custody::KmsAnswer;
pub use crate::link::tls::{Endpoint, Exchange, Response, response};

/// Headers that a request may have besides `host` and `content-length`, which the vault writes itself.
const HEADERS: &[&str] = &[
    "accept",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "authorization",
    "content-type",
    "user-agent",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-target",
    "x-amz-user-agent",
];

impl Endpoint {
    /// AWS's endpoint in the region that a key's ARN names, under Amazon's roots.
    pub fn of_key(key_arn: &str) -> Option<Self> {
        Self::new(&host_of_key(key_arn)?, 443, amazon_roots())
    }
}

/// `kms.REGION.amazonaws.com` of `arn:aws:kms:REGION:ACCOUNT:key/ID`; nothing where that is no such ARN.
pub fn host_of_key(key_arn: &str) -> Option<String> {
    KeyArn::parse(key_arn).ok().map(|arn| arn.host())
}

/// Amazon's trust anchors alone, out of webpki-roots: anyone who else the web trusts has no business with KMS.
pub fn amazon_roots() -> RootCertStore {
    let names: [&[u8]; 2] = [b"Amazon Root CA", b"Starfield Services Root Certificate Authority - G2"];
    let ours = |subject: &[u8]| names.iter().any(|name| subject.windows(name.len()).any(|window| window == *name));
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.iter().filter(|root| ours(&root.subject)).cloned().collect() }
}

/// What the vault has asked KMS for.
pub struct KmsRequest<'a> {
    /// ARN of the KMS key.
    pub key_arn: &'a str,
    /// For the encryption context.
    pub group: &'a str,
    /// For the encryption context.
    pub network: Root,
    /// With the key for the answer.
    pub document: &'a [u8],
    /// What is to be decrypted; where there is nothing, a data key is to be generated.
    pub wrapped: Option<&'a [u8]>,
}

impl Exchange {
    /// Begins, where the broker's request is what was asked for.
    pub fn begin(
        endpoint: &Endpoint,
        asked: &KmsRequest<'_>,
        headers: &[Header],
        body: &[u8],
    ) -> Result<Self, NoResponse> {
        let request = asked.check(&endpoint.authority, headers, body).ok_or(NoResponse::OtherRequest)?;
        Self::open(endpoint, &request)
    }
}

/// The body of a request; another field, or one twice, is no request of ours.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Body {
    key_id: String,
    encryption_context: Context,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_spec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_blob: Option<String>,
    recipient: Recipient,
}

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    #[serde(rename = "casemate:group")]
    group: String,
    #[serde(rename = "casemate:network")]
    network: String,
}

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Recipient {
    key_encryption_algorithm: String,
    attestation_document: String,
}

/// The body of an answer. KMS may say more.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    key_id: String,
    ciphertext_blob: Option<String>,
    ciphertext_for_recipient: String,
}

impl KmsRequest<'_> {
    fn target(&self) -> &'static str {
        match self.wrapped {
            Some(_) => "TrentService.Decrypt",
            None => "TrentService.GenerateDataKey",
        }
    }

    fn body(&self) -> Body {
        Body {
            key_id: self.key_arn.to_owned(),
            encryption_context: Context { group: self.group.to_owned(), network: self.network.to_string() },
            key_spec: self.wrapped.is_none().then(|| "AES_256".to_owned()),
            ciphertext_blob: self.wrapped.map(|wrapped| BASE64_STANDARD.encode(wrapped)),
            recipient: Recipient {
                key_encryption_algorithm: "RSAES_OAEP_SHA_256".to_owned(),
                attestation_document: BASE64_STANDARD.encode(self.document),
            },
        }
    }

    /// The request's bytes, if it is what was asked for and can be read in one way only.
    fn check(&self, authority: &str, headers: &[Header], body: &[u8]) -> Option<Vec<u8>> {
        // Twice: the first reading refuses a field more, or one twice; the second, what is no object where one belongs.
        let expected = self.body();
        let shape: serde_json::Value = serde_json::from_slice(body).ok()?;
        let same =
            serde_json::from_slice::<Body>(body).ok()? == expected && shape == serde_json::to_value(&expected).ok()?;
        if !same || headers.len() > MAX_HEADERS {
            return None;
        }
        let mut request = format!("POST / HTTP/1.1\r\nhost: {authority}\r\n");
        for (number, (name, value)) in headers.iter().enumerate() {
            let twice = headers.iter().take(number).any(|(other, _)| other == name);
            let plain = value.len() <= MAX_HEADER_LEN && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            if twice || !plain || !HEADERS.contains(&name.as_str()) {
                return None;
            }
            request.extend([name.as_str(), ": ", value, "\r\n"]);
        }
        let has = |name: &str, value: &str| headers.iter().any(|(n, v)| n == name && v == value);
        if !has("x-amz-target", self.target()) || !has("content-type", "application/x-amz-json-1.1") {
            return None;
        }
        request.extend(["content-length: ", &body.len().to_string(), "\r\n\r\n"]);
        let mut request = request.into_bytes();
        request.extend_from_slice(body);
        Some(request)
    }

    /// What KMS handed out, from a response that came over the vault's TLS.
    pub fn read(&self, response: &Response) -> Option<KmsAnswer> {
        if response.status != 200 {
            return None;
        }
        let answer: Answer = serde_json::from_slice(response.body.as_ref()).ok()?;
        let wrapped = match self.wrapped {
            // Whatever is said to have been decrypted: it is what was asked for that counts.
            Some(_) => Vec::new(),
            None => BASE64_STANDARD.decode(answer.ciphertext_blob?).ok()?,
        };
        let for_recipient = BASE64_STANDARD.decode(answer.ciphertext_for_recipient).ok()?;
        Some(KmsAnswer { key_arn: answer.key_id, wrapped, for_recipient })
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::{BoundedBytes, Bytes};

    use super::*;
    use crate::link::tls::MAX_HEAD_LEN;

    const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/0a1b-2c";

    fn asked(wrapped: Option<&[u8]>) -> KmsRequest<'_> {
        KmsRequest { key_arn: ARN, group: "alpha", network: Bytes([5; 32]), document: b"document", wrapped }
    }

    fn headers(target: &str) -> Vec<Header> {
        [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target), ("authorization", "AWS4 x")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    #[test]
    fn amazons_roots_are_few_and_the_webs_are_not_among_them() {
        let roots = amazon_roots().roots;
        assert_eq!(roots.len(), 5, "Amazon Root CA 1 to 4 and Starfield's");
        assert!(roots.len() < webpki_roots::TLS_SERVER_ROOTS.len());
    }

    #[test]
    fn a_keys_arn_names_its_endpoint() {
        assert_eq!(host_of_key(ARN).as_deref(), Some("kms.eu-central-1.amazonaws.com"));
        let china = ARN.replace("aws:kms:eu-central-1", "aws-cn:kms:cn-north-1");
        assert_eq!(host_of_key(&china).as_deref(), Some("kms.cn-north-1.amazonaws.com.cn"));
        for (from, to) in [
            ("aws:", "awsx:"),
            ("kms", "s3"),
            ("eu-central-1", ""),
            ("eu-central-1", "evil.example/"),
            ("eu-central-1", "EU-central-1"),
            ("123456789012", "1234"),
            ("key/", "alias/"),
            ("0a1b-2c", ""),
            ("0a1b-2c", "0a:1b"),
        ] {
            assert_eq!(host_of_key(&ARN.replace(from, to)), None, "{from} {to}");
        }
    }

    #[test]
    fn only_the_request_that_was_asked_for_goes_out() {
        let generate = asked(None);
        let body = serde_json::to_string(&generate.body()).unwrap();
        let good = headers("TrentService.GenerateDataKey");
        let request = generate.check("kms:8", &good, body.as_bytes()).unwrap();
        let expected = format!(
            "POST / HTTP/1.1\r\nhost: kms:8\r\ncontent-type: application/x-amz-json-1.1\r\nx-amz-target: \
             TrentService.GenerateDataKey\r\nauthorization: AWS4 x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(String::from_utf8(request).unwrap(), expected);

        // Every change of the body: another key, group, chain, document, size; a field more, a field twice.
        for (from, to) in [
            ("0a1b-2c", "ffff"),
            ("alpha", "beta"),
            ("0x0505", "0x0605"),
            ("ZG9jdW1lbnQ=", "ZG9jdW1lbnR="),
            ("AES_256", "AES_128"),
            ("RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"),
            ("{\"KeyId\"", "{\"DryRun\":true,\"KeyId\""),
            ("{\"KeyId\"", "{\"KeyId\":\"x\",\"KeyId\""),
            ("{\"casemate:group\"", "{\"casemate:group\":\"x\",\"casemate:group\""),
            ("{\"casemate:group\"", "{\"more\":\"x\",\"casemate:group\""),
            (
                "{\"KeyEncryptionAlgorithm\":\"RSAES_OAEP_SHA_256\",\"AttestationDocument\":\"ZG9jdW1lbnQ=\"}",
                "[\"RSAES_OAEP_SHA_256\",\"ZG9jdW1lbnQ=\"]",
            ),
            ("\"KeySpec\":\"AES_256\"", "\"KeySpec\":\"AES_256\",\"CiphertextBlob\":null"),
            ("}}", "}} "),
            ("}}", "}}{}"),
        ] {
            let changed = body.replace(from, to);
            assert_ne!(changed, body, "{from}");
            let still_good = to == "}} ";
            assert_eq!(generate.check("kms", &good, changed.as_bytes()).is_some(), still_good, "{from} {to}");
        }
        let without_recipient = body.replace(&body[body.find(",\"Recipient\"").unwrap()..], "}");
        assert!(generate.check("kms", &good, without_recipient.as_bytes()).is_none());

        // Headers.
        let with = |name: &str, value: &str| {
            let mut headers = good.clone();
            headers.push((name.to_owned(), value.to_owned()));
            generate.check("kms", &headers, body.as_bytes()).is_some()
        };
        assert!(with("x-amz-date", "20261121T000000Z"));
        assert!(!with("x-amz-target", "TrentService.Decrypt"));
        assert!(!with("transfer-encoding", "chunked"));
        assert!(!with("content-length", "1"));
        assert!(!with("host", "elsewhere"));
        assert!(!with("Authorization", "x"));
        assert!(!with("x-amz-date", "x\r\nx-evil: y"));
        assert!(!with("x-amz-date", &"x".repeat(MAX_HEADER_LEN + 1)));
        assert!(generate.check("kms", &headers("TrentService.Decrypt"), body.as_bytes()).is_none());
        assert!(generate.check("kms", &good[1..], body.as_bytes()).is_none());

        // To decrypt one thing is not to decrypt another.
        let decrypt = asked(Some(b"wrapped"));
        let target = headers("TrentService.Decrypt");
        let body = serde_json::to_string(&decrypt.body()).unwrap();
        assert!(decrypt.check("kms", &target, body.as_bytes()).is_some());
        assert!(asked(Some(b"Wrapped")).check("kms", &target, body.as_bytes()).is_none());
        assert!(decrypt.check("kms", &good, body.as_bytes()).is_none());
    }

    #[test]
    fn responses_are_read_whole_and_in_one_way() {
        let told = |text: &str| response(text.as_bytes());
        let whole = "HTTP/1.1 200 OK\r\nContent-Type: x\r\nContent-Length: 2\r\n\r\n{}";
        let expected = Response { status: 200, body: BoundedBytes::new(b"{}".to_vec()).unwrap() };
        assert_eq!(told(whole), Ok(Some(expected)));
        for len in 0..whole.len() {
            assert_eq!(told(&whole[..len]), Ok(None), "{len}");
        }
        for bad in [
            format!("{whole} "),
            whole.replace("HTTP/1.1", "HTTP/7"),
            whole.replace("200", "100"),
            whole.replace("Content-Length: 2", "Content-Length: 2\r\nContent-Length: 2"),
            whole.replace("Content-Length: 2", "Content-Length: +2"),
            whole.replace("Content-Length: 2", "Content-Length: 99999999"),
            whole.replace("Content-Length: 2", "Transfer-Encoding: chunked\r\nContent-Length: 2"),
            whole.replace("Content-Length: 2", "X: y"),
            format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_LEN)),
        ] {
            assert_eq!(told(&bad), Err(NoResponse::Malformed), "{bad:.80}");
        }
    }

    #[test]
    fn answers_are_taken_from_successes_alone() {
        let body =
            r#"{"KeyId":"k","CiphertextBlob":"d3JhcHBlZA==","CiphertextForRecipient":"Y21z","Plaintext":"","New":[1]}"#;
        let response = |status, body: &str| Response { status, body: BoundedBytes::new(body.into()).unwrap() };
        let read = |wrapped, status, body: &str| asked(wrapped).read(&response(status, body));
        let answer = KmsAnswer { key_arn: "k".into(), wrapped: b"wrapped".to_vec(), for_recipient: b"cms".to_vec() };
        assert_eq!(read(None, 200, body), Some(answer.clone()));
        assert_eq!(read(Some(b"x"), 200, body), Some(KmsAnswer { wrapped: vec![], ..answer }));
        assert_eq!(read(None, 400, body), None);
        assert_eq!(read(None, 200, &body.replace("CiphertextForRecipient", "Other")), None);
        assert_eq!(read(None, 200, &body.replace("CiphertextBlob", "Other")), None);
        assert_eq!(read(None, 200, &body.replace("Y21z", "?")), None);
    }
}
