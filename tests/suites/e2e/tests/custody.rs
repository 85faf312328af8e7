//! Keys from the operator's machine into the vault, onto the disk, through KMS and back; with everybody between them lying.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use casemate::Exit;
use casemate_e2e::requests::{NETWORK, attestation, block};
use casemate_e2e::stack::eventually;
use casemate_e2e::{Client, Stack};
use rustix::process::Signal;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const ADDRESS: &str = "0x00000000219ab540356cBB839Cbe05303d7705Fa";

struct Told {
    exit: Exit,
    out: String,
    err: String,
}

fn casemate(arguments: &[&str]) -> Told {
    let arguments: Vec<OsString> = std::iter::once(&"casemate").chain(arguments).map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = casemate::run(&arguments, &mut out, &mut err);
    Told { exit, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

impl Told {
    fn done(self) -> String {
        assert_eq!(self.exit, Exit::Accepted, "{}{}", self.out, self.err);
        self.out
    }

    fn refused(&self, words: &str) {
        assert_eq!(self.exit, Exit::Refused, "{}{}", self.out, self.err);
        assert!(self.err.contains(words) || self.out.contains(words), "{}{}", self.out, self.err);
    }

    fn unusable(&self, words: &str) {
        assert_eq!(self.exit, Exit::Unusable, "{}{}", self.out, self.err);
        assert!(self.err.contains(words), "{}", self.err);
    }
}

/// A folder for a stack on a chain of its own, where any slot has passed.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let network = NETWORK.replace("slot_duration_ms = 12000", "slot_duration_ms = 1");
        std::fs::write(folder.path().join("network.toml"), network).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        casemate_e2e::write_secret(self.path(name).as_ref(), text);
        self.path(name)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of the chain.
    fn chain(&self) -> PathBuf {
        std::fs::read_dir(self.data()).unwrap().next().unwrap().unwrap().path()
    }

    fn start(&self, interop_keys: &str) -> Stack {
        let network = self.path("network.toml");
        let keys = ["--interop-keys", interop_keys, "--withdrawal-address", ADDRESS];
        let options = [&["--network", &network, "--any-age"][..], &keys].concat();
        Stack::start_in(PROGRAM, &self.data(), &options)
    }

    /// A command of `casemate` with the pins of this stack, at any proxy.
    fn ask_at(&self, url: &str, verb: &[&str], more: &[&str]) -> Told {
        let nsm = self.chain().join("nsm");
        let (root, measurements) = (nsm.join("root.pem"), nsm.join("measurements.json"));
        let pins = ["--root", root.to_str().unwrap(), "--measurements", measurements.to_str().unwrap()];
        casemate(&[verb, &[url], more, &pins].concat())
    }

    fn ask(&self, stack: &Stack, verb: &[&str], more: &[&str]) -> Told {
        self.ask_at(&format!("http://{}", stack.address), verb, more)
    }

    fn operator(&self) -> String {
        self.chain().join("operator.pem").to_str().unwrap().to_owned()
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            std::fs::read_dir(self.chain().join("blobs/dev")).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    }
}

fn listed(client: &mut Client) -> Vec<String> {
    let mut keys: Vec<String> = serde_json::from_value(client.get("/api/v1/eth2/publicKeys", &[]).json()).unwrap();
    keys.sort();
    keys
}

/// Secret and public key.
fn key(byte: u8) -> (String, String) {
    let secret = [byte; 32];
    let public = blst::min_pk::SecretKey::from_bytes(&secret).unwrap().sk_to_pk().to_bytes();
    (format!("0x{}", const_hex::encode(secret)), format!("0x{}", const_hex::encode(public)))
}

fn history(key: &str, slot: u64, source: u64, target: u64) -> Value {
    json!({
        "metadata": { "interchange_format_version": "5", "genesis_validators_root": format!("0x{}", "04".repeat(32)) },
        "data": [ { "pubkey": key, "signed_blocks": [ { "slot": slot.to_string() } ],
            "signed_attestations": [ { "source_epoch": source.to_string(), "target_epoch": target.to_string() } ] } ],
    })
}

fn genesis_validators_root() -> String {
    let line = NETWORK.lines().find(|l| l.starts_with("genesis_validators_root")).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

/// Signs as soon as everything is up again.
fn signed(stack: &Stack, key: &str, body: &Value) {
    let path = format!("/api/v1/eth2/sign/{key}");
    eventually("a signature", || {
        let Some(mut client) = Client::try_connect(stack.address) else { return false };
        let answer = client.send("POST", &path, &[("Accept", "application/json")], body.to_string().as_bytes());
        answer.is_ok_and(|answer| answer.status == 200)
    });
}

#[test]
fn whatever_dies_no_key_is_lost_and_no_watermark_lowered() {
    let bench = Bench::new();
    let stack = bench.start("3");
    let keys = listed(&mut stack.client());
    assert_eq!(keys.len(), 3);
    let mut target = 10;
    let mut advance = |stack: &Stack| {
        target += 1;
        for key in &keys {
            signed(stack, key, &attestation(5, target, 1));
            assert_eq!(stack.client().sign(key, &attestation(5, target, 2)).status, 412);
            assert_eq!(stack.client().sign(key, &attestation(5, target - 1, 2)).status, 412);
        }
    };
    advance(&stack);
    for part in ["vault", "broker", "proxy", "kms", "vault"] {
        for pid in stack.processes(part) {
            Stack::signal(pid, Signal::KILL);
        }
        advance(&stack);
    }
    stack.kill();
    // The keys come from the disk: nothing has to be imported.
    let stack = bench.start("0");
    assert_eq!(listed(&mut stack.client()), keys);
    assert!(!stack.log().contains("imported"), "{}", stack.log());
    advance(&stack);
}

#[test]
fn while_kms_is_away_clients_hear_it_and_signing_goes_on_until_the_next_start() {
    let bench = Bench::new();
    let stack = bench.start("1");
    let key = listed(&mut stack.client())[0].clone();
    for pid in stack.processes("kms") {
        Stack::signal(pid, Signal::STOP);
    }
    stack.client().sign(&key, &attestation(5, 10, 1)).signature();
    Stack::signal(stack.pids["vault"], Signal::KILL);
    let told = stack.until(
        "to hear it",
        |c| c.sign(&key, &attestation(5, 11, 1)),
        |a| a.status == 503 && a.body.contains("KMS or the parent's services cannot be reached"),
    );
    assert!(told.body.contains("the enclave is starting"), "{}", told.body);
    for pid in stack.processes("kms") {
        Stack::signal(pid, Signal::CONT);
    }
    stack.until("a signature", |c| c.sign(&key, &attestation(5, 11, 1)), |a| a.status == 200);
}

#[test]
fn imported_keys_keep_their_history_and_duplicates_and_errors_are_told_apart() {
    let bench = Bench::new();
    let stack = bench.start("1");
    let ((first, first_public), (second, second_public)) = (key(1), key(2));
    let ((third, third_public), waived) = (key(3), "--accept-unknown-history");
    let raw = bench.file("raw", &format!("{first}\n{second}\n{third}\n"));
    let operator = bench.operator();
    let import = |more: &[&str]| {
        bench.ask(&stack, &["keys", "import"], &[&["--raw-keys", &raw, "--operator-key", &operator], more].concat())
    };
    import(&[]).unusable("what have these keys signed so far?");
    let mut file = history(&first_public, 1000, 20, 21);
    file["metadata"]["genesis_validators_root"] = genesis_validators_root().into();
    let nothing = json!({ "pubkey": second_public, "signed_blocks": [], "signed_attestations": [] });
    file["data"].as_array_mut().unwrap().push(nothing);
    let past = bench.file("past.json", &file.to_string());
    // The second is listed without any record: it has signed nothing. Of the third nobody knows.
    import(&["--slashing-protection", &past]).unusable("1 of 3 keys are not in the slashing protection file");
    file["metadata"]["genesis_validators_root"] = format!("0x{}", "ee".repeat(32)).into();
    let foreign = bench.file("foreign.json", &file.to_string());
    import(&["--slashing-protection", &foreign]).unusable("of another network");
    assert_eq!(listed(&mut stack.client()).len(), 1, "nothing was imported by what was refused");

    let out = import(&["--slashing-protection", &past, waived]).done();
    for line in [&first_public, &second_public, &third_public].map(|key| format!("{key}  imported")) {
        assert!(out.contains(&line), "{out}");
    }
    assert!(out.contains("1 command carried out, 4 keys sign now"), "{out}");
    let mut client = stack.client();
    assert_eq!(client.sign(&first_public, &attestation(20, 21, 1)).status, 412);
    assert_eq!(client.sign(&first_public, &block(1000, 1)).status, 412);
    client.sign(&first_public, &attestation(20, 22, 1)).signature();
    client.sign(&second_public, &attestation(0, 1, 1)).signature();
    // Whose past nobody knows starts above now.
    assert_eq!(client.sign(&third_public, &attestation(20, 22, 1)).status, 412);

    let again = import(&[waived]).done();
    assert!(again.contains(&format!("{first_public}  duplicate")), "{again}");
    assert_eq!(client.sign(&first_public, &attestation(20, 22, 2)).status, 412, "a waiver lowers nothing");

    // What is listed is what is proven; and it is there after the next start.
    let keys = bench.ask(&stack, &["keys", "list"], &[]).done();
    assert_eq!(keys.lines().map(ToOwned::to_owned).collect::<Vec<_>>(), listed(&mut client));
    stack.kill();
    let stack = bench.start("0");
    assert_eq!(listed(&mut stack.client()).len(), 4);
    assert_eq!(stack.client().sign(&first_public, &attestation(20, 22, 2)).status, 412);
    // The key came with its secret in a file: its bytes stand in no file of the stack.
    let secret = const_hex::decode(&first).unwrap();
    for path in bench.blobs().into_iter().chain([bench.chain().join("watermarks")]) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(32).any(|window| window == secret), "{}", path.display());
    }
}

