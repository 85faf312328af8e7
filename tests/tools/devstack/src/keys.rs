//! The stack's keys: interop keys, or keystores, with a progress bar while they load.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::time::Duration;

use anyhow::{Context, Result};
use casemate_keystore::Secret;
use casemate_keystore::folder::{self, Entry};
use casemate_protocol::{Network, PublicKey};
use casemate_slashing::Watermarks;
use casemate_slashing::interchange::{self, Histories};
use casemate_vault::signing::bls::SecretKey;
use indicatif::{ProgressBar, ProgressStyle};

use crate::boot::{BootHistory, BootKey, SecretHex};
use crate::cli::Options;
use crate::interop;

/// Keys to bring into the enclave.
pub struct ToImport {
    pub keys: Vec<(Secret, PublicKey)>,
    /// What is known of their past.
    pub known: Histories,
    /// Whether the others' is waived.
    pub waived: bool,
    /// Keys that stay out: nobody knows what they have signed.
    pub without_history: usize,
}

/// The keys to hand to the vault in clear, each with what is known of its past.
pub fn plain(options: &Options, network: &Network) -> Result<Vec<BootKey>> {
    let ToImport { keys, known, waived, .. } = load(options, network, &HashSet::new(), false)?;
    let waived = waived.then_some(Watermarks::NONE);
    let boot = |(secret, key): (Secret, PublicKey)| {
        let history: Option<Watermarks> = known.get(&key).copied().or(waived);
        BootKey { secret: SecretHex(const_hex::encode(*secret)), history: history.map(BootHistory::from) }
    };
    Ok(keys.into_iter().map(boot).collect())
}

/// The keys that are not sealed yet; those too whose past is told anew.
pub fn to_import(options: &Options, network: &Network, sealed: &[PublicKey]) -> Result<ToImport> {
    load(options, network, &sealed.iter().copied().collect(), true)
}

fn load(
    options: &Options,
    network: &Network,
    sealed: &HashSet<PublicKey>,
    without_history_out: bool,
) -> Result<ToImport> {
    let known = imported(options, network)?;
    if let (Some(keystores), Some(passwords)) = (&options.keystores, &options.passwords) {
        let mut entries = folder::find(keystores, passwords)?.complete()?;
        let is_new = |entry: &Entry| {
            // A wallet of many keys does not say whose they are.
            entry.keystore.public_key().is_none_or(|key| !sealed.contains(&key) || known.contains_key(&key))
        };
        entries.retain(is_new);
        let mut keys = decrypt(&entries)?;
        let waived = options.no_history_i_accept;
        let before = keys.len();
        if without_history_out {
            keys.retain(|(_, key)| waived || known.contains_key(key));
        }
        let without_history = before.saturating_sub(keys.len());
        return Ok(ToImport { keys, known, waived, without_history });
    }
    // Nobody has the interop keys in earnest: they have signed nothing.
    let bar = bar(u64::from(options.interop_keys), "making interop keys");
    let keys = (0..options.interop_keys).filter_map(|number| {
        bar.inc(1);
        let secret = interop::secret_key(number);
        let public_key = SecretKey::from_be_bytes(&mut secret.clone()).ok()?.public_key();
        (!sealed.contains(&public_key)).then_some((secret, public_key))
    });
    let keys: Vec<(Secret, PublicKey)> = keys.collect();
    bar.finish_and_clear();
    let mut known = known;
    for (_, key) in &keys {
        known.entry(*key).or_insert(Watermarks::NONE);
    }
    Ok(ToImport { keys, known, waived: true, without_history: 0 })
}

fn imported(options: &Options, network: &Network) -> Result<Histories> {
    let Some(path) = &options.slashing_protection else { return Ok(Histories::new()) };
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let histories = interchange::read(BufReader::new(file), network.genesis_validators_root())
        .with_context(|| format!("in {}", path.display()))?;
    eprintln!("{}: the slashing history of {} keys", path.display(), histories.len());
    Ok(histories)
}

fn decrypt(entries: &[Entry]) -> Result<Vec<(Secret, PublicKey)>> {
    let bar = bar(u64::try_from(entries.len()).unwrap_or(u64::MAX), "decrypting keystores");
    let decrypted = folder::decrypt_all(entries, None, || bar.inc(1));
    bar.finish_and_clear();
    let mut keys = Vec::with_capacity(entries.len());
    for (entry, decrypted) in entries.iter().zip(decrypted) {
        keys.extend(decrypted.with_context(|| entry.path.display().to_string())?.keys);
    }
    Ok(keys)
}

/// A progress bar; where nobody watches, one line instead.
pub fn bar(len: u64, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("{what}: {len}");
    }
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {human_pos}/{human_len} {eta}");
    let bar = ProgressBar::new(len).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
