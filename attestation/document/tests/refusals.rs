//! Each check has a test that breaks just that. The documents are well signed unless the signature is what is broken.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::as_conversions, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use casemate_document::{
    AWS_ROOT_G1_DER, AWS_ROOT_G1_SHA256, Anchor, At, CertPosition, Document, Error, Expected, Field, MAX_DOCUMENT_LEN,
    MAX_PAYLOAD_LEN, Timestamp, Unverified, verify_chain,
};
use casemate_nsm::{
    Authority, Chain, ES384, LEAF_SECONDS, authority_params, cose_sign1, leaf_params, root_params, sign,
};
use minicbor::Encoder;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256,
};
use time::OffsetDateTime;

const SECONDS: u64 = 1_790_000_000;
const NOW: Timestamp = Timestamp(SECONDS * 1000);
const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";

static PKI: LazyLock<(Authority, Chain)> = LazyLock::new(|| {
    let root = Authority::root(root_params()).unwrap();
    let chain = Chain::issue(&root, MODULE_ID, date(0)).unwrap();
    (root, chain)
});

fn date(offset: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(SECONDS).unwrap() + offset).unwrap()
}

fn anchor() -> Anchor {
    Anchor::from_der(&PKI.0.der).unwrap()
}

fn cbor(write: impl FnOnce(&mut Encoder<Vec<u8>>)) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder);
    encoder.into_writer()
}

fn bytes(value: &[u8]) -> Vec<u8> {
    cbor(|e| drop(e.bytes(value)))
}

fn text(value: &str) -> Vec<u8> {
    cbor(|e| drop(e.str(value)))
}

fn uint(value: u64) -> Vec<u8> {
    cbor(|e| drop(e.u64(value)))
}

const NULL: &[u8] = &[0xf6];

/// The fields of a payload in order: key and value in CBOR.
#[derive(Clone)]
struct Fields(Vec<(Vec<u8>, Vec<u8>)>);

impl Fields {
    fn good() -> Self {
        Self::of(&PKI.1)
    }

    fn of(chain: &Chain) -> Self {
        let bundle: Vec<&[u8]> = chain.bundle.iter().map(Vec::as_slice).collect();
        Self(vec![
            (text("module_id"), text(MODULE_ID)),
            (text("digest"), text("SHA384")),
            (text("timestamp"), uint(NOW.0)),
            (text("pcrs"), pcrs(&(0..16).map(|index| (index, [index as u8 + 1; 48].to_vec())).collect::<Vec<_>>())),
            (text("certificate"), bytes(&chain.leaf.der)),
            (text("cabundle"), array(&bundle)),
            (text("public_key"), bytes(b"key")),
            (text("user_data"), bytes(b"data")),
            (text("nonce"), bytes(b"nonce")),
        ])
    }

    fn set(mut self, name: &str, value: Vec<u8>) -> Self {
        self.0.iter_mut().find(|(key, _)| *key == text(name)).unwrap().1 = value;
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.0.retain(|(key, _)| *key != text(name));
        self
    }

    fn and(mut self, name: &str, value: Vec<u8>) -> Self {
        self.0.push((text(name), value));
        self
    }

    fn payload(&self) -> Vec<u8> {
        let mut out = cbor(|e| drop(e.map(self.0.len() as u64)));
        for (key, value) in &self.0 {
            out.extend([key.as_slice(), value].concat());
        }
        out
    }
}

fn pcrs(values: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = cbor(|e| drop(e.map(values.len() as u64)));
    for (index, value) in values {
        out.extend([uint(*index), bytes(value)].concat());
    }
    out
}

fn array(items: &[&[u8]]) -> Vec<u8> {
    let mut out = cbor(|e| drop(e.array(items.len() as u64)));
    for item in items {
        out.extend(bytes(item));
    }
    out
}

fn seal(payload: &[u8]) -> Vec<u8> {
    seal_with(&PKI.1.leaf.key, payload)
}

fn seal_with(key: &KeyPair, payload: &[u8]) -> Vec<u8> {
    cose_sign1(ES384, &[0xa0], payload, &sign(key, ES384, payload).unwrap()).unwrap()
}

fn verify(document: &[u8]) -> Result<Document, Error> {
    verify_at(document, At::Time(NOW))
}

fn verify_at(document: &[u8], at: At) -> Result<Document, Error> {
    Unverified::parse(document)?.verify(&anchor(), at)
}

fn refused(fields: &Fields) -> Error {
    verify(&seal(&fields.payload())).unwrap_err()
}

fn good() -> Vec<u8> {
    seal(&Fields::good().payload())
}

/// What every test below starts from.
#[test]
fn a_good_document_verifies() {
    let document = verify(&good()).unwrap();
    assert_eq!(document.module_id(), MODULE_ID);
    assert_eq!((document.nonce(), document.user_data()), (Some(b"nonce".as_slice()), Some(b"data".as_slice())));
    assert_eq!(document.pcrs().len(), 16);
    assert_eq!(document.chain().len(), 5);
}

#[test]
fn the_aws_root_has_the_published_fingerprint() {
    let published = "641A0321A3E244EFE456463195D606317ED7CDCC3C1756E09893F3C68F79BB5B";
    let computed = const_hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, AWS_ROOT_G1_DER));
    assert_eq!(computed, published.to_ascii_lowercase());
    assert_eq!(AWS_ROOT_G1_SHA256, computed);
    assert_eq!(const_hex::encode(Anchor::aws().unwrap().sha256()), computed);
}

// The envelope.

#[test]
fn the_tag_is_optional_and_no_other_is_allowed() {
    let tagged = [&[0xd2], good().as_slice()].concat();
    assert!(verify(&tagged).is_ok());
    let tagged_twice = [&[0xd2, 0xd2], good().as_slice()].concat();
    assert!(matches!(verify(&tagged_twice).unwrap_err(), Error::Cbor { at: 1, .. }));
    let sign = [&[0xd8, 98], good().as_slice()].concat();
    assert_eq!(verify(&sign).unwrap_err(), Error::Tag { found: 98 });
}

