//! The enclave's kernel: from Debian's source package, with our configuration, the same bytes everywhere.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::pinned::{Pinned, Source, installed};
use crate::progress;

/// The kernel's configuration.
pub const CONFIG: &str = include_str!("../kernel.config");
/// Debian packages that building takes.
const PACKAGES: [&str; 10] =
    ["bc", "binutils", "bison", "dpkg-dev", "flex", "gcc-12", "libelf-dev", "make", "perl-base", "xz-utils"];
/// Folders that kernels are built in.
const WORK: &str = "kernel-build-";
/// Lines that make prints, about: for the bar.
const STEPS: u64 = 1200;

/// A kernel that was built.
pub struct Kernel {
    /// The bzImage.
    pub image: Vec<u8>,
    /// Where it is kept.
    pub path: PathBuf,
    /// Where it is not the one that everybody gets.
    pub warning: Option<String>,
}

/// Where the kernel's source comes from.
pub enum From<'a> {
    /// Debian's mirror, by apt.
    Apt,
    /// A file that was fetched before.
    File(&'a Path),
}

/// The kernel from the cache, built there first where it is missing.
pub fn kernel(cache: &Path, from: &From<'_>) -> Result<Kernel> {
    let pinned = Pinned::read()?;
    missing_packages()?;
    let compiler = ["gcc-12", "binutils"].map(|package| installed(package).unwrap_or_default());
    let Source { package, version, sha256, bzimage } = &pinned.kernel;
    // This file is the rest of the recipe.
    let key = [CONFIG, package, version, sha256, &compiler.concat(), include_str!("kernel.rs")].concat();
    let key = const_hex::encode(Sha256::digest(key.as_bytes()));
    let folder = cache.join(format!("kernel-{}", key.get(..16).unwrap_or(&key)));
    let path = folder.join("bzImage");
    fs::create_dir_all(cache).with_context(|| format!("making {}", cache.display()))?;
    // One at a time; anyone who waited finds it built.
    let lock = File::create(cache.join("kernel.lock")).context("the kernel's lock")?;
    lock.lock().context("waiting for another build of the kernel")?;
    if !folder.join("complete").exists() {
        build(cache, &folder, &pinned.kernel, from)?;
    }
    let image = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let digest = const_hex::encode(Sha256::digest(&image));
    let pinned_tools = pinned.tools.iter().all(|(name, version)| installed(name).as_ref() == Some(version));
    if digest != *bzimage && pinned_tools && !bzimage.is_empty() {
        bail!(
            "{} has SHA-256 {digest}, though the tools are the pinned ones; {bzimage} is pinned. Remove its folder to have it built \
             anew; if it is the same then, the kernel is not reproducible here",
            path.display()
        );
    }
    let warning = (digest != *bzimage).then(|| {
        format!(
            "the kernel's SHA-256 is {digest}; {bzimage:?} is pinned: PCR0 and PCR1 are others than everybody else's"
        )
    });
    Ok(Kernel { image, path, warning })
}

