//! One request: which endpoint it is for, whether it may pass, and its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use arc_swap::ArcSwap;
use hookway_protocol::head::RequestHead;
use hookway_protocol::headers::Headers;
use hookway_protocol::host::Host;
use hookway_protocol::id::DeliveryId;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use super::Config;
use super::answer::{Answer, NOINDEX, Page, X_ROBOTS_TAG};
use super::inbound::{Inbound, InboundLimits};
use super::origin::Origin;
use super::request::{head, host};
use super::sender::{Sender, Written};
use crate::access_log::{AccessLog, Line, milliseconds};
use crate::certs::Certs;
use crate::delivery::{Body, Delivery, Reply, ReplyBody};
use crate::metrics::{self, Metrics, Up};
use crate::protection::Barred;
use crate::queue::Queue;
use crate::relay;
use crate::shutdown::Shutdown;
use crate::trace::{Span, Tracer};
use crate::tunnel::{Endpoint, Registry};

/// Answers requests.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) domain: Host<'static>,
    /// The port of the URL that plain HTTP is redirected to.
    pub(crate) https_port: u16,
    pub(crate) registry: Arc<Registry>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) certs: Arc<Certs>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: Shutdown,
    pub(crate) access_log: Option<Arc<AccessLog>>,
    pub(crate) tracer: Arc<Tracer>,
}

/// Marks the relay's answer for what it has queued: an app may say the same.
#[derive(Clone, Copy, Debug)]
struct Queued;

/// What browsers show as a page of the host it came from.
const PAGES: [&str; 3] = ["text/html", "application/xhtml+xml", "image/svg+xml"];

impl Handler {
    /// The answer to one request: the app's, or the relay's own.
    pub(super) async fn answer(
        &self,
        sender: &Arc<Sender>,
        request: Request<Incoming>,
    ) -> (Response<ReplyBody>, Option<Box<Written>>) {
        self.metrics.requests.inc();
        let id = DeliveryId::now();
        let browser = request.method() == Method::GET && accepts_html(request.headers());
        let mut written = self.access_log.as_ref().map(|log| Self::begun(log, id, &request));
        let span = self.tracer.begin(id, request.method(), request.headers());
        let line = written.as_deref_mut().map(|written| &mut written.line);
        let answer = self.deliver(sender, id, request, span.as_ref(), line).await;
        let mut refused = None;
        let response = answer.unwrap_or_else(|answer| {
            metrics::count(&self.metrics.refused, answer.reason);
            refused = Some(answer.reason);
            if let Some(written) = &mut written {
                written.line.reason = refused;
            }
            let page = browser.then(|| Page { contact: self.config.load().abuse_contact.clone() });
            answer.response(Some(id), page)
        });
        if let Some(Written { line, since, .. }) = written.as_deref_mut() {
            line.status = response.status().as_u16();
            line.first_byte_ms = milliseconds(since.elapsed());
            if response.extensions().get::<Queued>().is_some() {
                line.reason = Some("queued");
            }
        }
        if let Some(span) = span {
            span.end(response.status().as_u16(), refused);
        }
        (response, written)
    }

    /// What the access log says of a request that has begun.
    fn begun(log: &Arc<AccessLog>, id: DeliveryId, request: &Request<Incoming>) -> Box<Written> {
        let line = Line {
            at: Timestamp::now(),
            id: id.to_string(),
            method: Line::plain(request.method().as_str()),
            path: Line::plain(request.uri().path()),
            http: match request.version() {
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2",
                _ => "1.1",
            },
            request_bytes: request.body().size_hint().exact(),
            ..Line::default()
        };
        let is_bodiless = request.method() == Method::HEAD;
        Box::new(Written { log: log.clone(), line, since: Instant::now(), is_bodiless })
    }

