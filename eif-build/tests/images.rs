//! Images: written, read back, broken in every way.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use casemate_eif::build::{self, MeasuredConfig, Programs};
use casemate_eif::eif::{self, Eif, EifError, Kind};
use casemate_eif::report;
use casemate_eif::signature;
use proptest::prelude::*;

const CONFIGURATION: &str = r#"
group = "unit"
network = "hoodi"
kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"
[operators]
threshold = 1
keys = ["0x0101010101010101010101010101010101010101010101010101010101010101"]
[policy]
fee_recipient = "any"
[fence]
kind = "dynamodb"
table = "arn:aws:dynamodb:eu-central-1:123456789012:table/casemate"
"#;

fn programs() -> Programs {
    Programs { init: vec![1; 100], vault: vec![2; 2000], broker: vec![3; 300] }
}

/// Something with a bzImage's magic.
fn kernel() -> Vec<u8> {
    let mut kernel = vec![9; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

fn image_of(configuration: &str) -> Vec<u8> {
    build::image(&kernel(), "6.12.1", programs(), &MeasuredConfig::from_text(configuration.to_owned()).unwrap())
        .unwrap()
}

fn signer() -> (Vec<u8>, Vec<u8>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let certificate = rcgen::CertificateParams::new([]).unwrap().self_signed(&key).unwrap();
    (key.serialize_pem().into_bytes(), certificate.pem().into_bytes())
}

fn run(words: &[&str]) -> u8 {
    let arguments: Vec<OsString> = std::iter::once(&"casemate-eif").chain(words).map(OsString::from).collect();
    casemate_eif::cli::run(&arguments)
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = image_of(CONFIGURATION);
    let image = Eif::parse(&bytes).unwrap();
    let kinds: Vec<Kind> = image.sections.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [Kind::Kernel, Kind::CommandLine, Kind::Metadata, Kind::Ramdisk, Kind::Ramdisk]);
    assert_eq!((image.version, image.arm, image.default_memory, image.default_cpus), (4, false, 1 << 30, 2));
    let sections: Vec<(Kind, &[u8])> = image.sections.iter().map(|s| (s.kind, s.content)).collect();
    assert_eq!(eif::write(&sections), bytes);
    assert_eq!(image_of(CONFIGURATION), bytes);
}

/// The configuration is in PCR2 and PCR0 and nowhere else: PCR1 is everybody's.
#[test]
fn one_byte_of_configuration_changes_pcr0_and_pcr2_alone() {
    let (a, b) = (image_of(CONFIGURATION), image_of(&CONFIGURATION.replace("threshold = 1", "threshold = 1 ")));
    let (a, b) = (report::ImageReport::from_bytes(&a).unwrap(), report::ImageReport::from_bytes(&b).unwrap());
    let (left, right) = (a.eif.measure(), b.eif.measure());
    assert_ne!(left.pcr0, right.pcr0);
    assert_eq!(left.pcr1, right.pcr1);
    assert_ne!(left.pcr2, right.pcr2);
    let (told, differ) = report::diff(&a, &b);
    assert!(differ);
    assert!(told.contains("ramdisk 1     differs from byte") && !told.contains("ramdisk 0"), "{told}");
    assert!(told.contains("PCR0") && told.contains("PCR2") && !told.contains("PCR1"), "{told}");
    let (told, differ) = report::diff(&a, &a);
    assert_eq!((told.as_str(), differ), ("the same sections\n", false));
}

/// PCRs are over sections joined: a boundary that is moved changes none, and is told all the same.
#[test]
fn a_boundary_that_is_moved_is_told_though_no_pcr_changes() {
    let bytes = image_of(CONFIGURATION);
    let image = Eif::parse(&bytes).unwrap();
    let mut sections: Vec<(Kind, Vec<u8>)> = image.sections.iter().map(|s| (s.kind, s.content.to_vec())).collect();
    let moved = sections[1].1.split_off(3);
    let kept = std::mem::replace(&mut sections[1].1, moved);
    sections[0].1.extend(kept);
    let cut: Vec<(Kind, &[u8])> = sections.iter().map(|(kind, content)| (*kind, content.as_slice())).collect();
    let other = eif::write(&cut);
    let (a, b) = (report::ImageReport::from_bytes(&bytes).unwrap(), report::ImageReport::from_bytes(&other).unwrap());
    assert_eq!(a.pcrs(), b.pcrs());
    let (told, differ) = report::diff(&a, &b);
    assert!(differ && told.contains("cut into sections differently"), "{told}");
}

/// The formula, on values that others have published (shared/data/eif).
#[test]
fn the_pcr_of_nothing_is_the_known_one() {
    let nothing = const_hex::encode(eif::pcr(std::iter::empty()));
    assert!(nothing.starts_with("21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"), "{nothing}");
}

#[test]
fn a_signature_is_made_and_verified_and_belongs_to_its_image() {
    let (key, certificate) = signer();
    let bytes = image_of(CONFIGURATION);
    let signed = build::sign(&bytes, &key, &certificate).unwrap();
    let measured = report::ImageReport::from_bytes(&signed).unwrap();
    let pcrs = measured.pcrs();
    let der = signature::certificate_der(&certificate).unwrap();
    assert_eq!(pcrs[3], ("PCR8", const_hex::encode(eif::pcr([der.as_slice()].into_iter()))));
    // What is measured does not change by the signature; signing again replaces it.
    assert_eq!(measured.eif.measure(), Eif::parse(&bytes).unwrap().measure());
    let again = build::sign(&signed, &key, &certificate).unwrap();
    assert_eq!(Eif::parse(&again).unwrap().sections.len(), 6);
    report::ImageReport::from_bytes(&again).unwrap();

    let section = measured.eif.signature().unwrap();
    let other = image_of(&CONFIGURATION.replace("unit", "other"));
    let mut sections: Vec<(Kind, &[u8])> =
        Eif::parse(&other).unwrap().sections.iter().map(|s| (s.kind, s.content)).collect();
    sections.push((Kind::Signature, section));
    let told = format!("{:#}", report::ImageReport::from_bytes(&eif::write(&sections)).map(drop).unwrap_err());
    assert!(told.contains("of another image"), "{told}");

    let whole = measured.eif.measure().pcr0;
    // Every byte that is signed counts, and so does the signature. In the certificate's own text line ends may be others, and its own
    // signature is nobody's matter here: PCR8 measures all of it.
    let signed_from = section.windows(10).position(|window| window == b"\x69signature").unwrap();
    for at in 0..section.len() {
        let mut broken = section.to_vec();
        broken[at] ^= 1;
        if let Ok(read) = signature::Signature::parse(&broken)
            && read.verify(&whole).is_ok()
        {
            assert!(at < signed_from, "byte {at} of {}", section.len());
            let same = read.certificate == der;
            assert_eq!(read.pcr8 == eif::pcr([der.as_slice()].into_iter()), same);
        }
    }
    for len in 0..section.len() {
        assert!(signature::Signature::parse(&section[..len]).is_err(), "{len}");
    }
    let longer = [section, &[0]].concat();
    assert!(signature::Signature::parse(&longer).unwrap_err().to_string().contains("1 bytes behind the end"));
}

#[test]
fn keys_and_certificates_that_do_not_fit_are_refused() {
    let (key, certificate) = signer();
    let (_, of_another) = signer();
    let bytes = image_of(CONFIGURATION);
    let told = |key: &[u8], certificate: &[u8]| format!("{:#}", build::sign(&bytes, key, certificate).unwrap_err());
    assert!(told(&key, &of_another).contains("of another key"));
    assert!(told(&certificate, &certificate).contains("no EC PRIVATE KEY"));
    assert!(told(&key, &key).contains("exactly one certificate"));
    assert!(told(b"", &certificate).contains("no EC PRIVATE KEY"));
    assert!(told(&key, &[certificate.clone(), certificate.clone()].concat()).contains("exactly one certificate"));
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    assert!(told(p256.serialize_pem().as_bytes(), &certificate).contains("no P-384 key"));
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    let measured = MeasuredConfig::from_text(CONFIGURATION.to_owned()).unwrap();
    for kernel in [vec![], vec![0; 0x206], b"\x7fELF".repeat(1000)] {
        assert!(build::image(&kernel, "6", programs(), &measured).unwrap_err().to_string().contains("no bzImage"));
    }
}

fn rejected(change: impl FnOnce(&mut Vec<u8>)) -> EifError {
    let mut bytes = image_of(CONFIGURATION);
    change(&mut bytes);
    Eif::parse(&bytes).unwrap_err()
}

/// Offsets in the header: flags 6, reserved 24, count 26, offsets 28, sizes 284, unused 540, checksum 544.
#[test]
fn hostile_headers_are_refused_with_their_numbers() {
    assert_eq!(Eif::parse(&[]), Err(EifError::TooShort(0)));
    assert_eq!(Eif::parse(&[0; 547]), Err(EifError::TooShort(547)));
    assert_eq!(rejected(|b| b[0] = 0), EifError::Magic);
    assert_eq!(rejected(|b| b[5] = 5), EifError::Version(5));
    assert_eq!(rejected(|b| b[5] = 1), EifError::Version(1));
    assert_eq!(rejected(|b| b[7] = 2), EifError::Flags(2));
    assert_eq!(rejected(|b| b[25] = 1), EifError::Reserved(1));
    assert_eq!(rejected(|b| b[27] = 33), EifError::TooManySections(33));
    assert_eq!(rejected(|b| b[27] = 4), EifError::Unused(4));
    assert!(matches!(rejected(|b| b[27] = 6), EifError::Gap(5, 0, _)));
    assert_eq!(rejected(|b| b[35] ^= 1), EifError::Gap(0, 549, 548));
    assert!(matches!(rejected(|b| b[291] ^= 1), EifError::Length(0, 1025, 1024)));
    assert!(matches!(
        rejected(|b| (b[284..292].fill(255), b[552..560].fill(255)).1),
        EifError::CutOff(0, u64::MAX, 548, _)
    ));
    assert_eq!(rejected(|b| b[543] = 1), EifError::Reserved(1));
    assert!(matches!(rejected(|b| b[547] ^= 1), EifError::Checksum(..)));
    assert!(matches!(rejected(|b| *b.last_mut().unwrap() ^= 1), EifError::Checksum(..)));
    assert_eq!(rejected(|b| b.push(0)), EifError::Trailing(1));
    assert_eq!(rejected(|b| b[549] = 9), EifError::Kind(0, 9));
    assert_eq!(rejected(|b| b[551] = 1), EifError::SectionFlags(0, 1));
}

#[test]
fn sections_in_another_order_are_refused() {
    use Kind::{CommandLine, Kernel, Metadata, Ramdisk, Signature};
    let parse = |kinds: &[Kind]| {
        let sections: Vec<(Kind, &[u8])> = kinds.iter().map(|kind| (*kind, &b"abc"[..])).collect();
        Eif::parse(&eif::write(&sections)).map(drop)
    };
    assert_eq!(parse(&[Kernel, CommandLine, Metadata, Ramdisk]), Ok(()));
    assert_eq!(parse(&[Kernel, CommandLine, Ramdisk, Ramdisk, Signature, Metadata]), Ok(()));
    assert_eq!(parse(&[]), Err(EifError::Missing("kernel")));
    assert_eq!(parse(&[Kernel]), Err(EifError::Missing("command line")));
    assert_eq!(parse(&[Kernel, CommandLine, Metadata]), Err(EifError::Missing("ramdisk")));
    assert_eq!(parse(&[Kernel, CommandLine, Ramdisk]), Err(EifError::Missing("metadata")));
    for (wrong, at) in [
        (&[CommandLine, Kernel, Metadata, Ramdisk][..], 0),
        (&[Kernel, Kernel, CommandLine, Metadata, Ramdisk], 1),
        (&[Kernel, CommandLine, CommandLine, Metadata, Ramdisk], 2),
        (&[Kernel, CommandLine, Metadata, Metadata, Ramdisk], 3),
        (&[Kernel, CommandLine, Metadata, Signature, Ramdisk], 3),
        (&[Kernel, CommandLine, Metadata, Ramdisk, Signature, Ramdisk], 5),
        (&[Kernel, CommandLine, Metadata, Ramdisk, Signature, Signature], 5),
    ] {
        assert!(matches!(parse(wrong), Err(EifError::Order(found, _)) if found == at), "{wrong:?}: {:?}", parse(wrong));
    }
    assert!(matches!(parse(&[Kind::Ramdisk; 32]), Err(EifError::Order(0, _))));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_fail_otherwise(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Eif::parse(&bytes);
        let _ = signature::Signature::parse(&bytes);
    }

    /// No flipped bit goes unnoticed, and whatever is read is written the same.
    #[test]
    fn every_bit_of_an_image_counts(at in 0_usize..5000, bit in 0_u8..8) {
        let mut bytes = image_of(CONFIGURATION);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        // Only the defaults for memory and CPUs are free, and those have a checksum too.
        prop_assert!(Eif::parse(&bytes).is_err());
    }
}

#[test]
fn the_command_line_measures_signs_compares_and_writes_policies() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = signer();
    fs::write(path("key.pem"), &key).unwrap();
    fs::write(path("cert.pem"), &certificate).unwrap();
    fs::write(path("casemate.toml"), CONFIGURATION).unwrap();
    fs::write(path("a.eif"), image_of(CONFIGURATION)).unwrap();
    fs::write(path("b.eif"), image_of(CONFIGURATION)).unwrap();
    assert_eq!(run(&["measure", &path("a.eif")]), 0);
    assert_eq!(run(&["measure", "--json", &path("a.eif")]), 0);
    assert_eq!(run(&["diff", &path("a.eif"), &path("b.eif")]), 0);
    assert_eq!(run(&["sign", &path("b.eif"), "--key", &path("key.pem"), "--cert", &path("cert.pem")]), 0);
    assert_eq!(run(&["diff", &path("a.eif"), &path("b.eif")]), 1);
    let measurements: serde_json::Value = serde_json::from_slice(&fs::read(path("b.json")).unwrap()).unwrap();
    assert_eq!(measurements["Measurements"]["HashAlgorithm"], "Sha384 { ... }");
    assert_eq!(measurements["Measurements"]["PCR8"].as_str().unwrap().len(), 96);
    let sections = measurements["Sections"].as_array().unwrap();
    assert_eq!(sections.len(), 6);
    // Each begins where the one before ends.
    for pair in sections.windows(2) {
        let end = pair[0]["Offset"].as_u64().unwrap() + 12 + pair[0]["Bytes"].as_u64().unwrap();
        assert_eq!(pair[1]["Offset"], end);
    }

    let policy = |more: &[&str]| {
        let (config, measurements, out) = (path("casemate.toml"), path("b.json"), path("policies"));
        let role = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
        let (parent, admin) = (role("parent"), role("admin"));
        let words = ["policy", "--config", &config, "--measurements", &measurements, "--out", &out];
        run(&[&words[..], &["--parent-role", &parent, "--administrator", &admin], more].concat())
    };
    assert_eq!(policy(&[]), 2, "a fence in DynamoDB needs a writer");
    assert_eq!(policy(&["--fence-writer", "arn:aws:iam::123456789012:user/enclave"]), 0);
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(Path::new(&path("policies")).join(name)).unwrap()).unwrap()
    };
    let text = read("kms-key-policy.json").to_string();
    for pcr in ["PCR0", "PCR1", "PCR2", "PCR8"] {
        assert!(text.contains(measurements["Measurements"][pcr].as_str().unwrap()), "{pcr}");
    }
    let arn = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555";
    assert_eq!(read("parent-role-policy.json")["Statement"][0]["Resource"], arn);
    assert!(
        read("fence-table-policy.json")
            .to_string()
            .contains("arn:aws:dynamodb:eu-central-1:123456789012:table/casemate")
    );

    fs::write(path("broken.eif"), b"not an image").unwrap();
    for words in [
        &["measure", &path("broken.eif")][..],
        &["measure", &path("absent.eif")],
        &["sign", &path("broken.eif"), "--key", &path("key.pem"), "--cert", &path("cert.pem")],
        &["diff", &path("a.eif"), &path("broken.eif")],
        &["build", "--config", &path("key.pem")],
        &["nothing"],
    ] {
        assert_eq!(run(words), 2, "{words:?}");
    }
    assert_eq!(fs::read(path("broken.eif")).unwrap(), b"not an image");
    assert_eq!(run(&["--help"]), 0);
}
