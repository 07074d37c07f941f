//! What happened: exchanges, and the events that a client tells whoever listens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::head::Failure;
use hookway_protocol::headers::Headers;
use hookway_protocol::host::EndpointName;
use hookway_protocol::id::DeliveryId;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::tunnel::Welcomed;

/// Events that wait for whoever listens; more are missed.
const MAX_EVENTS: usize = 4096;

/// Where events go. Nothing waits for the listener: one that does not keep up is told how many it missed.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    sender: mpsc::Sender<Event>,
    missed: Arc<Missed>,
    ended: CancellationToken,
    link: Arc<Mutex<LinkNow>>,
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Listener {
    receiver: mpsc::Receiver<Event>,
    missed: Arc<Missed>,
    ended: CancellationToken,
}

/// How the link to the relay is by the events so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkNow {
    /// What the relay said last; `None` before it did.
    pub(crate) welcomed: Option<Welcomed>,
    /// Why there is no session, when there is none.
    pub(crate) down: Option<String>,
    /// The time of a round trip.
    pub(crate) rtt: Option<Duration>,
}

#[derive(Debug, Default)]
struct Missed {
    count: AtomicU64,
    failed: AtomicU64,
}

impl Events {
    pub(crate) fn channel() -> (Self, Listener) {
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        let (missed, ended) = (Arc::<Missed>::default(), CancellationToken::new());
        let events = Self { sender, missed: missed.clone(), ended: ended.clone(), link: Arc::default() };
        (events, Listener { receiver, missed, ended })
    }

    fn lock(&self) -> MutexGuard<'_, LinkNow> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the link is now.
    pub(crate) fn link(&self) -> LinkNow {
        self.lock().clone()
    }

    /// What a round trip takes at present.
    pub(crate) fn measured(&self, rtt: Duration) {
        self.lock().rtt = Some(rtt);
    }

    /// Nothing more is told: the listener has what there is, and then the end.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    /// Tells the listener, if it keeps up.
    pub(crate) fn tell(&self, event: Event) {
        match &event {
            Event::Up(welcomed) => *self.lock() = LinkNow { welcomed: Some(welcomed.clone()), ..LinkNow::default() },
            Event::Down { reason } => self.lock().down = Some(reason.clone()),
            Event::Released { endpoint, .. } => {
                if let Some(welcomed) = &mut self.lock().welcomed {
                    welcomed.urls.remove(endpoint);
                }
            }
            _ => {}
        }
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
            0 => tokio::select! {
                biased;
                event = self.receiver.recv() => event,
                () = self.ended.cancelled() => self.receiver.try_recv().ok(),
            },
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

/// A request and what came of it, as the history keeps it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exchange {
    /// Its place in the order of arrival at this machine's history.
    pub(crate) seq: u64,
    /// Grows with every change of any exchange.
    pub(crate) version: u64,
    /// Names it.
    pub(crate) id: DeliveryId,
    /// The endpoint it was sent to.
    pub(crate) endpoint: EndpointName,
    /// The sender's address.
    pub(crate) remote: String,
    /// When the relay had its head.
    pub(crate) received_at: Timestamp,
    /// Whether the sender spoke HTTP/2.
    pub(crate) http2: bool,
    /// What was sent.
    pub(crate) request: Request,
    /// Each try to hand it to the app that is over, the first one first. None yet: it is pending.
    pub(crate) attempts: Vec<Attempt>,
    /// The exchange whose request this one repeats.
    pub(crate) replay_of: Option<DeliveryId>,
    /// Whether that request was changed.
    pub(crate) edited: bool,
    /// Whether it is kept beyond the limits.
    pub(crate) pinned: bool,
}

impl Exchange {
    /// How it went, or that it goes on: attempt 0.
    pub(crate) fn delivered(&self) -> Delivered {
        let last = self.attempts.last();
        let pending = || Outcome::Failed { failure: Failure::Timeout, short: "pending".into() };
        Delivered {
            id: self.id,
            endpoint: self.endpoint.to_string(),
            method: self.request.method.to_string(),
            path: self.request.target.to_string(),
            outcome: last.map_or_else(pending, |last| last.outcome.clone()),
            replay_of: self.replay_of,
            duration: last.map_or(Duration::ZERO, |last| last.duration),
            bytes: self.request.body.size,
            attempt: last.map_or(0, |last| last.number),
            is_wanted: true,
        }
    }

