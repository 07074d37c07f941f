//! A delivery as a provider's file looks at it.

use hookway_protocol::headers::Headers;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use serde::Deserialize;

use crate::exchange::Exchange;

/// A delivery as the relay received it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) headers: &'a Headers,
    /// Path and query, raw.
    pub(crate) target: &'a str,
    /// `None` when it is passing by.
    pub(crate) body: Option<&'a [u8]>,
    /// When the relay had its head.
    pub(crate) at: Timestamp,
}

impl<'a> From<&'a Exchange> for Received<'a> {
    fn from(exchange: &'a Exchange) -> Self {
        let Exchange { request, received_at, .. } = exchange;
        let body = Some(&request.body.bytes[..]);
        Self { headers: &request.headers, target: request.target.as_str(), body, at: *received_at }
    }
}

/// What a delivery is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// The kind of event: `charge.succeeded`.
    pub(crate) event: Option<String>,
    /// The event's id.
    pub(crate) id: Option<String>,
    /// What stays the same when the provider sends the same once more.
    pub(crate) dedup: Option<String>,
}

impl Named {
    /// Of an event whose id stays the same over its retries.
    pub(crate) fn new(event: Option<String>, id: Option<String>) -> Self {
        Self { event, dedup: id.clone(), id }
    }

    /// The same with an end to each name: they come from outside.
    pub(crate) fn bounded(self) -> Self {
        let bounded = |text: Option<String>| {
            let text = text.filter(|text| !text.is_empty())?;
            Some(text.chars().take(200).collect())
        };
        Self { event: bounded(self.event), id: bounded(self.id), dedup: bounded(self.dedup) }
    }
}

impl<'a> Received<'a> {
    /// The first value of that field, if it is text.
    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        let value = self.headers.iter().find_map(|(own, value)| (own.as_str() == name).then_some(value))?;
        std::str::from_utf8(value.as_bytes()).ok()
    }

    /// The same, as one's own.
    pub(crate) fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    /// Whether there is such a field.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(own, _)| own.as_str() == name)
    }

    /// The body read as JSON, as far as it is asked for.
    pub(crate) fn json<T: Deserialize<'a>>(&self) -> Option<T> {
        serde_json::from_slice(self.body?).ok()
    }

    /// Whether the body is a form.
    pub(crate) fn is_form(&self) -> bool {
        let kind = self.headers.get(&CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        const FORM: &[u8] = b"application/x-www-form-urlencoded";
        kind.get(..FORM.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(FORM))
    }

    /// Scheme and host that it was sent to: https unless the relay took it without.
    pub(crate) fn origin(&self) -> String {
        let host = self.text("host").unwrap_or_default();
        let plain = self.text("x-forwarded-proto").is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"));
        format!("{}://{host}", if plain { "http" } else { "https" })
    }
}

/// A form has so many fields at most; more are not read.
pub(super) const MOST_PAIRS: usize = 10_000;

/// Whether a form has more fields than are read.
pub(super) fn has_many(text: &[u8]) -> bool {
    text.iter().filter(|byte| **byte == b'&').count() >= MOST_PAIRS
}

/// The pairs of a form or query, decoded (WHATWG URL, `application/x-www-form-urlencoded` parsing).
pub(crate) fn pairs(text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |pair: &[u8]| {
        let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (decoded(&pair[..at]), decoded(pair.get(at + 1..).unwrap_or_default()))
    };
    text.split(|byte| *byte == b'&').filter(|part| !part.is_empty()).take(MOST_PAIRS).map(pair).collect()
}

fn decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        at += 1;
        out.push(match byte {
            b'+' => b' ',
            b'%' => match (digit(text.get(at)), digit(text.get(at + 1))) {
                (Some(high), Some(low)) => {
                    at += 2;
                    // Two digits of four bits.
                    (high << 4 | low) as u8
                }
                _ => b'%',
            },
            byte => *byte,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let read = |text: &str| {
            pairs(text.as_bytes())
                .into_iter()
                .map(|(name, value)| {
                    (String::from_utf8_lossy(&name).into_owned(), String::from_utf8_lossy(&value).into_owned())
                })
                .collect::<Vec<_>>()
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            read("a=1&b=%F0%9F%8E%89+x&&c&d=%zz%4"),
            [pair("a", "1"), pair("b", "🎉 x"), pair("c", ""), pair("d", "%zz%4")]
        );
    }
}
