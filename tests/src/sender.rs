//! A sender of webhooks: one request over TLS, its answer.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;

/// A request to an endpoint.
#[derive(Debug)]
pub struct Request {
    pub(crate) endpoint: String,
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: BoxBody<Bytes, std::io::Error>,
    pub(crate) http2: bool,
}

/// A POST.
#[must_use]
pub fn post(endpoint: &str, target: &str) -> Request {
    request(Method::POST, endpoint, target)
}

/// A GET.
#[must_use]
pub fn get(endpoint: &str, target: &str) -> Request {
    request(Method::GET, endpoint, target)
}

/// A request of any method.
#[must_use]
pub fn request(method: Method, endpoint: &str, target: &str) -> Request {
    let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed();
    Request { endpoint: endpoint.into(), method, target: target.into(), headers: HeaderMap::new(), body, http2: false }
}

impl Request {
    /// With this body.
    #[must_use]
    pub fn body(self, bytes: impl Into<Bytes>) -> Self {
        let body = http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed();
        Self { body, ..self }
    }

    /// With a body that comes in pieces, its length not announced.
    #[must_use]
    pub fn stream(self, body: BoxBody<Bytes, std::io::Error>) -> Self {
        Self { body, ..self }
    }

    /// With this header field, too.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name: HeaderName = name.parse().expect("a header name");
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a header value"));
        self
    }

    /// Over HTTP/2.
    #[must_use]
    pub fn http2(self) -> Self {
        Self { http2: true, ..self }
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// Fails the test unless the status is this one.
    ///
    /// # Panics
    /// When it is another.
    #[must_use]
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{:?} {}", self.headers, String::from_utf8_lossy(&self.body));
        self
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
