//! What a row holds: protobuf messages, since those can be added to, and joined end to end.

use bytes::Bytes;
use hookway_protocol::head::{self, Failure, ReplyHead, RequestHead};
use hookway_protocol::headers::Headers;
use hookway_protocol::id::DeliveryId;
use http::StatusCode;
use jiff::Timestamp;
use prost::Message;
use std::time::Duration;

use crate::exchange::{Attempt, Exchange, Kept, Outcome, Reply, Request};

/// The heads of an exchange: what listing and most filters need.
#[derive(Clone, PartialEq, Message)]
struct Heads {
    /// The request's head as the relay sent it.
    #[prost(bytes = "bytes", tag = "1")]
    request: Bytes,
    #[prost(uint64, tag = "2")]
    request_size: u64,
    #[prost(bytes = "vec", optional, tag = "3")]
    replay_of: Option<Vec<u8>>,
    #[prost(bool, tag = "4")]
    edited: bool,
    #[prost(message, repeated, tag = "5")]
    attempts: Vec<AttemptHead>,
}

#[derive(Clone, PartialEq, Message)]
struct AttemptHead {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(int64, tag = "2")]
    at_us: i64,
    #[prost(string, tag = "3")]
    url: String,
    /// Of the app's answer; 0 for none.
    #[prost(uint32, tag = "4")]
    status: u32,
    #[prost(bool, tag = "5")]
    cut: bool,
    #[prost(uint32, tag = "6")]
    failure: u32,
    #[prost(string, tag = "7")]
    short: String,
    #[prost(string, tag = "8")]
    message: String,
    #[prost(uint64, optional, tag = "9")]
    connect_us: Option<u64>,
    #[prost(uint64, optional, tag = "10")]
    first_byte_us: Option<u64>,
    #[prost(uint64, tag = "11")]
    duration_us: u64,
    /// The answer's head as it went to the relay.
    #[prost(bytes = "bytes", tag = "12")]
    reply: Bytes,
    #[prost(uint64, tag = "13")]
    reply_size: u64,
}

/// Its bodies.
#[derive(Clone, PartialEq, Message)]
struct Bodies {
    #[prost(message, optional, tag = "1")]
    request: Option<Body>,
    /// One for each attempt.
    #[prost(message, repeated, tag = "2")]
    replies: Vec<Body>,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(bytes = "bytes", tag = "1")]
    bytes: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    trailers: Bytes,
}

/// An exchange, or more of one, in the form in which it is kept.
#[derive(Debug)]
pub(crate) struct Record {
    pub(super) id: DeliveryId,
    pub(super) pinned: bool,
    pub(super) heads: Vec<u8>,
    pub(super) bodies: Vec<u8>,
}

impl Record {
    /// What a row takes in bytes, sealing aside.
    pub(super) fn size(&self) -> usize {
        self.heads.len() + self.bodies.len()
    }

    /// The exchange's request, and the attempt that is over if one is. `head` is the request's, as encoded.
    pub(crate) fn new(id: DeliveryId, head: Bytes, request: &Taken, replay: Replay, attempt: Option<&Tried>) -> Self {
        let heads = Heads {
            request: head,
            request_size: request.size,
            replay_of: replay.of.map(|id| id.as_bytes().to_vec()),
            edited: replay.edited,
            attempts: attempt.map(Tried::head).into_iter().collect(),
        };
        let bodies = Bodies {
            request: Some(request.body()),
            replies: attempt.map(|tried| tried.body.body()).into_iter().collect(),
        };
        Self { id, pinned: false, heads: heads.encode_to_vec(), bodies: bodies.encode_to_vec() }
    }

