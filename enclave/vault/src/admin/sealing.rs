//! The sealed state: loaded, changed, sealed, and enforced before a change is in force.

use std::sync::Arc;

use casemate_protocol::refusal::Waiting;
use casemate_protocol::{PublicKey, Refusal, Root};
use casemate_slashing::{SlashingHistory, group};

use super::{CommandContext, CommandProcessor, CommandState, Loaded, MAX_GROUP_KEYS, MAX_KNOWN_KEYS, Sealed};
use crate::Keys;
use crate::keys::custody::{CustodyError, ServiceError, Unsealed};
use crate::keys::keyring::Key;
use crate::keys::seal::Contents;
use crate::signing::bls::SecretKey;

impl CommandProcessor {
    /// Loads the newest state that the parent offers, where it is newer than the one in force. Only one that does not sign does that.
    pub(crate) fn reload(&self, context: &CommandContext<'_>, oldest: u64) -> Option<Loaded> {
        let mut command_state = self.command_state().ok()?;
        self.reload_in(context, &mut command_state, oldest)
    }

    pub(super) fn reload_in(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        oldest: u64,
    ) -> Option<Loaded> {
        if self.custody.newest().ok()? <= self.loaded().state_version {
            return None;
        }
        let Unsealed { state_version, digest, contents } = self.custody.unseal(oldest).ok()??;
        let fence_version = contents.fence_version;
        let at_hand = self.loaded();
        // Those that the store has taken here, and that no state has yet, are newer than any state's.
        let unsealed = at_hand.store.filter(|_| at_hand.store_unsealed);
        let store_unsealed = unsealed.is_some();
        let store = unsealed.or_else(|| contents.store.clone());
        // Nobody signs while histories go from the old keys to the new ones: what was signed in between would be forgotten.
        let _closed = context.fence_gate.closed()?;
        let before = context.keys();
        // What this enclave has signed itself, in an earlier term, is not forgotten: neither of keys that the newer state lists,
        // nor of those that it does not.
        let past = |key: &PublicKey, history: SlashingHistory| {
            group::reloaded(before.past(key).map(Key::history), Some(history)).unwrap_or(history)
        };
        let keys = Keys::unsealed(contents, |_, key, history| past(key, history)).ok()?;
        let keys = keys.remembering(&before, MAX_KNOWN_KEYS, context.journal).ok()?;
        // A journal must know each key, and may know more of it.
        let signing: Vec<_> = keys.histories().collect();
        let starts = context.journal.reserve(&signing).ok()?;
        for ((public_key, _), start) in signing.iter().zip(starts) {
            if let Some(key) = keys.past(public_key) {
                let mut history = key.lock();
                *history = history.with(start);
            }
        }
        context.publish(&Arc::new(keys));
        command_state.tried = command_state.tried.max(state_version);
        let loaded = Loaded { state_version, loaded_state_digest: Some(digest), store, store_unsealed, fence_version };
        self.is_loaded(|now| *now = loaded.clone());
        Some(loaded)
    }

    /// Seals what is in force.
    pub(super) fn seal_now(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
    ) -> Result<(u64, u64), Refusal> {
        let (term, _) = context.fence_gate.held()?;
        let next = next_state(command_state, term)?;
        self.seal_in_force(context, command_state, &context.keys(), next)?;
        Ok((next, term))
    }

    pub(super) fn seal_exact(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        term: u64,
    ) -> Result<Root, Refusal> {
        let next = next_state(command_state, term)?;
        let sealed = self.seal_as(context, command_state, &context.keys(), next);
        let sealed = sealed.map_err(|error| Refusal::NotSealed(waiting_for(&error)))?;
        Ok(self.set_in_force(&sealed))
    }

    /// Adds keys: room in the journal first, then sealed, and only then in force.
    pub(super) fn add(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        mut added: Vec<(PublicKey, SecretKey, SlashingHistory)>,
    ) -> Result<(), Refusal> {
        let before = context.keys();
        check_room(before.len(), before.known(), added.len())?;
        // What the vault remembers of a deleted key, what any key may have signed that it does not remember, and what the journal
        // remembers.
        let (_, floors) = context.fence_gate.held()?;
        for (public_key, _, history) in &mut added {
            let brought = history.with(floors.watermarks()).watermarks()?;
            *history = SlashingHistory::Known(before.entering(public_key, brought));
        }
        let brought = added.iter().map(|(public_key, _, history)| Ok((*public_key, history.watermarks()?)));
        let brought = brought.collect::<Result<Vec<_>, Refusal>>()?;
        let starts = context.journal.reserve(&brought).map_err(|_| Refusal::NotSaved)?;
        for ((_, _, history), start) in added.iter_mut().zip(starts) {
            *history = history.with(start);
        }
        let changed = Arc::new(before.with(added).map_err(|_| Refusal::MalformedCommand)?);
        self.put_in_force(context, command_state, &changed, &before)
    }

    /// Seals a change, has every state without it refused, and only then puts it in force: a key that signs is in every state that may be
    /// loaded. Where the fence does not confirm that, the change is not in force here; it may come with the sealed state, at the next
    /// start or in a successor.
    pub(super) fn put_in_force(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        changed: &Arc<Keys>,
        before: &Keys,
    ) -> Result<(), Refusal> {
        let (sealed, term) = self.seal(context, command_state, changed, before)?;
        context.enforce(sealed.state_version, term)?;
        self.set_in_force(&sealed);
        context.publish(changed);
        Ok(())
    }