#[test]
fn keystores_are_imported_from_a_folder_with_their_passwords() {
    let bench = Bench::new();
    let stack = bench.start("1");
    // EIP-2335's own test vectors: one key, scrypt and pbkdf2.
    let Some(data) = casemate_testdata::folder("signing") else { return };
    let vectors = casemate_testdata::files(&data.join("keystore/eip-2335"), ".json");
    let keystores = bench.folder.path().join("keystores");
    std::fs::create_dir(&keystores).unwrap();
    for path in &vectors {
        std::fs::copy(path, keystores.join(path.file_name().unwrap())).unwrap();
    }
    let password = "𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑";
    let passwords = bench.file("password", &format!("{password}\n"));
    let (keystores, operator) = (bench.path("keystores"), bench.operator());
    let options = ["--keystores", &keystores, "--accept-unknown-history", "--operator-key", &operator, "--passwords"];
    let wrong = bench.file("wrong", "wrong\n");
    bench.ask(&stack, &["keys", "import"], &[&options[..], &[&wrong]].concat()).unusable("wrong password");
    // The EIP's schema lies beside them: no file is passed over in silence, and nothing is sent before it is named.
    let import = [&options[..], &[&passwords]].concat();
    bench.ask(&stack, &["keys", "import"], &import).unusable("schema.json: it is JSON without");
    assert_eq!(listed(&mut stack.client()).len(), 1);
    let out = bench.ask(&stack, &["keys", "import"], &[&import[..], &["--skip-unreadable"]].concat()).done();
    assert!(out.contains("imported") && out.contains("NOT IMPORTED, 1 file"), "{out}");
    assert_eq!(out.lines().filter(|line| line.ends_with("imported")).count(), 1, "one key: {out}");
    assert_eq!(listed(&mut stack.client()).len(), 2);
}

