//! `casemate-vault`: the key compartment's process, started by the image's init.
//!
//! Standard input gives the configuration (docs/PROTOCOL.md), and ends; standard output is the socket to the broker. The only
//! NSM here is `/dev/nsm`, the only KMS that of the ARN's region under Amazon's roots. It says one sentence when it cannot go on,
//! and nothing else.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use casemate_vault::boot::program;
use casemate_vault::link::kms::Endpoint;

fn main() -> ExitCode {
    let started = std::io::stdout().as_fd().try_clone_to_owned();
    let ended = started
        .map_err(Into::into)
        .and_then(|socket| program(std::io::stdin().lock(), &UnixStream::from(socket), Endpoint::of_key));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate-vault: {error}");
            ExitCode::FAILURE
        }
    }
}
