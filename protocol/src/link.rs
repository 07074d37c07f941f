//! The link between a relay and a client: QUIC, or HTTP/2 over TLS where UDP does not get through. Only this module,
//! the relay's `tunnel/endpoint.rs` and the client's `tunnel/dial.rs` know which.

mod control;
mod h2;
mod quic;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError};
use tokio::io::{AsyncRead, AsyncWrite};

pub use control::{Control, ControlReceiver, ControlSender};
pub use quic::transport;
pub use stream::{Receiver, Sender, Stream};

use crate::frame::FrameError;
use crate::head::HeadError;

/// The protocol's name in QUIC's handshake (RFC 7301).
pub const ALPN: &[u8] = b"hookway/1";
/// Its name in the handshake of TLS over TCP.
pub const ALPN_H2: &[u8] = b"hookway-h2/1";

/// The link counts as dead when nothing was heard for this long, and is noticed to be a second later; see [`Quiet`].
pub const DEAD_AFTER: Duration = Duration::from_secs(4);
/// Each side says something at least this often.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
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

/// Which side of the link this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Accepts connections and opens the streams of exchanges.
    Relay,
    /// Dials, says hello and accepts the streams of exchanges.
    Client,
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
    /// The other side broke the transport's rules, or restarted.
    #[error("{0}")]
    Broken(String),
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::LocallyClosed => Self::ClosedHere,
            ConnectionError::ApplicationClosed(close) => Self::closed(&close.reason),
            error => Self::broken(&error),
        }
    }
}

impl LinkError {
    fn closed(reason: &[u8]) -> Self {
        // It goes into logs: a line of it stays one.
        Self::Closed(String::from_utf8_lossy(reason).escape_debug().to_string())
    }

    fn broken(error: &impl ToString) -> Self {
        Self::Broken(error.to_string().escape_debug().to_string())
    }

    /// What ended a connection over TCP.
    fn of_h2(error: &::h2::Error) -> Self {
        match error.get_io().map(io::Error::kind) {
            Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Self::Broken("the connection broke off".into())
            }
            _ => Self::broken(error),
        }
    }
}

/// Why a stream is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The link under it is gone.
    #[error("the link was lost: {0}")]
    Lost(#[source] LinkError),
    /// The link is closing, and the other side has not looked at the stream at all.
    #[error("the link was closing: {0}")]
    Untaken(#[source] LinkError),
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

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// QUIC, over UDP.
    Quic,
    /// HTTP/2 over TLS, over TCP.
    H2,
}

impl Transport {
    /// Its name: `quic` or `h2`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::H2 => "h2",
        }
    }
}

/// One connected peer. Cheap to clone; when all clones are dropped it is closed.
#[derive(Clone, Debug)]
pub struct Link(Over);

#[derive(Clone, Debug)]
enum Over {
    Quic(Connection, Side),
    H2(h2::H2),
}

impl Link {
    /// The link over this QUIC connection.
    #[must_use]
    pub const fn quic(side: Side, connection: Connection) -> Self {
        Self(Over::Quic(connection, side))
    }

    /// The link over this TLS connection, which speaks [`ALPN_H2`]. It runs in a task of its own.
    ///
    /// # Errors
    /// The other side does not speak HTTP/2.
    pub async fn h2(
        side: Side,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        remote: SocketAddr,
    ) -> io::Result<Self> {
        Ok(Self(Over::H2(h2::H2::start(side, io, remote).await?)))
    }

