//! One request at a time: from a typed request to a typed reply.

use std::sync::{Arc, RwLock};

use casemate_fence::{Holder, Record};
use casemate_protocol::command::{Envelope, Outcome, StoreCredentials};
use casemate_protocol::frame::{
    HighWatermark, Info, KeystoreToImport, MAX_KEYS_PER_PAGE, MAX_PROOF_TEXT_LEN, Nonce, Readiness,
};
use casemate_protocol::history_page::{HistoryPage, MAX_ENTRIES_PER_PAGE, SignedHistoryPage};
use casemate_protocol::key_page::{KeyPage, MAX_KEYS_PER_KEY_PAGE, SignedKeyPage};
use casemate_protocol::log::{LogRecord, Message};
use casemate_protocol::may_sign::{Grant, may_sign};
use casemate_protocol::refusal::NotHolder;
use casemate_protocol::slot_clock::SlotClock;
use casemate_protocol::{Bytes, Duty, Network, PublicKey, Refusal, Reply, Request, Root, SignRequest, Signature, Slot};
use casemate_slashing::{Ceilings, Floors, Limits, rules};

use crate::admin::{CommandContext, CommandProcessor};
use crate::fence::{FenceGate, KeeperReply, KeeperRequest};
use crate::keys::keyring::{Key, current};
use crate::platform::attest::Attestor;
use crate::signing::bls::{HashedMessage, SecretKey, sign_batch};
use crate::signing::hash_cache::PointCache;
use crate::signing::log::SigningLog;
use crate::signing::policy::{Exits, Policy};
use crate::signing::signing_root;
use crate::{Clock, Journal, Keys, Loaded, Nsm};

/// A signature that is due: every rule has let it through, and its watermark is saved.
pub(crate) struct Due {
    key: Arc<Key>,
    message: HashedMessage,
}

impl Due {
    /// The signatures of several, each in its place. They share what they can.
    pub(crate) fn sign(batch: &[Self]) -> impl Iterator<Item = Option<Signature>> {
        let parts: Vec<_> = batch.iter().filter_map(|due| Some((due.key.secret()?, &due.message))).collect();
        let mut signed = sign_batch(parts.into_iter());
        // Only keys with their secret are ever due; were one without, it must not take another's signature.
        batch.iter().map(move |due| due.key.secret().and_then(|_| signed.next()))
    }
}

/// The key compartment's state.
pub struct Vault {
    network: Network,
    /// Exchanged whole where an operators' command changes them.
    keys: RwLock<Arc<Keys>>,
    fence_gate: FenceGate,
    policy: Policy,
    exits: Exits,
    log: SigningLog,
    clock: Arc<dyn Clock>,
    journal: Box<dyn Journal>,
    points: PointCache,
    attestor: Option<Attestor>,
    commands: Option<CommandProcessor>,
    nsm: Option<Arc<dyn Nsm>>,
}

impl Vault {
    /// A vault that serves `keys` on `network`.
    pub fn new(
        network: Network,
        keys: Keys,
        limits: Limits,
        policy: Policy,
        clock: Box<dyn Clock>,
        journal: Box<dyn Journal>,
    ) -> Self {
        let (keys, points) = (RwLock::new(Arc::new(keys)), PointCache::default());
        let fence_gate = FenceGate::none(limits);
        let clock = Arc::from(clock);
        let (exits, log) = (Exits::default(), SigningLog::new(Bytes::ZERO));
        Self {
            network,
            keys,
            fence_gate,
            policy,
            exits,
            log,
            clock,
            journal,
            points,
            attestor: None,
            commands: None,
            nsm: None,
        }
    }

    /// With another fence than the fixed limits, and a clock that the keeper of its record reads too.
    #[must_use]
    pub fn fenced_by(mut self, fence_gate: FenceGate, clock: Arc<dyn Clock>) -> Self {
        self.fence_gate = fence_gate;
        self.clock = clock;
        self
    }

    /// With an NSM to hold the clock against.
    #[must_use]
    pub fn timed_by(mut self, nsm: Arc<dyn Nsm>) -> Self {
        self.nsm = Some(nsm);
        self
    }

    /// With an NSM behind it, the vault answers requests for attestation documents.
    #[must_use]
    pub fn attested_by(mut self, attestor: Attestor) -> Self {
        self.log = SigningLog::new(attestor.boot_nonce());
        self.attestor = Some(attestor);
        self
    }

