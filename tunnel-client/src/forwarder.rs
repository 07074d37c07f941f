//! Puts deliveries to the local app, over connections that are kept.

mod app;
mod attempts;
mod body;
mod refusal;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::head::{Failure, RequestHead};
use hookway_protocol::message::is_below;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TRAILER, UPGRADE};
use http::uri::PathAndQuery;
use http::{Request, Response};
use tokio_util::sync::CancellationToken;

pub(crate) use attempts::{Arrival, Attempts, Place};
pub(crate) use body::{OutBody, Progress, Streaming};
pub(crate) use refusal::AppBody;

use crate::events::Events;
use crate::target::Target;
use crate::webhook::{Policy, Webhooks};
pub(crate) use app::reach;
use app::{App, Patience};
use refusal::HostHint;

/// An app that does not listen is waited for so long by a delivery that was queued.
const QUEUED_WAIT: Duration = Duration::from_secs(60);

/// How deliveries are put to the app.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where they go, the longest prefix first tried.
    pub routes: Vec<Route>,
    /// Header fields to add or replace.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What the app is told as `Host`.
    pub host: HostHeader,
    /// The app must begin to answer within this time after it got the request, or the last piece of a body.
    pub timeout: Duration,
    /// How long to wait for an app that does not listen (yet).
    pub wait_app: Duration,
    /// The same at least for a delivery that was queued.
    pub(crate) queued_wait: Duration,
    /// A body may have this many bytes.
    pub max_body: u64,
    /// Deliveries put to the app at once.
    pub max_connections: usize,
    /// What is asked of them.
    pub(crate) webhooks: Policy,
}

/// Deliveries whose path begins with this go to that target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Only deliveries of this endpoint; `None` for all.
    pub endpoint: Option<String>,
    /// The path's beginning, at a `/`; empty for all.
    pub prefix: String,
    /// The app.
    pub target: Target,
    /// Whether the prefix is taken off.
    pub strip: bool,
}

impl Settings {
    /// As it is unless somebody says otherwise.
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        Self {
            routes,
            headers: vec![],
            host: HostHeader::Keep,
            timeout: Duration::from_secs(30),
            wait_app: Duration::from_secs(3),
            queued_wait: QUEUED_WAIT,
            max_body: 1 << 30,
            max_connections: 1024,
            webhooks: Policy::default(),
        }
    }

    /// For the person's own requests: all go there, whatever their size, and a missing app is not waited for.
    pub(crate) fn own(target: Target, timeout: Duration) -> Self {
        let (wait_app, max_body, max_connections) = (Duration::ZERO, u64::MAX, usize::MAX);
        Self { timeout, wait_app, max_body, max_connections, ..Self::new(vec![Route::to(target)]) }
    }
}

/// What the app is told as `Host`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The public name, as the sender sent it: signatures may cover it.
    #[default]
    Keep,
    /// The target's own.
    Rewrite,
    /// This one.
    Value(HeaderValue),
}

impl fmt::Display for HostHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Rewrite => f.write_str("rewrite"),
            Self::Value(host) => f.write_str(&String::from_utf8_lossy(host.as_bytes())),
        }
    }
}

/// The app gave no answer.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    /// In a word or two.
    pub(crate) short: String,
    /// For the sender and the log.
    pub(crate) message: String,
}

/// Puts deliveries to apps.
#[derive(Debug)]
pub(crate) struct Forwarder {
    pub(crate) settings: Settings,
    pub(crate) webhooks: Webhooks,
    apps: Vec<App>,
    host_hint: Arc<HostHint>,
    /// Attempts that come at once.
    pub(crate) attempts: Arc<Attempts>,
    /// The client is leaving: no app is waited for any more.
    pub(crate) leaving: CancellationToken,
}

impl Forwarder {
    pub(crate) fn new(mut settings: Settings, events: &Events) -> Arc<Self> {
        // An endpoint's own route goes before one for all, a longer prefix before a shorter.
        settings.routes.sort_by_key(|route| std::cmp::Reverse((route.endpoint.is_some(), route.prefix.len())));
        let apps = settings.routes.iter().map(|route| App::new(route.target.clone(), events.clone())).collect();
        let host_hint = Arc::new(HostHint::new(events.clone(), &settings.host));
        let origins = settings.routes.iter().map(|route| route.target.origin()).collect();
        let webhooks = Webhooks::new(settings.webhooks.clone(), origins, events.clone());
        // They are told once.
        settings.webhooks.notes.clear();
        Arc::new(Self {
            settings,
            webhooks,
            apps,
            host_hint,
            attempts: Arc::default(),
            leaving: CancellationToken::new(),
        })
    }

