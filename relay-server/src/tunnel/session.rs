//! One connected client: exchanges over its streams.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use hookway_protocol::body::{self, Unsent};
use hookway_protocol::frame::{self, Frame};
use hookway_protocol::head::ReplyHead;
use hookway_protocol::host::EndpointName;
use hookway_protocol::link::{Link, LinkError, Sender, Signs, Stream, StreamError};
use hookway_protocol::message::Released;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Config, reply};
use crate::access_log::milliseconds;
use crate::auth::Grant;
use crate::delivery::{Body, Delivery, Reply, Undelivered};
use crate::public::{Inbound, InboundError};

/// Streams kept open for the next exchanges. Each costs both sides a little memory.
const MAX_IDLE_STREAMS: usize = 64;

/// Senders wait as little as 3 s: a delivery whose link shows no sign of life for so long is not left to it.
pub(crate) const SILENT_FOR: Duration = Duration::from_secs(2);

/// Of those that take turns, one whose app was away is tried last for so long.
const APP_AWAY_FOR: Duration = Duration::from_secs(5);

/// One connected client.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(super) grant: Grant,
    pub(super) link: Link,
    /// Streams between two exchanges.
    idle: Mutex<Vec<Stream>>,
    /// To the task that writes the control stream.
    released: mpsc::Sender<Released>,
    /// Its app was away, and may be until then.
    app_away: Mutex<Option<Instant>>,
    since: Timestamp,
    common: Common,
}

/// What all sessions share.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// Uploads that go on while the reply is passed back.
    pub(super) uploads: TaskTracker,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) reply_bytes: Counter,
}

impl Session {
    pub(super) fn new(
        id: String,
        grant: Grant,
        link: Link,
        released: mpsc::Sender<Released>,
        common: Common,
    ) -> Arc<Self> {
        let (idle, app_away, since) = (Mutex::default(), Mutex::default(), Timestamp::now());
        Arc::new(Self { id, grant, link, idle, released, app_away, since, common })
    }

    /// Who has it.
    pub(crate) fn owner(&self) -> &str {
        self.grant.owner.as_str()
    }

    /// Ends it; its client may come back.
    pub(crate) fn end(&self, why: &str) {
        self.link.close(why);
    }

    /// What an operator sees of it.
    pub(crate) fn shown(&self) -> serde_json::Value {
        json!({
            "id": self.id, "owner": self.owner(), "token": self.grant.token_id, "remote": self.link.remote(),
            "transport": self.link.transport().name(), "since": self.since,
            "rtt_ms": milliseconds(self.link.rtt()),
        })
    }

