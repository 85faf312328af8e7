//! `GET /upcheck`, `GET /healthcheck`, and paths that are not there.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::keys::json_body;
use super::{App, Failure, wants_json};

/// The proxy is up. Whether the enclave is, `/healthcheck` says.
pub(super) async fn upcheck(headers: HeaderMap) -> Response {
    // `*/*` gets the word too: clients that ask for JSON by name look for the field, the others for OK.
    let by_name = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.to_ascii_lowercase().contains("application/json"));
    if by_name && wants_json(&headers) {
        json_body(&json!({ "status": "OK" }))
    } else {
        ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "OK").into_response()
    }
}

pub(super) async fn healthcheck(State(app): State<Arc<App>>) -> Response {
    let info = app.enclave.info();
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
    let holder = app.enclave.holder();
    let up = holder.is_some() && has_keys;
    let standings: Vec<_> = app.enclave.standings().iter().map(|standing| json!(standing)).collect();
    let body = json!({
        "status": word(up),
        "outcome": word(up),
        "checks": [
            { "id": "enclave", "status": word(info.is_some()), "data": enclave },
            { "id": "fence", "status": word(holder.is_some()), "data": { "holder": holder, "enclaves": standings } },
            { "id": "keys", "status": word(has_keys), "data": keys },
        ],
    });
    let mut response = json_body(&body);
    if !up {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
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