#[test]
fn sizes_of_documents_are_bounded() {
    assert_eq!(verify(&[]).unwrap_err(), Error::DocumentSize { len: 0 });
    let long = vec![0x84; MAX_DOCUMENT_LEN + 1];
    assert_eq!(verify(&long).unwrap_err(), Error::DocumentSize { len: MAX_DOCUMENT_LEN + 1 });
}

#[test]
fn the_envelope_has_four_items() {
    assert_eq!(verify(&[0x83, 0x40, 0xa0, 0x40]).unwrap_err(), Error::CoseItems { found: 3 });
    let mut five = good();
    five[0] = 0x85;
    five.push(0);
    assert_eq!(verify(&five).unwrap_err(), Error::CoseItems { found: 5 });
    let mut indefinite = good();
    indefinite[0] = 0x9f;
    indefinite.push(0xff);
    assert!(matches!(verify(&indefinite).unwrap_err(), Error::Cbor { .. }));
    assert!(matches!(verify(&[0xa0]).unwrap_err(), Error::Cbor { at: 0, .. }));
}

#[test]
fn the_algorithm_is_es384_and_the_header_holds_nothing_else() {
    let payload = Fields::good().payload();
    for header in [
        &[0xa1, 0x01, 0x26][..],               // ES256
        &[0xa1, 0x01, 0x20],                   // -1, as QEMU writes it
        &[0xa0],                               // none
        &[],                                   // empty
        &[0xa1, 0x01, 0x39, 0x00, 0x22],       // -35, written longer
        &[0xa2, 0x01, 0x38, 0x22, 0x04, 0x40], // and a key id
    ] {
        let signature = sign(&PKI.1.leaf.key, header, &payload).unwrap();
        let document = cose_sign1(header, &[0xa0], &payload, &signature).unwrap();
        assert!(matches!(verify(&document).unwrap_err(), Error::Algorithm { .. }), "{header:02x?}");
    }
}

#[test]
fn the_unprotected_header_is_empty() {
    let payload = Fields::good().payload();
    let signature = sign(&PKI.1.leaf.key, ES384, &payload).unwrap();
    let with = |header: &[u8]| verify(&cose_sign1(ES384, header, &payload, &signature).unwrap());
    assert!(with(&[0xa0]).is_ok());
    assert!(with(&[0xbf, 0xff]).is_ok());
    for header in [&[0xa1, 0x01, 0x26][..], &[0xbf, 0x01, 0x26, 0xff], NULL, &[0x80], &[0x40]] {
        assert!(matches!(with(header).unwrap_err(), Error::UnprotectedHeader { .. }), "{header:02x?}");
    }
}

#[test]
fn signatures_have_96_bytes() {
    let payload = Fields::good().payload();
    let signature = sign(&PKI.1.leaf.key, ES384, &payload).unwrap();
    for len in [0, 64, 95, 97, 132] {
        let mut other = signature.clone();
        other.resize(len, 0);
        let document = cose_sign1(ES384, &[0xa0], &payload, &other).unwrap();
        assert_eq!(verify(&document).unwrap_err(), Error::SignatureLength { found: len });
    }
}

#[test]
fn every_bit_of_the_signature_counts() {
    let good = good();
    for at in good.len() - 96..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(verify(&bad).unwrap_err(), Error::Signature, "byte {at}");
    }
    let zeros = cose_sign1(ES384, &[0xa0], &Fields::good().payload(), &[0; 96]).unwrap();
    assert_eq!(verify(&zeros).unwrap_err(), Error::Signature);
}

#[test]
fn another_key_under_the_same_root_does_not_sign_for_the_leaf() {
    let other = PKI.0.issue(leaf_params("another leaf", date(0), LEAF_SECONDS)).unwrap();
    let document = seal_with(&other.key, &Fields::good().payload());
    assert_eq!(verify(&document).unwrap_err(), Error::Signature);
}

#[test]
fn the_payload_has_a_size() {
    assert_eq!(verify(&seal(&[])).unwrap_err(), Error::PayloadSize { found: 0 });
    // The longest document has room for the longest payload and its envelope, and no byte more.
    let longest = cose_sign1(ES384, &[0xa0], &vec![0; MAX_PAYLOAD_LEN], &[0; 96]).unwrap();
    assert_eq!(longest.len(), MAX_DOCUMENT_LEN);
    assert!(matches!(verify(&longest).unwrap_err(), Error::Cbor { part: "payload", at: 0, .. }));
    let longer = cose_sign1(ES384, &[0xa0], &vec![0; MAX_PAYLOAD_LEN + 1], &[0; 95]).unwrap();
    assert_eq!(verify(&longer).unwrap_err(), Error::PayloadSize { found: MAX_PAYLOAD_LEN + 1 });
}

#[test]
fn nothing_follows_behind_a_document_or_its_payload() {
    let trailing = [good().as_slice(), &[0, 0]].concat();
    assert_eq!(verify(&trailing).unwrap_err(), Error::TrailingBytes { part: "envelope", count: 2 });
    let payload = [Fields::good().payload().as_slice(), &[0xf6]].concat();
    assert_eq!(verify(&seal(&payload)).unwrap_err(), Error::TrailingBytes { part: "payload", count: 1 });
}

#[test]
fn an_unsigned_document_of_qemu_is_refused() {
    // As QEMU's NSM writes it without keys: {1: -1}, zeros for signature, certificate and bundle.
    let zeros = [0; 64];
    let fields = Fields::good().set("certificate", bytes(&zeros)).set("cabundle", array(&[&zeros]));
    let document = cose_sign1(&[0xa1, 0x01, 0x20], &[0xa0], &fields.payload(), &zeros).unwrap();
    assert_eq!(verify(&document).unwrap_err(), Error::Algorithm { found: "a10120".to_owned() });
    // Dressed up as ES384 it gets no further.
    let document = cose_sign1(ES384, &[0xa0], &fields.payload(), &[0; 96]).unwrap();
    assert!(matches!(verify(&document).unwrap_err(), Error::Root { .. }));
}

