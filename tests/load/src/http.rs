//! One kept-alive connection to the signer.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Where the signer is.
pub struct Target {
    authority: String,
}

impl Target {
    /// Reads `http://HOST:PORT`.
    pub fn parse(url: &str) -> Result<Self> {
        let Some(authority) = url.strip_prefix("http://") else { bail!("--url {url}: only http:// is spoken here") };
        Ok(Self { authority: authority.trim_end_matches('/').to_owned() })
    }
}

/// A connection that sends one request at a time.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Connects.
    pub async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.authority)
            .await
            .with_context(|| format!("connecting to {}: is the signer running?", target.authority))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: target.authority.clone() })
    }

    /// GET.
    pub async fn get(&mut self, path: &str) -> Result<(u16, String)> {
        self.send(Request::get(path), Bytes::new()).await
    }

    /// Asks a key to sign a body.
    pub async fn sign(&mut self, key: &str, body: &str) -> Result<(u16, String)> {
        let request = Request::post(format!("/api/v1/eth2/sign/{key}")).header("content-type", "application/json");
        self.send(request, Bytes::copy_from_slice(body.as_bytes())).await
    }

    async fn send(&mut self, request: hyper::http::request::Builder, body: Bytes) -> Result<(u16, String)> {
        let request =
            request.header("host", self.host.as_str()).header("accept", "application/json").body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(body.into())?))
    }
}
