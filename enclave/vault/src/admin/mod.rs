//! Operators' commands: what changes the group's keys.
//!
//! A command is taken where M of the N operators that the measured configuration names have signed it, for this group, chain and
//! boot, and with a counter above the last. What it changed is sealed and on the parent's disk before it is answered and before a new key
//! signs. A parent that keeps a state and says that it did not could have it take effect at the next start: the answer says so.

mod delete;
mod exits;
mod fee_recipient;
mod fence;
mod generate;
mod history;
mod import;
pub(crate) mod sealing;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::command::{
    Action, Command, Envelope, HPKE_INFO, KeyOutcome, Outcome, SignedCommand, StoreCredentials,
};
use casemate_protocol::configuration::Operators;
use casemate_protocol::key_page::Origin;
use casemate_protocol::log::{LogRecord, Message};
use casemate_protocol::refusal::Waiting;
use casemate_protocol::statement::{CommandResult, StatedCommand, StatedState};
use casemate_protocol::{Duty, ExecutionAddress, Network, PublicKey, Refusal, Root, Slot};

use crate::fence::{FenceGate, KeeperRequest};
use crate::keys::custody::{Custody, digest_of};
use crate::keys::keyring::current;
use crate::platform::attest::Attestor;
use crate::signing::log::SigningLog;
use crate::signing::policy::Exits;
use crate::{Clock, Journal, Keys, Nsm};
use exits::exit;

/// Most keys of a group: their sealed state stays far below the longest blob.
pub const MAX_GROUP_KEYS: usize = 100_000;
/// With those that were deleted: at some 220 bytes each, their sealed state still fits into the longest blob.
pub const MAX_KNOWN_KEYS: usize = 200_000;

/// Who may change the keys, and where changes are kept.
pub struct CommandProcessor {
    custody: Custody,
    nsm: Arc<dyn Nsm>,
    operators: Operators,
    withdrawal_addresses: Vec<ExecutionAddress>,
    command_state: Mutex<CommandState>,
    loaded: RwLock<Loaded>,
    /// How the keys came that came in this boot.
    origins: Mutex<HashMap<PublicKey, Origin>>,
}

/// The sealed state that is in force.
#[derive(Clone, Default)]
pub struct Loaded {
    /// Its version; 0 where there is none.
    pub state_version: u64,
    /// What it is known by.
    pub loaded_state_digest: Option<Root>,
    /// What opens the fence's store.
    pub store: Option<StoreCredentials>,
    /// The store has taken these credentials, and no state has them yet: one that does not hold the fence must not seal.
    pub store_unsealed: bool,
    /// Version of the fence's record that it has seen.
    pub fence_version: u64,
}

impl Loaded {
    /// For the statement; nothing where no state was sealed yet.
    pub(crate) fn stated(&self) -> Option<StatedState> {
        let Self { state_version: number, fence_version, .. } = *self;
        self.loaded_state_digest.map(|sha256| StatedState { number, sha256, fence_version })
    }
}

/// A state that was sealed, and is on the parent's disk.
struct Sealed {
    state_version: u64,
    digest: Root,
    fence_version: u64,
}

/// Who wants a command, and which.
struct Approval {
    /// Of the command.
    sha256: Root,
    /// A bit for each who has signed, by the place in the measured configuration.
    operators: u32,
}

/// One command at a time.
pub(crate) struct CommandState {
    /// The newest that this enclave has tried to store.
    tried: u64,
    counter: u64,
}

/// What a command is carried out on.
pub(crate) struct CommandContext<'a> {
    pub(crate) attestor: &'a Attestor,
    pub(crate) network: &'a Network,
    pub(crate) journal: &'a dyn Journal,
    /// Read and exchanged under the lock on the command state alone.
    pub(crate) keys: &'a RwLock<Arc<Keys>>,
    pub(crate) fence_gate: &'a FenceGate,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) exits: &'a Exits,
    pub(crate) log: &'a SigningLog,
    /// By trusted time.
    pub(crate) now: Slot,
}
impl CommandProcessor {
    /// With what was unsealed.
    pub fn new(
        custody: Custody,
        nsm: Arc<dyn Nsm>,
        operators: Operators,
        withdrawal_addresses: Vec<ExecutionAddress>,
        loaded: Loaded,
    ) -> Self {
        let command_state = Mutex::new(CommandState { tried: loaded.state_version, counter: 0 });
        Self {
            custody,
            nsm,
            operators,
            withdrawal_addresses,
            command_state,
            loaded: RwLock::new(loaded),
            origins: Mutex::default(),
        }
    }

