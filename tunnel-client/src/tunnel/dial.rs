//! Reaches the relay: over QUIC, or over TLS where UDP does not get through.

mod networks;
mod probe;
mod tls;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hookway_protocol::link::{ALPN, ALPN_H2, Link, Side, Transport, transport};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use super::{ConnectError, RelayAddress, Settings, pause};
use networks::Networks;
pub(crate) use probe::{Reached, probe};
use tls::Tls;

/// One address of the relay is tried for this long.
const TRY_FOR: Duration = Duration::from_secs(4);
/// Before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// So many addresses are tried.
const MAX_ADDRESSES: usize = 8;
/// One transport is tried alone for this long, where it is known or likely to work.
const ALONE: Duration = Duration::from_millis(500);

/// Between two tries to reach a relay's new process.
const SUCCESSOR_AGAIN: Duration = Duration::from_millis(200);

/// QUIC goes on for this long when TCP has failed.
const QUIC_ALONE: Duration = Duration::from_secs(3);

/// Which transports may carry the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transports {
    /// QUIC, or HTTP/2 over TLS while UDP does not get through
    #[default]
    Auto,
    /// QUIC only
    Quic,
    /// HTTP/2 over TLS only, through `HTTPS_PROXY` if that is set
    H2,
}

/// Knows how to reach one relay.
#[derive(Debug)]
pub(super) struct Dialer {
    relay: RelayAddress,
    choice: Transports,
    quic: quinn::ClientConfig,
    tls: Tls,
    networks: Networks,
}

