//! `casemate keys import`: keys from the operator's machine into an enclave that its document proves.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_keystore::Secret;
use casemate_keystore::folder::{self, Entry};
use casemate_protocol::command::{Action, Command, HPKE_INFO, ImportedKey};
use casemate_protocol::{Bytes, PublicKey};
use casemate_slashing::interchange::Histories;
use clap::Args;
use zeroize::Zeroizing;

use crate::args::{Connection, PinOptions, Signing};
use crate::exit::Answer;
use crate::session::Session;
use crate::{histories, input, progress, sending};

/// A key to import.
pub type Key = (Secret, PublicKey);

/// Where it is known from what the keys have signed so far.
pub struct HistorySource {
    /// From an EIP-3076 file.
    pub known: Histories,
    /// The operator accepts that nothing is known of the others.
    pub unknown_accepted: bool,
}

#[derive(Args, Debug)]
pub struct Import {
    #[command(flatten)]
    pub connection: Connection,
    /// Folder with EIP-2335 keystores (Lighthouse's, Teku's, Prysm's and Nimbus's layouts), or one keystore
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "raw_keys")]
    pub keystores: Option<PathBuf>,
    /// Folder with the keystores' passwords, or one file with the password of all [default: asked for]
    #[arg(long, value_name = "DIR|FILE", requires = "keystores")]
    pub passwords: Option<PathBuf>,
    /// Memory for decrypting keystores, in MiB, for all of them together: one with scrypt takes 256 [default: enough for every core]
    #[arg(long, value_name = "MIB", requires = "keystores", value_parser = clap::value_parser!(u32).range(1..))]
    pub memory_mib: Option<u32>,
    /// File with secret keys, one in hex a line, or - for standard input
    #[arg(long, value_name = "FILE|-")]
    pub raw_keys: Option<PathBuf>,
    /// What the keys have signed so far: an EIP-3076 file
    #[arg(long, value_name = "FILE")]
    pub slashing_protection: Option<PathBuf>,
    /// Take keys without knowing what they have signed so far. They start above everything that could have been signed before the
    /// import, so they stay silent for two to three epochs. If another signer still has them, this gets validators slashed
    #[arg(long, alias = "no-history-i-accept")]
    pub accept_unknown_history: bool,
    #[command(flatten)]
    pub signing: Signing,
    #[command(flatten)]
    pub pins: PinOptions,
}

/// Imports keys.
pub fn run(options: Import) -> Result<Answer> {
    if options.keystores.is_none() && options.raw_keys.is_none() {
        bail!("which keys? --keystores DIR (EIP-2335), or --raw-keys FILE");
    }
    if options.slashing_protection.is_none() && !options.accept_unknown_history {
        bail!(
            "what have these keys signed so far? --slashing-protection FILE (EIP-3076, as every client exports it); \
             --accept-unknown-history where no one knows, at the risk of being slashed"
        );
    }
    // Before any password is asked for: there has to be an enclave.
    let mut session = Session::open(options.connection, options.pins)?;
    let root = session.statement.network.genesis_validators_root;
    let known = options.slashing_protection.as_deref().map(|path| histories::read(path, root)).transpose()?;
    let source = HistorySource { known: known.unwrap_or_default(), unknown_accepted: options.accept_unknown_history };
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
    let commands = commands(&session, &keys, &source)?;
    drop(keys);
    sending::give(&mut session, &commands, &options.signing, None)
}

/// The commands that import keys, encrypted to the enclave.
pub fn commands(session: &Session, keys: &[Key], source: &HistorySource) -> Result<Vec<Command>> {
    let unknown: Vec<&PublicKey> = keys
        .iter()
        .map(|(_, key)| key)
        .filter(|key| !source.unknown_accepted && !source.known.contains_key(key))
        .collect();
    if let Some(first) = unknown.first() {
        bail!(
            "{} of {} keys are not in the slashing protection file, {first} among them; --accept-unknown-history lets them \
             sign all the same",
            unknown.len(),
            keys.len()
        );
    }
    session.commands(keys, |keys| action(session, keys, source))
}

fn action(session: &Session, keys: &[Key], source: &HistorySource) -> Result<Action> {
    let mut clear = Zeroizing::new(Vec::with_capacity(keys.len().saturating_mul(32)));
    for (secret, _) in keys {
        clear.extend_from_slice(secret.as_slice());
    }
    let secrets = session.encrypt(HPKE_INFO, &clear)?;
    let keys = keys
        .iter()
        .map(|(_, public_key)| ImportedKey { public_key: *public_key, history: source.known.get(public_key).copied() });
    Ok(Action::Import { keys: keys.collect(), secrets })
}

fn find(keystores: &Path, passwords: Option<&Path>) -> Result<Vec<Entry>> {
    let Some(passwords) = passwords else {
        if !std::io::stdin().is_terminal() {
            bail!("there is no terminal to ask for a password on: give --passwords DIR or FILE");
        }
        let password =
            rpassword::prompt_password("Password of all these keystores: ").context("asking for the password")?;
        return Ok(folder::find_with_password(keystores, &Zeroizing::new(password))?);
    };
    Ok(folder::find(keystores, passwords)?)
}

/// Decrypts on every core, within so many bytes. If one fails, so does the import, before anything was sent.
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