    /// The sealed state that is in force.
    pub(crate) fn loaded(&self) -> Loaded {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_loaded(&self, change: impl FnOnce(&mut Loaded)) {
        change(&mut self.loaded.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn command_state(&self) -> Result<MutexGuard<'_, CommandState>, Refusal> {
        match self.command_state.try_lock() {
            Ok(command_state) => Ok(command_state),
            Err(TryLockError::WouldBlock) => Err(Refusal::CommandBusy),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        }
    }

    /// Carries out a command.
    pub(crate) fn carry_out(&self, context: &CommandContext<'_>, envelope: &Envelope) -> Result<Outcome, Refusal> {
        let mut command_state = self.command_state()?;
        let (command, Approval { sha256, operators }) =
            self.check(context, envelope.as_ref(), command_state.counter)?;
        // From here on it counts as carried out, whatever comes of it; and the statement says what does.
        command_state.counter = command.counter;
        let (counter, kind, count) = (command.counter, command.action.kind(), command.keys());
        let named = command.action.public_keys();
        let done = self.act(context, &mut command_state, command);
        let result = match &done {
            Ok(outcome) => CommandResult::Done { outcome_sha256: digest_of(&outcome.encode()) },
            Err(Refusal::MaybeSealed(_) | Refusal::FenceUnclear(_)) => CommandResult::MaybeSealed,
            Err(_) => CommandResult::Refused,
        };
        context.attestor.note(StatedCommand { counter, sha256, result });
        if let Ok(outcome) = &done {
            self.note_origins(&named, outcome);
        }
        let keys = u32::try_from(count).unwrap_or(u32::MAX);
        let keys_sha256 = digest_of_keys(named, &done);
        context.log_command(
            Message::Command { kind, counter, operators, keys, keys_sha256 },
            sha256,
            done.as_ref().err(),
        );
        done
    }

    /// How a key came.
    pub(crate) fn origin(&self, public_key: &PublicKey) -> Origin {
        let origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.get(public_key).copied().unwrap_or(Origin::BeforeThisBoot)
    }

    /// Remembers how keys came. `named`: those of the order, in its order.
    fn note_origins(&self, named: &[PublicKey], outcome: &Outcome) {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Outcome::Generated { keys } => {
                origins.extend(keys.iter().map(|key| (key.public_key, Origin::MadeHere)));
            }
            Outcome::Imported { keys } => {
                let came = named.iter().zip(keys).filter(|(_, outcome)| **outcome == KeyOutcome::Imported);
                origins.extend(came.map(|(key, _)| (*key, Origin::Imported)));
            }
            _ => {}
        }
    }

    /// The command, if it is one of enough operators for this boot of this enclave.
    fn check(&self, context: &CommandContext<'_>, envelope: &[u8], last: u64) -> Result<(Command, Approval), Refusal> {
        if self.operators.keys.is_empty() {
            return Err(Refusal::NoOperators);
        }
        let signed = SignedCommand::decode(envelope).map_err(|_| Refusal::MalformedCommand)?;
        let (mut signatures, mut operators): (u32, u32) = (0, 0);
        let bytes = signed.signed_bytes();
        for (number, one) in signed.signatures.iter().enumerate() {
            let twice = signed.signatures.iter().take(number).any(|other| other.operator == one.operator);
            let place = self.operators.keys.iter().position(|key| *key == one.operator);
            let key = UnparsedPublicKey::new(&ED25519, one.operator.0);
            if twice || place.is_none() || key.verify(&bytes, &one.signature.0).is_err() {
                return Err(Refusal::CommandSignature { operator: one.operator });
            }
            signatures = signatures.saturating_add(1);
            // There are 32 at most.
            operators |= place.and_then(|place| 1_u32.checked_shl(u32::try_from(place).ok()?)).unwrap_or_default();
        }
        let threshold = self.operators.threshold;
        if signatures < threshold {
            return Err(Refusal::TooFewSignatures { signatures, threshold });
        }
        let command = Command::decode(signed.command.as_ref()).map_err(|_| Refusal::MalformedCommand)?;
        if command.group != context.attestor.group()
            || command.genesis_validators_root != context.network.genesis_validators_root()
            || command.boot_nonce != context.attestor.boot_nonce()
        {
            return Err(Refusal::CommandForAnother);
        }
        if command.counter <= last {
            return Err(Refusal::CommandCounter { counter: command.counter, last });
        }
        Ok((command, Approval { sha256: digest_of(signed.command.as_ref()), operators }))
    }

    fn act(
        &self,
        context: &CommandContext<'_>,
        command_state: &mut CommandState,
        command: Command,
    ) -> Result<Outcome, Refusal> {
        match command.action {
            Action::Import { keys, secrets } => {
                let opened = context.attestor.open(&secrets, HPKE_INFO).ok_or(Refusal::SecretsNotOpened)?;
                self.import(context, command_state, &keys, &opened)
            }
            Action::Generate { count, withdrawal_credentials, amount } => {
                self.generate(context, command_state, count, withdrawal_credentials, amount)
            }
            Action::Deposit { keys, withdrawal_credentials, amount } => {
                self.deposits(context, &keys, withdrawal_credentials, amount)
            }
            Action::Delete { keys } => self.delete_again(context, command_state, &keys),
            Action::FenceInit { record, credentials, credentials_id } => {
                self.fence_init(context, command_state, record, credentials.as_ref(), credentials_id.as_ref())
            }
            Action::FenceClose => self.fence_close(context, command_state),
            Action::Handover => self.handover_in(context, command_state).map(|()| Outcome::HandedOver),
            Action::Takeover => self.takeover(context, command_state),
            Action::Exit { exits, last_epoch } => exit(context, &exits, last_epoch),
            Action::FeeRecipient { keys, fee_recipient } => {
                self.fee_recipient(context, command_state, &keys, fee_recipient)
            }
            Action::RaiseHistory { keys } => self.raise_history(context, command_state, &keys),
        }
    }
}

/// What names a command's keys: those of the command, or those that it has made.
fn digest_of_keys(named: Vec<PublicKey>, done: &Result<Outcome, Refusal>) -> Root {
    let keys = match done {
        Ok(Outcome::Generated { keys }) => keys.iter().map(|key| key.public_key).collect(),
        _ => named,
    };
    digest_of(&keys.iter().flat_map(|key| key.0).collect::<Vec<u8>>())
}

impl CommandContext<'_> {
    fn keys(&self) -> Arc<Keys> {
        current(self.keys)
    }

