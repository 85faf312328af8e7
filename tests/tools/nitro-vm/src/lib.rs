//! Enclave images, booted for real: QEMU's `nitro-enclave` machine, with an NSM that signs under a test root, and
//! vhost-device-vsock, which makes the parent's end of vsock a Unix socket. `tests/tools/nitro-vm/tools` builds both.
#![forbid(unsafe_code)]

mod images;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use casemate_nsm::{Authority, Chain};
use time::OffsetDateTime;

pub use images::Images;

/// Where the image's broker listens, and where it dials out.
pub const PORT: u32 = 5005;
/// Where it dials out.
pub const EGRESS_PORT: u32 = 5006;
const HEARTBEAT_PORT: u32 = 9000;
const HEARTBEAT: u8 = 0xb7;
/// Each machine of this host needs one of its own towards vhost-device-vsock.
const GUEST_CID: u32 = 16;

/// What `tests/tools/nitro-vm/tools` has built.
#[derive(Clone)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// What is in the cache; nothing where it was not built.
    pub fn find() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
        let out = Command::new(script).arg("--cached").stderr(Stdio::null()).output().ok()?;
        let folder = PathBuf::from(String::from_utf8(out.stdout).ok()?.trim_end());
        (out.status.success() && folder.is_dir()).then_some(Self { folder })
    }
}

/// The device that attests.
pub enum Nsm<'a> {
    /// As QEMU has it: its documents are not signed.
    Unsigned,
    /// Signs with a chain made now under this root.
    Signed(&'a Authority),
}

/// A machine that runs, or has ended.
pub struct Machine {
    folder: PathBuf,
    qemu: Child,
    vsock: Child,
    beats: Arc<AtomicU32>,
}

impl Machine {
    /// Boots an image. `folder` is made for this machine; `number` tells several of one parent apart.
    pub fn boot(tools: &Tools, image: &Path, folder: &Path, number: u8, nsm: &Nsm<'_>) -> Result<Self> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let path = |name: &str| folder.join(name);
        let log = |name: &str| File::create(path(name)).with_context(|| format!("making {name}"));
        let id = format!("i-0ca5e0ca5e0ca5e00-enc{:016x}", u64::from(std::process::id()) << 8 | u64::from(number));

        let uds = path("vm.vsock");
        let vsock = Command::new(tools.folder.join("vhost-device-vsock"))
            .arg("--vm")
            .arg(format!("guest-cid={GUEST_CID},socket={},uds-path={}", path("vhost.sock").display(), uds.display()))
            .stdin(Stdio::null())
            .stdout(log("vsock.log")?)
            .stderr(log("vsock-errors.log")?)
            .process_group(0)
            .spawn()
            .context("starting vhost-device-vsock")?;
        let mut vsock = Running(Some(vsock));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !path("vhost.sock").exists() {
            if let Some(status) = vsock.child()?.try_wait()? {
                bail!("vhost-device-vsock has ended: {status}; see {}", path("vsock-errors.log").display());
            }
            if Instant::now() > deadline {
                bail!("vhost-device-vsock does not listen");
            }
            sleep(Duration::from_millis(5));
        }
        let beats = answer_heartbeats(&uds)?;

        let mut machine = Command::new(tools.folder.join("qemu-system-x86_64"));
        machine
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "256M",
                "-smp",
                "2",
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-M", &format!("nitro-enclave,vsock=c,id={id}")])
            .arg("-kernel")
            .arg(image)
            .arg("-chardev")
            .arg(format!("socket,id=c,path={}", path("vhost.sock").display()))
            .arg("-serial")
            .arg(format!("file:{}", path("console.log").display()))
            .arg("-L")
            .arg(&tools.folder)
            // Emulated, the machine cannot find out how fast its own clock runs. This is not measured.
            .args(["-append", &format!("tsc_early_khz={} tsc=reliable", khz()?)])
            .stdin(Stdio::null())
            .stdout(log("qemu.log")?)
            .stderr(log("qemu-errors.log")?)
            .process_group(0);
        if let Nsm::Signed(root) = nsm {
            let folder = path("nsm");
            sign_as(root, &id, &folder)?;
            machine.args(["-global", &format!("virtio-nsm-device.sign-dir={}", folder.display())]);
        }
        let qemu = machine.spawn().context("starting QEMU")?;
        Ok(Self { folder: folder.to_owned(), qemu, vsock: vsock.keep()?, beats })
    }

