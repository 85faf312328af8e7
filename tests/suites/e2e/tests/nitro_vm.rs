//! The very images, booted in QEMU's nitro-enclave machine, behind the production proxy. `tests/run` builds the machine and runs
//! these; by hand: `tests/tools/nitro-vm/tools && CASEMATE_NITRO_VM=1 cargo test -p casemate-e2e --test nitro_vm`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use casemate::Exit;
use casemate_e2e::bench::keys;
use casemate_e2e::requests::{attestation, block};
use casemate_e2e::stack::free_address;
use casemate_e2e::vectors::{gloas_types, interop_public_key};
use casemate_e2e::{Answer, Bench, Client, Stack};
use casemate_local_kms::api::Kms;
use casemate_local_kms::server::{Access, Server, Tls};
use casemate_local_kms::state::State;
use casemate_nitro_vm::{Images, Machine, Nsm, PORT, Tools, connect};
use casemate_nsm::Authority;
use casemate_protocol::refusal::Waiting;
use casemate_protocol::{Refusal, Reply, Request, RequestFrame, frame};
use casemate_testdata::{files, folder, json};
use rustix::process::Signal;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
const KMS_HOST: &str = "kms.eu-central-1.amazonaws.com";
/// Slots that a machine keeps pace with that is 25 times slower, and epochs that a test can wait for.
const SLOT_MS: u64 = 2000;
const SLOTS_PER_EPOCH: u64 = 8;
const BOOT: Duration = Duration::from_mins(1);

/// One machine's worth of CPU at a time.
static ONE: Mutex<()> = Mutex::new(());

