//! A client for HTTP/1.1 with keep-alive that adds no header of its own: clients differ in what they send, and some of
//! them send little.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The sentence of a refusal; it stands under both names.
    pub fn error(&self) -> String {
        let json = self.json();
        assert_eq!(json["error"], json["message"], "{self:?}");
        json["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    pub fn signature(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        let signature = self.json()["signature"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned();
        assert_eq!(signature.len(), 194, "{self:?}");
        signature
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub struct Client {
    stream: BufReader<Box<dyn Stream>>,
    host: String,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = tcp(address);
        Self { stream: BufReader::new(Box::new(stream)), host: address.to_string() }
    }

    /// `None` where nobody listens.
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        Some(Self { stream: BufReader::new(Box::new(stream)), host: address.to_string() })
    }

    /// Over TLS; an error is the handshake's.
    pub fn connect_tls(address: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<Self> {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, tcp(address));
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(Self { stream: BufReader::new(Box::new(stream)), host: "localhost".into() })
    }

    pub fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers, b"").unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// As most clients post: JSON in and out.
    pub fn post(&mut self, path: &str, body: &str) -> Answer {
        self.post_with(path, &[("Accept", "application/json")], body)
    }

    pub fn post_with(&mut self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.send("POST", path, headers, body.as_bytes()).unwrap_or_else(|e| panic!("POST {path}: {e}"))
    }

    pub fn sign(&mut self, key: &str, body: &Value) -> Answer {
        self.post(&format!("/api/v1/eth2/sign/{key}"), &body.to_string())
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            let _ = write!(head, "Host: {}\r\n", self.host);
        }
        if method == "POST" && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.raw(&bytes)?;
        self.answer()
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Reads the next answer.
    pub fn answer(&mut self) -> std::io::Result<Answer> {
        let mut line = String::new();
        self.line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| other(&line))?;
        let mut headers = Vec::new();
        loop {
            self.line(&mut line)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| other(&line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let len = answer.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body)?;
        answer.body = String::from_utf8(body).map_err(std::io::Error::other)?;
        Ok(answer)
    }

    fn line(&mut self, line: &mut String) -> std::io::Result<()> {
        line.clear();
        if self.stream.read_line(line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(())
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("connecting to {address}: {e}"));
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn other(line: &str) -> std::io::Error {
    std::io::Error::other(format!("no HTTP answer: {line:?}"))
}
