//! Takes clients, over QUIC at an endpoint of its own and over TLS from the public listener, and leads each session's
//! life.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::link::{self, Link, LinkError, Quiet, Side, StreamError, Transport};
use hookway_protocol::message::{
    ClientMessage, DomainState, FromClient, FromRelay, GoAway, Hello, Pong, RelayMessage, Released, Welcome,
};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, Incoming, TokioRuntime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::Config;
use super::domains::{Asked, Domains};
use super::drain::drain;
use super::handshake::{Doorkeeper, Refusal, Urls, asked_for, claim_refused, domains_of, too_many_sessions};
use super::letters::{self, News};
use super::registry::{Claim, Registry};
use super::session::{Common, Session};
use crate::certs::Certs;
use crate::limits::{Counter, PerAddress, Place};
use crate::metrics::{self, Metrics, Up};
use crate::queue::Queue;
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

/// A client is told within this time that there are more dead letters, or that something was missed.
const LOOKED_AFTER: Duration = Duration::from_secs(1);

/// What clients are told when it is over.
const STOPPING: &str = "the relay is stopping";

/// Takes clients.
#[derive(Debug)]
pub(crate) struct Tunnel {
    config: Arc<ArcSwap<Config>>,
    doorkeeper: Doorkeeper,
    domains: Domains,
    queue: Arc<Queue>,
    common: Common,
    shutdown: Shutdown,
    handshakes: Arc<Counter>,
    handshakes_per_ip: PerAddress,
    unproven_per_ip: PerAddress,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
}

/// What the tunnel is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) certs: Arc<Certs>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: Shutdown,
    pub(crate) urls: Urls,
    /// Kept over restarts.
    pub(crate) reset_key: [u8; 32],
}

/// Where clients come over QUIC.
#[derive(Debug)]
pub(crate) struct Listener(quinn::Endpoint);

impl Listener {
    /// Listens on a UDP socket.
    pub(crate) fn new(
        socket: UdpSocket,
        tls: rustls::ServerConfig,
        max_handshakes: usize,
        reset_key: &[u8; 32],
    ) -> std::io::Result<Self> {
        let crypto = QuicServerConfig::try_from(tls).map_err(std::io::Error::other)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(link::transport(Side::Relay)).max_incoming(max_handshakes);
        // Packets of connections not yet accepted; a client says little before it is.
        server.incoming_buffer_size(64 << 10).incoming_buffer_size_total(16 << 20);
        let runtime = Arc::new(TokioRuntime);
        // With the key of the run before, clients of that run learn at once that it is over (RFC 9000 §10.3).
        let reset = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
        Ok(Self(quinn::Endpoint::new(reset, Some(server), socket, runtime)?))
    }
}

impl Tunnel {
    /// Clients are taken for these.
    pub(crate) fn new(config: Config, parts: Parts) -> Arc<Self> {
        let domains = Domains::new(&parts, config.resolver);
        let Parts { store, queue, registry, metrics, shutdown, urls, .. } = parts;
        let uploads = shutdown.work.clone();
        let config = Arc::new(ArcSwap::from_pointee(config));
        let common = Common { uploads, config: config.clone(), reply_bytes: metrics.reply_bytes.clone() };
        let (live, config) = (config.clone(), **config.load());
        Arc::new(Self {
            doorkeeper: Doorkeeper::new(store, registry, metrics, live.clone(), urls),
            config: live,
            domains,
            queue,
            common,
            shutdown,
            handshakes: Arc::new(Counter::new(config.max_handshakes)),
            handshakes_per_ip: PerAddress::new(config.max_handshakes_per_ip),
            unproven_per_ip: PerAddress::new(config.max_handshakes_per_ip.div_ceil(8)),
            sessions: Mutex::default(),
        })
    }

    /// Other limits, from now on; how many handshakes there may be in all, and the name server, stay.
    pub(crate) fn limit(&self, config: Config) {
        self.handshakes_per_ip.most.set(config.max_handshakes_per_ip);
        self.unproven_per_ip.most.set(config.max_handshakes_per_ip.div_ceil(8));
        self.config.store(Arc::new(config));
    }

