//! The key manager API (ethereum/keymanager-APIs): `/eth/v1/keystores`, for anyone who has the token.
//!
//! This host is not trusted with keys. What it may bring are commands that operators have signed (`casemate keys import --command-out`);
//! keystores with their passwords go on to the vault, which takes them only where its measured policy says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use aws_lc_rs::rand;
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::command::{
    Envelope, ImportedKey, KeyOutcome, MAX_KEYS, OperatorSignature, Outcome, SignedCommand,
};
use casemate_protocol::frame::{KeystoreToImport, MAX_KEYSTORE_LEN, MAX_KEYSTORES, MAX_PASSWORD_LEN, Nonce, Password};
use casemate_protocol::history_page::HistoryEntry;
use casemate_protocol::{BoundedBytes, Bytes, PublicKey, Refusal, Reply, Request, Root};
use casemate_slashing::interchange::{self, Histories};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};
use unicode_normalization::UnicodeNormalization;

use super::keys::json_body;
use super::{App, Failure, RequestId};
use crate::json::{Hex, shown};

/// Bytes of entropy of a token that is made here.
const TOKEN_LEN: usize = 32;
/// Shortest token that is taken, in characters: 256 bits in base64.
const MIN_TOKEN_LEN: usize = 43;

/// Anyone who has it may ask for anything that this API does. Only its digest is kept.
pub struct Token(Digest);

impl Token {
    /// The token in a file, which is made where there is none.
    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("--key-manager-token-file {}", path.display());
        match fs::read_to_string(path) {
            Ok(text) => {
                let mode = fs::metadata(path).with_context(context)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    bail!(
                        "{}: the file has the mode {mode:04o}: others than its owner can read or write the token. Take their rights away: \
                         chmod 600 {}. Whoever read it has the token: remove the file, and the proxy makes a new one",
                        context(),
                        path.display()
                    );
                }
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                let text = text.trim();
                if text.len() < MIN_TOKEN_LEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
                    bail!(
                        "{}: the token has {} characters; at least {MIN_TOKEN_LEN} printable ones are needed (256 bits)",
                        context(),
                        text.len()
                    );
                }
                Ok(Self::of(text))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut bytes = [0; TOKEN_LEN];
                rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("there is no entropy"))?;
                let text = const_hex::encode(bytes);
                let mut file =
                    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(context)?;
                file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(context)?;
                info!(file = %path.display(), "the key manager API has a new token");
                Ok(Self::of(&text))
            }
            Err(error) => Err(error).with_context(context),
        }
    }

    fn of(text: &str) -> Self {
        Self(digest(&SHA256, text.as_bytes()))
    }

    /// In the same time for every wrong one.
    fn is(&self, text: &str) -> bool {
        verify_slices_are_equal(self.0.as_ref(), digest(&SHA256, text.as_bytes()).as_ref()).is_ok()
    }
}

/// Where no token was brought.
fn unauthorized() -> Failure {
    Failure::new(StatusCode::UNAUTHORIZED, "the key manager API needs Authorization: Bearer and the token")
}

impl App {
    /// Who asks must have the token.
    fn authorize(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let Some(token) = &self.token else {
            let message = "the key manager API is not turned on (--key-manager-token-file)";
            return Err(Failure::new(StatusCode::NOT_FOUND, message));
        };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, given)) = given.and_then(|value| value.split_once(' ')) else { return Err(unauthorized()) };
        if !scheme.eq_ignore_ascii_case("bearer") || given.trim().is_empty() {
            return Err(unauthorized());
        }
        if token.is(given.trim()) {
            Ok(())
        } else {
            Err(Failure::new(StatusCode::FORBIDDEN, "this is not the token of the key manager API"))
        }
    }
}

