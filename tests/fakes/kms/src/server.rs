//! HTTP, with or without TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use casemate_document::Timestamp;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::api::{Failure, Kms};
use crate::sigv4::{self, Signed};

const MAX_BODY_LEN: usize = 1024 * 1024;

/// Who may ask, and where.
pub struct Access {
    /// In the scope of every signature.
    pub region: String,
    /// Secrets by access key.
    pub secrets: BTreeMap<String, String>,
    /// Account of their users: `arn:aws:iam::ACCOUNT:user/ACCESS-KEY` is who asks.
    pub account: String,
}

/// Anyone who the access key of a signed request belongs to.
fn principal(headers: &BTreeMap<String, String>, account: &str) -> String {
    let credential = headers.get("authorization").and_then(|text| text.split("Credential=").nth(1));
    let access_key = credential.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    format!("arn:aws:iam::{account}:user/{access_key}")
}

/// A certificate for this server under a root made for it; the root's PEM is for clients.
pub struct Tls {
    /// For clients to trust; empty where only the certificate is known.
    pub root_pem: String,
    /// The certificate.
    pub chain_pem: String,
    /// Its key.
    pub key_pem: String,
    config: Arc<rustls::ServerConfig>,
}

impl Tls {
    /// For these host names.
    pub fn new(names: &[String]) -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new([])?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "casemate-local-kms");
        let root = params.self_signed(&key)?;
        let issuer = rcgen::Issuer::new(params, key);
        let leaf = Self::leaf(names, &issuer)?;
        Ok(Self { root_pem: root.pem(), ..leaf })
    }

    /// For these host names, under the root that the vault of test images trusts (`vm-root/`). Everybody has its key.
    pub fn for_images(names: &[String]) -> Result<Self> {
        let (root, key) = (include_str!("../vm-root/root.pem"), include_str!("../vm-root/root-key.pem"));
        // Its certificate need not be read: what is issued carries its name.
        let mut params = rcgen::CertificateParams::new([])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Casemate test root: everybody has its key");
        let issuer = rcgen::Issuer::new(params, rcgen::KeyPair::from_pem(key)?);
        Ok(Self { root_pem: root.to_owned(), ..Self::leaf(names, &issuer)? })
    }

    fn leaf(names: &[String], issuer: &rcgen::Issuer<'_, rcgen::KeyPair>) -> Result<Self> {
        let leaf_key = rcgen::KeyPair::generate()?;
        let leaf = rcgen::CertificateParams::new(names.to_vec())?.signed_by(&leaf_key, issuer)?;
        Self::from_pem(&leaf.pem(), &leaf_key.serialize_pem())
    }

    /// A certificate that was made before, and its key.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let secret = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, secret)?;
        let (chain_pem, key_pem) = (chain_pem.to_owned(), key_pem.to_owned());
        Ok(Self { root_pem: String::new(), chain_pem, key_pem, config: Arc::new(config) })
    }
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    kms: Arc<Mutex<Kms>>,
    access: Arc<Access>,
    tls: Option<TlsAcceptor>,
}

impl Server {
    /// Listens.
    pub async fn bind(address: SocketAddr, kms: Kms, access: Access, tls: Option<&Tls>) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let tls = tls.map(|tls| TlsAcceptor::from(Arc::clone(&tls.config)));
        Ok(Self { listener, kms: Arc::new(Mutex::new(kms)), access: Arc::new(access), tls })
    }

    /// Where.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().context("the listener's address")
    }

    /// Serves until the process ends.
    pub async fn serve(self) -> Result<()> {
        loop {
            let (stream, _) = self.listener.accept().await.context("accepting")?;
            let (kms, access, tls) = (Arc::clone(&self.kms), Arc::clone(&self.access), self.tls.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let (kms, access) = (Arc::clone(&kms), Arc::clone(&access));
                    async move { Ok::<_, std::convert::Infallible>(answer(request, &kms, &access).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                // A client that breaks off ends its own connection.
                let _ = match tls {
                    None => http.serve_connection(TokioIo::new(stream), service).await.is_ok(),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await.is_ok(),
                        Err(_) => false,
                    },
                };
            });
        }
    }
}

async fn answer(request: Request<Incoming>, kms: &Mutex<Kms>, access: &Access) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_LEN).collect().await else {
        return failed(&Failure { code: "SerializationException", message: "the body cannot be read".to_owned() });
    };
    let body = body.to_bytes();
    let headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect();
    let now = Timestamp(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
    );
    let signed = Signed { method: head.method.as_str(), path: head.uri.path(), headers: &headers, body: &body };
    let seconds = i64::try_from(now.seconds()).unwrap_or(i64::MAX);
    if let Err(refused) = sigv4::check(&signed, &access.region, &access.secrets, seconds) {
        return failed(&Failure { code: refused.code, message: refused.message });
    }
    let target = headers.get("x-amz-target").map(String::as_str).unwrap_or_default();
    let who = principal(&headers, &access.account);
    let answer = kms.lock().unwrap_or_else(PoisonError::into_inner).handle_as(&who, target, &body, now);
    match answer {
        Ok(value) => response(StatusCode::OK, &value.to_string()),
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> Response<Full<Bytes>> {
    response(StatusCode::BAD_REQUEST, &json!({ "__type": failure.code, "message": failure.message }).to_string())
}

fn response(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/x-amz-json-1.1");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}
