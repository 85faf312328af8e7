//! From a document to a verdict.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use casemate_document::{Anchor, At, Document, Error, Expected, MAX_NONCE_LEN, Timestamp, Unverified};
use casemate_protocol::frame::NONCE_LEN;
use casemate_protocol::statement::StatementError;
use casemate_protocol::{Configuration, PublicKey, Root, Statement};

use crate::args::{AtOption, Connection, ExpectedOptions, PinOptions};
use crate::fence_pin::FencePin;
use crate::fetch::Proxy;
use crate::input::{self, Input};
use crate::report::{ProxysKeys, Report, Verdict};
use crate::util::{fresh_nonce, now_ms, sha256};
use crate::{keys, pins, policy_words};

/// How old a document may be unless the operator says.
const MAX_AGE_SECONDS: u64 = 300;
/// Bytes of the vault's HPKE key: X25519.
const HPKE_KEY_LEN: usize = 32;

/// Judges a document of a file, with its statement where there is one. An error is about the input, never about the document.
pub fn file(document: &Path, statement: Option<&Path>, expected: &ExpectedOptions) -> Result<Report> {
    let mut judge = Judge::new(expected, None)?;
    let mut input = input::document(input::read(document)?)?;
    if let Some(path) = statement {
        input.statement = Some(input::binary(input::read(path)?, "the statement")?);
    }
    // The clock is read when there is something to judge.
    judge.start_clock();
    Ok(judge.report(&input))
}

/// Asks a running signer for a document, and judges it. An answer that is not refused is kept in the file `save`.
pub fn running(connection: &Connection, expected: &ExpectedOptions, save: Option<&Path>) -> Result<Report> {
    let nonce = live_nonce(expected)?;
    let mut judge = Judge::new(expected, Some(nonce.clone()))?;
    let mut proxy = Proxy::new(connection)?;
    let answer = proxy.attestation(&nonce)?;
    let input = input::answer(&answer)?;
    proxy.stay_with(input.enclave);
    if input.statement.is_none() {
        bail!("{} gave no statement", connection.url);
    }
    judge.start_clock();
    let mut report = judge.report(&input);
    report.enclave = input.enclave;
    compare_lists(&proxy, &mut report);
    // Nothing is kept, or written over, for an answer that was refused.
    if let (Some(path), false) = (save, report.is_refused()) {
        fs::write(path, &answer).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report)
}

/// The operator's nonce, or a fresh one.
fn live_nonce(expected: &ExpectedOptions) -> Result<Vec<u8>> {
    let Some(text) = &expected.nonce else { return Ok(fresh_nonce()?.as_ref().to_vec()) };
    if expected.at != AtOption::Now {
        bail!("with a --nonce of your own and another time than now, nothing would say that the document is new");
    }
    let nonce = nonce(text)?;
    if !NONCE_LEN.contains(&nonce.len()) {
        let (min, max) = (NONCE_LEN.start(), NONCE_LEN.end());
        bail!("--nonce is {} bytes long; a signer takes {min} to {max}", nonce.len());
    }
    Ok(nonce)
}

/// The proxy's list proves nothing. But a proxy that names other keys than the enclave does is not this enclave's.
fn compare_lists(proxy: &Proxy, report: &mut Report) {
    let Some((_, Some(statement))) = &report.judged else { return };
    let list = proxy.public_keys().and_then(|text| keys::parse(&text));
    report.proxys_keys = list.map_or(ProxysKeys::Unknown, |keys| ProxysKeys::listed(&keys, statement));
    if let (ProxysKeys::Others { count, .. }, false) = (&report.proxys_keys, report.is_refused()) {
        let of = statement.public_keys.count;
        let reason = format!("the proxy lists other keys ({count}) than the enclave states ({of})");
        report.verdict = Verdict::Refused(reason);
    }
}

/// Judges a document that was kept, for the nonce that it must carry.
pub fn archived(pins: PinOptions, nonce: Vec<u8>, input: &Input) -> Result<Report> {
    let expected = ExpectedOptions { at: AtOption::Document, ..ExpectedOptions::live(pins) };
    Ok(Judge::new(&expected, Some(nonce))?.report(input))
}

