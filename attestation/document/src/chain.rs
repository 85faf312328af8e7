//! The certificates: from the leaf to the pinned root, never to whatever root a document brings.
//!
//! rustls-webpki builds and checks the path (signatures, validity, basicConstraints, path length, critical extensions). What
//! it leaves to its callers is checked here before: P-384 keys and ecdsa-with-SHA384 alone, keyUsage, the root's own
//! validity, that the bundle is this very chain in this very order with nothing beside it. Where both look at
//! the same thing, the check here is for its sentence.

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{Cert, EndEntityCert, KeyUsage as ExtendedUsage};
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::error::{hex, shown};
use crate::limits::{MAX_BUNDLE_LEN, MAX_CERTIFICATE_LEN};
use crate::{CertPosition, Error, TOLERANCE_MS, Timestamp};

const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// An uncompressed point: 4, x, y.
const POINT_LEN: usize = 97;

/// A trust anchor: the one root that a chain may start at.
#[derive(Clone, Debug)]
pub struct Anchor {
    der: CertificateDer<'static>,
    trust: TrustAnchor<'static>,
    parsed: Certificate,
}

impl Anchor {
    /// The AWS Nitro Enclaves root G1.
    pub fn aws() -> Result<Self, Error> {
        Self::from_der(crate::AWS_ROOT_G1_DER)
    }

    /// Another root: of a development stack or a test.
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        let place = CertPosition::Root;
        let malformed = |problem: String| Error::Certificate { place, problem };
        if der.len() > MAX_CERTIFICATE_LEN {
            return Err(malformed(format!("it is {} bytes long; {MAX_CERTIFICATE_LEN} are allowed", der.len())));
        }
        let der = CertificateDer::from(der.to_vec());
        let parsed = Certificate::from_der(&der).map_err(|e| malformed(e.to_string()))?;
        check_algorithms(&parsed, place)?;
        check_extensions(&parsed, place)?;
        check_authority(&parsed, place, 0)?;
        let trust = webpki::anchor_from_trusted_cert(&der).map_err(|e| malformed(e.to_string()))?.to_owned();
        Ok(Self { der, trust, parsed })
    }

    /// SHA-256 of the certificate.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }
}

/// What a verified certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Its subject, as RFC 4514 writes names.
    pub subject: String,
    /// First moment of its validity.
    pub not_before: Timestamp,
    /// Last second of its validity.
    pub not_after: Timestamp,
    /// SHA-256 of its DER.
    pub sha256: [u8; 32],
}

/// A verified chain.
pub(crate) struct Chain {
    /// From the root to the leaf.
    pub(crate) certificates: Vec<CertificateSummary>,
    /// The leaf's P-384 point, uncompressed.
    pub(crate) leaf_point: Vec<u8>,
}

/// Verifies a chain at the time `at`: `bundle` from the root down, and the `leaf` below its last certificate.
///
/// Answers what the certificates say, from the root to the leaf.
pub fn verify_chain(
    leaf: &[u8],
    bundle: &[&[u8]],
    anchor: &Anchor,
    at: Timestamp,
) -> Result<Vec<CertificateSummary>, Error> {
    verify(leaf, bundle, anchor, at).map(|chain| chain.certificates)
}

