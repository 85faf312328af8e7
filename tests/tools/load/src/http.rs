//! One kept-alive connection to the signer.
//!
//! One write a request, one read an answer, heads read by httparse: what the generator takes from the signer's cores is little.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of an answer at most: a list of 100,000 keys has ten million.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Where the signer is.
pub struct Target {
    authority: String,
}

impl Target {
    /// Reads `http://HOST:PORT`.
    pub fn parse(url: &str) -> Result<Self> {
        let Some(authority) = url.strip_prefix("http://") else { bail!("{url}: only http:// is spoken here") };
        Ok(Self { authority: authority.trim_end_matches('/').to_owned() })
    }
}

/// A connection that sends one request at a time.
pub struct Connection {
    stream: TcpStream,
    host: String,
    /// What came, and is not used yet.
    buffer: Vec<u8>,
    request: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.authority)
            .await
            .with_context(|| format!("connecting to {}: is the signer running?", target.authority))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, host: target.authority.clone(), buffer: Vec::with_capacity(1024), request: Vec::new() })
    }

    /// GET.
    pub async fn get(&mut self, path: &str) -> Result<(u16, String)> {
        self.request.clear();
        let host = &self.host;
        write!(self.request, "GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n\r\n")?;
        let request = std::mem::take(&mut self.request);
        let answered = self.exchange(&request).await?;
        self.request = request;
        self.take_body(answered)
    }

    /// Asks a key to sign a body.
    pub async fn sign(&mut self, key: &str, body: &str) -> Result<(u16, String)> {
        let mut request = std::mem::take(&mut self.request);
        self.prepare(key, body, &mut request)?;
        let answered = self.exchange(&request).await?;
        self.request = request;
        self.take_body(answered)
    }

    /// Writes down what asks a key to sign a body.
    pub fn prepare(&self, key: &str, body: &str, request: &mut Vec<u8>) -> Result<()> {
        let (host, len) = (&self.host, body.len());
        request.clear();
        request.reserve(512_usize.saturating_add(len));
        for part in ["POST /api/v1/eth2/sign/", key, " HTTP/1.1\r\nhost: ", host] {
            request.extend_from_slice(part.as_bytes());
        }
        write!(
            request,
            "\r\naccept: application/json\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n"
        )?;
        request.extend_from_slice(body.as_bytes());
        Ok(())
    }

    /// Sends what was prepared; anything but a signature is an error.
    pub async fn signed(&mut self, request: &[u8]) -> Result<()> {
        let answered = self.exchange(request).await?;
        if answered.status != 200 {
            let (status, body) = self.take_body(answered)?;
            bail!("the signer answered {status}: {body}");
        }
        self.buffer.drain(..answered.end);
        Ok(())
    }

    fn take_body(&mut self, answered: Answered) -> Result<(u16, String)> {
        let body = self.buffer.get(answered.body..answered.end).unwrap_or_default();
        let body = std::str::from_utf8(body)?.to_owned();
        self.buffer.drain(..answered.end);
        Ok((answered.status, body))
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Answered> {
        self.stream.write_all(request).await?;
        loop {
            if let Some(answered) = head_of(&self.buffer)?
                && answered.end <= self.buffer.len()
            {
                return Ok(answered);
            }
            ensure!(self.buffer.len() < MAX_ANSWER, "an answer of more than {MAX_ANSWER} bytes");
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the signer has closed the connection");
        }
    }
}

/// An answer in the buffer: its status, where its body begins and ends.
#[derive(Clone, Copy)]
struct Answered {
    status: u16,
    body: usize,
    end: usize,
}

/// An answer whose head is whole; nothing where it is not yet.
fn head_of(bytes: &[u8]) -> Result<Option<Answered>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(body) = response.parse(bytes).context("the signer's answer")? else {
        return Ok(None);
    };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.context("the signer's answer has no Content-Length")?;
    let length: usize = std::str::from_utf8(length.value)?.trim().parse().context("Content-Length")?;
    Ok(Some(Answered { status: response.code.context("no status")?, body, end: body.saturating_add(length) }))
}
