//! One local app: its connections, and whether it is there.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hookway_protocol::head::Failure;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{Failed, OutBody, Progress};
use crate::events::{Event, Events};
use crate::target::{self, Target};

/// Connections kept for the next deliveries.
const MAX_IDLE: usize = 256;
/// An app that is looked for must take a connection within this time.
const REACHED_IN: Duration = Duration::from_secs(3);
/// How often an app that does not listen is tried again.
const TRY_EVERY: Duration = Duration::from_millis(100);

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// One local app.
#[derive(Debug)]
pub(super) struct App {
    target: Target,
    idle: Mutex<Vec<http1::SendRequest<OutBody>>>,
    grpc: Mutex<Option<http2::SendRequest<OutBody>>>,
    /// Whether it answered last.
    up: Mutex<Option<bool>>,
    events: Events,
}

/// How long an app is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience<'a> {
    /// One that does not listen (yet).
    pub(super) wait_app: Duration,
    /// One that has the request, or the last piece of its body.
    pub(super) timeout: Duration,
    pub(super) progress: &'a Progress,
    /// Nothing is waited for any more.
    pub(super) leaving: &'a CancellationToken,
}

impl App {
    pub(super) fn new(target: Target, events: Events) -> Self {
        Self { target, idle: Mutex::default(), grpc: Mutex::default(), up: Mutex::default(), events }
    }

    pub(super) const fn target(&self) -> &Target {
        &self.target
    }

    /// Whether it answers, if that is known.
    pub(super) fn is_up(&self) -> Option<bool> {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request. A connection that was closed meanwhile is replaced, as long as no byte was sent on it.
    pub(super) async fn send(
        &self,
        mut request: Request<OutBody>,
        grpc: bool,
        patience: Patience<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        if grpc {
            return self.send_h2(request, patience).await;
        }
        *request.version_mut() = http::Version::HTTP_11;
        let upgrade = request.headers().contains_key(http::header::UPGRADE);
        if request.body().size_hint().exact().is_none() && !request.headers().contains_key(http::header::CONTENT_LENGTH)
        {
            // Said here, or the body of a GET would be left out.
            request.headers_mut().insert(http::header::TRANSFER_ENCODING, http::HeaderValue::from_static("chunked"));
        }
        if request.headers().contains_key(http::header::TE) && !request.headers().contains_key(http::header::CONNECTION)
        {
            request.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("te"));
        }
        loop {
            let idle = self.idle();
            let reused = idle.is_some();
            let mut connection = match idle {
                Some(connection) => connection,
                None => self.connect(patience).await?,
            };
            match self.in_time(patience, connection.try_send_request(request)).await? {
                Ok(response) => {
                    self.keep(connection);
                    return self.usable(response, upgrade);
                }
                Err(mut error) => match error.take_message() {
                    Some(again) if reused => request = again,
                    _ => return Err(self.bad_answer(&error.into_error())),
                },
            }
        }
    }

    /// Waits for the head of an answer, as long as the app goes on taking the body and a while after.
    async fn in_time<T>(&self, patience: Patience<'_>, answer: impl Future<Output = T>) -> Result<T, Failed> {
        let Patience { timeout, progress, .. } = patience;
        let (started, mut answer) = (std::time::Instant::now(), std::pin::pin!(answer));
        loop {
            let until = progress.request.last().max(started) + timeout;
            match tokio::time::timeout_at(until.into(), &mut answer).await {
                Ok(answer) => return Ok(answer),
                Err(_) if progress.request.last() + timeout > until => {}
                Err(_) => return Err(self.too_slow(timeout)),
            }
        }
    }

    fn too_slow(&self, timeout: Duration) -> Failed {
        let seconds = timeout.as_secs_f64();
        let message = format!("the local app at {} gave no answer within {seconds} s", self.target);
        Failed { failure: Failure::Timeout, short: format!("timeout {seconds}s"), message }
    }

