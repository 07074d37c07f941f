//! TLS over TCP to the relay, straight or through an HTTP proxy (CONNECT, RFC 9110 §9.3.6).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hookway_protocol::link::{ALPN_H2, Link, Side};
use http::header::{HOST, PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tunnel::RelayAddress;

/// An answer's head to CONNECT may be this long.
const MAX_HEAD: usize = 16 << 10;

/// Makes TLS connections that speak [`ALPN_H2`].
pub(super) struct Tls(TlsConnector);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self(TlsConnector::from(Arc::new(config)))
    }

    /// A link to this address of the relay.
    pub(super) async fn to(&self, relay: &RelayAddress, address: SocketAddr) -> io::Result<Link> {
        self.link(relay, tcp(address).await?, address).await
    }

    /// A link through a proxy, which looks the relay up.
    pub(super) async fn through(&self, proxy: &Proxy, relay: &RelayAddress) -> io::Result<Link> {
        let address = tokio::net::lookup_host((proxy.host.as_str(), proxy.port)).await?.next();
        let address = address.ok_or_else(|| io::Error::other("it has no address"))?;
        let tunnel = proxy.connect(tcp(address).await?, &relay.authority()).await?;
        self.link(relay, tunnel, address).await
    }

    async fn link<T>(&self, relay: &RelayAddress, io: T, remote: SocketAddr) -> io::Result<Link>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let name = ServerName::try_from(relay.name().to_owned()).map_err(io::Error::other)?;
        let stream = self.0.connect(name, io).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(io::Error::other("it does not take clients over TCP: an older relay, or something else"));
        }
        Link::h2(Side::Client, stream, remote).await
    }
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // What is sent is whole: waiting for more gains nothing.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An HTTP proxy.
pub(super) struct Proxy {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy http://{}:{} (HTTPS_PROXY)", self.host, self.port)
    }
}

/// The proxy that the environment names for this relay, if any: `HTTPS_PROXY`, else `ALL_PROXY`, not for what `NO_PROXY`
/// has. One that cannot be used is an error: it would be passed over in silence.
pub(super) fn proxy(relay: &RelayAddress) -> Result<Option<Proxy>, String> {
    let first = |names: [&'static str; 2]| {
        let mut set = names.into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?)));
        set.find(|(_, value)| !value.trim().is_empty())
    };
    let named = first(["HTTPS_PROXY", "https_proxy"]).or_else(|| first(["ALL_PROXY", "all_proxy"]));
    let Some((name, value)) = named else { return Ok(None) };
    let besides = first(["NO_PROXY", "no_proxy"]).map(|(_, value)| value).unwrap_or_default();
    if besides.split(',').any(|name| name.trim() == "*") {
        return Ok(None);
    }
    let intercept = |proxy: String| {
        let uri = Uri::builder().scheme("https").authority(relay.authority()).path_and_query("/").build().ok()?;
        Matcher::builder().https(proxy).no(besides.clone()).build().intercept(&uri)
    };
    if intercept("http://proxy".to_owned()).is_none() {
        return Ok(None);
    }
    let unusable = || format!("{name} is not http://HOST:PORT; no other proxies are used");
    let text = if value.contains("://") { value } else { format!("http://{value}") };
    let found = intercept(text).filter(|found| found.uri().scheme_str() == Some("http")).ok_or_else(unusable)?;
    let host = found.uri().host().map(|host| host.trim_matches(['[', ']']).to_owned()).filter(|host| !host.is_empty());
    let port = found.uri().port_u16().unwrap_or(80);
    Ok(Some(Proxy { host: host.ok_or_else(unusable)?, port, authorization: found.basic_auth().cloned() }))
}

impl Proxy {
    /// Asks for a connection there. What follows is between it and us.
    async fn connect(&self, stream: TcpStream, authority: &str) -> io::Result<impl AsyncRead + AsyncWrite + use<>> {
        let mut ask = Request::connect(authority).header(HOST, authority);
        ask = ask.header(USER_AGENT, concat!("hookway/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            ask = ask.header(PROXY_AUTHORIZATION, authorization);
        }
        let ask = ask.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let answered = async {
            let answer = sender.send_request(ask).await?;
            let status = answer.status();
            if status.is_success() { hyper::upgrade::on(answer).await.map(Ok) } else { Ok(Err(status)) }
        };
        // Until the connection is ours, somebody must read from it.
        let mut running = std::pin::pin!(connection.with_upgrades());
        let mut answered = std::pin::pin!(answered);
        let mut is_running = true;
        let answer = loop {
            tokio::select! {
                answer = &mut answered => break answer,
                _ = &mut running, if is_running => is_running = false,
            }
        };
        match answer.map_err(io::Error::other)? {
            Ok(tunnel) => Ok(TokioIo::new(tunnel)),
            Err(status) if status == http::StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(io::Error::other(
                "it wants other credentials (407); give them as HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
            )),
            Err(status) => Err(io::Error::other(format!("it does not connect to {authority}: {status}"))),
        }
    }
}
