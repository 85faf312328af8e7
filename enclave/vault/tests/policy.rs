//! What blocks must prove of themselves: their fee recipient and graffiti, by the index of their fork.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use aws_lc_rs::digest::{SHA256, digest};
use casemate_protocol::configuration::Window;
use casemate_protocol::frame::BlockProof;
use casemate_protocol::network::NetworkFields;
use casemate_protocol::{
    BeaconBlockHeader, BoundedBytes, Bytes, Duty, Epoch, ExecutionAddress, Fork, ForkInfo, ForkName, Preset, PublicKey,
    Refusal, Reply, Request, Root, SignRequest, Slot,
};
use casemate_slashing::{Limits, SlashingHistory, Watermarks};
use casemate_testdata::{folder, json};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::{Clock, Keys, Policy, Vault};
use serde_json::Value;

const GENESIS: Root = Bytes([4; 32]);
const FEES: ExecutionAddress = Bytes([0xfe; 20]);

struct FixedClock(u64);

impl Clock for FixedClock {
    fn unix_ms(&self) -> Option<u64> {
        Some(self.0)
    }
}

struct Signer {
    vault: Vault,
    key: PublicKey,
    root: Root,
}

/// Forks every 10 epochs, from phase0 to gloas; the clock is far enough.
fn signer(policy: Policy) -> Signer {
    let names = [
        ForkName::Phase0,
        ForkName::Altair,
        ForkName::Bellatrix,
        ForkName::Capella,
        ForkName::Deneb,
        ForkName::Electra,
        ForkName::Fulu,
        ForkName::Gloas,
    ];
    let forks = (0..).zip(names).map(|(n, name)| Fork { name, version: Bytes([7; 4]), epoch: Some(Epoch(n * 10)) });
    signer_on(policy, GENESIS, forks.collect(), Slot(3000))
}

fn signer_on(policy: Policy, root: Root, forks: Vec<Fork>, now: Slot) -> Signer {
    let network = NetworkFields {
        name: "test".into(),
        preset: Preset::Mainnet,
        genesis_time: 0,
        genesis_validators_root: root,
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks,
    };
    let keys = Keys::load(&mut [[1; 32]], |_, _| SlashingHistory::Known(Watermarks::NONE)).unwrap();
    let (key, clock) = (keys.signing().next().unwrap(), FixedClock(now.0 * 12_000));
    let network = network.try_into().unwrap();
    // Blocks of every fork, under one clock.
    let policy = Policy { window: Window::ANY, ..policy };
    let vault = Vault::new(network, keys, Limits::NONE, policy, Box::new(clock), Box::new(NullJournal));
    Signer { vault, key, root }
}

impl Signer {
    fn block(&self, slot: u64, body_root: Root, proofs: &[BlockProof]) -> Result<(), Refusal> {
        let header = BeaconBlockHeader { slot: Slot(slot), body_root, ..BeaconBlockHeader::default() };
        self.sign(header, proofs)
    }