    /// A whole exchange, read from elsewhere.
    pub(crate) fn of(exchange: &Exchange) -> Self {
        let request = &exchange.request;
        let head = RequestHead {
            id: exchange.id,
            received_at_us: u64::try_from(exchange.received_at.as_microsecond()).unwrap_or(0),
            endpoint: exchange.endpoint.clone(),
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            remote: exchange.remote.clone(),
            attempt: 1,
            possible_duplicate: false,
            whole: !request.body.is_cut(),
            upgrade: None,
            http2: exchange.http2,
        };
        let taken = Taken::of(&request.body, &request.trailers);
        let replay = Replay { of: exchange.replay_of, edited: exchange.edited };
        let mut record = Self::new(exchange.id, encoded(|out| head.encode(out)), &taken, replay, None);
        record.pinned = exchange.pinned;
        for attempt in &exchange.attempts {
            record.add(&Tried::of(attempt));
        }
        record
    }

    /// Adds an attempt: messages that follow each other are one.
    fn add(&mut self, tried: &Tried) {
        let heads = Heads { attempts: vec![tried.head()], ..Heads::default() };
        let bodies = Bodies { request: None, replies: vec![tried.body.body()] };
        self.heads.extend(heads.encode_to_vec());
        self.bodies.extend(bodies.encode_to_vec());
    }

    /// What is kept already, and then this. Singular fields are this one's, attempts are both's.
    pub(super) fn after(&self, mut heads: Vec<u8>, mut bodies: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
        heads.extend_from_slice(&self.heads);
        bodies.extend_from_slice(&self.bodies);
        // Anew, or what was overridden would stay.
        let heads = Heads::decode(&heads[..]).map_or(heads, |read| read.encode_to_vec());
        (heads, Bodies::decode(&bodies[..]).map_or(bodies, |read| read.encode_to_vec()))
    }

    /// The exchange as it would be read again.
    pub(super) fn exchange(&self) -> Result<Exchange, Unreadable> {
        read(self.heads.clone(), Some(self.bodies.clone()))
    }
}

/// What a replay repeats.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Replay {
    pub(crate) of: Option<DeliveryId>,
    pub(crate) edited: bool,
}

/// A body that was taken, as far as it is kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) bytes: Bytes,
    pub(crate) size: u64,
    /// As encoded by [`head::encode_trailers`].
    pub(crate) trailers: Bytes,
}

impl Taken {
    fn of(kept: &Kept, trailers: &Headers) -> Self {
        let trailers = encoded(|out| head::encode_trailers(trailers, out));
        Self { bytes: kept.bytes.clone(), size: kept.size, trailers }
    }

    fn body(&self) -> Body {
        Body { bytes: self.bytes.clone(), trailers: self.trailers.clone() }
    }
}

/// An attempt that is over.
#[derive(Clone, Debug)]
pub(crate) struct Tried {
    pub(crate) number: u32,
    pub(crate) at: Timestamp,
    pub(crate) url: String,
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
    pub(crate) connect: Option<Duration>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) duration: Duration,
    /// The answer's head as encoded; empty for none.
    pub(crate) reply: Bytes,
    pub(crate) body: Taken,
}

impl Tried {
    fn of(attempt: &Attempt) -> Self {
        let reply = attempt.reply.as_ref();
        let head = |reply: &Reply| {
            let head = ReplyHead::App { status: reply.status, headers: reply.headers.clone() };
            encoded(|out| head.encode(out))
        };
        Self {
            number: attempt.number,
            at: attempt.at,
            url: attempt.url.clone(),
            outcome: attempt.outcome.clone(),
            message: attempt.message.clone(),
            connect: attempt.connect,
            first_byte: attempt.first_byte,
            duration: attempt.duration,
            reply: reply.map(head).unwrap_or_default(),
            body: reply.map(|reply| Taken::of(&reply.body, &reply.trailers)).unwrap_or_default(),
        }
    }

    fn head(&self) -> AttemptHead {
        let (status, cut, failure, short) = match &self.outcome {
            Outcome::Answered(status) => (status.as_u16(), false, 0, ""),
            Outcome::Cut(status) => (status.as_u16(), true, 0, ""),
            Outcome::Failed { failure, short } => (0, false, *failure as u32, short.as_str()),
        };
        AttemptHead {
            number: self.number,
            at_us: self.at.as_microsecond(),
            url: self.url.clone(),
            status: status.into(),
            cut,
            failure,
            short: short.to_owned(),
            message: self.message.clone(),
            connect_us: self.connect.map(micros),
            first_byte_us: self.first_byte.map(micros),
            duration_us: micros(self.duration),
            reply: self.reply.clone(),
            reply_size: self.body.size,
        }
    }
}

