//! Reaches the relay over QUIC.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hookway_protocol::link::{ALPN, Link, Side, transport};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use super::{ConnectError, RelayAddress, Settings};

/// One address of the relay is tried for this long.
const TRY_FOR: Duration = Duration::from_secs(4);
/// Before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// So many addresses are tried.
const MAX_ADDRESSES: usize = 8;

/// Knows how to reach one relay.
#[derive(Debug)]
pub(super) struct Dialer {
    relay: RelayAddress,
    config: quinn::ClientConfig,
}

impl Dialer {
    pub(super) fn new(settings: &Settings) -> Result<Self, ConnectError> {
        let mut tls = match &settings.ca {
            Some(path) => ClientConfig::builder().with_root_certificates(roots(path)?).with_no_client_auth(),
            None => ClientConfig::builder()
                .with_platform_verifier()
                .map_err(|error| ConnectError::Local {
                    cause: format!("the system's certificates cannot be used: {error}"),
                })?
                .with_no_client_auth(),
        };
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|error| ConnectError::Local { cause: error.to_string() })?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport(Side::Client));
        Ok(Self { relay: settings.relay.clone(), config })
    }

    /// A link to the relay, its name looked up afresh.
    pub(super) async fn dial(&self) -> Result<Link, ConnectError> {
        let host = self.relay.host.trim_matches(['[', ']']);
        let unreachable = |cause: String| ConnectError::Unreachable { relay: self.relay.to_string(), cause };
        let found = tokio::time::timeout(TRY_FOR, tokio::net::lookup_host((host, self.relay.port))).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let found = found.map_err(|error| unreachable(format!("{host} cannot be looked up: {error}")))?;
        let (mut left, mut attempts) = (found.take(MAX_ADDRESSES), FuturesUnordered::new());
        let mut last = format!("{host} has no address");
        // The first that answers; each has a head start before the next (RFC 8305 §5).
        loop {
            let next = left.next();
            let more = next.is_some();
            attempts.extend(next.map(|address| self.attempt(host, address)));
            if attempts.is_empty() {
                return Err(unreachable(last));
            }
            tokio::select! {
                Some(result) = attempts.next() => match result {
                    Ok(link) => return Ok(link),
                    Err(why) => last = why,
                },
                () = tokio::time::sleep(HEAD_START), if more => {}
            }
        }
    }

    async fn attempt(&self, host: &str, address: SocketAddr) -> Result<Link, String> {
        match tokio::time::timeout(TRY_FOR, self.connect(host, address)).await {
            Ok(result) => result.map_err(|error| format!("{address} (UDP): {error}")),
            Err(_) => Err(format!("{address} (UDP): no answer within {} s", TRY_FOR.as_secs())),
        }
    }

    async fn connect(&self, host: &str, address: SocketAddr) -> io::Result<Link> {
        // Bound to no address of this machine: the link lives on when that changes (RFC 9000 §9).
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = quinn::Endpoint::client(any)?;
        let connecting = endpoint.connect_with(self.config.clone(), address, host).map_err(io::Error::other)?;
        connecting.await.map(Link::quic).map_err(io::Error::other)
    }
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
