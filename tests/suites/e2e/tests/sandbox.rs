//! What a compartment that was taken over can still do: nothing but its work. Each forbidden thing is tried, in a process that has
//! entered the sandbox as the vault and the broker do, and the kernel must kill it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};

use casemate_e2e::Stack;
use casemate_e2e::stack::eventually;
use casemate_sandbox::{Allowed, broker, vault};

const PROBE: &str = env!("CARGO_BIN_EXE_casemate-e2e-probe");
const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const SIGSYS: i32 = 31;
const SIGILL: i32 = 4;
/// System calls that x86-64 has today end before this.
const CALLS: i64 = 480;
/// Nobody on this machine.
const USER: u32 = 1001;

fn probe(compartment: &str, what: &str, argument: &str) -> Output {
    Command::new(PROBE).args([compartment, what, argument]).stdin(Stdio::null()).output().unwrap()
}

fn killed(compartment: &str, what: &str, argument: &str) {
    let ended = probe(compartment, what, argument);
    let told = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.signal(), Some(SIGSYS), "{compartment} {what} {argument}: {:?} {told}", ended.status);
    assert!(!told.contains("alive"), "{compartment} {what}");
}

#[test]
fn work_goes_on_inside() {
    for compartment in ["vault", "broker"] {
        let done = probe(compartment, "work", "");
        assert_eq!(String::from_utf8_lossy(&done.stdout), "alive\n", "{compartment}: {done:?}");
    }
    let accepting = Command::new(PROBE).args(["broker", "socket"]).output().unwrap();
    assert_eq!(accepting.status.signal(), Some(SIGSYS), "TCP is another family than vsock");
}

#[test]
fn the_vault_is_killed_for_whatever_is_not_its_work() {
    let me = std::process::id().to_string();
    for what in [
        "open",
        "read-memory",
        "socket",
        "unix-socket",
        "unix-pair",
        "accept",
        "run",
        "execve",
        "fork",
        "vfork",
        "ptrace",
        "process-vm-readv",
        "kill",
        "map-code",
        "protect-code",
        "be-dumped",
        "terminal",
        "lock",
    ] {
        killed("vault", what, &me);
    }
}

#[test]
fn the_broker_is_killed_for_whatever_is_not_its_work() {
    let me = std::process::id().to_string();
    for what in [
        "open",
        "read-memory",
        "socket",
        "unix-socket",
        "unix-pair",
        "run",
        "thread",
        "execve",
        "fork",
        "vfork",
        "ptrace",
        "process-vm-readv",
        "kill",
        "map-code",
        "protect-code",
        "be-dumped",
        "terminal",
        "lock",
    ] {
        killed("broker", what, &me);
    }
}

fn every_other_call(compartment: &str, list: &[Allowed], besides: &[i64]) {
    let mut tried = 0;
    for number in (0..CALLS).filter(|n| !list.iter().any(|allowed| allowed.number() == *n) && !besides.contains(n)) {
        // uretprobe and uprobe: newer kernels do not ask seccomp, and do nothing outside a probe that they have set themselves.
        if (335..=336).contains(&number) {
            let status = probe(compartment, "call", &number.to_string()).status;
            let nothing = status.success() || [Some(SIGILL), Some(SIGSYS)].contains(&status.signal());
            assert!(nothing, "{compartment} {number}: {status}");
        } else {
            killed(compartment, "call", &number.to_string());
        }
        tried += 1;
    }
    assert!(tried > 400, "{tried}");
}

#[test]
fn every_system_call_that_is_not_on_the_vaults_list_kills_it() {
    every_other_call("vault", &vault(), &[]);
}

#[test]
fn every_system_call_that_is_not_on_the_brokers_list_kills_it() {
    // 41 is socket, of one family.
    every_other_call("broker", &broker(), &[41]);
    killed("broker", "call", "41");
}

/// Somebody who runs as the vault's or the broker's own user, outside of every sandbox, reads nothing of it.
#[test]
fn nobody_of_the_same_user_reads_a_compartments_memory() {
    if !std::fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t0\t0\t0") {
        println!("SKIPPED: users can be changed by root alone");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("probe");
    std::fs::copy(PROBE, &program).unwrap();
    let denied = |pid: u32| {
        let script = format!("head -c 1 /proc/{pid}/maps");
        let out = Command::new("/bin/sh").args(["-c", &script]).uid(USER).gid(USER).current_dir("/").output().unwrap();
        !out.status.success() && String::from_utf8_lossy(&out.stderr).contains("denied")
    };
    let mut open = Command::new("/bin/sleep").arg("20").uid(USER).gid(USER).spawn().unwrap();
    assert!(!denied(open.id()), "a process without the sandbox can be read, so a refusal means something");
    for compartment in ["vault", "broker"] {
        let mut inside = Command::new(&program).args([compartment, "wait"]).uid(USER).gid(USER).spawn().unwrap();
        eventually("the sandbox to close", || {
            std::fs::read_to_string(format!("/proc/{}/status", inside.id())).unwrap().contains("Seccomp:\t2")
        });
        assert!(denied(inside.id()), "{compartment}");
        let _ = inside.kill();
        let _ = inside.wait();
    }
    let _ = open.kill();
    let _ = open.wait();
}

/// The development stack's own vault and broker, not a probe: filters in force, no new privileges, no core dumps, nobody may
/// look into their memory, and only descriptors that they need.
#[test]
fn the_stack_runs_inside_the_sandbox() {
    let stack = Stack::start(PROGRAM, &["--interop-keys", "1"]);
    for (part, descriptors) in [
        ("vault", &["pipe:", "socket:", "watermarks"][..]),
        ("broker", &["socket:", "anon_inode:", "/dev/null", "pipe:"]),
    ] {
        let pid = stack.pids[part];
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {status}"));
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!((field("Seccomp:"), field("NoNewPrivs:")), ("2".to_owned(), "1".to_owned()), "{part}");
        assert_eq!(field("CoreDumping:"), "0");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
            let target = target.to_str().unwrap().to_owned();
            let log = target.ends_with("stderr") || target == "/dev/null";
            assert!(log || descriptors.iter().any(|known| target.contains(known)), "{part} has {target} open");
        }
        // Every thread of it.
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            assert!(status.contains("Seccomp:\t2"), "{part}: {status}");
        }
    }
    assert!(stack.stop().success());
}
