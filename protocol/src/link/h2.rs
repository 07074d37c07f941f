//! HTTP/2 (RFC 9113) as a link, with its roles reversed: the client dials and is the HTTP/2 server, the relay opens a
//! stream an exchange. The path says what a stream is for; on it go the same frames as over QUIC, either way.

mod halves;
mod watched;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::server::{self, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, Interval};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{KEEP_ALIVE, LINK_WINDOW, LinkError, Quiet, STREAM_WINDOW, Side, Signs, StreamError};
pub(super) use halves::{Receiver, Sender};
use watched::Watched;

/// Streams that the relay may have open at once.
pub(super) const MAX_STREAMS: u32 = 4096;
/// What a stream holds that the socket has not taken yet.
const SEND_BUFFER: usize = 256 << 10;
/// Up to so much goes out as one frame.
const ONE_FRAME: usize = 16 << 10;
/// Heads here have a path and a reason.
const MAX_HEAD: u32 = 16 << 10;

/// What was sent before a close must leave within this time.
const FLUSHED_IN: Duration = Duration::from_secs(2);
/// Streams that have not ended by then are broken off; the other side has so long to close, too.
const ENDED_IN: Duration = Duration::from_millis(500);

/// What the relay opens a stream for.
const CONTROL: &str = "/control";
const EXCHANGE: &str = "/exchange";
/// Nothing follows: the link is closed, for the reason in [`REASON`].
const CLOSE: &str = "/close";
const REASON: HeaderName = HeaderName::from_static("hookway-reason");

/// A link over HTTP/2.
#[derive(Clone, Debug)]
pub(super) struct H2 {
    state: Arc<State>,
    streams: Streams,
    _open: Arc<DropGuard>,
}

/// Where streams come from.
#[derive(Clone, Debug)]
enum Streams {
    Opened(SendRequest<Bytes>),
    Accepted(Arc<Mutex<mpsc::Receiver<Untaken>>>),
}

/// What a link, its streams and the task that runs it know of each other.
#[derive(Debug)]
struct State {
    remote: SocketAddr,
    /// Bytes read.
    heard: AtomicU64,
    /// In microseconds.
    rtt: AtomicU64,
    /// The socket takes no more at present.
    blocked: AtomicBool,
    end: OnceLock<LinkError>,
    reason: OnceLock<String>,
    /// Cancelled when it is to end with its streams.
    draining: CancellationToken,
    /// Cancelled when the link is of no more use.
    ended: CancellationToken,
    /// Cancelled when its task is over.
    over: CancellationToken,
}

impl H2 {
    /// Greets the other side and runs the connection from then on.
    pub(super) async fn start(
        side: Side,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        remote: SocketAddr,
    ) -> io::Result<Self> {
        let [draining, ended, over] = std::array::from_fn(|_| CancellationToken::new());
        let state = Arc::new(State {
            remote,
            heard: AtomicU64::new(0),
            rtt: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            end: OnceLock::new(),
            reason: OnceLock::new(),
            draining,
            ended,
            over,
        });
        let io = Watched { io, state: state.clone() };
        let streams = match side {
            Side::Relay => {
                let (opener, connection) = dialled().handshake(io).await.map_err(io::Error::other)?;
                spawn(&state, open(connection, opener.clone(), state.clone()));
                Streams::Opened(opener)
            }
            Side::Client => {
                let connection = accepted().handshake(io).await.map_err(io::Error::other)?;
                // As many as may be open: one that comes has room.
                let (taken, streams) = mpsc::channel(MAX_STREAMS as usize);
                let streams = Arc::new(Mutex::new(streams));
                spawn(&state, accept(connection, taken, streams.clone(), state.clone()));
                Streams::Accepted(streams)
            }
        };
        let open = Arc::new(state.ended.clone().drop_guard());
        Ok(Self { state, streams, _open: open })
    }

    pub(super) fn rtt(&self) -> Duration {
        Duration::from_micros(self.state.rtt.load(Ordering::Relaxed))
    }

    /// Without a way there, TCP soon has none back either: what is heard is a sign of both.
    pub(super) fn signs(&self) -> Signs {
        let heard = self.state.heard.load(Ordering::Relaxed);
        Signs { heard, acked: heard.into() }
    }

    pub(super) fn remote(&self) -> SocketAddr {
        self.state.remote
    }

    /// The first stream.
    pub(super) async fn control(&self) -> Result<super::Stream, LinkError> {
        match &self.streams {
            Streams::Opened(opener) => self.state.open(opener, CONTROL),
            Streams::Accepted(_) => self.accept().await,
        }
    }