pub(crate) fn verify(leaf: &[u8], bundle: &[&[u8]], anchor: &Anchor, at: Timestamp) -> Result<Chain, Error> {
    let Some((root, intermediates)) = bundle.split_first() else {
        return Err(Error::Bundle { found: 0, max: MAX_BUNDLE_LEN });
    };
    if *root != anchor.der.as_ref() {
        return Err(Error::Root { found: hex(&sha256(root)), pinned: hex(&anchor.sha256()) });
    }
    if u64::try_from(bundle.len()).map_or(true, |len| len > MAX_BUNDLE_LEN) {
        return Err(Error::Bundle { found: u64::try_from(bundle.len()).unwrap_or(u64::MAX), max: MAX_BUNDLE_LEN });
    }

    // Each by itself and beside its neighbour, from the root down.
    check_validity(&anchor.parsed, CertPosition::Root, at)?;
    check_path_length(&anchor.parsed, CertPosition::Root, intermediates.len())?;
    let mut certificates = vec![summary(&anchor.parsed, root)];
    let mut latest_not_before = not_before(&anchor.parsed);
    let mut above = anchor.parsed.clone();
    for (index, der) in intermediates.iter().enumerate() {
        let place = CertPosition::Intermediate(index.saturating_add(1));
        let certificate = parse(der, place)?;
        check_one(&certificate, place, &above, at)?;
        check_authority(&certificate, place, intermediates.len().saturating_sub(index).saturating_sub(1))?;
        certificates.push(summary(&certificate, der));
        latest_not_before = latest_not_before.max(not_before(&certificate));
        above = certificate;
    }
    let parsed_leaf = parse(leaf, CertPosition::Leaf)?;
    check_one(&parsed_leaf, CertPosition::Leaf, &above, at)?;
    check_leaf(&parsed_leaf)?;
    certificates.push(summary(&parsed_leaf, leaf));
    latest_not_before = latest_not_before.max(not_before(&parsed_leaf));

    // Then the path as a whole. A clock that is a little behind was allowed above.
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.max(latest_not_before).seconds()));
    let path = |problem: webpki::Error| Error::Path { problem: explain(&problem) };
    let leaf_der = CertificateDer::from(leaf);
    let end_entity = EndEntityCert::try_from(&leaf_der).map_err(path)?;
    let between: Vec<CertificateDer<'_>> = intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let verified = end_entity
        .verify_for_usage(
            &[webpki::aws_lc_rs::ECDSA_P384_SHA384],
            std::slice::from_ref(&anchor.trust),
            &between,
            time,
            // Real leaves name no extended usage; one that does must name this.
            ExtendedUsage::client_auth(),
            None,
            None,
        )
        .map_err(path)?;
    // From the leaf upwards, as it stands in the bundle from the root down.
    if !verified.intermediate_certificates().map(Cert::der).eq(between.iter().rev().cloned()) {
        return Err(Error::Path { problem: "not every certificate of the bundle is part of it".to_owned() });
    }
    let leaf_point = parsed_leaf.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes().to_vec();
    Ok(Chain { certificates, leaf_point })
}

fn parse(der: &[u8], place: CertPosition) -> Result<Certificate, Error> {
    if der.len() > MAX_CERTIFICATE_LEN {
        let problem = format!("it is {} bytes long; {MAX_CERTIFICATE_LEN} are allowed", der.len());
        return Err(Error::Certificate { place, problem });
    }
    Certificate::from_der(der).map_err(|e| Error::Certificate { place, problem: e.to_string() })
}

/// What holds for every certificate below the root.
fn check_one(certificate: &Certificate, place: CertPosition, above: &Certificate, at: Timestamp) -> Result<(), Error> {
    let (issuer, subject) = (certificate.tbs_certificate().issuer(), above.tbs_certificate().subject());
    if issuer != subject {
        return Err(Error::Order { place, issuer: text(issuer), above: text(subject) });
    }
    check_algorithms(certificate, place)?;
    check_extensions(certificate, place)?;
    check_validity(certificate, place, at)
}

/// P-384 and SHA-384, nothing else.
fn check_algorithms(certificate: &Certificate, place: CertPosition) -> Result<(), Error> {
    let tbs = certificate.tbs_certificate();
    if tbs.version() != Version::V3 {
        return Err(Error::Certificate { place, problem: "it is not of X.509 version 3".to_owned() });
    }
    for algorithm in [tbs.signature(), certificate.signature_algorithm()] {
        if algorithm.oid != ECDSA_WITH_SHA384 || algorithm.parameters.is_some() {
            return Err(Error::SignatureAlgorithm { place, found: algorithm.oid.to_string() });
        }
    }
    let key = tbs.subject_public_key_info();
    let curve = curve(&key.algorithm);
    if key.algorithm.oid != EC_PUBLIC_KEY || curve != Some(SECP384R1) {
        let found = curve.unwrap_or(key.algorithm.oid).to_string();
        return Err(Error::KeyAlgorithm { place, found });
    }
    match key.subject_public_key.as_bytes() {
        Some(point @ [4, ..]) if point.len() == POINT_LEN => Ok(()),
        _ => Err(Error::Certificate { place, problem: "its key is no uncompressed point".to_owned() }),
    }
}

fn curve(algorithm: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    algorithm.parameters.as_ref().and_then(|p| p.decode_as::<ObjectIdentifier>().ok())
}

