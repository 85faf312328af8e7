//! `casemate slashing`: what keys have signed, out of an enclave and into it (EIP-3076).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::PublicKey;
use casemate_protocol::command::{Action, KeyHistory};
use casemate_protocol::history::Past;
use casemate_protocol::past::{HistoryEntry, HistoryPage};
use casemate_protocol::statement::FenceKind;
use casemate_slashing::interchange::{self, Histories};

use crate::cli::{SlashingCommand, SlashingExport, SlashingImport};
use crate::commands::keys::import;
use crate::sending::{self, Answer, plural, portions};
use crate::session::{Refused, Session, fresh_nonce};
use crate::{Exit, progress, public_keys};

pub fn run(command: SlashingCommand) -> Result<Answer> {
    match command {
        SlashingCommand::Export(options) => export(*options),
        SlashingCommand::Import(options) => bring(*options),
    }
}

fn export(options: SlashingExport) -> Result<Answer> {
    if options.out.exists() {
        bail!("{} exists already and is not overwritten", options.out.display());
    }
    let wanted: Option<BTreeSet<PublicKey>> = options
        .public_keys
        .as_deref()
        .map(|path| public_keys(path).map(|keys| keys.into_iter().collect()))
        .transpose()?;
    let session = Session::open(options.connection, options.pins)?;
    let (all, floor) = pasts(&session)?;
    let known: BTreeSet<PublicKey> = all.iter().map(|told| told.public_key).collect();
    let unknown: Vec<PublicKey> = wanted.iter().flatten().filter(|key| !known.contains(key)).copied().collect();
    let chosen = |told: &&HistoryEntry| wanted.as_ref().is_none_or(|wanted| wanted.contains(&told.public_key));
    let (mut histories, mut held, mut without) = (Histories::new(), 0_usize, 0_usize);
    for told in all.iter().filter(chosen) {
        match told.highest {
            Some(past) => {
                histories.insert(told.public_key, past.into());
                held = held.saturating_add(usize::from(told.held));
            }
            None => without = without.saturating_add(1),
        }
    }
    // An import that was rolled back, or never confirmed, may have had them sign here all the same.
    histories.extend(unknown.iter().map(|key| (*key, floor.into())));
    write(&options.out, &histories, &session)?;
    let mut text = format!(
        "{} written to {}, each page signed by the enclave's own key: of each key the highest block and attestation\n",
        plural(histories.len(), "history").replace("historys", "histories"),
        options.out.display()
    );
    if held > 0 {
        let _ = writeln!(
            text,
            "{} of them sign on here. Before they sign anywhere else: casemate delete, and export again",
            plural(held, "key")
        );
    }
    if !unknown.is_empty() {
        let _ = writeln!(
            text,
            "{} not known to the enclave: what is written of them is the group's floor, the most that any key can have signed here \
             before it was known. Before they sign anywhere else, no import of them may be on its way yet: an enclave that was given one \
             must have ended, or have carried out a later command",
            plural(unknown.len(), "key")
        );
    }
    if without > 0 {
        let _ = writeln!(text, "{} without any history left out", plural(without, "key"));
    }
    text.push_str(without_store(&session));
    Ok((text, Exit::Accepted))
}

/// What is to be known before keys of an enclave without a fence's store sign anywhere else.
pub fn without_store(session: &Session) -> &'static str {
    match session.statement.fence.kind {
        FenceKind::Solo => {
            "note: this enclave has no fence's store (solo): started with an older blob it has deleted keys again, and signs with them.\n\
             Before they sign anywhere else, end every enclave of this group and destroy its blobs and their copies, or take its image out of the KMS key's policy.\n"
        }
        FenceKind::None | FenceKind::File | FenceKind::Etcd | FenceKind::Dynamodb => "",
    }
}

/// Whole or not at all.
fn write(path: &Path, histories: &Histories, session: &Session) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    let mut file = BufWriter::new(fs::File::create(new).with_context(context)?);
    interchange::write(histories, session.statement.network.genesis_validators_root, &mut file)
        .with_context(context)?;
    file.write_all(b"\n").with_context(context)?;
    file.into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .with_context(context)?;
    fs::rename(new, path).with_context(context)
}

/// What the enclave says of all keys that it holds or has held, and of every other; each page under its signature and a nonce of ours.
fn pasts(session: &Session) -> Result<(Vec<HistoryEntry>, Past)> {
    let nonce = fresh_nonce()?;
    let key = UnparsedPublicKey::new(&ED25519, session.statement.record_key.0);
    let bar = progress::bar(0, "the enclave tells what its keys have signed");
    let mut all: Vec<HistoryEntry> = Vec::new();
    loop {
        let start = u32::try_from(all.len()).context("too many keys")?;
        let (told, signature) = session.pasts(&nonce, start)?;
        let page = HistoryPage::decode(&told).context("a page of pasts is malformed")?;
        if key.verify(&page.signed_bytes(&session.statement.boot_nonce, &nonce), &signature.0).is_err() {
            return Err(
                Refused("a page of pasts is not signed by the enclave's key for this request".to_owned()).into()
            );
        }
        if page.start != start {
            return Err(Refused(format!("the page from key {} came for that from key {start}", page.start)).into());
        }
        bar.set_length(u64::from(page.total));
        bar.inc(u64::try_from(page.keys.len()).unwrap_or(0));
        if page.time_ms.is_none() {
            return Err(Refused("the enclave does not trust its clock: what it tells may be old".to_owned()).into());
        }
        let (empty, total) = (page.keys.is_empty(), usize::try_from(page.total).unwrap_or(usize::MAX));
        all.extend(page.keys);
        if all.len() >= total {
            bar.finish_and_clear();
            return Ok((all, page.floor));
        }
        if empty {
            return Err(Refused(format!("the enclave told {} of {total} keys", all.len())).into());
        }
    }
}

fn bring(options: SlashingImport) -> Result<Answer> {
    let mut session = Session::open(options.connection, options.pins)?;
    // All of the file is read, and must be right, before anything is sent.
    let histories = import::histories(&options.file, session.statement.network.genesis_validators_root)?;
    if histories.is_empty() {
        bail!("there is no key in {}", options.file.display());
    }
    let keys: Vec<KeyHistory> = histories
        .into_iter()
        .map(|(public_key, watermarks)| KeyHistory { public_key, past: Past::from(watermarks) })
        .collect();
    let commands = portions(&keys)
        .map(|(number, keys)| session.command(number, Action::RaisePasts { keys: keys.to_vec() }))
        .collect::<Result<Vec<_>>>()?;
    sending::give(&mut session, &commands, &options.signing, None)
}
