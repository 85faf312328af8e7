//! One seed is one run, and the judge sees what it is there to see.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use casemate_simulation::{Episode, Options};

#[test]
fn a_seed_and_an_episode_are_one_story() {
    let options = Options::new(7);
    for episode in 0..12 {
        let first = Episode::new(&options, episode).run(1500);
        // Another key for KMS's answers, other nonces of ciphers: nothing of that is in the story.
        let second = Episode::new(&Options::new(7), episode).run(1500);
        assert_eq!(first.violation, None, "7:{episode}");
        assert_eq!(first.digest, second.digest, "episode {episode} is not the same twice");
        assert_eq!(first.trace, second.trace);
        assert_eq!(first.stats.signatures, second.stats.signatures);
    }
    let (one, other) = (Episode::new(&options, 1).run(1500), Episode::new(&options, 2).run(1500));
    assert_ne!(one.digest, other.digest);
}

/// A negative control that needs no fault in the enclave: a store that is restored from a backup is what the fence cannot stand.
#[test]
fn a_store_that_forgets_is_found() {
    let options = Options { is_forgetful: true, ..Options::new(1) };
    let found = (0..400).find_map(|episode| Episode::new(&options, episode).run(u64::MAX).violation);
    let found = found.expect("a store that forgets its ceilings leads to a violation");
    assert!(found.contains("slashable") || found.contains("beyond"), "{found}");
}
