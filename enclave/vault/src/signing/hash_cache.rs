//! Hashed messages, kept per signing root.
//!
//! Since Electra (EIP-7549) all attesters of a slot sign one root, and hashing to G2 is half the cost of a signature.
//! That a root was seen before shows in the time of an answer: roots are public.

use std::sync::{Mutex, PoisonError};

use casemate_protocol::Root;

use crate::signing::bls::HashedMessage;

/// Entries: one slot's roots of every type, and then some. 336 bytes each.
const ENTRIES: usize = 1024;

/// A direct-mapped cache: a root has one place, and the newer root takes it.
pub struct PointCache {
    entries: Box<[Mutex<Option<Entry>>]>,
}

/// A signing root and its hash.
type Entry = (Root, HashedMessage);

impl Default for PointCache {
    fn default() -> Self {
        Self { entries: (0..ENTRIES).map(|_| Mutex::new(None)).collect() }
    }
}

impl PointCache {
    /// The hashed message of a signing root, computed where it is not at hand.
    pub fn hashed(&self, signing_root: &Root) -> HashedMessage {
        let Some(entry) = self.entries.get(place(signing_root)) else {
            return HashedMessage::new(&signing_root.0);
        };
        // A poisoned lock guards a whole entry all the same: entries are replaced in one step.
        if let Some((root, point)) = *entry.lock().unwrap_or_else(PoisonError::into_inner)
            && root == *signing_root
        {
            return point;
        }
        // Hashed outside the lock: two threads may do it twice, none waits.
        let point = HashedMessage::new(&signing_root.0);
        *entry.lock().unwrap_or_else(PoisonError::into_inner) = Some((*signing_root, point));
        point
    }
}

fn place(signing_root: &Root) -> usize {
    // A root is a SHA-256: any bytes of it are spread evenly.
    let [a, b, ..] = signing_root.0;
    usize::from(u16::from_le_bytes([a, b])) % ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::bls::SecretKey;

    #[test]
    fn a_cached_point_signs_like_a_fresh_one_even_after_eviction() {
        let key = SecretKey::from_be_bytes(&mut [1; 32]).unwrap();
        let cache = PointCache::default();
        // Same place, different roots.
        let (mut a, mut b) = (Root::from([5; 32]), Root::from([5; 32]));
        a.0[31] = 1;
        b.0[31] = 2;
        for root in [a, a, b, a, b, b] {
            let fresh = key.sign(&HashedMessage::new(&root.0));
            assert_eq!(key.sign(&cache.hashed(&root)), fresh);
        }
    }
}