    /// Writes into the signing log that this was signed.
    fn log(&self, public_key: PublicKey, duty: &Duty, root: Root) {
        let time_ms = self.clock.unix_ms().unwrap_or_default();
        let (message, signing_root) = (Message::from(duty), Some(root));
        self.log.push(LogRecord { time_ms, public_key, message, signing_root, refusal: None });
    }

    /// Writes into the signing log what operators have ordered, and what came of it.
    fn log_command(&self, message: Message, sha256: Root, refusal: Option<&Refusal>) {
        let time_ms = self.clock.unix_ms().unwrap_or_default();
        let (public_key, signing_root, refusal) = (PublicKey::ZERO, Some(sha256), refusal.copied());
        self.log.push(LogRecord { time_ms, public_key, message, signing_root, refusal });
    }

    /// Has every older state refused, before the change is answered.
    fn enforce(&self, sealed: u64, term: u64) -> Result<(), Refusal> {
        if !self.fence_gate.has_record() {
            return Ok(());
        }
        let raised = self.fence_gate.ask_keeper(KeeperRequest::Raise { sealed, term });
        raised.map(drop).map_err(|_| Refusal::MaybeSealed(Waiting::Fence))
    }

    /// From now on these keys are in force, and the statement names them.
    fn publish(&self, keys: &Arc<Keys>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(keys);
        self.attestor.state(keys);
    }
}
