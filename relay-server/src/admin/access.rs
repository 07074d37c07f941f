//! Who may use the admin API, and what is written of what was refused.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header, request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Admin;
use crate::auth::{Scope, Token};
use crate::limits::{Address, Throttle};
use crate::metrics;
use crate::protection::decode;
use crate::store::{By, Note, Store, StoreError, TokenRow, Via};

/// Wrong tokens from one address before it is not heard for a while, and what is noted of one actor's refused requests.
const MAX_FAILURES: u32 = 10;
const MAX_NOTED: u32 = 60;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// What is sent to the API is smaller.
const MAX_BODY: usize = 256 << 10;
const DRAINED_IN: Duration = Duration::from_secs(1);
/// As much is noted of what was asked for.
const MAX_NOTE: usize = 200;

/// Knows who asks.
#[derive(Debug)]
pub(crate) struct Access {
    failures: Throttle<Address>,
    /// By who asks; strangers are one.
    noted: Throttle<Arc<str>>,
}

impl Default for Access {
    fn default() -> Self {
        let noted = Throttle::new(MAX_NOTED, FAILURE_WINDOW);
        Self { failures: Throttle::new(MAX_FAILURES, FAILURE_WINDOW), noted }
    }
}

/// Why something was not done.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    status: StatusCode,
    reason: String,
    retry_after: Option<u64>,
}

impl Refused {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), retry_after: None }
    }

    /// There is no such thing.
    pub(super) fn unknown(what: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what} `{}`", short(name)))
    }

    /// What was asked for cannot be.
    pub(super) fn wrong(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, reason)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(json!({"error": self.reason}))).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        // For the audit log.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let why = format!("{:#}", anyhow::Error::new(error));
        tracing::error!(why, "the admin API cannot use the store");
        Self { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }
}

/// Whoever has an admin token: the store, acted on by him.
#[derive(Clone, Debug)]
pub(super) struct Operator(pub(super) Arc<dyn Store>);

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Refused> {
        let operator = parts.extensions.get::<Self>().cloned();
        operator.ok_or_else(|| Refused::new(StatusCode::UNAUTHORIZED, "a token is wanted"))
    }
}

/// Lets nobody pass without a token that is for what he asks, and notes what was refused.
pub(super) async fn guard(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), format!("/api{}", short(request.uri().path())));
    let is_change = !matches!(method, Method::GET | Method::HEAD);
    let (by, may_change, response) = match admitted(&admin, peer, &method, request.headers()).await {
        Ok(by) => {
            request.extensions_mut().insert(Operator(admin.store.acting(by.clone())));
            (by, is_change, next.run(request).await)
        }
        Err((by, refused)) => {
            drain(request).await;
            (by, false, refused.into_response())
        }
    };
    let Some(Refused { status, reason, .. }) = response.extensions().get() else { return response };
    metrics::count(&admin.metrics.admin_refused, class(*status));
    let is_worth_it = match *status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => false,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::UNPROCESSABLE_ENTITY => true,
        _ => is_change,
    };
    // Nobody pushes the changes out of the log with what he may not do, or only looks at.
    let who = if *status == StatusCode::UNAUTHORIZED { Arc::from("") } else { by.actor.clone() };
    if is_worth_it && (may_change || !admin.access.noted.is_blocked(&who, Instant::now())) {
        admin.access.noted.failed(who, Instant::now());
        let note = Note::refused("api", format!("{method} {path}"), format!("{}: {reason}", status.as_u16()));
        tracing::warn!(actor = %by.actor, what = %note.target, why = %note.detail, "the admin API refused something");
        if let Err(error) = admin.store.acting(by).note(note).await {
            tracing::error!(%error, "what was refused cannot be noted in the audit log");
        }
    }
    response
}

/// Takes what a refused peer still sends, if it is small and comes soon: what is closed with something unread is reset,
/// and the answer lost with it.
pub(super) async fn drain(request: Request) {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let _ = tokio::time::timeout(DRAINED_IN, body).await;
}

const fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "unauthorized",
        403 => "forbidden",
        404 => "unknown",
        422 => "wrong",
        429 => "throttled",
        503 => "store",
        _ => "other",
    }
}

