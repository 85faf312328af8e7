//! Where the fees of keys go.

use std::sync::Arc;

use casemate_protocol::command::{KeyOutcome, Outcome};
use casemate_protocol::{ExecutionAddress, PublicKey, Refusal};

use super::{CommandContext, CommandProcessor, CommandState};

impl CommandProcessor {
    pub(super) fn fee_recipient(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        public_keys: &[PublicKey],
        fee_recipient: Option<ExecutionAddress>,
    ) -> Result<Outcome, Refusal> {
        let before = context.keys();
        let changed = before.with_fee_recipient(public_keys, fee_recipient).map_err(|_| Refusal::MalformedCommand)?;
        let changed = Arc::new(changed);
        self.put_in_force(context, command_state, &changed, &before)?;
        let outcome = |key| if before.find(key).is_some() { KeyOutcome::Changed } else { KeyOutcome::NotFound };
        Ok(Outcome::FeeRecipientsSet { keys: public_keys.iter().map(outcome).collect() })
    }
}
