//! The group, and what is done to it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate_e2e::Stack;
use casemate_e2e::hostile::{Chain, Random, now_ms};
use casemate_e2e::prober::Mark;
use casemate_protocol::{Bytes, PublicKey};
use rustix::process::{Pid, Signal, kill_process};

/// Interop keys: the first is the prober's own, the others are fair game for everybody; the last one comes and goes.
const KEYS: usize = 4;

/// The last key was deleted or brought back.
pub struct Change {
    pub key: usize,
    pub deleted: bool,
    pub begun: Instant,
    pub done: Instant,
}

pub struct World {
    pub stack: Stack,
    pub chain: Chain,
    pub keys: Vec<PublicKey>,
    pub sockets: Vec<PathBuf>,
    pub faults: BTreeMap<&'static str, u64>,
    pub marks: Vec<Mark>,
    pub changes: Vec<Change>,
    random: Random,
    only: Vec<String>,
    folder: tempfile::TempDir,
    enclaves: u8,
    has_key: bool,
    etcd: Option<u32>,
}

const FAULTS: &[&str] = &[
    "kill of a vault",
    "kill of a vault",
    "kill of a broker",
    "kill of the proxy",
    "SIGSTOP of a vault",
    "SIGSTOP of a vault beyond its ceilings",
    "store away",
    "older sealed state restored",
    "hand-over",
    "hand-over",
    "take-over",
    "SIGTERM of the proxy",
    "key deleted or imported",
];

