//! The built-in networks against the collected facts, and files that must be refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use casemate_config::{ConfigError, NAMED, named, parse};
use casemate_protocol::configuration::{FenceConfig, RecordStore, Window};
use casemate_protocol::{Bytes, Configuration, Epoch, ForkName, Slot};

#[test]
fn every_named_network_parses_under_its_name() {
    for (name, _) in NAMED {
        let network = named(name).unwrap().unwrap();
        assert_eq!(network.name(), *name);
        assert!(network.version_of(ForkName::Fulu).is_some());
        assert!(network.forks().iter().any(|f| f.name == ForkName::Fulu && f.epoch.is_some()));
    }
    assert!(named("holesky").is_none());
    // Known from block explorers: slot 0 of mainnet began at 2020-12-01 12:00:23 UTC.
    let mainnet = named("mainnet").unwrap().unwrap();
    assert_eq!(mainnet.slot_at(1_606_824_023_000 + 12_000 * 5), Slot(5));
    assert_eq!(mainnet.fork_at(Epoch(269_568)), ForkName::Deneb);
    assert_eq!(mainnet.fork_at(Epoch(269_567)), ForkName::Capella);
    assert_eq!(mainnet.fork_at(Epoch::MAX), ForkName::Fulu);
}

/// Every value that networks.yaml gives for a network stands in its TOML too.
#[test]
fn the_built_in_facts_are_the_collected_ones() {
    let Some(folder) = casemate_testdata::folder("time-slot") else { return };
    let yaml = std::fs::read_to_string(folder.join("networks.yaml")).unwrap();
    let mut network = String::new();
    let mut fork = (String::new(), String::new());
    let mut compared = 0;
    for line in yaml.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim().trim_matches('\'');
        if !line.starts_with(' ') {
            key.clone_into(&mut network);
            continue;
        }
        let Some((_, toml)) = NAMED.iter().find(|(name, _)| *name == network) else { continue };
        let contains = |text: String| assert!(toml.contains(&text), "{network}: {text} is not in its TOML");
        match key.trim() {
            "genesis_validators_root" => contains(format!("genesis_validators_root = \"{value}\"")),
            "genesis_time" => contains(format!("genesis_time = {value}\n")),
            "seconds_per_slot" => contains(format!("slot_duration_ms = {value}000\n")),
            "- name" => value.clone_into(&mut fork.0),
            "version" => value.clone_into(&mut fork.1),
            "epoch" if value == "null" => contains(format!("{} = {{ version = \"{}\" }}\n", fork.0, fork.1)),
            "epoch" => contains(format!("{} = {{ version = \"{}\", epoch = {value} }}\n", fork.0, fork.1)),
            _ => continue,
        }
        compared += 1;
    }
    assert!(compared > 40, "only {compared} values compared");
}

#[test]
fn files_with_a_fault_are_refused_with_its_place() {
    let good = NAMED[0].1;
    assert!(parse(good).is_ok());
    for (what, from, to) in [
        ("an unknown field", "preset =", "colour = 1\npreset ="),
        ("an unknown preset", "preset = \"mainnet\"", "preset = \"huge\""),
        ("an unknown fork", "altair =", "atlantis ="),
        ("a short root", "0x4b363db9", "0x4b36"),
        ("a root without 0x", "\"0x4b363db9", "\"4b363db9"),
        ("a negative time", "genesis_time = 16", "genesis_time = -16"),
        ("slots of no length", "slot_duration_ms = 12000", "slot_duration_ms = 0"),
        ("epochs of no slots", "slots_per_epoch = 32", "slots_per_epoch = 0"),
        ("a fork before its predecessor", "epoch = 74240", "epoch = 144897"),
        ("an unscheduled fork ahead of a scheduled one", ", epoch = 74240", ""),
        ("no phase0", "phase0 =", "# phase0 ="),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{what}");
        assert!(parse(&bad).is_err(), "{what} was accepted");
    }
    assert!(parse(&"#".repeat(70_000)).unwrap_err().to_string().contains("70000 bytes"));
}

const CONFIGURATION: &str = r#"
group = "main"
network = "mainnet"
kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/0a1b2c3d-0000-1111-2222-333344445555"

[operators]
threshold = 1
keys = ["0x1111111111111111111111111111111111111111111111111111111111111111",
        "0x2222222222222222222222222222222222222222222222222222222222222222"]

