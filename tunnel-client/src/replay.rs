//! Puts a kept request to the app again, as it was or edited.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::head::{ReplyHead, RequestHead, encode_trailers};
use hookway_protocol::headers::Headers;
use hookway_protocol::id::DeliveryId;
use http::header::{CONTENT_LENGTH, HOST};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Uri};
use http_body_util::BodyExt;
use jiff::Timestamp;

use crate::exchange::{Delivered, Exchange, Outcome, RawAttempt, RawBody, Room, encoded};
use crate::forwarder::{Forwarder, OutBody, Progress, Route, Settings};
use crate::history::{CarriedOut, FileError, Recorder, Replay, Tried};
use crate::target::Target;

/// An answer that has no end is read for so long.
const READ_FOR: Duration = Duration::from_secs(10);
const REPLAY_OF: HeaderName = HeaderName::from_static("hookway-replay-of");

/// Replays requests.
#[derive(Clone, Debug)]
pub(crate) struct Replayer {
    /// Whose settings hold.
    pub(crate) settings: Settings,
    /// Where requests go that are for no other place; `None`: where they went before.
    pub(crate) forwarder: Option<Arc<Forwarder>>,
    pub(crate) recorder: Recorder,
}

/// What is different from the original.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edits {
    pub(crate) method: Option<Method>,
    /// Path and query.
    pub(crate) target: Option<PathAndQuery>,
    /// All of them.
    pub(crate) headers: Option<Headers>,
    /// Added, or in place of those of the same name.
    pub(crate) more_headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Option<Bytes>,
    /// The app.
    pub(crate) to: Option<Target>,
    /// Nothing is signed afresh.
    pub(crate) no_resign: bool,
    /// As its provider sends it: signed as of now, and without the marks of a repeat.
    pub(crate) as_sent: bool,
}

impl Edits {
    /// Whether the request is another one.
    const fn is_edit(&self) -> bool {
        self.method.is_some()
            || self.target.is_some()
            || self.headers.is_some()
            || self.body.is_some()
            || !self.more_headers.is_empty()
    }
}

/// Why a request cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    /// Its end was not kept.
    #[error("the body is not kept whole")]
    Cut,
    /// Its end had not come.
    #[error("the end of the body did not come")]
    Unfinished,
    /// It was put to no app.
    #[error("the request reached no app, so there is none to put it to again")]
    NoTarget,
    /// Nothing keeps it.
    #[error("the request was sent, but the result cannot be kept")]
    History(#[from] FileError),
}

/// Why a request that is kept cannot be replayed as it is.
pub(crate) fn obstacle(exchange: &Exchange) -> Option<ReplayError> {
    match &exchange.request {
        request if request.unfinished => Some(ReplayError::Unfinished),
        request if request.body.is_cut() => Some(ReplayError::Cut),
        _ => None,
    }
}

impl Replayer {
    /// Puts the request to its app and waits for the end; the new exchange's id, once it is kept.
    pub(crate) async fn replay(&self, original: &Exchange, edits: Edits) -> Result<DeliveryId, ReplayError> {
        if edits.body.is_none()
            && let Some(obstacle) = obstacle(original)
        {
            return Err(obstacle);
        }
        let is_edit = edits.is_edit();
        let (forwarder, target) = self.place(original, &edits)?;
        let id = DeliveryId::now();
        let mut body = edits.body.unwrap_or_else(|| original.request.body.bytes.clone());
        let mut head = RequestHead {
            id,
            received_at_us: micros(Timestamp::now()),
            endpoint: original.endpoint.clone(),
            method: edits.method.unwrap_or_else(|| original.request.method.clone()),
            target,
            headers: edits.headers.unwrap_or_else(|| original.request.headers.clone()),
            remote: original.remote.clone(),
            attempt: original.attempts.last().map_or(1, |last| last.number) + 1,
            possible_duplicate: true,
            whole: true,
            upgrade: None,
            http2: original.http2,
            queued: false,
            sealed: false,
        };
        let as_new = is_edit || edits.as_sent;
        if as_new {
            // Another request, which the app has not seen, or is to take for one.
            (head.attempt, head.possible_duplicate) = (1, false);
        }
        let trailers = Some(original.request.trailers.clone()).filter(|trailers| !trailers.is_empty() && !is_edit);
        // Trailers come after chunks, which have no length.
        let length = trailers.is_none().then_some(body.len());
        head.headers = headers(&head.headers, &edits.more_headers, id, original, length);
        let resigned = !edits.no_resign && forwarder.webhooks.refresh_replay(original, &mut head, &mut body, as_new);
        let (kept, mut delivered) = (encoded(|out| head.encode(out)), Box::new(Delivered::new(&head)));
        delivered.replay_of = Some(original.id);
        delivered.webhook = forwarder.webhooks.examined(&head, &body, resigned, is_edit).await;
        let webhook = delivered.webhook.clone();
        // What the app is told is when the delivery came first.
        head.received_at_us = micros(original.received_at);
        let kept_trailers = trailers.as_ref().map(|trailers| encoded(|out| encode_trailers(trailers, out)));
        let request =
            RawBody { size: body.len() as u64, bytes: body.clone(), trailers: kept_trailers.unwrap_or_default() };
        let body = OutBody::Whole(Some(body), trailers.map(Headers::into_map));
        let attempt = put(&forwarder, head, body, self.recorder.room()).await;
        delivered.over(&attempt, request.size);
        let replay = Replay { of: Some(original.id), edited: is_edit };
        self.recorder.over(delivered, || CarriedOut {
            id,
            head: kept,
            request,
            unfinished: false,
            webhook,
            replay,
            attempt: Tried::Over(attempt),
        });
        if let Some(history) = self.recorder.history() {
            history.written().await?;
        }
        Ok(id)
    }

