//! The network that an enclave serves: part of the measured configuration, never taken from a request.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Epoch, Root, Slot, Version};

/// Longest name of a network, in bytes.
pub const MAX_NAME_LEN: usize = 64;

/// Which vector sizes the chain's SSZ types have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Mainnet sizes (also Gnosis and Chiado, as far as signed objects go).
    Mainnet,
    /// The small sizes of development chains.
    Minimal,
}

/// Forks of the consensus layer in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "names of forks")]
pub enum ForkName {
    Phase0,
    Altair,
    Bellatrix,
    Capella,
    Deneb,
    Electra,
    Fulu,
    Gloas,
    Heze,
}

impl fmt::Display for ForkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Phase0 => "phase0",
            Self::Altair => "altair",
            Self::Bellatrix => "bellatrix",
            Self::Capella => "capella",
            Self::Deneb => "deneb",
            Self::Electra => "electra",
            Self::Fulu => "fulu",
            Self::Gloas => "gloas",
            Self::Heze => "heze",
        })
    }
}

/// One row of the fork table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// Which fork.
    pub name: ForkName,
    /// Its version.
    pub version: Version,
    /// First epoch of the fork; absent while it is not scheduled.
    #[serde(default)]
    pub epoch: Option<Epoch>,
}

/// The fields of a [`Network`] before they were checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented on Network")]
pub struct NetworkFields {
    pub name: String,
    pub preset: Preset,
    pub genesis_time: u64,
    pub genesis_validators_root: Root,
    pub slot_duration_ms: u64,
    pub slots_per_epoch: u64,
    pub forks: Vec<Fork>,
}

/// A network whose facts agree with each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NetworkFields", into = "NetworkFields")]
pub struct Network {
    name: String,
    preset: Preset,
    genesis_time: u64,
    genesis_validators_root: Root,
    slot_duration_ms: u64,
    slots_per_epoch: u64,
    forks: Vec<Fork>,
}

/// Why the facts of a network cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum NetworkError {
    #[error("the network's name has {0} bytes; 1 to {MAX_NAME_LEN} are allowed")]
    NameLength(usize),
    #[error("slot_duration_ms is {0}; it must be 1 to 3600000")]
    SlotDuration(u64),
    #[error("slots_per_epoch is {0}; it must be 1 to 1024")]
    SlotsPerEpoch(u64),
    #[error("the fork table is empty; its first row must be phase0 at epoch 0")]
    NoForks,
    #[error("the first fork is {0}; it must be phase0 at epoch 0")]
    FirstFork(ForkName),
    #[error("fork {second} follows {first}, but it is not the next one in the order of forks")]
    ForkOrder { first: ForkName, second: ForkName },
    #[error("fork {name} starts at epoch {epoch}, before the fork ahead of it at epoch {previous}")]
    ForkEpoch { name: ForkName, epoch: Epoch, previous: Epoch },
    #[error("fork {name} is scheduled for epoch {epoch}, but the fork ahead of it is not scheduled")]
    ForkUnscheduled { name: ForkName, epoch: Epoch },
}

impl TryFrom<NetworkFields> for Network {
    type Error = NetworkError;

    fn try_from(fields: NetworkFields) -> Result<Self, NetworkError> {
        if fields.name.is_empty() || fields.name.len() > MAX_NAME_LEN {
            return Err(NetworkError::NameLength(fields.name.len()));
        }
        if !(1..=3_600_000).contains(&fields.slot_duration_ms) {
            return Err(NetworkError::SlotDuration(fields.slot_duration_ms));
        }
        if !(1..=1024).contains(&fields.slots_per_epoch) {
            return Err(NetworkError::SlotsPerEpoch(fields.slots_per_epoch));
        }
        check_forks(&fields.forks)?;
        let NetworkFields {
            name,
            preset,
            genesis_time,
            genesis_validators_root,
            slot_duration_ms,
            slots_per_epoch,
            forks,
        } = fields;
        Ok(Self { name, preset, genesis_time, genesis_validators_root, slot_duration_ms, slots_per_epoch, forks })
    }
}

fn check_forks(forks: &[Fork]) -> Result<(), NetworkError> {
    let first = forks.first().ok_or(NetworkError::NoForks)?;
    if first.name != ForkName::Phase0 || first.epoch != Some(Epoch(0)) {
        return Err(NetworkError::FirstFork(first.name));
    }
    for (a, b) in forks.iter().zip(forks.iter().skip(1)) {
        if a.name >= b.name {
            return Err(NetworkError::ForkOrder { first: a.name, second: b.name });
        }
        match (a.epoch, b.epoch) {
            (Some(previous), Some(epoch)) if epoch < previous => {
                return Err(NetworkError::ForkEpoch { name: b.name, epoch, previous });
            }
            (None, Some(epoch)) => return Err(NetworkError::ForkUnscheduled { name: b.name, epoch }),
            _ => {}
        }
    }
    // EIP-7044 pins exits to the Capella version from Deneb on: without that row the rule could not be followed.
    if forks.iter().any(|f| f.name >= ForkName::Deneb) && !forks.iter().any(|f| f.name == ForkName::Capella) {
        return Err(NetworkError::ForkOrder { first: ForkName::Bellatrix, second: ForkName::Deneb });
    }
    Ok(())
}

