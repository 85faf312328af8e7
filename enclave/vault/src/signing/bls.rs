//! BLS signatures in G2 (min-pk), split where the cache cuts: hash the message, then multiply.
//!
//! `blst::min_pk::SecretKey::sign` does both in one call, and its safe interface cannot part them; so this module
//! speaks to blst's C functions (with `keystore.rs`, the only unsafe code of the project). The arithmetic is blst's own: the
//! multiplication is the very function that `sign` calls, in constant time. Where several signatures are due at once, their points
//! share one inversion on the way to affine coordinates.
#![allow(unsafe_code)]

use std::ptr;

use blst::{blst_p2, blst_p2_affine, blst_scalar};
use casemate_protocol::{PublicKey, Signature};
use zeroize::{Zeroize, Zeroizing};

/// Ciphersuite of the consensus specification, for the proof of possession scheme.
const DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";

/// Bits of a scalar below the order of the group.
const SCALAR_BITS: usize = 255;

/// A secret key in the range that the scheme allows. Zeroized on drop; cannot be printed.
pub struct SecretKey(blst_scalar);

/// A message hashed to G2.
#[derive(Clone, Copy)]
pub struct HashedMessage(blst_p2);

/// Signatures that share an inversion at most.
pub const BATCH: usize = 16;

/// Signs each message with the key beside it; what is beyond [`BATCH`] is not signed.
///
/// A signature alone takes one inversion of a field element, up to a fifth of its instructions; here all take one together.
pub fn sign_batch<'a>(
    batch: impl ExactSizeIterator<Item = (&'a SecretKey, &'a HashedMessage)>,
) -> impl Iterator<Item = Signature> {
    let mut points = [blst_p2::default(); BATCH];
    let mut affine = [blst_p2_affine::default(); BATCH];
    let mut count = 0_usize;
    for ((key, message), point) in batch.zip(&mut points) {
        // SAFETY: `blst_p2_mult` reads one point and the 32 bytes of a scalar, of which it takes 255 bits, and writes one point. It
        // keeps no pointer.
        unsafe { blst::blst_p2_mult(point, &raw const message.0, key.0.b.as_ptr(), SCALAR_BITS) };
        count = count.saturating_add(1);
    }
    if count > 0 {
        // Null behind the first pointer: the points follow one another.
        let pointers = [points.as_ptr(), ptr::null()];
        // SAFETY: `count` points were written at the front of `points`, and as many are written at the front of `affine`, which has
        // room for `BATCH`; `count` is no more, because `zip` ends with the shorter side. None is at infinity: the messages' points
        // are of the group's prime order, and keys are neither zero nor beyond it. No pointer is kept.
        unsafe { blst::blst_p2s_to_affine(affine.as_mut_ptr(), pointers.as_ptr(), count) };
    }
    affine.into_iter().take(count).map(|point| {
        let mut bytes = [0; 96];
        // SAFETY: it reads one affine point and writes 96 bytes.
        unsafe { blst::blst_p2_affine_compress(bytes.as_mut_ptr(), &raw const point) };
        bytes.into()
    })
}

/// The bytes are no secret key: zero, or not below the order of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSecretKey;

impl SecretKey {
    /// Reads a key as 32 bytes, big-endian, and clears them.
    pub fn from_be_bytes(bytes: &mut [u8; 32]) -> Result<Self, InvalidSecretKey> {
        let valid = blst::min_pk::SecretKey::from_bytes(bytes).is_ok();
        bytes.reverse();
        let key = Self(blst_scalar { b: *bytes });
        bytes.zeroize();
        if valid { Ok(key) } else { Err(InvalidSecretKey) }
    }

    /// A new key out of at least 32 bytes of entropy (KeyGen of draft-irtf-cfrg-bls-signature, as EIP-2333 has it).
    pub fn generate(entropy: &[u8]) -> Option<Self> {
        let key = blst::min_pk::SecretKey::key_gen(entropy, &[]).ok()?;
        let mut bytes = Zeroizing::new(key.to_bytes());
        Self::from_be_bytes(&mut bytes).ok()
    }

