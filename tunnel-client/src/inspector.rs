//! The inspector: a page on this machine, and the API behind it, over the history.

mod api;
mod assets;
mod events;
mod guard;
mod status;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::forwarder::Forwarder;
use crate::history::{History, Recorder};
use crate::replay::Replayer;
use crate::tunnel::Letters;

/// Ports after the one asked for that are tried when it is taken.
const MORE_PORTS: u16 = 20;

/// What the inspector shows.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) replayer: Replayer,
    /// The tunnel, if there is one.
    pub(crate) tunnel: Option<Tunnel>,
}

/// A tunnel as the inspector sees it.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    /// The relay's name.
    pub(crate) relay: String,
    pub(crate) forwarder: Arc<Forwarder>,
    /// What asks it for dead letters.
    pub(crate) letters: Letters,
    /// Whether plain HTTP's URL stands first.
    pub(crate) plain_first: bool,
}

/// A running inspector; dropped, it stops.
#[derive(Debug)]
pub(crate) struct Inspector {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Inspector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all requests share.
#[derive(Debug)]
struct Context {
    shown: Shown,
    /// Where it listens.
    address: SocketAddr,
    /// Of this run: whoever has it may change things.
    token: String,
}

impl Context {
    const fn recorder(&self) -> &Recorder {
        &self.shown.replayer.recorder
    }

    const fn history(&self) -> Option<&History> {
        self.recorder().history()
    }
}

/// A socket for the inspector: where it was asked for, or at the next free port.
pub(crate) async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let mut last = None;
    for more in 0..=MORE_PORTS {
        let Some(port) = address.port().checked_add(more) else { break };
        match TcpListener::bind((address.ip(), port)).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            bound => return bound,
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()))
}

impl Inspector {
    /// Serves until dropped.
    pub(crate) fn start(listener: TcpListener, shown: Shown) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let mut random = [0; 24];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| std::io::Error::other("the system has no random bytes"))?;
        let token = BASE64_URL_SAFE_NO_PAD.encode(random);
        let shown_address = SocketAddr::new(reachable(address.ip()), address.port());
        // Others than this machine must say a secret.
        let query = if address.ip().is_loopback() { String::new() } else { format!("/?token={token}") };
        let url = format!("http://{shown_address}{query}");
        let context = Arc::new(Context { shown, address, token });
        let router = api::routes().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.to));
        let router = router
            .fallback(assets::serve)
            .method_not_allowed_fallback(api::no_method)
            .layer(DefaultBodyLimit::max(api::MAX_BODY))
            .layer(middleware::from_fn_with_state(context.clone(), guard::guard))
            .with_state(context);
        #[expect(clippy::disallowed_methods, reason = "owned by the inspector, ended with it")]
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "the inspector has ended");
            }
        });
        Ok(Self { url, task })
    }

    /// Where to look.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// An address that can be typed.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}
