//! The broker's way to the parent's services: one connection for each question, and for each connection to a host.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use casemate_protocol::address::Address;
use casemate_protocol::frame;
use casemate_protocol::host_services::{self, HostReply, HostRequest, MAX_HOST_FRAME_LEN};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_vsock::{VsockAddr, VsockStream};

/// Longest wait for the parent's answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The parent. Nothing that it answers is trusted.
#[derive(Clone, Debug)]
pub struct Parent {
    address: Address,
}

/// Why the parent gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// No connection, or it ended.
    #[error("the parent is away: {0}")]
    Away(#[from] io::Error),
    /// It said no.
    #[error("the parent refused: {0}")]
    Refused(String),
    /// Something else than was asked for.
    #[error("the parent answered something else than it was asked")]
    Unexpected,
}

impl Parent {
    /// Where its services are: `vsock:3:PORT` from an enclave, `unix:PATH` on one machine.
    pub fn new(address: Address) -> Self {
        Self { address }
    }

    /// Asks for something.
    pub async fn ask(&self, request: &HostRequest) -> Result<HostReply, ParentError> {
        self.exchange(request).await.map(|(reply, _)| reply)
    }

    /// Opens TCP to a host on the parent's list.
    pub async fn connect(&self, host: &str, port: u16) -> Result<Stream, ParentError> {
        let request = HostRequest::Connect { host: host.to_owned(), port };
        match self.exchange(&request).await? {
            (HostReply::Connected, stream) => Ok(stream),
            _ => Err(ParentError::Unexpected),
        }
    }

    async fn exchange(&self, request: &HostRequest) -> Result<(HostReply, Stream), ParentError> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let (reply, stream) = timeout(TIMEOUT, self.exchange_untimed(request)).await.map_err(late)??;
        match reply {
            HostReply::Refused { reason } => {
                // It goes into a log.
                Err(ParentError::Refused(reason.chars().filter(|c| !c.is_control()).take(200).collect()))
            }
            reply => Ok((reply, stream)),
        }
    }

    async fn exchange_untimed(&self, request: &HostRequest) -> io::Result<(HostReply, Stream)> {
        let mut stream = match &self.address {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
            Address::Vsock { cid, port } => Stream::Vsock(VsockStream::connect(VsockAddr::new(*cid, *port)).await?),
            Address::Hybrid { .. } => {
                return Err(io::Error::other("an enclave dials vsock:CID:PORT, not the parent's side of a device"));
            }
        };
        let mut bytes = Vec::new();
        host_services::encode_request(request, &mut bytes);
        stream.write_all(&bytes).await?;
        let mut buffer = BytesMut::new();
        loop {
            if let Some((frame, used)) = frame::split(&buffer, MAX_HOST_FRAME_LEN).map_err(invalid)? {
                // Nobody has asked for anything yet: there can be nothing behind the answer.
                if used != buffer.len() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                return Ok((host_services::decode_reply(frame).map_err(invalid)?, stream));
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A connection to or through the parent.
pub enum Stream {
    /// On one machine.
    Unix(UnixStream),
    /// From an enclave.
    Vsock(VsockStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
