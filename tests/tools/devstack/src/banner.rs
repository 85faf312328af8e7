//! What the stack tells people: what runs where, a request to try, and what is a fake.

use std::fmt::Write;

use casemate_protocol::{Epoch, Network, PublicKey};

use crate::cli::FenceKind;
use crate::profile;

/// A running part.
pub struct Part {
    pub name: &'static str,
    pub pid: u32,
    pub does: String,
}

/// Everything that the banner speaks of.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Running<'a> {
    pub network: &'a Network,
    pub now_ms: u64,
    pub url: String,
    pub keys: u32,
    pub keys_without_history: u32,
    pub first_key: Option<PublicKey>,
    pub interop: bool,
    /// Whether blocks and votes of any age are signed.
    pub any_age: bool,
    pub parts: Vec<Part>,
    pub data_dir: String,
    /// Folder of the software NSM's root and measurements.
    pub nsm: String,
    pub mutual_tls: bool,
    /// Nothing with keys in clear.
    pub fence: Option<FenceKind>,
    pub enclaves: u8,
    /// Whether the enclaves are machines of QEMU.
    pub vm: bool,
    /// Where keys are sealed.
    pub operator_key: Option<String>,
    /// The file with the profile of this stack.
    pub profiles: String,
}

/// What everybody gets to read.
pub fn short(running: &Running) -> String {
    let mut out = String::new();
    let network = running.network;
    let slot = network.slot_at(running.now_ms);
    let Running { url, keys, .. } = running;
    let (name, epoch) = (network.name(), network.epoch_of(slot));
    let _ = writeln!(out, "\nCasemate development stack: {keys} keys on {name}, slot {slot}, epoch {epoch}");
    let _ = writeln!(out, "Web3Signer API on {url}\n");
    left_out(running, &mut out);
    let _ = writeln!(
        out,
        "  casemate --profiles {} --profile {} status{}\n\n\
         For development alone: enclave, NSM and KMS are programs of this machine. --verbose-banner says what runs where and what is a fake.\n\n\
         Ctrl-C ends it.",
        quoted(&running.profiles),
        profile::NAME,
        tls_options(running)
    );
    out
}

/// Keys that do not sign.
fn left_out(running: &Running, out: &mut String) {
    if running.keys_without_history > 0 {
        let _ = writeln!(
            out,
            "\n{} keys are left out and not listed: nobody knows what they have signed. Give their history with\n\
             --slashing-protection FILE, or accept the risk with --accept-unknown-history.\n",
            running.keys_without_history
        );
    }
}

/// All of it.
pub fn verbose(running: &Running) -> String {
    let mut out = String::new();
    let network = running.network;
    let slot = network.slot_at(running.now_ms);
    let epoch = network.epoch_of(slot);
    let Running { url, keys, .. } = running;
    let _ =
        writeln!(out, "\nCasemate development stack: {keys} keys on {}, slot {slot}, epoch {epoch}", network.name());
    let _ = writeln!(out, "Web3Signer API on {url}\n");
    for part in &running.parts {
        let _ = writeln!(out, "  {:<7} pid {:<8} {}", part.name, part.pid, part.does);
    }
    left_out(running, &mut out);
    if let Some(key) = running.first_key {
        // With interop keys it is a vote, which has its time.
        let until = match (running.interop, running.any_age) {
            (true, false) => format!(" (until the end of epoch {}: a vote has its time)", epoch.saturating_add(1)),
            _ => String::new(),
        };
        let _ = writeln!(out, "\nA duty, signed inside the vault{until}:\n\n{}", curl(running, key, epoch));
    }
    let _ = writeln!(
        out,
        "\nIts attestation document, compared with this stack's own root and measurements (in this checkout, casemate is\n\
         `cargo run --release -p casemate --`; without --root it is compared with AWS's root, and refused):\n\n{}\n\n\
         The same by a profile, which all of casemate's commands take:\n\n\
         casemate --profiles {} --profile {} status",
        attest(running),
        quoted(&running.profiles),
        profile::NAME
    );
    if let Some(key) = &running.operator_key {
        let _ = writeln!(
            out,
            "\nThe keys are sealed under a data key of the local KMS, for these measurements alone. To import more, as the operator\n\
             whose key the measured configuration names:\n\n\
             casemate keys import {} \\\n  --root {} \\\n  --measurements {} \\\n  --operator-key {} \\\n  \
             --keystores DIR --slashing-protection FILE.json",
            running.url,
            quoted(&format!("{}/root.pem", running.nsm)),
            quoted(&format!("{}/measurements.json", running.nsm)),
            quoted(key)
        );
    }
    let _ = writeln!(
        out,
        "\nWhat is not the real thing here: {}, so the machine's root can read the keys;\n\
         {}; the NSM is a program with a root of its own{}; the clock is this machine's{};\n\
         {}.\n\
         What is: the vault, the broker, the proxy, the frames between them and every slashing rule.\n\n\
         Ctrl-C ends it.",
        if running.vm { "the enclave is a machine that QEMU emulates" } else { "there is no enclave, only processes" },
        match (running.interop, running.operator_key.is_some()) {
            (true, _) => "the interop keys are public knowledge",
            (false, false) => "the keys came from keystores on this disk, and this program keeps them in memory",
            (false, true) => "the keys came from keystores on this disk",
        },
        if running.operator_key.is_some() { ", and so is KMS, whose key lies beside the blobs" } else { "" },
        if running.any_age { ", and blocks and votes of any age are signed" } else { "" },
        past(running)
    );
    out
}

