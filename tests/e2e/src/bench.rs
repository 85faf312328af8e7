//! A stack on a chain in a hurry: what the fence does takes slots.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use casemate::Exit;
use serde_json::Value;

use crate::requests::NETWORK;
use crate::stack::{Program, Stack, eventually};

/// A folder with a chain, and what a stack keeps there.
pub struct Bench {
    pub folder: tempfile::TempDir,
    program: Program,
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
        Self { folder, program, genesis, slot_ms, slots_per_epoch }
    }

    pub fn now(&self) -> (u64, u64) {
        let slot = (now_ms() - self.genesis * 1000) / self.slot_ms;
        (slot, slot / self.slots_per_epoch)
    }

    pub fn try_start(&self, options: &[&str]) -> Result<Stack, String> {
        let network = self.folder.path().join("network.toml");
        let options = [&["--network", network.to_str().unwrap()], options].concat();
        Stack::try_start(self.program, &self.folder.path().join("data"), &options)
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
        let (exit, text) = self.casemate(stack, &["status", "--json", "--enclave", &enclave.to_string()], false);
        assert_eq!(exit, Exit::Accepted, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub fn standing(&self, stack: &Stack, enclave: u8) -> String {
        self.status(stack, enclave)["fence"]["standing"].as_str().unwrap().to_owned()
    }

    pub fn blobs(&self) -> PathBuf {
        self.chain().join("blobs/dev")
    }
}

/// The keys that a stack signs with.
pub fn keys(stack: &Stack) -> Vec<String> {
    serde_json::from_value(stack.client().get("/api/v1/eth2/publicKeys", &[]).json()).unwrap()
}
