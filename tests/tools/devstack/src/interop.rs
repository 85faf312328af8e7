//! The interop keys that every client's devnet uses: `sk_i = int_le(sha256(le32bytes(i))) mod r`.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Order of the BLS12-381 groups, as little-endian limbs.
const ORDER: [u64; 4] = [0xffff_ffff_0000_0001, 0x53bd_a402_fffe_5bfe, 0x3339_d808_09a1_d805, 0x73ed_a753_299d_7d48];

/// The secret key of this number, 32 bytes big-endian. Public knowledge: never for stake.
pub fn secret_key(number: u32) -> Zeroizing<[u8; 32]> {
    let mut index = [0; 32];
    for (to, from) in index.iter_mut().zip(number.to_le_bytes()) {
        *to = from;
    }
    let digest: [u8; 32] = Sha256::digest(index).into();
    let mut limbs = [0; 4];
    for (limb, bytes) in limbs.iter_mut().zip(digest.chunks_exact(8)) {
        *limb = bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    }
    // 2^256 is less than three times the order.
    while limbs.iter().rev().ge(ORDER.iter().rev()) {
        let mut borrow = false;
        for (limb, order) in limbs.iter_mut().zip(ORDER) {
            (*limb, borrow) = limb.borrowing_sub(order, borrow);
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    for (to, from) in key.chunks_exact_mut(8).zip(limbs.iter().rev()) {
        to.copy_from_slice(&from.to_be_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::secret_key;

    #[test]
    fn interop_keys_are_the_published_ones() {
        // Of the interop specification; the first digest is below the order, others are not.
        assert_eq!(
            const_hex::encode(*secret_key(0)),
            "25295f0d1d592a90b333e26e85149708208e9f8e8bc18f6c77bd62f8ad7a6866"
        );
        let Some(folder) = casemate_testdata::folder("signing") else { return };
        let mut compared = 0;
        for path in casemate_testdata::files(&folder.join("keystore"), ".yaml") {
            let text = std::fs::read_to_string(path).unwrap();
            let keys = text.split('\'').filter(|s| s.starts_with("0x") && s.len() == 66);
            for (number, key) in keys.enumerate() {
                assert_eq!(format!("0x{}", const_hex::encode(*secret_key(u32::try_from(number).unwrap()))), key);
                compared += 1;
            }
        }
        assert!(compared > 0);
    }
}
