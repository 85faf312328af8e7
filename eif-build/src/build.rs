//! The image: programs, ramdisks, EIF.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use casemate_protocol::{Bytes, Configuration};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::cpio::{Entry, archive};
use crate::eif::{self, Kind};
use crate::kernel::run;

/// What the kernel is told. `reboot=t`: init ends the machine by a restart, which ends the enclave; a kernel that panics does it at
/// once. The CPU's own random numbers are not trusted to seed the kernel: the NSM's do.
pub const COMMAND_LINE: &str = "reboot=t panic=-1 console=ttyS0 quiet random.trust_cpu=off";
/// Static and position-independent, from one C library that is pinned.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "image";
/// Messages that cargo sends, about: for the bar.
const STEPS: u64 = 330;

/// The programs of an image.
pub struct Programs {
    /// Process 1.
    pub init: Vec<u8>,
    /// The key compartment.
    pub vault: Vec<u8>,
    /// The network compartment.
    pub broker: Vec<u8>,
}

/// A checkout of the project, and where what is compiled from it goes.
pub struct Checkout {
    /// Its root.
    pub root: PathBuf,
    /// Folder for what cargo makes.
    pub target: PathBuf,
}

impl Checkout {
    /// The checkout that `folder` lies in.
    pub fn find(folder: &Path) -> Result<Self> {
        let folder = fs::canonicalize(folder).with_context(|| format!("finding {}", folder.display()))?;
        let root = folder.ancestors().find(|folder| folder.join("enclave/init/Cargo.toml").exists());
        let root = root
            .with_context(|| format!("{} lies in no checkout of Casemate; --checkout names one", folder.display()))?;
        Ok(Self { root: root.to_owned(), target: root.join("target/eif") })
    }

    /// The image's programs.
    pub fn programs(&self) -> Result<Programs> {
        let [init, vault, broker] = self.compile(["casemate-init", "casemate-vault", "casemate-broker"])?;
        Ok(Programs { init, vault, broker })
    }

    /// Compiles packages of the workspace as for an image: what comes out depends on the source, the lock file and the tools,
    /// not on the machine.
    pub fn compile<const N: usize>(&self, packages: [&str; N]) -> Result<[Vec<u8>; N]> {
        let home = std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set")?;
        let folder =
            |variable: &str, name: &str| std::env::var_os(variable).map_or_else(|| home.join(name), PathBuf::from);
        let (cargo_home, rustup_home) = (folder("CARGO_HOME", ".cargo"), folder("RUSTUP_HOME", ".rustup"));
        // A C compiler's flags come in one line.
        for folder in [&cargo_home, &self.root, &self.target] {
            if folder.to_string_lossy().contains(|c: char| c.is_whitespace() || c == '\u{fffd}') {
                bail!("{} has a blank in its name: the compilers cannot be told of it", folder.display());
            }
        }
        let maps = [(&cargo_home, "/cargo"), (&self.target, "/target"), (&self.root, "/casemate")];
        let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), "-Clink-arg=-Wl,--build-id=none".to_owned()];
        let mut c_flags = Vec::new();
        // Of the paths that fit, rustc takes the last and gcc the last too: the innermost comes last.
        for (from, to) in maps.iter().rev() {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
            c_flags.push(format!("-ffile-prefix-map={}={to}", from.display()));
        }
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&self.root)
            .args(["build", "--locked", "--target", TARGET, "--profile", PROFILE, "--message-format", "json"])
            .arg("--target-dir")
            .arg(&self.target)
            .args(packages.iter().flat_map(|package| ["--package", package]))
            .arg("--bins")
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", &home)
            .env("CARGO_HOME", &cargo_home)
            .env("RUSTUP_HOME", &rustup_home)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("CARGO_INCREMENTAL", "0")
            .env("CFLAGS", c_flags.join(" "))
            .env("CC", "gcc-12")
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "gcc-12")
            .envs([("LC_ALL", "C"), ("TZ", "UTC"), ("SOURCE_DATE_EPOCH", "0"), ("ZERO_AR_DATE", "1")]);
        run("compiling the image's programs", STEPS, &mut cargo)?;
        let folder = self.target.join(TARGET).join(PROFILE);
        let mut out = packages.map(|_| Vec::new());
        for (package, bytes) in packages.iter().zip(&mut out) {
            let path = folder.join(package);
            *bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        }
        Ok(out)
    }
}

