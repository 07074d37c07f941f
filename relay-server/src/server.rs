//! The relay as a whole: everything bound, running, and stopped in order.

mod reload;
mod sockets;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use hookway_protocol::host::Host;
use hookway_protocol::link::{ALPN, ALPN_H2};
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::handover::{HandOverError, Heir, Predecessor, Successor};
use crate::lock::{Lock, Running};
use crate::metrics::Metrics;
use crate::public::{Handler, Public};
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::store::{self, Store, StoreError};
use crate::trace::{TraceError, Tracer};
use crate::tunnel::{self, Registry, Tunnel, Urls};
use crate::{admin, certs, handover};
use sockets::{Given, Sockets};

/// How often tokens, endpoints and certificates are looked at for changes made elsewhere.
const UPKEEP: Duration = Duration::from_secs(1);

/// A running relay.
#[derive(Debug)]
pub struct Server {
    addresses: Addresses,
    ca: Option<PathBuf>,
    store: Arc<dyn Store>,
    shutdown: Shutdown,
    config: ArcSwap<Config>,
    parts: Parts,
    /// Held until it has stopped, or another process has taken over.
    lock: tokio::sync::Mutex<Option<Lock>>,
    /// What is said of this process.
    running: Running,
    /// Who has taken over.
    heir: Mutex<Option<Heir>>,
    /// What it listens on, once more, for a successor.
    sockets: Arc<Mutex<Vec<(String, OwnedFd)>>>,
}

/// What runs.
#[derive(Clone, Debug)]
struct Parts {
    queue: Arc<Queue>,
    registry: Arc<Registry>,
    public: Arc<Public>,
    tunnel: Arc<Tunnel>,
    certs: Arc<certs::Certs>,
    access_log: Option<Arc<AccessLog>>,
    tracer: Arc<Tracer>,
}

