//! The command line.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value};

use crate::build::{self, Checkout};
use crate::eif::MAX_LEN;
use crate::kernel::{From, kernel};
use crate::pinned::Pinned;
use crate::policy::{self, Whose};
use crate::report::{ImageReport, diff};

/// Builds, measures and signs the enclave's image. The same source and configuration give the same bytes, and so the same PCRs,
/// on every machine with the pinned tools (docs/REPRODUCE.md).
#[derive(Parser)]
#[command(name = "casemate-eif", version = casemate_version::VERSION)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the kernel: Debian's source, our configuration. It is kept in the cache
    Kernel(KernelOptions),
    /// Build the image of a configuration, and its measurements
    Build(Box<Build>),
    /// Recompute the PCRs of any image, and show its sections
    Measure(Measure),
    /// Sign an image: PCR8 is then its certificate's measurement
    Sign(Sign),
    /// Write the policies that go with an image: for the KMS key, the parent's role, and the fence's table
    Policy(Policy),
    /// Say which sections of two images differ. Exit code 1 where one that is measured does
    Diff {
        /// An image
        a: PathBuf,
        /// Another
        b: PathBuf,
    },
}

#[derive(Args)]
struct KernelOptions {
    /// Where the kernel is kept
    #[arg(long, value_name = "DIR", env = "CASEMATE_CACHE")]
    cache: Option<PathBuf>,
    /// Debian's package with the kernel's source, where the mirror no longer has it
    #[arg(long, value_name = "FILE.deb")]
    source: Option<PathBuf>,
}

#[derive(Args)]
struct Build {
    /// The configuration that is measured (docs/operations/configuration.md)
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// The image
    #[arg(long, value_name = "FILE", default_value = "casemate.eif")]
    out: PathBuf,
    /// Its measurements [default: beside the image, .json]
    #[arg(long, value_name = "FILE")]
    measurements: Option<PathBuf>,
    /// The source to build from [default: the checkout around the current folder]
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
    /// Key that signs the image (PEM, P-384)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Certificate of that key (PEM)
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    #[command(flatten)]
    kernel: KernelOptions,
}

#[derive(Args)]
struct Measure {
    /// An image
    image: PathBuf,
    /// Answer in JSON, as `build` writes measurements
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Sign {
    /// An image; it is replaced by the signed one
    image: PathBuf,
    /// Key that signs it (PEM, P-384)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Certificate of that key (PEM)
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its measurements [default: beside the image, .json]
    #[arg(long, value_name = "FILE")]
    measurements: Option<PathBuf>,
}

#[derive(Args)]
struct Policy {
    /// The configuration in the image
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// The image's measurements
    #[arg(long, value_name = "FILE")]
    measurements: PathBuf,
    /// Role of the parent instance
    #[arg(long, value_name = "ARN")]
    parent_role: String,
    /// Role that administers the key and the table
    #[arg(long, value_name = "ARN")]
    administrator: String,
    /// The user or role whose credentials the enclave gets for a fence in DynamoDB
    #[arg(long, value_name = "ARN")]
    fence_writer: Option<String>,
    /// Folder for the policies
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// Runs a command line; the exit code.
pub fn run(arguments: &[OsString]) -> u8 {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    let done = match options.command {
        Command::Kernel(options) => build_kernel(&options),
        Command::Build(options) => build(&options),
        Command::Measure(options) => measure(&options),
        Command::Sign(options) => sign(&options),
        Command::Policy(options) => policies(&options),
        Command::Diff { a, b } => compare(&a, &b),
    };
    match done.and_then(|(text, code)| {
        // What cannot be told was not done.
        std::io::stdout().write_all(text.as_bytes()).context("writing to standard output")?;
        Ok(code)
    }) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("casemate-eif: {error:#}");
            2
        }
    }
}

fn cache(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = given {
        return Ok(folder.to_owned());
    }
    let home = std::env::var_os("HOME").context("HOME is not set; --cache names a folder")?;
    Ok(PathBuf::from(home).join(".cache/casemate"))
}

fn the_kernel(options: &KernelOptions) -> Result<crate::kernel::Kernel> {
    let from = options.source.as_deref().map_or(From::Apt, From::File);
    kernel(&cache(options.cache.as_deref())?, &from)
}

fn build_kernel(options: &KernelOptions) -> Result<(String, u8)> {
    let kernel = the_kernel(options)?;
    if let Some(warning) = kernel.warning {
        eprintln!("casemate-eif: {warning}");
    }
    Ok((format!("{}\n", kernel.path.display()), 0))
}

