//! `POST /api/v1/eth2/ext/sign/{identifier}`: Web3Signer's signing extension, of which there is one type.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate_protocol::frame::MAX_PROOF_TEXT_LEN;
use casemate_protocol::{Reply, Request};
use serde::Deserialize;
use serde_json::json;

use super::{App, Failure, Identifier};
use crate::json::shown;

/// Fields as Web3Signer knows them; unlike a sign request it takes no others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProofOfValidation {
    r#type: String,
    platform: String,
    timestamp: Timestamp,
}

/// Milliseconds or a date, as a string; or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Timestamp {
    Text(String),
    Number(u64),
}

pub(super) async fn sign(
    State(app): State<Arc<App>>,
    identifier: Identifier,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let (body, _permit) = app.read_body(&headers, body).await?;
    let bad = |message: String| Failure::new(StatusCode::BAD_REQUEST, message);
    let asked: ProofOfValidation =
        serde_json::from_slice(&body).map_err(|e| bad(format!("the body is not a proof of validation: {e}")))?;
    if !asked.r#type.eq_ignore_ascii_case("PROOF_OF_VALIDATION") {
        return Err(bad(format!("unknown type {}; PROOF_OF_VALIDATION is the only one", shown(&asked.r#type))));
    }
    let timestamp = match asked.timestamp {
        Timestamp::Text(text) => text,
        Timestamp::Number(number) => number.to_string(),
    };
    for text in [&asked.platform, &timestamp] {
        if text.len() > MAX_PROOF_TEXT_LEN {
            return Err(bad(format!("the text is {} bytes long; {MAX_PROOF_TEXT_LEN} are allowed", text.len())));
        }
    }
    let public_key = super::sign::public_key(&identifier.0)?;
    let request = Request::ProofOfValidation { public_key, platform: asked.platform, timestamp };
    match app.enclave.call(request).await? {
        Reply::ProofOfValidation { payload, signature } => {
            let body = json!({ "payload": STANDARD.encode(payload), "signature": signature.to_string() }).to_string();
            Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
        }
        Reply::Refused(refusal) => Err(refusal.into()),
        _ => Err(Failure::unexpected_reply()),
    }
}
