//! An enclave that was verified, and what it is asked to do.
//!
//! Everything comes through a proxy that is not trusted. What an enclave is, its group, its chain, its HPKE key and its keys are
//! taken from documents alone; the proxy's list of keys counts once its root is the one that the document binds. What became of a
//! command is what a document says afterwards.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use casemate_protocol::command::{Command, SignedCommand};
use casemate_protocol::{Bytes, PublicKey, Statement};
use serde::Deserialize;

use crate::cli::{Connection, ExpectedOptions, Fetch, PinOptions};
use crate::fetch::Proxy;
use crate::report::Verdict;
use crate::{attest, keys};

/// How long a document is asked for after a command: an enclave that was killed meanwhile unseals its keys first.
const PATIENCE: Duration = Duration::from_secs(30);

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
pub enum Told {
    /// One word for each key.
    Imported { keys: Vec<String> },
    /// The keys.
    Generated { keys: Vec<ToldKey> },
    /// The keys, with their deposits.
    Deposited { keys: Vec<ToldKey> },
    /// One word for each key.
    Deleted { keys: Vec<String> },
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
        let proxy = Proxy::new(&connection)?;
        let fetch = Fetch { connection, save: None, expected: ExpectedOptions::live(pins) };
        let (statement, hpke_key) = attested(&fetch)?;
        Ok(Self { fetch, proxy, statement, hpke_key })
    }

    /// Another document; the keys may have changed, and the enclave may have started anew.
    fn renew(&mut self) -> Result<()> {
        let (statement, _) = attested(&self.fetch)?;
        let (ours, now) = (&self.statement, &statement);
        if (&ours.group, ours.network.genesis_validators_root) != (&now.group, now.network.genesis_validators_root) {
            return Err(Refused("this is the enclave of another group now".to_owned()).into());
        }
        // Commands are for the boot that was verified first.
        self.statement.public_keys = statement.public_keys;
        Ok(())
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

    /// An action as a command for this boot. `number` tells apart those that are made at once.
    pub fn command(&self, number: u64, action: casemate_protocol::command::Action) -> Result<Command> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let counter = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_add(number);
        let Statement { group, network, boot_nonce, .. } = &self.statement;
        Ok(Command::new(group.clone(), network.genesis_validators_root, *boot_nonce, counter, action))
    }

    /// Sends a signed command; the answer, success or not, is only what the proxy says.
    pub fn send(&self, signed: &SignedCommand) -> Result<Told> {
        let envelope = signed.encode()?;
        let body = self.proxy.command(envelope.as_ref())?.map_err(Refused)?;
        serde_json::from_slice(&body).context("the answer to a command")
    }

    /// The keys by a document of now; nothing where none can be had for a while.
    pub fn keys_now(&mut self) -> Option<BTreeSet<PublicKey>> {
        let begun = Instant::now();
        loop {
            if let Ok(keys) = self.renew().and_then(|()| self.keys()) {
                return Some(keys.into_iter().collect());
            }
            if begun.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

fn attested(fetch: &Fetch) -> Result<(Statement, [u8; 32])> {
    let report = attest::fetch(fetch)?;
    if let Verdict::Refused(reason) = &report.verdict {
        return Err(Refused(format!("the enclave's document is refused: {reason}")).into());
    }
    let Some((document, Some(statement))) = report.judged else {
        bail!("{} gave no statement that its document binds", fetch.connection.url);
    };
    let key = document.public_key().and_then(|key| key.try_into().ok());
    Ok((statement, key.context("the document has no HPKE key")?))
}

/// Hex of exactly `N` bytes, from a stranger.
pub fn hex<const N: usize>(text: &str, what: &str) -> Result<Bytes<N>> {
    const_hex::decode_to_array(text)
        .map(Bytes)
        .map_err(|_| anyhow::anyhow!("{what}: {} characters; 0x and {} hex digits belong there", text.len(), N * 2))
}
