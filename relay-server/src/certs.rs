//! The relay's certificates: which one a TLS handshake gets, and when they change.

mod files;
mod self_signed;

use std::path::PathBuf;
use std::sync::Arc;

use hookway_protocol::host::Host;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Where certificates come from.
#[derive(Clone, Debug)]
pub enum Config {
    /// From a CA of the relay's own, kept in the data folder; clients are given its `ca.pem`.
    SelfSigned,
    /// From PEM files, read again when they change.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The leaf's private key.
        key: PathBuf,
    },
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path} holds no usable {what}")]
    Content {
        /// The file.
        path: String,
        /// What was looked for.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The relay's own CA does not speak for the domain.
    #[error("the CA in {path} is not one for {domain}")]
    Ca {
        /// The CA's file.
        path: String,
        /// Its key's file.
        key: String,
        /// The relay's domain.
        domain: String,
        /// What a client would say.
        #[source]
        source: Box<rustls::Error>,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// The certificates in force.
#[derive(Debug)]
pub(crate) enum Certs {
    SelfSigned(Box<self_signed::SelfSigned>),
    Files(files::Files),
}

impl Certs {
    pub(crate) fn open(
        config: &Config,
        data_dir: &std::path::Path,
        domain: &Host<'static>,
    ) -> Result<Arc<Self>, CertsError> {
        Ok(Arc::new(match config {
            Config::SelfSigned => Self::SelfSigned(Box::new(self_signed::SelfSigned::open(data_dir, domain)?)),
            Config::Files { cert, key } => Self::Files(files::Files::open(cert, key)?),
        }))
    }

    /// The CA that clients must be given, if it is the relay's own.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        match self {
            Self::SelfSigned(own) => Some(own.ca_path()),
            Self::Files(_) => None,
        }
    }

    /// Puts new certificates in force where files changed or an end is near. Called every second.
    pub(crate) fn upkeep(&self) {
        match self {
            Self::SelfSigned(own) => own.renew(),
            Self::Files(files) => files.reload(),
        }
    }

    /// A TLS configuration with these certificates and application protocols. No early data: a request in it could
    /// be sent again by anyone (RFC 8446 §8).
    pub(crate) fn server_config(self: &Arc<Self>, alpn: &[&[u8]]) -> ServerConfig {
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap_or(config.ticketer);
        // TLS 1.3 sends its tickets after the handshake, while the sender's body is on its way. One that fires and
        // forgets has closed its reading side by then: its kernel answers them with a reset (RFC 1122 §4.2.2.13) and
        // throws away what it had not sent. Resuming would save such a sender one signature of ours.
        config.send_tls13_tickets = 0;
        config
    }
}

impl ResolvesServerCert for Certs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::SelfSigned(own) => own.leaf_for(hello.server_name()),
            Self::Files(files) => Some(files.current()),
        }
    }
}

/// Makes rustls' key of a chain and a private key.
fn certified(
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, rustls::Error> {
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map(Arc::new)
}
