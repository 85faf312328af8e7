//! What operators order of the fence: its record made, ended, handed over and taken over, and the credentials of its store.

use casemate_fence::{Beginning, Record};
use casemate_protocol::command::{
    ClosedRecord, CredentialsId, EncryptedSecrets, FENCE_HPKE_INFO, LastState, Outcome, RecordOrder, StoreCredentials,
};
use casemate_protocol::refusal::{NotHolder, StoreTrouble, Waiting};
use casemate_protocol::{Refusal, Root};
use casemate_slashing::{Ceilings, Floors, GroupFloor};

use super::sealing::{next_state, waiting_for};
use super::{CommandContext, CommandProcessor, CommandState, Loaded};
use crate::fence::{KeeperReply, KeeperRequest};
use crate::keys::custody::digest_of;
use crate::platform::margins::latest_granted;

/// More than a record's version rises in a second; until 2106 below what is believed at once (`MAX_VERSION_STEP`).
const VERSIONS_A_SECOND: u64 = 1 << 16;

impl CommandProcessor {
    /// Leaves in order: signs no more, seals what was signed, and says so in the record.
    pub(crate) fn handover(&self, context: &CommandContext<'_>) -> Result<(), Refusal> {
        let mut command_state = self.command_state()?;
        self.handover_in(context, &mut command_state)
    }

    pub(super) fn handover_in(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
    ) -> Result<(), Refusal> {
        let fence_gate = context.fence_gate;
        if !fence_gate.has_record() {
            return Err(Refusal::NoFenceRecord(fence_gate.kind()));
        }
        let (term, floors) = fence_gate.held()?;
        fence_gate.close()?;
        let left = self
            .leave_behind(context, command_state, term, floors)
            .and_then(|state| fence_gate.ask_keeper(KeeperRequest::Leave { state, term }));
        if left.is_err() {
            fence_gate.reopen();
        }
        left.map(drop)
    }

    /// What the exact state is known by, once it is on the disk. Nothing is signed any more.
    pub(super) fn leave_behind(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        term: u64,
        floors: Floors,
    ) -> Result<Root, Refusal> {
        // The state stands for the terms before too, also of keys that came later: the floors have held for them as well.
        context.keys().raise(&floors, context.journal).map_err(|_| Refusal::NotSaved)?;
        match context.journal.durable_state_digest() {
            Some(state) => Ok(state),
            None => self.seal_exact(context, command_state, term),
        }
    }

    /// The same for one who does not come back to a journal of this machine's: another image, with another store.
    pub(super) fn seal_behind(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        term: u64,
        floors: Floors,
    ) -> Result<Root, Refusal> {
        context.keys().raise(&floors, context.journal).map_err(|_| Refusal::NotSaved)?;
        self.seal_exact(context, command_state, term)
    }

    pub(super) fn fence_init(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        record: RecordOrder,
        credentials: Option<&EncryptedSecrets>,
        credentials_id: Option<&CredentialsId>,
    ) -> Result<Outcome, Refusal> {
        let fence_gate = context.fence_gate;
        if !fence_gate.has_record() {
            return Err(Refusal::NoFenceRecord(fence_gate.kind()));
        }
        let credentials = match credentials {
            Some(encrypted) => {
                let opened = context.attestor.open(encrypted, FENCE_HPKE_INFO).ok_or(Refusal::SecretsNotOpened)?;
                Some(StoreCredentials::decode(&opened).ok_or(Refusal::StoreCredentials)?)
            }
            None => None,
        };
        // Those who signed saw the id, not the credentials: they must have signed for these.
        if credentials.as_ref().and_then(|credentials| credentials.id(digest_of)).as_ref() != credentials_id {
            return Err(Refusal::StoreCredentials);
        }
        let before = self.loaded();
        if record == RecordOrder::Keep {
            let credentials = credentials.ok_or(Refusal::StoreCredentials)?;
            return self.replace_credentials(context, command_state, credentials, before);
        }
        let KeeperReply::Record(found) = fence_gate.ask_keeper(KeeperRequest::Probe(credentials.clone()))? else {
            return Err(Refusal::StoreAway(StoreTrouble::NotAsked));
        };
        self.is_loaded(|loaded| loaded.store = credentials.or(loaded.store.take()));
        let made = self.make_record(context, command_state, record, found);
        if made.is_err() {
            // What was refused changes nothing, the keeper's credentials neither.
            self.is_loaded(|loaded| loaded.store.clone_from(&before.store));
            if before.store.is_some() {
                let _ = fence_gate.ask_keeper(KeeperRequest::Probe(before.store));
            }
        }
        made.map(|()| Outcome::FenceReady)
    }

