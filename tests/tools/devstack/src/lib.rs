//! The whole signer on one machine: vault, broker, proxy and KMS as real processes, supervised.
//!
//! The broker and the proxy are the production libraries. The vault is the production library too; what is different here
//! is that its watermarks are written to a file, that a software NSM under a root of its own signs its attestation documents, and
//! that KMS is a process of this machine. Keys are imported as an operator imports them. One
//! executable plays all parts, so that `cargo run -p casemate-dev` has nothing else to build.
#![forbid(unsafe_code)]

mod banner;
mod boot;
mod cli;
mod etcd;
pub mod interop;
mod journal;
mod keys;
mod kms;
mod machines;
mod nsm;
mod profile;
mod stack;
mod vault;

use std::ffi::{CString, OsString};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;

/// First argument of a process that plays a part.
const VAULT: &str = "__vault";
const BROKER: &str = "__broker";
/// For a broker without its sandbox.
const BARE: &str = "bare";
const PROXY: &str = "__proxy";
const KMS: &str = "__kms";
const ETCD: &str = "__etcd";

/// Runs the part that the arguments name; without one, the stack.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let part = arguments.get(1).and_then(|a| a.to_str()).unwrap_or_default();
    // A part's own arguments, behind a program name for its parser.
    let own = || std::iter::once(OsString::from("casemate")).chain(arguments.iter().skip(2).cloned());
    if let Some(part) = part.strip_prefix("__").and_then(|part| CString::new(format!("casemate-{part}")).ok()) {
        // For ps and pgrep: every part is the same program.
        let _ = rustix::thread::set_name(&part);
    }
    let ended = match part {
        VAULT => vault::run(),
        BROKER => broker(own()),
        KMS => kms::run(),
        ETCD => casemate_local_etcd::run(own().skip(1)),
        PROXY => part_of_a_stack().and_then(|()| casemate_proxy::start(own())),
        _ => stack::run(arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "casemate-dev{}: {error:#}",
                part.strip_prefix("__").map(|p| format!(" ({p})")).unwrap_or_default()
            );
            ExitCode::FAILURE
        }
    }
}

/// The broker's process; with egress and KMS's port where keys are sealed.
fn broker(arguments: impl Iterator<Item = OsString>) -> Result<()> {
    use std::os::fd::AsFd;

    use anyhow::Context;
    use casemate_broker::kms::{Kms, KmsSettings};
    use casemate_broker::parent::Parent;
    use casemate_broker::services::Services;

    part_of_a_stack()?;
    let arguments: Vec<String> = arguments.skip(1).filter_map(|a| a.into_string().ok()).collect();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    let vault = std::io::stdin().as_fd().try_clone_to_owned().context("the vault's socket")?;
    let (listen, egress) = match arguments.as_slice() {
        [listen] => (listen, None),
        [listen, bare] if bare == BARE => (listen, None),
        [listen, egress, port] => (listen, Some((egress, port))),
        _ => anyhow::bail!("this is a part of casemate-dev"),
    };
    let listen = listen.parse()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = casemate_broker::Listener::bind(&listen)?;
        // As in the image; only that its sockets are Unix sockets here.
        if arguments.get(1).is_none_or(|word| word != BARE) {
            casemate_sandbox::enter_broker(casemate_sandbox::Family::Unix)?;
        }
        let services = match egress {
            Some((egress, port)) => {
                let parent = Parent::new(egress.parse()?);
                let (region, host) = (kms::REGION.to_owned(), kms::HOST.to_owned());
                let settings = KmsSettings { region, host, port: port.parse()? };
                Some(Arc::new(Services::new(Kms::new(parent.clone(), settings), parent)))
            }
            None => None,
        };
        casemate_broker::run(listener, vault.into(), services).await
    })
}

/// A part ends with its stack, even where the stack was killed.
fn part_of_a_stack() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    Ok(())
}
