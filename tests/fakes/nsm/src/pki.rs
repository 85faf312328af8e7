//! Certificates as Nitro's: root, region, zone, instance, leaf; P-384 all the way down.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
};
use time::{Duration, OffsetDateTime};

/// How long a leaf is valid.
pub const LEAF_SECONDS: i64 = 3 * 3600;
/// Days that the region's, the zone's and the instance's certificates are valid, as on Nitro.
const DAYS: [i64; 3] = [20, 6, 1];

/// A certificate with its key.
pub struct Authority {
    /// What the certificate was made from.
    pub params: CertificateParams,
    /// Its key.
    pub key: KeyPair,
    /// The certificate.
    pub der: Vec<u8>,
}

impl Authority {
    /// Signs itself.
    pub fn root(params: CertificateParams) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
        let der = params.self_signed(&key)?.der().to_vec();
        Ok(Self { params, key, der })
    }

    /// The certificate as PEM.
    pub fn pem(&self) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE", self.der.as_slice()))
    }

    /// Signs a certificate for a new P-384 key.
    pub fn issue(&self, params: CertificateParams) -> Result<Self> {
        self.issue_for(params, KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?)
    }

    /// Signs a certificate for any key.
    pub fn issue_for(&self, params: CertificateParams, key: KeyPair) -> Result<Self> {
        let der = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?.der().to_vec();
        Ok(Self { params, key, der })
    }

    /// The root that is kept in `folder`, made there where there is none: `root.pem` for verifiers, `root-key.pem` for
    /// this program alone. Half a root, or one that does not fit, is never replaced in silence: somebody may have pinned it.
    pub fn keep_root(folder: &Path) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| said("making", folder))?;
        let (certificate, key) = (folder.join("root.pem"), folder.join("root-key.pem"));
        let remedy = || format!("remove root.pem and root-key.pem in {} to have a new root made", folder.display());
        match (present(&certificate)?, present(&key)?) {
            (None, None) => {
                let root = Self::root(root_params())?;
                write_new(&key, root.key.serialize_pem().as_bytes(), 0o600)?;
                write_new(&certificate, root.pem().as_bytes(), 0o644)?;
                Ok(root)
            }
            (Some(pem), Some(secret)) => Self::read_root(&pem, &secret).with_context(remedy),
            (None, Some(_)) => Err(anyhow!("root.pem is missing")).with_context(remedy),
            (Some(_), None) => Err(anyhow!("root-key.pem is missing")).with_context(remedy),
        }
    }

    /// A root from its two files.
    pub fn read_root(pem: &str, secret: &str) -> Result<Self> {
        let key = KeyPair::from_pem(secret).context("root-key.pem holds no key")?;
        if !key.is_compatible(&PKCS_ECDSA_P384_SHA384) {
            bail!("root-key.pem holds no P-384 key");
        }
        let der = pem::parse(pem).context("root.pem holds no certificate")?.into_contents();
        // The certificate's own key stands in it as it is.
        if !der.windows(key.public_key_raw().len()).any(|window| window == key.public_key_raw()) {
            bail!("root.pem and root-key.pem do not belong together");
        }
        Ok(Self { params: root_params(), key, der })
    }
}

/// A file's text; `None` where there is no file.
fn present(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => Ok(None),
        Err(error) => Err(error).with_context(|| said("reading", path)),
    }
}

/// Writes a file that is not there yet, whole or not at all.
fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let part = path.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(|| said("writing", &part))?;
    fs::rename(&part, path).with_context(|| said("writing", path))
}

fn said(doing: &str, path: &Path) -> String {
    format!("{doing} {}", path.display())
}

/// Everything below a root, made anew.
pub struct Chain {
    /// From the root to the instance, as documents carry them.
    pub bundle: Vec<Vec<u8>>,
    /// Signs documents.
    pub leaf: Authority,
}

