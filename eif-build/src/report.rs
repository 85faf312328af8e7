//! What is said about an image: measurements for machines, sections for people, differences between two.

use std::fmt::Write as _;
use std::time::SystemTime;

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA384, digest};
use serde_json::{Map, Value, json};

use crate::eif::{Eif, Kind, Section};
use crate::signature::Signature;

/// An image, read and measured.
pub struct ImageReport<'a> {
    /// The image.
    pub eif: Eif<'a>,
    /// Its signature, where it is signed. It verifies.
    pub signature: Option<Signature>,
}

impl<'a> ImageReport<'a> {
    /// Reads an image, measures it, and verifies its signature: a wrong one is an error, because the enclave would not start.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self> {
        let eif = Eif::parse(bytes)?;
        let signature = eif.signature().map(|section| {
            let signature = Signature::parse(section)?;
            signature.verify(&eif.measure().pcr0)?;
            Ok::<_, anyhow::Error>(signature)
        });
        let signature = signature.transpose().context("the image's signature")?;
        Ok(Self { eif, signature })
    }

    /// Reads an image and measures it without a look at its signature.
    pub fn without_signature(bytes: &'a [u8]) -> Result<Self> {
        Ok(Self { eif: Eif::parse(bytes)?, signature: None })
    }

    /// PCRs by name.
    pub fn pcrs(&self) -> Vec<(&'static str, String)> {
        let measured = self.eif.measure();
        let mut pcrs = vec![
            ("PCR0", const_hex::encode(measured.pcr0)),
            ("PCR1", const_hex::encode(measured.pcr1)),
            ("PCR2", const_hex::encode(measured.pcr2)),
        ];
        pcrs.extend(self.signature.as_ref().map(|signature| ("PCR8", const_hex::encode(signature.pcr8))));
        pcrs
    }

    /// As `casemate attest --measurements`, `casemate kms-policy` and people who use nitro-cli read it. Where a section ends is
    /// stated, because the PCRs do not say it: they are over the sections joined together.
    pub fn json(&self, also: Map<String, Value>) -> Value {
        let mut measurements = Map::new();
        measurements.insert("HashAlgorithm".to_owned(), "Sha384 { ... }".into());
        measurements.extend(self.pcrs().into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        let sections: Vec<Value> = self
            .eif
            .sections
            .iter()
            .map(|section| {
                let Section { kind, offset, content } = section;
                json!({ "Type": kind.name(), "Offset": offset, "Bytes": content.len(), "Sha384": sum(content) })
            })
            .collect();
        let mut out = Map::new();
        out.insert("Measurements".to_owned(), measurements.into());
        out.insert("EifVersion".to_owned(), self.eif.version.into());
        out.insert("Sections".to_owned(), sections.into());
        out.extend(also);
        out.into()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Eif { version, arm, default_memory, default_cpus, sections } = &self.eif;
        let machine = if *arm { "aarch64" } else { "x86-64" };
        let memory = default_memory / 1024 / 1024;
        writeln!(out, "EIF version {version} for {machine}; defaults: {memory} MiB, {default_cpus} vCPUs\n")?;
        for (name, value) in self.pcrs() {
            writeln!(out, "{name}  {value}")?;
        }
        writeln!(out, "\n{:<13} {:>10} {:>10}  SHA-384", "section", "offset", "bytes")?;
        for Section { kind, offset, content } in sections {
            writeln!(out, "{:<13} {offset:>10} {:>10}  {}", kind.name(), content.len(), sum(content))?;
        }
        for section in sections.iter().filter(|s| matches!(s.kind, Kind::CommandLine | Kind::Metadata)) {
            writeln!(out, "\n{}: {}", section.kind.name(), plain(section.content))?;
        }
        if let Some(more) = sections.iter().find(|s| s.kind == Kind::Kernel).and_then(|s| beyond_kernel(s.content)) {
            writeln!(out, "\nthe kernel's own header says that it ends {more} bytes before its section does")?;
        }
        match &self.signature {
            None if self.eif.signature().is_some() => writeln!(out, "\na signature that nobody can take"),
            None => writeln!(out, "\nnot signed"),
            Some(signature) => match signature.signer() {
                Ok((subject, until)) => {
                    if let Err(error) = signature.in_force(SystemTime::now()) {
                        writeln!(out, "\n{error:#}: an enclave of this image does not start")?;
                    }
                    writeln!(
                        out,
                        "\nsigned by {}, certificate valid until {until}; the signature verifies",
                        plain(subject.as_bytes())
                    )
                }
                Err(error) => writeln!(out, "\nsigned, but: {error:#}"),
            },
        }
    }
}

