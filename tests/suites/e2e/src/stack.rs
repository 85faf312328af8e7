//! A stack of three processes, started as a user starts it and ended with the test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::http::{Answer, Client};

/// A running stack.
pub struct Stack {
    child: Child,
    pub address: SocketAddr,
    /// What it printed: the banner.
    pub banner: String,
    /// Process ids by part.
    pub pids: BTreeMap<String, u32>,
    /// The enclave's socket.
    pub socket: PathBuf,
    log: Arc<Mutex<String>>,
    /// Removed when the stack is dropped.
    own_data_dir: Option<tempfile::TempDir>,
}

/// The program: `env!("CARGO_BIN_EXE_casemate-e2e-stack")` of the test.
pub type Program = &'static str;

impl Stack {
    /// A stack with a data directory of its own.
    pub fn start(program: Program, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut stack = Self::start_in(program, folder.path(), options);
        stack.own_data_dir = Some(folder);
        stack
    }

    /// A stack on a data directory that outlives it.
    pub fn start_in(program: Program, data_dir: &Path, options: &[&str]) -> Self {
        Self::try_start(program, data_dir, options).unwrap_or_else(|log| panic!("the stack did not start:\n{log}"))
    }

    /// The same, with words before all options.
    pub fn start_with(program: Program, words: &[&str], data_dir: &Path, options: &[&str]) -> Self {
        let started = Self::try_start_with(program, words, data_dir, options);
        started.unwrap_or_else(|log| panic!("the stack did not start:\n{log}"))
    }

    /// The error is what it said before it ended.
    pub fn try_start(program: Program, data_dir: &Path, options: &[&str]) -> Result<Self, String> {
        Self::try_start_with(program, &[], data_dir, options)
    }

    /// The same, with words before all options.
    pub fn try_start_with(program: Program, words: &[&str], data_dir: &Path, options: &[&str]) -> Result<Self, String> {
        let address = free_address();
        let mut child = Command::new(program)
            .args(words)
            .args(["--verbose-banner", "--listen", &address.to_string(), "--data-dir"])
            .arg(data_dir)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        let log = Arc::new(Mutex::new(String::new()));
        let drained = {
            let (log, mut errors) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()));
            thread::spawn(move || {
                let mut line = String::new();
                while errors.read_line(&mut line).is_ok_and(|n| n > 0) {
                    log.lock().unwrap().push_str(&line);
                    line.clear();
                }
            })
        };
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        while !banner.contains("Ctrl-C ends it.") {
            if output.read_line(&mut banner).unwrap() == 0 {
                let _ = child.wait();
                let _ = drained.join();
                return Err(log.lock().unwrap().clone());
            }
        }
        thread::spawn(move || output.read_to_end(&mut Vec::new()));
        let mut pids = BTreeMap::new();
        let mut socket = PathBuf::new();
        for line in banner.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [part, "pid", pid, does, ..] = words.as_slice() {
                pids.insert((*part).to_owned(), pid.parse().unwrap());
                if let Some(path) = does.strip_prefix("unix:") {
                    socket = path.into();
                }
            }
        }
        Ok(Self { child, address, banner, pids, socket, log, own_data_dir: None })
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// What the processes logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The process id of the stack itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes that play a part now, by the name they run under: a part that died runs again as another process.
    pub fn processes(&self, part: &str) -> Vec<u32> {
        let name = format!("casemate-{part}");
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let stat = read("stat");
                let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
                parent == Some(&self.pid().to_string()) && read("cmdline").starts_with(&name)
            })
            .collect()
    }

    /// Sends a signal to the process of this id. A process that is stopped has stopped when this returns.
    pub fn signal(pid: u32, signal: Signal) {
        let process = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(process, signal).unwrap_or_else(|e| panic!("{signal:?} to {pid}: {e}"));
        if signal == Signal::STOP {
            // One thread hears of it first, and the others serve on until it has run.
            eventually("every thread to stop", || threads_stopped(pid));
        }
    }

    /// Ends the stack as Ctrl-C does, and waits for it.
    pub fn stop(mut self) -> ExitStatus {
        Self::signal(self.child.id(), Signal::INT);
        self.wait()
    }

    /// Kills the stack's own process; its parts end with it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let parts: Vec<u32> = self.pids.values().copied().collect();
        eventually("the parts to end with their stack", || parts.iter().all(|pid| !alive(*pid)));
        // What it would have removed itself.
        if let Some(folder) = self.socket.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }

    /// Kills every process of the stack: none of them gets to end in order, as when the machine's power goes.
    pub fn kill_all(mut self) {
        // Stopped first: it would start again what dies.
        Self::signal(self.child.id(), Signal::STOP);
        let parts = self.children();
        for pid in &parts {
            Self::signal(*pid, Signal::KILL);
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        eventually("every part to be gone", || parts.iter().all(|pid| !alive(*pid)));
        if let Some(folder) = self.socket.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }

    /// The processes that the stack has started and that have not ended.
    fn children(&self) -> Vec<u32> {
        let own = self.pid().to_string();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                let fields: Vec<&str> =
                    stat.rsplit(')').next().map(|rest| rest.split_whitespace().collect()).unwrap_or_default();
                fields.get(1) == Some(&own.as_str()) && fields.first() != Some(&"Z")
            })
            .collect()
    }

    /// The sockets of the enclaves, in their order.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let socket = |line: &str| Some(PathBuf::from(line.split_whitespace().last()?.strip_prefix("unix:")?));
        self.banner.lines().filter_map(socket).collect()
    }

    /// The vaults' process ids as they were at the start, in the enclaves' order.
    pub fn vaults(&self) -> Vec<u32> {
        let vault = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.first() == Some(&"vault")).then(|| words[2].parse().unwrap())
        };
        self.banner.lines().filter_map(vault).collect()
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the stack does not end:\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    /// Asks until an answer is as wanted.
    pub fn until(
        &self,
        what: &str,
        mut ask: impl FnMut(&mut Client) -> Answer,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let mut last = None;
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            let answer = ask(&mut self.client());
            if wanted(&answer) {
                return answer;
            }
            last = Some(answer);
            sleep(Duration::from_millis(20));
        }
        panic!("waited in vain for {what}; last: {last:?}\n{}", self.log());
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|s| s.is_none()) {
            Self::signal(self.child.id(), Signal::TERM);
            // A test that has failed may have left it stopped.
            Self::signal(self.child.id(), Signal::CONT);
            let _ = self.child.wait();
        }
    }
}

/// Whether a process of this id runs (and is no zombie).
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

/// Whether each thread of a process is stopped, or dead.
fn threads_stopped(pid: u32) -> bool {
    let stopped =
        |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['T', 't', 'Z', 'X']));
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| std::fs::read_to_string(thread.path().join("stat")).map_or(true, stopped))
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(10));
    }
}

/// Where nobody listens now.
pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, casemate_local_etcd::free_port().expect("a free port")))
}
