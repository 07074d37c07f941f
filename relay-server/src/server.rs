//! The relay as a whole: everything bound, running, and stopped in order.

mod parts;
mod reload;
mod sockets;
mod succession;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::certs;
use crate::config::Config;
use crate::handover::{Heir, Predecessor};
use crate::lock::{Lock, Running};
use crate::store::{self, Store, StoreError};
use crate::trace::TraceError;
use parts::Parts;
use sockets::{Given, Sockets};

/// A running relay.
#[derive(Debug)]
pub struct Server {
    addresses: Addresses,
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
    #[error(transparent)]
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
        let lock = succession::own(&config.data_dir).await?;
        // What is in use is known before the store is opened, which changes one of an earlier version.
        let sockets = Sockets::bind(&config, given)?;
        let (addresses, kept) = (sockets.addresses(), Arc::new(Mutex::new(sockets.kept(&config))));
        let (listeners, quic, dns) = sockets.listeners()?;
        let store = store::open(&config.data_dir)?;
        // Before anything is loaded: what others write from here on is looked at again.
        let seen = store.version().await?;
        let (parts, responder) = Parts::open(&config, store, addresses, dns).await?;
        let running = Running {
            https: Some(addresses.https),
            http: addresses.http,
            admin: addresses.admin,
            dns: responder.as_ref().and_then(certs::Responder::address),
            ..succession::this_process()
        };
        lock.tell(&running);
        let quic = parts.listener(quic, config.tunnel.max_handshakes);
        let quic = match predecessor {
            None => succession::at_once(quic, addresses)?,
            Some(predecessor) => succession::after(predecessor, &parts, &kept, quic)?,
        };
        parts.start(listeners, quic, responder, seen);
        let (lock, config) = (tokio::sync::Mutex::new(Some(lock)), ArcSwap::from_pointee(config));
        Ok(Self { addresses, config, parts, lock, running, heir: Mutex::default(), sockets: kept })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The CA file to give to clients, when the certificate is self-signed.
    #[must_use]
    pub fn ca(&self) -> Option<PathBuf> {
        self.parts.certs.ca()
    }

    /// The store it runs on.
    #[must_use]
    pub const fn store(&self) -> &Arc<dyn Store> {
        &self.parts.store
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

    /// Stops in order: accept nothing new, tell the clients, finish what is in flight, close. Says whether
    /// everything was finished within the grace period.
    pub async fn shutdown(self) -> bool {
        // Closed with the listeners: who comes later is refused, and not left waiting.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let finished = self.parts.shutdown.run(self.config.load().grace).await;
        self.parts.queue.close().await;
        self.parts.tracer.finish().await;
        if let Some(log) = &self.parts.access_log {
            log.finish().await;
        }
        finished
    }
}
