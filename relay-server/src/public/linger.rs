//! A connection whose sender has said all: it still gets its answer.
//!
//! hyper ends a connection as soon as it reads the end of stream while a request is being answered. A sender may
//! close its own side after a request, though, and one that is gone for good must not hold anything for long: so the
//! end of stream is kept back while whole requests are answered, for a bounded time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::Sender;

/// A connection that keeps its end of stream back.
#[derive(Debug)]
pub(super) struct Linger<S> {
    stream: S,
    sender: Arc<Sender>,
    most: Duration,
    /// Runs since the end of stream was read.
    ended: Option<Pin<Box<Sleep>>>,
    /// How it ended: without TLS' goodbye it is an error.
    end: io::Result<()>,
}

impl<S> Linger<S> {
    pub(super) const fn new(stream: S, sender: Arc<Sender>, most: Duration) -> Self {
        Self { stream, sender, most, ended: None, end: Ok(()) }
    }

    /// Ready when the end of stream may be seen.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender.answered.register(cx.waker());
        if self.sender.is_owed_an_answer()
            && let Some(ended) = &mut self.ended
        {
            ready!(ended.as_mut().poll(cx));
        }
        Poll::Ready(std::mem::replace(&mut self.end, Ok(())))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended.is_some() {
            return self.poll_end(cx);
        }
        let before = buf.filled().len();
        self.end = match ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
            Ok(()) if buf.filled().len() > before || buf.remaining() == 0 => return Poll::Ready(Ok(())),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Poll::Ready(Err(error)),
            end => end,
        };
        self.ended = Some(Box::pin(tokio::time::sleep(self.most)));
        self.poll_end(cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