fn build(cache: &Path, folder: &Path, source: &Source, from: &From<'_>) -> Result<()> {
    // What an interrupted build has left: nobody else builds now.
    for entry in fs::read_dir(cache).context("the cache")?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(WORK) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let work = tempfile::Builder::new().prefix(WORK).tempdir_in(cache).context("a folder to build in")?;
    let package = match from {
        From::Apt => fetch(work.path(), source)?,
        From::File(path) => path.to_path_buf(),
    };
    let found = const_hex::encode(Sha256::digest(
        fs::read(&package).with_context(|| format!("reading {}", package.display()))?,
    ));
    if found != source.sha256 {
        bail!("{} has SHA-256 {found}; pinned.toml pins {}", package.display(), source.sha256);
    }
    let tree = unpack(work.path(), &package, &source.package)?;
    let objects = work.path().join("objects");
    fs::create_dir(&objects)?;
    let config = work.path().join("kernel.config");
    fs::write(&config, CONFIG)?;
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.current_dir(&tree)
            .arg(format!("O={}", objects.display()))
            .arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)))
            .arg("CC=/usr/bin/gcc-12")
            .arg("HOSTCC=/usr/bin/gcc-12")
            .arg(target)
            // Nothing of this machine or this moment.
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([("LC_ALL", "C"), ("TZ", "UTC"), ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")])
            .envs([("KBUILD_BUILD_USER", "casemate"), ("KBUILD_BUILD_HOST", "casemate"), ("KBUILD_BUILD_VERSION", "1")])
            .env("KCONFIG_ALLCONFIG", &config);
        make
    };
    run("configuring the kernel", 0, &mut make("allnoconfig"))?;
    check(&fs::read_to_string(objects.join(".config")).context("the kernel's .config")?)?;
    run("building the kernel", STEPS, &mut make("bzImage"))?;
    let out = work.path().join("out");
    fs::create_dir(&out)?;
    fs::copy(objects.join("arch/x86/boot/bzImage"), out.join("bzImage")).context("the built kernel")?;
    fs::copy(objects.join(".config"), out.join("config"))?;
    fs::write(out.join("complete"), "")?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&out, folder).with_context(|| format!("moving the kernel to {}", folder.display()))
}

fn fetch(work: &Path, source: &Source) -> Result<PathBuf> {
    let Source { package, version, .. } = source;
    run(
        "fetching the kernel's source",
        0,
        Command::new("apt-get").current_dir(work).args(["--quiet", "download"]).arg(format!("{package}={version}")),
    )
    .with_context(|| {
        format!(
            "Debian's mirror has no {package} {version} any more, or the lists are old (apt-get update); with --source \
                 FILE.deb the package is taken from elsewhere"
        )
    })?;
    let mut found = fs::read_dir(work)?.filter_map(|entry| Some(entry.ok()?.path()));
    found.find(|path| path.extension().is_some_and(|e| e == "deb")).context("apt-get has fetched nothing")
}

fn unpack(work: &Path, package: &Path, name: &str) -> Result<PathBuf> {
    let (inner, tree) = (work.join("package"), work.join("linux"));
    fs::create_dir(&tree)?;
    run("unpacking the kernel's source", 0, Command::new("dpkg-deb").arg("-x").arg(package).arg(&inner))?;
    let tar = inner.join(format!("usr/src/{name}.tar.xz"));
    run(
        "unpacking the kernel's source",
        0,
        Command::new("tar").arg("-xf").arg(tar).args(["--strip-components", "1", "-C"]).arg(&tree),
    )?;
    fs::remove_dir_all(inner)?;
    Ok(tree)
}

/// Whether every line of our configuration took effect: what depends on something that is off would be off in silence.
fn check(config: &str) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, value) in
        CONFIG.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| !name.starts_with('#'))
    {
        let set = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        if set.unwrap_or("n") != value {
            wrong.push(format!("{name}={value} became {}", set.unwrap_or("n")));
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("the kernel does not take this configuration: {}", wrong.join(", ")) }
}

fn missing_packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| installed(package).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    bail!("building the kernel takes Debian packages that are not here: apt-get install --no-install-recommends {list}")
}

/// Runs a program with a bar that counts its lines; what it said is shown where it fails.
pub fn run(what: &'static str, steps: u64, command: &mut Command) -> Result<()> {
    let bar = progress::bar(steps, what);
    let name = command.get_program().to_string_lossy().into_owned();
    let errors = tempfile::NamedTempFile::new().context("a file for what is said")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors.reopen()?)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let mut last = Vec::new();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).split(b'\n') {
            last.push(String::from_utf8_lossy(&line?).into_owned());
            if last.len() > 20 {
                last.remove(0);
            }
            bar.inc(1);
        }
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    if status.success() {
        return Ok(());
    }
    let said = fs::read(errors.path()).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let end: Vec<&str> = said.lines().rev().take(30).collect();
    bail!(
        "{what}: {name} failed ({status})\n{}\n{}",
        last.join("\n"),
        end.into_iter().rev().collect::<Vec<_>>().join("\n")
    )
}
