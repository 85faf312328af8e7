//! The command line.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result};
use casemate_protocol::Network;
use clap::{Parser, ValueEnum};

/// The whole Casemate signer on this machine: vault, broker, proxy and a local KMS as processes, reached over Unix sockets as
/// over vsock. Keys are imported, sealed and unsealed as in an enclave. For development: the KMS and the NSM are programs, and
/// the disk is trusted.
#[derive(Parser)]
#[command(name = "casemate-dev", version = casemate_version::VERSION)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Options {
    /// Where to serve the Web3Signer API
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,
    /// How many of the interop keys to have, as every client's devnet has them; those that are missing are imported at the
    /// start, deleted ones too
    #[arg(long, value_name = "N", default_value_t = 64, conflicts_with = "keystores")]
    pub interop_keys: u32,
    /// Load EIP-2335 keystores from this folder instead
    #[arg(long, value_name = "DIR", requires = "passwords")]
    pub keystores: Option<PathBuf>,
    /// Folder with the keystores' passwords, or one file with the password of all
    #[arg(long, value_name = "DIR", requires = "keystores")]
    pub passwords: Option<PathBuf>,
    /// What the keystores' keys have signed so far: an EIP-3076 file
    #[arg(long, value_name = "FILE")]
    pub slashing_protection: Option<PathBuf>,
    /// Let keystores' keys sign although no one knows what they have signed so far. This gets validators slashed
    #[arg(long = "accept-unknown-history", alias = "no-history-i-accept")]
    pub no_history_i_accept: bool,
    /// mainnet, hoodi, sepolia, gnosis, chiado, or a TOML file
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "hoodi")]
    pub network: String,
    /// Where watermarks, sealed keys, the local KMS's key and the operator's key are kept
    #[arg(long, value_name = "DIR", default_value = ".casemate-dev")]
    pub data_dir: PathBuf,
    /// Hand the keys to the vault in clear, without KMS and sealing
    #[arg(long)]
    pub plain: bool,
    /// Address that deposits of generated keys may withdraw to (casemate keys generate); once for each
    #[arg(long, value_name = "0xADDRESS", conflicts_with = "plain")]
    pub withdrawal_address: Vec<String>,
    /// What the enclave allows: a TOML file of the [policy] table, in place of this stack's own, which lets all keys leave
    #[arg(long, value_name = "FILE.toml", conflicts_with = "plain")]
    pub policy: Option<PathBuf>,
    /// Sign duties however old: for replays and test vectors
    #[arg(long)]
    pub any_age: bool,
    /// What stands for the past: a record in a file on this disk (signs at once after each start), an etcd that is started with
    /// the stack (Debian's package etcd-server), or solo, trusted time alone (signs two to three epochs after each start)
    #[arg(long, value_name = "KIND", default_value = "file", conflicts_with = "plain")]
    pub fence: FenceKind,
    /// With --fence etcd: the folder of its etcd in the data directory. Another name is another cluster: to move a record from one to the
    /// other
    #[arg(long, value_name = "NAME", default_value = "etcd")]
    pub etcd_folder: String,
    /// Start everything as it is: the fence's record is neither made nor waited for, and no key is imported. Operators' commands do what
    /// there is to do
    #[arg(long, conflicts_with = "plain")]
    pub as_it_is: bool,
    /// Enclaves of the group, all behind the one proxy: one holds the fence, the others stand by. With more than one no file of
    /// watermarks is kept, as in enclaves
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4), conflicts_with = "plain")]
    pub enclaves: u8,
    /// Run the enclave for real: build its image and boot it in QEMU's nitro-enclave machine, some 25 times slower than this one. Takes
    /// what tests/tools/nitro-vm/tools builds
    #[arg(long, conflicts_with_all = ["plain", "workers"])]
    pub vm: bool,
    /// Say what runs where, what is a fake, and which duty to try
    #[arg(long)]
    pub verbose_banner: bool,
    /// Threads that sign [default: one for each core]
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    /// Sign proofs of validation (POST /api/v1/eth2/ext/sign)
    #[arg(long)]
    pub proof_of_validation: bool,
    /// The vault's clock stands still at this Unix time, in milliseconds: for tests with recorded requests
    #[arg(long, value_name = "MS", hide = true, requires = "plain")]
    pub fixed_time_ms: Option<u64>,
    /// With --plain: no sandbox and no file of watermarks either, to measure what they cost. Nothing that was signed is remembered
    #[arg(long, hide = true, requires = "plain")]
    pub bare: bool,
    /// Options of casemate-proxy, behind --
    #[arg(last = true, value_name = "PROXY OPTIONS")]
    pub proxy: Vec<String>,
}

/// Kinds of fence that the stack can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FenceKind {
    /// A record in a file.
    File,
    /// A record in etcd.
    Etcd,
    /// None: trusted time.
    Solo,
}

impl FenceKind {
    /// As the measured configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Etcd => "etcd",
            Self::Solo => "solo",
        }
    }
}

impl Options {
    /// Whether each signature is in a file on this disk before it is out: the next start needs no floors then.
    pub fn journals(&self) -> bool {
        (self.plain && !self.bare) || (!self.vm && self.enclaves == 1 && self.fence == FenceKind::File)
    }

    /// Whether blocks and votes of any age are signed. Where the clock stands still, duties do not come when they are due.
    pub fn signs_any_age(&self) -> bool {
        self.any_age || self.fixed_time_ms.is_some()
    }

    /// The network by name or from a file.
    pub fn network(&self) -> Result<Network> {
        if let Some(network) = casemate_config::named(&self.network) {
            return Ok(network?);
        }
        let known: Vec<&str> = casemate_config::NAMED.iter().map(|(name, _)| *name).collect();
        let text = std::fs::read_to_string(&self.network).with_context(|| {
            format!("--network {}: neither one of {} nor a readable file", self.network, known.join(", "))
        })?;
        casemate_config::parse(&text).with_context(|| format!("in {}", self.network))
    }
}
