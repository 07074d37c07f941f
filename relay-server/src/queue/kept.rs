//! A delivery as the store keeps it, and back.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hookway_protocol::head::{self, RequestHead};
use hookway_protocol::headers::Headers;
use hookway_protocol::seal;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use jiff::Timestamp;
use tokio::time::Instant;

use super::backlog::{Entry, State};
use super::room::Places;
use super::waiting::Waiting;
use crate::delivery::{Body, Delivery, Unqueued};
use crate::store::{MAX_PATH, NewDelivery, Payload, QueuedRow};

/// As much of a method is noted beside a delivery, in bytes.
const MAX_METHOD: usize = 32;

/// What is kept of a whole delivery, for those that `waiting` is for.
pub(super) fn of(
    waiting: &Waiting,
    head: &RequestHead,
    bytes: &Bytes,
    trailers: Option<&HeaderMap>,
) -> Result<(NewDelivery, Payload), Unqueued> {
    let payload = payload(head, bytes, trailers);
    let seal_key = waiting.backlog().queueing().seal_key.clone();
    let mut row = row(waiting, head);
    let payload = if seal_key.is_empty() {
        payload
    } else {
        row.path = waiting.backlog().prefix(&row.path).to_owned();
        sealed(head, &seal_key, payload)?
    };
    row.bytes = (payload.head.len() + payload.body.len() + payload.trailers.len()) as u64;
    Ok((row, payload))
}

/// A delivery as it is kept.
fn payload(head: &RequestHead, body: &Bytes, trailers: Option<&HeaderMap>) -> Payload {
    let (mut encoded, mut encoded_trailers) = (BytesMut::with_capacity(1024), BytesMut::new());
    head.encode(&mut encoded);
    if let Some(trailers) = trailers {
        let list = trailers.iter().map(|(name, value)| (name.clone(), value.clone()));
        head::encode_trailers(&list.collect::<Headers>(), &mut encoded_trailers);
    }
    Payload { head: encoded.freeze(), body: body.clone(), trailers: encoded_trailers.freeze() }
}

/// The same, so that only the holder of the key can read it.
fn sealed(head: &RequestHead, key: &[u8], payload: Payload) -> Result<Payload, Unqueued> {
    let Payload { head: inner, body, trailers } = payload;
    let sealed =
        seal::seal(key, head.id, &seal::Opened { head: inner, trailers, body }).map_err(|_| Unqueued::NoKey)?;
    let outer = RequestHead {
        method: Method::POST,
        target: PathAndQuery::from_static("/"),
        headers: Headers::default(),
        remote: String::new(),
        http2: false,
        sealed: true,
        ..head.clone()
    };
    Ok(self::payload(&outer, &sealed, None))
}

/// What is noted beside it.
fn row(waiting: &Waiting, head: &RequestHead) -> NewDelivery {
    let path = cut(head.target.path(), MAX_PATH).to_owned();
    let received_at = i64::try_from(head.received_at_us).ok().and_then(|at| Timestamp::from_microsecond(at).ok());
    NewDelivery {
        id: head.id,
        endpoint: waiting.id,
        name: waiting.name.clone(),
        listener: waiting.listener.clone(),
        received_at: received_at.unwrap_or_else(Timestamp::now),
        method: cut(head.method.as_str(), MAX_METHOD).to_owned(),
        path,
        bytes: 0,
        attempts: head.attempt.saturating_sub(1),
        handed: head.possible_duplicate,
    }
}

/// The beginning of a text, of so many bytes at most.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=text.len().min(most)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// One of an earlier run, as the backlog knows it.
pub(super) fn entry(row: &QueuedRow, places: Places) -> Entry {
    let NewDelivery { path, bytes, attempts, handed, .. } = &row.delivery;
    // From here on by a clock that does not jump.
    let age = Duration::try_from(Timestamp::now().duration_since(row.since)).unwrap_or_default();
    let now = Instant::now();
    Entry {
        path: path.as_str().into(),
        bytes: *bytes,
        attempts: *attempts,
        handed: *handed,
        marked: *handed,
        since: now.checked_sub(age).unwrap_or(now),
        noted_since: row.since,
        places,
        state: State::Ready,
    }
}

/// The delivery of a payload, as it is handed over; `None` for one that cannot be read.
pub(super) fn delivery(payload: Payload, attempt: u32, possible_duplicate: bool) -> Option<Delivery> {
    let Payload { head, body, trailers } = payload;
    let head = RequestHead::decode(&head).ok()?;
    let decoded = head::decode_trailers(&trailers).ok()?;
    let whole = body.len() <= hookway_protocol::WHOLE_BODY;
    let head = RequestHead { attempt, possible_duplicate, queued: true, whole, ..head };
    let trailers = (!trailers.is_empty()).then(|| decoded.into_map());
    Some(Delivery { head, body: Body::Whole(body, trailers), pass: None, room: None, keep: None })
}
