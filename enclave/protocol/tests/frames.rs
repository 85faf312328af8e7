//! Frames: what is written reads back, and nothing else decodes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_protocol::command::{
    ActionKind, ClosedRecord, GeneratedKey, ImportedKey, KeyOutcome, MAX_KEYS, Outcome, SignedExit,
};
use casemate_protocol::frame::{
    self, BlockProof, HighWatermark, Info, KeystoreToImport, MAX_FRAME_LEN, MAX_KEYSTORE_LEN, MAX_KEYSTORES,
    MAX_PROOF_NODES, MAX_PROOFS, Password, Readiness, Reply, ReplyFrame, Request, RequestFrame, SignRequest,
};
use casemate_protocol::history_page::{HistoryEntry, HistoryPage, MAX_ENTRIES_PER_PAGE, SignedHistoryPage};
use casemate_protocol::key_page::{KeyDetails, KeyPage, MAX_KEYS_PER_KEY_PAGE, Origin, PendingExit, SignedKeyPage};
use casemate_protocol::log::{LogHead, LogPage, LogRecord, MAX_RECORDS_PER_PAGE, Message};
use casemate_protocol::may_sign::{MaySign, Silence};
use casemate_protocol::network::NetworkFields;
use casemate_protocol::refusal::{MalformedFrame, NotHolder, StoreTrouble, Waiting};
use casemate_protocol::statement::{FenceKind, StatedStatus};
use casemate_protocol::watermarks::{AttestationMark, BlockMark, Watermarks};
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, BoundedBytes, Bytes, Checkpoint, Duty, Epoch, Fork, ForkInfo, ForkName,
    FrameError, Network, Preset, PublicKey, Refusal, Slot,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn bytes<const N: usize>() -> impl Strategy<Value = Bytes<N>> {
    vec(any::<u8>(), N).prop_map(|v| Bytes(v.try_into().unwrap()))
}

fn slot() -> impl Strategy<Value = Slot> {
    any::<u64>().prop_map(Slot)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    (epoch(), bytes()).prop_map(|(epoch, root)| Checkpoint { epoch, root })
}

fn duty() -> impl Strategy<Value = Duty> {
    prop_oneof![
        (slot(), any::<u64>(), bytes(), bytes(), bytes()).prop_map(
            |(slot, proposer_index, parent_root, state_root, body_root)| {
                Duty::Block(BeaconBlockHeader { slot, proposer_index, parent_root, state_root, body_root })
            }
        ),
        (slot(), any::<u64>(), bytes(), checkpoint(), checkpoint()).prop_map(
            |(slot, index, beacon_block_root, source, target)| {
                Duty::Attestation(AttestationData { slot, index, beacon_block_root, source, target })
            }
        ),
        slot().prop_map(|slot| Duty::AggregationSlot { slot }),
        (slot(), bytes()).prop_map(|(slot, object_root)| Duty::AggregateAndProof { slot, object_root }),
        epoch().prop_map(|epoch| Duty::RandaoReveal { epoch }),
        (epoch(), any::<u64>()).prop_map(|(epoch, validator_index)| Duty::VoluntaryExit { epoch, validator_index }),
        (slot(), bytes()).prop_map(|(slot, beacon_block_root)| Duty::SyncCommitteeMessage { slot, beacon_block_root }),
        (slot(), any::<u64>())
            .prop_map(|(slot, subcommittee_index)| Duty::SyncCommitteeSelectionProof { slot, subcommittee_index }),
        (slot(), bytes()).prop_map(|(slot, object_root)| Duty::ContributionAndProof { slot, object_root }),
        (bytes(), any::<u64>(), any::<u64>(), bytes()).prop_map(|(fee_recipient, gas_limit, timestamp, public_key)| {
            Duty::ValidatorRegistration { fee_recipient, gas_limit, timestamp, public_key }
        }),
        (bytes(), bytes(), any::<u64>(), bytes()).prop_map(
            |(public_key, withdrawal_credentials, amount, genesis_fork_version)| Duty::Deposit {
                public_key,
                withdrawal_credentials,
                amount,
                genesis_fork_version
            }
        ),
        (slot(), bytes()).prop_map(|(slot, object_root)| Duty::ExecutionPayloadBid { slot, object_root }),
        (slot(), bytes()).prop_map(|(slot, object_root)| Duty::ExecutionPayloadEnvelope { slot, object_root }),
        (bytes(), slot(), any::<bool>(), any::<bool>()).prop_map(
            |(beacon_block_root, slot, payload_present, blob_data_available)| Duty::PayloadAttestation {
                beacon_block_root,
                slot,
                payload_present,
                blob_data_available
            }
        ),
        (bytes(), slot(), any::<u64>(), bytes(), any::<u64>()).prop_map(
            |(dependent_root, proposal_slot, validator_index, fee_recipient, target_gas_limit)| {
                Duty::ProposerPreferences {
                    dependent_root,
                    proposal_slot,
                    validator_index,
                    fee_recipient,
                    target_gas_limit,
                }
            }
        ),
        (slot(), bytes()).prop_map(|(slot, object_root)| Duty::BuilderRequestAuth { slot, object_root }),
    ]
}

fn fork_info() -> impl Strategy<Value = ForkInfo> {
    (bytes(), bytes(), epoch(), bytes()).prop_map(
        |(previous_version, current_version, epoch, genesis_validators_root)| ForkInfo {
            previous_version,
            current_version,
            epoch,
            genesis_validators_root,
        },
    )
}

fn proof() -> impl Strategy<Value = BlockProof> {
    (any::<u64>(), vec(any::<u8>(), 0..=MAX_PROOF_NODES * 32))
        .prop_map(|(index, branch)| BlockProof { index, branch: BoundedBytes::new(branch).unwrap() })
}

