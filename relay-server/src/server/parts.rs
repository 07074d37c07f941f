//! What a running relay is made of: opened one after the other, started together.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hookway_protocol::host::Host;
use hookway_protocol::link::{ALPN, ALPN_H2};
use jiff::Timestamp;
use tokio_rustls::TlsAcceptor;

use super::sockets::{Dns, Listeners};
use super::succession::Listening;
use super::{Addresses, BindError};
use crate::access_log::AccessLog;
use crate::admin;
use crate::certs::{Certs, Responder};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::public::{self, Handler, Public};
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};
use crate::trace::Tracer;
use crate::tunnel::{self, Listener, Registry, Tunnel, Urls};

/// How often tokens, endpoints and certificates are looked at for changes made elsewhere.
pub(super) const UPKEEP: Duration = Duration::from_secs(1);

/// What runs.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    pub(super) shutdown: Shutdown,
    pub(super) queue: Arc<Queue>,
    pub(super) registry: Arc<Registry>,
    pub(super) public: Arc<Public>,
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) certs: Arc<Certs>,
    pub(super) access_log: Option<Arc<AccessLog>>,
    pub(super) tracer: Arc<Tracer>,
    metrics: Arc<Metrics>,
    urls: Urls,
    reset_key: [u8; 32],
    public_config: Arc<ArcSwap<public::Config>>,
}

impl Parts {
    /// Loads what is kept, and makes all parts. Nothing runs yet.
    pub(super) async fn open(
        config: &Config,
        store: Arc<dyn Store>,
        addresses: Addresses,
        dns: Option<Dns>,
    ) -> Result<(Self, Option<Responder>), BindError> {
        let (shutdown, metrics, domain) = (Shutdown::default(), Arc::new(Metrics::new()), &config.domain);
        let data_dir = &config.data_dir;
        let queue = Queue::new(store.clone(), config.queue, data_dir.clone(), metrics.clone(), shutdown.clone());
        let registry = Registry::open(domain.clone(), store.clone(), queue.clone(), config.limits).await?;
        let registry = Arc::new(registry);
        let names = registry.clone();
        let owner_of = Box::new(move |host: &str| Some(names.at(&Host::parse(host).ok()?)?.owner().to_owned()));
        let (certs, responder) =
            Certs::open(config.certs.clone(), data_dir, domain, store.clone(), owner_of, dns).await?;
        let https_port = config.public.public_port.unwrap_or(addresses.https.port());
        let http_port = addresses.http.filter(|_| config.public.http_serve).map(|address| address.port());
        let urls = Urls { domain: domain.to_string(), https_port, http_port };
        let reset_key = store.reset_key().await?;
        let parts = tunnel::Parts {
            store: store.clone(),
            queue: queue.clone(),
            registry: registry.clone(),
            certs: certs.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            urls: urls.clone(),
            reset_key,
        };
        let tunnel = Tunnel::new(config.tunnel, parts);
        let tracer = Arc::new(Tracer::from_env()?);
        let open = |target| AccessLog::open(target, metrics.access_log_dropped.clone()).map(Arc::new);
        let access_log = config.public.access_log.clone().map(open).transpose().map_err(BindError::AccessLog)?;
        let public_config = Arc::new(ArcSwap::from_pointee(config.public.clone()));
        let handler = Arc::new(Handler {
            config: public_config.clone(),
            domain: domain.clone(),
            https_port,
            registry: registry.clone(),
            queue: queue.clone(),
            certs: certs.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            access_log: access_log.clone(),
            tracer: tracer.clone(),
        });
        let public = Public::new(public_config.clone(), handler, tunnel.clone(), metrics.clone(), shutdown.clone());
        let parts = Self {
            store,
            shutdown,
            queue,
            registry,
            public,
            tunnel,
            certs,
            access_log,
            tracer,
            metrics,
            urls,
            reset_key,
            public_config,
        };
        Ok((parts, responder))
    }

    /// What listens for clients on a UDP socket when it is called.
    pub(super) fn listener(
        &self,
        socket: UdpSocket,
        max_handshakes: usize,
    ) -> impl FnOnce() -> std::io::Result<Listener> + Send + use<> {
        let (tls, reset_key) = (self.certs.server_config(&[ALPN]), self.reset_key);
        move || Listener::new(socket, tls, max_handshakes, &reset_key)
    }

    /// Starts to serve on the listeners for HTTPS, plain HTTP and operators, and to look after everything.
    pub(super) fn start(
        &self,
        Listeners { https, http, admin }: Listeners,
        quic: Listening,
        responder: Option<Responder>,
        seen: i64,
    ) {
        let Self { shutdown, public, .. } = self;
        let tls = TlsAcceptor::from(Arc::new(self.certs.public_config(&[ALPN_H2, b"h2", b"http/1.1"])));
        shutdown.rest.spawn(public.clone().run(https, Some(tls)));
        if let Some(http) = http {
            shutdown.rest.spawn(public.clone().run(http, None));
        }
        if let Some(admin) = admin {
            if admin.local_addr().is_ok_and(|address| !address.ip().is_loopback()) {
                tracing::warn!(
                    "the admin listener tells health and metrics to anybody, and has no TLS: let nobody else reach it"
                );
            }
            shutdown.rest.spawn(admin::run(admin, self.admin()));
        }
        shutdown.rest.spawn(self.tunnel.clone().run(quic));
        if let Some(responder) = responder {
            shutdown.rest.spawn(responder.run(shutdown.clone()));
        }
        if let Some(acme) = self.certs.acme() {
            shutdown.rest.spawn(acme.clone().run(shutdown.clone()));
        }
        shutdown.rest.spawn(upkeep(self.clone(), seen));
    }

    fn admin(&self) -> admin::Admin {
        admin::Admin {
            metrics: self.metrics.clone(),
            store: self.store.clone(),
            queue: self.queue.clone(),
            certs: self.certs.clone(),
            shutdown: self.shutdown.clone(),
            registry: self.registry.clone(),
            tunnel: self.tunnel.clone(),
            urls: self.urls.clone(),
            started_at: Timestamp::now(),
            access: admin::Access::default(),
            patience: self.public_config.clone(),
        }
    }
}

/// Notices changes made by other processes, ended tokens, connections that go nowhere, and certificates that need
/// replacing.
async fn upkeep(parts: Parts, seen: i64) {
    let Parts { store, shutdown, queue, registry, public, tunnel, certs, .. } = parts;
    let mut seen = Some(seen);
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.close.run_until_cancelled(ticks.tick()).await.is_some() {
        certs.upkeep();
        public.sweep();
        if shutdown.has_successor() {
            // What is in the store is its concern, but for what came of deliveries that are still out here.
            queue.settle_again().await;
            let _ = tunnel.cut_off(true).await;
            continue;
        }
        queue.upkeep().await;
        let taken_over = async {
            let now = store.version().await?;
            let changed = seen != Some(now);
            if changed {
                registry.reload().await?;
                if let Some(acme) = certs.acme() {
                    acme.reload().await?;
                }
            }
            tunnel.cut_off(changed).await?;
            // Only what was taken over has been seen.
            seen = Some(now);
            Ok::<_, StoreError>(())
        };
        if let Err(error) = taken_over.await {
            tracing::error!(%error, "changes of tokens and endpoints cannot be read; trying again");
        }
    }
}
