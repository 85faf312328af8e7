//! COSE_Sign1 from its parts, as they are given: right ones for the software NSM, wrong ones for tests of verifiers.

use anyhow::{Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use minicbor::Encoder;
use rcgen::KeyPair;

/// The protected header `{1: -35}`.
pub const ES384: &[u8] = &[0xa1, 0x01, 0x38, 0x22];

/// r and s over the Sig_structure (RFC 9052, section 4.4) of these parts.
pub fn sign(key: &KeyPair, protected: &[u8], payload: &[u8]) -> Result<Vec<u8>> {
    let mut message = Encoder::new(Vec::new());
    message.array(4)?.str("Signature1")?.bytes(protected)?.bytes(&[])?.bytes(payload)?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, key.serialized_der())
        .map_err(|e| anyhow!("the leaf's key: {e}"))?;
    let signature = key.sign(&SystemRandom::new(), &message.into_writer()).map_err(|e| anyhow!("signing: {e}"))?;
    Ok(signature.as_ref().to_vec())
}

/// The array of four. `unprotected` is CBOR already.
pub fn cose_sign1(protected: &[u8], unprotected: &[u8], payload: &[u8], signature: &[u8]) -> Result<Vec<u8>> {
    let mut cose = Encoder::new(Vec::new());
    cose.array(4)?.bytes(protected)?;
    cose.writer_mut().extend_from_slice(unprotected);
    cose.bytes(payload)?.bytes(signature)?;
    Ok(cose.into_writer())
}
