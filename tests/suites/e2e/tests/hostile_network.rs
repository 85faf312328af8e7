//! A hostile network: half requests, handshakes that never begin, slow readers, floods from several addresses, descriptors at the limit.
//! Each test is a fault that was seen; in all of them somebody who means well is served meanwhile.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use casemate_e2e::bench::keys;
use casemate_e2e::requests::{attestation, block, randao};
use casemate_e2e::stack::{alive, eventually, free_address};
use casemate_e2e::tls::Authority;
use casemate_e2e::{Bench, Client, Stack};
use casemate_protocol::frame;
use casemate_protocol::host_services::{self, HostReply, HostRequest, MAX_HOST_FRAME_LEN};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use rustls::ClientConfig;

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate-e2e-stack");
/// Longest end of a proxy with nothing at its enclave: handing over takes about one of it. It was 10 and 30 s.
const PROMPT: Duration = Duration::from_secs(5);

/// A chain in a hurry.
fn bench() -> Bench {
    Bench::new(PROGRAM, 1000, 32)
}

/// Files of mutual TLS, and who signs for whom.
struct Mutual {
    servers: Authority,
    clients: Authority,
    files: [String; 3],
}

impl Mutual {
    fn new(bench: &Bench) -> Self {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let (certificate, key) = servers.issue("localhost");
        let files = [
            bench.file("cert.pem", &certificate),
            bench.file("key.pem", &key),
            bench.file("clients.pem", &clients.pem()),
        ];
        Self { servers, clients, files }
    }

    fn options(&self) -> [&str; 6] {
        let [certificate, key, clients] = &self.files;
        ["--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", clients]
    }

    fn client(&self) -> Arc<ClientConfig> {
        self.servers.client(Some(self.clients.issue("validator")))
    }
}

/// A stack of which each process may open no more descriptors than that.
fn start_with_descriptors(bench: &Bench, descriptors: usize, options: &[&str]) -> Stack {
    let limited = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let network = bench.path("network.toml");
    let options = [&["--network", &network], options].concat();
    Stack::start_with("/bin/sh", &["-c", &limited, PROGRAM], &PathBuf::from(bench.path("data")), &options)
}

/// What the proxy may open.
fn limit_descriptors(pid: u32, soft: u64) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let hard = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(soft), maximum: hard }).unwrap();
}

/// The lowest descriptor that is free: where the limit is that, there is none.
fn lowest_free_descriptor(pid: u32) -> u64 {
    let open: std::collections::BTreeSet<u64> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    (0..10_000).find(|number| !open.contains(number)).unwrap()
}

fn peak_resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// The proxy's end, from the signal on.
fn ends_within(stack: &Stack, most: Duration) {
    let proxy = stack.pids["proxy"];
    let begun = Instant::now();
    Stack::signal(proxy, Signal::TERM);
    eventually("the proxy to end", || !alive(proxy));
    let took = begun.elapsed();
    println!("the proxy took {took:?} to end");
    assert!(took < most, "{took:?}\n{}", stack.log());
}

/// Connects from an address of this machine's own, and says this and no more.
async fn from(source: Ipv4Addr, to: SocketAddr, said: &[u8]) -> Option<tokio::net::TcpStream> {
    use tokio::io::AsyncWriteExt as _;
    let socket = tokio::net::TcpSocket::new_v4().ok()?;
    socket.bind((source, 0).into()).ok()?;
    let mut stream = tokio::time::timeout(Duration::from_secs(2), socket.connect(to)).await.ok()?.ok()?;
    let _ = stream.write_all(said).await;
    Some(stream)
}