    fn sign(&self, header: BeaconBlockHeader, proofs: &[BlockProof]) -> Result<(), Refusal> {
        let fork_info = ForkInfo { genesis_validators_root: self.root, ..ForkInfo::default() };
        let request = SignRequest {
            public_key: self.key,
            duty: Duty::Block(header),
            fork_info: Some(fork_info),
            signing_root: None,
            proofs: proofs.to_vec(),
        };
        match self.vault.handle(&Request::Sign(request)) {
            Reply::Signature(_) => Ok(()),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }
}

/// A bid that wins and is not paid for is taken out of the builder's balance.
#[test]
fn a_builders_bid_commits_a_balance_and_is_off_by_default() {
    let bid = |policy: Policy| {
        let signer = signer(policy);
        let fork_info = ForkInfo { genesis_validators_root: signer.root, ..ForkInfo::default() };
        let request = SignRequest {
            public_key: signer.key,
            duty: Duty::ExecutionPayloadBid { slot: Slot(3000), object_root: Bytes([9; 32]) },
            fork_info: Some(fork_info),
            signing_root: None,
            proofs: Vec::new(),
        };
        signer.vault.handle(&Request::Sign(request))
    };
    assert_eq!(bid(Policy::default()), Reply::Refused(Refusal::BuilderBidOff));
    let allowed = bid(Policy { builder_bids: true, ..Policy::default() });
    assert!(matches!(allowed, Reply::Signature(_)), "{allowed:?}");
    // As the measured configuration hands it over.
    let none = casemate_protocol::configuration::Policy::default();
    assert!(!Policy::from(none.clone()).builder_bids);
    let measured = casemate_protocol::configuration::Policy { builder_bids: true, ..none };
    assert!(Policy::from(measured).builder_bids);
}

fn hash(left: Root, right: Root) -> Root {
    Bytes(digest(&SHA256, &[left.0, right.0].concat()).as_ref().try_into().unwrap())
}

/// A tree that has these leaves at these generalised indices and noise elsewhere: its root, and the branch of each.
fn tree(leaves: &[(u64, Root)]) -> (Root, Vec<BlockProof>) {
    fn node(at: u64, leaves: &[(u64, Root)]) -> Root {
        if let Some((_, leaf)) = leaves.iter().find(|(index, _)| *index == at) {
            return *leaf;
        }
        let below = |index: u64| (0..=index.ilog2()).any(|up| index >> up == at);
        if leaves.iter().any(|(index, _)| below(*index)) {
            return hash(node(2 * at, leaves), node(2 * at + 1, leaves));
        }
        Bytes(digest(&SHA256, &at.to_be_bytes()).as_ref().try_into().unwrap())
    }
    let branch = |index: u64| {
        let siblings = (0..index.ilog2()).map(|up| (index >> up) ^ 1);
        let bytes: Vec<u8> = siblings.flat_map(|at| node(at, leaves).0).collect();
        BlockProof { index, branch: BoundedBytes::new(bytes).unwrap() }
    };
    (node(1, leaves), leaves.iter().map(|(index, _)| branch(*index)).collect())
}

fn padded(bytes: &[u8]) -> Root {
    let mut root = Root::ZERO;
    root.0[..bytes.len()].copy_from_slice(bytes);
    root
}

/// The first slot of each fork, from phase0 on.
fn slot_of(fork: u64) -> u64 {
    fork * 320
}

#[test]
fn a_fee_recipient_is_proved_at_the_index_of_its_fork() {
    let policy = Policy { fee_recipient: Some(FEES), block_proofs: true, ..Policy::default() };
    let signer = signer(policy);
    for (fork, index) in [(2, 401), (3, 401), (4, 801), (5, 801), (6, 801)] {
        let slot = slot_of(fork);
        let (root, proofs) = tree(&[(index, padded(&FEES.0))]);
        assert_eq!(signer.block(slot, root, &[]), Err(Refusal::BlockProofMissing { index }));
        // Of the other fork's index, though its branch is right.
        let other = if index == 401 { 801 } else { 401 };
        let (other_root, others) = tree(&[(other, padded(&FEES.0))]);
        assert_eq!(signer.block(slot, other_root, &others), Err(Refusal::BlockProofMissing { index }));
        // Right, of another address; of another body; cut off; lengthened; with a bit changed.
        let wrong = Err(Refusal::BlockProofWrong { index });
        let (thief_root, thief) = tree(&[(index, padded(&[0xba; 20]))]);
        assert_eq!(signer.block(slot, thief_root, &thief), wrong);
        assert_eq!(signer.block(slot, Bytes([1; 32]), &proofs), wrong);
        let nodes = proofs[0].branch.as_ref().to_vec();
        let bent = |nodes: Vec<u8>| vec![BlockProof { index, branch: BoundedBytes::new(nodes).unwrap() }];
        assert_eq!(signer.block(slot, root, &bent(nodes[32..].to_vec())), wrong);
        assert_eq!(signer.block(slot, root, &bent(nodes[..nodes.len() - 1].to_vec())), wrong);
        assert_eq!(signer.block(slot, root, &bent([nodes.clone(), vec![0; 32]].concat())), wrong);
        let mut flipped = nodes;
        flipped[40] ^= 1;
        assert_eq!(signer.block(slot, root, &bent(flipped)), wrong);
        assert_eq!(signer.block(slot, padded(&FEES.0), &bent(Vec::new())), wrong);
        // Nothing of that has moved a watermark. Proofs may come in any order.
        let both = [others, proofs].concat();
        assert_eq!(signer.block(slot, root, &both), Ok(()), "{fork}");
    }
    // Before Bellatrix there are no fees, and in Gloas the proposer's preferences guard them.
    assert_eq!(signer.block(slot_of(7), Bytes([1; 32]), &[]), Ok(()));
    for fork in [0, 1] {
        let policy = Policy { fee_recipient: Some(FEES), block_proofs: true, ..Policy::default() };
        assert_eq!(self::signer(policy).block(slot_of(fork) + 1, Bytes([1; 32]), &[]), Ok(()));
    }
}

#[test]
fn graffiti_is_proved_in_every_fork() {
    let policy = Policy { graffiti: Some(padded(b"casemate")), block_proofs: true, ..Policy::default() };
    let signer = signer(policy);
    for (fork, index) in (0..8).zip([10, 18, 18, 18, 18, 18, 18, 41]) {
        let (root, proofs) = tree(&[(index, padded(b"casemate"))]);
        let slot = slot_of(fork) + 1;
        assert_eq!(signer.block(slot, root, &[]), Err(Refusal::BlockProofMissing { index }));
        let (other, wrong) = tree(&[(index, padded(b"casemates"))]);
        assert_eq!(signer.block(slot, other, &wrong), Err(Refusal::BlockProofWrong { index }));
        assert_eq!(signer.block(slot, root, &proofs), Ok(()));
    }
}

/// `merkleize_progressive` of EIP-7916: subtrees of 1, 4, 16… leaves, each on the left of what follows it.
fn progressive(leaves: &[Root], width: usize) -> Root {
    if leaves.is_empty() {
        return Root::ZERO;
    }
    let mut row = leaves[..width.min(leaves.len())].to_vec();
    row.resize(width, Root::ZERO);
    while row.len() > 1 {
        row = row.chunks(2).map(|pair| hash(pair[0], pair[1])).collect();
    }
    hash(row[0], progressive(&leaves[width.min(leaves.len())..], width * 4))
}

/// A body of Gloas, put together as the specification says: a progressive container of 13 fields (EIP-7495, EIP-7688).
#[test]
fn a_body_of_gloas_proves_its_graffiti() {
    let mut fields: Vec<Root> = (1..=13).map(|field| Bytes([field; 32])).collect();
    fields[2] = padded(b"casemate");
    let active = padded(&[0xff, 0x1f]);
    let body_root = hash(progressive(&fields, 1), active);
    let nodes = [fields[1], hash(fields[3], fields[4]), progressive(&fields[5..], 16), fields[0], active];
    let branch: Vec<u8> = nodes.iter().flat_map(|node| node.0).collect();
    let proof = BlockProof { index: 41, branch: BoundedBytes::new(branch).unwrap() };
    let policy = Policy { graffiti: Some(padded(b"casemate")), block_proofs: true, ..Policy::default() };
    let signer = signer(policy);
    let slot = slot_of(7);
    assert_eq!(signer.block(slot, body_root, &[]), Err(Refusal::BlockProofMissing { index: 41 }));
    assert_eq!(
        signer.block(slot, hash(body_root, active), std::slice::from_ref(&proof)),
        Err(Refusal::BlockProofWrong { index: 41 })
    );
    assert_eq!(signer.block(slot, body_root, &[proof]), Ok(()));
}

/// Relays take the newest registration: one for the days to come would outlive an order that changes the address.
#[test]
fn registrations_are_of_now() {
    let signer = signer(Policy::default());
    let register = |timestamp| {
        let duty = Duty::ValidatorRegistration {
            fee_recipient: FEES,
            gas_limit: 60_000_000,
            timestamp,
            public_key: signer.key,
        };
        let request =
            SignRequest { public_key: signer.key, duty, fork_info: None, signing_root: None, proofs: Vec::new() };
        signer.vault.handle(&Request::Sign(request))
    };
    // Now is the first second of slot 3000: in epoch 93, and the last of the epoch after the next ends with slot 3071.
    for timestamp in [0, 3000 * 12, 3072 * 12 - 1] {
        assert!(matches!(register(timestamp), Reply::Signature(_)), "{timestamp}");
    }
    for (timestamp, epoch) in [(3072 * 12, 96), (u64::MAX, u64::MAX / 1000 / 12 / 32)] {
        let refused = Refusal::DutyFromFuture { epoch: Epoch(epoch), now: Epoch(93), latest: Epoch(95) };
        assert_eq!(register(timestamp), Reply::Refused(refused));
    }
}

#[test]
fn both_are_asked_for_where_both_are_named_and_neither_without_the_policy() {
    let policy = Policy {
        fee_recipient: Some(FEES),
        graffiti: Some(padded(b"casemate")),
        block_proofs: true,
        ..Policy::default()
    };
    let signer = signer(policy.clone());
    let (root, proofs) = tree(&[(801, padded(&FEES.0)), (18, padded(b"casemate"))]);
    let slot = slot_of(4);
    assert_eq!(signer.block(slot, root, &proofs[..1]), Err(Refusal::BlockProofMissing { index: 18 }));
    assert_eq!(signer.block(slot, root, &proofs[1..]), Err(Refusal::BlockProofMissing { index: 801 }));
    assert_eq!(signer.block(slot, root, &proofs), Ok(()));
    let without = self::signer(Policy { block_proofs: false, ..policy });
    assert_eq!(without.block(slot, Bytes([1; 32]), &[]), Ok(()));
    // What comes all the same is not looked at.
    assert_eq!(without.block(slot + 1, Bytes([1; 32]), &proofs), Ok(()));
}

/// A block of Nimbus's own tests, with the branches that the official specification gives.
#[test]
fn a_block_of_nimbus_passes_with_its_proofs() {
    let Some(data) = folder("client-requests/nimbus") else { return };
    let hex = |value: &Value| const_hex::decode(value.as_str().unwrap()).unwrap();
    let root = |value: &Value| Bytes(<[u8; 32]>::try_from(hex(value)).unwrap());
    let number = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
    let cases = json(&data.join("derived-verifying-web3signer-requests.json"));
    let mut seen = Vec::new();
    for case in cases.as_array().unwrap() {
        let request = &case["request"];
        let header = &request["beacon_block"]["block_header"];
        let header = BeaconBlockHeader {
            slot: Slot(number(&header["slot"])),
            proposer_index: number(&header["proposer_index"]),
            parent_root: root(&header["parent_root"]),
            state_root: root(&header["state_root"]),
            body_root: root(&header["body_root"]),
        };
        let proof = |proof: &Value| BlockProof {
            index: number(&proof["index"]),
            branch: BoundedBytes::new(proof["proof"].as_array().unwrap().iter().flat_map(hex).collect()).unwrap(),
        };
        let fees: Vec<BlockProof> = request["proofs"].as_array().unwrap().iter().map(proof).collect();
        let nodes = case["graffiti_gindex18_proof"].as_array().unwrap().iter().flat_map(hex).collect();
        let graffiti = BlockProof { index: 18, branch: BoundedBytes::new(nodes).unwrap() };
        let deneb = case["fork"] != "capella";
        let fork = |name, epoch| Fork { name, version: Bytes([7; 4]), epoch };
        let forks = vec![
            fork(ForkName::Phase0, Some(Epoch(0))),
            fork(ForkName::Capella, Some(Epoch(0))),
            fork(ForkName::Deneb, deneb.then_some(Epoch(0))),
        ];
        let fee_recipient = Bytes(<[u8; 20]>::try_from(hex(&case["expected_fee_recipient"])).unwrap());
        let policy = |fee_recipient| Policy {
            fee_recipient: Some(fee_recipient),
            graffiti: Some(root(&case["graffiti_gindex18_leaf"])),
            block_proofs: true,
            ..Policy::default()
        };
        let chain = root(&request["fork_info"]["genesis_validators_root"]);
        let proofs = [fees, vec![graffiti]].concat();
        let ours = signer_on(policy(fee_recipient), chain, forks.clone(), header.slot);
        assert_eq!(ours.sign(header, &proofs), Ok(()), "{}", case["name"]);
        let index = if deneb { 801 } else { 401 };
        let others = signer_on(policy(Bytes([1; 20])), chain, forks, header.slot);
        assert_eq!(others.sign(header, &proofs), Err(Refusal::BlockProofWrong { index }));
        seen.push(index);
    }
    assert_eq!(seen, [401], "the file has a Capella block");
}
