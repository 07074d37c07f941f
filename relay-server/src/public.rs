//! The public side: sockets, TLS and HTTP for senders.

mod answer;
mod handler;
mod inbound;
mod linger;
mod origin;
mod paced;
mod proxy_protocol;
mod request;
mod sender;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::link::ALPN_H2;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub(crate) use handler::Handler;
pub(crate) use inbound::{Inbound, InboundError};
pub(crate) use paced::Paced;

use proxy_protocol::HeaderError;
use sender::{Answering, Busy, Sender, Senders};

use crate::access_log;
use crate::certs::ALPN_CHALLENGE;
use crate::limits::{Counter, Memory, PerAddress, Place};
use crate::metrics::{self, Metrics, Up};
use crate::protection::Source;
use crate::shutdown::Shutdown;
use crate::tunnel::Tunnel;

/// A connection that begins when the relay stops may take so long for it.
const FINISHED_IN: Duration = Duration::from_secs(2);

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
    /// Proxies that are believed when they say whose request they pass on.
    pub trusted_proxy: Vec<IpNet>,
    /// Their connections begin with a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// Who may not send to any endpoint.
    pub deny: Vec<Source>,
    /// Whom people write to who are harassed by an endpoint: a mail address or a URL.
    pub abuse_contact: Option<String>,
    /// Web pages of apps are not passed back: nobody can put a false login page on the relay's domain.
    pub webhooks_only: bool,
    /// Search engines may keep apps' pages.
    pub allow_indexing: bool,
    /// Where a line is written for each request, if one is.
    pub access_log: Option<access_log::Target>,
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
            trusted_proxy: Vec::new(),
            proxy_protocol: false,
            deny: Vec::new(),
            abuse_contact: None,
            webhooks_only: false,
            allow_indexing: false,
            access_log: None,
        }
    }
}

/// Takes connections of senders.
#[derive(Debug)]
pub(crate) struct Public {
    config: Arc<ArcSwap<Config>>,
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
        config: Arc<ArcSwap<Config>>,
        handler: Arc<Handler>,
        tunnel: Arc<Tunnel>,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let now = config.load();
        let connections = Arc::new(Counter::new(now.max_connections));
        let per_ip = PerAddress::new(now.max_connections_per_ip);
        let (senders, memory) = (Arc::default(), Memory::new(now.body_memory));
        drop(now);
        Arc::new(Self { config, handler, metrics, shutdown, connections, per_ip, senders, memory, tunnel })
    }

    /// Ends connections that go nowhere. Called every second.
    pub(crate) fn sweep(&self) {
        let cut = self.senders.sweep(&self.config.load(), self.shutdown.is_draining());
        self.metrics.replies_cut.inc_by(cut as u64);
    }

    /// Other settings, from now on; a connection keeps some of those it was made with.
    pub(crate) fn configure(&self, config: Config) {
        self.connections.most.set(config.max_connections);
        self.per_ip.most.set(config.max_connections_per_ip);
        self.memory.set(config.body_memory);
        self.config.store(Arc::new(config));
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
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let (public, config) = (self.clone(), self.config.load_full());
        let refused = |metrics: &Metrics| metrics::count(&metrics.connections_refused, "too_many");
        let Some(place) = self.connections.take(1) else { return refused(&self.metrics) };
        self.shutdown.work.spawn(async move {
            let Some((stream, peer)) = public.behind(stream, peer, &config).await else { return };
            // A proxy stands for many.
            let is_proxy = origin::is_in(&config.trusted_proxy, peer.ip());
            let own = if is_proxy { None } else { Some(public.per_ip.of(peer.ip()).take(1)) };
            match own {
                Some(None) => refused(&public.metrics),
                own => public.greet(stream, peer, tls, (place, own.flatten()), &config).await,
            }
        });
    }

    /// Whose connection it is: a trusted peer may have to say so.
    async fn behind(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        config: &Config,
    ) -> Option<(TcpStream, SocketAddr)> {
        if !config.proxy_protocol || !origin::is_in(&config.trusted_proxy, peer.ip()) {
            return Some((stream, peer));
        }
        let header = tokio::time::timeout(config.header_timeout, proxy_protocol::source(&mut stream, peer));
        let header = self.unless_stopping(header).await?;
        match header.unwrap_or(Err(HeaderError::TimedOut)) {
            Ok(source) => Some((stream, source)),
            Err(error) => {
                metrics::count(&self.metrics.connections_refused, "proxy_protocol");
                tracing::debug!(proxy = %peer, %error, "a trusted proxy does not say whose connection it is");
                None
            }
        }
    }

    /// What has begun when the relay stops may still be done: a connection that was accepted is not dropped.
    async fn unless_stopping<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = async {
                self.shutdown.stop_accepting.cancelled().await;
                tokio::time::sleep(FINISHED_IN).await;
            } => None,
        }
    }

    /// Makes a connection one of a sender, or of a client.
    async fn greet(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        places: (Place, Option<Place>),
        config: &Config,
    ) {
        let ip = peer.ip();
        let up = Up::new(&self.metrics.connections);
        // A webhook is small: waiting for more to send with it gains nothing.
        let _ = stream.set_nodelay(true);
        let stream = Paced::new(stream, config.write_timeout);
        let is_proxy = origin::is_in(&config.trusted_proxy, ip);
        let memory = self.memory.share((!is_proxy).then_some(ip));
        let sender = |tls| Sender::new(ip, is_proxy, tls, &self.shutdown, memory, (places, up));
        let Some(tls) = tls else { return self.serve(stream, sender(None)).await };
        let handshake = tokio::time::timeout(config.header_timeout, tls.accept(stream));
        let Some(stream) = self.unless_stopping(handshake).await else { return };
        match stream {
            // A client, where UDP does not get through.
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) => {
                self.tunnel.take_tls(stream, peer);
            }
            // A CA has seen what it looked for.
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(ALPN_CHALLENGE) => {}
            Ok(Ok(stream)) => {
                let name = stream.get_ref().1.server_name();
                let name = name.and_then(|name| Some(Host::parse(name).ok()?.into_owned()));
                self.serve(stream, sender(Some(name))).await;
            }
            Ok(Err(error)) => {
                metrics::count(&self.metrics.connections_refused, "tls");
                tracing::debug!(%ip, %error, "no TLS");
            }
            Err(_) => metrics::count(&self.metrics.connections_refused, "tls_timeout"),
        }
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
                    let (response, written) = handler.answer(&sender, request).await;
                    Ok::<_, Infallible>(response.map(|body| Answering::new(body, busy, written)))
                }
            }
        });
        let _listed = self.senders.add(&sender);
        let config = self.config.load_full();
        let server = http_server(&config);
        let stream = linger::Linger::new(stream, sender.clone(), config.header_timeout);
        let mut connection = pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                end = connection.as_mut() => {
                    if let Err(error) = end {
                        // The sweep has counted it if it has seen it first.
                        if paced::is_late(&*error) && !sender.hang_up.is_cancelled() {
                            self.metrics.replies_cut.inc();
                        }
                        tracing::debug!(ip = sender.node.text, ?error, "connection ended");
                    }
                    return;
                }
                () = sender.may_leave(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = sender.hang_up.cancelled() => return,
            }
        }
    }
}

fn http_server(config: &Config) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.max_head.max(8192));
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(u32::try_from(config.max_head).unwrap_or(u32::MAX))
        // With many streams a connection this bounds what a sender makes us hold.
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    server
}

/// Errors of `accept` that concern one connection only.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