    pub(super) fn seal_in_force(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        keys: &Keys,
        next: u64,
    ) -> Result<(), Refusal> {
        let sealed = self.seal_as(context, command_state, keys, next).map_err(|error| match error {
            CustodyError::NotStored(error) => Refusal::MaybeSealed(waiting_for(&CustodyError::Service(error))),
            error => Refusal::NotSealed(waiting_for(&error)),
        })?;
        self.set_in_force(&sealed);
        Ok(())
    }

    /// Seals a state; in which term. Where it cannot be known whether the parent has kept it, the state before is sealed over it.
    pub(super) fn seal(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        keys: &Keys,
        before: &Keys,
    ) -> Result<(Sealed, u64), Refusal> {
        let (term, _) = context.fence_gate.held()?;
        let next = next_state(command_state, term)?;
        match self.seal_as(context, command_state, keys, next) {
            Err(CustodyError::NotStored(error)) => {
                let waiting = waiting_for(&CustodyError::Service(error));
                let over = next.saturating_add(1);
                let Ok(sealed) = self.seal_as(context, command_state, before, over) else {
                    return Err(Refusal::MaybeSealed(waiting));
                };
                self.set_in_force(&sealed);
                // Nothing has changed only once the one that the parent may have kept is refused too.
                match context.enforce(over, term) {
                    Ok(()) => Err(Refusal::NotSealed(waiting)),
                    Err(_) => Err(Refusal::MaybeSealed(waiting)),
                }
            }
            // Of another enclave of this group: its keys and their past would be lost.
            Err(CustodyError::NotNewer { kept, .. }) => {
                Err(Refusal::OtherState { kept, ours: self.loaded().state_version })
            }
            Err(error) => Err(Refusal::NotSealed(waiting_for(&error))),
            Ok(sealed) => Ok((sealed, term)),
        }
    }

    pub(super) fn seal_as(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        keys: &Keys,
        state_version: u64,
    ) -> Result<Sealed, CustodyError> {
        let at_hand = self.loaded();
        // It never falls: also where the store shows no record any more, the state has seen one.
        let fence_version = at_hand.fence_version.max(context.fence_gate.version());
        let store = at_hand.store;
        let contents = Contents { store, fence_version, ..keys.contents() };
        let sealed = self.custody.seal(&contents, state_version);
        if matches!(sealed, Ok(_) | Err(CustodyError::NotStored(_))) {
            command_state.tried = state_version;
        }
        sealed.map(|digest| Sealed { state_version, digest, fence_version })
    }

    /// What was sealed is in force: it is what this enclave has loaded from now on, and what its statement names.
    pub(super) fn set_in_force(&self, sealed: &Sealed) -> Root {
        let Sealed { state_version, digest, fence_version } = *sealed;
        self.is_loaded(|loaded| {
            loaded.state_version = state_version;
            loaded.loaded_state_digest = Some(digest);
            loaded.fence_version = fence_version;
        });
        digest
    }

    /// Has every state refused that was sealed before this term, or that this enclave has sealed and could not confirm: one of
    /// them may list a key that this enclave does not know. Only then can be told what such a key has signed at most.
    pub(crate) fn settle_states(&self, context: &CommandContext<'_>, term: u64) -> Result<(), Refusal> {
        let mut command_state = self.command_state()?;
        let in_force = self.loaded().state_version;
        let first = group::next_state(0, term).ok_or(Refusal::MalformedCommand)?;
        if in_force >= first && in_force >= command_state.tried {
            return context.enforce(in_force, term);
        }
        let (sealed, term) = self.seal_now(context, &mut command_state)?;
        context.enforce(sealed, term)
    }
}

/// Whether so many keys more have room, beside those that are held, and those that are known: deleted ones are remembered, and sealed with
/// the others.
pub(super) fn check_room(held: usize, known: usize, more: usize) -> Result<(), Refusal> {
    let fits = |there: usize, max: usize| {
        if there.saturating_add(more) <= max {
            return Ok(());
        }
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Err(Refusal::TooManyKeys { held: number(there), more: number(more), max: number(max) })
    };
    fits(known, MAX_KNOWN_KEYS)?;
    fits(held, MAX_GROUP_KEYS)
}

pub(super) fn next_state(command_state: &CommandState, term: u64) -> Result<u64, Refusal> {
    group::next_state(command_state.tried, term).ok_or(Refusal::MalformedCommand)
}

/// What an operator should look at.
pub fn waiting_for(error: &CustodyError) -> Waiting {
    match error {
        CustodyError::Service(ServiceError::Away) => Waiting::Away,
        CustodyError::Service(ServiceError::Credentials) => Waiting::Credentials,
        CustodyError::Service(ServiceError::Denied) => Waiting::Denied,
        _ => Waiting::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_keys_as_are_allowed_have_room_and_not_one_more() {
        let full = |held, more, max| Err(Refusal::TooManyKeys { held, more, max });
        assert_eq!(check_room(0, 0, MAX_GROUP_KEYS), Ok(()));
        assert_eq!(check_room(99_999, 199_999, 1), Ok(()));
        assert_eq!(check_room(99_999, 99_999, 2), full(99_999, 2, 100_000));
        assert_eq!(check_room(100_000, 100_000, 1), full(100_000, 1, 100_000));
        // Of deleted ones too there are only so many.
        assert_eq!(check_room(5, 199_999, 2), full(199_999, 2, 200_000));
        assert_eq!(check_room(100_000, 200_000, 1), full(200_000, 1, 200_000));
        assert_eq!(check_room(0, 0, usize::MAX), full(0, u64::MAX, 200_000));
    }
}
