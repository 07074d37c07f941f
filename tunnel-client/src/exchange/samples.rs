//! Exchanges for tests.

use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::headers::Headers;
use hookway_protocol::id::DeliveryId;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;

use super::{Attempt, Exchange, Kept, Outcome, Reply, Request, Verdict, Webhook};

pub(crate) fn headers(fields: &[(&str, &[u8])]) -> Headers {
    let field = |&(name, value): &(&str, &[u8])| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        (name, HeaderValue::from_bytes(value).expect("a value"))
    };
    fields.iter().map(field).collect()
}

pub(crate) fn kept(bytes: &[u8]) -> Kept {
    Kept { bytes: Bytes::copy_from_slice(bytes), size: bytes.len() as u64 }
}

/// A request that was put to nobody yet.
pub(crate) fn request(method: &str, target: &str, fields: &[(&str, &[u8])], body: &[u8]) -> Exchange {
    Exchange {
        seq: 7,
        version: 8,
        id: DeliveryId::from_bytes([1; 16]),
        endpoint: "billing".parse().expect("a name"),
        remote: "203.0.113.9".into(),
        received_at: Timestamp::from_microsecond(1_800_000_000_000_001).expect("a time"),
        http2: false,
        queued: false,
        request: Request {
            method: Method::from_bytes(method.as_bytes()).expect("a method"),
            target: target.parse().expect("a target"),
            headers: headers(fields),
            body: kept(body),
            trailers: Headers::default(),
            unfinished: false,
        },
        webhook: Webhook::default(),
        attempts: Vec::new(),
        replay_of: None,
        edited: false,
        pinned: false,
    }
}

/// One that the app answered.
pub(crate) fn attempt(url: &str, fields: &[(&str, &[u8])], body: &[u8]) -> Attempt {
    let reply =
        Reply { status: StatusCode::CREATED, headers: headers(fields), body: kept(body), trailers: Headers::default() };
    Attempt {
        number: 1,
        at: Timestamp::from_microsecond(1_800_000_000_001_234).expect("a time"),
        url: url.into(),
        outcome: Outcome::Answered(reply.status),
        message: String::new(),
        connect: Some(Duration::from_micros(300)),
        first_byte: Some(Duration::from_micros(11_000)),
        duration: Duration::from_micros(12_400),
        reply: Some(reply),
    }
}

/// A delivery of its own that the app answered with 200 after 12 ms.
pub(crate) fn exchange() -> Exchange {
    let fields: [(&str, &[u8]); 2] = [("x-id", b"7"), ("x-id", b"a blank")];
    let now = || Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("now");
    let mut exchange = request("POST", "/stripe/webhook?x=1", &fields, br#"{"id":"evt_1"}"#);
    exchange.request.trailers = headers(&[("x-sum", b"1")]);
    let url = "http://localhost:3000/stripe/webhook?x=1";
    let mut attempt = attempt(url, &[("content-type", b"application/json")], br#"{"received":true}"#);
    (attempt.at, attempt.duration) = (now(), Duration::from_millis(12));
    attempt.outcome = Outcome::Answered(StatusCode::OK);
    if let Some(reply) = &mut attempt.reply {
        reply.status = StatusCode::OK;
    }
    let text = |text: &str| Some(text.to_owned());
    let webhook = Webhook {
        provider: text("stripe"),
        event: text("charge.succeeded"),
        event_id: text("evt_1"),
        dedup_id: text("evt_1"),
        signature: Verdict::Ok,
        detail: None,
        secret: text("STRIPE_WEBHOOK_SECRET"),
        resigned: true,
        duplicate_of: Some(DeliveryId::from_bytes([2; 16])),
        deadline: Some(Duration::from_secs(10)),
        acked: Some(Duration::from_millis(8000)),
    };
    let (id, received_at) = (DeliveryId::now(), now());
    Exchange { seq: 0, version: 0, id, received_at, webhook, attempts: vec![attempt], ..exchange }
}