/// With bars that are drawn while the command runs: by `script`, which every Debian has.
#[test]
fn on_a_terminal_commands_show_their_progress_and_end() {
    if std::process::Command::new("script").arg("--version").output().is_err() {
        println!("SKIPPED: there is no script(1) here to play a terminal");
        return;
    }
    let Some(data) = casemate_testdata::folder("signing") else { return };
    let bench = Bench::new();
    let stack = bench.start("1");
    let nsm = bench.chain().join("nsm");
    let password = bench.file("password", "𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑\n");
    let keystore = data.join("keystore/eip-2335/test-pbkdf2.json");
    let command = format!(
        "'{PROGRAM}' __casemate keys import http://{} --root '{}' --measurements '{}' --operator-key '{}' --keystores '{}' --passwords '{password}' \
         --accept-unknown-history",
        stack.address,
        nsm.join("root.pem").display(),
        nsm.join("measurements.json").display(),
        bench.operator(),
        keystore.display(),
    );
    let mut terminal = std::process::Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while terminal.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            let _ = terminal.kill();
            panic!("it hangs on a terminal");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = terminal.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("imported"), "{text}");
}

#[test]
fn commands_are_signed_elsewhere_through_a_file() {
    let bench = Bench::new();
    let stack = bench.start("1");
    let (secret, public) = key(7);
    let raw = bench.file("raw", &secret);
    let file = bench.path("command.json");
    let written = bench.ask(
        &stack,
        &["keys", "import"],
        &["--raw-keys", &raw, "--accept-unknown-history", "--command-out", &file],
    );
    assert!(written.done().contains("signed by 0 operators so far"));
    let shown = casemate(&["command", "show", &file]).done();
    assert!(
        shown.contains("IMPORT 1 key:") && shown.contains(&public) && shown.contains("NO HISTORY: accepted as unknown"),
        "{shown}"
    );
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&secret[2..]));
    bench.ask(&stack, &["command", "send", &file], &[]).refused("0 valid operators' signatures");
    // A stranger's signature is no signature.
    let stranger = bench.path("stranger.pem");
    casemate(&["operator", "keygen", "--out", &stranger]).done();
    casemate(&["operator", "keygen", "--out", &stranger]).unusable("exists already");
    casemate(&["command", "sign", &file, "--operator-key", &stranger, "--yes"]).done();
    bench.ask(&stack, &["command", "send", &file], &[]).refused("the configuration does not name that operator");
    std::fs::remove_file(&file).unwrap();
    bench
        .ask(&stack, &["keys", "import"], &["--raw-keys", &raw, "--accept-unknown-history", "--command-out", &file])
        .done();
    casemate(&["command", "sign", &file, "--operator-key", &bench.operator(), "--yes"]).done();
    let sent = bench.ask(&stack, &["command", "send", &file], &[]).done();
    assert!(sent.contains(&format!("{public}  imported")), "{sent}");
    // It was carried out: once, and only for this boot.
    bench.ask(&stack, &["command", "send", &file], &[]).refused("the command's counter");
    Stack::signal(stack.pids["vault"], Signal::KILL);
    eventually("a document", || stack.client().get("/attestation?nonce=0011223344556677", &[]).status == 200);
    bench.ask(&stack, &["command", "send", &file], &[]).refused("another boot of the enclave");
}

