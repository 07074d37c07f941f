//! A verifier that remembers which certificate it was shown, trusted or not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::tunnel::Settings;
use crate::tunnel::dial::roots;

/// What a certificate says of itself.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) issuer: String,
    pub(super) names: Vec<String>,
    pub(super) ends: SystemTime,
}

/// Trusts what its own verifier does, and remembers what it was shown.
#[derive(Debug)]
pub(super) struct Witness {
    inner: Arc<dyn ServerCertVerifier>,
    leaf: Mutex<Option<CertificateDer<'static>>>,
}

impl Witness {
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let provider = Arc::new(default_provider());
        let inner: Arc<dyn ServerCertVerifier> = match &settings.ca {
            Some(path) => {
                let roots = roots(path).map_err(|error| error.cause().to_owned())?;
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| error.to_string())?
            }
            None => {
                let own = rustls_platform_verifier::Verifier::new(provider);
                Arc::new(own.map_err(|error| format!("the system's certificates cannot be used: {error}"))?)
            }
        };
        Ok(Self { inner, leaf: Mutex::default() })
    }

    pub(super) fn shown(&self) -> Option<Shown> {
        let leaf = self.leaf.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (_, leaf) = X509Certificate::from_der(&leaf).ok()?;
        let issuer = leaf.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
        let issuer = issuer.map_or_else(|| leaf.issuer().to_string(), str::to_owned);
        let names = leaf.subject_alternative_name().ok().flatten();
        let names = names.into_iter().flat_map(|names| &names.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let ends = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(ends);
        Some(Shown { issuer, names: names.take(8).collect(), ends })
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
        self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
