//! `GET /livez`, `/readyz`, `/upcheck` and `/healthcheck`, and paths that are not there.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::keys::json_body;
use super::{App, Failure, names_json, wants_json};
use crate::readiness::Verdict;

/// Web3Signer's word, and the truth of `/readyz`: OK where a block could be signed now.
pub(super) async fn upcheck(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let verdict = app.enclave.verdict();
    // `*/*` gets the word too: clients that ask for JSON by name look for the field, the others for OK.
    let json = names_json(&headers) && wants_json(&headers);
    let response = match (verdict.is_ready(), json) {
        (true, true) => json_body(&json!({ "status": "OK" })),
        (false, true) => json_body(&json!({ "status": "DOWN", "reason": verdict.reason })),
        (true, false) => text("OK".to_owned()),
        (false, false) => text(format!("DOWN: {}", verdict.reason.as_deref().unwrap_or_default())),
    };
    with_status(response, verdict.is_ready())
}

fn text(words: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], words).into_response()
}

fn with_status(mut response: Response, ready: bool) -> Response {
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// The proxy lives: who restarts it on another answer mends nothing that lies behind it.
pub(super) async fn livez() -> Response {
    json_body(&json!({ "live": true }))
}

/// Whether a block could be signed now.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let verdict = app.enclave.verdict();
    let ready = verdict.is_ready();
    let mut body = signs_in(&verdict);
    if let Some(fields) = body.as_object_mut() {
        fields.insert("ready".to_owned(), json!(ready));
        fields.insert("since_seconds".to_owned(), json!(app.enclave.since(ready).as_secs()));
        fields.insert("enclave".to_owned(), json!(verdict.enclave));
    }
    with_status(json_body(&body), ready)
}

/// Seconds are rounded up: at none it is signed.
fn signs_in(verdict: &Verdict) -> Value {
    let seconds = |ms: Option<u64>| ms.map(|ms| ms.div_ceil(1000));
    let silence = verdict.readiness.and_then(|readiness| readiness.silence);
    json!({
        "blocks_in_seconds": seconds(verdict.blocks_in_ms()),
        "attestations_in_seconds": seconds(verdict.attestations_in_ms()),
        "reason": verdict.reason,
        "store_silent_seconds": silence.map(|silence| silence.ms / 1000),
    })
}

pub(super) async fn healthcheck(State(app): State<Arc<App>>) -> Response {
    let info = app.enclave.info();
    let verdict = app.enclave.verdict();
    let connections = app.enclave.connections_up();
    let (enclave, keys) = match &info {
        Some(info) => (
            json!({ "network": info.network.name(), "connections": connections }),
            json!({ "signing": info.keys, "without_history": info.keys_without_history }),
        ),
        None => (json!({ "connections": connections }), json!({})),
    };
    let word = |up: bool| if up { "UP" } else { "DOWN" };
    let has_keys = info.as_ref().is_some_and(|i| i.keys > 0);
    let mut fence = signs_in(&verdict);
    if let Some(fields) = fence.as_object_mut() {
        fields.insert("holder".to_owned(), json!(app.enclave.holder()));
        fields.insert("enclaves".to_owned(), json!(app.enclave.standings()));
    }
    let signs = verdict.readiness.is_some_and(|readiness| readiness.may_sign.blocks());
    let body = json!({
        "status": word(verdict.is_ready()),
        "outcome": word(verdict.is_ready()),
        "checks": [
            { "id": "enclave", "status": word(info.is_some()), "data": enclave },
            { "id": "fence", "status": word(signs), "data": fence },
            { "id": "keys", "status": word(has_keys), "data": keys },
        ],
    });
    with_status(json_body(&body), verdict.is_ready())
}

/// This API, described for programs.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../openapi.json")).into_response()
}

pub(super) async fn no_such_path(uri: Uri) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("there is no path {}", uri.path()))
}

pub(super) async fn no_such_method(uri: Uri) -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("the path {} does not take this method", uri.path()))
}

/// For paths whose GET is not asked in vain.
pub(super) async fn no_head(uri: Uri) -> Response {
    let mut response = no_such_method(uri).await.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}