impl World {
    pub fn start(enclaves: u8, fence: &str, slot_ms: u64, slots_per_epoch: u64, seed: u64, only: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let genesis = now_ms() / 1000 - 1000 * slot_ms / 1000;
        let (root, version) = (Bytes([7; 32]), Bytes([0x10, 0, 0, 1]));
        let mut toml = format!(
            "name = \"chaos\"\npreset = \"minimal\"\ngenesis_time = {genesis}\ngenesis_validators_root = \"{root}\"\n\
             slot_duration_ms = {slot_ms}\nslots_per_epoch = {slots_per_epoch}\n\n[forks]\n"
        );
        for fork in ["phase0", "altair", "bellatrix", "capella", "deneb", "electra"] {
            writeln!(toml, "{fork} = {{ version = \"{version}\", epoch = 0 }}").unwrap();
        }
        let network = folder.path().join("network.toml");
        fs::write(&network, toml).unwrap();
        let program: &'static str =
            Box::leak(std::env::current_exe().unwrap().to_str().unwrap().to_owned().into_boxed_str());
        let (keys, enclaves_text) = (KEYS.to_string(), enclaves.to_string());
        let options = [
            "--network",
            network.to_str().unwrap(),
            "--interop-keys",
            &keys,
            "--enclaves",
            &enclaves_text,
            "--fence",
            fence,
            "--",
            "--log-level",
            "warn",
        ];
        let stack = Stack::start_with(program, &["__stack"], &folder.path().join("data"), &options);
        let sockets = stack
            .banner
            .lines()
            .filter_map(|line| Some(PathBuf::from(line.split_whitespace().last()?.strip_prefix("unix:")?)))
            .collect();
        let listed = stack.client().get("/api/v1/eth2/publicKeys", &[]).json();
        let keys = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|key| Bytes(const_hex::decode_to_array(key.as_str().unwrap()).unwrap()));
        let etcd = stack.pids.get("etcd").copied();
        let chain = Chain { genesis_ms: genesis * 1000, slot_ms, slots_per_epoch, root, version };
        Self {
            chain,
            keys: keys.collect(),
            sockets,
            faults: BTreeMap::new(),
            marks: Vec::new(),
            changes: Vec::new(),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            only: only.to_vec(),
            folder,
            enclaves,
            has_key: true,
            etcd,
            stack,
        }
    }

    /// One fault, and some peace after it.
    pub fn disturb(&mut self) {
        let chosen = |fault: &&&str| self.only.is_empty() || self.only.iter().any(|only| only == **fault);
        let faults: Vec<&'static str> = FAULTS.iter().filter(chosen).copied().collect();
        let number = self.random.below(u64::try_from(faults.len()).unwrap().max(1));
        if let Some(fault) = faults.get(usize::try_from(number).unwrap()) {
            self.inflict(fault);
        }
        // Mostly one after the other; sometimes two at once.
        let slots = if self.random.below(4) == 0 { 0 } else { self.random.below(6) };
        std::thread::sleep(Duration::from_millis(200 + slots * self.chain.slot_ms / 2));
    }

    fn inflict(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
        match fault {
            "kill of a vault" => self.kill("vault"),
            "kill of a broker" => self.kill("broker"),
            "kill of the proxy" => self.kill("proxy"),
            "SIGSTOP of a vault" => self.freeze("vault", self.chain.slot_ms / 2),
            "SIGSTOP of a vault beyond its ceilings" => self.freeze("vault", self.chain.slot_ms * 6),
            "store away" => self.store_away(),
            "older sealed state restored" => self.restore(),
            "hand-over" => self.hand_over(),
            "take-over" => self.take_over(),
            "SIGTERM of the proxy" => {
                for pid in self.stack.processes("proxy") {
                    signal(pid, Signal::TERM);
                }
            }
            _ => self.change_key(),
        }
    }

    fn mark(&mut self, name: &'static str) {
        self.marks.push(Mark { name, at: Instant::now() });
    }

    fn pick(&mut self, part: &str) -> Option<u32> {
        let all = self.stack.processes(part);
        let number = usize::try_from(self.random.below(u64::try_from(all.len().max(1)).unwrap())).unwrap();
        all.get(number).copied()
    }

    fn kill(&mut self, part: &str) {
        let Some(pid) = self.pick(part) else { return };
        if part == "vault" {
            self.mark("a kill -9 of a vault, holder or not");
        }
        signal(pid, Signal::KILL);
    }

    fn freeze(&mut self, part: &str, ms: u64) {
        let Some(pid) = self.pick(part) else { return };
        signal(pid, Signal::STOP);
        std::thread::sleep(Duration::from_millis(ms));
        signal(pid, Signal::CONT);
    }

    fn store_away(&mut self) {
        let ms = self.random.below(self.chain.slot_ms * 6);
        if let Some(pid) = self.etcd {
            signal(pid, Signal::STOP);
            std::thread::sleep(Duration::from_millis(ms));
            signal(pid, Signal::CONT);
            return;
        }
        // A folder that is no folder: neither read nor written.
        let fence = self.data().join("fence");
        let aside = self.data().join("fence-aside");
        if fs::rename(&fence, &aside).is_ok() {
            fs::write(&fence, "away").unwrap();
            std::thread::sleep(Duration::from_millis(ms));
            fs::remove_file(&fence).unwrap();
            fs::rename(&aside, &fence).unwrap();
        }
    }

    fn data(&self) -> PathBuf {
        let data = self.folder.path().join("data");
        fs::read_dir(data).unwrap().next().unwrap().unwrap().path()
    }

    /// The newest sealed states are gone, an enclave starts, and only then do they come back.
    fn restore(&mut self) {
        let blobs = self.data().join("blobs/dev");
        let mut all: Vec<PathBuf> = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.retain(|path| path.extension().is_some_and(|extension| extension == "sealed"));
        all.sort();
        let hide = usize::try_from(self.random.below(3)).unwrap() + 1;
        let hidden: Vec<PathBuf> = all.iter().rev().take(hide.min(all.len().saturating_sub(1))).cloned().collect();
        let aside = |path: &Path| path.with_extension("hidden");
        for path in &hidden {
            let _ = fs::rename(path, aside(path));
        }
        self.kill("vault");
        std::thread::sleep(Duration::from_millis(self.chain.slot_ms * (1 + self.random.below(5))));
        for path in &hidden {
            let _ = fs::rename(aside(path), path);
        }
    }

    /// `casemate` with this stack's pins; whether it was done.
    fn casemate(&self, words: &[&str], with_key: bool) -> bool {
        let (data, url) = (self.data(), format!("http://{}", self.stack.address));
        let (verbs, more) = words.split_at(1);
        let mut arguments: Vec<OsString> = ["casemate"].iter().chain(verbs).map(OsString::from).collect();
        arguments.push(url.into());
        arguments.extend(more.iter().map(OsString::from));
        for (option, path) in [("--root", "nsm/root.pem"), ("--measurements", "nsm/measurements.json")] {
            arguments.extend([OsString::from(option), data.join(path).into()]);
        }
        if with_key {
            arguments.extend([OsString::from("--operator-key"), data.join("operator.pem").into()]);
        }
        casemate::run(&arguments, &mut std::io::sink(), &mut std::io::sink()) == casemate::Exit::Accepted
    }

    fn hand_over(&mut self) {
        let begun = Instant::now();
        if self.casemate(&["hand-over"], true) {
            self.marks.push(Mark { name: "a hand-over in order", at: begun });
        }
    }

    fn take_over(&mut self) {
        let number = self.random.below(u64::from(self.enclaves)).to_string();
        self.casemate(&["take-over", "--enclave", &number], true);
    }

    /// Deletes the last key, or brings it back; what is not known to be done counts as neither.
    fn change_key(&mut self) {
        let key = KEYS - 1;
        let begun = Instant::now();
        let path = self.folder.path().join("key");
        let done = if self.has_key {
            fs::write(&path, self.keys[key].to_string()).unwrap();
            self.casemate(&["delete", "--yes", "--public-keys", path.to_str().unwrap()], true)
        } else {
            let secret = casemate_dev::interop::secret_key(u32::try_from(key).unwrap());
            fs::write(&path, const_hex::encode(*secret)).unwrap();
            self.casemate(&["import", "--raw-keys", path.to_str().unwrap(), "--no-history-i-accept"], true)
        };
        // A command whose outcome nobody knows may have brought the key back, or not yet deleted it.
        let deleted = self.has_key && done;
        self.changes.push(Change { key, deleted, begun, done: Instant::now() });
        if done {
            self.has_key = !self.has_key;
        }
    }

    /// Everything that was stopped goes on.
    pub fn calm(&mut self) {
        for part in ["vault", "broker", "proxy"] {
            for pid in self.stack.processes(part) {
                signal(pid, Signal::CONT);
            }
        }
    }

    /// The generation that is held at the end.
    pub fn generation(&self) -> Option<u64> {
        let (data, url) = (self.data(), format!("http://{}", self.stack.address));
        let path = |path: &str| data.join(path).into_os_string();
        let arguments: [OsString; 8] = [
            "casemate".into(),
            "status".into(),
            url.into(),
            "--json".into(),
            "--root".into(),
            path("nsm/root.pem"),
            "--measurements".into(),
            path("nsm/measurements.json"),
        ];
        let mut out = Vec::new();
        casemate::run(&arguments, &mut out, &mut std::io::sink());
        let status: serde_json::Value = serde_json::from_slice(&out).ok()?;
        status["fence"]["record"]["generation"].as_u64()
    }
}

/// It may have gone by itself since it was listed.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
