//! What a request says: the host that it is for, and what the client is told of it.

use std::time::SystemTime;

use hookway_protocol::head::RequestHead;
use hookway_protocol::headers::{Headers, is_of_the_relay};
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::id::DeliveryId;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use super::answer::Answer;
use super::origin::{Origin, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};

/// The host that the request is for. Whatever two readers could take differently is refused (RFC 9112 §3.2).
pub(super) fn host(request: &Request<Incoming>) -> Result<Host<'_>, Answer> {
    let malformed = |_| Answer::malformed("the Host is not a host name");
    if request.method() == Method::CONNECT {
        return Err(Answer::malformed("this is no proxy"));
    }
    if request.uri().scheme().is_none() && request.uri().authority().is_some() {
        return Err(Answer::malformed("the target is no path"));
    }
    let (mut field, mut lengths, mut encodings) = (None, 0, 0);
    for (name, value) in request.headers() {
        if !is_a_field(name, value) {
            return Err(Answer::malformed("a header field is broken"));
        }
        match *name {
            header::HOST if field.replace(value).is_some() => return Err(Answer::malformed("more than one Host")),
            header::CONTENT_LENGTH => lengths += 1,
            header::TRANSFER_ENCODING if value.as_bytes().eq_ignore_ascii_case(b"chunked") => encodings += 1,
            header::TRANSFER_ENCODING => encodings += 2,
            _ => {}
        }
    }
    if encodings > 1 {
        return Err(Answer::malformed("the only transfer encoding taken is chunked"));
    }
    if lengths > 1 {
        return Err(Answer::malformed("more than one Content-Length"));
    }
    let field = field.map(|value| value.to_str().map_err(|_| Answer::malformed("the Host is not a host name")));
    let field = field.transpose()?.map(Host::parse).transpose().map_err(malformed)?;
    let authority = request.uri().authority().map(|authority| Host::parse(authority.as_str())).transpose();
    match (authority.map_err(malformed)?, field) {
        (Some(authority), Some(field)) if authority != field => Err(Answer::malformed("two different hosts")),
        // HTTP/1.1 wants a Host even beside an absolute target.
        (Some(authority), field) if field.is_some() || request.version() == Version::HTTP_2 => Ok(authority),
        (None, Some(field)) => Ok(field),
        _ => Err(Answer::malformed("the Host is missing")),
    }
}

/// Whether a field is one by RFC 9110 §5; HTTP/2 lets more through.
fn is_a_field(name: &HeaderName, value: &HeaderValue) -> bool {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    name.iter().all(token) && !blank(value.first()) && !blank(value.last())
}

/// What the client is told of the request.
pub(super) fn head(
    origin: &Origin<'_>,
    id: DeliveryId,
    endpoint: &EndpointName,
    request: &Request<Incoming>,
) -> Result<RequestHead, Answer> {
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let asterisk = target == "*" && request.method() == Method::OPTIONS;
    if !asterisk && !target.as_str().starts_with('/') {
        return Err(Answer::malformed("the target is no path"));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let head = RequestHead {
        id,
        received_at_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
        endpoint: endpoint.clone(),
        method: request.method().clone(),
        target,
        headers: forwarded(origin, request),
        remote: origin.node.text.clone(),
        attempt: 1,
        possible_duplicate: false,
        whole: false,
        upgrade: upgrade(request),
        http2: request.version() == Version::HTTP_2,
        queued: false,
        sealed: false,
    };
    head.fits().then_some(head).ok_or_else(Answer::head_too_large)
}

/// The request's own fields, and the truth about where it came from in place of what the sender says of that.
fn forwarded(origin: &Origin<'_>, request: &Request<Incoming>) -> Headers {
    let fields = request.headers();
    // HTTP/2 has the host in :authority; the app is to find it where it looks.
    let authority = || HeaderValue::from_str(request.uri().authority()?.as_str()).ok();
    let (host, missing) = match fields.get(header::HOST) {
        Some(host) => (Some(host.clone()), None),
        None => (authority(), authority()),
    };
    let mut headers =
        Headers::end_to_end(fields, missing.map(|host| (header::HOST, host)), |name| !is_of_the_relay(name));
    if request.headers().get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        headers.push(header::TE, HeaderValue::from_static("trailers"));
    }
    let proto = if origin.https { "https" } else { "http" };
    let node = &origin.node;
    headers.push(X_FORWARDED_FOR, node.chain.clone());
    headers.push(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    if let Some(host) = host {
        let text = host.to_str().unwrap_or_default();
        let forwarded = ["for=", &node.quoted, ";host=\"", text, "\";proto=", proto, &node.proxies].concat();
        if let Ok(forwarded) = HeaderValue::try_from(forwarded) {
            headers.push(header::FORWARDED, forwarded);
        }
        headers.push(X_FORWARDED_HOST, host);
    }
    headers
}

/// The protocols that an HTTP/1.1 request asks to upgrade to (RFC 9110 §7.8).
fn upgrade(request: &Request<Incoming>) -> Option<String> {
    let headers = request.headers();
    let asked = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked = asked.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let body = request.body().size_hint().exact() != Some(0);
    if !asked || body || request.version() != Version::HTTP_11 {
        return None;
    }
    let protocols = headers.get(header::UPGRADE)?.to_str().ok()?;
    // HTTP/2 over plain text is negotiated otherwise; an app must not be talked into it behind our back.
    let h2c = protocols.split(',').any(|protocol| protocol.trim().to_ascii_lowercase().starts_with("h2c"));
    (!h2c).then(|| protocols.to_owned())
}
