//! What is asked to be signed.

use std::fmt::Write;

/// Which duties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duties {
    /// Attestations; all keys of an epoch sign one root, as since Electra.
    OneRoot,
    /// Attestations, no two roots alike.
    AllDifferent,
    /// Of ten duties seven attestations of one root; a selection proof, a RANDAO reveal, a sync committee's message.
    Mixed,
}

impl Duties {
    /// As the report names them.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneRoot => "one_root_per_slot",
            Self::AllDifferent => "all_roots_different",
            Self::Mixed => "mixed_duties",
        }
    }
}

/// A chain, as far as requests name it.
pub struct Chain {
    root: String,
    fork_info: String,
}

impl Chain {
    /// By its genesis validators root.
    pub fn new(root: String) -> Self {
        let fork_info = format!(
            r#""fork_info":{{"fork":{{"previous_version":"0x00000000","current_version":"0x00000000","epoch":"0"}},"genesis_validators_root":"{root}"}}"#
        );
        Self { root, fork_info }
    }

    /// A vote for `target`; its source does not matter as long as it never falls.
    pub fn attestation(&self, source: u64, target: u64, head: u64) -> String {
        let root = &self.root;
        format!(
            r#"{{"type":"ATTESTATION","attestation":{{"slot":"{}","index":"0","beacon_block_root":"0x{head:064x}","source":{{"epoch":"{source}","root":"{root}"}},"target":{{"epoch":"{target}","root":"{root}"}}}},{}}}"#,
            target.saturating_mul(32),
            self.fork_info
        )
    }

    /// The duty number `turn` of a key at an epoch. `key` tells keys apart.
    pub fn duty(&self, duties: Duties, key: u64, epoch: u64, turn: u64) -> String {
        let mut body = String::new();
        match (duties, turn % 10) {
            (Duties::AllDifferent, _) => {
                let head = key.rotate_left(32) ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                return self.attestation(0, epoch, head);
            }
            (Duties::Mixed, 7) => {
                let slot = epoch.saturating_mul(32);
                let _ = write!(body, r#"{{"type":"AGGREGATION_SLOT","aggregation_slot":{{"slot":"{slot}"}}"#);
            }
            (Duties::Mixed, 8) => {
                let _ = write!(body, r#"{{"type":"RANDAO_REVEAL","randao_reveal":{{"epoch":"{epoch}"}}"#);
            }
            (Duties::Mixed, 9) => {
                let slot = epoch.saturating_mul(32);
                let _ = write!(
                    body,
                    r#"{{"type":"SYNC_COMMITTEE_MESSAGE","sync_committee_message":{{"slot":"{slot}","beacon_block_root":"0x{epoch:064x}"}}"#
                );
            }
            _ => return self.attestation(0, epoch, epoch),
        }
        let _ = write!(body, ",{}}}", self.fork_info);
        body
    }
}