#[test]
fn keys_are_made_in_the_vault_with_deposits_for_the_allowed_address_and_deleted() {
    let bench = Bench::new();
    let stack = bench.start("1");
    let (operator, out) = (bench.operator(), bench.path("deposits"));
    let keygen = |address: &str, more: &[&str]| {
        let options = ["--count", "2", "--withdrawal-address", address, "--operator-key", &operator, "--out", &out];
        bench.ask(&stack, &["keys", "generate"], &[&options[..], more].concat())
    };
    let version = ["--genesis-fork-version", "0x00000001"];
    keygen(ADDRESS, &[]).unusable("is not built in");
    keygen(ADDRESS, &version).unusable("making a file in");
    std::fs::create_dir(&out).unwrap();
    keygen("0x00000000219ab540356cBB839Cbe05303d7705Fb", &version).unusable("checksum (EIP-55");
    keygen("0x00000000219ab540356cbb839cbe05303d7705fb", &version).refused("allows no deposit");
    keygen(ADDRESS, &["--genesis-fork-version", "0x00000001", "--amount", "999"])
        .unusable("--amount is 999 Gwei; 1000000000 (1 ETH) to 32000000000");
    assert_eq!(listed(&mut stack.client()).len(), 1);
    keygen(ADDRESS, &version).done();
    let file = casemate_testdata::files(Path::new(&out), ".json");
    let deposits: Vec<Value> = serde_json::from_slice(&std::fs::read(&file[0]).unwrap()).unwrap();
    let held = listed(&mut stack.client());
    assert_eq!((deposits.len(), held.len()), (2, 3));
    for deposit in &deposits {
        assert!(held.contains(&format!("0x{}", deposit["pubkey"].as_str().unwrap())));
        assert_eq!(
            deposit["withdrawal_credentials"],
            "01000000000000000000000000000000219ab540356cbb839cbe05303d7705fa"
        );
        assert_eq!((&deposit["amount"], &deposit["network_name"]), (&json!(32_000_000_000_u64), &json!("e2e")));
    }
    // Another genesis: the signature is not for it, and the file is not written.
    let other = bench.path("other");
    std::fs::create_dir(&other).unwrap();
    let options = ["--count", "1", "--withdrawal-address", ADDRESS, "--operator-key", &operator, "--out", &other];
    let wrong = [&options[..], &["--genesis-fork-version", "0x00000009"]].concat();
    bench.ask(&stack, &["keys", "generate"], &wrong).refused("is not signed for this chain");
    assert!(casemate_testdata::files(Path::new(&other), ".json").is_empty());
    let held = listed(&mut stack.client());

    let gone = bench.file("gone", &held[0]);
    let delete = |file: &str| {
        bench.ask(&stack, &["keys", "delete"], &["--public-keys", file, "--yes", "--operator-key", &operator])
    };
    assert!(delete(&gone).done().contains("deleted"));
    assert!(!listed(&mut stack.client()).contains(&held[0]));
    assert_eq!(stack.client().sign(&held[0], &attestation(5, 6, 1)).status, 404);
    // Given again, as where the answer was lost, it is as good as the first time; a key that was never here is not.
    assert!(delete(&gone).done().contains("deleted"));
    let never = bench.file("never", &format!("0x{}", "ab".repeat(48)));
    delete(&never).refused("does not hold it");
}

