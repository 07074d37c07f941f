//! The relay as a whole: everything bound, running, and stopped in order.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::host::Host;
use hookway_protocol::link::{ALPN, ALPN_H2};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::public::{Handler, Public};
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::store::{self, Store, StoreError};
use crate::tunnel::{self, Registry, Tunnel, Urls};
use crate::{admin, certs};

/// How often tokens, endpoints and certificates are looked at for changes made elsewhere.
const UPKEEP: Duration = Duration::from_secs(1);

/// Whoever looks whether a relay runs holds its lock for no longer.
const LOCKED_FOR: Duration = Duration::from_millis(200);

/// A running relay.
#[derive(Debug)]
pub struct Server {
    addresses: Addresses,
    ca: Option<PathBuf>,
    store: Arc<dyn Store>,
    queue: Arc<Queue>,
    shutdown: Shutdown,
    grace: Duration,
    /// Held until it has stopped.
    _lock: File,
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
        let shutdown = Shutdown::default();
        let metrics = Arc::new(Metrics::new());
        let store = store::open(&config.data_dir)?;
        let lock = lock(&config.data_dir).await?;
        let queue = Queue::new(store.clone(), config.queue, config.data_dir.clone(), metrics.clone(), shutdown.clone());
        let registry =
            Arc::new(Registry::open(config.domain.clone(), store.clone(), queue.clone(), config.limits).await?);
        let names = registry.clone();
        let owner_of = Box::new(move |host: &str| Some(names.at(&Host::parse(host).ok()?)?.owner().to_owned()));
        let (certs, responder) =
            certs::Certs::open(config.certs, &config.data_dir, &config.domain, store.clone(), owner_of).await?;

        let (https, udp) = bind_both(config.public.https)?;
        let http = config.public.http.map(|address| bind_tcp("http", address)).transpose()?;
        let admin = config.admin.admin.map(|address| bind_tcp("admin", address)).transpose()?;
        let addresses = Addresses {
            https: local(&https, config.public.https)?,
            http: http.as_ref().zip(config.public.http).map(|(l, address)| local(l, address)).transpose()?,
            admin: admin.as_ref().zip(config.admin.admin).map(|(l, address)| local(l, address)).transpose()?,
        };

        tell_where(&lock, &addresses, responder.as_ref());
        let https_port = config.public.public_port.unwrap_or(addresses.https.port());
        let urls = Urls {
            domain: config.domain.to_string(),
            https_port,
            http_port: addresses.http.filter(|_| config.public.http_serve).map(|address| address.port()),
        };
        let parts = tunnel::Parts {
            store: store.clone(),
            queue: queue.clone(),
            registry: registry.clone(),
            certs: certs.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            urls,
            reset_key: store.reset_key().await?,
        };
        let tunnel = Tunnel::bind(udp, certs.server_config(&[ALPN]), config.tunnel, parts)
            .map_err(|source| BindError::Listen { what: "quic", address: addresses.https, source })?;
        let handler = Arc::new(Handler {
            config: config.public.clone(),
            domain: config.domain,
            https_port,
            registry: registry.clone(),
            queue: queue.clone(),
            certs: certs.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
        });
        let tls = TlsAcceptor::from(Arc::new(certs.public_config(&[ALPN_H2, b"h2", b"http/1.1"])));
        let public = Public::new(config.public, handler, tunnel.clone(), metrics.clone(), shutdown.clone());
        shutdown.rest.spawn(public.clone().run(https, Some(tls)));
        if let Some(http) = http {
            shutdown.rest.spawn(public.clone().run(http, None));
        }
        if let Some(admin) = admin {
            if addresses.admin.is_some_and(|address| !address.ip().is_loopback()) {
                tracing::warn!("the admin listener asks nobody who they are: let nobody else reach it");
            }
            let shown = admin::Admin {
                metrics: metrics.clone(),
                store: store.clone(),
                queue: queue.clone(),
                certs: certs.clone(),
                shutdown: shutdown.clone(),
            };
            shutdown.rest.spawn(admin::run(admin, shown));
        }
        shutdown.rest.spawn(tunnel.clone().run());
        if let Some(responder) = responder {
            shutdown.rest.spawn(responder.run(shutdown.clone()));
        }
        if let Some(acme) = certs.acme() {
            shutdown.rest.spawn(acme.clone().run(shutdown.clone()));
        }
        let ca = certs.ca();
        shutdown.rest.spawn(upkeep(store.clone(), queue.clone(), registry, public, tunnel, certs, shutdown.clone()));
        Ok(Self { addresses, ca, store, queue, shutdown, grace: config.grace, _lock: lock })
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

    /// Stops in order: accept nothing new, tell the clients, finish what is in flight, close. Says whether
    /// everything was finished within the grace period.
    pub async fn shutdown(self) -> bool {
        let finished = self.shutdown.run(self.grace).await;
        self.queue.close().await;
        finished
    }
}

/// Notices changes made by other processes, ended tokens, connections that go nowhere, and certificates that need
/// replacing.
async fn upkeep(
    store: Arc<dyn Store>,
    queue: Arc<Queue>,
    registry: Arc<Registry>,
    public: Arc<Public>,
    tunnel: Arc<Tunnel>,
    certs: Arc<certs::Certs>,
    shutdown: Shutdown,
) {
    let mut seen = store.version().await.ok();
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.close.run_until_cancelled(ticks.tick()).await.is_some() {
        certs.upkeep();
        public.sweep();
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

/// Makes the data folder this relay's own, until the file is closed.
async fn lock(data_dir: &Path) -> Result<File, BindError> {
    let path = data_dir.join("relay.lock");
    let failed = |source: std::io::Error| {
        let path = path.display().to_string();
        BindError::Store(StoreError::Open { path, source: source.into() })
    };
    let file = File::options().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    let until = tokio::time::Instant::now() + LOCKED_FOR;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(LOCKED_FOR / 10).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => return Err(BindError::InUse(data_dir.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Writes down where the relay listens, an address a line, for `hookway-relay check`.
fn tell_where(lock: &File, addresses: &Addresses, responder: Option<&certs::Responder>) {
    let dns = responder.and_then(certs::Responder::address);
    let all = [Some(addresses.https), addresses.http, addresses.admin, dns];
    let text: String = all.into_iter().flatten().map(|address| format!("{address}\n")).collect();
    let mut file = lock;
    // Without it, a look tells less.
    let _ = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
}

/// TCP and UDP on one port number. With port 0, one that is free for both.
fn bind_both(address: SocketAddr) -> Result<(TcpListener, UdpSocket), BindError> {
    let mut tries = 0;
    loop {
        let tcp = bind_tcp("https", address)?;
        let at = local(&tcp, address)?;
        match UdpSocket::bind(at) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if address.port() == 0 && tries < 20 => tries += 1,
            Err(source) => return Err(BindError::Listen { what: "quic", address: at, source }),
        }
    }
}

fn bind_tcp(what: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for old connections to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(4096)
    };
    bind().map_err(|source| BindError::Listen { what, address, source })
}

fn local(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, BindError> {
    listener.local_addr().map_err(|source| BindError::Listen { what: "tcp", address, source })
}
