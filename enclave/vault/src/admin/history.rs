//! What keys have signed elsewhere: it only raises what is known.

use std::sync::Arc;

use casemate_protocol::command::{KeyHistory, KeyOutcome, Outcome};
use casemate_protocol::{PublicKey, Refusal};
use casemate_slashing::Watermarks;

use super::{CommandContext, CommandProcessor, CommandState};
use crate::keys::keyring::Key;

impl CommandProcessor {
    /// Adds to what keys have signed, of deleted ones too. Nothing where one of them cannot be true.
    pub(super) fn raise_history(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        keys: &[KeyHistory],
    ) -> Result<Outcome, Refusal> {
        context.fence_gate.held()?;
        if let Some(wrong) = keys.iter().find(|key| !is_possible(key.past, context)) {
            return Err(Refusal::ImpossiblePast(wrong.public_key));
        }
        let before = context.keys();
        let mut outcomes = Vec::with_capacity(keys.len());
        for KeyHistory { public_key, past } in keys {
            let Some(key) = before.past(public_key) else {
                outcomes.push(KeyOutcome::NotFound);
                continue;
            };
            if before.find(public_key).is_some() {
                raise(context, public_key, key, *past)?;
            } else {
                // Of a deleted key the journal need not know.
                let mut history = key.lock();
                *history = history.with(*past);
            }
            outcomes.push(KeyOutcome::Changed);
        }
        let changed = Arc::new(before.again().map_err(|_| Refusal::MalformedCommand)?);
        // What was raised stays raised whatever comes of this; it is on the disk before it is answered.
        self.put_in_force(context, command_state, &changed, &before)?;
        Ok(Outcome::HistoryRaised { keys: outcomes })
    }
}

/// Whether a key may have signed that by now. What lies in the future would silence it until then: a slip, or an attack.
pub(super) fn is_possible(past: Watermarks, context: &CommandContext<'_>) -> bool {
    let latest = context.now.saturating_add(1);
    let block = past.block.is_none_or(|block| block.slot <= latest);
    let vote = past
        .attestation
        .is_none_or(|vote| vote.source <= vote.target && vote.target <= context.network.epoch_of(latest));
    block && vote
}

/// Adds to what is known of a key's past.
pub(super) fn raise(
    context: &CommandContext<'_>,
    public_key: &PublicKey,
    key: &Key,
    past: Watermarks,
) -> Result<(), Refusal> {
    let mut history = key.lock();
    let raised = history.with(past);
    if raised != *history {
        context.journal.record(public_key, &raised.watermarks()?).map_err(|_| Refusal::NotSaved)?;
        *history = raised;
    }
    Ok(())
}
