//! Frames between broker and parent: what is written reads back, and nothing else decodes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use casemate_protocol::host_services::{decode_reply, decode_request, encode_reply, encode_request};
use casemate_protocol::{BoundedBytes, HostReply, HostRequest};
use proptest::prelude::*;

fn requests() -> Vec<HostRequest> {
    let blob = BoundedBytes::new(vec![7; 300]).unwrap();
    vec![
        HostRequest::Connect { host: "kms.eu-central-1.amazonaws.com".into(), port: 443 },
        HostRequest::Credentials,
        HostRequest::ListBlobs { group: "alpha".into() },
        HostRequest::LoadBlob { group: "alpha".into(), state_version: 7 },
        HostRequest::StoreBlob { group: "alpha".into(), state_version: u64::MAX, blob },
    ]
}

fn replies() -> Vec<HostReply> {
    vec![
        HostReply::Connected,
        HostReply::Credentials {
            access_key: "AKID".into(),
            secret_key: "secret".into(),
            session_token: Some("token".into()),
            expires: Some(1_790_000_000),
        },
        HostReply::Blobs { state_versions: vec![3, 2, 1] },
        HostReply::Blob { blob: BoundedBytes::new(vec![1]).unwrap() },
        HostReply::Stored,
        HostReply::Refused { reason: "no".into() },
    ]
}

fn frames() -> Vec<Vec<u8>> {
    let request = |r: &HostRequest| {
        let mut out = Vec::new();
        encode_request(r, &mut out);
        out
    };
    let reply = |r: &HostReply| {
        let mut out = Vec::new();
        encode_reply(r, &mut out);
        out
    };
    requests().iter().map(request).chain(replies().iter().map(reply)).collect()
}

#[test]
fn what_is_written_reads_back() {
    for request in requests() {
        let mut out = Vec::new();
        encode_request(&request, &mut out);
        assert_eq!(usize::try_from(u32::from_be_bytes(out[..4].try_into().unwrap())).unwrap(), out.len() - 4);
        assert_eq!(decode_request(&out[4..]), Ok(request));
    }
    for reply in replies() {
        let mut out = Vec::new();
        encode_reply(&reply, &mut out);
        assert!(decode_reply(&out[4..]) == Ok(reply));
    }
    // A frame of another version.
    let mut other = frames()[1].clone();
    other[6] = 2;
    assert!(decode_request(&other[4..]).unwrap_err().to_string().contains("version 2"));
}

proptest! {
    #[test]
    fn changed_and_cut_frames_do_not_pass_for_others(
        number in 0usize..11, at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let good = &frames()[number][4..];
        let at = at.index(good.len());
        prop_assert!(decode_request(&good[..at]).is_err() && decode_reply(&good[..at]).is_err());
        let longer = [good, &[byte]].concat();
        prop_assert!(decode_request(&longer).is_err() && decode_reply(&longer).is_err());
        let mut changed = good.to_vec();
        changed[at] ^= byte;
        if let Ok(request) = decode_request(&changed) {
            let mut out = Vec::new();
            encode_request(&request, &mut out);
            prop_assert_eq!(&out[4..], &changed);
        }
    }
}
