//! What the relay itself tells a sender, and with which status: the one place that decides.

use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::head::Failure;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::link::StreamError;
use http::header::{
    CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, Response, StatusCode};

use crate::delivery::{ReplyBody, Undelivered, Unqueued};
use crate::limits::Refusal;
use crate::public::InboundError;

/// Names the delivery to the sender and to the app.
pub(super) const DELIVERY: HeaderName = HeaderName::from_static("hookway-delivery");

/// Something the relay says itself.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    /// For the metric `refused`.
    pub(super) reason: &'static str,
    text: String,
    retry_after: Option<u64>,
    location: Option<String>,
    close: bool,
}

impl Answer {
    fn new(status: StatusCode, reason: &'static str, text: impl Into<String>) -> Self {
        Self { status, reason, text: text.into(), retry_after: None, location: None, close: false }
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

    /// The answer, as a page for browsers.
    pub(super) fn response(self, id: Option<DeliveryId>, browser: bool) -> Response<ReplyBody> {
        let page = browser && self.status == StatusCode::SERVICE_UNAVAILABLE;
        let (kind, text) = if page {
            ("text/html; charset=utf-8", away_page(&self.text))
        } else {
            ("text/plain; charset=utf-8", self.text + "\n")
        };
        let mut response = Response::new(ReplyBody::Whole(Some(Bytes::from(text))));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if page {
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
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <meta name=robots content=noindex><title>Not connected</title>\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem;\
         color-scheme:light dark}}</style><h1>Not connected</h1><p>{text}.</p>\
         <p>If this is your endpoint, start its client: <code>hookway</code></p></html>\n"
    )
}