/// What boots images; nothing where these tests are not asked for.
fn tools() -> Option<(Tools, MutexGuard<'static, ()>)> {
    if std::env::var_os("CASEMATE_NITRO_VM").is_none() {
        println!("SKIPPED: CASEMATE_NITRO_VM is not set; tests/run sets it, once it has built QEMU");
        return None;
    }
    let tools = Tools::find().expect("tests/tools/nitro-vm/tools has built QEMU");
    Some((tools, ONE.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn casemate(arguments: &[&str]) -> (Exit, String) {
    let arguments: Vec<OsString> = std::iter::once(&"casemate").chain(arguments).map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = casemate::run(&arguments, &mut out, &mut err);
    (exit, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A proxy of its own in front of one machine.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Proxy {
    fn start(enclave: &str, more: &[&str]) -> Self {
        let address = free_address();
        let child = Command::new(PROGRAM)
            .args(["__proxy", "--listen", &address.to_string(), "--keep-fence", "--log-level", "error"])
            .args(["--enclave", enclave])
            .args(more)
            .env("AWS_ACCESS_KEY_ID", "AKIDCASEMATEDEV")
            .env("AWS_SECRET_ACCESS_KEY", "casemate-dev")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { child, address };
        until("the proxy to listen", Duration::from_secs(10), || Client::try_connect(address));
        proxy
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until<T>(what: &str, longest: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begun.elapsed() < longest, "waited {longest:?} in vain for {what}");
        sleep(Duration::from_millis(50));
    }
}

fn sign(address: SocketAddr, key: &str, body: &Value) -> Answer {
    Client::try_connect(address).map_or_else(
        || Answer { status: 0, headers: Vec::new(), body: "no connection".to_owned() },
        |mut client| client.sign(key, body),
    )
}

fn measured(path: &Path) -> Value {
    json(path)["Measurements"].clone()
}

/// A local KMS on this host, whose certificate only test images trust.
fn local_kms(folder: &Path) -> u16 {
    let tls = Tls::for_images(&[KMS_HOST.to_owned()]).unwrap();
    let state = State::open(&folder.join("kms.json"), "eu-central-1", "000000000000").unwrap();
    let access = Access {
        region: "eu-central-1".to_owned(),
        secrets: BTreeMap::from([("AKIDCASEMATEDEV".to_owned(), "casemate-dev".to_owned())]),
        account: "000000000000".to_owned(),
    };
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let server = Server::bind(any, Kms { state, anchor: None }, access, Some(&tls)).await.unwrap();
            tell.send(server.address().unwrap().port()).unwrap();
            server.serve().await.unwrap();
        });
    });
    told.recv().unwrap()
}

const CONFIGURATION: &str = r#"
group = "vm"
network = "hoodi"
kms_key_arn = "arn:aws:kms:eu-central-1:000000000000:key/11111111-2222-3333-4444-555555555555"
[operators]
threshold = 1
keys = ["OPERATOR"]
[policy]
fee_recipient = "any"
[fence]
kind = "solo"
"#;

/// What everybody gets. It boots, says what it is, and takes no KMS but Amazon's.
#[test]
fn the_production_image_boots_attests_and_trusts_no_kms_of_this_machine() {
    let Some((tools, _one)) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let images = Images::production().unwrap();
    let operator = path("operator.pem");
    let key = casemate::make_operator_key(&operator).unwrap().to_string();
    let configuration = CONFIGURATION.replace("OPERATOR", &key);
    let (image, measurements) = (path("casemate.eif"), path("casemate.json"));
    images.write(&configuration, &image, &measurements).unwrap();
    let root = Authority::keep_root(&path("nsm")).unwrap();
    let root_file = path("nsm/root.pem");

    let begun = Instant::now();
    let mut machine = Machine::boot(&tools, &image, &path("vm"), 0, &Nsm::Signed(&root)).unwrap();
    machine.await_heartbeat(BOOT).unwrap();
    println!(
        "heartbeat {:?} after QEMU's start; the image has {} bytes",
        begun.elapsed(),
        image.metadata().unwrap().len()
    );
    let kms = local_kms(folder.path());
    let (egress, blobs) = (format!("hybrid:{}:5006", path("vm/vm.vsock").display()), path("blobs"));
    let allow = format!("{KMS_HOST}:443=127.0.0.1:{kms}");
    let more = ["--egress", &egress, "--egress-allow", &allow, "--blobs", text(&blobs), "--credentials", "environment"];
    let proxy = Proxy::start(&machine.address(), &more);
    let url = proxy.url();
    let pins = ["--root", text(&root_file), "--measurements", text(&measurements)];
    let fetch = |more: &[&str]| casemate(&[&["attest", "fetch", &url], more].concat());
    let (_, told) = until("a document", BOOT, || Some(fetch(&pins)).filter(|(exit, _)| *exit == Exit::Accepted));
    println!("attested {:?} after QEMU's start", begun.elapsed());
    for pcr in ["PCR0", "PCR1", "PCR2"] {
        assert!(told.contains(measured(&measurements)[pcr].as_str().unwrap()), "{pcr}: {told}");
    }
    // Against AWS's root, and against another image's measurements.
    let (exit, told) = fetch(&["--measurements", text(&measurements)]);
    assert_eq!(exit, Exit::Refused, "{told}");
    let other = path("other.json");
    images.write(&format!("{configuration}#"), &path("other.eif"), &other).unwrap();
    let (exit, told) = fetch(&["--root", text(&root_file), "--measurements", text(&other)]);
    assert_eq!(exit, Exit::Refused, "{told}");
    assert!(told.contains("PCR0"), "{told}");

    // The broker carries the vault's bytes to the local KMS, and TLS ends it there.
    let raw = path("key");
    casemate_e2e::write_secret(&raw, &"11".repeat(32));
    let import = [
        "keys",
        "import",
        &url,
        "--raw-keys",
        text(&raw),
        "--accept-unknown-history",
        "--operator-key",
        text(&operator),
    ];
    let (exit, told) = casemate(&[&import[..], &pins].concat());
    assert_eq!(exit, Exit::Refused, "{told}");
    assert!(told.contains("KMS"), "{told}");
    let listed = Client::connect(proxy.address).get("/api/v1/eth2/publicKeys", &[]);
    assert_eq!(listed.body, "[]");
    assert!(!blobs.join("vm").exists() || std::fs::read_dir(blobs.join("vm")).unwrap().next().is_none());
    // Nobody listens in the machine but the broker, on its one port.
    for port in [1, 22, 80, 9000, PORT + 1] {
        assert!(connect(&path("vm/vm.vsock"), port).is_err(), "port {port}");
    }
    println!("the console: {:?}", machine.console());
    assert!(!machine.ended().unwrap());
}

/// QEMU's own documents are not signed: nobody may take them.
#[test]
fn documents_that_nobody_signed_are_refused_and_a_parent_without_a_heartbeat_gets_no_enclave() {
    let Some((tools, _one)) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (image, measurements) = (path("casemate.eif"), path("casemate.json"));
    let configuration = CONFIGURATION.replace("OPERATOR", &format!("0x{}", "01".repeat(32)));
    Images::production().unwrap().write(&configuration, &image, &measurements).unwrap();
    Authority::keep_root(&path("nsm")).unwrap();
    let mut machine = Machine::boot(&tools, &image, &path("vm"), 0, &Nsm::Unsigned).unwrap();
    machine.await_heartbeat(BOOT).unwrap();
    let egress = format!("hybrid:{}:5006", path("vm/vm.vsock").display());
    let proxy = Proxy::start(&machine.address(), &["--egress", &egress, "--blobs", text(&path("blobs"))]);
    let told = until("an answer", BOOT, || {
        let root = path("nsm/root.pem");
        let pins = ["--root", text(&root), "--measurements", text(&measurements)];
        let (exit, told) = casemate(&[&["attest", "fetch", &proxy.url()][..], &pins].concat());
        assert_ne!(exit, Exit::Accepted, "{told}");
        (exit == Exit::Refused).then_some(told)
    });
    println!("refused: {}", told.lines().last().unwrap_or_default());
    drop(machine);

    // Nobody answers on port 9000: init ends the machine, and QEMU with it.
    let mut machine = Machine::boot(&tools, &image, &path("mute"), 0, &Nsm::Unsigned).unwrap();
    std::fs::remove_file(path("mute/vm.vsock_9000")).unwrap();
    until("the machine to end", BOOT, || machine.ended().unwrap().then_some(()));
    let console = machine.console();
    assert!(console.contains("casemate-init:") && console.contains("the enclave ends"), "{console}");
    assert!(console.contains("port 9000"), "{console}");
}

/// Fences of the group's machines, as the proxy's health check tells them.
fn standings(address: SocketAddr) -> Vec<String> {
    let Some(mut client) = Client::try_connect(address) else { return Vec::new() };
    let checks = client.get("/healthcheck", &[]).json()["checks"].clone();
    let fence = checks.as_array().unwrap().iter().find(|check| check["id"] == "fence").unwrap().clone();
    let enclaves = fence["data"]["enclaves"].as_array().cloned().unwrap_or_default();
    enclaves.iter().map(|standing| standing.as_str().unwrap_or_default().to_owned()).collect()
}

/// QEMU of one of a stack's enclaves, by the folder of its machine.
fn qemu(stack: &Stack, number: usize) -> (u32, PathBuf) {
    let place = stack.banner.lines().filter_map(|line| line.split("hybrid:").nth(1)).nth(number).unwrap();
    let uds = PathBuf::from(place.trim().strip_suffix(&format!(":{PORT}")).unwrap());
    let console = uds.with_file_name("console.log");
    let found = std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        (line.contains("nitro-enclave") && line.contains(text(&console))).then_some(pid)
    });
    (found.expect("QEMU of the enclave"), uds)
}

