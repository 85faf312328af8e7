//! Status codes and their JSON.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use casemate_protocol::Refusal;
use casemate_protocol::refusal::Kind;
use http_body_util::Full;
use serde_json::json;

use crate::enclave::Unavailable;
use crate::json::shown;
use crate::request::BadRequest;

/// Longest sentence, in characters: it goes into the answer and into the log.
const MAX_MESSAGE_LEN: usize = 400;

/// What went wrong, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status code.
    pub status: StatusCode,
    /// One sentence.
    pub message: String,
}

impl Failure {
    /// A failure with one sentence, cut off where a client's own words made it long.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_LEN) {
            message.truncate(end);
            message.push('…');
            message.shrink_to_fit();
        }
        Self { status, message }
    }

    pub(super) fn forbidden_host(host: Option<&str>) -> Self {
        let named =
            host.map_or_else(|| "a request without a host".to_owned(), |host| format!("the host {}", shown(host)));
        Self::new(StatusCode::FORBIDDEN, format!("{named} is not on the allow-list (--http-host-allowlist)"))
    }

    pub(super) fn unexpected_reply() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the enclave answered something else than it was asked")
    }

    /// The answer: `message`, and `error` for clients that read that.
    pub fn into_parts(self) -> axum::http::Response<Full<Bytes>> {
        let body = json!({ "message": self.message, "error": self.message }).to_string();
        let mut response = axum::http::Response::new(Full::new(body.into()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&self.status) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// The same, for routes.
    pub fn into_json(self) -> Response {
        self.into_parts().map(Body::new)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.into_json()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind() {
            Kind::BadRequest => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Refused => StatusCode::PRECONDITION_FAILED,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Kind::Forbidden => StatusCode::FORBIDDEN,
        };
        Self::new(status, refusal.to_string())
    }
}

impl From<Unavailable> for Failure {
    fn from(unavailable: Unavailable) -> Self {
        let message = match unavailable {
            Unavailable::Away => "the enclave is away: no connection to it; it is tried again all the time",
            Unavailable::Busy => "too many requests are waiting for the enclave; try again",
            Unavailable::TimedOut => "the enclave did not answer in time",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl From<BadRequest> for Failure {
    fn from(bad: BadRequest) -> Self {
        Self::new(StatusCode::BAD_REQUEST, bad.0)
    }
}

/// Whether `Accept` asks for JSON. Clients go by the answer's Content-Type; some send no `Accept` and read plain text.
pub fn wants_json(headers: &HeaderMap) -> bool {
    // What most send, without a closer look.
    if headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json") {
        return true;
    }
    let json = quality(headers, &["application/json", "application/*", "*/*"]);
    // Of two that are as welcome JSON is given: most of those who take anything can read it.
    json > 0 && json >= quality(headers, &["text/plain", "text/*", "*/*"])
}

/// Whether `Accept` names JSON, and does not exclude it.
pub fn names_json(headers: &HeaderMap) -> bool {
    quality(headers, &["application/json"]) > 0
}

/// How welcome a media type is, in thousandths (RFC 9110, section 12.5.1): `ranges` are those that it matches, the most specific first.
fn quality(headers: &HeaderMap, ranges: &[&str]) -> u16 {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let accepted: Vec<(&str, u16)> = accepted.flat_map(|value| value.split(',')).map(range_of).collect();
    let of = |range: &&str| {
        let named = accepted.iter().filter(|(name, _)| name.eq_ignore_ascii_case(range));
        named.map(|(_, quality)| *quality).max()
    };
    ranges.iter().find_map(of).unwrap_or(0)
}

/// A media range and its weight. One that is no number between 0 and 1 is taken for 1, as if it were not there.
fn range_of(text: &str) -> (&str, u16) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    (name, weight.and_then(thousandths).unwrap_or(1000))
}

fn thousandths(weight: &str) -> Option<u16> {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    match (whole, format!("{fraction:0<3}").parse::<u16>().ok()?) {
        ("0", thousandths) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_decides_the_form() {
        let accept = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::ACCEPT, HeaderValue::from_static(value));
            }
            wants_json(&headers)
        };
        assert!(accept(&["application/json"]));
        assert!(accept(&["text/html, application/json;q=0.9"]));
        assert!(accept(&["text/plain", "Application/JSON"]));
        assert!(accept(&["*/*"]));
        assert!(!accept(&[]));
        assert!(!accept(&["text/plain"]));
        assert!(!accept(&["application/jsonp"]));
        // With weights the most welcome counts, and one of 0 is excluded.
        assert!(!accept(&["text/plain, application/json;q=0.9"]));
        assert!(accept(&["text/plain;q=0.5, application/json"]));
        assert!(!accept(&["application/json;q=0"]));
        assert!(!accept(&["application/json; q=0.000, */*"]));
        assert!(!accept(&["text/plain;q=0.5, */*;q=0.1"]));
        assert!(accept(&["application/*"]));
        assert!(accept(&["application/json;q=2"]), "no weight at all");
    }

    #[test]
    fn an_away_enclave_says_when_to_come_back() {
        let response = Failure::from(Unavailable::Away).into_json();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }
}
