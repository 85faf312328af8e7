//! Routes and answers. The contract is Web3Signer's; where it differs on purpose, docs/API.md says so.

mod answer;
mod attestation;
mod commands;
mod door;
mod ext;
mod history;
mod keys;
pub mod keystores;
mod metrics;
mod reload;
mod sign;
mod status;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use http_body_util::{Either, Full};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

pub use answer::{Failure, names_json, wants_json};
pub use door::Door;
pub use keystores::Token;
pub use reload::Reload;

use crate::connections::Arriving;
use crate::egress;
use crate::group::Group;
use crate::settings::Settings;
use crate::tls::Tls;

/// What grows above this waits for one of [`LARGE_BODIES`] permits: the memory that bodies take is bounded.
const SMALL_BODY: usize = 64 * 1024;
/// Large bodies read and parsed at once.
const LARGE_BODIES: usize = 4;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the handlers share.
pub struct App {
    enclave: Group,
    max_body_bytes: usize,
    hosts: Option<Vec<String>>,
    large_bodies: Arc<Semaphore>,
    /// Held while the keys are listed: pages are the largest replies there are, and one listing at a time is quick.
    listing: tokio::sync::Mutex<()>,
    /// The last list of keys that was sent: those who read it slowly share one.
    listed: std::sync::Mutex<Bytes>,
    /// Held while a page of history is asked for: that takes a round trip to the fence's store.
    telling: tokio::sync::Mutex<()>,
    reload: Reload,
    attestations: attestation::Turns,
    egress: Option<Arc<egress::Counters>>,
    ids: AtomicU64,
    /// Of the key manager API; nothing where it is not served.
    token: Option<Token>,
    /// Held while keys are brought or taken away.
    managing: tokio::sync::Mutex<()>,
}

/// The API: what is signed takes the fast path, everything else goes through the router.
#[derive(Clone)]
pub struct Api {
    app: Arc<App>,
    door: Door,
    router: TowerToHyperService<Router>,
}

/// What load balancers ask, by whatever address they know this host.
const PROBED: [&str; 4] = ["/livez", "/readyz", "/upcheck", "/healthcheck"];
/// Where duties are signed, up to the key; the route below says the same.
const SIGN: &str = "/api/v1/eth2/sign/";

/// The proxy's API.
pub fn api(
    settings: &Settings,
    enclave: Group,
    tls: Vec<Arc<Tls>>,
    egress: Option<Arc<egress::Counters>>,
    token: Option<Token>,
) -> Api {
    let app = Arc::new(App {
        enclave: enclave.clone(),
        max_body_bytes: settings.max_body_bytes.get(),
        hosts: settings.hosts(),
        large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)),
        listing: tokio::sync::Mutex::new(()),
        listed: std::sync::Mutex::default(),
        telling: tokio::sync::Mutex::new(()),
        reload: Reload::new(enclave, tls),
        attestations: attestation::Turns::new(),
        egress,
        // Ids of one process differ; where two start at once, the time tells them apart.
        ids: AtomicU64::new(start_of_ids()),
        token,
        managing: tokio::sync::Mutex::new(()),
    });
    let router = Router::new()
        .route("/api/v1/eth2/sign/{identifier}", post(sign::sign))
        .route("/api/v1/eth2/ext/sign/{identifier}", post(ext::sign))
        .route("/api/v1/eth2/publicKeys", get(keys::public_keys))
        .route("/api/v1/eth2/highWatermark", get(keys::high_watermark))
        // A document for HEAD would be made and thrown away.
        .route("/attestation", get(attestation::attestation).head(status::no_head))
        .route("/commands", post(commands::command))
        .route("/slashing-protection", get(history::page))
        .route("/key-details", get(history::key_page))
        .route("/signing-log/head", get(history::signing_log_head))
        .route("/eth/v1/keystores", get(keystores::list).post(keystores::import).delete(keystores::delete))
        .route("/openapi.json", get(status::openapi))
        .route("/metrics", get(metrics::metrics))
        .route("/livez", get(status::livez))
        .route("/readyz", get(status::readyz))
        .route("/upcheck", get(status::upcheck))
        .route("/healthcheck", get(status::healthcheck))
        .route("/reload", get(reload::status).post(reload::start))
        .fallback(status::no_such_path)
        .method_not_allowed_fallback(status::no_such_method)
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(Arc::clone(&app));
    let door = if settings.admin_listen.is_some() { Door::Clients } else { Door::Whole };
    Api { app, door, router: TowerToHyperService::new(router) }
}

impl Api {
    /// The same behind another listener.
    #[must_use]
    pub fn behind(&self, door: Door) -> Self {
        Self { door, ..self.clone() }
    }