    /// Delivers a request, and says in its line who has sent it whereto.
    async fn deliver(
        &self,
        sender: &Arc<Sender>,
        id: DeliveryId,
        mut request: Request<Incoming>,
        span: Option<&Span>,
        line: Option<&mut Line>,
    ) -> Result<Response<ReplyBody>, Answer> {
        let started = Instant::now();
        let config = self.config.load_full();
        let origin = Origin::of(sender, request.headers(), &config.trusted_proxy);
        let host = host(&request);
        if let Some(line) = line {
            line.remote.clone_from(&origin.node.text);
            if let Ok(host) = &host {
                line.host = host.to_string();
                line.endpoint = self.endpoint(host).map(|endpoint| endpoint.name.to_string());
            }
        }
        let host = host?;
        // What a trusted proxy says to us is no word of the sender's.
        if let Some(Some(tls)) = sender.tls.as_ref().filter(|_| !sender.is_proxy)
            && *tls != host
        {
            return Err(Answer::misdirected());
        }
        if sender.tls.is_none()
            && request.method() == Method::GET
            && let Some(text) = self.certs.http_challenge(request.uri().path())
        {
            return Ok(Response::new(ReplyBody::Whole(Some(text.into()))));
        }
        let (endpoint, max_body) = self.admitted(&host, &origin, &request, &config).await?;
        if let Some(span) = span {
            span.carry_on(request.headers_mut());
        }
        let head = head(&origin, id, &endpoint.name, &request)?;
        let asked = head.upgrade.clone();
        let to_head = request.method() == Method::HEAD;
        let switched = asked.is_some().then(|| hyper::upgrade::on(&mut request));
        let _in_flight = Up::new(&self.metrics.in_flight);
        let limits = InboundLimits { max_body, timeout: config.body_timeout, min_rate: config.min_body_rate };
        let reply = self.reply(sender, endpoint, head, request.into_body(), limits).await?;
        self.metrics.first_byte.observe(started.elapsed().as_secs_f64());
        match (reply, switched) {
            (Reply::App(status, headers, body), _) => {
                let headers = outgoing(status, headers, &body, to_head).ok_or_else(Answer::no_http)?;
                self.metrics.replies.count(status);
                if let ReplyBody::Whole(Some(bytes)) = &body {
                    self.metrics.reply_bytes.inc_by(bytes.len() as u64);
                }
                let mut response = Response::new(body);
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                Ok(published(response, &config))
            }
            (Reply::Switched(headers, stream, pass), Some(switched)) => {
                let response = switching(headers, &asked.unwrap_or_default()).ok_or_else(Answer::no_http)?;
                self.metrics.replies.count(response.status());
                // It has its places until it ends.
                let (close, held) = (self.shutdown.close.clone(), (pass, sender.clone()));
                self.shutdown.work.spawn(async move {
                    let _held = held;
                    if let Ok(upgraded) = switched.await {
                        let joined = stream.join(TokioIo::new(upgraded));
                        let _ = close.run_until_cancelled(joined).await;
                    }
                });
                Ok(response)
            }
            (Reply::Switched(..), None) => Err(Answer::no_http()),
            (Reply::Failed(failure, message), _) => Err(Answer::failed(failure, message)),
            (Reply::Queued, _) => {
                let mut response = Answer::queued().response(Some(id), None);
                response.extensions_mut().insert(Queued);
                Ok(response)
            }
        }
    }

    /// The endpoint that a request is for, if it may pass, and how large its body may be.
    async fn admitted(
        &self,
        host: &Host<'_>,
        origin: &Origin<'_>,
        request: &Request<Incoming>,
        config: &Config,
    ) -> Result<(Arc<Endpoint>, u64), Answer> {
        if !origin.https && !config.http_serve {
            // Only to names that are ours: a redirect to anywhere is a phisher's tool.
            let ours = *host == self.domain || host.below(&self.domain).is_some() || self.registry.at(host).is_some();
            return Err(if ours { self.to_https(host, request) } else { Answer::unknown_endpoint() });
        }
        let ip = origin.node.ip;
        // First: who is denied learns no names.
        if config.deny.iter().any(|source| source.has(ip)) {
            return Err(Barred::Address.into());
        }
        let endpoint = self.endpoint(host).ok_or_else(Answer::unknown_endpoint)?;
        let guard = endpoint.guard();
        guard.check(ip, request.uri().path(), request.headers().get(header::AUTHORIZATION)).await?;
        let max_body = guard.protection.max_body.unwrap_or(u64::MAX).min(config.max_body);
        let fits = request.body().size_hint().lower() <= max_body;
        fits.then_some((endpoint, max_body)).ok_or_else(|| Answer::too_large(max_body))
    }

    /// Delivers. A body that is announced as small is read whole first, and such a delivery carried out even when the
    /// sender hangs up, which drops this future; a larger one, or one of unknown length, streams.
    async fn reply(
        &self,
        sender: &Arc<Sender>,
        endpoint: Arc<Endpoint>,
        head: RequestHead,
        body: Incoming,
        limits: InboundLimits,
    ) -> Result<Reply, Answer> {
        if head.upgrade.is_some() {
            let pass = Some(endpoint.enter()?);
            let delivery = Delivery { head, body: Body::Upgrade, pass, room: None, keep: None };
            return Ok(relay::deliver(&self.queue, &endpoint, delivery).await?);
        }
        let announced = body.size_hint().exact();
        let inbound = Inbound::new(body, limits, self.metrics.request_bytes.clone(), sender);
        if announced.is_none_or(|length| length > hookway_protocol::WHOLE_BODY as u64) {
            let pass = Some(endpoint.enter()?);
            let delivery = Delivery { head, body: Body::Stream(Some(inbound)), pass, room: None, keep: None };
            return Ok(relay::deliver(&self.queue, &endpoint, delivery).await?);
        }
        let queue = self.queue.clone();
        let deliver = async move {
            // Only a delivery that is whole takes a place: bodies that do not come hold none.
            let ((bytes, trailers), room) = inbound.whole(limits.max_body).await?.unwrap_or_default();
            let pass = Some(endpoint.enter()?);
            let head = RequestHead { whole: true, ..head };
            let delivery = Delivery { head, body: Body::Whole(bytes, trailers), pass, room: Some(room), keep: None };
            relay::deliver(&queue, &endpoint, delivery).await.map_err(Answer::from)
        };
        CarriedOut::new(deliver, &self.shutdown.work).await
    }