impl Dialer {
    pub(super) fn new(settings: &Settings) -> Result<Self, ConnectError> {
        let local = |cause: String| ConnectError::Local { cause };
        let builder = ClientConfig::builder();
        let mut config = match &settings.ca {
            Some(path) => builder.with_root_certificates(roots(path)?).with_no_client_auth(),
            None => builder
                .with_platform_verifier()
                .map_err(|error| local(format!("the system's certificates cannot be used: {error}")))?
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        let tls = Tls::new(config.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(config).map_err(|error| local(error.to_string()))?;
        let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
        quic.transport_config(transport(Side::Client));
        let (relay, choice) = (settings.relay.clone(), settings.transport);
        Ok(Self { networks: Networks::new(relay.clone()), relay, choice, quic, tls })
    }

    /// A link to the relay, its name looked up afresh.
    pub(super) async fn dial(&self) -> Result<Link, ConnectError> {
        let dialled = match self.choice {
            Transports::Quic => {
                self.quic().await.map_err(|why| format!("{why}; --transport auto goes on over TCP then"))
            }
            Transports::H2 => self.h2().await,
            Transports::Auto => self.race().await,
        };
        dialled.map_err(|cause| ConnectError::Unreachable { relay: self.relay.to_string(), cause })
    }

    /// The transport that connects first; the likelier one is tried alone for a moment.
    async fn race(&self) -> Result<Link, String> {
        let (quic_waits, h2_waits) = match self.networks.first() {
            Transport::Quic => (Duration::ZERO, ALONE),
            Transport::H2 => (ALONE, Duration::ZERO),
        };
        let quic = self.quic();
        let h2 = self.h2();
        tokio::pin!(quic, h2);
        let (quic_waits, h2_waits) = (tokio::time::sleep(quic_waits), tokio::time::sleep(h2_waits));
        // Where TCP is refused nobody listens, most likely: the next try finds a relay that starts meanwhile.
        let alone_after = tokio::time::sleep(TRY_FOR);
        tokio::pin!(quic_waits, h2_waits, alone_after);
        let (mut over_quic, mut over_h2): (Option<String>, Option<String>) = (None, None);
        let mut had_a_chance = false;
        loop {
            // One that has failed makes way.
            let quic_goes = over_quic.is_none() && (quic_waits.is_elapsed() || over_h2.is_some());
            let h2_goes = over_h2.is_none() && (h2_waits.is_elapsed() || over_quic.is_some());
            had_a_chance |= quic_goes;
            tokio::select! {
                biased;
                link = &mut quic, if quic_goes => match link {
                    Ok(link) => return Ok(link),
                    Err(why) => over_quic = Some(why),
                },
                link = &mut h2, if h2_goes => match link {
                    Ok(link) => {
                        if had_a_chance {
                            self.networks.udp_failed();
                        }
                        return Ok(link);
                    }
                    Err(why) => {
                        over_h2 = Some(why);
                        alone_after.as_mut().reset(tokio::time::Instant::now() + QUIC_ALONE);
                    }
                },
                () = &mut alone_after, if over_h2.is_some() && over_quic.is_none() => {
                    over_quic = Some("no answer over UDP either".into());
                }
                () = &mut quic_waits, if !quic_waits.is_elapsed() => {}
                () = &mut h2_waits, if !h2_waits.is_elapsed() => {}
            }
            if let (Some(quic), Some(h2)) = (&over_quic, &over_h2) {
                return Err(if quic == h2 { quic.clone() } else { format!("{quic}; {h2}") });
            }
        }
    }

    /// A link over QUIC, as soon as it gets through again; never, for one that is over QUIC or is to stay as it is.
    pub(super) async fn better(&self, now: Transport) -> Link {
        if (now, self.choice) != (Transport::H2, Transports::Auto) {
            return std::future::pending().await;
        }
        loop {
            pause(self.networks.try_again_in(), &self.relay).await;
            match self.quic().await {
                Ok(link) => {
                    self.networks.udp_passes();
                    return link;
                }
                Err(why) => {
                    tracing::debug!(why, "still no QUIC");
                    self.networks.udp_failed();
                }
            }
        }
    }

    /// A link to the process that has taken over at the relay: over TCP, for the one before has the UDP socket to its
    /// end. Never, where TCP is not wanted.
    pub(super) async fn successor(&self) -> Link {
        if self.choice == Transports::Quic {
            return std::future::pending().await;
        }
        loop {
            match self.h2().await {
                Ok(link) => return link,
                Err(why) => tracing::debug!(why, "the relay's new process cannot be reached yet"),
            }
            tokio::time::sleep(SUCCESSOR_AGAIN).await;
        }
    }

    /// A link over QUIC was made, but of no use.
    pub(super) fn failed_over_quic(&self) {
        self.networks.udp_failed();
    }

    /// A link was served until now.
    pub(super) fn ended(&self, over: Transport, lasted: Duration, fell_silent: bool) {
        if over == Transport::Quic {
            self.networks.udp_worked(lasted, fell_silent);
        }
    }

    async fn quic(&self) -> Result<Link, String> {
        let dialled = each(self.addresses().await?, |address| self.quic_to(address)).await;
        dialled.map_err(|(address, why)| format!("{address} (UDP): {why}"))
    }

    async fn quic_to(&self, address: SocketAddr) -> io::Result<Link> {
        // Bound to no address of this machine: the link lives on when that changes (RFC 9000 §9).
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = quinn::Endpoint::client(any)?;
        let connecting =
            endpoint.connect_with(self.quic.clone(), address, self.relay.name()).map_err(io::Error::other)?;
        let connection = connecting.await.map_err(io::Error::other)?;
        Ok(Link::quic(Side::Client, connection))
    }

    async fn h2(&self) -> Result<Link, String> {
        if let Some(proxy) = tls::proxy(&self.relay)? {
            let dialled = tokio::time::timeout(TRY_FOR, self.tls.through(&proxy, &self.relay)).await;
            let dialled = dialled.unwrap_or_else(|_| Err(no_answer()));
            return dialled.map_err(|why| format!("{proxy}: {why}"));
        }
        let dialled = each(self.addresses().await?, |address| self.tls.to(&self.relay, address)).await;
        dialled.map_err(|(address, why)| format!("{address} (TCP): {why}"))
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        let host = self.relay.name();
        let found = tokio::time::timeout(TRY_FOR, tokio::net::lookup_host((host, self.relay.port))).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let found: Vec<_> =
            found.map_err(|error| format!("{host} cannot be looked up: {error}"))?.take(MAX_ADDRESSES).collect();
        if found.is_empty() { Err(format!("{host} has no address")) } else { Ok(found) }
    }
}

/// The first that connects; each address has a head start before the next (RFC 8305 §5). Else the last that failed.
async fn each<F>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> Result<Link, (SocketAddr, io::Error)>
where
    F: Future<Output = io::Result<Link>>,
{
    let attempt = async |address| {
        let dialled = tokio::time::timeout(TRY_FOR, connect(address)).await;
        dialled.unwrap_or_else(|_| Err(no_answer())).map_err(|why| (address, why))
    };
    let (mut left, mut attempts, mut last) = (addresses.into_iter(), FuturesUnordered::new(), None);
    loop {
        let next = left.next();
        let more = next.is_some();
        attempts.extend(next.map(&attempt));
        tokio::select! {
            result = attempts.next() => match (result, last) {
                (Some(Ok(link)), _) => return Ok(link),
                (Some(Err(why)), _) => last = Some(why),
                (None, Some(why)) => return Err(why),
                (None, None) => unreachable!("there is an address"),
            },
            () = tokio::time::sleep(HEAD_START), if more => {}
        }
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", TRY_FOR.as_secs()))
}

pub(crate) fn roots(path: &Path) -> Result<RootCertStore, ConnectError> {
    let local = |why: String| ConnectError::Local { cause: format!("the CA file {}: {why}", path.display()) };
    let pem = std::fs::read(path).map_err(|error| local(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added =
            certificate.map_err(|error| error.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
        added.map_err(local)?;
    }
    if roots.is_empty() { Err(local("it has no CERTIFICATE section".into())) } else { Ok(roots) }
}
