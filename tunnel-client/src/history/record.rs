//! What a row holds: protobuf messages, since those can be added to, and joined end to end.

use bytes::{Bytes, BytesMut};
use hookway_protocol::head::{self, Failure, ReplyHead, RequestHead};
use hookway_protocol::headers::Headers;
use hookway_protocol::id::DeliveryId;
use http::StatusCode;
use jiff::Timestamp;
use prost::Message;
use std::time::Duration;

use crate::exchange::{
    Attempt, Exchange, Kept, Outcome, RawAttempt, RawBody, Reply, Request, Verdict, Webhook, encoded,
};

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
    /// The attempt that goes on, if one does.
    #[prost(message, optional, tag = "6")]
    pending: Option<PendingHead>,
    /// Whether the end of the request's body has come.
    #[prost(bool, tag = "7")]
    ended: bool,
    #[prost(message, optional, tag = "8")]
    webhook: Option<WebhookHead>,
}

/// What the request is as a webhook.
#[derive(Clone, PartialEq, Message)]
struct WebhookHead {
    #[prost(string, optional, tag = "1")]
    provider: Option<String>,
    #[prost(string, optional, tag = "2")]
    event: Option<String>,
    #[prost(string, optional, tag = "3")]
    event_id: Option<String>,
    #[prost(string, optional, tag = "4")]
    dedup_id: Option<String>,
    /// 0 for none, 1 for ok, 2 for bad.
    #[prost(uint32, tag = "5")]
    signature: u32,
    #[prost(string, optional, tag = "6")]
    detail: Option<String>,
    #[prost(string, optional, tag = "7")]
    secret: Option<String>,
    #[prost(bool, tag = "8")]
    resigned: bool,
    #[prost(bytes = "vec", optional, tag = "9")]
    duplicate_of: Option<Vec<u8>>,
    #[prost(uint64, optional, tag = "10")]
    deadline_us: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    acked_us: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct PendingHead {
    #[prost(int64, tag = "1")]
    at_us: i64,
    #[prost(string, tag = "2")]
    url: String,
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
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(super) id: DeliveryId,
    pub(super) pinned: bool,
    /// Whether somebody goes on with it: no attempt is over.
    pub(super) open: bool,
    pub(super) heads: Bytes,
    pub(super) bodies: Bytes,
}

/// Where records stand one behind the other. Under load thousands of them wait to be written: as many pieces all over
/// the memory would slow everything down.
#[derive(Debug, Default)]
pub(super) struct Shelf(BytesMut);

impl Shelf {
    /// A large one has its own place.
    const LENGTH: usize = 128 << 10;

    fn put(&mut self, message: &impl Message) -> Bytes {
        let size = message.encoded_len();
        if size > Self::LENGTH / 4 {
            return message.encode_to_vec().into();
        }
        if self.0.capacity() < size {
            self.0 = BytesMut::with_capacity(Self::LENGTH);
        }
        message.encode(&mut self.0).expect("it grows");
        self.0.split().freeze()
    }
}

impl Record {
    /// What a row takes in bytes, sealing aside.
    pub(super) fn size(&self) -> usize {
        self.heads.len() + self.bodies.len()
    }

    /// Leaves the bodies out.
    pub(super) fn drop_bodies(&mut self) {
        // A copy, or what is left would hold the place of all.
        self.heads = Bytes::copy_from_slice(&self.heads);
        // Each attempt has its reply's, be it empty.
        let replies = if self.open { vec![] } else { vec![Body::default()] };
        self.bodies = Bodies { request: None, replies }.encode_to_vec().into();
    }

    /// The exchange's request, and the attempt that is over if one is. `head` is the request's, as encoded.
    pub(super) fn new(shelf: &mut Shelf, carried_out: CarriedOut) -> Self {
        let CarriedOut { id, head, request, unfinished, webhook, replay, attempt } = carried_out;
        let (pending, attempt) = match attempt {
            Tried::Pending { at, url } => (Some(PendingHead { at_us: at.as_microsecond(), url }), None),
            Tried::Over(attempt) => (None, Some(attempt)),
        };
        let (heads, bodies) = messages(head, request, replay, attempt);
        let open = pending.is_some();
        let heads = Heads { pending, ended: !unfinished, webhook: Some(webhook.into()), ..heads };
        Self { id, pinned: false, open, heads: shelf.put(&heads), bodies: shelf.put(&bodies) }
    }

