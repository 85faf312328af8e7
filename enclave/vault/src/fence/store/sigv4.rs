//! AWS Signature Version 4, as far as one POST with a JSON body needs it. The broker must not have the store's credentials, and
//! AWS's own crate would bring some forty others into the vault; a test compares each signature with that crate's.

use aws_lc_rs::{digest, hmac};
use zeroize::Zeroizing;

/// Who signs, for what.
pub struct Signer<'a> {
    /// Access key id.
    pub access_key_id: &'a str,
    /// Its secret.
    pub secret_access_key: &'a str,
    /// Region.
    pub region: &'a str,
    /// Service, as scopes name it.
    pub service: &'a str,
}

impl Signer<'_> {
    /// The `authorization` header for a POST to `/` with these headers (names in lower case, in order) at this time (as in
    /// `x-amz-date`, which is one of the headers).
    pub fn authorization(&self, date: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = String::from("POST\n/\n\n");
        for (name, value) in headers {
            canonical.extend([name, ":", value, "\n"]);
        }
        canonical.extend(["\n", &names, "\n", &sha256(body)]);
        let day = date.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let mut key = Zeroizing::new(b"AWS4".to_vec());
        key.extend_from_slice(self.secret_access_key.as_bytes());
        for part in [day, self.region, self.service, "aws4_request"] {
            key = Zeroizing::new(mac(&key, part.as_bytes()));
        }
        let signature = hex(&mac(&key, to_sign.as_bytes()));
        let credential = self.access_key_id;
        format!("AWS4-HMAC-SHA256 Credential={credential}/{scope}, SignedHeaders={names}, Signature={signature}")
    }
}

/// `YYYYMMDDTHHMMSSZ` of Unix milliseconds.
pub fn amz_date(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, in eras of 400 years (Howard Hinnant, «chrono-compatible low-level date algorithms»).
    let shifted = days.saturating_add(719_468);
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era.saturating_mul(400).saturating_add(year_of_era).saturating_add(u64::from(month <= 2));
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

fn sha256(data: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, data).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use aws_credential_types::Credentials;
    use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
    use aws_sigv4::sign::v4::SigningParams;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_800, "20000301T000000Z"),
            (1_709_210_096, "20240229T123456Z"),
            (1_735_689_599, "20241231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
            (4_107_542_399, "21000228T235959Z"),
        ] {
            assert_eq!(amz_date(seconds * 1000 + 999), date);
        }
    }

    #[test]
    fn signatures_are_those_of_awss_own_crate() {
        for (seconds, secret, body) in [
            (1_700_000_000, "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "{}"),
            (1_709_210_096, "s", r#"{"TableName":"fence","Key":{"group":{"S":"ä"}}}"#),
        ] {
            let date = amz_date(seconds * 1000);
            let headers = [
                ("content-type", "application/x-amz-json-1.0"),
                ("host", "dynamodb.eu-central-1.amazonaws.com"),
                ("x-amz-date", date.as_str()),
                ("x-amz-target", "DynamoDB_20120810.GetItem"),
            ];
            let signer = Signer {
                access_key_id: "AKIDEXAMPLE",
                secret_access_key: secret,
                region: "eu-central-1",
                service: "dynamodb",
            };
            let ours = signer.authorization(&date, &headers, body.as_bytes());

            let identity = Credentials::new("AKIDEXAMPLE", secret, None, None, "test").into();
            let params = SigningParams::builder()
                .identity(&identity)
                .region("eu-central-1")
                .name("dynamodb")
                .time(UNIX_EPOCH + Duration::from_secs(seconds))
                .settings(SigningSettings::default())
                .build()
                .unwrap()
                .into();
            let given = headers.into_iter().filter(|(name, _)| *name != "x-amz-date");
            let body = SignableBody::Bytes(body.as_bytes());
            let request = SignableRequest::new("POST", "https://dynamodb.eu-central-1.amazonaws.com/", given, body);
            let (instructions, _) = sign(request.unwrap(), &params).unwrap().into_parts();
            let theirs = instructions.headers().find(|(name, _)| *name == "authorization").unwrap().1;
            assert_eq!(ours, theirs);
        }
    }
}
