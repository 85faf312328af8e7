//! Files in any form that people have them in.

use std::fs::{self, File};
use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
pub use casemate_keystore::without_bom;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Most bytes that are read of any file or answer. A document is at most 16 KiB, in hex 32.
pub const MAX_INPUT_LEN: u64 = 1024 * 1024;

/// Base64 with or without padding.
const CONFIG: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);

/// A document, and the statement where it came along.
#[derive(Debug)]
pub struct Input {
    pub document: Vec<u8>,
    pub statement: Option<Vec<u8>>,
    /// Which of the proxy's enclaves it says that it asked.
    pub enclave: Option<u32>,
}

/// What `GET /attestation` answers.
#[derive(Deserialize)]
struct Answer {
    attestation_document: String,
    statement: Option<String>,
    enclave: Option<u32>,
}

/// A file, or standard input for `-`, bounded. Every text and every document comes in here, and loses the mark that editors put in front
/// of it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_text(path, MAX_INPUT_LEN)
}

/// The same, with another bound.
pub fn read_text(path: &Path, max_len: u64) -> Result<Vec<u8>> {
    let name = name(path);
    let source: Box<dyn Read> = if is_standard_input(path) {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(path).with_context(|| format!("opening {name}"))?)
    };
    let mut bytes = Vec::new();
    source.take(max_len.saturating_add(1)).read_to_end(&mut bytes).with_context(|| format!("reading {name}"))?;
    if u64::try_from(bytes.len()).map_or(true, |len| len > max_len) {
        bail!("{name} is longer than {max_len} bytes, the most that is read of it");
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        bail!("{name} is UTF-16: save it as UTF-8");
    }
    let marked = bytes.len().saturating_sub(without_bom(&bytes).len());
    bytes.drain(..marked);
    if bytes.is_empty() {
        bail!("{name} is empty");
    }
    Ok(bytes)
}

/// A file with a secret in it, which no one but its owner may read.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    if !is_standard_input(path) {
        let metadata = fs::metadata(path).with_context(|| format!("opening {}", path.display()))?;
        if let Some(mode) = casemate_keystore::others_rights(&metadata) {
            bail!(
                "{0} has the mode {mode:04o}: others than its owner can read or write this secret. Take their rights away: chmod 600 {0}",
                path.display()
            );
        }
    }
    read(path).map(Zeroizing::new)
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

fn name(path: &Path) -> String {
    if is_standard_input(path) { "standard input".to_owned() } else { path.display().to_string() }
}

