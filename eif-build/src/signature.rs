//! Who vouches for an image: the signature section, and PCR8.
//!
//! As nitro-cli writes it: CBOR `[{signing_certificate, signature}]`, both as arrays of numbers; the certificate in PEM; the
//! signature an untagged COSE_Sign1 (RFC 9052) over `{register_index: 0, register_value: PCR0}`. PCR8 is the certificate's own
//! measurement, so a key policy on PCR8 trusts anyone who holds the key; PCR0 to PCR2 say what runs.

use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED,
    EcdsaKeyPair, KeyPair, ParsedPublicKey, VerificationAlgorithm,
};
use minicbor::{Decoder, Encoder};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use crate::eif::{Pcr, pcr};

/// Longest signature section that is read: one certificate in PEM as an array of numbers, and some.
pub const MAX_LEN: usize = 64 * 1024;
/// COSE: `alg` is −35, ES384.
const PROTECTED_ES384: [u8; 4] = [0xa1, 0x01, 0x38, 0x22];
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";

/// A signature that was read, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The signer's certificate, DER.
    pub certificate: Vec<u8>,
    /// What it signs: PCR0.
    pub pcr0: Vec<u8>,
    /// SHA384(48 zero bytes ‖ SHA384(certificate)).
    pub pcr8: Pcr,
    protected: Vec<u8>,
    payload: Vec<u8>,
    /// r ‖ s.
    numbers: Vec<u8>,
}

impl Signature {
    /// Reads a signature section. Every byte of it must be accounted for.
    pub fn parse(section: &[u8]) -> Result<Self> {
        if section.len() > MAX_LEN {
            bail!("a signature section of {} bytes; at most {MAX_LEN} are read", section.len());
        }
        let mut decoder = Decoder::new(section);
        match decoder.array()? {
            Some(1) => {}
            other => bail!("{other:?} signatures; exactly one is known, that of PCR0"),
        }
        expect_map(&mut decoder, 2)?;
        expect_key(&mut decoder, "signing_certificate")?;
        let certificate = bytes(&mut decoder)?;
        expect_key(&mut decoder, "signature")?;
        let cose = bytes(&mut decoder)?;
        at_end(&decoder, section.len())?;

        let certificate = certificate_der(&certificate)?;
        let mut decoder = Decoder::new(&cose);
        match decoder.array()? {
            Some(4) => {}
            other => bail!("{other:?} parts in a COSE_Sign1, which has 4"),
        }
        let protected = decoder.bytes()?.to_vec();
        expect_map(&mut decoder, 0)?;
        let payload = decoder.bytes()?.to_vec();
        let signature = decoder.bytes()?.to_vec();
        at_end(&decoder, cose.len())?;

        let mut decoder = Decoder::new(&payload);
        expect_map(&mut decoder, 2)?;
        expect_key(&mut decoder, "register_index")?;
        match decoder.i32()? {
            0 => {}
            other => bail!("PCR{other} is signed; PCR0 must be"),
        }
        expect_key(&mut decoder, "register_value")?;
        let pcr0 = bytes(&mut decoder)?;
        at_end(&decoder, payload.len())?;
        let pcr8 = pcr([certificate.as_slice()].into_iter());
        Ok(Self { certificate, pcr0, pcr8, protected, payload, numbers: signature })
    }

    /// Whether the certificate's key has signed this PCR0.
    pub fn verify(&self, measured: &Pcr) -> Result<()> {
        if self.pcr0 != measured {
            bail!("the signature is of another image: of PCR0 {}", const_hex::encode(&self.pcr0));
        }
        let certificate = Certificate::from_der(&self.certificate).context("the signer's certificate")?;
        let info = certificate.tbs_certificate().subject_public_key_info();
        let key = info.subject_public_key.as_bytes().context("the signer's key")?;
        if info.algorithm.oid.to_string() != EC_PUBLIC_KEY {
            bail!("the signer's key is no elliptic one");
        }
        // By the length of an uncompressed point; the header must name the same algorithm.
        let (algorithm, alg): (&dyn VerificationAlgorithm, i32) = match key.len() {
            65 => (&ECDSA_P256_SHA256_FIXED, -7),
            97 => (&ECDSA_P384_SHA384_FIXED, -35),
            133 => (&ECDSA_P521_SHA512_FIXED, -36),
            other => bail!("the signer's key has {other} bytes: none of P-256, P-384 and P-521"),
        };
        let mut header = Decoder::new(&self.protected);
        expect_map(&mut header, 1)?;
        let (label, named) = (header.i32()?, header.i32()?);
        at_end(&header, self.protected.len())?;
        if (label, named) != (1, alg) {
            bail!("the signature's header names algorithm {named}; the key is for {alg}");
        }
        // The algorithm parses the SPKI, so the curve's own name counts too.
        let spki = info.to_der().context("the signer's key")?;
        ParsedPublicKey::new(algorithm, &spki)
            .ok()
            .and_then(|key| key.verify_sig(&signed(&self.protected, &self.payload), &self.numbers).ok())
            .context("the signature does not verify under its certificate")
    }

