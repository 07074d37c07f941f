//! The public side: sockets, TLS and HTTP for senders.

mod answer;
mod handler;
mod inbound;
mod linger;
mod paced;
mod sender;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::link::ALPN_H2;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub(crate) use handler::Handler;
pub(crate) use inbound::{Inbound, InboundError};

use sender::{Answering, Busy, Sender, Senders};

use crate::certs::ALPN_CHALLENGE;
use crate::limits::{Counter, Memory, PerAddress};
use crate::metrics::{self, Metrics, Up};
use crate::shutdown::Shutdown;
use crate::tunnel::Tunnel;

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
    /// Bodies kept whole, all together, in bytes; those of one address may take a quarter of it.
    pub body_memory: usize,
    /// A head must have come within this time, and a new connection's first request; HTTP/1.1 has no longer between
    /// two requests either.
    pub header_timeout: Duration,
    /// A body of announced length must go on within this time, and a small one be whole.
    pub body_timeout: Duration,
    /// A body of announced length must come at least this fast on average, in bytes per second.
    pub min_body_rate: u64,
    /// A sender must go on taking its answer within this time.
    pub write_timeout: Duration,
    /// An HTTP/2 connection is closed when its last answer is this old.
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
            body_memory: 256 << 20,
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

/// Takes connections of senders.
#[derive(Debug)]
pub(crate) struct Public {
    config: Config,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    connections: Arc<Counter>,
    per_ip: PerAddress,
    senders: Arc<Senders>,
    memory: Memory,
    tunnel: Arc<Tunnel>,
}

impl Public {
    pub(crate) fn new(
        config: Config,
        handler: Arc<Handler>,
        tunnel: Arc<Tunnel>,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let connections = Arc::new(Counter::new(config.max_connections));
        let per_ip = PerAddress::new(config.max_connections_per_ip);
        let (senders, memory) = (Arc::default(), Memory::new(config.body_memory));
        Arc::new(Self { config, handler, metrics, shutdown, connections, per_ip, senders, memory, tunnel })
    }

    /// Ends connections that go nowhere. Called every second.
    pub(crate) fn sweep(&self) {
        let cut = self.senders.sweep(&self.config);
        self.metrics.replies_cut.inc_by(cut as u64);
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
        let Some(places) = self.connections.take(1).zip(self.per_ip.of(ip).take(1)) else {
            metrics::count(&self.metrics.connections_refused, "too_many");
            return;
        };
        let public = self.clone();
        self.shutdown.work.spawn(async move {
            let up = Up::new(&public.metrics.connections);
            // A webhook is small: waiting for more to send with it gains nothing.
            let _ = stream.set_nodelay(true);
            let stream = paced::Paced::new(stream, public.config.write_timeout);
            let sender = |tls| Sender::new(ip, tls, &public.shutdown, public.memory.share(ip), (places, up));
            let Some(tls) = tls else { return public.serve(stream, sender(None)).await };
            let handshake = tokio::time::timeout(public.config.header_timeout, tls.accept(stream));
            let stopped = public.shutdown.stop_accepting.cancelled();
            let stream = tokio::select! {
                stream = handshake => stream,
                () = stopped => return,
            };
            match stream {
                // A client, where UDP does not get through.
                Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) => {
                    public.tunnel.take_tls(stream, peer);
                }
                // A CA has seen what it looked for.
                Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ALPN_CHALLENGE) => {}
                Ok(Ok(stream)) => {
                    let name = stream.get_ref().1.server_name();
                    let name = name.and_then(|name| Some(Host::parse(name).ok()?.into_owned()));
                    public.serve(stream, sender(Some(name))).await;
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
                    Ok::<_, Infallible>(response.map(|body| Answering::new(body, busy)))
                }
            }
        });
        let _listed = self.senders.add(&sender);
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
                () = sender.leave.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = sender.hang_up.cancelled() => return,
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

/// Errors of `accept` that concern one connection only.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
