//! What is shown to the CA while it looks whether a name is ours (RFC 8555 §8, RFC 8737).

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use instant_acme::{ChallengeType, KeyAuthorization};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::CertifiedKey;

use crate::certs::dns::Zone;
use crate::certs::dns::update::{Server, UpdateError};
use crate::handover;

/// A hook must have done its work within this time.
const HOOK_TIME: Duration = Duration::from_secs(30);
/// Of what a hook says when it fails.
const MAX_SAID: usize = 500;

/// How a name is shown to be ours.
#[derive(Debug)]
pub(super) enum Prover {
    /// TXT records that the relay serves itself.
    Own(Arc<Zone>),
    /// TXT records in the zone of another name server, which has them everywhere after so long.
    Update(Server, Duration),
    /// TXT records that a command makes.
    Hook(PathBuf, Duration),
    /// Texts over plain HTTP.
    Http(Mutex<HashMap<String, String>>),
    /// Certificates over TLS.
    TlsAlpn(Mutex<HashMap<String, Arc<CertifiedKey>>>),
}

/// What is shown at present, so that it can be taken back.
#[derive(Debug)]
pub(super) enum Shown {
    Record { name: String, value: String },
    Token(String),
    Certificate(String),
}

/// Why it could not be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unshown {
    #[error(transparent)]
    Update(#[from] UpdateError),
    #[error("{} did not {what} {record}: {why}", .command.display())]
    Hook { command: PathBuf, what: &'static str, record: String, why: String },
    #[error("cannot make a certificate for the challenge")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use a certificate for the challenge")]
    Tls(#[from] rustls::Error),
}

impl Prover {
    /// The kind of challenge that it meets.
    pub(super) const fn kind(&self) -> ChallengeType {
        match self {
            Self::Own(_) | Self::Update(..) | Self::Hook(..) => ChallengeType::Dns01,
            Self::Http(_) => ChallengeType::Http01,
            Self::TlsAlpn(_) => ChallengeType::TlsAlpn01,
        }
    }

    /// What the CA wants to see for a name.
    pub(super) fn shown(&self, name: &str, token: &str, key: &KeyAuthorization) -> Shown {
        match self.kind() {
            ChallengeType::Http01 => Shown::Token(token.to_owned()),
            ChallengeType::TlsAlpn01 => Shown::Certificate(name.to_owned()),
            _ => Shown::Record { name: format!("_acme-challenge.{name}"), value: key.dns_value() },
        }
    }

    /// Shows it.
    pub(super) async fn show(&self, shown: &Shown, key: &KeyAuthorization) -> Result<(), Unshown> {
        match (self, shown) {
            (Self::Http(tokens), Shown::Token(token)) => {
                let mut tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
                tokens.insert(token.clone(), key.as_str().to_owned());
            }
            (Self::TlsAlpn(certificates), Shown::Certificate(name)) => {
                let certificate = certificate(name, key.digest().as_ref())?;
                let mut certificates = certificates.lock().unwrap_or_else(PoisonError::into_inner);
                certificates.insert(name.clone(), certificate);
            }
            (_, Shown::Record { name, value }) => self.record(name, value, true).await?,
            _ => {}
        }
        Ok(())
    }

    /// How long until all of it can be seen from everywhere.
    pub(super) const fn wait(&self) -> Duration {
        match self {
            Self::Update(_, wait) | Self::Hook(_, wait) => *wait,
            Self::Own(_) | Self::Http(_) | Self::TlsAlpn(_) => Duration::ZERO,
        }
    }

    /// Takes it back.
    pub(super) async fn take_back(&self, shown: Shown) {
        let undone = match (self, &shown) {
            (Self::Http(tokens), Shown::Token(token)) => {
                tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
                Ok(())
            }
            (Self::TlsAlpn(certificates), Shown::Certificate(name)) => {
                certificates.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                Ok(())
            }
            (_, Shown::Record { name, value }) => self.record(name, value, false).await,
            _ => Ok(()),
        };
        if let Err(error) = undone {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "a challenge's record stays behind");
        }
    }

    async fn record(&self, name: &str, value: &str, present: bool) -> Result<(), Unshown> {
        match self {
            Self::Own(zone) if present => zone.set(value),
            Self::Own(zone) => zone.unset(value),
            Self::Update(server, _) => server.change(name, value, present).await?,
            Self::Hook(command, _) => hook(command, name, value, present).await?,
            Self::Http(_) | Self::TlsAlpn(_) => {}
        }
        Ok(())
    }

    /// The text for a token, while it is shown.
    pub(super) fn text(&self, token: &str) -> Option<String> {
        let Self::Http(tokens) = self else { return None };
        tokens.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    /// The certificate for a name, while it is shown.
    pub(super) fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let Self::TlsAlpn(certificates) = self else { return None };
        certificates.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// Runs `COMMAND set|unset NAME VALUE`.
async fn hook(command: &PathBuf, record: &str, value: &str, present: bool) -> Result<(), Unshown> {
    let what = if present { "set" } else { "unset" };
    let failed = |why| Unshown::Hook { command: command.clone(), what, record: record.to_owned(), why };
    let mut child = tokio::process::Command::new(command);
    child.args([what, record, value]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    // It is no relay's successor.
    child.env_remove(handover::VARIABLE);
    let output = tokio::time::timeout(HOOK_TIME, child.output()).await;
    let output = output.map_err(|_| failed(format!("it was ended after {} s", HOOK_TIME.as_secs())))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(MAX_SAID).collect();
    Err(failed(format!("{}: {}", output.status, said.escape_debug())))
}

/// The certificate of RFC 8737 §3: for that name alone, with the digest in it.
fn certificate(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, Unshown> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key.into())?;
    // Not looked at again: it has an extension that is critical and that nobody but the CA knows.
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}
