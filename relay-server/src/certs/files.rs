//! Certificates from PEM files, read again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use super::leaf::Leaf;
use super::{CertsError, Expiry};

/// A chain and its key, and where they were read.
#[derive(Debug)]
pub(crate) struct Files {
    source: Mutex<Source>,
    current: ArcSwap<CertifiedKey>,
}

/// The two files, and when they were last changed, as far as can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    cert: PathBuf,
    key: PathBuf,
    changed: [Option<(SystemTime, u64)>; 2],
}

impl Source {
    /// To be made before they are read: what changes meanwhile is seen later.
    fn of(cert: &Path, key: &Path) -> Self {
        let changed = [cert, key].map(|path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len()))
        });
        Self { cert: cert.to_owned(), key: key.to_owned(), changed }
    }
}

impl Files {
    pub(super) fn open(cert: &Path, key: &Path) -> Result<Self, CertsError> {
        let source = Mutex::new(Source::of(cert, key));
        Ok(Self { source, current: ArcSwap::new(read(cert, key)?) })
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads these files, now and from now on; what cannot be used leaves all as it is.
    pub(super) fn read_from(&self, cert: &Path, key: &Path) -> Result<(), CertsError> {
        let (now, pair) = (Source::of(cert, key), read(cert, key)?);
        let mut source = self.source();
        self.current.store(pair);
        *source = now;
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<CertifiedKey> {
        self.current.load_full()
    }

    /// From when on it is good.
    pub(super) fn good_from(&self) -> Option<Timestamp> {
        Leaf::of(self.current()).ok().map(|leaf| leaf.not_before)
    }

    /// Whether it is for this host name.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let current = self.current();
        let leaf = current.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        let name = ServerName::try_from(host).ok();
        leaf.zip(name).is_some_and(|(leaf, name)| verify_server_name(&leaf, &name).is_ok())
    }

    /// How long it is good.
    pub(super) fn expiry(&self) -> Expiry {
        let Ok(leaf) = Leaf::of(self.current()) else { return Expiry::Unknown };
        Expiry::of(&self.source().cert.display().to_string(), &leaf)
    }

    /// Takes changed files into use. What cannot be used is logged, and the working pair stays.
    pub(super) fn reload(&self) {
        let mut source = self.source();
        let now = Source::of(&source.cert, &source.key);
        if *source == now {
            return;
        }
        match read(&now.cert, &now.key) {
            Ok(pair) => {
                self.current.store(pair);
                tracing::info!(cert = %now.cert.display(), "certificate reloaded");
            }
            Err(error) => {
                // One file may be written before the other: the next change brings the pair.
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "changed certificate not taken; the one before stays in force");
            }
        }
        *source = now;
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, CertsError> {
    let chain = parsed(cert, "certificate", |pem| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>())?;
    let private = parsed(key, "private key", PrivateKeyDer::from_pem_slice)?;
    let content = |source: Box<dyn std::error::Error + Send + Sync>| CertsError::Content {
        path: cert.display().to_string(),
        what: "certificate for the key",
        source,
    };
    if chain.is_empty() {
        return Err(content("it has no CERTIFICATE section".into()));
    }
    let pair = super::certified(chain, private).map_err(|error| content(error.into()))?;
    pair.keys_match().map_err(|error| content(error.into()))?;
    Ok(pair)
}

fn parsed<T>(
    path: &Path,
    what: &'static str,
    parse: impl FnOnce(&[u8]) -> Result<T, rustls::pki_types::pem::Error>,
) -> Result<T, CertsError> {
    let shown = path.display().to_string();
    let text = std::fs::read(path).map_err(|source| CertsError::File { path: shown.clone(), source })?;
    parse(&text).map_err(|error| CertsError::Content { path: shown, what, source: error.to_string().into() })
}