// The fields.

const FIELDS: [(&str, Field); 9] = [
    ("module_id", Field::ModuleId),
    ("digest", Field::Digest),
    ("timestamp", Field::Timestamp),
    ("pcrs", Field::Pcrs),
    ("certificate", Field::Certificate),
    ("cabundle", Field::Cabundle),
    ("public_key", Field::PublicKey),
    ("user_data", Field::UserData),
    ("nonce", Field::Nonce),
];

#[test]
fn missing_and_null_fields() {
    for (name, field) in FIELDS {
        let optional = ["public_key", "user_data", "nonce"].contains(&name);
        let without = Fields::good().without(name);
        let null = Fields::good().set(name, NULL.to_vec());
        if optional {
            assert!(verify(&seal(&without.payload())).is_ok(), "{name}");
            assert!(verify(&seal(&null.payload())).is_ok(), "{name}");
        } else {
            assert_eq!(refused(&without), Error::Missing { field });
            assert_eq!(refused(&null), Error::Null { field });
        }
    }
}

#[test]
fn duplicate_fields() {
    for (name, field) in FIELDS {
        let (_, value) = Fields::good().0.into_iter().find(|(key, _)| *key == text(name)).unwrap();
        assert_eq!(refused(&Fields::good().and(name, value)), Error::Duplicate { field });
    }
    // Null the first time is there too.
    let twice = Fields::good().set("nonce", NULL.to_vec()).and("nonce", bytes(b"nonce"));
    assert_eq!(refused(&twice), Error::Duplicate { field: Field::Nonce });
}

#[test]
fn unknown_fields() {
    let unknown = Fields::good().and("modul_id", text("x"));
    assert_eq!(refused(&unknown), Error::Unknown { name: "modul_id".to_owned() });
    let long = Fields::good().and(&"x".repeat(1000), text("x"));
    assert_eq!(refused(&long), Error::Unknown { name: "x".repeat(32) });
    assert_eq!(refused(&Fields::good().without("pcrs").and("nitrotpm_pcrs", pcrs(&[]))), Error::NitroTpm);
    let mut number = Fields::good();
    number.0.push((uint(1), uint(1)));
    assert!(matches!(refused(&number), Error::Cbor { .. }));
}

#[test]
fn fields_have_one_type() {
    for (name, field) in FIELDS {
        for wrong in [vec![0xf5], vec![0xfb, 0, 0, 0, 0, 0, 0, 0, 0], vec![0x20], vec![0xc0, 0x60]] {
            let error = refused(&Fields::good().set(name, wrong.clone()));
            assert!(
                matches!(error, Error::FieldType { field: found, .. } if found == field),
                "{name} {wrong:02x?}: {error}"
            );
        }
    }
    // Pieces of a byte string, put together by anyone who reads them.
    let mut pieces = vec![0x5f];
    pieces.extend(bytes(b"non"));
    pieces.extend(bytes(b"ce"));
    pieces.push(0xff);
    let error = refused(&Fields::good().set("nonce", pieces));
    assert!(matches!(error, Error::FieldType { field: Field::Nonce, .. }), "{error}");
}

#[test]
fn fields_have_sizes() {
    for (name, field, max) in
        [("public_key", Field::PublicKey, 1024), ("user_data", Field::UserData, 1024), ("nonce", Field::Nonce, 1024)]
    {
        assert!(verify(&seal(&Fields::good().set(name, bytes(&vec![1; max])).payload())).is_ok(), "{name}");
        let error = refused(&Fields::good().set(name, bytes(&vec![1; max + 1])));
        let min = usize::from(field == Field::PublicKey);
        assert_eq!(error, Error::FieldSize { field, len: max + 1, min, max });
    }
    let empty = refused(&Fields::good().set("public_key", bytes(&[])));
    assert_eq!(empty, Error::FieldSize { field: Field::PublicKey, len: 0, min: 1, max: 1024 });
    for len in [0, 1025] {
        let error = refused(&Fields::good().set("certificate", bytes(&vec![1; len])));
        assert_eq!(error, Error::FieldSize { field: Field::Certificate, len, min: 1, max: 1024 });
        let error = refused(&Fields::good().set("cabundle", array(&[&vec![1; len]])));
        assert_eq!(error, Error::FieldSize { field: Field::Cabundle, len, min: 1, max: 1024 });
    }
    for len in [0, 129] {
        let error = refused(&Fields::good().set("module_id", text(&"i".repeat(len))));
        assert_eq!(error, Error::FieldSize { field: Field::ModuleId, len, min: 1, max: 128 });
    }
    // It goes to a terminal.
    assert_eq!(refused(&Fields::good().set("module_id", text("i-\u{1b}[2J"))), Error::ModuleId);
}

#[test]
fn the_digest_is_sha384() {
    for other in ["SHA256", "SHA512", "sha384", ""] {
        let error = refused(&Fields::good().set("digest", text(other)));
        assert_eq!(error, Error::Digest { found: other.to_owned() });
    }
}

#[test]
fn the_timestamp_is_not_zero() {
    assert_eq!(refused(&Fields::good().set("timestamp", uint(0))), Error::TimestampZero);
}

