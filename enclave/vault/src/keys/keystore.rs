//! Secret keys out of EIP-2335 keystores, for policies that let the key manager API bring them.
//!
//! The parser is the operator's own (casemate-keystore); the arithmetic is aws-lc's, which is in the vault anyway. scrypt is the
//! one function that aws-lc-rs does not offer, so this module calls aws-lc's own.
#![allow(unsafe_code)]

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA256};
use casemate_keystore::{Kdf, Keystore};
use casemate_protocol::command::{KeyOutcome, SECRET_LEN};
use casemate_protocol::frame::KeystoreToImport;
use zeroize::Zeroizing;

use crate::signing::bls::SecretKey;

/// Most memory that a KDF may take in here: what EIP-2335's own scrypt does (256 MiB), and some.
const MAX_KDF_MEMORY: u64 = 257 * 1024 * 1024;
/// Most work of scrypt, n·r·p: what EIP-2335's own does, about a second.
const MAX_SCRYPT_WORK: u64 = 1 << 21;
/// Most rounds of PBKDF2: four times what EIP-2335's own has.
const MAX_PBKDF2_ROUNDS: u32 = 1 << 20;

/// The secret key of a keystore, if it is that of the public key beside it.
pub(crate) fn decrypted(one: &KeystoreToImport) -> Result<Zeroizing<[u8; SECRET_LEN]>, KeyOutcome> {
    let keystore = Keystore::parse(one.keystore.as_ref()).map_err(|_| KeyOutcome::Unreadable)?;
    if !is_affordable(&keystore.kdf) || keystore.ciphertext.len() != SECRET_LEN {
        return Err(KeyOutcome::Unreadable);
    }
    let derived = derive(&keystore.kdf, one.password.0.as_ref()).ok_or(KeyOutcome::Unreadable)?;
    let (cipher_key, checksum_key) = derived.split_at(16);
    let mut checksum = Context::new(&SHA256);
    checksum.update(checksum_key);
    checksum.update(&keystore.ciphertext);
    verify_slices_are_equal(checksum.finish().as_ref(), &keystore.checksum).map_err(|_| KeyOutcome::WrongPassword)?;
    let mut clear = Zeroizing::new(keystore.ciphertext);
    let key = UnboundCipherKey::new(&AES_128, cipher_key).and_then(DecryptingKey::ctr);
    let context = DecryptionContext::Iv128(FixedLength::from(&keystore.iv));
    key.and_then(|key| key.decrypt(&mut clear, context).map(drop)).map_err(|_| KeyOutcome::Unreadable)?;
    let mut secret = Zeroizing::new([0; SECRET_LEN]);
    secret.copy_from_slice(&clear);
    // It clears the copy.
    let mut copy = *secret;
    match SecretKey::from_be_bytes(&mut copy) {
        Ok(key) if key.public_key() == one.key.public_key => Ok(secret),
        _ => Err(KeyOutcome::WrongSecret),
    }
}

/// It keeps the thread of commands busy, and the enclave's memory.
fn is_affordable(kdf: &Kdf) -> bool {
    match kdf {
        Kdf::Pbkdf2 { rounds, .. } => *rounds <= MAX_PBKDF2_ROUNDS,
        Kdf::Scrypt { log_n, r, p, .. } => {
            let (r, p) = (u64::from(*r), u64::from(*p));
            let n = 1_u64.checked_shl(u32::from(*log_n)).unwrap_or(u64::MAX);
            let memory = n.saturating_add(p).saturating_mul(r).saturating_mul(128);
            memory <= MAX_KDF_MEMORY && n.saturating_mul(r).saturating_mul(p) <= MAX_SCRYPT_WORK
        }
    }
}

fn derive(kdf: &Kdf, password: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    match kdf {
        Kdf::Pbkdf2 { rounds, salt } => {
            pbkdf2::derive(PBKDF2_HMAC_SHA256, NonZeroU32::new(*rounds)?, salt, password, key.as_mut_slice());
        }
        Kdf::Scrypt { log_n, r, p, salt } => {
            let n = 1_u64.checked_shl(u32::from(*log_n))?;
            let most = usize::try_from(MAX_KDF_MEMORY.checked_add(1 << 20)?).ok()?;
            // SAFETY: each pointer goes with the length of its own slice, `key` has the 32 bytes that are named for it, and nothing
            // keeps a pointer. The function checks its numbers itself and answers 0 where they are wrong or there is no memory.
            let done = unsafe {
                aws_lc_sys::EVP_PBE_scrypt(
                    password.as_ptr().cast(),
                    password.len(),
                    salt.as_ptr(),
                    salt.len(),
                    n,
                    u64::from(*r),
                    u64::from(*p),
                    most,
                    key.as_mut_ptr(),
                    key.len(),
                )
            };
            if done != 1 {
                return None;
            }
        }
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use casemate_protocol::BoundedBytes;
    use casemate_protocol::command::ImportedKey;
    use casemate_protocol::frame::Password;
    use serde_json::Value;

    use super::*;

    /// The examples of EIP-2335: scrypt and PBKDF2 with their real costs.
    #[test]
    fn the_eips_own_examples_open() {
        let Some(folder) = casemate_testdata::folder("signing/keystore") else { return };
        let mut seen = 0;
        for path in casemate_testdata::files(&folder, "json") {
            let text = std::fs::read(&path).unwrap();
            let Ok(value) = serde_json::from_slice::<Value>(&text) else { continue };
            let Ok(keystore) = Keystore::parse(&text) else { continue };
            let Some(public_key) = keystore.public_key() else { continue };
            if keystore.ciphertext.len() != SECRET_LEN || value["crypto"]["kdf"]["params"]["n"] == 1 << 20 {
                continue;
            }
            // «𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑», normalised.
            let told = |password: &str| {
                decrypted(&KeystoreToImport {
                    key: ImportedKey { public_key, history: None },
                    keystore: BoundedBytes::new(text.clone()).unwrap(),
                    password: Password(BoundedBytes::new(password.as_bytes().to_vec()).unwrap()),
                })
            };
            if let Ok(secret) = told("testpassword🔑") {
                let expected = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f";
                assert_eq!(const_hex::encode(*secret), expected, "{}", path.display());
                assert_eq!(told("testpassword").map(drop), Err(KeyOutcome::WrongPassword));
                seen += 1;
            }
        }
        assert!(seen >= 2, "{seen} of the examples were found");
    }

    #[test]
    fn scrypt_is_rfc_7914s() {
        let kdf = |log_n, r, p, salt: &[u8]| Kdf::Scrypt { log_n, r, p, salt: salt.to_vec() };
        let derived = |kdf: Kdf, password: &[u8]| derive(&kdf, password).map(|key| const_hex::encode(*key));
        // The first 32 bytes of its test vectors.
        let first = "77d6576238657b203b19ca42c18a0497f16b4844e3074ae8dfdffa3fede21442";
        assert_eq!(derived(kdf(4, 1, 1, b""), b""), Some(first.to_owned()));
        let second = "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162";
        assert_eq!(derived(kdf(10, 8, 16, b"NaCl"), b"password"), Some(second.to_owned()));
        assert_eq!(derived(kdf(20, 8, 1, b"SodiumChloride"), b"pleaseletmein"), None, "it takes a gigabyte");
    }
}
