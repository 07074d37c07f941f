//! One connection to the relay: the hello, and the exchanges it brings.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hookway_protocol::body::{self, Unsent};
use hookway_protocol::frame::{self, Frame};
use hookway_protocol::head::{self, Failure, ReplyHead, RequestHead};
use hookway_protocol::headers::Headers;
use hookway_protocol::link::{Control, FIRST_STREAMS, Link, LinkError, Receiver, Sender, Stream, StreamError};
use hookway_protocol::message::{ClientMessage, Code, FromClient, FromRelay, Hello, Ping, RelayMessage};
use hookway_protocol::{MAX_VERSION, MIN_VERSION, WHOLE_BODY, common_version};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Clock, ConnectError, Settings, Welcomed};
use crate::events::{Event, Events};
use crate::exchange::{Delivered, Outcome, RawBody};
use crate::forwarder::{AppBody, Failed, Forwarder, OutBody, Progress, Streaming};
use crate::history::{CarriedOut, Recorder, Replay, Tried};

/// The relay must answer a hello, and a ping after a clock jump, within this time.
const ANSWER_IN: Duration = Duration::from_secs(5);
const PONG_IN: Duration = Duration::from_secs(2);
/// An exchange that is not over after so long is kept as it is so far.
const PENDING_AFTER: Duration = Duration::from_secs(1);
/// The relay must take back a leaving client's endpoints within this time.
const RELEASED_IN: Duration = Duration::from_secs(2);
/// What a leaving client was already passing on may go on for this long: an answer may have no end.
const FLOWS_FOR: Duration = Duration::from_secs(5);
/// What a leaving client has sent must have arrived within this time.
const ARRIVED_IN: Duration = Duration::from_secs(2);

/// A session that was let in.
#[derive(Debug)]
pub(super) struct Session {
    link: Link,
    control: Control,
    endpoints: Vec<String>,
    exchanges: Arc<Exchanges>,
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) why: End,
    /// The endpoints it had to the end.
    pub(super) endpoints: Vec<String>,
    /// When the relay wants to see the client again.
    pub(super) back_in: Option<Duration>,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was asked to, and finished what was in flight.
    Stopped,
    /// The link is gone.
    Lost(String),
    /// No endpoint is left.
    TakenOver(String),
}

