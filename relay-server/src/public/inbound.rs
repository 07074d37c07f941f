//! A sender's body: bounded in size, in time and in slowness.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, Sleep};

use super::sender::Sender;
use crate::limits::{Place, Room};

/// A slow start is forgiven for this long.
const GRACE: Duration = Duration::from_secs(10);

/// What a piece of a body takes of the memory at least.
const LEAST_PIECE: usize = 128;
/// A large body that is read whole must be there within this time.
const LARGE_WITHIN: Duration = Duration::from_secs(600);

/// A sender's body as it arrives.
#[derive(Debug)]
pub(crate) struct Inbound {
    body: Incoming,
    limits: InboundLimits,
    taken: u64,
    since: Instant,
    /// Runs while a read waits.
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    count: Counter,
    /// Not held on to: a body that is still on its way to a client keeps no connection's place.
    sender: Weak<Sender>,
    /// What has come, while it may be needed once more.
    kept: Option<Kept>,
    /// What cannot be kept is of no use.
    must_keep: bool,
    ended: bool,
}

/// The beginning of a body, kept as it passes by.
#[derive(Debug)]
struct Kept {
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// Bytes it may have.
    most: u64,
    room: Room,
    /// Set when it is needed no more.
    forgotten: Arc<AtomicBool>,
}

/// A body that has come to its end, and its trailers.
pub(crate) type Whole = (Bytes, Option<HeaderMap>);

/// The bounds of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct InboundLimits {
    pub(super) max_body: u64,
    pub(super) timeout: Duration,
    pub(super) min_rate: u64,
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InboundError {
    #[error("the body is over {0} bytes")]
    TooLarge(u64),
    #[error("there is no room for the body")]
    NoRoom,
    #[error("the body did not go on in time")]
    TooSlow,
    #[error("the sender broke off")]
    Broken(#[source] hyper::Error),
}

impl Inbound {
    pub(super) fn new(body: Incoming, limits: InboundLimits, count: Counter, sender: &Arc<Sender>) -> Self {
        let (since, sender) = (Instant::now(), Arc::downgrade(sender));
        let (kept, must_keep, ended) = (None, false, false);
        Self { body, limits, taken: 0, since, deadline: None, waiting: false, count, sender, kept, must_keep, ended }
    }

    /// Keeps what passes by, up to so many bytes and as long as there is room, until what is returned is set: then it
    /// can be read whole though it has begun to stream.
    pub(crate) fn keep(&mut self, most: u64) -> Arc<AtomicBool> {
        let forgotten = Arc::<AtomicBool>::default();
        if self.taken == 0 && self.body.size_hint().lower() <= most {
            self.kept = Some(Kept::new(most, forgotten.clone()));
        }
        forgotten
    }

    /// Reads it to its end, within its time, into room that is to be kept as long as the body. It may have so many
    /// bytes. `None`: it has passed by.
    pub(crate) async fn whole(mut self, most: u64) -> Result<Option<(Whole, Room)>, InboundError> {
        if self.taken == 0 {
            self.kept = Some(Kept::new(most.min(self.limits.max_body), Arc::default()));
        }
        let Some(kept) = &self.kept else { return Ok(None) };
        let (most, announced) = (kept.most, self.size_hint().exact());
        if announced.is_some_and(|rest| rest + self.taken > most) {
            return Err(InboundError::TooLarge(most));
        }
        self.must_keep = true;
        // A large one has to come fast enough; the others have to come.
        let is_large = announced.is_some_and(|length| length > hookway_protocol::WHOLE_BODY as u64);
        let timeout = if is_large { LARGE_WITHIN } else { self.limits.timeout };
        let rest = async {
            while let Some(frame) = self.frame().await {
                frame?;
            }
            Ok(())
        };
        tokio::time::timeout(timeout, rest).await.unwrap_or(Err(InboundError::TooSlow))?;
        let Some(Kept { mut pieces, trailers, room, .. }) = self.kept else { return Ok(None) };
        let bytes = match pieces.len() {
            0 | 1 => pieces.pop().unwrap_or_default(),
            _ => pieces.concat().into(),
        };
        Ok(Some(((bytes, trailers), room)))
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, InboundError> {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        self.taken += length;
        self.count.inc_by(length);
        if self.taken > self.limits.max_body {
            return Err(InboundError::TooLarge(self.limits.max_body));
        }
        if let Some(kept) = &mut self.kept {
            let most = kept.most;
            let is_spare = !self.must_keep;
            let room = |bytes| {
                let memory = &self.sender.upgrade()?.memory;
                if is_spare { memory.take_spare(bytes) } else { memory.take(bytes) }
            };
            let error = match kept.add(&frame, self.taken, room) {
                Ok(()) => None,
                _ if self.taken > most => Some(InboundError::TooLarge(most)),
                Err(()) => Some(InboundError::NoRoom),
            };
            if let Some(error) = error {
                self.kept = None;
                if self.must_keep {
                    return Err(error);
                }
            }
        }
        // Only a body of announced length has to hurry: the others may be a conversation.
        let age = self.since.elapsed();
        let slow = age > GRACE && self.taken / age.as_secs().max(1) < self.limits.min_rate;
        if slow && self.body.size_hint().exact().is_some_and(|rest| rest > 0) {
            return Err(InboundError::TooSlow);
        }
        Ok(frame)
    }
}

impl Kept {
    const fn new(most: u64, forgotten: Arc<AtomicBool>) -> Self {
        Self { pieces: Vec::new(), trailers: None, most, room: Room::new(), forgotten }
    }

    /// Keeps a frame of a body of which so much has come, if there is room for it.
    fn add(&mut self, frame: &Frame<Bytes>, taken: u64, room: impl Fn(usize) -> Option<[Place; 2]>) -> Result<(), ()> {
        if taken > self.most || self.forgotten.load(Ordering::Relaxed) {
            return Err(());
        }
        match frame.data_ref() {
            Some(data) if data.is_empty() => {}
            Some(data) => {
                // A piece costs more than its bytes: there may be millions of one byte.
                self.room.push(room(data.len().max(LEAST_PIECE)).ok_or(())?);
                self.pieces.push(data.clone());
            }
            None => self.trailers = frame.trailers_ref().cloned(),
        }
        Ok(())
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = InboundError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, InboundError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(match frame {
                None => {
                    self.ended = true;
                    self.sender.upgrade().iter().for_each(|sender| sender.all_read());
                    None
                }
                Some(Ok(frame)) => Some(self.take(frame)),
                Some(Err(error)) => Some(Err(InboundError::Broken(error))),
            });
        }
        let announced = self.body.size_hint().exact().is_some();
        if !announced {
            return Poll::Pending;
        }
        let timeout = self.limits.timeout;
        let waiting = std::mem::replace(&mut self.waiting, true);
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if !waiting {
            deadline.as_mut().reset(Instant::now() + timeout);
        }
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Some(Err(InboundError::TooSlow)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
