//! The exchanges of a session: from the link to the app and back, and into the history.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::WHOLE_BODY;
use hookway_protocol::frame::Frame;
use hookway_protocol::head::{Failure, RequestHead};
use hookway_protocol::id::DeliveryId;
use hookway_protocol::link::{FIRST_STREAMS, Link, Receiver, Sender, Stream};
use hookway_protocol::seal::OpeningKey;
use http::header::CONTENT_LENGTH;
use http::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Given, Then, answer_oneself, pass_on, read_out};
use super::collect::{Body, Uncollected, collect, open};
use crate::events::{Event, Events};
use crate::exchange::{Delivered, Outcome, RawBody};
use crate::forwarder::{AppBody, Arrival, Failed, Forwarder, OutBody, Place, Progress, Streaming};
use crate::history::{CarriedOut, Recorder, Replay, Tried, Which};
use crate::webhook::{Case, Own};

/// An exchange that is not over after so long is kept as it is so far.
const PENDING_AFTER: Duration = Duration::from_secs(1);

/// So many sealed deliveries are opened at once: they are whole in memory.
const OPENED_AT_ONCE: usize = 4;

/// No provider waits longer.
const MOST_PATIENT: Duration = Duration::from_secs(15);

/// The exchanges of one session.
#[derive(Debug)]
pub(super) struct Exchanges {
    forwarder: Arc<Forwarder>,
    recorder: Recorder,
    opening_key: Option<Arc<OpeningKey>>,
    /// Places for sealed deliveries, which are whole in memory.
    opened: Arc<Semaphore>,
    permits: Arc<Semaphore>,
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
    pub(super) fn new(forwarder: Arc<Forwarder>, recorder: Recorder, opening_key: Option<Arc<OpeningKey>>) -> Self {
        let permits = forwarder.settings.max_connections;
        Self {
            forwarder,
            recorder,
            opening_key,
            opened: Arc::new(Semaphore::new(OPENED_AT_ONCE)),
            permits: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
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

    /// Waits until the answers have been passed on. After `stop` no longer for those that do not begin in the app's time
    /// to answer and `more`, and for others no longer than `flow`.
    pub(super) async fn finish(&self, stop: &CancellationToken, more: Duration, flow: Duration) {
        self.waiting.close();
        self.flowing.close();
        let all = async { tokio::join!(self.waiting.wait(), self.flowing.wait()) };
        if stop.run_until_cancelled(all).await.is_some() {
            return;
        }
        let flow_until = tokio::time::Instant::now() + flow;
        self.forwarder.leaving.cancel();
        let settings = &self.forwarder.settings;
        // Somebody who steps through code may take for ever; the sender has its answer before.
        let timeout = if settings.webhooks.breakpoint { MOST_PATIENT } else { settings.timeout };
        let grace = timeout + more;
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
    async fn exchange(self: &Arc<Self>, mut head: RequestHead, mut encoded: Bytes, stream: Stream) -> Option<Stream> {
        let waiting = self.waiting.token();
        let Stream { mut sender, mut receiver } = stream;
        let (mut opened, mut _place) = (None, None);
        if head.sealed {
            _place = self.opened.clone().acquire_owned().await.ok();
            match open(self.opening_key.as_deref(), &head, &mut receiver).await? {
                Ok(found) => (head, encoded, opened) = (found.head, found.encoded, Some(found.body)),
                Err(failed) => {
                    // Another client may have the key.
                    let text = format!("{} waits for the client that it was sealed to (--seal)", head.id);
                    self.events().tell(Event::Hint { text });
                    pass_on(&mut sender, Err(failed), false).await;
                    sender.finish_and_wait().await;
                    return None;
                }
            }
        }
        let progress = Arc::new(Progress::new(self.recorder.room()));
        let delivered = Box::new(Delivered::new(&head));
        let (whole, upgrade, is_head) = (head.whole, head.upgrade.is_some(), head.method == Method::HEAD);
        let announced = announced(&head);
        // Held until the answer has been passed on.
        let permit = self.permits.clone().try_acquire_owned().ok();
        let Taken { body, case, rest, own } =
            self.request(&mut head, opened, receiver, &progress, permit.is_some()).await?;
        let (place, own) = match self.arrive(&head).await {
            Ok(place) => (place, own.or_else(|| self.forwarder.webhooks.own_answer(&case))),
            Err(instead) => (None, Some(instead)),
        };
        let ack_after = case.ack_after().filter(|_| whole && own.is_none() && permit.is_some());
        let mut carried = Carried { delivered, encoded, case, announced, progress, place };
        carried.delivered.is_own = own.is_some();
        let refused = |failure, short: &str, message: &str| {
            Given::App(Err(Failed { failure, short: short.into(), message: message.into() }))
        };
        let answer = match (own, ack_after, body) {
            (Some(own), ..) => Given::Own(own),
            _ if permit.is_none() => {
                let message = "the client takes no more deliveries at once (--max-connections)";
                refused(Failure::Busy, "busy", message)
            }
            (None, _, None) => refused(Failure::BadRequest, "aborted", "the sender broke off"),
            (None, None, Some(body)) => {
                let answer = self.answer(head, body, &carried.progress, Some(&mut sender).filter(|_| !whole));
                Given::App(self.kept_meanwhile(answer, &carried).await)
            }
            (None, Some(ack_after), Some(body)) => {
                let (own, progress) = (self.clone(), carried.progress.clone());
                let answer = Box::pin(async move { own.answer(head, body, &progress, None).await });
                match self.before_the_deadline(answer, &carried, ack_after, &mut sender).await {
                    Awaited::Answered(answer) => Given::App(answer),
                    Awaited::Overtaken { answer, is_told } => {
                        carried.case.webhook.acked = is_told.then(|| carried.progress.elapsed());
                        // The stream is free for the next; the app's late answer is kept.
                        let own = self.clone();
                        self.tasks.spawn(async move {
                            let _permit = permit;
                            let passed = read_out(answer.await).await;
                            own.over(carried, passed.outcome, passed.message, passed.head).await;
                        });
                        return rest.filter(|_| is_told).map(|receiver| Stream { sender, receiver });
                    }
                }
            }
        };
        let (puzzling, _flowing) = (carried.case.is_puzzling(), self.flowing.token());
        drop(waiting);
        let passed = match answer {
            Given::App(answer) => pass_on(&mut sender, answer, upgrade && !whole).await,
            Given::Own(own) => answer_oneself(&mut sender, own, is_head).await,
        };
        let over = self.clone().over(carried, passed.outcome, passed.message, passed.head);
        if puzzling {
            // The next exchange of this stream does not wait until its cause is found.
            self.tasks.spawn(over);
        } else {
            over.await;
        }
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

    /// Waits for an earlier attempt at the same delivery that is still under way. What is answered in the app's place, if
    /// it had or has the delivery otherwise.
    async fn arrive(&self, head: &RequestHead) -> Result<Option<Place>, Own> {
        loop {
            match self.forwarder.attempts.arrive(head.id, head.attempt) {
                Arrival::Goes(place) => return Ok(Some(place)),
                Arrival::Joins(earlier) => {
                    if earlier.await == Ok(true) {
                        return Err(Own::taken_before());
                    }
                }
                Arrival::Overtaken => return Err(Own::overtaken()),
            }
        }
    }

    /// Takes the request: its body, as far as that is a value, and what it is as a webhook. `None`: it broke off.
    async fn request(
        &self,
        head: &mut RequestHead,
        opened: Option<Body>,
        mut receiver: Receiver,
        progress: &Progress,
        is_taken: bool,
    ) -> Option<Taken> {
        let webhooks = &self.forwarder.webhooks;
        if head.whole || opened.is_some() {
            let (mut body, trailers) = match opened {
                Some(opened) => opened,
                None => collect(&mut receiver, WHOLE_BODY).await.ok()?,
            };
            progress.request.whole(&body);
            let mut case = webhooks.whole(head, &body.bytes);
            webhooks.refresh_late(&mut case, head, &mut body.bytes);
            let body = Some(OutBody::Whole(Some(body.bytes), trailers));
            return Some(Taken { body, case, rest: Some(receiver), own: None });
        }
        if head.upgrade.is_some() {
            progress.request.whole(&RawBody::default());
            let case = webhooks.whole(head, &[]);
            return Some(Taken { body: Some(OutBody::Whole(None, None)), case, rest: Some(receiver), own: None });
        }
        let (case, look) = webhooks.streamed(head);
        if !is_taken || !webhooks.policy.require_signature {
            progress.request.watch(look);
            let max = self.forwarder.settings.max_body;
            let body = Streaming { receiver, passing: progress.request.clone(), max, done: false };
            return Some(Taken { body: Some(OutBody::Stream(body.into())), case, rest: None, own: None });
        }
        // Nothing of it reaches the app before its signature is known to be good.
        let taken = |body, case, own| Some(Taken { body, case, rest: None, own });
        if look.is_refused() {
            return taken(None, case, Some(Own::unsigned()));
        }
        match collect(&mut receiver, WHOLE_BODY).await {
            Ok((body, trailers)) => {
                progress.request.whole(&body);
                let case = webhooks.whole(head, &body.bytes);
                taken(Some(OutBody::Whole(Some(body.bytes), trailers)), case, None)
            }
            Err(Uncollected::TooLong) => taken(None, case, Some(Own::too_large())),
            Err(Uncollected::Broken) => taken(None, case, None),
        }
    }

    /// It is over: it is recorded, and what was found out about it.
    async fn over(self: Arc<Self>, carried: Carried, outcome: Outcome, message: String, reply: Bytes) {
        let Carried { mut delivered, encoded, case, announced, progress, mut place } = carried;
        if let (Some(place), Outcome::Answered(status)) = (&mut place, &outcome)
            && status.is_success()
        {
            place.taken();
        }
        drop(place);
        let (request, unfinished) = (progress.request.taken(), progress.request.is_unfinished(announced));
        let look = progress.request.watched(announced);
        let attempt = progress.over(delivered.attempt, outcome, message, reply);
        let webhook = self.forwarder.webhooks.over(case, look, &encoded, &request, &attempt.outcome).await;
        delivered.over(&attempt, request.size);
        delivered.webhook = webhook.clone();
        let (id, replay) = (delivered.id, Replay::default());
        self.recorder.over(delivered, || CarriedOut {
            id,
            head: encoded,
            request,
            unfinished,
            webhook,
            replay,
            attempt: Tried::Over(attempt),
        });
    }

    /// Waits for the app's answer; an exchange that goes on is kept as it is so far.
    async fn kept_meanwhile<T>(&self, answer: impl Future<Output = T>, carried: &Carried) -> T {
        let mut answer = std::pin::pin!(answer);
        if let Ok(answer) = tokio::time::timeout(PENDING_AFTER, &mut answer).await {
            return answer;
        }
        self.keep_pending(carried);
        answer.await
    }

    /// The same, but the sender is answered before its deadline once the exchange is on disk.
    async fn before_the_deadline<A: Future + Unpin>(
        &self,
        mut answer: A,
        carried: &Carried,
        ack_after: Duration,
        sender: &mut Sender,
    ) -> Awaited<A> {
        let kept = async {
            tokio::time::sleep(PENDING_AFTER.min(ack_after)).await;
            self.keep_pending(carried);
            tokio::time::sleep(ack_after.saturating_sub(carried.progress.elapsed())).await;
            self.is_kept_whole(carried.delivered.id).await
        };
        tokio::select! {
            biased;
            answer = &mut answer => return Awaited::Answered(answer),
            // What is not kept must not be taken: the sender waits on.
            true = kept => {}
        }
        let message = "taken; the app is working on it".to_owned();
        let own = Own { status: StatusCode::ACCEPTED, message, is_for_later: false };
        let is_told = matches!(answer_oneself(sender, own, false).await.then, Then::Next);
        Awaited::Overtaken { answer, is_told }
    }

    /// Whether all of an exchange's request is on disk.
    async fn is_kept_whole(&self, id: DeliveryId) -> bool {
        let Some(history) = self.recorder.history() else { return false };
        if history.written().await.is_err() {
            return false;
        }
        // Under load bodies are left out.
        let kept = history.get(Which::Id(id)).await;
        kept.is_ok_and(|kept| kept.is_ok_and(|kept| !kept.request.body.is_cut() && !kept.request.unfinished))
    }

    fn keep_pending(&self, carried: &Carried) {
        let Carried { delivered, encoded, case, announced, progress, .. } = carried;
        self.recorder.pending(|| CarriedOut {
            id: delivered.id,
            head: encoded.clone(),
            request: progress.request.taken(),
            unfinished: progress.request.is_unfinished(*announced),
            webhook: case.webhook.clone(),
            replay: Replay::default(),
            attempt: Tried::Pending { at: progress.at(), url: progress.url() },
        });
    }

    /// The app's answer, or why there is none. `sender`: who ends it by hanging up; else it is carried out all the same.
    async fn answer(
        &self,
        head: RequestHead,
        body: OutBody,
        progress: &Progress,
        sender: Option<&mut Sender>,
    ) -> Result<Response<AppBody>, Failed> {
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
            match sender {
                Some(sender) => sender.stopped().await,
                None => std::future::pending().await,
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

/// An exchange that is being carried out.
struct Carried {
    delivered: Box<Delivered>,
    /// The request's head.
    encoded: Bytes,
    case: Case,
    announced: Option<u64>,
    progress: Arc<Progress>,
    /// Among the attempts under way.
    place: Option<Place>,
}

/// A request, as far as it is here before it is put to the app.
struct Taken {
    /// `None`: it does not get there.
    body: Option<OutBody>,
    case: Case,
    /// For what follows on the stream.
    rest: Option<Receiver>,
    /// What is answered in the app's place.
    own: Option<Own>,
}

/// What came first: the app's answer, or the sender's deadline.
enum Awaited<A: Future> {
    Answered(A::Output),
    Overtaken {
        answer: A,
        /// Whether the sender was still there.
        is_told: bool,
    },
}