/// A proxy of the attacker's own between `casemate` and the enclave.
fn lying_proxy(to: SocketAddr, lie: impl Fn(&str, &str, String) -> (String, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (mut request, mut buffer) = (Vec::new(), [0; 8192]);
            let head = loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                request.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&request).into_owned();
                if let Some((head, _)) = text.split_once("\r\n\r\n") {
                    break head.to_owned();
                }
                if n == 0 {
                    break text;
                }
            };
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ").map(|n| n.parse::<usize>().unwrap())
            });
            while request.len() < head.len() + 4 + length.unwrap_or(0) {
                let n = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..n]);
            }
            let mut up = TcpStream::connect(to).unwrap();
            let text = String::from_utf8_lossy(&request[..head.len()])
                .replace("\r\nHost", "\r\nConnection: close\r\nHost")
                .replace("\r\nhost", "\r\nconnection: close\r\nhost");
            up.write_all(text.as_bytes()).unwrap();
            up.write_all(&request[head.len()..]).unwrap();
            let mut answer = Vec::new();
            let _ = up.read_to_end(&mut answer);
            let answer = String::from_utf8(answer).unwrap();
            let (answer_head, body) = answer.split_once("\r\n\r\n").unwrap();
            let status = answer_head.lines().next().unwrap();
            let path = head.lines().next().unwrap_or_default().to_owned();
            let (status, body) = lie(&path, status, body.to_owned());
            let _ = write!(stream, "{status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        }
    });
    url
}

