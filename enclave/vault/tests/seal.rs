//! Sealed blobs: what goes in comes out, and nothing of a blob can be exchanged.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_protocol::{Bytes, Epoch, Slot};
use casemate_slashing::{AttestationMark, BlockMark, GroupFloor, SlashingHistory, Watermarks};
use casemate_vault::keys::seal::{self, Contents, SealBinding, SealError, SealedKey, SecretBytes};
use casemate_vault::signing::bls::SecretKey;

const DATA_KEY: [u8; 32] = [7; 32];
const WRAPPED: &[u8] = b"wrapped by KMS";

fn place() -> SealBinding {
    SealBinding {
        key_arn: "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555".into(),
        group: "alpha".into(),
        network: Bytes([5; 32]),
    }
}

fn key(n: u8, history: SlashingHistory) -> SealedKey {
    let secret = [n; 32];
    let public_key = SecretKey::from_be_bytes(&mut secret.clone()).unwrap().public_key();
    SealedKey { public_key, secret: Some(SecretBytes(secret)), history, fee_recipient: None }
}

fn contents() -> Contents {
    let watermarks = Watermarks {
        block: Some(BlockMark { slot: Slot(9), signing_root: None }),
        attestation: Some(AttestationMark {
            source: Epoch(u64::MAX),
            target: Epoch(4),
            signing_root: Some(Bytes([8; 32])),
        }),
    };
    let deleted = SealedKey { secret: None, ..key(3, SlashingHistory::Known(watermarks)) };
    Contents {
        keys: vec![
            key(1, SlashingHistory::Known(watermarks)),
            key(2, SlashingHistory::Missing),
            deleted,
            key(4, SlashingHistory::Known(Watermarks::NONE)),
        ],
        ..Contents::default()
    }
}

fn sealed() -> Vec<u8> {
    seal::seal(&contents(), &DATA_KEY, WRAPPED.to_vec(), &place(), 6).unwrap()
}

fn open(blob: &[u8], place: &SealBinding) -> Result<Contents, SealError> {
    seal::open(blob, &DATA_KEY, place, 6)
}

/// What can be compared of a state.
fn shown(contents: &Contents) -> Vec<(Bytes<48>, Option<[u8; 32]>, SlashingHistory)> {
    contents.keys.iter().map(|k| (k.public_key, k.secret.as_ref().map(|s| s.0), k.history)).collect()
}

#[test]
fn what_is_sealed_opens_to_the_same() {
    let opened = open(&sealed(), &place()).unwrap();
    assert_eq!(shown(&opened), shown(&contents()));
    let header = seal::header(&sealed(), &place(), 6).unwrap();
    assert_eq!((header.state_version, header.wrapped_key.as_ref()), (6, WRAPPED));
    // Sealed twice, nothing is alike but the header.
    assert_ne!(sealed(), sealed());
    let empty = seal::seal(&Contents::default(), &DATA_KEY, WRAPPED.to_vec(), &place(), 0).unwrap();
    assert!(seal::open(&empty, &DATA_KEY, &place(), 0).unwrap().keys.is_empty());
    // Nothing of the secret keys is to be seen.
    assert!(!sealed().windows(16).any(|window| window == [1; 16]));
}

#[test]
fn a_blob_of_another_place_or_an_older_state_version_is_refused_before_kms_is_asked() {
    let blob = sealed();
    let refused = |place: &SealBinding, oldest| {
        let by_header = seal::header(&blob, place, oldest).unwrap_err();
        let by_open = seal::open(&blob, &DATA_KEY, place, oldest).map(|_| ()).unwrap_err();
        assert_eq!(by_header, by_open);
        by_header
    };
    let other_key = refused(&SealBinding { key_arn: "arn:aws:kms:eu-central-1:1:key/other".into(), ..place() }, 6);
    assert!(matches!(other_key, SealError::OtherKey { .. }));
    assert!(matches!(refused(&SealBinding { group: "beta".into(), ..place() }, 6), SealError::OtherGroup { .. }));
    assert!(matches!(refused(&SealBinding { network: Bytes([6; 32]), ..place() }, 6), SealError::OtherNetwork { .. }));
    assert_eq!(refused(&place(), 7), SealError::OldState { found: 6, oldest: 7 });
    assert!(seal::header(&blob, &place(), 5).is_ok());
}

/// The header rewritten by anyone who keeps the blob, so that it fits: the content knows better.
#[test]
fn every_field_of_the_header_is_bound() {
    let blob = sealed();
    let replace = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let at = blob.windows(from.len()).position(|window| window == from).expect("the field is there");
        let mut changed = blob.clone();
        changed[at..at + to.len()].copy_from_slice(to);
        changed
    };
    let other_arn = place().key_arn.replace("eu-central-1", "eu-central-2");
    let changed = replace(place().key_arn.as_bytes(), other_arn.as_bytes());
    let as_changed = SealBinding { key_arn: other_arn, ..place() };
    assert!(seal::header(&changed, &as_changed, 6).is_ok());
    assert_eq!(open(&changed, &as_changed).map(|_| ()), Err(SealError::Decryption));

    let changed = replace(b"alpha", b"gamma");
    assert_eq!(
        open(&changed, &SealBinding { group: "gamma".into(), ..place() }).map(|_| ()),
        Err(SealError::Decryption)
    );

    let changed = replace(&[5; 32], &[6; 32]);
    assert_eq!(
        open(&changed, &SealBinding { network: Bytes([6; 32]), ..place() }).map(|_| ()),
        Err(SealError::Decryption)
    );

    // map(6) … 4: version 6, 5: the wrapped key.
    let state_version = [&[4, 6, 5, 0x4e][..], WRAPPED].concat();
    let newer = [&[4, 7, 5, 0x4e][..], WRAPPED].concat();
    let changed = replace(&state_version, &newer);
    assert_eq!(seal::header(&changed, &place(), 7).unwrap().state_version, 7);
    assert_eq!(open(&changed, &place()).map(|_| ()), Err(SealError::Decryption));

    let changed = replace(WRAPPED, b"wrapped by me!");
    assert!(seal::header(&changed, &place(), 6).is_ok());
    assert_eq!(open(&changed, &place()).map(|_| ()), Err(SealError::Decryption));
}

