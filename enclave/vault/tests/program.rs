//! `casemate-vault`, the program: it has no NSM but /dev/nsm, no KMS but AWS's, and takes nothing but a whole configuration.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use casemate_protocol::arn::TableArn;
use casemate_protocol::configuration::{FenceConfig, Operators, Policy, RecordStore, StoreEndpoint};
use casemate_protocol::network::NetworkFields;
use casemate_protocol::store::{ClusterId, KeyPrefix};
use casemate_protocol::{BoundedBytes, Bytes, Configuration, Epoch, Fork, ForkName, Preset};

fn configuration() -> Vec<u8> {
    configured(FenceConfig::Solo)
}

fn configured(fence: FenceConfig) -> Vec<u8> {
    let network = NetworkFields {
        name: "test".into(),
        preset: Preset::Mainnet,
        genesis_time: 0,
        genesis_validators_root: Bytes([5; 32]),
        slot_duration_ms: 12_000,
        slots_per_epoch: 32,
        forks: vec![Fork { name: ForkName::Phase0, version: Bytes([0; 4]), epoch: Some(Epoch(0)) }],
    };
    let operators = Operators { threshold: 1, keys: vec![Bytes([1; 32])] };
    let arn = "arn:aws:kms:eu-central-1:123456789012:key/0a1b".to_owned();
    let network = network.try_into().unwrap();
    Configuration::new("main".into(), network, arn, operators, Policy::default(), fence, Bytes([9; 32]))
        .unwrap()
        .encode()
}

/// What it says before it ends.
fn told(bytes: &[u8], environment: &[(&str, &str)]) -> String {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut vault = Command::new(env!("CARGO_BIN_EXE_casemate-vault"))
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = vault.stdin.take().unwrap();
    let _ = pipe.write_all(bytes);
    drop(pipe);
    let output = vault.wait_with_output().unwrap();
    drop(ours);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn only_a_whole_configuration_is_taken() {
    let good = configuration();
    assert!(told(&[], &[]).contains("the configuration has 0 bytes"));
    assert!(told(&good[..good.len() - 1], &[]).contains("not the one encoding"));
    assert!(told(&[&good[..], &[0]].concat(), &[]).contains("not the one encoding"));
    assert!(told(&vec![0; 100_000], &[]).contains("1 to 65536 are allowed"));
}

/// However somebody wrote it into the image: a store that no endpoint can be made of never becomes a fence without one.
#[test]
fn a_configuration_whose_store_can_be_none_ends_the_program() {
    let table = TableArn::parse("arn:aws:dynamodb:eu-central-1:123456789012:table/casemate").unwrap();
    let dynamodb = configured(FenceConfig::Record(RecordStore::Dynamodb { table }));
    let etcd = configured(FenceConfig::Record(RecordStore::Etcd {
        endpoints: vec![StoreEndpoint { host: "etcd-1.internal".into(), port: 2379 }],
        root: BoundedBytes::new(vec![0x30, 0]).unwrap(),
        cluster: ClusterId::parse("cdf818194e3a8c32").unwrap(),
        prefix: KeyPrefix::default(),
    }));
    for (good, from, to, sentence) in [
        (&dynamodb, "dynamodb:eu-central-1:", "dynamodb:eu-central1-:", "not the one encoding"),
        (&dynamodb, "dynamodb:eu-central-1:", "dynamodb:EU-central-1:", "not the one encoding"),
        (&dynamodb, ":123456789012:table", ":12345678901:ttable", "not the one encoding"),
        (&etcd, "etcd-1.internal", "etcd-1.interna-", "is no host"),
        (&etcd, "etcd-1.internal", "etcd_1.internal", "is no host"),
        (&etcd, "etcd-1.internal", "etcd-1..nternal", "is no host"),
        (&etcd, "cdf818194e3a8c32", "CDF818194E3A8C32", "not the one encoding"),
        (&etcd, "cdf818194e3a8c32", "0000000000000000", "not the one encoding"),
        (&etcd, "casemate/", "casemate#", "not the one encoding"),
    ] {
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        let told = told(&bytes, &[]);
        assert!(told.contains(sentence), "{to}: {told}");
    }
}

#[test]
fn without_an_nsm_there_is_no_vault_whatever_the_environment_says() {
    if std::path::Path::new("/dev/nsm").exists() {
        println!("SKIPPED: there is a /dev/nsm here");
        return;
    }
    let environment = [("CASEMATE_NSM", "software"), ("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")];
    assert!(told(&configuration(), &environment).contains("/dev/nsm cannot be opened"));
}
