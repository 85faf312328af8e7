//! KMS's own messages open to their plaintexts; everything else is refused, and nothing tells why it did not decrypt.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;

use casemate_vault::keys::cms::{CmsError, EnvelopedData, RecipientKey};
use serde_json::Value;

struct Sample {
    entry: Value,
    message: Vec<u8>,
}

fn samples() -> Option<Vec<Sample>> {
    let folder = casemate_testdata::folder("kms-recipient")?;
    let index = casemate_testdata::json(&folder.join("INDEX.json"));
    let read = |entry: &Value| std::fs::read(folder.join(entry["file"].as_str().unwrap())).unwrap();
    let all = index.as_array().unwrap().iter().map(|entry| Sample { message: read(entry), entry: entry.clone() });
    Some(all.collect())
}

fn key_of(entry: &Value) -> Option<RecipientKey> {
    use base64::Engine;

    let folder = casemate_testdata::folder("kms-recipient")?;
    let text = std::fs::read_to_string(folder.join(Path::new(entry["private_key"].as_str()?))).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    let der = base64::prelude::BASE64_STANDARD.decode(lines.collect::<String>()).unwrap();
    // PKCS#8 as it is, or PKCS#1 wrapped into it.
    let key = RecipientKey::from_pkcs8(&der).or_else(|| RecipientKey::from_pkcs8(&pkcs8(&der)));
    Some(key.expect("a key of the samples"))
}

/// PrivateKeyInfo around an RSAPrivateKey.
fn pkcs8(pkcs1: &[u8]) -> Vec<u8> {
    let element = |tag: u8, content: &[u8]| {
        let len = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &len, content].concat()
    };
    let algorithm = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 5, 0];
    element(0x30, &[&[2, 1, 0][..], &algorithm, &element(4, pkcs1)].concat())
}

fn hex(value: &Value) -> Option<Vec<u8>> {
    value.as_str().map(|text| const_hex::decode(text).unwrap())
}

#[test]
fn samples_of_kms_parse_and_open() {
    let Some(samples) = samples() else { return };
    let mut opened = 0;
    for Sample { entry, message } in &samples {
        let name = &entry["name"];
        let parsed = EnvelopedData::parse(message).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = |a: &str, b: &str| hex(&entry[a]).or_else(|| hex(&entry[b])).unwrap();
        assert_eq!(parsed.encrypted_key.to_vec(), expected("expected_encrypted_key", "encrypted_key"), "{name}");
        assert_eq!(parsed.iv.to_vec(), expected("expected_iv", "iv"), "{name}");
        assert_eq!(parsed.ciphertext, expected("expected_ciphertext", "ciphertext"), "{name}");
        if let Some(key) = key_of(entry) {
            assert_eq!(Some(parsed.recipient.to_vec()), hex(&entry["recipient_ski"]), "{name}");
            let plaintext = key.open(message).unwrap_or_else(|e| panic!("{name}: {e}"));
            let folder = casemate_testdata::folder("kms-recipient").unwrap();
            let expected = std::fs::read(folder.join(entry["plaintext"].as_str().unwrap())).unwrap();
            assert_eq!(plaintext.to_vec(), expected, "{name}");
            opened += 1;
        }
    }
    assert!(opened > 0);
}

#[test]
fn no_byte_of_the_shape_can_be_changed_and_no_failure_tells_why() {
    let Some(samples) = samples() else { return };
    let Some((sample, key)) = samples.iter().find_map(|s| Some((s, key_of(&s.entry)?))) else { return };
    let plaintext = key.open(&sample.message).unwrap();
    for at in 0..sample.message.len() {
        for bit in [0, 3, 7] {
            let mut changed = sample.message.clone();
            changed[at] ^= 1 << bit;
            match key.open(&changed) {
                // CBC: a changed IV or ciphertext may still have a good padding, but it is never the same.
                Ok(other) => assert_ne!(other.to_vec(), plaintext.to_vec(), "byte {at} bit {bit}"),
                Err(CmsError::Malformed | CmsError::OtherRecipient | CmsError::Decryption) => {}
            }
        }
    }
    for len in 0..sample.message.len() {
        assert_eq!(key.open(&sample.message[..len]).unwrap_err(), CmsError::Malformed, "{len} bytes");
    }
    let trailing = [sample.message.as_slice(), &[0]].concat();
    assert_eq!(key.open(&trailing).unwrap_err(), CmsError::Malformed);
    let other = RecipientKey::generate().unwrap();
    assert_eq!(other.open(&sample.message).unwrap_err(), CmsError::OtherRecipient);
}

