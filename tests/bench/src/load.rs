//! The load: senders that wait for each answer before they send again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::task::JoinSet;

use crate::app::Zeros;
use crate::connection::{Drivers, Sender};
use crate::figures::{Clock, Measured};
use crate::setup::Target;

/// An answer that takes longer after the end of a round does not come any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// How requests come.
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

/// What is sent, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Each request's body.
    pub(crate) body: Bytes,
    /// What each has to be answered.
    pub(crate) expected: StatusCode,
    /// Requests at most.
    pub(crate) count: usize,
    /// No request begins later.
    pub(crate) time: Duration,
}

impl Load {
    /// Bodies of so many bytes, answered like that, for so long.
    pub(crate) fn new(size: usize, expected: StatusCode, time: Duration) -> Self {
        Self { body: vec![b'x'; size].into(), expected, count: usize::MAX, time }
    }
}

/// Runs one case against one target. Connections are made meanwhile.
pub(crate) async fn run(target: &Target, case: Case, load: &Load) -> anyhow::Result<Measured> {
    let mut workers = JoinSet::new();
    let mut drivers = Drivers::new();
    let clock = Clock::start(&target.pids);
    let shots = Shots::new(target, load, clock.until(load.time));
    match case {
        Case::Http1(count) => {
            for _ in 0..count {
                let sender = Sender::connect(target, false, &mut drivers).await?;
                workers.spawn(shots.clone().keep_sending(sender));
            }
        }
        Case::Http2(count, streams) => {
            for _ in 0..count {
                let sender = Sender::connect(target, true, &mut drivers).await?;
                for _ in 0..streams {
                    workers.spawn(shots.clone().keep_sending(sender.clone()));
                }
            }
        }
        Case::New(at_once) => {
            for _ in 0..at_once {
                workers.spawn(shots.clone().keep_connecting(target.clone()));
            }
        }
    }
    finish(target, clock, workers, load.time + PATIENCE).await
}

/// The same with kept HTTP/1.1 connections, made before the clock starts: for what is compared with something that needs
/// none.
pub(crate) async fn run_connected(target: &Target, connections: usize, load: &Load) -> anyhow::Result<Measured> {
    let mut drivers = Drivers::new();
    let mut senders = Vec::new();
    for _ in 0..connections {
        senders.push(Sender::connect(target, false, &mut drivers).await?);
    }
    let clock = Clock::start(&target.pids);
    let shots = Shots::new(target, load, clock.until(load.time));
    let workers = senders.into_iter().map(|sender| shots.clone().keep_sending(sender)).collect();
    finish(target, clock, workers, load.time + PATIENCE).await
}

async fn finish(
    target: &Target,
    clock: Clock,
    mut workers: JoinSet<anyhow::Result<Vec<Duration>>>,
    most: Duration,
) -> anyhow::Result<Measured> {
    let collect = async {
        let mut took: Vec<Duration> = Vec::new();
        while let Some(worker) = workers.join_next().await {
            took.extend(worker??);
        }
        anyhow::Ok(took)
    };
    let took = tokio::time::timeout(most, collect).await.context("no answer").flatten().context(target.name)?;
    clock.stop(took).await.context(target.name)
}

/// Sends or fetches so many bytes and says how fast, in MB a second.
pub(crate) async fn transfer(target: &Target, length: u64, up: bool) -> anyhow::Result<f64> {
    let mut drivers = Drivers::new();
    let sender = Sender::connect(target, false, &mut drivers).await?;
    let (path, body) = if up { ("/".to_owned(), Zeros(length)) } else { (format!("/bytes/{length}"), Zeros(0)) };
    let request = Request::post(path).header("host", target.host).body(body.boxed())?;
    let started = Instant::now();
    let response = sender.request(request).await?;
    ensure!(response.status() == StatusCode::OK, "{}: {}", target.name, response.status());
    let mut body = response.into_body();
    let mut got = 0;
    while let Some(frame) = body.frame().await {
        got += frame?.data_ref().map_or(0, Bytes::len) as u64;
    }
    ensure!(got == if up { 2 } else { length }, "{}: {got} bytes came back", target.name);
    Ok(length as f64 / 1e6 / started.elapsed().as_secs_f64())
}

/// What all senders of a round share.
#[derive(Debug)]
struct Shots {
    host: &'static str,
    body: Bytes,
    expected: StatusCode,
    left: AtomicUsize,
    until: Instant,
}

impl Shots {
    fn new(target: &Target, load: &Load, until: Instant) -> Arc<Self> {
        let Load { body, expected, count, .. } = load;
        let (host, left) = (target.host, AtomicUsize::new(*count));
        Arc::new(Self { host, body: body.clone(), expected: *expected, left, until })
    }

    /// Whether there is another to send.
    fn goes_on(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        Instant::now() < self.until && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    async fn keep_sending(self: Arc<Self>, mut sender: Sender) -> anyhow::Result<Vec<Duration>> {
        let mut took = Vec::new();
        while self.goes_on() {
            let start = Instant::now();
            sender.post(self.host, self.body.clone(), self.expected).await?;
            took.push(start.elapsed());
        }
        Ok(took)
    }

    async fn keep_connecting(self: Arc<Self>, target: Target) -> anyhow::Result<Vec<Duration>> {
        let mut took = Vec::new();
        while self.goes_on() {
            let mut drivers = Drivers::new();
            let start = Instant::now();
            let mut sender = Sender::connect(&target, false, &mut drivers).await?;
            sender.post(self.host, self.body.clone(), self.expected).await?;
            took.push(start.elapsed());
        }
        Ok(took)
    }
}