    /// What this listener serves.
    pub fn door(&self) -> Door {
        self.door
    }

    /// Begins a reload, unless one is running.
    pub fn reload(&self) -> bool {
        self.app.reload.begin()
    }

    /// Answers a request. The router's layers cost more than all else that is done here for a signature, so a path that is plainly
    /// a key's is not taken through them; what is around each route is around this one too.
    pub async fn answer(
        self,
        mut request: Request<Arriving>,
    ) -> Result<hyper::Response<Either<Full<Bytes>, Body>>, Infallible> {
        if let Some(tidy) = door::tidy(request.uri()) {
            *request.uri_mut() = tidy;
        }
        let key = request.uri().path().strip_prefix(SIGN).unwrap_or_default();
        if request.method() == Method::POST && !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let (parts, body) = request.into_parts();
            let id = self.app.request_id(&parts.headers);
            let mut response = match self.app.refusal(self.door, &parts.method, &parts.uri, &parts.headers) {
                None => {
                    let key = parts.uri.path().strip_prefix(SIGN).unwrap_or_default();
                    self.app.signed(key, &id, &parts.headers, body).await
                }
                Some(failure) => failure.into_parts(),
            };
            response.headers_mut().insert(REQUEST_ID, id.0);
            return Ok(response.map(Either::Left));
        }
        request.extensions_mut().insert(self.door);
        // In a box: it is large, and must not make the other way's future so.
        let response = Box::pin(self.router.call(request)).await?;
        Ok(response.map(Either::Right))
    }
}

fn start_of_ids() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos() & u128::from(u64::MAX)).unwrap_or(0))
}

/// The id of the request being served: the client's own, or a new one.
#[derive(Clone)]
pub struct RequestId(pub HeaderValue);

impl RequestId {
    /// For the log.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// What stands in a path where a key belongs; empty where it is no text.
struct Identifier(String);

impl<S: Send + Sync> FromRequestParts<S> for Identifier {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(Path::from_request_parts(parts, state).await.map_or_else(|_| String::new(), |Path(text)| text)))
    }
}

/// Around every route: who may ask at all, the request's id.
async fn around(State(app): State<Arc<App>>, mut request: Request<Body>, next: Next) -> Response {
    let id = app.request_id(request.headers());
    request.extensions_mut().insert(id.clone());
    let door = request.extensions().get().copied().unwrap_or(Door::Whole);
    let mut response = match app.refusal(door, request.method(), request.uri(), request.headers()) {
        None => next.run(request).await,
        Some(failure) => failure.into_json(),
    };
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

impl App {
    fn request_id(&self, headers: &HeaderMap) -> RequestId {
        // A client's id goes into the log and back: only what is short and plain.
        let plain = |v: &&HeaderValue| {
            v.len() <= 64
                && !v.is_empty()
                && v.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
        };
        if let Some(given) = headers.get(REQUEST_ID).filter(plain) {
            return RequestId(given.clone());
        }
        let number = self.ids.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut digits = [0; 16];
        // 8 bytes are 16 digits: the buffer's length is the right one.
        let _ = const_hex::encode_to_slice(number.to_be_bytes(), &mut digits);
        RequestId(HeaderValue::from_bytes(&digits).unwrap_or(HeaderValue::from_static("0")))
    }

    /// Why a request is not even looked at.
    fn refusal(&self, door: Door, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Failure> {
        let host = uri.host().or_else(|| headers.get(header::HOST).and_then(|h| h.to_str().ok()).map(without_port));
        if !self.host_allowed(uri.path(), host) {
            return Some(Failure::forbidden_host(host));
        }
        door::foreign_page(headers)
            .or_else(|| door.refusal(uri.path()))
            .or_else(|| door::wrong_content_type(method, uri.path(), headers))
    }

    /// Against DNS rebinding: a browser that was lured here sends the name of its own site. A load balancer's probe sends the address
    /// that it connects to, which no name can be rebound to: it may ask how this signer is.
    fn host_allowed(&self, path: &str, host: Option<&str>) -> bool {
        let Some(allowed) = &self.hosts else { return true };
        let probed = |host: &str| PROBED.contains(&path) && is_address(host);
        host.is_some_and(|host| allowed.iter().any(|a| a.eq_ignore_ascii_case(host)) || probed(host))
    }
}

fn is_address(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // `[::1]:9000` has a port, `[::1]` and `::1` have none.
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn ports_are_cut_off_hosts() {
        for (host, name) in [
            ("localhost", "localhost"),
            ("localhost:9000", "localhost"),
            ("127.0.0.1:9000", "127.0.0.1"),
            ("[::1]:9000", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("evil.example:x", "evil.example:x"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }
}