    fn endpoint(&self, host: &Host<'_>) -> Option<Arc<Endpoint>> {
        if let Some(endpoint) = self.registry.at(host) {
            return Some(endpoint);
        }
        let config = self.config.load();
        let default = config.default_endpoint.as_ref()?;
        let own = *host == self.domain || matches!(host.as_str(), "127.0.0.1" | "[::1]" | "localhost");
        own.then(|| self.registry.find(default.as_str())).flatten()
    }

    fn to_https(&self, host: &Host<'_>, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        Answer::to_https(match self.https_port {
            443 => format!("https://{host}{path}"),
            port => format!("https://{host}:{port}{path}"),
        })
    }
}

/// The fields of an app's answer as they may go out: what a client says of framing is checked, for it may be hostile.
fn outgoing(status: StatusCode, headers: Headers, body: &ReplyBody, to_head: bool) -> Option<HeaderMap> {
    if status.is_informational() {
        return None;
    }
    let mut map = headers.into_end_to_end();
    let mut lengths = map.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().map(|value| value.to_str().ok()?.parse::<u64>().ok());
    match (length, lengths.next(), body) {
        (None, ..) => {}
        (Some(Some(length)), None, ReplyBody::Whole(bytes)) => {
            let sent = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            let bodiless = to_head || status == StatusCode::NOT_MODIFIED;
            if length != sent && !(bodiless && sent == 0) {
                return None;
            }
        }
        (Some(Some(_)), None, ReplyBody::Stream(_)) => {}
        // Two lengths, or none at all: the body's own end says where it ends.
        _ => drop(map.remove(header::CONTENT_LENGTH)),
    }
    Some(map)
}

/// An app's answer as the operator lets it out.
fn published(mut response: Response<ReplyBody>, config: &Config) -> Response<ReplyBody> {
    // All that is said of it: which of them counts, browsers have rules of their own for (Fetch §2.2.6).
    let kinds = response.headers().get_all(header::CONTENT_TYPE).iter();
    let is_page_of = |kind: &HeaderValue| {
        let mut kinds = kind.as_bytes().split(|byte| b",;".contains(byte)).map(<[u8]>::trim_ascii);
        kinds.any(|kind| PAGES.iter().any(|page| kind.eq_ignore_ascii_case(page.as_bytes())))
    };
    let is_page = kinds.map(is_page_of).reduce(|one, other| one || other);
    if config.webhooks_only && is_page == Some(true) {
        // Its sender wants the status: it says how the webhook went.
        let mut bare = Answer::no_pages().response(None, None);
        *bare.status_mut() = response.status();
        return bare;
    }
    if config.webhooks_only {
        // Or a browser takes for a page what is said to be none.
        let nosniff = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        // XML is a fine answer to a webhook, and a page with scripts when a browser asks.
        let sandbox = HeaderValue::from_static("sandbox; default-src 'none'");
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, sandbox);
        if is_page.is_none() {
            let kind = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
    }
    if is_page == Some(true) && !config.allow_indexing {
        response.headers_mut().entry(X_ROBOTS_TAG).or_insert(NOINDEX);
    }
    response
}

/// The answer that switches protocols, if the app has chosen one of those that were asked for.
fn switching(headers: Headers, asked: &str) -> Option<Response<ReplyBody>> {
    let chosen = headers.get(&header::UPGRADE)?.clone();
    let chosen_text = chosen.to_str().ok()?;
    if !asked.split(',').any(|protocol| protocol.trim().eq_ignore_ascii_case(chosen_text.trim())) {
        return None;
    }
    let mut response = Response::new(ReplyBody::Whole(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers.into_end_to_end();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, chosen);
    Some(response)
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// A future that is carried out to its end, by a task when whoever waited for it is gone. Spawning a task for every
/// request would cost more, and few senders hang up.
struct CarriedOut<F: Future<Output: Send> + Send + 'static> {
    future: Option<Pin<Box<F>>>,
    tasks: TaskTracker,
}

impl<F: Future<Output: Send> + Send + 'static> CarriedOut<F> {
    fn new(future: F, tasks: &TaskTracker) -> Self {
        Self { future: Some(Box::pin(future)), tasks: tasks.clone() }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for CarriedOut<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let future = self.future.as_mut().expect("not polled after it was ready");
        let poll = future.as_mut().poll(cx);
        if poll.is_ready() {
            self.future = None;
        }
        poll
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for CarriedOut<F> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.tasks.spawn(async move { drop(future.await) });
        }
    }
}
