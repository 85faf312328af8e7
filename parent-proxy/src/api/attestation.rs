//! `GET /attestation?nonce=HEX`: the enclave's attestation document, and the statement behind it.
//!
//! The proxy passes both on and vouches for neither: `casemate attest fetch` verifies them.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::frame::{NONCE_LEN, Nonce};
use casemate_protocol::{Refusal, Reply, Request};
use serde_json::json;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::info;

use super::keys::json_body;
use super::{App, Failure, RequestId};
use crate::enclave::Unavailable;
use crate::request::BadRequest;

/// Requests that may wait for their turn; the others hear 429 at once.
const WAITING: usize = 16;
/// Longest wait for a turn and a document.
const PATIENCE: Duration = Duration::from_secs(10);
/// The vault gives two documents a second.
const RETRY: Duration = Duration::from_millis(250);

/// The queue in front of the vault's rate limit: one request at a time, in the order of their coming, so that anyone who asks
/// often does not keep others from being answered.
pub(super) struct Turns {
    waiting: Semaphore,
    turn: Mutex<()>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { waiting: Semaphore::new(WAITING), turn: Mutex::new(()) }
    }
}

pub(super) async fn attestation(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    uri: Uri,
) -> Result<Response, Failure> {
    let answer = match nonce(uri.query().unwrap_or_default()) {
        Ok(nonce) => {
            timeout(PATIENCE, app.attest(app.number(uri.query())?, nonce)).await.unwrap_or_else(|_| Err(too_many()))
        }
        Err(bad) => Err(bad.into()),
    };
    if let Err(failure) = &answer {
        info!(id = id.as_str(), status = failure.status.as_u16(), reason = failure.message, "not attested");
    }
    answer
}

impl App {
    async fn attest(&self, number: Option<usize>, nonce: Nonce) -> Result<Response, Failure> {
        // The same one until it answers; and anyone who asked learns which, so that what follows goes there too.
        let number = self.enclave.select(number);
        let turns = &self.attestations;
        let _place = turns.waiting.try_acquire().map_err(|_| too_many())?;
        let _turn = turns.turn.lock().await;
        loop {
            let enclave = self.enclave.get(Some(number)).ok_or(Unavailable::Away)?;
            match enclave.call(Request::Attestation { nonce: nonce.clone() }).await? {
                Reply::Attestation { document, statement } => {
                    return Ok(json_body(&json!({
                        "attestation_document": BASE64_STANDARD.encode(document),
                        "statement": BASE64_STANDARD.encode(statement),
                        "enclave": number,
                    })));
                }
                Reply::Refused(Refusal::TooManyAttestations { .. } | Refusal::NsmBusy) => sleep(RETRY).await,
                Reply::Refused(refusal) => return Err(refusal.into()),
                _ => return Err(Failure::unexpected_reply()),
            }
        }
    }
}

fn too_many() -> Failure {
    Refusal::TooManyAttestations { seconds: 1 }.into()
}

/// The one nonce of a query.
pub(super) fn nonce(query: &str) -> Result<Nonce, BadRequest> {
    let (min, max) = (NONCE_LEN.start(), NONCE_LEN.end());
    let mut given = query.split('&').filter_map(|pair| pair.strip_prefix("nonce="));
    let (Some(text), None) = (given.next(), given.next()) else {
        return Err(BadRequest(format!("one nonce is needed: ?nonce= and {min} to {max} bytes of your own in hex")));
    };
    // Before any of it is decoded: a head can be 16 KiB long.
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.starts_with("0x") {
        return Err(BadRequest("the nonce is not hex".to_owned()));
    }
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
            "nonce=0x0x0011223344556677",
        ] {
            assert!(nonce(bad).is_err(), "{bad}");
        }
        assert!(nonce(&format!("nonce={}", "ab".repeat(65))).is_err());
        assert!(nonce(&format!("nonce={}", "ab".repeat(8000))).is_err_and(|e| e.0.len() < 200));
    }
}
