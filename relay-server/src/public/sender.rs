//! Connections of senders: what each is doing, and an end to those that go nowhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hookway_protocol::WHOLE_BODY;
use hookway_protocol::host::Host;
use hookway_protocol::link::{LINK_WINDOW, STREAM_WINDOW, StreamError};
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::origin::Node;
use crate::access_log::{AccessLog, Line, milliseconds};
use crate::delivery::ReplyBody;
use crate::limits::{Place, Share};
use crate::metrics::Up;
use crate::shutdown::Shutdown;
use crate::tunnel::SessionId;

/// So many streaming answers may wait for their senders with three quarters of a link's window. The next ones cost
/// the longest waiting theirs, once it has waited for [`PATIENCE`].
const MAX_WAITING: usize = (LINK_WINDOW / STREAM_WINDOW * 3 / 4) as usize;
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection that is to end does so when no request has come for so long: the next one may be on its way.
const QUIET_FOR: Duration = Duration::from_secs(1);

/// One connection of a sender. It has its places among the connections as long as anything of it is left, an upgrade
/// also.
#[derive(Debug)]
pub(super) struct Sender {
    /// Its address.
    pub(super) node: Node,
    /// Whether it is a proxy that is trusted to say whose requests it passes on.
    pub(super) is_proxy: bool,
    /// The host that TLS was made for; `None` on plain HTTP.
    pub(super) tls: Option<Option<Host<'static>>>,
    /// Asks it to send nothing new.
    pub(super) leave: CancellationToken,
    /// Ends it.
    pub(super) hang_up: CancellationToken,
    /// Room for bodies.
    pub(super) memory: Share,
    /// Told when the last answer that is owed has been given.
    answered: AtomicWaker,
    /// Told when a request has begun.
    begun: Notify,
    state: Mutex<State>,
    _places: ((Place, Option<Place>), Up),
}

/// What a connection is doing.
#[derive(Debug)]
struct State {
    /// Requests so far; it numbers them.
    requests: u64,
    answers: Vec<Turn>,
    /// Since when nothing is being answered.
    quiet_since: Instant,
    leaving_since: Option<Instant>,
    /// The last body was not read to its end.
    unread: bool,
}

/// One request that is being answered.
#[derive(Debug)]
struct Turn {
    number: u64,
    /// What more the sender says does not change the answer.
    owed: bool,
    /// Since when the sender has had something to take.
    handed: Option<Instant>,
    /// Whose link's window what it does not take stays in.
    session: Option<SessionId>,
}

