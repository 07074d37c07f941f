//! One connected client: exchanges over its streams.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hookway_protocol::body::{self, Unsent};
use hookway_protocol::frame::{self, Frame};
use hookway_protocol::head::ReplyHead;
use hookway_protocol::headers::Headers;
use hookway_protocol::host::EndpointName;
use hookway_protocol::link::{Link, Sender, Stream, StreamError};
use hookway_protocol::message::Released;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::reply::{self, Replies};
use crate::auth::Grant;
use crate::delivery::{Body, Delivery, Reply, Undelivered};
use crate::public::{Inbound, InboundError};

/// Streams kept open for the next exchanges. Each costs both sides a little memory.
const MAX_IDLE_STREAMS: usize = 64;
/// What the client is still to be told of released endpoints.
pub(super) const MAX_RELEASED: usize = 32;

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
    /// Uploads that go on while the reply is passed back.
    uploads: TaskTracker,
    reply_timeout: Duration,
    pub(super) replies: Replies,
    pub(super) reply_bytes: Counter,
}

impl Session {
    pub(super) fn new(
        id: String,
        grant: Grant,
        link: Link,
        released: mpsc::Sender<Released>,
        uploads: TaskTracker,
        reply_timeout: Duration,
        reply_bytes: Counter,
    ) -> Arc<Self> {
        let (idle, replies) = (Mutex::default(), Replies::default());
        Arc::new(Self { id, grant, link, idle, released, uploads, reply_timeout, replies, reply_bytes })
    }

    /// Tells the client that it no longer serves an endpoint.
    pub(super) fn released(&self, endpoint: &EndpointName, reason: &str) {
        let message = Released { endpoint: endpoint.to_string(), reason: reason.to_owned() };
        if self.released.try_send(message).is_err() {
            // It does not read its control stream; nothing else would tell it.
            self.link.close(reason);
        }
    }

    /// Puts a delivery to the client and waits for the reply's head. A whole body can be put again after an error.
    pub(crate) async fn forward(self: &Arc<Self>, delivery: &mut Delivery) -> Result<Reply, Undelivered> {
        let Delivery { head, body, pass, hang_up } = delivery;
        let exchange = async {
            let mut stream = self.stream().await?;
            let mut out = BytesMut::with_capacity(1024);
            frame::put_head(&mut out, |out| head.encode(out));
            let upload = match body {
                Body::Whole(bytes, trailers) => {
                    stream.sender.send(&mut whole(out, bytes, trailers.as_ref())).await?;
                    None
                }
                // Passes by once.
                Body::Stream(inbound) => Some((out, inbound.take().ok_or(StreamError::Aborted)?)),
            };
            Ok::<_, StreamError>((stream, upload))
        };
        let (stream, upload) = exchange.await.map_err(Undelivered::Lost)?;
        let Stream { sender, mut receiver } = stream;
        let (sender, fault) = match upload {
            None => (Some(sender), None),
            Some((out, inbound)) => (None, Some(self.upload(sender, out, inbound))),
        };
        let faulty = async {
            match fault {
                // No fault is ever told when the body was good, or no longer wanted.
                Some(fault) => match fault.await {
                    Ok(error) => error,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        let reply = tokio::select! {
            biased;
            error = faulty => return Err(Undelivered::Body(error)),
            reply = tokio::time::timeout(self.reply_timeout, receiver.frame()) => reply,
        };
        let reply = match reply.map_err(|_| Undelivered::TimedOut)? {
            Ok(Some(Frame::Head(bytes))) => ReplyHead::decode(&bytes).map_err(StreamError::from),
            Ok(_) => Err(StreamError::Aborted),
            Err(error) => Err(error),
        };
        let reply = reply.map_err(Undelivered::Lost)?;
        let body = reply::body(self, receiver, sender, pass.take(), hang_up).map_err(Undelivered::Lost)?;
        Ok(match reply {
            ReplyHead::App { status, headers } => Reply::App(status, headers, body),
            ReplyHead::Failed { failure, message } => Reply::Failed(failure, message),
        })
    }

    /// Puts a delivery that asks for an upgrade. `Ok` with both halves when the app switched protocols.
    pub(crate) async fn upgrade(
        self: &Arc<Self>,
        delivery: &mut Delivery,
    ) -> Result<Result<(StatusCode, Headers, Stream), Reply>, Undelivered> {
        let Delivery { head, pass, hang_up, .. } = delivery;
        let start = async {
            let mut stream = self.stream().await?;
            let mut out = BytesMut::with_capacity(512);
            frame::put_head(&mut out, |out| head.encode(out));
            stream.sender.send(&mut [out.freeze()]).await?;
            match tokio::time::timeout(self.reply_timeout, stream.receiver.frame()).await {
                Err(_) => Ok(None),
                Ok(Ok(Some(Frame::Head(bytes)))) => {
                    let head = ReplyHead::decode(&bytes)?;
                    Ok(Some((stream, head)))
                }
                Ok(Ok(_)) => Err(StreamError::Aborted),
                Ok(Err(error)) => Err(error),
            }
        };
        let (stream, reply) = start.await.map_err(Undelivered::Lost)?.ok_or(Undelivered::TimedOut)?;
        match reply {
            ReplyHead::App { status: status @ StatusCode::SWITCHING_PROTOCOLS, headers } => {
                Ok(Ok((status, headers, stream)))
            }
            ReplyHead::App { status, headers } => {
                let body = reply::body(self, stream.receiver, None, pass.take(), hang_up);
                let body = body.map_err(Undelivered::Lost)?;
                Ok(Err(Reply::App(status, headers, body)))
            }
            ReplyHead::Failed { failure, message } => Ok(Err(Reply::Failed(failure, message))),
        }
    }

    async fn stream(&self) -> Result<Stream, StreamError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(stream) => Ok(stream),
            None => self.link.open().await.map_err(StreamError::Lost),
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

    /// Sends a head and a streaming body in a task of its own, so that the reply can begin before it ends. What comes back is
    /// what was wrong with the body, if that was why it ended.
    fn upload(
        &self,
        mut sender: Sender,
        out: BytesMut,
        inbound: Inbound,
    ) -> tokio::sync::oneshot::Receiver<InboundError> {
        let (fault, faults) = tokio::sync::oneshot::channel();
        self.uploads.spawn(async move {
            match body::send(&mut sender, out, inbound).await {
                Ok(()) => sender.finish(),
                // The client no longer wants it, and says so in its reply.
                Err(Unsent::Stream(_)) => {}
                Err(Unsent::Body { error, .. }) => {
                    sender.reset();
                    // Whoever waited may have its reply already.
                    let _ = fault.send(error);
                }
            }
        });
        faults
    }
}

/// The frames of a delivery with a whole body: one write, the body not copied.
fn whole(mut start: BytesMut, bytes: &Bytes, trailers: Option<&HeaderMap>) -> [Bytes; 3] {
    if !bytes.is_empty() {
        frame::put_data_start(&mut start, bytes.len());
    }
    [start.freeze(), bytes.clone(), body::end(trailers)]
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.close("the session has ended");
    }
}

/// What a body's collected end is, for callers that read it whole.
pub(crate) async fn collect(inbound: Inbound) -> Result<Body, InboundError> {
    let collected = inbound.collect().await?;
    let trailers = collected.trailers().cloned();
    Ok(Body::Whole(collected.to_bytes(), trailers))
}