/// What stands for the past, and what that does not stop.
fn past(running: &Running) -> String {
    let data_dir = &running.data_dir;
    match running.fence {
        None => format!(
            "the watermarks are kept in\n{data_dir}, on a disk that is trusted: anyone who restores an old copy can get a validator \
             slashed"
        ),
        Some(FenceKind::File) if running.enclaves == 1 => format!(
            "the fence's record and the watermarks are files in\n{data_dir}: a second enclave on that record is kept out, but anyone who \
             restores an old\ncopy of that folder, or runs a copy of it, can get a validator slashed"
        ),
        Some(FenceKind::File) => format!(
            "the fence's record is a file in\n{data_dir}: anyone who restores an old copy of it can get a validator slashed"
        ),
        Some(FenceKind::Etcd) => {
            format!(
                "the fence's etcd is one node, and its data is in\n{data_dir}: anyone who restores an old copy can get a validator slashed"
            )
        }
        Some(FenceKind::Solo) => {
            "no store keeps clones from signing: a second stack with these keys can get a validator slashed".to_owned()
        }
    }
}

fn attest(running: &Running) -> String {
    let Running { url, nsm, .. } = running;
    let tls = tls_options(running);
    let (root, measurements) = (quoted(&format!("{nsm}/root.pem")), quoted(&format!("{nsm}/measurements.json")));
    format!("casemate attest fetch {url} \\\n  --root {root} \\\n  --measurements {measurements}{tls}")
}

/// What TLS needs, which only its owner knows. The document proves itself; TLS only has to be passable.
fn tls_options(running: &Running) -> String {
    let mut tls = String::new();
    if running.url.starts_with("https") {
        tls.push_str(" \\\n  --tls-ca AUTHORITY-OF-THE-PROXYS-CERTIFICATE.pem");
    }
    if running.mutual_tls {
        tls.push_str(" \\\n  --tls-certificate YOUR-CERTIFICATE.pem --tls-key YOUR-KEY.pem");
    }
    tls
}

/// For a shell: as it is, or in quotes.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
    if path.chars().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

fn curl(running: &Running, key: PublicKey, epoch: Epoch) -> String {
    let network = running.network;
    let root = network.genesis_validators_root();
    let version = network.version_of(network.fork_at(epoch)).unwrap_or_default();
    let fork_info = format!(
        r#""fork_info":{{"fork":{{"previous_version":"{version}","current_version":"{version}","epoch":"0"}},"genesis_validators_root":"{root}"}}"#
    );
    let body = if running.interop {
        let slot = epoch.0.saturating_mul(network.slots_per_epoch());
        let source = epoch.0.saturating_sub(1);
        format!(
            r#"{{"type":"ATTESTATION",{fork_info},"attestation":{{"slot":"{slot}","index":"0","beacon_block_root":"{root}","source":{{"epoch":"{source}","root":"{root}"}},"target":{{"epoch":"{epoch}","root":"{root}"}}}}}}"#
        )
    } else {
        // With keys that may be in earnest use, nothing that could be slashed.
        format!(r#"{{"type":"RANDAO_REVEAL",{fork_info},"randao_reveal":{{"epoch":"{epoch}"}}}}"#)
    };
    format!(
        "curl -s {}/api/v1/eth2/sign/{key} \\\n  -H 'Content-Type: application/json' -H 'Accept: application/json' \\\n  -d '{body}'",
        running.url
    )
}
