//! Operators' Ed25519 keys.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use casemate_protocol::command::{OperatorKey, OperatorSignature, signed_bytes};
use pkcs8::pkcs5::pbes2;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use zeroize::Zeroizing;

use crate::input;
use crate::util::{array, must_be_new, no_random_bytes, quoted};

/// What PEM calls an encrypted key (RFC 7468, section 11).
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
/// What OWASP asks for of PBKDF2 with HMAC-SHA256.
const PBKDF2_ROUNDS: u32 = 600_000;
/// Shortest passphrase of a new key, in characters.
const MIN_PASSPHRASE_LEN: usize = 8;

/// An operator's key.
pub struct OperatorPair(Ed25519KeyPair);

impl OperatorPair {
    /// Makes one.
    pub fn generate() -> Result<Self> {
        Ok(Self(Ed25519KeyPair::generate().map_err(|_| no_random_bytes())?))
    }

    /// Reads one (PEM, PKCS #8), as `casemate operator keygen` and `openssl genpkey -algorithm ed25519` write it. Where it is encrypted,
    /// its passphrase is asked for.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&input::read_secret(path)?, || ask_passphrase(path))
            .with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &[u8], passphrase: impl FnOnce() -> Result<Zeroizing<String>>) -> Result<Self> {
        let block = pem::parse(text).map_err(|_| anyhow::anyhow!("no PEM"))?;
        let der = match block.tag() {
            "PRIVATE KEY" => Zeroizing::new(block.into_contents()),
            ENCRYPTED => decrypted(&block.into_contents(), &passphrase()?)?,
            other => bail!("{}, not a PRIVATE KEY (PKCS #8)", quoted(other)),
        };
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der);
        Ok(Self(pair.map_err(|_| anyhow::anyhow!("no Ed25519 key"))?))
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

    /// Writes it, encrypted where there is a passphrase; an existing file is not overwritten, and no other user may read this one.
    pub fn write(&self, path: &Path, passphrase: Option<&str>) -> Result<()> {
        must_be_new(path)?;
        let der = self.0.to_pkcs8v1().map_err(|_| anyhow::anyhow!("the key cannot be written"))?;
        let block = match passphrase {
            None => pem::Pem::new("PRIVATE KEY", der.as_ref()),
            Some(passphrase) => pem::Pem::new(ENCRYPTED, encrypted(der.as_ref(), passphrase)?),
        };
        let text = Zeroizing::new(pem::encode(&block));
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

/// PBES2 as every OpenSSL reads it: PBKDF2 with HMAC-SHA256, and AES-256 in CBC mode.
fn encrypted(der: &[u8], passphrase: &str) -> Result<Vec<u8>> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    for random in [&mut salt, &mut iv] {
        aws_lc_rs::rand::fill(random).map_err(|_| no_random_bytes())?;
    }
    let cannot = |_| anyhow::anyhow!("the key cannot be encrypted");
    let scheme = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(PBKDF2_ROUNDS, &salt, iv).map_err(cannot)?;
    let key = PrivateKeyInfoRef::try_from(der).map_err(|_| anyhow::anyhow!("the key cannot be encrypted"))?;
    let encrypted = key.encrypt_with_params(scheme, passphrase);
    Ok(encrypted.map_err(|_| anyhow::anyhow!("the key cannot be encrypted"))?.as_bytes().to_vec())
}

fn decrypted(der: &[u8], passphrase: &str) -> Result<Zeroizing<Vec<u8>>> {
    let key = EncryptedPrivateKeyInfoRef::try_from(der)
        .map_err(|_| anyhow::anyhow!("the encrypted key is malformed, or not encrypted with PBES2"))?;
    let der =
        key.decrypt(passphrase).map_err(|_| anyhow::anyhow!("wrong passphrase, or a cipher that is not read here"))?;
    Ok(Zeroizing::new(der.as_bytes().to_vec()))
}

fn ask_passphrase(path: &Path) -> Result<Zeroizing<String>> {
    let prompt = format!("Passphrase of {}: ", path.display());
    let text = rpassword::prompt_password(prompt)
        .context("the key is encrypted, and there is no terminal to ask for its passphrase on")?;
    Ok(Zeroizing::new(text))
}

/// A passphrase for a new key, asked for twice.
pub fn new_passphrase() -> Result<Zeroizing<String>> {
    let ask = |prompt: &str| {
        let text = rpassword::prompt_password(prompt).context("there is no terminal to ask for a passphrase on")?;
        Ok::<_, anyhow::Error>(Zeroizing::new(text))
    };
    let passphrase = ask("Passphrase of the new key: ")?;
    if passphrase.chars().count() < MIN_PASSPHRASE_LEN {
        bail!(
            "the passphrase has {} characters; at least {MIN_PASSPHRASE_LEN} are needed. Nothing was written",
            passphrase.chars().count()
        );
    }
    if ask("Once more: ")? != passphrase {
        bail!("the two passphrases differ: nothing was written");
    }
    Ok(passphrase)
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
        pair.write(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(OperatorPair::read(&path).unwrap().public(), pair.public());
        let again = OperatorPair::generate().unwrap().write(&path, None).unwrap_err();
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
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let public = OperatorPair::read(&path).unwrap().public();
        assert_eq!(public.to_string(), "0x19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1");
    }

    #[test]
    fn an_operators_key_that_others_can_read_signs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.pem");
        OperatorPair::generate().unwrap().write(&path, None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = format!("{:#}", OperatorPair::read(&path).map(drop).unwrap_err());
        assert!(error.contains("has the mode 0644") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn an_operators_key_may_be_encrypted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.pem");
        let pair = OperatorPair::generate().unwrap();
        pair.write(&path, Some("correct horse")).unwrap();
        let text = fs::read(&path).unwrap();
        assert!(text.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"));
        let with = |passphrase: &str| OperatorPair::parse(&text, || Ok(Zeroizing::new(passphrase.to_owned())));
        assert_eq!(with("correct horse").unwrap().public(), pair.public());
        let error = format!("{:#}", with("correct mule").map(drop).unwrap_err());
        assert!(error.contains("wrong passphrase"), "{error}");
    }

    /// `openssl genpkey -algorithm ed25519 | openssl pkcs8 -topk8 -v2 aes-256-cbc -passout pass:…`, where there is an openssl to ask.
    #[test]
    fn encrypted_keys_go_to_openssl_and_come_from_it() {
        let openssl = |arguments: &[&str]| std::process::Command::new("openssl").args(arguments).output();
        if openssl(&["version"]).is_err() {
            println!("SKIPPED: there is no openssl here");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (ours, clear, theirs) = (path("ours.pem"), path("clear.pem"), path("theirs.pem"));
        let pair = OperatorPair::generate().unwrap();
        pair.write(ours.as_ref(), Some("correct horse")).unwrap();
        let done = openssl(&["pkey", "-in", &ours, "-passin", "pass:correct horse", "-out", &clear]).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let done =
            openssl(&["pkcs8", "-topk8", "-in", &clear, "-passout", "pass:correct horse", "-out", &theirs]).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let read = OperatorPair::parse(&fs::read(&theirs).unwrap(), || Ok(Zeroizing::new("correct horse".to_owned())));
        assert_eq!(read.unwrap().public(), pair.public());
    }
}
