//! The key of the history, and what is sealed with it.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;

use crate::private;

const LENGTH: usize = 32;
/// What the key's file says when the key is in the system's keyring.
const IN_KEYRING: &[u8] = b"in the system's keyring\n";
/// What a row is more than what it holds: the nonce in front and the tag behind.
const OVERHEAD: usize = NONCE_LEN + 16;

/// Seals what is kept: AES-256-GCM with a random nonce for each piece (NIST SP 800-38D §8.2.2).
pub(super) struct Key(RandomizedNonceKey);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Where a key is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyPlace {
    /// The system's keyring.
    #[cfg(feature = "os-keyring")]
    Keyring,
    /// A file that only its owner may read.
    File(PathBuf),
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "os-keyring")]
            Self::Keyring => f.write_str("the system's keyring"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// A key, where it is, and whether it was made just now.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) place: KeyPlace,
    pub(super) is_new: bool,
}

impl Key {
    pub(super) fn new(bytes: &[u8; LENGTH]) -> Self {
        Self(RandomizedNonceKey::new(&AES_256_GCM, bytes).expect("a key of this length"))
    }

    /// The key of the history in this folder; made when there is none.
    pub(super) fn find(folder: &Path) -> io::Result<Found> {
        let path = folder.join("key");
        let found =
            |bytes: &[u8; LENGTH], is_new| Found { key: Self::new(bytes), place: KeyPlace::File(path.clone()), is_new };
        match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(bytes) if bytes == IN_KEYRING => return kept_elsewhere(folder),
            kept => return Ok(found(&whole(&path, kept?)?, false)),
        }
        #[cfg(feature = "os-keyring")]
        if let Some(key) = keyring::find(folder, true) {
            // Said in the file's place, or the key would seem lost when the keyring does not answer.
            write(&path, IN_KEYRING)?;
            return Ok(Found { key: Self::new(&key), place: KeyPlace::Keyring, is_new: true });
        }
        let is_new = write(&path, &fresh())?;
        // Of two programs that make one at once both get the same.
        Ok(found(&whole(&path, read(&path)?)?, is_new))
    }

    /// Seals in place; `place` is where it belongs, so that it opens nowhere else.
    pub(super) fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
        sealed.resize(NONCE_LEN, 0);
        sealed.extend_from_slice(plain);
        let (front, text) = sealed.split_at_mut(NONCE_LEN);
        let (nonce, tag) = self.0.seal_in_place_separate_tag(Aad::from(place), text).expect("shorter than GCM's limit");
        front.copy_from_slice(nonce.as_ref());
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// What was sealed; `None` when it was with another key, for another place, or has been changed.
    pub(super) fn open(&self, place: &[u8], mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let nonce = Nonce::try_assume_unique_for_key(sealed.get(..NONCE_LEN)?).ok()?;
        let length = self.0.open_in_place(nonce, Aad::from(place), &mut sealed[NONCE_LEN..]).ok()?.len();
        sealed.drain(..NONCE_LEN);
        sealed.truncate(length);
        Some(sealed)
    }
}

fn fresh() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    rand::fill(&mut bytes).expect("the system has random bytes");
    bytes
}

#[cfg(feature = "os-keyring")]
fn kept_elsewhere(folder: &Path) -> io::Result<Found> {
    let key = keyring::find(folder, false);
    let key = key.ok_or_else(|| io::Error::other("its key is in the system's keyring, which does not give it now"))?;
    Ok(Found { key: Key::new(&key), place: KeyPlace::Keyring, is_new: false })
}

#[cfg(not(feature = "os-keyring"))]
fn kept_elsewhere(_: &Path) -> io::Result<Found> {
    Err(io::Error::other("its key is in the system's keyring, which this build does not use (feature os-keyring)"))
}

/// Writes a file whole or not at all, and only if nobody else was first.
fn write(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    private::folder(folder)?;
    // For its owner only, as temporary files are.
    let mut new = tempfile::Builder::new().prefix("key-").tempfile_in(folder)?;
    new.write_all(bytes)?;
    new.as_file().sync_all()?;
    match new.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error.error),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    private::tighten(path)?;
    Ok(bytes)
}

fn whole(path: &Path, bytes: Vec<u8>) -> io::Result<[u8; LENGTH]> {
    bytes.try_into().map_err(|bytes: Vec<u8>| {
        io::Error::other(format!("{} has {} bytes and a key has {LENGTH}", path.display(), bytes.len()))
    })
}

#[cfg(feature = "os-keyring")]
mod keyring {
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{LENGTH, fresh};

    /// A keyring that is locked asks its owner, who may not be there.
    const ANSWER_IN: Duration = Duration::from_secs(10);

    /// The key in the system's keyring, made if there is none and one may be; `None` when no keyring answers.
    pub(super) fn find(folder: &Path, may_make: bool) -> Option<[u8; LENGTH]> {
        let account = folder.display().to_string();
        let (answer, found) = mpsc::sync_channel(1);
        let ask = move || {
            let _ = answer.send(ask(&account, may_make));
        };
        std::thread::Builder::new().name("keyring".into()).spawn(ask).ok()?;
        found.recv_timeout(ANSWER_IN).ok()?.map_err(|error| tracing::debug!(%error, "no keyring")).ok()
    }

    fn ask(account: &str, may_make: bool) -> keyring::Result<[u8; LENGTH]> {
        let entry = keyring::Entry::new("hookway history", account)?;
        match entry.get_secret() {
            Ok(secret) => secret.try_into().map_err(keyring::Error::BadEncoding),
            Err(keyring::Error::NoEntry) if may_make => {
                entry.set_secret(&fresh())?;
                // Of two programs that make one at once the last one's stays.
                entry.get_secret()?.try_into().map_err(keyring::Error::BadEncoding)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let key = Key::new(&[7; LENGTH]);
        let sealed = key.seal(b"1", b"secret");
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        assert_eq!(key.open(b"1", sealed.clone()).as_deref(), Some(&b"secret"[..]));
        assert_eq!(key.open(b"2", sealed.clone()), None);
        assert_eq!(Key::new(&[8; LENGTH]).open(b"1", sealed.clone()), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(b"1", changed), None, "byte {at}");
        }
        assert_eq!(key.open(b"1", vec![1; 5]), None);
        assert_ne!(key.seal(b"1", b"secret"), sealed, "a nonce of its own");
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new").join("key");
        assert!(write(&path, &[1; LENGTH]).expect("a key"));
        assert!(!write(&path, &[2; LENGTH]).expect("no other key"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("rights");
        assert_eq!(read(&path).expect("the key"), [1; LENGTH]);
        assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_cannot_be_had_is_not_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        for text in [IN_KEYRING, b"short"] {
            std::fs::write(folder.path().join("key"), text).expect("written");
            assert!(Key::find(folder.path()).is_err(), "{text:?}");
            assert_eq!(std::fs::read(folder.path().join("key")).expect("the file"), text);
        }
    }
}
