//! `casemate-init`: process 1 of the image.
//!
//! It mounts the minimum, says that the enclave is up, refuses to go on without the NSM's entropy, reads the measured
//! configuration, starts both compartments, each as a user of its own in a folder of its own, and ends the machine
//! when either ends. It never restarts them: what an operator attested is one boot.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use casemate_init::{BROKER, Compartment, HEARTBEAT_PORT, PARENT_CID, VAULT, enter, heartbeat, region};
use casemate_protocol::{Bytes, Configuration};
use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::WaitOptions;
use rustix::rand::GetRandomFlags;
use rustix::system::RebootCommand;
use sha2::{Digest, Sha256};
use vsock::{VsockAddr, VsockStream};

const CONFIGURATION: &str = "/etc/casemate.toml";
/// The only source of entropy that may seed the kernel's generator here.
const ENTROPY: &str = "nsm-hwrng";
/// Longest wait for the parent's answer to the heartbeat.
const TIMEOUT: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let words: Vec<&str> = arguments.iter().skip(1).filter_map(|word| word.to_str()).collect();
    // Only where it fails does entering come back.
    let failed = match words.as_slice() {
        ["compartment", "vault"] => Some(enter(&VAULT, &[])),
        ["compartment", "broker", region] => Some(enter(&BROKER, &["--kms-region", region])),
        _ => None,
    };
    if let Some(error) = failed {
        eprintln!("casemate-init: {error:#}");
        std::process::exit(1);
    }
    if std::process::id() != 1 {
        eprintln!("casemate-init: this is process 1 of an enclave, and nothing else");
        std::process::exit(2);
    }
    let error = run().unwrap_or_else(|error| format!("{error:#}"));
    eprintln!("casemate-init: {error}; the enclave ends");
    // A machine that restarts is an enclave that ends.
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // A process 1 that returns ends the machine too: the kernel panics.
}

/// Why the enclave ends.
fn run() -> Result<String> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("dev", "/dev", "devtmpfs", flags, None).context("mounting /dev")?;
    let flags = flags | MountFlags::NODEV | MountFlags::RDONLY;
    rustix::mount::mount("sys", "/sys", "sysfs", flags, None).context("mounting /sys")?;
    entropy()?;
    beat()?;
    let configuration = configuration()?;
    lend_nsm()?;
    rustix::mount::unmount("/sys", UnmountFlags::empty()).context("unmounting /sys")?;

    let (vault_end, broker_end) = UnixStream::pair().context("the compartments' socket")?;
    let mut vault = start(&VAULT, &["vault"], Stdio::piped(), OwnedFd::from(vault_end).into())?;
    let region = region(&configuration)?;
    let broker = start(&BROKER, &["broker", &region], OwnedFd::from(broker_end).into(), Stdio::null())?;
    // A vault that has died already says why itself; its end is waited for below.
    let _ = vault.stdin.take().context("the vault's pipe")?.write_all(&configuration.encode());
    drop(configuration);
    rustix::mount::unmount("/dev", UnmountFlags::DETACH).context("unmounting /dev")?;
    rustix::mount::mount_remount("/", MountFlags::RDONLY, "").context("making the root read-only")?;
    wait(&vault, &broker)
}

/// The kernel's generator must be seeded, and by the NSM: the parent sees and sets whatever else there might be.
fn entropy() -> Result<()> {
    let path = "/sys/class/misc/hw_random/rng_current";
    let source = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    if source.trim_end() != ENTROPY {
        bail!("the kernel takes entropy from {:?}, not from {ENTROPY}", source.trim_end());
    }
    // What the kernel has gathered elsewhere would do too by its own count: the NSM's is in it before any key is made.
    let mut seed = [0; 64];
    let device = File::open("/dev/hwrng").context("opening /dev/hwrng")?;
    (&device).read_exact(&mut seed).context("reading the NSM's entropy")?;
    if seed == [0; 64] {
        bail!("the NSM's entropy is all zeros");
    }
    let mut pool = File::options().write(true).open("/dev/urandom").context("opening /dev/urandom")?;
    pool.write_all(&seed).context("giving the NSM's entropy to the kernel")?;
    // Blocks until it is seeded.
    rustix::rand::getrandom(&mut [0; 32], GetRandomFlags::empty()).context("waiting for entropy").map(drop)
}

fn beat() -> Result<()> {
    let parent = VsockStream::connect(&VsockAddr::new(PARENT_CID, HEARTBEAT_PORT))
        .with_context(|| format!("connecting to the parent, CID {PARENT_CID} port {HEARTBEAT_PORT}"))?;
    parent.set_read_timeout(Some(TIMEOUT)).context("the heartbeat's time-out")?;
    heartbeat(parent)
}

fn configuration() -> Result<Configuration> {
    let text = fs::read_to_string(CONFIGURATION).with_context(|| format!("reading {CONFIGURATION}"))?;
    let digest = Bytes(Sha256::digest(text.as_bytes()).into());
    casemate_config::configuration(&text, digest).with_context(|| format!("in {CONFIGURATION}"))
}

/// The NSM in the vault's own folder, for its user alone.
fn lend_nsm() -> Result<()> {
    let device = fs::metadata("/dev/nsm").context("there is no /dev/nsm")?.rdev();
    let (path, user) = (PathBuf::from(VAULT.root).join("dev/nsm"), VAULT.user);
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device)
        .with_context(|| format!("making {}", path.display()))?;
    rustix::fs::chown(&path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))
        .with_context(|| format!("giving {} to the vault", path.display()))
}

/// Starts this program again, which becomes the compartment.
fn start(compartment: &Compartment<'_>, words: &[&str], stdin: Stdio, stdout: Stdio) -> Result<Child> {
    Command::new("/init")
        .arg("compartment")
        .args(words)
        .env_clear()
        .stdin(stdin)
        .stdout(stdout)
        // For its last words; not shared with the other one, and nothing can be read from it.
        .stderr(File::options().write(true).open("/dev/console").context("opening the console")?)
        .spawn()
        .with_context(|| format!("starting {}", compartment.program))
}

/// Waits until a process ends: either compartment, whichever it is.
fn wait(vault: &Child, broker: &Child) -> Result<String> {
    loop {
        let Some((pid, status)) = rustix::process::wait(WaitOptions::empty()).context("waiting")? else { continue };
        let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or_default();
        let name = match pid {
            pid if pid == vault.id() => "vault",
            pid if pid == broker.id() => "broker",
            // An orphan; nobody can have made one.
            _ => continue,
        };
        return Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("the {name} has ended with code {code}"),
            (_, Some(signal)) => format!("the {name} was ended by signal {signal}"),
            _ => format!("the {name} has ended"),
        });
    }
}
