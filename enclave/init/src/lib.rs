//! What process 1 does, as far as it can be tried outside an enclave.
//!
//! ```
//! use std::io::{Read, Write};
//!
//! /// A parent that answers the heartbeat with the same byte, as the hypervisor's side does.
//! struct Parent(Vec<u8>);
//! # impl Read for Parent {
//! #     fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> { self.0.as_slice().read(out) }
//! # }
//! # impl Write for Parent {
//! #     fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> { self.0.write(bytes) }
//! #     fn flush(&mut self) -> std::io::Result<()> { Ok(()) }
//! # }
//! casemate_init::heartbeat(Parent(Vec::new()))?;
//! # Ok::<_, anyhow::Error>(())
//! ```
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Error, Result, bail};
use casemate_protocol::Configuration;
use rustix::process::{Resource, Rlimit, chroot, setrlimit};

/// The parent, seen from an enclave.
pub const PARENT_CID: u32 = 3;
/// Where nitro-cli waits for the enclave's sign of life.
pub const HEARTBEAT_PORT: u32 = 9000;
const HEARTBEAT: u8 = 0xb7;

/// A compartment: who it is, where it lives, what the kernel grants it at most.
pub struct Compartment<'a> {
    /// Its folder, which becomes its root.
    pub root: &'a str,
    /// Its program, seen from there.
    pub program: &'a str,
    /// User and group.
    pub user: u32,
    /// Descriptors at once.
    pub descriptors: u64,
    /// Processes and threads of its user.
    pub threads: u64,
}

/// Keys. Threads: the workers (one for each of at most 64 vCPUs), as many again while keys are derived, and a handful.
pub const VAULT: Compartment<'static> =
    Compartment { root: "/vault", program: "/casemate-vault", user: 1001, descriptors: 16, threads: 160 };
/// Network. One thread; a descriptor for each connection.
pub const BROKER: Compartment<'static> =
    Compartment { root: "/broker", program: "/casemate-broker", user: 1002, descriptors: 256, threads: 1 };

/// Becomes a compartment. It comes back only with an error.
pub fn enter(compartment: &Compartment<'_>, arguments: &[&str]) -> Error {
    confine(compartment).map_or_else(
        |error| error,
        |()| {
            // The user changes between fork and exec; groups that are not its own are dropped there too.
            let mut command = Command::new(compartment.program);
            command.args(arguments).env_clear().uid(compartment.user).gid(compartment.user);
            Error::new(command.exec()).context(format!("starting {}", compartment.program))
        },
    )
}

fn confine(compartment: &Compartment<'_>) -> Result<()> {
    chroot(compartment.root).with_context(|| format!("making {} the root", compartment.root))?;
    std::env::set_current_dir("/").context("going to the root")?;
    let limits = [
        (Resource::Core, 0),
        // No file grows: nothing can be written but into pipes and sockets.
        (Resource::Fsize, 0),
        (Resource::Nofile, compartment.descriptors),
        (Resource::Nproc, compartment.threads),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Rtprio, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, limit).with_context(|| format!("limiting {resource:?}"))?;
    }
    rustix::thread::set_no_new_privs(true).context("PR_SET_NO_NEW_PRIVS")
}

/// The sign of life: one byte, which must come back.
pub fn heartbeat(mut parent: impl Read + Write) -> Result<()> {
    parent.write_all(&[HEARTBEAT]).context("sending the heartbeat")?;
    let mut answer = [0];
    parent.read_exact(&mut answer).context("waiting for the heartbeat's answer")?;
    match answer {
        [HEARTBEAT] => Ok(()),
        [other] => bail!("the parent answered the heartbeat with {other:#04x} instead of {HEARTBEAT:#04x}"),
    }
}

/// The region of the KMS key.
pub fn region(configuration: &Configuration) -> Result<String> {
    let arn = &configuration.kms_key_arn;
    let region = arn.split(':').nth(3).filter(|region| !region.is_empty());
    region.map(str::to_owned).with_context(|| format!("kms_key_arn {arn:?} names no region"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_heartbeat_must_come_back_as_it_was() {
        let answered = |answer: &[u8]| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(answer).unwrap();
            if answer.is_empty() {
                theirs.shutdown(std::net::Shutdown::Write).unwrap();
            }
            let beat = heartbeat(ours);
            let mut sent = [0];
            theirs.read_exact(&mut sent).unwrap();
            assert_eq!(sent, [0xb7]);
            beat
        };
        answered(&[0xb7]).unwrap();
        assert!(answered(&[0xb8]).unwrap_err().to_string().contains("0xb8 instead of 0xb7"));
        assert!(answered(&[]).is_err());
        assert!(heartbeat(Cursor::new(Vec::new())).is_err());
    }
}
