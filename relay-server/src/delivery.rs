//! One accepted inbound request, and what goes back to its sender.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hookway_protocol::head::{Failure, RequestHead};
use hookway_protocol::headers::Headers;
use hookway_protocol::link::{LinkError, Stream, StreamError};
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};

use crate::limits::{Pass, Room};
use crate::public::{Inbound, InboundError};
use crate::store::StoreError;
use crate::tunnel::{ReplyStream, SessionId};

/// One accepted inbound request on its way.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// What the client is told before the body.
    pub(crate) head: RequestHead,
    /// The body.
    pub(crate) body: Body,
    /// Its places among those in flight; given back when the reply is done.
    pub(crate) pass: Option<Pass>,
    /// What its body takes of the memory.
    pub(crate) room: Option<Room>,
    /// So many bytes of a body that streams are kept until there is a reply: it may have to be queued.
    pub(crate) keep: Option<u64>,
}

impl Delivery {
    /// Reads a body that streams to its end, of so many bytes at most.
    pub(crate) async fn read_whole(&mut self, most: u64) -> Result<(), Unqueued> {
        match &mut self.body {
            Body::Whole(bytes, _) if bytes.len() as u64 > most => Err(InboundError::TooLarge(most).into()),
            Body::Whole(..) => Ok(()),
            Body::Stream(inbound) => {
                let inbound = inbound.take().ok_or(Unqueued::Passed)?;
                let ((bytes, trailers), room) = inbound.whole(most).await?.ok_or(Unqueued::Passed)?;
                self.head.whole = bytes.len() <= hookway_protocol::WHOLE_BODY;
                (self.body, self.room) = (Body::Whole(bytes, trailers), Some(room));
                Ok(())
            }
            Body::Upgrade => Err(Unqueued::Passed),
        }
    }
}

/// Why a delivery is not in the queue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unqueued {
    /// The endpoint's queue, or its owner's, is full.
    #[error("the queue is full")]
    Full,
    /// There is no room on the disk.
    #[error("the relay's disk is full")]
    DiskFull,
    /// The store failed.
    #[error("the relay cannot keep it")]
    Store(#[source] StoreError),
    /// The sender's body was at fault.
    #[error("the body could not be read")]
    Body(#[from] InboundError),
    /// Its body has passed by.
    #[error("the body has passed by")]
    Passed,
    /// The key that it was to be sealed to is none.
    #[error("the client's key cannot be used")]
    NoKey,
    /// The relay is stopping.
    #[error("the relay is stopping")]
    Closed,
}

/// A delivery's body.
#[derive(Debug)]
pub(crate) enum Body {
    /// Complete and small: it can be sent again.
    Whole(Bytes, Option<HeaderMap>),
    /// Passes by once. `None` when it has.
    Stream(Option<Inbound>),
    /// None: the sender asks to talk on in another protocol.
    Upgrade,
}

/// What goes back to the sender.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The app's own answer.
    App(StatusCode, Headers, ReplyBody),
    /// The app has switched protocols: both sides talk on over the stream.
    Switched(Headers, Stream, Option<Pass>),
    /// The client says why there is none.
    Failed(Failure, String),
    /// None yet: the delivery is in the queue.
    Queued,
}

/// Why a delivery got no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undelivered {
    /// No client serves the endpoint now.
    #[error("no client serves the endpoint")]
    Away,
    /// The link was lost before anything of it was sent.
    #[error("the client was lost before it got the delivery")]
    Unsent(#[source] LinkError),
    /// The client took it, and the link or the exchange broke before it answered.
    #[error("the client was lost before it answered")]
    Lost(#[source] StreamError),
    /// The client did not answer within the relay's own limit.
    #[error("the client did not answer in time")]
    TimedOut,
    /// The link shows no sign of life.
    #[error("nothing is heard from the client")]
    Silent,
    /// The sender's body was at fault.
    #[error("the body could not be read")]
    Body(#[source] InboundError),
    /// It was to wait in the queue, and cannot.
    #[error("it cannot be queued")]
    Unqueued(#[from] Unqueued),
}

impl Undelivered {
    /// Why the client never sees it, if it does not: nothing of it was sent, nor is it kept.
    pub(crate) const fn missed(&self) -> Option<&dyn std::fmt::Display> {
        match self {
            Self::Away | Self::Unsent(_) => Some(self),
            // The sender's own fault.
            Self::Unqueued(Unqueued::Body(error)) if !matches!(error, InboundError::TooLarge(_)) => None,
            Self::Unqueued(Unqueued::Body(error)) => Some(error),
            Self::Unqueued(error) => Some(error),
            _ => None,
        }
    }
}

/// The body of the app's answer.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// Complete.
    Whole(Option<Bytes>),
    /// Streams from the client.
    Stream(Box<ReplyStream>),
}

impl ReplyBody {
    /// Whose link it comes over, while it does.
    pub(crate) fn session(&self) -> Option<SessionId> {
        match self {
            Self::Whole(_) => None,
            Self::Stream(stream) => Some(stream.session()),
        }
    }
}

impl From<&'static str> for ReplyBody {
    fn from(text: &'static str) -> Self {
        Self::Whole(Some(Bytes::from_static(text.as_bytes())))
    }
}

impl From<String> for ReplyBody {
    fn from(text: String) -> Self {
        Self::Whole(Some(text.into()))
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(stream) => stream.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