/// Who it is, if he may do this; as far as is known, if not.
async fn admitted(admin: &Admin, peer: SocketAddr, method: &Method, headers: &HeaderMap) -> Result<By, (By, Refused)> {
    let address = Address::from(peer.ip());
    let stranger = || By::new(&peer.ip().to_string(), Via::Api);
    if admin.access.failures.is_blocked(&address, Instant::now()) {
        let reason = "too many wrong tokens from this address; try again in a minute";
        let refused = Refused { retry_after: Some(60), ..Refused::new(StatusCode::TOO_MANY_REQUESTS, reason) };
        return Err((stranger(), refused));
    }
    let Some(authorization) = headers.get(header::AUTHORIZATION) else {
        let reason = "a token is wanted: Authorization: Bearer hwt_…; make one with hookway-relay token create \
                      --name NAME --scope admin";
        return Err((stranger(), Refused::new(StatusCode::UNAUTHORIZED, reason)));
    };
    let shown = authorization.to_str().ok().and_then(|value| value.split_once(' '));
    let token = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let token = token.and_then(|(_, token)| token.trim().parse::<Token>().ok());
    let row = match &token {
        Some(token) => admin.store.token(token.hash()).await.map_err(|error| (stranger(), error.into()))?,
        None => None,
    };
    let Some(row) = row.filter(TokenRow::is_valid) else {
        admin.access.failures.failed(address, Instant::now());
        let reason = "the token is unknown, expired or revoked";
        return Err((stranger(), Refused::new(StatusCode::UNAUTHORIZED, reason)));
    };
    let by = By::new(&row.name, Via::Api);
    let reason = match row.scope {
        Scope::Admin => return Ok(by),
        Scope::Read if matches!(*method, Method::GET | Method::HEAD) => return Ok(by),
        Scope::Read => "this token may look, and change nothing; make one with --scope admin",
        Scope::Client => "this token is a client's; make one with --scope admin or read",
    };
    Err((by, Refused::new(StatusCode::FORBIDDEN, reason)))
}

/// A body in JSON.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Admin>> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, admin: &Arc<Admin>) -> Result<Self, Refused> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        if kind.as_deref() != Some("application/json") {
            return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a body is application/json"));
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let body = tokio::time::timeout(admin.patience.load().body_timeout, body).await;
        let body = body.map_err(|_| Refused::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
        let bytes = body
            .map_err(|_| Refused::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {MAX_BODY} bytes")))?;
        let bytes = bytes.to_bytes();
        // A list would be taken for the object's values in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(Refused::wrong("the body cannot be used: a JSON object is wanted"));
        }
        let read = serde_json::from_slice(&bytes);
        read.map(Self).map_err(|error| Refused::wrong(format!("the body cannot be used: {}", without_values(&error))))
    }
}

/// What stands after the `?`.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Refused> {
        let read = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        read.map(|query| Self(query.0)).map_err(|error| Refused::wrong(without_quotes(&error.body_text())))
    }
}

/// The part of the path that names something.
#[derive(Debug)]
pub(super) struct Path(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, Refused> {
        let read = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        read.map(|path| Self(path.0)).map_err(|_| Refused::new(StatusCode::NOT_FOUND, "there is no such thing"))
    }
}

/// No such path.
pub(super) async fn nothing() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "there is nothing at this path; GET /api/openapi.json tells what there is")
}

/// No such method on a path.
pub(super) async fn no_method(_: Request<Body>) -> Result<Infallible, Refused> {
    Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method"))
}

/// What is wrong with a body, without what stands there: it may be a secret that stands in the wrong place.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    without_quotes(&text)
}

fn without_quotes(text: &str) -> String {
    text.rsplit_once(", expected ").map_or_else(|| text.to_owned(), |(_, expected)| format!("expected {expected}"))
}

/// A text from outside, as much of it as a person needs; of a token nothing.
fn short(text: &str) -> String {
    let decoded = decode(text.as_bytes()).unwrap_or_default();
    if text.contains("hwt_") || String::from_utf8_lossy(&decoded).contains("hwt_") {
        return "… (a token's secret stood here)".to_owned();
    }
    text.chars().take(MAX_NOTE).flat_map(char::escape_debug).collect()
}