    /// With an commands, operators' commands change its keys. It needs an attestor, for whose boot commands are.
    #[must_use]
    pub fn commanded_by(mut self, commands: CommandProcessor) -> Self {
        self.commands = Some(commands);
        self
    }

    /// Answers a request.
    pub fn handle(&self, request: &Request) -> Reply {
        match request {
            Request::Info => self.info(),
            Request::PublicKeys { start } => self.public_keys(*start),
            Request::Sign(request) => self.sign(request).map_or_else(Reply::Refused, Reply::Signature),
            Request::HighWatermark => self.high_watermark(),
            Request::ProofOfValidation { public_key, platform, timestamp } => {
                self.proof_of_validation(public_key, platform, timestamp).unwrap_or_else(Reply::Refused)
            }
            Request::Attestation { nonce } => {
                let attestor = self.attestor.as_ref().ok_or(Refusal::NsmFailed);
                let fence = self.fence_gate.stated(self.clock.unix_ms());
                // What is stated is what judges.
                let (window, state) =
                    (self.policy.window, self.commands.as_ref().and_then(|commands| commands.loaded().stated()));
                let attested = attestor.and_then(|attestor| attestor.attest(nonce, fence, window, state));
                attested.unwrap_or_else(Reply::Refused)
            }
            Request::Command { envelope } => self.command(envelope).map_or_else(Reply::Refused, Reply::Command),
            Request::Handover => self.handover().map_or_else(Reply::Refused, |()| Reply::HandedOver),
            Request::SlashingProtection { nonce, start } => {
                self.history_page(nonce, *start).map_or_else(Reply::Refused, Reply::SlashingProtection)
            }
            Request::Log { after, nonce } => self.signing_log(*after, nonce.as_ref()),
            Request::ImportKeystores { keys } => {
                self.import_keystores(keys).map_or_else(Reply::Refused, Reply::Command)
            }
            Request::KeyDetails { nonce, start } => {
                self.key_page(nonce, *start).map_or_else(Reply::Refused, Reply::KeyDetails)
            }
            Request::DeleteKeys { keys } => self.delete_keys(keys).map_or_else(Reply::Refused, Reply::Command),
            Request::Readiness => Reply::Readiness(self.readiness()),
        }
    }

    /// Writes into the signing log that this was refused for good. Above a ceiling a request waits, and is asked again.
    pub(crate) fn note_refused(&self, request: &Request, refusal: &Refusal) {
        if let Request::Sign(request) = request {
            self.note(request.public_key, Message::from(&request.duty), None, Some(refusal));
        }
    }

    fn note(&self, public_key: PublicKey, message: Message, signing_root: Option<Root>, refusal: Option<&Refusal>) {
        let time_ms = self.clock.unix_ms().unwrap_or_default();
        self.log.push(LogRecord { time_ms, public_key, message, signing_root, refusal: refusal.copied() });
    }

    fn signing_log(&self, after: u64, nonce: Option<&Nonce>) -> Reply {
        let Some(attestor) = &self.attestor else { return Reply::Refused(Refusal::NsmFailed) };
        let term = self.fence_gate.held().map_or(0, |(term, _)| term);
        Reply::Log(self.log.page(after, nonce, attestor, term, self.clock.unix_ms().unwrap_or_default()))
    }

    /// What the keys have signed, and stay above besides.
    fn history_page(&self, nonce: &Nonce, start: u32) -> Result<SignedHistoryPage, Refusal> {
        let attestor = self.attestor.as_ref().ok_or(Refusal::NsmFailed)?;
        // Only the holder knows what was signed. An earlier holder's signatures lie at or below the floors: anyone who takes the keys
        // elsewhere must stay above them too.
        let (term, floors) = self.still_held()?;
        let keys = current(&self.keys);
        // Also of listed keys: one that a state did not list, and that this enclave remembers, need not have been raised to it.
        let floors = keys.floor().with_floors(&floors).watermarks();
        let first = usize::try_from(start).unwrap_or(usize::MAX);
        let page = HistoryPage {
            start,
            total: count(keys.known()),
            time_ms: self.clock.unix_ms(),
            floor: floors,
            keys: keys.told(first, MAX_ENTRIES_PER_PAGE, floors),
        };
        // Who has claimed meanwhile may have signed more.
        if self.fence_gate.held()?.0 != term {
            return Err(Refusal::NotHolder(NotHolder::HandingOver));
        }
        let signature = attestor.sign_record(&page.signed_bytes(&attestor.boot_nonce(), nonce));
        Ok(SignedHistoryPage { page, signature })
    }

