//! The load: senders that wait for each answer before they send again.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::app::Zeros;
use crate::programs::{Target, cpu};

/// A kind of load: 1 KiB POSTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// Kept HTTP/1.1 connections.
    Http1(usize),
    /// HTTP/2 connections, and streams on each.
    Http2(usize, usize),
    /// A new connection for each request, so many at a time.
    New(usize),
}

impl Case {
    pub(crate) const ALL: [Self; 5] =
        [Self::Http1(1), Self::Http1(16), Self::Http1(64), Self::Http2(8, 8), Self::New(16)];

    pub(crate) const fn needs_tls(self) -> bool {
        matches!(self, Self::Http2(..))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http1(connections) => write!(f, "h1, {connections} connections"),
            Self::Http2(connections, streams) => write!(f, "h2, {connections} × {streams}"),
            Self::New(at_once) => write!(f, "new connections, {at_once} at a time"),
        }
    }
}

/// What a round came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Milliseconds.
    pub(crate) p50: f64,
    /// Milliseconds.
    pub(crate) p99: f64,
    /// Processor seconds for 10 000 requests.
    pub(crate) cpu: f64,
}

type Body = BoxBody<Bytes, std::convert::Infallible>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection of either version.
#[derive(Clone)]
enum Sender {
    Http1(Arc<tokio::sync::Mutex<http1::SendRequest<Body>>>),
    Http2(http2::SendRequest<Body>),
}

/// Runs one case against one target.
pub(crate) async fn run(target: &Target, case: Case, time: Duration) -> anyhow::Result<Measured> {
    let mut workers = JoinSet::new();
    let mut drivers = JoinSet::new();
    let (before, started) = (cpu(&target.pids), Instant::now());
    let until = started + time;
    match case {
        Case::Http1(count) => {
            for _ in 0..count {
                let sender = connect(target, false, &mut drivers).await?;
                workers.spawn(keep_sending(target.host, sender, until));
            }
        }
        Case::Http2(count, streams) => {
            for _ in 0..count {
                let sender = connect(target, true, &mut drivers).await?;
                for _ in 0..streams {
                    workers.spawn(keep_sending(target.host, sender.clone(), until));
                }
            }
        }
        Case::New(at_once) => {
            for _ in 0..at_once {
                let one = Target { pids: vec![], ..target.clone() };
                workers.spawn(async move {
                    let mut took = Vec::new();
                    while Instant::now() < until {
                        let mut drivers = JoinSet::new();
                        let start = Instant::now();
                        let mut sender = connect(&one, false, &mut drivers).await?;
                        send(one.host, &mut sender).await?;
                        took.push(start.elapsed());
                    }
                    Ok(took)
                });
            }
        }
    }
    let mut took: Vec<Duration> = Vec::new();
    while let Some(worker) = workers.join_next().await {
        took.extend(worker??);
    }
    ensure!(!took.is_empty(), "{}: no request was answered", target.name);
    let seconds = started.elapsed().as_secs_f64();
    settle(&target.pids).await;
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    let count = took.len() as f64;
    Ok(Measured {
        rate: count / seconds,
        p50: at(0.5),
        p99: at(0.99),
        cpu: (cpu(&target.pids) - before) / count * 10_000.0,
    })
}

/// Sends or fetches so many bytes and says how fast, in MB a second.
pub(crate) async fn transfer(target: &Target, length: u64, up: bool) -> anyhow::Result<f64> {
    let mut drivers = JoinSet::new();
    let Sender::Http1(sender) = connect(target, false, &mut drivers).await? else { anyhow::bail!("not HTTP/1.1") };
    let (path, body) = if up { ("/".to_owned(), Zeros(length)) } else { (format!("/bytes/{length}"), Zeros(0)) };
    let request = Request::post(path).header("host", target.host).body(body.boxed())?;
    let started = Instant::now();
    let response = sender.lock().await.send_request(request).await?;
    ensure!(response.status() == 200, "{}: {}", target.name, response.status());
    let mut body = response.into_body();
    let mut got = 0;
    while let Some(frame) = body.frame().await {
        got += frame?.data_ref().map_or(0, Bytes::len) as u64;
    }
    ensure!(got == if up { 2 } else { length }, "{}: {got} bytes came back", target.name);
    Ok(length as f64 / 1e6 / started.elapsed().as_secs_f64())
}

/// Waits until the processes have done what they put off, so that it counts as theirs and not as the next one's.
async fn settle(pids: &[u32]) {
    for _ in 0..100 {
        let before = cpu(pids);
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Not a tick: what works a tenth of the time has one.
        if cpu(pids) - before < 0.005 {
            return;
        }
    }
}

async fn keep_sending(host: &'static str, mut sender: Sender, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    while Instant::now() < until {
        let start = Instant::now();
        send(host, &mut sender).await?;
        took.push(start.elapsed());
    }
    Ok(took)
}

async fn send(host: &str, sender: &mut Sender) -> anyhow::Result<()> {
    static BODY: [u8; 1024] = [b'x'; 1024];
    let body = Full::new(Bytes::from_static(&BODY)).boxed();
    let response = match sender {
        Sender::Http1(sender) => {
            let request = Request::post("/webhook").header("host", host).body(body)?;
            sender.lock().await.send_request(request).await?
        }
        Sender::Http2(sender) => {
            let request = Request::post(format!("https://{host}/webhook")).version(Version::HTTP_2).body(body)?;
            sender.send_request(request).await?
        }
    };
    ensure!(response.status() == 200, "{}", response.status());
    response.into_body().collect().await?;
    Ok(())
}

async fn connect(target: &Target, h2: bool, drivers: &mut JoinSet<hyper::Result<()>>) -> anyhow::Result<Sender> {
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
        return Ok(Sender::Http2(sender));
    }
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    drivers.spawn(connection);
    Ok(Sender::Http1(Arc::new(tokio::sync::Mutex::new(sender))))
}