/// A row that does not hold what rows hold.
#[derive(Debug, thiserror::Error)]
#[error("a row of the history cannot be read: {0}")]
pub(crate) struct Unreadable(&'static str);

/// Reads an exchange; without its bodies when they are not given.
pub(super) fn read(heads: Vec<u8>, bodies: Option<Vec<u8>>) -> Result<Exchange, Unreadable> {
    let heads = Heads::decode(Bytes::from(heads)).map_err(|_| Unreadable("its heads"))?;
    let head = RequestHead::decode(&heads.request).map_err(|_| Unreadable("the request's head"))?;
    let bodies = bodies.map(|bodies| Bodies::decode(Bytes::from(bodies))).transpose();
    let bodies = bodies.map_err(|_| Unreadable("its bodies"))?.unwrap_or_default();
    let (request_body, request_trailers) = kept(bodies.request, heads.request_size)?;
    let mut replies = bodies.replies.into_iter();
    let attempts = heads.attempts.into_iter().map(|attempt| attempt.read(replies.next()));
    let replay_of = heads.replay_of.and_then(|id| Some(DeliveryId::from_bytes(id.try_into().ok()?)));
    Ok(Exchange {
        seq: 0,
        version: 0,
        id: head.id,
        endpoint: head.endpoint,
        remote: head.remote,
        received_at: timestamp(i64::try_from(head.received_at_us).unwrap_or(0)),
        http2: head.http2,
        request: Request {
            method: head.method,
            target: head.target,
            headers: head.headers,
            body: request_body,
            trailers: request_trailers,
        },
        attempts: attempts.collect::<Result<_, _>>()?,
        replay_of,
        edited: heads.edited,
        pinned: false,
    })
}

impl AttemptHead {
    fn read(self, body: Option<Body>) -> Result<Attempt, Unreadable> {
        let status = u16::try_from(self.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let failure = [Failure::Refused, Failure::Timeout, Failure::Busy, Failure::TooLarge, Failure::BadRequest];
        let failure = failure.into_iter().find(|failure| *failure as u32 == self.failure);
        let outcome = match status {
            Some(status) if self.cut => Outcome::Cut(status),
            Some(status) => Outcome::Answered(status),
            None => Outcome::Failed { failure: failure.unwrap_or(Failure::BadAnswer), short: self.short },
        };
        let reply = if self.reply.is_empty() { None } else { ReplyHead::decode(&self.reply).ok() };
        let (body, trailers) = kept(body, self.reply_size)?;
        let reply = match reply {
            Some(ReplyHead::App { status, headers }) => Some(Reply { status, headers, body, trailers }),
            _ => None,
        };
        Ok(Attempt {
            number: self.number,
            at: timestamp(self.at_us),
            url: self.url,
            outcome,
            message: self.message,
            connect: self.connect_us.map(Duration::from_micros),
            first_byte: self.first_byte_us.map(Duration::from_micros),
            duration: Duration::from_micros(self.duration_us),
            reply,
        })
    }
}

fn kept(body: Option<Body>, size: u64) -> Result<(Kept, Headers), Unreadable> {
    let body = body.unwrap_or_default();
    let trailers = head::decode_trailers(&body.trailers).map_err(|_| Unreadable("trailers"))?;
    Ok((Kept { bytes: body.bytes, size }, trailers))
}

/// The bytes that `encode` writes.
pub(crate) fn encoded(encode: impl FnOnce(&mut bytes::BytesMut)) -> Bytes {
    let mut out = bytes::BytesMut::new();
    encode(&mut out);
    out.freeze()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_default()
}
