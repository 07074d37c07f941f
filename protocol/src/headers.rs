//! Header fields as a list: every one, its duplicates too, in the order in which they came.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Header fields in order. Unlike a map it can be built, sent and read without hashing, and it keeps the order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(HeaderName, HeaderValue)>);

impl Headers {
    /// An empty list with room for `capacity` fields.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// `first`, if any, and the end-to-end fields of `map` that `keep` keeps. Fields of one connection only are left out: the fixed ones
    /// and those that `Connection` names (RFC 9110 §7.6.1).
    #[must_use]
    pub fn end_to_end(
        map: &HeaderMap,
        first: Option<(HeaderName, HeaderValue)>,
        keep: impl Fn(&HeaderName) -> bool,
    ) -> Self {
        let named = named(map.get_all(header::CONNECTION).iter());
        let mut fields = Vec::with_capacity(map.len() + 8);
        fields.extend(first);
        for (name, value) in map {
            if !is_of_the_connection(name, &named) && keep(name) {
                fields.push((name.clone(), value.clone()));
            }
        }
        Self(fields)
    }

    /// The end-to-end fields as a map; see [`Self::end_to_end`].
    #[must_use]
    pub fn into_end_to_end(self) -> HeaderMap {
        self.into_end_to_end_list().into_map()
    }

    /// The end-to-end fields in order; see [`Self::end_to_end`].
    #[must_use]
    pub fn into_end_to_end_list(self) -> Self {
        let connection: Vec<HeaderValue> =
            self.iter().filter(|(name, _)| *name == header::CONNECTION).map(|(_, value)| value.clone()).collect();
        let named = named(connection.iter());
        self.0.into_iter().filter(|(name, _)| !is_of_the_connection(name, &named)).collect()
    }

    /// Adds a field at the end.
    pub fn push(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push((name, value));
    }

    /// The first value of that name.
    #[must_use]
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.iter().find_map(|(n, value)| (n == name).then_some(value))
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// How many fields there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same fields as a map, same-named ones grouped in their order.
    #[must_use]
    pub fn into_map(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len());
        for (name, value) in self.0 {
            map.append(name, value);
        }
        map
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Headers {
    fn from_iter<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: T) -> Self {
        Self(fields.into_iter().collect())
    }
}

/// The fields that `Connection` names.
fn named<'a>(connection: impl Iterator<Item = &'a HeaderValue>) -> Vec<&'a str> {
    connection
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        // What a message is and where it goes cannot be taken away by naming it.
        .filter(|name| !["host", "content-length", "content-type"].iter().any(|n| name.eq_ignore_ascii_case(n)))
        .collect()
}

fn is_of_the_connection(name: &HeaderName, named: &[&str]) -> bool {
    hop_by_hop(name) || named.iter().any(|n| n.eq_ignore_ascii_case(name.as_str()))
}

/// Whether a field speaks of one connection and not of the message.
fn hop_by_hop(name: &HeaderName) -> bool {
    const FIXED: [HeaderName; 6] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
    ];
    FIXED.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Whether a trailer may be passed on: never one that frames, routes or authenticates (RFC 9110 §6.5.1).
#[must_use]
pub fn allowed_in_trailers(name: &HeaderName) -> bool {
    const NEVER: [HeaderName; 9] = [
        header::CONTENT_LENGTH,
        header::HOST,
        header::TRAILER,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
    ];
    !hop_by_hop(name) && !NEVER.contains(name) && !is_of_the_relay(name)
}

/// Says that the client answered in the app's place.
pub const ANSWERED_BY: HeaderName = HeaderName::from_static("hookway-answered-by");

/// Whether a field is one that only a relay may set. Underscores are hyphens to many an app.
#[must_use]
pub fn is_of_the_relay(name: &HeaderName) -> bool {
    let name = name.as_str();
    let same = |own: &str| name.len() == own.len() && starts_like(name, own);
    starts_like(name, "x-forwarded-") || starts_like(name, "hookway-") || same("forwarded") || same("x-real-ip")
}

fn starts_like(name: &str, start: &str) -> bool {
    let hyphen = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() >= start.len() && name.bytes().zip(start.bytes()).all(|(a, b)| hyphen(a) == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_end_to_end_fields_pass_in_order() {
        let fields = [
            ("host", "a"),
            ("b-two", "2"),
            ("connection", "keep-alive, X-Once, content-length"),
            ("te", "trailers"),
            ("content-length", "3"),
            ("x-once", "gone"),
            ("b-two", "3"),
            ("a-one", "1"),
        ];
        let map = fields.into_iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        let passed = Headers::end_to_end(&map, None, |name| name != "a-one");
        let names: Vec<_> = passed.iter().map(|(n, v)| (n.as_str(), v.to_str().expect("ASCII"))).collect();
        assert_eq!(names, [("host", "a"), ("b-two", "2"), ("b-two", "3"), ("content-length", "3")]);
    }
}
