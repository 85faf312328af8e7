//! Hash tree roots of containers with a fixed number of 32-byte leaves: all that the vault's objects need.

use aws_lc_rs::digest::{SHA256, digest};
use casemate_protocol::statement::KEYS_DEPTH;
use casemate_protocol::{PublicKey, Root};

/// SHA-256 of two nodes.
pub fn hash_pair(left: Root, right: Root) -> Root {
    let mut both = [0; 64];
    let (a, b) = both.split_at_mut(32);
    a.copy_from_slice(&left.0);
    b.copy_from_slice(&right.0);
    let mut node = Root::ZERO;
    // SHA-256 gives 32 bytes, always.
    node.0.copy_from_slice(digest(&SHA256, &both).as_ref());
    node
}

/// Root over two leaves.
pub fn root2([a, b]: [Root; 2]) -> Root {
    hash_pair(a, b)
}

/// Root over four leaves; missing ones are zero.
pub fn root4([a, b, c, d]: [Root; 4]) -> Root {
    hash_pair(hash_pair(a, b), hash_pair(c, d))
}

/// Root over five leaves, padded to eight.
pub fn root5([a, b, c, d, e]: [Root; 5]) -> Root {
    let right = root4([e, Root::ZERO, Root::ZERO, Root::ZERO]);
    hash_pair(root4([a, b, c, d]), right)
}

/// Leaf of an integer.
pub fn uint(n: u64) -> Root {
    leaf(&n.to_le_bytes())
}

/// Leaf of a boolean.
pub fn boolean(b: bool) -> Root {
    leaf(&[u8::from(b)])
}

/// Leaf of at most 32 bytes; what is beyond is cut off, so only arrays of fixed, smaller size come here.
pub fn leaf(bytes: &[u8]) -> Root {
    let mut node = [0; 32];
    for (to, from) in node.iter_mut().zip(bytes) {
        *to = *from;
    }
    node.into()
}

/// Root of a 48-byte key: two chunks.
pub fn key(bytes: &[u8; 48]) -> Root {
    let (first, second) = bytes.split_at(32);
    hash_pair(leaf(first), leaf(second))
}

/// Root of `List[BLSPubkey, 2**40]`: the keys in the order given, padded with zero nodes, and their number mixed in.
pub fn list_of_keys(keys: &[PublicKey]) -> Root {
    let mut nodes: Vec<Root> = keys.iter().map(|k| key(&k.0)).collect();
    let mut zero = Root::ZERO;
    for _ in 0..KEYS_DEPTH {
        nodes = nodes
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => hash_pair(*left, *right),
                [left] => hash_pair(*left, zero),
                _ => zero,
            })
            .collect();
        zero = hash_pair(zero, zero);
    }
    let root = nodes.first().copied().unwrap_or(zero);
    hash_pair(root, uint(u64::try_from(keys.len()).unwrap_or(u64::MAX)))
}
