//! A certificate with its key, and how long it is good.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate that can be put in force.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) key: Arc<CertifiedKey>,
    /// The CA's name for itself.
    pub(crate) issuer: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

/// Why a chain and a key are no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it is no PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("it has no certificate")]
    Empty,
    #[error("the key is not the certificate's")]
    Key(#[from] rustls::Error),
    #[error("it cannot be read")]
    Content(#[from] x509_parser::nom::Err<x509_parser::error::X509Error>),
    #[error("its times cannot be")]
    Times,
}

impl Leaf {
    /// Reads a chain in PEM, leaf first, and the leaf's key.
    pub(crate) fn read(chain: &str, key: &str) -> Result<Self, Unusable> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        if chain.is_empty() {
            return Err(Unusable::Empty);
        }
        let key = super::certified(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?;
        key.keys_match()?;
        Self::of(key)
    }

    /// What a certificate says of itself.
    pub(crate) fn of(key: Arc<CertifiedKey>) -> Result<Self, Unusable> {
        let (issuer, not_before, not_after) = read(key.cert.first().ok_or(Unusable::Empty)?)?;
        Ok(Self { key, issuer, not_before, not_after })
    }

    /// How long it is good in all.
    pub(crate) fn life(&self) -> Duration {
        Duration::try_from(self.not_after.duration_since(self.not_before)).unwrap_or_default()
    }

    /// Whether it was made within the first third of another's life.
    pub(crate) fn follows_soon(&self, other: &Self) -> bool {
        let after = Duration::try_from(self.not_before.duration_since(other.not_before)).unwrap_or_default();
        after < other.life() / 3
    }

    /// When it is renewed if the CA does not say: after two thirds of its life, or some time before.
    pub(crate) fn usual_renewal(&self) -> Timestamp {
        let life = self.life().as_secs();
        let after = Duration::from_secs(life * 2 / 3 - super::acme::random(life / 30));
        self.not_before.checked_add(after).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// A certificate's issuer and times.
pub(crate) fn read(leaf: &CertificateDer<'_>) -> Result<(String, Timestamp, Timestamp), Unusable> {
    let (_, leaf) = X509Certificate::from_der(leaf)?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).map_err(|_| Unusable::Times);
    let name = leaf.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
    let issuer = name.map_or_else(|| leaf.issuer().to_string(), str::to_owned);
    Ok((issuer, at(leaf.validity().not_before)?, at(leaf.validity().not_after)?))
}
