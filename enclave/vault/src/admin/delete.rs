//! Keys that are deleted. What they have signed is remembered.

use std::sync::Arc;

use casemate_protocol::command::{KeyOutcome, Outcome};
use casemate_protocol::{PublicKey, Refusal};

use super::{CommandContext, CommandProcessor, CommandState};

impl CommandProcessor {
    /// Deletes keys. Where the command is given again, because it was not known what had become of it, a key that was deleted before is as
    /// deleted as the rest.
    pub(super) fn delete_again(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        keys: &[PublicKey],
    ) -> Result<Outcome, Refusal> {
        let before = context.keys();
        let deleted = self.delete(context, command_state, keys)?;
        let again = |(key, outcome): (&PublicKey, KeyOutcome)| match outcome {
            KeyOutcome::NotFound if before.past(key).is_some() => KeyOutcome::Deleted,
            other => other,
        };
        match deleted {
            Outcome::Deleted { keys: outcomes } => {
                Ok(Outcome::Deleted { keys: keys.iter().zip(outcomes).map(again).collect() })
            }
            other => Ok(other),
        }
    }

    /// What the key manager API deletes, where the measured policy allows it.
    pub(crate) fn delete_keys(&self, context: &CommandContext<'_>, keys: &[PublicKey]) -> Result<Outcome, Refusal> {
        let mut command_state = self.command_state()?;
        self.delete(context, &mut command_state, keys)
    }

    pub(super) fn delete(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        public_keys: &[PublicKey],
    ) -> Result<Outcome, Refusal> {
        let before = context.keys();
        let known = |key: &PublicKey| before.find(key).is_some();
        let outcome = |key| if known(key) { KeyOutcome::Deleted } else { KeyOutcome::NotFound };
        let outcomes: Vec<KeyOutcome> = public_keys.iter().map(outcome).collect();
        let changed = Arc::new(before.without(public_keys).map_err(|_| Refusal::MalformedCommand)?);
        context.fence_gate.held()?;
        // They sign no more before their past is written down: signatures look up their key behind the gate.
        context.publish(&changed);
        context.fence_gate.settle();
        let (sealed, term) =
            self.seal(context, command_state, &changed, &before).inspect_err(|_| context.publish(&before))?;
        self.set_in_force(&sealed);
        context.enforce(sealed.state_version, term)?;
        Ok(Outcome::Deleted { keys: outcomes })
    }
}
