//! The group, and what is done to it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate_e2e::Stack;
use casemate_e2e::hostile::{Chain, Random, ask_one, interop_key, now_ms};
use casemate_e2e::prober::Mark;
use casemate_protocol::{Bytes, PublicKey, Refusal, Reply, Request};
use rustix::process::{Pid, Signal, kill_process};

/// Interop keys: the first is the prober's own, the others are fair game for everybody; the last one comes and goes.
const KEYS: usize = 4;
/// Keys behind those that come in during the run; no state knows them before.
const NEWCOMERS: usize = 3;
/// What was known of the keys when the run began: nothing. They are imported with that again and again.
const ORIGINAL: &str = "original.json";

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
    /// What came of some of it.
    pub outcomes: BTreeMap<&'static str, u64>,
    random: Random,
    begun: Instant,
    until: Instant,
    scripts: u32,
    newcomers: usize,
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
    "handover",
    "handover",
    "takeover",
    "SIGTERM of the proxy",
    "key deleted or imported",
    "unsigned handover",
    "only older sealed states for all",
];

/// What takes several steps to be dangerous. One of them begins every so often, in turn.
const SCRIPTS: &[&str] = &["import cut from the store and rolled back", "record lost, and an older state offered"];
const FIRST_SCRIPT: Duration = Duration::from_secs(4);
const EVERY_SCRIPT: Duration = Duration::from_secs(24);
/// A script is not begun in what is left of a run below that.
const SCRIPT_TAKES: Duration = Duration::from_secs(15);

