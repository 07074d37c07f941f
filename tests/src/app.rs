//! A local app: answers what a test tells it to and remembers what it saw.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// A request as the app saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// Path and query as they stood in the request line.
    pub target: String,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: Option<HeaderMap>,
}

/// What an app answers with.
pub type AppResponse = Response<BoxBody<Bytes, std::io::Error>>;

/// A running app.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl App {
    /// Starts an app that reads each request whole and answers with what `answer` makes of it.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Seen) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = AppResponse> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let log = seen.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log) = (answer.clone(), log.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, log) = (answer.clone(), log.clone());
                    async move {
                        let Some(seen) = read(request).await else {
                            return Ok::<_, Infallible>(text(400, "the body broke off"));
                        };
                        log.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
                        Ok(answer(seen).await)
                    }
                });
                connections.spawn(async move {
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    /// An app that answers 200 with the body it got.
    pub async fn echo() -> Self {
        Self::start(|seen| async move { body(200, seen.body) }).await
    }

    /// An app that answers as [`Self::echo`], but each request only when the test lets it go on.
    pub async fn held() -> (Self, Held) {
        let held = Held::default();
        let (arrived, go_on) = (held.arrived.clone(), held.go_on.clone());
        let app = Self::start(move |seen| {
            let (arrived, go_on) = (arrived.clone(), go_on.clone());
            async move {
                arrived.add_permits(1);
                go_on.acquire().await.expect("never closed").forget();
                body(200, seen.body)
            }
        });
        (app.await, held)
    }

    /// What it saw so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Holds an app back.
#[derive(Debug)]
pub struct Held {
    arrived: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
}

impl Default for Held {
    fn default() -> Self {
        Self { arrived: Arc::new(Semaphore::new(0)), go_on: Arc::new(Semaphore::new(0)) }
    }
}

impl Held {
    /// Waits until one more request is at the app.
    ///
    /// # Panics
    /// Never.
    pub async fn arrived(&self) {
        self.arrived.acquire().await.expect("never closed").forget();
    }

    /// Lets one request be answered.
    pub fn go_on(&self) {
        self.go_on.add_permits(1);
    }
}

async fn read(request: Request<Incoming>) -> Option<Seen> {
    let (parts, body) = request.into_parts();
    let collected = body.collect().await.ok()?;
    let trailers = collected.trailers().cloned();
    let target = parts.uri.to_string();
    Some(Seen { method: parts.method, target, headers: parts.headers, body: collected.to_bytes(), trailers })
}

/// An answer with this text.
#[must_use]
pub fn text(status: u16, text: &'static str) -> AppResponse {
    body(status, Bytes::from_static(text.as_bytes()))
}

/// An answer with this body.
#[must_use]
pub fn body(status: u16, bytes: Bytes) -> AppResponse {
    let mut response = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
}