/// Where a relay listens, with the ports that 0 became.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// HTTPS, and QUIC on UDP.
    pub https: SocketAddr,
    /// Plain HTTP.
    pub http: Option<SocketAddr>,
    /// Health and metrics.
    pub admin: Option<SocketAddr>,
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address cannot be listened on.
    #[error("cannot listen on {what} {address}")]
    Listen {
        /// What for.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another relay runs on the same data folder: two would hand over the same deliveries.
    #[error("another relay runs on {}", .0.display())]
    InUse(PathBuf),
    /// Traces cannot be sent.
    #[error("traces cannot be sent")]
    Trace(#[from] TraceError),
    /// The access log cannot be written.
    #[error("the access log cannot be written")]
    AccessLog(#[source] std::io::Error),
    /// The process before does not hand over.
    #[error("the process before does not hand over")]
    Predecessor(#[source] std::io::Error),
    /// There is no certificate.
    #[error("there is no usable certificate")]
    Certs(#[from] certs::CertsError),
    /// The store cannot be used.
    #[error("the relay's store cannot be used")]
    Store(#[from] StoreError),
}

impl Server {
    /// Binds everything and starts to serve.
    ///
    /// # Errors
    /// An address is in use, or the certificate or the store cannot be used. Nothing runs then.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        Self::on(Given::default(), config, None).await
    }

    /// The same, on the sockets that the service manager or the process before has bound, where one has.
    ///
    /// # Errors
    /// As with [`Self::bind`], or the process before has thought better of it.
    pub async fn bind_given(config: Config, predecessor: Option<Predecessor>) -> Result<Self, BindError> {
        let Some(mut predecessor) = predecessor else {
            return Self::on(Given::by_service_manager(), config, None).await;
        };
        let given = Given::by_predecessor(predecessor.sockets().map_err(BindError::Predecessor)?, &config);
        Self::on(given, config, Some(predecessor)).await
    }

    async fn on(given: Given, config: Config, predecessor: Option<Predecessor>) -> Result<Self, BindError> {
        let shutdown = Shutdown::default();
        let metrics = Arc::new(Metrics::new());
        // Before the store is opened, which changes one of an earlier version.
        let lock = Lock::take(&config.data_dir).await.map_err(|source| {
            let path = config.data_dir.join("relay.lock").display().to_string();
            BindError::Store(StoreError::Open { path, source: source.into() })
        })?;
        let lock = lock.ok_or_else(|| BindError::InUse(config.data_dir.clone()))?;
        let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
        lock.tell(&Running { pid, version: version.clone(), ..Running::default() });
        let store = store::open(&config.data_dir)?;
        // Before anything is loaded: what others write from here on is looked at again.
        let seen = store.version().await?;
        let configured = config.clone();
        let queue = Queue::new(store.clone(), config.queue, config.data_dir.clone(), metrics.clone(), shutdown.clone());
        let registry =
            Arc::new(Registry::open(config.domain.clone(), store.clone(), queue.clone(), config.limits).await?);
        let names = registry.clone();
        let owner_of = Box::new(move |host: &str| Some(names.at(&Host::parse(host).ok()?)?.owner().to_owned()));
        let sockets = Sockets::bind(&config, given)?;
        let kept = sockets.kept(&config);
        let addresses = sockets.addresses();
        let Sockets { https, quic, http, admin, dns } = sockets;
        let (certs, responder) =
            certs::Certs::open(config.certs, &config.data_dir, &config.domain, store.clone(), owner_of, dns).await?;

        let running = Running {
            pid,
            version,
            https: Some(addresses.https),
            http: addresses.http,
            admin: addresses.admin,
            dns: responder.as_ref().and_then(certs::Responder::address),
        };
        lock.tell(&running);
        let https_port = config.public.public_port.unwrap_or(addresses.https.port());
        let urls = Urls {
            domain: config.domain.to_string(),
            https_port,
            http_port: addresses.http.filter(|_| config.public.http_serve).map(|address| address.port()),
        };
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
        let max_handshakes = config.tunnel.max_handshakes;
        let tls = certs.server_config(&[ALPN]);
        let listen = move || tunnel::Listener::new(quic, tls, max_handshakes, &reset_key);
        let tunnel = Tunnel::new(config.tunnel, parts);
        let tracer = Arc::new(Tracer::from_env()?);
        let open = |target| AccessLog::open(target, metrics.access_log_dropped.clone());
        let access_log = config.public.access_log.clone().map(open).transpose().map_err(BindError::AccessLog)?;
        let access_log = access_log.map(Arc::new);
        let public_config = Arc::new(ArcSwap::from_pointee(config.public));
        let handler = Arc::new(Handler {
            config: public_config.clone(),
            domain: config.domain,
            https_port,
            registry: registry.clone(),
            queue: queue.clone(),
            certs: certs.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            access_log: access_log.clone(),
            tracer: tracer.clone(),
        });
        let tls = TlsAcceptor::from(Arc::new(certs.public_config(&[ALPN_H2, b"h2", b"http/1.1"])));
        let public = Public::new(public_config.clone(), handler, tunnel.clone(), metrics.clone(), shutdown.clone());
        let listener = |what, address, listener| {
            TcpListener::from_std(listener).map_err(|source| BindError::Listen { what, address, source })
        };
        let https = listener("https", addresses.https, https)?;
        let http = http.zip(addresses.http).map(|(it, at)| listener("http", at, it)).transpose()?;
        let admin = admin.zip(addresses.admin).map(|(it, at)| listener("admin", at, it)).transpose()?;
        let kept = Arc::new(Mutex::new(kept));
        // At once, unless the process before reads from the socket until its end.
        let quic: BoxFuture<'static, _> = match predecessor {
            None => {
                let listening = listen();
                let failed = |source| BindError::Listen { what: "quic", address: addresses.https, source };
                Box::pin(std::future::ready(Ok(listening.map_err(failed)?)))
            }
            Some(mut predecessor) => {
                queue.adopt(true);
                predecessor.serves().map_err(BindError::Predecessor)?;
                let (registry, queue, stopping) = (registry.clone(), queue.clone(), shutdown.clone());
                let all = kept.clone();
                all.lock().unwrap_or_else(PoisonError::into_inner).extend(predecessor.lines());
                let gone = predecessor.gone();
                Box::pin(async move {
                    gone.cancelled().await;
                    tracing::info!("the process before has ended: this one is alone now");
                    all.lock().unwrap_or_else(PoisonError::into_inner).retain(|(label, _)| label != handover::BEFORE);
                    // What it accepted last is looked for once more.
                    let close = stopping.close.clone();
                    let adopt = async move {
                        while let Err(error) = registry.reload().await {
                            tracing::error!(%error, "what the process before accepted cannot be read; trying again");
                            tokio::time::sleep(UPKEEP).await;
                        }
                        queue.adopt(false);
                    };
                    stopping.rest.spawn(async move { close.run_until_cancelled(adopt).await });
                    listen()
                })
            }
        };
        shutdown.rest.spawn(public.clone().run(https, Some(tls)));
        if let Some(http) = http {
            shutdown.rest.spawn(public.clone().run(http, None));
        }
        if let Some(admin) = admin {
            if addresses.admin.is_some_and(|address| !address.ip().is_loopback()) {
                tracing::warn!(
                    "the admin listener tells health and metrics to anybody, and has no TLS: let nobody else reach it"
                );
            }
            let shown = admin::Admin {
                metrics: metrics.clone(),
                store: store.clone(),
                queue: queue.clone(),
                certs: certs.clone(),
                shutdown: shutdown.clone(),
                registry: registry.clone(),
                tunnel: tunnel.clone(),
                urls,
                started_at: Timestamp::now(),
                access: admin::Access::default(),
                patience: public_config,
            };
            shutdown.rest.spawn(admin::run(admin, shown));
        }
        shutdown.rest.spawn(tunnel.clone().run(quic));
        if let Some(responder) = responder {
            shutdown.rest.spawn(responder.run(shutdown.clone()));
        }
        if let Some(acme) = certs.acme() {
            shutdown.rest.spawn(acme.clone().run(shutdown.clone()));
        }
        let ca = certs.ca();
        let parts = Parts { queue, registry, public, tunnel, certs, access_log, tracer };
        shutdown.rest.spawn(upkeep(store.clone(), seen, parts.clone(), shutdown.clone()));
        let config = ArcSwap::from_pointee(configured);
        let (lock, sockets) = (tokio::sync::Mutex::new(Some(lock)), kept);
        Ok(Self { addresses, ca, store, shutdown, config, parts, lock, running, heir: Mutex::default(), sockets })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The CA file to give to clients, when the certificate is self-signed.
    #[must_use]
    pub const fn ca(&self) -> Option<&PathBuf> {
        self.ca.as_ref()
    }

    /// The store it runs on.
    #[must_use]
    pub const fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Goes on with the access log in a new file: the one before was moved away.
    pub fn reopen(&self) {
        self.parts.access_log.iter().for_each(|log| log.reopen());
    }

    /// Takes another configuration over without dropping a connection, and says which settings wait for a restart.
    ///
    /// # Errors
    /// Its certificate cannot be used. Nothing was taken over then.
    pub fn reload(&self, new: Config) -> Result<Vec<&'static str>, certs::CertsError> {
        let old = self.config.load_full();
        let (new, later) = reload::merged(&old, new);
        let Parts { queue, registry, public, tunnel, certs, .. } = &self.parts;
        certs.reload(&new.certs)?;
        registry.limit(new.limits);
        queue.limit(new.queue);
        tunnel.limit(new.tunnel);
        public.configure(new.public.clone());
        self.config.store(Arc::new(new));
        Ok(later)
    }

    /// Hands over to a program, which is given the arguments of this process, and says its process id. This one is to be
    /// shut down then: it finishes what it has in flight. After an error it goes on as before.
    ///
    /// # Errors
    /// Nobody took over.
    pub async fn hand_over(&self, program: &Path, args: Vec<OsString>) -> Result<u32, HandOverError> {
        if std::process::id() == 1 {
            return Err(HandOverError::First);
        }
        let successor = Successor::begin(program, args).await?;
        let mut lock = self.lock.lock().await;
        let queue = &self.parts.queue;
        queue.pause().await;
        drop(lock.take());
        let sockets: Vec<_> = {
            let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            sockets.iter().filter_map(|(label, fd)| Some((label.clone(), fd.try_clone().ok()?))).collect()
        };
        let given: Vec<_> = sockets.iter().map(|(label, fd)| (label.as_str(), fd.as_fd())).collect();
        match successor.take_over(&given).await {
            Ok(heir) => {
                self.shutdown.succeeded();
                let pid = heir.pid;
                *self.heir.lock().unwrap_or_else(PoisonError::into_inner) = Some(heir);
                Ok(pid)
            }
            Err(error) => {
                // The other may take a moment to end.
                for _ in 0..25 {
                    if let Ok(Some(taken)) = Lock::take(&self.config.load().data_dir).await {
                        taken.tell(&self.running);
                        *lock = Some(taken);
                        break;
                    }
                }
                if lock.is_none() {
                    tracing::error!("the data folder is another process's now");
                }
                queue.resume();
                Err(error)
            }
        }
    }

    /// Stops in order: accept nothing new, tell the clients, finish what is in flight, close. Says whether
    /// everything was finished within the grace period.
    pub async fn shutdown(self) -> bool {
        // Closed with the listeners: who comes later is refused, and not left waiting.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let finished = self.shutdown.run(self.config.load().grace).await;
        self.parts.queue.close().await;
        self.parts.tracer.finish().await;
        if let Some(log) = &self.parts.access_log {
            log.finish().await;
        }
        finished
    }
}

/// Notices changes made by other processes, ended tokens, connections that go nowhere, and certificates that need
/// replacing.
async fn upkeep(store: Arc<dyn Store>, seen: i64, parts: Parts, shutdown: Shutdown) {
    let Parts { queue, registry, public, tunnel, certs, .. } = parts;
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
