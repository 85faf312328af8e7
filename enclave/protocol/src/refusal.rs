//! Why a request was not carried out: a code and its numbers cross the border, the sentence is made outside.

use serde::{Deserialize, Serialize};

use crate::command::OperatorKey;
use crate::statement::FenceKind;
use crate::{Epoch, ExecutionAddress, PublicKey, Root, Slot, Version};

/// A typed refusal. The order of the variants is part of the wire format: new ones go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum Refusal {
    #[error("malformed frame: {0}")]
    MalformedFrame(MalformedFrame),
    #[error("unknown key: this enclave does not hold it")]
    UnknownKey,
    #[error(
        "key refused: it has no slashing protection history; import an EIP-3076 file for it, or accept that its history is unknown (--accept-unknown-history)"
    )]
    NoHistory,
    #[error("another network: genesis_validators_root is {asked}, this enclave serves {served}")]
    OtherNetwork { asked: Root, served: Root },
    #[error("another network: genesis_fork_version is {asked}, this enclave serves {served}")]
    OtherGenesisVersion { asked: Version, served: Version },
    #[error("fork_info is missing: this type of message needs it")]
    ForkInfoMissing,
    #[error("signingRoot differs: the request says {asked}, the message's signing root is {computed}")]
    SigningRootDiffers { asked: Root, computed: Root },

    #[error(
        "block refused: slot {slot} is in the future, the current slot is {now} and {latest} is the latest allowed"
    )]
    BlockFromFuture { slot: Slot, now: Slot, latest: Slot },
    #[error(
        "block refused: slot {slot} is not above the last signed slot {last}, and its signing root differs: it could be a double proposal"
    )]
    BlockNotAboveLast { slot: Slot, last: Slot },
    #[error(
        "block refused: slot {slot} is not above the floor, slot {floor}: an enclave before this one may have signed up to there. Blocks are signed \
         from slot {} on", floor.saturating_add(1)
    )]
    BlockNotAboveFloor { slot: Slot, floor: Slot },
    #[error("block refused: slot {slot} is above the ceiling {ceiling} that the fence has granted")]
    BlockAboveCeiling { slot: Slot, ceiling: Slot },

    #[error("attestation refused: source epoch {source_epoch} is above its target epoch {target}")]
    SourceAboveTarget { source_epoch: Epoch, target: Epoch },
    #[error(
        "attestation refused: target epoch {target} is in the future, the current epoch is {now} and {latest} is the \
         latest allowed"
    )]
    TargetFromFuture { target: Epoch, now: Epoch, latest: Epoch },
    #[error(
        "attestation refused: target epoch {target} is not above the last signed target epoch {last}, and its signing \
         root differs: it could be a double or a surrounded vote"
    )]
    TargetNotAboveLast { target: Epoch, last: Epoch },
    #[error(
        "attestation refused: source epoch {source_epoch} is below the last signed source epoch {last} (here, or by its history): it could be a \
         surrounding vote"
    )]
    SourceBelowLast { source_epoch: Epoch, last: Epoch },
    #[error(
        "attestation refused: target epoch {target} is not above the floor, epoch {floor}: an enclave before this one may have signed up to there. \
         Attestations are signed from target {} on", floor.saturating_add(1)
    )]
    TargetNotAboveFloor { target: Epoch, floor: Epoch },
    #[error(
        "attestation refused: source epoch {source_epoch} is below the floor, epoch {floor}: an enclave before this one may have signed a vote from \
         there. It is signed once epoch {floor} is justified"
    )]
    SourceBelowFloor { source_epoch: Epoch, floor: Epoch },
    #[error("attestation refused: target epoch {target} is above the ceiling {ceiling} that the fence has granted")]
    TargetAboveCeiling { target: Epoch, ceiling: Epoch },
    #[error(
        "attestation refused: source epoch {source_epoch} is above the ceiling {ceiling} that the fence has granted"
    )]
    SourceAboveCeiling { source_epoch: Epoch, ceiling: Epoch },

    #[error(
        "message refused: epoch {epoch} is in the future, the current epoch is {now} and {latest} is the latest allowed"
    )]
    DutyFromFuture { epoch: Epoch, now: Epoch, latest: Epoch },
    #[error("the watermark could not be saved, so nothing was signed: check the disk's space and state")]
    NotSaved,
    #[error("proof of validation is turned off")]
    ProofOfValidationOff,
    #[error("the text is {len} bytes long; {max} are allowed")]
    TooLong { len: u64, max: u64 },
    #[error("the text has a character that is not allowed; use letters, digits, spaces and ._:+-/")]
    BadText,
    #[error("too many attestation documents were requested; ask again in {seconds} s")]
    TooManyAttestations { seconds: u64 },
    #[error("the NSM gave no attestation document")]
    NsmFailed,
    #[error("another attestation document is being made; ask again")]
    NsmBusy,
    #[error("the enclave is starting: {0}; it goes on by itself as soon as it can")]
    Starting(Waiting),
    #[error("this enclave takes no commands: its configuration names no operators")]
    NoOperators,
    #[error("another command is being carried out; send it again")]
    CommandBusy,
    #[error("this is not the one valid encoding of a command, or it exceeds a limit")]
    MalformedCommand,
    #[error(
        "the command is for another group, chain or boot of the enclave; take a fresh attestation document and sign anew"
    )]
    CommandForAnother,
    #[error(
        "the command's counter is {counter}; it must be above {last}, the last command's: either this command was carried out already, or make and sign a new one"
    )]
    CommandCounter { counter: u64, last: u64 },
    #[error(
        "the command's signature of operator {operator} is not valid, or appears twice, or the configuration does not name that operator"
    )]
    CommandSignature { operator: OperatorKey },
    #[error("the command has {signatures} valid operators' signatures; the configuration requires {threshold}")]
    TooFewSignatures { signatures: u32, threshold: u32 },
    #[error("the secret keys of the command do not open: they were encrypted to another enclave")]
    SecretsNotOpened,
    #[error("the configuration allows no deposit that withdraws to {0}")]
    WithdrawalNotAllowed(Root),
    #[error("the deposit's amount is {gwei} Gwei; {min} to {max} are allowed for these withdrawal credentials")]
    DepositAmount { gwei: u64, min: u64, max: u64 },
    #[error("exit refused: the policy does not allow it; operators can order it with `casemate exit`")]
    ExitNotAllowed,
    #[error(
        "the parent's disk has a newer sealed state, version {kept}, than this enclave's, {ours}: restart the enclave, so that it \
         loads the newest"
    )]
    OtherState { kept: u64, ours: u64 },
    #[error(
        "it is not known whether the parent has kept the sealed state: {0}. The command may take effect when the enclave starts next: count it \
         as done, and give it again once the parent's disk works"
    )]
    MaybeSealed(Waiting),
    #[error("the enclave does not hold the key {0}")]
    KeyNotHeld(PublicKey),
    #[error("this enclave holds {held} keys; with {more} more there would be more than {max}")]
    TooManyKeys { held: u64, more: u64, max: u64 },
    #[error("the command was not carried out, because its change could not be sealed: {0}; give it again later")]
    NotSealed(Waiting),
    #[error("this enclave does not hold the fence: {0}")]
    NotHolder(NotHolder),
    #[error(
        "this enclave does not trust its clock: it has jumped, or differs from the NSM's; nothing is signed until they agree again"
    )]
    ClockStopped,
    #[error("the fence of this enclave has no record: its configuration says {0}")]
    NoFenceRecord(FenceKind),
    #[error("the fence has a record already; a second record would forget what was signed under the first")]
    FenceExists,
    #[error("the credentials for the fence's store cannot be used: they are for another kind of store, or damaged")]
    StoreCredentials,
    #[error("the fence could not be changed: {0}")]
    StoreAway(StoreTrouble),
    #[error(
        "it is not known whether the fence's record was changed: {0}; look with `casemate fence status`, and count it as done"
    )]
    FenceUnclear(StoreTrouble),
    #[error(
        "the fence's record was lost: `casemate fence init --record-lost` makes a new one, from the last holder's state. For new credentials alone: `casemate fence init --credentials-only`"
    )]
    RecordLost,
    #[error("the fees would go to {asked}; the policy allows only {allowed} for this key")]
    FeeRecipientNotAllowed { asked: ExecutionAddress, allowed: ExecutionAddress },
    #[error(
        "block refused: the policy requires a proof of its body at generalised index {index}, and the request has none"
    )]
    BlockProofMissing { index: u64 },
    #[error("block refused: its body does not have the value that the policy requires at generalised index {index}")]
    BlockProofWrong { index: u64 },
    #[error("exit refused: operators allowed it until epoch {last}; this one is of epoch {epoch}")]
    ExitTooLate { epoch: Epoch, last: Epoch },
    #[error("the history of {0} lies in the future, or has a source above its target; nothing was changed")]
    ImpossiblePast(PublicKey),
    #[error(
        "the enclave takes no keystores from this API: this host would see the secret keys. `casemate keys import` encrypts them to the enclave; this API also takes the file that it writes with --command-out. The measured policy key_manager_import allows keystores here all the same"
    )]
    KeyManagerImportOff,
    #[error(
        "operators delete keys with `casemate keys delete`; the measured policy key_manager_delete allows it from this API too"
    )]
    KeyManagerDeleteOff,
    #[error(
        "the host asked for a handover without an operator's signature, less than {slots} slots after the last such one; operators order one with `casemate fence handover`"
    )]
    #[serde(rename = "HandOverTooSoon")]
    HandoverTooSoon { slots: u64 },
    #[error(
        "the state of this enclave is not the one that the command names: its keys have the root {keys_root}, and it has seen version {fence_version} of the fence's record. With an older state deleted keys would come back: bring the newest blobs to the parent"
    )]
    OtherLastState { keys_root: Root, fence_version: u64 },
    #[error(
        "the sealed state of this enclave has number {found}; the closed record refuses all before {oldest}: bring the newest blobs to the parent, and start the enclave anew"
    )]
    StateBeforeClosed { found: u64, oldest: u64 },
    #[error("the fence's record has ended; the next one is made with `casemate fence init --after`")]
    FenceClosed,
    #[error(
        "block refused: slot {slot} is too old, the current slot is {now} and {oldest} is the oldest that policy allows \
         (max_block_age_slots); ask in time, and compare the client's clock with the enclave's"
    )]
    BlockTooOld { slot: Slot, now: Slot, oldest: Slot },
    #[error(
        "attestation refused: target epoch {target} is too old, the current epoch is {now} and {oldest} is the oldest that \
         policy allows (max_target_age_epochs); ask in time, and compare the client's clock with the enclave's"
    )]
    TargetTooOld { target: Epoch, now: Epoch, oldest: Epoch },
    #[error(
        "attestation refused: its source and its target are both epoch {epoch}; only at genesis does a vote go from an epoch \
         to itself: check the client and its beacon node"
    )]
    SourceIsTarget { epoch: Epoch },
    #[error(
        "message refused: slot {slot} is in the future, the current slot is {now} and {latest} is the latest allowed"
    )]
    DutySlotFromFuture { slot: Slot, now: Slot, latest: Slot },
    #[error(
        "the record that the command names has ended with version {found}, and this enclave has seen version {seen} of one after it: \
         name the end of the newest record (`casemate fence status --json` where it ended)"
    )]
    OlderEnd { seen: u64, found: u64 },
    #[error(
        "no block above slot {slot_ceiling} and no attestation with a target above epoch {target_ceiling} is signed: the fence's store has \
         acknowledged nothing for {seconds} s ({trouble}). Signing goes on by itself as soon as it does"
    )]
    StoreSilent { slot_ceiling: Slot, target_ceiling: Epoch, seconds: u64, trouble: StoreTrouble },
    #[error(
        "block refused: slot {slot} is not above slot {last}, up to which this key may have signed elsewhere: its imported history says so, \
         or no one knows it. Blocks are signed from slot {} on", last.saturating_add(1)
    )]
    BlockNotAboveHistory { slot: Slot, last: Slot },
    #[error(
        "attestation refused: target epoch {target} is not above epoch {last}, up to which this key may have signed elsewhere: its imported \
         history says so, or no one knows it. Attestations are signed from target {} on", last.saturating_add(1)
    )]
    TargetNotAboveHistory { target: Epoch, last: Epoch },
    #[error("a builder's bid commits the builder's balance: the measured policy builder_bids, which is off, allows it")]
    BuilderBidOff,
}

