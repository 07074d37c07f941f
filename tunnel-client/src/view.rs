//! Exchanges in JSON: what the inspector's API and the commands print.

use std::borrow::Cow;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::content::Content;
use crate::exchange::{Attempt, Exchange, Reply};
use crate::mask::{self, Secrets};
use crate::replay;

/// An exchange as a list shows it.
pub(crate) fn summary(exchange: &Exchange, secrets: Secrets) -> Value {
    let (request, webhook) = (&exchange.request, &exchange.webhook);
    let last = exchange.attempts.last();
    let (status, error) = last.map_or((None, None), |last| last.outcome.status_and_error());
    let kind = request.headers.get(&CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
    json!({
        "id": exchange.id.to_string(),
        "seq": exchange.seq,
        "version": exchange.version,
        "endpoint": exchange.endpoint.as_str(),
        "method": request.method.as_str(),
        "path": shown(request.target.as_str(), secrets),
        "remote": exchange.remote,
        "received_at": micros(exchange.received_at),
        "state": if last.is_some() { "done" } else { "pending" },
        "status": status,
        "error": error,
        "ok": last.is_none_or(|last| last.outcome.is_ok()),
        "duration_ms": last.and_then(|last| took(last.duration)),
        "bytes": request.body.size,
        "reply_bytes": last.and_then(|last| last.reply.as_ref()).map_or(0, |reply| reply.body.size),
        "attempt": last.map_or(0, |last| last.number),
        "attempts": exchange.attempts.len(),
        "content_type": kind,
        "provider": webhook.provider,
        "event_type": webhook.event,
        "event_id": webhook.event_id,
        "signature": webhook.signature.as_str(),
        "signature_detail": webhook.detail,
        "signature_secret": webhook.secret,
        "resigned": webhook.resigned,
        "replay_of": exchange.replay_of.map(|id| id.to_string()),
        "edited": exchange.edited,
        "duplicate_of": webhook.duplicate_of.map(|id| id.to_string()),
        "deadline_ms": webhook.deadline.map(millis),
        "acked_ms": webhook.acked.map(millis),
        "queued_ms": exchange.queued_for().map(millis),
        "pinned": exchange.pinned,
    })
}

/// All of an exchange.
pub(crate) fn detail(exchange: &Exchange, secrets: Secrets) -> Value {
    let request = &exchange.request;
    let last = exchange.attempts.last();
    let client_at = exchange.attempts.first().map(|first| first.at);
    let transit = client_at.map(|at| (at.as_microsecond() - exchange.received_at.as_microsecond()) as f64 / 1000.0);
    let obstacle = replay::obstacle(exchange);
    json!({
        "summary": summary(exchange, secrets),
        "http": if exchange.http2 { "2" } else { "1.1" },
        "request": {
            "method": request.method.as_str(),
            "path": shown(request.target.as_str(), secrets),
            "headers": mask::rows(&request.headers, secrets),
            "trailers": mask::rows(&request.trailers, secrets),
            "body": Content::of(&request.headers, &request.body),
        },
        "attempts": exchange.attempts.iter().map(|attempt| self::attempt(attempt, secrets)).collect::<Vec<_>>(),
        "timings": {
            "relay_received_at": micros(exchange.received_at),
            "client_received_at": client_at.map(micros),
            // A replay comes from no relay.
            "relay_to_client_ms": transit.filter(|_| exchange.replay_of.is_none()),
            "queued_ms": exchange.queued_for().map(millis),
            "connect_ms": last.and_then(|last| last.connect).map(millis),
            "first_byte_ms": last.and_then(|last| last.first_byte).map(millis),
            "done_ms": last.and_then(|last| took(last.duration)),
            "deadline_ms": exchange.webhook.deadline.map(millis),
            "acked_ms": exchange.webhook.acked.map(millis),
        },
        "can_replay": obstacle.is_none(),
        "why_not": obstacle.map(|obstacle| obstacle.to_string()),
    })
}

fn attempt(attempt: &Attempt, secrets: Secrets) -> Value {
    let (status, error) = attempt.outcome.status_and_error();
    json!({
        "number": attempt.number,
        "at": micros(attempt.at),
        "url": shown(&attempt.url, secrets),
        "state": "done",
        "status": status,
        "error": error,
        "message": Some(&attempt.message).filter(|message| !message.is_empty()),
        "connect_ms": attempt.connect.map(millis),
        "first_byte_ms": attempt.first_byte.map(millis),
        "duration_ms": took(attempt.duration),
        "reply": attempt.reply.as_ref().map(|reply| self::reply(reply, secrets)),
    })
}

fn reply(reply: &Reply, secrets: Secrets) -> Value {
    json!({
        "status": reply.status.as_u16(),
        "headers": mask::rows(&reply.headers, secrets),
        "trailers": mask::rows(&reply.trailers, secrets),
        "body": Content::of(&reply.headers, &reply.body),
    })
}

/// A path or URL, its query's secrets masked or not.
pub(crate) fn shown(target: &str, secrets: Secrets) -> Cow<'_, str> {
    match secrets {
        Secrets::Masked => mask::target(target),
        Secrets::Shown => target.into(),
    }
}

/// How long an attempt took; unknown of one whose end nobody saw.
pub(crate) fn took(duration: Duration) -> Option<f64> {
    (!duration.is_zero()).then(|| millis(duration))
}

/// With three digits behind the point.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1000.0
}

/// RFC 3339 with microseconds.
pub(crate) fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
