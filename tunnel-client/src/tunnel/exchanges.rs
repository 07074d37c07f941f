//! The exchanges of a session: from the link to the app and back, and into the history.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hookway_protocol::WHOLE_BODY;
use hookway_protocol::body::{self, Unsent};
use hookway_protocol::frame::{self, Frame};
use hookway_protocol::head::{self, Failure, ReplyHead, RequestHead};
use hookway_protocol::headers::Headers;
use hookway_protocol::link::{FIRST_STREAMS, Link, Receiver, Sender, Stream, StreamError};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::events::Events;
use crate::exchange::{Delivered, Outcome, RawBody};
use crate::forwarder::{AppBody, Failed, Forwarder, OutBody, Progress, Streaming};
use crate::history::{CarriedOut, Recorder, Replay, Tried};

/// An exchange that is not over after so long is kept as it is so far.
const PENDING_AFTER: Duration = Duration::from_secs(1);

/// The exchanges of one session.
#[derive(Debug)]
pub(super) struct Exchanges {
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
    pub(super) fn new(forwarder: Arc<Forwarder>, recorder: Recorder) -> Self {
        let permits = forwarder.settings.max_connections;
        Self {
            forwarder,
            recorder,
            permits: Semaphore::new(permits.min(Semaphore::MAX_PERMITS)),
            streams: AtomicU32::new(0),
            allowed: AtomicU32::new(FIRST_STREAMS),
            waiting: TaskTracker::new(),
            flowing: TaskTracker::new(),
            over: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn events(&self) -> &Events {
        self.recorder.events()
    }

    /// Waits until the answers have begun, the app's time to answer and `more`; and until they have been passed on,
    /// or that moment.
    pub(super) async fn finish(&self, more: Duration, flow_until: tokio::time::Instant) {
        self.waiting.close();
        self.flowing.close();
        let grace = self.forwarder.settings.timeout + more;
        let _ = tokio::time::timeout(grace, self.waiting.wait()).await;
        let _ = tokio::time::timeout_at(flow_until, self.flowing.wait()).await;
    }

    /// No other exchange comes: the streams end when what was sent has arrived, or after so long.
    pub(super) async fn end(&self, most: Duration) {
        self.over.cancel();
        self.wait(most).await;
    }

    /// Waits until all are over, or so long.
    pub(super) async fn wait(&self, most: Duration) {
        self.tasks.close();
        let _ = tokio::time::timeout(most, self.tasks.wait()).await;
    }

    /// Carries out the exchanges that come on a stream.
    pub(super) fn take(self: Arc<Self>, stream: Stream, link: &Link) {
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