    /// Takes clients until the relay stops, then lets their exchanges finish and closes their links. Over QUIC as soon as
    /// the process before has left the socket.
    pub(crate) async fn run(self: Arc<Self>, listener: impl Future<Output = std::io::Result<Listener>>) {
        let stopped = &self.shutdown.stop_accepting;
        let listener = match stopped.run_until_cancelled(listener).await {
            Some(Ok(Listener(endpoint))) => Some(endpoint),
            Some(Err(error)) => {
                tracing::error!(%error, "clients cannot come over QUIC");
                None
            }
            None => None,
        };
        if let Some(endpoint) = &listener {
            while let Some(Some(incoming)) = stopped.run_until_cancelled(endpoint.accept()).await {
                self.take(incoming);
            }
            endpoint.set_server_config(None);
        }
        self.shutdown.close.cancelled().await;
        let links: Vec<Link> = self.sessions().values().map(|session| session.link.clone()).collect();
        links.iter().for_each(|link| link.close(STOPPING));
        if let Some(endpoint) = &listener {
            endpoint.close(0u32.into(), STOPPING.as_bytes());
        }
        // Tells the clients; they would notice by themselves within seconds.
        let told = async {
            let flushed = futures_util::future::join_all(links.iter().map(Link::flushed));
            let idle = futures_util::future::OptionFuture::from(listener.as_ref().map(quinn::Endpoint::wait_idle));
            tokio::join!(idle, flushed);
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    }

    /// Takes a client that came over TLS and speaks [`link::ALPN_H2`]. Its address has proven to be real.
    pub(crate) fn take_tls(
        self: &Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        remote: SocketAddr,
    ) {
        if self.shutdown.stop_accepting.is_cancelled() {
            // Its next try finds the process that has taken over.
            return;
        }
        let Some(places) = self.places(remote.ip().to_canonical(), &self.handshakes_per_ip) else {
            return metrics::count(&self.doorkeeper.metrics.handshakes_refused, "too_many");
        };
        self.let_in(remote, places, async move {
            let link = Link::h2(Side::Relay, io, remote).await;
            link.map_err(|error| StreamError::Lost(LinkError::Broken(error.to_string())))
        });
    }

    fn take(self: &Arc<Self>, incoming: Incoming) {
        let metrics = &self.doorkeeper.metrics;
        let address = incoming.remote_address().ip();
        // Anyone can send first packets in another's name: before an address has proven to be real (RFC 9000 §8.1.2)
        // it gets a few places, and none under load, and takes none from itself.
        let proven = incoming.remote_address_validated();
        let per_ip = if proven { &self.handshakes_per_ip } else { &self.unproven_per_ip };
        let allowed = proven || self.handshakes.used() < self.config.load().max_handshakes / 2;
        let Some(places) = allowed.then(|| self.places(address, per_ip)).flatten() else {
            if proven {
                metrics::count(&metrics.handshakes_refused, "too_many");
                incoming.refuse();
            } else if incoming.retry().is_err() {
                metrics::count(&metrics.handshakes_refused, "retry");
            }
            return;
        };
        self.let_in(incoming.remote_address(), places, async move {
            let connecting = incoming.accept().map_err(|error| StreamError::Lost(error.into()))?;
            let connection = connecting.await.map_err(|error| StreamError::Lost(error.into()))?;
            Ok(Link::quic(Side::Relay, connection))
        });
    }

    /// Places among those that have not said hello yet.
    fn places(&self, address: IpAddr, per_ip: &PerAddress) -> Option<(Place, Place)> {
        per_ip.of(address).take(1).zip(self.handshakes.take(1))
    }

    /// Serves a client, if it is let in, until it is gone.
    fn let_in(
        self: &Arc<Self>,
        remote: SocketAddr,
        places: (Place, Place),
        link: impl Future<Output = Result<Link, StreamError>> + Send + 'static,
    ) {
        let tunnel = self.clone();
        self.shutdown.rest.spawn(async move {
            // In a box, for the room of it is free again when a client is in: most of its life it is idle.
            let within = tunnel.config.load().handshake_timeout;
            let admitted = tokio::time::timeout(within, Box::pin(tunnel.admit(link)));
            let Some(admitted) = tunnel.shutdown.close.run_until_cancelled(admitted).await else { return };
            drop(places);
            match admitted {
                Ok(Ok(admitted)) => tunnel.serve(admitted).await,
                Ok(Err(error)) => tracing::debug!(%remote, %error, "no session"),
                Err(_) => {
                    metrics::count(&tunnel.doorkeeper.metrics.handshakes_refused, "timeout");
                    tracing::debug!(%remote, "no hello in time");
                }
            }
        });
    }

    /// Makes a session of a connection. Dropped halfway, it leaves nothing behind.
    async fn admit(
        self: &Arc<Self>,
        link: impl Future<Output = Result<Link, StreamError>>,
    ) -> Result<Admitted, StreamError> {
        let link = link.await?;
        let closing = link.close_on_drop("not let in");
        let (mut control, hello) = self.doorkeeper.hello(&link).await?;
        match self.open(&link, &hello).await {
            Ok((welcome, served)) => {
                // Only now: a client that is welcome can be sent to.
                control.sender.send(&FromRelay::from(RelayMessage::Welcome(welcome))).await?;
                closing.disarm();
                Ok(Admitted { control, served })
            }
            Err(refusal) => Err(self.doorkeeper.refuse(control, refusal).await),
        }
    }

    /// Opens a session with its endpoints, if the hello is good.
    async fn open(self: &Arc<Self>, link: &Link, hello: &Hello) -> Result<(Welcome, Served), Refusal> {
        let granted = self.doorkeeper.check(hello, link.remote().ip()).await?;
        let asked: Vec<_> = granted.names.iter().map(|name| asked_for(hello, name)).collect::<Result<_, _>>()?;
        let domains = domains_of(hello, &granted.names)?;
        let id = format!("ses_{}", &DeliveryId::now().to_string()["req_".len()..]).to_lowercase();
        // What can be told of each endpoint: that it was taken over, and that it was left.
        let (to_tell, released) = mpsc::channel(2 * granted.names.len() + 1);
        let session = Session::new(id.clone(), granted.grant.clone(), link.clone(), to_tell, self.common.clone());
        let most = self.config.load().max_sessions;
        let listed = self.list(&session, most).ok_or_else(|| too_many_sessions(most))?;
        // Once more: one revoked before the session was listed would not be noticed.
        self.doorkeeper.check_again(&granted.grant).await?;
        let registry = &self.doorkeeper.registry;
        let names = granted.names.iter().zip(&asked);
        let claimable = names.map(|(name, asked)| {
            let claimable = registry.claimable(name, &session, asked);
            claimable.map_err(|error| claim_refused(name.as_str(), &error))
        });
        // All or none: nobody loses an endpoint to a client that is then refused.
        let claimable: Vec<_> = claimable.collect::<Result<_, _>>()?;
        let claims: Vec<Claim> =
            claimable.into_iter().zip(&asked).map(|(claimable, asked)| claimable.claim(&session, asked)).collect();
        for (claim, asked) in claims.iter().zip(asked) {
            claim.ask(&self.queue, asked).await;
        }
        let up = Up::new(&self.doorkeeper.metrics.sessions);
        let welcome = self.doorkeeper.welcome(&granted, &claims, id);
        let news = News::new(self.queue.clone(), &welcome);
        Ok((welcome, Served { claims, domains, released, news, listed, _up: up }))
    }

    /// Lists a session among those that may be cut off, unless its owner has too many.
    fn list(self: &Arc<Self>, session: &Arc<Session>, most: usize) -> Option<Listed> {
        let mut sessions = self.sessions();
        let of_owner = sessions.values().filter(|other| other.grant.owner == session.grant.owner).count();
        if of_owner >= most {
            return None;
        }
        sessions.insert(session.id.clone(), session.clone());
        Some(Listed { tunnel: self.clone(), session: session.clone() })
    }

    #[tracing::instrument(name = "session", skip_all, fields(session, owner))]
    async fn serve(self: Arc<Self>, admitted: Admitted) {
        let Admitted { control, served: Served { claims, domains, released, news, listed, _up } } = admitted;
        let session = &listed.session;
        tracing::Span::current().record("session", &session.id).record("owner", session.grant.owner.as_str());
        let names: Vec<&str> = claims.iter().map(|claim| claim.endpoint.name.as_str()).collect();
        tracing::info!(remote = %session.link.remote(), transport = session.link.transport().name(), endpoints = names.join(" "), "client connected");
        let served: Vec<_> = claims
            .iter()
            .flat_map(|claim| {
                claim.waitings.iter().map(|waiting| (claim.endpoint.clone(), waiting.clone(), claim.over.clone()))
            })
            .collect();
        // What waits is handed over while it talks.
        let drains = async {
            let all = served
                .iter()
                .map(|(endpoint, waiting, over)| drain(&self.queue, endpoint, waiting, session, over, &self.shutdown));
            futures_util::future::join_all(all).await;
            std::future::pending::<std::convert::Infallible>().await
        };
        let (tell, states) = mpsc::channel(1);
        let watch = self.domains.watch(&claims, domains, &tell);
        let end = tokio::select! {
            end = self.talk(control, session, claims, released, states, news) => end,
            never = drains => match never {},
            never = watch => match never {},
        };
        if matches!(end, LinkError::TimedOut | LinkError::Broken(_)) {
            self.doorkeeper.metrics.links_lost.inc();
        }
        tracing::info!(reason = %end, "client gone");
    }

    /// Writes and answers control messages until the link is gone.
    async fn talk(
        &self,
        control: link::Control,
        session: &Arc<Session>,
        mut claims: Vec<Claim>,
        mut released: mpsc::Receiver<Released>,
        mut states: mpsc::Receiver<DomainState>,
        mut news: News,
    ) -> LinkError {
        let link::Control { mut sender, mut receiver } = control;
        let (mut told, mut leaving, mut over) = (false, false, false);
        let mut looks = tokio::time::interval(LOOKED_AFTER);
        let mut quiet = Quiet::on(&session.link);
        loop {
            claims.retain(|claim| !claim.is_over());
            let message = tokio::select! {
                end = session.link.closed() => return match end {
                    // Over TCP it hangs up when it has left.
                    LinkError::Broken(_) if leaving => LinkError::Closed("it has left".into()),
                    end => end,
                },
                received = receiver.receive::<FromClient>(), if !leaving => match received {
                    Ok(Some(FromClient { message: Some(message) })) => self.reply(message, session, &claims, &mut news).await,
                    Ok(Some(_)) => None,
                    // It is leaving: it finishes what it has and gets nothing more.
                    Ok(None) => {
                        leaving = true;
                        for claim in claims.drain(..) {
                            session.released(&claim.endpoint.name, "the client is leaving");
                        }
                        None
                    }
                    Err(_) => {
                        session.link.close("the control stream has ended");
                        None
                    }
                },
                message = released.recv() => message.map(RelayMessage::Released),
                Some(state) = states.recv() => Some(RelayMessage::DomainState(state)),
                _ = looks.tick() => {
                    if quiet.ends(&session.link) {
                        return LinkError::TimedOut;
                    }
                    let next = claims.iter().find_map(|claim| news.of(claim));
                    if next.is_some() {
                        // One after the other.
                        looks.reset_immediately();
                    }
                    next.map(RelayMessage::Backlog)
                }
                () = self.shutdown.stop_accepting.cancelled(), if !told => {
                    told = true;
                    let successor = self.shutdown.has_successor();
                    Some(RelayMessage::GoAway(GoAway { reconnect_after_ms: 500, successor }))
                }
            };
            if let Some(message) = message.filter(|_| !over)
                && sender.send(&FromRelay::from(message)).await.is_err()
            {
                session.link.close("the control stream has ended");
            }
            // Over HTTP/2 the link ends when its streams have, this one too.
            if leaving && released.is_empty() && session.link.transport() == Transport::H2 {
                over = true;
                sender.leave();
            }
        }
    }

    /// Answers what a client says.
    async fn reply(
        &self,
        message: ClientMessage,
        session: &Session,
        claims: &[Claim],
        news: &mut News,
    ) -> Option<RelayMessage> {
        match message {
            ClientMessage::Ping(ping) => Some(RelayMessage::Pong(Pong { number: ping.number })),
            ClientMessage::AskDeadLetters(asked) => {
                Some(RelayMessage::DeadLetters(letters::dead_letters(&self.queue, claims, asked).await))
            }
            ClientMessage::Seen(seen) => {
                news.seen(&seen.endpoint);
                None
            }
            ClientMessage::AskEndpoints(asked) => {
                Some(RelayMessage::Endpoints(self.doorkeeper.endpoints(&session.grant, &asked).await))
            }
            // It was greeted.
            ClientMessage::Hello(_) => None,
        }
    }

    /// Ends the sessions whose token is no longer valid. Called when tokens may have changed, and every second.
    ///
    /// # Errors
    /// The tokens cannot be read.
    pub(crate) async fn cut_off(&self, tokens_changed: bool) -> Result<(), StoreError> {
        let tokens = if tokens_changed { Some(self.doorkeeper.store.tokens().await?) } else { None };
        let revoked = |session: &Session| {
            tokens.as_ref().is_some_and(|tokens| {
                !tokens.iter().any(|token| token.id == session.grant.token_id && token.is_valid())
            })
        };
        let ended: Vec<_> = self.sessions().values().filter(|s| s.grant.is_expired() || revoked(s)).cloned().collect();
        for session in ended {
            tracing::info!(session = session.id, "token expired or revoked: session ended");
            session.link.close("the token was revoked or has expired");
        }
        Ok(())
    }

    /// The clients that are connected.
    pub(crate) fn sessions_now(&self) -> Vec<Arc<Session>> {
        self.sessions().values().cloned().collect()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client that was let in and knows it.
struct Admitted {
    control: link::Control,
    served: Served,
}

/// What a session has while it lasts.
struct Served {
    claims: Vec<Claim>,
    domains: Vec<Asked>,
    released: mpsc::Receiver<Released>,
    news: News,
    listed: Listed,
    _up: Up,
}

/// A session's place in the list, until it is dropped.
struct Listed {
    tunnel: Arc<Tunnel>,
    session: Arc<Session>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.tunnel.sessions().remove(&self.session.id);
    }
}
