//! What happened: exchanges, as they are kept and shown.

mod raw;
#[cfg(test)]
pub(crate) mod samples;

use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::head::{Failure, RequestHead};
use hookway_protocol::headers::Headers;
use hookway_protocol::host::EndpointName;
use hookway_protocol::id::DeliveryId;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use jiff::Timestamp;

pub(crate) use raw::{Beginning, RawAttempt, RawBody, Room, encoded};

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
    /// Whether it came out of the relay's queue, at last.
    pub(crate) queued: bool,
    /// What was sent.
    pub(crate) request: Request,
    /// What that is as a webhook.
    pub(crate) webhook: Webhook,
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
            webhook: self.webhook.clone(),
            replay_of: self.replay_of,
            duration: last.map_or(Duration::ZERO, |last| last.duration),
            bytes: self.request.body.size,
            attempt: last.map_or(0, |last| last.number),
            queued: self.queued_for(),
            is_wanted: true,
            is_own: self.is_own(),
        }
    }

    /// How long it was in the queue before its last attempt, if it was.
    pub(crate) fn queued_for(&self) -> Option<Duration> {
        let last = self.attempts.last().filter(|_| self.queued)?;
        Some(Duration::try_from(last.at.duration_since(self.received_at)).unwrap_or_default())
    }

    /// Whether the client answered it in the app's place.
    pub(crate) fn is_own(&self) -> bool {
        let last = self.attempts.last();
        last.is_some_and(|last| matches!(last.outcome, Outcome::Answered(_)) && last.reply.is_none())
    }

    /// Whether the app did not answer, or with a status of 400 or above, or not to the end.
    pub(crate) fn is_failed(&self) -> bool {
        self.attempts.last().is_some_and(|last| !last.outcome.is_ok())
    }
}

/// What a request is as a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Webhook {
    /// Who sent it, as flags name it: `stripe`.
    pub provider: Option<String>,
    /// The kind of event, as the provider names it.
    pub event: Option<String>,
    /// The event's id.
    pub event_id: Option<String>,
    /// What stays the same when the provider sends the same once more.
    pub dedup_id: Option<String>,
    /// Whether its signature is good.
    pub signature: Verdict,
    /// Why not, or what would check it, in a sentence.
    pub detail: Option<String>,
    /// Where the secret is from that made it.
    pub secret: Option<String>,
    /// Whether the app had it with a signature made afresh.
    pub resigned: bool,
    /// The delivery that this one repeats: the provider sent the same event before.
    pub duplicate_of: Option<DeliveryId>,
    /// The provider's patience.
    pub deadline: Option<Duration>,
    /// When the client answered in the app's place, before the deadline.
    pub acked: Option<Duration>,
}

/// What is known of a signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// There is none, or nothing to check it with.
    #[default]
    None = 0,
    /// It was made with a secret that is known here, in time.
    Ok = 1,
    /// It was not.
    Bad = 2,
}

impl Verdict {
    /// The same in a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Bad => "bad",
            Self::None => "none",
        }
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
    /// Whether the body's end had not come, or never did.
    pub(crate) unfinished: bool,
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

/// A body, or as much of its beginning as is kept: 1 MiB, or what there was room for.
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
    /// What it is as a webhook.
    pub webhook: Webhook,
    /// The exchange whose request this one repeats.
    pub replay_of: Option<DeliveryId>,
    /// From the head's arrival to the reply's end.
    pub duration: Duration,
    /// The size of its body.
    pub bytes: u64,
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// How long it was in the relay's queue, if it was.
    pub queued: Option<Duration>,
    /// Whether the client's filter takes it.
    pub is_wanted: bool,
    /// Whether the client answered it by itself, and the app never saw it.
    pub is_own: bool,
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
    /// A delivery that is on its way.
    pub(crate) fn new(head: &RequestHead) -> Self {
        Self {
            id: head.id,
            endpoint: head.endpoint.to_string(),
            method: head.method.to_string(),
            path: head.target.to_string(),
            outcome: Outcome::Failed { failure: Failure::Timeout, short: "pending".into() },
            webhook: Webhook::default(),
            replay_of: None,
            duration: Duration::ZERO,
            bytes: 0,
            attempt: head.attempt,
            queued: head.queued.then(|| since(head.received_at_us)),
            is_wanted: true,
            is_own: false,
        }
    }

    /// This attempt at it is over.
    pub(crate) fn over(&mut self, attempt: &RawAttempt, bytes: u64) {
        (self.outcome, self.duration, self.bytes) = (attempt.outcome.clone(), attempt.duration, bytes);
    }

    /// Whether the app answered with a status below 400.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.outcome.is_ok()
    }
}

/// How long ago that was, by the clock on the wall.
fn since(us: u64) -> Duration {
    let then = std::time::UNIX_EPOCH + Duration::from_micros(us);
    std::time::SystemTime::now().duration_since(then).unwrap_or_default()
}

impl Outcome {
    /// Whether it is an answer with a status below 400.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Answered(status) if status.as_u16() < 400)
    }

    /// The status of the answer, and what went wrong in a word or two.
    pub(crate) fn status_and_error(&self) -> (Option<u16>, Option<&str>) {
        match self {
            Self::Answered(status) => (Some(status.as_u16()), None),
            Self::Cut(status) => (Some(status.as_u16()), Some("cut")),
            Self::Failed { short, .. } => (None, Some(short.as_str())),
        }
    }
}
