//! `CiphertextForRecipient`: CMS EnvelopedData in BER, byte for byte in the shape of KMS's answers: indefinite lengths outside, the
//! recipient in DER, the content in one piece inside a constructed `[0]`.

use anyhow::{Context, Result, anyhow, bail};
use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};

const RSA_BITS: usize = 2048;
const ENVELOPED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const RSAES_OAEP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07];
const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
const SHA_256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];

/// Encrypts to the holder of the key with this SubjectPublicKeyInfo.
pub fn seal(plaintext: &[u8], spki: &[u8]) -> Result<Vec<u8>> {
    let public = PublicEncryptingKey::from_der(spki).map_err(|_| anyhow!("no RSA key"))?;
    if public.key_size_bits() != RSA_BITS {
        bail!("an RSA key of {} bits; {RSA_BITS} are needed", public.key_size_bits());
    }
    let mut content_key = [0; 32];
    aws_lc_rs::rand::fill(&mut content_key).context("no random bytes")?;
    let mut encrypted_key = vec![0; RSA_BITS / 8];
    OaepPublicEncryptingKey::new(public)
        .and_then(|key| key.encrypt(&OAEP_SHA256_MGF1SHA256, &content_key, &mut encrypted_key, None).map(drop))
        .map_err(|_| anyhow!("RSA-OAEP"))?;
    let cipher = UnboundCipherKey::new(&AES_256, &content_key).and_then(PaddedBlockEncryptingKey::cbc_pkcs7);
    let mut encrypted = plaintext.to_vec();
    let context = cipher.and_then(|key| key.encrypt(&mut encrypted)).map_err(|_| anyhow!("AES-256-CBC"))?;
    let DecryptionContext::Iv128(iv) = context else { bail!("AES-256-CBC gave no IV") };
    let iv: &[u8; 16] = iv.as_ref();

    let sha256 = der(0x30, &[der(6, SHA_256), der(5, &[])].concat());
    let mask = der(0x30, &[der(6, MGF1), sha256.clone()].concat());
    let oaep = der(0x30, &[der(0xa0, &sha256), der(0xa1, &mask)].concat());
    let algorithm = der(0x30, &[der(6, RSAES_OAEP), oaep].concat());
    let identifier = der(0x80, digest(&SHA256, spki).as_ref());
    let recipient = der(0x30, &[der(2, &[2]), identifier, algorithm, der(4, &encrypted_key)].concat());
    let cipher = der(0x30, &[der(6, AES_256_CBC), der(4, iv)].concat());
    let inner = indefinite(0x30, &[der(6, DATA), cipher, indefinite(0xa0, &der(4, &encrypted))].concat());
    let enveloped = indefinite(0x30, &[der(2, &[2]), der(0x31, &recipient), inner].concat());
    Ok(indefinite(0x30, &[der(6, ENVELOPED_DATA), indefinite(0xa0, &enveloped)].concat()))
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes() {
        [0, len @ 0..=127] => out.push(len),
        [0, len] => out.extend([0x81, len]),
        [high, low] => out.extend([0x82, high, low]),
    }
    out.extend_from_slice(content);
    out
}

fn indefinite(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, 0x80], content, &[0, 0]].concat()
}
