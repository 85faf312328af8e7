//! The signing log: one chain for each boot, its heads signed by the key that the statement names.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, reason = "to trait objects")]

mod common;

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use casemate_protocol::log::{LogPage, MAX_RECORDS_PER_PAGE, Message, chain_start};
use casemate_protocol::network::NetworkFields;
use casemate_protocol::{
    BoundedBytes, Bytes, Duty, Epoch, Fork, ForkInfo, ForkName, Network, Preset, PublicKey, Refusal, Reply, Request,
    Root, SignRequest, Slot, Statement,
};
use casemate_slashing::{Ceilings, Floors, Limits, SlashingHistory, Watermarks};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::{Attestor, Clock, Identity, Keys, Policy, Vault};
use common::{Bench, GROUP};

/// What the vault keeps for a proxy that does not ask.
const KEPT: u64 = 32_768;

struct FixedClock;

impl Clock for FixedClock {
    fn unix_ms(&self) -> Option<u64> {
        Some(1000 * 12_000)
    }
}

struct Signer {
    vault: Vault,
    network: Network,
    key: PublicKey,
    statement: Statement,
}

fn network() -> Network {
    NetworkFields {
        name: "test".into(),
        preset: Preset::Mainnet,
        genesis_time: 0,
        genesis_validators_root: Bytes([4; 32]),
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
    }
    .try_into()
    .unwrap()
}

fn signer(ceilings: Ceilings) -> Signer {
    let bench = Bench::new();
    let network = network();
    let keys = Keys::load(&mut [[1; 32]], |_, _| SlashingHistory::Known(Watermarks::NONE)).unwrap();
    let key = keys.signing().next().unwrap();
    let identity = Identity { group: GROUP.into(), configuration_sha256: Bytes([9; 32]) };
    let attestor = Attestor::new(Arc::clone(&bench.nsm) as _, identity, &network, &keys).unwrap();
    let limits = Limits { floors: Floors::default(), ceilings };
    let policy = Policy::default();
    let vault = Vault::new(network.clone(), keys, limits, policy, Box::new(FixedClock), Box::new(NullJournal));
    let vault = vault.attested_by(attestor);
    let nonce = BoundedBytes::new(vec![7; 16]).unwrap();
    let Reply::Attestation { statement, .. } = vault.handle(&Request::Attestation { nonce }) else { panic!() };
    Signer { vault, network, key, statement: Statement::decode(statement.as_ref()).unwrap() }
}

impl Signer {
    fn sign(&self, public_key: PublicKey, duty: Duty) -> Reply {
        let version = self.network.genesis_version();
        let fork_info = ForkInfo {
            previous_version: version,
            current_version: version,
            epoch: Epoch(0),
            genesis_validators_root: self.network.genesis_validators_root(),
        };
        let fork_info = Some(fork_info);
        let request = SignRequest { public_key, duty, fork_info, signing_root: None, proofs: Vec::new() };
        self.vault.handle(&Request::Sign(request))
    }

