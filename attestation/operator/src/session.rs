//! An enclave that was verified, and what it is asked to do.
//!
//! Everything comes through a proxy that is not trusted. What an enclave is, its group, its chain, its HPKE key and its keys are
//! taken from documents alone; the proxy's list of keys counts once its root is the one that the document binds. What became of a
//! command is what a document of the same boot says afterwards: that it was the last one, and the digest of its outcome.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::command::{ClosedRecord, Command, GeneratedKey, KeyOutcome, Outcome, SignedCommand, SignedExit};
use casemate_protocol::frame::Nonce;
use casemate_protocol::log::LogHead;
use casemate_protocol::statement::CommandResult;
use casemate_protocol::{Bytes, Epoch, PublicKey, Root, Slot, Statement};
use serde::Deserialize;

use crate::cli::{Connection, ExpectedOptions, Fetch, PinOptions};
use crate::fetch::Proxy;
use crate::report::Verdict;
use crate::{keys, verify};

/// How long a document is asked for after a command: an enclave that was killed meanwhile unseals its keys first.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two documents: the vault gives two a second.
const PAUSE: Duration = Duration::from_millis(600);

/// The answer was no: by the document's verification or by the enclave.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// An enclave's document was accepted.
pub struct Session {
    fetch: Fetch,
    proxy: Proxy,
    /// What it says of itself.
    pub statement: Statement,
    /// Encrypts to it alone.
    pub hpke_key: [u8; 32],
}

/// What became of a command, as the proxy passes it on.
#[derive(Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ReportedOutcome {
    /// One word for each key.
    Imported { keys: Vec<String> },
    /// The keys.
    Generated { keys: Vec<ToldKey> },
    /// The keys, with their deposits.
    Deposited { keys: Vec<ToldKey> },
    /// One word for each key.
    Deleted { keys: Vec<String> },
    /// The fence has a record.
    FenceReady,
    /// The store takes the credentials.
    CredentialsTaken,
    /// The record has ended.
    FenceClosed { record: ToldRecord },
    /// It signs no more.
    HandedOver,
    /// It holds the fence.
    TookOver { term: u64 },
    /// The exits.
    ExitsSigned { exits: Vec<ToldExit> },
    /// One word for each key.
    FeeRecipientsSet { keys: Vec<String> },
    /// One word for each key.
    PastsRaised { keys: Vec<String> },
}

/// A record that has ended.
#[derive(Deserialize)]
pub struct ToldRecord {
    pub version: u64,
    pub term: u64,
    pub slot_ceiling: u64,
    pub target_ceiling: u64,
    pub source_ceiling: u64,
    pub min_state_version: u64,
    /// SHA-256 of the state that was left behind.
    pub released_state: Option<String>,
}

impl ToldRecord {
    /// As the enclave has put it.
    pub fn record(&self) -> Result<ClosedRecord> {
        let clean = self.released_state.as_deref().map(|text| hex(text, "released_state")).transpose()?;
        Ok(ClosedRecord {
            version: self.version,
            term: self.term,
            slot_ceiling: Slot(self.slot_ceiling),
            target_ceiling: Epoch(self.target_ceiling),
            source_ceiling: Epoch(self.source_ceiling),
            min_state_version: self.min_state_version,
            released_state: clean,
        })
    }
}

/// An exit that was signed.
#[derive(Deserialize)]
pub struct ToldExit {
    pub public_key: String,
    pub epoch: u64,
    pub validator_index: u64,
    pub signature: String,
}

/// A key that was made.
#[derive(Deserialize)]
pub struct ToldKey {
    pub public_key: String,
    pub deposit_signature: String,
}

impl Session {
    /// Fetches a document for a fresh nonce and holds it against the pins.
    pub fn open(connection: Connection, pins: PinOptions) -> Result<Self> {
        let mut proxy = Proxy::new(&connection)?;
        let mut fetch = Fetch { connection, save: None, expected: ExpectedOptions::live(pins) };
        let (statement, hpke_key, enclave) = attested(&fetch)?;
        // The fence may be handed over meanwhile, by this very command: what follows goes to the enclave that was asked first.
        proxy.stay_with(enclave);
        fetch.connection.enclave = fetch.connection.enclave.or(enclave);
        Ok(Self { fetch, proxy, statement, hpke_key })
    }