    /// What operators want to know of keys, whether this enclave holds the fence or not.
    fn key_page(&self, nonce: &Nonce, start: u32) -> Result<SignedKeyPage, Refusal> {
        let attestor = self.attestor.as_ref().ok_or(Refusal::NsmFailed)?;
        let keys = current(&self.keys);
        let first = usize::try_from(start).unwrap_or(usize::MAX);
        let mut details = keys.details(first, MAX_KEYS_PER_KEY_PAGE);
        for key in &mut details {
            key.exit = self.exits.pending(&key.public_key);
            if let Some(commands) = &self.commands {
                key.origin = commands.origin(&key.public_key);
            }
        }
        let page = KeyPage { start, total: count(keys.known()), keys: details };
        let signature = attestor.sign_record(&page.signed_bytes(&attestor.boot_nonce(), nonce));
        Ok(SignedKeyPage { page, signature })
    }

    /// The term that the store says, now, that this enclave holds, and its floors. A holder that is cut off does not know better
    /// than its memory; and what it has deleted must not come back elsewhere with an older sealed state.
    fn still_held(&self) -> Result<(u64, Floors), Refusal> {
        let (term, floors) = self.fence_gate.held()?;
        if !self.fence_gate.has_record() {
            return Ok((term, floors));
        }
        let KeeperReply::Record(Some(record)) = self.fence_gate.ask_keeper(KeeperRequest::Look)? else {
            return Err(Refusal::NotHolder(NotHolder::NoRecord));
        };
        if record.term != term || record.holder != self.holder() {
            return Err(Refusal::NotHolder(NotHolder::Standby { slot_ceiling: record.ceilings.slot }));
        }
        if self.commands.is_some() {
            let (context, commands) = self.command_context()?;
            commands.settle_states(&context, term)?;
        }
        Ok((term, floors))
    }

    fn import_keystores(&self, keystores: &[KeystoreToImport]) -> Result<Outcome, Refusal> {
        if !self.policy.key_manager_import {
            return Err(Refusal::KeyManagerImportOff);
        }
        let (context, commands) = self.command_context()?;
        commands.import_keystores(&context, keystores)
    }

    fn delete_keys(&self, keys: &[PublicKey]) -> Result<Outcome, Refusal> {
        if !self.policy.key_manager_delete {
            return Err(Refusal::KeyManagerDeleteOff);
        }
        let (context, commands) = self.command_context()?;
        commands.delete_keys(&context, keys)
    }