pub(super) async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, Failure> {
    app.authorize(&headers)?;
    let keys = app.public_keys(None).await?;
    let readonly = !app.enclave.info().is_some_and(|info| info.key_manager_delete);
    let one =
        |key: &PublicKey| json!({ "validating_pubkey": key.to_string(), "derivation_path": "", "readonly": readonly });
    Ok(json_body(&json!({ "data": keys.iter().map(one).collect::<Vec<_>>() })))
}

pub(super) async fn import(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    app.authorize(&headers)?;
    let answer = app.import(&headers, body).await;
    match &answer {
        Ok(statuses) => {
            let imported = statuses.iter().filter(|status| status.word == "imported").count();
            info!(id = id.as_str(), keystores = statuses.len(), imported, "the key manager API has brought keys");
        }
        Err(failure) => {
            info!(id = id.as_str(), status = failure.status.as_u16(), reason = failure.message, "no keys taken");
        }
    }
    let statuses = answer?;
    Ok(json_body(&json!({ "data": statuses.iter().map(Status::json).collect::<Vec<_>>() })))
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    app.authorize(&headers)?;
    let (statuses, histories) = app.delete(&headers, body).await?;
    let deleted = statuses.iter().filter(|status| status.word == "deleted").count();
    info!(id = id.as_str(), keys = statuses.len(), deleted, "the key manager API has deleted keys");
    let data: Vec<_> = statuses.iter().map(Status::json).collect();
    Ok(json_body(&json!({ "data": data, "slashing_protection": histories })))
}

/// What to do where a key may be here.
const LOOK_FIRST: &str = "look with GET before these keys sign anywhere else";

/// What became of one keystore or key.
#[derive(Clone)]
struct Status {
    word: &'static str,
    message: Option<String>,
}

impl Status {
    fn error(message: impl Into<String>) -> Self {
        Self { word: "error", message: Some(message.into()) }
    }

    fn of(outcome: KeyOutcome) -> Self {
        let word = |word| Self { word, message: None };
        match outcome {
            KeyOutcome::Imported => word("imported"),
            KeyOutcome::Duplicate => word("duplicate"),
            KeyOutcome::Deleted => word("deleted"),
            KeyOutcome::NotFound => word("not_found"),
            KeyOutcome::NoHistory => Self::error(
                "slashing_protection says nothing of this key, and nobody else does; a key whose past is not known is not taken",
            ),
            KeyOutcome::ImpossibleHistory => {
                Self::error("its history lies in the future, or has a source above its target")
            }
            KeyOutcome::WrongPassword => Self::error("wrong password"),
            KeyOutcome::WrongSecret => Self::error("the secret key is not that of the keystore's pubkey"),
            KeyOutcome::Unreadable => Self::error("this is no EIP-2335 keystore within the limits"),
            KeyOutcome::Changed => Self::error(outcome.word()),
        }
    }

    fn json(&self) -> Value {
        match &self.message {
            Some(message) => json!({ "status": self.word, "message": message }),
            None => json!({ "status": self.word }),
        }
    }
}

#[derive(Deserialize)]
struct ImportBody {
    keystores: Vec<String>,
    passwords: Vec<String>,
    slashing_protection: Option<String>,
}

#[derive(Deserialize)]
struct DeleteBody {
    pubkeys: Vec<Hex<48>>,
}

/// One of the keystores that were posted.
#[derive(Debug)]
pub enum Posted {
    /// Commands that operators have signed.
    Envelopes(Vec<Envelope>),
    /// For the vault.
    Keystore(Box<KeystoreToImport>),
    /// Neither; one sentence.
    Bad(String),
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, message)
}

