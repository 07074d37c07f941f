//! One connected client: exchanges over its streams.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use hookway_protocol::frame::{self, Frame};
use hookway_protocol::head::{self, ReplyHead, RequestHead};
use hookway_protocol::headers::{Headers, allowed_in_trailers};
use hookway_protocol::host::EndpointName;
use hookway_protocol::link::{Link, Sender, Stream, StreamError};
use hookway_protocol::message::{RelayMessage, Released};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::auth::Grant;
use crate::delivery::{Body, Reply, ReplyBody, Undelivered};
use crate::limits::Pass;
use crate::public::{Inbound, InboundError};

/// Streams kept open for the next exchanges. Each costs both sides a little memory.
const MAX_IDLE_STREAMS: usize = 64;
/// Messages to the client that wait for their turn.
pub(super) const MAX_MESSAGES: usize = 32;

/// One connected client.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(super) grant: Grant,
    pub(super) link: Link,
    /// Streams between two exchanges.
    idle: Mutex<Vec<Stream>>,
    /// To the task that writes the control stream.
    messages: mpsc::Sender<RelayMessage>,
    /// Uploads that go on while the reply is passed back.
    uploads: TaskTracker,
    reply_timeout: Duration,
    reply_bytes: Counter,
}

impl Session {
    pub(super) fn new(
        id: String,
        grant: Grant,
        link: Link,
        messages: mpsc::Sender<RelayMessage>,
        uploads: TaskTracker,
        reply_timeout: Duration,
        reply_bytes: Counter,
    ) -> Arc<Self> {
        Arc::new(Self { id, grant, link, idle: Mutex::default(), messages, uploads, reply_timeout, reply_bytes })
    }

    /// Tells the client that it no longer serves an endpoint.
    pub(super) fn released(&self, endpoint: &EndpointName, reason: &str) {
        let message = Released { endpoint: endpoint.to_string(), reason: reason.to_owned() };
        if self.messages.try_send(RelayMessage::Released(message)).is_err() {
            // It does not read its control stream; nothing else would tell it.
            self.link.close(reason);
        }
    }

    /// Puts a delivery to the client and waits for the reply's head. A whole body can be put again after an error.
    pub(crate) async fn forward(
        self: &Arc<Self>,
        head: &RequestHead,
        body: &mut Body,
        pass: &mut Option<Pass>,
    ) -> Result<Reply, Undelivered> {
        let exchange = async {
            let mut stream = self.stream().await?;
            let (upload, sent) = match body {
                Body::Whole(bytes, trailers) => {
                    stream.sender.send(&mut whole(head, bytes, trailers.as_ref())).await?;
                    (None, true)
                }
                Body::Stream(inbound) => {
                    let mut out = BytesMut::with_capacity(512);
                    frame::put_head(&mut out, |out| head.encode(out));
                    stream.sender.send(&mut [out.freeze()]).await?;
                    (inbound.take(), false)
                }
            };
            Ok::<_, StreamError>((stream, upload, sent))
        };
        let (stream, upload, sent) = exchange.await.map_err(Undelivered::Lost)?;
        let Stream { sender, mut receiver } = stream;
        let (sender, fault) = match upload {
            None => (Some(sender), None),
            Some(inbound) => (None, Some(self.upload(sender, inbound))),
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
            Ok(Some(Frame::Head(bytes))) => ReplyHead::decode(bytes).map_err(|e| StreamError::Protocol(e.to_string())),
            Ok(_) => Err(StreamError::Aborted),
            Err(error) => Err(error),
        };
        let reply = reply.map_err(Undelivered::Lost)?;
        let stream = ReplyStream {
            receiver: Some(receiver),
            sender: sender.filter(|_| sent),
            session: self.clone(),
            pass: pass.take(),
            ready: VecDeque::new(),
            done: false,
        };
        Ok(match reply {
            ReplyHead::App { status, headers } => Reply::App(status, headers, stream.into_body()),
            ReplyHead::Failed { failure, message } => {
                drop(stream.into_body());
                Reply::Failed(failure, message)
            }
        })
    }

