//! Holds every signature that was released against every other of its key: over all enclaves, boots and signers.

use std::collections::BTreeMap;

use casemate_protocol::Duty;

use crate::random::Random;

/// A block or a vote, by what the slashing rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A block.
    Block {
        /// Its slot.
        slot: u64,
        /// Which of those that could stand there.
        variant: u8,
    },
    /// A vote.
    Vote {
        /// Its source.
        source: u64,
        /// Its target.
        target: u64,
        /// Which of those that could stand there.
        variant: u8,
    },
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block { slot, variant } => write!(f, "block {slot} ({variant})"),
            Self::Vote { source, target, variant } => write!(f, "vote {source} -> {target} ({variant})"),
        }
    }
}

impl Message {
    /// What is asked for.
    pub fn of(duty: &Duty) -> Option<Self> {
        match duty {
            Duty::Block(header) => Some(Self::Block { slot: header.slot.0, variant: header.body_root.0[0] }),
            Duty::Attestation(data) => Some(Self::Vote {
                source: data.source.epoch.0,
                target: data.target.epoch.0,
                variant: data.beacon_block_root.0[0],
            }),
            _ => None,
        }
    }

    /// EIP-3076: whether both together get their key slashed.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        match (*self, *other) {
            (Self::Block { slot: a, .. }, Self::Block { slot: b, .. }) => a == b && self != other,
            (Self::Vote { source: s1, target: t1, .. }, Self::Vote { source: s2, target: t2, .. }) => {
                (t1 == t2 && self != other) || (s1 < s2 && t2 < t1) || (s2 < s1 && t1 < t2)
            }
            _ => false,
        }
    }
}

/// One that was released.
#[derive(Clone, Debug)]
pub struct Released {
    /// What was signed.
    pub message: Message,
    /// By whom, and when.
    pub by: String,
}

/// All that one key has signed.
#[derive(Default)]
pub struct Signed {
    blocks: BTreeMap<u64, Vec<Released>>,
    votes: Vec<Released>,
}

impl Signed {
    /// What was signed before and cannot stand beside this.
    pub fn conflict(&self, message: &Message) -> Option<&Released> {
        let conflicts = |released: &&Released| released.message.conflicts_with(message);
        match message {
            Message::Block { slot, .. } => self.blocks.get(slot).and_then(|all| all.iter().find(conflicts)),
            Message::Vote { .. } => self.votes.iter().find(conflicts),
        }
    }

    /// One of the last that were signed: anyone who wants to see a key slashed asks for what conflicts with it.
    pub fn some(&self, random: &mut Random) -> Option<Message> {
        let blocks = self.blocks.values().rev().take(10).filter_map(|all| all.first());
        let all: Vec<Message> = blocks.chain(self.votes.iter().rev().take(10)).map(|one| one.message).collect();
        (!all.is_empty()).then(|| random.pick(&all))
    }

    /// Adds one.
    pub fn add(&mut self, released: Released) {
        match released.message {
            Message::Block { slot, .. } => {
                let all = self.blocks.entry(slot).or_default();
                if !all.iter().any(|one| one.message == released.message) {
                    all.push(released);
                }
            }
            Message::Vote { .. } => {
                if !self.votes.iter().any(|one| one.message == released.message) {
                    self.votes.push(released);
                }
            }
        }
    }

    /// The highest block, source and target.
    pub fn highest(&self) -> (Option<u64>, Option<(u64, u64)>) {
        let block = self.blocks.keys().next_back().copied();
        let votes = self.votes.iter().filter_map(|one| match one.message {
            Message::Vote { source, target, .. } => Some((source, target)),
            Message::Block { .. } => None,
        });
        let vote = votes.reduce(|(s1, t1), (s2, t2)| (s1.max(s2), t1.max(t2)));
        (block, vote)
    }
}