    /// The key as 32 bytes, big-endian, for sealing.
    pub(crate) fn to_be_bytes(&self) -> Zeroizing<[u8; 32]> {
        let mut bytes = Zeroizing::new(self.0.b);
        bytes.reverse();
        bytes
    }

    /// The public key, compressed.
    pub fn public_key(&self) -> PublicKey {
        let mut point = blst::blst_p1::default();
        let mut bytes = [0; 48];
        // SAFETY: both functions read one fully initialised value behind a reference and write one value of the type
        // that the declaration names: `blst_p1`, then 48 bytes. Neither keeps a pointer.
        unsafe {
            blst::blst_sk_to_pk_in_g1(&raw mut point, &raw const self.0);
            blst::blst_p1_compress(bytes.as_mut_ptr(), &raw const point);
        }
        bytes.into()
    }

    /// The signature over a hashed message.
    pub fn sign(&self, message: &HashedMessage) -> Signature {
        let mut point = blst_p2_affine::default();
        let mut bytes = [0; 96];
        // SAFETY: `blst_sign_pk2_in_g1` takes null for the serialization that is not wanted, reads the point and the
        // scalar behind references, and writes one `blst_p2_affine`; `blst_p2_affine_compress` reads that and writes
        // 96 bytes. Neither keeps a pointer.
        unsafe {
            blst::blst_sign_pk2_in_g1(ptr::null_mut(), &raw mut point, &raw const message.0, &raw const self.0);
            blst::blst_p2_affine_compress(bytes.as_mut_ptr(), &raw const point);
        }
        bytes.into()
    }
}

impl HashedMessage {
    /// Hashes a message to G2.
    pub fn new(message: &[u8]) -> Self {
        let mut point = blst_p2::default();
        // SAFETY: each pointer goes with the length of its own slice; the augmentation is empty, for which null with
        // length 0 is allowed. One `blst_p2` is written; no pointer is kept.
        unsafe {
            blst::blst_hash_to_g2(
                &raw mut point,
                message.as_ptr(),
                message.len(),
                DST.as_ptr(),
                DST.len(),
                ptr::null(),
                0,
            );
        }
        Self(point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_blst_does() {
        for seed in 0..8u8 {
            let reference = blst::min_pk::SecretKey::key_gen(&[seed; 32], &[]).unwrap();
            let key = SecretKey::from_be_bytes(&mut reference.to_bytes()).unwrap();
            assert_eq!(key.public_key().0, reference.sk_to_pk().to_bytes());
            for len in [0, 1, 32, 200] {
                let message = vec![seed; len];
                let expected = reference.sign(&message, DST, &[]).to_bytes();
                assert_eq!(key.sign(&HashedMessage::new(&message)).0, expected);
            }
        }
    }

    #[test]
    fn batches_of_every_size_have_the_same_signatures() {
        let keys: Vec<SecretKey> = (1..=20u8).map(|n| SecretKey::from_be_bytes(&mut [n; 32]).unwrap()).collect();
        let messages: Vec<HashedMessage> = (0..20u8).map(|n| HashedMessage::new(&[n / 2; 32])).collect();
        for count in 0..=keys.len() {
            let batch = keys.iter().zip(&messages).take(count);
            let alone: Vec<_> = batch.clone().take(BATCH).map(|(key, message)| key.sign(message)).collect();
            let together: Vec<_> = sign_batch(batch.collect::<Vec<_>>().into_iter()).collect();
            assert_eq!(together, alone);
        }
    }

    #[test]
    fn keys_out_of_range_are_refused_and_bytes_cleared() {
        assert!(SecretKey::from_be_bytes(&mut [0; 32]).is_err());
        assert!(SecretKey::from_be_bytes(&mut [0xff; 32]).is_err());
        let order =
            const_hex::decode_to_array("73eda753299d7d483339d80809a1d80553bda402fffe5bfeffffffff00000001").unwrap();
        assert!(SecretKey::from_be_bytes(&mut { order }).is_err());
        let mut below = order;
        below[31] = 0;
        assert!(SecretKey::from_be_bytes(&mut below).is_ok());
        assert_eq!(below, [0; 32]);
    }
}
