//! A connection that does not wait for ever for its peer to take what it is sent.

use std::error::Error;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// A TCP stream whose writes fail when nothing could be sent for a while (slow-read attacks).
#[derive(Debug)]
pub(crate) struct Paced {
    stream: TcpStream,
    timeout: Duration,
    /// Runs while a write waits. Made at the first wait: most connections never do.
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Paced {
    pub(crate) const fn new(stream: TcpStream, timeout: Duration) -> Self {
        Self { stream, timeout, deadline: None, waiting: false }
    }

    fn check<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = false;
            return poll;
        }
        let timeout = self.timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if !self.waiting {
            self.waiting = true;
            deadline.as_mut().reset(Instant::now() + timeout);
        }
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Late))),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Nothing of what waits to be written was taken for too long.
#[derive(Debug, thiserror::Error)]
#[error("the peer does not take what it is sent")]
struct Late;

/// Whether this is the error of a write that waited for too long.
pub(super) fn is_late(error: &(dyn Error + 'static)) -> bool {
    let mut causes = anyhow::Chain::new(error).filter_map(|cause| cause.downcast_ref::<io::Error>()?.get_ref());
    causes.any(|inner| inner.is::<Late>())
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.check(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.check(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