/// For [`ImageReport::json`], where there is nothing to add.
pub fn nothing_else() -> Map<String, Value> {
    Map::new()
}

/// Which sections of two images differ, and what follows for the PCRs. The second value: whether anything that is measured does.
pub fn diff(a: &ImageReport<'_>, b: &ImageReport<'_>) -> (String, bool) {
    let mut out = String::new();
    let mut same = true;
    let mut measured_sections = false;
    let kinds = [Kind::Kernel, Kind::CommandLine, Kind::Ramdisk, Kind::Metadata, Kind::Signature];
    for kind in kinds {
        let of = |image: &ImageReport<'_>| -> Vec<Vec<u8>> {
            image.eif.sections.iter().filter(|s| s.kind == kind).map(|s| s.content.to_vec()).collect()
        };
        let (left, right) = (of(a), of(b));
        for number in 0..left.len().max(right.len()) {
            let name = if kind == Kind::Ramdisk { format!("ramdisk {number}") } else { kind.name().to_owned() };
            let told = match (left.get(number), right.get(number)) {
                (Some(left), Some(right)) if left == right => continue,
                (Some(left), Some(right)) => {
                    let at = left.iter().zip(right).position(|(a, b)| a != b).unwrap_or(left.len().min(right.len()));
                    format!("differs from byte {at} on; {} and {} bytes", left.len(), right.len())
                }
                (Some(left), None) => format!("only in the first, {} bytes", left.len()),
                (None, Some(right)) => format!("only in the second, {} bytes", right.len()),
                (None, None) => continue,
            };
            same = false;
            measured_sections |= kind != Kind::Metadata;
            let _ = writeln!(out, "{name:<13} {told}");
        }
    }
    let mut measured = false;
    let (left, right) = (a.pcrs(), b.pcrs());
    for name in ["PCR0", "PCR1", "PCR2", "PCR8"] {
        let of = |pcrs: &[(&str, String)]| pcrs.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
        if of(&left) != of(&right) {
            measured = true;
            let shown = |value: Option<String>| value.unwrap_or_else(|| "not measured".to_owned());
            let _ = writeln!(out, "{name:<13} {}\n{:<13} {}", shown(of(&left)), "", shown(of(&right)));
        }
    }
    if same {
        out.push_str("the same sections\n");
    } else if !measured && measured_sections {
        out.push_str("the same PCRs, but cut into sections differently: they are over the sections joined\n");
    } else if !measured {
        out.push_str("the same PCRs: what differs is not measured\n");
    }
    (out, measured || measured_sections)
}

/// How many bytes follow behind a bzImage (Linux, Documentation/arch/x86/boot.rst: `setup_sects`, `syssize`); nothing where it
/// fits, or is none.
fn beyond_kernel(content: &[u8]) -> Option<u64> {
    if content.get(0x202..0x206) != Some(b"HdrS") {
        return None;
    }
    let setup = content.get(0x1f1).map(|sectors| if *sectors == 0 { 4 } else { *sectors })?;
    let paragraphs = u32::from_le_bytes(*content.get(0x1f4..)?.first_chunk()?);
    let len = (u64::from(setup) + 1) * 512 + u64::from(paragraphs) * 16;
    u64::try_from(content.len()).ok()?.checked_sub(len).filter(|more| *more > 0)
}

fn sum(content: &[u8]) -> String {
    const_hex::encode(digest(&SHA384, content))
}

/// Text of a stranger: of bounded length and harmless on a terminal.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out: String = text
        .chars()
        .take(2000)
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c.to_string() } else { c.escape_unicode().to_string() })
        .collect();
    if text.chars().nth(2000).is_some() {
        out.push('…');
    }
    out
}