fn log_page() -> impl Strategy<Value = LogPage> {
    (any::<u64>(), vec((duty(), bytes(), option::of(bytes())), 0..4), bytes(), bytes()).prop_map(
        |(number, records, hash, signature)| {
            let one = |(duty, public_key, signing_root)| LogRecord {
                time_ms: number,
                public_key,
                message: Message::from(&duty),
                signing_root,
                refusal: signing_root.is_none().then_some(Refusal::UnknownKey),
            };
            let head = LogHead { boot_nonce: Bytes([1; 32]), term: number, number, time_ms: number, hash, signature };
            let records = records.into_iter().map(one).collect();
            LogPage { first: number, before: hash, records, head, last: number, fresh: Some(signature) }
        },
    )
}

fn history_page() -> impl Strategy<Value = SignedHistoryPage> {
    (any::<u32>(), vec((bytes(), any::<bool>()), 0..4), bytes()).prop_map(|(start, keys, signature)| {
        let one = |(public_key, held)| HistoryEntry { public_key, held, highest: Some(Watermarks::default()) };
        let keys = keys.into_iter().map(one).collect();
        let page = HistoryPage { start, total: start, time_ms: None, floor: Watermarks::default(), keys };
        SignedHistoryPage { page, signature }
    })
}

fn request() -> impl Strategy<Value = RequestFrame> {
    let request = prop_oneof![
        Just(Request::Info),
        any::<u32>().prop_map(|start| Request::PublicKeys { start }),
        (bytes(), duty(), option::of(fork_info()), option::of(bytes()), vec(proof(), 0..=MAX_PROOFS)).prop_map(
            |(public_key, duty, fork_info, signing_root, proofs)| {
                Request::Sign(SignRequest { public_key, duty, fork_info, signing_root, proofs })
            }
        ),
        (vec(any::<u8>(), frame::NONCE_LEN), any::<u32>())
            .prop_map(|(nonce, start)| Request::SlashingProtection { nonce: BoundedBytes::new(nonce).unwrap(), start }),
        any::<u64>().prop_map(|after| Request::Log { after, nonce: BoundedBytes::new(vec![1; 8]) }),
        vec(bytes(), 1..5).prop_map(|keys| Request::DeleteKeys { keys }),
        vec((bytes(), vec(any::<u8>(), 1..50), vec(any::<u8>(), 0..50)), 1..4).prop_map(|keys| {
            let one = |(public_key, keystore, password)| KeystoreToImport {
                key: ImportedKey { public_key, history: Some(Watermarks::default()) },
                keystore: BoundedBytes::new(keystore).unwrap(),
                password: Password(BoundedBytes::new(password).unwrap()),
            };
            Request::ImportKeystores { keys: keys.into_iter().map(one).collect() }
        }),
        Just(Request::HighWatermark),
        Just(Request::Handover),
        (bytes(), ".{0,40}", ".{0,40}").prop_map(|(public_key, platform, timestamp)| Request::ProofOfValidation {
            public_key,
            platform,
            timestamp
        }),
        vec(any::<u8>(), frame::NONCE_LEN)
            .prop_map(|nonce| Request::Attestation { nonce: BoundedBytes::new(nonce).unwrap() }),
    ];
    (any::<u64>(), request).prop_map(|(id, request)| RequestFrame::new(id, request))
}

fn network() -> Network {
    let fork = |name, epoch: u64| Fork { name, version: Bytes([1, 2, 3, 4]), epoch: Some(Epoch(epoch)) };
    NetworkFields {
        name: "hoodi".into(),
        preset: Preset::Mainnet,
        genesis_time: 1_742_213_400,
        genesis_validators_root: Bytes([3; 32]),
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks: vec![
            fork(ForkName::Phase0, 0),
            fork(ForkName::Capella, 7),
            Fork { name: ForkName::Gloas, version: Bytes::ZERO, epoch: None },
        ],
    }
    .try_into()
    .unwrap()
}

fn reply() -> impl Strategy<Value = ReplyFrame> {
    let refusal = prop_oneof![
        Just(Refusal::UnknownKey),
        slot().prop_map(|slot_ceiling| Refusal::NotHolder(NotHolder::Standby { slot_ceiling })),
        Just(Refusal::MalformedFrame(MalformedFrame::Version(7))),
        (slot(), slot()).prop_map(|(slot, last)| Refusal::BlockNotAboveLast { slot, last }),
        (bytes(), bytes()).prop_map(|(asked, computed)| Refusal::SigningRootDiffers { asked, computed }),
    ];
    let reply = prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(keys, keys_without_history)| {
            let standing = StatedStatus::Standby;
            Reply::Info(Info { network: network(), keys, keys_without_history, standing, key_manager_delete: true })
        }),
        (any::<u32>(), vec(bytes(), 0..20)).prop_map(|(total, keys)| Reply::PublicKeys { total, keys }),
        bytes().prop_map(Reply::Signature),
        option::of((slot(), epoch()).prop_map(|(slot, epoch)| HighWatermark { slot, epoch }))
            .prop_map(Reply::HighWatermark),
        (".{0,40}", bytes()).prop_map(|(payload, signature)| Reply::ProofOfValidation { payload, signature }),
        refusal.prop_map(Reply::Refused),
        Just(Reply::HandedOver),
        log_page().prop_map(Reply::Log),
        history_page().prop_map(Reply::SlashingProtection),
        bytes().prop_map(|key| Reply::KeyDetails(key_page(key))),
        (vec(any::<u8>(), 1..100), vec(any::<u8>(), 1..100)).prop_map(|(document, statement)| Reply::Attestation {
            document: BoundedBytes::new(document).unwrap(),
            statement: BoundedBytes::new(statement).unwrap(),
        }),
    ];
    (any::<u64>(), reply).prop_map(|(id, reply)| ReplyFrame::new(id, reply))
}

