//! KMS through the parent: TLS begins here, inside the enclave, and ends at KMS.
//!
//! No default chain of the SDK is used: nothing is read from files or the environment. The endpoint and the roots are given;
//! credentials come from the parent and can at most fail. The broker sees ciphertext alone: what KMS answers to a `Recipient`
//! only the vault's key opens.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError, future};
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{BehaviorVersion, Region};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, KeyEncryptionMechanism, RecipientInfo};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use casemate_protocol::outward::{OutwardReply, OutwardRequest};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::outward::{Parent, ParentError};

/// Longest answer of KMS: 6 KiB of ciphertext twice in base64, with room.
const MAX_ANSWER_LEN: usize = 64 * 1024;
const ATTEMPTS: u32 = 4;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(45);

/// Where KMS is, and who may claim to be it.
#[derive(Clone)]
pub struct KmsSettings {
    /// The region in signatures.
    pub region: String,
    /// The host; TLS must be for this name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Roots under which its certificate must be.
    pub roots: RootCertStore,
}

impl KmsSettings {
    /// AWS's own endpoint of a region, under Amazon's roots.
    pub fn aws(region: &str) -> Self {
        let host = format!("kms.{region}.amazonaws.com");
        Self { region: region.to_owned(), host, port: 443, roots: amazon_roots() }
    }
}

/// Amazon's trust anchors alone, out of webpki-roots: whoever else the web trusts has no business with KMS.
pub fn amazon_roots() -> RootCertStore {
    let names: [&[u8]; 2] = [b"Amazon Root CA", b"Starfield Services Root Certificate Authority - G2"];
    let ours = |subject: &[u8]| names.iter().any(|name| subject.windows(name.len()).any(|window| window == *name));
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.iter().filter(|root| ours(&root.subject)).cloned().collect() }
}

/// A data key, twice encrypted: for keeping, and for the vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKey {
    /// `CiphertextBlob`: under the KMS key.
    pub wrapped: Vec<u8>,
    /// `CiphertextForRecipient`: CMS for the key in the document.
    pub for_recipient: Vec<u8>,
    /// ARN of the KMS key, as KMS says; the vault compares it.
    pub key_arn: String,
}

/// What binds a data key to its use; KMS refuses to decrypt with another.
pub type EncryptionContext = Vec<(String, String)>;

/// Why KMS gave nothing, so that an operator knows where to look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KmsError {
    /// The parent's services, its list, its network, or KMS itself.
    #[error("KMS is away: {0}")]
    Away(String),
    /// Whoever answered is not KMS under these roots.
    #[error("TLS to KMS failed: {0}")]
    Tls(String),
    /// The parent's credentials are missing, wrong or expired.
    #[error("the parent's AWS credentials do not work: {0}")]
    Credentials(String),
    /// The key policy: other PCRs, or no right for these credentials.
    #[error("KMS denies it: {0}")]
    Denied(String),
    /// Anything else that KMS said.
    #[error("KMS refused: {0}")]
    Refused(String),
    /// An answer without the fields that belong there.
    #[error("KMS answered without {0}")]
    Incomplete(&'static str),
}

/// KMS.
#[derive(Clone, Debug)]
pub struct Kms {
    client: aws_sdk_kms::Client,
}

impl Kms {
    /// KMS as the settings have it, through the parent.
    pub fn new(parent: Parent, settings: KmsSettings) -> Self {
        let KmsSettings { region, host, port, roots } = settings;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let endpoint = if port == 443 { format!("https://{host}") } else { format!("https://{host}:{port}") };
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map(|builder| Arc::new(builder.with_root_certificates(roots).with_no_client_auth()));
        let way = Way { parent: parent.clone(), tls: tls.ok(), host, port };
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region))
            .endpoint_url(endpoint)
            .credentials_provider(ParentsCredentials { parent })
            .http_client(Client(SharedHttpConnector::new(way)))
            .sleep_impl(TokioSleep::new())
            // Exponential, with jitter.
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .operation_timeout(OPERATION_TIMEOUT)
                    .build(),
            )
            .build();
        Self { client: aws_sdk_kms::Client::from_conf(config) }
    }

    /// Has KMS make a data key, for the holder of the key in the attestation document.
    pub async fn generate_data_key(
        &self,
        key_arn: &str,
        document: Vec<u8>,
        context: EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let request = self.client.generate_data_key().key_id(key_arn).key_spec(DataKeySpec::Aes256);
        let answer = request
            .set_encryption_context(Some(context.into_iter().collect()))
            .recipient(recipient(document))
            .send()
            .await
            .map_err(|error| explain(&error))?;
        Ok(DataKey {
            wrapped: bytes(answer.ciphertext_blob, "CiphertextBlob")?,
            for_recipient: bytes(answer.ciphertext_for_recipient, "CiphertextForRecipient")?,
            key_arn: answer.key_id.ok_or(KmsError::Incomplete("KeyId"))?,
        })
    }

    /// Has KMS unwrap a data key, for the holder of the key in the attestation document.
    pub async fn decrypt(
        &self,
        key_arn: &str,
        wrapped: Vec<u8>,
        document: Vec<u8>,
        context: EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let request = self.client.decrypt().key_id(key_arn).ciphertext_blob(Blob::new(wrapped.clone()));
        let answer = request
            .set_encryption_context(Some(context.into_iter().collect()))
            .recipient(recipient(document))
            .send()
            .await
            .map_err(|error| explain(&error))?;
        Ok(DataKey {
            wrapped,
            for_recipient: bytes(answer.ciphertext_for_recipient, "CiphertextForRecipient")?,
            key_arn: answer.key_id.ok_or(KmsError::Incomplete("KeyId"))?,
        })
    }
}