fn nonce(text: &str) -> Result<Vec<u8>> {
    let bytes = const_hex::decode(text).context("--nonce is not hex")?;
    if bytes.is_empty() || bytes.len() > MAX_NONCE_LEN {
        bail!("--nonce is {} bytes long; 1 to {MAX_NONCE_LEN} are allowed", bytes.len());
    }
    Ok(bytes)
}

/// Everything that a document is judged by.
struct Judge {
    anchor: Anchor,
    at: AtOption,
    now: Timestamp,
    expected: Expected,
    stated: Stated,
    describe_only: bool,
}

impl Judge {
    fn new(options: &ExpectedOptions, made_nonce: Option<Vec<u8>>) -> Result<Self> {
        if options.at == AtOption::Document && options.max_age.is_some() {
            bail!("--max-age says nothing with --at document: the age of an archived document is not judged");
        }
        let given = options.nonce.as_deref().map(nonce).transpose()?;
        let live = options.at != AtOption::Document;
        let max_age = live.then(|| Duration::from_secs(options.max_age.unwrap_or(MAX_AGE_SECONDS)));
        let expected = Expected {
            pcrs: pins::pins(&options.pins)?,
            nonce: made_nonce.or(given),
            user_data: None,
            max_age,
            debug_allowed: options.pins.allow_debug,
        };
        Ok(Self {
            anchor: options.pins.root.as_deref().map_or_else(|| Ok(Anchor::aws()?), anchor)?,
            at: options.at,
            now: Timestamp(0),
            expected,
            stated: Stated {
                public_keys: options.public_keys.as_deref().map(keys::read).transpose()?,
                group: options.pins.group.clone(),
                network: options.pins.network.clone(),
                fence: options.pins.fence.clone(),
                configuration: options.configuration.as_deref().map(MeasuredFile::read).transpose()?,
            },
            describe_only: options.describe_only,
        })
    }

    fn start_clock(&mut self) {
        self.now = Timestamp(now_ms().unwrap_or_default());
    }

    fn report(&self, input: &Input) -> Report {
        let mut report = Report {
            len: input.document.len(),
            sha256: sha256(&input.document).0,
            root_sha256: self.anchor.sha256(),
            expected: self.expected.clone(),
            archived: self.at == AtOption::Document,
            statement_given: input.statement.is_some(),
            stated: self.stated.names(),
            judged: None,
            proxys_keys: ProxysKeys::NotAsked,
            policy: None,
            enclave: None,
            verdict: Verdict::Refused(String::new()),
        };
        // What is not verified is not shown either.
        let document = match self.verify(&input.document) {
            Ok(document) => document,
            Err(error) => {
                let hint = match error {
                    Error::Expired { .. } if self.at != AtOption::Document => {
                        " (an archived document is judged with --at document)"
                    }
                    _ => "",
                };
                report.verdict = Verdict::Refused(format!("{error}{hint}"));
                return report;
            }
        };
        let statement = input.statement.as_deref().map(Statement::decode);
        report.verdict = match self.accept(&document, input.statement.as_deref(), statement.as_ref()) {
            Err(reason) => Verdict::Refused(reason),
            Ok(()) if self.describe_only => Verdict::Described,
            Ok(()) => Verdict::Accepted,
        };
        // A statement that the document does not bind says nothing.
        let bound = input.statement.as_deref().is_some_and(|s| document.user_data() == Some(&sha256(s).0));
        let statement = statement.and_then(Result::ok).filter(|_| bound);
        report.policy = self.stated.policy_of(statement.as_ref());
        report.judged = Some((document, statement));
        report
    }

    fn verify(&self, bytes: &[u8]) -> Result<Document, Error> {
        let at = match self.at {
            AtOption::Now => At::Time(self.now),
            AtOption::Time(time) => At::Time(time),
            AtOption::Document => At::Document,
        };
        Unverified::parse(bytes)?.verify(&self.anchor, at)
    }