    /// The routes, and whether their apps answer, if that is known.
    pub(crate) fn routes(&self) -> impl Iterator<Item = (&Route, Option<bool>)> {
        self.settings.routes.iter().zip(self.apps.iter().map(App::is_up))
    }

    /// Puts a delivery to its app and waits for the head of the answer.
    pub(crate) async fn forward(
        &self,
        head: RequestHead,
        body: OutBody,
        progress: &Progress,
    ) -> Result<Response<AppBody>, Failed> {
        let path = head.target.path();
        let route = self.settings.routes.iter().position(|route| route.takes(head.endpoint.as_str(), path));
        let Some(index) = route else {
            let message = format!("no route takes {path}");
            return Err(Failed { failure: Failure::Refused, short: "no route".into(), message });
        };
        let app = &self.apps[index];
        let Settings { mut wait_app, timeout, .. } = self.settings;
        if head.queued {
            // Nobody waits for its answer, and the relay has others under other paths meanwhile.
            wait_app = wait_app.max(self.settings.queued_wait);
        }
        let grpc = head.http2 && is_grpc(&head);
        let host = head.headers.get(&HOST).cloned();
        let request = self.request(&self.settings.routes[index], head, body).ok_or_else(|| Failed {
            failure: Failure::BadRequest,
            short: "bad path".into(),
            message: "the path does not fit behind the target's".into(),
        })?;
        let _ = progress.url.set(format!("{}{}", app.target().origin(), request.uri()));
        let answer = app.send(request, grpc, Patience { wait_app, timeout, progress, leaving: &self.leaving }).await?;
        progress.answered();
        Ok(self.host_hint.watch(answer, host.as_ref(), progress.reply.clone()))
    }

    fn request(&self, route: &Route, head: RequestHead, body: OutBody) -> Option<Request<OutBody>> {
        let mut request = Request::new(body);
        *request.uri_mut() = match route.strip.then(|| head.target.as_str().strip_prefix(route.prefix.as_str())) {
            Some(Some(rest)) if !rest.starts_with('/') => {
                route.target.uri(&format!("/{rest}").parse::<PathAndQuery>().ok()?)
            }
            Some(Some(rest)) => route.target.uri(&rest.parse::<PathAndQuery>().ok()?),
            _ => route.target.uri(&head.target),
        }?;
        *request.method_mut() = head.method;
        let mut headers = head.headers.into_map();
        if let OutBody::Whole(_, Some(trailers)) = request.body()
            && !headers.contains_key(TRAILER)
        {
            // What is not announced is not sent.
            let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
            headers.insert(TRAILER, names.join(", ").try_into().ok()?);
        }
        let mut insert = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        insert("hookway-delivery", head.id.to_string());
        if head.attempt > 1 || head.queued {
            insert("hookway-attempt", head.attempt.to_string());
            let at = jiff::Timestamp::from_microsecond(i64::try_from(head.received_at_us).ok()?).ok()?;
            insert("hookway-received-at", at.to_string());
        }
        if head.possible_duplicate {
            insert("hookway-possible-duplicate", "1".into());
        }
        match &self.settings.host {
            HostHeader::Keep => {}
            HostHeader::Rewrite => drop(headers.insert(HOST, route.target.authority().try_into().ok()?)),
            HostHeader::Value(host) => drop(headers.insert(HOST, host.clone())),
        }
        for (name, value) in &self.settings.headers {
            headers.insert(name, value.clone());
        }
        if let Some(upgrade) = head.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, upgrade.try_into().ok()?);
        }
        *request.headers_mut() = headers;
        Some(request)
    }
}

impl Route {
    /// All to that app.
    pub(crate) const fn to(target: Target) -> Self {
        Self { endpoint: None, prefix: String::new(), target, strip: false }
    }

    fn takes(&self, endpoint: &str, path: &str) -> bool {
        self.endpoint.as_deref().is_none_or(|own| own == endpoint) && is_below(path, &self.prefix)
    }
}

fn is_grpc(head: &RequestHead) -> bool {
    let kind = head.headers.get(&CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    // Not gRPC-Web, which is plain HTTP.
    kind.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/stripe", "/stripe", true)]
    #[case("/stripe", "/stripe/webhook", true)]
    #[case("/stripe", "/stripes", false)]
    #[case("", "/anything", true)]
    #[case("/a/", "/a/b", true)]
    fn routes(#[case] prefix: &str, #[case] path: &str, #[case] takes: bool) {
        let target = "3000".parse().expect("a target");
        let route = Route { endpoint: None, prefix: prefix.into(), target, strip: false };
        assert_eq!(route.takes("any", path), takes);
        assert!(!Route { endpoint: Some("other".into()), ..route }.takes("any", path));
    }
}