    async fn send_h2(
        &self,
        mut request: Request<OutBody>,
        patience: Patience<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        let scheme = if self.target.is_tls() { "https" } else { "http" };
        let host = request.headers_mut().remove(http::header::HOST);
        let host =
            host.and_then(|host| host.to_str().map(str::to_owned).ok()).unwrap_or_else(|| self.target.authority());
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("{scheme}://{host}{path}").parse().map_err(|_| Failed {
            failure: Failure::BadRequest,
            short: "bad path".into(),
            message: "the request has no HTTP/2 form".into(),
        })?;
        *request.version_mut() = http::Version::HTTP_2;
        let open = self.grpc.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|c| !c.is_closed());
        let mut connection = match open {
            Some(connection) => connection,
            None => {
                let io = self.dial(patience, &[b"h2"]).await?;
                let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
                let (connection, driver) = handshake.map_err(|error| self.bad_answer(&error))?;
                drive(driver);
                *self.grpc.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
                connection
            }
        };
        let answer = self.in_time(patience, connection.send_request(request)).await?;
        answer.map_err(|error| self.bad_answer(&error))
    }

    /// A kept connection that is free: one whose answer is still being read is not.
    fn idle(&self) -> Option<http1::SendRequest<OutBody>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().rposition(http1::SendRequest::is_ready)?;
        Some(idle.swap_remove(at))
    }

    fn keep(&self, connection: http1::SendRequest<OutBody>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    async fn connect(&self, patience: Patience<'_>) -> Result<http1::SendRequest<OutBody>, Failed> {
        // Those that the app has closed; looked for here, where time is spent anyway.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).retain(|connection| !connection.is_closed());
        let io = self.dial(patience, &[b"http/1.1"]).await?;
        let handshake = http1::Builder::new().max_buf_size(128 << 10).handshake(TokioIo::new(io)).await;
        let (connection, driver) = handshake.map_err(|error| self.bad_answer(&error))?;
        drive(driver.with_upgrades());
        Ok(connection)
    }

    /// Connects, waiting for an app that is just starting.
    async fn dial(&self, patience: Patience<'_>, alpn: &[&[u8]]) -> Result<Box<dyn Connection>, Failed> {
        let started = Instant::now();
        let until = started + patience.wait_app;
        loop {
            let error = match tokio::time::timeout(patience.timeout, open(&self.target, alpn)).await {
                Ok(Ok(connection)) => {
                    self.tell(true);
                    let _ = patience.progress.connect.set(started.elapsed());
                    return Ok(connection);
                }
                Ok(Err(error)) => error,
                Err(_) => return Err(self.too_slow(patience.timeout)),
            };
            self.tell(false);
            if Instant::now() + TRY_EVERY > until || patience.leaving.is_cancelled() {
                let message = format!("nothing answers at the local app's address {}: {error}", self.target);
                let short = if error.kind() == io::ErrorKind::ConnectionRefused { "refused" } else { "unreachable" };
                return Err(Failed { failure: Failure::Refused, short: short.into(), message });
            }
            let _ = patience.leaving.run_until_cancelled(tokio::time::sleep(TRY_EVERY)).await;
        }
    }

    /// The answer, unless two readers could take it differently: an encoding that nobody undid, or a protocol that
    /// nobody asked for (RFC 9112 §6.1, RFC 9110 §15.2.2).
    fn usable(&self, response: Response<Incoming>, upgrade: bool) -> Result<Response<Incoming>, Failed> {
        let mut encodings = response.headers().get_all(http::header::TRANSFER_ENCODING).iter();
        let chunked = encodings.next().is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
        let switched = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
        if chunked && encodings.next().is_none() && (upgrade || !switched) {
            return Ok(response);
        }
        let message = format!("the local app at {} answered what HTTP does not allow", self.target);
        Err(Failed { failure: Failure::BadAnswer, short: "bad answer".into(), message })
    }

    /// Says that the app is there or not, when that is news.
    fn tell(&self, up: bool) {
        let before = self.up.lock().unwrap_or_else(PoisonError::into_inner).replace(up);
        // That it is there from the start is no news.
        if before.unwrap_or(true) != up {
            self.events.tell(Event::App { up, target: self.target.to_string() });
        }
    }

    fn bad_answer(&self, error: &hyper::Error) -> Failed {
        if error.is_user() {
            let message = "the sender broke off".to_owned();
            return Failed { failure: Failure::BadRequest, short: "aborted".into(), message };
        }
        let short = if error.is_incomplete_message() || error.is_canceled() { "hung up" } else { "bad answer" };
        let message = format!("the local app at {} gave no usable answer: {error}", self.target);
        Failed { failure: Failure::BadAnswer, short: short.into(), message }
    }
}

/// Whether an app is there, which is asked nothing.
pub(crate) async fn reach(target: &Target) -> io::Result<()> {
    let opened = tokio::time::timeout(REACHED_IN, open(target, &[b"http/1.1"])).await;
    opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(drop)
}

async fn open(target: &Target, alpn: &[&[u8]]) -> io::Result<Box<dyn Connection>> {
    // Names below localhost are this machine, whatever the resolver says (RFC 6761 §6.3).
    let host = if target.host().ends_with(".localhost") { "localhost" } else { target.host() };
    let found = tokio::net::lookup_host((host, target.port())).await?;
    // A name may be given any address by whoever runs its domain.
    let addresses: Vec<_> = found.filter(|address| !target::is_metadata(address.ip())).collect();
    if addresses.is_empty() {
        return Err(io::Error::other("the name has no address that webhooks may be put to"));
    }
    let tcp = TcpStream::connect(&addresses[..]).await?;
    tcp.set_nodelay(true)?;
    if !target.is_tls() {
        return Ok(Box::new(tcp));
    }
    let name = ServerName::try_from(target.host().to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(super::tls::config(target.is_local(), alpn)?));
    Ok(Box::new(connector.connect(name, tcp).await?))
}

/// Runs a connection; it ends when the app closes it, or when nobody holds its sender any more.
fn drive(driver: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "bounded by its sender's life, which the pool bounds")]
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection to the app ended");
        }
    });
}