    pub(super) fn open(&self) -> Result<super::Stream, LinkError> {
        match &self.streams {
            Streams::Opened(opener) => self.state.open(opener, EXCHANGE),
            Streams::Accepted(_) => Err(LinkError::Broken("only the relay opens streams".into())),
        }
    }

    pub(super) async fn accept(&self) -> Result<super::Stream, LinkError> {
        if let Streams::Accepted(streams) = &self.streams {
            let mut streams = streams.lock().await;
            while let Some(untaken) = streams.recv().await {
                // Else the relay has given it up already.
                if let Some(stream) = untaken.take(&self.state) {
                    return Ok(stream);
                }
            }
        }
        Err(self.closed().await)
    }

    pub(super) async fn closed(&self) -> LinkError {
        self.state.ended.cancelled().await;
        self.state.why()
    }

    pub(super) async fn drained(&self) {
        self.state.draining.cancel();
        self.state.over.cancelled().await;
    }

    pub(super) async fn flushed(&self) {
        self.state.over.cancelled().await;
    }

    pub(super) fn close(&self, reason: &str) {
        let _ = self.state.reason.set(reason.to_owned());
        self.state.end(LinkError::ClosedHere);
    }
}

impl State {
    fn end(&self, why: LinkError) {
        let _ = self.end.set(why);
        self.ended.cancel();
    }

    fn why(&self) -> LinkError {
        self.end.get().cloned().unwrap_or(LinkError::ClosedHere)
    }

    fn open(self: &Arc<Self>, opener: &SendRequest<Bytes>, path: &'static str) -> Result<super::Stream, LinkError> {
        if self.ended.is_cancelled() {
            return Err(self.why());
        }
        let opened = opener.clone().send_request(request(path), false);
        let (response, send) = opened.map_err(|error| self.end.get().cloned().unwrap_or(LinkError::of_h2(&error)))?;
        Ok(halves::opened(send, response, self))
    }

    /// What an error of a stream means.
    fn lost(&self, error: &h2::Error) -> StreamError {
        let link = || self.end.get().cloned().unwrap_or_else(|| LinkError::of_h2(error));
        let refused = error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM);
        match error {
            // Said of streams that were not looked at (RFC 9113 §6.8, §8.7).
            error if error.is_remote() && refused => StreamError::Untaken(link()),
            error if error.is_reset() => StreamError::Aborted,
            _ => StreamError::Lost(link()),
        }
    }
}

fn request(path: &'static str) -> Request<()> {
    let uri = Uri::builder().scheme("https").authority("client").path_and_query(path).build();
    let mut request = Request::new(());
    *request.uri_mut() = uri.expect("a constant");
    *request.method_mut() = http::Method::POST;
    request
}

fn dialled() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(LINK_WINDOW)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        // Counted over the whole life of a connection, which is long here.
        .max_local_error_reset_streams(None);
    builder
}

fn accepted() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(LINK_WINDOW)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        // Senders may hang up all at once.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_local_error_reset_streams(None);
    builder
}

/// Runs a connection until the link has ended.
fn spawn(state: &Arc<State>, run: impl Future<Output = LinkError> + Send + 'static) {
    let (state, over) = (state.clone(), state.over.clone().drop_guard());
    #[expect(clippy::disallowed_methods, reason = "as QUIC's own task: it ends with its link, which others wait for")]
    tokio::spawn(async move {
        let _over = over;
        let why = run.await;
        state.end(why);
    });
}

/// The relay's side: opens streams until the link ends, then tells the client why.
async fn open<T>(mut connection: client::Connection<T>, mut opener: SendRequest<Bytes>, state: Arc<State>) -> LinkError
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let Some(mut pulse) = Pulse::new(connection.ping_pong(), &state) else { return LinkError::ClosedHere };
    tokio::select! {
        biased;
        end = &mut connection => return ended(end),
        () = pulse.stops() => return LinkError::TimedOut,
        () = state.ended.cancelled() => {}
    }
    let mut close = request(CLOSE);
    if let Some(reason) = state.reason.get().and_then(|reason| HeaderValue::from_str(reason).ok()) {
        close.headers_mut().insert(REASON, reason);
    }
    let _told = opener.send_request(close, true);
    // The client closes when it has read that.
    let _ = tokio::time::timeout(FLUSHED_IN, connection).await;
    LinkError::ClosedHere
}