fn recipient(document: Vec<u8>) -> RecipientInfo {
    RecipientInfo::builder()
        .key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256)
        .attestation_document(Blob::new(document))
        .build()
}

fn bytes(blob: Option<Blob>, name: &'static str) -> Result<Vec<u8>, KmsError> {
    blob.map(Blob::into_inner).ok_or(KmsError::Incomplete(name))
}

/// A wrong root store, stale credentials and a policy that says no look alike from afar: say which it was.
fn explain<E>(error: &SdkError<E>) -> KmsError
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    SdkError<E>: std::error::Error,
{
    if let SdkError::ServiceError(service) = error {
        let service = service.err();
        let told = format!("{}: {}", service.code().unwrap_or("no code"), service.message().unwrap_or("no message"));
        return match service.code() {
            Some("AccessDeniedException") => KmsError::Denied(told),
            Some(
                "UnrecognizedClientException"
                | "InvalidSignatureException"
                | "ExpiredTokenException"
                | "InvalidClientTokenId"
                | "MissingAuthenticationTokenException"
                | "IncompleteSignatureException",
            ) => KmsError::Credentials(told),
            _ => KmsError::Refused(told),
        };
    }
    // The sentences of all that went wrong, from the outside in.
    let mut told = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        told.push_str(": ");
        told.push_str(&inner.to_string());
        source = inner.source();
    }
    if told.contains(TLS_FAILED) {
        KmsError::Tls(told)
    } else if told.contains(NO_CREDENTIALS) {
        KmsError::Credentials(told)
    } else {
        KmsError::Away(told)
    }
}

const TLS_FAILED: &str = "TLS to KMS";
const NO_CREDENTIALS: &str = "the parent's credentials";

/// Asks the parent whenever the SDK's cache is about to run out.
#[derive(Debug)]
struct ParentsCredentials {
    parent: Parent,
}

impl ProvideCredentials for ParentsCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let failed = |error: ParentError| CredentialsError::provider_error(format!("{NO_CREDENTIALS}: {error}"));
            match self.parent.ask(&OutwardRequest::Credentials).await.map_err(failed)? {
                OutwardReply::Credentials { access_key, secret_key, session_token, expires } => {
                    let expires = expires.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)));
                    Ok(Credentials::new(access_key, secret_key, session_token, expires, "parent"))
                }
                _ => Err(failed(ParentError::Unexpected)),
            }
        })
    }
}

/// Gives every request the one connector there is.
#[derive(Debug)]
struct Client(SharedHttpConnector);

impl HttpClient for Client {
    fn http_connector(
        &self,
        _settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        self.0.clone()
    }
}

/// The way to KMS: through the parent, with TLS from here. A connection for each request: there are few.
#[derive(Clone)]
struct Way {
    parent: Parent,
    tls: Option<Arc<ClientConfig>>,
    host: String,
    port: u16,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl HttpConnector for Way {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let this = self.clone();
        HttpConnectorFuture::new(async move { this.send(request).await })
    }
}

impl Way {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let io_error = |error: io::Error| ConnectorError::io(error.into());
        let away = |error: ParentError| ConnectorError::io(error.into());
        let stream = self.parent.connect(&self.host, self.port).await.map_err(away)?;
        let tls = self.tls.clone().ok_or_else(|| io_error(io::Error::other("no usable TLS version")))?;
        let name = ServerName::try_from(self.host.clone()).map_err(|e| io_error(io::Error::other(e)))?;
        let failed = |error: io::Error| {
            // Whoever answers with another certificate will do so again.
            ConnectorError::user(format!("{TLS_FAILED} ({}): {error}", self.host).into())
        };
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(failed)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| ConnectorError::io(e.into()))?;
        let driver = tokio::spawn(connection);
        let answer = self.exchange(&mut sender, request).await;
        driver.abort();
        answer
    }

    async fn exchange(
        &self,
        sender: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
        request: HttpRequest,
    ) -> Result<HttpResponse, ConnectorError> {
        let other = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::other(error, None);
        let (head, body) = request.try_into_http1x().map_err(|e| other(e.into()))?.into_parts();
        let body = body.bytes().map(Bytes::copy_from_slice).ok_or_else(|| other("a body in pieces".into()))?;
        let mut request = hyper::Request::from_parts(head, Full::new(body));
        // The SDK gives the whole URL; HTTP/1.1 to a server wants the path, and its name beside it.
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let authority = request.uri().authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        *request.uri_mut() = path.parse().map_err(|e: hyper::http::uri::InvalidUri| other(e.into()))?;
        if let (false, Ok(host)) = (request.headers().contains_key("host"), authority.parse()) {
            request.headers_mut().insert("host", host);
        }
        let response = sender.send_request(request).await.map_err(|e| ConnectorError::io(e.into()))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_LEN).collect().await.map_err(ConnectorError::io)?.to_bytes();
        let response = hyper::Response::from_parts(head, SdkBody::from(body.to_vec()));
        HttpResponse::try_from(response).map_err(|e| other(e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amazons_roots_are_few_and_the_webs_are_not_among_them() {
        let roots = amazon_roots().roots;
        assert_eq!(roots.len(), 5, "Amazon Root CA 1 to 4 and Starfield's");
        assert!(roots.len() < webpki_roots::TLS_SERVER_ROOTS.len());
    }
}