/// A message written by hand, with every part to be exchanged.
struct Parts {
    recipient: Vec<u8>,
    hash: Vec<u8>,
    mask_hash: Vec<u8>,
    encrypted_key: Vec<u8>,
    cipher: Vec<u8>,
    iv: Vec<u8>,
    content: Vec<u8>,
}

const SHA256: [u8; 9] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA1: [u8; 5] = [0x2b, 0x0e, 0x03, 0x02, 0x1a];
const AES_256_CBC: [u8; 9] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
const AES_128_CBC: [u8; 9] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x02];

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let head = match len {
        0..=127 => vec![tag, u8::try_from(len).unwrap()],
        _ => [&[tag, 0x82][..], &u16::try_from(len).unwrap().to_be_bytes()].concat(),
    };
    [head, content.to_vec()].concat()
}

fn indefinite(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, 0x80][..], content, &[0, 0]].concat()
}

impl Parts {
    fn new() -> Self {
        Self {
            recipient: vec![1; 32],
            hash: SHA256.to_vec(),
            mask_hash: SHA256.to_vec(),
            encrypted_key: vec![2; 256],
            cipher: AES_256_CBC.to_vec(),
            iv: vec![3; 16],
            content: indefinite(0xa0, &der(4, &[4; 32])),
        }
    }

    fn recipient_info(&self) -> Vec<u8> {
        let algorithm = |oid: &[u8]| der(0x30, &[der(6, oid), vec![5, 0]].concat());
        let mgf1 = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
        let oaep = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07];
        let mask = der(0x30, &[der(6, &mgf1), algorithm(&self.mask_hash)].concat());
        let parameters = der(0x30, &[der(0xa0, &algorithm(&self.hash)), der(0xa1, &mask)].concat());
        let algorithm = der(0x30, &[der(6, &oaep), parameters].concat());
        der(0x30, &[vec![2, 1, 2], der(0x80, &self.recipient), algorithm, der(4, &self.encrypted_key)].concat())
    }

    fn with_recipients(&self, recipients: &[u8]) -> Vec<u8> {
        let data = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
        let enveloped = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03];
        let cipher = der(0x30, &[der(6, &self.cipher), der(4, &self.iv)].concat());
        let content = indefinite(0x30, &[der(6, &data), cipher, self.content.clone()].concat());
        let envelope = indefinite(0x30, &[vec![2, 1, 2], der(0x31, recipients), content].concat());
        indefinite(0x30, &[der(6, &enveloped), indefinite(0xa0, &envelope)].concat())
    }

    fn message(&self) -> Vec<u8> {
        self.with_recipients(&self.recipient_info())
    }
}

#[test]
fn content_may_be_primitive_or_in_pieces_of_any_length() {
    let whole = [4; 32];
    for content in [
        der(0x80, &whole),
        indefinite(0xa0, &der(4, &whole)),
        indefinite(0xa0, &[der(4, &whole[..5]), der(4, &[]), der(4, &whole[5..])].concat()),
        der(0xa0, &der(4, &whole)),
        // The long form of a length where the short one would do.
        indefinite(0xa0, &[&[4, 0x82, 0, 32][..], &whole].concat()),
    ] {
        let parsed = EnvelopedData::parse(&Parts { content: content.clone(), ..Parts::new() }.message());
        assert_eq!(parsed.map(|p| p.ciphertext).ok(), Some(whole.to_vec()), "{content:02x?}");
    }
    let long =
        EnvelopedData::parse(&Parts { content: indefinite(0xa0, &der(4, &[4; 4112])), ..Parts::new() }.message());
    assert_eq!(long.unwrap().ciphertext.len(), 4112);
}

