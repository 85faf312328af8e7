//! What each compartment may still ask of the kernel, once it has opened what it needs.
//!
//! Lists of allowed system calls (seccomp), closed before the first byte from outside is read; everything else ends the process.
//! In the image, users, roots and limits that only process 1 can set come on top (casemate-init); what is here holds in
//! the development stack too, so that every test runs inside it.
//!
//! ```
//! // Neither compartment may start another program: `execve`, number 59 on x86-64, is on no list.
//! for allowed in [casemate_sandbox::broker(), casemate_sandbox::vault()] {
//!     assert!(allowed.iter().all(|call| call.number() != 59));
//! }
//! ```
#![forbid(unsafe_code)]

mod lists;

use std::collections::BTreeMap;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

pub use lists::{JOURNAL, broker, vault};

/// The sandbox could not be closed. Nobody goes on without it.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox cannot be closed: {0}")]
pub struct SandboxError(String);

/// Where an argument matters: its number, and what it must be.
#[derive(Clone, Copy, Debug)]
pub enum Only {
    /// Any arguments.
    Any,
    /// This argument has this value, as 32 bits.
    Equal(u8, u32),
    /// Of this argument none of these bits is set, as 64 bits.
    Without(u8, u64),
}

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Its name, for people.
    pub name: &'static str,
    number: i64,
    only: Only,
}

impl Allowed {
    /// Its number on this machine.
    pub fn number(&self) -> i64 {
        self.number
    }
}

/// Kinds of sockets that the broker may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// To the parent of an enclave.
    Vsock,
    /// To the parent's process in the development stack.
    Unix,
}

/// Closes the vault's sandbox. What must be open is open: the NSM, the broker's socket; `journal` where watermarks go to an
/// open file too (the development stack).
pub fn enter_vault(journal: bool) -> Result<(), SandboxError> {
    harden()?;
    let mut list = vault();
    if journal {
        list.extend(JOURNAL);
    }
    // Anyone who makes threads falls back to clone, whose flags a filter can see; those of clone3 lie in memory.
    apply(&[(libc::SYS_clone3, vec![])], SeccompAction::Allow, SeccompAction::Errno(no_such_call()))?;
    allow(&list)
}

/// Closes the broker's sandbox. Its listening socket is open; it may make sockets of this one family.
pub fn enter_broker(family: Family) -> Result<(), SandboxError> {
    harden()?;
    let domain = match family {
        Family::Vsock => libc::AF_VSOCK,
        Family::Unix => libc::AF_UNIX,
    };
    let domain = u32::try_from(domain).map_err(|e| SandboxError(e.to_string()))?;
    let mut list = broker();
    list.push(Allowed { name: "socket", number: libc::SYS_socket, only: Only::Equal(0, domain) });
    allow(&list)
}

/// No core dumps, no reader of the memory (not even of the same user), and no program that gives rights back.
fn harden() -> Result<(), SandboxError> {
    let told = |what: &'static str| move |e: rustix::io::Errno| SandboxError(format!("{what}: {e}"));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(told("core dumps"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(told("PR_SET_DUMPABLE"))?;
    set_no_new_privs(true).map_err(told("PR_SET_NO_NEW_PRIVS"))
}

fn allow(list: &[Allowed]) -> Result<(), SandboxError> {
    let mut calls = Vec::with_capacity(list.len());
    for Allowed { number, only, .. } in list {
        let condition = match *only {
            Only::Any => None,
            Only::Equal(argument, value) => Some((argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())),
            Only::Without(argument, bits) => Some((argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0)),
        };
        let rules = match condition {
            None => vec![],
            Some((argument, len, op, value)) => {
                let condition = SeccompCondition::new(argument, len, op, value).map_err(told)?;
                vec![SeccompRule::new(vec![condition]).map_err(told)?]
            }
        };
        calls.push((*number, rules));
    }
    apply(&calls, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn apply(
    calls: &[(i64, Vec<SeccompRule>)],
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<(), SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (number, of_call) in calls {
        // Several lines of one call: any of them. One without conditions is all of it.
        let known = rules.entry(*number).or_insert_with(|| of_call.clone());
        if of_call.is_empty() {
            known.clear();
        } else if !known.is_empty() {
            known.extend(of_call.iter().cloned());
        }
    }
    let arch = std::env::consts::ARCH.try_into().map_err(told)?;
    let program: BpfProgram =
        SeccompFilter::new(rules, otherwise, action, arch).and_then(TryInto::try_into).map_err(told)?;
    seccompiler::apply_filter(&program).map_err(told)
}

fn no_such_call() -> u32 {
    libc::ENOSYS.unsigned_abs()
}

fn told(error: impl std::fmt::Display) -> SandboxError {
    SandboxError(error.to_string())
}
