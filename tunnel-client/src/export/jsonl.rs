//! JSON lines: one exchange a line, with every byte of it.

use std::io::{self, Write};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hookway_protocol::head::Failure;
use hookway_protocol::headers::Headers;
use hookway_protocol::id::DeliveryId;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::exchange::{Attempt, Exchange, Kept, Outcome, Reply, Request, Verdict, Webhook};
use crate::harmless;
use crate::mask::{self, MASK, Secrets};

/// The version of the format: a reader takes every line of its own or an older one.
const VERSION: u32 = 1;

/// Why a line is no exchange.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {what}")]
pub(crate) struct JsonlError {
    /// From 1, in bytes; 0 when it is not about a place.
    pub(crate) column: usize,
    pub(crate) what: String,
}

/// An exchange from a line.
#[derive(Clone, Debug)]
pub(crate) struct Imported {
    pub(crate) exchange: Exchange,
    /// Whether masks stand in the place of secrets, so that it must not be replayed.
    pub(crate) masked: bool,
}

/// Writes the exchange as a line.
pub(crate) fn write(exchange: &Exchange, secrets: Secrets, out: &mut dyn Write) -> io::Result<()> {
    let mut masker = Masker { secrets, masked: false };
    let mut line = Line::of(exchange, &mut masker);
    line.masked = masker.masked;
    harmless::json(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// Reads a line. Fields that are not known are skipped, missing ones have their default.
pub(crate) fn read(line: &str) -> Result<Imported, JsonlError> {
    if line.trim_start().starts_with('[') {
        // Which could stand for an object, field by field.
        return Err(JsonlError { column: 0, what: "a line is an object".into() });
    }
    let line: Line = serde_json::from_str(line).map_err(|e| {
        let what = e.to_string();
        let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what).to_owned();
        JsonlError { column: e.column(), what }
    })?;
    if line.hookway > VERSION {
        let what = format!("format {} is newer than this program, which reads up to {VERSION}", line.hookway);
        return Err(JsonlError { column: 0, what });
    }
    let masked = line.masked;
    let exchange = line.into_exchange().map_err(|what| JsonlError { column: 0, what })?;
    Ok(Imported { exchange, masked })
}

/// The endpoint of a request that names none.
fn imported() -> String {
    "imported".into()
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(default = "version")]
    hookway: u32,
    #[serde(default)]
    masked: bool,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    id: Option<String>,
    #[serde(default = "imported")]
    endpoint: String,
    #[serde(default)]
    remote: String,
    #[serde(default)]
    received_at: Time,
    #[serde(default)]
    http2: bool,
    #[serde(default)]
    queued: bool,
    #[serde(default)]
    replay_of: Option<String>,
    #[serde(default)]
    edited: bool,
    #[serde(default)]
    pinned: bool,
    #[serde(default)]
    request: RequestLine,
    #[serde(default)]
    webhook: WebhookLine,
    #[serde(default)]
    attempts: Vec<AttemptLine>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct WebhookLine {
    provider: Option<String>,
    event: Option<String>,
    event_id: Option<String>,
    dedup_id: Option<String>,
    signature: String,
    detail: Option<String>,
    secret: Option<String>,
    resigned: bool,
    duplicate_of: Option<String>,
    deadline_ns: Option<Nanos>,
    acked_ns: Option<Nanos>,
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct RequestLine {
    method: String,
    path: String,
    headers: Fields,
    body: Body,
    trailers: Fields,
    /// The body's end had not come.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unfinished: bool,
}

impl Default for RequestLine {
    fn default() -> Self {
        let (headers, body, trailers) = Default::default();
        Self { method: "POST".into(), path: "/".into(), headers, body, trailers, unfinished: false }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct AttemptLine {
    number: u32,
    at: Time,
    url: String,
    outcome: OutcomeLine,
    message: String,
    connect_ns: Option<Nanos>,
    first_byte_ns: Option<Nanos>,
    duration_ns: Nanos,
    reply: Option<ReplyLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum OutcomeLine {
    Answered { status: u16 },
    Cut { status: u16 },
    Failed { failure: String, short: String },
}

impl Default for OutcomeLine {
    fn default() -> Self {
        Self::Failed { failure: "bad_answer".into(), short: "unknown".into() }
    }
}

#[derive(Serialize, Deserialize)]
struct ReplyLine {
    status: u16,
    #[serde(default)]
    headers: Fields,
    #[serde(default)]
    body: Body,
    #[serde(default)]
    trailers: Fields,
}

type Fields = Vec<(String, Octets)>;

/// What is kept of a body.
#[derive(Default, Serialize, Deserialize)]
struct Body {
    /// The whole body's size; that of the bytes when it is missing.
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    bytes: Octets,
}

/// Bytes: as a string when they are UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Octets {
    Text(String),
    Base64 { base64: String },
}

impl Default for Octets {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Octets {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64 { base64: STANDARD.encode(bytes) },
        }
    }

    fn into_bytes(self) -> Result<Vec<u8>, String> {
        match self {
            Self::Text(text) => Ok(text.into_bytes()),
            Self::Base64 { base64 } => STANDARD.decode(base64).map_err(|e| format!("not base64: {e}")),
        }
    }
}

/// A time, written in RFC 3339 with microseconds.
#[derive(Deserialize)]
struct Time(Timestamp);

impl Default for Time {
    fn default() -> Self {
        Self(Timestamp::UNIX_EPOCH)
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.0))
    }
}

/// A duration in nanoseconds: whole numbers come back from JSON as they were, fractions may not.
#[derive(Default, Serialize, Deserialize)]
struct Nanos(u64);

impl Nanos {
    fn of(duration: Duration) -> Self {
        Self(duration.as_nanos().try_into().unwrap_or(u64::MAX))
    }

    const fn duration(&self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

const fn version() -> u32 {
    VERSION
}

/// Masks, and remembers whether there was anything to mask.
struct Masker {
    secrets: Secrets,
    masked: bool,
}

impl Masker {
    fn fields(&mut self, headers: &Headers) -> Fields {
        let field = |(name, value): (&HeaderName, &HeaderValue)| {
            let secret = self.secrets == Secrets::Masked && mask::is_secret(name);
            self.masked |= secret;
            let value = if secret { Octets::Text(MASK.into()) } else { Octets::of(value.as_bytes()) };
            (name.to_string(), value)
        };
        headers.iter().map(field).collect()
    }

    fn url(&mut self, url: &str) -> String {
        if self.secrets == Secrets::Shown {
            return url.to_owned();
        }
        let masked = mask::url(url);
        self.masked |= masked != url;
        masked.into_owned()
    }
}

impl Line {
    fn of(exchange: &Exchange, masker: &mut Masker) -> Self {
        Self {
            hookway: VERSION,
            masked: false,
            seq: exchange.seq,
            version: exchange.version,
            id: Some(exchange.id.to_string()),
            endpoint: exchange.endpoint.to_string(),
            remote: exchange.remote.clone(),
            received_at: Time(exchange.received_at),
            http2: exchange.http2,
            queued: exchange.queued,
            replay_of: exchange.replay_of.map(|id| id.to_string()),
            edited: exchange.edited,
            pinned: exchange.pinned,
            webhook: WebhookLine::of(&exchange.webhook),
            request: RequestLine {
                method: exchange.request.method.to_string(),
                path: masker.url(exchange.request.target.as_str()),
                headers: masker.fields(&exchange.request.headers),
                body: Body::of(&exchange.request.body),
                trailers: masker.fields(&exchange.request.trailers),
                unfinished: exchange.request.unfinished,
            },
            attempts: exchange.attempts.iter().map(|attempt| AttemptLine::of(attempt, masker)).collect(),
        }
    }

    fn into_exchange(self) -> Result<Exchange, String> {
        let id = |id: String| id.parse::<DeliveryId>().map_err(|e| format!("{id}: {e}"));
        let request = self.request;
        Ok(Exchange {
            seq: self.seq,
            version: self.version,
            id: self.id.map_or_else(|| Ok(DeliveryId::now()), id)?,
            endpoint: self.endpoint.parse().map_err(|e| format!("{}: {e}", self.endpoint))?,
            remote: self.remote,
            received_at: self.received_at.0,
            http2: self.http2,
            queued: self.queued,
            request: Request {
                method: Method::from_bytes(request.method.as_bytes()).map_err(|_| "a bad method")?,
                target: request.path.parse().map_err(|_| "a bad path")?,
                headers: headers(request.headers)?,
                body: request.body.into_kept()?,
                trailers: headers(request.trailers)?,
                unfinished: request.unfinished,
            },
            attempts: self.attempts.into_iter().map(AttemptLine::into_attempt).collect::<Result<_, _>>()?,
            replay_of: self.replay_of.map(id).transpose()?,
            edited: self.edited,
            pinned: self.pinned,
            webhook: self.webhook.into_webhook()?,
        })
    }
}

impl WebhookLine {
    fn of(webhook: &Webhook) -> Self {
        let webhook = webhook.clone();
        Self {
            provider: webhook.provider,
            event: webhook.event,
            event_id: webhook.event_id,
            dedup_id: webhook.dedup_id,
            signature: webhook.signature.as_str().into(),
            detail: webhook.detail,
            secret: webhook.secret,
            resigned: webhook.resigned,
            duplicate_of: webhook.duplicate_of.map(|id| id.to_string()),
            deadline_ns: webhook.deadline.map(Nanos::of),
            acked_ns: webhook.acked.map(Nanos::of),
        }
    }

    fn into_webhook(self) -> Result<Webhook, String> {
        let id = |id: String| id.parse::<DeliveryId>().map_err(|e| format!("{id}: {e}"));
        let verdict = [Verdict::Ok, Verdict::Bad].into_iter().find(|verdict| verdict.as_str() == self.signature);
        Ok(Webhook {
            provider: self.provider,
            event: self.event,
            event_id: self.event_id,
            dedup_id: self.dedup_id,
            signature: verdict.unwrap_or_default(),
            detail: self.detail,
            secret: self.secret,
            resigned: self.resigned,
            duplicate_of: self.duplicate_of.map(id).transpose()?,
            deadline: self.deadline_ns.map(|ns| ns.duration()),
            acked: self.acked_ns.map(|ns| ns.duration()),
        })
    }
}

impl AttemptLine {
    fn of(attempt: &Attempt, masker: &mut Masker) -> Self {
        let reply = attempt.reply.as_ref().map(|reply| ReplyLine {
            status: reply.status.as_u16(),
            headers: masker.fields(&reply.headers),
            body: Body::of(&reply.body),
            trailers: masker.fields(&reply.trailers),
        });
        Self {
            number: attempt.number,
            at: Time(attempt.at),
            url: masker.url(&attempt.url),
            outcome: match &attempt.outcome {
                Outcome::Answered(status) => OutcomeLine::Answered { status: status.as_u16() },
                Outcome::Cut(status) => OutcomeLine::Cut { status: status.as_u16() },
                Outcome::Failed { failure, short } => {
                    OutcomeLine::Failed { failure: name_of(*failure).into(), short: short.clone() }
                }
            },
            message: attempt.message.clone(),
            connect_ns: attempt.connect.map(Nanos::of),
            first_byte_ns: attempt.first_byte.map(Nanos::of),
            duration_ns: Nanos::of(attempt.duration),
            reply,
        }
    }

    fn into_attempt(self) -> Result<Attempt, String> {
        let reply = |reply: ReplyLine| {
            Ok::<_, String>(Reply {
                status: status(reply.status)?,
                headers: headers(reply.headers)?,
                body: reply.body.into_kept()?,
                trailers: headers(reply.trailers)?,
            })
        };
        Ok(Attempt {
            number: self.number,
            at: self.at.0,
            url: self.url,
            outcome: match self.outcome {
                OutcomeLine::Answered { status: code } => Outcome::Answered(status(code)?),
                OutcomeLine::Cut { status: code } => Outcome::Cut(status(code)?),
                OutcomeLine::Failed { failure, short } => {
                    let found = FAILURES.into_iter().find(|(_, name)| *name == failure);
                    let (failure, _) = found.ok_or_else(|| format!("{failure:?} is no failure"))?;
                    Outcome::Failed { failure, short }
                }
            },
            message: self.message,
            connect: self.connect_ns.map(|ns| ns.duration()),
            first_byte: self.first_byte_ns.map(|ns| ns.duration()),
            duration: self.duration_ns.duration(),
            reply: self.reply.map(reply).transpose()?,
        })
    }
}

impl Body {
    fn of(kept: &Kept) -> Self {
        Self { size: Some(kept.size), bytes: Octets::of(&kept.bytes) }
    }

    fn into_kept(self) -> Result<Kept, String> {
        let bytes = self.bytes.into_bytes()?;
        let size = self.size.unwrap_or(bytes.len() as u64);
        if size < bytes.len() as u64 {
            return Err("a body is larger than its size".into());
        }
        Ok(Kept { bytes: bytes.into(), size })
    }
}

const FAILURES: [(Failure, &str); 6] = [
    (Failure::Refused, "refused"),
    (Failure::Timeout, "timeout"),
    (Failure::BadAnswer, "bad_answer"),
    (Failure::Busy, "busy"),
    (Failure::TooLarge, "too_large"),
    (Failure::BadRequest, "bad_request"),
];

fn name_of(failure: Failure) -> &'static str {
    FAILURES.into_iter().find_map(|(f, name)| (f == failure).then_some(name)).unwrap_or_default()
}

fn status(code: u16) -> Result<StatusCode, String> {
    StatusCode::from_u16(code).map_err(|_| format!("{code} is no status"))
}

fn headers(fields: Fields) -> Result<Headers, String> {
    let field = |(name, value): (String, Octets)| {
        let bad = |what: &str| format!("{name:?} is a header field with a bad {what}");
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("name"))?;
        Ok((parsed, HeaderValue::from_bytes(&value.into_bytes()?).map_err(|_| bad("value"))?))
    };
    fields.into_iter().map(field).collect::<Result<Headers, String>>()
}

#[cfg(test)]
mod tests;
