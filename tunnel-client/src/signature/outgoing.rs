//! A request that is to be signed.

use bytes::Bytes;
use hookway_protocol::headers::Headers;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use super::received::Received;
use crate::json;

/// A request on its way to the app.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) headers: Headers,
    /// Scheme and host as the app will see them: some sign the URL.
    pub(crate) origin: String,
    /// Path and query.
    pub(crate) target: PathAndQuery,
    pub(crate) body: Bytes,
}

/// Why a request is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotSign {
    /// The key is of another kind.
    #[error("the provider signs with a key that only it has; make one of your own:  hookway keys create {0}")]
    OtherKey(&'static str),
    /// The body is not what is signed.
    #[error("{0}")]
    Body(&'static str),
}

impl Outgoing {
    /// A request as it came, to the host that it was sent to.
    pub(crate) fn new(headers: Headers, target: PathAndQuery, body: Bytes) -> Self {
        let received = Received { headers: &headers, target: "", body: None, at: jiff::Timestamp::UNIX_EPOCH };
        let origin = received.origin();
        Self { headers, origin, target, body }
    }

    /// The URL as the app will see it.
    pub(crate) fn url(&self) -> String {
        format!("{}{}", self.origin, self.target)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(own, _)| own.as_str() == name)
    }

    /// The first value of that field, if it is text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let value = self.headers.iter().find_map(|(own, value)| (own.as_str() == name).then_some(value));
        value.and_then(|value| value.to_str().ok())
    }

    /// Puts the field in the place of all of its name, or at the end.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.put(&HeaderName::from_static(name), HeaderValue::try_from(value).ok());
    }

    /// The same, where a file names the field.
    pub(crate) fn set_named(&mut self, name: &str, value: &str) {
        if let Ok(name) = HeaderName::try_from(name) {
            self.put(&name, HeaderValue::try_from(value).ok());
        }
    }

    /// The same with a value that is one already; without one all of the name go.
    pub(crate) fn put(&mut self, name: &HeaderName, mut value: Option<HeaderValue>) {
        let old = std::mem::take(&mut self.headers);
        for (own, kept) in old.iter() {
            if own != name {
                self.headers.push(own.clone(), kept.clone());
            } else if let Some(value) = value.take() {
                self.headers.push(name.clone(), value);
            }
        }
        if let Some(value) = value {
            self.headers.push(name.clone(), value);
        }
    }

    /// Puts a JSON value in the place of the one under that key of the body's outermost object; all other bytes stay.
    pub(crate) fn set_in_body(&mut self, key: &str, value: &str) -> bool {
        // Only where it stands already: it is the provider's to say what its bodies have.
        let has = serde_json::from_slice::<std::collections::HashMap<String, serde::de::IgnoredAny>>(&self.body);
        let text = std::str::from_utf8(&self.body).ok().filter(|_| has.is_ok_and(|fields| fields.contains_key(key)));
        let replaced = text.and_then(|text| json::set(text, &[key], value).ok());
        let done = replaced.is_some();
        if let Some(body) = replaced {
            self.body = body.into();
        }
        done
    }

    /// As it would be received.
    pub(crate) fn received(&self, at: jiff::Timestamp) -> Received<'_> {
        Received { headers: &self.headers, target: self.target.as_str(), body: Some(&self.body), at }
    }
}