    fn accept(
        &self,
        document: &Document,
        raw: Option<&[u8]>,
        statement: Option<&Result<Statement, StatementError>>,
    ) -> Result<(), String> {
        let expected = Expected { user_data: raw.map(|raw| sha256(raw).0.to_vec()), ..self.expected.clone() };
        let compared =
            if self.describe_only { document.compare(&expected) } else { document.accept(&expected).map(|_| ()) };
        compared.map_err(|error| match error {
            Error::UserDataAbsent { .. } | Error::UserDataDiffers { .. } => {
                format!("the document does not bind this statement: {error}")
            }
            other => other.to_string(),
        })?;
        match statement {
            None if self.stated.names().is_empty() => Ok(()),
            None => {
                Err(format!("{} expected, but no statement came with the document", self.stated.names().join(", ")))
            }
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(_)) if document.public_key().is_none_or(|key| key.len() != HPKE_KEY_LEN) => {
                Err(format!("public_key is no HPKE key of {HPKE_KEY_LEN} bytes, which a vault's document carries"))
            }
            Some(Ok(statement)) => self.stated.compare(statement),
        }
    }
}

/// What the operator expects of the statement.
struct Stated {
    public_keys: Option<Vec<PublicKey>>,
    group: Option<String>,
    network: Option<String>,
    fence: Option<FencePin>,
    configuration: Option<MeasuredFile>,
}

impl Stated {
    /// What is expected, by the names of its options.
    fn names(&self) -> Vec<&'static str> {
        let given = [
            ("public_keys", self.public_keys.is_some()),
            ("group", self.group.is_some()),
            ("network", self.network.is_some()),
            ("fence", self.fence.is_some()),
            ("configuration", self.configuration.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    /// What the configuration allows, in words, where it is the one that the statement names.
    fn policy_of(&self, statement: Option<&Statement>) -> Option<Vec<(&'static str, String)>> {
        let configuration = self.configuration.as_ref()?;
        configuration.compare(statement?).is_ok().then(|| policy_words::words(&configuration.configuration))
    }

    fn compare(&self, statement: &Statement) -> Result<(), String> {
        let network = &statement.network;
        let (name, root) = (network.name.clone(), network.genesis_validators_root.to_string());
        if let Some(expected) = self.network.as_ref().filter(|e| **e != name && !e.eq_ignore_ascii_case(&root)) {
            return Err(format!("the network is {name} ({root}); {expected} was expected"));
        }
        if let Some(expected) = self.group.as_ref().filter(|expected| **expected != statement.group) {
            return Err(format!("the group is {}; {expected} was expected", statement.group));
        }
        if let Some(expected) = &self.fence {
            expected.compare(&statement.fence)?;
        }
        if let Some(expected) = &self.configuration {
            expected.compare(statement)?;
        }
        let Some(keys) = &self.public_keys else { return Ok(()) };
        let (root, stated) = (keys::root(keys), &statement.public_keys);
        if stated.root == root && usize::try_from(stated.count) == Ok(keys.len()) {
            return Ok(());
        }
        Err(format!(
            "the keys that sign are others: the statement has {} with root {}; {} with root {root} were expected",
            stated.count,
            stated.root,
            keys.len()
        ))
    }
}

/// A file of the measured configuration.
struct MeasuredFile {
    name: String,
    sha256: Root,
    configuration: Configuration,
}

impl MeasuredFile {
    fn read(path: &Path) -> Result<Self> {
        let bytes = input::read(path)?;
        let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
        // Of the file to the byte, as the image has it.
        let sha256 = sha256(&bytes);
        let configuration =
            casemate_config::configuration(text, sha256).with_context(|| format!("in {}", path.display()))?;
        Ok(Self { name: path.display().to_string(), sha256, configuration })
    }

    fn compare(&self, statement: &Statement) -> Result<(), String> {
        let Self { name, sha256, .. } = self;
        let stated = statement.configuration_sha256;
        if stated == *sha256 {
            return Ok(());
        }
        Err(format!(
            "the measured configuration has SHA-256 {stated}; {name} has {sha256}. It is another configuration, or the file was changed since \
             the image was built: every byte counts"
        ))
    }
}

fn anchor(path: &Path) -> Result<Anchor> {
    let der = input::binary(input::read(path)?, "the root")?;
    Anchor::from_der(&der).with_context(|| format!("{} is no usable root", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list's root, by another way than the vault's: known values of the SSZ specification's shape.
    #[test]
    fn the_root_of_no_keys_is_the_zero_tree_with_its_length() {
        let mut node = [0; 32];
        for _ in 0..40 {
            node = sha256(&[node, node].concat()).0;
        }
        assert_eq!(keys::root(&[]), sha256(&[node, [0; 32]].concat()));
    }
}
