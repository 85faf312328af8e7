//! Credentials for the fence's store, from the files in which operators have them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_protocol::BoundedBytes;
use casemate_protocol::command::StoreCredentials;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::Value;

use crate::input;

/// A client's certificate and key (PEM) as the enclave keeps them.
pub fn etcd(certificate: &[u8], key: &[u8]) -> Result<StoreCredentials> {
    let certificates = CertificateDer::pem_slice_iter(certificate)
        .map(|der| {
            BoundedBytes::new(der.context("the client's certificate")?.to_vec()).context("the certificate is too long")
        })
        .collect::<Result<Vec<_>>>()?;
    if !(1..=4).contains(&certificates.len()) {
        bail!("{} certificates for the client; 1 to 4 are allowed", certificates.len());
    }
    let key = PrivatePkcs8KeyDer::from_pem_slice(key).context("the client's key is no PKCS #8 in PEM")?;
    let key = BoundedBytes::new(key.secret_pkcs8_der().to_vec()).context("the client's key is too long")?;
    Ok(StoreCredentials::Etcd { certificates, key })
}

/// An access key for DynamoDB, as `aws iam create-access-key` writes it.
pub fn dynamodb(path: &Path) -> Result<StoreCredentials> {
    let text = input::read_secret(path)?;
    let file: Value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let key = file.get("AccessKey").unwrap_or(&file);
    let field = |name: &str| {
        let text = key.get(name).and_then(Value::as_str);
        text.map(str::to_owned).with_context(|| format!("{} has no {name}", path.display()))
    };
    let (access_key_id, secret_access_key) = (field("AccessKeyId")?, field("SecretAccessKey")?);
    Ok(StoreCredentials::Dynamodb { access_key_id, secret_access_key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_etcd_are_read_from_pem() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["c".into()]).unwrap().self_signed(&key).unwrap();
        let read = |certificate: &str, key: &str| etcd(certificate.as_bytes(), key.as_bytes());
        let StoreCredentials::Etcd { ref certificates, .. } = read(&certificate.pem(), &key.serialize_pem()).unwrap()
        else {
            panic!("credentials of another kind")
        };
        assert_eq!(certificates.first().map(AsRef::as_ref), Some(certificate.der().as_ref()));
        assert!(read("", &key.serialize_pem()).is_err());
        assert!(read(&certificate.pem(), "").is_err());
        assert!(read(&certificate.pem().repeat(5), &key.serialize_pem()).is_err());
    }
}
