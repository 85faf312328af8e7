//! The same parts through AWS's builder and ours; our images through AWS's reader, AWS's through ours.
use std::fs::{self, File};
use std::path::Path;

use aws_nitro_enclaves_image_format::defs::EifIdentityInfo;
use aws_nitro_enclaves_image_format::utils::eif_reader::EifReader;
use aws_nitro_enclaves_image_format::utils::{EifBuilder, PcrSignatureChecker, SignKeyData};
use casemate_eif::build::{self, MeasuredConfig, Programs};
use casemate_eif::eif::{Eif, Kind};
use casemate_eif::report;
use sha2::{Digest, Sha384};

const CONFIGURATION: &str = r#"
group = "oracle"
network = "hoodi"
kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"
[operators]
threshold = 1
keys = ["0x0101010101010101010101010101010101010101010101010101010101010101"]
[policy]
fee_recipient = "any"
[fence]
kind = "solo"
"#;

struct Bench {
    folder: tempfile::TempDir,
    ours: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let mut kernel = vec![9; 100_001];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        let programs = Programs { init: vec![1; 1234], vault: vec![2; 7_000_001], broker: vec![3; 4_567] };
        let measured = MeasuredConfig::from_text(CONFIGURATION.to_owned()).unwrap();
        let ours = build::image(&kernel, "6.12.117", programs, &measured).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let certificate = rcgen::CertificateParams::new([]).unwrap().self_signed(&key).unwrap();
        fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
        fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
        Self { folder, ours }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// AWS's image of the very sections of ours, and its measurements.
    fn theirs(&self, signed: bool) -> (Vec<u8>, std::collections::BTreeMap<String, String>) {
        let image = Eif::parse(&self.ours).unwrap();
        let content = |kind| image.sections.iter().filter(move |s| s.kind == kind).map(|s| s.content.to_vec());
        fs::write(self.path("kernel"), content(Kind::Kernel).next().unwrap()).unwrap();
        let command_line = String::from_utf8(content(Kind::CommandLine).next().unwrap()).unwrap();
        let metadata: EifIdentityInfo = serde_json::from_slice(&content(Kind::Metadata).next().unwrap()).unwrap();
        let signer = signed.then(|| SignKeyData::new(self.path("key.pem").to_str().unwrap(), &self.path("cert.pem")).unwrap());
        let mut builder = EifBuilder::new(&self.path("kernel"), command_line, signer, Sha384::new(), 0, metadata);
        for (number, ramdisk) in content(Kind::Ramdisk).enumerate() {
            let path = self.path(&format!("ramdisk-{number}"));
            fs::write(&path, ramdisk).unwrap();
            builder.add_ramdisk(&path);
        }
        let path = self.path("theirs.eif");
        let measurements = builder.write_to(&mut File::create(&path).unwrap());
        (fs::read(path).unwrap(), measurements)
    }
}

fn measured_by_them(path: &Path) -> std::collections::BTreeMap<String, String> {
    let mut reader = EifReader::from_eif(path.to_str().unwrap().to_owned()).unwrap();
    assert!(reader.check_crc());
    reader.get_measurements().unwrap()
}

fn same(ours: &report::ImageReport<'_>, theirs: &std::collections::BTreeMap<String, String>) {
    let json = ours.json(report::nothing_else());
    let ours: std::collections::BTreeMap<String, String> = serde_json::from_value(json["Measurements"].clone()).unwrap();
    let pcrs = |of: &std::collections::BTreeMap<String, String>| {
        of.iter().filter(|(name, _)| name.starts_with("PCR")).map(|(n, v)| (n.clone(), v.clone())).collect::<Vec<_>>()
    };
    assert_eq!(pcrs(&ours), pcrs(theirs));
    assert_eq!(pcrs(&ours).len(), theirs.len() - 1);
}

#[test]
fn an_unsigned_image_is_the_same_to_the_byte() {
    let bench = Bench::new();
    let (theirs, measurements) = bench.theirs(false);
    // serde_json sorts names; AWS's writer has them in the order of its structure. It is the one difference there may be.
    let (a, b) = (Eif::parse(&bench.ours).unwrap(), Eif::parse(&theirs).unwrap());
    for (ours, theirs) in a.sections.iter().zip(&b.sections) {
        assert!(ours.kind == theirs.kind && ours.content == theirs.content, "{:?} differs", ours.kind);
    }
    assert!(bench.ours == theirs, "the images differ");
    same(&report::ImageReport::from_bytes(&bench.ours).unwrap(), &measurements);
    fs::write(bench.path("ours.eif"), &bench.ours).unwrap();
    same(&report::ImageReport::from_bytes(&bench.ours).unwrap(), &measured_by_them(&bench.path("ours.eif")));
}

#[test]
fn a_signed_image_is_the_same_but_for_the_signature_itself() {
    let bench = Bench::new();
    let read = |name: &str| fs::read(bench.path(name)).unwrap();
    let ours = build::sign(&bench.ours, &read("key.pem"), &read("cert.pem")).unwrap();
    let (theirs, measurements) = bench.theirs(true);
    let (a, b) = (report::ImageReport::from_bytes(&ours).unwrap(), report::ImageReport::from_bytes(&theirs).unwrap());
    same(&a, &measurements);
    same(&b, &measurements);
    assert_eq!(a.signature.as_ref().unwrap().certificate, b.signature.as_ref().unwrap().certificate);
    assert_eq!(a.signature.as_ref().unwrap().pcr0, b.signature.as_ref().unwrap().pcr0);

    // ECDSA takes a random number, so 96 bytes differ, in an array of numbers that take one byte or two.
    let (ours_section, theirs_section) = (a.eif.signature().unwrap(), b.eif.signature().unwrap());
    let common = ours_section.iter().zip(theirs_section).take_while(|(a, b)| a == b).count();
    let rest = |section: &[u8]| section.len() - common;
    // What is the same is everything before the signature: it is the last thing in the section.
    assert!(rest(ours_section) <= 192 && rest(theirs_section) <= 192, "{} {}", rest(ours_section), rest(theirs_section));
    for (ours, theirs) in a.eif.sections.iter().zip(&b.eif.sections).filter(|(s, _)| s.kind != Kind::Signature) {
        assert!(ours == theirs, "{:?} differs", ours.kind);
    }

    // Each reader takes the other's signature.
    fs::write(bench.path("ours.eif"), &ours).unwrap();
    same(&a, &measured_by_them(&bench.path("ours.eif")));
    let mut checker = PcrSignatureChecker::from_eif(bench.path("ours.eif").to_str().unwrap()).unwrap();
    assert!(!checker.is_empty());
    checker.verify().unwrap();
}
