//! A sender's body: bounded in size, in time and in slowness.

use std::pin::Pin;
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
use crate::limits::Place;

/// A slow start is forgiven for this long.
const GRACE: Duration = Duration::from_secs(10);

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
    /// The room taken for it, when it is kept whole.
    room: Option<Room>,
}

/// What a body takes of its sender's share of the memory, piece by piece.
pub(super) type Room = Vec<[Place; 2]>;
/// A body that has come to its end, and its trailers.
pub(super) type Whole = (Bytes, Option<HeaderMap>);

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
        Self { body, limits, taken: 0, since, deadline: None, waiting: false, count, sender, room: None }
    }

    /// Reads it to its end, within its time, into room that is to be kept as long as the body.
    pub(super) async fn whole(mut self) -> Result<(Whole, Room), InboundError> {
        self.room = Some(Room::new());
        let collected = tokio::time::timeout(self.limits.timeout, (&mut self).collect()).await;
        let collected = collected.unwrap_or(Err(InboundError::TooSlow))?;
        let trailers = collected.trailers().cloned();
        Ok(((collected.to_bytes(), trailers), self.room.unwrap_or_default()))
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, InboundError> {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        self.taken += length;
        self.count.inc_by(length);
        if self.taken > self.limits.max_body {
            return Err(InboundError::TooLarge(self.limits.max_body));
        }
        if let Some(room) = &mut self.room
            && length > 0
        {
            let taken = self.sender.upgrade().and_then(|sender| sender.memory.take(length as usize));
            room.push(taken.ok_or(InboundError::NoRoom)?);
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

impl Body for Inbound {
    type Data = Bytes;
    type Error = InboundError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, InboundError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(match frame {
                None => {
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
