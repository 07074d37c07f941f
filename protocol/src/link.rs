//! The link between a relay and a client: its streams, and how they are tuned. Only this module, the relay's
//! `tunnel/endpoint.rs` and the client's `tunnel/dial.rs` know that it is QUIC.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, TransportConfig, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::frame::{self, Decoder, Frame, FrameError};
use crate::head::HeadError;
use crate::message::MAX_MESSAGE;

/// The protocol's name in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"hookway/1";

/// The link counts as dead when nothing was heard for this long. QUIC counts from the last keep-alive sent (RFC 9000
/// §10.1), so that a loss is noticed within the sum of the two: under 6 s.
pub const DEAD_AFTER: Duration = Duration::from_secs(4);
/// Each side says something at least this often.
const KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// What one stream may have on its way: at 40 ms round trip, 13 MB/s.
pub const STREAM_WINDOW: u32 = 512 << 10;
/// What one connection may have on its way: so many streams that nobody reads do not stop the others. Times the
/// number of sessions this bounds a side's memory.
pub const LINK_WINDOW: u32 = 64 << 20;
/// What is written at once must be taken within this time.
pub const TAKEN_IN: Duration = Duration::from_secs(600);
/// An upgraded connection of which one side has ended may be silent for this long.
pub const HALF_OPEN: Duration = Duration::from_secs(10);
/// Streams a client allows at first; a connection's idle memory follows this number.
pub const FIRST_STREAMS: u32 = 16;
/// A read takes at least and at most this much room; it grows while reads fill it.
const READ_SIZE: std::ops::RangeInclusive<usize> = 4 << 10..=64 << 10;

/// Which side of the link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Accepts connections and opens the streams of exchanges.
    Relay,
    /// Dials, opens the control stream and accepts the others.
    Client,
}

/// How a side tunes its QUIC transport.
#[must_use]
pub fn transport(side: Side) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let streams = match side {
        Side::Relay => 1, // the control stream
        Side::Client => FIRST_STREAMS,
    };
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(LINK_WINDOW.into())
        .send_window(LINK_WINDOW.into())
        .max_idle_timeout(Some(DEAD_AFTER.try_into().expect("4 s fit a varint")))
        .keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(transport)
}

/// Why a link is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nothing was heard for [`DEAD_AFTER`].
    #[error("nothing was heard from the other side for {} s", DEAD_AFTER.as_secs())]
    TimedOut,
    /// The other side closed it and said why.
    #[error("closed by the other side: {0}")]
    Closed(String),
    /// This side closed it.
    #[error("closed")]
    ClosedHere,
    /// The other side broke QUIC's rules, or restarted.
    #[error("{0}")]
    Broken(String),
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::LocallyClosed => Self::ClosedHere,
            ConnectionError::ApplicationClosed(close) => {
                // It goes into logs: a line of it stays one.
                Self::Closed(String::from_utf8_lossy(&close.reason).escape_debug().to_string())
            }
            error => Self::Broken(error.to_string().escape_debug().to_string()),
        }
    }
}

/// Why a stream is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The link under it is gone.
    #[error("the link was lost: {0}")]
    Lost(#[source] LinkError),
    /// The other side gave the exchange up.
    #[error("the other side aborted the exchange")]
    Aborted,
    /// The other side sent what it may not.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<HeadError> for StreamError {
    fn from(error: HeadError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Lost(error.into()),
            _ => Self::Aborted,
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error.into()),
            _ => Self::Aborted,
        }
    }
}

/// One connected peer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Link(Connection);

impl Link {
    /// The link over this QUIC connection.
    #[must_use]
    pub const fn quic(connection: Connection) -> Self {
        Self(connection)
    }

    /// What carries the link, for people: `quic`.
    #[must_use]
    pub const fn transport(&self) -> &'static str {
        "quic"
    }

    /// What a round trip takes at present.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.0.rtt()
    }

    /// Grows with everything that is heard from the other side.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.0.stats().udp_rx.datagrams
    }

    /// Opens a stream, waiting while the other side allows no more.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn open(&self) -> Result<Stream, LinkError> {
        Ok(self.0.open_bi().await?.into())
    }

    /// The next stream that the other side opens.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn accept(&self) -> Result<Stream, LinkError> {
        Ok(self.0.accept_bi().await?.into())
    }

    /// Lets the other side have this many streams open at once.
    pub fn allow_streams(&self, count: u32) {
        self.0.set_max_concurrent_bi_streams(count.into());
    }

    /// The other side's address; it changes when a client moves between networks.
    #[must_use]
    pub fn remote(&self) -> std::net::SocketAddr {
        self.0.remote_address()
    }

    /// Waits until the link is gone and says why.
    pub async fn closed(&self) -> LinkError {
        self.0.closed().await.into()
    }

    /// Closes the link when the guard is dropped, also by a task that is aborted.
    pub fn close_on_drop(&self, reason: &'static str) -> CloseOnDrop {
        CloseOnDrop { link: Some(self.clone()), reason }
    }

    /// Closes the link at once, with a reason for the other side's log.
    pub fn close(&self, reason: &str) {
        self.0.close(VarInt::from_u32(0), reason.as_bytes());
    }
}

/// Closes its link on drop; see [`Link::close_on_drop`].
#[derive(Debug)]
#[must_use]
pub struct CloseOnDrop {
    link: Option<Link>,
    reason: &'static str,
}

