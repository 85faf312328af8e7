//! The operators of an enclave, from its measured configuration.
//!
//! A document binds the digest of the configuration, and no list of operators: whoever wants to know them needs the file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_protocol::Configuration;
use casemate_protocol::command::{Command, OperatorKey};

use crate::exit::refused;
use crate::input;
use crate::util::{plural, quoted, sha256};

/// A configuration, for its operators.
pub struct Operators(Configuration);

impl Operators {
    /// From the file that the image was built with.
    pub fn read(path: &Path) -> Result<Self> {
        let max_len = u64::try_from(casemate_config::MAX_FILE_LEN)?;
        let bytes = input::read_blob(path, max_len)?;
        let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is no UTF-8", path.display()))?;
        let configuration = casemate_config::configuration(text, sha256(&bytes));
        configuration.map(Self).with_context(|| format!("in {}", path.display()))
    }

    /// Whether the configuration is the one of the enclave that commands are for, as far as a file of commands tells.
    pub fn check_commands(&self, commands: &[Command]) -> Result<()> {
        let Configuration { group, network, .. } = &self.0;
        for command in commands {
            if command.group != *group || command.genesis_validators_root != network.genesis_validators_root() {
                bail!(
                    "the command is for the group {} on the chain {}; the configuration is of the group {} on the chain {}",
                    quoted(&command.group),
                    command.genesis_validators_root,
                    quoted(group),
                    network.genesis_validators_root()
                );
            }
        }
        Ok(())
    }

    /// Whether the configuration is the one that an enclave's document binds.
    pub fn check_digest(&self, stated: casemate_protocol::Root) -> Result<()> {
        if self.0.sha256 != stated {
            return refused(format!(
                "the configuration has the digest {}; the enclave states {stated}: it has another configuration",
                self.0.sha256
            ));
        }
        Ok(())
    }

    /// Refuses a signer whom the configuration does not name.
    pub fn check_signer(&self, operator: &OperatorKey) -> Result<()> {
        if !self.0.operators.keys.contains(operator) {
            return refused(format!(
                "{operator} is no operator of this configuration, which names {}. The enclave refuses every command with such a signature",
                plural(self.0.operators.keys.len(), "operator")
            ));
        }
        Ok(())
    }

    /// Whose signatures are missing, beside these valid ones.
    pub fn missing(&self, signers: &BTreeSet<OperatorKey>) -> String {
        let casemate_protocol::configuration::Operators { threshold, keys } = &self.0.operators;
        let needed = usize::try_from(*threshold).unwrap_or(usize::MAX);
        let signed = keys.iter().filter(|key| signers.contains(*key)).count();
        let mut out = format!("{signed} of {} have signed; {needed} are needed\n", plural(keys.len(), "operator"));
        if signed < needed {
            let _ = writeln!(out, "{} missing, of:", plural(needed.saturating_sub(signed), "signature"));
            for key in keys.iter().filter(|key| !signers.contains(*key)) {
                let _ = writeln!(out, "  {key}");
            }
        }
        for stranger in signers.iter().filter(|key| !keys.contains(key)) {
            let _ = writeln!(
                out,
                "{stranger} IS NO OPERATOR: the enclave refuses the command with this signature. Take it out: casemate command unsign"
            );
        }
        out
    }
}