    /// A whole exchange, read from elsewhere.
    pub(crate) fn of(exchange: &Exchange) -> Self {
        let request = &exchange.request;
        let body = RawBody::of(&request.body, &request.trailers);
        let replay = Replay { of: exchange.replay_of, edited: exchange.edited };
        let attempts = exchange.attempts.iter().map(RawAttempt::of);
        let (heads, bodies) = messages(head_of(exchange), body, replay, attempts);
        let heads = Heads { ended: !request.unfinished, webhook: Some(exchange.webhook.clone().into()), ..heads };
        Self::encode(exchange.id, exchange.pinned, &heads, &bodies)
    }

    fn encode(id: DeliveryId, pinned: bool, heads: &Heads, bodies: &Bodies) -> Self {
        // Nobody here goes on with it.
        Self { id, pinned, open: false, heads: heads.encode_to_vec().into(), bodies: bodies.encode_to_vec().into() }
    }

    /// What ends an exchange that nobody goes on with: its client was killed. `heads` are what is kept of it.
    pub(super) fn abandoned(id: DeliveryId, heads: &[u8]) -> Result<Self, Unreadable> {
        let heads = Heads::decode(heads).map_err(|_| Unreadable("its heads"))?;
        let head = RequestHead::decode(&heads.request).map_err(|_| Unreadable("the request's head"))?;
        let pending = heads.pending.unwrap_or_default();
        let attempt = RawAttempt {
            number: head.attempt,
            at: timestamp(pending.at_us),
            url: pending.url,
            outcome: Outcome::Failed { failure: Failure::BadAnswer, short: "interrupted".into() },
            message: "the client ended before the app's answer was kept".into(),
            connect: None,
            first_byte: None,
            duration: Duration::ZERO,
            reply: Bytes::new(),
            body: RawBody::default(),
        };
        let (attempt, reply) = attempt.into();
        // Messages that follow each other are one.
        let heads = Heads { attempts: vec![attempt], ..Heads::default() };
        Ok(Self::encode(id, false, &heads, &Bodies { request: None, replies: vec![reply] }))
    }

