//! `casemate-vm-vault`: the vault of test images. All of it is the production vault's library; only that KMS's certificate comes from
//! a root that everybody has the key of (tests/fakes/kms/vm-root).
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use casemate_vault::boot::program;
use casemate_vault::link::kms::{Endpoint, host_of_key};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const ROOT: &[u8] = include_bytes!("../../kms/vm-root/root.pem");

fn main() -> ExitCode {
    let started = std::io::stdout().as_fd().try_clone_to_owned();
    let ended =
        started.map_err(Into::into).and_then(|socket| program(std::io::stdin().lock(), &UnixStream::from(socket), kms));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate-vm-vault: {error}");
            ExitCode::FAILURE
        }
    }
}

fn kms(key_arn: &str) -> Option<Endpoint> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ROOT).ok()?).ok()?;
    Endpoint::new(&host_of_key(key_arn)?, 443, roots)
}
