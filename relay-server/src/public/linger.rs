//! A connection that does not end before its sender has the answer.
//!
//! hyper ends a connection as soon as it reads the end of stream while a request is being answered. A sender may
//! close its own side after a request, though, and one that is gone for good must not hold anything for long: so the
//! end of stream is kept back while whole requests are answered, for a bounded time.
//!
//! And when an answer comes before the body was read, closing the connection under a sender that is still sending
//! makes its kernel throw the answer away (RFC 9112 §9.6): so the rest is read and dropped, also for a bounded time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::sender::Sender;

/// What a sender still sends when its answer is out is read for this long, and this many bytes of it.
const DISCARD_FOR: Duration = Duration::from_secs(5);
const MAX_DISCARDED: usize = 64 << 20;

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
    /// Runs since this side has ended, with what was discarded.
    discarding: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Linger<S> {
    pub(super) const fn new(stream: S, sender: Arc<Sender>, most: Duration) -> Self {
        Self { stream, sender, most, ended: None, end: Ok(()), discarding: None }
    }

    /// Ready when the end of stream may be seen.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sender.is_owed_an_answer(cx)
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
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
        let this = &mut *self;
        if this.discarding.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if this.ended.is_some() || !this.sender.has_unread() {
                return Poll::Ready(Ok(()));
            }
        }
        let (until, discarded) = this.discarding.get_or_insert_with(|| (Box::pin(tokio::time::sleep(DISCARD_FOR)), 0));
        let mut buffer = [0; 8 << 10];
        while *discarded < MAX_DISCARDED && until.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut buffer);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            *discarded += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}
