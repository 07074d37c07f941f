//! Who may ask: this machine's user, by the page itself or a script; not a web page of somebody else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use hookway_protocol::host::Host;
use http_body_util::{BodyExt, Limited};

use super::Context;
use super::api::Refused;

/// The page runs nothing but its own files, and nothing frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
/// As much of a body that is refused is still taken, within this time.
const MAX_UNREAD: usize = 64 << 10;
const UNREAD_IN: Duration = Duration::from_secs(1);
const TOKEN: HeaderName = HeaderName::from_static("hookway-token");
const FETCH_SITE: &str = "sec-fetch-site";
const FETCH_MODE: &str = "sec-fetch-mode";

/// Lets a request through or refuses it, and guards the answer.
pub(super) async fn guard(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    let mut response = match check(&context, &request) {
        Ok(None) => next.run(request).await,
        Ok(Some(response)) => response,
        Err(reason) => {
            // What is closed with something unread is reset, and the answer lost with it.
            let unread = Limited::new(request.into_body(), MAX_UNREAD).collect();
            let _ = tokio::time::timeout(UNREAD_IN, unread).await;
            Refused::new(StatusCode::FORBIDDEN, reason).into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// What is answered instead, if not the request's own answer.
fn check(context: &Context, request: &Request) -> Result<Option<Response>, &'static str> {
    let headers = request.headers();
    let host = text(headers, &header::HOST).unwrap_or_default();
    if !is_own(context, host) {
        // Another name that leads here is DNS rebinding.
        return Err("reach the inspector as localhost or by its address");
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let of_api = request.uri().path().starts_with("/api");
    if let Some(origin) = text(headers, &header::ORIGIN)
        && origin.strip_prefix("http://") != Some(host)
    {
        return Err("a page of another origin asks");
    }
    match headers.get(FETCH_SITE).map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => {}
        // A link to the page may be followed.
        Some(_) if reads && !of_api && headers.get(FETCH_MODE).is_some_and(|mode| mode == "navigate") => {}
        Some(_) => return Err("a page of another site asks"),
    }
    if !context.address.ip().is_loopback()
        && let Some(answer) = from_afar(context, request)?
    {
        return Ok(Some(answer));
    }
    if !reads {
        let token = text(headers, &TOKEN).unwrap_or_default();
        if !same(token, &context.token) {
            return Err("changes need the header Hookway-Token, with the token of GET /api/status");
        }
        let kind = text(headers, &header::CONTENT_TYPE).map(|kind| kind.split(';').next().unwrap_or_default().trim());
        let has_body = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
            || headers.contains_key(header::TRANSFER_ENCODING);
        if has_body && !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
            return Err("a body is application/json");
        }
    }
    Ok(None)
}

/// Whether the host named is this one: anything else is another site's name that was made to lead here.
fn is_own(context: &Context, host: &str) -> bool {
    let port = host.rsplit_once(':').filter(|_| !host.ends_with(']')).and_then(|(_, port)| port.parse::<u16>().ok());
    let Ok(name) = Host::parse(host) else { return false };
    let name = name.as_str();
    let ip = name.trim_matches(['[', ']']).parse::<IpAddr>();
    let known = match ip {
        // An address is no name that could be made to lead elsewhere; from afar the token tells.
        Ok(ip) => ip.is_loopback() || !context.address.ip().is_loopback(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    };
    known && port.unwrap_or(80) == context.address.port()
}

/// Others than this machine show the token: once in the URL, then as a cookie; or as a bearer token.
fn from_afar(context: &Context, request: &Request) -> Result<Option<Response>, &'static str> {
    const NAME: &str = "hookway-inspector";
    let headers = request.headers();
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookie =
        cookies.flat_map(|value| value.split(';')).find_map(|pair| pair.trim().strip_prefix(NAME)?.strip_prefix('='));
    let bearer = text(headers, &header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    if [cookie, bearer].into_iter().flatten().any(|token| same(token, &context.token)) {
        return Ok(None);
    }
    let asked = request.uri().query().and_then(|query| query.strip_prefix("token="));
    if request.uri().path() == "/" && asked.is_some_and(|token| same(token, &context.token)) {
        let cookie = format!("{NAME}={}; HttpOnly; SameSite=Strict; Path=/", context.token);
        return Ok(Some(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()));
    }
    Err("this inspector is open to other machines and wants its token: open the URL that hookway has printed")
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Compared in constant time.
fn same(one: &str, other: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}