fn build(options: &Build) -> Result<(String, u8)> {
    let measured = build::MeasuredConfig::read(&options.config)?;
    let signer = options.key.as_deref().zip(options.cert.as_deref()).map(|(key, cert)| Ok((read(key)?, read(cert)?)));
    let signer = signer.transpose().map_err(|e: anyhow::Error| e)?;
    let checkout = match &options.checkout {
        Some(folder) => Checkout::find(folder)?,
        None => Checkout::find(&std::env::current_dir().context("the current folder")?)?,
    };
    let pinned = Pinned::read()?;
    let kernel = the_kernel(&options.kernel)?;
    for warning in pinned.differences().into_iter().chain(kernel.warning) {
        eprintln!("casemate-eif: {warning}");
    }
    let programs = checkout.programs()?;
    let mut image = build::image(&kernel.image, pinned.linux(), programs, &measured)?;
    if let Some((key, cert)) = signer {
        image = build::sign(&image, &key, &cert)?;
    }
    write(&options.out, &image)?;
    let told = measurements(&image, &options.out, options.measurements.as_deref())?;
    Ok((told, 0))
}

/// Writes the measurements beside an image and says what is where.
fn measurements(image: &[u8], path: &Path, out: Option<&Path>) -> Result<String> {
    let measured = ImageReport::from_bytes(image)?;
    let out = out.map_or_else(|| path.with_extension("json"), Path::to_owned);
    let mut also = Map::new();
    also.insert("Builder".to_owned(), Value::from(concat!("casemate-eif ", env!("CARGO_PKG_VERSION"))));
    write(&out, format!("{:#}\n", measured.json(also)).as_bytes())?;
    let pcrs: String = measured.pcrs().into_iter().map(|(name, value)| format!("{name}  {value}\n")).collect();
    Ok(format!("{} ({} bytes)\n{}\n\n{pcrs}", path.display(), image.len(), out.display()))
}

fn measure(options: &Measure) -> Result<(String, u8)> {
    let bytes = read(&options.image)?;
    let told = || options.image.display().to_string();
    let told_of = |measured: &ImageReport<'_>| {
        if options.json { format!("{:#}\n", measured.json(Map::new())) } else { measured.text() }
    };
    match ImageReport::from_bytes(&bytes) {
        Ok(measured) => Ok((told_of(&measured), 0)),
        Err(error) => {
            // What it measures is told all the same, where it is an image.
            let measured = ImageReport::without_signature(&bytes).with_context(told)?;
            eprintln!("casemate-eif: {}: {error:#}: an enclave of this image does not start", told());
            Ok((told_of(&measured), 1))
        }
    }
}

fn sign(options: &Sign) -> Result<(String, u8)> {
    let (key, cert) = (read(&options.key)?, read(&options.cert)?);
    let signed =
        build::sign(&read(&options.image)?, &key, &cert).with_context(|| options.image.display().to_string())?;
    write(&options.image, &signed)?;
    Ok((measurements(&signed, &options.image, options.measurements.as_deref())?, 0))
}

fn policies(options: &Policy) -> Result<(String, u8)> {
    let Policy { config, measurements, parent_role, administrator, fence_writer, out } = options;
    let whose = Whose { parent_role, administrator, fence_writer: fence_writer.as_deref() };
    let files = policy::policies(&build::MeasuredConfig::read(config)?, measurements, &whose)?;
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let mut told = String::new();
    for (name, text) in files {
        let path = out.join(name);
        write(&path, text.as_bytes())?;
        told.extend([&path.display().to_string(), "\n"]);
    }
    Ok((told, 0))
}

fn compare(a: &Path, b: &Path) -> Result<(String, u8)> {
    let (left, right) = (read(a)?, read(b)?);
    let left = ImageReport::from_bytes(&left).with_context(|| a.display().to_string())?;
    let right = ImageReport::from_bytes(&right).with_context(|| b.display().to_string())?;
    let (text, differ) = diff(&left, &right);
    Ok((text, u8::from(differ)))
}

/// A file, if it is not too large to be anything that belongs here.
fn read(path: &Path) -> Result<Vec<u8>> {
    let told = || format!("reading {}", path.display());
    let file = fs::File::open(path).with_context(told)?;
    let len = file.metadata().with_context(told)?.len();
    if usize::try_from(len).map_or(true, |len| len > MAX_LEN) {
        bail!("{} has {len} bytes; at most {MAX_LEN} are read", path.display());
    }
    let mut bytes = Vec::new();
    // A file that grows meanwhile, or a device, is cut off.
    std::io::Read::read_to_end(&mut std::io::Read::take(file, u64::try_from(MAX_LEN)?.saturating_add(1)), &mut bytes)
        .with_context(told)?;
    Ok(bytes)
}

/// Writes a file as a whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let told = || format!("writing {}", path.display());
    // A device or a pipe must not be replaced by a file.
    if fs::metadata(path).is_ok_and(|known| !known.is_file()) {
        return fs::write(path, bytes).with_context(told);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .with_context(told)?;
    file.write_all(bytes).with_context(told)?;
    file.persist(path).map(drop).with_context(told)
}
