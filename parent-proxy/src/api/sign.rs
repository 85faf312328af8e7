//! `POST /api/v1/eth2/sign/{identifier}`.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use casemate_protocol::{PublicKey, Reply, Request, SignRequest, Signature};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as HttpBody;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::{debug, info};

use super::{App, Failure, Identifier, RequestId, SMALL_BODY, wants_json};
use crate::enclave::Unavailable;
use crate::request::{self, Parsed};

/// Longest wait for a body that was announced.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Through the router: paths that [`super::Api`] has not seen to be of this kind.
pub(super) async fn sign(
    State(app): State<Arc<App>>,
    Identifier(identifier): Identifier,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    app.signed(&identifier, &id, &headers, body).await.map(Body::new)
}

fn answer(signature: &Signature, json: bool) -> Response<Full<Bytes>> {
    let mut hex = [0; 2 * 96];
    // 96 bytes are 192 digits: the buffer's length is the right one.
    let _ = const_hex::encode_to_slice(signature.0, &mut hex);
    let hex = std::str::from_utf8(&hex).unwrap_or_default();
    let (kind, parts) = if json {
        ("application/json", [r#"{"signature":"0x"#, hex, r#""}"#])
    } else {
        ("text/plain; charset=utf-8", ["0x", hex, ""])
    };
    let body = parts.concat();
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

impl App {
    /// Signs, and words the answer.
    pub(super) async fn signed<B>(
        &self,
        identifier: &str,
        id: &RequestId,
        headers: &HeaderMap,
        body: B,
    ) -> Response<Full<Bytes>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        match self.sign(identifier, headers, body).await {
            Ok((key, signature)) => {
                debug!(id = id.as_str(), %key, "signed");
                answer(&signature, wants_json(headers))
            }
            Err((key, failure)) => {
                let key = key.map(|key| key.to_string());
                info!(id = id.as_str(), key, status = failure.status.as_u16(), reason = failure.message, "not signed");
                failure.into_parts()
            }
        }
    }

    /// The key, where there is one, with the signature or what went wrong.
    async fn sign<B>(
        &self,
        identifier: &str,
        headers: &HeaderMap,
        body: B,
    ) -> Result<(PublicKey, Signature), (Option<PublicKey>, Failure)>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let key = public_key(identifier);
        let known = key.as_ref().ok().copied();
        let (body, permit) = self.read_body(headers, body).await.map_err(|failure| (known, failure))?;
        // Megabytes take a while to parse: nothing waits for that.
        let small = body.len() <= SMALL_BODY;
        let until = self.enclave.deadline();
        let place = if small { self.enclave.place(until).await } else { Ok(None) };
        let place = place.map_err(|unavailable| (known, unavailable.into()))?;
        let Parsed { duty, fork_info, signing_root, proofs } =
            self.parse(body, permit).await.map_err(|failure| (known, failure))?;
        let public_key = key.map_err(|failure| (None, failure))?;
        let request = SignRequest { public_key, duty, fork_info, signing_root, proofs };
        match self.enclave.call_from(place, Request::Sign(request), until).await {
            Ok(Reply::Signature(signature)) => Ok((public_key, signature)),
            Ok(Reply::Refused(refusal)) => Err((known, refusal.into())),
            Ok(_) => Err((known, Failure::unexpected_reply())),
            Err(unavailable) => Err((known, unavailable.into())),
        }
    }

    async fn parse(&self, body: Bytes, permit: Option<OwnedSemaphorePermit>) -> Result<Parsed, Failure> {
        // The network's sizes are needed to read the body.
        let Some(info) = self.enclave.info() else {
            return Err(self.enclave.starting().map_or_else(|| Unavailable::Away.into(), Failure::from));
        };
        if body.len() <= SMALL_BODY {
            return Ok(request::parse(&body, &info.network)?);
        }
        // Not on a thread that serves others. The permit goes along: what parsing takes is memory too, and it goes on when the client
        // has hung up.
        let parsed = tokio::task::spawn_blocking(move || {
            let parsed = request::parse(&body, &info.network);
            drop((body, permit));
            parsed
        })
        .await;
        Ok(parsed.map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be parsed"))??)
    }

    /// Reads a body within its limits; a large one comes with its permit.
    pub(super) async fn read_body<B>(
        &self,
        headers: &HeaderMap,
        body: B,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Failure>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()).and_then(|l| l.parse::<usize>().ok());
        if let Some(len) = announced.filter(|len| *len > self.max_body_bytes) {
            return Err(self.too_large(len));
        }
        timeout(BODY_TIMEOUT, self.collect(body, announced.unwrap_or(0))).await.unwrap_or_else(|_| {
            let message = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, message))
        })
    }

    async fn collect<B>(&self, mut body: B, announced: usize) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Failure>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let mut collected = Vec::new();
        let mut permit = None;
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|e| Failure::new(StatusCode::BAD_REQUEST, format!("the body could not be read: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let len = collected.len().saturating_add(data.len());
            if len > self.max_body_bytes {
                return Err(self.too_large(len));
            }
            if len > SMALL_BODY && permit.is_none() {
                permit = Arc::clone(&self.large_bodies).acquire_owned().await.ok();
            }
            // Most come in one piece, which need not be copied.
            if collected.is_empty() && body.is_end_stream() {
                return Ok((data, permit));
            }
            if collected.capacity() == 0 {
                collected.reserve(announced.min(SMALL_BODY));
            }
            collected.extend_from_slice(&data);
        }
        Ok((collected.into(), permit))
    }

    fn too_large(&self, len: usize) -> Failure {
        let message = format!("the body is {len} bytes long or longer; {} are allowed", self.max_body_bytes);
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }
}

/// The key in a path: with or without `0x`, in any case. Whatever else stands there is no key of ours.
pub(super) fn public_key(identifier: &str) -> Result<PublicKey, Failure> {
    let digits = identifier.strip_prefix("0x").or_else(|| identifier.strip_prefix("0X")).unwrap_or(identifier);
    let mut key = PublicKey::ZERO;
    if digits.len() == 96 && const_hex::decode_to_slice(digits, &mut key.0).is_ok() {
        return Ok(key);
    }
    Err(Failure::new(StatusCode::NOT_FOUND, "unknown key: the path does not end with the hex of 48 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_paths_come_in_every_form() {
        let key = "ab".repeat(48);
        for form in [key.clone(), key.to_uppercase(), format!("0x{key}"), format!("0X{}", key.to_uppercase())] {
            assert_eq!(public_key(&form).unwrap().0, [0xab; 48]);
        }
        for form in ["", "0x", "zz", &key[2..], &format!("0x0x{key}"), &format!("{key}ab"), &"zz".repeat(48)] {
            assert_eq!(public_key(form).unwrap_err().status, StatusCode::NOT_FOUND, "{form}");
        }
    }
}
