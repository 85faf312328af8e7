//! Whatever requests come, in whatever order: the vault answers each, and signs no two that are slashable.
#![no_main]

use std::cell::RefCell;

use casemate_protocol::{Duty, Reply, Request, frame};
use casemate_slashing::{Limits, SlashingHistory, Watermarks};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::{Clock, Keys, Policy, Vault};
use libfuzzer_sys::fuzz_target;

struct EndOfTime;

impl Clock for EndOfTime {
    fn unix_ms(&self) -> Option<u64> {
        Some(u64::MAX)
    }
}

thread_local! {
    static KEYS: RefCell<Vec<casemate_protocol::PublicKey>> = const { RefCell::new(Vec::new()) };
}

fuzz_target!(|bytes: &[u8]| {
    let network = casemate_config::parse(casemate_config::NAMED[0].1).unwrap();
    let root = network.genesis_validators_root();
    let mut keys = Vec::new();
    let held = Keys::load(&mut [[1; 32]], |_, key| {
        keys.push(*key);
        SlashingHistory::Known(Watermarks::NONE)
    })
    .unwrap();
    let vault =
        Vault::new(network, held, Limits::NONE, Policy::permissive(), Box::new(EndOfTime), Box::new(NullJournal));
    let mut votes: Vec<(u64, u64, Duty)> = Vec::new();
    let mut blocks: Vec<(u64, Duty)> = Vec::new();
    let mut rest = bytes;
    while let Ok(Some((inner, used))) = frame::split(rest, 1024) {
        rest = &rest[used..];
        let Ok(mut asked) = frame::decode_request(inner) else { continue };
        // The fuzzer need not guess the key and the chain.
        if let Request::Sign(request) = &mut asked.request {
            request.public_key = keys[0];
            request.signing_root = None;
            if let Some(fork_info) = &mut request.fork_info {
                fork_info.genesis_validators_root = root;
            }
        }
        let reply = vault.handle(&asked.request);
        let (Request::Sign(request), Reply::Signature(_)) = (&asked.request, &reply) else { continue };
        match request.duty {
            Duty::Attestation(data) => {
                let (s, t) = (data.source.epoch.0, data.target.epoch.0);
                assert!(s <= t);
                for (s2, t2, other) in &votes {
                    assert!(t != *t2 || request.duty == *other, "double vote");
                    assert!(!((s < *s2 && *t2 < t) || (*s2 < s && t < *t2)), "surround");
                }
                votes.push((s, t, request.duty));
            }
            Duty::Block(header) => {
                for (slot, other) in &blocks {
                    assert!(header.slot.0 != *slot || request.duty == *other, "double proposal");
                }
                blocks.push((header.slot.0, request.duty));
            }
            _ => {}
        }
    }
});