impl App {
    async fn import(&self, headers: &HeaderMap, body: Body) -> Result<Vec<Status>, Failure> {
        let (body, permit) = self.read_body(headers, body).await?;
        let root = self.chain()?;
        // One at a time: what was read waits for the vault.
        let _alone = self.managing.lock().await;
        let posted = tokio::task::spawn_blocking(move || {
            let posted = posted(&body, root);
            drop((body, permit));
            posted
        });
        let PostedBody { posted, unused } = posted
            .await
            .map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be parsed"))??;
        if let Some(unused) = &unused {
            warn!(reason = unused, "a history was not taken");
        }
        let mut statuses = vec![Status::error("not tried"); posted.len()];
        let (mut keystores, mut places) = (Vec::new(), Vec::new());
        for (place, one) in posted.into_iter().enumerate() {
            let status = match one {
                Posted::Envelopes(envelopes) => self.carry_out(envelopes).await,
                Posted::Bad(message) => Status::error(message),
                Posted::Keystore(keystore) => {
                    keystores.push(*keystore);
                    places.push(place);
                    continue;
                }
            };
            if let Some(at) = statuses.get_mut(place) {
                *at = status;
            }
        }
        let envelopes = statuses.len() > places.len();
        for (keys, places) in keystores.chunks(MAX_KEYSTORES).zip(places.chunks(MAX_KEYSTORES)) {
            // From here on an error is one of these keys alone: others may have been imported.
            let outcomes =
                match self.enclave.call_exclusive(None, Request::ImportKeystores { keys: keys.to_vec() }).await {
                    Ok(Reply::Command(Outcome::Imported { keys })) => keys.into_iter().map(Status::of).collect(),
                    // The policy is the same for all of them.
                    Ok(Reply::Refused(refusal @ Refusal::KeyManagerImportOff)) if !envelopes => {
                        return Err(refusal.into());
                    }
                    Ok(Reply::Refused(refusal)) => vec![Status::error(refusal.to_string()); keys.len()],
                    Err(unavailable) => {
                        let why = Failure::from(unavailable).message;
                        let told = format!("not known: {why}; {LOOK_FIRST}");
                        vec![Status::error(told); keys.len()]
                    }
                    Ok(_) => return Err(Failure::unexpected_reply()),
                };
            for (place, status) in places.iter().zip(outcomes) {
                if let Some(at) = statuses.get_mut(*place) {
                    *at = status;
                }
            }
        }
        if let Some(unused) = unused {
            statuses
                .iter_mut()
                .filter(|status| status.message.is_none())
                .for_each(|s| s.message = Some(unused.clone()));
        }
        Ok(statuses)
    }

    /// The commands of one file.
    async fn carry_out(&self, envelopes: Vec<Envelope>) -> Status {
        let mut outcomes = Vec::new();
        for envelope in envelopes {
            let why = match self.enclave.command(None, envelope).await {
                Ok(Reply::Command(Outcome::Imported { keys })) => {
                    outcomes.extend(keys);
                    continue;
                }
                Ok(Reply::Command(_)) => "the command was carried out; it is none that imports keys".to_owned(),
                Ok(Reply::Refused(refusal)) => refusal.to_string(),
                Ok(_) => "the enclave answered something else than it was asked".to_owned(),
                Err(unavailable) => format!("not known: {}; {LOOK_FIRST}", Failure::from(unavailable).message),
            };
            // Those of the commands before are there.
            let here =
                outcomes.iter().filter(|one| matches!(one, KeyOutcome::Imported | KeyOutcome::Duplicate)).count();
            return Status::error(match here {
                0 => why,
                here => format!("{here} keys of this file are here; of the others: {why}; {LOOK_FIRST}"),
            });
        }
        let wrong = outcomes.iter().find(|one| !matches!(one, KeyOutcome::Imported | KeyOutcome::Duplicate));
        match wrong {
            Some(wrong) => Status::error(format!("a key of this command was not taken: {}", wrong.word())),
            None if outcomes.contains(&KeyOutcome::Imported) => Status::of(KeyOutcome::Imported),
            None => Status::of(KeyOutcome::Duplicate),
        }
    }