impl World {
    pub fn start(
        enclaves: u8,
        fence: &str,
        slot_ms: u64,
        slots_per_epoch: u64,
        seed: u64,
        only: &[String],
        seconds: u64,
    ) -> Self {
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
        let begun = Instant::now();
        let mut keys: Vec<PublicKey> = keys.collect();
        keys.extend((KEYS..KEYS + NEWCOMERS).map(interop_key));
        let nothing = |key: &PublicKey| format!(r#"{{"pubkey":"{key}","signed_blocks":[],"signed_attestations":[]}}"#);
        let history = format!(
            r#"{{"metadata":{{"interchange_format_version":"5","genesis_validators_root":"{root}"}},"data":[{}]}}"#,
            keys.iter().map(nothing).collect::<Vec<_>>().join(",")
        );
        fs::write(folder.path().join(ORIGINAL), history).unwrap();
        Self {
            chain,
            keys,
            sockets,
            faults: BTreeMap::new(),
            marks: Vec::new(),
            changes: Vec::new(),
            outcomes: BTreeMap::new(),
            begun,
            until: begun + Duration::from_secs(seconds),
            scripts: 0,
            newcomers: 0,
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
        // A file is lost with the disk that the sealed states are on.
        let possible = if self.etcd.is_some() { SCRIPTS } else { &SCRIPTS[..1] };
        let scripts: Vec<&'static str> = possible.iter().filter(chosen).copied().collect();
        let due = self.begun + FIRST_SCRIPT + EVERY_SCRIPT * self.scripts;
        let next = usize::try_from(self.scripts).unwrap().checked_rem(scripts.len());
        if let Some(next) = next.filter(|_| Instant::now() >= due && Instant::now() + SCRIPT_TAKES < self.until) {
            self.scripts += 1;
            self.inflict(scripts[next]);
            return;
        }
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
            "handover" => self.handover(),
            "takeover" => self.takeover(),
            "unsigned handover" => self.unsigned_handover(),
            "only older sealed states for all" => self.older_for_all(),
            "import cut from the store and rolled back" => self.import_cut_and_rolled_back(),
            "record lost, and an older state offered" => self.lose_the_record(),
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
        self.store_away_for(ms);
    }

    fn store_away_for(&self, ms: u64) {
        self.cut_store(true);
        std::thread::sleep(Duration::from_millis(ms));
        self.cut_store(false);
    }

    fn cut_store(&self, cut: bool) {
        if let Some(pid) = self.etcd {
            signal(pid, if cut { Signal::STOP } else { Signal::CONT });
            return;
        }
        // A folder that is no folder: neither read nor written.
        let (fence, aside) = (self.data().join("fence"), self.data().join("fence-aside"));
        if cut {
            if fs::rename(&fence, &aside).is_ok() {
                fs::write(&fence, "away").unwrap();
            }
        } else if aside.exists() {
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
        let hide = usize::try_from(self.random.below(3)).unwrap() + 1;
        let hidden = self.hide(hide);
        self.kill("vault");
        std::thread::sleep(Duration::from_millis(self.chain.slot_ms * (1 + self.random.below(5))));
        show(&hidden);
    }

    /// The sealed states that the parent offers, the oldest first.
    fn offered(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            fs::read_dir(self.data().join("blobs/dev")).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.retain(|path| path.extension().is_some_and(|extension| extension == "sealed"));
        let number = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        all.sort_by_key(|path| number(path));
        all
    }

    /// Takes the newest so many away, but for one.
    fn hide(&self, count: usize) -> Vec<PathBuf> {
        let all = self.offered();
        let hidden: Vec<PathBuf> = all.iter().rev().take(count.min(all.len().saturating_sub(1))).cloned().collect();
        hide_all(&hidden);
        hidden
    }

    fn kill_vaults(&self) {
        for pid in self.stack.processes("vault") {
            signal(pid, Signal::KILL);
        }
    }

    /// All enclaves start at once, and are offered an older set of sealed states for a while.
    fn older_for_all(&mut self) {
        let hide = usize::try_from(self.random.below(4)).unwrap() + 1;
        let hidden = self.hide(hide);
        self.mark("a start of all enclaves at once, from older states");
        self.kill_vaults();
        std::thread::sleep(Duration::from_millis(self.chain.slot_ms * (2 + self.random.below(5))));
        show(&hidden);
    }

    /// The parent asks each enclave for a handover, as often as it can.
    fn unsigned_handover(&mut self) {
        for socket in &self.sockets {
            let outcome = match ask_one(&mut None, socket, Request::Handover) {
                Some(Reply::HandedOver) => "unsigned handovers granted",
                Some(Reply::Refused(Refusal::HandoverTooSoon { .. })) => "unsigned handovers refused as too soon",
                _ => continue,
            };
            *self.outcomes.entry(outcome).or_default() += 1;
        }
    }

    /// `casemate` with this stack's pins; whether it was done.
    fn casemate(&self, words: &[&str], with_key: bool) -> bool {
        let (data, url) = (self.data(), format!("http://{}", self.stack.address));
        let options = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
        let (verbs, more) = words.split_at(options);
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

    fn handover(&mut self) {
        let begun = Instant::now();
        if self.casemate(&["fence", "handover"], true) {
            self.marks.push(Mark { name: "a handover in order", at: begun });
        }
    }

    fn takeover(&mut self) {
        let number = self.random.below(u64::from(self.enclaves)).to_string();
        self.casemate(&["fence", "takeover", "--yes", "--enclave", &number], true);
    }

    /// Deletes the last key, or brings it back; what is not known to be done counts as neither.
    fn change_key(&mut self) {
        if self.has_key {
            self.delete_key();
        } else {
            self.import_key(KEYS - 1, |_| ());
        }
    }

    fn delete_key(&mut self) {
        let (key, begun, path) = (KEYS - 1, Instant::now(), self.folder.path().join("key"));
        fs::write(&path, self.keys[key].to_string()).unwrap();
        let deleted = self.casemate(&["keys", "delete", "--yes", "--public-keys", path.to_str().unwrap()], true);
        // A command whose outcome nobody knows may not yet have deleted it.
        self.changes.push(Change { key, deleted, begun, done: Instant::now() });
        self.has_key &= !deleted;
    }

    /// With the history of the run's beginning; `meanwhile` something else is done.
    fn import_key(&mut self, key: usize, meanwhile: impl FnOnce(&Self)) -> bool {
        let (begun, path) = (Instant::now(), self.folder.path().join("secret"));
        let secret = casemate_dev::interop::secret_key(u32::try_from(key).unwrap());
        fs::write(&path, const_hex::encode(*secret)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let original = self.folder.path().join(ORIGINAL);
        let (path, original) = (path.to_str().unwrap(), original.to_str().unwrap());
        let words = ["keys", "import", "--raw-keys", path, "--slashing-protection", original];
        let done = std::thread::scope(|scope| {
            let import = scope.spawn(|| self.casemate(&words, true));
            meanwhile(self);
            import.join().unwrap()
        });
        // One whose outcome nobody knows may have brought it.
        if key == KEYS - 1 {
            self.changes.push(Change { key, deleted: false, begun, done: Instant::now() });
            self.has_key |= done;
        }
        let outcome = if done { "imports done" } else { "imports refused or not known to be done" };
        *self.outcomes.entry(outcome).or_default() += 1;
        done
    }

    /// A key comes in while the store is cut off, so that the fence does not say whether the sealed state counts; all enclaves end;
    /// the parent never had that state; somebody claims, hands over in order, and the key comes in again with the history that it had
    /// at first.
    fn import_cut_and_rolled_back(&mut self) {
        let key = KEYS + self.newcomers;
        if key >= self.keys.len() || !self.until_somebody_holds() {
            return;
        }
        self.newcomers += 1;
        let before = self.offered();
        let wait = Duration::from_millis(self.random.below(self.chain.slot_ms * 2));
        self.cut_store(true);
        let mut newer = Vec::new();
        self.import_key(key, |world| {
            let until = Instant::now() + Duration::from_secs(5);
            while newer.is_empty() && Instant::now() < until {
                newer = world.offered().into_iter().filter(|path| !before.contains(path)).collect();
                std::thread::sleep(Duration::from_millis(20));
            }
            // Were it in force now, it would sign.
            std::thread::sleep(wait);
            hide_all(&newer);
            world.kill_vaults();
            world.cut_store(false);
        });
        self.mark("a start of all enclaves at once, from older states");
        if !newer.is_empty() && self.until_somebody_holds() {
            *self.outcomes.entry("imports rolled back before they were confirmed").or_default() += 1;
        }
        self.handover();
        self.until_somebody_holds();
        self.import_key(key, |_| ());
        show(&newer);
    }

    fn until_somebody_holds(&self) -> bool {
        let until = Instant::now() + Duration::from_millis(self.chain.slot_ms * 15);
        while Instant::now() < until {
            if self.status(None).is_some_and(|status| status["fence"]["standing"] == "holding") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        false
    }

    /// Somebody deletes the record. Operators end all enclaves and have it made anew, as the book says: with what the last holder has
    /// stated. The parent offers an older state first.
    fn lose_the_record(&mut self) {
        self.until_somebody_holds();
        let (Some(last), Some(_)) = (self.status(None), self.etcd) else { return };
        if last["fence"]["standing"] != "holding" {
            return;
        }
        let (root, version) = (&last["public_keys"]["root"], &last["state"]["fence_version"]);
        let (Some(root), version) = (root.as_str().map(str::to_owned), version.to_string()) else { return };
        let etcd = self.data().join("etcd");
        if casemate_local_etcd::ctl(&etcd, &["del", "", "--prefix"], &[]).is_err() {
            return;
        }
        let file = |name: &str| etcd.join(name).to_str().unwrap().to_owned();
        let (certificate, key) = (file("client.pem"), file("client-key.pem"));
        let words = [
            "fence",
            "init",
            "--enclave",
            "0",
            "--record-lost",
            "--expect-keys",
            &root,
            "--expect-version",
            &version,
            "--client-certificate",
            &certificate,
            "--client-key",
            &key,
        ];
        let hide = 1 + usize::try_from(self.random.below(3)).unwrap();
        let hidden = self.hide(hide);
        self.mark("a record that was lost");
        self.kill_vaults();
        self.until_the_first_is_there();
        let taken = self.casemate(&words, true);
        let outcome =
            if taken { "older states taken for the last one" } else { "older states refused for the last one" };
        *self.outcomes.entry(outcome).or_default() += 1;
        show(&hidden);
        if !taken {
            self.kill_vaults();
            // It may take a moment until the enclave answers, and until it does not say that it starts.
            let until = Instant::now() + Duration::from_secs(20);
            while !self.casemate(&words, true) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(300));
            }
        }
        *self.outcomes.entry("records made anew").or_default() += 1;
        // The others have seen that it was gone: in that boot they sign no more.
        self.kill_standbys();
    }

    fn until_the_first_is_there(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.status(Some("0")).is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn kill_standbys(&self) {
        let holder = self.status(None).and_then(|status| status["boot_nonce"].as_str().map(str::to_owned));
        for enclave in 1..self.enclaves {
            let number = enclave.to_string();
            let nonce = self.status(Some(&number)).and_then(|status| status["boot_nonce"].as_str().map(str::to_owned));
            if nonce.is_none() || nonce != holder {
                // Which of the processes it is nobody says: its broker goes with its socket.
                self.end_enclave(enclave);
            }
        }
    }

    /// Ends the enclave of this number: the broker that listens on its socket, and with it the vault.
    fn end_enclave(&self, number: u8) {
        let Some(socket) = self.sockets.get(usize::from(number)) else { return };
        for pid in self.stack.processes("broker") {
            let told = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if told.contains(socket.to_str().unwrap()) {
                signal(pid, Signal::KILL);
            }
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

    /// The term that is held at the end.
    pub fn term(&self) -> Option<u64> {
        self.status(None)?["fence"]["record"]["term"].as_u64()
    }

    /// What an enclave says of itself: of this number, or the holder.
    fn status(&self, enclave: Option<&str>) -> Option<serde_json::Value> {
        let (data, url) = (self.data(), format!("http://{}", self.stack.address));
        let path = |path: &str| data.join(path).into_os_string();
        let mut arguments: Vec<OsString> = vec![
            "casemate".into(),
            "fence".into(),
            "status".into(),
            url.into(),
            "--json".into(),
            "--root".into(),
            path("nsm/root.pem"),
            "--measurements".into(),
            path("nsm/measurements.json"),
        ];
        arguments.extend(enclave.iter().flat_map(|number| [OsString::from("--enclave"), number.into()]));
        let mut out = Vec::new();
        casemate::run(&arguments, &mut out, &mut std::io::sink());
        serde_json::from_slice(&out).ok()
    }
}

fn hidden(path: &Path) -> PathBuf {
    path.with_extension("hidden")
}

fn hide_all(paths: &[PathBuf]) {
    for path in paths {
        let _ = fs::rename(path, hidden(path));
    }
}

fn show(paths: &[PathBuf]) {
    for path in paths {
        let _ = fs::rename(hidden(path), path);
    }
}

/// It may have gone by itself since it was listed.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