#[test]
fn no_byte_of_a_blob_can_be_changed_cut_or_added() {
    let blob = sealed();
    for at in 0..blob.len() {
        let mut changed = blob.clone();
        changed[at] ^= 1;
        assert!(open(&changed, &place()).is_err(), "byte {at}");
        assert!(open(&blob[..at], &place()).is_err(), "{at} bytes");
    }
    let longer = [blob.as_slice(), &[0]].concat();
    assert_eq!(open(&longer, &place()).map(|_| ()), Err(SealError::Malformed));
    assert_eq!(seal::open(&blob, &[8; 32], &place(), 6).map(|_| ()), Err(SealError::Decryption), "another data key");
    assert_eq!(open(&[], &place()).map(|_| ()), Err(SealError::Size { len: 0 }));
}

#[test]
fn another_version_is_named() {
    let blob = sealed();
    // map(3) { 0: map(6) { 0: version …
    assert_eq!(&blob[..5], &[0xa3, 0x00, 0xa6, 0x00, 0x02]);
    let mut newer = blob;
    newer[4] = 3;
    assert_eq!(open(&newer, &place()).map(|_| ()), Err(SealError::Version(3)));
}

/// Sealed well by somebody who had the data key: the keys themselves must still fit.
#[test]
fn public_keys_are_derived_anew() {
    let seal = |contents: &Contents| seal::seal(contents, &DATA_KEY, WRAPPED.to_vec(), &place(), 6).unwrap();
    for number in [0, 3] {
        let mut swapped = contents();
        swapped.keys[number].public_key = Bytes([9; 48]);
        assert_eq!(open(&seal(&swapped), &place()).map(|_| ()), Err(SealError::OtherPublicKey { number }));
        let mut zero = contents();
        zero.keys[number].secret = Some(SecretBytes([0; 32]));
        assert_eq!(open(&seal(&zero), &place()).map(|_| ()), Err(SealError::OtherPublicKey { number }));
    }
    let mut twice = contents();
    twice.keys.push(key(1, SlashingHistory::Missing));
    assert_eq!(open(&seal(&twice), &place()).map(|_| ()), Err(SealError::DuplicateKey));
    let too_long = seal::seal(&contents(), &DATA_KEY, vec![1; 6145], &place(), 6);
    assert_eq!(too_long, Err(SealError::NotSealed));
    assert_eq!(seal::seal(&contents(), &DATA_KEY, vec![], &place(), 6), Err(SealError::NotSealed));
}

/// The example of docs/PROTOCOL.md: lines of an offset and hex. `UPDATE_EXAMPLE=1` prints another one.
#[test]
fn the_documented_example_opens() {
    let watermarks = Watermarks {
        block: Some(BlockMark { slot: Slot(9), signing_root: None }),
        attestation: Some(AttestationMark { source: Epoch(3), target: Epoch(4), signing_root: None }),
    };
    if std::env::var_os("UPDATE_EXAMPLE").is_some() {
        let floor = GroupFloor::from_watermarks(watermarks);
        let contents =
            Contents { keys: vec![key(1, SlashingHistory::Known(watermarks))], floor, ..Contents::default() };
        let blob = seal::seal(&contents, &DATA_KEY, WRAPPED.to_vec(), &place(), 6).unwrap();
        for (number, line) in blob.chunks(32).enumerate() {
            println!("    {:04x}  {}", number * 32, const_hex::encode(line));
        }
        return;
    }
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/PROTOCOL.md");
    let page = std::fs::read_to_string(page).unwrap();
    let example = page.split("### A worked example").nth(1).unwrap().split("\n## ").next().unwrap();
    let lines = example.lines().filter_map(|line| line.strip_prefix("    ")?.split_once("  ")).map(|(_, hex)| hex);
    opens(&lines.collect::<String>(), watermarks);
    // And as each version wrote it (docs/COMPATIBILITY.md).
    let versions = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/suites/compatibility");
    let versions = std::fs::read_dir(versions).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    for version in versions {
        opens(&std::fs::read_to_string(version.join("sealed-state.hex")).unwrap().replace('\n', ""), watermarks);
    }
}

fn opens(hex: &str, watermarks: Watermarks) {
    let blob = const_hex::decode(hex).unwrap();
    let opened = open(&blob, &place()).unwrap();
    assert_eq!(
        shown(&opened),
        [(key(1, SlashingHistory::Missing).public_key, Some([1; 32]), SlashingHistory::Known(watermarks))]
    );
    assert_eq!(opened.floor, GroupFloor::from_watermarks(watermarks));
    let header = seal::header(&blob, &place(), 6).unwrap();
    assert_eq!((header.state_version, header.wrapped_key.as_ref()), (6, WRAPPED));
}