/// The bytes of a file of bounded length, as they are: for what is compared by its digest. A larger one is not read.
pub fn read_blob(path: &Path, max_len: u64) -> Result<Vec<u8>> {
    let len = fs::metadata(path).with_context(|| format!("opening {}", path.display()))?.len();
    if len > max_len {
        bail!("{} has {len} bytes; at most {max_len} are allowed", path.display());
    }
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A file that is too long for memory, from behind the mark that editors put in front of it.
pub fn skip_bom(mut file: impl BufRead) -> std::io::Result<impl BufRead> {
    let start = file.fill_buf()?;
    let mark = start.len().saturating_sub(without_bom(start).len());
    file.consume(mark);
    Ok(file)
}

/// A document in any form, from its bytes.
pub fn document(bytes: Vec<u8>) -> Result<Input> {
    if without_bom(&bytes).trim_ascii().starts_with(b"{") {
        return answer(&bytes);
    }
    let document = binary(bytes, "the document")?;
    // Arrays and tags: with anything else there is nothing to judge.
    if !document.first().is_some_and(|first| matches!(first, 0x80..=0x9f | 0xc0..=0xdb)) {
        bail!("the document is neither CBOR nor PEM, base64, hex or JSON of it");
    }
    Ok(Input { document, statement: None, enclave: None })
}

/// The JSON of `GET /attestation`.
pub fn answer(bytes: &[u8]) -> Result<Input> {
    let answer: Answer = serde_json::from_slice(without_bom(bytes)).context("not an answer of GET /attestation")?;
    let decode =
        |text: &str, what| STANDARD.decode(text).with_context(|| format!("the {what} of the answer is not base64"));
    Ok(Input {
        document: decode(&answer.attestation_document, "attestation_document")?,
        statement: answer.statement.map(|text| decode(&text, "statement")).transpose()?,
        enclave: answer.enclave,
    })
}

/// PEM, base64, hex, or what is already binary.
pub fn binary(bytes: Vec<u8>, what: &str) -> Result<Vec<u8>> {
    let Some(text) = std::str::from_utf8(without_bom(&bytes)).ok() else { return Ok(bytes) };
    // Tools put explanations in front.
    if text.contains("-----BEGIN") {
        let blocks = pem::parse_many(text).with_context(|| format!("{what} is malformed PEM"))?;
        let [block] = <[pem::Pem; 1]>::try_from(blocks)
            .map_err(|blocks| anyhow::anyhow!("{what}: there are {} PEM blocks; one is needed", blocks.len()))?;
        return Ok(block.into_contents());
    }
    if !text.bytes().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return Ok(bytes);
    }
    // Line breaks within are usual.
    let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    // Long base64 of nothing but hex digits does not happen.
    if let Ok(bytes) = const_hex::decode(&digits)
        && !bytes.is_empty()
    {
        return Ok(bytes);
    }
    match STANDARD.decode(&digits).or_else(|_| URL_SAFE.decode(&digits)) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => bail!("{what} is text, but neither PEM nor base64 nor hex"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_document_in_every_form() {
        let raw: Vec<u8> = (0..=255).map(|n: u8| n.wrapping_add(0x84)).collect();
        let standard = base64::prelude::BASE64_STANDARD.encode(&raw);
        let lines = |text: &str| {
            text.as_bytes().chunks(64).map(|l| String::from_utf8_lossy(l).into_owned() + "\r\n").collect::<String>()
        };
        for form in [
            raw.clone(),
            standard.clone().into_bytes(),
            standard.trim_end_matches('=').as_bytes().to_vec(),
            lines(&standard).into_bytes(),
            base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(&raw).into_bytes(),
            const_hex::encode(&raw).into_bytes(),
            format!("0x{}\n", const_hex::encode_upper(&raw)).into_bytes(),
            lines(&const_hex::encode(&raw)).into_bytes(),
            pem::encode(&pem::Pem::new("ATTESTATION DOCUMENT", raw.as_slice())).into_bytes(),
            format!("\n{{\"attestation_document\": \"{standard}\"}}").into_bytes(),
            format!("\u{feff}{standard}\r\n").into_bytes(),
            format!("Dokument für später:\n{}", pem::encode(&pem::Pem::new("X", raw.as_slice()))).into_bytes(),
        ] {
            let shown = String::from_utf8_lossy(&form).into_owned();
            assert_eq!(document(form).map(|input| input.document).ok(), Some(raw.clone()), "{shown}");
        }
    }

    #[test]
    fn a_byte_order_mark_in_front_of_an_input_is_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (bytes, told) in [
            (b"\xef\xbb\xbf{}".to_vec(), Ok(b"{}".to_vec())),
            (b"{}".to_vec(), Ok(b"{}".to_vec())),
            (b"\xef\xbb\xbf".to_vec(), Err("is empty")),
            (b"\xff\xfe{\0}\0".to_vec(), Err("is UTF-16: save it as UTF-8")),
        ] {
            fs::write(&path, &bytes).unwrap();
            match told {
                Ok(rest) => {
                    assert_eq!(read(&path).unwrap(), rest);
                    let mut all = Vec::new();
                    skip_bom(&bytes[..]).unwrap().read_to_end(&mut all).unwrap();
                    assert_eq!(all, rest);
                }
                Err(told) => assert!(format!("{:#}", read(&path).unwrap_err()).contains(told)),
            }
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_its_mode_and_what_to_do() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "secret").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o660, 0o644, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = format!("{:#}", read_secret(&path).unwrap_err());
            assert!(error.contains(&format!("has the mode {mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(*read_secret(&path).unwrap(), b"secret");
        }
    }

    #[test]
    fn what_is_in_no_form_is_said_to_be() {
        let two = pem::encode_many(&[pem::Pem::new("A", vec![1]), pem::Pem::new("B", vec![2])]);
        for (text, told) in [
            ("hello, world!", "neither PEM nor base64 nor hex"),
            (" \n", "neither"),
            ("0x", "neither"),
            ("-----BEGIN X-----", "0 PEM blocks"),
            ("-----BEGIN X-----\n?\n-----END X-----\n", "malformed PEM"),
            (two.as_str(), "2 PEM blocks"),
            ("00112233", "neither CBOR nor"),
            ("0x0x84", "neither"),
            ("{}", "not an answer"),
            ("{\"attestation_document\": \"?\"}", "not base64"),
        ] {
            let error = document(text.as_bytes().to_vec()).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(told), "{text}: {error:#}");
        }
    }
}
