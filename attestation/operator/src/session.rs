//! An enclave that was verified, and what it is asked to do.
//!
//! Everything comes through a proxy that is not trusted. What an enclave is, its group, its chain, its HPKE key and its keys are
//! taken from documents alone; the proxy's list of keys counts once its root is the one that the document binds. What became of a
//! command is what a document of the same boot says afterwards: that it was the last one, and the digest of its outcome.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::command::{Action, Command, EncryptedSecrets, MAX_KEYS, SignedCommand};
use casemate_protocol::frame::Nonce;
use casemate_protocol::log::LogHead;
use casemate_protocol::reported::ReportedOutcome;
use casemate_protocol::statement::{CommandResult, FenceKind};
use casemate_protocol::{BoundedBytes, Bytes, PublicKey, Statement};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};

use crate::args::{Connection, ExpectedOptions, PinOptions};
use crate::exit::{Refused, refused};
use crate::fetch::Proxy;
use crate::report::Verdict;
use crate::util::{now_ms, sha256};
use crate::{keys, verify};

/// How long a document is asked for after a command: an enclave that was killed meanwhile unseals its keys first.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two documents: the vault gives two a second.
const PAUSE: Duration = Duration::from_millis(600);

/// An enclave's document was accepted.
pub struct Session {
    connection: Connection,
    expected: ExpectedOptions,
    proxy: Proxy,
    /// What it says of itself.
    pub statement: Statement,
    /// Encrypts to it alone.
    hpke_key: [u8; 32],
}

impl Session {
    /// Fetches a document for a fresh nonce and compares it with the pins.
    pub fn open(mut connection: Connection, pins: PinOptions) -> Result<Self> {
        let mut proxy = Proxy::new(&connection)?;
        let expected = ExpectedOptions::live(pins);
        let (statement, hpke_key, enclave) = attested(&connection, &expected)?;
        // The fence may be handed over meanwhile, by this very command: what follows goes to the enclave that was asked first.
        proxy.stay_with(enclave);
        connection.enclave = connection.enclave.or(enclave);
        Ok(Self { connection, expected, proxy, statement, hpke_key })
    }

    /// The keys that sign, as the statement binds them.
    pub fn keys(&self) -> Result<Vec<PublicKey>> {
        let listed = keys::parse(&self.proxy.public_keys()?).context("the proxy's list of keys")?;
        let stated = &self.statement.public_keys;
        if keys::root(&listed) != stated.root || usize::try_from(stated.count) != Ok(listed.len()) {
            let (listed, stated) = (listed.len(), stated.count);
            return refused(format!("the proxy lists other keys ({listed}) than the enclave states ({stated})"));
        }
        Ok(listed)
    }

    /// A page of the keys' histories, and its signature, as the proxy passes them on.
    pub fn history_page(&self, nonce: &Nonce, start: u32) -> Result<(Vec<u8>, Bytes<64>)> {
        self.proxy.history_page(nonce.as_ref(), start)
    }

    /// A page of what there is to know of keys, and its signature, as the proxy passes them on.
    pub fn key_page(&self, nonce: &Nonce, start: u32) -> Result<(Vec<u8>, Bytes<64>)> {
        self.proxy.key_page(nonce.as_ref(), start)
    }

    /// Where the signing log of this boot stands now.
    pub fn signing_log_head(&self, nonce: &Nonce) -> Result<LogHead> {
        let (head, fresh) = self.proxy.signing_log_head(nonce.as_ref())?;
        let key = UnparsedPublicKey::new(&ED25519, self.statement.record_key.0);
        let now = key.verify(&head.fresh_bytes(nonce), &fresh.0).is_ok();
        if !now || head.boot_nonce != self.statement.boot_nonce {
            return refused("the head that the proxy shows is not the one that this enclave signs now");
        }
        Ok(head)
    }

    /// An action as a command for this boot.
    pub fn command(&self, action: Action) -> Result<Command> {
        self.numbered(0, action)
    }