/// Strangers from eight addresses: each keeps its last sockets open and opens more, until it is told to stop. How many there were.
fn flood(to: SocketAddr, stop: &AtomicBool, says: &'static [&'static [u8]]) -> usize {
    let opened = AtomicUsize::new(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let one = async |number: u8| {
        let mut held = std::collections::VecDeque::new();
        let source = Ipv4Addr::new(127, 0, 1, number);
        while !stop.load(Ordering::Relaxed) {
            let said = says[held.len() % says.len()];
            if let Some(stream) = from(source, to, said).await {
                held.push_back(stream);
                opened.fetch_add(1, Ordering::Relaxed);
            }
            if held.len() > 250 {
                held.pop_front();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    runtime.block_on(async {
        tokio::join!(one(1), one(2), one(3), one(4), one(5), one(6), one(7), one(8));
    });
    opened.load(Ordering::Relaxed)
}

/// Asks for one block a slot, over a new connection each time; the slots that were missed.
fn sign_every_slot(bench: &Bench, slots: u64, key: &str, connect: impl Fn() -> Option<Client>) -> Vec<u64> {
    let mut missed = Vec::new();
    let path = format!("/api/v1/eth2/sign/{key}");
    let first = bench.now().0 + 1;
    for slot in first..first + slots {
        while bench.now().0 < slot {
            std::thread::sleep(Duration::from_millis(5));
        }
        let body = block(slot, 1).to_string();
        let ask =
            |mut client: Client| client.send("POST", &path, &[("Accept", "application/json")], body.as_bytes()).ok();
        let answer = connect().and_then(ask);
        if answer.as_ref().is_none_or(|answer| answer.status != 200) || bench.now().0 != slot {
            println!("slot {slot} was missed: {answer:?}");
            missed.push(slot);
        }
    }
    missed
}

/// Never a hello, half a hello, something else, a request in clear.
const HANDSHAKES: &[&[u8]] = &[b"", b"\x16\x03\x01\x02\x00\x01\x00", b"nonsense", b"GET /upcheck HTTP/1.1\r\n\r\n"];
/// Nothing, half a head, half a body, a whole request whose answer is not read.
const REQUESTS: &[&[u8]] = &[
    b"",
    b"POST /api/v1/eth2/sign/0xab HTTP/1.1\r\nHost: local",
    b"POST /api/v1/eth2/sign/0xab HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
    b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n",
];

#[test]
fn idle_sockets_and_half_handshakes_at_the_limit_of_descriptors_lock_out_no_client_with_a_certificate() {
    let bench = bench();
    let mutual = Mutual::new(&bench);
    let stack = start_with_descriptors(&bench, 400, &[&["--interop-keys", "2", "--"][..], &mutual.options()].concat());
    let proxy = stack.pids["proxy"];
    let config = mutual.client();
    let connect = || Client::connect_tls(stack.address, Arc::clone(&config)).ok();
    let mut key = String::new();
    eventually("the keys", || {
        let Some(Ok(answer)) = connect().map(|mut c| c.send("GET", "/api/v1/eth2/publicKeys", &[], b"")) else {
            return false;
        };
        key = serde_json::from_str::<Vec<String>>(&answer.body).unwrap_or_default().pop().unwrap_or_default();
        !key.is_empty()
    });
    assert!(stack.log().contains("fewer clients than --max-connections"), "{}", stack.log());
    let mut kept = connect().unwrap();
    kept.get("/upcheck", &[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let strangers = scope.spawn(|| flood(stack.address, &stop, HANDSHAKES));
        std::thread::sleep(Duration::from_secs(2));
        let missed = sign_every_slot(&bench, 10, &key, connect);
        stop.store(true, Ordering::Relaxed);
        let strangers = strangers.join().unwrap();
        println!("{strangers} strangers");
        assert!(strangers > 1000, "{strangers}");
        assert_eq!(missed, [0_u64; 0], "{}", stack.log());
    });
    // The connection from before is as good as ever, the proxy is the same, and the strangers stand in the log.
    kept.get("/upcheck", &[]);
    assert!(alive(proxy));
    let log = stack.log();
    assert!(log.contains("a TLS handshake has failed") && log.contains("certificate_sha256"), "{log}");
    assert!(log.lines().count() < 400, "{} lines", log.lines().count());
}

#[test]
fn half_requests_and_slow_readers_from_many_addresses_cost_nobody_a_slot() {
    let bench = bench();
    let stack = start_with_descriptors(&bench, 400, &["--interop-keys", "2"]);
    let proxy = stack.pids["proxy"];
    let key = keys(&stack)[0].clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let strangers = scope.spawn(|| flood(stack.address, &stop, REQUESTS));
        std::thread::sleep(Duration::from_secs(2));
        let missed = sign_every_slot(&bench, 10, &key, || Client::try_connect(stack.address));
        stop.store(true, Ordering::Relaxed);
        let strangers = strangers.join().unwrap();
        println!("{strangers} strangers");
        assert!(strangers > 1000, "{strangers}");
        assert_eq!(missed, [0_u64; 0], "{}", stack.log());
    });
    assert!(alive(proxy) && !stack.log().contains("has ended (exit"), "{}", stack.log());
}

#[test]
fn without_a_descriptor_left_no_listener_ends_and_both_go_on() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1"]);
    let proxy = stack.pids["proxy"];
    let key = keys(&stack)[0].clone();
    let mut before = stack.client();
    before.get("/upcheck", &[]);
    let egress = stack.socket.parent().unwrap().join("egress.sock");
    limit_descriptors(proxy, lowest_free_descriptor(proxy));
    // All wait in the sockets' queues. One or two may find the place of a connection that has ended meanwhile.
    let crowd: Vec<_> = (0..4).map(|_| (tcp(stack.address), UnixStream::connect(&egress).unwrap())).collect();
    let mut waiting = UnixStream::connect(&egress).unwrap();
    let mut client = stack.client();
    eventually("both listeners to be out of descriptors", || {
        let log = stack.log();
        log.contains("a connection could not be accepted")
            && log.contains("a connection of the enclave could not be accepted")
    });
    // Who is connected is served.
    before.sign(&key, &randao(bench.now().1)).signature();
    limit_descriptors(proxy, 1000);
    client.sign(&key, &randao(bench.now().1)).signature();
    assert!(matches!(ask(&mut waiting, &HostRequest::Credentials), HostReply::Credentials { .. }));
    assert!(alive(proxy), "{}", stack.log());
    drop(crowd);
}

#[test]
fn half_requests_do_not_delay_the_handover() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1"]);
    let mut idle = stack.client();
    idle.get("/upcheck", &[]);
    let held: Vec<TcpStream> = REQUESTS
        .iter()
        .map(|said| {
            let mut stream = tcp(stack.address);
            stream.write_all(said).unwrap();
            stream
        })
        .collect();
    // Half of a second request, behind a first one that was answered.
    let mut again = stack.client();
    again.get("/upcheck", &[]);
    again.raw(b"GET /upcheck HTTP/1.1\r\nHo").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    ends_within(&stack, PROMPT);
    assert!(stack.log().contains("the fence was handed over in order"), "{}", stack.log());
    drop(held);
}