/// Why an enclave does not hold the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum NotHolder {
    #[error("{0}")]
    #[serde(rename = "Apart")]
    StoreUnknown(StoreTrouble),
    #[error("the store has no record; operators make it with `casemate fence init`")]
    NoRecord,
    #[error(
        "another enclave holds it, or held it until slot {slot_ceiling}; this one stands by, and acquires it by itself once that slot has passed, if \
         the other does not go on"
    )]
    Standby { slot_ceiling: Slot },
    #[error(
        "the newest sealed state that the parent offers has version {found}; the oldest that may be loaded is {oldest}: bring the newest blobs to the parent"
    )]
    OldState { found: u64, oldest: u64 },
    #[error("it is handing over")]
    HandingOver,
    #[error(
        "the store shows the record's version {found}, after version {seen}: someone restored an older one, or removed it \
         (version 0), or this is another store"
    )]
    #[serde(rename = "WentBack")]
    RolledBack { seen: u64, found: u64 },
    #[error(
        "its record has ended for good (`casemate fence close`); its last holder signed blocks up to slot {slot_ceiling}. The next record is made with `casemate fence init --after`"
    )]
    Closed { slot_ceiling: Slot },
    #[error(
        "the record's ceiling, slot {slot_ceiling}, lies further ahead than any holder can ask for at slot {now}: someone else wrote it, or a clock is wrong"
    )]
    FromFuture { slot_ceiling: Slot, now: Slot },
}

