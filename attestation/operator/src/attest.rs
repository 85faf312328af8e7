//! `casemate attest`: from input to verdict.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use casemate_document::{Anchor, At, Document, Error, Expected, MAX_NONCE_LEN, Timestamp, Unverified};
use casemate_protocol::statement::StatementError;
use casemate_protocol::{PublicKey, Statement};

use crate::cli::{AtOption, AttestCommand, ExpectedOptions, Fetch, Verify};
use crate::fetch::Proxy;
use crate::input::{self, Input};
use crate::report::{ProxysKeys, Report, Verdict};
use crate::{Exit, keys, pins};

/// Bytes of a nonce of our own.
const NONCE_LEN: usize = 32;

/// Runs a command; answers the text to show and how it ended. An error is about the input, never about the document.
pub fn run(command: &AttestCommand) -> Result<(String, Exit)> {
    let report = match command {
        AttestCommand::Verify(options) => verify(options)?,
        AttestCommand::Fetch(options) => fetch(options)?,
    };
    let json = match command {
        AttestCommand::Verify(Verify { expected, .. }) | AttestCommand::Fetch(Fetch { expected, .. }) => expected.json,
    };
    let exit = if matches!(report.verdict, Verdict::Refused(_)) { Exit::Refused } else { Exit::Accepted };
    Ok((if json { report.json() } else { report.text() }, exit))
}

fn verify(options: &Verify) -> Result<Report> {
    let mut judge = Judge::new(&options.expected, None)?;
    let mut input = input::document(input::read(&options.file)?)?;
    if let Some(path) = &options.statement {
        input.statement = Some(input::binary(input::read(path)?, "the statement")?);
    }
    // The clock is read when there is something to judge.
    judge.start_clock();
    Ok(judge.report(&input))
}

fn fetch(options: &Fetch) -> Result<Report> {
    let nonce = if let Some(text) = &options.expected.nonce {
        nonce(text)?
    } else {
        let mut fresh = vec![0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut fresh).map_err(|_| anyhow::anyhow!("this machine gives no random bytes"))?;
        fresh
    };
    let mut judge = Judge::new(&options.expected, Some(nonce.clone()))?;
    let proxy = Proxy::new(options)?;
    let answer = proxy.get(&format!("/attestation?nonce={}", const_hex::encode(nonce)))?;
    let input = input::answer(&answer)?;
    if input.statement.is_none() {
        bail!("{} gave no statement", options.url);
    }
    if let Some(path) = &options.save {
        fs::write(path, &answer).with_context(|| format!("writing {}", path.display()))?;
    }
    judge.start_clock();
    let mut report = judge.report(&input);
    if let Some((_, statement)) = &report.judged
        && statement.is_some()
    {
        // The proxy's own list proves nothing; that it is the enclave's is still worth knowing.
        report.proxys_keys = proxy
            .get("/api/v1/eth2/publicKeys")
            .and_then(|text| keys::parse(&text))
            .map_or(ProxysKeys::Unknown, |keys| ProxysKeys::Listed { count: keys.len(), root: keys::root(&keys) });
    }
    Ok(report)
}

fn nonce(text: &str) -> Result<Vec<u8>> {
    let bytes = const_hex::decode(text.strip_prefix("0x").unwrap_or(text)).context("--nonce is not hex")?;
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
    public_keys: Option<Vec<PublicKey>>,
    describe_only: bool,
}

impl Judge {
    fn new(options: &ExpectedOptions, made_nonce: Option<Vec<u8>>) -> Result<Self> {
        let given = options.nonce.as_deref().map(nonce).transpose()?;
        let expected = Expected {
            pcrs: pins::pins(options)?,
            nonce: made_nonce.or(given),
            user_data: None,
            max_age: Some(Duration::from_secs(options.max_age)),
            debug_allowed: options.allow_debug || options.describe_only,
        };
        let public_keys = options.public_keys.as_deref().map(public_keys).transpose()?;
        Ok(Self {
            anchor: options.root.as_deref().map_or_else(|| Ok(Anchor::aws()?), anchor)?,
            at: options.at,
            now: Timestamp(0),
            expected,
            public_keys,
            describe_only: options.describe_only,
        })
    }

    fn start_clock(&mut self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.now = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    }

    fn report(&self, input: &Input) -> Report {
        let document_sha256 = sha256(&input.document);
        let mut report = Report {
            len: input.document.len(),
            sha256: document_sha256,
            root_sha256: self.anchor.sha256(),
            expected: self.expected.clone(),
            archived: matches!(self.at, AtOption::Document),
            judged: None,
            proxys_keys: ProxysKeys::NotAsked,
            verdict: Verdict::Refused(String::new()),
        };
        // What is not verified is not shown either.
        let document = match self.verify(&input.document) {
            Ok(document) => document,
            Err(error) => {
                let live = !matches!(self.at, AtOption::Document);
                let hint = match error {
                    Error::Expired { .. } if live => " (an archived document is judged with --at document)",
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
        let bound = input.statement.as_deref().is_some_and(|s| document.user_data() == Some(&sha256(s)));
        report.judged = Some((document, statement.and_then(Result::ok).filter(|_| bound)));
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
        let mut expected = self.expected.clone();
        expected.user_data = raw.map(|raw| sha256(raw).to_vec());
        if self.describe_only {
            // Nothing is expected of these but what is there; what the operator did give is compared.
            for index in 0..=2 {
                if let (false, Some(value)) = (expected.pcrs.contains_key(&index), document.pcrs().get(&index)) {
                    expected.pcrs.insert(index, *value);
                }
            }
        }
        document.accept(&expected).map_err(|error| match error {
            Error::UserDataAbsent { .. } | Error::UserDataDiffers { .. } => {
                format!("the document does not bind this statement: {error}")
            }
            other => other.to_string(),
        })?;
        let statement = match statement {
            Some(Ok(statement)) => Some(statement),
            Some(Err(error)) => return Err(error.to_string()),
            None => None,
        };
        if let Some(keys) = &self.public_keys {
            let Some(statement) = statement else {
                return Err("public keys were expected, but no statement came with the document".to_owned());
            };
            let root = keys::root(keys);
            if statement.public_keys.root != root {
                return Err(format!(
                    "the keys that sign are others: the statement has {} with root {}; {} with root {root} were expected",
                    statement.public_keys.count,
                    statement.public_keys.root,
                    keys.len()
                ));
            }
        }
        Ok(())
    }
}

fn anchor(path: &Path) -> Result<Anchor> {
    let der = input::binary(input::read(path)?, "the root")?;
    Anchor::from_der(&der).with_context(|| format!("{} is no usable root", path.display()))
}

fn public_keys(path: &Path) -> Result<Vec<PublicKey>> {
    keys::parse(&input::read(path)?).with_context(|| format!("in {}", path.display()))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    // SHA-256 gives 32 bytes, always.
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Root;

    use super::*;

    /// The list's root, by another way than the vault's: known values of the SSZ specification's shape.
    #[test]
    fn the_root_of_no_keys_is_the_zero_tree_with_its_length() {
        let mut node = [0; 32];
        for _ in 0..40 {
            node = sha256(&[node, node].concat());
        }
        assert_eq!(keys::root(&[]), Root::from(sha256(&[node, [0; 32]].concat())));
    }
}