    /// Who puts the request where, and its path there.
    fn place(&self, original: &Exchange, edits: &Edits) -> Result<(Arc<Forwarder>, PathAndQuery), ReplayError> {
        let path = edits.target.clone().unwrap_or_else(|| original.request.target.clone());
        let to = |target: Target| {
            let settings = Settings { routes: vec![Route::to(target)], ..self.settings.clone() };
            Forwarder::new(settings, self.recorder.events())
        };
        if let Some(target) = &edits.to {
            return Ok((to(target.clone()), path));
        }
        if let Some(forwarder) = &self.forwarder {
            return Ok((forwarder.clone(), path));
        }
        let url = original.attempts.iter().rev().find_map(|attempt| attempt.url.parse::<Uri>().ok());
        let url = url.ok_or(ReplayError::NoTarget)?;
        let origin = url.scheme().zip(url.authority()).map(|(scheme, authority)| format!("{scheme}://{authority}"));
        let target = origin.and_then(|origin| origin.parse().ok()).ok_or(ReplayError::NoTarget)?;
        // As it stood there: a prefix may have been put before it, or taken away.
        let there = url.path_and_query().cloned();
        let path = if edits.target.is_some() { path } else { there.unwrap_or(path) };
        Ok((to(target), path))
    }
}

/// The fields of a replay: its own marks, one host, and a length that holds if it has one.
fn headers(
    headers: &Headers,
    more: &[(HeaderName, HeaderValue)],
    id: DeliveryId,
    original: &Exchange,
    length: Option<usize>,
) -> Headers {
    let text = |text: String| HeaderValue::try_from(text).expect("ids and numbers are fine in header fields");
    let is_mark = |name: &HeaderName| name.as_str().starts_with("hookway-");
    let more = more.iter().filter(|(name, _)| !is_mark(name) && *name != CONTENT_LENGTH);
    let had_length = headers.get(&CONTENT_LENGTH).is_some();
    let kept = headers
        .iter()
        .filter(|(name, _)| !is_mark(name) && **name != CONTENT_LENGTH && !more.clone().any(|(own, _)| own == *name));
    let mut all = Headers::default();
    for (name, value) in kept.map(|(name, value)| (name.clone(), value.clone())).chain(more.clone().cloned()) {
        // Two hosts are none (RFC 9112 §3.2).
        if name != HOST || all.get(&HOST).is_none() {
            all.push(name, value);
        }
    }
    if let (None, Some(host)) = (all.get(&HOST), original.request.headers.get(&HOST)) {
        all.push(HOST, host.clone());
    }
    if let Some(length) = length.filter(|length| had_length || *length > 0) {
        all.push(CONTENT_LENGTH, text(length.to_string()));
    }
    all.push(HeaderName::from_static("hookway-delivery"), text(id.to_string()));
    all.push(REPLAY_OF, text(original.id.to_string()));
    // Of one connection only, should somebody have typed such a field.
    all.into_end_to_end_list()
}

/// The head of a request that no relay took.
pub(crate) fn own_head(method: Method, target: PathAndQuery, headers: Headers) -> RequestHead {
    RequestHead {
        id: DeliveryId::now(),
        received_at_us: 0,
        endpoint: "own".parse().expect("a name"),
        method,
        target,
        headers,
        remote: String::new(),
        attempt: 1,
        possible_duplicate: false,
        whole: true,
        upgrade: None,
        http2: false,
        queued: false,
        sealed: false,
    }
}

/// Puts a request to its app and reads the answer.
pub(crate) async fn put(
    forwarder: &Forwarder,
    head: RequestHead,
    body: OutBody,
    room: Option<&Arc<Room>>,
) -> RawAttempt {
    let (number, progress) = (head.attempt, Progress::new(room));
    let answer = forwarder.forward(head, body, &progress).await;
    let (outcome, message, reply) = match answer {
        Ok(response) => {
            let status = response.status();
            let headers = Headers::end_to_end(response.headers(), None, |_| true);
            let head = encoded(|out| ReplyHead::App { status, headers }.encode(out));
            let mut body = response.into_body();
            let read = async {
                while let Some(frame) = body.frame().await {
                    frame?;
                }
                Ok::<_, hyper::Error>(())
            };
            match tokio::time::timeout(READ_FOR, read).await {
                Ok(Err(error)) => (Outcome::Cut(status), format!("the answer broke off: {error}"), head),
                Err(_) => (Outcome::Answered(status), "the answer went on; its beginning is kept".into(), head),
                Ok(Ok(())) => (Outcome::Answered(status), String::new(), head),
            }
        }
        Err(failed) => (Outcome::Failed { failure: failed.failure, short: failed.short }, failed.message, Bytes::new()),
    };
    progress.over(number, outcome, message, reply)
}

fn micros(at: Timestamp) -> u64 {
    u64::try_from(at.as_microsecond()).unwrap_or(0)
}