    /// Whether the app did not answer, or with a status of 400 or above, or not to the end.
    pub(crate) fn is_failed(&self) -> bool {
        self.attempts.last().is_some_and(|last| !last.outcome.is_ok())
    }
}

/// A request as received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: PathAndQuery,
    pub(crate) headers: Headers,
    pub(crate) body: Kept,
    pub(crate) trailers: Headers,
}

/// One try to hand a delivery to the app.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attempt {
    /// From 1.
    pub(crate) number: u32,
    /// When this client had the request's head.
    pub(crate) at: Timestamp,
    /// The URL at the app.
    pub(crate) url: String,
    pub(crate) outcome: Outcome,
    /// Why there is no answer, in a sentence; empty else.
    pub(crate) message: String,
    /// How long connecting took; `None` for a kept connection.
    pub(crate) connect: Option<Duration>,
    /// From `at` to the head of the answer.
    pub(crate) first_byte: Option<Duration>,
    /// From `at` to the end.
    pub(crate) duration: Duration,
    /// The app's answer.
    pub(crate) reply: Option<Reply>,
}

/// The app's answer as received.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Headers,
    pub(crate) body: Kept,
    pub(crate) trailers: Headers,
}

/// A body, or as much of its beginning as is kept (1 MiB).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) bytes: Bytes,
    /// The size of the whole body.
    pub(crate) size: u64,
}

impl Kept {
    /// Whether its end is missing.
    pub(crate) const fn is_cut(&self) -> bool {
        self.bytes.len() as u64 != self.size
    }
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
    /// The exchange whose request this one repeats.
    pub replay_of: Option<DeliveryId>,
    /// From the head's arrival to the reply's end.
    pub duration: Duration,
    /// The size of its body.
    pub bytes: u64,
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// Whether the client's filter takes it.
    pub is_wanted: bool,
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
        self.outcome.is_ok()
    }
}

impl Outcome {
    /// Whether it is an answer with a status below 400.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Answered(status) if status.as_u16() < 400)
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A delivery that the app answered with 200 after 12 ms.
    pub(crate) fn exchange() -> Exchange {
        let fields = |fields: &[(&'static str, &'static str)]| -> Headers {
            let field = |(name, value): &(&'static str, &'static str)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
            };
            fields.iter().map(field).collect()
        };
        let kept = |text: &'static str| Kept { bytes: Bytes::from_static(text.as_bytes()), size: text.len() as u64 };
        Exchange {
            seq: 0,
            version: 0,
            id: DeliveryId::now(),
            endpoint: "billing".parse().expect("a name"),
            remote: "203.0.113.9".into(),
            received_at: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("now"),
            http2: false,
            request: Request {
                method: Method::POST,
                target: "/stripe/webhook?x=1".parse().expect("a path"),
                headers: fields(&[("x-id", "7"), ("x-id", "a blank")]),
                body: kept(r#"{"id":"evt_1"}"#),
                trailers: fields(&[("x-sum", "1")]),
            },
            attempts: vec![Attempt {
                number: 1,
                at: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("now"),
                url: "http://localhost:3000/stripe/webhook?x=1".into(),
                outcome: Outcome::Answered(StatusCode::OK),
                message: String::new(),
                connect: None,
                first_byte: Some(Duration::from_millis(11)),
                duration: Duration::from_millis(12),
                reply: Some(Reply {
                    status: StatusCode::OK,
                    headers: fields(&[("content-type", "application/json")]),
                    body: kept(r#"{"received":true}"#),
                    trailers: Headers::default(),
                }),
            }],
            replay_of: None,
            edited: false,
            pinned: false,
        }
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
        events.end();
        assert!(matches!(listener.next().await, Some(Event::Hint { .. })));
        assert!(listener.next().await.is_none());
    }
}