    /// Whether the certificate is valid at this time: the hypervisor looks when an enclave starts.
    pub fn in_force(&self, now: SystemTime) -> Result<()> {
        in_force(&self.certificate, now)
    }

    /// The subject and the end of the certificate, for people.
    pub fn signer(&self) -> Result<(String, String)> {
        let certificate = Certificate::from_der(&self.certificate).context("the signer's certificate")?;
        let tbs = certificate.tbs_certificate();
        Ok((tbs.subject().to_string(), tbs.validity().not_after.to_string()))
    }
}

fn in_force(certificate: &[u8], now: SystemTime) -> Result<()> {
    let certificate = Certificate::from_der(certificate).context("the signer's certificate")?;
    let validity = certificate.tbs_certificate().validity();
    let (from, until) = (validity.not_before.to_system_time(), validity.not_after.to_system_time());
    if now < from || now > until {
        bail!("the certificate is valid from {} to {}", validity.not_before, validity.not_after);
    }
    Ok(())
}

/// A certificate from PEM: one, and nothing else in the file.
pub fn certificate_der(text: &[u8]) -> Result<Vec<u8>> {
    let mut found = pem::parse_many(text).context("the certificate is not PEM")?;
    match (found.pop(), found.is_empty()) {
        (Some(certificate), true) if certificate.tag() == "CERTIFICATE" => {
            Certificate::from_der(certificate.contents()).context("the certificate")?;
            Ok(certificate.into_contents())
        }
        _ => bail!("exactly one certificate in PEM is needed"),
    }
}

/// A signature section over this PCR0, with a P-384 key (PEM, PKCS #8 or SEC 1) that is the certificate's.
pub fn sign(pcr0: &Pcr, key: &[u8], certificate: &[u8]) -> Result<Vec<u8>> {
    let der = certificate_der(certificate)?;
    in_force(&der, SystemTime::now())?;
    let parts = pem::parse_many(key).context("the key is not PEM")?;
    // openssl ecparam puts the curve's parameters in front.
    let key = parts
        .iter()
        .find(|part| matches!(part.tag(), "PRIVATE KEY" | "EC PRIVATE KEY"))
        .context("there is no EC PRIVATE KEY or PRIVATE KEY in the key's file")?;
    let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_FIXED_SIGNING, key.contents())
        .ok()
        .context("the key is no P-384 key")?;
    let owner = Certificate::from_der(&der).context("the certificate")?;
    let of_certificate = owner.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes();
    if of_certificate != Some(pair.public_key().as_ref()) {
        bail!("the certificate is of another key");
    }
    let mut payload = Vec::new();
    let mut encoder = Encoder::new(&mut payload);
    encoder.map(2)?.str("register_index")?.i32(0)?.str("register_value")?;
    array(&mut encoder, pcr0)?;
    let signature = pair.sign(&SystemRandom::new(), &signed(&PROTECTED_ES384, &payload)).ok().context("signing")?;
    let mut cose = Vec::new();
    Encoder::new(&mut cose).array(4)?.bytes(&PROTECTED_ES384)?.map(0)?.bytes(&payload)?.bytes(signature.as_ref())?;
    let mut section = Vec::new();
    let mut encoder = Encoder::new(&mut section);
    encoder.array(1)?.map(2)?.str("signing_certificate")?;
    array(&mut encoder, certificate)?;
    encoder.str("signature")?;
    array(&mut encoder, &cose)?;
    Ok(section)
}

/// What is signed: RFC 9052, section 4.4.
fn signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to memory does not fail.
    let _ = Encoder::new(&mut out)
        .array(4)
        .and_then(|e| e.str("Signature1"))
        .and_then(|e| e.bytes(protected))
        .and_then(|e| e.bytes(&[]))
        .and_then(|e| e.bytes(payload));
    out
}

fn array(encoder: &mut Encoder<&mut Vec<u8>>, bytes: &[u8]) -> Result<()> {
    encoder.array(u64::try_from(bytes.len())?)?;
    for byte in bytes {
        encoder.u8(*byte)?;
    }
    Ok(())
}

/// An array of numbers below 256.
fn bytes(decoder: &mut Decoder<'_>) -> Result<Vec<u8>> {
    let len = decoder.array()?.context("an array of unknown length")?;
    let len = usize::try_from(len)?;
    if len > MAX_LEN {
        bail!("an array of {len} numbers");
    }
    (0..len).map(|_| Ok(decoder.u8()?)).collect()
}

fn expect_map(decoder: &mut Decoder<'_>, len: u64) -> Result<()> {
    match decoder.map()? {
        Some(found) if found == len => Ok(()),
        other => bail!("a map of {other:?} entries where {len} are known"),
    }
}

fn expect_key(decoder: &mut Decoder<'_>, name: &str) -> Result<()> {
    match decoder.str()? {
        found if found == name => Ok(()),
        other => bail!("{:?} where {name:?} belongs", other.chars().take(40).collect::<String>()),
    }
}

fn at_end(decoder: &Decoder<'_>, len: usize) -> Result<()> {
    match len.saturating_sub(decoder.position()) {
        0 => Ok(()),
        rest => bail!("{rest} bytes behind the end"),
    }
}