    /// What carries it.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        match self.0 {
            Over::Quic(..) => Transport::Quic,
            Over::H2(_) => Transport::H2,
        }
    }

    /// What a round trip takes at present.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        match &self.0 {
            Over::Quic(connection, _) => connection.rtt(),
            Over::H2(link) => link.rtt(),
        }
    }

    /// Bytes of the largest packet that passes at present, as far as has been found out; over TCP nobody knows.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        match &self.0 {
            Over::Quic(connection, _) => Some(connection.stats().path.current_mtu),
            Over::H2(_) => None,
        }
    }

    /// What shows that the other side is there.
    #[must_use]
    pub fn signs(&self) -> Signs {
        match &self.0 {
            Over::Quic(connection, _) => {
                let stats = connection.stats();
                // Measured anew with each packet that is acknowledged for the first time. Acknowledgements are no sign:
                // where nothing of ours arrives they are repeated.
                Signs { heard: stats.udp_rx.datagrams, acked: stats.path.rtt.as_nanos() }
            }
            Over::H2(link) => link.signs(),
        }
    }

    /// The control stream: the first of the link. Whichever side opens it, the client speaks first.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn control(&self) -> Result<Control, LinkError> {
        Ok(Control::from(match &self.0 {
            Over::Quic(connection, Side::Client) => Stream::from(connection.open_bi().await?),
            Over::Quic(connection, Side::Relay) => Stream::from(connection.accept_bi().await?),
            Over::H2(link) => link.control().await?,
        }))
    }

    /// Opens a stream for exchanges, as the relay. Over QUIC it waits while the client allows no more; over HTTP/2 what
    /// is sent on it does.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn open(&self) -> Result<Stream, LinkError> {
        match &self.0 {
            Over::Quic(connection, _) => Ok(connection.open_bi().await?.into()),
            Over::H2(link) => link.open(),
        }
    }

    /// The next stream that the relay opens.
    ///
    /// # Errors
    /// The link is gone.
    pub async fn accept(&self) -> Result<Stream, LinkError> {
        match &self.0 {
            Over::Quic(connection, _) => Ok(connection.accept_bi().await?.into()),
            Over::H2(link) => link.accept().await,
        }
    }

    /// Lets the other side have this many streams open at once. Over HTTP/2 it always may have 4096: an unused
    /// one costs nothing there.
    pub fn allow_streams(&self, count: u32) {
        if let Over::Quic(connection, _) = &self.0 {
            connection.set_max_concurrent_bi_streams(count.into());
        }
    }

    /// The other side's address; over QUIC it changes when a client moves between networks.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        match &self.0 {
            Over::Quic(connection, _) => connection.remote_address(),
            Over::H2(link) => link.remote(),
        }
    }

    /// Waits until the link is gone and says why.
    pub async fn closed(&self) -> LinkError {
        match &self.0 {
            Over::Quic(connection, _) => connection.closed().await.into(),
            Over::H2(link) => link.closed().await,
        }
    }

    /// Over HTTP/2, takes no more streams and waits until what was sent on the others has been taken; then the link is
    /// closed. Over QUIC each sender waits for that.
    pub async fn drained(&self) {
        if let Over::H2(link) = &self.0 {
            link.drained().await;
        }
    }

    /// After a close, waits until what was sent before has left, for a bounded time. Over QUIC it has, or never will.
    pub async fn flushed(&self) {
        if let Over::H2(link) = &self.0 {
            link.flushed().await;
        }
    }

    /// Closes the link when the guard is dropped, also by a task that is aborted.
    pub fn close_on_drop(&self, reason: &'static str) -> CloseOnDrop {
        CloseOnDrop { link: Some(self.clone()), reason }
    }

    /// Closes the link at once, with a reason for the other side's log.
    pub fn close(&self, reason: &str) {
        match &self.0 {
            Over::Quic(connection, _) => connection.close(0u32.into(), reason.as_bytes()),
            Over::H2(link) => link.close(reason),
        }
    }
}

/// What shows that the other side is there: each changes with every sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signs {
    /// Something of it has come.
    pub heard: u64,
    /// It said that something of ours has.
    pub acked: u128,
}

/// How long nothing was heard on a link. Each side closes one that is quiet for [`DEAD_AFTER`]: where packets get
/// through in one direction only, the other side learns of it so.
#[derive(Debug)]
pub struct Quiet {
    heard: u64,
    since: Instant,
}

impl Quiet {
    /// From now on.
    #[must_use]
    pub fn on(link: &Link) -> Self {
        Self::since(link.signs().heard)
    }

    fn since(heard: u64) -> Self {
        Self { heard, since: Instant::now() }
    }

    /// Closes the link if it has been quiet for too long, and says whether it has. To be called every second or so.
    pub fn ends(&mut self, link: &Link) -> bool {
        let is_dead = self.is_too_long(link.signs().heard);
        if is_dead {
            link.close("nothing was heard any more");
        }
        is_dead
    }

    fn is_too_long(&mut self, heard: u64) -> bool {
        // Looks that come a little early are as good.
        const EARLY: Duration = Duration::from_millis(100);
        if heard != self.heard {
            *self = Self::since(heard);
        }
        self.since.elapsed() + EARLY >= DEAD_AFTER
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