impl Sender {
    pub(super) fn new(
        ip: IpAddr,
        is_proxy: bool,
        tls: Option<Option<Host<'static>>>,
        shutdown: &Shutdown,
        memory: Share,
        places: ((Place, Option<Place>), Up),
    ) -> Arc<Self> {
        let quiet_since = Instant::now();
        let state = State { requests: 0, answers: Vec::new(), quiet_since, leaving_since: None, unread: false };
        Arc::new(Self {
            node: ip.into(),
            is_proxy,
            tls,
            leave: shutdown.stop_accepting.child_token(),
            hang_up: shutdown.close.child_token(),
            memory,
            answered: AtomicWaker::new(),
            begun: Notify::new(),
            state: Mutex::new(state),
            _places: places,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the connection is to end, and can: while a request is answered, for its answer says so, or when none
    /// has come for a moment. One that is on its way would be lost.
    pub(super) async fn may_leave(&self) {
        self.leave.cancelled().await;
        loop {
            let begun = self.begun.notified();
            tokio::pin!(begun);
            begun.as_mut().enable();
            let quiet = {
                let state = self.state();
                if !state.answers.is_empty() {
                    return;
                }
                state.quiet_since.elapsed()
            };
            if quiet >= QUIET_FOR {
                return;
            }
            let _ = tokio::time::timeout(QUIET_FOR - quiet, begun).await;
        }
    }

    /// Whether an answer is still to be given to all that the sender has said; if so, `cx` is told when it is.
    pub(super) fn is_owed_an_answer(&self, cx: &Context<'_>) -> bool {
        self.answered.register(cx.waker());
        self.state().answers.iter().any(|turn| turn.owed)
    }

    /// Whether a request was answered before its body was read to its end.
    pub(super) fn has_unread(&self) -> bool {
        self.state().unread
    }

    /// A body was read to its end.
    pub(super) fn all_read(&self) {
        self.state().unread = false;
    }

    /// Asks a connection that goes nowhere to end, and ends one that does not.
    fn check(&self, config: &Config) -> Check {
        let mut state = self.state();
        if state.answers.iter().any(|turn| turn.waits_for(config.write_timeout)) {
            return Check::Stuck;
        }
        if self.leave.is_cancelled() {
            let leaving = state.leaving_since.get_or_insert_with(Instant::now).elapsed();
            let quiet = state.answers.is_empty() && state.quiet_since.elapsed().min(leaving) >= config.write_timeout;
            return if quiet { Check::Over } else { Check::Good };
        }
        let most = if state.requests == 0 { config.header_timeout } else { config.idle_timeout };
        if state.answers.is_empty() && state.quiet_since.elapsed() >= most {
            self.leave.cancel();
        }
        Check::Good
    }
}

/// What is to happen to a connection.
enum Check {
    Good,
    /// It does not take an answer.
    Stuck,
    /// It was asked to leave and has nothing more to take, but stays.
    Over,
}

impl Turn {
    fn waits_for(&self, time: Duration) -> bool {
        self.handed.is_some_and(|since| since.elapsed() >= time)
    }
}

/// All connections of senders.
#[derive(Debug, Default)]
pub(super) struct Senders(Mutex<HashMap<usize, Arc<Sender>>>);

impl Senders {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Arc<Sender>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after a connection until the guard is dropped.
    pub(super) fn add(self: &Arc<Self>, sender: &Arc<Sender>) -> Listed {
        let key = Arc::as_ptr(sender) as usize;
        self.lock().insert(key, sender.clone());
        Listed { all: self.clone(), key }
    }

    /// Ends connections without requests, and those that do not take their answers, or hold too much of what a
    /// session's other answers need. Nothing else would tell a sender that gives an HTTP/2 stream no window. Says how
    /// many answers were cut.
    pub(super) fn sweep(&self, config: &Config, is_draining: bool) -> usize {
        let senders: Vec<_> = self.lock().values().cloned().collect();
        let mut cut = 0;
        let mut by_session: HashMap<SessionId, Vec<(Instant, &Sender)>> = HashMap::new();
        for sender in &senders {
            if is_draining {
                sender.leave.cancel();
            }
            match sender.check(config) {
                Check::Good => {
                    for turn in &sender.state().answers {
                        if let Some(found) = turn.session.zip(turn.handed) {
                            by_session.entry(found.0).or_default().push((found.1, sender));
                        }
                    }
                    continue;
                }
                Check::Stuck => cut += 1,
                Check::Over => {}
            }
            sender.hang_up.cancel();
        }
        for mut waiting in by_session.into_values() {
            let surplus = waiting.len().saturating_sub(MAX_WAITING);
            waiting.sort_by_key(|(since, _)| *since);
            let late = waiting.iter().take(surplus).take_while(|(since, _)| since.elapsed() >= PATIENCE);
            for (_, sender) in late {
                sender.hang_up.cancel();
                cut += 1;
            }
        }
        cut
    }
}

/// A connection that is looked after.
#[derive(Debug)]
#[must_use]
pub(super) struct Listed {
    all: Arc<Senders>,
    key: usize,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
    }
}

/// Marks a connection busy until a request is answered.
#[derive(Debug)]
pub(super) struct Busy {
    sender: Arc<Sender>,
    number: u64,
}

impl Busy {
    pub(super) fn new(sender: &Arc<Sender>, request: &Request<Incoming>) -> Self {
        let owed = request.body().size_hint().exact().is_some_and(|length| length <= WHOLE_BODY as u64);
        let mut state = sender.state();
        state.requests += 1;
        state.unread = !request.body().is_end_stream();
        let number = state.requests;
        state.answers.push(Turn { number, owed, handed: None, session: None });
        drop(state);
        sender.begun.notify_waiters();
        Self { sender: sender.clone(), number }
    }

    /// Says whose turn it is: the sender's since `handed`, or, if `None`, that of whoever answers.
    fn hand(&self, handed: Option<Instant>, session: Option<SessionId>) {
        let mut state = self.sender.state();
        if let Some(turn) = state.answers.iter_mut().find(|turn| turn.number == self.number) {
            (turn.handed, turn.session) = (handed, session);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.sender.state();
        state.answers.retain(|turn| turn.number != self.number);
        if state.answers.is_empty() {
            state.quiet_since = Instant::now();
        }
        drop(state);
        self.sender.answered.wake();
    }
}

/// The body of an answer; its connection is busy until it has been sent.
#[derive(Debug)]
pub(super) struct Answering {
    body: ReplyBody,
    busy: Busy,
    written: Option<Box<Written>>,
}

/// What is written of a request in the access log, when its answer is out.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) log: Arc<AccessLog>,
    pub(super) line: Line,
    pub(super) since: Instant,
    /// The answer has no body to go out: to a HEAD, for one.
    pub(super) is_bodiless: bool,
}

impl Answering {
    pub(super) fn new(body: ReplyBody, busy: Busy, written: Option<Box<Written>>) -> Self {
        busy.hand(Some(Instant::now()), body.session());
        Self { body, busy, written }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(written) = &mut self.written {
            written.line.cut |= !(written.is_bodiless || self.body.is_end_stream());
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if self.line.status == 0 {
            // Its sender left before there was an answer.
            (self.line.reason, self.line.cut) = (Some("left"), true);
        }
        self.line.duration_ms = milliseconds(self.since.elapsed());
        self.log.write(std::mem::take(&mut self.line));
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Some(written), Poll::Ready(Some(frame))) = (&mut self.written, &frame) {
            match frame {
                Ok(frame) => written.line.reply_bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
                Err(_) => written.line.cut = true,
            }
        }
        // What is whole is handed over once.
        if let Some(session) = self.body.session() {
            self.busy.hand(frame.is_ready().then(Instant::now), Some(session));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