/// One life: keys brought in, sealed under a policy on the image's PCRs, duties signed and refused, the plug pulled, and up again.
#[test]
fn an_enclave_lives_through_duties_attacks_and_a_pulled_plug() {
    let Some((tools, _one)) = tools() else { return };
    // A chain so old that every recorded message lies in its past.
    let bench = Bench::since(PROGRAM, 0, SLOT_MS, SLOTS_PER_EPOCH);
    let stack = bench.start(&["--vm", "--fence", "etcd", "--interop-keys", "4"]);
    let all = keys(&stack);
    assert_eq!(all.len(), 4);
    let nsm = bench.chain().join("nsm");
    let (exit, told) = bench.casemate(&stack, &["attest", "fetch"], false);
    assert_eq!(exit, Exit::Accepted, "{told}");

    // Types that only the newest fork has.
    let first = interop_public_key();
    for (kind, body, expected) in gloas_types() {
        assert_eq!(stack.client().sign(&first, &body).signature(), expected, "{kind}");
    }
    let deposit = json!({ "type": "DEPOSIT", "deposit": { "pubkey": first, "withdrawal_credentials": format!("0x{}", "01".repeat(32)),
        "amount": "32000000000", "genesis_fork_version": "0x00000001" } });
    assert_eq!(stack.client().sign(&first, &deposit).status, 412, "not an address that the configuration names");

    // Duties of the moment, and everything slashable around them.
    let mut client = stack.client();
    let (slot, epoch) = bench.now();
    let key = &all[1];
    client.sign(key, &block(slot, 1)).signature();
    let vote = client.sign(key, &attestation(epoch - 3, epoch, 1)).signature();
    assert_eq!(client.sign(key, &attestation(epoch - 3, epoch, 1)).signature(), vote, "the very same vote");
    for (what, body) in [
        ("another block in the slot", block(slot, 2)),
        ("an older block", block(slot - 1, 1)),
        ("a double vote", attestation(epoch - 3, epoch, 2)),
        ("a surrounding vote", attestation(epoch - 4, epoch + 1, 1)),
        ("a surrounded vote", attestation(epoch - 2, epoch - 1, 1)),
        ("a vote from an epoch to itself", attestation(epoch, epoch, 1)),
        ("a block of a minute ago", block(slot - 30, 1)),
        ("a vote of a minute ago", attestation(epoch - 5, epoch - 4, 1)),
        ("a vote of the future", attestation(epoch, epoch + 9, 1)),
        ("a block of the future", block(slot + 1000, 1)),
    ] {
        let answer = client.sign(key, &body);
        assert_eq!(answer.status, 412, "{what}: {}", answer.body);
    }

    // An image with one byte more: KMS does not unseal for it.
    one_byte_of_configuration_more(&tools, &bench, &stack);

    // The plug is pulled. Whatever was signed before is not signed otherwise after.
    let ceiling = bench.status(&stack, 0)["fence"]["record"]["slot_ceiling"].as_u64().unwrap();
    let (pid, _) = qemu(&stack, 0);
    let (slot, epoch) = bench.now();
    let last = stack.client().sign(key, &block(slot, 1));
    let begun = Instant::now();
    Stack::signal(pid, Signal::KILL);
    let signed = until("a block after the new boot", Duration::from_mins(3), || {
        let (slot, _) = bench.now();
        let answer = sign(stack.address, &all[2], &block(slot, 3));
        (answer.status == 200).then_some(slot)
    });
    println!("a block again {:?} after the plug was pulled, slots of {SLOT_MS} ms", begun.elapsed());
    assert!(signed > ceiling, "slot {signed}, ceiling {ceiling}");
    assert_eq!(keys(&stack), all, "unsealed again");
    assert_eq!(last.status, 200, "{}", last.body);
    assert_eq!(sign(stack.address, key, &block(slot, 2)).status, 412);
    assert_eq!(sign(stack.address, key, &attestation(epoch - 1, epoch, 2)).status, 412);
    let floors = bench.status(&stack, 0)["fence"]["floors"].clone();
    assert!(floors["target"].as_u64().is_some_and(|floor| floor >= epoch), "{floors}");
    until("an attestation after the new boot", Duration::from_mins(2), || {
        let (_, epoch) = bench.now();
        (sign(stack.address, key, &attestation(epoch - 1, epoch, 4)).status == 200).then_some(())
    });
    assert!(nsm.join("measurements.json").exists());
    assert!(stack.stop().success());
}

