//! `GET /attestation?nonce=HEX`: the enclave's attestation document, and the statement behind it.
//!
//! The proxy passes both on and vouches for neither: `casemate attest fetch` verifies them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::frame::{NONCE_LEN, Nonce};
use casemate_protocol::{Reply, Request};
use serde_json::json;

use super::keys::json_body;
use super::{App, Failure};
use crate::request::BadRequest;

pub(super) async fn attestation(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Failure> {
    let nonce = nonce(uri.query().unwrap_or_default())?;
    match app.enclave.call(Request::Attestation { nonce }).await? {
        Reply::Attestation { document, statement } => Ok(json_body(&json!({
            "attestation_document": BASE64_STANDARD.encode(document),
            "statement": BASE64_STANDARD.encode(statement),
        }))),
        Reply::Refused(refusal) => Err(refusal.into()),
        _ => Err(Failure::unexpected_reply()),
    }
}

/// The one nonce of a query.
fn nonce(query: &str) -> Result<Nonce, BadRequest> {
    let (min, max) = (NONCE_LEN.start(), NONCE_LEN.end());
    let mut given = query.split('&').filter_map(|pair| pair.strip_prefix("nonce="));
    let (Some(text), None) = (given.next(), given.next()) else {
        return Err(BadRequest(format!("one nonce is needed: ?nonce= and {min} to {max} bytes of your own in hex")));
    };
    // Before any of it is decoded: a head can be 16 KiB long.
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let wrong_length =
        || BadRequest(format!("the nonce has {} hex digits; {} to {} are allowed", digits.len(), min * 2, max * 2));
    if digits.len() > max.saturating_mul(2) {
        return Err(wrong_length());
    }
    let bytes = const_hex::decode(digits).map_err(|e| BadRequest(format!("the nonce is not hex: {e}")))?;
    Nonce::new(bytes).ok_or_else(wrong_length)
}

#[cfg(test)]
mod tests {
    use super::nonce;

    #[test]
    fn nonces_are_hex_of_8_to_64_bytes_given_once() {
        for good in ["nonce=0011223344556677", "nonce=0x0011223344556677", "a=b&nonce=00112233445566FF"] {
            assert!(nonce(good).is_ok(), "{good}");
        }
        assert!(nonce(&format!("nonce={}", "ab".repeat(64))).is_ok());
        for bad in [
            "",
            "nonce",
            "nonce=",
            "Nonce=0011223344556677",
            "nonce=00112233445566",
            "nonce=001122334455667",
            "nonce=001122334455667g",
            "nonce=0011223344556677&nonce=0011223344556677",
            "nonce=%30011223344556677",
        ] {
            assert!(nonce(bad).is_err(), "{bad}");
        }
        assert!(nonce(&format!("nonce={}", "ab".repeat(65))).is_err());
        assert!(nonce(&format!("nonce={}", "ab".repeat(8000))).is_err_and(|e| e.0.len() < 200));
    }
}
