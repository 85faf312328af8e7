//! Attestation documents of the vault, made by a software NSM and compared with the verifier.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use casemate_document::{Anchor, At, Document, Expected, Timestamp, Unverified};
use casemate_nsm::{Authority, Pcrs, Request as NsmRequest, Response as NsmResponse, SoftwareNsm, root_params};
use casemate_protocol::frame::Nonce;
use casemate_protocol::statement::{FenceKind, FenceStatement, StatedStatus};
use casemate_protocol::{Bytes, Network, Refusal, Reply, Request, Statement};
use casemate_slashing::{Limits, SlashingHistory, Watermarks};
use casemate_vault::keys::journal::NullJournal;
use casemate_vault::platform::attest::BURST;
use casemate_vault::{Attestor, Identity, Keys, Nsm, Policy, SystemClock, Vault};

const NOW: u64 = 1_790_000_000_123;
const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";

struct Soft(Arc<SoftwareNsm>);

impl Nsm for Soft {
    fn process(&self, request: NsmRequest) -> NsmResponse {
        self.0.process(request)
    }
}

fn software_nsm() -> Arc<SoftwareNsm> {
    let pcrs = Pcrs::measure(b"kernel", b"application", MODULE_ID);
    let root = Authority::root(root_params()).unwrap();
    Arc::new(SoftwareNsm::new(root, MODULE_ID, &pcrs, Box::new(|| NOW)))
}

fn network() -> Network {
    casemate_protocol::network::NetworkFields {
        name: "test".into(),
        preset: casemate_protocol::Preset::Mainnet,
        genesis_time: 1_742_213_400,
        genesis_validators_root: Bytes([3; 32]),
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks: vec![casemate_protocol::Fork {
            name: casemate_protocol::ForkName::Phase0,
            version: Bytes([1, 2, 3, 4]),
            epoch: Some(casemate_protocol::Epoch(0)),
        }],
    }
    .try_into()
    .unwrap()
}

fn identity() -> Identity {
    Identity { group: "alpha".into(), configuration_sha256: Bytes([9; 32]) }
}

fn vault(nsm: Arc<dyn Nsm>, keys: u8, with_history: u8) -> Vault {
    let mut secrets: Vec<[u8; 32]> = (1..=keys).map(|n| [n; 32]).collect();
    let keys = Keys::load(&mut secrets, |number, _| {
        if number < usize::from(with_history) {
            SlashingHistory::Known(Watermarks::NONE)
        } else {
            SlashingHistory::Missing
        }
    })
    .unwrap();
    let attestor = Attestor::new(nsm, identity(), &network(), &keys).unwrap();
    let (clock, journal) = (Box::new(SystemClock), Box::new(NullJournal));
    Vault::new(network(), keys, Limits::NONE, Policy::default(), clock, journal).attested_by(attestor)
}

