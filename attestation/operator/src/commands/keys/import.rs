//! `casemate keys import`: keys from the operator's machine into an enclave that its document proves.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_keystore::folder::{self, Found};
use casemate_protocol::command::{Action, Command, HPKE_INFO, ImportedKey};
use casemate_protocol::{Bytes, PublicKey};
use casemate_slashing::interchange::Histories;
use clap::Args;
use zeroize::Zeroizing;

use crate::args::{Connection, PinOptions, Signing};
use crate::exit::{Answer, Lines};
use crate::keystores::{self, Key, Opening};
use crate::session::Session;
use crate::util::plural;
use crate::{histories, input, sending};

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
    /// Go on without files that hold a key, or may, and cannot be used. They are named. Without this option nothing is sent then
    #[arg(long, requires = "keystores")]
    pub skip_unreadable: bool,
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
    options.signing.check()?;
    // Before any password is asked for: there has to be an enclave.
    let mut session = Session::open(options.connection, options.pins)?;
    let root = session.statement.network.genesis_validators_root;
    let known = options.slashing_protection.as_deref().map(|path| histories::read(path, root)).transpose()?;
    let source = HistorySource { known: known.unwrap_or_default(), unknown_accepted: options.accept_unknown_history };
    let opening = match (&options.keystores, &options.raw_keys) {
        (Some(keystores), _) => keystores::open(
            &find(keystores, options.passwords.as_deref())?,
            options.memory_mib.map(|mib| u64::from(mib).saturating_mul(1024 * 1024)),
        ),
        (None, Some(path)) => {
            let keys = raw_keys(&input::read_secret(path)?).with_context(|| format!("in {}", path.display()))?;
            Opening { keys, ..Opening::default() }
        }
        (None, None) => bail!("which keys?"),
    };
    if opening.keys.is_empty() || !(options.skip_unreadable || opening.unreadable.is_empty()) {
        return Err(Lines(opening.refusal()).into());
    }
    let commands = commands(&session, &opening.keys, &source)?;
    let notes = opening.notes() + &without_keystore(&opening.keys, &source.known);
    drop(opening);
    let (text, exit) = sending::give(&mut session, &commands, &options.signing, None)?;
    Ok((text + &notes, exit))
}

/// Of a history without a key the enclave learns nothing: whoever exported it had the key.
fn without_keystore(keys: &[Key], known: &Histories) -> String {
    let imported: BTreeSet<&PublicKey> = keys.iter().map(|(_, key)| key).collect();
    let left: Vec<&PublicKey> = known.keys().filter(|key| !imported.contains(key)).collect();
    let Some(first) = left.first() else { return String::new() };
    format!(
        "{} of {} in the slashing protection file came without a keystore, {first} among them: neither key nor history was imported. Is a keystore \
         missing? casemate history import brings histories alone\n",
        plural(left.len(), "key"),
        known.len()
    )
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

fn find(keystores: &Path, passwords: Option<&Path>) -> Result<Found> {
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
    use casemate_protocol::watermarks::Watermarks;

    use super::*;

    #[test]
    fn keys_of_the_history_without_a_keystore_are_counted() {
        let key = |number: u8| Bytes([number; 48]);
        let known: Histories = (1..=3).map(|number| (key(number), Watermarks::NONE)).collect();
        let keys = [(Zeroizing::new([1; 32]), key(1)), (Zeroizing::new([9; 32]), key(9))];
        let told = without_keystore(&keys, &known);
        assert!(
            told.starts_with(&format!(
                "2 keys of 3 in the slashing protection file came without a keystore, {}",
                key(2)
            )),
            "{told}"
        );
        assert_eq!(without_keystore(&keys, &Histories::new()), "");
    }

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