    /// The keys that sign, as the statement binds them.
    pub fn keys(&self) -> Result<Vec<PublicKey>> {
        let listed = keys::parse(&self.proxy.public_keys()?).context("the proxy's list of keys")?;
        let stated = &self.statement.public_keys;
        if keys::root(&listed) != stated.root || usize::try_from(stated.count) != Ok(listed.len()) {
            let (listed, stated) = (listed.len(), stated.count);
            return Err(
                Refused(format!("the proxy lists other keys ({listed}) than the enclave states ({stated})")).into()
            );
        }
        Ok(listed)
    }

    /// A page of the keys' pasts, and its signature, as the proxy passes them on.
    pub fn pasts(&self, nonce: &Nonce, start: u32) -> Result<(Vec<u8>, Bytes<64>)> {
        self.proxy.pasts(nonce.as_ref(), start)
    }

    /// Where the signing log of this boot stands now.
    pub fn signing_log_head(&self, nonce: &Nonce) -> Result<LogHead> {
        let (head, fresh) = self.proxy.signing_log_head(nonce.as_ref())?;
        let key = UnparsedPublicKey::new(&ED25519, self.statement.record_key.0);
        let now = key.verify(&head.fresh_bytes(nonce), &fresh.0).is_ok();
        if !now || head.boot_nonce != self.statement.boot_nonce {
            return Err(Refused("the head that the proxy shows is not the enclave's own of now".to_owned()).into());
        }
        Ok(head)
    }

    /// An action as a command for this boot. `number` tells apart those that are made at once.
    pub fn command(&self, number: u64, action: casemate_protocol::command::Action) -> Result<Command> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let counter = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_add(number);
        let Statement { group, network, boot_nonce, .. } = &self.statement;
        Ok(Command::new(group.clone(), network.genesis_validators_root, *boot_nonce, counter, action))
    }

    /// Sends a signed command; the answer, success or not, is only what the proxy says.
    pub fn send(&self, signed: &SignedCommand) -> Result<ReportedOutcome> {
        let envelope = signed.encode()?;
        let body = self.proxy.command(envelope.as_ref())?.map_err(Refused)?;
        serde_json::from_slice(&body).context("the answer to a command")
    }

    /// What a document of this boot says of a command that was sent. A proxy may withhold a command, or the answer to it, but
    /// not make the enclave say that it was carried out, or that it was refused.
    pub fn became(&mut self, command: &Command, bytes: &[u8], refused: bool) -> CommandStatus {
        let begun = Instant::now();
        // A refusal at the door leaves no trace in the statement: there is nothing to wait for.
        let patience = if refused { PATIENCE / 20 } else { PATIENCE };
        let sha256 = sha256(bytes);
        let mut found = CommandStatus::Unknown;
        while begun.elapsed() < patience {
            let Ok(other_boot) = self.renew() else {
                found = CommandStatus::Unknown;
                std::thread::sleep(PAUSE);
                continue;
            };
            if other_boot {
                return CommandStatus::OtherBoot;
            }
            found = match self.statement.last_command {
                Some(last) if last.counter == command.counter && last.sha256 == sha256 => {
                    return CommandStatus::Known(last.result);
                }
                // Somebody else's, since: it may have been carried out before that.
                Some(last) if last.counter >= command.counter => return CommandStatus::Unknown,
                _ => CommandStatus::NotYet,
            };
            std::thread::sleep(PAUSE);
        }
        found
    }

    /// Takes a new document; whether it is of another boot.
    fn renew(&mut self) -> Result<bool> {
        let (statement, ..) = attested(&self.fetch)?;
        if statement.boot_nonce != self.statement.boot_nonce {
            return Ok(true);
        }
        self.statement = statement;
        Ok(false)
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    /// A document says it.
    Known(CommandResult),
    /// It was not carried out yet. Whoever has it may still deliver it, until the enclave starts anew or takes a later command.
    NotYet,
    /// The enclave has started anew, or this is another one.
    OtherBoot,
    /// No document was to be had.
    Unknown,
}