    /// The commands for many things, in portions that a command takes.
    pub fn commands<T>(&self, things: &[T], action: impl Fn(&[T]) -> Result<Action>) -> Result<Vec<Command>> {
        (0..).zip(things.chunks(MAX_KEYS)).map(|(number, portion)| self.numbered(number, action(portion)?)).collect()
    }

    /// `number` tells apart commands that are made at once.
    fn numbered(&self, number: u64, action: Action) -> Result<Command> {
        let counter = now_ms()?.saturating_add(number);
        let Statement { group, network, boot_nonce, .. } = &self.statement;
        Ok(Command::new(group.clone(), network.genesis_validators_root, *boot_nonce, counter, action))
    }

    /// Encrypts to the enclave that a document has proved, and to this boot of it.
    pub fn encrypt(&self, info: &[u8], clear: &[u8]) -> Result<EncryptedSecrets> {
        let key = HpkePublicKey(self.hpke_key.to_vec());
        let (enc, ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256
            .seal(info, &self.statement.boot_nonce.0, clear, &key)
            .context("encrypting to the enclave")?;
        let enc = <[u8; 32]>::try_from(enc.0).map_err(|_| anyhow::anyhow!("the encapsulated key is not of X25519"))?;
        let ciphertext = BoundedBytes::new(ciphertext).context("too much for one command")?;
        Ok(EncryptedSecrets { enc: Bytes(enc), ciphertext })
    }

    /// Sends a signed command; the answer, success or not, is only what the proxy says.
    pub fn send(&self, signed: &SignedCommand) -> Result<ReportedOutcome> {
        let envelope = signed.encode()?;
        let body = self.proxy.command(envelope.as_ref())?.map_err(Refused)?;
        serde_json::from_slice(&body).context("the answer to a command")
    }

    /// What a document of this boot says of a command that was sent. A proxy may withhold a command, or the answer to it, but
    /// not make the enclave say that it was carried out, or that it was refused.
    pub fn status(&mut self, command: &Command, bytes: &[u8], refused: bool) -> CommandStatus {
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
                // Another operator's, since: ours may have been carried out before that.
                Some(last) if last.counter >= command.counter => return CommandStatus::Unknown,
                _ => CommandStatus::NotYet,
            };
            std::thread::sleep(PAUSE);
        }
        found
    }

    /// What an operator must know before keys of an enclave without a store for its fence sign anywhere else.
    pub fn without_store(&self) -> &'static str {
        match self.statement.fence.kind {
            FenceKind::Solo => {
                "note: this enclave's fence has no store (solo). If it is started with an older blob, it has deleted keys again, and signs with them.\n\
                 Before they sign anywhere else, end every enclave of this group and destroy its blobs and their copies, or take its image out of the KMS key's policy.\n"
            }
            FenceKind::None | FenceKind::File | FenceKind::Etcd | FenceKind::Dynamodb => "",
        }
    }

    /// Takes a new document; whether it is of another boot.
    fn renew(&mut self) -> Result<bool> {
        let (statement, ..) = attested(&self.connection, &self.expected)?;
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
    /// It was not carried out yet. Anyone who has it may still deliver it, until the enclave starts anew or takes a later command.
    NotYet,
    /// The enclave has started anew, or this is another one.
    OtherBoot,
    /// No document was to be had.
    Unknown,
}

/// The statement, the HPKE key, and which of the proxy's enclaves it is.
fn attested(connection: &Connection, expected: &ExpectedOptions) -> Result<(Statement, [u8; 32], Option<u32>)> {
    let report = verify::running(connection, expected, None)?;
    if let Verdict::Refused(reason) = &report.verdict {
        return refused(format!("the enclave's document is refused: {reason}"));
    }
    let Some((document, Some(statement))) = report.judged else {
        bail!("{} gave no statement that its document binds", connection.url);
    };
    let key = document.public_key().and_then(|key| key.try_into().ok());
    Ok((statement, key.context("the document has no HPKE key")?, report.enclave))
}
