//! Replies on their way to senders.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use hookway_protocol::frame::Frame;
use hookway_protocol::head;
use hookway_protocol::link::{Receiver, Sender, Stream, StreamError};

use super::session::Session;
use crate::delivery::ReplyBody;
use crate::limits::Pass;

/// Tells the sessions of replies apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(usize);

/// The rest of a reply, read from its stream as the sender takes it.
#[derive(Debug)]
pub(crate) struct ReplyStream {
    session: Arc<Session>,
    /// `None` when the reply has ended, or broken off.
    open: Option<Open>,
    /// What was read ahead.
    ready: VecDeque<Result<Frame, StreamError>>,
    /// Why it broke off, to be told at the next turn.
    error: Option<StreamError>,
}

/// What a reply holds while it flows.
#[derive(Debug)]
struct Open {
    receiver: Receiver,
    /// The other half, when it has ended cleanly: the stream can be used again.
    sender: Option<Sender>,
    _pass: Option<Pass>,
}

/// The body of a reply whose head was read, without waiting: whole, if all of it came with the head.
///
/// # Errors
/// It broke off already. Nothing was passed on yet, so the sender can be told.
pub(super) fn body(
    session: &Arc<Session>,
    receiver: Receiver,
    sender: Option<Sender>,
    pass: Option<Pass>,
) -> Result<ReplyBody, StreamError> {
    let open = Some(Open { receiver, sender, _pass: pass });
    let mut stream = ReplyStream { session: session.clone(), open, ready: VecDeque::new(), error: None };
    // A piece and the end.
    for _ in 0..2 {
        let _ = poll_fn(|cx| stream.poll_ahead(cx)).now_or_never();
    }
    if let Some(error) = stream.ready.iter().find_map(|read| read.as_ref().err()) {
        return Err(error.clone());
    }
    match (stream.open.is_none(), stream.ready.len(), stream.ready.pop_front()) {
        (true, 0, _) => Ok(ReplyBody::Whole(None)),
        (true, 1, Some(Ok(Frame::Data(data)))) => Ok(ReplyBody::Whole(Some(data))),
        (.., first) => {
            first.into_iter().for_each(|first| stream.ready.push_front(first));
            Ok(ReplyBody::Stream(Box::new(stream)))
        }
    }
}

impl ReplyStream {
    pub(crate) fn is_done(&self) -> bool {
        self.open.is_none() && self.ready.is_empty() && self.error.is_none()
    }

    pub(crate) fn session(&self) -> SessionId {
        SessionId(Arc::as_ptr(&self.session) as usize)
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if self.ready.is_empty() {
            ready!(self.poll_ahead(cx));
        }
        let Some(read) = self.ready.pop_front() else { return Poll::Ready(None) };
        if self.ready.is_empty() {
            // Who counts bytes does not ask for the end: it may be there with the last of them.
            let _ = self.poll_ahead(cx);
        }
        let frame = match read {
            Ok(Frame::Data(data)) => {
                self.session.passed_back(data.len());
                Ok(http_body::Frame::data(data))
            }
            Ok(Frame::Trailers(bytes)) => head::decode_trailers(&bytes)
                .map(|trailers| http_body::Frame::trailers(trailers.into_map()))
                .map_err(StreamError::from),
            Ok(Frame::Head(_) | Frame::End) => Err(StreamError::Aborted),
            Err(error) => Err(error),
        };
        frame.map_or_else(
            |error| {
                // An error ends the connection at once; what was passed on before it is written first.
                self.error = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            },
            |frame| Poll::Ready(Some(Ok(frame))),
        )
    }

    /// Reads one frame, if the reply has not ended.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(open) = &mut self.open else { return Poll::Ready(()) };
        let read = match ready!(open.receiver.poll_frame(cx)) {
            Ok(Some(Frame::End)) => {
                // The exchange is over: others may have the stream and the place.
                if let Some(Open { receiver, sender: Some(sender), .. }) = self.open.take() {
                    self.session.keep(Stream { sender, receiver });
                }
                return Poll::Ready(());
            }
            // The decoder lets no head through here, and a stream must not stop without END.
            Ok(Some(Frame::Head(_)) | None) => Err(StreamError::Aborted),
            Ok(Some(frame)) => Ok(frame),
            Err(error) => Err(error),
        };
        if read.is_err() {
            self.open = None;
        }
        self.ready.push_back(read);
        Poll::Ready(())
    }
}
