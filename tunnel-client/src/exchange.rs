//! What happened: the events that a client tells whoever listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hookway_protocol::head::Failure;
use hookway_protocol::id::DeliveryId;
use http::StatusCode;
use tokio::sync::mpsc;

use crate::tunnel::Welcomed;

/// Events that wait for whoever listens; more are missed.
const MAX_EVENTS: usize = 4096;

/// Where events go. Nothing waits for the listener: one that does not keep up is told how many it missed.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    sender: mpsc::Sender<Event>,
    missed: Arc<Missed>,
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Listener {
    receiver: mpsc::Receiver<Event>,
    missed: Arc<Missed>,
}

#[derive(Debug, Default)]
struct Missed {
    count: AtomicU64,
    failed: AtomicU64,
}

impl Events {
    pub(crate) fn channel() -> (Self, Listener) {
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        let missed = Arc::<Missed>::default();
        (Self { sender, missed: missed.clone() }, Listener { receiver, missed })
    }

    /// Tells the listener, if it keeps up.
    pub(crate) fn tell(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.sender.try_send(event) {
            self.missed.count.fetch_add(1, Ordering::Relaxed);
            if matches!(event, Event::Delivered(delivered) if !delivered.is_ok()) {
                self.missed.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Listener {
    /// The next event; what was missed when all others have been told. `None` after the last. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        if let Ok(event) = self.receiver.try_recv() {
            return Some(event);
        }
        let missed = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        match missed(&self.missed.count) {
            0 => self.receiver.recv().await,
            count => Some(Event::Missed { count, failed: missed(&self.missed.failed) }),
        }
    }
}

/// Something a person or a script may want to know.
#[derive(Clone, Debug)]
pub enum Event {
    /// The session is up. The first one makes the client ready.
    Up(Welcomed),
    /// The session is gone, or could not be had again for another reason than before; the client is trying to come
    /// back.
    Down {
        /// Why.
        reason: String,
    },
    /// Another client took an endpoint, or the operator released it.
    Released {
        /// The endpoint.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The app went down or came up.
    App {
        /// Whether it answers now.
        up: bool,
        /// Where it is.
        target: String,
    },
    /// Something that would help the person at the client.
    Hint {
        /// What to do, in a sentence.
        text: String,
    },
    /// Whoever listens did not keep up.
    Missed {
        /// So many events are missing here.
        count: u64,
        /// So many of them were deliveries that failed.
        failed: u64,
    },
    /// A delivery is done.
    Delivered(Box<Delivered>),
}

/// A delivery and how it went.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Names it.
    pub id: DeliveryId,
    /// The endpoint it was sent to.
    pub endpoint: String,
    /// Its method.
    pub method: String,
    /// Its path and query, as sent.
    pub path: String,
    /// What came of it.
    pub outcome: Outcome,
    /// From the head's arrival to the reply's end.
    pub duration: Duration,
    /// The size of its body.
    pub bytes: u64,
    /// Which attempt this was, from 1.
    pub attempt: u32,
}

/// What came of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The app answered.
    Answered(StatusCode),
    /// The app's answer broke off, or the sender was gone before its end.
    Cut(StatusCode),
    /// The app gave no answer.
    Failed {
        /// What kind of failure it was.
        failure: Failure,
        /// The same in a word or two: `refused`, `timeout 30s`.
        short: String,
    },
}

impl Delivered {
    /// Whether the app answered with a status below 400.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self.outcome, Outcome::Answered(status) if status.as_u16() < 400)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missed_is_counted() {
        let (events, mut listener) = Events::channel();
        let hint = || Event::Hint { text: String::new() };
        for _ in 0..MAX_EVENTS + 3 {
            events.tell(hint());
        }
        for _ in 0..MAX_EVENTS {
            assert!(matches!(listener.next().await, Some(Event::Hint { .. })));
        }
        assert!(matches!(listener.next().await, Some(Event::Missed { count: 3, failed: 0 })));
        events.tell(hint());
        drop(events);
        assert!(matches!(listener.next().await, Some(Event::Hint { .. })));
        assert!(listener.next().await.is_none());
    }
}
