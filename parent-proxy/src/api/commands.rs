//! `POST /commands`: an operators' command, passed on to the enclave, which alone judges it.
//!
//! The answer is the enclave's, but it came through here: `casemate` asks for an attestation document afterwards and believes that.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use casemate_protocol::Reply;
use casemate_protocol::command::{Envelope, MAX_SIGNED_LEN, Outcome};
use casemate_protocol::reported::ReportedOutcome;
use serde_json::json;
use tracing::info;

use super::keys::json_body;
use super::{App, Failure, RequestId};

pub(super) async fn command(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let number = app.number(uri.query())?;
    let answer = app.command(number, &headers, body).await;
    match &answer {
        Ok(outcome) => info!(id = id.as_str(), keys = count(outcome), "an operators' command was carried out"),
        Err(failure) => {
            info!(id = id.as_str(), status = failure.status.as_u16(), reason = failure.message, "command refused");
        }
    }
    answer.map(|outcome| json_body(&json!(ReportedOutcome::from(&outcome))))
}

impl App {
    /// Which enclave is meant: `enclave=N`, in the order of --enclave, from 0.
    pub(super) fn number(&self, query: Option<&str>) -> Result<Option<usize>, Failure> {
        let mut given = query.unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("enclave="));
        let count = self.enclave.len();
        let number = match (given.next(), given.next()) {
            (None, _) => return Ok(None),
            // `parse` alone would take a plus sign.
            (Some(text), None) if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().ok().filter(|number| *number < count)
            }
            _ => None,
        };
        let message = || format!("enclave= is to be a number below {count}: the enclaves of this proxy count from 0");
        number.map(Some).ok_or_else(|| Failure::new(StatusCode::BAD_REQUEST, message()))
    }

    async fn command(&self, number: Option<usize>, headers: &HeaderMap, body: Body) -> Result<Outcome, Failure> {
        let (body, _permit) = self.read_body(headers, body).await?;
        let len = body.len();
        let envelope = Envelope::new(body.to_vec()).ok_or_else(|| {
            let status = if len == 0 { StatusCode::BAD_REQUEST } else { StatusCode::PAYLOAD_TOO_LARGE };
            Failure::new(status, format!("the command has {len} bytes; 1 to {MAX_SIGNED_LEN} are allowed"))
        })?;
        match self.enclave.command(number, envelope).await? {
            Reply::Command(outcome) => Ok(outcome),
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Err(Failure::unexpected_reply()),
        }
    }
}

fn count(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Imported { keys }
        | Outcome::Deleted { keys }
        | Outcome::FeeRecipientsSet { keys }
        | Outcome::HistoryRaised { keys } => keys.len(),
        Outcome::ExitsSigned { exits } => exits.len(),
        Outcome::Generated { keys } | Outcome::Deposited { keys } => keys.len(),
        Outcome::FenceReady
        | Outcome::CredentialsTaken
        | Outcome::FenceClosed { .. }
        | Outcome::HandedOver
        | Outcome::TookOver { .. } => 0,
    }
}