    async fn delete(&self, headers: &HeaderMap, body: Body) -> Result<(Vec<Status>, String), Failure> {
        let (body, permit) = self.read_body(headers, body).await?;
        let DeleteBody { pubkeys } =
            serde_json::from_slice(&body).map_err(|e| bad(format!("the body is not {{pubkeys: […]}}: {e}")))?;
        drop((body, permit));
        let _alone = self.managing.lock().await;
        // The same enclave tells what it has deleted.
        let number = Some(self.enclave.select(None));
        let keys: Vec<PublicKey> = pubkeys.into_iter().map(|key| key.0).collect();
        let root = self.chain()?;
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut refused = None;
        for keys in keys.chunks(MAX_KEYS) {
            match self.enclave.call_exclusive(number, Request::DeleteKeys { keys: keys.to_vec() }).await? {
                Reply::Command(Outcome::Deleted { keys }) => outcomes.extend(keys.into_iter().map(Status::of)),
                Reply::Refused(refusal @ Refusal::KeyManagerDeleteOff) => {
                    refused = Some(refusal.to_string());
                    break;
                }
                Reply::Refused(refusal) => return Err(refusal.into()),
                _ => return Err(Failure::unexpected_reply()),
            }
        }
        if keys.is_empty() {
            return Ok((Vec::new(), written(&Histories::new(), root)?));
        }
        // They sign no more: now their history are told.
        let known = self.whole_history(number).await?;
        let mut histories = Histories::new();
        for (place, key) in keys.iter().enumerate() {
            let told = known.get(key);
            let held = told.is_some_and(|told| told.held);
            let status = match (outcomes.get_mut(place), &refused) {
                (Some(status), _) => status,
                (None, Some(why)) => {
                    outcomes.push(if held { Status::error(why) } else { Status::of(KeyOutcome::NotFound) });
                    match outcomes.last_mut() {
                        Some(status) => status,
                        None => continue,
                    }
                }
                (None, None) => continue,
            };
            let past = told.filter(|told| !told.held).and_then(|told| told.highest);
            if let Some(past) = past {
                if status.word == "not_found" {
                    status.word = "not_active";
                }
                histories.insert(*key, past);
            } else if status.word == "deleted" {
                // Somebody has brought it back meanwhile: it may sign.
                *status = Status::error("deleted, and here again; ask once more before it signs anywhere else");
            }
        }
        Ok((outcomes, written(&histories, root)?))
    }

    async fn whole_history(&self, number: Option<usize>) -> Result<BTreeMap<PublicKey, HistoryEntry>, Failure> {
        let mut nonce = [0; 32];
        rand::fill(&mut nonce).map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "there is no entropy"))?;
        let nonce = Nonce::new(nonce.to_vec()).ok_or_else(Failure::unexpected_reply)?;
        let mut all = BTreeMap::new();
        let mut start = 0_u32;
        loop {
            let _alone = self.telling.lock().await;
            let page = self.history_page(number, nonce.clone(), start).await?.page;
            start = start.saturating_add(u32::try_from(page.keys.len()).unwrap_or(u32::MAX));
            let ended = page.keys.is_empty() || start >= page.total;
            all.extend(page.keys.into_iter().map(|told| (told.public_key, told)));
            if ended {
                return Ok(all);
            }
        }
    }

    /// The chain that the enclave serves.
    fn chain(&self) -> Result<Root, Failure> {
        let info = self.enclave.info();
        let root = info.map(|info| info.network.genesis_validators_root());
        root.ok_or_else(|| {
            self.enclave.starting().map_or_else(|| crate::enclave::Unavailable::Away.into(), Failure::from)
        })
    }
}

fn written(histories: &Histories, root: Root) -> Result<String, Failure> {
    let mut text = Vec::new();
    interchange::write(histories, root, &mut text).ok().and_then(|()| String::from_utf8(text).ok()).ok_or_else(|| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the slashing protection data cannot be written")
    })
}

/// What was posted.
#[derive(Debug)]
pub struct PostedBody {
    /// The keystores, in their order.
    pub posted: Vec<Posted>,
    /// That histories came along of which nothing is taken; one sentence.
    pub unused: Option<String>,
}