    /// Puts a delivery that asks for an upgrade. `Ok` with both halves when the app switched protocols.
    pub(crate) async fn upgrade(
        self: &Arc<Self>,
        head: &RequestHead,
        pass: &mut Option<Pass>,
    ) -> Result<Result<(StatusCode, Headers, Stream), Reply>, Undelivered> {
        let start = async {
            let mut stream = self.stream().await?;
            let mut out = BytesMut::with_capacity(512);
            frame::put_head(&mut out, |out| head.encode(out));
            stream.sender.send(&mut [out.freeze()]).await?;
            match tokio::time::timeout(self.reply_timeout, stream.receiver.frame()).await {
                Err(_) => Ok(None),
                Ok(Ok(Some(Frame::Head(bytes)))) => {
                    let head = ReplyHead::decode(bytes).map_err(|e| StreamError::Protocol(e.to_string()))?;
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
                let Stream { receiver, .. } = stream;
                let (session, pass) = (self.clone(), pass.take());
                let stream = ReplyStream {
                    receiver: Some(receiver),
                    sender: None,
                    session,
                    pass,
                    ready: VecDeque::new(),
                    done: false,
                };
                Ok(Err(Reply::App(status, headers, stream.into_body())))
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
    fn keep(&self, mut stream: Stream) {
        if !stream.receiver.rest() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_STREAMS {
            idle.push(stream);
        }
    }

    /// Sends a streaming body in a task of its own, so that the reply can begin before it ends. What comes back is
    /// what was wrong with the body, if that was why it ended.
    fn upload(&self, sender: Sender, inbound: Inbound) -> tokio::sync::oneshot::Receiver<InboundError> {
        let (fault, faults) = tokio::sync::oneshot::channel();
        self.uploads.spawn(async move {
            if let Err(Some(error)) = upload(sender, inbound).await {
                // Whoever waited may have its reply already.
                let _ = fault.send(error);
            }
        });
        faults
    }
}

/// The frames of a delivery with a whole body: one write, the body not copied.
fn whole(head: &RequestHead, body: &Bytes, trailers: Option<&HeaderMap>) -> [Bytes; 3] {
    let mut start = BytesMut::with_capacity(1024);
    frame::put_head(&mut start, |out| head.encode(out));
    if !body.is_empty() {
        frame::put_data_start(&mut start, body.len());
    }
    [start.freeze(), body.clone(), end(trailers)]
}

/// The frames after a body.
fn end(trailers: Option<&HeaderMap>) -> Bytes {
    let Some(trailers) = trailers else { return Bytes::from_static(frame::END) };
    let mut out = BytesMut::new();
    let trailers = Headers::end_to_end(trailers, None, allowed_in_trailers);
    frame::put_trailers(&mut out, |out| head::encode_trailers(&trailers, out));
    out.extend_from_slice(frame::END);
    out.freeze()
}

/// Sends a body as it arrives. `Err(None)` when the client no longer wants it.
async fn upload(mut sender: Sender, mut inbound: Inbound) -> Result<(), Option<InboundError>> {
    let mut trailers = None;
    loop {
        let stopped = sender.stopped();
        let next = tokio::select! {
            next = inbound.frame() => next,
            () = stopped => return Err(None),
        };
        let piece = match next {
            None => break,
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                sender.reset();
                return Err(Some(error));
            }
        };
        match piece.into_data() {
            Ok(data) => {
                let mut start = BytesMut::with_capacity(16);
                frame::put_data_start(&mut start, data.len());
                sender.send(&mut [start.freeze(), data]).await.map_err(|_| None)?;
            }
            Err(piece) => trailers = piece.into_trailers().ok(),
        }
    }
    sender.send(&mut [end(trailers.as_ref())]).await.map_err(|_| None)?;
    sender.finish();
    Ok(())
}

/// The rest of a reply, read from its stream as the sender takes it.
#[derive(Debug)]
pub(crate) struct ReplyStream {
    receiver: Option<hookway_protocol::link::Receiver>,
    /// The other half, when it has ended cleanly: the stream can be used again.
    sender: Option<Sender>,
    session: Arc<Session>,
    pass: Option<Pass>,
    /// What was read ahead.
    ready: VecDeque<Frame>,
    done: bool,
}

impl ReplyStream {
    /// The body, without waiting: whole, if all of it came with the head.
    fn into_body(mut self) -> ReplyBody {
        let mut first = None;
        loop {
            match self.next().now_or_never() {
                Some(Ok(Some(Frame::End))) => {
                    self.end();
                    return ReplyBody::Whole(first);
                }
                Some(Ok(Some(Frame::Data(data)))) if first.is_none() => first = Some(data),
                read => {
                    self.ready.extend(first.map(Frame::Data));
                    self.ready.extend(read.and_then(Result::ok).flatten());
                    return ReplyBody::Stream(Box::new(self));
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        match &mut self.receiver {
            Some(receiver) => receiver.frame().await,
            None => Ok(None),
        }
    }

    pub(crate) const fn is_done(&self) -> bool {
        self.done
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        let frame = match (self.ready.pop_front(), &mut self.receiver) {
            (Some(frame), _) => Ok(Some(frame)),
            (None, Some(receiver)) => ready!(receiver.poll_frame(cx)),
            (None, None) => return Poll::Ready(None),
        };
        Poll::Ready(match frame {
            Ok(Some(Frame::Data(data))) => {
                self.session.reply_bytes.inc_by(data.len() as u64);
                Some(Ok(http_body::Frame::data(data)))
            }
            Ok(Some(Frame::Trailers(bytes))) => Some(
                head::decode_trailers(bytes)
                    .map(|trailers| http_body::Frame::trailers(trailers.into_map()))
                    .map_err(|error| StreamError::Protocol(error.to_string())),
            ),
            Ok(Some(Frame::End)) => {
                self.end();
                None
            }
            // The decoder lets no head through here, and a stream must not stop without END.
            Ok(Some(Frame::Head(_)) | None) => Some(Err(StreamError::Aborted)),
            Err(error) => Some(Err(error)),
        })
    }

    /// The exchange is over: others may have the stream and the place.
    fn end(&mut self) {
        self.done = true;
        self.pass = None;
        if let (Some(receiver), Some(sender)) = (self.receiver.take(), self.sender.take()) {
            self.session.keep(Stream { sender, receiver });
        }
    }
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
