//! The streams of a link, which carry exchanges.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{HALF_OPEN, StreamError, TAKEN_IN, h2, quic};
use crate::frame::{self, Decoder, Frame};

/// A read takes at least and at most this much room; it grows while reads fill it.
const READ_SIZE: std::ops::RangeInclusive<usize> = 4 << 10..=64 << 10;

/// Both directions of one stream.
#[derive(Debug)]
pub struct Stream {
    /// What we send.
    pub sender: Sender,
    /// What we are sent.
    pub receiver: Receiver,
}

impl From<(SendStream, RecvStream)> for Stream {
    fn from((send, recv): (SendStream, RecvStream)) -> Self {
        Self { sender: Sender(Sending::Quic(send)), receiver: Receiver::new(Receiving::Quic(recv)) }
    }
}

impl From<(h2::Sender, h2::Receiver)> for Stream {
    fn from((sender, receiver): (h2::Sender, h2::Receiver)) -> Self {
        Self { sender: Sender(Sending::H2(sender)), receiver: Receiver::new(Receiving::H2(receiver)) }
    }
}

impl Stream {
    /// Carries the bytes of an upgraded connection both ways until both have ended, or one has and the other has been
    /// silent for [`HALF_OPEN`].
    pub async fn join(self, connection: impl AsyncRead + AsyncWrite) {
        let (mut read, mut write) = tokio::io::split(connection);
        let Self { mut sender, mut receiver } = self;
        let (no_more_in, no_more_out) = (CancellationToken::new(), CancellationToken::new());
        let inwards = async {
            let _ended = no_more_in.clone().drop_guard();
            loop {
                let frame = tokio::select! {
                    frame = receiver.frame() => frame,
                    () = silence(&no_more_out) => break,
                };
                let Ok(Some(Frame::Data(data))) = frame else { break };
                if write.write_all(&data).await.is_err() || write.flush().await.is_err() {
                    break;
                }
            }
            // What the other side no longer sends, this connection no longer gets.
            let _ = write.shutdown().await;
        };
        let outwards = async {
            let _ended = no_more_out.clone().drop_guard();
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(16 << 10);
                let count = tokio::select! {
                    count = read.read_buf(&mut buffer) => count,
                    () = sender.stopped() => break,
                    () = silence(&no_more_in) => break,
                };
                let Ok(count @ 1..) = count else { break };
                let mut start = BytesMut::with_capacity(16);
                frame::put_data_start(&mut start, count);
                if sender.send(&mut [start.freeze(), buffer.split().freeze()]).await.is_err() {
                    break;
                }
            }
            let end = async {
                let _ = sender.send(&mut [Bytes::from_static(frame::END)]).await;
                sender.finish_and_wait().await;
            };
            let _ = tokio::time::timeout(HALF_OPEN, end).await;
        };
        tokio::join!(inwards, outwards);
    }
}

/// Ends [`HALF_OPEN`] after `ended`.
async fn silence(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(HALF_OPEN).await;
}

/// The sending half. Dropped before `END`, it aborts the exchange.
#[derive(Debug)]
pub struct Sender(Sending);

#[derive(Debug)]
enum Sending {
    Quic(SendStream),
    H2(h2::Sender),
}