impl ReportedOutcome {
    /// As the enclave has put it, if the proxy tells it rightly: the statement has its digest.
    pub fn outcome(&self) -> Option<Outcome> {
        let words = |keys: &[String]| keys.iter().map(|word| outcome_of(word)).collect::<Option<Vec<_>>>();
        let deposits = |keys: &[ToldKey]| {
            let one = |key: &ToldKey| {
                let public_key = hex(&key.public_key, "a key").ok()?;
                Some(GeneratedKey { public_key, deposit_signature: hex(&key.deposit_signature, "a signature").ok()? })
            };
            keys.iter().map(one).collect::<Option<Vec<_>>>()
        };
        Some(match self {
            Self::Imported { keys } => Outcome::Imported { keys: words(keys)? },
            Self::Deleted { keys } => Outcome::Deleted { keys: words(keys)? },
            Self::Generated { keys } => Outcome::Generated { keys: deposits(keys)? },
            Self::Deposited { keys } => Outcome::Deposited { keys: deposits(keys)? },
            Self::FenceReady => Outcome::FenceReady,
            Self::CredentialsTaken => Outcome::CredentialsTaken,
            Self::FenceClosed { record } => Outcome::FenceClosed { record: record.record().ok()? },
            Self::HandedOver => Outcome::HandedOver,
            Self::TookOver { term } => Outcome::TookOver { term: *term },
            Self::FeeRecipientsSet { keys } => Outcome::FeeRecipientsSet { keys: words(keys)? },
            Self::PastsRaised { keys } => Outcome::PastsRaised { keys: words(keys)? },
            Self::ExitsSigned { exits } => {
                let one = |exit: &ToldExit| {
                    Some(SignedExit {
                        public_key: hex(&exit.public_key, "a key").ok()?,
                        epoch: Epoch(exit.epoch),
                        validator_index: exit.validator_index,
                        signature: hex(&exit.signature, "a signature").ok()?,
                    })
                };
                Outcome::ExitsSigned { exits: exits.iter().map(one).collect::<Option<_>>()? }
            }
        })
    }
}

fn outcome_of(word: &str) -> Option<KeyOutcome> {
    Some(match word {
        "imported" => KeyOutcome::Imported,
        "duplicate" => KeyOutcome::Duplicate,
        "wrong_secret" => KeyOutcome::WrongSecret,
        "impossible_history" => KeyOutcome::ImpossibleHistory,
        "deleted" => KeyOutcome::Deleted,
        "not_found" => KeyOutcome::NotFound,
        "changed" => KeyOutcome::Changed,
        "no_history" => KeyOutcome::NoHistory,
        "unreadable" => KeyOutcome::Unreadable,
        "wrong_password" => KeyOutcome::WrongPassword,
        _ => return None,
    })
}

/// A nonce of our own.
pub fn fresh_nonce() -> Result<Nonce> {
    let mut fresh = vec![0; 32];
    aws_lc_rs::rand::fill(&mut fresh).map_err(|_| anyhow::anyhow!("this machine gives no random bytes"))?;
    Nonce::new(fresh).context("a nonce")
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Root {
    let mut sum = Root::ZERO;
    // SHA-256 gives 32 bytes, always.
    for (to, from) in sum.0.iter_mut().zip(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()) {
        *to = *from;
    }
    sum
}

fn attested(fetch: &Fetch) -> Result<(Statement, [u8; 32], Option<u32>)> {
    let report = verify::fetch(fetch)?;
    if let Verdict::Refused(reason) = &report.verdict {
        return Err(Refused(format!("the enclave's document is refused: {reason}")).into());
    }
    let Some((document, Some(statement))) = report.judged else {
        bail!("{} gave no statement that its document binds", fetch.connection.url);
    };
    let key = document.public_key().and_then(|key| key.try_into().ok());
    Ok((statement, key.context("the document has no HPKE key")?, report.enclave))
}

/// Hex of exactly `N` bytes, from a stranger.
pub fn hex<const N: usize>(text: &str, what: &str) -> Result<Bytes<N>> {
    const_hex::decode_to_array(text)
        .map(Bytes)
        .map_err(|_| anyhow::anyhow!("{what}: {} characters; 0x and {} hex digits belong there", text.len(), N * 2))
}