/// Reads a body of keystores, for the chain with this genesis validators root.
pub fn posted(body: &[u8], root: Root) -> Result<PostedBody, Failure> {
    // Without serde's own words: they may quote a password.
    let ImportBody { keystores, passwords, slashing_protection } = serde_json::from_slice(body).map_err(|e| {
        let (line, column) = (e.line(), e.column());
        bad(format!(
            "the body is not {{keystores: [text], passwords: [text], slashing_protection: text}}, at line {line}, column {column}"
        ))
    })?;
    if keystores.len() != passwords.len() {
        return Err(bad(format!("{} keystores came with {} passwords", keystores.len(), passwords.len())));
    }
    let histories = match slashing_protection.as_deref().map(without_bom).filter(|text| !text.is_empty()) {
        Some(text) => interchange::read(text.as_bytes(), root).map_err(|e| bad(format!("slashing_protection: {e}")))?,
        None => Histories::new(),
    };
    let mut left: BTreeSet<PublicKey> = histories.keys().copied().collect();
    let one = |(keystore, password): (String, String)| {
        let keystore = without_bom(&keystore);
        if let Some(envelopes) = envelopes(keystore) {
            return Posted::Envelopes(envelopes);
        }
        match keystore_of(keystore, without_bom(&password), &histories) {
            Ok(one) => {
                left.remove(&one.key.public_key);
                Posted::Keystore(Box::new(one))
            }
            Err(why) => Posted::Bad(why),
        }
    };
    let posted = keystores.into_iter().zip(passwords).map(one).collect();
    Ok(PostedBody { posted, unused: unused(&left, histories.len()) })
}

/// Editors put it in front of UTF-8.
fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn unused(left: &BTreeSet<PublicKey>, all: usize) -> Option<String> {
    let first = left.first()?;
    Some(format!(
        "of the {all} keys in slashing_protection, {} came without a keystore in this request, {first} among them: their history was not taken",
        left.len()
    ))
}

/// A keystore for the vault, or why it is none. The reason never quotes the keystore.
fn keystore_of(keystore: &str, password: &str, histories: &Histories) -> Result<KeystoreToImport, String> {
    let json: Value = serde_json::from_str(keystore)
        .map_err(|e| format!("the keystore is no JSON, from line {}, column {} on", e.line(), e.column()))?;
    let public_key = stated_key(&json)?;
    let history = histories.get(&public_key).copied();
    if let (None, Some(other)) = (history, histories.keys().next()) {
        return Err(format!(
            "slashing_protection says nothing of {public_key}, and tells of {} other keys, {other} among them: is it this keystore's? Nothing was sent \
             to the enclave",
            histories.len()
        ));
    }
    let (len, max) = (keystore.len(), MAX_KEYSTORE_LEN);
    let keystore = BoundedBytes::new(keystore.as_bytes().to_vec());
    let keystore = keystore.ok_or_else(|| format!("the keystore has {len} bytes; 1 to {max} are allowed"))?;
    // EIP-2335, «Password requirements»: the vault has no tables of Unicode.
    let password: String = password.nfkd().filter(|c| !c.is_control()).collect();
    let (len, max) = (password.len(), MAX_PASSWORD_LEN);
    let password = BoundedBytes::new(password.into_bytes());
    let password = password.ok_or_else(|| format!("the password has {len} bytes; at most {max} are allowed"))?;
    Ok(KeystoreToImport { key: ImportedKey { public_key, history }, keystore, password: Password(password) })
}