#[test]
fn other_algorithms_lengths_and_recipients_are_malformed() {
    let refused = |what: &str, parts: Parts| {
        assert_eq!(EnvelopedData::parse(&parts.message()).map(|_| ()), Err(CmsError::Malformed), "{what}");
    };
    assert!(EnvelopedData::parse(&Parts::new().message()).is_ok());
    refused("OAEP over SHA-1", Parts { hash: SHA1.to_vec(), ..Parts::new() });
    refused("MGF1 over SHA-1", Parts { mask_hash: SHA1.to_vec(), ..Parts::new() });
    refused("AES-128", Parts { cipher: AES_128_CBC.to_vec(), ..Parts::new() });
    refused("a short IV", Parts { iv: vec![3; 12], ..Parts::new() });
    refused("a short key identifier", Parts { recipient: vec![1; 20], ..Parts::new() });
    refused("another RSA size", Parts { encrypted_key: vec![2; 384], ..Parts::new() });
    refused("no content", Parts { content: vec![], ..Parts::new() });
    refused("empty content", Parts { content: der(0x80, &[]), ..Parts::new() });
    refused("half a block", Parts { content: der(0x80, &[4; 24]), ..Parts::new() });
    refused(
        "pieces of pieces",
        Parts { content: indefinite(0xa0, &indefinite(0x24, &der(4, &[4; 16]))), ..Parts::new() },
    );
    refused("a piece of another type", Parts { content: indefinite(0xa0, &der(2, &[4; 16])), ..Parts::new() });
    let parts = Parts::new();
    let two = [parts.recipient_info(), parts.recipient_info()].concat();
    for recipients in [vec![], two] {
        assert_eq!(EnvelopedData::parse(&parts.with_recipients(&recipients)).map(|_| ()), Err(CmsError::Malformed));
    }
    // Deep and endless nesting, giant lengths: refused without recursion.
    for bytes in [
        [0x30, 0x80].repeat(4000),
        [0xa0, 0x80].repeat(4000),
        vec![0x30, 0x88, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert_eq!(EnvelopedData::parse(&bytes).map(|_| ()), Err(CmsError::Malformed));
    }
    let long = Parts { content: indefinite(0xa0, &der(4, &[4; 9008])), ..Parts::new() };
    assert_eq!(EnvelopedData::parse(&long.message()).map(|_| ()), Err(CmsError::Malformed));
}

#[test]
fn a_key_opens_what_was_encrypted_to_it_and_every_failure_behind_the_parsing_is_one() {
    use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
    use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};

    let recipient = RecipientKey::generate().unwrap();
    let public = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(recipient.spki()).unwrap()).unwrap();
    let identifier = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, recipient.spki()).as_ref().to_vec();
    let seal = |content_key: &[u8], plaintext: &[u8]| {
        let mut encrypted_key = vec![0; 256];
        public.encrypt(&OAEP_SHA256_MGF1SHA256, content_key, &mut encrypted_key, None).unwrap();
        let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, &[7; 32]).unwrap()).unwrap();
        let mut content = plaintext.to_vec();
        let DecryptionContext::Iv128(iv) = cipher.encrypt(&mut content).unwrap() else { panic!("no IV") };
        let iv: [u8; 16] = *iv.as_ref();
        Parts {
            recipient: identifier.clone(),
            encrypted_key,
            iv: iv.to_vec(),
            content: der(0x80, &content),
            ..Parts::new()
        }
    };
    for len in [0, 1, 15, 16, 32, 4096] {
        let plaintext = vec![9; len];
        assert_eq!(recipient.open(&seal(&[7; 32], &plaintext).message()).unwrap().to_vec(), plaintext);
    }
    let failures = [
        ("another content key", seal(&[8; 32], b"secret")),
        ("a content key of another length", seal(&[7; 16], b"secret")),
        ("no RSA ciphertext", Parts { encrypted_key: vec![1; 256], ..seal(&[7; 32], b"secret") }),
        ("beyond the modulus", Parts { encrypted_key: vec![0xff; 256], ..seal(&[7; 32], b"secret") }),
        ("another IV", Parts { iv: vec![0xff; 16], ..seal(&[7; 32], b"") }),
    ];
    for (what, parts) in failures {
        match recipient.open(&parts.message()) {
            Err(error) => assert_eq!(error, CmsError::Decryption, "{what}"),
            // CBC has no MAC: one wrong block in 256 has a padding. The sealed blob behind it has a MAC.
            Ok(other) => assert_ne!(other.to_vec(), b"secret", "{what}"),
        }
    }
}
