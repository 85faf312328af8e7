//! `GET /slashing-protection` and `GET /signing-log/head`: what the vault signs of its keys' history and of its log, for `casemate`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use casemate_protocol::frame::Nonce;
use casemate_protocol::history_page::SignedHistoryPage;
use casemate_protocol::{Refusal, Reply, Request};
use serde_json::json;

use super::attestation::nonce;
use super::keys::json_body;
use super::{App, Failure};
use crate::enclave::Unavailable;

/// The first key of a page.
fn start(query: &str) -> Result<u32, Failure> {
    let mut given = query.split('&').filter_map(|pair| pair.strip_prefix("start="));
    let start = match (given.next(), given.next()) {
        (None, _) => Some(0),
        (Some(text), None) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    start.ok_or_else(|| {
        Failure::new(StatusCode::BAD_REQUEST, format!("start= is to be a number up to {}, given once", u32::MAX))
    })
}

/// `GET /key-details`: what operators want to know of keys beside their history.
pub(super) async fn key_page(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Failure> {
    let query = uri.query().unwrap_or_default();
    let (nonce, start) = (nonce(query)?, start(query)?);
    let _alone = app.telling.try_lock().map_err(|_| Failure::from(Refusal::CommandBusy))?;
    let enclave = app.enclave.get(app.number(uri.query())?).ok_or(Unavailable::Away)?;
    match enclave.call(Request::KeyDetails { nonce, start }).await? {
        Reply::KeyDetails(page) => Ok(json_body(&json!({
            "page": const_hex::encode_prefixed(page.page.encode()),
            "signature": page.signature.to_string(),
        }))),
        Reply::Refused(refusal) => Err(refusal.into()),
        _ => Err(Failure::unexpected_reply()),
    }
}

pub(super) async fn page(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Failure> {
    let query = uri.query().unwrap_or_default();
    let (nonce, start) = (nonce(query)?, start(query)?);
    // One at a time, and nobody waits for it: anyone who asks without end keeps no operator from anything else.
    let _alone = app.telling.try_lock().map_err(|_| Failure::from(Refusal::CommandBusy))?;
    let page = app.history_page(app.number(uri.query())?, nonce, start).await?;
    Ok(json_body(&json!({
        "page": const_hex::encode_prefixed(page.page.encode()),
        "signature": page.signature.to_string(),
    })))
}

impl App {
    /// One page of the keys' history. Each asks the fence's store, on the vault's thread of commands: only anyone who holds `telling` may.
    pub(super) async fn history_page(
        &self,
        number: Option<usize>,
        nonce: Nonce,
        start: u32,
    ) -> Result<SignedHistoryPage, Failure> {
        let request = Request::SlashingProtection { nonce, start };
        let reply = match number {
            Some(number) => self.enclave.get(Some(number)).ok_or(Unavailable::Away)?.call(request).await?,
            None => self.enclave.call(request).await?,
        };
        match reply {
            Reply::SlashingProtection(page) => Ok(page),
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Err(Failure::unexpected_reply()),
        }
    }
}

pub(super) async fn signing_log_head(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Failure> {
    let nonce = nonce(uri.query().unwrap_or_default())?;
    let number = app.number(uri.query())?;
    let enclave = app.enclave.get(number).ok_or(Unavailable::Away)?;
    match enclave.call(Request::Log { after: u64::MAX, nonce: Some(nonce) }).await? {
        Reply::Log(page) => {
            let head = page.head;
            Ok(json_body(&json!({
                "boot_nonce": head.boot_nonce.to_string(),
                "term": head.term.to_string(),
                "sequence": head.number.to_string(),
                "time_ms": head.time_ms.to_string(),
                "hash": head.hash.to_string(),
                "signature": head.signature.to_string(),
                "fresh": page.fresh.map(|fresh| fresh.to_string()),
            })))
        }
        Reply::Refused(refusal) => Err(refusal.into()),
        _ => Err(Failure::unexpected_reply()),
    }
}
