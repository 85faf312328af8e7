//! A stack on a chain in a hurry: what the fence does takes slots.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use casemate::Exit;
use casemate_protocol::{Bytes, PublicKey};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::hostile::Chain;
use crate::requests::{NETWORK, root};
use crate::stack::{Program, Stack, eventually};

/// A folder with a chain, and what a stack keeps there.
pub struct Bench {
    pub folder: tempfile::TempDir,
    program: Program,
    /// NAME=VALUE, for the stack's processes.
    environment: Vec<String>,
    genesis: u64,
    slot_ms: u64,
    slots_per_epoch: u64,
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

impl Bench {
    /// A chain that began a thousand seconds ago.
    pub fn new(program: Program, slot_ms: u64, slots_per_epoch: u64) -> Self {
        Self::since(program, now_ms() / 1000 - 1000, slot_ms, slots_per_epoch)
    }

    /// A chain that began at this Unix time.
    pub fn since(program: Program, genesis: u64, slot_ms: u64, slots_per_epoch: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut toml = String::new();
        for line in NETWORK.lines() {
            let line = match line.split_once(" = ") {
                Some(("genesis_time", _)) => format!("genesis_time = {genesis}"),
                Some(("slot_duration_ms", _)) => format!("slot_duration_ms = {slot_ms}"),
                Some(("slots_per_epoch", _)) => format!("slots_per_epoch = {slots_per_epoch}"),
                _ => line.to_owned(),
            };
            toml.push_str(&line);
            toml.push('\n');
        }
        std::fs::write(folder.path().join("network.toml"), toml).unwrap();
        Self { folder, program, environment: Vec::new(), genesis, slot_ms, slots_per_epoch }
    }

    /// With this in the environment of its stack.
    #[must_use]
    pub fn with_environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    pub fn now(&self) -> (u64, u64) {
        let slot = (now_ms() - self.genesis * 1000) / self.slot_ms;
        (slot, slot / self.slots_per_epoch)
    }

    pub fn try_start(&self, options: &[&str]) -> Result<Stack, String> {
        let network = self.folder.path().join("network.toml");
        let options = [&["--network", network.to_str().unwrap()], options].concat();
        let data = self.folder.path().join("data");
        if self.environment.is_empty() {
            return Stack::try_start(self.program, &data, &options);
        }
        let words: Vec<&str> = self.environment.iter().map(String::as_str).chain([self.program]).collect();
        Stack::try_start_with("/usr/bin/env", &words, &data, &options)
    }

    pub fn start(&self, options: &[&str]) -> Stack {
        let stack = self.try_start(options).unwrap_or_else(|log| panic!("{log}"));
        // The banner comes before the standbys.
        eventually("every enclave to know what it is", || {
            let checks = stack.client().get("/healthcheck", &[]).json()["checks"].clone();
            let fence = checks.as_array().unwrap().iter().find(|check| check["id"] == "fence").unwrap().clone();
            fence["data"]["enclaves"]
                .as_array()
                .unwrap()
                .iter()
                .all(|standing| !standing.is_null() && *standing != "apart")
        });
        stack
    }

    pub fn chain(&self) -> PathBuf {
        std::fs::read_dir(self.folder.path().join("data")).unwrap().next().unwrap().unwrap().path()
    }

    pub fn casemate(&self, stack: &Stack, words: &[&str], operator: bool) -> (Exit, String) {
        let chain = self.chain();
        let path = |path: &str| chain.join(path).to_str().unwrap().to_owned();
        let (root, measurements, key) = (path("nsm/root.pem"), path("nsm/measurements.json"), path("operator.pem"));
        let url = format!("http://{}", stack.address);
        let at = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
        let mut arguments = [&["casemate"], &words[..at], &[url.as_str()], &words[at..]].concat();
        arguments.extend(["--root", &root, "--measurements", &measurements]);
        if operator {
            arguments.extend(["--operator-key", &key]);
        }
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = casemate::run(&arguments, &mut out, &mut err);
        (exit, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
    }

    pub fn status(&self, stack: &Stack, enclave: u8) -> Value {
        let (exit, text) =
            self.casemate(stack, &["fence", "status", "--json", "--enclave", &enclave.to_string()], false);
        assert_eq!(exit, Exit::Accepted, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub fn standing(&self, stack: &Stack, enclave: u8) -> String {
        self.status(stack, enclave)["fence"]["standing"].as_str().unwrap().to_owned()
    }

    pub fn blobs(&self) -> PathBuf {
        self.chain().join("blobs/dev")
    }

    /// The chain, for a hostile client.
    pub fn clock(&self) -> Chain {
        let (slot_ms, slots_per_epoch) = (self.slot_ms, self.slots_per_epoch);
        let (root, version) = (Bytes([4; 32]), Bytes([7, 0, 0, 1]));
        Chain { genesis_ms: self.genesis * 1000, slot_ms, slots_per_epoch, root, version }
    }

    /// A file of the test's own.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The same, with this in it.
    pub fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// A command of an operator that is carried out; what it says.
    pub fn order(&self, stack: &Stack, words: &[&str]) -> String {
        let (exit, text) = self.casemate(stack, words, true);
        assert_eq!(exit, Exit::Accepted, "{words:?}: {text}");
        text
    }

    /// A command of an operator that is refused, with this among the reasons.
    pub fn refused(&self, stack: &Stack, words: &[&str], reason: &str) {
        let (exit, text) = self.casemate(stack, words, true);
        assert_eq!(exit, Exit::Refused, "{words:?}: {text}");
        assert!(text.contains(reason), "{words:?}: {text}");
    }

    /// Waits until one of the enclaves is that to the fence.
    pub fn await_standing(&self, stack: &Stack, enclave: u8, wanted: &str) -> Value {
        let mut status = Value::Null;
        eventually(&format!("enclave {enclave} to be {wanted}"), || {
            let (exit, text) =
                self.casemate(stack, &["fence", "status", "--json", "--enclave", &enclave.to_string()], false);
            status = serde_json::from_str(&text).unwrap_or_default();
            exit == Exit::Accepted && status["fence"]["standing"] == wanted
        });
        status
    }

    /// Number of the enclave that holds the fence.
    pub fn holder(&self, stack: &Stack, enclaves: u8) -> u8 {
        let mut found = None;
        eventually("an enclave to hold the fence", || {
            found = (0..enclaves).find(|enclave| self.standing(stack, *enclave) == "holding");
            found.is_some()
        });
        found.unwrap()
    }

    /// What the parent keeps, aside under this name.
    pub fn keep_blobs(&self, name: &str) {
        copy(&self.blobs(), &self.folder.path().join(name));
    }

    /// The parent offers that in the place of what it keeps.
    pub fn offer_blobs(&self, name: &str) {
        std::fs::remove_dir_all(self.blobs()).unwrap();
        copy(&self.folder.path().join(name), &self.blobs());
    }

    /// Names of the sealed states that the parent keeps, and what is in them.
    pub fn kept(&self) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = std::fs::read_dir(self.blobs())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()))
            .collect();
        all.sort();
        all
    }

