//! The whole signer on one machine: vault, broker and proxy as three real processes, supervised.
//!
//! The broker and the proxy are the production libraries. The vault is the production library too; what is different here
//! is where its keys come from (this program hands them over), that its watermarks are written to a file, and that a
//! software NSM under a root of its own signs its attestation documents. One
//! executable plays all four parts, so that `cargo run -p casemate-dev` has nothing else to build.
#![forbid(unsafe_code)]

mod banner;
mod boot;
mod cli;
pub mod interop;
mod journal;
mod keys;
mod nsm;
mod stack;
mod vault;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

/// First argument of a process that plays a part.
const VAULT: &str = "__vault";
const BROKER: &str = "__broker";
const PROXY: &str = "__proxy";

/// Runs the part that the arguments name; without one, the stack.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let part = arguments.get(1).and_then(|a| a.to_str()).unwrap_or_default();
    // A part's own arguments, behind a program name for its parser.
    let own = || std::iter::once(OsString::from("casemate")).chain(arguments.iter().skip(2).cloned());
    let ended = match part {
        VAULT => vault::run(),
        BROKER => broker(own()),
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

fn broker(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    use std::os::fd::AsFd;

    use anyhow::Context;

    part_of_a_stack()?;
    let listen = arguments.nth(2).and_then(|a| a.into_string().ok()).unwrap_or_default().parse()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .init();
    let vault = std::io::stdin().as_fd().try_clone_to_owned().context("the vault's socket")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(casemate_broker::run(
        &listen,
        vault.into(),
        None,
    ))
}

/// A part ends with its stack, even where the stack was killed.
fn part_of_a_stack() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    Ok(())
}
