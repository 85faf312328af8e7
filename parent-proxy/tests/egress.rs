//! The enclave's egress: to the list and nowhere else.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use casemate_protocol::address::Address;
use casemate_protocol::host_services::{self, HostReply, HostRequest};
use casemate_protocol::{BoundedBytes, frame};
use casemate_proxy::egress::{BlobStore, Credentials, Egress, Static, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

struct Bench {
    folder: tempfile::TempDir,
    egress: Arc<Egress<Static>>,
    echo: std::net::SocketAddr,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let echo = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let credentials = Credentials {
            access_key: "AKID".into(),
            secret_key: "secret".into(),
            session_token: None,
            expires: Some(7),
        };
        // The echo server by address and by name, and a port where nobody listens.
        let allowed =
            [format!("127.0.0.1:{}", echo.port()), format!("localhost:{}", echo.port()), "127.0.0.1:1".into()];
        let allowed = allowed.map(|target| target.parse::<Target>().unwrap());
        let egress = Arc::new(Egress::new(allowed, Static(credentials), BlobStore::new(folder.path().join("blobs"))));
        let bench = Self { folder, egress, echo };
        let (serving, address) = (Arc::clone(&bench.egress), Address::Unix(bench.path()));
        tokio::spawn(async move { serving.serve(&address).await });
        bench
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("out.sock")
    }

    async fn connect(&self) -> UnixStream {
        for _ in 0..200 {
            if let Ok(stream) = UnixStream::connect(self.path()).await {
                return stream;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("nobody listens")
    }

    async fn ask(&self, request: HostRequest) -> (HostReply, UnixStream) {
        let mut stream = self.connect().await;
        let reply = ask(&mut stream, request).await;
        (reply, stream)
    }

    async fn connect_to(&self, host: &str, port: u16) -> (HostReply, UnixStream) {
        self.ask(HostRequest::Connect { host: host.into(), port }).await
    }
}

async fn ask(stream: &mut UnixStream, request: HostRequest) -> HostReply {
    let mut bytes = Vec::new();
    host_services::encode_request(&request, &mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let mut buffer = bytes::BytesMut::new();
    loop {
        if let Some((frame, _)) = frame::split(&buffer, host_services::MAX_HOST_FRAME_LEN).unwrap() {
            return host_services::decode_reply(frame).unwrap();
        }
        assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0, "closed without an answer");
    }
}

fn reason(reply: &HostReply) -> &str {
    let HostReply::Refused { reason } = reply else { panic!("it was not refused") };
    reason
}

#[tokio::test]
async fn bytes_go_to_the_list_and_nowhere_else() {
    let bench = Bench::new().await;
    let port = bench.echo.port();
    for host in ["127.0.0.1", "localhost", "LOCALHOST"] {
        let (reply, mut stream) = bench.connect_to(host, port).await;
        assert!(reply == HostReply::Connected, "{host}");
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
    }
    assert_eq!(bench.egress.counters.connected.load(Ordering::Relaxed), 3);
    // The same machine by another name, another port, another host, what is no host.
    for (host, port) in [
        ("127.0.0.2", port),
        ("127.0.0.1", port ^ 1),
        ("example.com", 443),
        ("127.0.0.1.", port),
        ("", port),
        ("localhost\n", port),
        ("::1", port),
    ] {
        let (reply, mut stream) = bench.connect_to(host, port).await;
        assert!(reason(&reply).contains("not on the parent's list"), "{host:?}");
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "closed");
    }
    assert_eq!(bench.egress.counters.refused.load(Ordering::Relaxed), 7);
    let (reply, _) = bench.connect_to("127.0.0.1", 1).await;
    assert!(reason(&reply).contains("127.0.0.1:1: "), "{}", reason(&reply));
    assert_eq!(bench.egress.counters.failed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn bytes_that_come_with_the_request_are_not_lost() {
    let bench = Bench::new().await;
    let mut stream = bench.connect().await;
    let mut bytes = Vec::new();
    host_services::encode_request(
        &HostRequest::Connect { host: "127.0.0.1".into(), port: bench.echo.port() },
        &mut bytes,
    );
    bytes.extend_from_slice(b"early");
    stream.write_all(&bytes).await.unwrap();
    let mut connected = Vec::new();
    host_services::encode_reply(&HostReply::Connected, &mut connected);
    let mut back = vec![0; connected.len() + 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, [connected.as_slice(), b"early"].concat());
}

#[tokio::test]
async fn credentials_and_blobs_over_one_connection() {
    let bench = Bench::new().await;
    let (reply, mut stream) = bench.ask(HostRequest::Credentials).await;
    let HostReply::Credentials { access_key, expires, .. } = reply else { panic!("no credentials") };
    assert_eq!((access_key.as_str(), expires), ("AKID", Some(7)));
    let group = || "alpha".to_owned();
    assert!(
        ask(&mut stream, HostRequest::ListBlobs { group: group() }).await
            == HostReply::Blobs { state_versions: vec![] }
    );
    let blob = BoundedBytes::new(vec![9; 3_000_000]).unwrap();
    let store = HostRequest::StoreBlob { group: group(), state_version: 4, blob: blob.clone() };
    assert!(ask(&mut stream, store.clone()).await == HostReply::Stored);
    assert!(
        ask(&mut stream, HostRequest::ListBlobs { group: group() }).await
            == HostReply::Blobs { state_versions: vec![4] }
    );
    let load = |state_version| HostRequest::LoadBlob { group: group(), state_version };
    assert!(ask(&mut stream, load(4)).await == HostReply::Blob { blob });
    assert!(matches!(ask(&mut stream, load(5)).await, HostReply::Refused { .. }));
    assert!(matches!(ask(&mut stream, store).await, HostReply::Refused { .. }), "never written over");
    let outside = HostRequest::LoadBlob { group: "../alpha".into(), state_version: 4 };
    assert!(matches!(ask(&mut stream, outside).await, HostReply::Refused { .. }));
}

#[tokio::test]
async fn frames_that_are_none_end_their_connection() {
    let bench = Bench::new().await;
    for bytes in [&[0, 0, 0, 0][..], &[0xff; 8], &[0, 0, 0, 3, 1, 2, 3], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = bench.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // Closed, with or without what was not read.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{bytes:02x?}");
    }
    assert!(matches!(bench.ask(HostRequest::Credentials).await.0, HostReply::Credentials { .. }));
}

#[tokio::test]
async fn the_socket_of_the_egress_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let bench = Bench::new().await;
    drop(bench.connect().await);
    let mode = std::fs::metadata(bench.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn targets_are_hosts_with_ports() {
    let good = |text: &str| text.parse::<Target>().unwrap().to_string();
    assert_eq!(good("KMS.eu-central-1.amazonaws.com:443"), "kms.eu-central-1.amazonaws.com:443");
    assert_eq!(good("[::1]:8899"), "[::1]:8899");
    for bad in ["", "host", "host:", ":443", "host:0", "host:65536", "host:x"] {
        assert!(bad.parse::<Target>().is_err(), "{bad}");
    }
}

#[cfg(feature = "imds")]
/// The metadata service as an instance has it: a token first, then the role, then its credentials.
async fn imds(with_role: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let len = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..len]).to_ascii_lowercase();
                let has_token = head.contains("x-aws-ec2-metadata-token: the-token");
                let role = "/latest/meta-data/iam/security-credentials/";
                let (status, body) = if head.starts_with("put /latest/api/token") {
                    ("200 OK", "the-token".to_owned())
                } else if !has_token {
                    ("401 Unauthorized", String::new())
                } else if !with_role {
                    ("404 Not Found", String::new())
                } else if head.starts_with(&format!("get {role} ")) {
                    ("200 OK", "signer".to_owned())
                } else if head.starts_with(&format!("get {role}signer ")) {
                    let json = r#"{"Code": "Success", "LastUpdated": "2026-11-21T00:00:00Z", "Type": "AWS-HMAC",
                        "AccessKeyId": "ASIA", "SecretAccessKey": "secret", "Token": "session",
                        "Expiration": "2100-01-01T00:00:00Z"}"#;
                    ("200 OK", json.to_owned())
                } else {
                    ("404 Not Found", String::new())
                };
                let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\n{ttl}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    format!("http://{address}")
}

#[cfg(feature = "imds")]
#[tokio::test]
async fn the_instances_role_gives_credentials_that_end() {
    use casemate_proxy::egress::{CredentialSource, Source};

    let source = Source::imds(Some(&imds(true).await)).unwrap();
    let given = source.credentials().await.unwrap();
    assert_eq!((given.access_key.as_str(), given.secret_key.as_str()), ("ASIA", "secret"));
    assert_eq!(given.session_token.as_deref(), Some("session"));
    assert!(given.expires.is_some());
    let without_role = Source::imds(Some(&imds(false).await)).unwrap();
    let error = without_role.credentials().await.map(|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("metadata service gives no credentials"), "{error:#}");
    let nobody = Source::imds(Some("http://127.0.0.1:1")).unwrap();
    assert!(nobody.credentials().await.is_err());
}

/// The program serves egress when it is told to, and ends with it.
#[test]
fn the_program_serves_the_enclaves_way_out() {
    use std::io::{Read as _, Write as _};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.sock");
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_casemate-proxy"))
        .args(["--listen", "127.0.0.1:0", "--enclave", "unix:/nowhere", "--log-level", "error"])
        .args(["--egress", &format!("unix:{}", path.display()), "--credentials", "environment"])
        .args(["--egress-allow", "kms.eu-central-1.amazonaws.com:443"])
        .env("AWS_ACCESS_KEY_ID", "AKID")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env_remove("AWS_SESSION_TOKEN")
        .spawn()
        .unwrap();
    let mut stream = (0..1000)
        .find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            std::os::unix::net::UnixStream::connect(&path).ok()
        })
        .expect("nobody listens");
    let mut bytes = Vec::new();
    host_services::encode_request(&HostRequest::Credentials, &mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut reply = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
    stream.read_exact(&mut reply).unwrap();
    let HostReply::Credentials { access_key, session_token, .. } = host_services::decode_reply(&reply).unwrap() else {
        panic!("no credentials")
    };
    assert_eq!((access_key.as_str(), session_token), ("AKID", None));
    program.kill().unwrap();
    program.wait().unwrap();
}