/// Why the fence's store has given no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum StoreTrouble {
    #[default]
    #[error("its store has not answered yet")]
    NotAsked,
    #[error("no credentials for its store are sealed; operators bring them with `casemate fence init`")]
    NoCredentials,
    #[error("its store cannot be reached: check the proxy's egress list (--egress-allow), the network, then the store")]
    Away,
    #[error(
        "the server that answers is not the store under the configured root, or it refuses the client certificate: check the endpoint and its certificate, then bring new credentials with `casemate fence init --credentials-only`"
    )]
    Tls,
    #[error(
        "its store answers with HTTP status {status}: check the credentials' rights, its space (a full etcd takes no writes: `etcdctl alarm list`), \
         then the store"
    )]
    Status { status: u16 },
    #[error("its store's answer is not a record of this group: check the configured prefix or table")]
    Record,
    #[error(
        "another etcd cluster answers than the configuration names: check where its endpoints lead, and that their cluster-id is the \
         configured one; a cluster that was made anew or restored has another id"
    )]
    OtherStore,
}

/// What keys wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum Waiting {
    #[error("its keys are being unsealed")]
    Unsealing,
    #[error("KMS or the parent's services cannot be reached")]
    Away,
    #[error("the parent's AWS credentials do not work")]
    Credentials,
    #[error("KMS denies it: the key policy requires other PCRs, or the parent's role lacks the right")]
    Denied,
    #[error("KMS or the parent refused: see the proxy's log, and CloudTrail for the denied call")]
    Refused,
    #[error("the state is sealed, but the fence has not confirmed that it refuses older ones from now on")]
    Fence,
}