impl Chain {
    /// The region's, the zone's and the instance's certificates and the leaf, valid from `now`.
    pub fn issue(root: &Authority, module_id: &str, now: OffsetDateTime) -> Result<Self> {
        let instance = module_id.split("-enc").next().unwrap_or(module_id);
        let names = [
            "0123456789abcdef.local.casemate-dev.nitro-enclaves".to_owned(),
            "fedcba9876543210.zonal.local.casemate-dev.nitro-enclaves".to_owned(),
            format!("{instance}.local.casemate-dev.nitro-enclaves"),
        ];
        let mut bundle = vec![root.der.clone()];
        let mut last: Option<Authority> = None;
        for (name, (days, path_len)) in names.iter().zip(DAYS.into_iter().zip([2, 1, 0])) {
            let params = authority_params(name, Some(path_len), now, days);
            let next = last.as_ref().unwrap_or(root).issue(params)?;
            bundle.push(next.der.clone());
            last = Some(next);
        }
        let params = leaf_params(&format!("{module_id}.local.casemate-dev"), now, LEAF_SECONDS);
        let leaf = last.as_ref().unwrap_or(root).issue(params)?;
        Ok(Self { bundle, leaf })
    }
}

/// The root's certificate: valid long before and after, so that a stack whose clock stands in the past can use it too.
pub fn root_params() -> CertificateParams {
    let from = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(30 * 365));
    authority_params("casemate-dev.nitro-enclaves", None, from, 49 * 365)
}

/// An authority's certificate.
pub fn authority_params(name: &str, path_len: Option<u8>, from: OffsetDateTime, days: i64) -> CertificateParams {
    let mut params = params(name, from, Duration::days(days));
    params.is_ca = IsCa::Ca(path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A leaf's certificate. Its keyUsage is not critical, as on real leaves.
pub fn leaf_params(name: &str, from: OffsetDateTime, seconds: i64) -> CertificateParams {
    let mut params = params(name, from, Duration::seconds(seconds));
    params.is_ca = IsCa::ExplicitNoCa;
    // BIT STRING, 6 bits unused: digitalSignature and nonRepudiation.
    let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 6, 0xc0]);
    usage.set_criticality(false);
    params.custom_extensions = vec![usage];
    params
}

fn params(name: &str, from: OffsetDateTime, valid: Duration) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CountryName, "US");
    subject.push(DnType::OrganizationName, "Casemate development");
    subject.push(DnType::CommonName, name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = from;
    params.not_after = from.saturating_add(valid);
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_made_once_and_half_a_root_is_never_replaced() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join("nsm").join(name);
        let root = Authority::keep_root(&folder.path().join("nsm"))?;
        let again = || Authority::keep_root(&folder.path().join("nsm"));
        assert_eq!(again()?.der, root.der);
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path("root-key.pem"))?.permissions()) & 0o777,
            0o600
        );
        let told = || again().err().map(|e| format!("{e:#}")).unwrap_or_default();
        let (pem, key) = (fs::read(path("root.pem"))?, fs::read(path("root-key.pem"))?);
        for (name, content) in [("root.pem", &pem), ("root-key.pem", &key)] {
            fs::remove_file(path(name))?;
            assert!(
                told().contains(&format!("{name} is missing")) && told().contains("to have a new root made"),
                "{}",
                told()
            );
            for garbage in [&b""[..], b"-----BEGIN X-----", &[0xff, 0xfe]] {
                fs::write(path(name), garbage)?;
                assert!(again().is_err(), "{name} {garbage:?}");
            }
            fs::write(path(name), content)?;
            assert_eq!(again()?.der, root.der);
        }
        let other = Authority::root(root_params())?;
        fs::write(path("root-key.pem"), other.key.serialize_pem())?;
        assert!(told().contains("do not belong together"), "{}", told());
        fs::write(path("root-key.pem"), KeyPair::generate()?.serialize_pem())?;
        assert!(told().contains("no P-384 key"), "{}", told());
        Ok(())
    }
}