    /// The folder of an etcd of this chain's.
    pub fn etcd(&self, name: &str) -> PathBuf {
        self.chain().join(name)
    }

    /// etcdctl, as somebody uses it who may read and write the record.
    pub fn etcdctl(&self, name: &str, arguments: &[&str], input: &[u8]) -> String {
        casemate_local_etcd::ctl(&self.etcd(name), arguments, input).unwrap()
    }

    /// The options that bring the client's certificate of this etcd.
    pub fn credentials(&self, name: &str) -> [String; 4] {
        let file = |file: &str| self.etcd(name).join(file).to_str().unwrap().to_owned();
        ["--client-certificate".into(), file("client.pem"), "--client-key".into(), file("client-key.pem")]
    }

    /// A second machine with a copy of everything that lies on the disk of the first, but for this folder of the chain.
    #[must_use]
    pub fn copied_without(&self, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_but(self.folder.path(), folder.path(), &self.etcd(name));
        Self { folder, environment: self.environment.clone(), ..*self }
    }

    /// An interop key that the stack does not have, with what an operator knows of its past: nothing since long ago.
    pub fn newcomer(&self, number: u32) -> Newcomer {
        let secret = casemate_dev::interop::secret_key(number);
        let public = blst::min_pk::SecretKey::from_bytes(secret.as_slice()).unwrap().sk_to_pk().to_bytes();
        let public_key = const_hex::encode_prefixed(public);
        let history = json!({
            "metadata": { "interchange_format_version": "5", "genesis_validators_root": root(4) },
            "data": [ { "pubkey": public_key, "signed_blocks": [ { "slot": "1" } ],
                "signed_attestations": [ { "source_epoch": "0", "target_epoch": "1" } ] } ],
        });
        let raw = self.file(&format!("key-{number}"), &const_hex::encode(*secret));
        let history = self.file(&format!("history-{number}.json"), &history.to_string());
        let listed = self.file(&format!("public-key-{number}"), &public_key);
        Newcomer { public_key, raw, history, listed }
    }
}

/// A key with its files.
pub struct Newcomer {
    pub public_key: String,
    raw: String,
    pub history: String,
    /// A file with the public key.
    pub listed: String,
}

impl Newcomer {
    /// The import, always with the same history.
    pub fn import(&self) -> [&str; 6] {
        ["keys", "import", "--raw-keys", &self.raw, "--slashing-protection", &self.history]
    }

    /// For frames.
    pub fn bytes(&self) -> PublicKey {
        Bytes(const_hex::decode_to_array(&self.public_key).unwrap())
    }
}

/// A folder with all that is in it; sockets and the like are passed over.
pub fn copy(from: &Path, to: &Path) {
    copy_but(from, to, Path::new(""));
}

fn copy_but(from: &Path, to: &Path, but: &Path) {
    if from == but {
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        let to = to.join(entry.file_name().unwrap());
        if kind.is_dir() {
            copy_but(&entry, &to, but);
        } else if kind.is_file() {
            std::fs::copy(entry, to).unwrap();
        }
    }
}

/// Lets no byte through to the stack's etcd, and gives it back whatever happens.
pub struct Frozen(u32);

impl Frozen {
    pub fn etcd(stack: &Stack) -> Self {
        let pid = stack.pids["etcd"];
        Stack::signal(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if crate::stack::alive(self.0) {
            Stack::signal(self.0, Signal::CONT);
        }
    }
}

/// The keys that a stack signs with.
pub fn keys(stack: &Stack) -> Vec<String> {
    serde_json::from_value(stack.client().get("/api/v1/eth2/publicKeys", &[]).json()).unwrap()
}
