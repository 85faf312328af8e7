//! The enclave image format, version 4: a header, then sections, all numbers big-endian.
//!
//! Source: the structures of aws-nitro-enclaves-image-format (Apache-2.0), which nitro-cli is built on; that crate reads what is
//! written here and the other way round in a test of its own (tests/suites/eif-oracle).

use aws_lc_rs::digest::{Context, SHA384};

/// `.eif`.
const MAGIC: [u8; 4] = *b".eif";
/// The version that is written.
pub const VERSION: u16 = 4;
/// Versions that are read: 2 brought the checksum, 3 signatures, 4 metadata.
const VERSIONS: std::ops::RangeInclusive<u16> = 2..=4;
/// Bit 0 of the flags: aarch64.
const ARM: u16 = 1;
const MAX_SECTIONS: usize = 32;
/// Bytes of the header.
pub const HEADER_LEN: usize = 548;
/// Bytes in front of each section.
pub const SECTION_HEADER_LEN: usize = 12;
/// Largest image that is read.
pub const MAX_LEN: usize = 2 * 1024 * 1024 * 1024;
/// What nitro-cli's own builder states as defaults; `nitro-cli run-enclave` is told both anyway.
const DEFAULT_MEMORY: u64 = 1024 * 1024 * 1024;
const DEFAULT_CPUS: u64 = 2;
/// A PCR: SHA-384.
pub type Pcr = [u8; 48];

/// What a section is, by the number that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Linux kernel, bzImage.
    Kernel,
    /// The kernel's command line.
    CommandLine,
    /// A cpio archive; the kernel unpacks all of them, one over the other.
    Ramdisk,
    /// Who vouches for PCR0.
    Signature,
    /// JSON about the build. Not measured.
    Metadata,
}

impl Kind {
    fn number(self) -> u16 {
        match self {
            Self::Kernel => 1,
            Self::CommandLine => 2,
            Self::Ramdisk => 3,
            Self::Signature => 4,
            Self::Metadata => 5,
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        [Self::Kernel, Self::CommandLine, Self::Ramdisk, Self::Signature, Self::Metadata]
            .into_iter()
            .find(|kind| kind.number() == number)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::CommandLine => "command line",
            Self::Ramdisk => "ramdisk",
            Self::Signature => "signature",
            Self::Metadata => "metadata",
        }
    }
}

/// Why a file is no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum EifError {
    #[error("{0} bytes; an image has at least {HEADER_LEN}")]
    TooShort(usize),
    #[error("{0} bytes; images of at most {MAX_LEN} are read")]
    TooLong(usize),
    #[error("this does not begin with .eif: it is no enclave image")]
    Magic,
    #[error("EIF version {0}; 2, 3 and 4 are known")]
    Version(u16),
    #[error("flags {0:#06x}; only bit 0 (aarch64) is known")]
    Flags(u16),
    #[error("{0} in a field that must be zero")]
    Reserved(u32),
    #[error("{0} sections; at most 32 are possible")]
    TooManySections(u16),
    #[error("section {0} begins at byte {1}, but what is before it ends at {2}")]
    Gap(usize, u64, u64),
    #[error("section {0} has {1} bytes by the header and {2} by itself")]
    Length(usize, u64, u64),
    #[error("section {0} with {1} bytes from byte {2} does not fit into the file's {3} bytes")]
    CutOff(usize, u64, u64, usize),
    #[error("section {0} is of the unknown kind {1}")]
    Kind(usize, u16),
    #[error("section {0} has the flags {1:#06x}; none are known")]
    SectionFlags(usize, u16),
    #[error("the header's place {0} is not in use, but not zero")]
    Unused(usize),
    #[error("{0} bytes behind the last section")]
    Trailing(usize),
    #[error("the CRC-32 is {0:#010x}; the header says {1:#010x}")]
    Checksum(u32, u32),
    #[error("section {0} is a {1} in a place where none belongs")]
    Order(usize, &'static str),
    #[error("there is no {0}")]
    Missing(&'static str),
    #[error("EIF version {0} has no {1}")]
    OfAnotherVersion(u16, &'static str),
}

/// A section as it lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// What it is.
    pub kind: Kind,
    /// Where its header begins.
    pub offset: u64,
    /// What it holds.
    pub content: &'a [u8],
}

/// An image, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eif<'a> {
    /// The format's version.
    pub version: u16,
    /// For aarch64 rather than x86-64.
    pub arm: bool,
    /// What it says is enough memory, bytes.
    pub default_memory: u64,
    /// What it says are enough CPUs.
    pub default_cpus: u64,
    /// In the order of the file.
    pub sections: Vec<Section<'a>>,
}

