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
use casemate_protocol::command::{Command, Envelope, MAX_SIGNED_LEN, Outcome, SignedCommand};
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
    let envelope = app.envelope(&headers, body).await;
    let told = envelope.as_ref().map(Told::read).unwrap_or_default();
    let answer = match envelope {
        Ok(envelope) => app.command(number, envelope).await,
        Err(failure) => Err(failure),
    };
    let Told { kind, counter, operators } = &told;
    match &answer {
        Ok(outcome) => {
            let keys = count(outcome);
            info!(id = id.as_str(), kind, counter, operators, keys, "an operators' command was carried out");
        }
        Err(failure) => {
            let (status, reason) = (failure.status.as_u16(), &failure.message);
            info!(id = id.as_str(), kind, counter, operators, status, reason, "an operators' command was refused");
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

    async fn envelope(&self, headers: &HeaderMap, body: Body) -> Result<Envelope, Failure> {
        let (body, _permit) = self.read_body(headers, body).await?;
        let len = body.len();
        Envelope::new(body.to_vec()).ok_or_else(|| {
            let status = if len == 0 { StatusCode::BAD_REQUEST } else { StatusCode::PAYLOAD_TOO_LARGE };
            Failure::new(status, format!("the command has {len} bytes; 1 to {MAX_SIGNED_LEN} are allowed"))
        })
    }

    async fn command(&self, number: Option<usize>, envelope: Envelope) -> Result<Outcome, Failure> {
        match self.enclave.command(number, envelope).await? {
            Reply::Command(outcome) => Ok(outcome),
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Err(Failure::unexpected_reply()),
        }
    }
}

/// What a command says of itself: for the log alone, since no signature is verified here. The enclave's signing log has what is proved.
struct Told {
    kind: &'static str,
    counter: u64,
    /// Public keys, with commas between them.
    operators: String,
}

impl Default for Told {
    fn default() -> Self {
        Self { kind: "unreadable", counter: 0, operators: String::new() }
    }
}

impl Told {
    fn read(envelope: &Envelope) -> Self {
        let Ok(signed) = SignedCommand::decode(envelope.as_ref()) else { return Self::default() };
        let Ok(command) = Command::decode(signed.command.as_ref()) else { return Self::default() };
        let operators: Vec<String> = signed.signatures.iter().map(|one| one.operator.to_string()).collect();
        Self { kind: command.action.kind().name(), counter: command.counter, operators: operators.join(",") }
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
