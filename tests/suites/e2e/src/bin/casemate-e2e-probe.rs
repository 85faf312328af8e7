//! Enters a compartment's sandbox as the compartment does, then tries what it must not: `casemate-e2e-probe vault|broker WHAT
//! [ARGUMENT]`. It ends with code 0 and `alive` where it was not killed.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use casemate_sandbox::{Family, enter_broker, enter_vault};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let argument = words.get(2).map_or("", String::as_str);
    let target: i64 = argument.parse().unwrap_or_default();
    // What the compartments have open when they enter.
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let listener = std::env::temp_dir().join(format!("casemate-probe-{}", std::process::id()));
    let listening = UnixListener::bind(&listener).unwrap();
    std::fs::remove_file(&listener).unwrap();
    let memory = 4096_i64;
    let file = File::open("/proc/self/exe").unwrap();
    match words[0].as_str() {
        "vault" => {
            casemate_vault::boot::prepare().unwrap();
            enter_vault(false).unwrap();
        }
        "broker" => enter_broker(Family::Vsock).unwrap(),
        other => panic!("{other}"),
    }
    match words[1].as_str() {
        "work" => {
            // What it has to do all day.
            near.write_all(b"abc").unwrap();
            far.read_exact(&mut [0; 3]).unwrap();
            let more = vec![7_u8; 64 * 1024 * 1024];
            assert!(more.iter().all(|b| *b == 7));
            drop(more);
            std::thread::sleep(std::time::Duration::from_millis(1));
            drop(near.try_clone().unwrap());
            if words[0] == "vault" {
                // Heaps of threads that grow and shrink, as an import of many keys has them.
                for blocks in [1, 3, 8, 20, 400] {
                    let shrink = move || {
                        let mut all: Vec<Vec<u8>> =
                            (0..blocks).map(|_| std::hint::black_box(vec![1; 60_000])).collect();
                        while let Some(block) = all.pop() {
                            drop(std::hint::black_box(block));
                        }
                    };
                    let threads: Vec<_> = (0..3).map(|_| std::thread::spawn(shrink)).collect();
                    for thread in threads {
                        thread.join().unwrap();
                    }
                }
                std::thread::Builder::new()
                    .name("worker".into())
                    .spawn(|| vec![1; 100_000].len())
                    .unwrap()
                    .join()
                    .unwrap();
            }
        }
        "wait" => std::thread::sleep(std::time::Duration::from_secs(20)),
        "open" => drop(File::open("/etc/hostname")),
        "read-memory" => drop(File::open(format!("/proc/{argument}/mem"))),
        "socket" => drop(std::net::TcpListener::bind("127.0.0.1:0")),
        "unix-socket" => drop(UnixStream::connect("/nowhere")),
        "unix-pair" => drop(UnixStream::pair()),
        "accept" => drop(listening.accept()),
        "run" => drop(Command::new("/bin/true").spawn()),
        "thread" => drop(std::thread::Builder::new().spawn(|| ())),
        "lock" => drop(file.try_lock()),
        other => raw(other, target, &memory),
    }
    println!("alive");
}

/// What no safe interface offers.
fn raw(what: &str, target: i64, memory: &i64) {
    let process = i32::try_from(target).unwrap_or_default();
    // SAFETY: each call passes numbers, null, or pointers to values that live as long as the call, with their lengths. Whatever
    // succeeds against expectation is told by the word that the process ends with; it does nothing else after it.
    unsafe {
        match what {
            "execve" => {
                let name = c"/bin/true";
                libc::execv(name.as_ptr(), [name.as_ptr(), std::ptr::null()].as_ptr());
            }
            "fork" => {
                if libc::fork() == 0 {
                    libc::_exit(0);
                }
            }
            "vfork" => {
                libc::syscall(libc::SYS_vfork);
            }
            "ptrace" => {
                libc::ptrace(libc::PTRACE_ATTACH, process, 0, 0);
            }
            "process-vm-readv" => {
                let mut bytes = [0_u8; 8];
                let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 8 };
                let remote = libc::iovec { iov_base: std::ptr::from_ref(memory).cast_mut().cast(), iov_len: 8 };
                libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0);
            }
            "kill" => {
                libc::kill(process, 0);
            }
            "map-code" => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0);
            }
            "protect-code" => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
                libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC);
            }
            "be-dumped" => {
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
            "terminal" => {
                let byte = b'x';
                libc::ioctl(0, libc::TIOCSTI, &raw const byte);
            }
            "call" => {
                libc::syscall(target, 0, 0, 0, 0, 0, 0);
            }
            other => panic!("{other}"),
        }
    }
}