#[test]
fn at_the_end_a_request_at_the_enclave_is_answered_and_half_ones_are_dropped_at_once() {
    let bench = bench();
    let stack = bench.start(&["--plain", "--interop-keys", "1"]);
    let (proxy, vault, key) = (stack.pids["proxy"], stack.pids["vault"], keys(&stack)[0].clone());
    let mut half = tcp(stack.address);
    half.write_all(REQUESTS[2]).unwrap();
    Stack::signal(vault, Signal::STOP);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stack.client().sign(&key, &randao(bench.now().1)));
        std::thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        Stack::signal(proxy, Signal::TERM);
        assert!(matches!(half.read(&mut [0; 64]), Ok(0) | Err(_)), "an answer to half a request");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(alive(proxy), "the proxy went before it had answered");
        Stack::signal(vault, Signal::CONT);
        waiting.join().unwrap().signature();
    });
    eventually("the proxy to end", || !alive(proxy));
}

#[test]
fn handshakes_that_never_begin_do_not_delay_the_handover() {
    let bench = bench();
    let mutual = Mutual::new(&bench);
    let stack = bench.try_start(&[&["--interop-keys", "1", "--"][..], &mutual.options()].concat()).unwrap();
    eventually("a handshake", || Client::connect_tls(stack.address, mutual.client()).is_ok());
    let held: Vec<TcpStream> = HANDSHAKES
        .iter()
        .map(|said| {
            let mut stream = tcp(stack.address);
            stream.write_all(said).unwrap();
            stream
        })
        .collect();
    let mut half = Client::connect_tls(stack.address, mutual.client()).unwrap();
    half.raw(b"GET /upcheck HTTP/1.1\r\nHo").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    ends_within(&stack, PROMPT);
    eventually("the log", || stack.log().contains("the fence was handed over in order"));
    drop(held);
}

