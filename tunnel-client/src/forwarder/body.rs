//! A delivery's body on its way to the app.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

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
    pub(crate) count: Arc<AtomicU64>,
    pub(crate) max: u64,
    pub(crate) done: bool,
}

impl Streaming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.receiver.poll_frame(cx)) {
            Ok(Some(Frame::Data(data))) => {
                let before = self.count.fetch_add(data.len() as u64, Ordering::Relaxed);
                if before + data.len() as u64 > self.max {
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
