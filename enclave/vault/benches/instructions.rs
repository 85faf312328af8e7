//! So many turns of the vault's path, for counting instructions: `tests/instructions` runs it under callgrind.
//!
//! Arguments: a kind (`rules`, `shared`, `different`, `batch`) and a number of turns. Without them, one turn of each.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;

use casemate_protocol::network::NetworkFields;
use casemate_protocol::{
    AttestationData, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName, Preset, PublicKey, Refusal, Reply,
    ReplyFrame, Request, RequestFrame, Root, SignRequest, Slot, frame,
};
use casemate_slashing::{Limits, SlashingHistory, Watermarks};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::signing::bls::{BATCH, HashedMessage, SecretKey, sign_batch};
use casemate_vault::{Clock, Keys, Policy, Vault};

const GENESIS: Root = Bytes([4; 32]);

struct EndOfTime;

impl Clock for EndOfTime {
    fn unix_ms(&self) -> Option<u64> {
        Some(u64::MAX)
    }
}

struct Bench {
    vault: Vault,
    keys: Vec<PublicKey>,
    secrets: Vec<SecretKey>,
    out: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let network = NetworkFields {
            name: "bench".into(),
            preset: Preset::Mainnet,
            genesis_time: 0,
            genesis_validators_root: GENESIS,
            slot_duration_ms: 1,
            slots_per_epoch: 32,
            forks: vec![Fork { name: ForkName::Phase0, version: Bytes::ZERO, epoch: Some(Epoch(0)) }],
        };
        let mut secrets = [[1; 32], [2; 32], [3; 32], [4; 32]];
        let own = secrets.iter().map(|secret| SecretKey::from_be_bytes(&mut { *secret }).unwrap()).collect();
        let keys = Keys::load(&mut secrets, |_, _| SlashingHistory::Known(Watermarks::NONE)).unwrap();
        let public = keys.signing().collect();
        let (network, clock) = (network.try_into().unwrap(), Box::new(EndOfTime));
        let vault = Vault::new(network, keys, Limits::NONE, Policy::permissive(), clock, Box::new(NullJournal));
        Self { vault, keys: public, secrets: own, out: Vec::new() }
    }

    /// From a frame's bytes to the reply's.
    fn turn(&mut self, key: usize, target: u64, head: u64) -> Reply {
        let mut root = Root::ZERO;
        root.0[..8].copy_from_slice(&head.to_le_bytes());
        let data = AttestationData {
            slot: Slot(target * 32),
            index: 0,
            beacon_block_root: root,
            source: Checkpoint { epoch: Epoch(0), root: GENESIS },
            target: Checkpoint { epoch: Epoch(target), root: GENESIS },
        };
        let request = SignRequest {
            public_key: self.keys[key],
            duty: Duty::Attestation(data),
            fork_info: Some(ForkInfo { genesis_validators_root: GENESIS, ..ForkInfo::default() }),
            signing_root: None,
            proofs: Vec::new(),
        };
        let mut bytes = Vec::new();
        frame::encode_request(&RequestFrame::new(1, Request::Sign(request)), &mut bytes);
        let asked = frame::decode_request(black_box(&bytes[4..])).unwrap();
        let reply = ReplyFrame::new(asked.id, self.vault.handle(&asked.request));
        self.out.clear();
        frame::encode_channel_reply(1, &reply, &mut self.out);
        reply.reply
    }

    fn run(&mut self, kind: &str, turns: u64) {
        for n in 0..turns {
            let key = usize::try_from(n % 4).unwrap();
            let epoch = 10 + n / 4;
            match kind {
                // Judged and refused: everything but the signature.
                "rules" => {
                    let reply = self.turn(key, 9, n + 1);
                    let refused = matches!(reply, Reply::Refused(Refusal::TargetNotAboveLast { .. }));
                    assert!(refused || n < 4, "{reply:?}");
                }
                "shared" => assert!(matches!(self.turn(key, epoch, epoch), Reply::Signature(_))),
                "different" => assert!(matches!(self.turn(key, epoch, n), Reply::Signature(_))),
                // What a worker of the server does with sixteen that are due together.
                "batch" => {
                    let message = HashedMessage::new(&[7; 32]);
                    let due: Vec<_> = self.secrets.iter().cycle().take(BATCH).map(|key| (key, &message)).collect();
                    assert_eq!(sign_batch(black_box(due).into_iter()).map(black_box).count(), BATCH);
                }
                other => panic!("{other} is none of rules, shared, different, batch"),
            }
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut bench = Bench::new();
    match arguments.as_slice() {
        [kind, turns] if turns.parse::<u64>().is_ok() => bench.run(kind, turns.parse().unwrap()),
        _ => ["rules", "shared", "different", "batch"].into_iter().for_each(|kind| Bench::new().run(kind, 1)),
    }
}