#[test]
fn other_authorities_end_the_connections_of_the_older_ones_and_sighup_reloads_too() {
    let bench = bench();
    let mutual = Mutual::new(&bench);
    let options = [&["--plain", "--interop-keys", "1", "--"][..], &mutual.options()].concat();
    let stack = bench.try_start(&options).unwrap();
    let mut old = Client::connect_tls(stack.address, mutual.client()).unwrap();
    assert_eq!(old.get("/upcheck", &[]).status, 200);
    // The same authority again ends nothing.
    assert_eq!(old.post("/reload", "").status, 202);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(old.get("/upcheck", &[]).status, 200);
    let newer = Authority::new("newer clients");
    std::fs::write(&mutual.files[2], newer.pem()).unwrap();
    Stack::signal(stack.pids["proxy"], Signal::HUP);
    eventually("the old connection to end", || old.send("GET", "/upcheck", &[], b"").is_err());
    let with = |who: &Authority| {
        let mut client =
            Client::connect_tls(stack.address, mutual.servers.client(Some(who.issue("validator")))).ok()?;
        client.send("GET", "/upcheck", &[], b"").ok()
    };
    assert!(with(&mutual.clients).is_none(), "the older authority is not in force any more");
    assert_eq!(with(&newer).expect("a client of the newer authority").status, 200);
    let log = stack.log();
    for words in ["certificate_sha256", "a TLS handshake has failed", "its authority is not in force any more", "peer"]
    {
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[test]
fn a_web_page_spends_no_vote() {
    let bench = bench();
    let stack = bench.start(&["--plain", "--interop-keys", "1"]);
    let mut client = stack.client();
    let key = keys(&stack)[0].clone();
    let epoch = bench.now().1;
    let path = format!("/api/v1/eth2/sign/{key}");
    let page = attestation(epoch - 1, epoch, 1).to_string();
    let len = page.len().to_string();
    let json = ("Content-Type", "application/json");
    for (more, status, word) in [
        (&[("Content-Type", "text/plain")][..], 415, "application/json"),
        (&[("Content-Type", "application/x-www-form-urlencoded")], 415, "application/json"),
        (&[("Content-Type", "multipart/form-data; boundary=x")], 415, "application/json"),
        (&[json, ("Origin", "https://evil.example")], 403, "Origin"),
        (&[("Origin", "null")], 403, "Origin"),
        (&[json, ("Sec-Fetch-Site", "cross-site")], 403, "Sec-Fetch-Site"),
        (&[("Sec-Fetch-Site", "same-site")], 403, "Sec-Fetch-Site"),
    ] {
        // By the fast path and by the router.
        for path in [path.clone(), path.replace("sign/0x", "sign/%30x")] {
            let headers = [&[("Content-Length", len.as_str())], more].concat();
            let answer = client.send("POST", &path, &headers, page.as_bytes()).unwrap();
            assert_eq!(answer.status, status, "{more:?}: {answer:?}");
            assert!(answer.error().contains(word), "{answer:?}");
        }
    }
    for path in ["/reload", "/commands", "/eth/v1/keystores"] {
        let answer = client.post_with(path, &[("Origin", "https://evil.example")], "{}");
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
    }
    // The vote is there still.
    let headers = [json, ("Sec-Fetch-Mode", "cors"), ("Content-Length", len.as_str()), ("Accept", "*/*")];
    client.send("POST", &path, &headers, page.as_bytes()).unwrap().signature();
    client.sign(&key, &attestation(epoch - 1, epoch, 1)).signature();
}

#[test]
fn doubled_and_trailing_slashes_lead_to_the_same_paths() {
    let bench = bench();
    let stack = bench.start(&["--plain", "--interop-keys", "1"]);
    let mut client = stack.client();
    let key = keys(&stack)[0].clone();
    for path in ["//upcheck", "/upcheck/", "/api/v1/eth2/publicKeys/", "//api/v1/eth2//publicKeys"] {
        assert_eq!(client.get(path, &[]).status, 200, "{path}");
    }
    let body = randao(bench.now().1).to_string();
    for path in [format!("//api/v1/eth2/sign/{key}"), format!("/api/v1/eth2/sign/{key}/")] {
        client.post(&path, &body).signature();
    }
    assert_eq!(client.get("//nope", &[]).status, 404);
}

#[test]
fn administration_has_a_listener_and_an_authority_of_its_own() {
    let bench = bench();
    let mutual = Mutual::new(&bench);
    let admins = Authority::new("administrators");
    let admin_ca = bench.file("admins.pem", &admins.pem());
    let (token, admin) = (bench.path("token"), free_address());
    let listen = admin.to_string();
    let more = ["--admin-listen", &listen, "--admin-tls-client-ca", &admin_ca, "--key-manager-token-file", &token];
    let options = [&["--plain", "--interop-keys", "1", "--"][..], &mutual.options(), &more].concat();
    let stack = bench.try_start(&options).unwrap();
    let config = mutual.client();
    let mut client = Client::connect_tls(stack.address, Arc::clone(&config)).unwrap();
    let mut admin_client =
        Client::connect_tls(admin, mutual.servers.client(Some(admins.issue("administrator")))).unwrap();
    eventually("the keys", || client.get("/healthcheck", &[]).status == 200);
    let nonce = "?nonce=0011223344556677";
    for (path, allowed) in [
        ("/reload".to_owned(), 200),
        ("/eth/v1/keystores".to_owned(), 401),
        (format!("/slashing-protection{nonce}"), 200),
        (format!("/signing-log/head{nonce}"), 200),
        ("/commands".to_owned(), 405),
    ] {
        let answer = client.get(&path, &[]);
        assert!(answer.status == 404 && answer.error().contains("--admin-listen"), "{path}: {answer:?}");
        let answer = admin_client.get(&path, &[]);
        // Without a fence there is no history to be had, which is said: the path is there.
        assert!(answer.status == allowed || answer.status == 503, "{path}: {answer:?}");
    }
    assert_eq!(client.post("/reload/", "").status, 404);
    let key = client.get("/api/v1/eth2/publicKeys", &[]).json()[0].as_str().unwrap().to_owned();
    let body = randao(bench.now().1);
    client.sign(&key, &body).signature();
    let refused = admin_client.sign(&key, &body);
    assert!(refused.status == 404 && refused.error().contains("signs nothing"), "{refused:?}");
    assert_eq!(admin_client.get("/upcheck", &[]).status, 200);
    // A validator's certificate is none of an administrator.
    let stranger = Client::connect_tls(admin, config);
    assert!(stranger.is_err() || stranger.unwrap().send("GET", "/reload", &[], b"").is_err());
}

/// One question over the egress.
fn ask(stream: &mut UnixStream, request: &HostRequest) -> HostReply {
    let mut bytes = Vec::new();
    host_services::encode_request(request, &mut bytes);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&bytes).unwrap();
    let (mut buffer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let len = stream.read(&mut chunk).unwrap();
        assert_ne!(len, 0, "closed without an answer");
        buffer.extend_from_slice(&chunk[..len]);
        if let Some((frame, _)) = frame::split(&buffer, MAX_HOST_FRAME_LEN).unwrap() {
            return host_services::decode_reply(frame).unwrap();
        }
    }
}

#[test]
fn twelve_egress_connections_and_a_thousand_heads_take_no_gigabyte() {
    let bench = bench();
    let stack = bench.start(&["--interop-keys", "1"]);
    let proxy = stack.pids["proxy"];
    let key = keys(&stack)[0].clone();
    let egress = stack.socket.parent().unwrap().join("egress.sock");
    let len = u32::try_from(MAX_HOST_FRAME_LEN).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            let egress = egress.clone();
            scope.spawn(move || {
                let mut stream = UnixStream::connect(egress).unwrap();
                stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
                let _ = stream.write_all(&len.to_be_bytes());
                // All but the end of a blob.
                let chunk = vec![7; 1024 * 1024];
                for _ in 0..60 {
                    if stream.write_all(&chunk).is_err() {
                        break;
                    }
                }
                std::thread::sleep(Duration::from_secs(3));
            });
        }
        std::thread::sleep(Duration::from_secs(1));
        // A question without a blob waits for none of them.
        let mut stream = UnixStream::connect(&egress).unwrap();
        assert!(matches!(ask(&mut stream, &HostRequest::Credentials), HostReply::Credentials { .. }));
        stack.client().sign(&key, &randao(bench.now().1)).signature();
    });
    let after_egress = peak_resident_mib(proxy);
    println!("the proxy took {after_egress} MiB at most: blobs");
    assert!(after_egress < 250, "{after_egress} MiB");

    let long = format!("GET /upcheck HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(390_000));
    let held: Vec<TcpStream> = (0..1000)
        .map(|_| {
            let mut stream = tcp(stack.address);
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = stream.write_all(long.as_bytes());
            stream
        })
        .collect();
    stack.client().sign(&key, &randao(bench.now().1)).signature();
    let after_heads = peak_resident_mib(proxy);
    println!("the proxy took {after_heads} MiB at most: heads");
    assert!(after_heads < 250, "{after_heads} MiB");
    drop(held);
}
