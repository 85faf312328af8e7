//! `casemate import`: keys from the operator's machine into an enclave that its document proves.

use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_keystore::Secret;
use casemate_keystore::folder::{self, Entry};
use casemate_protocol::command::{Action, Command, EncryptedSecrets, HPKE_INFO, ImportedKey};
use casemate_protocol::history::Past;
use casemate_protocol::{BoundedBytes, Bytes, PublicKey, Root};
use casemate_slashing::interchange::{self, Histories};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};
use zeroize::Zeroizing;

use crate::cli::Import;
use crate::sending::{self, Answer, portions};
use crate::session::Session;
use crate::{input, progress};

/// A key to import.
pub type Key = (Secret, PublicKey);

/// Whose past is known, and whose is not asked for.
pub struct HistorySource {
    /// From an EIP-3076 file.
    pub known: Histories,
    /// The others' is waived.
    pub waived: bool,
}

/// `casemate import`.
pub fn run(options: Import) -> Result<Answer> {
    if options.keystores.is_none() && options.raw_keys.is_none() {
        bail!("which keys? --keystores DIR (EIP-2335), or --raw-keys FILE");
    }
    if options.slashing_protection.is_none() && !options.no_history_i_accept {
        bail!(
            "what have these keys signed so far? --slashing-protection FILE (EIP-3076, as every client exports it); \
             --no-history-i-accept where nobody knows, at the risk of being slashed"
        );
    }
    // Before any password is asked for: there has to be an enclave.
    let mut session = Session::open(options.connection, options.pins)?;
    let root = session.statement.network.genesis_validators_root;
    let known = options.slashing_protection.as_deref().map(|path| histories(path, root)).transpose()?;
    let pasts = HistorySource { known: known.unwrap_or_default(), waived: options.no_history_i_accept };
    let keys = match (&options.keystores, &options.raw_keys) {
        (Some(keystores), _) => decrypt(
            &find(keystores, options.passwords.as_deref())?,
            options.memory_mib.map(|mib| u64::from(mib).saturating_mul(1024 * 1024)),
        )?,
        (None, Some(path)) => {
            raw_keys(&Zeroizing::new(input::read(path)?)).with_context(|| format!("in {}", path.display()))?
        }
        (None, None) => bail!("which keys?"),
    };
    let commands = commands(&session, &keys, &pasts)?;
    drop(keys);
    sending::give(&mut session, &commands, &options.signing, None)
}

/// The commands that import keys, encrypted to the enclave.
pub fn commands(session: &Session, keys: &[Key], pasts: &HistorySource) -> Result<Vec<Command>> {
    let unknown: Vec<&PublicKey> =
        keys.iter().map(|(_, key)| key).filter(|key| !pasts.waived && !pasts.known.contains_key(key)).collect();
    if let Some(first) = unknown.first() {
        bail!(
            "{} of {} keys are not in the slashing protection file, {first} among them; --no-history-i-accept lets them \
             sign all the same",
            unknown.len(),
            keys.len()
        );
    }
    portions(keys).map(|(number, keys)| session.command(number, import(session, keys, pasts)?)).collect()
}

fn import(session: &Session, keys: &[Key], pasts: &HistorySource) -> Result<Action> {
    let mut clear = Zeroizing::new(Vec::with_capacity(keys.len().saturating_mul(32)));
    for (secret, _) in keys {
        clear.extend_from_slice(secret.as_slice());
    }
    let secrets = encrypt(session, HPKE_INFO, &clear)?;
    let keys = keys.iter().map(|(_, public_key)| ImportedKey {
        public_key: *public_key,
        history: pasts.known.get(public_key).copied().map(Past::from),
    });
    Ok(Action::Import { keys: keys.collect(), secrets })
}

/// Encrypts to the enclave that a document has proved, and to this boot of it.
pub fn encrypt(session: &Session, info: &[u8], clear: &[u8]) -> Result<EncryptedSecrets> {
    let key = HpkePublicKey(session.hpke_key.to_vec());
    let (enc, ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256
        .seal(info, &session.statement.boot_nonce.0, clear, &key)
        .context("encrypting to the enclave")?;
    let enc = <[u8; 32]>::try_from(enc.0).map_err(|_| anyhow::anyhow!("the encapsulated key is not of X25519"))?;
    let ciphertext = BoundedBytes::new(ciphertext).context("too much for one command")?;
    Ok(EncryptedSecrets { enc: Bytes(enc), ciphertext })
}

/// An EIP-3076 file of the chain with this root.
pub fn histories(path: &Path, genesis_validators_root: Root) -> Result<Histories> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let bar = progress::bar(len, "reading what keys have signed");
    let read = interchange::read(BufReader::new(bar.wrap_read(file)), genesis_validators_root);
    bar.finish_and_clear();
    read.with_context(|| format!("in {}", path.display()))
}

fn find(keystores: &Path, passwords: Option<&Path>) -> Result<Vec<Entry>> {
    let Some(passwords) = passwords else {
        if !std::io::stdin().is_terminal() {
            bail!("there is no terminal to ask for a password on: --passwords DIR or FILE");
        }
        let password =
            rpassword::prompt_password("Password of all these keystores: ").context("asking for the password")?;
        return Ok(folder::find_with_password(keystores, &Zeroizing::new(password))?);
    };
    Ok(folder::find(keystores, passwords)?)
}

/// Decrypts on every core, within so many bytes; one that fails ends it all, before anything was sent.
pub fn decrypt(entries: &[Entry], memory: Option<u64>) -> Result<Vec<Key>> {
    let bar = progress::bar(u64::try_from(entries.len()).unwrap_or(u64::MAX), "decrypting keystores");
    let decrypted = folder::decrypt_all(entries, memory, || bar.inc(1));
    bar.finish_and_clear();
    let mut keys = Vec::new();
    for (entry, decrypted) in entries.iter().zip(decrypted) {
        keys.extend(decrypted.with_context(|| entry.path.display().to_string())?);
    }
    Ok(keys)
}

/// One secret key in hex a line.
fn raw_keys(text: &[u8]) -> Result<Vec<Key>> {
    let text = std::str::from_utf8(text).context("the raw keys are no text")?;
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = number.saturating_add(1);
        // No word of the line itself: it may be a secret key with a typing error.
        let secret = const_hex::decode_to_array::<_, 32>(line.trim())
            .map_err(|_| anyhow::anyhow!("line {number} is not a secret key in 64 hex digits"))?;
        let secret = Zeroizing::new(secret);
        let key = blst::min_pk::SecretKey::from_bytes(secret.as_slice()).map_err(|_| {
            anyhow::anyhow!("line {number} is no BLS secret key: zero, or beyond the order of the group")
        })?;
        let public_key = Bytes(key.sk_to_pk().to_bytes());
        keys.push((secret, public_key));
    }
    if keys.is_empty() {
        bail!("there is no key in it");
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_keys_are_hex_a_line_and_never_shown() {
        let key = "11".repeat(32);
        let keys = raw_keys(format!("0x{key}\n\n  {key}\r\n").as_bytes()).unwrap();
        assert_eq!(keys.len(), 2);
        for (text, told) in [
            (String::new(), "no key in it"),
            (format!("{key}\n{}", "22".repeat(31)), "line 2 is not a secret key"),
            ("00".repeat(32), "line 1 is no BLS secret key"),
            ("ff".repeat(32), "line 1 is no BLS secret key"),
        ] {
            let error = format!("{:#}", raw_keys(text.as_bytes()).map(|_| ()).unwrap_err());
            assert!(error.contains(told), "{error}");
            assert!(!error.contains("2222") && !error.contains("ffff"));
        }
    }
}