/// A configuration as it will be measured.
pub struct Measured {
    /// The file's text.
    pub text: String,
    /// What it says.
    pub configuration: Configuration,
}

impl Measured {
    /// Reads and checks a configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::of(text).with_context(|| format!("in {}", path.display()))
    }

    /// Checks a configuration.
    pub fn of(text: String) -> Result<Self> {
        let configuration = casemate_config::configuration(&text, Bytes(Sha256::digest(text.as_bytes()).into()))?;
        Ok(Self { text, configuration })
    }
}

/// The image of a kernel, its programs and a configuration; unsigned.
pub fn image(kernel: &[u8], linux: &str, programs: Programs, measured: &Measured) -> Result<Vec<u8>> {
    // «HdrS» at 0x202 (Linux, Documentation/arch/x86/boot.rst): the hypervisor would not say why something else does not boot.
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        bail!("the kernel is no bzImage");
    }
    let version = env!("CARGO_PKG_VERSION");
    let configuration_sha256 = measured.configuration.sha256.to_string();
    let metadata = serde_json::to_vec(&Metadata {
        image_name: "casemate",
        image_version: version,
        build_metadata: BuildMetadata {
            // When and where it was built is nobody's business: everybody builds the same.
            build_time: "1970-01-01T00:00:00+00:00",
            build_tool: "casemate-eif",
            build_tool_version: version,
            operating_system: "Linux",
            kernel_version: linux,
        },
        docker_info: DockerInfo {},
        custom_metadata: CustomMetadata {
            configuration_sha256: &configuration_sha256,
            group: &measured.configuration.group,
        },
    })?;
    let [software, configuration] = ramdisks(programs, measured);
    Ok(eif::write(&[
        (Kind::Kernel, kernel),
        (Kind::CommandLine, COMMAND_LINE.as_bytes()),
        (Kind::Metadata, &metadata),
        (Kind::Ramdisk, &software),
        (Kind::Ramdisk, &configuration),
    ]))
}

/// As nitro-cli writes it, in its order: `nitro-cli describe-eif` shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(clippy::struct_field_names, reason = "the names are nitro-cli's")]
struct Metadata<'a> {
    image_name: &'a str,
    image_version: &'a str,
    build_metadata: BuildMetadata<'a>,
    docker_info: DockerInfo,
    custom_metadata: CustomMetadata<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BuildMetadata<'a> {
    build_time: &'a str,
    build_tool: &'a str,
    build_tool_version: &'a str,
    operating_system: &'a str,
    kernel_version: &'a str,
}

/// There is no container.
#[derive(Serialize)]
struct DockerInfo {}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CustomMetadata<'a> {
    configuration_sha256: &'a str,
    group: &'a str,
}

/// The first, in PCR1: the software, the same for everybody. The second, in PCR2: whose it is.
fn ramdisks(programs: Programs, measured: &Measured) -> [Vec<u8>; 2] {
    let software = [
        ("dev", Entry::Folder(0o755)),
        // The kernel opens it for init before anything is mounted.
        ("dev/console", Entry::Device(0o600, 5, 1)),
        ("sys", Entry::Folder(0o555)),
        ("init", Entry::File(0o500, programs.init)),
        // Each compartment's root is its own folder.
        ("vault", Entry::Folder(0o555)),
        ("vault/dev", Entry::Folder(0o555)),
        ("vault/casemate-vault", Entry::File(0o555, programs.vault)),
        ("broker", Entry::Folder(0o555)),
        ("broker/casemate-broker", Entry::File(0o555, programs.broker)),
    ];
    let configuration =
        [("etc", Entry::Folder(0o700)), ("etc/casemate.toml", Entry::File(0o400, measured.text.clone().into_bytes()))];
    [archive(&software), archive(&configuration)]
}

/// Adds a signature section to an image, or replaces the one that is there.
pub fn sign(image: &[u8], key: &[u8], certificate: &[u8]) -> Result<Vec<u8>> {
    let read = eif::Eif::parse(image)?;
    if read.version != eif::VERSION || read.arm {
        bail!("only images for x86-64 of EIF version {} are signed here", eif::VERSION);
    }
    let signature = crate::signature::sign(&read.measure().pcr0, key, certificate)?;
    let mut sections: Vec<(Kind, &[u8])> =
        read.sections.iter().filter(|s| s.kind != Kind::Signature).map(|s| (s.kind, s.content)).collect();
    sections.push((Kind::Signature, &signature));
    Ok(eif::write(&sections))
}
