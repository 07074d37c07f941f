//! A delivery's body on its way to the app.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookway_protocol::frame::Frame;
use hookway_protocol::head;
use hookway_protocol::headers::{Headers, allowed_in_trailers};
use hookway_protocol::link::{Receiver, StreamError};
use http::HeaderMap;
use http_body::{Body, SizeHint};
use jiff::Timestamp;

use crate::exchange::{Beginning, Outcome, RawAttempt, RawBody, Room, encoded};
use crate::signature::Look;

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
    beginning: Option<Beginning>,
    /// As encoded.
    trailers: Bytes,
    has_ended: bool,
    /// Whoever looks at all of it as it passes.
    look: Option<Box<Look>>,
}

impl Passing {
    fn new(room: Option<Arc<Room>>) -> Self {
        let beginning = room.map(Beginning::new);
        let last = Instant::now();
        let trailers = Bytes::new();
        Self(Mutex::new(Passed { size: 0, last, beginning, trailers, has_ended: false, look: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Passed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More passed; says how much it is by now.
    fn add(&self, data: &Bytes) -> u64 {
        let mut passed = self.lock();
        let size = passed.size;
        // Nothing after a gap.
        if let Some(beginning) = passed.beginning.as_mut().filter(|beginning| beginning.bytes().len() as u64 == size) {
            beginning.add(data);
        }
        if let Some(look) = &mut passed.look {
            look.update(data);
        }
        (passed.size, passed.last) = (size + data.len() as u64, Instant::now());
        passed.size
    }

    /// From its first byte on it is looked at.
    pub(crate) fn watch(&self, look: Look) {
        self.lock().look = Some(look.into());
    }

    /// Who looked at it, if its end has come.
    pub(crate) fn watched(&self, announced: Option<u64>) -> Option<Look> {
        let look = self.lock().look.take();
        look.filter(|_| !self.is_unfinished(announced)).map(|look| *look)
    }

    /// All of it is there.
    pub(crate) fn whole(&self, body: &RawBody) {
        self.add(&body.bytes);
        self.add_trailers(&body.trailers);
        self.end();
    }

    fn end(&self) {
        self.lock().has_ended = true;
    }

    /// Whether a request's end has not come. Nobody looks for that of a body whose length was announced.
    pub(crate) fn is_unfinished(&self, announced: Option<u64>) -> bool {
        let passed = self.lock();
        !passed.has_ended && announced != Some(passed.size)
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
        if passed.beginning.is_some() {
            passed.trailers = encoded.clone();
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lock().size
    }

    /// When the last piece passed.
    pub(super) fn last(&self) -> Instant {
        self.lock().last
    }

    /// What is kept of it so far.
    pub(crate) fn taken(&self) -> RawBody {
        let passed = self.lock();
        let bytes = passed.beginning.as_ref().map(|beginning| beginning.bytes().clone());
        RawBody { bytes: bytes.unwrap_or_default(), size: passed.size, trailers: passed.trailers.clone() }
    }
}

/// How an attempt goes, as those who put it to the app learn it.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    at: Timestamp,
    pub(crate) request: Arc<Passing>,
    pub(super) reply: Arc<Passing>,
    /// Where it was put to.
    pub(super) url: OnceLock<String>,
    /// How long connecting took, if it was done for this exchange.
    pub(super) connect: OnceLock<Duration>,
    first_byte: OnceLock<Duration>,
}

impl Progress {
    /// An attempt begins. `room` is where its bodies are kept, if they are.
    pub(crate) fn new(room: Option<&Arc<Room>>) -> Self {
        let passing = || Arc::new(Passing::new(room.cloned()));
        Self {
            started: Instant::now(),
            at: Timestamp::now(),
            request: passing(),
            reply: passing(),
            url: OnceLock::new(),
            connect: OnceLock::new(),
            first_byte: OnceLock::new(),
        }
    }

    /// The head of the answer is there.
    pub(super) fn answered(&self) {
        let _ = self.first_byte.set(self.started.elapsed());
    }

    /// How long it has gone on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// When it began.
    pub(crate) const fn at(&self) -> Timestamp {
        self.at
    }

    /// Where it is put to; empty as long as that is open.
    pub(crate) fn url(&self) -> String {
        self.url.get().cloned().unwrap_or_default()
    }

    /// The attempt is over. `reply` is the head of the answer, as encoded.
    pub(crate) fn over(&self, number: u32, outcome: Outcome, message: String, reply: Bytes) -> RawAttempt {
        RawAttempt {
            number,
            at: self.at,
            url: self.url(),
            outcome,
            message,
            connect: self.connect.get().copied(),
            first_byte: self.first_byte.get().copied(),
            duration: self.started.elapsed(),
            reply,
            body: self.reply.taken(),
        }
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
                self.passing.end();
                let trailers = head::decode_trailers(&bytes).map_err(StreamError::from);
                Some(trailers.map(|trailers| http_body::Frame::trailers(trailers.into_map())))
            }
            Ok(Some(Frame::End)) => {
                self.passing.end();
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