impl From<Network> for NetworkFields {
    fn from(n: Network) -> Self {
        Self {
            name: n.name,
            preset: n.preset,
            genesis_time: n.genesis_time,
            genesis_validators_root: n.genesis_validators_root,
            slot_duration_ms: n.slot_duration_ms,
            slots_per_epoch: n.slots_per_epoch,
            forks: n.forks,
        }
    }
}

impl Network {
    /// Name for people; nothing depends on it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes of the chain's SSZ vectors.
    pub fn preset(&self) -> Preset {
        self.preset
    }

    /// Unix time of slot 0, in seconds.
    pub fn genesis_time(&self) -> u64 {
        self.genesis_time
    }

    /// Root that tells this chain from every other.
    pub fn genesis_validators_root(&self) -> Root {
        self.genesis_validators_root
    }

    /// Length of a slot in milliseconds.
    pub fn slot_duration_ms(&self) -> u64 {
        self.slot_duration_ms
    }

    /// Slots in an epoch.
    pub fn slots_per_epoch(&self) -> u64 {
        self.slots_per_epoch
    }

    /// The fork table, oldest first.
    pub fn forks(&self) -> &[Fork] {
        &self.forks
    }

    /// The slot that `unix_ms` falls into; 0 before genesis.
    pub fn slot_at(&self, unix_ms: u64) -> Slot {
        let since_genesis = unix_ms.saturating_sub(self.genesis_time.saturating_mul(1000));
        Slot(since_genesis.checked_div(self.slot_duration_ms).unwrap_or(0))
    }

    /// The epoch of a slot.
    pub fn epoch_of(&self, slot: Slot) -> Epoch {
        Epoch(slot.0.checked_div(self.slots_per_epoch).unwrap_or(0))
    }

    /// The version at genesis.
    pub fn genesis_version(&self) -> Version {
        self.forks.first().map_or(Version::ZERO, |f| f.version)
    }

    /// The last fork in the table that has started at `epoch`.
    pub fn fork_at(&self, epoch: Epoch) -> ForkName {
        self.forks
            .iter()
            .rev()
            .find(|f| f.epoch.is_some_and(|start| start <= epoch))
            .map_or(ForkName::Phase0, |f| f.name)
    }

    /// The version of a fork in the table.
    pub fn version_of(&self, name: ForkName) -> Option<Version> {
        self.forks.iter().find(|f| f.name == name).map(|f| f.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(forks: Vec<Fork>) -> NetworkFields {
        NetworkFields {
            name: "test".into(),
            preset: Preset::Mainnet,
            genesis_time: 1000,
            genesis_validators_root: Root::ZERO,
            slot_duration_ms: 12_000,
            slots_per_epoch: 32,
            forks,
        }
    }

    fn fork(name: ForkName, epoch: Option<u64>) -> Fork {
        Fork { name, version: Version::ZERO, epoch: epoch.map(Epoch) }
    }

    #[test]
    fn time_becomes_slots() {
        let network = Network::try_from(fields(vec![fork(ForkName::Phase0, Some(0))])).unwrap();
        assert_eq!(network.slot_at(0), Slot(0));
        assert_eq!(network.slot_at(1_000_000), Slot(0));
        assert_eq!(network.slot_at(1_011_999), Slot(0));
        assert_eq!(network.slot_at(1_012_000), Slot(1));
        assert_eq!(network.epoch_of(Slot(31)), Epoch(0));
        assert_eq!(network.epoch_of(Slot(32)), Epoch(1));
    }

    #[test]
    fn fork_tables_that_cannot_be_are_refused() {
        use ForkName::{Altair, Bellatrix, Capella, Deneb, Phase0};
        let refused = |forks: Vec<Fork>| Network::try_from(fields(forks)).unwrap_err();
        assert_eq!(refused(vec![]), NetworkError::NoForks);
        assert_eq!(refused(vec![fork(Altair, Some(0))]), NetworkError::FirstFork(Altair));
        assert_eq!(refused(vec![fork(Phase0, Some(1))]), NetworkError::FirstFork(Phase0));
        assert_eq!(
            refused(vec![fork(Phase0, Some(0)), fork(Bellatrix, Some(1)), fork(Altair, Some(2))]),
            NetworkError::ForkOrder { first: Bellatrix, second: Altair }
        );
        assert_eq!(
            refused(vec![fork(Phase0, Some(0)), fork(Altair, Some(9)), fork(Bellatrix, Some(8))]),
            NetworkError::ForkEpoch { name: Bellatrix, epoch: Epoch(8), previous: Epoch(9) }
        );
        assert_eq!(
            refused(vec![fork(Phase0, Some(0)), fork(Altair, None), fork(Bellatrix, Some(8))]),
            NetworkError::ForkUnscheduled { name: Bellatrix, epoch: Epoch(8) }
        );
        assert_eq!(
            refused(vec![fork(Phase0, Some(0)), fork(Bellatrix, Some(0)), fork(Deneb, Some(0))]),
            NetworkError::ForkOrder { first: Bellatrix, second: Deneb }
        );
        assert!(
            Network::try_from(fields(vec![fork(Phase0, Some(0)), fork(Capella, Some(0)), fork(Deneb, Some(0))]))
                .is_ok()
        );
    }
}