/// The client's side: accepts streams until the link ends.
async fn accept<T>(
    mut connection: server::Connection<T, Bytes>,
    taken: mpsc::Sender<Untaken>,
    streams: Arc<Mutex<mpsc::Receiver<Untaken>>>,
    state: Arc<State>,
) -> LinkError
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let Some(mut pulse) = Pulse::new(connection.ping_pong(), &state) else { return LinkError::ClosedHere };
    let why = loop {
        let is_draining = state.draining.is_cancelled();
        let next = tokio::select! {
            biased;
            next = connection.accept() => next,
            () = pulse.stops() => return LinkError::TimedOut,
            () = state.draining.cancelled(), if !is_draining => {
                connection.graceful_shutdown();
                continue;
            }
            () = state.ended.cancelled() => break LinkError::ClosedHere,
        };
        let (request, respond) = match next {
            Some(Ok(next)) => next,
            Some(Err(error)) => return LinkError::of_h2(&error),
            None if is_draining => return LinkError::ClosedHere,
            None => return ended(Ok(())),
        };
        if request.uri().path() == CLOSE {
            let reason = request.headers().get(REASON);
            break LinkError::closed(reason.map_or(b"without a reason", HeaderValue::as_bytes));
        }
        let untaken = Untaken(Some((request.into_body(), respond)));
        if !is_draining && taken.try_send(untaken).is_err() {
            return LinkError::Broken("more streams than are allowed".into());
        }
    };
    state.end(why.clone());
    drop(taken);
    // Whoever waits for one has the lock, and finds none.
    if let Ok(mut streams) = streams.try_lock() {
        while streams.try_recv().is_ok() {}
    }
    let flushed = poll_fn(|cx| match poll_end(&mut connection, cx) {
        Poll::Pending if state.blocked.load(Ordering::Relaxed) => Poll::Pending,
        _ => Poll::Ready(()),
    });
    let _ = tokio::time::timeout(FLUSHED_IN, flushed).await;
    // Waits for what comes back, so that the relay has read all before the socket is closed.
    connection.graceful_shutdown();
    let _ = tokio::time::timeout(ENDED_IN, poll_fn(|cx| poll_end(&mut connection, cx))).await;
    why
}

/// Runs a connection to its end, taking no more streams.
fn poll_end<T>(connection: &mut server::Connection<T, Bytes>, cx: &mut Context<'_>) -> Poll<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match ready!(connection.poll_accept(cx)) {
            Some(Ok((request, respond))) => drop(Untaken(Some((request.into_body(), respond)))),
            Some(Err(_)) | None => return Poll::Ready(()),
        }
    }
}

/// A stream that nobody has looked at. Dropped, it says so.
#[derive(Debug)]
struct Untaken(Option<(RecvStream, SendResponse<Bytes>)>);

impl Untaken {
    fn take(mut self, state: &Arc<State>) -> Option<super::Stream> {
        let (recv, mut respond) = self.0.take()?;
        let send = respond.send_response(Response::new(()), false).ok()?;
        Some(halves::accepted(send, recv, state))
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        if let Some((_, respond)) = &mut self.0 {
            respond.send_reset(Reason::REFUSED_STREAM);
        }
    }
}

/// Why a connection is over that this side did not end.
fn ended(end: Result<(), h2::Error>) -> LinkError {
    match end {
        Ok(()) => LinkError::Closed("it ended the connection".into()),
        Err(error) => LinkError::of_h2(&error),
    }
}

/// Says something regularly, and notices when the other side no longer does.
struct Pulse {
    ping: PingPong,
    state: Arc<State>,
    looks: Interval,
    quiet: Quiet,
    said: Option<Instant>,
}

impl Pulse {
    fn new(ping: Option<PingPong>, state: &Arc<State>) -> Option<Self> {
        let looks = tokio::time::interval(KEEP_ALIVE / 3);
        Some(Self { ping: ping?, state: state.clone(), looks, quiet: Quiet::since(0), said: None })
    }

    /// Returns when nothing was heard for too long.
    async fn stops(&mut self) {
        loop {
            tokio::select! {
                pong = poll_fn(|cx| self.ping.poll_pong(cx)) => {
                    if let (Ok(_), Some(said)) = (pong, self.said) {
                        let rtt = u64::try_from(said.elapsed().as_micros()).unwrap_or(u64::MAX);
                        self.state.rtt.store(rtt, Ordering::Relaxed);
                    }
                }
                now = self.looks.tick() => {
                    if self.quiet.is_too_long(self.state.heard.load(Ordering::Relaxed)) {
                        return;
                    }
                    if self.said.is_none_or(|said| now - said >= KEEP_ALIVE) && self.ping.send_ping(Ping::opaque()).is_ok() {
                        self.said = Some(now);
                    }
                }
            }
        }
    }
}
