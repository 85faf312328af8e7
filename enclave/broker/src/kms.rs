//! KMS by AWS's client, through the parent and the vault.
//!
//! No default chain of the SDK is used: nothing is read from files or the environment. The client writes the request, signs it
//! with the parent's credentials, which can at most fail, and tries again; its connector gives the request to the vault, which
//! checks it and speaks TLS ([`Conversation`]). What passes here is ciphertext for KMS and for the vault.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use casemate_protocol::BoundedBytes;
use casemate_protocol::broker::{self, BrokerReply, BrokerRequest, NoResponse, PART_LEN};
use casemate_protocol::host_services::{HostReply, HostRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};

use crate::parent::{Parent, ParentError};

/// KMS answers in milliseconds: anyone who waits longer waits for a way that is broken.
const ATTEMPTS: u32 = 3;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

/// Where KMS is.
#[derive(Clone, Debug)]
pub struct KmsSettings {
    /// The region in signatures.
    pub region: String,
    /// The host.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl KmsSettings {
    /// AWS's own endpoint of a region.
    pub fn aws(region: &str) -> Self {
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        Self { region: region.to_owned(), host: format!("kms.{region}.{suffix}"), port: 443 }
    }
}

/// What binds a data key to its use; KMS refuses to decrypt with another.
pub type EncryptionContext = Vec<(String, String)>;

/// Why KMS gave nothing, so that an operator knows where to look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KmsError {
    /// The parent's services, its list, its network, or KMS itself.
    #[error("KMS is away: {0}")]
    Away(String),
    /// Anyone who answered is not KMS under these roots.
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
    /// The vault did not let the request through.
    #[error("the vault refused the request: it is not the one that it has asked for")]
    OtherRequest,
}

/// KMS.
#[derive(Clone, Debug)]
pub struct Kms {
    config: aws_sdk_kms::Config,
    parent: Parent,
    host: String,
    port: u16,
}

impl Kms {
    /// KMS as the settings have it, through the parent.
    pub fn new(parent: Parent, settings: KmsSettings) -> Self {
        let KmsSettings { region, host, port } = settings;
        let endpoint = if port == 443 { format!("https://{host}") } else { format!("https://{host}:{port}") };
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region))
            .endpoint_url(endpoint)
            .credentials_provider(ParentsCredentials { parent: parent.clone() })
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
        Self { config, parent, host, port }
    }

    /// AWS's client, whose requests go through the vault in this conversation.
    pub fn client(&self, conversation: Conversation) -> aws_sdk_kms::Client {
        let Self { config, parent, host, port } = self.clone();
        let way = VaultTlsConnector { parent, host, port, conversation: Arc::new(conversation) };
        let config = config.to_builder().http_client(Client(SharedHttpConnector::new(way))).build();
        aws_sdk_kms::Client::from_conf(config)
    }

    /// Has KMS make a data key, for the holder of the key in the attestation document.
    pub async fn generate_data_key(
        &self,
        conversation: Conversation,
        key_arn: &str,
        document: Vec<u8>,
        context: EncryptionContext,
    ) -> Result<(), KmsError> {
        let request = self.client(conversation).generate_data_key().key_id(key_arn).key_spec(DataKeySpec::Aes256);
        let sent = request
            .set_encryption_context(Some(context.into_iter().collect()))
            .recipient(recipient(document))
            .send()
            .await;
        sent.map(drop).map_err(|error| explain(&error))
    }

    /// Has KMS unwrap a data key, for the holder of the key in the attestation document.
    pub async fn decrypt(
        &self,
        conversation: Conversation,
        key_arn: &str,
        wrapped: Vec<u8>,
        document: Vec<u8>,
        context: EncryptionContext,
    ) -> Result<(), KmsError> {
        let request = self.client(conversation).decrypt().key_id(key_arn).ciphertext_blob(Blob::new(wrapped));
        let sent = request
            .set_encryption_context(Some(context.into_iter().collect()))
            .recipient(recipient(document))
            .send()
            .await;
        sent.map(drop).map_err(|error| explain(&error))
    }
}

fn recipient(document: Vec<u8>) -> RecipientInfo {
    RecipientInfo::builder()
        .key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256)
        .attestation_document(Blob::new(document))
        .build()
}

/// What went wrong. A wrong root store, stale credentials and a policy that says no look alike from afar: say which it was.
pub fn explain<E>(error: &SdkError<E>) -> KmsError
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
    if told.contains(OTHER_REQUEST) {
        KmsError::OtherRequest
    } else if told.contains(TLS_FAILED) {
        KmsError::Tls(told)
    } else if told.contains(NO_CREDENTIALS) {
        KmsError::Credentials(told)
    } else {
        KmsError::Away(told)
    }
}