#[test]
fn pcrs_have_an_index_and_a_length_and_occur_once() {
    let value = |byte: u8, len: usize| vec![byte; len];
    let with = |values: &[(u64, Vec<u8>)]| refused(&Fields::good().set("pcrs", pcrs(values)));
    assert_eq!(with(&[]), Error::PcrCount { found: 0, max: 32 });
    assert_eq!(with(&(0..33).map(|i| (i, value(1, 48))).collect::<Vec<_>>()), Error::PcrCount { found: 33, max: 32 });
    for index in [32, 256, u64::MAX] {
        assert_eq!(with(&[(0, value(1, 48)), (index, value(1, 48))]), Error::PcrIndex { found: index, max: 31 });
    }
    for len in [0, 32, 47, 49, 64] {
        assert_eq!(with(&[(7, value(1, len))]), Error::PcrLength { index: 7, found: len });
    }
    assert_eq!(with(&[(4, value(1, 48)), (4, value(2, 48))]), Error::PcrDuplicate { index: 4 });
    // The same index, written longer.
    let mut longer = vec![0xa2, 0x04];
    longer.extend(bytes(&value(1, 48)));
    longer.extend([0x18, 0x04]);
    longer.extend(bytes(&value(2, 48)));
    assert_eq!(refused(&Fields::good().set("pcrs", longer)), Error::PcrDuplicate { index: 4 });
    let thirty_two = pcrs(&(0..32).map(|i| (i, value(1, 48))).collect::<Vec<_>>());
    assert!(verify(&seal(&Fields::good().set("pcrs", thirty_two).payload())).is_ok());
}

#[test]
fn maps_and_arrays_may_be_of_indefinite_length() {
    let mut map = vec![0xbf];
    for index in 0..16 {
        map.extend([uint(index), bytes(&[1; 48])].concat());
    }
    let endless = map.clone();
    map.push(0xff);
    let mut bundle = vec![0x9f];
    for certificate in &PKI.1.bundle {
        bundle.extend(bytes(certificate));
    }
    let fields = Fields::good().set("pcrs", map).set("cabundle", [bundle.as_slice(), &[0xff]].concat());
    let mut payload = fields.payload();
    payload[0] = 0xbf;
    assert!(matches!(verify(&seal(&payload)).unwrap_err(), Error::Cbor { part: "payload", .. }), "no end");
    payload.push(0xff);
    assert!(verify(&seal(&payload)).is_ok());

    assert!(matches!(refused(&Fields::good().set("pcrs", endless)), Error::Cbor { .. }));
    for _ in 0..4 {
        bundle.extend(bytes(&PKI.1.bundle[0]));
    }
    bundle.push(0xff);
    assert_eq!(refused(&Fields::good().set("cabundle", bundle)), Error::Bundle { found: 8, max: 7 });
}

#[test]
fn giant_lengths_and_deep_nesting_cost_nothing() {
    // Lengths that were only claimed: nothing is reserved for them, they end where the bytes end.
    for head in [0x5b, 0x7b, 0x9b, 0xbb] {
        let giant = [&[head][..], &u64::MAX.to_be_bytes()].concat();
        assert!(verify(&giant).is_err());
        assert!(verify(&seal(&giant)).is_err());
        for (name, _) in FIELDS {
            let error = refused(&Fields::good().set(name, giant.clone()));
            let told = matches!(
                error,
                Error::Cbor { .. } | Error::FieldType { .. } | Error::PcrCount { .. } | Error::Bundle { .. }
            );
            assert!(told, "{name} {head:02x}: {error}");
        }
    }
    for nested in [0x81, 0x9f, 0xa1, 0xbf, 0xd2, 0xc1] {
        let deep = vec![nested; 15_000];
        assert!(verify(&deep).is_err());
        assert!(verify(&seal(&deep)).is_err());
        for (name, _) in FIELDS {
            assert!(verify(&seal(&Fields::good().set(name, deep[..10_000].to_vec()).payload())).is_err(), "{name}");
        }
    }
}

// The chain.

/// A document under a chain that is broken somewhere; the signature is right.
fn refused_chain(bundle: &[&[u8]], leaf: &Authority) -> Error {
    let fields = Fields::good().set("certificate", bytes(&leaf.der)).set("cabundle", array(bundle));
    let by_document = verify(&seal_with(&leaf.key, &fields.payload())).unwrap_err();
    assert_eq!(verify_chain(&leaf.der, bundle, &anchor(), NOW).unwrap_err(), by_document);
    by_document
}

/// Root, one authority and a leaf, with the authority's or the leaf's certificate changed.
fn changed(
    authority: impl FnOnce(&mut CertificateParams),
    leaf: impl FnOnce(&mut CertificateParams),
) -> (Vec<u8>, Authority) {
    let mut params = authority_params("an authority", Some(0), date(0), 1);
    authority(&mut params);
    let between = PKI.0.issue(params).unwrap();
    let mut params = leaf_params("a leaf", date(0), LEAF_SECONDS);
    leaf(&mut params);
    let leaf = between.issue(params).unwrap();
    (between.der, leaf)
}

fn refused_change(authority: impl FnOnce(&mut CertificateParams), leaf: impl FnOnce(&mut CertificateParams)) -> Error {
    let (between, leaf) = changed(authority, leaf);
    refused_chain(&[&PKI.0.der, &between], &leaf)
}

fn as_is(_: &mut CertificateParams) {}

#[test]
fn a_short_chain_verifies() {
    let (between, leaf) = changed(as_is, as_is);
    assert_eq!(verify_chain(&leaf.der, &[&PKI.0.der, &between], &anchor(), NOW).unwrap().len(), 3);
}

#[test]
fn an_empty_bundle() {
    assert_eq!(refused(&Fields::good().set("cabundle", array(&[]))), Error::Bundle { found: 0, max: 7 });
    assert_eq!(verify_chain(&PKI.1.leaf.der, &[], &anchor(), NOW).unwrap_err(), Error::Bundle { found: 0, max: 7 });
}

#[test]
fn a_bundle_too_long() {
    let many = vec![PKI.0.der.as_slice(); 8];
    assert_eq!(refused(&Fields::good().set("cabundle", array(&many))), Error::Bundle { found: 8, max: 7 });
    let error = verify_chain(&PKI.1.leaf.der, &many, &anchor(), NOW).unwrap_err();
    assert_eq!(error, Error::Bundle { found: 8, max: 7 });
}

