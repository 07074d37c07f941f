//! The public side: sockets, TLS and HTTP for senders.

mod answer;
mod handler;
mod inbound;
mod linger;
mod paced;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hookway_protocol::WHOLE_BODY;
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::link::StreamError;
use http::{HeaderValue, Request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) use handler::Handler;
pub(crate) use inbound::{Inbound, InboundError};

use crate::delivery::ReplyBody;
use crate::limits::{Counter, PerAddress};
use crate::metrics::{self, Metrics, Up};
use crate::shutdown::Shutdown;

/// How senders are taken.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTPS listens.
    pub https: SocketAddr,
    /// Where plain HTTP listens, if it does.
    pub http: Option<SocketAddr>,
    /// Serve plain HTTP instead of redirecting it: for one machine, or behind a load balancer that ends TLS.
    pub http_serve: bool,
    /// The HTTPS port that senders see, when it is not the one that is listened on.
    pub public_port: Option<u16>,
    /// The endpoint that the domain itself stands for, if any.
    pub default_endpoint: Option<EndpointName>,
    /// A request's head, in bytes.
    pub max_head: usize,
    /// A request's body, in bytes.
    pub max_body: u64,
    /// A head must have come within this time; a connection without a request lives no longer.
    pub header_timeout: Duration,
    /// A body must go on within this time, and a small one be whole.
    pub body_timeout: Duration,
    /// A body of announced length must come at least this fast on average, in bytes per second.
    pub min_body_rate: u64,
    /// A sender must take what it is sent within this time.
    pub write_timeout: Duration,
    /// An HTTP/2 connection without a request is closed after this time.
    pub idle_timeout: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// Connections of all senders.
    pub max_connections: usize,
    /// Connections of one address.
    pub max_connections_per_ip: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            https: ([0, 0, 0, 0], 443).into(),
            http: Some(([0, 0, 0, 0], 80).into()),
            http_serve: false,
            public_port: None,
            default_endpoint: None,
            max_head: 64 << 10,
            max_body: 1 << 30,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            min_body_rate: 1024,
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            max_streams: 100,
            max_connections: 20_000,
            max_connections_per_ip: 500,
        }
    }
}

/// What is known of a connection before its first request.
#[derive(Debug)]
pub(crate) struct Sender {
    /// Its address.
    node: Node,
    /// The host that TLS was made for; `None` on plain HTTP.
    tls: Option<Option<Host<'static>>>,
    /// Requests being answered on this connection.
    busy: AtomicUsize,
    /// Those of them whose answer does not depend on what more the sender says.
    owed: AtomicUsize,
    /// Told when the last of those is answered.
    answered: AtomicWaker,
    /// Ends the connection.
    hang_up: CancellationToken,
}

/// A sender's address as it is told: made once, for all requests of a connection.
#[derive(Debug)]
struct Node {
    text: String,
    value: HeaderValue,
    /// As RFC 7239 §6 writes it.
    quoted: String,
}

impl From<IpAddr> for Node {
    fn from(ip: IpAddr) -> Self {
        let text = ip.to_string();
        let value = HeaderValue::from_str(&text).expect("digits, points and colons");
        let quoted = if ip.is_ipv6() { format!("\"[{ip}]\"") } else { text.clone() };
        Self { text, value, quoted }
    }
}

impl Sender {
    fn new(ip: IpAddr, tls: Option<Option<Host<'static>>>, hang_up: CancellationToken) -> Arc<Self> {
        let (busy, owed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { node: ip.into(), tls, busy, owed, answered: AtomicWaker::new(), hang_up })
    }

    fn is_owed_an_answer(&self) -> bool {
        self.owed.load(Ordering::Acquire) > 0
    }
}

/// Takes connections of senders.
#[derive(Debug)]
pub(crate) struct Public {
    config: Config,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    connections: Arc<Counter>,
    per_ip: Arc<PerAddress>,
}

impl Public {
    pub(crate) fn new(config: Config, handler: Arc<Handler>, metrics: Arc<Metrics>, shutdown: Shutdown) -> Arc<Self> {
        let connections = Arc::new(Counter::new(config.max_connections));
        let per_ip = PerAddress::new(config.max_connections_per_ip);
        Arc::new(Self { config, handler, metrics, shutdown, connections, per_ip })
    }

