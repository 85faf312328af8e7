//! `GET /api/v1/eth2/publicKeys` and `GET /api/v1/eth2/highWatermark`.

use std::sync::{Arc, PoisonError};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use casemate_protocol::{PublicKey, Reply, Request};
use serde_json::{Value, json};

use super::{App, Failure};
use crate::enclave::Unavailable;

pub(super) async fn public_keys(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Failure> {
    let keys = app.public_keys(app.number(uri.query())?).await?;
    let list = json!(keys.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string();
    Ok(([(header::CONTENT_TYPE, "application/json")], app.shared(list.into())).into_response())
}

impl App {
    /// The same bytes for everyone who is sent the same list: it has megabytes with many keys, and some read it slowly.
    fn shared(&self, list: Bytes) -> Bytes {
        let mut before = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != list {
            *before = list;
        }
        before.clone()
    }

    /// The keys that sign.
    pub(super) async fn public_keys(&self, number: Option<usize>) -> Result<Vec<PublicKey>, Failure> {
        let _alone = self.listing.lock().await;
        let mut keys: Vec<PublicKey> = Vec::new();
        loop {
            let start = u32::try_from(keys.len()).unwrap_or(u32::MAX);
            let request = Request::PublicKeys { start };
            let reply = match number {
                Some(number) => self.enclave.get(Some(number)).ok_or(Unavailable::Away)?.call(request).await?,
                None => self.enclave.call(request).await?,
            };
            match reply {
                Reply::PublicKeys { total, keys: page } => {
                    let ended = page.is_empty();
                    keys.extend(page);
                    if ended || keys.len() >= usize::try_from(total).unwrap_or(usize::MAX) {
                        return Ok(keys);
                    }
                }
                Reply::Refused(refusal) => return Err(refusal.into()),
                _ => return Err(Failure::unexpected_reply()),
            }
        }
    }
}

pub(super) async fn high_watermark(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    match app.enclave.call(Request::HighWatermark).await? {
        Reply::HighWatermark(Some(w)) => {
            Ok(json_body(&json!({ "epoch": w.epoch.to_string(), "slot": w.slot.to_string() })))
        }
        Reply::HighWatermark(None) => Ok(json_body(&json!({}))),
        Reply::Refused(refusal) => Err(refusal.into()),
        _ => Err(Failure::unexpected_reply()),
    }
}

pub(super) fn json_body(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