fn request_bytes(frame: &RequestFrame) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_request(frame, &mut out);
    out
}

fn reply_bytes(frame: &ReplyFrame) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_reply(frame, &mut out);
    out
}

/// Whatever decodes is the encoding of what it decoded to: no frame has a second form.
fn decodes_only_as_itself(bytes: &[u8]) {
    if let Ok(frame) = frame::decode_request(bytes) {
        assert_eq!(&request_bytes(&frame)[4..], bytes);
    }
    if let Ok(frame) = frame::decode_reply(bytes) {
        assert_eq!(&reply_bytes(&frame)[4..], bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back(request in request(), reply in reply()) {
        let bytes = request_bytes(&request);
        let (inner, used) = frame::split(&bytes, MAX_FRAME_LEN).unwrap().unwrap();
        prop_assert_eq!(used, bytes.len());
        prop_assert_eq!(frame::decode_request(inner), Ok(request));
        let bytes = reply_bytes(&reply);
        let (inner, _) = frame::split(&bytes, MAX_FRAME_LEN).unwrap().unwrap();
        prop_assert_eq!(frame::decode_reply(inner), Ok(reply));
    }

    #[test]
    fn cut_lengthened_and_changed_frames_do_not_pass_for_others(
        request in request(), reply in reply(), cut in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        for bytes in [&request_bytes(&request)[4..], &reply_bytes(&reply)[4..]] {
            let at = cut.index(bytes.len());
            prop_assert!(frame::decode_request(&bytes[..at]).is_err());
            prop_assert!(frame::decode_reply(&bytes[..at]).is_err());
            let longer = [bytes, &[byte]].concat();
            prop_assert!(frame::decode_request(&longer).is_err());
            prop_assert!(frame::decode_reply(&longer).is_err());
            let mut changed = bytes.to_vec();
            changed[at] ^= byte;
            decodes_only_as_itself(&changed);
            let mut grown = bytes.to_vec();
            grown.insert(at, byte);
            decodes_only_as_itself(&grown);
        }
    }

    #[test]
    fn random_bytes_decode_as_nothing_else(bytes in vec(any::<u8>(), 0..200)) {
        decodes_only_as_itself(&bytes);
    }
}

/// A request frame whose CBOR is written by hand, to be bent.
fn info_request() -> Vec<u8> {
    // map(3) { 0: version 1, 1: id 5, 2: variant 0 (Info) }
    vec![0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0x00]
}

#[test]
fn the_one_encoding_is_the_documented_one() {
    assert_eq!(frame::decode_request(&info_request()), Ok(RequestFrame::new(5, Request::Info)));
    assert_eq!(request_bytes(&RequestFrame::new(5, Request::Info)), [&[0, 0, 0, 7][..], &info_request()].concat());
}

#[test]
fn other_encodings_of_the_same_request_are_refused() {
    let encoding = Err(FrameError(MalformedFrame::Encoding));
    for (what, bytes) in [
        ("indefinite length", vec![0xbf, 0x00, 0x01, 0x01, 0x05, 0x02, 0x00, 0xff]),
        ("a longer integer", vec![0xa3, 0x00, 0x01, 0x01, 0x18, 0x05, 0x02, 0x00]),
        ("fields in another order", vec![0xa3, 0x01, 0x05, 0x00, 0x01, 0x02, 0x00]),
        ("field names instead of numbers", {
            let mut b = vec![0xa3, 0x67];
            b.extend_from_slice(b"version");
            b.extend_from_slice(&[0x01, 0x01, 0x05, 0x02, 0x00]);
            b
        }),
        ("a variant by its name", vec![0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0x64, b'I', b'n', b'f', b'o']),
        ("a duplicate field", vec![0xa4, 0x00, 0x01, 0x01, 0x05, 0x01, 0x05, 0x02, 0x00]),
        ("an unknown field", vec![0xa4, 0x00, 0x01, 0x01, 0x05, 0x02, 0x00, 0x03, 0x00]),
        ("a missing field", vec![0xa2, 0x00, 0x01, 0x02, 0x00]),
        ("an array", vec![0x83, 0x01, 0x05, 0x00]),
        ("a tag", vec![0xd9, 0xd9, 0xf7, 0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0x00]),
        ("a trailing byte", [info_request(), vec![0x00]].concat()),
        ("an unknown variant", vec![0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0x18, 0x63]),
        ("a negative id", vec![0xa3, 0x00, 0x01, 0x01, 0x20, 0x02, 0x00]),
        ("a float id", vec![0xa3, 0x00, 0x01, 0x01, 0xf9, 0x45, 0x00, 0x02, 0x00]),
        ("nothing", vec![]),
        ("a byte string that claims 2^63 bytes", vec![0xa3, 0x00, 0x01, 0x01, 0x5b, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("an array that claims 2^60 elements", vec![0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0]),
        ("a map that claims 2^60 fields", vec![0xbb, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("nesting without end", vec![0x81; 60_000]),
    ] {
        assert_eq!(frame::decode_request(&bytes), encoding, "{what}");
        assert!(frame::decode_reply(&bytes).is_err(), "{what}");
    }
}

#[test]
fn lists_of_requests_have_their_limits() {
    let fits = |request: Request| frame::decode_request(&request_bytes(&RequestFrame::new(1, request))[4..]).is_ok();
    let sign = |proofs| {
        let proof = BlockProof { index: 18, branch: BoundedBytes::new(vec![0; MAX_PROOF_NODES * 32]).unwrap() };
        let (public_key, duty) = (Bytes([7; 48]), Duty::RandaoReveal { epoch: Epoch(3) });
        fits(Request::Sign(SignRequest {
            public_key,
            duty,
            fork_info: None,
            signing_root: None,
            proofs: vec![proof; proofs],
        }))
    };
    assert_eq!([0, MAX_PROOFS, MAX_PROOFS + 1].map(sign), [true, true, false]);
    let keystore = KeystoreToImport {
        key: ImportedKey { public_key: Bytes([7; 48]), history: None },
        keystore: BoundedBytes::new(vec![b' '; MAX_KEYSTORE_LEN]).unwrap(),
        password: Password(BoundedBytes::new(vec![b' '; 1024]).unwrap()),
    };
    // They are longer than other frames may be.
    let import = |n| fits(Request::ImportKeystores { keys: vec![keystore.clone(); n] });
    assert_eq!([0, 1, MAX_KEYSTORES, MAX_KEYSTORES + 1].map(import), [false, true, true, false]);
    let delete = |n| fits(Request::DeleteKeys { keys: vec![Bytes([7; 48]); n] });
    assert_eq!([0, 1, MAX_KEYS, MAX_KEYS + 1].map(delete), [false, true, true, false]);
    // The longest pages fit into a frame.
    let told = |past| HistoryEntry { public_key: Bytes([7; 48]), held: true, highest: past };
    let past = Watermarks {
        block: Some(BlockMark { slot: Slot::MAX, signing_root: Some(Bytes([1; 32])) }),
        attestation: Some(AttestationMark {
            source: Epoch::MAX,
            target: Epoch::MAX,
            signing_root: Some(Bytes([1; 32])),
        }),
    };
    let page = HistoryPage {
        start: u32::MAX,
        total: u32::MAX,
        time_ms: Some(u64::MAX),
        floor: past,
        keys: vec![told(Some(past)); MAX_ENTRIES_PER_PAGE],
    };
    assert_eq!(HistoryPage::decode(&page.encode()).as_ref(), Some(&page));
    let longest = Reply::SlashingProtection(SignedHistoryPage { page, signature: Bytes([1; 64]) });
    let record = LogRecord {
        time_ms: u64::MAX,
        public_key: Bytes([7; 48]),
        message: Message::Attestation { source: Epoch::MAX, target: Epoch::MAX },
        signing_root: Some(Bytes([1; 32])),
        refusal: Some(Refusal::OtherNetwork { asked: Bytes([1; 32]), served: Bytes([2; 32]) }),
    };
    let most = u64::MAX;
    let head = LogHead {
        boot_nonce: Bytes([1; 32]),
        term: most,
        number: most,
        time_ms: most,
        hash: Bytes([1; 32]),
        signature: Bytes([1; 64]),
    };
    let records = vec![record; MAX_RECORDS_PER_PAGE];
    let log = Reply::Log(LogPage {
        first: most,
        before: Bytes([1; 32]),
        records,
        head,
        last: most,
        fresh: Some(Bytes([1; 64])),
    });
    let command = Message::Command {
        kind: ActionKind::RaiseHistory,
        counter: u64::MAX,
        operators: u32::MAX,
        keys: u32::MAX,
        keys_sha256: Bytes([1; 32]),
    };
    let commands = Reply::Log(LogPage {
        first: most,
        before: Bytes([1; 32]),
        records: vec![LogRecord { message: command, ..record }; MAX_RECORDS_PER_PAGE],
        head,
        last: most,
        fresh: Some(Bytes([1; 64])),
    });
    let exit = Some(PendingExit { validator_index: u64::MAX, last_epoch: Epoch::MAX });
    let one = KeyDetails {
        public_key: Bytes([7; 48]),
        held: true,
        fee_recipient: Some(Bytes([7; 20])),
        origin: Origin::MadeHere,
        exit,
    };
    let page = KeyPage { start: u32::MAX, total: u32::MAX, keys: vec![one; MAX_KEYS_PER_KEY_PAGE] };
    assert_eq!(KeyPage::decode(&page.encode()).as_ref(), Some(&page));
    let details = Reply::KeyDetails(SignedKeyPage { page, signature: Bytes([1; 64]) });
    for reply in [longest, log, commands, details] {
        assert!(frame::decode_reply(&reply_bytes(&ReplyFrame::new(u64::MAX, reply))[4..]).is_ok());
    }
}

#[test]
fn another_version_is_named() {
    let bytes = vec![0xa3, 0x00, 0x02, 0x01, 0x05, 0x02, 0x00];
    assert_eq!(frame::decode_request(&bytes), Err(FrameError(MalformedFrame::Version(2))));
}

#[test]
fn wrong_field_lengths_are_refused() {
    let frame = RequestFrame::new(
        1,
        Request::Sign(SignRequest {
            public_key: Bytes([7; 48]),
            duty: Duty::RandaoReveal { epoch: Epoch(3) },
            fork_info: None,
            signing_root: None,
            proofs: Vec::new(),
        }),
    );
    let bytes = request_bytes(&frame)[4..].to_vec();
    let at = bytes.windows(2).position(|w| w == [0x58, 48]).expect("the key's byte string");
    let mut short = bytes.clone();
    short[at + 1] = 47;
    short.remove(at + 2);
    assert_eq!(frame::decode_request(&short), Err(FrameError(MalformedFrame::Encoding)));
    let mut long = bytes;
    long[at + 1] = 49;
    long.insert(at + 2, 7);
    assert_eq!(frame::decode_request(&long), Err(FrameError(MalformedFrame::Encoding)));
}

#[test]
fn nonces_and_documents_have_sizes() {
    for len in [0, 7, 8, 64, 65, 512] {
        let allowed = frame::Nonce::new(vec![1; len]).map(|nonce| Request::Attestation { nonce });
        assert_eq!(allowed.is_some(), (8..=64).contains(&len));
        // By hand: map(3) { 0: 1, 1: 5, 2: {5 (Attestation): {0: bytes}} }
        let mut bytes = vec![0xa3, 0x00, 0x01, 0x01, 0x05, 0x02, 0xa1, 0x05, 0xa1, 0x00];
        match u8::try_from(len) {
            Ok(short @ 0..=23) => bytes.push(0x40 | short),
            Ok(len) => bytes.extend_from_slice(&[0x58, len]),
            Err(_) => bytes.extend_from_slice(&[0x59, 2, 0]),
        }
        bytes.resize(bytes.len() + len, 1);
        let expected = allowed.map(|request| RequestFrame::new(5, request));
        assert_eq!(frame::decode_request(&bytes), expected.ok_or(FrameError(MalformedFrame::Encoding)), "{len}");
    }
    let longest = Reply::Attestation {
        document: BoundedBytes::new(vec![1; frame::MAX_DOCUMENT_LEN]).unwrap(),
        statement: BoundedBytes::new(vec![1; casemate_protocol::statement::MAX_STATEMENT_LEN]).unwrap(),
    };
    assert!(reply_bytes(&ReplyFrame::new(u64::MAX, longest)).len() <= MAX_FRAME_LEN);
}

#[test]
fn lengths_are_judged_before_the_bytes_are_there() {
    let length = |len: u64| Err(FrameError(MalformedFrame::Length { len, max: 65_536 }));
    assert_eq!(frame::split(&[0, 1, 0, 1], MAX_FRAME_LEN), length(65_537));
    assert_eq!(frame::split(&[0xff; 4], MAX_FRAME_LEN), length(u64::from(u32::MAX)));
    assert_eq!(frame::split(&[0, 0, 0, 0, 9], MAX_FRAME_LEN), length(0));
    assert_eq!(frame::split(&[0, 1, 0, 0], MAX_FRAME_LEN), Ok(None));
    assert_eq!(frame::split(&[0, 0, 0], MAX_FRAME_LEN), Ok(None));
    assert_eq!(frame::split(&[], MAX_FRAME_LEN), Ok(None));
    assert_eq!(frame::split(&[0, 0, 0, 2, 8, 9, 7], MAX_FRAME_LEN), Ok(Some((&[8, 9][..], 6))));
}

#[test]
fn the_largest_page_of_keys_fits_a_frame() {
    let keys = vec![Bytes([9; 48]); usize::try_from(frame::MAX_KEYS_PER_PAGE).unwrap()];
    let bytes = reply_bytes(&ReplyFrame::new(u64::MAX, Reply::PublicKeys { total: u32::MAX, keys }));
    assert!(bytes.len() <= MAX_FRAME_LEN, "{} bytes", bytes.len());
}

#[test]
fn channel_numbers_wrap_frames() {
    let reply = ReplyFrame::new(3, Reply::Refused(Refusal::UnknownKey));
    let mut out = Vec::new();
    frame::encode_channel_reply(77, &reply, &mut out);
    let (inner, used) = frame::split(&out, MAX_FRAME_LEN + 8).unwrap().unwrap();
    assert_eq!(used, out.len());
    let (channel, inner) = frame::split_channel(inner).unwrap();
    assert_eq!((channel, frame::decode_reply(inner)), (77, Ok(reply)));

    let mut out = Vec::new();
    frame::encode_channel_close(78, &mut out);
    let (inner, _) = frame::split(&out, MAX_FRAME_LEN + 8).unwrap().unwrap();
    assert_eq!(frame::split_channel(inner), Ok((78, &[][..])));

    let mut out = Vec::new();
    frame::encode_channel_frame(79, b"frame", &mut out);
    let (inner, _) = frame::split(&out, MAX_FRAME_LEN + 8).unwrap().unwrap();
    assert_eq!(frame::split_channel(inner), Ok((79, &b"frame"[..])));
    assert!(frame::split_channel(&[0; 7]).is_err());
}

/// One frame of each kind, byte for byte: the wire format cannot change without this file. The fuzzers start from it, and
/// docs/PROTOCOL.md explains its first lines. `UPDATE_GOLDEN=1 cargo test -p casemate-protocol` writes it anew.
#[test]
fn golden_frames_are_what_they_were() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden-frames.txt");
    let written: String =
        golden().into_iter().map(|(name, bytes)| format!("{name} {}\n", const_hex::encode(bytes))).collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &written).unwrap();
    }
    assert_eq!(written, std::fs::read_to_string(path).unwrap());
}

/// A refusal that is added to the code and not here would cross in a form that nothing holds fast.
#[test]
fn every_refusal_is_among_the_golden_frames() {
    let source = include_str!("../src/refusal.rs");
    let told: String = golden().iter().filter_map(|(_, frame)| told(frame)).collect();
    let mut seen = 0;
    for name in ["Refusal", "NotHolder", "StoreTrouble", "Waiting", "MalformedFrame"] {
        let (_, variants) = source.split_once(&format!("pub enum {name} {{\n")).unwrap();
        let (variants, _) = variants.split_once("\n}").unwrap();
        for line in variants.lines().filter(|line| line.starts_with("    ") && line.as_bytes()[4].is_ascii_uppercase())
        {
            let variant: String = line.trim().chars().take_while(char::is_ascii_alphanumeric).collect();
            let is_there = told.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == variant);
            assert!(is_there, "{name}::{variant} is in no golden frame: add it to the end of `golden`");
            seen += 1;
        }
    }
    assert!(seen > 90, "{seen}");
}

/// A reply, as `Debug` shows it.
fn told(frame: &[u8]) -> Option<String> {
    let (inner, _) = frame::split(frame, MAX_FRAME_LEN).ok()??;
    frame::decode_reply(inner).ok().map(|reply| format!("{reply:?}\n"))
}

/// A page with a key of each origin.
fn key_page(public_key: PublicKey) -> SignedKeyPage {
    let exit = Some(PendingExit { validator_index: 7, last_epoch: Epoch(9) });
    let key =
        |origin, exit| KeyDetails { public_key, held: true, fee_recipient: Some(Bytes([0xee; 20])), origin, exit };
    let keys = vec![key(Origin::BeforeThisBoot, None), key(Origin::Imported, exit), key(Origin::MadeHere, None)];
    SignedKeyPage { page: KeyPage { start: 250, total: 253, keys }, signature: Bytes([0xdd; 64]) }
}

/// A page of the signing log in which operators have ordered one thing of each kind.
fn log_of_commands(slot: Slot) -> LogPage {
    let root = |b| Bytes([b; 32]);
    let one = |(counter, kind)| LogRecord {
        time_ms: 1_790_000_000_000,
        public_key: Bytes::ZERO,
        message: Message::Command { kind, counter, operators: 5, keys: 2, keys_sha256: root(8) },
        signing_root: Some(root(7)),
        refusal: (counter > 1).then_some(Refusal::NotHolder(NotHolder::Closed { slot_ceiling: slot })),
    };
    let head = LogHead {
        boot_nonce: root(4),
        term: 3,
        number: 11,
        time_ms: 1_790_000_000_000,
        hash: root(6),
        signature: Bytes([0xdd; 64]),
    };
    let records = (1..).zip(ActionKind::ALL).map(one).collect();
    LogPage { first: 1, before: root(5), records, head, last: 11, fresh: None }
}

fn golden() -> Vec<(String, Vec<u8>)> {
    let public_key = Bytes([0xaa; 48]);
    let root = |b| Bytes([b; 32]);
    let fork_info = ForkInfo {
        previous_version: Bytes([5, 0, 0, 0]),
        current_version: Bytes([6, 0, 0, 0]),
        epoch: Epoch(411_392),
        genesis_validators_root: root(0x4b),
    };
    let checkpoint = |epoch, b| Checkpoint { epoch: Epoch(epoch), root: root(b) };
    let slot = Slot(13_500_000);
    let object_root = root(9);
    let duties = [
        Duty::Block(BeaconBlockHeader {
            slot,
            proposer_index: 7,
            parent_root: root(1),
            state_root: root(2),
            body_root: root(3),
        }),
        Duty::Attestation(AttestationData {
            slot,
            index: 0,
            beacon_block_root: root(1),
            source: checkpoint(421_874, 2),
            target: checkpoint(421_875, 3),
        }),
        Duty::AggregationSlot { slot },
        Duty::AggregateAndProof { slot, object_root },
        Duty::RandaoReveal { epoch: Epoch(421_875) },
        Duty::VoluntaryExit { epoch: Epoch(421_875), validator_index: 7 },
        Duty::SyncCommitteeMessage { slot, beacon_block_root: root(1) },
        Duty::SyncCommitteeSelectionProof { slot, subcommittee_index: 3 },
        Duty::ContributionAndProof { slot, object_root },
        Duty::ValidatorRegistration {
            fee_recipient: Bytes([0xfe; 20]),
            gas_limit: 36_000_000,
            timestamp: 1_750_000_000,
            public_key,
        },
        Duty::Deposit {
            public_key,
            withdrawal_credentials: root(1),
            amount: 32_000_000_000,
            genesis_fork_version: Bytes::ZERO,
        },
        Duty::ExecutionPayloadBid { slot, object_root },
        Duty::ExecutionPayloadEnvelope { slot, object_root },
        Duty::PayloadAttestation {
            beacon_block_root: root(1),
            slot,
            payload_present: true,
            blob_data_available: false,
        },
        Duty::ProposerPreferences {
            dependent_root: root(1),
            proposal_slot: slot,
            validator_index: 7,
            fee_recipient: Bytes([0xfe; 20]),
            target_gas_limit: 36_000_000,
        },
        Duty::BuilderRequestAuth { slot, object_root },
    ];
    let mut requests = vec![
        Request::Info,
        Request::PublicKeys { start: 1000 },
        Request::HighWatermark,
        Request::ProofOfValidation { public_key, platform: "dappnode".into(), timestamp: "1711338489397".into() },
    ];
    for duty in duties {
        requests.push(Request::Sign(SignRequest {
            public_key,
            duty,
            fork_info: Some(fork_info),
            signing_root: None,
            proofs: Vec::new(),
        }));
    }
    let [first, ..] = duties;
    requests.push(Request::Sign(SignRequest {
        public_key,
        duty: first,
        fork_info: None,
        signing_root: Some(root(8)),
        proofs: vec![BlockProof { index: 801, branch: BoundedBytes::new(vec![0xce; 9 * 32]).unwrap() }],
    }));
    requests.push(Request::Attestation { nonce: BoundedBytes::new(vec![0xcc; 16]).unwrap() });
    requests.push(Request::Command { envelope: BoundedBytes::new(vec![0xcd; 4]).unwrap() });
    requests.push(Request::Handover);
    requests.push(Request::SlashingProtection { nonce: BoundedBytes::new(vec![0xcc; 16]).unwrap(), start: 250 });
    requests.push(Request::Log { after: 17, nonce: None });
    requests.push(Request::Log { after: u64::MAX, nonce: BoundedBytes::new(vec![0xcc; 16]) });
    requests.push(Request::ImportKeystores {
        keys: vec![KeystoreToImport {
            key: ImportedKey { public_key, history: None },
            keystore: BoundedBytes::new(b"{}".to_vec()).unwrap(),
            password: Password(BoundedBytes::new(b"secret".to_vec()).unwrap()),
        }],
    });
    requests.push(Request::DeleteKeys { keys: vec![public_key] });
    requests.push(Request::Readiness);
    let (e, s) = (Epoch(9), Slot(9));
    let refusals = [
        Refusal::MalformedFrame(MalformedFrame::Length { len: 65_537, max: 65_536 }),
        Refusal::MalformedFrame(MalformedFrame::Version(2)),
        Refusal::MalformedFrame(MalformedFrame::Encoding),
        Refusal::UnknownKey,
        Refusal::NoHistory,
        Refusal::OtherNetwork { asked: root(1), served: root(2) },
        Refusal::OtherGenesisVersion { asked: Bytes([1; 4]), served: Bytes::ZERO },
        Refusal::ForkInfoMissing,
        Refusal::SigningRootDiffers { asked: root(1), computed: root(2) },
        Refusal::BlockFromFuture { slot: s, now: s, latest: s },
        Refusal::BlockNotAboveLast { slot: s, last: s },
        Refusal::BlockNotAboveFloor { slot: s, floor: s },
        Refusal::BlockAboveCeiling { slot: s, ceiling: s },
        Refusal::SourceAboveTarget { source_epoch: e, target: e },
        Refusal::TargetFromFuture { target: e, now: e, latest: e },
        Refusal::TargetNotAboveLast { target: e, last: e },
        Refusal::SourceBelowLast { source_epoch: e, last: e },
        Refusal::TargetNotAboveFloor { target: e, floor: e },
        Refusal::SourceBelowFloor { source_epoch: e, floor: e },
        Refusal::TargetAboveCeiling { target: e, ceiling: e },
        Refusal::SourceAboveCeiling { source_epoch: e, ceiling: e },
        Refusal::DutyFromFuture { epoch: e, now: e, latest: e },
        Refusal::NotSaved,
        Refusal::ProofOfValidationOff,
        Refusal::TooLong { len: 129, max: 128 },
        Refusal::BadText,
        Refusal::TooManyAttestations { seconds: 1 },
        Refusal::NsmFailed,
        Refusal::NsmBusy,
        Refusal::Starting(Waiting::Unsealing),
        Refusal::NoOperators,
        Refusal::CommandBusy,
        Refusal::MalformedCommand,
        Refusal::CommandForAnother,
        Refusal::CommandCounter { counter: 1, last: 2 },
        Refusal::CommandSignature { operator: root(1) },
        Refusal::TooFewSignatures { signatures: 1, threshold: 2 },
        Refusal::SecretsNotOpened,
        Refusal::WithdrawalNotAllowed(root(1)),
        Refusal::DepositAmount { gwei: 1, min: 2, max: 3 },
        Refusal::ExitNotAllowed,
        Refusal::OtherState { kept: 2, ours: 1 },
        Refusal::MaybeSealed(Waiting::Away),
        Refusal::KeyNotHeld(public_key),
        Refusal::TooManyKeys { held: 1, more: 2, max: 3 },
        Refusal::NotSealed(Waiting::Denied),
        Refusal::NotHolder(NotHolder::StoreUnknown(StoreTrouble::Status { status: 500 })),
        Refusal::NotHolder(NotHolder::NoRecord),
        Refusal::NotHolder(NotHolder::Standby { slot_ceiling: s }),
        Refusal::NotHolder(NotHolder::OldState { found: 1, oldest: 2 }),
        Refusal::NotHolder(NotHolder::HandingOver),
        Refusal::NotHolder(NotHolder::RolledBack { seen: 2, found: 1 }),
        Refusal::ClockStopped,
        Refusal::NoFenceRecord(FenceKind::Solo),
        Refusal::FenceExists,
        Refusal::StoreCredentials,
        Refusal::StoreAway(StoreTrouble::Tls),
        Refusal::RecordLost,
        Refusal::FenceUnclear(StoreTrouble::Away),
        Refusal::FeeRecipientNotAllowed { asked: Bytes([1; 20]), allowed: Bytes([2; 20]) },
        Refusal::BlockProofMissing { index: 801 },
        Refusal::BlockProofWrong { index: 18 },
        Refusal::ExitTooLate { epoch: e, last: e },
        Refusal::ImpossiblePast(public_key),
        Refusal::KeyManagerImportOff,
        Refusal::KeyManagerDeleteOff,
    ];
    let mut replies = vec![
        Reply::Info(Info {
            network: network(),
            keys: 64,
            keys_without_history: 0,
            standing: StatedStatus::Holding,
            key_manager_delete: false,
        }),
        Reply::PublicKeys { total: 1, keys: vec![public_key] },
        Reply::Signature(Bytes([0xbb; 96])),
        Reply::HighWatermark(None),
        Reply::HighWatermark(Some(HighWatermark { slot: s, epoch: e })),
        Reply::ProofOfValidation { payload: "{}".into(), signature: Bytes([0xbb; 96]) },
    ];
    replies.extend(refusals.map(Reply::Refused));
    let (document, statement) = (BoundedBytes::new(vec![0xd0; 4]).unwrap(), BoundedBytes::new(vec![0xd1; 4]).unwrap());
    replies.push(Reply::Attestation { document, statement });
    replies.push(Reply::Command(Outcome::Imported { keys: vec![KeyOutcome::Imported, KeyOutcome::WrongSecret] }));
    replies.push(Reply::Command(Outcome::Generated {
        keys: vec![GeneratedKey { public_key, deposit_signature: Bytes([0xbb; 96]) }],
    }));
    replies.push(Reply::Command(Outcome::FenceReady));
    replies.push(Reply::Command(Outcome::HandedOver));
    replies.push(Reply::Command(Outcome::TookOver { term: 7 }));
    replies.push(Reply::HandedOver);
    replies.push(Reply::Command(Outcome::ExitsSigned {
        exits: vec![SignedExit { public_key, epoch: e, validator_index: 5, signature: Bytes([0xbb; 96]) }],
    }));
    replies.push(Reply::Command(Outcome::FeeRecipientsSet { keys: vec![KeyOutcome::Changed, KeyOutcome::NotFound] }));
    replies.push(Reply::Command(Outcome::HistoryRaised { keys: vec![KeyOutcome::Changed] }));
    replies.push(Reply::Command(Outcome::CredentialsTaken));
    replies.push(Reply::Command(Outcome::FenceClosed {
        record: ClosedRecord {
            version: 9,
            term: 7,
            slot_ceiling: s,
            target_ceiling: e,
            source_ceiling: e,
            min_state_version: 7 << 32,
            released_state: Some(Bytes([0xcc; 32])),
        },
    }));
    replies.push(Reply::SlashingProtection(SignedHistoryPage {
        page: HistoryPage {
            start: 0,
            total: 1,
            time_ms: Some(1_790_000_000_000),
            floor: Watermarks::default(),
            keys: vec![HistoryEntry { public_key, held: true, highest: Some(Watermarks::default()) }],
        },
        signature: Bytes([0xdd; 64]),
    }));
    let record = LogRecord {
        time_ms: 1_790_000_000_000,
        public_key,
        message: Message::Attestation { source: e, target: e },
        signing_root: Some(root(7)),
        refusal: None,
    };
    let refused = LogRecord { message: Message::Block { slot: s }, refusal: Some(Refusal::NoHistory), ..record };
    replies.push(Reply::Log(LogPage {
        first: 17,
        before: root(5),
        records: vec![record, refused],
        head: LogHead {
            boot_nonce: root(4),
            term: 3,
            number: 18,
            time_ms: 1_790_000_000_000,
            hash: root(6),
            signature: Bytes([0xdd; 64]),
        },
        last: 18,
        fresh: None,
    }));
    // Those of later versions come after them, so that the frames before keep their names: what is new is pushed last.
    let later = [
        Refusal::BlockTooOld { slot: s, now: s, oldest: s },
        Refusal::TargetTooOld { target: e, now: e, oldest: e },
        Refusal::SourceIsTarget { epoch: e },
        Refusal::DutySlotFromFuture { slot: s, now: s, latest: s },
        Refusal::HandoverTooSoon { slots: 8 },
        Refusal::OtherLastState { keys_root: root(1), fence_version: 7 },
        Refusal::StateBeforeClosed { found: 1, oldest: 2 },
        Refusal::FenceClosed,
        Refusal::OlderEnd { seen: 2, found: 1 },
        Refusal::NotHolder(NotHolder::Closed { slot_ceiling: s }),
        Refusal::NotHolder(NotHolder::FromFuture { slot_ceiling: s, now: s }),
        Refusal::StoreAway(StoreTrouble::NotAsked),
        Refusal::StoreAway(StoreTrouble::NoCredentials),
        Refusal::StoreAway(StoreTrouble::Record),
        Refusal::StoreAway(StoreTrouble::OtherStore),
        Refusal::NotSealed(Waiting::Credentials),
        Refusal::NotSealed(Waiting::Refused),
        Refusal::MaybeSealed(Waiting::Fence),
    ];
    replies.extend(later.map(Reply::Refused));
    let outcomes = [
        KeyOutcome::Duplicate,
        KeyOutcome::Deleted,
        KeyOutcome::ImpossibleHistory,
        KeyOutcome::NoHistory,
        KeyOutcome::Unreadable,
        KeyOutcome::WrongPassword,
    ];
    replies.push(Reply::Command(Outcome::Imported { keys: outcomes.to_vec() }));
    let (trouble, silent) = (StoreTrouble::Away, Silence { ms: 45_200, trouble: StoreTrouble::Away });
    let silent_refusal = Refusal::StoreSilent { slot_ceiling: s, target_ceiling: e, seconds: 45, trouble };
    replies.extend(
        [
            silent_refusal,
            Refusal::BlockNotAboveHistory { slot: s, last: s },
            Refusal::TargetNotAboveHistory { target: e, last: e },
        ]
        .map(Reply::Refused),
    );
    replies.push(Reply::Readiness(Readiness {
        standing: StatedStatus::Holding,
        term: 7,
        may_sign: MaySign {
            blocks_in_ms: None,
            attestations_in_ms: Some(0),
            reason: Some(silent_refusal),
            slot_ceiling: Some(s),
        },
        silence: Some(silent),
        store_answered_ms: Some(45_300),
        keys: 64,
    }));
    replies.push(Reply::Refused(Refusal::BuilderBidOff));
    replies.push(Reply::Log(log_of_commands(s)));
    replies.push(Reply::KeyDetails(key_page(public_key)));
    let later = Request::KeyDetails { nonce: BoundedBytes::new(vec![0xcc; 16]).unwrap(), start: 250 };
    let later = (format!("request-{}", requests.len()), request_bytes(&RequestFrame::new(1, later)));
    let requests = requests
        .into_iter()
        .enumerate()
        .map(|(i, request)| (format!("request-{i}"), request_bytes(&RequestFrame::new(1, request))));
    let replies = replies
        .into_iter()
        .enumerate()
        .map(|(i, reply)| (format!("reply-{i}"), reply_bytes(&ReplyFrame::new(1, reply))));
    requests.chain(replies).chain([later]).collect()
}
