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
use casemate_protocol::command::{
    ClosedRecord, Envelope, GeneratedKey, KeyOutcome, MAX_SIGNED_LEN, Outcome, SignedExit,
};
use serde_json::{Value, json};
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
    answer.map(|outcome| json_body(&shown(&outcome)))
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

fn shown(outcome: &Outcome) -> Value {
    let names = |keys: &[KeyOutcome]| keys.iter().map(|key| json!(name(*key))).collect::<Vec<_>>();
    match outcome {
        Outcome::Imported { keys } => json!({ "outcome": "imported", "keys": names(keys) }),
        Outcome::Deleted { keys } => json!({ "outcome": "deleted", "keys": names(keys) }),
        Outcome::FeeRecipientsSet { keys } => json!({ "outcome": "fee_recipients_set", "keys": names(keys) }),
        Outcome::HistoryRaised { keys } => json!({ "outcome": "history_raised", "keys": names(keys) }),
        Outcome::ExitsSigned { exits } => json!({ "outcome": "exits_signed", "exits": signed_exits(exits) }),
        Outcome::Generated { keys } => json!({ "outcome": "generated", "keys": deposits(keys) }),
        Outcome::Deposited { keys } => json!({ "outcome": "deposited", "keys": deposits(keys) }),
        Outcome::FenceReady => json!({ "outcome": "fence_ready" }),
        Outcome::CredentialsTaken => json!({ "outcome": "credentials_taken" }),
        Outcome::FenceClosed { record } => json!({ "outcome": "fence_closed", "record": closed(record) }),
        Outcome::HandedOver => json!({ "outcome": "handed_over" }),
        Outcome::TookOver { term } => json!({ "outcome": "took_over", "term": term }),
    }
}

fn closed(record: &ClosedRecord) -> Value {
    json!({
        "closed": true,
        "version": record.version,
        "term": record.term,
        "slot_ceiling": record.slot_ceiling.0,
        "target_ceiling": record.target_ceiling.0,
        "source_ceiling": record.source_ceiling.0,
        "min_state_version": record.min_state_version,
        "released_state": record.released_state.map(|state| state.to_string()),
    })
}

fn deposits(keys: &[GeneratedKey]) -> Vec<Value> {
    let one = |key: &GeneratedKey| json!({ "public_key": key.public_key.to_string(), "deposit_signature": key.deposit_signature.to_string() });
    keys.iter().map(one).collect()
}

fn signed_exits(exits: &[SignedExit]) -> Vec<Value> {
    let one = |exit: &SignedExit| {
        json!({
            "public_key": exit.public_key.to_string(),
            "epoch": exit.epoch.0,
            "validator_index": exit.validator_index,
            "signature": exit.signature.to_string(),
        })
    };
    exits.iter().map(one).collect()
}

pub(super) fn name(outcome: KeyOutcome) -> &'static str {
    match outcome {
        KeyOutcome::Imported => "imported",
        KeyOutcome::Duplicate => "duplicate",
        KeyOutcome::WrongSecret => "wrong_secret",
        KeyOutcome::Deleted => "deleted",
        KeyOutcome::NotFound => "not_found",
        KeyOutcome::ImpossibleHistory => "impossible_history",
        KeyOutcome::Changed => "changed",
        KeyOutcome::NoHistory => "no_history",
        KeyOutcome::Unreadable => "unreadable",
        KeyOutcome::WrongPassword => "wrong_password",
    }
}