#[test]
fn a_root_that_is_not_the_pinned_one_though_it_signs_well() {
    // The same names, the same dates: only the key is another.
    let root = Authority::root(PKI.0.params.clone()).unwrap();
    let chain = Chain::issue(&root, MODULE_ID, date(0)).unwrap();
    let document = seal_with(&chain.leaf.key, &Fields::of(&chain).payload());
    let own = Unverified::parse(&document).unwrap().verify(&Anchor::from_der(&root.der).unwrap(), At::Time(NOW));
    assert!(own.is_ok());
    assert!(matches!(verify(&document).unwrap_err(), Error::Root { .. }));
    assert!(matches!(
        Unverified::parse(&document).unwrap().verify(&Anchor::aws().unwrap(), At::Time(NOW)).unwrap_err(),
        Error::Root { pinned, .. } if pinned == AWS_ROOT_G1_SHA256
    ));
    // With the pinned root put in its place, the next certificate is not signed by it.
    let mut bundle: Vec<&[u8]> = chain.bundle.iter().map(Vec::as_slice).collect();
    bundle[0] = &PKI.0.der;
    assert!(matches!(refused_chain(&bundle, &chain.leaf), Error::Path { .. }));
}

#[test]
fn certificates_in_another_order() {
    let mut bundle: Vec<&[u8]> = PKI.1.bundle.iter().map(Vec::as_slice).collect();
    bundle.swap(1, 2);
    assert!(matches!(refused_chain(&bundle, &PKI.1.leaf), Error::Order { place: CertPosition::Intermediate(1), .. }));
    bundle.swap(1, 2);
    bundle.reverse();
    assert!(matches!(refused_chain(&bundle, &PKI.1.leaf), Error::Root { .. }));
    bundle.reverse();
    let last = bundle.pop().unwrap();
    assert!(matches!(refused_chain(&bundle, &PKI.1.leaf), Error::Order { place: CertPosition::Leaf, .. }));
    bundle.extend([last, last]);
    assert!(matches!(
        refused_chain(&bundle, &PKI.1.leaf),
        Error::PathLength { place: CertPosition::Intermediate(1), .. }
    ));
}

#[test]
fn a_certificate_that_is_not_part_of_the_path() {
    // Names fit, and a path exists, but it does not need this one: an authority of the same name issued itself.
    let named = |days| authority_params("casemate-dev.nitro-enclaves", None, date(0), days);
    let between = PKI.0.issue(named(1)).unwrap();
    let detour = PKI.0.issue(named(2)).unwrap();
    let leaf = between.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    assert!(verify_chain(&leaf.der, &[&PKI.0.der, &between.der], &anchor(), NOW).is_ok());
    let error = refused_chain(&[&PKI.0.der, &detour.der, &between.der], &leaf);
    assert!(matches!(error, Error::Path { .. }), "{error}");
}

#[test]
fn an_intermediate_that_is_no_authority() {
    let place = CertPosition::Intermediate(1);
    assert_eq!(refused_change(|p| p.is_ca = IsCa::ExplicitNoCa, as_is), Error::NotAnAuthority { place });
    assert_eq!(refused_change(|p| p.is_ca = IsCa::NoCa, as_is), Error::NotAnAuthority { place });
    // A leaf that issues another.
    let leaf = PKI.0.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    let below = leaf.issue(leaf_params("below", date(0), LEAF_SECONDS)).unwrap();
    assert_eq!(refused_chain(&[&PKI.0.der, &leaf.der], &below), Error::NotAnAuthority { place });
}

#[test]
fn a_leaf_that_is_an_authority() {
    let error = refused_change(as_is, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(error, Error::LeafIsAuthority);
}

#[test]
fn more_authorities_than_the_path_length_allows() {
    let top = PKI.0.issue(authority_params("top", Some(0), date(0), 1)).unwrap();
    let below = top.issue(authority_params("below", Some(0), date(0), 1)).unwrap();
    let leaf = below.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    let error = refused_chain(&[&PKI.0.der, &top.der, &below.der], &leaf);
    assert_eq!(error, Error::PathLength { place: CertPosition::Intermediate(1), allowed: 0, found: 1 });

    let mut params = root_params();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = Authority::root(params).unwrap();
    let between = root.issue(authority_params("between", None, date(0), 1)).unwrap();
    let leaf = between.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    let pinned = Anchor::from_der(&root.der).unwrap();
    let error = verify_chain(&leaf.der, &[&root.der, &between.der], &pinned, NOW).unwrap_err();
    assert_eq!(error, Error::PathLength { place: CertPosition::Root, allowed: 0, found: 1 });
}

#[test]
fn key_usage() {
    let place = CertPosition::Intermediate(1);
    let needed = "keyCertSign";
    let only_signs = |p: &mut CertificateParams| p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    assert_eq!(refused_change(only_signs, as_is), Error::KeyUsage { place, needed });
    assert_eq!(refused_change(|p| p.key_usages = vec![], as_is), Error::KeyUsage { place, needed });

    let (place, needed) = (CertPosition::Leaf, "digitalSignature");
    let none = |p: &mut CertificateParams| p.custom_extensions = vec![];
    assert_eq!(refused_change(as_is, none), Error::KeyUsage { place, needed });
    let another = |p: &mut CertificateParams| {
        // keyEncipherment alone.
        p.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 5, 0x20])];
    };
    assert_eq!(refused_change(as_is, another), Error::KeyUsage { place, needed });
    // Critical or not, both are good.
    let critical = |p: &mut CertificateParams| p.custom_extensions[0].set_criticality(true);
    let (between, leaf) = changed(as_is, critical);
    assert!(verify_chain(&leaf.der, &[&PKI.0.der, &between], &anchor(), NOW).is_ok());
}