impl Sender {
    /// Sends the pieces in order as one write, waiting for the other side's window.
    ///
    /// # Errors
    /// The exchange was aborted or the link lost, or the other side did not take them within [`TAKEN_IN`].
    pub async fn send(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamError> {
        let sent = async {
            match &mut self.0 {
                Sending::Quic(stream) => quic::send(stream, pieces).await,
                Sending::H2(stream) => stream.send(pieces).await,
            }
        };
        tokio::time::timeout(TAKEN_IN, sent).await.unwrap_or(Err(StreamError::Aborted))
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        match &mut self.0 {
            // Already closed is what we want, too.
            Sending::Quic(stream) => _ = stream.finish(),
            Sending::H2(stream) => stream.finish(),
        }
    }

    /// Says that nothing more will be sent and, over QUIC, waits until the other side has it all, or no longer cares:
    /// closing that link throws away what is on its way. Over HTTP/2 see [`Link::flushed`](super::Link::flushed).
    pub async fn finish_and_wait(&mut self) {
        self.finish();
        if let Sending::Quic(stream) = &self.0 {
            let _ = stream.stopped().await;
        }
    }

    /// Aborts: what is still on its way is of no use.
    pub fn reset(&mut self) {
        match &mut self.0 {
            Sending::Quic(stream) => quic::reset(stream),
            Sending::H2(stream) => stream.reset(),
        }
    }

    /// Waits until the other side no longer wants what we send.
    pub async fn stopped(&mut self) {
        match &mut self.0 {
            Sending::Quic(stream) => _ = stream.stopped().await,
            Sending::H2(stream) => stream.stopped().await,
        }
    }
}

/// The receiving half. Dropped, it tells the other side to stop sending; over HTTP/2 only once the sending half is gone,
/// too, as a stream ends there in both directions: until then the other side stands still at its window.
#[derive(Debug)]
pub struct Receiver {
    recv: Receiving,
    buffer: BytesMut,
    decoder: Decoder,
    /// How much the next read makes room for.
    room: usize,
}

#[derive(Debug)]
pub(super) enum Receiving {
    Quic(RecvStream),
    H2(h2::Receiver),
}

impl Receiver {
    fn new(recv: Receiving) -> Self {
        Self { recv, buffer: BytesMut::new(), decoder: Decoder::default(), room: *READ_SIZE.start() }
    }

    /// The half itself, without what frames need.
    pub(super) fn into_parts(self) -> (Receiving, BytesMut) {
        (self.recv, self.buffer)
    }

    /// The next frame, or `None` when the other side has finished the stream between two exchanges.
    ///
    /// # Errors
    /// The exchange was aborted (also by a clean end in the middle of one), the link lost, or the protocol broken.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.buffer)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                let clean = self.decoder.at_start() && self.buffer.is_empty();
                return Poll::Ready(if clean { Ok(None) } else { Err(StreamError::Aborted) });
            }
        }
    }

    /// The next frame; see [`Self::poll_frame`].
    ///
    /// # Errors
    /// As [`Self::poll_frame`].
    pub async fn frame(&mut self) -> Result<Option<Frame>, StreamError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Reads more into the buffer and says how much; 0 is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        let recv = match &mut self.recv {
            Receiving::Quic(recv) => recv,
            Receiving::H2(recv) => {
                let piece = ready!(recv.poll_piece(cx))?;
                self.buffer.extend_from_slice(&piece);
                return Poll::Ready(Ok(piece.len()));
            }
        };
        self.buffer.reserve(self.room);
        let count = ready!(quic::poll_fill(recv, cx, &mut self.buffer))?;
        self.room = if count >= self.room { self.room * 2 } else { count.next_power_of_two() };
        self.room = self.room.clamp(*READ_SIZE.start(), *READ_SIZE.end());
        Poll::Ready(Ok(count))
    }

    /// Waits for what must not come before the reply's head: informational answers, which HTTP/2 keeps without a limit
    /// while nobody asks for them.
    pub async fn misbehaves(&mut self) -> StreamError {
        match &mut self.recv {
            Receiving::Quic(_) => std::future::pending().await,
            Receiving::H2(recv) => recv.misbehaves().await,
        }
    }

    /// Gives memory back that only an idle stream would hold. `false` when something was sent after `END`: the
    /// stream must not carry another exchange then.
    #[must_use]
    pub fn rest(&mut self) -> bool {
        let clean = self.buffer.is_empty();
        if clean {
            self.buffer = BytesMut::new();
        }
        clean
    }
}

impl Receiving {
    /// The next piece; an empty one is the end.
    pub(super) async fn piece(&mut self) -> Result<Bytes, StreamError> {
        match self {
            Self::Quic(recv) => Ok(recv.read_chunk(2048, true).await?.map(|piece| piece.bytes).unwrap_or_default()),
            Self::H2(recv) => poll_fn(|cx| recv.poll_piece(cx)).await,
        }
    }
}
