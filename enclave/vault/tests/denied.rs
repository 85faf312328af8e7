//! A change that the parent has kept and denies: «refused» is said only once the record refuses the state with it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

mod common;

use std::sync::Arc;

use casemate_protocol::configuration::Operators;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{Bytes, Refusal, Reply, Request};
use casemate_slashing::{Limits, SlashingHistory, Watermarks};
use casemate_vault::keys::custody::Unsealed;
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::keys::seal::{Contents, SealedKey, SecretBytes};
use casemate_vault::{
    Attestor, Clock, CommandProcessor, FenceParts, Identity, Keys, Loaded, Policy, SystemClock, Vault,
};
use common::fence::{Member, Memory, first_record, network, public_key};
use common::{Bench, GROUP};

/// An enclave with what the parent offers, and the fence's record in memory.
fn start(bench: &Bench, memory: &Memory) -> Member {
    let (network, clock) = (network(1000), Arc::new(SystemClock) as Arc<dyn Clock>);
    let custody = bench.start();
    let Unsealed { state_version, digest, contents } = custody.unseal(0).unwrap().unwrap();
    let loaded = Loaded { state_version, loaded_state_digest: Some(digest), ..Loaded::default() };
    let keys = Keys::unsealed(contents, |_, _, history| history).unwrap();
    let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
    let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, &network, &keys).unwrap();
    let operators = Operators { threshold: 1, keys: Vec::new() };
    let commands = CommandProcessor::new(custody, Arc::clone(&bench.nsm) as _, operators, Vec::new(), loaded);
    let (fence_gate, keeping) = FenceParts::with_record(Box::new(memory.clone())).split();
    let policy = Policy { key_manager_delete: true, ..Policy::default() };
    let vault = Vault::new(network, keys, Limits::NONE, policy, Box::new(SystemClock), Box::new(NullJournal))
        .fenced_by(fence_gate, clock)
        .attested_by(attestor)
        .commanded_by(commands);
    Member::run(vault, keeping)
}

/// Found by the simulator: the parent kept the state without the key, denied it, and offered it at the next start, when the answer
/// had been that nothing has changed. Had it been an import, the key would have signed here and where it was.
#[test]
fn a_refused_change_is_in_no_state_that_may_be_loaded() {
    let (bench, memory) = (Bench::new(), Memory::default());
    let history = SlashingHistory::Known(Watermarks::NONE);
    let secret = Some(SecretBytes([1; 32]));
    let key = SealedKey { public_key: public_key(), secret, history, fee_recipient: None };
    bench.start().seal(&Contents { keys: vec![key], ..Contents::default() }, 1).unwrap();
    *memory.record.lock().unwrap() = Some(first_record());
    let member = start(&bench, &memory);
    member.await_standing(StatedStatus::Holding);
    *bench.world.denials.lock().unwrap() = 1;
    let reply = member.vault.handle(&Request::DeleteKeys { keys: vec![public_key()] });
    assert_eq!(reply, Reply::Refused(Refusal::NotSealed(Waiting::Refused)));
    let numbers: Vec<u64> = bench.world.blobs.lock().unwrap().keys().copied().collect();
    let [.., denied, over] = numbers[..] else { panic!("{numbers:?}") };
    assert_eq!(memory.record.lock().unwrap().unwrap().min_state_version, over);
    // The parent hides the newest: the one that it has denied is too old.
    bench.world.blobs.lock().unwrap().remove(&over);
    let next = start(&bench, &memory);
    next.await_standing(StatedStatus::OldState);
    assert!(denied < over);
}