#[test]
fn unknown_critical_extensions() {
    let unknown = |critical| {
        move |p: &mut CertificateParams| {
            let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            extension.set_criticality(critical);
            p.custom_extensions.push(extension);
        }
    };
    let oid = "1.3.6.1.4.1.99999.1".to_owned();
    let place = CertPosition::Intermediate(1);
    assert_eq!(refused_change(unknown(true), as_is), Error::CriticalExtension { place, oid: oid.clone() });
    assert_eq!(refused_change(as_is, unknown(true)), Error::CriticalExtension { place: CertPosition::Leaf, oid });
    let (between, leaf) = changed(unknown(false), unknown(false));
    assert!(verify_chain(&leaf.der, &[&PKI.0.der, &between], &anchor(), NOW).is_ok());
}

#[test]
fn an_extension_twice() {
    let twice = |p: &mut CertificateParams| {
        let usage = p.custom_extensions[0].clone();
        p.custom_extensions.push(usage);
    };
    assert!(matches!(refused_change(as_is, twice), Error::Certificate { place: CertPosition::Leaf, .. }));
}

#[test]
fn rsa_and_p256_certificates() {
    let place = CertPosition::Leaf;
    for (algorithm, oid) in
        [(&PKCS_ECDSA_P256_SHA256, "1.2.840.10045.3.1.7"), (&PKCS_RSA_SHA256, "1.2.840.113549.1.1.1")]
    {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = PKI.0.issue_for(leaf_params("a leaf", date(0), LEAF_SECONDS), key).unwrap();
        let error = verify_chain(&leaf.der, &[&PKI.0.der], &anchor(), NOW).unwrap_err();
        assert_eq!(error, Error::KeyAlgorithm { place, found: oid.to_owned() });

        let key = KeyPair::generate_for(algorithm).unwrap();
        let between = PKI.0.issue_for(authority_params("an authority", None, date(0), 1), key).unwrap();
        let leaf = between.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
        let error = verify_chain(&leaf.der, &[&PKI.0.der, &between.der], &anchor(), NOW).unwrap_err();
        assert_eq!(error, Error::KeyAlgorithm { place: CertPosition::Intermediate(1), found: oid.to_owned() });
        assert!(matches!(
            Anchor::from_der(&between.der).unwrap_err(),
            Error::KeyAlgorithm { place: CertPosition::Root, .. }
        ));
    }
    // A P-384 key whose issuer signed with P-256.
    let p256 = Authority { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), ..issuer_of(&PKI.0) };
    let leaf = p256.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    let error = verify_chain(&leaf.der, &[&PKI.0.der], &anchor(), NOW).unwrap_err();
    assert_eq!(error, Error::SignatureAlgorithm { place, found: "1.2.840.10045.4.3.2".to_owned() });
    // And one that another P-384 key signed in the issuer's name.
    let forged = Authority { key: KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), ..issuer_of(&PKI.0) };
    let leaf = forged.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    assert!(matches!(verify_chain(&leaf.der, &[&PKI.0.der], &anchor(), NOW).unwrap_err(), Error::Path { .. }));
}

fn issuer_of(authority: &Authority) -> Authority {
    let key = KeyPair::from_pem(&authority.key.serialize_pem()).unwrap();
    Authority { params: authority.params.clone(), key, der: authority.der.clone() }
}

/// The leaf with bytes of its certificate exchanged, and signed again by the root.
fn patched(from: &[u8], to: &[u8]) -> Vec<u8> {
    let leaf = PKI.0.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    // SEQUENCE { tbsCertificate, signatureAlgorithm, BIT STRING }, all with lengths of two bytes but the last two.
    let len = |at: usize| usize::from(u16::from_be_bytes([leaf.der[at + 2], leaf.der[at + 3]]));
    let (tbs, algorithm) = leaf.der[4..].split_at(4 + len(4));
    let algorithm = &algorithm[..2 + usize::from(algorithm[1])];
    let mut tbs = tbs.to_vec();
    let at = tbs.windows(from.len()).position(|window| window == from).expect("the bytes are there");
    tbs[at..at + to.len()].copy_from_slice(to);
    let signature = rcgen::SigningKey::sign(&PKI.0.key, &tbs).unwrap();
    let bits = [&[3, u8::try_from(signature.len() + 1).unwrap(), 0][..], &signature].concat();
    let content = [tbs.as_slice(), algorithm, &bits].concat();
    [&[0x30, 0x82][..], &u16::try_from(content.len()).unwrap().to_be_bytes(), &content].concat()
}

#[test]
fn certificates_of_another_version_point_or_usage() {
    let verify = |leaf: &[u8]| verify_chain(leaf, &[&PKI.0.der], &anchor(), NOW);
    // Unchanged, the signature is as good as before.
    assert!(verify(&patched(&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 2])).is_ok());
    let told = |leaf: &[u8]| match verify(leaf).unwrap_err() {
        Error::Certificate { place: CertPosition::Leaf, problem } => problem,
        other => panic!("{other}"),
    };
    assert!(told(&patched(&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1])).contains("version 3"));
    // A BIT STRING of 97 bytes: 0 unused, then 4 for an uncompressed point.
    assert!(told(&patched(&[3, 0x62, 0, 4], &[3, 0x62, 0, 5])).contains("no uncompressed point"));
    // keyUsage, and what stands in it.
    let usage = [0x55, 0x1d, 0x0f, 0x04, 0x04, 3, 2, 6, 0xc0];
    assert!(told(&patched(&usage, &[0x55, 0x1d, 0x0f, 0x04, 0x04, 2, 2, 6, 0xc0])).contains("cannot be read"));
    let server = |p: &mut CertificateParams| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let error = refused_change(as_is, server);
    assert!(matches!(&error, Error::Path { problem } if problem.contains("extended key usage")), "{error}");
}

#[test]
fn names_are_shown_in_printable_ascii() {
    let mut params = leaf_params("a leaf", date(0), LEAF_SECONDS);
    params.distinguished_name.push(rcgen::DnType::CommonName, "x\u{202e}DETPECCA\u{200b}\u{1b}[2J");
    let leaf = PKI.0.issue(params).unwrap();
    let chain = verify_chain(&leaf.der, &[&PKI.0.der], &anchor(), NOW).unwrap();
    let subject = &chain[1].subject;
    assert!(subject.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) && subject.contains("u{202e}"), "{subject}");
}

