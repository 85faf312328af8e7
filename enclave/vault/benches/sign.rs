//! The vault's path, frame in to frame out, beside raw blst on the same core.
//!
//! `cargo bench -p casemate-vault`
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;

use casemate_protocol::frame;
use casemate_protocol::network::NetworkFields;
use casemate_protocol::{
    AttestationData, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName, Network, Preset, PublicKey, ReplyFrame,
    Request, RequestFrame, Root, SignRequest, Slot,
};
use casemate_slashing::{Limits, SlashingHistory, Watermarks};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::signing::bls::{HashedMessage, SecretKey};
use casemate_vault::signing::signing_root;
use casemate_vault::{Clock, Keys, Policy, Vault};
use criterion::{Criterion, criterion_group, criterion_main};

const GENESIS: Root = Bytes([4; 32]);

struct EndOfTime;

impl Clock for EndOfTime {
    fn unix_ms(&self) -> Option<u64> {
        Some(u64::MAX)
    }
}

fn network() -> Network {
    let phase0 = Fork { name: ForkName::Phase0, version: Bytes::ZERO, epoch: Some(Epoch(0)) };
    NetworkFields {
        name: "bench".into(),
        preset: Preset::Mainnet,
        genesis_time: 0,
        genesis_validators_root: GENESIS,
        slot_duration_ms: 1,
        slots_per_epoch: 32,
        forks: vec![phase0],
    }
    .try_into()
    .unwrap()
}

fn request(public_key: PublicKey, target: u64, head: u64) -> SignRequest {
    let mut root = Root::ZERO;
    root.0[..8].copy_from_slice(&head.to_le_bytes());
    SignRequest {
        public_key,
        duty: Duty::Attestation(AttestationData {
            slot: Slot(target * 32),
            index: 0,
            beacon_block_root: root,
            source: Checkpoint { epoch: Epoch(0), root: GENESIS },
            target: Checkpoint { epoch: Epoch(target), root: GENESIS },
        }),
        fork_info: Some(ForkInfo { genesis_validators_root: GENESIS, ..ForkInfo::default() }),
        signing_root: None,
        proofs: Vec::new(),
    }
}

fn frame_of(request: SignRequest) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_request(&RequestFrame::new(1, Request::Sign(request)), &mut bytes);
    bytes.split_off(4)
}

fn benches(c: &mut Criterion) {
    let mut secrets: Vec<[u8; 32]> = (1..=64).map(|i| [i; 32]).collect();
    let mut keys = Vec::new();
    let held = Keys::load(&mut secrets, |_, key| {
        keys.push(*key);
        SlashingHistory::Known(Watermarks::NONE)
    })
    .unwrap();
    let vault =
        Vault::new(network(), held, Limits::NONE, Policy::permissive(), Box::new(EndOfTime), Box::new(NullJournal));
    let answer = |bytes: &[u8], out: &mut Vec<u8>| {
        let asked = frame::decode_request(bytes).unwrap();
        let reply = ReplyFrame::new(asked.id, vault.handle(&asked.request));
        assert!(matches!(reply.reply, casemate_protocol::Reply::Signature(_)), "{reply:?}");
        out.clear();
        frame::encode_channel_reply(1, &reply, out);
    };

    let mut group = c.benchmark_group("sign");
    let raw = blst::min_pk::SecretKey::from_bytes(&[1; 32]).unwrap();
    let mut n: u64 = 0;
    group.bench_function("raw blst, every message another", |b| {
        b.iter(|| {
            n += 1;
            let mut message = [0; 32];
            message[..8].copy_from_slice(&n.to_le_bytes());
            black_box(raw.sign(&message, b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_", &[]).to_bytes())
        });
    });
    let mut out = Vec::new();
    let mut n: u64 = 0;
    let mut next = |shared: bool| {
        n += 1;
        // Each key's targets rise; with a shared root all keys vote alike before the next epoch comes.
        let (epoch, key) = (1 + n / 64, keys[usize::try_from(n % 64).unwrap()]);
        frame_of(request(key, epoch, if shared { epoch } else { n }))
    };
    group.bench_function("vault, all roots different", |b| {
        b.iter_batched(|| next(false), |f| answer(&f, &mut out), criterion::BatchSize::SmallInput);
    });
    group.bench_function("vault, one root per slot", |b| {
        b.iter_batched(|| next(true), |f| answer(&f, &mut out), criterion::BatchSize::SmallInput);
    });
    group.finish();

    let mut group = c.benchmark_group("parts");
    let asked = request(keys[0], 1, 1);
    let bytes = frame_of(asked.clone());
    group.bench_function("decode a request", |b| b.iter(|| frame::decode_request(black_box(&bytes)).unwrap()));
    let network = network();
    group.bench_function("signing root of an attestation", |b| {
        b.iter(|| signing_root::compute(black_box(&asked.duty), asked.fork_info.as_ref(), &network).unwrap());
    });
    group.bench_function("hash to G2", |b| b.iter(|| HashedMessage::new(black_box(&[7; 32]))));
    let (key, point) = (SecretKey::from_be_bytes(&mut [1; 32]).unwrap(), HashedMessage::new(&[7; 32]));
    group.bench_function("multiply and compress", |b| b.iter(|| key.sign(black_box(&point))));
    group.finish();
}

criterion_group!(sign, benches);
criterion_main!(sign);