#[test]
fn a_lying_proxy_passes_off_neither_keys_nor_success() {
    let bench = Bench::new();
    let stack = bench.start("1");
    let operator = bench.operator();
    let out = bench.path("deposits");
    std::fs::create_dir(&out).unwrap();
    let evil = key(66).1;
    // Honest, it works: what is refused below is refused for the lie.
    let honest = lying_proxy(stack.address, |_, status, body| (status.to_owned(), body));
    bench.ask_at(&honest, &["keys", "list"], &[]).done();
    // Another key among those that were made: the attacker would hold the validator's key.
    let replaced = evil.clone();
    let liar = lying_proxy(stack.address, move |path, status, mut body| {
        if path.contains("/commands") {
            let mut told: Value = serde_json::from_str(&body).unwrap();
            told["keys"][0]["public_key"] = replaced.clone().into();
            body = told.to_string();
        }
        (status.to_owned(), body)
    });
    let options = ["--count", "1", "--withdrawal-address", ADDRESS, "--operator-key", &operator, "--out", &out];
    let keygen = [&options[..], &["--genesis-fork-version", "0x00000001"]].concat();
    bench.ask_at(&liar, &["keys", "generate"], &keygen).refused("CARRIED OUT, by the enclave's own document");
    assert!(casemate_testdata::files(Path::new(&out), ".json").is_empty());
    // One key told twice: two deposits for it, and none for the other.
    let liar = lying_proxy(stack.address, |path, status, mut body| {
        if path.contains("/commands") {
            let mut told: Value = serde_json::from_str(&body).unwrap();
            told["keys"][1] = told["keys"][0].clone();
            body = told.to_string();
        }
        (status.to_owned(), body)
    });
    let two = keygen.iter().map(|word| if *word == "1" { "2" } else { word }).collect::<Vec<_>>();
    bench.ask_at(&liar, &["keys", "generate"], &two).refused("CARRIED OUT, by the enclave's own document");
    assert!(casemate_testdata::files(Path::new(&out), ".json").is_empty());
    // What was lost is signed again.
    let made = listed(&mut stack.client());
    let keys = bench.file("made", &made.join("\n"));
    let again = ["--public-keys", &keys, "--withdrawal-address", ADDRESS, "--operator-key", &operator, "--out", &out];
    let again = [&again[..], &["--genesis-fork-version", "0x00000001"]].concat();
    bench.ask(&stack, &["keys", "deposit"], &again).done();
    assert_eq!(casemate_testdata::files(Path::new(&out), ".json").len(), 1);
    // Failure told of an import that the enclave has carried out: the operator would let the keys sign elsewhere too.
    let raw = bench.file("raw", &key(8).0);
    let import = ["--raw-keys", &raw, "--accept-unknown-history", "--operator-key", &operator];
    let liar = lying_proxy(stack.address, |path, status, body| {
        if path.contains("/commands") {
            return ("HTTP/1.1 409 Conflict".to_owned(), json!({ "message": "\u{1b}[2Jno, another boot" }).to_string());
        }
        (status.to_owned(), body)
    });
    let told = bench.ask_at(&liar, &["keys", "import"], &import);
    told.refused("CARRIED OUT, by the enclave's own document");
    assert!(listed(&mut stack.client()).contains(&key(8).1) && !told.out.contains('\u{1b}'), "{:?}", told.out);
    let raw = bench.file("raw", &key(10).0);
    let import = ["--raw-keys", &raw, "--accept-unknown-history", "--operator-key", &operator];
    let liar = lying_proxy(stack.address, |path, status, body| {
        if path.contains("/commands") {
            let told = json!({ "outcome": "imported", "keys": ["wrong_secret"] });
            return (status.to_owned(), told.to_string());
        }
        (status.to_owned(), body)
    });
    bench.ask_at(&liar, &["keys", "import"], &import).refused("CARRIED OUT, by the enclave's own document");
    // Success told of a command that the enclave has refused: a stranger has signed it.
    let raw = bench.file("raw", &key(9).0);
    let liar = lying_proxy(stack.address, |path, status, body| {
        if path.contains("/commands") {
            return ("HTTP/1.1 200 OK".to_owned(), json!({ "outcome": "imported", "keys": ["imported"] }).to_string());
        }
        (status.to_owned(), body)
    });
    let stranger = bench.path("stranger.pem");
    casemate(&["operator", "keygen", "--out", &stranger]).done();
    let import = ["--raw-keys", &raw, "--accept-unknown-history", "--operator-key", &stranger];
    let told = bench.ask_at(&liar, &["keys", "import"], &import);
    assert_eq!(told.exit, Exit::NoAnswer, "{}{}", told.out, told.err);
    assert!(told.out.contains("UNKNOWN: the enclave's own document does not have it"), "{}", told.out);
    assert!(!listed(&mut stack.client()).contains(&key(9).1));
    // A command kept, refused in the enclave's name, and delivered in the place of a later one: the later history would be lost.
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (history, public) = (
        |target| {
            json!({
        "metadata": { "interchange_format_version": "5", "genesis_validators_root": genesis_validators_root() },
        "data": [ { "pubkey": key(11).1, "signed_blocks": [],
            "signed_attestations": [ { "source_epoch": "1", "target_epoch": target } ] } ] })
            .to_string()
        },
        key(11).1,
    );
    let (old, new) = (bench.file("old.json", &history("10")), bench.file("new.json", &history("90")));
    let raw = bench.file("raw", &key(11).0);
    let withholding = {
        let kept = std::sync::Arc::clone(&kept);
        intercepting_proxy(stack.address, move |path, body| {
            if path.contains("/commands") {
                let first = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(body.to_vec());
                    kept.len() == 1
                };
                return if first { None } else { Some(kept.lock().unwrap()[0].clone()) };
            }
            Some(body.to_vec())
        })
    };
    let import = |file: &str| {
        let options = ["--raw-keys", &raw, "--slashing-protection", file, "--operator-key", &operator];
        bench.ask_at(&withholding, &["keys", "import"], &options)
    };
    let told = import(&old);
    assert!(told.out.contains("NOT CARRIED OUT so far") && told.out.contains("may still deliver it"), "{}", told.out);
    let told = import(&new);
    assert_eq!(told.exit, Exit::NoAnswer, "{}{}", told.out, told.err);
    assert!(!told.out.contains("imported") && !told.out.contains("confirmed"), "{}", told.out);
    assert!(listed(&mut stack.client()).contains(&public), "the first command has come in");
    // A list with a key of the attacker's own.
    let added = evil.clone();
    let liar = lying_proxy(stack.address, move |path, status, mut body| {
        if path.contains("/publicKeys") {
            let mut keys: Vec<String> = serde_json::from_str(&body).unwrap();
            keys.push(added.clone());
            body = json!(keys).to_string();
        }
        (status.to_owned(), body)
    });
    bench.ask_at(&liar, &["keys", "list"], &[]).refused("other keys");
}