    /// Exchanges the store's credentials, also where the old ones are dead and nobody holds the fence: the new ones must show the record
    /// that this enclave knows. Sealed at once where it holds the fence, and otherwise as soon as it does: of two that seal, one would
    /// lose the other's changes.
    pub(super) fn replace_credentials(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        credentials: StoreCredentials,
        before: Loaded,
    ) -> Result<Outcome, Refusal> {
        let fence_gate = context.fence_gate;
        fence_gate.ask_keeper(KeeperRequest::Credentials(credentials.clone()))?;
        self.is_loaded(|loaded| (loaded.store, loaded.store_unsealed) = (Some(credentials), true));
        if fence_gate.held().is_err() {
            return Ok(Outcome::CredentialsTaken);
        }
        match self.seal_credentials(context, command_state) {
            Ok(()) => Ok(Outcome::FenceReady),
            // The state with them is sealed, and they work.
            Err(unclear @ Refusal::MaybeSealed(Waiting::Fence)) => Err(unclear),
            Err(refusal) => {
                self.is_loaded(|loaded| {
                    (loaded.store, loaded.store_unsealed) = (before.store.clone(), before.store_unsealed);
                });
                if matches!(refusal, Refusal::MaybeSealed(_)) {
                    // Should the parent have kept the state with the new ones, the old ones are sealed over it.
                    let _ = self.seal_now(context, command_state);
                }
                if let Some(old) = before.store {
                    let _ = fence_gate.ask_keeper(KeeperRequest::Probe(Some(old)));
                }
                Err(refusal)
            }
        }
    }

    /// Seals credentials that no state has yet, where this enclave holds the fence by now.
    pub(crate) fn settle_credentials(&self, context: &CommandContext<'_>) {
        if self.loaded().store_unsealed
            && context.fence_gate.held().is_ok()
            && let Ok(mut command_state) = self.command_state()
        {
            // Where it does not work now it is tried again.
            let _ = self.seal_credentials(context, &mut command_state);
        }
    }

    pub(super) fn seal_credentials(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
    ) -> Result<(), Refusal> {
        let (sealed, term) = self.seal_now(context, command_state)?;
        self.is_loaded(|loaded| loaded.store_unsealed = false);
        context.enforce(sealed, term)
    }

    /// Whether a record may be made as it was ordered, and from the state at hand; the record that it comes after, and whether that state
    /// says all that was ever signed.
    pub(super) fn check_beginning(
        &self,
        context: &CommandContext<'_>,
        order: RecordOrder,
        found: Option<Record>,
    ) -> Result<(Option<ClosedRecord>, bool), Refusal> {
        match (order, found) {
            (RecordOrder::After { .. }, Some(Record { closed: true, .. })) | (_, None) => {}
            (_, Some(Record { closed: true, .. })) => return Err(Refusal::FenceClosed),
            (_, Some(_)) => return Err(Refusal::FenceExists),
        }
        let at_hand = self.loaded();
        match order {
            RecordOrder::Lost { last } => check_last(context, &at_hand, last)?,
            // There was one: sealing a state for another first would change what stands.
            RecordOrder::New if at_hand.fence_version > 0 => return Err(Refusal::RecordLost),
            // Before anything is sealed: the state that the closed record names stays the one at hand.
            RecordOrder::After { closed } => {
                let (seen, found) = (at_hand.fence_version.max(context.fence_gate.version()), closed.version);
                if found < seen {
                    return Err(Refusal::OlderEnd { seen, found });
                }
            }
            RecordOrder::New | RecordOrder::Keep => {}
        }
        let keys = context.keys();
        // Of a group that has no keys, and has never had any, the state says all that there is to say.
        let untouched = keys.known() == 0 && keys.floor() == GroupFloor::NONE && at_hand.fence_version == 0;
        Ok(match order {
            RecordOrder::After { closed } if at_hand.state_version < closed.min_state_version => {
                let (found, oldest) = (at_hand.state_version, closed.min_state_version);
                return Err(Refusal::StateBeforeClosed { found, oldest });
            }
            // Nothing was signed since the closed record's last holder has left this very state behind.
            RecordOrder::After { closed } => {
                (Some(closed), closed.released_state.is_some() && closed.released_state == at_hand.loaded_state_digest)
            }
            RecordOrder::New => (None, untouched),
            RecordOrder::Lost { .. } | RecordOrder::Keep => (None, false),
        })
    }

