//! The credentials of the instance's role, from the metadata service (IMDSv2): AWS's own client, over our plain HTTP.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use aws_config::imds::{self, credentials::ImdsCredentialsProvider};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Credentials;

/// Longest wait for one answer of the metadata service: it is on this machine's own link.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 3;
const MAX_ANSWER_LEN: usize = 64 * 1024;

/// The metadata service, as a source of credentials.
pub struct Imds(ImdsCredentialsProvider);

impl Imds {
    pub(super) fn new(endpoint: Option<&str>) -> Result<Self> {
        let config = ProviderConfig::empty().with_http_client(Plain).with_sleep_impl(TokioSleep::new());
        let mut client = imds::Client::builder()
            .configure(&config)
            .max_attempts(ATTEMPTS)
            .connect_timeout(TIMEOUT)
            .read_timeout(TIMEOUT)
            .operation_attempt_timeout(TIMEOUT)
            .operation_timeout(TIMEOUT.saturating_mul(ATTEMPTS.saturating_add(1)));
        if let Some(endpoint) = endpoint {
            client = client.endpoint(endpoint).map_err(|e| anyhow!("{endpoint}: {e}"))?;
        }
        Ok(Self(ImdsCredentialsProvider::builder().configure(&config).imds_client(client.build()).build()))
    }

    pub(super) async fn credentials(&self) -> Result<Credentials> {
        let given = self.0.provide_credentials().await.map_err(|error| {
            let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            anyhow!("the instance's metadata service gives no credentials: {error}{source}")
        })?;
        let expires = given.expiry().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
        Ok(Credentials {
            access_key: given.access_key_id().to_owned(),
            secret_key: given.secret_access_key().to_owned(),
            session_token: given.session_token().map(ToOwned::to_owned),
            expires,
        })
    }
}

/// Plain HTTP, straight to the address: no proxy, no TLS, nothing from the environment.
#[derive(Clone, Debug)]
struct Plain;

impl HttpClient for Plain {
    fn http_connector(
        &self,
        _settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Self)
    }
}

impl HttpConnector for Plain {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(send(request))
    }
}

async fn send(request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
    let other = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::other(error, None);
    let (head, body) = request.try_into_http1x().map_err(|e| other(e.into()))?.into_parts();
    let body = body.bytes().map(Bytes::copy_from_slice).ok_or_else(|| other("a body in pieces".into()))?;
    let mut request = hyper::Request::from_parts(head, Full::new(body));
    let authority = request.uri().authority().cloned().ok_or_else(|| other("a URL without a host".into()))?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *request.uri_mut() = path.parse().map_err(|e: hyper::http::uri::InvalidUri| other(e.into()))?;
    if let (false, Ok(host)) = (request.headers().contains_key("host"), authority.as_str().parse()) {
        request.headers_mut().insert("host", host);
    }
    let address = (authority.host().trim_matches(['[', ']']).to_owned(), authority.port_u16().unwrap_or(80));
    let connecting = tokio::time::timeout(TIMEOUT, TcpStream::connect((address.0.as_str(), address.1)));
    let stream = connecting.await.map_err(|e| ConnectorError::timeout(e.into()))?;
    let stream = stream.map_err(|e| ConnectorError::io(e.into()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| ConnectorError::io(e.into()))?;
    let driver = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| ConnectorError::io(e.into()))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_LEN).collect().await.map_err(ConnectorError::io)?.to_bytes();
        let response = hyper::Response::from_parts(head, SdkBody::from(body.to_vec()));
        HttpResponse::try_from(response).map_err(|e| other(e.into()))
    }
    .await;
    driver.abort();
    answer
}
