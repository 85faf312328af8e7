//! TLS and mutual TLS from PEM files, reloaded without a restart.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Where the PEM files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// With it, only clients with a certificate that these authorities signed are served.
    pub client_ca: Option<PathBuf>,
}

/// The TLS configuration in force.
pub struct Tls {
    files: TlsFiles,
    config: RwLock<Loaded>,
    /// Counts the changes of the clients' authorities.
    authorities: watch::Sender<u64>,
}

#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// The clients' authorities, in their order; empty where none are asked for.
    authorities: Vec<CertificateDer<'static>>,
}

/// Tells a connection that it was admitted by authorities that are not in force any more.
pub struct Admitted(Option<watch::Receiver<u64>>);

impl Admitted {
    /// By nobody: without TLS.
    pub fn without_tls() -> Self {
        Self(None)
    }

    /// Resolves when other authorities are in force than those of the connection's beginning.
    pub async fn revoked(&mut self) {
        let Some(changes) = &mut self.0 else { return std::future::pending().await };
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Tls {
    /// Reads the files.
    pub fn new(files: TlsFiles) -> Result<Self> {
        let config = RwLock::new(read(&files)?);
        Ok(Self { files, config, authorities: watch::Sender::new(0) })
    }

    /// Reads the files again; where that fails, the old configuration stays. Whether other authorities are in force now: then the
    /// connections that the old ones admitted are told to end.
    pub fn reload(&self) -> Result<bool> {
        let new = read(&self.files)?;
        let mut config = self.config.write().unwrap_or_else(PoisonError::into_inner);
        let changed = config.authorities != new.authorities;
        *config = new;
        drop(config);
        if changed {
            self.authorities.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
        Ok(changed)
    }

    /// For the next connection, with what tells it when its authorities are not in force any more.
    pub fn acceptor(&self) -> (TlsAcceptor, Admitted) {
        // In this order: a reload in between is one that the connection hears of.
        let admitted = Admitted(Some(self.authorities.subscribe()));
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner).config);
        (config.into(), admitted)
    }
}

/// The SHA-256 of a client's certificate, as `openssl x509 -fingerprint -sha256` shows it but for colons and case.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    const_hex::encode(digest(&SHA256, certificate))
}

fn read(files: &TlsFiles) -> Result<Loaded> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificates = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("no private key in {}", files.key.display()))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("no usable TLS version")?;
    let mut authorities = Vec::new();
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            authorities = self::certificates(path)?;
            for certificate in &authorities {
                roots
                    .add(certificate.clone())
                    .with_context(|| format!("{} holds no usable authority", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .with_context(|| format!("{} cannot verify clients", path.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(certificates, key)
        .with_context(|| format!("{} and {} do not fit", files.certificate.display(), files.key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), authorities })
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("no certificate in {}", path.display()))?;
    if certificates.is_empty() {
        bail!("no certificate in {}", path.display());
    }
    Ok(certificates)
}