/// No extension twice, and no critical one beyond the two that are understood here.
fn check_extensions(certificate: &Certificate, place: CertPosition) -> Result<(), Error> {
    let extensions = certificate.tbs_certificate().extensions().map(Vec::as_slice).unwrap_or_default();
    for (number, extension) in extensions.iter().enumerate() {
        let oid = extension.extn_id;
        if extensions.iter().take(number).any(|earlier| earlier.extn_id == oid) {
            return Err(Error::Certificate { place, problem: format!("the extension {oid} occurs twice") });
        }
        if extension.critical && oid != BasicConstraints::OID && oid != KeyUsage::OID {
            return Err(Error::CriticalExtension { place, oid: oid.to_string() });
        }
    }
    Ok(())
}

fn extension<'a, T: Decode<'a> + AssociatedOid>(
    certificate: &'a Certificate,
    place: CertPosition,
) -> Result<Option<T>, Error> {
    let extensions = certificate.tbs_certificate().extensions().map(Vec::as_slice).unwrap_or_default();
    extensions
        .iter()
        .find(|extension| extension.extn_id == T::OID)
        .map(|extension| T::from_der(extension.extn_value.as_bytes()))
        .transpose()
        .map_err(|_| Error::Certificate { place, problem: format!("the extension {} cannot be read", T::OID) })
}

/// basicConstraints, path length and keyUsage of an authority with `below` authorities under it.
fn check_authority(certificate: &Certificate, place: CertPosition, below: usize) -> Result<(), Error> {
    let basic = extension::<BasicConstraints>(certificate, place)?;
    if !basic.is_some_and(|basic| basic.ca) {
        return Err(Error::NotAnAuthority { place });
    }
    let usage = extension::<KeyUsage>(certificate, place)?;
    if !usage.is_some_and(|usage| usage.key_cert_sign()) {
        return Err(Error::KeyUsage { place, needed: "keyCertSign" });
    }
    check_path_length(certificate, place, below)
}

fn check_path_length(certificate: &Certificate, place: CertPosition, below: usize) -> Result<(), Error> {
    let basic = extension::<BasicConstraints>(certificate, place)?;
    match basic.and_then(|basic| basic.path_len_constraint) {
        Some(allowed) if below > usize::from(allowed) => Err(Error::PathLength { place, allowed, found: below }),
        _ => Ok(()),
    }
}

/// The leaf signs documents and nothing else. Its keyUsage is not critical on real leaves.
fn check_leaf(certificate: &Certificate) -> Result<(), Error> {
    let place = CertPosition::Leaf;
    if extension::<BasicConstraints>(certificate, place)?.is_some_and(|basic| basic.ca) {
        return Err(Error::LeafIsAuthority);
    }
    let usage = extension::<KeyUsage>(certificate, place)?;
    if !usage.is_some_and(|usage| usage.digital_signature()) {
        return Err(Error::KeyUsage { place, needed: "digitalSignature" });
    }
    Ok(())
}

fn check_validity(certificate: &Certificate, place: CertPosition, at: Timestamp) -> Result<(), Error> {
    let (not_before, not_after) = (not_before(certificate), not_after(certificate));
    if at.plus(TOLERANCE_MS) < not_before {
        return Err(Error::NotYetValid { place, not_before, at });
    }
    // notAfter is the last second that counts (RFC 5280, section 4.1.2.5).
    if at.seconds() > not_after.seconds() {
        return Err(Error::Expired { place, not_after, at });
    }
    Ok(())
}

fn not_before(certificate: &Certificate) -> Timestamp {
    Timestamp::from_seconds(certificate.tbs_certificate().validity().not_before.to_unix_duration().as_secs())
}

fn not_after(certificate: &Certificate) -> Timestamp {
    Timestamp::from_seconds(certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

fn summary(certificate: &Certificate, der: &[u8]) -> CertificateSummary {
    CertificateSummary {
        subject: text(certificate.tbs_certificate().subject()),
        not_before: not_before(certificate),
        not_after: not_after(certificate),
        sha256: sha256(der),
    }
}

/// A name for people: of bounded length, and safe on a terminal.
fn text(name: &Name) -> String {
    shown(&name.to_string(), 128)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    // SHA-256 gives 32 bytes, always.
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

fn explain(error: &webpki::Error) -> String {
    match error {
        webpki::Error::InvalidSignatureForPublicKey => "a certificate is not signed by the one above it".to_owned(),
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "the leaf's extended key usage is for something else".to_owned()
        }
        other => format!("{other:?}"),
    }
}