/// A proxy of the attacker's own that chooses what the signer gets; nothing, and it answers 503 in its name.
fn intercepting_proxy(to: SocketAddr, choose: impl Fn(&str, &[u8]) -> Option<Vec<u8>> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (mut request, mut buffer) = (Vec::new(), [0; 8192]);
            let end = loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                request.extend_from_slice(&buffer[..n]);
                let end = request.windows(4).position(|window| window == b"\r\n\r\n");
                if end.is_some() || n == 0 {
                    break end.unwrap_or(request.len());
                }
            };
            let head = String::from_utf8_lossy(&request[..end]).into_owned();
            let length = head.lines().find_map(|l| {
                l.to_ascii_lowercase().strip_prefix("content-length: ").map(|n| n.parse::<usize>().unwrap())
            });
            while request.len() < end + 4 + length.unwrap_or(0) {
                let n = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..n]);
            }
            let line = head.lines().next().unwrap_or_default().to_owned();
            let Some(body) = choose(&line, request.get(end + 4..).unwrap_or_default()) else {
                let body = json!({ "message": "no key was added or deleted, because KMS is away" }).to_string();
                let _ = write!(
                    stream,
                    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                continue;
            };
            let mut up = TcpStream::connect(to).unwrap();
            write!(up, "{line}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())
                .unwrap();
            up.write_all(&body).unwrap();
            let mut answer = Vec::new();
            let _ = up.read_to_end(&mut answer);
            let _ = stream.write_all(&answer);
        }
    });
    url
}

#[test]
fn a_disk_that_lies_gets_no_keys_loaded() {
    let bench = Bench::new();
    let stack = bench.start("2");
    let keys = listed(&mut stack.client());
    stack.kill();
    let blob = bench.blobs().pop().unwrap();
    let good = std::fs::read(&blob).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 20;
    bad[last] ^= 1;
    std::fs::write(&blob, &bad).unwrap();
    let network = bench.path("network.toml");
    let log = Stack::try_start(PROGRAM, &bench.data(), &["--network", &network, "--interop-keys", "0"]).err().unwrap();
    assert!(log.contains("does not open with this data key"), "{log}");
    std::fs::write(&blob, &good[..good.len() / 2]).unwrap();
    let log = Stack::try_start(PROGRAM, &bench.data(), &["--network", &network, "--interop-keys", "0"]).err().unwrap();
    assert!(log.contains("the sealed blob is malformed"), "{log}");
    std::fs::write(&blob, &good).unwrap();
    let stack = bench.start("0");
    assert_eq!(listed(&mut stack.client()), keys);
}

#[test]
fn metrics_count_the_way_out() {
    let bench = Bench::new();
    let stack = bench.start("1");
    let text = stack.client().get("/metrics", &[]).body;
    for line in [
        "casemate_enclave_keys 1",
        // For the data keys of the state with the fence and of the state with the key.
        "casemate_egress_connections_total 2",
        "casemate_egress_refused_total 0",
        "casemate_egress_blobs_stored_total 2",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
