//! From a configuration to a vault that serves: unseal, then put the parts together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_protocol::Configuration;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::statement::Fence;
use casemate_slashing::Limits;

use crate::calls::Outside;
use crate::command::waiting_for;
use crate::custody::{Custody, CustodyError};
use crate::kms::Endpoint;
use crate::nsm::NsmError;
use crate::seal::{Contents, Place};
use crate::server::Link;
use crate::{Attestor, Clock, Deposits, Identity, Journal, Keys, Nsm, Office, Policy, Vault};

/// First wait before what was away is asked again; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// How often it is looked whether the broker has gone.
const TICK: Duration = Duration::from_millis(50);

/// What a vault starts from.
pub struct Start {
    /// As it was measured.
    pub configuration: Configuration,
    /// The NSM.
    pub nsm: Arc<dyn Nsm>,
    /// KMS, and its roots.
    pub kms: Endpoint,
    /// The oldest sealed state that may be loaded.
    pub oldest_generation: u64,
}

/// A start whose keys are unsealed.
pub struct Unsealed {
    configuration: Configuration,
    nsm: Arc<dyn Nsm>,
    custody: Custody,
    generation: u64,
    /// What was unsealed; empty where the parent keeps nothing.
    pub contents: Contents,
}

impl Start {
    /// Unseals. While KMS or the parent is away it asks again, and requests hear what is waited for; what is broken, or not ours, is
    /// an error. So is the end of the broker.
    pub fn unseal(self, link: &Link) -> Result<Unsealed, CustodyError> {
        let Self { configuration, nsm, kms, oldest_generation } = self;
        let place = Place {
            key_arn: configuration.kms_key_arn.clone(),
            group: configuration.group.clone(),
            network: configuration.network.genesis_validators_root(),
        };
        let outside = Arc::new(Outside::new(link.calls(), kms));
        let custody = Custody::new(outside, Arc::clone(&nsm), place)?;
        let mut backoff = MIN_BACKOFF;
        loop {
            match custody.unseal(oldest_generation) {
                Err(CustodyError::Service(error)) if !link.is_closed() => {
                    link.waits_for(waiting_for(&CustodyError::Service(error)));
                    wait(link, backoff);
                    backoff = backoff.saturating_mul(2).min(MAX_BACKOFF);
                }
                Err(error) => return Err(error),
                Ok(found) => {
                    link.waits_for(Waiting::Unsealing);
                    let (generation, contents) = found.unwrap_or_default();
                    return Ok(Unsealed { configuration, nsm, custody, generation, contents });
                }
            }
        }
    }
}

fn wait(link: &Link, duration: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < duration && !link.is_closed() {
        std::thread::sleep(TICK);
    }
}

impl Unsealed {
    /// The vault, with keys that were made of the contents.
    pub fn vault(
        self,
        keys: Keys,
        limits: Limits,
        fence: Fence,
        clock: Box<dyn Clock>,
        journal: Box<dyn Journal>,
    ) -> Result<Vault, NsmError> {
        let Configuration { group, network, operators, policy, sha256, .. } = self.configuration;
        let identity = Identity { group, configuration_sha256: sha256, fence };
        let attestor = Attestor::new(Arc::clone(&self.nsm), identity, &network, &keys)?;
        let (proof_of_validation, voluntary_exits) = (policy.proof_of_validation, policy.voluntary_exits);
        let addresses = policy.withdrawal_addresses;
        let office = Office::new(self.custody, self.nsm, operators, addresses.clone(), self.generation);
        let policy = Policy { proof_of_validation, voluntary_exits, deposits: Deposits::To(addresses) };
        Ok(Vault::new(network, keys, limits, policy, clock, journal).attested_by(attestor).commanded_by(office))
    }
}
