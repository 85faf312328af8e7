//! The image: programs, ramdisks, EIF.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use casemate_protocol::{Bytes, Configuration};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::cpio::{Entry, archive};
use crate::crates;
use crate::eif::{self, Kind};
use crate::kernel::run;
use crate::pinned::Pinned;

/// The EIF's own command line. What matters is built into the kernel (kernel.config): PCRs are over sections joined, so a parent
/// could move the boundary between kernel and command line, and cut this short, without changing them.
pub const COMMAND_LINE: &str = "console=ttyS0";
/// Static and position-independent, from one C library that is pinned.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "image";
/// Where the crates come from.
const CRATES: &str = "crates unpacked anew";
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
        // cargo does not know which C library and compiler it has used: others get another folder. So does what was compiled before crates
        // were unpacked anew: cargo takes its own earlier work without another look.
        let tools = Pinned::read()?.found() + CRATES;
        let key = const_hex::encode(Sha256::digest(tools.as_bytes()));
        let target = root.join("target").join(format!("eif-{}", key.get(..8).unwrap_or(&key)));
        Ok(Self { root: root.to_owned(), target })
    }

    /// This program has the recipe in it, and compiles the programs of a checkout: both must be of one commit.
    fn check_recipe(&self) -> Result<()> {
        for (name, ours) in [("pinned.toml", crate::pinned::TEXT), ("kernel.config", crate::kernel::CONFIG)] {
            let path = self.root.join("eif-build").join(name);
            let theirs = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            if theirs != ours {
                bail!(
                    "{} is another than this casemate-eif was built with: build it from this checkout",
                    path.display()
                );
            }
        }
        for folder in self.root.ancestors() {
            for name in ["config", "config.toml"] {
                let path = folder.join(".cargo").join(name);
                // The user's own file is not read: the image gets a cargo home of its own.
                let own = std::env::var_os("HOME").is_some_and(|home| folder == Path::new(&home));
                if path.exists() && !own {
                    bail!("{} would tell cargo how to build the image; move it away", path.display());
                }
            }
        }
        Ok(())
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
        let (real_home, rustup_home) = (folder("CARGO_HOME", ".cargo"), folder("RUSTUP_HOME", ".rustup"));
        self.check_recipe()?;
        // A cargo home with nothing in it but the crates: no configuration of anyone who builds.
        let cargo_home = self.target.join("cargo-home");
        fs::create_dir_all(&cargo_home).with_context(|| format!("making {}", cargo_home.display()))?;
        // One at a time: what one build compiles another would take away.
        let alone = fs::File::create(self.target.join("crates.lock")).context("the lock of the crates")?;
        alone.lock().context("waiting for another build of the image")?;
        let lock = self.root.join("Cargo.lock");
        let lock = fs::read_to_string(&lock).with_context(|| format!("reading {}", lock.display()))?;
        crates::link(&cargo_home, &real_home.join("registry"), &lock)?;
        let (cargo, search) = cargo()?;
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
        let mut cargo = Command::new(cargo);
        cargo
            .current_dir(&self.root)
            .args(["build", "--locked", "--target", TARGET, "--profile", PROFILE, "--message-format", "json"])
            .arg("--target-dir")
            .arg(&self.target)
            .args(packages.iter().flat_map(|package| ["--package", package]))
            .arg("--bins")
            .env_clear()
            .env("PATH", search)
            .env("HOME", &home)
            .env("CARGO_HOME", &cargo_home)
            .env("RUSTUP_HOME", &rustup_home)
            .env("RUSTUP_TOOLCHAIN", toolchain(&self.root)?)
            // Of the machine's own libraries none.
            .envs([("AWS_LC_SYS_USE_SYSTEM", "0"), ("AWS_LC_SYS_CMAKE_BUILDER", "0")])
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("CARGO_INCREMENTAL", "0")
            .env("CFLAGS", c_flags.join(" "))
            .env("CC", "/usr/bin/gcc-12")
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "/usr/bin/gcc-12")
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

/// The first cargo on the search path, and a search path for what it starts: that folder and the system's own.
fn cargo() -> Result<(PathBuf, OsString)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("cargo")).find(|cargo| cargo.is_file());
    let cargo = found.context("there is no cargo on PATH")?;
    let folder = cargo.parent().context("cargo's folder")?;
    let search = std::env::join_paths([folder, Path::new("/usr/bin"), Path::new("/bin")])?;
    Ok((cargo, search))
}

/// The compiler that rust-toolchain.toml names, whatever rustup was told for this folder.
fn toolchain(root: &Path) -> Result<String> {
    let path = root.join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("in {}", path.display()))?;
    let channel = table.get("toolchain").and_then(|toolchain| toolchain.get("channel")).and_then(|c| c.as_str());
    channel.map(str::to_owned).with_context(|| format!("{} names no channel", path.display()))
}

/// A configuration as it will be measured.
pub struct MeasuredConfig {
    /// The file's text.
    pub text: String,
    /// What it says.
    pub configuration: Configuration,
}

impl MeasuredConfig {
    /// Reads and checks a configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::from_text(text).with_context(|| format!("in {}", path.display()))
    }

    /// Checks a configuration.
    pub fn from_text(text: String) -> Result<Self> {
        let configuration = casemate_config::configuration(&text, Bytes(Sha256::digest(text.as_bytes()).into()))?;
        Ok(Self { text, configuration })
    }
}

/// The image of a kernel, its programs and a configuration; unsigned.
pub fn image(kernel: &[u8], linux: &str, programs: Programs, measured: &MeasuredConfig) -> Result<Vec<u8>> {
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
fn ramdisks(programs: Programs, measured: &MeasuredConfig) -> [Vec<u8>; 2] {
    let software = [
        // First, so that anyone who moves the boundary in front of it loses it, and with it everything.
        ("init", Entry::File(0o500, programs.init)),
        ("dev", Entry::Folder(0o755)),
        // The kernel opens it for init before anything is mounted.
        ("dev/console", Entry::Device(0o600, 5, 1)),
        // Where there is no console, programs start without open files, and want this one.
        ("dev/null", Entry::Device(0o666, 1, 3)),
        ("sys", Entry::Folder(0o555)),
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