#[test]
fn malformed_certificates() {
    let leaf = &PKI.1.leaf.der;
    let trailing = [leaf.as_slice(), &[0]].concat();
    for der in [&leaf[..leaf.len() - 1], &trailing, &[0x30, 0x80], b"certificate"] {
        let error = refused(&Fields::good().set("certificate", bytes(der)));
        assert!(matches!(error, Error::Certificate { place: CertPosition::Leaf, .. }), "{error}");
        assert!(Anchor::from_der(der).is_err());
    }
    assert!(matches!(
        Anchor::from_der(&[0x30; 2000]).unwrap_err(),
        Error::Certificate { place: CertPosition::Root, .. }
    ));
    // A leaf is no trust anchor.
    assert_eq!(Anchor::from_der(leaf).unwrap_err(), Error::NotAnAuthority { place: CertPosition::Root });
}

// Times.

#[test]
fn expired_and_not_yet_valid() {
    let not_after = Timestamp::from_seconds(SECONDS + LEAF_SECONDS as u64);
    let at = Timestamp::from_seconds(not_after.seconds() + 1);
    let error = verify_at(&good(), At::Time(at)).unwrap_err();
    assert_eq!(error, Error::Expired { place: CertPosition::Leaf, not_after, at });
    assert!(verify_at(&good(), At::Time(Timestamp(not_after.0 + 999))).is_ok());

    // The whole chain starts at one moment here; the first certificate below the root says it.
    let at = Timestamp(NOW.0 - 5001);
    let error = verify_at(&good(), At::Time(at)).unwrap_err();
    assert_eq!(error, Error::NotYetValid { place: CertPosition::Intermediate(1), not_before: NOW, at });
    assert!(verify_at(&good(), At::Time(Timestamp(NOW.0 - 5000))).is_ok());
}

#[test]
fn expired_authorities_and_roots() {
    let (between, leaf) = changed(|p| p.not_after = date(60), as_is);
    let at = Timestamp::from_seconds(SECONDS + 61);
    let error = verify_chain(&leaf.der, &[&PKI.0.der, &between], &anchor(), at).unwrap_err();
    let not_after = Timestamp::from_seconds(SECONDS + 60);
    assert_eq!(error, Error::Expired { place: CertPosition::Intermediate(1), not_after, at });

    let mut params = root_params();
    params.not_after = date(30);
    let root = Authority::root(params).unwrap();
    let leaf = root.issue(leaf_params("a leaf", date(0), LEAF_SECONDS)).unwrap();
    let pinned = Anchor::from_der(&root.der).unwrap();
    assert!(verify_chain(&leaf.der, &[&root.der], &pinned, NOW).is_ok());
    let error = verify_chain(&leaf.der, &[&root.der], &pinned, at).unwrap_err();
    assert!(matches!(error, Error::Expired { place: CertPosition::Root, .. }), "{error}");
}

#[test]
fn documents_from_the_future() {
    let at = |ms| verify(&seal(&Fields::good().set("timestamp", uint(NOW.0 + ms)).payload()));
    assert!(at(5000).is_ok());
    let ahead = Duration::from_millis(5001);
    assert_eq!(at(5001).unwrap_err(), Error::Future { timestamp: Timestamp(NOW.0 + 5001), ahead });
    assert!(matches!(at(u64::MAX - NOW.0).unwrap_err(), Error::Future { .. }));
    // Of an archived document, its own certificates are the judge.
    let far = seal(&Fields::good().set("timestamp", uint(NOW.0 + 1_000_000_000)).payload());
    assert!(matches!(verify_at(&far, At::Document).unwrap_err(), Error::Expired { .. }));
    // Seconds where milliseconds belong: 1970.
    let seconds = seal(&Fields::good().set("timestamp", uint(SECONDS)).payload());
    assert!(matches!(verify_at(&seconds, At::Document).unwrap_err(), Error::NotYetValid { .. }));
}

#[test]
fn documents_too_old() {
    let document = verify_at(&good(), At::Time(Timestamp(NOW.0 + 300_001))).unwrap();
    let expected = Expected { max_age: Some(Duration::from_mins(5)), ..expected(&document) };
    let age = Duration::from_millis(300_001);
    assert_eq!(document.accept(&expected).unwrap_err(), Error::TooOld { age, max: Duration::from_mins(5) });
    assert!(verify_at(&good(), At::Time(Timestamp(NOW.0 + 300_000))).unwrap().accept(&expected).is_ok());
}

// Expectations.

fn expected(document: &Document) -> Expected {
    let pcrs: BTreeMap<u8, [u8; 48]> = (0..=2).map(|index| (index, document.pcrs()[&index])).collect();
    Expected { pcrs, nonce: Some(b"nonce".to_vec()), user_data: Some(b"data".to_vec()), ..Expected::default() }
}

#[test]
fn what_is_expected_is_accepted() {
    let document = verify(&good()).unwrap();
    assert_eq!(*document.accept(&expected(&document)).unwrap(), document);
}

#[test]
fn wrong_and_absent_nonces() {
    let document = verify(&good()).unwrap();
    let error = document.accept(&Expected { nonce: Some(b"nonc".to_vec()), ..expected(&document) }).unwrap_err();
    assert_eq!(error, Error::NonceDiffers { expected: "6e6f6e63".to_owned(), found: "6e6f6e6365".to_owned() });
    for fields in [Fields::good().without("nonce"), Fields::good().set("nonce", NULL.to_vec())] {
        let without = verify(&seal(&fields.payload())).unwrap();
        let error = without.accept(&expected(&document)).unwrap_err();
        assert_eq!(error, Error::NonceAbsent { expected: "6e6f6e6365".to_owned() });
    }
    let empty = verify(&seal(&Fields::good().set("nonce", bytes(&[])).payload())).unwrap();
    assert!(matches!(empty.accept(&expected(&document)).unwrap_err(), Error::NonceDiffers { .. }));
}

