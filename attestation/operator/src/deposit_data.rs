//! Deposit data, as the launchpad takes it (`deposit_data-*.json` of ethstaker-deposit-cli).
//!
//! The keys and signatures came through an untrusted proxy: each signature is verified here, over a message that is made here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_protocol::{Bytes, PublicKey, Root, Signature, Statement, Version};
use libssz_merkle::{Sha2Hasher, merkleize, pack};
use serde_json::{Value, json};

use crate::exit::refused;
use crate::util::{array, hex, now_ms};

/// Domain type of deposits (consensus specification, `DOMAIN_DEPOSIT`).
const DOMAIN_DEPOSIT: [u8; 4] = [3, 0, 0, 0];
const SUITE: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
/// The launchpad asks which version of the deposit tool the file's form is of.
const FORM_VERSION: &str = "2.8.0";

/// Where deposit data goes, and files of exits.
pub struct DepositOutput<'a> {
    pub folder: &'a Path,
    /// Of a chain that is not built in.
    pub genesis_fork_version: Option<&'a str>,
}

/// A deposit that the enclave has signed.
pub struct Deposit {
    pub public_key: PublicKey,
    pub withdrawal_credentials: Root,
    /// In Gwei.
    pub amount: u64,
    pub signature: Signature,
}

/// A file for deposit data; until all are in it its name says that they are not.
pub struct File {
    path: PathBuf,
    version: Version,
    network: String,
}

impl File {
    /// Makes one, empty, before there is anything to lose.
    pub fn create(place: &DepositOutput<'_>, statement: &Statement) -> Result<Self> {
        let version = genesis_version(statement, place.genesis_fork_version)?;
        let now = now_ms()? / 1000;
        for number in 0..100 {
            let suffix = if number == 0 { String::new() } else { format!("-{number}") };
            let path = place.folder.join(format!("deposit_data-{now}{suffix}.json"));
            let file = Self { path, version, network: statement.network.name.clone() };
            if file.path.exists() {
                continue;
            }
            match fs::OpenOptions::new().write(true).create_new(true).open(file.unconfirmed()) {
                Ok(_) => return Ok(file),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("making a file in {}", place.folder.display()));
                }
            }
        }
        bail!("{} has a hundred files of this second", place.folder.display())
    }

    fn unconfirmed(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".unconfirmed");
        name.into()
    }

    /// All deposits, each verified; nothing where there are none.
    pub fn text(&self, deposits: &[Deposit]) -> Result<Option<String>> {
        if deposits.is_empty() {
            return Ok(None);
        }
        let entries = deposits.iter().map(|deposit| entry(deposit, self.version, &self.network));
        let entries = entries.collect::<Result<Vec<Value>>>().inspect_err(|_| {
            let _ = fs::remove_file(self.unconfirmed());
        })?;
        Ok(Some(serde_json::to_string(&entries).context("writing JSON")?))
    }

    /// Writes them all.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let path = self.unconfirmed();
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Nothing was signed.
    pub fn discard(self) {
        let _ = fs::remove_file(self.unconfirmed());
    }

    /// All that was asked for is in it: it gets its name.
    pub fn finish(self) -> Result<PathBuf> {
        fs::rename(self.unconfirmed(), &self.path).with_context(|| format!("writing {}", self.path.display()))?;
        Ok(self.path)
    }
}

/// Of the chain that the statement pins.
pub fn genesis_version(statement: &Statement, given: Option<&str>) -> Result<Version> {
    let root = statement.network.genesis_validators_root;
    let built_in = casemate_config::NAMED.iter().filter_map(|(name, _)| casemate_config::named(name)?.ok());
    let known = built_in.into_iter().find(|n| n.genesis_validators_root() == root).map(|n| n.genesis_version());
    let given = given.map(|text| hex::<4>(text, "--genesis-fork-version")).transpose()?;
    match (known, given) {
        (Some(known), Some(given)) if known != given => {
            bail!("--genesis-fork-version is {given}; {} has {known}", statement.network.name)
        }
        (Some(version), _) | (None, Some(version)) => Ok(version),
        (None, None) => bail!("the chain {root} is not built in: give --genesis-fork-version"),
    }
}

fn entry(deposit: &Deposit, version: Version, network: &str) -> Result<Value> {
    let Deposit { public_key, withdrawal_credentials, amount, signature } = deposit;
    let (message, data) = roots(deposit);
    let signing_root = container(&[message.0, domain(version).0]);
    let key = blst::min_pk::PublicKey::from_bytes(&public_key.0);
    let signed = blst::min_pk::Signature::from_bytes(&signature.0);
    let (Ok(key), Ok(signed)) = (key, signed) else {
        return refused(format!("the deposit of {public_key} is malformed: trust neither proxy nor file"));
    };
    if signed.verify(true, &signing_root.0, SUITE, &[], &key, true) != blst::BLST_ERROR::BLST_SUCCESS {
        return refused(format!(
            "the deposit of {public_key} is not signed for this chain, amount and address: is the genesis fork version right? The \
             enclave has the keys; casemate keys deposit has their deposits signed again"
        ));
    }
    let bare = const_hex::encode::<&[u8]>;
    Ok(json!({
        "pubkey": bare(&public_key.0),
        "withdrawal_credentials": bare(&withdrawal_credentials.0),
        "amount": amount,
        "signature": bare(&signature.0),
        "deposit_message_root": bare(&message.0),
        "deposit_data_root": bare(&data.0),
        "fork_version": bare(&version.0),
        "network_name": network,
        "deposit_cli_version": FORM_VERSION,
    }))
}

/// Hash tree roots of `DepositMessage` and `DepositData`.
fn roots(deposit: &Deposit) -> (Root, Root) {
    let key = merkleize(&Sha2Hasher, &pack(&deposit.public_key.0), None);
    let signature = merkleize(&Sha2Hasher, &pack(&deposit.signature.0), None);
    let amount = padded(&deposit.amount.to_le_bytes());
    let credentials = deposit.withdrawal_credentials.0;
    (container(&[key, credentials, amount]), container(&[key, credentials, amount, signature]))
}

/// `compute_domain` with the genesis version and no genesis validators root.
fn domain(version: Version) -> Root {
    let fork_data = container(&[padded(&version.0), [0; 32]]);
    array(DOMAIN_DEPOSIT.into_iter().chain(fork_data.0.into_iter().take(28)))
}

/// A chunk of SSZ.
fn padded(bytes: &[u8]) -> [u8; 32] {
    array(bytes.iter().copied()).0
}

fn container(fields: &[[u8; 32]]) -> Root {
    Bytes(merkleize(&Sha2Hasher, fields, None))
}
