//! The QUIC endpoint that clients dial, and the life of each session.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::link::{self, Link, LinkError, Side, StreamError};
use hookway_protocol::message::{ClientMessage, FromClient, FromRelay, GoAway, Pong, RelayMessage, Released};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, Incoming, TokioRuntime};
use tokio::sync::mpsc;

use super::Config;
use super::handshake::{Admitted, Doorkeeper, Urls};
use super::registry::{Claim, Registry};
use super::session::{MAX_RELEASED, Session};
use crate::limits::{Counter, PerAddress};
use crate::metrics::{self, Metrics, Up};
use crate::shutdown::Shutdown;
use crate::store::Store;

/// Takes clients.
#[derive(Debug)]
pub(crate) struct Tunnel {
    endpoint: quinn::Endpoint,
    config: Config,
    doorkeeper: Doorkeeper,
    shutdown: Shutdown,
    handshakes: Arc<Counter>,
    handshakes_per_ip: Arc<PerAddress>,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
}

/// What the tunnel is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: Shutdown,
    pub(crate) urls: Urls,
    /// Kept over restarts.
    pub(crate) reset_key: [u8; 32],
}

impl Tunnel {
    /// Listens on a UDP socket.
    pub(crate) fn bind(
        socket: UdpSocket,
        tls: rustls::ServerConfig,
        config: Config,
        parts: Parts,
    ) -> std::io::Result<Arc<Self>> {
        let crypto = QuicServerConfig::try_from(tls).map_err(std::io::Error::other)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(link::transport(Side::Relay)).max_incoming(config.max_handshakes);
        // Packets of connections not yet accepted; a client says little before it is.
        server.incoming_buffer_size(64 << 10).incoming_buffer_size_total(16 << 20);
        let runtime = Arc::new(TokioRuntime);
        // With the key of the run before, clients of that run learn at once that it is over (RFC 9000 §10.3).
        let reset = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &parts.reset_key)));
        let endpoint = quinn::Endpoint::new(reset, Some(server), socket, runtime)?;
        let Parts { store, registry, metrics, shutdown, urls, .. } = parts;
        Ok(Arc::new(Self {
            endpoint,
            config,
            doorkeeper: Doorkeeper::new(store, registry, metrics, config.max_endpoints, urls),
            shutdown,
            handshakes: Arc::new(Counter::new(config.max_handshakes)),
            handshakes_per_ip: PerAddress::new(config.max_handshakes_per_ip),
            sessions: Mutex::default(),
        }))
    }

    /// Takes clients until the relay stops, then lets their exchanges finish and closes their links.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                () = self.shutdown.stop_accepting.cancelled() => break,
            };
            let Some(incoming) = incoming else { break };
            self.take(incoming);
        }
        self.endpoint.set_server_config(None);
        self.shutdown.close.cancelled().await;
        self.endpoint.close(0u32.into(), b"the relay is stopping");
        // Tells the clients; they would notice by themselves within seconds.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    fn take(self: &Arc<Self>, incoming: Incoming) {
        let metrics = &self.doorkeeper.metrics;
        // Under load an address must prove that it is real before it costs anything (RFC 9000 §8.1.2).
        if !incoming.remote_address_validated() && self.handshakes.used() >= self.config.max_handshakes / 2 {
            if incoming.retry().is_err() {
                metrics::count(&metrics.handshakes_refused, "retry");
            }
            return;
        }
        let place = self.handshakes_per_ip.take(incoming.remote_address().ip()).zip(self.handshakes.take());
        let Some(place) = place else {
            metrics::count(&metrics.handshakes_refused, "too_many");
            incoming.refuse();
            return;
        };
        let tunnel = self.clone();
        self.shutdown.rest.spawn(async move {
            let remote = incoming.remote_address();
            // In a box, for the room of it is free again when a client is in: most of its life it is idle.
            let admitted =
                tokio::time::timeout(tunnel.config.handshake_timeout, Box::pin(tunnel.admit(incoming))).await;
            drop(place);
            match admitted {
                Ok(Ok((link, control, admitted))) => tunnel.serve(link, control, admitted).await,
                Ok(Err(error)) => tracing::debug!(%remote, %error, "no session"),
                Err(_) => {
                    metrics::count(&tunnel.doorkeeper.metrics.handshakes_refused, "timeout");
                    tracing::debug!(%remote, "no hello in time");
                }
            }
        });
    }

    async fn admit(&self, incoming: Incoming) -> Result<(Link, link::Control, Admitted), StreamError> {
        let connecting = incoming.accept().map_err(|error| StreamError::Lost(error.into()))?;
        let link = Link::quic(connecting.await.map_err(|error| StreamError::Lost(error.into()))?);
        let (control, admitted) = self.doorkeeper.admit(&link).await.inspect_err(|_| link.close("not let in"))?;
        Ok((link, control, admitted))
    }

    #[tracing::instrument(name = "session", skip_all, fields(session, owner = %admitted.grant.owner.as_str()))]
    async fn serve(self: Arc<Self>, link: Link, mut control: link::Control, admitted: Admitted) {
        let id = format!("ses_{}", &DeliveryId::now().to_string()["req_".len()..]).to_lowercase();
        tracing::Span::current().record("session", &id);
        let welcome = self.doorkeeper.welcome(&admitted, &id);
        let (to_tell, released) = mpsc::channel(MAX_RELEASED);
        let uploads = self.shutdown.work.clone();
        let reply_bytes = self.doorkeeper.metrics.reply_bytes.clone();
        let grant = admitted.grant.clone();
        let session =
            Session::new(id.clone(), grant, link.clone(), to_tell, uploads, self.config.reply_timeout, reply_bytes);
        let _up = Up::new(&self.doorkeeper.metrics.sessions);
        let registry = &self.doorkeeper.registry;
        let claims: Vec<Claim> = admitted.names.iter().filter_map(|name| registry.claim(name, &session)).collect();
        // Only now: a client that is welcome can be sent to.
        if control.sender.send(&FromRelay::from(RelayMessage::Welcome(welcome))).await.is_err() {
            return;
        }
        let names: Vec<&str> = claims.iter().map(|claim| claim.endpoint.name.as_str()).collect();
        tracing::info!(remote = %link.remote(), endpoints = names.join(" "), "client connected");
        self.sessions().insert(id.clone(), session.clone());
        let end = self.talk(control, &session, claims, released).await;
        self.sessions().remove(&id);
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
    ) -> LinkError {
        let link::Control { mut sender, mut receiver } = control;
        let (mut told, mut leaving) = (false, false);
        loop {
            let message = tokio::select! {
                end = session.link.closed() => return end,
                received = receiver.receive::<FromClient>(), if !leaving => match received {
                    Ok(Some(FromClient { message: Some(ClientMessage::Ping(ping)) })) => {
                        Some(RelayMessage::Pong(Pong { number: ping.number }))
                    }
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
                () = self.shutdown.stop_accepting.cancelled(), if !told => {
                    told = true;
                    Some(RelayMessage::GoAway(GoAway { reconnect_after_ms: 500 }))
                }
            };
            if let Some(message) = message
                && sender.send(&FromRelay::from(message)).await.is_err()
            {
                session.link.close("the control stream has ended");
            }
        }
    }

    /// Ends the sessions whose token is no longer valid. Called when tokens may have changed, and every second.
    pub(crate) async fn cut_off(&self, tokens_changed: bool) {
        let mut ended: Vec<_> = self.sessions().values().filter(|s| s.grant.is_expired()).cloned().collect();
        if tokens_changed && let Ok(tokens) = self.doorkeeper.store.tokens().await {
            let valid = |id: &str| tokens.iter().any(|token| token.id == id && token.is_valid());
            ended.extend(self.sessions().values().filter(|s| !valid(&s.grant.token_id)).cloned());
        }
        for session in ended {
            tracing::info!(session = session.id, "token expired or revoked: session ended");
            session.link.close("the token was revoked or has expired");
        }
    }

    /// Ends replies that are not taken, and their senders' connections. Called every second.
    pub(crate) fn cut_replies(&self, timeout: Duration) {
        let sessions: Vec<_> = self.sessions().values().cloned().collect();
        for session in sessions {
            let cut = session.replies.cut(timeout);
            self.doorkeeper.metrics.replies_cut.inc_by(cut as u64);
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
