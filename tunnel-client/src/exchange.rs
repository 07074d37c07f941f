//! What happened: the events that a client tells whoever listens.

use std::time::Duration;

use hookway_protocol::head::Failure;
use hookway_protocol::id::DeliveryId;
use http::StatusCode;

use crate::tunnel::Welcomed;

/// Something a person or a script may want to know.
#[derive(Clone, Debug)]
pub enum Event {
    /// The session is up. The first one makes the client ready.
    Up(Welcomed),
    /// The session is gone; the client is trying to come back.
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
