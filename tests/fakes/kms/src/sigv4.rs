//! Signature Version 4 of a request, checked: by computing it anew from the secret that belongs to the access key.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;

/// How far a request's time may be off, in seconds.
const MAX_SKEW_SECONDS: i64 = 300;

/// A request as it came.
pub struct Signed<'a> {
    /// `POST`.
    pub method: &'a str,
    /// The path, as it was sent.
    pub path: &'a str,
    /// Header names in lower case.
    pub headers: &'a BTreeMap<String, String>,
    /// The body.
    pub body: &'a [u8],
}

/// Why a signature is not accepted, in AWS's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `InvalidSignatureException` and so on.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
}

fn refused(code: &'static str, message: impl Into<String>) -> Refused {
    Refused { code, message: message.into() }
}

/// Checks a request for the service `kms`; answers the access key.
pub fn check(
    request: &Signed<'_>,
    region: &str,
    secrets: &BTreeMap<String, String>,
    now_seconds: i64,
) -> Result<String, Refused> {
    let missing = || refused("MissingAuthenticationTokenException", "Missing Authentication Token");
    let authorization = request.headers.get("authorization").ok_or_else(missing)?;
    let incomplete = || refused("IncompleteSignatureException", "the Authorization header is incomplete");
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or_else(incomplete)?;
    let fields: BTreeMap<&str, &str> = fields.split(',').filter_map(|field| field.trim().split_once('=')).collect();
    let field = |name| fields.get(name).copied().ok_or_else(incomplete);
    let credential: Vec<&str> = field("Credential")?.split('/').collect();
    let [access_key, date, asked_region, service, terminator] = credential.as_slice() else { return Err(incomplete()) };
    if *asked_region != region || *service != "kms" || *terminator != "aws4_request" {
        return Err(refused(
            "InvalidSignatureException",
            format!("Credential should be scoped to {region}/kms, not to {asked_region}/{service}"),
        ));
    }
    let unknown = || refused("UnrecognizedClientException", "The security token included in the request is invalid.");
    let secret = secrets.get(*access_key).ok_or_else(unknown)?;
    let stamp = request.headers.get("x-amz-date").ok_or_else(incomplete)?;
    let skew = seconds(stamp).ok_or_else(incomplete)?.saturating_sub(now_seconds);
    if !(-MAX_SKEW_SECONDS..=MAX_SKEW_SECONDS).contains(&skew) || !stamp.starts_with(date) {
        return Err(refused("InvalidSignatureException", format!("Signature not yet current or expired: {stamp}")));
    }

    // Whatever changes the meaning of a request must be under its signature.
    let signed = field("SignedHeaders")?;
    let names: Vec<&str> = signed.split(';').collect();
    if !["host", "x-amz-date", "x-amz-target"].iter().all(|needed| names.contains(needed)) {
        return Err(refused("InvalidSignatureException", format!("not every needed header is signed: {signed}")));
    }
    let mut canonical = format!("{}\n{}\n\n", request.method, request.path);
    for name in &names {
        let value = request.headers.get(*name).ok_or_else(incomplete)?;
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        canonical.extend([name, ":", &value, "\n"]);
    }
    canonical.extend(["\n", signed, "\n", &sha256(request.body)]);

    let scope = format!("{date}/{region}/kms/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [*date, region, "kms", "aws4_request"] {
        key = sign(&key, part.as_bytes());
    }
    let given = const_hex::decode(field("Signature")?).map_err(|_| incomplete())?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    hmac::verify(&key, to_sign.as_bytes(), &given).map_err(|_| {
        refused(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided.",
        )
    })?;
    Ok((*access_key).to_owned())
}

fn sign(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    const_hex::encode(digest(&SHA256, bytes))
}

/// `20261121T081530Z`.
fn seconds(stamp: &str) -> Option<i64> {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    time::PrimitiveDateTime::parse(stamp, format).ok().map(|time| time.assume_utc().unix_timestamp())
}
