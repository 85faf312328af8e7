//! Operators' Ed25519 keys.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use casemate_protocol::command::{OperatorKey, OperatorSignature, signed_bytes};
use zeroize::Zeroizing;

use crate::input;
use crate::util::{array, must_be_new, no_random_bytes, quoted};

/// Longest key file that is read, in bytes.
const MAX_FILE_LEN: u64 = 64 * 1024;

/// An operator's key.
pub struct OperatorPair(Ed25519KeyPair);

impl OperatorPair {
    /// Makes one.
    pub fn generate() -> Result<Self> {
        Ok(Self(Ed25519KeyPair::generate().map_err(|_| no_random_bytes())?))
    }

    /// Reads one (PEM, PKCS #8), as `casemate operator keygen` and `openssl genpkey -algorithm ed25519` write it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = Zeroizing::new(input::read_file(path, MAX_FILE_LEN)?);
        let block = pem::parse(text.as_slice()).map_err(|_| anyhow::anyhow!("no PEM in {}", path.display()))?;
        if block.tag() != "PRIVATE KEY" {
            bail!("{} holds {}, not a PRIVATE KEY (PKCS #8)", path.display(), quoted(block.tag()));
        }
        let contents = Zeroizing::new(block.into_contents());
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&contents);
        Ok(Self(pair.map_err(|_| anyhow::anyhow!("{} holds no Ed25519 key", path.display()))?))
    }

    /// Reads keys; one that is given twice counts once.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut pairs: Vec<Self> = Vec::new();
        for path in paths {
            let pair = Self::read(path)?;
            if pairs.iter().all(|other| other.public() != pair.public()) {
                pairs.push(pair);
            }
        }
        Ok(pairs)
    }

    /// Writes it; an existing file is not overwritten, and no other user may read this one.
    pub fn write(&self, path: &Path) -> Result<()> {
        must_be_new(path)?;
        let der = self.0.to_pkcs8v1().map_err(|_| anyhow::anyhow!("the key cannot be written"))?;
        let text = Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", der.as_ref())));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("making {}", path.display()))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Its public half.
    pub fn public(&self) -> OperatorKey {
        array(self.0.public_key().as_ref().iter().copied())
    }

    /// Signs a command's bytes.
    pub fn sign(&self, command: &[u8]) -> OperatorSignature {
        let signature = array(self.0.sign(&signed_bytes(command)).as_ref().iter().copied());
        OperatorSignature { operator: self.public(), signature }
    }
}

/// Whether it is the operator's signature over the command.
pub fn is_signed(command: &[u8], signature: &OperatorSignature) -> bool {
    let key = UnparsedPublicKey::new(&ED25519, signature.operator.0);
    key.verify(&signed_bytes(command), &signature.signature.0).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_kept_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.pem");
        let pair = OperatorPair::generate().unwrap();
        pair.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(OperatorPair::read(&path).unwrap().public(), pair.public());
        let again = OperatorPair::generate().unwrap().write(&path).unwrap_err();
        assert!(format!("{again:#}").contains("exists already"), "{again:#}");
        let signature = OperatorPair::read(&path).unwrap().sign(b"command");
        assert!(is_signed(b"command", &signature));
        assert!(!is_signed(b"commanD", &signature));
        for (text, told) in [
            ("hello".to_owned(), "no PEM"),
            (pem::encode(&pem::Pem::new("PUBLIC KEY", vec![1])), "«PUBLIC KEY», not"),
            (pem::encode(&pem::Pem::new("PRIVATE KEY", vec![1])), "no Ed25519 key"),
        ] {
            fs::write(&path, text).unwrap();
            let error = OperatorPair::read(&path).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(told), "{error:#}");
        }
    }

    /// As `openssl genpkey -algorithm ed25519` writes it (RFC 8410, section 10.3).
    #[test]
    fn the_key_of_rfc_8410_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rfc.pem");
        let text = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                    -----END PRIVATE KEY-----\n";
        fs::write(&path, text).unwrap();
        let public = OperatorPair::read(&path).unwrap().public();
        assert_eq!(public.to_string(), "0x19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1");
    }
}
