//! A delivery's body on its way to the app.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use hookway_protocol::frame::Frame;
use hookway_protocol::head;
use hookway_protocol::link::{Receiver, StreamError};
use http::HeaderMap;
use http_body::{Body, SizeHint};

/// A body for the app.
#[derive(Debug)]
pub(crate) enum OutBody {
    /// Complete.
    Whole(Option<Bytes>, Option<HeaderMap>),
    /// Read from the link as the app takes it.
    Stream(Box<Streaming>),
}

/// A body that is still arriving.
#[derive(Debug)]
pub(crate) struct Streaming {
    pub(crate) receiver: Receiver,
    pub(crate) progress: Arc<Progress>,
    pub(crate) max: u64,
    pub(crate) done: bool,
}

/// How much of a body was handed to the app, and when the last of it was.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<(u64, Instant)>);

impl Progress {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More was handed over; says how much it is by now.
    pub(crate) fn add(&self, bytes: usize) -> u64 {
        let mut progress = self.lock();
        *progress = (progress.0 + bytes as u64, Instant::now());
        progress.0
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lock().0
    }

    /// When the last piece was handed over.
    pub(crate) fn last(&self) -> Instant {
        self.lock().1
    }
}

impl Streaming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.receiver.poll_frame(cx)) {
            Ok(Some(Frame::Data(data))) => {
                if self.progress.add(data.len()) > self.max {
                    return Poll::Ready(Some(Err(StreamError::Protocol("the body is over --max-body".into()))));
                }
                Some(Ok(http_body::Frame::data(data)))
            }
            Ok(Some(Frame::Trailers(bytes))) => {
                let trailers = head::decode_trailers(&bytes).map_err(StreamError::from);
                Some(trailers.map(|trailers| http_body::Frame::trailers(trailers.into_map())))
            }
            Ok(Some(Frame::End)) => {
                self.done = true;
                None
            }
            Ok(Some(Frame::Head(_)) | None) => Some(Err(StreamError::Aborted)),
            Err(error) => Some(Err(error)),
        })
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        match &mut *self {
            Self::Whole(bytes, trailers) => Poll::Ready(match bytes.take().filter(|bytes| !bytes.is_empty()) {
                Some(bytes) => Some(Ok(http_body::Frame::data(bytes))),
                None => trailers.take().map(|trailers| Ok(http_body::Frame::trailers(trailers))),
            }),
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes, trailers) => bytes.as_ref().is_none_or(Bytes::is_empty) && trailers.is_none(),
            Self::Stream(stream) => stream.done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Trailers need chunks, and so a length that is not announced.
            Self::Whole(_, Some(_)) | Self::Stream(_) => SizeHint::default(),
            Self::Whole(bytes, None) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}
