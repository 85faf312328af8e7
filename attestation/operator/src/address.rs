//! Addresses of the execution layer.

use anyhow::{Result, bail};
use casemate_protocol::{Bytes, ExecutionAddress};
use sha3::{Digest, Keccak256};

/// `0x` and 40 hex digits. In letters of both cases there is a checksum (EIP-55), which must be right.
pub fn parse(text: &str) -> Result<ExecutionAddress> {
    let Some(digits) = text.strip_prefix("0x").filter(|digits| digits.len() == 40) else {
        bail!("{} characters; an address is 0x and 40 hex digits", text.len());
    };
    let Ok(address) = const_hex::decode_to_array(digits) else { bail!("an address is 0x and 40 hex digits") };
    let one_case = !digits.contains(char::is_lowercase) || !digits.contains(char::is_uppercase);
    if !one_case && checksummed(digits) != digits {
        bail!("the address's checksum (EIP-55, its upper and lower case) is wrong: is there a typing error in it?");
    }
    Ok(Bytes(address))
}

fn checksummed(digits: &str) -> String {
    let lower = digits.to_ascii_lowercase();
    let hash = const_hex::encode(Keccak256::digest(lower.as_bytes()));
    let upper = |(letter, nibble): (char, char)| if nibble >= '8' { letter.to_ascii_uppercase() } else { letter };
    lower.chars().zip(hash.chars()).map(upper).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_of_eip_55_are_checked() {
        for good in [
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
            "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
            "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
            "0x52908400098527886E0F7030069857D2E4169EE7",
            "0xde709f2102306220921060314715629080e2fb77",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, told) in [
            ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1Beaed", "checksum"),
            ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAe", "41 characters"),
            ("5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "40 characters"),
            ("0xzaaeb6053f3e94c9b9a09f33669435e7ef1beaed", "hex digits"),
            ("vitalik.eth", "11 characters"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(told), "{bad}: {error}");
        }
    }
}