#[test]
fn wrong_and_absent_user_data() {
    let document = verify(&good()).unwrap();
    let error = document.accept(&Expected { user_data: Some(vec![1]), ..expected(&document) }).unwrap_err();
    assert_eq!(error, Error::UserDataDiffers { expected: "01".to_owned(), found: "64617461".to_owned() });
    let without = verify(&seal(&Fields::good().without("user_data").payload())).unwrap();
    let error = without.accept(&expected(&document)).unwrap_err();
    assert_eq!(error, Error::UserDataAbsent { expected: "64617461".to_owned() });
}

#[test]
fn expectations_that_are_missing_are_no_pass() {
    let document = verify(&good()).unwrap();
    let error = document.accept(&Expected::default()).unwrap_err();
    assert_eq!(error, Error::NothingExpected { missing: vec![0, 1, 2], debug: false });
    assert!(error.to_string().contains("PCR0, PCR1 and PCR2"), "{error}");
    for index in 0..=2 {
        let mut expected = expected(&document);
        expected.pcrs.remove(&index);
        assert_eq!(
            document.accept(&expected).unwrap_err(),
            Error::NothingExpected { missing: vec![index], debug: false }
        );
        // Leave for debug images is no leave for others.
        expected.debug_allowed = true;
        assert_eq!(
            document.accept(&expected).unwrap_err(),
            Error::NothingExpected { missing: vec![index], debug: false }
        );
    }
}

#[test]
fn pcrs_that_differ_are_absent_or_zero() {
    let document = verify(&good()).unwrap();
    for index in [0, 1, 2, 8] {
        let mut wrong = expected(&document);
        wrong.pcrs.insert(index, [0xee; 48]);
        let error = document.accept(&wrong).unwrap_err();
        assert!(matches!(error, Error::PcrDiffers { index: found, .. } if found == index), "{error}");

        // Expected, but not there.
        let others: Vec<_> = (0..16).filter(|i| *i != u64::from(index)).map(|i| (i, vec![i as u8 + 1; 48])).collect();
        let without = verify(&seal(&Fields::good().set("pcrs", pcrs(&others)).payload())).unwrap();
        let mut all = expected(&document);
        all.pcrs.insert(8, document.pcrs()[&8]);
        assert_eq!(without.accept(&all).unwrap_err(), Error::PcrAbsent { index });

        // Zero, and even expected to be so.
        let zero = |i: u64| vec![if i == u64::from(index) { 0 } else { i as u8 + 1 }; 48];
        let values: Vec<_> = (0..16).map(|i| (i, zero(i))).collect();
        let zero = verify(&seal(&Fields::good().set("pcrs", pcrs(&values)).payload())).unwrap();
        all.pcrs.insert(index, [0; 48]);
        for debug_allowed in [false, true] {
            let expected = Expected { debug_allowed, ..all.clone() };
            assert_eq!(zero.accept(&expected).unwrap_err(), Error::PcrZero { index });
        }
    }
}

#[test]
fn debug_images_are_refused_unless_asked_for() {
    let values: Vec<_> = (0..16).map(|i| (i, vec![if i < 3 { 0 } else { i as u8 + 1 }; 48])).collect();
    let debug = verify(&seal(&Fields::good().set("pcrs", pcrs(&values)).payload())).unwrap();
    assert!(debug.is_debug());
    // Pins of zeros are no leave.
    let zeros = expected(&debug);
    assert_eq!(debug.accept(&zeros).unwrap_err(), Error::Debug);
    assert_eq!(debug.accept(&Expected::default()).unwrap_err(), Error::Debug);
    // Neither are PCR3 and PCR4, which a debug image does have.
    let role = Expected { pcrs: BTreeMap::from([(3, debug.pcrs()[&3]), (4, debug.pcrs()[&4])]), ..Expected::default() };
    assert_eq!(debug.accept(&role).unwrap_err(), Error::Debug);
    // Asked for by name, it still has to be expected: as the zeros that it shows.
    let asked = Expected { debug_allowed: true, ..Expected::default() };
    assert_eq!(debug.accept(&asked).unwrap_err(), Error::NothingExpected { missing: vec![0, 1, 2], debug: true });
    assert!(debug.accept(&Expected { debug_allowed: true, ..zeros.clone() }).is_ok());
    let mut pinned = Expected { debug_allowed: true, ..zeros };
    pinned.pcrs.insert(0, [7; 48]);
    assert!(matches!(debug.accept(&pinned).unwrap_err(), Error::PcrDiffers { index: 0, .. }));
}

#[test]
fn comparing_looks_at_what_was_expected_and_nothing_else() {
    let document = verify(&good()).unwrap();
    assert!(document.compare(&Expected::default()).is_ok());
    let pin = |index, value: u8| Expected { pcrs: BTreeMap::from([(index, [value; 48])]), ..Expected::default() };
    assert!(document.compare(&pin(1, 2)).is_ok());
    assert!(matches!(document.compare(&pin(1, 3)).unwrap_err(), Error::PcrDiffers { index: 1, .. }));
    assert_eq!(document.compare(&pin(31, 3)).unwrap_err(), Error::PcrAbsent { index: 31 });
    let nonce = Expected { nonce: Some(vec![1]), ..Expected::default() };
    assert!(matches!(document.compare(&nonce).unwrap_err(), Error::NonceDiffers { .. }));
}

proptest::proptest! {
    /// No bytes, and no change of good bytes, make the verifier panic or pass.
    #[test]
    fn hostile_bytes_are_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        proptest::prop_assert!(verify(&bytes).is_err());
        proptest::prop_assert!(verify(&seal(&bytes)).is_err());
    }

    #[test]
    fn changed_documents_are_refused(at in 0usize..3000, bit in 0u32..8) {
        let mut document = good();
        let at = at % document.len();
        document[at] ^= 1 << bit;
        proptest::prop_assert!(verify(&document).is_err());
    }
}