    /// Seals the state that a record begins with, and has the record made.
    pub(super) fn make_record(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        order: RecordOrder,
        found: Option<Record>,
    ) -> Result<(), Refusal> {
        let (closed, exact) = self.check_beginning(context, order, found)?;
        let keys = context.keys();
        // Above every term that there can have been, under whatever record: so are the numbers of the states that are sealed from
        // now on, and no older state is loaded any more. One term a second is more than there ever are.
        let seconds = context.clock.unix_ms().ok_or(Refusal::ClockStopped)? / 1000;
        let after = closed.map_or(0, |closed| closed.term.saturating_add(1));
        let term = seconds.max(after).max(1);
        let next = next_state(command_state, term)?;
        let sealed = self.seal_as(context, command_state, &keys, next);
        let sealed = sealed.map_err(|error| Refusal::NotSealed(waiting_for(&error)))?;
        let digest = self.set_in_force(&sealed);
        // Sealing takes its time: it is what may be signed somewhere now that counts. After a record that has ended it is what could be
        // signed under that.
        let now = context.network.slot_at(context.clock.unix_ms().ok_or(Refusal::ClockStopped)?);
        let ceilings = closed.map_or_else(|| latest_granted(context.network, now), |closed| ceilings_of(&closed));
        let beginning = Beginning {
            above_version: match order {
                RecordOrder::After { closed } => closed.version,
                // Above all that there can have been, in whatever store: a record that has ended elsewhere must not be the newer one.
                RecordOrder::Lost { .. } => seconds.saturating_mul(VERSIONS_A_SECOND),
                RecordOrder::New | RecordOrder::Keep => 0,
            },
            term,
            ceilings,
            min_state_version: next,
            exact: exact.then_some(digest),
            lost: matches!(order, RecordOrder::Lost { .. }),
        };
        context.fence_gate.ask_keeper(KeeperRequest::Create(beginning)).map(drop)
    }

    /// Ends the record for good; as it ended. A holder leaves its exact state behind.
    pub(super) fn fence_close(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
    ) -> Result<Outcome, Refusal> {
        let fence_gate = context.fence_gate;
        if !fence_gate.has_record() {
            return Err(Refusal::NoFenceRecord(fence_gate.kind()));
        }
        let done = match fence_gate.held() {
            Ok((term, floors)) => {
                fence_gate.close()?;
                let done = self
                    .seal_behind(context, command_state, term, floors)
                    .and_then(|state| fence_gate.ask_keeper(KeeperRequest::Close(Some((state, term)))));
                if done.is_err() {
                    fence_gate.reopen();
                }
                done
            }
            Err(_) => fence_gate.ask_keeper(KeeperRequest::Close(None)),
        };
        match done? {
            KeeperReply::Record(Some(record)) => Ok(Outcome::FenceClosed { record: closed_record(&record) }),
            _ => Err(Refusal::StoreAway(StoreTrouble::NotAsked)),
        }
    }

    pub(super) fn takeover(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
    ) -> Result<Outcome, Refusal> {
        // One that holds the fence no longer learns it now, and closes its gate.
        let KeeperReply::Record(found) = context.fence_gate.ask_keeper(KeeperRequest::Look)? else {
            return Err(Refusal::StoreAway(StoreTrouble::NotAsked));
        };
        let found = found.ok_or(Refusal::NotHolder(NotHolder::NoRecord))?;
        if found.min_state_version > self.loaded().state_version {
            self.reload_in(context, command_state, found.min_state_version);
        }
        match context.fence_gate.ask_keeper(KeeperRequest::Takeover)? {
            KeeperReply::Record(Some(record)) => Ok(Outcome::TookOver { term: record.term }),
            _ => Err(Refusal::NotHolder(NotHolder::StoreUnknown(StoreTrouble::NotAsked))),
        }
    }
}

/// Whether the state at hand is the last that was sealed under a record that is lost, by what operators say of it.
pub(super) fn check_last(context: &CommandContext<'_>, at_hand: &Loaded, last: LastState) -> Result<(), Refusal> {
    let (keys_root, fence_version) = (context.attestor.keys_root(), at_hand.fence_version);
    if keys_root == last.keys_root && fence_version >= last.fence_version {
        Ok(())
    } else {
        Err(Refusal::OtherLastState { keys_root, fence_version })
    }
}

pub(super) fn closed_record(record: &Record) -> ClosedRecord {
    let Record { version, term, ceilings, min_state_version, released_state: clean, .. } = *record;
    let Ceilings { slot: slot_ceiling, target: target_ceiling, source: source_ceiling } = ceilings;
    ClosedRecord {
        version,
        term,
        slot_ceiling,
        target_ceiling,
        source_ceiling,
        min_state_version,
        released_state: clean,
    }
}

pub(super) fn ceilings_of(closed: &ClosedRecord) -> Ceilings {
    let ClosedRecord { slot_ceiling: slot, target_ceiling: target, source_ceiling: source, .. } = *closed;
    Ceilings { slot, target, source }
}
