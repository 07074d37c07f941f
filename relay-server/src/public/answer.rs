//! What the relay itself tells a sender, and with which status: the one place that decides.

use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::head::Failure;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::link::StreamError;
use http::header::{
    CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, Response, StatusCode};

use crate::delivery::{ReplyBody, Undelivered, Unqueued};
use crate::limits::Refusal;
use crate::protection::Barred;
use crate::public::InboundError;

/// Names the delivery to the sender and to the app.
const DELIVERY: HeaderName = HeaderName::from_static("hookway-delivery");

/// Something the relay says itself.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    /// For the metric `refused`.
    pub(super) reason: &'static str,
    text: String,
    retry_after: Option<u64>,
    location: Option<String>,
    /// Ask who it is (RFC 9110 §11.6.1).
    challenge: bool,
    close: bool,
}

/// For a browser: an answer is a page then.
#[derive(Debug)]
pub(super) struct Page {
    /// Whom to write to about abuse.
    pub(super) contact: Option<String>,
}

pub(super) const X_ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");
/// No search engine keeps what a webhook's address says.
pub(super) const NOINDEX: HeaderValue = HeaderValue::from_static("noindex, nofollow");

impl Answer {
    fn new(status: StatusCode, reason: &'static str, text: impl Into<String>) -> Self {
        Self { status, reason, text: text.into(), retry_after: None, location: None, challenge: false, close: false }
    }

    /// The request makes no sense, or two readers could take it differently: the connection ends with it.
    pub(super) fn malformed(text: &'static str) -> Self {
        Self { close: true, ..Self::new(StatusCode::BAD_REQUEST, "malformed", text) }
    }

    pub(super) fn misdirected() -> Self {
        let text = "this connection was made for another host name";
        Self::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", text)
    }

    pub(super) fn unknown_endpoint() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown", "there is no such endpoint on this relay")
    }

    /// In place of an app's page.
    pub(super) fn no_pages() -> Self {
        Self::new(StatusCode::OK, "no_pages", "this relay is for webhooks: it passes no web pages back")
    }

    pub(super) fn to_https(url: String) -> Self {
        let answer = Self::new(StatusCode::PERMANENT_REDIRECT, "redirected", "use https");
        Self { location: Some(url), ..answer }
    }

    pub(super) fn too_large(limit: u64) -> Self {
        let text = format!("the body is over this relay's limit of {limit} bytes");
        Self { close: true, ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text) }
    }

    pub(super) fn head_too_large() -> Self {
        let text = "the header fields are too many or too long for this relay";
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Self { close: true, ..Self::new(status, "head_too_large", text) }
    }

    /// It is on disk, and the client gets it when it can.
    pub(super) fn queued() -> Self {
        Self::new(StatusCode::ACCEPTED, "queued", "queued: the delivery is kept until the client has it")
    }

    /// The client passes on what cannot be an app's answer.
    pub(super) fn no_http() -> Self {
        Self::failed(Failure::BadAnswer, "the client's answer is not HTTP".to_owned())
    }

    pub(super) fn failed(failure: Failure, message: String) -> Self {
        let (status, reason) = match failure {
            // Never a 4xx for an app that is away: some senders disable an endpoint for ever on one.
            Failure::Refused => (StatusCode::SERVICE_UNAVAILABLE, "app_refused"),
            Failure::Busy => (StatusCode::SERVICE_UNAVAILABLE, "client_busy"),
            Failure::Timeout => (StatusCode::GATEWAY_TIMEOUT, "app_timeout"),
            Failure::BadAnswer => (StatusCode::BAD_GATEWAY, "app_bad_answer"),
            Failure::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "client_too_large"),
            Failure::BadRequest => (StatusCode::BAD_REQUEST, "client_bad_request"),
        };
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
        Self { retry_after, ..Self::new(status, reason, message) }
    }

    /// The answer; some are pages for browsers.
    pub(super) fn response(self, id: Option<DeliveryId>, page: Option<Page>) -> Response<ReplyBody> {
        let html = page.and_then(|page| match self.status {
            StatusCode::SERVICE_UNAVAILABLE => Some(away_page(&self.text)),
            StatusCode::NOT_FOUND => Some(unknown_page(page.contact.as_deref())),
            _ => None,
        });
        let is_page = html.is_some();
        let (kind, text) = match html {
            Some(html) => ("text/html; charset=utf-8", html),
            None => ("text/plain; charset=utf-8", self.text + "\n"),
        };
        let mut response = Response::new(ReplyBody::Whole(Some(Bytes::from(text))));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(X_ROBOTS_TAG, NOINDEX);
        if self.challenge {
            let challenge = "Basic realm=\"webhooks\", charset=\"UTF-8\"";
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if is_page {
            let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(location) = self.location.and_then(|url| HeaderValue::try_from(url).ok()) {
            headers.insert(LOCATION, location);
        }
        if let Some(id) = id.and_then(|id| HeaderValue::try_from(id.to_string()).ok()) {
            headers.insert(DELIVERY, id);
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let (reason, text, wait) = match refusal {
            Refusal::Rate(wait) => ("rate", "too many requests in a short time", wait),
            Refusal::Concurrency => ("concurrency", "too many requests at once", Duration::from_secs(1)),
        };
        let retry_after = Some(wait.as_secs().max(1));
        Self { retry_after, ..Self::new(StatusCode::TOO_MANY_REQUESTS, reason, text) }
    }
}

impl From<Barred> for Answer {
    fn from(barred: Barred) -> Self {
        match barred {
            Barred::Address => Self::new(StatusCode::FORBIDDEN, "address", "nothing is taken here from your address"),
            Barred::Path => Self::new(StatusCode::FORBIDDEN, "path", "nothing is taken at this path"),
            Barred::Credentials => {
                let text = "a name and a password are wanted here, and these are none";
                Self { challenge: true, ..Self::new(StatusCode::UNAUTHORIZED, "credentials", text) }
            }
            Barred::Busy => {
                let text = "too many passwords are to be looked at here; try again later";
                let answer = Self::new(StatusCode::SERVICE_UNAVAILABLE, "credentials_busy", text);
                Self { retry_after: Some(5), ..answer }
            }
            Barred::Throttled => {
                let text = "too many wrong passwords came from your address; try again later";
                let answer = Self::new(StatusCode::TOO_MANY_REQUESTS, "credentials_throttled", text);
                Self { retry_after: Some(60), ..answer }
            }
        }
    }
}

impl From<Undelivered> for Answer {
    fn from(error: Undelivered) -> Self {
        let (reason, text) = match error {
            Undelivered::Away | Undelivered::Unsent(_) => {
                ("away", "nobody is connected for this endpoint just now; try again later")
            }
            Undelivered::Lost(StreamError::Aborted | StreamError::Protocol(_)) => {
                let text = "the client gave the delivery up before it answered";
                return Self::new(StatusCode::BAD_GATEWAY, "aborted", text);
            }
            Undelivered::Lost(StreamError::Lost(_) | StreamError::Untaken(_)) | Undelivered::Silent => {
                ("lost", "the client was lost before it answered; try again later")
            }
            Undelivered::TimedOut => {
                return Self::new(StatusCode::GATEWAY_TIMEOUT, "client_timeout", "the client did not answer in time");
            }
            Undelivered::Unqueued(Unqueued::Body(InboundError::TooLarge(limit))) => {
                let text =
                    format!("nobody takes it just now, and the body is over the {limit} bytes that can be queued");
                return Self { close: true, ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text) };
            }
            Undelivered::Body(error) | Undelivered::Unqueued(Unqueued::Body(error)) => return error.into(),
            Undelivered::Unqueued(Unqueued::Full) => {
                ("queue_full", "the client is away and its queue is full; try again later")
            }
            Undelivered::Unqueued(Unqueued::DiskFull) => {
                ("disk_full", "this relay has no room on its disk; try again later")
            }
            Undelivered::Unqueued(Unqueued::Store(_) | Unqueued::Passed | Unqueued::NoKey | Unqueued::Closed) => {
                ("store", "this relay cannot keep the delivery just now; try again later")
            }
        };
        Self { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, text) }
    }
}