    /// Its app was not there for a delivery.
    pub(crate) fn app_was_away(&self) {
        *self.app_away.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + APP_AWAY_FOR);
    }

    /// Whether that was a moment ago.
    pub(super) fn is_app_away(&self) -> bool {
        self.app_away.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| until > Instant::now())
    }

    /// Tells the client that it no longer serves an endpoint.
    pub(super) fn released(&self, endpoint: &EndpointName, reason: &str) {
        let message = Released { endpoint: endpoint.to_string(), reason: reason.to_owned() };
        if self.released.try_send(message).is_err() {
            // It does not read its control stream; nothing else would tell it.
            self.link.close(reason);
        }
    }

    /// Puts a delivery to the client and waits for the reply's head, for a bounded time. A whole body can be put again
    /// after an error, and any after [`Undelivered::Unsent`].
    pub(crate) async fn forward(self: &Arc<Self>, delivery: &mut Delivery) -> Result<Reply, Undelivered> {
        let exchange = tokio::time::timeout(self.common.config.load().reply_timeout, self.exchange(delivery));
        exchange.await.unwrap_or(Err(Undelivered::TimedOut))
    }

    async fn exchange(self: &Arc<Self>, delivery: &mut Delivery) -> Result<Reply, Undelivered> {
        let Delivery { head, body, pass, keep, .. } = delivery;
        let before = self.link.signs();
        let Stream { mut sender, mut receiver } = self.stream().await.map_err(Undelivered::Unsent)?;
        let mut out = BytesMut::with_capacity(1024);
        frame::put_head(&mut out, |out| head.encode(out));
        let (sender, mut upload) = match body {
            Body::Whole(bytes, trailers) if !head.whole => {
                // A large one goes on beside its answer.
                let mut pieces = whole(out, bytes, trailers.as_ref());
                self.common.uploads.spawn(async move {
                    if sender.send(&mut pieces).await.is_ok() {
                        sender.finish();
                    }
                });
                (None, None)
            }
            Body::Whole(bytes, trailers) => {
                let mut pieces = whole(out, bytes, trailers.as_ref());
                tokio::select! {
                    biased;
                    sent = sender.send(&mut pieces) => sent.map_err(|error| undelivered(error, true))?,
                    () = self.silence(before) => return Err(Undelivered::Silent),
                    error = receiver.misbehaves() => return Err(Undelivered::Lost(error)),
                }
                (Some(sender), None)
            }
            Body::Stream(inbound) => {
                // Passes by once.
                let inbound = inbound.take().ok_or(Undelivered::Lost(StreamError::Aborted))?;
                (None, Some(self.upload(sender, out, inbound, keep.take())))
            }
            Body::Upgrade => {
                sender.send(&mut [out.freeze()]).await.map_err(|error| undelivered(error, true))?;
                (Some(sender), None)
            }
        };
        let faulty = async {
            match &mut upload {
                // No fault is ever told when the body was good, or no longer wanted.
                Some(upload) => match (&mut upload.fault).await {
                    Ok(error) => error,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        let reply = tokio::select! {
            biased;
            error = faulty => return Err(Undelivered::Body(error)),
            reply = receiver.frame() => reply,
            () = self.silence(before), if matches!(body, Body::Whole(..)) => return Err(Undelivered::Silent),
        };
        let reply = match reply {
            Ok(Some(Frame::Head(bytes))) => ReplyHead::decode(&bytes).map_err(StreamError::from),
            Ok(_) => Err(StreamError::Aborted),
            Err(error) => Err(error),
        };
        if let (Err(_) | Ok(ReplyHead::Failed { .. }), Some(upload)) = (&reply, upload.as_mut()) {
            // What was kept of it can be queued.
            *body = Body::Stream(upload.take_back().await);
        }
        let reply = reply.map_err(|error| undelivered(error, head.whole))?;
        if let (ReplyHead::App { .. }, Some(upload)) = (&reply, &mut upload) {
            upload.go_on();
        }
        match (reply, sender, &head.upgrade) {
            (ReplyHead::App { status: StatusCode::SWITCHING_PROTOCOLS, headers }, Some(sender), Some(_)) => {
                Ok(Reply::Switched(headers, Stream { sender, receiver }, pass.take()))
            }
            (reply, sender, upgrade) => {
                // A stream that asked for an upgrade carries nothing else.
                let sender = sender.filter(|_| upgrade.is_none());
                // What failed may be tried elsewhere, in the same place.
                let pass = if matches!(reply, ReplyHead::App { .. }) { pass.take() } else { None };
                let body = reply::body(self, receiver, sender, pass).map_err(Undelivered::Lost)?;
                Ok(match reply {
                    ReplyHead::App { status, headers } => Reply::App(status, headers, body),
                    ReplyHead::Failed { failure, message } => Reply::Failed(failure, message),
                })
            }
        }
    }

    /// Waits until nothing has been heard from the client for [`SILENT_FOR`]; it says something more often than that. What
    /// it says counts once it has got anything of what was sent since `before`.
    async fn silence(&self, before: Signs) {
        const LOOKS: u32 = 4;
        // Over a long way the two sides' words come further apart.
        let patience = SILENT_FOR + 2 * self.link.rtt().min(SILENT_FOR);
        let (mut last, mut quiet) = (before, 0);
        while quiet < LOOKS {
            tokio::time::sleep(patience / LOOKS).await;
            let now = self.link.signs();
            let is_sign = now.acked != before.acked && now.heard != last.heard;
            quiet = if is_sign { 0 } else { quiet + 1 };
            last = now;
        }
    }

    async fn stream(&self) -> Result<Stream, LinkError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(stream) => Ok(stream),
            None => self.link.open().await,
        }
    }

    /// Keeps a stream whose exchange has ended cleanly on both sides.
    pub(super) fn keep(&self, mut stream: Stream) {
        if !stream.receiver.rest() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_STREAMS {
            idle.push(stream);
        }
    }

    /// Counts bytes of replies.
    pub(super) fn passed_back(&self, bytes: usize) {
        self.common.reply_bytes.inc_by(bytes as u64);
    }

    /// Sends a head and a streaming body in a task of its own, so that the reply can begin before it ends.
    fn upload(&self, mut sender: Sender, out: BytesMut, mut inbound: Inbound, keep: Option<u64>) -> Upload {
        let (told, fault) = oneshot::channel();
        let (enough, forgotten) = (CancellationToken::new(), keep.map(|most| inbound.keep(most)));
        let stop = enough.clone();
        let task = self.common.uploads.spawn(async move {
            match stop.run_until_cancelled(body::send(&mut sender, out, &mut inbound)).await {
                Some(Ok(())) => sender.finish(),
                // The client no longer wants it, and says so in its reply.
                None | Some(Err(Unsent::Stream(_))) => {}
                Some(Err(Unsent::Body { error, .. })) => {
                    sender.reset();
                    // Whoever waited may have its reply already.
                    let _ = told.send(error);
                }
            }
            inbound
        });
        Upload { fault, task: Some(task), enough, forgotten }
    }
}

/// A body on its way to the client. It ends with its exchange, unless the reply has begun.
#[derive(Debug)]
struct Upload {
    /// What was wrong with the body, if that was why it ended.
    fault: oneshot::Receiver<InboundError>,
    task: Option<JoinHandle<Inbound>>,
    enough: CancellationToken,
    /// Told when the body will not be needed again.
    forgotten: Option<Arc<AtomicBool>>,
}

impl Upload {
    /// Lets it go on beside the reply.
    fn go_on(&mut self) {
        self.task = None;
        self.forgotten.iter().for_each(|forgotten| forgotten.store(true, Ordering::Relaxed));
    }

    /// Ends it, and gives the body back where it stands.
    async fn take_back(&mut self) -> Option<Inbound> {
        self.enough.cancel();
        self.task.take()?.await.ok()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What an error means for a delivery. One that streams has passed by, whether it was looked at or not.
fn undelivered(error: StreamError, is_whole: bool) -> Undelivered {
    match error {
        StreamError::Untaken(link) if is_whole => Undelivered::Unsent(link),
        StreamError::Untaken(link) => Undelivered::Lost(StreamError::Lost(link)),
        error => Undelivered::Lost(error),
    }
}

/// The frames of a delivery with a whole body: one write, the body not copied.
fn whole(mut start: BytesMut, bytes: &Bytes, trailers: Option<&HeaderMap>) -> [Bytes; 3] {
    if !bytes.is_empty() {
        frame::put_data_start(&mut start, bytes.len());
    }
    [start.freeze(), bytes.clone(), body::end(trailers)]
}