/// Whose keystore of version 4 it says that it is.
fn stated_key(json: &Value) -> Result<PublicKey, String> {
    if json.get("crypto").is_none() {
        return Err("this is neither an EIP-2335 keystore (there is no crypto in it) nor a file of commands".to_owned());
    }
    match json.get("version") {
        Some(Value::Number(version)) if version.as_u64() == Some(4) => {}
        Some(version) => {
            return Err(format!("the keystore's version is {}; 4 (EIP-2335) is taken", shown(&version.to_string())));
        }
        None => return Err("the keystore has no version; 4 (EIP-2335) is taken".to_owned()),
    }
    let pubkey = match json.get("pubkey") {
        Some(Value::String(pubkey)) => pubkey,
        Some(_) => return Err("the keystore's pubkey is no text; 96 hex digits are needed".to_owned()),
        None => return Err("the keystore has no pubkey; 96 hex digits are needed".to_owned()),
    };
    let digits = pubkey.strip_prefix("0x").unwrap_or(pubkey);
    let key = if digits.starts_with("0x") { None } else { const_hex::decode_to_array(digits).ok() };
    key.map(Bytes).ok_or_else(|| format!("the keystore's pubkey is {}; 96 hex digits are needed", shown(pubkey)))
}

/// The commands of a file that `casemate keys import --command-out` has written and operators have signed.
fn envelopes(text: &str) -> Option<Vec<Envelope>> {
    #[derive(Deserialize)]
    struct File {
        casemate_command_file: u32,
        commands: Vec<FileCommand>,
    }

    #[derive(Deserialize)]
    struct FileCommand {
        command: String,
        signatures: Vec<FileSignature>,
    }

    #[derive(Deserialize)]
    struct FileSignature {
        operator: Hex<32>,
        signature: Hex<64>,
    }

    let file: File = serde_json::from_str(text).ok()?;
    if file.casemate_command_file != 1 {
        return None;
    }
    let one = |command: &FileCommand| {
        let bytes = BoundedBytes::new(BASE64_STANDARD.decode(&command.command).ok()?)?;
        let signature = |s: &FileSignature| OperatorSignature { operator: s.operator.0, signature: s.signature.0 };
        SignedCommand::new(bytes, command.signatures.iter().map(signature).collect()).encode().ok()
    };
    file.commands.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        Token::of_file(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 2 * TOKEN_LEN);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Token::of_file(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert!(again.is(&text));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.to_uppercase()] {
            assert!(!again.is(wrong) || wrong == text, "{wrong}");
        }
        for short in ["", "secret", &"a".repeat(MIN_TOKEN_LEN - 1), &format!("{} b", "a".repeat(60))] {
            fs::write(&path, short).unwrap();
            assert!(Token::of_file(&path).is_err(), "{short}");
        }
        fs::write(&path, format!("{}\n", "a".repeat(MIN_TOKEN_LEN))).unwrap();
        assert!(Token::of_file(&path).unwrap().is(&"a".repeat(MIN_TOKEN_LEN)));
    }

    #[test]
    fn a_token_that_others_can_read_is_refused_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        Token::of_file(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = format!("{:#}", Token::of_file(&path).map(drop).unwrap_err());
            assert!(error.contains(&format!("the mode {mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
    }

    const ROOT: Root = Bytes([4; 32]);

    fn history_of(keys: &[&str]) -> String {
        let one = |key: &&str| json!({ "pubkey": format!("0x{key}"), "signed_blocks": [], "signed_attestations": [] });
        json!({
            "metadata": { "interchange_format_version": "5", "genesis_validators_root": ROOT.to_string() },
            "data": keys.iter().map(one).collect::<Vec<_>>(),
        })
        .to_string()
    }

    fn post(keystore: &Value, history: Option<&str>) -> PostedBody {
        let body = json!({ "keystores": [keystore.to_string()], "passwords": ["x"], "slashing_protection": history });
        posted(body.to_string().as_bytes(), ROOT).unwrap()
    }

    #[test]
    fn a_history_of_another_key_is_not_dropped_in_silence() {
        let (x, y) = ("aa".repeat(48), "bb".repeat(48));
        let keystore = json!({ "pubkey": x, "version": 4, "crypto": {} });
        let of_y = post(&keystore, Some(&history_of(&[&y])));
        let Posted::Bad(why) = &of_y.posted[0] else { panic!("{of_y:?}") };
        assert!(why.contains(&format!("says nothing of 0x{x}")) && why.contains(&format!("0x{y} among them")), "{why}");
        let of_both = post(&keystore, Some(&history_of(&[&x, &y])));
        assert!(matches!(of_both.posted[0], Posted::Keystore(_)));
        let unused = of_both.unused.unwrap();
        assert!(unused.starts_with("of the 2 keys in slashing_protection, 1 came without a keystore"), "{unused}");
        assert_eq!(post(&keystore, Some(&history_of(&[&x]))).unused, None);
        assert!(matches!(post(&keystore, None).posted[0], Posted::Keystore(_)), "the enclave may know its history");
        let marked = format!("\u{feff}{}", history_of(&[&x]));
        assert!(matches!(post(&keystore, Some(&marked)).posted[0], Posted::Keystore(_)));
    }

    #[test]
    fn a_keystore_that_is_not_taken_is_told_what_is_wrong_with_it() {
        let good = json!({ "pubkey": "aa".repeat(48), "version": 4, "crypto": {} });
        for (field, value, told) in [
            ("pubkey", json!(""), "the keystore's pubkey is \"\"; 96 hex digits are needed"),
            ("pubkey", json!("0x0xaa"), "the keystore's pubkey is \"0x0xaa\""),
            ("pubkey", Value::Null, "the keystore's pubkey is no text"),
            ("version", Value::Null, "the keystore's version is \"null\"; 4 (EIP-2335) is taken"),
            ("version", json!(3), "the keystore's version is \"3\""),
        ] {
            let mut keystore = good.clone();
            keystore[field] = value;
            let Posted::Bad(why) = &post(&keystore, None).posted[0] else { panic!("{keystore}") };
            assert!(why.contains(told), "{why}");
        }
        let Posted::Bad(why) = &post(&json!({}), None).posted[0] else { panic!() };
        assert!(why.contains("there is no crypto in it"), "{why}");
    }

    #[test]
    fn what_is_posted_is_sorted_and_wrong_lengths_are_refused() {
        let root = Bytes([4; 32]);
        let body = |value: Value| posted(value.to_string().as_bytes(), root).map_err(|failure| failure.status.as_u16());
        let key = format!("0x{}", "AB".repeat(48));
        let keystore = json!({ "pubkey": "ab".repeat(48), "version": 4, "crypto": {} }).to_string();
        let history = json!({
            "metadata": { "interchange_format_version": "5", "genesis_validators_root": root.to_string() },
            "data": [{ "pubkey": key.replace("AB", "aB"), "signed_blocks": [], "signed_attestations": [] }],
        });
        let all = body(
            json!({ "keystores": [keystore, "{", "{}"], "passwords": ["a", "b", "c"], "slashing_protection": history.to_string() }),
        );
        let all = all.unwrap().posted;
        // Keys are the same whatever the case of their hex.
        assert!(
            matches!(&all[0], Posted::Keystore(one) if one.key.history == Some(casemate_protocol::watermarks::Watermarks::default()))
        );
        assert!(matches!((&all[1], &all[2]), (Posted::Bad(_), Posted::Bad(_))));
        assert!(body(json!({ "keystores": ["{}"], "passwords": [] })).is_err_and(|status| status == 400));
        assert!(body(json!({ "keystores": [] })).is_err_and(|status| status == 400));
        let told = posted(br#"{"keystores": [], "passwords": "hunter2"}"#, root).map(drop).unwrap_err();
        assert!(!told.message.contains("hunter2"), "{}", told.message);
        for wrong in ["no", "{}", &history.to_string().replace("0404", "0405")] {
            let body = body(json!({ "keystores": [], "passwords": [], "slashing_protection": wrong }));
            assert!(body.is_err_and(|status| status == 400), "{wrong}");
        }
    }
}