impl From<InboundError> for Answer {
    fn from(error: InboundError) -> Self {
        match error {
            InboundError::TooLarge(limit) => Self::too_large(limit),
            InboundError::NoRoom => {
                let text = "this relay has no room for the body just now; try again later";
                let answer = Self::new(StatusCode::SERVICE_UNAVAILABLE, "memory", text);
                Self { close: true, retry_after: Some(5), ..answer }
            }
            InboundError::TooSlow => {
                let text = "the body did not come in time";
                Self { close: true, ..Self::new(StatusCode::REQUEST_TIMEOUT, "slow_body", text) }
            }
            InboundError::Broken(_) => Self::malformed("the body is broken or was cut"),
        }
    }
}

fn away_page(text: &str) -> String {
    let text = escaped(text);
    page(
        "Not connected",
        &format!("<p>{text}.</p><p>If this is your endpoint, start its client: <code>hookway</code></p>"),
    )
}

fn unknown_page(contact: Option<&str>) -> String {
    let abuse = contact.map(|contact| {
        let is_url = contact.starts_with("https://") || contact.starts_with("http://");
        let (scheme, text) = (if is_url { "" } else { "mailto:" }, escaped(contact));
        format!("<p>Was an address of this relay used to harm you? Write to <a href=\"{scheme}{text}\">{text}</a>.</p>")
    });
    let what = "<p>This is a relay that carries webhooks to the machines of developers. No endpoint has this name.</p>\
                <p>If you expected one, start its client: <code>hookway</code></p>";
    page("There is no such endpoint", &[what, abuse.as_deref().unwrap_or_default()].concat())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <meta name=robots content=noindex><title>{title}</title>\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem;\
         color-scheme:light dark}}</style><main><h1>{title}</h1>{body}</main></html>\n"
    )
}