    /// What limits this vault.
    pub(crate) fn fence_gate(&self) -> &FenceGate {
        &self.fence_gate
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// By the NSM's clock, where there is one.
    pub(crate) fn nsm_time(&self) -> Option<u64> {
        self.nsm.as_ref()?.timestamp_ms().ok()
    }

    /// Under which name it holds the fence: its boot nonce.
    pub(crate) fn holder(&self) -> Holder {
        self.attestor.as_ref().map_or(Holder::ZERO, Attestor::boot_nonce)
    }

    /// What the state at hand is known by, where it may be the one that `record` names; and what is left behind from now on.
    pub(crate) fn match_released_state(&self, record: &Record) -> (Option<Root>, Option<Root>) {
        let leaves = self.journal.durable_state_digest();
        let sealed = self.commands.as_ref().and_then(|commands| commands.loaded().loaded_state_digest);
        (leaves.filter(|state| record.released_state == Some(*state)).or(sealed), leaves)
    }

    /// Term of the sealed state in force.
    pub(crate) fn state_version(&self) -> u64 {
        self.commands.as_ref().map_or(0, |commands| commands.loaded().state_version)
    }

    /// Version of the fence's record that the sealed state in force has seen.
    pub(crate) fn fence_version(&self) -> u64 {
        self.commands.as_ref().map_or(0, |commands| commands.loaded().fence_version)
    }

    /// What opens the fence's store, as it was sealed.
    pub(crate) fn store_credentials(&self) -> Option<StoreCredentials> {
        self.commands.as_ref()?.loaded().store
    }

    /// Loads the newest sealed state, where there is a newer one.
    pub(crate) fn reload(&self, oldest: u64) -> Option<Loaded> {
        let (context, commands) = self.command_context().ok()?;
        commands.reload(&context, oldest)
    }

    /// Adds a term's floors to every key's past, and to the group's floor. `false` where that could not be saved.
    pub(crate) fn raise(&self, floors: &Floors) -> bool {
        current(&self.keys).raise(floors, self.journal.as_ref()).is_ok()
    }

    /// What is due without anybody asking. It waits for KMS and the disk.
    pub fn settle(&self) {
        if let Ok((context, commands)) = self.command_context() {
            commands.settle_credentials(&context);
        }
    }

    fn command_context(&self) -> Result<(CommandContext<'_>, &CommandProcessor), Refusal> {
        let (Some(commands), Some(attestor)) = (&self.commands, &self.attestor) else {
            return Err(Refusal::NoOperators);
        };
        let (network, journal) = (&self.network, self.journal.as_ref());
        // Before the clock has been checked nothing can be told from what is long past.
        let now = network.slot_at(self.clock.unix_ms().ok_or(Refusal::ClockStopped)?);
        let (keys, fence_gate, clock) = (&self.keys, &self.fence_gate, self.clock.as_ref());
        let (exits, log) = (&self.exits, &self.log);
        Ok((CommandContext { attestor, network, journal, keys, fence_gate, clock, exits, log, now }, commands))
    }

    /// Asked for by the host, when it is about to end this enclave; or to keep it from signing, so not too often.
    fn handover(&self) -> Result<(), Refusal> {
        let (context, commands) = self.command_context()?;
        self.fence_gate.held()?;
        self.fence_gate.may_handover_unsigned(context.now)?;
        commands.handover(&context)
    }

    /// It waits for KMS and the disk: the server carries commands out on a thread of their own.
    fn command(&self, envelope: &Envelope) -> Result<Outcome, Refusal> {
        let (context, commands) = self.command_context()?;
        commands.carry_out(&context, envelope)
    }

    fn info(&self) -> Reply {
        let keys = current(&self.keys);
        let signing = keys.signing().len();
        Reply::Info(Info {
            network: self.network.clone(),
            keys: count(signing),
            keys_without_history: count(keys.len().saturating_sub(signing)),
            standing: self.fence_gate.standing(),
            key_manager_delete: self.policy.key_manager_delete,
        })
    }

    /// Whether it would sign now.
    fn readiness(&self) -> Readiness {
        let silence = self.fence_gate.silence();
        let clock = SlotClock::from(&self.network);
        Readiness {
            standing: self.fence_gate.standing(),
            term: self.fence_gate.held().map_or(0, |(term, _)| term),
            may_sign: may_sign(self.clock.unix_ms(), clock, self.fence_gate.granted(), silence),
            silence,
            store_answered_ms: self.fence_gate.store_answered_ms(),
            keys: count(current(&self.keys).signing().len()),
        }
    }

    /// What a duty above a ceiling hears that has waited for the store in vain.
    pub(crate) fn still_above(&self, refusal: Refusal) -> Refusal {
        match (self.fence_gate.silence(), self.fence_gate.granted()) {
            (Some(silence), Ok(Grant { ceilings: Some(ceilings), .. })) => silence.refusal(ceilings),
            _ => refusal,
        }
    }

    fn public_keys(&self, start: u32) -> Reply {
        let keys = current(&self.keys);
        let signing = keys.signing();
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let page = usize::try_from(MAX_KEYS_PER_PAGE).unwrap_or(usize::MAX);
        Reply::PublicKeys { total: count(signing.len()), keys: signing.skip(start).take(page).collect() }
    }

    fn high_watermark(&self) -> Reply {
        let ceilings = match self.fence_gate.pass() {
            Ok(pass) => pass.limits.ceilings,
            Err(refusal) => return Reply::Refused(refusal),
        };
        let granted = ceilings != Ceilings::NONE;
        Reply::HighWatermark(granted.then_some(HighWatermark { slot: ceilings.slot, epoch: ceilings.target }))
    }

    fn sign(&self, request: &SignRequest) -> Result<Signature, Refusal> {
        let due = self.judge(request)?;
        due.key.secret().map(|secret| secret.sign(&due.message)).ok_or(Refusal::UnknownKey)
    }

    /// Judges a duty, and writes down what came of it. What is due is as good as signed: its watermark is saved.
    pub(crate) fn judge(&self, request: &SignRequest) -> Result<Due, Refusal> {
        let mut root = None;
        let judged = self.judge_unlogged(request, &mut root);
        let refusal = judged.as_ref().err();
        // Anyone who asks for keys that are not here must not fill the log of those that are.
        let foreign = match refusal {
            Some(Refusal::UnknownKey) => true,
            // Nobody has looked for the key yet.
            Some(Refusal::NotHolder(_)) => current(&self.keys).find(&request.public_key).is_none(),
            _ => false,
        };
        if !foreign && !refusal.is_some_and(Refusal::is_above_ceiling) {
            self.note(request.public_key, Message::from(&request.duty), root, refusal);
        }
        judged
    }

    fn judge_unlogged(&self, request: &SignRequest, computed: &mut Option<Root>) -> Result<Due, Refusal> {
        // Held until the watermark is saved. Behind the gate a deleted key is not found any more.
        let pass = self.fence_gate.pass()?;
        let keys = current(&self.keys);
        let key = keys.held(&request.public_key).ok_or(Refusal::UnknownKey)?;
        self.policy.check(request, key.fee_recipient(), &self.exits, &self.network)?;
        key.history().watermarks()?;
        let root = signing_root::compute(&request.duty, request.fork_info.as_ref(), &self.network)?;
        *computed = Some(root);
        if let Some(asked) = request.signing_root.filter(|asked| *asked != root) {
            return Err(Refusal::SigningRootDiffers { asked, computed: root });
        }
        let now = self.network.slot_at(self.clock.unix_ms().ok_or(Refusal::ClockStopped)?);
        let checked = self.check_and_update(&pass.limits, key, &request.duty, root, now);
        drop(pass);
        checked.inspect_err(|refusal| self.want(refusal, &request.duty))?;
        Ok(Due { key: Arc::clone(key), message: self.points.hashed(&root) })
    }

    /// The window has let the duty through, the ceilings have not: the fence's keeper should know.
    fn want(&self, refusal: &Refusal, duty: &Duty) {
        if let (true, Duty::Attestation(data)) = (refusal.is_above_ceiling(), duty) {
            let (target, source) = (data.target.epoch, data.source.epoch);
            self.fence_gate.request_ceilings(Ceilings { slot: Slot(0), target, source });
        }
    }

    /// The rules, and for slashable duties the watermarks: saved before anything is signed.
    fn check_and_update(&self, limits: &Limits, key: &Key, duty: &Duty, root: Root, now: Slot) -> Result<(), Refusal> {
        let window = &self.policy.window;
        match duty {
            Duty::Block(header) => {
                rules::window::check_block(header.slot, now, window)?;
                key.advance(self.journal.as_ref(), |old| rules::block::check(old, header.slot, root, limits))
            }
            Duty::Attestation(data) => {
                let (source, target) = (data.source.epoch, data.target.epoch);
                rules::window::check_target(target, now, &self.network, window)?;
                key.advance(self.journal.as_ref(), |old| rules::attestation::check(old, source, target, root, limits))
            }
            other => rules::window::check_early(other, now, &self.network),
        }
    }

    fn proof_of_validation(&self, public_key: &PublicKey, platform: &str, timestamp: &str) -> Result<Reply, Refusal> {
        if !self.policy.proof_of_validation {
            return Err(Refusal::ProofOfValidationOff);
        }
        // Held until it is written down: a key that is deleted meanwhile has signed before that.
        let pass = self.fence_gate.pass();
        let keys = current(&self.keys);
        let found = keys.find(public_key);
        let proved = match (&pass, found) {
            (Err(refusal), _) => Err(*refusal),
            (Ok(_), None) => Err(Refusal::UnknownKey),
            (Ok(_), Some((key, secret))) => prove_validation(key, secret, platform, timestamp),
        };
        if found.is_some() {
            self.note(*public_key, Message::ProofOfValidation, None, proved.as_ref().err());
        }
        proved
    }
}

/// Signs the text of a proof of validation. It is longer than 32 bytes, so it can be no signing root.
fn prove_validation(key: &Key, secret: &SecretKey, platform: &str, timestamp: &str) -> Result<Reply, Refusal> {
    key.history().watermarks()?;
    for text in [platform, timestamp] {
        if text.len() > MAX_PROOF_TEXT_LEN {
            return Err(Refusal::TooLong { len: length(text), max: length_of(MAX_PROOF_TEXT_LEN) });
        }
        // Nothing that JSON would have to escape: the text is put together by hand.
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b" ._:+-/".contains(&b)) {
            return Err(Refusal::BadText);
        }
    }
    let payload = format!(r#"{{"type":"PROOF_OF_VALIDATION","platform":"{platform}","timestamp":"{timestamp}"}}"#);
    let signature = secret.sign(&HashedMessage::new(payload.as_bytes()));
    Ok(Reply::ProofOfValidation { payload, signature })
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn length(text: &str) -> u64 {
    length_of(text.len())
}

fn length_of(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
