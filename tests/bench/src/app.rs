//! The local app: takes what it is sent, answers in two bytes, or with as many as asked for. It says how many it took.
#![expect(clippy::print_stdout, reason = "its parent reads the port")]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// `/taken/N` is answered when the app has taken so many requests ...
pub(crate) const TAKEN: &str = "/taken/";
/// ... with how many there were ...
pub(crate) const COUNT: &str = "taken";
/// ... and the microseconds from the first to the last.
pub(crate) const TOOK: &str = "took-us";

/// What the app has been sent.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    count: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Taken {
    fn add(&mut self) {
        let now = Instant::now();
        self.count += 1;
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    fn took(&self) -> Duration {
        self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

/// Serves until it is ended from outside.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let mut connections = JoinSet::new();
    let taken = Arc::new(watch::Sender::new(Taken::default()));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let taken = taken.clone();
        let service = service_fn(move |request| answer(request, taken.clone()));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(request: Request<Incoming>, taken: Arc<watch::Sender<Taken>>) -> Result<Response<Zeros>, Infallible> {
    let number = |prefix: &str| request.uri().path().strip_prefix(prefix).and_then(|count| count.parse().ok());
    if let Some(count) = number(TAKEN) {
        return Ok(when_taken(count, &taken).await);
    }
    let length = number("/bytes/").unwrap_or(2);
    let mut body = request.into_body();
    while body.frame().await.is_some() {}
    taken.send_modify(Taken::add);
    Ok(Response::new(Zeros(length)))
}

async fn when_taken(count: u64, taken: &watch::Sender<Taken>) -> Response<Zeros> {
    let mut changes = taken.subscribe();
    // An error would say that nobody counts any more.
    let now = changes.wait_for(|taken| taken.count >= count).await.map(|taken| *taken).unwrap_or_default();
    let mut response = Response::new(Zeros(0));
    response.headers_mut().insert(COUNT, now.count.into());
    response.headers_mut().insert(TOOK, (now.took().as_micros() as u64).into());
    response
}

/// So many zeros.
pub(crate) struct Zeros(pub(crate) u64);

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static PIECE: [u8; 64 << 10] = [0; 64 << 10];
        let now = self.0.min(PIECE.len() as u64);
        self.0 -= now;
        Poll::Ready((now > 0).then(|| Ok(Frame::data(Bytes::from_static(&PIECE[..now as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}
