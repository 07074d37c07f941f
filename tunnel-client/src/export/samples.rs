//! Exchanges for tests.

use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::headers::Headers;
use hookway_protocol::id::DeliveryId;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;

use crate::exchange::{Attempt, Exchange, Kept, Outcome, Reply, Request};

pub(super) fn headers(fields: &[(&str, &[u8])]) -> Headers {
    let field = |&(name, value): &(&str, &[u8])| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        (name, HeaderValue::from_bytes(value).expect("a value"))
    };
    fields.iter().map(field).collect()
}

pub(super) fn kept(bytes: &[u8]) -> Kept {
    Kept { bytes: Bytes::copy_from_slice(bytes), size: bytes.len() as u64 }
}

pub(super) fn exchange(method: &str, target: &str, fields: &[(&str, &[u8])], body: &[u8]) -> Exchange {
    Exchange {
        seq: 7,
        version: 8,
        id: DeliveryId::from_bytes([1; 16]),
        endpoint: "billing".parse().expect("a name"),
        remote: "203.0.113.9".into(),
        received_at: Timestamp::from_microsecond(1_800_000_000_000_001).expect("a time"),
        http2: false,
        request: Request {
            method: Method::from_bytes(method.as_bytes()).expect("a method"),
            target: target.parse().expect("a target"),
            headers: headers(fields),
            body: kept(body),
            trailers: Headers::default(),
        },
        attempts: Vec::new(),
        replay_of: None,
        edited: false,
        pinned: false,
    }
}

pub(super) fn attempt(url: &str, fields: &[(&str, &[u8])], body: &[u8]) -> Attempt {
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