    /// Where a proxy reaches the enclave.
    pub fn address(&self) -> String {
        format!("hybrid:{}:{PORT}", self.folder.join("vm.vsock").display())
    }

    /// Where the enclave's egress arrives, once somebody listens.
    pub fn egress(folder: &Path) -> PathBuf {
        folder.join(format!("vm.vsock_{EGRESS_PORT}"))
    }

    /// A connection to a port of the guest.
    pub fn connect(&self, port: u32) -> Result<UnixStream> {
        connect(&self.folder.join("vm.vsock"), port)
    }

    /// How often the enclave has said that it is up.
    pub fn heartbeats(&self) -> u32 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Waits until the enclave has said that it is up.
    pub fn await_heartbeat(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.heartbeats() == 0 {
            if self.ended()? || Instant::now() > deadline {
                bail!("no heartbeat; the console says:\n{}", self.console());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether the machine has ended.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.qemu.try_wait().context("looking after QEMU")?.is_some())
    }

    /// What the guest has written to its console.
    pub fn console(&self) -> String {
        let said = fs::read(self.folder.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// What there is to see of a machine that does not do what it should.
    pub fn told(&mut self) -> String {
        let read =
            |name: &str| String::from_utf8_lossy(&fs::read(self.folder.join(name)).unwrap_or_default()).into_owned();
        let [qemu, vsock, more] = ["qemu-errors.log", "vsock.log", "vsock-errors.log"].map(read);
        let (console, beats) = (self.console(), self.heartbeats());
        let ended = self.qemu.try_wait();
        format!("ended: {ended:?}; heartbeats: {beats}; console: {console}; QEMU: {qemu}; vsock: {vsock}{more}")
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// As if the plug were pulled.
    pub fn power_off(&mut self) {
        for child in [&mut self.qemu, &mut self.vsock] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// Ended where what follows fails.
struct Running(Option<Child>);

impl Running {
    fn child(&mut self) -> Result<&mut Child> {
        self.0.as_mut().context("no process")
    }

    fn keep(mut self) -> Result<Child> {
        self.0.take().context("no process")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A connection to a port of the guest behind this socket.
pub fn connect(uds: &Path, port: u32) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(uds).context("connecting to vhost-device-vsock")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("the guest does not take the connection")?;
        line.extend(byte);
    }
    if !line.starts_with(b"OK ") {
        bail!("the guest refused the connection: {}", String::from_utf8_lossy(&line));
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// The parent's answer to each heartbeat, as nitro-cli gives it; the number of those given.
fn answer_heartbeats(uds: &Path) -> Result<Arc<AtomicU32>> {
    let mut name = uds.as_os_str().to_owned();
    name.push(format!("_{HEARTBEAT_PORT}"));
    let listener = UnixListener::bind(PathBuf::from(name)).context("listening for the heartbeat")?;
    let beats = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&beats);
    // It ends with the process: the socket's file goes with the machine's folder.
    std::thread::spawn(move || {
        while let Ok((mut guest, _)) = listener.accept() {
            let mut byte = [0];
            if guest.read_exact(&mut byte).is_ok() && byte == [HEARTBEAT] && guest.write_all(&byte).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    Ok(beats)
}

/// A chain under `root`, as the patched QEMU reads it.
fn sign_as(root: &Authority, module_id: &str, folder: &Path) -> Result<()> {
    let chain = Chain::issue(root, module_id, OffsetDateTime::now_utc())?;
    fs::create_dir_all(folder)?;
    for (number, certificate) in chain.bundle.iter().enumerate() {
        fs::write(folder.join(format!("ca-{number}.der")), certificate)?;
    }
    fs::write(folder.join("leaf.der"), &chain.leaf.der)?;
    fs::write(folder.join("key.pem"), chain.leaf.key.serialize_pem())?;
    Ok(())
}

/// How fast this host's time stamp counter runs.
fn khz() -> Result<u64> {
    let text = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz")).context("no «cpu MHz» in /proc/cpuinfo")?;
    let (_, mhz) = line.split_once(':').context("the processor's speed")?;
    let (whole, part) = mhz.trim().split_once('.').unwrap_or((mhz.trim(), "0"));
    let thousandths: String = format!("{part}000").chars().take(3).collect();
    Ok(whole.parse::<u64>()?.saturating_mul(1000).saturating_add(thousandths.parse()?))
}
