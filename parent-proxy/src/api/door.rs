//! Before any path is looked at: which listener a request came through, and whether a browser sent it for somebody else's page.

use std::fmt;

use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};

use super::Failure;
use crate::json::shown;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What operators and key managers ask.
const ADMINISTRATION: [&str; 6] =
    ["/commands", "/eth/v1/keystores", "/key-details", "/reload", "/signing-log/head", "/slashing-protection"];
/// What validator clients ask.
const SIGNING: [&str; 2] = ["/api/v1/eth2/sign/", "/api/v1/eth2/ext/sign/"];
/// The one path whose body is no JSON.
const COMMANDS: &str = "/commands";

/// A listener, by what it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Everything: there is no other.
    Whole,
    /// Everything but administration.
    Clients,
    /// Everything but signatures.
    Admin,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "everything",
            Self::Clients => "clients",
            Self::Admin => "administration",
        })
    }
}

impl Door {
    /// Why this path is not here.
    pub fn refusal(self, path: &str) -> Option<Failure> {
        let told = |which: &str| {
            Some(Failure::new(StatusCode::NOT_FOUND, format!("there is no path {} here: {which}", shown(path))))
        };
        match self {
            Self::Clients if ADMINISTRATION.contains(&path) => told("it is served by --admin-listen"),
            Self::Admin if SIGNING.iter().any(|signing| path.starts_with(signing)) => {
                told("--admin-listen signs nothing")
            }
            _ => None,
        }
    }
}

/// A browser says for whom it asks: nothing that a page of another site has sent is answered. No validator client sends these headers;
/// a page can send a POST to this machine without asking first, and could spend a vote so.
pub fn foreign_page(headers: &HeaderMap) -> Option<Failure> {
    let forbidden = |name: &str, value: &[u8]| {
        let value = String::from_utf8_lossy(value);
        let why =
            format!("{name}: {} comes from a browser's page; validator clients send no such header", shown(&value));
        Some(Failure::new(StatusCode::FORBIDDEN, why))
    };
    if let Some(origin) = headers.get(header::ORIGIN) {
        return forbidden("Origin", origin.as_bytes());
    }
    let own = |site: &[u8]| site == b"none" || site == b"same-origin";
    let site = headers.get_all(SEC_FETCH_SITE).iter().find(|site| !own(site.as_bytes()))?;
    forbidden("Sec-Fetch-Site", site.as_bytes())
}

/// Bodies are JSON, and say so: the types that a page may send without asking first are none. A client that says nothing is taken at
/// its word; a browser that says nothing has said where it comes from.
pub fn wrong_content_type(method: &Method, path: &str, headers: &HeaderMap) -> Option<Failure> {
    // Those that some path takes with a body; the others are refused as they are.
    if ![Method::POST, Method::DELETE].contains(method) {
        return None;
    }
    let wanted: &[&str] =
        if path == COMMANDS { &["application/cbor", "application/octet-stream"] } else { &["application/json"] };
    let is_wanted = |given: &[u8]| {
        let essence = given.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        wanted.iter().any(|wanted| essence.eq_ignore_ascii_case(wanted.as_bytes()))
    };
    let given = headers.get_all(header::CONTENT_TYPE).iter().find(|given| !is_wanted(given.as_bytes()))?;
    let given = String::from_utf8_lossy(given.as_bytes());
    let why = format!("Content-Type: {} is not taken here; send {}", shown(&given), wanted.join(" or "));
    Some(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
}

/// The same address without doubled and trailing slashes: some clients join URLs as they are. Nothing where there are none.
pub fn tidy(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("//") && (path.len() < 2 || !path.ends_with('/')) {
        return None;
    }
    let mut tidy: String = path.split('/').filter(|part| !part.is_empty()).flat_map(|part| ["/", part]).collect();
    if tidy.is_empty() {
        tidy.push('/');
    }
    if let Some(query) = uri.query() {
        tidy.push('?');
        tidy.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(tidy).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_page_of_another_site_is_refused_and_a_client_is_not() {
        for (name, value) in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1:9000"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", ""),
        ] {
            let failure = foreign_page(&headers(&[(name, value)])).unwrap();
            assert_eq!(failure.status, StatusCode::FORBIDDEN, "{name}: {value}");
        }
        // Lodestar's fetch says the third.
        for (name, value) in [("sec-fetch-site", "none"), ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]
        {
            assert_eq!(foreign_page(&headers(&[(name, value)])), None, "{name}: {value}");
        }
        let mut two = headers(&[("sec-fetch-site", "none")]);
        two.append("sec-fetch-site", HeaderValue::from_static("cross-site"));
        assert!(foreign_page(&two).is_some());
    }

    #[test]
    fn bodies_are_json_and_commands_cbor() {
        let wrong = |method: &Method, path: &str, kind: &'static str| {
            wrong_content_type(method, path, &headers(&[("content-type", kind)])).map(|failure| failure.status.as_u16())
        };
        let (get, post, sign) = (Method::GET, Method::POST, "/api/v1/eth2/sign/0x");
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=UTF-8"] {
            assert_eq!(wrong(&post, sign, kind), None, "{kind}");
            assert_eq!(wrong(&post, COMMANDS, kind), Some(415), "{kind}");
        }
        for kind in
            ["text/plain", "text/plain;application/json", "application/x-www-form-urlencoded", "application/jsonp", ""]
        {
            assert_eq!(wrong(&post, sign, kind), Some(415), "{kind}");
            assert_eq!(wrong(&Method::DELETE, "/eth/v1/keystores", kind), Some(415), "{kind}");
            assert_eq!(wrong(&get, "/upcheck", kind), None, "{kind}");
        }
        assert_eq!(wrong(&post, COMMANDS, "application/cbor"), None);
        assert_eq!(wrong(&post, COMMANDS, "application/octet-stream"), None);
        assert_eq!(wrong_content_type(&post, sign, &HeaderMap::new()), None);
    }

    #[test]
    fn doubled_and_trailing_slashes_are_none() {
        for (given, path) in [
            ("//upcheck", "/upcheck"),
            ("/upcheck/", "/upcheck"),
            ("//api//v1/eth2/publicKeys///?a=//b/", "/api/v1/eth2/publicKeys?a=//b/"),
            ("//", "/"),
            ("http://host:1//reload/", "http://host:1/reload"),
        ] {
            assert_eq!(tidy(&given.parse().unwrap()).unwrap().to_string(), path, "{given}");
        }
        for given in ["/", "/upcheck", "/a?b=//"] {
            assert_eq!(tidy(&given.parse().unwrap()), None, "{given}");
        }
    }

    #[test]
    fn administration_has_a_door_of_its_own_and_signs_nothing_there() {
        for path in ADMINISTRATION {
            assert!(Door::Clients.refusal(path).is_some() && Door::Admin.refusal(path).is_none(), "{path}");
        }
        assert!(Door::Admin.refusal("/api/v1/eth2/sign/0xab").is_some());
        for path in ["/upcheck", "/metrics", "/attestation", "/api/v1/eth2/publicKeys"] {
            assert!(Door::Clients.refusal(path).is_none() && Door::Admin.refusal(path).is_none(), "{path}");
        }
        assert!(ADMINISTRATION.iter().all(|path| Door::Whole.refusal(path).is_none()));
    }
}
