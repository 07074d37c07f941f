//! A developer's own keys, in files that only they may read.

use std::io::Write;
use std::path::PathBuf;

use crate::private;
use crate::signature::{DeveloperKey, KeyKind, Known, Signer};

/// Where the keys are; nowhere without a home.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    folder: Option<PathBuf>,
}

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// Nobody needs one.
    #[error("{0} signs with a secret that both sides have; there is no key to make")]
    NotNeeded(&'static str),
    /// There is none yet.
    #[error("there is no key for {0}")]
    None(&'static str),
    /// The file holds something else.
    #[error("{} is no key", .0.display())]
    NoKey(PathBuf),
    /// The file cannot be used.
    #[error("the key's file cannot be used")]
    Io(#[from] std::io::Error),
}

impl Keys {
    /// In this folder.
    pub(crate) const fn new(folder: PathBuf) -> Self {
        Self { folder: Some(folder) }
    }

    fn place(&self, provider: &Known) -> Result<(KeyKind, PathBuf), KeysError> {
        let facts = provider.facts();
        let kind = facts.developer_key.ok_or(KeysError::NotNeeded(facts.title))?;
        let folder = self.folder.as_ref().ok_or(KeysError::None(facts.title))?;
        Ok((kind, folder.join(format!("{}.pk8", facts.name))))
    }

    /// The key for that provider, and its file.
    pub(crate) fn find(&self, provider: &Known) -> Result<(DeveloperKey, PathBuf), KeysError> {
        let (kind, path) = self.place(provider)?;
        match std::fs::read(&path) {
            Ok(pkcs8) => match DeveloperKey::read(kind, &pkcs8) {
                Some(key) => Ok((key, path)),
                None => Err(KeysError::NoKey(path)),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(KeysError::None(provider.facts().title)),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, made when there is none. Whether it was.
    pub(crate) fn create(&self, provider: &Known) -> Result<bool, KeysError> {
        let (kind, path) = self.place(provider)?;
        let folder = self.folder.as_ref().ok_or(KeysError::None(provider.facts().title))?;
        private::folder(folder)?;
        // For its owner only, as temporary files are; whole or not at all.
        let mut file = tempfile::Builder::new().prefix("key-").tempfile_in(folder)?;
        file.write_all(&DeveloperKey::generate(kind))?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => Ok(true),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.error.into()),
        }
    }

    /// What signs for the provider with a key of the developer's own.
    pub(crate) fn signer(&self, provider: &Known) -> Option<Signer> {
        self.find(provider).ok().map(|(key, _)| Signer::Developer(key))
    }
}