/// PCR0, PCR1 and PCR2 of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurements {
    /// Kernel, command line and every ramdisk.
    pub pcr0: Pcr,
    /// Kernel, command line and the first ramdisk.
    pub pcr1: Pcr,
    /// The other ramdisks.
    pub pcr2: Pcr,
}

/// A cursor that never goes beyond its end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at = self.at.checked_add(N)?;
        Some(*bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn slice(&mut self, len: u64) -> Option<&'a [u8]> {
        let end = self.at.checked_add(usize::try_from(len).ok()?)?;
        let slice = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }
}

impl<'a> Eif<'a> {
    /// Reads an image. Every byte of it must be accounted for: what two readers could understand in two ways is refused.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EifError> {
        if bytes.len() < HEADER_LEN {
            return Err(EifError::TooShort(bytes.len()));
        }
        if bytes.len() > MAX_LEN {
            return Err(EifError::TooLong(bytes.len()));
        }
        let short = EifError::TooShort(bytes.len());
        let mut header = Reader { bytes, at: 0 };
        if header.take::<4>() != Some(MAGIC) {
            return Err(EifError::Magic);
        }
        let mut half = || header.u16().ok_or_else(|| short.clone());
        let (version, flags) = (half()?, half()?);
        if !VERSIONS.contains(&version) {
            return Err(EifError::Version(version));
        }
        if flags & !ARM != 0 {
            return Err(EifError::Flags(flags));
        }
        let mut whole = || header.u64().ok_or_else(|| short.clone());
        let (default_memory, default_cpus) = (whole()?, whole()?);
        let mut half = || header.u16().ok_or_else(|| short.clone());
        let (reserved, count) = (half()?, half()?);
        if reserved != 0 {
            return Err(EifError::Reserved(reserved.into()));
        }
        let in_use = usize::from(count);
        if in_use > MAX_SECTIONS {
            return Err(EifError::TooManySections(count));
        }
        let mut table = || -> Option<Vec<u64>> { (0..MAX_SECTIONS).map(|_| header.u64()).collect() };
        let (offsets, sizes) = (table().ok_or_else(|| short.clone())?, table().ok_or_else(|| short.clone())?);
        let (unused, checksum) = header.u32().zip(header.u32()).ok_or(short)?;
        if unused != 0 {
            return Err(EifError::Reserved(unused));
        }
        let mut sections = Vec::with_capacity(in_use);
        for (number, (offset, size)) in offsets.into_iter().zip(sizes).enumerate() {
            if number < in_use {
                sections.push(section(&mut header, number, offset, size)?);
            } else if (offset, size) != (0, 0) {
                return Err(EifError::Unused(number));
            }
        }
        let trailing = bytes.len().saturating_sub(header.at);
        if trailing > 0 {
            return Err(EifError::Trailing(trailing));
        }
        let found = crc(bytes);
        if found != checksum {
            return Err(EifError::Checksum(found, checksum));
        }
        let image = Self { version, arm: flags & ARM != 0, default_memory, default_cpus, sections };
        image.check_order()?;
        Ok(image)
    }

    /// Kernel, command line, then ramdisks; metadata anywhere behind the command line, a signature anywhere behind the ramdisks.
    fn check_order(&self) -> Result<(), EifError> {
        let kinds: Vec<Kind> = self.sections.iter().map(|section| section.kind).collect();
        let count = |kind| kinds.iter().filter(|k| **k == kind).count();
        for (number, kind) in kinds.iter().enumerate() {
            let before = kinds.get(..number).unwrap_or_default();
            let fits = match kind {
                Kind::Kernel => number == 0,
                Kind::CommandLine => number == 1,
                Kind::Ramdisk => number > 1 && !before.contains(&Kind::Signature),
                Kind::Signature => before.contains(&Kind::Ramdisk) && !before.contains(&Kind::Signature),
                Kind::Metadata => number > 1 && !before.contains(&Kind::Metadata),
            };
            if !fits {
                return Err(EifError::Order(number, kind.name()));
            }
        }
        for kind in [Kind::Kernel, Kind::CommandLine, Kind::Ramdisk] {
            if count(kind) == 0 {
                return Err(EifError::Missing(kind.name()));
            }
        }
        if self.version >= 4 && count(Kind::Metadata) == 0 {
            return Err(EifError::Missing(Kind::Metadata.name()));
        }
        for (since, kind) in [(3, Kind::Signature), (4, Kind::Metadata)] {
            if self.version < since && count(kind) > 0 {
                return Err(EifError::OfAnotherVersion(self.version, kind.name()));
            }
        }
        Ok(())
    }

    /// What the hypervisor will measure.
    pub fn measure(&self) -> Measurements {
        let content = |kind| self.sections.iter().filter(move |s| s.kind == kind).map(|s| s.content);
        let boot = || content(Kind::Kernel).chain(content(Kind::CommandLine));
        Measurements {
            pcr0: pcr(boot().chain(content(Kind::Ramdisk))),
            pcr1: pcr(boot().chain(content(Kind::Ramdisk).take(1))),
            pcr2: pcr(content(Kind::Ramdisk).skip(1)),
        }
    }

    /// The signature section, where there is one.
    pub fn signature(&self) -> Option<&'a [u8]> {
        self.sections.iter().find(|s| s.kind == Kind::Signature).map(|s| s.content)
    }
}

