//! Public keys, and their root as the statement has it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_protocol::statement::KEYS_DEPTH;
use casemate_protocol::{Bytes, PublicKey, Root};
use libssz_merkle::{Sha2Hasher, merkleize, mix_in_length, pack};

use crate::input;

/// SSZ hash tree root of `List[BLSPubkey, 2**40]` over the keys in ascending order.
pub fn root(keys: &[PublicKey]) -> Root {
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    let leaves: Vec<_> = sorted.iter().map(|key| merkleize(&Sha2Hasher, &pack(&key.0), None)).collect();
    let limit = 1_usize.checked_shl(KEYS_DEPTH);
    Bytes(mix_in_length(&Sha2Hasher, &merkleize(&Sha2Hasher, &leaves, limit), sorted.len()))
}

/// The keys of a file.
pub fn read(path: &Path) -> Result<Vec<PublicKey>> {
    parse(&input::read(path)?).with_context(|| format!("in {}", path.display()))
}

/// The keys of a file, which must name one at least.
pub fn read_some(path: &Path) -> Result<Vec<PublicKey>> {
    let keys = read(path)?;
    if keys.is_empty() {
        bail!("there is no key in {}", path.display());
    }
    Ok(keys)
}

/// Keys from a JSON array of texts (as `GET /api/v1/eth2/publicKeys` answers), or one a line.
pub fn parse(text: &[u8]) -> Result<Vec<PublicKey>> {
    let text = std::str::from_utf8(text).context("not UTF-8")?;
    let mut keys = if text.trim_start().starts_with('[') {
        let texts: Vec<String> = serde_json::from_str(text).context("not a JSON array of texts")?;
        texts.iter().map(|text| key(text)).collect::<Result<Vec<_>>>()?
    } else {
        let keys = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(key).collect::<Result<Vec<_>>>()?;
        if keys.is_empty() {
            bail!("there is no key in it; an empty list is written []");
        }
        keys
    };
    keys.sort_unstable();
    if let Some(twice) =
        keys.windows(2).find_map(|pair| matches!(pair, [a, b] if a == b).then(|| pair.first()).flatten())
    {
        bail!("a key occurs twice: {twice}");
    }
    Ok(keys)
}

fn key(text: &str) -> Result<PublicKey> {
    const_hex::decode_to_array(text)
        .map(Bytes)
        .map_err(|_| anyhow::anyhow!("{} characters; a public key is 96 hex digits", text.len()))
}
