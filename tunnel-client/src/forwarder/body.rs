//! A delivery's body on its way to the app.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookway_protocol::WHOLE_BODY;
use hookway_protocol::frame::Frame;
use hookway_protocol::head;
use hookway_protocol::headers::{Headers, allowed_in_trailers};
use hookway_protocol::link::{Receiver, StreamError};
use http::HeaderMap;
use http_body::{Body, SizeHint};

use crate::history::{Taken, encoded};

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
    pub(crate) passing: Arc<Passing>,
    pub(crate) max: u64,
    pub(crate) done: bool,
}

/// A body that passes by: how much of it, when the last of it, and its beginning where that is kept.
#[derive(Debug)]
pub(crate) struct Passing(Mutex<Passed>);

#[derive(Debug)]
struct Passed {
    size: u64,
    last: Instant,
    keeps: bool,
    beginning: Vec<u8>,
    /// As encoded.
    trailers: Bytes,
}

impl Passing {
    pub(crate) fn new(keeps: bool) -> Self {
        let beginning = Vec::new();
        Self(Mutex::new(Passed { size: 0, last: Instant::now(), keeps, beginning, trailers: Bytes::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Passed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More passed; says how much it is by now.
    pub(crate) fn add(&self, data: &[u8]) -> u64 {
        let mut passed = self.lock();
        if passed.keeps {
            let room = WHOLE_BODY - passed.beginning.len();
            passed.beginning.extend_from_slice(&data[..data.len().min(room)]);
        }
        (passed.size, passed.last) = (passed.size + data.len() as u64, Instant::now());
        passed.size
    }

    /// A frame of a body passes.
    pub(super) fn see(&self, frame: &http_body::Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.add(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            let trailers = Headers::end_to_end(trailers, None, allowed_in_trailers);
            self.add_trailers(&encoded(|out| head::encode_trailers(&trailers, out)));
        }
    }

    fn add_trailers(&self, encoded: &Bytes) {
        let mut passed = self.lock();
        if passed.keeps {
            passed.trailers = encoded.clone();
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lock().size
    }

    /// When the last piece passed.
    pub(crate) fn last(&self) -> Instant {
        self.lock().last
    }

    /// What is kept of it.
    pub(crate) fn taken(&self) -> Taken {
        let passed = self.lock();
        // A copy: it may be asked for before the end as well.
        let (bytes, trailers) = (Bytes::copy_from_slice(&passed.beginning), passed.trailers.clone());
        Taken { bytes, size: passed.size, trailers }
    }
}

/// How an exchange goes, as the one that puts it to the app learns it.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) request: Arc<Passing>,
    pub(crate) reply: Arc<Passing>,
    /// Where it was put to.
    pub(crate) url: OnceLock<String>,
    /// How long connecting took, if it was done for this exchange.
    pub(crate) connect: OnceLock<Duration>,
}

impl Progress {
    /// Of an exchange whose bodies are kept, or not.
    pub(crate) fn new(keeps: bool) -> Self {
        let passing = || Arc::new(Passing::new(keeps));
        Self { request: passing(), reply: passing(), url: OnceLock::new(), connect: OnceLock::new() }
    }
}

impl Streaming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.receiver.poll_frame(cx)) {
            Ok(Some(Frame::Data(data))) => {
                if self.passing.add(&data) > self.max {
                    return Poll::Ready(Some(Err(StreamError::Protocol("the body is over --max-body".into()))));
                }
                Some(Ok(http_body::Frame::data(data)))
            }
            Ok(Some(Frame::Trailers(bytes))) => {
                self.passing.add_trailers(&bytes);
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