impl Session {
    /// Says hello and waits for the answer.
    pub(super) async fn open(
        link: Link,
        settings: &Settings,
        forwarder: Arc<Forwarder>,
        recorder: Recorder,
    ) -> Result<(Self, Welcomed), ConnectError> {
        let relay = settings.relay.to_string();
        let unreachable = |cause: String| ConnectError::Unreachable { relay: relay.clone(), cause };
        let answer = tokio::time::timeout(ANSWER_IN, hello(&link, settings)).await;
        let answer = answer.map_err(|_| unreachable("the relay did not answer the hello".into()))?;
        let (control, answer) = answer.map_err(|error| unreachable(error.to_string()))?;
        let welcome = match answer {
            RelayMessage::Welcome(welcome) => welcome,
            RelayMessage::Refused(refused) => {
                let code = Code::try_from(refused.code).unwrap_or(Code::Unknown);
                return Err(ConnectError::Refused { code, reason: refused.reason, next: refused.next });
            }
            _ => return Err(unreachable("the relay answered the hello with something else".into())),
        };
        if common_version(welcome.version, welcome.version).is_none() {
            let reason = format!("the relay chose protocol {}, which this client does not speak", welcome.version);
            return Err(ConnectError::Refused { code: Code::Version, reason, next: "upgrade hookway".into() });
        }
        let urls = |endpoint: &hookway_protocol::message::Endpoint| {
            std::iter::once(&endpoint.url).chain(&endpoint.more_urls).cloned().collect()
        };
        let welcomed = Welcomed {
            urls: welcome.endpoints.iter().map(|endpoint| (endpoint.name.clone(), urls(endpoint))).collect(),
            first: welcome.endpoints.first().map(|endpoint| endpoint.name.clone()),
            owner: welcome.owner,
            notice: welcome.notice,
            transport: link.transport(),
        };
        let endpoints = welcome.endpoints.into_iter().map(|endpoint| endpoint.name).collect();
        let permits = forwarder.settings.max_connections;
        let exchanges = Arc::new(Exchanges {
            forwarder,
            recorder,
            permits: Semaphore::new(permits.min(Semaphore::MAX_PERMITS)),
            streams: AtomicU32::new(0),
            allowed: AtomicU32::new(FIRST_STREAMS),
            waiting: TaskTracker::new(),
            flowing: TaskTracker::new(),
            over: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        Ok((Self { link, control, endpoints, exchanges }, welcomed))
    }

    /// Serves until the link is gone, or `stop`: then what is in flight is finished.
    pub(super) async fn serve(self, stop: &CancellationToken) -> Ended {
        let Self { link, control, mut endpoints, exchanges } = self;
        let tasks = exchanges.tasks.clone();
        let open = link.close_on_drop("the client has ended the session");
        let accept = async {
            loop {
                match link.accept().await {
                    Ok(stream) => exchanges.clone().take(stream, &link),
                    Err(error) => return error,
                }
            }
        };
        let (released, back_in) = (CancellationToken::new(), OnceLock::new());
        let control = talk(control, &link, &mut endpoints, exchanges.recorder.events(), stop, &released, &back_in);
        let finish = async {
            stop.cancelled().await;
            let stopped = tokio::time::Instant::now();
            // First nothing new comes, then what is in flight is finished.
            let _ = tokio::time::timeout(RELEASED_IN, released.cancelled()).await;
            exchanges.waiting.close();
            exchanges.flowing.close();
            let grace = exchanges.forwarder.settings.timeout + RELEASED_IN;
            let _ = tokio::time::timeout(grace, exchanges.waiting.wait()).await;
            let _ = timeout_at(stopped + FLOWS_FOR, exchanges.flowing.wait()).await;
            // Closing a link throws away what is still on its way.
            exchanges.over.cancel();
            exchanges.tasks.close();
            let _ = tokio::time::timeout(ARRIVED_IN, exchanges.tasks.wait()).await;
        };
        let why = tokio::select! {
            error = accept => lost(&error),
            end = control => end,
            () = finish => End::Stopped,
        };
        drop(open);
        tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
        Ended { why, endpoints, back_in: back_in.into_inner() }
    }
}

fn lost(error: &LinkError) -> End {
    End::Lost(error.to_string())
}

async fn hello(link: &Link, settings: &Settings) -> Result<(Control, RelayMessage), StreamError> {
    let mut control = Control::from(link.open().await.map_err(StreamError::Lost)?);
    let hello = Hello {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        token: settings.token.clone(),
        endpoints: settings.endpoints.clone(),
        agent: concat!("hookway/", env!("CARGO_PKG_VERSION")).into(),
        features: vec![],
    };
    control.sender.send(&FromClient::from(ClientMessage::Hello(hello))).await?;
    let answer = control.receiver.receive::<FromRelay>().await?.and_then(|answer| answer.message);
    Ok((control, answer.ok_or(StreamError::Aborted)?))
}

/// Follows the control stream until the link is gone, leaving the endpoints at `stop`; after a clock jump, asks
/// whether the relay still knows us.
async fn talk(
    control: Control,
    link: &Link,
    endpoints: &mut Vec<String>,
    events: &Events,
    stop: &CancellationToken,
    left: &CancellationToken,
    back_in: &OnceLock<Duration>,
) -> End {
    let Control { mut sender, mut receiver } = control;
    let mut clock = Clock::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut pinged: Option<Instant> = None;
    let mut leaving = false;
    loop {
        if leaving && endpoints.is_empty() {
            left.cancel();
        }
        tokio::select! {
            () = stop.cancelled(), if !leaving => {
                leaving = true;
                sender.leave();
            }
            message = receiver.receive::<FromRelay>() => match message {
                Ok(Some(FromRelay { message: Some(RelayMessage::Released(released)) })) => {
                    let before = endpoints.len();
                    endpoints.retain(|name| *name != released.endpoint);
                    if leaving {
                        continue;
                    }
                    let reason = format!("`{}`: {}", released.endpoint, released.reason);
                    let event = Event::Released { endpoint: released.endpoint, reason: released.reason };
                    events.tell(event);
                    if endpoints.is_empty() && before > 0 {
                        return End::TakenOver(reason);
                    }
                }
                Ok(Some(FromRelay { message: Some(RelayMessage::Pong(_)) })) => pinged = None,
                // The relay is stopping: it closes the link when what is in flight is done.
                Ok(Some(FromRelay { message: Some(RelayMessage::GoAway(goaway)) })) => {
                    let _ = back_in.set(Duration::from_millis(goaway.reconnect_after_ms.into()));
                }
                Ok(Some(_)) => {}
                Ok(None) => return End::Lost("the relay ended the session".into()),
                Err(StreamError::Lost(error)) => return lost(&error),
                Err(error) => return End::Lost(error.to_string()),
            },
            _ = ticks.tick() => {
                events.measured(link.rtt());
                if pinged.is_some_and(|at| at.elapsed() > PONG_IN) {
                    return End::Lost("the relay did not answer after the clock had jumped".into());
                }
                if clock.jumped() && !leaving {
                    pinged = Some(Instant::now());
                    if sender.send(&FromClient::from(ClientMessage::Ping(Ping { number: 1 }))).await.is_err() {
                        return End::Lost("the relay cannot be reached".into());
                    }
                }
            }
        }
    }
}

/// The exchanges of one session.
#[derive(Debug)]
struct Exchanges {
    forwarder: Arc<Forwarder>,
    recorder: Recorder,
    permits: Semaphore,
    streams: AtomicU32,
    allowed: AtomicU32,
    /// Exchanges whose answer has not begun.
    waiting: TaskTracker,
    /// Exchanges whose answer is being passed on, and upgraded connections.
    flowing: TaskTracker,
    /// No other exchange comes.
    over: CancellationToken,
    /// A task a stream.
    tasks: TaskTracker,
}

impl Exchanges {
    fn take(self: Arc<Self>, stream: Stream, link: &Link) {
        let open = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let allowed = self.allowed.load(Ordering::Relaxed);
        // An idle link stays small; a busy one may grow, to a few more than are taken at once: those are told so.
        if open + 4 >= allowed && (allowed as usize) < self.forwarder.settings.max_connections.saturating_add(4) {
            self.allowed.store(allowed * 2, Ordering::Relaxed);
            link.allow_streams(allowed * 2);
        }
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            let mut stream = Some(stream);
            while let Some(mut open) = stream.take() {
                // The next request may be there already.
                let _ = open.receiver.rest();
                let next = tokio::select! {
                    next = open.receiver.frame() => next,
                    () = self.over.cancelled() => {
                        open.sender.finish_and_wait().await;
                        break;
                    }
                };
                let Ok(Some(Frame::Head(bytes))) = next else { break };
                let head = match RequestHead::decode(&bytes) {
                    Ok(head) => head,
                    Err(error) => {
                        tracing::warn!(%error, "the relay sent what is no request");
                        break;
                    }
                };
                stream = self.exchange(head, bytes, open).await;
            }
            self.streams.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// One exchange. The stream comes back when another may follow on it.
    async fn exchange(&self, head: RequestHead, encoded: Bytes, stream: Stream) -> Option<Stream> {
        let waiting = self.waiting.token();
        let Stream { mut sender, mut receiver } = stream;
        let progress = Progress::new(self.recorder.room());
        let mut delivered = Box::new(Delivered::new(&head));
        let (whole, upgrade, announced) = (head.whole, head.upgrade.is_some(), announced(&head));
        let (rest, body) = if whole {
            let (body, trailers) = collect(&mut receiver).await.ok()?;
            progress.request.whole(&body);
            (Some(receiver), OutBody::Whole(Some(body.bytes), trailers))
        } else if upgrade {
            progress.request.whole(&RawBody::default());
            (Some(receiver), OutBody::Whole(None, None))
        } else {
            let max = self.forwarder.settings.max_body;
            let body = Streaming { receiver, passing: progress.request.clone(), max, done: false };
            (None, OutBody::Stream(Box::new(body)))
        };
        // Held until the answer has been passed on.
        let permit = self.permits.try_acquire();
        let answer = if permit.is_ok() {
            let mut answer = std::pin::pin!(self.answer(head, body, &progress, &sender));
            match tokio::time::timeout(PENDING_AFTER, &mut answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.recorder.pending(|| CarriedOut {
                        id: delivered.id,
                        head: encoded.clone(),
                        request: progress.request.taken(),
                        unfinished: progress.request.is_unfinished(announced),
                        replay: Replay::default(),
                        attempt: Tried::Pending { at: progress.at(), url: progress.url() },
                    });
                    answer.await
                }
            }
        } else {
            let message = "the client takes no more deliveries at once (--max-connections)".to_owned();
            Err(Failed { failure: Failure::Busy, short: "busy".into(), message })
        };
        let _flowing = self.flowing.token();
        drop(waiting);
        let passed = pass_on(&mut sender, answer, upgrade && !whole).await;
        let (request, unfinished) = (progress.request.taken(), progress.request.is_unfinished(announced));
        let attempt = progress.over(delivered.attempt, passed.outcome, passed.message, passed.head);
        delivered.over(&attempt, request.size);
        let (id, replay) = (delivered.id, Replay::default());
        self.recorder.over(delivered, || CarriedOut {
            id,
            head: encoded,
            request,
            unfinished,
            replay,
            attempt: Tried::Over(attempt),
        });
        match (passed.then, rest) {
            (Then::Next, Some(receiver)) if whole => return Some(Stream { sender, receiver }),
            (Then::Switched(switched), Some(receiver)) => {
                if let Ok(switched) = switched.await {
                    Stream { sender, receiver }.join(TokioIo::new(switched)).await;
                }
            }
            // Without END before it, the end is an abort that does not overtake what was sent, as a reset would.
            _ => sender.finish_and_wait().await,
        }
        None
    }

    /// The app's answer, or why there is none.
    async fn answer(
        &self,
        head: RequestHead,
        body: OutBody,
        progress: &Progress,
        sender: &Sender,
    ) -> Result<Response<AppBody>, Failed> {
        let whole = head.whole;
        let max = self.forwarder.settings.max_body;
        let too_large = || {
            let message = format!("the body is over this client's limit of {max} bytes (--max-body)");
            Failed { failure: Failure::TooLarge, short: "too large".into(), message }
        };
        if progress.request.bytes().max(announced(&head).unwrap_or(0)) > max {
            return Err(too_large());
        }
        let forward = self.forwarder.forward(head, body, progress);
        let gone = async {
            match whole {
                // Carried out even when the sender has hung up.
                true => std::future::pending().await,
                false => sender.stopped().await,
            }
        };
        let answer = tokio::select! {
            answer = forward => answer,
            () = gone => {
                let message = "the sender broke off".to_owned();
                Err(Failed { failure: Failure::BadRequest, short: "aborted".into(), message })
            }
        };
        // One of unknown length is found too large on its way.
        answer.map_err(|failed| if progress.request.bytes() > max { too_large() } else { failed })
    }
}

/// The length of the body, as the head says it.
fn announced(head: &RequestHead) -> Option<u64> {
    head.headers.get(&CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// How an answer went to the sender.
struct Passed {
    outcome: Outcome,
    /// Why there is no answer, in a sentence; empty else.
    message: String,
    /// The answer's head as encoded; empty for none.
    head: Bytes,
    then: Then,
}

/// What becomes of the stream after an answer.
enum Then {
    /// It is ready for the next exchange.
    Next,
    /// It goes on as another protocol.
    Switched(OnUpgrade),
    /// It ends.
    End,
}

/// Passes the app's answer on, or why there is none.
async fn pass_on(sender: &mut Sender, answer: Result<Response<AppBody>, Failed>, upgrade: bool) -> Passed {
    let then = |sent: bool| if sent { Then::Next } else { Then::End };
    let (head, mut response) = match answer.and_then(|response| Ok((app_head(&response)?, response))) {
        Ok(answer) => answer,
        Err(Failed { failure, short, message }) => {
            let sent = send_failure(sender, failure, message.clone()).await.is_ok();
            let outcome = Outcome::Failed { failure, short };
            return Passed { outcome, message, head: Bytes::new(), then: then(sent) };
        }
    };
    let status = response.status();
    let passed = |outcome, then| Passed { outcome, message: String::new(), head: head.clone(), then };
    if upgrade && status == StatusCode::SWITCHING_PROTOCOLS {
        let switched = hyper::upgrade::on(&mut response);
        let sent = send_head(sender, &head).await.is_ok();
        return passed(Outcome::Answered(status), if sent { Then::Switched(switched) } else { Then::End });
    }
    match send_reply(sender, &head, response).await {
        Ok(true) => passed(Outcome::Answered(status), Then::Next),
        sent => passed(Outcome::Cut(status), then(sent.is_ok())),
    }
}

/// A body that the relay has whole.
async fn collect(receiver: &mut Receiver) -> Result<(RawBody, Option<HeaderMap>), StreamError> {
    let (mut body, mut trailers, mut encoded): (Option<Bytes>, _, _) = (None, None, Bytes::new());
    loop {
        match receiver.frame().await? {
            Some(Frame::Data(data)) => {
                let length = body.as_ref().map_or(0, Bytes::len) + data.len();
                if length > WHOLE_BODY {
                    return Err(StreamError::Protocol("a whole body over its limit".into()));
                }
                body = Some(match body {
                    None => data,
                    // Pieces of one buffer grow in place.
                    Some(first) => {
                        let mut all = first.try_into_mut().unwrap_or_else(|first| BytesMut::from(&first[..]));
                        all.extend_from_slice(&data);
                        all.freeze()
                    }
                });
            }
            Some(Frame::Trailers(bytes)) => {
                trailers = Some(head::decode_trailers(&bytes)?.into_map());
                encoded = bytes;
            }
            Some(Frame::End) => {
                let bytes = body.unwrap_or_default();
                return Ok((RawBody { size: bytes.len() as u64, bytes, trailers: encoded }, trailers));
            }
            Some(Frame::Head(_)) | None => return Err(StreamError::Aborted),
        }
    }
}

/// The encoded head of the app's answer.
fn app_head(response: &Response<AppBody>) -> Result<Bytes, Failed> {
    // A length beside chunks is a lie about one of them; the chunks were what was read (RFC 9112 §6.3).
    let chunked = response.headers().contains_key(TRANSFER_ENCODING);
    let mut headers = Headers::end_to_end(response.headers(), None, |name| !(chunked && *name == CONTENT_LENGTH));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Of this connection only, but so is what follows.
        response.headers().get_all(UPGRADE).iter().for_each(|chosen| headers.push(UPGRADE, chosen.clone()));
    }
    let head = ReplyHead::App { status: response.status(), headers };
    if head.fits() {
        return Ok(encode(&head));
    }
    let message = "the header fields of the local app's answer are too many or too long (64 KiB)".to_owned();
    Err(Failed { failure: Failure::BadAnswer, short: "head too large".into(), message })
}

fn encode(head: &ReplyHead) -> Bytes {
    let mut out = BytesMut::with_capacity(512);
    head.encode(&mut out);
    out.freeze()
}

async fn send_head(sender: &mut Sender, head: &Bytes) -> Result<(), StreamError> {
    let mut out = BytesMut::with_capacity(head.len() + 16);
    frame::put_head(&mut out, |out| out.extend_from_slice(head));
    sender.send(&mut [out.freeze()]).await
}

async fn send_failure(sender: &mut Sender, failure: Failure, message: String) -> Result<(), StreamError> {
    send_head(sender, &encode(&ReplyHead::Failed { failure, message })).await?;
    sender.send(&mut [Bytes::from_static(frame::END)]).await
}

/// Sends the app's answer as it comes. `Ok(true)` when it was complete, `Ok(false)` when it broke off before any of it
/// was sent: then the sender can still be told.
async fn send_reply(sender: &mut Sender, head: &Bytes, response: Response<AppBody>) -> Result<bool, StreamError> {
    let mut out = BytesMut::with_capacity(head.len() + 64);
    frame::put_head(&mut out, |out| out.extend_from_slice(head));
    match body::send(sender, out, response.into_body()).await {
        Ok(()) => Ok(true),
        Err(Unsent::Stream(error)) => Err(error),
        Err(Unsent::Body { begun: true, error }) => {
            tracing::debug!(%error, "the app's answer broke off");
            Err(StreamError::Aborted)
        }
        Err(Unsent::Body { begun: false, error }) => {
            tracing::debug!(%error, "the app's answer broke off");
            let message = "the local app's answer broke off".to_owned();
            send_failure(sender, Failure::BadAnswer, message).await?;
            Ok(false)
        }
    }
}