    fn page(&self, after: u64) -> LogPage {
        match self.vault.handle(&Request::Log { after, nonce: None }) {
            Reply::Log(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// Follows the chain by the document's formulas.
    fn check(&self, page: &LogPage) -> Root {
        let mut hash = page.before;
        for record in &page.records {
            let mut bytes = hash.0.to_vec();
            record.encode(&mut bytes);
            hash = sha256(&bytes);
        }
        assert_eq!(page.head.hash, hash);
        assert_eq!(page.head.number, page.first + u64::try_from(page.records.len()).unwrap() - 1);
        assert_eq!(page.head.boot_nonce, self.statement.boot_nonce);
        UnparsedPublicKey::new(&ED25519, self.statement.record_key.0)
            .verify(&page.head.signed_bytes(), &page.head.signature.0)
            .unwrap();
        hash
    }
}

fn sha256(bytes: &[u8]) -> Root {
    Bytes(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

fn randao(epoch: u64) -> Duty {
    Duty::RandaoReveal { epoch: Epoch(epoch) }
}

#[test]
fn what_was_signed_and_refused_is_in_the_log_in_order() {
    let signer = signer(Ceilings::NONE);
    let empty = signer.page(0);
    assert_eq!((empty.first, empty.head.number, empty.last, empty.records.len()), (1, 0, 0, 0));
    assert_eq!(signer.check(&empty), sha256(&chain_start(&signer.statement.boot_nonce)));
    let exit = Duty::VoluntaryExit { epoch: Epoch(3), validator_index: 5 };
    assert!(matches!(signer.sign(signer.key, randao(3)), Reply::Signature(_)));
    assert!(matches!(signer.sign(signer.key, exit), Reply::Refused(Refusal::ExitNotAllowed)));
    assert!(matches!(signer.sign(signer.key, randao(40)), Reply::Refused(Refusal::DutyFromFuture { .. })));
    // Keys that are not here are none of this log's.
    assert!(matches!(signer.sign(Bytes([9; 48]), randao(3)), Reply::Refused(Refusal::UnknownKey)));
    let page = signer.page(0);
    signer.check(&page);
    let told: Vec<_> = page.records.iter().map(|r| (r.public_key, r.message, r.refusal)).collect();
    let reveal = Message::RandaoReveal { epoch: Epoch(3) };
    assert_eq!(
        told,
        [
            (signer.key, reveal, None),
            (signer.key, Message::from(&exit), Some(Refusal::ExitNotAllowed)),
            (signer.key, Message::RandaoReveal { epoch: Epoch(40) }, page.records[2].refusal),
        ]
    );
    assert!(page.records[0].signing_root.is_some() && page.records[1].signing_root.is_none());
    assert!(page.records[2].signing_root.is_some() && page.records[2].refusal.is_some());
    assert_eq!(page.records[0].time_ms, FixedClock.unix_ms().unwrap());
    // Asked again, it tells the same; asked for the rest, the rest.
    assert_eq!(signer.page(0).records, page.records);
    let rest = signer.page(2);
    assert_eq!((rest.first, rest.records.as_slice(), rest.head.hash), (3, &page.records[2..], page.head.hash));
    // One that knows more than there is learns where the chain stands.
    let nothing = signer.page(u64::MAX);
    assert_eq!((nothing.records.len(), nothing.head.number, nothing.head.hash), (0, 3, page.head.hash));
    // Another boot has another chain and another key.
    let other = self::signer(Ceilings::NONE);
    assert_ne!(other.page(0).head.hash, empty.head.hash);
    assert_ne!(other.statement.record_key, signer.statement.record_key);
}

#[test]
fn pages_follow_on_each_other_and_the_oldest_records_go_first() {
    let signer = signer(Ceilings::NONE);
    let total = KEPT + 100;
    for n in 0..total {
        let refused = signer.sign(signer.key, Duty::VoluntaryExit { epoch: Epoch(n), validator_index: 1 });
        assert_eq!(refused, Reply::Refused(Refusal::ExitNotAllowed));
    }
    let first = signer.page(0);
    assert_eq!((first.first, first.last), (101, total));
    let (mut after, mut hash) = (first.first - 1, first.before);
    while after < total {
        let page = signer.page(after);
        assert_eq!((page.first, page.before), (after + 1, hash));
        assert!(page.records.len() <= MAX_RECORDS_PER_PAGE);
        assert_eq!(page.records[0].message, Message::VoluntaryExit { epoch: Epoch(after), validator_index: 1 });
        hash = signer.check(&page);
        after = page.head.number;
    }
    assert_eq!(signer.page(after).records.len(), 0);
}

#[test]
fn what_waits_for_the_fence_is_not_logged_as_refused() {
    let signer = signer(Ceilings { slot: Slot(5), target: Epoch(1), source: Epoch(1) });
    let block = casemate_protocol::BeaconBlockHeader { slot: Slot(1000), ..Default::default() };
    let refused = signer.sign(signer.key, Duty::Block(block));
    assert!(matches!(refused, Reply::Refused(Refusal::BlockAboveCeiling { .. })), "{refused:?}");
    assert_eq!(signer.page(0).last, 0);
}

#[test]
fn a_head_is_signed_for_whoever_asks_now() {
    let signer = signer(Ceilings::NONE);
    let nonce = |byte| BoundedBytes::new(vec![byte; 16]).unwrap();
    let Reply::Log(page) = signer.vault.handle(&Request::Log { after: u64::MAX, nonce: Some(nonce(1)) }) else {
        panic!()
    };
    let verify = |nonce: &_| {
        UnparsedPublicKey::new(&ED25519, signer.statement.record_key.0)
            .verify(&page.head.fresh_bytes(nonce), &page.fresh.unwrap().0)
            .is_ok()
    };
    assert!(verify(&nonce(1)));
    assert!(!verify(&nonce(2)));
    assert!(signer.page(0).fresh.is_none());
}
