//! Certificates as Nitro's: root, region, zone, instance, leaf; P-384 all the way down.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
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
    /// this program alone.
    pub fn keep_root(folder: &Path) -> Result<Self> {
        let (certificate, key) = (folder.join("root.pem"), folder.join("root-key.pem"));
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let params = root_params();
        if let (Ok(key), Ok(pem)) = (fs::read_to_string(&key), fs::read(&certificate)) {
            let key = KeyPair::from_pem(&key).with_context(|| format!("the key in {}", folder.display()))?;
            let pem = pem::parse(pem).with_context(|| format!("no certificate in {}", certificate.display()))?;
            return Ok(Self { params, key, der: pem.into_contents() });
        }
        let root = Self::root(params)?;
        let mut secret = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&key)?;
        secret.write_all(root.key.serialize_pem().as_bytes())?;
        fs::write(&certificate, pem::encode(&pem::Pem::new("CERTIFICATE", root.der.as_slice())))
            .with_context(|| format!("writing {}", certificate.display()))?;
        Ok(root)
    }
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
