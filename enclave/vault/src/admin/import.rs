//! Keys that are brought in: by operators' commands, or by the key manager API.

use casemate_protocol::command::{ImportedKey, KeyOutcome, Outcome, SECRET_LEN};
use casemate_protocol::frame::KeystoreToImport;
use casemate_protocol::{PublicKey, Refusal};
use casemate_slashing::{SlashingHistory, Watermarks};
use zeroize::{Zeroize, Zeroizing};

use super::history::{is_possible, raise};
use super::{CommandContext, CommandProcessor, CommandState};
use crate::keys::keystore;
use crate::platform::margins::{self, latest_signed};
use crate::signing::bls::SecretKey;

impl CommandProcessor {
    pub(super) fn import(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        keys: &[ImportedKey],
        opened: &[u8],
    ) -> Result<Outcome, Refusal> {
        let secrets: Vec<&[u8; SECRET_LEN]> =
            opened.chunks_exact(SECRET_LEN).filter_map(|s| s.try_into().ok()).collect();
        if secrets.len() != keys.len() {
            return Err(Refusal::SecretsNotOpened);
        }
        if secrets.is_empty() {
            return Ok(Outcome::Imported { keys: Vec::new() });
        }
        let derived = derive(&secrets);
        let held = context.keys();
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut added: Vec<(PublicKey, SecretKey, SlashingHistory)> = Vec::new();
        for (key, derived) in keys.iter().zip(derived) {
            let past = key.history;
            let Some((secret, _)) = derived.filter(|(_, public_key)| *public_key == key.public_key) else {
                outcomes.push(KeyOutcome::WrongSecret);
                continue;
            };
            if past.is_some_and(|past| !is_possible(past, context)) {
                outcomes.push(KeyOutcome::ImpossibleHistory);
                continue;
            }
            let again = added.iter_mut().find(|(public_key, ..)| *public_key == key.public_key);
            match (again, held.find(&key.public_key)) {
                (Some((_, _, known)), _) => {
                    *known = past.map_or(*known, |past| known.with(past));
                    outcomes.push(KeyOutcome::Duplicate);
                }
                (None, Some((known, _))) => {
                    if let Some(past) = past {
                        raise(context, &key.public_key, known, past)?;
                    }
                    outcomes.push(KeyOutcome::Duplicate);
                }
                (None, None) => {
                    // Where nobody knows the past, it ends now: what may have been signed until here lies at or below that.
                    added.push((
                        key.public_key,
                        secret,
                        SlashingHistory::Known(past.unwrap_or_else(|| until_now(context))),
                    ));
                    outcomes.push(KeyOutcome::Imported);
                }
            }
        }
        self.add(context, command_state, added)?;
        Ok(Outcome::Imported { keys: outcomes })
    }

    /// What the key manager API brings, where the measured policy allows it: the parent has seen these keys.
    pub(crate) fn import_keystores(
        &self,
        context: &CommandContext<'_>,
        keystores: &[KeystoreToImport],
    ) -> Result<Outcome, Refusal> {
        context.fence_gate.held()?;
        let held = context.keys();
        let mut outcomes = vec![KeyOutcome::Unreadable; keystores.len()];
        let (mut keys, mut places) = (Vec::new(), Vec::new());
        let mut secrets = Zeroizing::new(Vec::with_capacity(keystores.len().saturating_mul(SECRET_LEN)));
        for (place, (one, outcome)) in keystores.iter().zip(&mut outcomes).enumerate() {
            let known = held.past(&one.key.public_key).is_some_and(|key| key.history() != SlashingHistory::Missing);
            if one.key.history.is_none() && !known {
                *outcome = KeyOutcome::NoHistory;
                continue;
            }
            match keystore::decrypted(one) {
                Ok(secret) => {
                    secrets.extend_from_slice(secret.as_slice());
                    keys.push(one.key);
                    places.push(place);
                }
                Err(why) => *outcome = why,
            }
        }
        // Decrypting takes its time: commands are held up only by what follows.
        let mut command_state = self.command_state()?;
        if let Outcome::Imported { keys: imported } = self.import(context, &mut command_state, &keys, &secrets)? {
            for (place, imported) in places.into_iter().zip(imported) {
                if let Some(outcome) = outcomes.get_mut(place) {
                    *outcome = imported;
                }
            }
        }
        let (named, outcome) =
            (keystores.iter().map(|one| one.key.public_key).collect::<Vec<_>>(), Outcome::Imported { keys: outcomes });
        self.note_origins(&named, &outcome);
        Ok(outcome)
    }
}

/// Of a key of which nobody knows what it has signed: the most that it can have.
pub(super) fn until_now(context: &CommandContext<'_>) -> Watermarks {
    margins::floors(latest_signed(context.network, context.now)).watermarks()
}

/// Keys with their public keys, on as many threads as there are cores.
pub(super) fn derive(secrets: &[&[u8; SECRET_LEN]]) -> Vec<Option<(SecretKey, PublicKey)>> {
    let one = |secret: &&[u8; SECRET_LEN]| {
        let mut bytes = **secret;
        // It clears the copy.
        let key = SecretKey::from_be_bytes(&mut bytes).ok();
        bytes.zeroize();
        key.map(|key| {
            let public_key = key.public_key();
            (key, public_key)
        })
    };
    let threads = crate::platform::cpus::cores().get();
    let share = secrets.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let shares: Vec<_> = secrets
            .chunks(share)
            .map(|secrets| (secrets.len(), scope.spawn(move || secrets.iter().map(one).collect::<Vec<_>>())))
            .collect();
        let none = |len| std::iter::repeat_with(|| None).take(len).collect();
        shares.into_iter().flat_map(|(len, share)| share.join().unwrap_or_else(|_| none(len))).collect()
    })
}
