//! The relay's certificates: which one a TLS handshake gets, and when they change.

pub(crate) mod acme;
pub(crate) mod check;
mod dns;
mod files;
mod leaf;
mod self_signed;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::host::Host;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

pub(crate) use acme::ALPN_CHALLENGE;
pub(crate) use dns::Responder;
#[cfg(fuzzing)]
pub use dns::check_answers as check_dns_answers;

use crate::store::{CertificateRow, Store, StoreError};

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// From a CA, by ACME.
    Acme(Box<acme::Config>),
}

impl Config {
    /// Where questions about the relay's own zone are answered, if they are.
    pub(crate) fn dns(&self) -> Option<SocketAddr> {
        match self {
            Self::Acme(config) => match &config.proof {
                acme::Proof::Own(address) => Some(*address),
                _ => None,
            },
            Self::SelfSigned | Self::Files { .. } => None,
        }
    }
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
    /// The system's CAs cannot be had.
    #[error("the system's CA certificates cannot be used")]
    Roots(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The relay cannot answer DNS.
    #[error("cannot listen on {address} for DNS")]
    Dns {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No record can be made for the domain.
    #[error("{0} is no name that has DNS records")]
    NoZone(String),
    /// The key for DNS updates cannot be used.
    #[error("the key for DNS updates cannot be used")]
    KeyFile(#[from] dns::update::KeyFileError),
    /// What is kept cannot be read.
    #[error("the certificates that are kept cannot be read")]
    Store(#[from] StoreError),
    /// A certificate of the relay's own making cannot be used.
    #[error("a certificate made here cannot be used")]
    Made(#[source] rustls::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// The certificates in force.
#[derive(Debug)]
pub(crate) enum Certs {
    SelfSigned(Box<self_signed::SelfSigned>),
    Files(files::Files),
    Acme(Arc<acme::Acme>),
}

/// What a certificate that is kept says of itself: its issuer, and until when it is good. `None`: there is none yet.
#[must_use]
pub fn described(row: &CertificateRow) -> Option<(String, Timestamp)> {
    let leaf = leaf::Leaf::read(&row.chain, &row.key).ok()?;
    Some((leaf.issuer, leaf.not_after))
}

/// A certificate that is kept, for operators.
#[must_use]
pub fn shown(row: &CertificateRow) -> serde_json::Value {
    let CertificateRow { names, directory, due, failures, last_error, asked_at, .. } = row;
    let (issuer, not_after) = described(row).unzip();
    serde_json::json!({
        "names": names.split(' ').collect::<Vec<_>>(), "directory": directory, "issuer": issuer, "not_after": not_after,
        "renew_at": due, "asked_at": asked_at, "failures": failures,
        "last_error": Some(last_error).filter(|error| !error.is_empty()),
    })
}

/// How long the certificates in force are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// One is wanted and not there.
    Missing { name: String, why: String },
    /// The one that ends first.
    At { name: String, at: Timestamp, is_soon: bool },
    /// Nobody knows.
    Unknown,
}

impl Expiry {
    fn of(name: &str, leaf: &leaf::Leaf) -> Self {
        // Renewal begins at two thirds; when less than a sixth is left somebody should look.
        let left = Duration::try_from(leaf.not_after.duration_since(Timestamp::now())).unwrap_or_default();
        Self::At { name: name.to_owned(), at: leaf.not_after, is_soon: left < leaf.life() / 6 }
    }
}

impl Certs {
    /// The certificates, and what must run for them.
    pub(crate) async fn open(
        config: Config,
        data_dir: &std::path::Path,
        domain: &Host<'static>,
        store: Arc<dyn Store>,
        owner_of: acme::OwnerOf,
        dns: Option<(std::net::UdpSocket, std::net::TcpListener)>,
    ) -> Result<(Arc<Self>, Option<Responder>), CertsError> {
        let mut responder = None;
        let certs = match config {
            Config::SelfSigned => Self::SelfSigned(Box::new(self_signed::SelfSigned::open(data_dir, domain)?)),
            Config::Files { cert, key } => Self::Files(files::Files::open(&cert, &key)?),
            Config::Acme(config) => {
                let (acme, own) = acme::Acme::open(*config, domain, store, owner_of, dns).await?;
                responder = own;
                Self::Acme(acme)
            }
        };
        Ok((Arc::new(certs), responder))
    }

    /// What orders and renews, if anything does.
    pub(crate) fn acme(&self) -> Option<&Arc<acme::Acme>> {
        match self {
            Self::Acme(acme) => Some(acme),
            Self::SelfSigned(_) | Self::Files(_) => None,
        }
    }

    /// How long they are good.
    pub(crate) fn expiry(&self) -> Expiry {
        match self {
            // It renews itself, and nobody else can.
            Self::SelfSigned(_) => Expiry::Unknown,
            Self::Files(files) => files.expiry(),
            Self::Acme(acme) => acme.expiry(),
        }
    }

    /// The text of an HTTP-01 challenge (RFC 8555 §8.3), while a CA looks for it.
    pub(crate) fn http_challenge(&self, path: &str) -> Option<String> {
        self.acme()?.http_challenge(path.strip_prefix("/.well-known/acme-challenge/")?)
    }

    /// Why a host name that is not below the relay's domain has no certificate that is good for it, if it has none.
    pub(crate) fn wanting(&self, host: &str) -> Option<String> {
        match self {
            Self::SelfSigned(_) => {
                Some("the relay's own CA signs no names but the relay's; ask its operator for --tls acme".into())
            }
            Self::Files(files) => {
                let is_good = files.is_for(host);
                (!is_good).then(|| "the relay's certificate is not for it; ask its operator for one that is".into())
            }
            Self::Acme(acme) => acme.wanting(host),
        }
    }

    /// Has one ordered for a host name that leads to an endpoint, where that is possible; `at_once` where what was in its
    /// way is gone.
    pub(crate) fn want(&self, host: &str, at_once: bool) {
        if let Self::Acme(acme) = self {
            acme.want(host, at_once);
        }
    }

    /// Reads the certificate again, from wherever a configuration says.
    pub(crate) fn reload(&self, config: &Config) -> Result<(), CertsError> {
        match (self, config) {
            (Self::Files(files), Config::Files { cert, key }) => files.read_from(cert, key),
            _ => Ok(()),
        }
    }

    /// The CA that clients must be given, if it is the relay's own.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        match self {
            Self::SelfSigned(own) => Some(own.ca_path()),
            Self::Files(_) | Self::Acme(_) => None,
        }
    }

    /// Puts new certificates in force where files changed or an end is near. Called every second.
    pub(crate) fn upkeep(&self) {
        match self {
            Self::SelfSigned(own) => own.renew(),
            Self::Files(files) => files.reload(),
            // It looks after itself.
            Self::Acme(_) => {}
        }
    }

    /// A TLS configuration with these certificates and application protocols, for the public listener: a CA may look
    /// there, too.
    pub(crate) fn public_config(self: &Arc<Self>, alpn: &[&[u8]]) -> ServerConfig {
        let mut config = self.server_config(alpn);
        // All that is offered is strong; who scans wants the server to choose.
        config.ignore_client_order = true;
        if self.acme().is_some_and(|acme| acme.is_seen_over_tls()) {
            config.alpn_protocols.push(ALPN_CHALLENGE.to_vec());
        }
        config
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
            Self::Acme(acme) => acme.resolve(&hello),
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