fn section<'a>(file: &mut Reader<'a>, number: usize, offset: u64, size: u64) -> Result<Section<'a>, EifError> {
    let at = u64::try_from(file.at).unwrap_or(u64::MAX);
    let cut_off = EifError::CutOff(number, size, offset, file.bytes.len());
    if offset != at {
        return Err(EifError::Gap(number, offset, at));
    }
    let (kind, flags) = file.u16().zip(file.u16()).ok_or_else(|| cut_off.clone())?;
    let own = file.u64().ok_or_else(|| cut_off.clone())?;
    let kind = Kind::from_number(kind).ok_or(EifError::Kind(number, kind))?;
    if flags != 0 {
        return Err(EifError::SectionFlags(number, flags));
    }
    if own != size {
        return Err(EifError::Length(number, size, own));
    }
    let content = file.slice(size).ok_or(cut_off)?;
    Ok(Section { kind, offset, content })
}

/// Of everything but the field that holds it, the header's last.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes.get(..HEADER_LEN.saturating_sub(4)).unwrap_or_default());
    hasher.update(bytes.get(HEADER_LEN..).unwrap_or_default());
    hasher.finalize()
}

/// SHA384(48 zero bytes ‖ SHA384(content)): how a TPM extends a register that is empty.
pub fn pcr<'a>(content: impl Iterator<Item = &'a [u8]>) -> Pcr {
    let sum = |parts: &mut dyn Iterator<Item = &[u8]>| {
        let mut hash = Context::new(&SHA384);
        for part in parts {
            hash.update(part);
        }
        let mut out = [0; 48];
        for (to, from) in out.iter_mut().zip(hash.finish().as_ref()) {
            *to = *from;
        }
        out
    };
    let mut content = content;
    let inner = sum(&mut content.by_ref().map(|part: &[u8]| part));
    sum(&mut [&[0; 48][..], &inner].into_iter())
}

/// An image of these sections, for x86-64. The order is the caller's; [`Eif::parse`] is what judges it.
pub fn write(sections: &[(Kind, &[u8])]) -> Vec<u8> {
    let len = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let mut offsets = [0_u64; MAX_SECTIONS];
    let mut sizes = [0_u64; MAX_SECTIONS];
    let mut at = HEADER_LEN;
    for (((_, content), offset), size) in sections.iter().zip(&mut offsets).zip(&mut sizes) {
        (*offset, *size) = (len(at), len(content.len()));
        at = at.saturating_add(SECTION_HEADER_LEN).saturating_add(content.len());
    }
    let mut out = Vec::with_capacity(at);
    out.extend(MAGIC);
    out.extend(VERSION.to_be_bytes());
    out.extend(0_u16.to_be_bytes());
    out.extend(DEFAULT_MEMORY.to_be_bytes());
    out.extend(DEFAULT_CPUS.to_be_bytes());
    out.extend(0_u16.to_be_bytes());
    out.extend(u16::try_from(sections.len()).unwrap_or(u16::MAX).to_be_bytes());
    for number in offsets.into_iter().chain(sizes) {
        out.extend(number.to_be_bytes());
    }
    out.extend(0_u32.to_be_bytes());
    let checksum_at = out.len();
    out.extend([0; 4]);
    for (kind, content) in sections {
        out.extend(kind.number().to_be_bytes());
        out.extend(0_u16.to_be_bytes());
        out.extend(len(content.len()).to_be_bytes());
        out.extend_from_slice(content);
    }
    let checksum = crc(&out).to_be_bytes();
    for (to, from) in out.iter_mut().skip(checksum_at).zip(checksum) {
        *to = from;
    }
    out
}
