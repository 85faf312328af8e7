//! TLS that begins in the vault: one HTTP request over one connection, as bytes in and bytes out. There is no socket here; the
//! broker carries what comes out, and is trusted with none of it.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

use casemate_protocol::BoundedBytes;
use casemate_protocol::broker::{MAX_KMS_BODY_LEN, NoResponse};
use rustls::client::WantsClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore};

/// Longest head of a response, in bytes.
pub(crate) const MAX_HEAD_LEN: usize = 8192;

/// Where a service is, and who may claim to be it.
#[derive(Clone)]
pub struct Endpoint {
    /// DNS name or address.
    pub(crate) host: String,
    pub(crate) port: u16,
    name: ServerName<'static>,
    /// As the `host` header has it.
    pub(crate) authority: String,
    tls: Arc<ClientConfig>,
}

impl Endpoint {
    /// A host under roots of one's own. Which constructor a program calls is decided when it is built.
    pub fn new(host: &str, port: u16, roots: RootCertStore) -> Option<Self> {
        Self::with_config(host, port, config(roots)?.with_no_client_auth())
    }

    /// With a certificate of the client's own.
    pub fn with_client(
        host: &str,
        port: u16,
        roots: RootCertStore,
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Option<Self> {
        Self::with_config(host, port, config(roots)?.with_client_auth_cert(certificates, key).ok()?)
    }

    /// Host and port.
    pub fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    fn with_config(host: &str, port: u16, tls: ClientConfig) -> Option<Self> {
        let name = ServerName::try_from(host.to_owned()).ok()?;
        let authority = match (port, &name) {
            (443, ServerName::DnsName(_)) => host.to_owned(),
            (_, ServerName::IpAddress(_)) if host.contains(':') => format!("[{host}]:{port}"),
            _ => format!("{host}:{port}"),
        };
        let host = host.to_owned();
        Some(Self { host, port, name, authority, tls: Arc::new(tls) })
    }
}

/// TLS 1.3 and nothing older.
fn config(roots: RootCertStore) -> Option<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    Some(versions.ok()?.with_root_certificates(roots))
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: BoundedBytes<0, MAX_KMS_BODY_LEN>,
}

/// One request over one TLS connection.
pub struct Exchange {
    tls: ClientConnection,
    received: Vec<u8>,
}

impl Exchange {
    /// Sends a request as soon as TLS stands.
    pub fn open(endpoint: &Endpoint, request: &[u8]) -> Result<Self, NoResponse> {
        let mut tls =
            ClientConnection::new(Arc::clone(&endpoint.tls), endpoint.name.clone()).map_err(|e| tls_error(&e))?;
        tls.set_buffer_limit(None);
        // Kept until the handshake is through.
        tls.writer().write_all(request).map_err(|_| NoResponse::Malformed)?;
        Ok(Self { tls, received: Vec::new() })
    }

    /// What is to go out now.
    pub fn outgoing(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            // Writing to memory does not fail.
            if self.tls.write_tls(&mut out).is_err() {
                break;
            }
        }
        out
    }

    /// Takes what came in; the response once it is whole.
    pub fn incoming(&mut self, mut bytes: &[u8]) -> Result<Option<Response>, NoResponse> {
        while !bytes.is_empty() {
            // Nothing is taken once KMS has closed TLS: whatever follows is not KMS's.
            if self.tls.read_tls(&mut bytes).map_err(|_| NoResponse::Malformed)? == 0 {
                return Err(NoResponse::Closed);
            }
            let closed = self.tls.process_new_packets().map_err(|e| tls_error(&e))?.peer_has_closed();
            let mut chunk = [0; 4096];
            loop {
                match self.tls.reader().read(&mut chunk) {
                    Ok(0) => break,
                    Ok(n) => self.received.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => return Err(NoResponse::Closed),
                }
                if self.received.len() > MAX_HEAD_LEN + MAX_KMS_BODY_LEN {
                    return Err(NoResponse::Malformed);
                }
            }
            if closed {
                return response(&self.received)?.map_or(Err(NoResponse::Closed), |response| Ok(Some(response)));
            }
        }
        response(&self.received)
    }
}

fn tls_error(error: &rustls::Error) -> NoResponse {
    NoResponse::Tls(error.to_string().chars().take(200).collect())
}

/// The response in `bytes`, once it is whole. KMS says how long it is; other forms are not taken.
pub fn response(bytes: &[u8]) -> Result<Option<Response>, NoResponse> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut head = httparse::Response::new(&mut headers);
    let head_len = match head.parse(bytes).map_err(|_| NoResponse::Malformed)? {
        httparse::Status::Complete(len) if len <= MAX_HEAD_LEN => len,
        httparse::Status::Partial if bytes.len() <= MAX_HEAD_LEN => return Ok(None),
        _ => return Err(NoResponse::Malformed),
    };
    let status = head.code.filter(|code| *code >= 200).ok_or(NoResponse::Malformed)?;
    let mut length = None;
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") || header.name.eq_ignore_ascii_case("content-encoding")
        {
            return Err(NoResponse::Malformed);
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
            let parsed = text.and_then(|text| text.parse::<usize>().ok()).ok_or(NoResponse::Malformed)?;
            if length.replace(parsed).is_some() {
                return Err(NoResponse::Malformed);
            }
        }
    }
    let length = length.filter(|length| *length <= MAX_KMS_BODY_LEN).ok_or(NoResponse::Malformed)?;
    let body = bytes.get(head_len..).unwrap_or_default();
    if body.len() < length {
        return Ok(None);
    }
    if body.len() > length {
        return Err(NoResponse::Malformed);
    }
    let body = BoundedBytes::new(body.to_vec()).ok_or(NoResponse::Malformed)?;
    Ok(Some(Response { status, body }))
}
