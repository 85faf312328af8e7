//! The stack's keys: interop keys, or keystores, with a progress bar while they load.

use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use casemate_keystore::folder::{self, Entry};
use casemate_protocol::{Network, PublicKey};
use casemate_slashing::Watermarks;
use casemate_slashing::interchange::{self, Histories};
use indicatif::{ProgressBar, ProgressStyle};

use crate::boot::{BootHistory, BootKey, SecretHex};
use crate::cli::Options;
use crate::interop;

/// The keys to hand to the vault, each with what is known of its past.
pub fn load(options: &Options, network: &Network) -> Result<Vec<BootKey>> {
    let imported = imported(options, network)?;
    if let (Some(keystores), Some(passwords)) = (&options.keystores, &options.passwords) {
        let entries = folder::find(keystores, passwords)?;
        let secrets = decrypt(&entries)?;
        let waived = options.no_history_i_accept.then_some(Watermarks::NONE);
        let known = |(secret, key)| {
            let history: Option<Watermarks> = imported.get(&key).copied().or(waived);
            BootKey { secret, history: history.map(BootHistory::from) }
        };
        return Ok(secrets.into_iter().map(known).collect());
    }
    // Nobody has the interop keys in earnest: their history is waived.
    let bar = bar(u64::from(options.interop_keys), "making interop keys");
    let keys = (0..options.interop_keys).map(|number| {
        bar.inc(1);
        let secret = SecretHex(const_hex::encode(*interop::secret_key(number)));
        BootKey { secret, history: Some(BootHistory::default()) }
    });
    let keys = keys.collect();
    bar.finish_and_clear();
    Ok(keys)
}

fn imported(options: &Options, network: &Network) -> Result<Histories> {
    let Some(path) = &options.slashing_protection else { return Ok(Histories::new()) };
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let histories = interchange::read(BufReader::new(file), network.genesis_validators_root())
        .with_context(|| format!("in {}", path.display()))?;
    eprintln!("{}: the slashing history of {} keys", path.display(), histories.len());
    Ok(histories)
}

/// Decrypts on every core: scrypt takes 0.6 s and 256 MiB a key.
fn decrypt(entries: &[Entry]) -> Result<Vec<(SecretHex, PublicKey)>> {
    let bar = bar(u64::try_from(entries.len()).unwrap_or(u64::MAX), "decrypting keystores");
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(entries.len())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(entries.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(entry) = entries.get(number) else { return };
                    let decrypted = entry
                        .keystore
                        .decrypt(&entry.password)
                        .with_context(|| entry.path.display().to_string())
                        .map(|(secret, key)| (SecretHex(const_hex::encode(*secret)), key));
                    bar.inc(1);
                    if let Ok(mut results) = results.lock() {
                        results.push((number, decrypted));
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, decrypted)| decrypted).collect()
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
