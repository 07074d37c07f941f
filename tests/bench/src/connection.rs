//! A sender's connection, and what is said over it.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::setup::Target;

/// A request's body.
pub(crate) type Body = BoxBody<Bytes, Infallible>;
/// What keeps connections going.
pub(crate) type Drivers = JoinSet<hyper::Result<()>>;

/// A connection of either version.
#[derive(Clone, Debug)]
pub(crate) enum Sender {
    Http1(Arc<tokio::sync::Mutex<http1::SendRequest<Body>>>),
    Http2(http2::SendRequest<Body>),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Sender {
    /// Connects, with HTTP/2 if so wanted.
    pub(crate) async fn connect(target: &Target, h2: bool, drivers: &mut Drivers) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(target.address).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &target.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let mut tls = rustls::ClientConfig::clone(tls);
                tls.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
                // A new connection is to cost what a stranger's does.
                tls.resumption = rustls::client::Resumption::disabled();
                Box::new(TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(target.host)?, tcp).await?)
            }
        };
        if h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            drivers.spawn(connection);
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        drivers.spawn(connection);
        Ok(Self::Http1(Arc::new(tokio::sync::Mutex::new(sender))))
    }

    /// Sends a request over HTTP/1.1.
    pub(crate) async fn request(&self, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        let Self::Http1(sender) = self else { bail!("not HTTP/1.1") };
        Ok(sender.lock().await.send_request(request).await?)
    }

    /// Posts a webhook, and takes the whole answer.
    pub(crate) async fn post(&mut self, host: &str, body: Bytes, expected: StatusCode) -> anyhow::Result<()> {
        let body = Full::new(body).boxed();
        let response = match self {
            Self::Http1(sender) => {
                let request = Request::post("/webhook").header("host", host).body(body)?;
                sender.lock().await.send_request(request).await?
            }
            Self::Http2(sender) => {
                let request = Request::post(format!("https://{host}/webhook")).version(Version::HTTP_2).body(body)?;
                sender.send_request(request).await?
            }
        };
        ensure!(response.status() == expected, "{} instead of {expected}", response.status());
        response.into_body().collect().await?;
        Ok(())
    }
}

/// Asks for one thing on a connection of its own; the answer's header.
pub(crate) async fn ask(target: &Target, path: &str) -> anyhow::Result<HeaderMap> {
    let mut drivers = Drivers::new();
    let sender = Sender::connect(target, false, &mut drivers).await?;
    let response = sender.request(Request::get(path).header("host", target.host).body(Empty::new().boxed())?).await?;
    ensure!(response.status() == StatusCode::OK, "{}: {}", target.name, response.status());
    Ok(response.headers().clone())
}