[policy]
fee_recipient = "any"
withdrawal_addresses = ["0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]

[fence]
kind = "dynamodb"
table = "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate-fence"
"#;

/// The fence of a configuration with this table.
fn fence(text: &str) -> Result<FenceConfig, ConfigError> {
    let (start, _) = CONFIGURATION.split_once("[fence]").unwrap();
    let read = casemate_config::configuration(&format!("{start}[fence]\n{text}"), Bytes([9; 32]))?;
    // What is taken crosses the pipe.
    assert_eq!(Configuration::decode(&read.encode()), Ok(read.clone()));
    Ok(read.fence)
}

#[test]
fn configurations_are_read_and_cross_the_pipe() {
    let read = casemate_config::configuration(CONFIGURATION, Bytes([9; 32])).unwrap();
    assert_eq!((read.group.as_str(), read.network.name(), read.operators.threshold), ("main", "mainnet", 1));
    assert_eq!(read.operators.keys, [Bytes([0x11; 32]), Bytes([0x22; 32])]);
    assert_eq!(read.policy.withdrawal_addresses, [Bytes([0xaa; 20])]);
    let FenceConfig::Record(RecordStore::Dynamodb { table }) = &read.fence else { panic!("{:?}", read.fence) };
    assert_eq!(table.to_string(), "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate-fence");
    let bytes = read.encode();
    assert_eq!(Configuration::decode(&bytes), Ok(read.clone()));
    for len in 0..bytes.len() {
        assert!(Configuration::decode(&bytes[..len]).is_err());
    }
    assert_eq!(fence("kind = \"solo\""), Ok(FenceConfig::Solo));
    assert_eq!(fence("kind = \"file\""), Ok(FenceConfig::Record(RecordStore::File)));
    // The network as a table of its own.
    let (_, hoodi) = NAMED.iter().find(|(name, _)| *name == "hoodi").unwrap();
    let mut table = format!("[network]\n{hoodi}").replace("[forks", "[network.forks");
    table = CONFIGURATION.replace("network = \"mainnet\"\n", "") + &table;
    let own = casemate_config::configuration(&table, Bytes([9; 32])).unwrap();
    assert_eq!(own.network, named("hoodi").unwrap().unwrap());
}

#[test]
fn a_table_is_named_by_its_arn_and_by_nothing_less() {
    let read = |table: &str| fence(&format!("kind = \"dynamodb\"\ntable = \"{table}\""));
    let refused = |table: &str, told: &str| {
        let error = read(table).unwrap_err().to_string();
        assert!(error.contains(told), "{table}: {error}");
    };
    let long = format!("arn:aws:dynamodb:{}:123456789012:table/{}", "r".repeat(63), "t".repeat(255));
    for good in [
        "arn:aws:dynamodb:eu-central-1:123456789012:table/abc",
        "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/A_b.c-d",
        "arn:aws-us-gov:dynamodb:us-gov-west-1:123456789012:table/casemate",
        &long,
    ] {
        let Ok(FenceConfig::Record(RecordStore::Dynamodb { table })) = read(good) else { panic!("{good}") };
        assert_eq!(table.to_string(), good);
    }
    for region in ["eu-central-1-", "EU-central-1", "-eu", "eu.central", "", &"r".repeat(64)] {
        refused(&format!("arn:aws:dynamodb:{region}:123456789012:table/abc"), "is no region");
    }
    for account in ["12345678901", "1234567890123", "", "12345678901x"] {
        refused(&format!("arn:aws:dynamodb:eu-central-1:{account}:table/abc"), "is not 12 digits");
    }
    for partition in ["aws-iso", "AWS", ""] {
        refused(&format!("arn:{partition}:dynamodb:eu-central-1:123456789012:table/abc"), "none of aws, aws-cn");
    }
    for table in ["ab", "a/b", "", &"t".repeat(256)] {
        refused(&format!("arn:aws:dynamodb:eu-central-1:123456789012:table/{table}"), "the table's name");
    }
    refused("arn:aws:s3:eu-central-1:123456789012:table/abc", "not of the form arn:PARTITION:dynamodb");
    // The form of old, and a region beside the ARN.
    refused("casemate-fence", "by its ARN alone");
    let old = fence("kind = \"dynamodb\"\nregion = \"eu-central-1\"\ntable = \"casemate-fence\"");
    assert!(old.unwrap_err().to_string().contains("would let the credentials choose the account"));
    let both = "kind = \"dynamodb\"\nregion = 1\ntable = \"arn:aws:dynamodb:eu-1:123456789012:table/abc\"";
    assert_eq!(fence(both), Err(ConfigError::TableWithoutAccount));
}

#[test]
fn an_etcd_is_named_by_servers_that_can_be_some_its_cluster_and_its_root() {
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let etcd = |endpoints: &str, root: &str, more: &str| {
        fence(&format!("kind = \"etcd\"\nendpoints = {endpoints}\nroot = \"\"\"{root}\"\"\"\n{more}"))
    };
    let cluster = "cluster = \"cdf818194e3a8c32\"";
    let read = etcd("[\"a.b:2379\", \"[::1]:1\", \"127.0.0.1:65535\"]", pem, cluster);
    let Ok(FenceConfig::Record(RecordStore::Etcd { endpoints, root, cluster: id, prefix })) = read else { panic!() };
    let shown: Vec<_> = endpoints.iter().map(|at| (at.host.as_str(), at.port)).collect();
    assert_eq!(shown, [("a.b", 2379), ("::1", 1), ("127.0.0.1", 65535)]);
    assert_eq!(root.as_ref(), [0x30, 0]);
    assert_eq!((id.to_string(), prefix.to_string()), ("cdf818194e3a8c32".to_owned(), "casemate/".to_owned()));
    let with = etcd("[\"a:1\"]", pem, &format!("{cluster}\nprefix = \"/validators/a_1/\""));
    let Ok(FenceConfig::Record(RecordStore::Etcd { prefix, .. })) = with else { panic!() };
    assert_eq!(prefix.to_string(), "/validators/a_1/");
    for (endpoints, told) in [
        ("[\"a.b\"]", "HOST:PORT"),
        ("[\"a:x\"]", "HOST:PORT"),
        ("[\"a:+1\"]", "HOST:PORT"),
        ("[\"a:65536\"]", "HOST:PORT"),
        ("[\"::1:2379\"]", "HOST:PORT"),
        ("[\"[a.b]:1\"]", "HOST:PORT"),
        ("[\"a:0\"]", "port of \"a\" is 0"),
        ("[]", "0 endpoints"),
        ("[\"a:1\", \"a:1\", \"a:1\", \"a:1\", \"a:1\", \"a:1\", \"a:1\", \"a:1\", \"a:1\", \"a:1\"]", "10 endpoints"),
        ("[\"a/b:1\"]", "\"a/b\" is no host"),
        ("[\"etcd_1.internal:1\"]", "\"etcd_1.internal\" is no host"),
        ("[\"etcd-:1\"]", "is no host"),
        ("[\"etcd-.internal:1\"]", "is no host"),
        ("[\"a..b:1\"]", "is no host"),
        ("[\".a:1\"]", "is no host"),
        ("[\":1\"]", "is no host"),
        ("[\"a.b:1\", \"1.2.3:1\"]", "is no host"),
    ] {
        let error = etcd(endpoints, pem, cluster).unwrap_err().to_string();
        assert!(error.contains(told), "{endpoints}: {error}");
    }
    for (root, more, told) in [
        ("no PEM", cluster, "no certificate in PEM"),
        (pem, "", "missing field `cluster`"),
        (pem, "cluster = \"cdf818194e3a8c3\"", "16 hex digits"),
        (pem, "cluster = \"cdf818194e3a8c320\"", "16 hex digits"),
        (pem, "cluster = \"14841639068965178418\"", "16 hex digits"),
        (pem, "cluster = \"0000000000000000\"", "not all zero"),
        (pem, "cluster = \"cdf818194e3a8c32\"\nprefix = \"casemate\"", "with / at its end"),
        (pem, "cluster = \"cdf818194e3a8c32\"\nprefix = \"a\\n/\"", "with / at its end"),
        (pem, "cluster = \"cdf818194e3a8c32\"\nprefix = \"\"", "with / at its end"),
    ] {
        let error = etcd("[\"a:1\"]", root, more).unwrap_err().to_string();
        assert!(error.contains(told), "{more}: {error}");
    }
}

#[test]
fn a_builders_bid_is_off_and_the_fee_recipient_is_said() {
    let policy = |line: &str| {
        let text = CONFIGURATION.replacen("fee_recipient = \"any\"", line, 1);
        casemate_config::configuration(&text, Bytes([9; 32])).unwrap().policy
    };
    let any = policy("fee_recipient = \"any\"");
    assert_eq!((any.fee_recipient, any.builder_bids), (None, false));
    let given = policy(&format!("fee_recipient = \"0x{}\"\nbuilder_bids = true", "fe".repeat(20)));
    assert_eq!((given.fee_recipient, given.builder_bids), (Some(Bytes([0xfe; 20])), true));
}

#[test]
fn a_configuration_with_a_byte_order_mark_is_read() {
    let read = |text: &str| casemate_config::configuration(text, Bytes([9; 32]));
    assert_eq!(read(&format!("\u{feff}{CONFIGURATION}")), read(CONFIGURATION));
}

#[test]
fn the_window_is_the_usual_one_unless_the_policy_says_otherwise() {
    let window = |lines: &str| {
        let text = CONFIGURATION.replacen("[policy]", &format!("[policy]\n{lines}"), 1);
        let read = casemate_config::configuration(&text, Bytes([9; 32])).unwrap();
        assert_eq!(Configuration::decode(&read.encode()), Ok(read.clone()));
        read.policy.window
    };
    let ages = |max_block_age_slots, max_target_age_epochs| Window { max_block_age_slots, max_target_age_epochs };
    assert_eq!(window(""), ages(Some(2), Some(1)));
    assert_eq!(window("max_block_age_slots = 5"), ages(Some(5), Some(1)));
    assert_eq!(window("max_block_age_slots = 0\nmax_target_age_epochs = 3"), ages(Some(0), Some(3)));
    assert_eq!(window("max_block_age_slots = \"any\""), ages(None, Some(1)));
    assert_eq!(window("max_block_age_slots = \"any\"\nmax_target_age_epochs = \"any\""), Window::ANY);
}

#[test]
fn configurations_with_a_fault_are_refused_with_the_reason() {
    for (from, to, told) in [
        ("group = \"main\"", "group = \"a/b\"", "group's name"),
        ("group = \"main\"", "group = \"\"", "group's name"),
        ("group = \"main\"", "group = \"-main\"", "group's name"),
        ("group = \"main\"", "grupp = \"main\"", "unknown field"),
        ("\"mainnet\"", "\"testnet\"", "not built in"),
        ("\"mainnet\"", "7", "not a configuration"),
        ("\"mainnet\"", "{ name = \"x\" }", "missing field"),
        ("threshold = 1", "threshold = 0", "the threshold is 0 of 2"),
        ("threshold = 1", "threshold = 3", "the threshold is 3 of 2"),
        ("threshold = 1", "threshold = -1", "not a configuration"),
        ("0x2222", "0x2", "hex of 32 bytes"),
        (
            "0x2222222222222222222222222222222222222222222222222222222222222222",
            "0x1111111111111111111111111111111111111111111111111111111111111111",
            "named twice",
        ),
        ("0xaaaa", "aaaa", "hex of 20 bytes"),
        ("fee_recipient = \"any\"", "", "does not say where fees go: write fee_recipient"),
        ("fee_recipient = \"any\"", "fee_recipient = \"none\"", "\"none\" is not 0x and the hex of 20 bytes"),
        (
            "key/0a1b",
            "key/mrk-0a1b",
            "kms_key_arn: the key \"mrk-0a1b2c3d-0000-1111-2222-333344445555\" is a multi-Region key",
        ),
        ("arn:aws:kms", "arn:aws:s3", "not of the form arn:PARTITION:kms"),
        ("[policy]", "[policy]\nsigns_everything = true", "unknown field"),
        ("[policy]", "[policy]\nmax_block_age_slots = -1", "neither a number from 0 on nor \"any\""),
        ("[policy]", "[policy]\nmax_target_age_epochs = \"all\"", "neither a number from 0 on nor \"any\""),
        ("[policy]", "[policy]\nmax_target_age_epochs = 1.5", "neither a number from 0 on nor \"any\""),
        ("kms_key_arn = \"arn", "kms_key_arn = \"\"\n#", "kms_key_arn has 0 bytes"),
        // What stands for the past is said, never assumed.
        ("[fence]\nkind = \"dynamodb\"\ntable", "[fences]\ntable", "unknown field `fences`"),
        ("kind = \"dynamodb\"", "kind = \"none\"", "unknown variant `none`"),
        ("table = \"arn", "# table = \"arn", "missing field `table`"),
        ("kind = \"dynamodb\"", "kind = \"solo\"", "unknown field"),
    ] {
        let changed = CONFIGURATION.replacen(from, to, 1);
        assert_ne!(changed, CONFIGURATION, "{from}");
        let error = casemate_config::configuration(&changed, Bytes([9; 32])).unwrap_err().to_string();
        assert!(error.contains(told), "{from} {to}: {error}");
    }
}
