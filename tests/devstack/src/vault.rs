//! The vault's process: the production vault, its keys from the stack's pipe, its watermarks in a file.

use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use casemate_protocol::PublicKey;
use casemate_slashing::{History, Limits, Watermarks};
use casemate_vault::{Clock, KeyError, Keys, Policy, SystemClock, Vault, server};
use zeroize::{Zeroize, Zeroizing};

use crate::boot::Boot;
use crate::journal::{FileJournal, floor_at};
use crate::nsm;

/// A clock that stands still.
struct FixedClock(u64);

impl Clock for FixedClock {
    fn unix_ms(&self) -> u64 {
        self.0
    }
}

/// Reads the boot message from standard input, then serves the socket that is standard output.
pub fn run() -> Result<()> {
    crate::part_of_a_stack()?;
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().read_to_string(&mut text).context("reading the boot message")?;
    let boot: Boot = serde_json::from_str(&text).context("the boot message")?;
    drop(text);
    let broker = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned().context("the broker's socket")?);

    let network = casemate_config::parse(&boot.network)?;
    let clock: Box<dyn Clock> = match boot.fixed_time_ms {
        Some(ms) => Box::new(FixedClock(ms)),
        None => Box::new(SystemClock),
    };
    // What the window rule has allowed until now at most; a vote from that epoch to itself is among it, so the source
    // must not be lower (docs/ARCHITECTURE.md, «The floor after an unclean end»).
    let latest_slot = network.slot_at(clock.unix_ms()).saturating_add(1);
    let latest = network.epoch_of(latest_slot);
    let above = floor_at(latest_slot, latest, latest);
    let journal = FileJournal::open(&boot.journal, network.genesis_validators_root(), above)?;
    if journal.maybe_behind {
        eprintln!(
            "casemate-dev (vault): the machine went down without closing the watermarks; to be safe, attestations \
             start above target epoch {latest} and from source epoch {latest}: two to three epochs of silence"
        );
    }

    let mut secrets = Vec::with_capacity(boot.keys.len());
    let mut histories = Vec::with_capacity(boot.keys.len());
    for key in boot.keys {
        secrets.push(const_hex::decode_to_array::<_, 32>(&key.secret.0).context("a secret key")?);
        histories.push(key.history.map(Watermarks::from));
    }
    let mut starts: Vec<(PublicKey, Option<Watermarks>)> = Vec::with_capacity(histories.len());
    let loaded = Keys::load(&mut secrets, |number, key| {
        let imported = histories.get(number).copied().flatten();
        let start = match (imported, journal.watermarks(key)) {
            (Some(imported), Some(kept)) => Some(imported.merge(kept)),
            (one, other) => one.or(other),
        }
        .map(|start| start.merge(journal.floor()));
        starts.push((*key, start));
        start.map_or(History::Missing, History::Known)
    });
    secrets.zeroize();
    let keys = match loaded {
        Ok(keys) => keys,
        Err(KeyError::Invalid(number)) => bail!("key number {number} is no BLS secret key"),
        Err(KeyError::Duplicate(key)) => bail!("key {key} occurs twice"),
        Err(KeyError::TooMany) => bail!("too many keys"),
    };
    let marks = journal.start(&starts)?;
    let close = marks.closer();
    let policy = Policy { proof_of_validation: boot.proof_of_validation };
    let attestor = nsm::attestor(&boot.nsm, boot.fixed_time_ms, &network, &keys)?;
    let vault = Vault::new(network, keys, Limits::NONE, policy, clock, Box::new(marks)).attested_by(attestor);
    let workers = NonZeroUsize::new(boot.workers).unwrap_or(NonZeroUsize::MIN);
    // A broker that was killed may leave half a frame: that ends the service, not the order of closing.
    let served = server::serve(&vault, &broker, workers);
    close().context("closing the watermarks")?;
    served.context("serving the broker")
}