/// What a machine says of itself, without a proxy between.
fn info(machine: &Machine) -> std::io::Result<Reply> {
    let mut stream = machine.connect(PORT).map_err(std::io::Error::other)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut bytes = Vec::new();
    frame::encode_request(&RequestFrame::new(1, Request::Info), &mut bytes);
    stream.write_all(&bytes)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut reply)?;
    Ok(frame::decode_reply(&reply).unwrap().reply)
}

/// The stack's own services and disk, its own NSM root; only the image is another.
fn one_byte_of_configuration_more(tools: &Tools, bench: &Bench, stack: &Stack) {
    let chain = bench.chain();
    let (_, uds) = qemu(stack, 0);
    let image = std::fs::read(chain.join("casemate.eif")).unwrap();
    // The second ramdisk is one file in plain text.
    let at = image.windows(7).rposition(|window| window == b"group =").unwrap();
    // Zeros follow it up to a multiple of four bytes, and then the head of the ramdisk's next entry.
    let next = image.get(at..).unwrap().windows(6).position(|window| window == b"070701").unwrap();
    let end = image[at..at + next].iter().position(|byte| *byte == 0).unwrap_or(next);
    let configuration = String::from_utf8(image[at..at + end].to_vec()).unwrap();
    let changed = bench.folder.path().join("changed");
    std::fs::create_dir(&changed).unwrap();
    let (eif, measurements) = (changed.join("changed.eif"), changed.join("changed.json"));
    let images = Images::with_local_kms().unwrap();
    images.write(&configuration, &eif, &measurements).unwrap();
    assert_eq!(
        measured(&measurements),
        measured(&chain.join("nsm/measurements.json")),
        "the very configuration, the very image"
    );
    images.write(&format!("{configuration}#"), &eif, &measurements).unwrap();
    let (ours, theirs) = (measured(&measurements), measured(&chain.join("nsm/measurements.json")));
    assert_eq!(ours["PCR1"], theirs["PCR1"]);
    assert_ne!(ours["PCR0"], theirs["PCR0"]);

    let root = Authority::keep_root(&chain.join("nsm")).unwrap();
    let mut machine = Machine::boot(tools, &eif, &changed.join("vm"), 7, &Nsm::Signed(&root)).unwrap();
    // The stack's proxy serves its egress too: the same disk, the same credentials, the same KMS.
    let egress = uds.parent().and_then(Path::parent).unwrap().join("egress.sock");
    std::os::unix::fs::symlink(egress, Machine::egress(&changed.join("vm"))).unwrap();
    let mut last = None;
    let begun = Instant::now();
    while last != Some(Reply::Refused(Refusal::Starting(Waiting::Denied))) {
        assert!(begun.elapsed() < BOOT, "waited for KMS to deny it; last: {last:?}; {}", machine.told());
        sleep(Duration::from_millis(50));
        last = info(&machine).ok();
    }
    println!("the image with one byte more: {}", Waiting::Denied);
    let proxy = Proxy::start(&machine.address(), &[]);
    let answer = Client::connect(proxy.address).sign(&interop_public_key(), &block(1, 1));
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(Client::connect(proxy.address).get("/healthcheck", &[]).status, 503);
}