const TLS_FAILED: &str = "TLS to KMS";
const OTHER_REQUEST: &str = "another request than the vault has asked for";
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
            match self.parent.ask(&HostRequest::Credentials).await.map_err(failed)? {
                HostReply::Credentials { access_key, secret_key, session_token, expires } => {
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

/// One call of the vault, in which it sends the requests of the client.
pub struct Conversation {
    id: u64,
    to_vault: mpsc::Sender<Vec<u8>>,
    from_vault: Mutex<mpsc::UnboundedReceiver<BrokerRequest>>,
    attempts: AtomicU64,
}

impl Conversation {
    /// The call of this number; what the vault says in it comes from `from_vault`.
    pub fn new(id: u64, to_vault: mpsc::Sender<Vec<u8>>, from_vault: mpsc::UnboundedReceiver<BrokerRequest>) -> Self {
        Self { id, to_vault, from_vault: Mutex::new(from_vault), attempts: AtomicU64::new(1) }
    }

    /// Carries bytes both ways until the vault hangs up, or is gone.
    pub async fn relay(&self, mut stream: crate::parent::Stream) -> io::Result<()> {
        let mut from_vault = self.from_vault.lock().await;
        let mut buffer = vec![0; PART_LEN];
        let mut open = true;
        loop {
            tokio::select! {
                said = from_vault.recv() => match said {
                    // Where the store takes no more, it will say so by ending the connection.
                    Some(BrokerRequest::TlsOut { attempt: 0, bytes }) => drop(stream.write_all(bytes.as_ref()).await),
                    _ => return Ok(()),
                },
                read = stream.read(&mut buffer), if open => {
                    let len = read.unwrap_or(0);
                    open = len > 0;
                    let bytes = buffer.get(..len).map(<[u8]>::to_vec).and_then(BoundedBytes::new);
                    self.say(&BrokerReply::TlsIn { attempt: 0, bytes }).await?;
                }
            }
        }
    }

    async fn say(&self, answer: &BrokerReply) -> io::Result<()> {
        let mut bytes = Vec::new();
        broker::encode(self.id, answer, &mut bytes);
        self.to_vault.send(bytes).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The way to KMS: TCP through the parent, TLS from the vault. A connection for each request: there are few.
#[derive(Clone)]
struct VaultTlsConnector {
    parent: Parent,
    host: String,
    port: u16,
    conversation: Arc<Conversation>,
}

impl fmt::Debug for VaultTlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl HttpConnector for VaultTlsConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let this = self.clone();
        HttpConnectorFuture::new(async move { this.send(request).await })
    }
}

impl VaultTlsConnector {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let other = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::other(error, None);
        let stream = self.parent.connect(&self.host, self.port).await.map_err(|e| ConnectorError::io(e.into()))?;
        let attempt = self.conversation.attempts.fetch_add(1, Ordering::Relaxed);
        // The vault writes these two itself.
        let ours = |(name, _): &(&str, &str)| !matches!(*name, "host" | "content-length");
        let headers = request.headers().iter().filter(ours);
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let body = request.body().bytes().map(<[u8]>::to_vec).and_then(BoundedBytes::new);
        let body = body.ok_or_else(|| other("a body in pieces, or longer than the vault takes".into()))?;
        let request = BrokerReply::Request { attempt, headers, body };
        self.conversation.say(&request).await.map_err(|e| ConnectorError::io(e.into()))?;
        let (status, body) = match self.carry(attempt, stream).await.map_err(|e| ConnectorError::io(e.into()))? {
            Ok(response) => response,
            Err(NoResponse::Closed) => {
                return Err(ConnectorError::io("the connection ended before KMS had answered".into()));
            }
            Err(NoResponse::Tls(why)) => {
                // Anyone who answers with another certificate will do so again.
                return Err(ConnectorError::user(format!("{TLS_FAILED} ({}): {why}", self.host).into()));
            }
            Err(NoResponse::Malformed) => return Err(ConnectorError::io("KMS's response is not HTTP".into())),
            Err(NoResponse::OtherRequest) => return Err(ConnectorError::user(OTHER_REQUEST.into())),
        };
        let status = StatusCode::try_from(status).map_err(|e| other(e.into()))?;
        let mut response = HttpResponse::new(status, SdkBody::from(body));
        response.headers_mut().insert("content-type", "application/x-amz-json-1.1");
        Ok(response)
    }

    /// Carries bytes between KMS and the vault until the vault has its response, or none.
    async fn carry(
        &self,
        attempt: u64,
        mut stream: crate::parent::Stream,
    ) -> io::Result<Result<(u16, Vec<u8>), NoResponse>> {
        let mut from_vault = self.conversation.from_vault.lock().await;
        let mut buffer = vec![0; PART_LEN];
        let mut open = true;
        loop {
            tokio::select! {
                said = from_vault.recv() => match said.ok_or(io::ErrorKind::BrokenPipe)? {
                    BrokerRequest::TlsOut { attempt: of, bytes } if of == attempt => {
                        // Where KMS takes no more, it will say so by ending the connection.
                        let _ = stream.write_all(bytes.as_ref()).await;
                    }
                    BrokerRequest::Response { attempt: of, status, body } if of == attempt => {
                        return Ok(Ok((status, body.into_vec())));
                    }
                    BrokerRequest::NoResponse { attempt: of, why } if of == attempt => return Ok(Err(why)),
                    // Of an attempt that was given up.
                    _ => {}
                },
                read = stream.read(&mut buffer), if open => {
                    let len = read.unwrap_or(0);
                    open = len > 0;
                    let bytes = buffer.get(..len).map(<[u8]>::to_vec).and_then(BoundedBytes::new);
                    self.conversation.say(&BrokerReply::TlsIn { attempt, bytes }).await?;
                }
            }
        }
    }
}