    /// What is kept already, and then this: attempts are both's, singular fields this one's where it has them.
    pub(super) fn after(&self, heads: &[u8], bodies: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Unreadable> {
        let joined = [heads, &self.heads].concat();
        let mut heads = Heads::decode(&joined[..]).map_err(|_| Unreadable("its heads"))?;
        heads.pending = heads.pending.filter(|_| self.open);
        let before = Bodies::decode(bodies).ok().and_then(|before| before.request);
        let joined = [bodies, &self.bodies].concat();
        let mut bodies = Bodies::decode(&joined[..]).map_err(|_| Unreadable("its bodies"))?;
        // There may have been more room for it before.
        if let (Some(before), Some(request)) = (before, &mut bodies.request)
            && before.bytes.len() > request.bytes.len()
        {
            request.bytes = before.bytes;
        }
        Ok((heads.encode_to_vec(), bodies.encode_to_vec()))
    }

    /// The exchange as it would be read again.
    pub(super) fn exchange(&self) -> Result<Exchange, Unreadable> {
        read(self.heads.clone(), Some(self.bodies.clone()))
    }
}

/// The request's head, as encoded.
pub(super) fn head_of(exchange: &Exchange) -> Bytes {
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
        queued: exchange.queued,
        sealed: false,
    };
    encoded(|out| head.encode(out))
}

/// What was carried out of an exchange.
#[derive(Debug)]
pub(crate) struct CarriedOut {
    pub(crate) id: DeliveryId,
    /// The request's, as encoded.
    pub(crate) head: Bytes,
    pub(crate) request: RawBody,
    /// Whether the end of the request's body has not come.
    pub(crate) unfinished: bool,
    /// What it is as a webhook, as far as that is known.
    pub(crate) webhook: Webhook,
    pub(crate) replay: Replay,
    pub(crate) attempt: Tried,
}

/// An attempt, as far as it has come.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once, and nearly always the large one")]
pub(crate) enum Tried {
    /// It goes on: the request is being put there.
    Pending {
        /// When this client had the request's head.
        at: Timestamp,
        /// The URL at the app; empty as long as that is open.
        url: String,
    },
    /// It is over.
    Over(RawAttempt),
}

fn messages(
    head: Bytes,
    request: RawBody,
    replay: Replay,
    attempts: impl IntoIterator<Item = RawAttempt>,
) -> (Heads, Bodies) {
    let (request_size, replay_of) = (request.size, replay.of.map(|id| id.as_bytes().to_vec()));
    let (attempts, replies) = attempts.into_iter().map(RawAttempt::into).unzip();
    let edited = replay.edited;
    let (pending, webhook) = (None, None);
    let heads = Heads { request: head, request_size, replay_of, edited, attempts, pending, ended: true, webhook };
    (heads, Bodies { request: Some(request.into()), replies })
}

impl From<Webhook> for WebhookHead {
    fn from(webhook: Webhook) -> Self {
        Self {
            provider: webhook.provider,
            event: webhook.event,
            event_id: webhook.event_id,
            dedup_id: webhook.dedup_id,
            signature: webhook.signature as u32,
            detail: webhook.detail,
            secret: webhook.secret,
            resigned: webhook.resigned,
            duplicate_of: webhook.duplicate_of.map(|id| id.as_bytes().to_vec()),
            deadline_us: webhook.deadline.map(micros),
            acked_us: webhook.acked.map(micros),
        }
    }
}

impl From<WebhookHead> for Webhook {
    fn from(head: WebhookHead) -> Self {
        let verdicts = [Verdict::Ok, Verdict::Bad];
        Self {
            provider: head.provider,
            event: head.event,
            event_id: head.event_id,
            dedup_id: head.dedup_id,
            signature: verdicts.into_iter().find(|verdict| *verdict as u32 == head.signature).unwrap_or_default(),
            detail: head.detail,
            secret: head.secret,
            resigned: head.resigned,
            duplicate_of: head.duplicate_of.and_then(|id| Some(DeliveryId::from_bytes(id.try_into().ok()?))),
            deadline: head.deadline_us.map(Duration::from_micros),
            acked: head.acked_us.map(Duration::from_micros),
        }
    }
}

impl From<RawBody> for Body {
    fn from(body: RawBody) -> Self {
        Self { bytes: body.bytes, trailers: body.trailers }
    }
}

impl From<RawAttempt> for (AttemptHead, Body) {
    fn from(attempt: RawAttempt) -> Self {
        let (status, cut, failure, short) = match attempt.outcome {
            Outcome::Answered(status) => (status.as_u16(), false, 0, String::new()),
            Outcome::Cut(status) => (status.as_u16(), true, 0, String::new()),
            Outcome::Failed { failure, short } => (0, false, failure as u32, short),
        };
        let head = AttemptHead {
            number: attempt.number,
            at_us: attempt.at.as_microsecond(),
            url: attempt.url,
            status: status.into(),
            cut,
            failure,
            short,
            message: attempt.message,
            connect_us: attempt.connect.map(micros),
            first_byte_us: attempt.first_byte.map(micros),
            duration_us: micros(attempt.duration),
            reply: attempt.reply,
            reply_size: attempt.body.size,
        };
        (head, attempt.body.into())
    }
}

/// What a replay repeats.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Replay {
    pub(crate) of: Option<DeliveryId>,
    pub(crate) edited: bool,
}

/// A row that does not hold what rows hold.
#[derive(Debug, thiserror::Error)]
#[error("a row of the history cannot be read: {0}")]
pub(crate) struct Unreadable(&'static str);

/// Reads an exchange; without its bodies when they are not given.
pub(super) fn read(heads: Bytes, bodies: Option<Bytes>) -> Result<Exchange, Unreadable> {
    let heads = Heads::decode(heads).map_err(|_| Unreadable("its heads"))?;
    let head = RequestHead::decode(&heads.request).map_err(|_| Unreadable("the request's head"))?;
    let bodies = bodies.map(Bodies::decode).transpose();
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
        queued: head.queued,
        request: Request {
            method: head.method,
            target: head.target,
            headers: head.headers,
            body: request_body,
            trailers: request_trailers,
            unfinished: !heads.ended,
        },
        webhook: heads.webhook.map(Webhook::from).unwrap_or_default(),
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

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_default()
}