/// The chain of most of Lodestar's recorded requests.
const CHAIN: &str = "0x4b363db9";

/// Every type that a recorded client sends, with the recorded signature.
#[test]
fn requests_of_lodestar_are_signed_in_the_machine() {
    let Some((_, _one)) = tools() else { return };
    let Some(data) = folder("lodestar") else { return };
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut cases: BTreeMap<String, Value> = BTreeMap::new();
    let (mut chain, mut capella) = (String::new(), String::new());
    for path in files(&data, ".json") {
        let case = json(&path);
        let Some(body) = case["request"].get("body").filter(|body| body.get("type").is_some()) else { continue };
        let root = string(&body["fork_info"]["genesis_validators_root"]);
        let kind = string(&body["type"]);
        let ours =
            string(&case["genesis_fork_version"]) == "0x00000000" && (root.starts_with(CHAIN) || root.is_empty());
        if !ours || text(&path).contains("minimal") {
            continue;
        }
        if root.starts_with(CHAIN) {
            chain = root;
        }
        // An exit of a chain past Deneb, so that its version is the configuration's and not the request's (EIP-7044).
        let late = ["deneb", "electra", "fulu", "gloas", "heze"].contains(&string(&case["fork"]).as_str());
        if kind == "VOLUNTARY_EXIT" {
            if !late {
                continue;
            }
            capella = string(&case["expected"]["fork_version_used"]);
        }
        cases.entry(kind).or_insert(case);
    }
    let kinds: BTreeSet<&str> = cases.keys().map(String::as_str).collect();
    assert!(kinds.len() >= 11, "{kinds:?}");
    let folder = tempfile::tempdir().unwrap();
    let network = folder.path().join("network.toml");
    // Slots of two seconds since 1970: every message lies in the past.
    let forks = format!(
        "phase0 = {{ version = \"0x00000000\", epoch = 0 }}\ncapella = {{ version = \"{capella}\", epoch = 0 }}\n\
         deneb = {{ version = \"0xdededede\", epoch = 0 }}"
    );
    let toml = format!(
        "preset = \"mainnet\"\ngenesis_time = 0\ngenesis_validators_root = \"{chain}\"\nslot_duration_ms = {SLOT_MS}\n\
         slots_per_epoch = 32\n[forks]\n{forks}\n"
    );
    std::fs::write(&network, toml).unwrap();
    let options = ["--vm", "--any-age", "--network", text(&network), "--interop-keys", "64"];
    let stack = Stack::start_in(PROGRAM, &folder.path().join("data"), &options);
    for (kind, case) in &cases {
        let answer = stack.client().post(&string(&case["request"]["path"]), &case["request"]["body"].to_string());
        assert_eq!(answer.signature(), string(&case["expected"]["signature"]), "{kind}");
    }
    println!("{} types: {kinds:?}", cases.len());
    assert!(stack.stop().success());
}

