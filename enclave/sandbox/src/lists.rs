//! The lists. Each line is a right that a taken-over compartment has; docs/IMAGE.md counts them.

use crate::{Allowed, Only};

/// `PROT_EXEC`: no memory becomes code.
const EXEC: u64 = 4;
/// What the C library's threads are made with: `CLONE_VM`, `FS`, `FILES`, `SIGHAND`, `THREAD`, `SYSVSEM`, `SETTLS`, `PARENT_SETTID`,
/// `CHILD_CLEARTID`. A process has other flags.
const THREAD: u32 = 0x003d_0f00;
/// `_IOWR(0x0A, 0, 32 bytes)`: the NSM's one request (aws-nitro-enclaves-nsm-api, linux/nsm.h).
const NSM: u32 = 0xc020_0a00;
/// `FIONBIO`: a socket that does not block.
const NON_BLOCKING: u32 = 0x5421;

const fn any(name: &'static str, number: i64) -> Allowed {
    Allowed { name, number, only: Only::Any }
}

const fn only(name: &'static str, number: i64, only: Only) -> Allowed {
    Allowed { name, number, only }
}

/// Memory, threads that wait for each other, time, entropy, ends.
const BASE: [Allowed; 28] = [
    any("read", libc::SYS_read),
    any("write", libc::SYS_write),
    // The C library's last words.
    any("writev", libc::SYS_writev),
    any("close", libc::SYS_close),
    only("mmap", libc::SYS_mmap, Only::Without(2, EXEC)),
    only("mprotect", libc::SYS_mprotect, Only::Without(2, EXEC)),
    any("munmap", libc::SYS_munmap),
    any("mremap", libc::SYS_mremap),
    any("madvise", libc::SYS_madvise),
    any("brk", libc::SYS_brk),
    any("futex", libc::SYS_futex),
    any("sched_yield", libc::SYS_sched_yield),
    any("clock_gettime", libc::SYS_clock_gettime),
    any("clock_nanosleep", libc::SYS_clock_nanosleep),
    any("getrandom", libc::SYS_getrandom),
    any("getpid", libc::SYS_getpid),
    any("gettid", libc::SYS_gettid),
    any("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    any("rt_sigreturn", libc::SYS_rt_sigreturn),
    any("sigaltstack", libc::SYS_sigaltstack),
    any("restart_syscall", libc::SYS_restart_syscall),
    any("recvfrom", libc::SYS_recvfrom),
    any("sendto", libc::SYS_sendto),
    // Another descriptor for the same file.
    only("fcntl", libc::SYS_fcntl, Only::Equal(1, 1030)),
    // Whether a descriptor is open, before it is closed.
    only("fcntl", libc::SYS_fcntl, Only::Equal(1, 1)),
    any("shutdown", libc::SYS_shutdown),
    any("exit", libc::SYS_exit),
    any("exit_group", libc::SYS_exit_group),
];

/// The vault's own: its threads, and the NSM.
const VAULT_ALONE: [Allowed; 7] = [
    only("clone", libc::SYS_clone, Only::Equal(0, THREAD)),
    // Answered with ENOSYS by the filter in front.
    any("clone3", libc::SYS_clone3),
    // Where a thread's stack ends.
    any("sched_getaffinity", libc::SYS_sched_getaffinity),
    any("set_robust_list", libc::SYS_set_robust_list),
    any("rseq", libc::SYS_rseq),
    // A thread's name.
    only("prctl", libc::SYS_prctl, Only::Equal(0, 15)),
    only("ioctl", libc::SYS_ioctl, Only::Equal(1, NSM)),
];

/// The broker's own: sockets of one family (the line for `socket` comes with it), and waiting for many of them.
const BROKER_ALONE: [Allowed; 11] = [
    any("epoll_wait", libc::SYS_epoll_wait),
    any("epoll_ctl", libc::SYS_epoll_ctl),
    any("accept4", libc::SYS_accept4),
    any("connect", libc::SYS_connect),
    any("getsockopt", libc::SYS_getsockopt),
    any("getsockname", libc::SYS_getsockname),
    any("getpeername", libc::SYS_getpeername),
    any("readv", libc::SYS_readv),
    only("ioctl", libc::SYS_ioctl, Only::Equal(1, NON_BLOCKING)),
    only("fcntl", libc::SYS_fcntl, Only::Equal(1, 3)),
    only("fcntl", libc::SYS_fcntl, Only::Equal(1, 4)),
];

/// What the vault may ask.
pub fn vault() -> Vec<Allowed> {
    BASE.into_iter().chain(VAULT_ALONE).collect()
}

/// What the broker may ask, beside sockets of its family.
pub fn broker() -> Vec<Allowed> {
    BASE.into_iter().chain(BROKER_ALONE).collect()
}

/// What a vault may ask besides that keeps watermarks in an open file.
pub const JOURNAL: [Allowed; 2] = [any("pwrite64", libc::SYS_pwrite64), any("fsync", libc::SYS_fsync)];