/// What was wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum MalformedFrame {
    #[error("length {len} is outside 1 to {max} bytes")]
    Length { len: u64, max: u64 },
    #[error("version {0} is not supported here")]
    Version(u64),
    #[error("it is not the one valid encoding of a known message")]
    Encoding,
}

/// How the proxy should answer for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is at fault: 400.
    BadRequest,
    /// The key is not here: 404.
    NotFound,
    /// A rule or policy says no: 412.
    Refused,
    /// The enclave cannot serve it now: 503.
    Unavailable,
    /// Asked too often: 429.
    TooMany,
    /// The measured policy does not allow it to anybody: 403.
    Forbidden,
}

impl Refusal {
    /// Whether the duty waits for the fence's store alone: it may be signed as soon as that has granted more.
    pub fn is_above_ceiling(&self) -> bool {
        matches!(
            self,
            Self::BlockAboveCeiling { .. } | Self::TargetAboveCeiling { .. } | Self::SourceAboveCeiling { .. }
        )
    }

    /// The same, and what it hears once the store has been silent for some time.
    pub fn waits_for_store(&self) -> bool {
        self.is_above_ceiling() || matches!(self, Self::StoreSilent { .. })
    }

    /// The class of this refusal.
    pub fn kind(&self) -> Kind {
        match self {
            Self::MalformedFrame(_)
            | Self::MalformedCommand
            | Self::ForkInfoMissing
            | Self::SigningRootDiffers { .. }
            | Self::TooLong { .. }
            | Self::BlockProofMissing { .. }
            | Self::BlockProofWrong { .. }
            | Self::BadText => Kind::BadRequest,
            Self::KeyManagerImportOff | Self::KeyManagerDeleteOff => Kind::Forbidden,
            Self::UnknownKey | Self::ProofOfValidationOff => Kind::NotFound,
            // Above a ceiling the window allows it, and the fence's store has not: it is slow, or away.
            Self::BlockAboveCeiling { .. }
            | Self::TargetAboveCeiling { .. }
            | Self::SourceAboveCeiling { .. }
            | Self::StoreSilent { .. }
            | Self::NotHolder(_)
            | Self::ClockStopped
            | Self::StoreAway(_)
            | Self::FenceUnclear(_)
            | Self::NotSaved
            | Self::NsmFailed
            | Self::Starting(_)
            | Self::NotSealed(_)
            | Self::MaybeSealed(_) => Kind::Unavailable,
            Self::TooManyAttestations { .. } | Self::NsmBusy | Self::CommandBusy | Self::HandoverTooSoon { .. } => {
                Kind::TooMany
            }
            Self::NoOperators
            | Self::NoFenceRecord(_)
            | Self::FenceExists
            | Self::StoreCredentials
            | Self::RecordLost
            | Self::OtherLastState { .. }
            | Self::StateBeforeClosed { .. }
            | Self::FenceClosed
            | Self::OlderEnd { .. }
            | Self::CommandForAnother
            | Self::CommandCounter { .. }
            | Self::CommandSignature { .. }
            | Self::TooFewSignatures { .. }
            | Self::SecretsNotOpened
            | Self::WithdrawalNotAllowed(_)
            | Self::DepositAmount { .. }
            | Self::KeyNotHeld(_)
            | Self::ExitNotAllowed
            | Self::ExitTooLate { .. }
            | Self::FeeRecipientNotAllowed { .. }
            | Self::BuilderBidOff
            | Self::ImpossiblePast(_)
            | Self::OtherState { .. }
            | Self::TooManyKeys { .. }
            | Self::NoHistory
            | Self::OtherNetwork { .. }
            | Self::OtherGenesisVersion { .. }
            | Self::BlockFromFuture { .. }
            | Self::BlockNotAboveLast { .. }
            | Self::BlockNotAboveFloor { .. }
            | Self::BlockNotAboveHistory { .. }
            | Self::TargetNotAboveHistory { .. }
            | Self::SourceAboveTarget { .. }
            | Self::TargetFromFuture { .. }
            | Self::TargetNotAboveLast { .. }
            | Self::SourceBelowLast { .. }
            | Self::TargetNotAboveFloor { .. }
            | Self::SourceBelowFloor { .. }
            | Self::DutyFromFuture { .. }
            | Self::BlockTooOld { .. }
            | Self::TargetTooOld { .. }
            | Self::SourceIsTarget { .. }
            | Self::DutySlotFromFuture { .. } => Kind::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor::{self, Form};

    /// Its number crosses the wire: a variant that is put in front of it would be taken for it by an older proxy.
    #[test]
    fn the_last_trouble_of_a_store_has_the_last_number() {
        let mut bytes = Vec::new();
        assert!(cbor::encode(&StoreTrouble::OtherStore, Form::Numbered, &mut bytes));
        assert_eq!(bytes, [6]);
    }
}