impl CloseOnDrop {
    /// Lets the link stay open.
    pub fn disarm(mut self) {
        self.link = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.close(self.reason);
        }
    }
}

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
        let receiver =
            Receiver { recv, buffer: BytesMut::new(), decoder: Decoder::default(), room: *READ_SIZE.start() };
        Self { sender: Sender(send), receiver }
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
            let mut stopped = pin!(sender.stopped());
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(16 << 10);
                let count = tokio::select! {
                    count = read.read_buf(&mut buffer) => count,
                    () = &mut stopped => break,
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
pub struct Sender(SendStream);

impl Sender {
    /// Sends the pieces in order as one write, waiting for the other side's window.
    ///
    /// # Errors
    /// The exchange was aborted or the link lost, or the other side did not take them within [`TAKEN_IN`].
    pub async fn send(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamError> {
        // quinn does not always wake a write that waits for the link's window when its stream is stopped.
        let stopped = self.stopped();
        tokio::select! {
            biased;
            sent = self.0.write_all_chunks(pieces) => Ok(sent?),
            () = stopped => Err(StreamError::Aborted),
            () = tokio::time::sleep(TAKEN_IN) => Err(StreamError::Aborted),
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        // Already closed is what we want, too.
        let _ = self.0.finish();
    }

    /// Says that nothing more will be sent and waits until the other side has it all, or no longer cares.
    pub async fn finish_and_wait(&mut self) {
        self.finish();
        self.stopped().await;
    }

    /// Aborts: what is still on its way is of no use.
    pub fn reset(&mut self) {
        let _ = self.0.reset(VarInt::from_u32(0));
    }

    /// Waits until the other side no longer wants what we send.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        let stopped = self.0.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}

/// The receiving half. Dropped, it tells the other side to stop sending.
#[derive(Debug)]
pub struct Receiver {
    recv: RecvStream,
    buffer: BytesMut,
    decoder: Decoder,
    /// How much the next read makes room for.
    room: usize,
}

impl Receiver {
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
    ///
    /// Reading into one buffer costs a copy, and makes one piece of the many that QUIC's packets come in.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        self.buffer.reserve(self.room);
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.recv), cx, &mut self.buffer);
        let count = ready!(read).map_err(|error| match error.downcast::<ReadError>() {
            Ok(error) => error.into(),
            Err(error) => StreamError::Protocol(error.to_string()),
        })?;
        self.room = if count >= self.room { self.room * 2 } else { count.next_power_of_two() };
        self.room = self.room.clamp(*READ_SIZE.start(), *READ_SIZE.end());
        Poll::Ready(Ok(count))
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

/// The control stream: messages with their length in front.
#[derive(Debug)]
pub struct Control {
    /// Sends messages.
    pub sender: ControlSender,
    /// Receives messages.
    pub receiver: ControlReceiver,
}

impl From<Stream> for Control {
    fn from(stream: Stream) -> Self {
        Self {
            sender: ControlSender(stream.sender),
            receiver: ControlReceiver { recv: stream.receiver.recv, buffer: stream.receiver.buffer },
        }
    }
}

/// The sending half of the control stream.
#[derive(Debug)]
pub struct ControlSender(Sender);

impl ControlSender {
    /// Sends one message.
    ///
    /// # Errors
    /// The stream or the link is gone.
    pub async fn send(&mut self, message: &impl Message) -> Result<(), StreamError> {
        self.0.send(&mut [message.encode_length_delimited_to_vec().into()]).await
    }

    /// Says that nothing more will be sent. From a client it means that it is leaving: it serves nothing new.
    pub fn leave(&mut self) {
        self.0.finish();
    }

    /// Says that nothing more will be sent and waits until the other side has it all, or no longer cares.
    pub async fn finish(mut self) {
        self.0.finish_and_wait().await;
    }
}

/// The receiving half of the control stream.
#[derive(Debug)]
pub struct ControlReceiver {
    recv: RecvStream,
    buffer: BytesMut,
}

impl ControlReceiver {
    /// The next message, or `None` when the other side has finished. Safe to cancel: nothing is lost.
    ///
    /// # Errors
    /// The link is gone, or the message too long or broken.
    pub async fn receive<M: Message + Default>(&mut self) -> Result<Option<M>, StreamError> {
        let broken = |error: prost::DecodeError| StreamError::Protocol(error.to_string());
        loop {
            if let Some((length, start)) = message_start(&self.buffer)? {
                if self.buffer.len() >= start + length {
                    let message = self.buffer.split_to(start + length);
                    return M::decode(&message[start..]).map(Some).map_err(broken);
                }
                self.buffer.reserve(start + length - self.buffer.len());
            }
            // Room for a piece is taken when there is one: most of its life a link is idle.
            match self.recv.read_chunk(2048, true).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(StreamError::Aborted),
            }
        }
    }
}

/// A message's length and where it starts, once both are there.
fn message_start(buffer: &[u8]) -> Result<Option<(usize, usize)>, StreamError> {
    let Some(end) = buffer.iter().take(10).position(|byte| *byte < 0x80) else {
        let endless = buffer.len() >= 10;
        return if endless { Err(StreamError::Protocol("a length without end".into())) } else { Ok(None) };
    };
    let length = prost::decode_length_delimiter(&buffer[..=end]).map_err(|e| StreamError::Protocol(e.to_string()))?;
    if length > MAX_MESSAGE {
        return Err(StreamError::Protocol(format!("a message of {length} bytes; at most {MAX_MESSAGE} are taken")));
    }
    Ok(Some((length, end + 1)))
}