fn ask(vault: &Vault, nonce: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
    match vault.handle(&Request::Attestation { nonce: Nonce::new(nonce.to_vec()).unwrap() }) {
        Reply::Attestation { document, statement } => Ok((document.into_vec(), statement.into_vec())),
        Reply::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

fn verify(nsm: &SoftwareNsm, document: &[u8]) -> Document {
    let anchor = Anchor::from_der(nsm.root_der()).unwrap();
    Unverified::parse(document).unwrap().verify(&anchor, At::Time(Timestamp(NOW))).unwrap()
}

#[test]
fn a_document_binds_nonce_statement_and_key_and_verifies() {
    let nsm = software_nsm();
    let vault = vault(Arc::new(Soft(Arc::clone(&nsm))), 3, 2);
    let (document, statement) = ask(&vault, b"0123456789abcdef").unwrap();
    let verified = verify(&nsm, &document);
    let pcrs = Pcrs::measure(b"kernel", b"application", MODULE_ID);
    let expected = Expected {
        pcrs: (0..=2).map(|index| (index, pcrs.0[&u16::from(index)])).collect(),
        nonce: Some(b"0123456789abcdef".to_vec()),
        user_data: Some(digest(&SHA256, &statement).as_ref().to_vec()),
        ..Expected::default()
    };
    verified.accept(&expected).unwrap();
    assert_eq!(verified.public_key().unwrap().len(), 32);
    assert_eq!(verified.module_id(), MODULE_ID);
    assert_eq!(verified.timestamp(), Timestamp(NOW));
    // The chain is as deep as AWS's: root, region, zone, instance, leaf; the leaf lives three hours.
    assert_eq!(verified.chain().len(), 5);
    let leaf = verified.chain().last().unwrap();
    assert_eq!(leaf.not_after.seconds() - leaf.not_before.seconds(), 3 * 3600);

    let statement = Statement::decode(&statement).unwrap();
    assert_eq!(statement.product_version, env!("CARGO_PKG_VERSION"));
    assert_eq!((statement.group.as_str(), statement.network.name.as_str()), ("alpha", "test"));
    assert_eq!(statement.network.genesis_validators_root, Bytes([3; 32]));
    assert_eq!(statement.configuration_sha256, Bytes([9; 32]));
    let FenceStatement { kind, store, term, standing, record, .. } = statement.fence.clone();
    assert_eq!((kind, store, term, standing, record), (FenceKind::None, None, 0, StatedStatus::NoStore, None));
    assert_eq!(statement.window, Policy::default().window);
    // Only keys that sign are stated.
    assert_eq!(statement.public_keys.count, 2);

    // Asked again, only nonce and signature are new.
    let (again, same_statement) = ask(&vault, b"another nonce").unwrap();
    let mut again_statement = Statement::decode(&same_statement).unwrap();
    assert!(again_statement.fence.time_ms >= statement.fence.time_ms);
    again_statement.fence.time_ms = statement.fence.time_ms;
    assert_eq!(again_statement, statement);
    assert_eq!(verify(&nsm, &again).nonce(), Some(b"another nonce".as_slice()));
    assert_eq!(verify(&nsm, &again).public_key(), verified.public_key());
}

#[test]
fn two_starts_share_neither_boot_nonce_nor_hpke_key() {
    let nsm = software_nsm();
    let told = |vault: &Vault| {
        let (document, statement) = ask(vault, b"12345678").unwrap();
        (verify(&nsm, &document).public_key().unwrap().to_vec(), Statement::decode(&statement).unwrap())
    };
    let (first_key, first) = told(&vault(Arc::new(Soft(Arc::clone(&nsm))), 1, 1));
    let (second_key, second) = told(&vault(Arc::new(Soft(Arc::clone(&nsm))), 1, 1));
    assert_ne!(first_key, second_key);
    assert_ne!(first.boot_nonce, second.boot_nonce);
    assert_eq!(first.public_keys, second.public_keys);
}

#[test]
fn documents_are_rate_limited() {
    let vault = vault(Arc::new(Soft(software_nsm())), 1, 1);
    let begun = std::time::Instant::now();
    let mut given = 0;
    while ask(&vault, b"12345678").is_ok() {
        given += 1;
        assert!(given < 10_000, "no limit");
    }
    // Eight at once, and two for each second that this took.
    let allowed = u64::from(BURST) + begun.elapsed().as_secs() * 2 + 2;
    assert!(given >= u64::from(BURST) && given <= allowed, "{given} documents");
    assert_eq!(ask(&vault, b"12345678"), Err(Refusal::TooManyAttestations { seconds: 1 }));
    // Everything else is answered meanwhile.
    assert!(matches!(vault.handle(&Request::Info), Reply::Info(_)));
}

/// Gives entropy and nothing else.
struct Broken;

impl Nsm for Broken {
    fn process(&self, request: NsmRequest) -> NsmResponse {
        match request {
            NsmRequest::GetRandom => NsmResponse::GetRandom { random: vec![1; 256] },
            _ => NsmResponse::Error(casemate_nsm::ErrorCode::InternalError),
        }
    }
}

#[test]
fn an_nsm_that_fails_is_no_answer() {
    assert_eq!(ask(&vault(Arc::new(Broken), 1, 1), b"12345678"), Err(Refusal::NsmFailed));
}

#[test]
fn the_software_nsm_is_shaped_like_the_device() {
    let nsm = Soft(software_nsm());
    assert_eq!(nsm.timestamp_ms(), Ok(NOW));
    let measured = Pcrs::measure(b"kernel", b"application", MODULE_ID);
    let pcr0 = nsm.pcr(0).unwrap();
    assert!(pcr0.locked);
    assert_eq!(pcr0.value, measured.0[&0]);
    assert_eq!(nsm.pcr(3).unwrap().value, [0; 48]);
    let index = |error| matches!(error, NsmResponse::Error(casemate_nsm::ErrorCode::InvalidIndex));
    assert!(index(nsm.process(NsmRequest::DescribePCR { index: 32 })));
    assert!(index(nsm.process(NsmRequest::LockPCRs { range: 33 })));
    // What an image has locked stays; the others can be extended until they are locked.
    let extend = |index| nsm.process(NsmRequest::ExtendPCR { index, data: b"data".to_vec() });
    let read_only = |response| matches!(response, NsmResponse::Error(casemate_nsm::ErrorCode::ReadOnlyIndex));
    assert!(read_only(extend(0)));
    let NsmResponse::ExtendPCR { data } = extend(16) else { panic!("not extended") };
    assert_eq!(nsm.pcr(16).unwrap().value.to_vec(), data);
    assert!(matches!(nsm.process(NsmRequest::LockPCR { index: 16 }), NsmResponse::LockPCR));
    assert!(read_only(extend(16)));
    assert!(read_only(nsm.process(NsmRequest::LockPCR { index: 16 })));
    let NsmResponse::DescribeNSM { max_pcrs, locked_pcrs, .. } = nsm.process(NsmRequest::DescribeNSM) else {
        panic!("no description")
    };
    assert_eq!((max_pcrs, locked_pcrs.len()), (32, 17));
    // Sizes as the device's.
    assert!(nsm.attestation(Some(&[0; 512]), Some(&[0; 512]), Some(&[0; 1024])).is_ok());
    for (nonce, user_data, public_key) in [(513, 1, 1), (1, 513, 1), (1, 1, 1025)] {
        let refused = nsm.attestation(Some(&vec![0; nonce]), Some(&vec![0; user_data]), Some(&vec![0; public_key]));
        assert_eq!(refused, Err(casemate_vault::NsmError::Refused("input too large")));
    }
    let (mut one, mut other) = ([0; 300], [0; 300]);
    nsm.random(&mut one).unwrap();
    nsm.random(&mut other).unwrap();
    assert_ne!(one, other);
}