    /// Takes connections until the relay stops. With `tls` each is a TLS connection.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.stop_accepting.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.take(stream, peer, tls.clone()),
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    // Out of file descriptors, most likely: spinning would not free any.
                    tracing::warn!(%error, "connections cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>) {
        let ip = peer.ip().to_canonical();
        let Some(places) = self.connections.take().zip(self.per_ip.take(ip)) else {
            metrics::count(&self.metrics.connections_refused, "too_many");
            return;
        };
        let public = self.clone();
        self.shutdown.work.spawn(async move {
            let _places = places;
            let _up = Up::new(&public.metrics.connections);
            // A webhook is small: waiting for more to send with it gains nothing.
            let _ = stream.set_nodelay(true);
            let stream = paced::Paced::new(stream, public.config.write_timeout);
            let hang_up = public.shutdown.close.child_token();
            let Some(tls) = tls else {
                return public.serve(stream, Sender::new(ip, None, hang_up)).await;
            };
            let handshake = tokio::time::timeout(public.config.header_timeout, tls.accept(stream));
            let stopped = public.shutdown.stop_accepting.cancelled();
            let stream = tokio::select! {
                stream = handshake => stream,
                () = stopped => return,
            };
            match stream {
                Ok(Ok(stream)) => {
                    let name = stream.get_ref().1.server_name();
                    let name = name.and_then(|name| Some(Host::parse(name).ok()?.into_owned()));
                    public.serve(stream, Sender::new(ip, Some(name), hang_up)).await;
                }
                Ok(Err(error)) => {
                    metrics::count(&public.metrics.connections_refused, "tls");
                    tracing::debug!(%ip, %error, "no TLS");
                }
                Err(_) => metrics::count(&public.metrics.connections_refused, "tls_timeout"),
            }
        });
    }

    /// Answers the requests of one connection.
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, sender: Arc<Sender>) {
        let service = service_fn({
            let (handler, sender) = (self.handler.clone(), sender.clone());
            move |request: Request<Incoming>| {
                let (handler, sender) = (handler.clone(), sender.clone());
                // From now on, not from when it is first polled: the end of stream may be read before that.
                let busy = Busy::new(&sender, &request);
                async move {
                    let response = handler.answer(&sender, request).await;
                    Ok::<_, Infallible>(response.map(|body| Answering { body, _busy: busy }))
                }
            }
        });
        let server = self.http();
        let stream = linger::Linger::new(stream, sender.clone(), self.config.header_timeout);
        let mut connection = pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                end = connection.as_mut() => {
                    if let Err(error) = end {
                        tracing::debug!(ip = sender.node.text, ?error, "connection ended");
                    }
                    return;
                }
                () = self.shutdown.stop_accepting.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                // The relay has stopped, or a reply is not taken.
                () = sender.hang_up.cancelled() => return,
                () = tokio::time::sleep(self.config.idle_timeout), if !leaving => {
                    if sender.busy.load(Ordering::Relaxed) == 0 {
                        leaving = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }

    fn http(&self) -> auto::Builder<TokioExecutor> {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_buf_size(self.config.max_head.max(8192));
        server
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.config.max_streams)
            .max_header_list_size(u32::try_from(self.config.max_head).unwrap_or(u32::MAX))
            // With many streams a connection this bounds what a sender makes us hold.
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(1 << 20)
            .max_send_buf_size(256 << 10)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        server
    }
}

/// Marks a connection busy until a request is answered.
#[derive(Debug)]
struct Busy {
    sender: Arc<Sender>,
    owed: bool,
}

impl Busy {
    fn new(sender: &Arc<Sender>, request: &Request<Incoming>) -> Self {
        let owed = request.body().size_hint().exact().is_some_and(|length| length <= WHOLE_BODY as u64);
        sender.busy.fetch_add(1, Ordering::Relaxed);
        sender.owed.fetch_add(owed.into(), Ordering::Release);
        Self { sender: sender.clone(), owed }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.sender.busy.fetch_sub(1, Ordering::Relaxed);
        if self.owed && self.sender.owed.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.sender.answered.wake();
        }
    }
}

/// The body of an answer; its connection is busy until it has been sent.
#[derive(Debug)]
struct Answering {
    body: ReplyBody,
    _busy: Busy,
}

impl Body for Answering {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Errors of `accept` that concern one connection only.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
