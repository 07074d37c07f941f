//! The operator's side: health and metrics for whoever may reach the listener, the API for whoever has a token for
//! it, and a page that shows what the API says.

mod access;
mod api;
pub(crate) mod client;
mod page;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use axum::{Extension, Router};
use hookway_protocol::host::Host;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde_json::json;
use tokio::net::TcpListener;

use crate::certs::{Certs, Expiry};
use crate::limits::Counter;
use crate::metrics::Metrics;
use crate::public::{self, Paced};
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::tunnel::{Registry, Tunnel, Urls};
pub(crate) use access::Access;

/// Connections at once; who comes when there are so many is refused.
const MAX_CONNECTIONS: usize = 256;
/// An answer that is on its way when the relay stops may take so long.
const FINISHED_IN: Duration = Duration::from_secs(2);

/// Where the operator looks.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Where the admin listener listens, if it does.
    pub admin: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self { admin: Some(([127, 0, 0, 1], 9480).into()) }
    }
}

/// What the operator may see.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) certs: Arc<Certs>,
    pub(crate) shutdown: Shutdown,
    pub(crate) registry: Arc<Registry>,
    pub(crate) tunnel: Arc<Tunnel>,
    pub(crate) urls: Urls,
    pub(crate) started_at: Timestamp,
    pub(crate) access: Access,
    /// How long a peer is waited for: no longer than a sender.
    pub(crate) patience: Arc<ArcSwap<public::Config>>,
}

impl Admin {
    /// The certificate that ends first.
    fn certificate(&self) -> serde_json::Value {
        match self.certs.expiry() {
            Expiry::At { name, at, is_soon } => json!({"name": name, "not_after": at, "ends_soon": is_soon}),
            Expiry::Missing { name, why } => json!({"name": name, "missing": why}),
            Expiry::Unknown => serde_json::Value::Null,
        }
    }

    /// Why the relay is not well, if it is not.
    async fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.store.version().await {
            problems.push(format!("store: {error}"));
        }
        if self.queue.is_full() {
            problems.push("disk: full, nothing is queued".to_owned());
        }
        match self.certs.expiry() {
            Expiry::Missing { name, why } => problems.push(format!("certificate: none for {name} yet: {why}")),
            Expiry::At { name, at, is_soon: true } => {
                problems.push(format!("certificate: that for {name} ends at {at}"));
            }
            Expiry::At { .. } | Expiry::Unknown => {}
        }
        problems
    }
}

/// Serves the admin listener until the relay stops.
pub(crate) async fn run(mut listener: TcpListener, admin: Admin) {
    let admin = Arc::new(admin);
    let router = Router::new()
        .nest("/api", api::routes().layer(middleware::from_fn_with_state(admin.clone(), access::guard)))
        .merge(page::routes())
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .fallback(access::nothing)
        .layer(middleware::from_fn(from_here))
        .with_state(admin.clone());
    let places = Arc::new(Counter::new(MAX_CONNECTIONS));
    loop {
        let (stream, peer) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = over(&admin.shutdown) => return,
        };
        let Some(place) = places.take(1) else {
            tracing::debug!(%peer, "the admin listener has too many connections");
            continue;
        };
        let patience = admin.patience.load();
        let service = TowerToHyperService::new(router.clone().layer(Extension(ConnectInfo(peer))));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience.header_timeout)
            .serve_connection(TokioIo::new(Paced::new(stream, patience.write_timeout)), service);
        let shutdown = admin.shutdown.clone();
        admin.shutdown.rest.spawn(async move {
            let (_place, mut connection) = (place, pin!(connection));
            let ended = tokio::select! {
                end = connection.as_mut() => end,
                () = over(&shutdown) => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(FINISHED_IN, connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "an admin connection ended");
            }
        });
    }
}

/// It answers until links close; with a successor, who asks is to get that one's answers.
async fn over(shutdown: &Shutdown) {
    shutdown.stop_accepting.cancelled().await;
    if !shutdown.has_successor() {
        shutdown.close.cancelled().await;
    }
}

/// Refuses what a web page of somebody else could send: pages name a host, and browsers their origin (DNS
/// rebinding, cross-site requests).
async fn from_here(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| Host::parse(host.to_str().ok()?).ok());
    let here = host.is_some_and(|host| {
        let host = host.as_str();
        host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
    });
    if !here || request.headers().contains_key(header::ORIGIN) {
        access::drain(request).await;
        return (StatusCode::FORBIDDEN, "reach the admin listener by its address, and not from a web page\n")
            .into_response();
    }
    next.run(request).await
}

/// 200 while the relay is well; 503 with the reasons when it is not.
async fn health(State(admin): State<Arc<Admin>>) -> Response {
    let problems = admin.problems().await;
    if problems.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n").into_response()
}

/// 200 while the relay takes traffic; 503 when it is stopping, or was told to drain.
async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    if admin.shutdown.stop_accepting.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    if admin.shutdown.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    health(State(admin)).await
}

async fn metrics_text(State(admin): State<Arc<Admin>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let ends_at = match admin.certs.expiry() {
        Expiry::At { at, .. } => at.as_second(),
        Expiry::Missing { .. } | Expiry::Unknown => 0,
    };
    admin.metrics.certificate_expiry.set(ends_at);
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode()).into_response()
}