/// Two machines from one image, one of them stopped and woken again: a clone signs nothing that the other could have signed.
#[test]
fn of_two_machines_of_one_group_only_the_fences_holder_signs() {
    let Some((_, _one)) = tools() else { return };
    let bench = Bench::new(PROGRAM, SLOT_MS, SLOTS_PER_EPOCH);
    let stack = bench.start(&["--vm", "--fence", "etcd", "--enclaves", "2", "--interop-keys", "2"]);
    let all = keys(&stack);
    until("one holder and one standby", BOOT, || {
        let mut standings = standings(stack.address);
        standings.sort();
        (standings == ["holding", "standby"]).then_some(())
    });
    let holder = standings(stack.address).iter().position(|standing| standing == "holding").unwrap();
    // Each machine behind a proxy of its own: what a parent does that wants both to sign.
    let proxies =
        [0, 1].map(|number| Proxy::start(&format!("hybrid:{}:{PORT}", qemu(&stack, number).1.display()), &[]));
    let (slot, epoch) = bench.now();
    until("the holder to sign", BOOT, || {
        let (_, epoch) = bench.now();
        let answer = sign(proxies[holder].address, &all[0], &attestation(epoch - 1, epoch, 1));
        (answer.status == 200).then_some(())
    });
    let other = sign(proxies[1 - holder].address, &all[0], &attestation(epoch - 1, epoch, 2));
    assert_eq!(other.status, 503, "{}", other.body);
    assert!(other.body.contains("does not hold the fence"), "{}", other.body);
    assert_eq!(sign(proxies[1 - holder].address, &all[0], &block(slot, 2)).status, 503);

    // The holder's machine is frozen, as a live migration or a snapshot would; the other one takes over.
    let (frozen, _) = qemu(&stack, holder);
    Stack::signal(frozen, Signal::STOP);
    let begun = Instant::now();
    let signed = until("the other machine to sign", Duration::from_mins(2), || {
        let (slot, _) = bench.now();
        (sign(proxies[1 - holder].address, &all[0], &block(slot, 2)).status == 200).then_some(slot)
    });
    println!("taken over {:?} after the holder froze, slots of {SLOT_MS} ms", begun.elapsed());
    // It wakes up, and believes for a moment that it still holds the fence.
    Stack::signal(frozen, Signal::CONT);
    // A proxy without a holder waits some seconds for one before it says so.
    for _ in 0..3 {
        let (slot, epoch) = bench.now();
        for body in [block(slot, 9), block(signed, 9), attestation(epoch - 1, epoch, 9)] {
            let answer = sign(proxies[holder].address, &all[0], &body);
            assert_ne!(answer.status, 200, "the clone has signed {body}");
        }
        sleep(Duration::from_millis(100));
    }
    until("the woken one to stand by", BOOT, || (standings(stack.address).get(holder)? == "standby").then_some(()));
    let (slot, _) = bench.now();
    assert_eq!(sign(stack.address, &all[0], &block(slot.max(signed + 1), 4)).status, 200);
    assert!(stack.stop().success());
}
