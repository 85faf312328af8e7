//! What process 1 makes of a compartment, seen from outside: as root, on this machine, with programs of this machine.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use casemate_init::{BROKER, Compartment, VAULT, enter};

const ENTER: &str = "CASEMATE_TEST_ENTER";

/// Not a test: the process that becomes a compartment. `ROOT USER PROGRAM ARGUMENT`.
#[test]
fn becomes_a_compartment_where_it_is_told_to() {
    let Ok(told) = std::env::var(ENTER) else { return };
    let words: Vec<&str> = told.split('|').collect();
    let template = if words[1] == VAULT.user.to_string() { VAULT } else { BROKER };
    let compartment = Compartment { root: words[0], program: words[2], ..template };
    let error = enter(&compartment, &words[3..]);
    eprintln!("not entered: {error:#}");
    std::process::exit(99);
}

/// A folder with a program and the libraries that it needs.
fn folder_with(program: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries: BTreeSet<&str> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    for file in libraries.into_iter().chain([program]) {
        let place = folder.path().join(file.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(file, place).unwrap();
    }
    folder
}

/// One test at a time: the kernel counts the processes of a user, and the broker's user may have one.
static USERS: Mutex<()> = Mutex::new(());

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn compartment(root: &Path, user: u32, program: &str, argument: &str) -> Running {
    let told = format!("{}|{user}|{program}|{argument}", root.display());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "becomes_a_compartment_where_it_is_told_to", "--nocapture", "--test-threads", "1"])
        .env(ENTER, told)
        .env("SECRET", "of the parent")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let name = program.rsplit('/').next().unwrap();
    let begun = Instant::now();
    while fs::read_to_string(format!("/proc/{}/comm", running.0.id())).unwrap_or_default().trim() != name {
        let ended = running.0.try_wait().unwrap();
        assert!(ended.is_none() && begun.elapsed() < Duration::from_mins(1), "it does not become {program}: {ended:?}");
        sleep(Duration::from_millis(5));
    }
    running
}

fn is_root() -> bool {
    let root = fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t0\t0\t0");
    if !root {
        println!("SKIPPED: users and roots can be changed by root alone");
    }
    root
}

/// As a user without any sandbox, the worst case.
fn as_user(user: u32, script: &str) -> (bool, String) {
    let out = Command::new("/bin/sh").args(["-c", script]).uid(user).gid(user).current_dir("/").output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_compartment_has_a_user_a_root_and_limits_of_its_own_and_nothing_of_its_parents() {
    if !is_root() {
        return;
    }
    let _users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder_with("/bin/sleep");
    for (template, user) in [(VAULT, 1001), (BROKER, 1002)] {
        assert_eq!(template.user, user);
        let running = compartment(folder.path(), user, "/bin/sleep", "30");
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", running.0.id())).unwrap();
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {status}"));
            line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        let same = [user.to_string(), user.to_string(), user.to_string(), user.to_string()].join(" ");
        assert_eq!((field("Uid:"), field("Gid:"), field("Groups:")), (same.clone(), same, String::new()));
        assert_eq!(
            (field("NoNewPrivs:"), field("CapEff:"), field("CapPrm:")),
            ("1".into(), "0".repeat(16), "0".repeat(16))
        );
        let target = |name: &str| fs::read_link(format!("/proc/{}/{name}", running.0.id())).unwrap();
        assert_eq!((target("root"), target("cwd")), (folder.path().to_owned(), folder.path().to_owned()));
        assert_eq!(read("environ"), "", "nothing of the environment");
        let limits = read("limits");
        for (name, limit) in [
            ("Max core file size", 0),
            ("Max file size", 0),
            ("Max open files", template.descriptors),
            ("Max processes", template.threads),
            ("Max locked memory", 0),
        ] {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            let both: Vec<&str> = line[name.len()..].split_whitespace().take(2).collect();
            assert_eq!(both, [limit.to_string(), limit.to_string()], "{line}");
        }
    }
}

#[test]
fn the_brokers_user_reads_neither_the_vaults_memory_nor_its_files() {
    if !is_root() {
        return;
    }
    let _users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder_with("/bin/sleep");
    let running = compartment(folder.path(), VAULT.user, "/bin/sleep", "30");
    let vault = running.0.id();
    let device = folder.path().join("device");
    fs::write(&device, "as /dev/nsm is").unwrap();
    fs::set_permissions(&device, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&device, Some(VAULT.user), Some(VAULT.user)).unwrap();

    // What the test reads as the vault's own user, so that a refusal is not for another reason.
    let (read, told) = as_user(VAULT.user, &format!("head -c 1 /proc/{vault}/maps && head -c 1 {}", device.display()));
    assert!(read, "{told}");
    for target in ["mem", "maps", "environ", "root", "fd", "stack"] {
        let (read, told) = as_user(BROKER.user, &format!("cat /proc/{vault}/{target} || ls /proc/{vault}/{target}/"));
        assert!(!read && told.contains("denied"), "{target}: {told}");
    }
    let (read, told) = as_user(BROKER.user, &format!("cat {}", device.display()));
    assert!(!read && told.contains("denied"), "{told}");
    let (killed, told) = as_user(BROKER.user, &format!("kill -9 {vault}"));
    assert!(!killed, "{told}");
}
