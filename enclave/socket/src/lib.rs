//! Unix sockets whose tasks wake when there is something to read, and not whenever the peer has read.
//!
//! The runtime's own sockets are registered for both ways, and a Unix socket tells of room after each read of its peer: that were as
//! many wake-ups again as there are batches of frames, and each takes a core from the vault. Here room is asked for when there is none.
//!
//! ```
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
//! let mut ours = casemate_socket::Socket::new(ours)?;
//! std::io::Write::write_all(&mut &theirs, b"frame")?;
//! let mut bytes = [0; 5];
//! tokio::io::AsyncReadExt::read_exact(&mut ours, &mut bytes).await?;
//! assert_eq!(&bytes, b"frame");
//! # Ok::<_, std::io::Error>(())
//! # })?;
//! # Ok::<_, std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// Bytes read at once.
const READ_LEN: usize = 64 * 1024;

/// A connected Unix socket.
pub struct Socket {
    stream: AsyncFd<UnixStream>,
    /// The same under another descriptor, which a write that waits for room registers. Made with the socket: a process that is out of
    /// descriptors must not lose a connection for that.
    spare: Option<UnixStream>,
    /// While a write waits for room.
    full: Option<AsyncFd<UnixStream>>,
    /// What a read goes into.
    buffer: Box<[u8]>,
}

impl Socket {
    /// Takes a socket over; needs a runtime.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let spare = Some(stream.try_clone()?);
        let stream = registered(stream, Interest::READABLE)?;
        Ok(Self { stream, spare, full: None, buffer: vec![0; READ_LEN].into() })
    }
}

/// Deprecated because a type may lie about its descriptor, or close it early; its successor is unsafe for that. The standard library's
/// socket does neither: it is owned here until it has been taken out of the runtime again.
#[allow(deprecated, reason = "see above")]
fn registered(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, buffer, .. } = self.get_mut();
        let room = out.remaining().min(buffer.len());
        let Some(buffer) = buffer.get_mut(..room) else { return Poll::Ready(Ok(())) };
        loop {
            let mut ready = ready!(stream.poll_read_ready(cx))?;
            match ready.try_io(|stream| stream.get_ref().read(buffer)) {
                Ok(Ok(read)) => {
                    // Less than there was room for: it is empty now, and whatever comes tells of itself. At the end it stays ready.
                    if read > 0 && read < room {
                        ready.clear_ready();
                    }
                    out.put_slice(buffer.get(..read).unwrap_or_default());
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            match this.stream.get_ref().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => {
                    // What was taken in part has filled it again.
                    if matches!(done, Ok(written) if written == bytes.len()) {
                        this.spare = this.full.take().map(AsyncFd::into_inner).or(this.spare.take());
                    }
                    return Poll::Ready(done);
                }
            }
            if let Some(spare) = this.spare.take() {
                this.full = Some(registered(spare, Interest::WRITABLE)?);
            }
            let Some(full) = &this.full else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
            // There may have been room again since; whatever comes from now on wakes this task.
            let mut ready = ready!(full.poll_write_ready(cx))?;
            ready.clear_ready();
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_goes_in_comes_out_however_full_it_gets() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (Socket::new(one).unwrap(), Socket::new(other).unwrap());
        // Far more than a socket holds.
        let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            for part in sent.chunks(70_001) {
                one.write_all(part).await.unwrap();
            }
            one.shutdown().await.unwrap();
            one
        });
        let mut received = Vec::new();
        // In turns: it is full, then empty, and both sides wait.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        while other.read_buf(&mut received).await.unwrap() > 0 {
            if received.len() % 7 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
        assert!(received == expected);
        // The other way is still open.
        let mut one = writing.await.unwrap();
        other.write_all(b"end").await.unwrap();
        drop(other);
        received.clear();
        one.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"end");
        // Nobody reads what is written now.
        assert!(one.write_all(&[0; 64]).await.is_err());
    }
}
