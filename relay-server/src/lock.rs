//! The lock that makes a data folder one relay's own. Its file says which relay that is.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const FILE: &str = "relay.lock";
/// Whoever looks whether a relay runs holds its lock for no longer.
const LOCKED_FOR: Duration = Duration::from_millis(200);
/// What it says is shorter.
const MAX_TEXT: u64 = 16 << 10;

/// A data folder is this relay's own until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

/// A relay that runs on a data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// HTTPS, and QUIC on UDP.
    pub https: Option<SocketAddr>,
    /// Plain HTTP.
    pub http: Option<SocketAddr>,
    /// The admin listener.
    pub admin: Option<SocketAddr>,
    /// Answers to DNS questions.
    pub dns: Option<SocketAddr>,
}

impl Running {
    /// Where it listens.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        [self.https, self.http, self.admin, self.dns].into_iter().flatten().collect()
    }
}

impl Lock {
    /// Makes a data folder this relay's own; `None` when it is another's.
    pub(crate) async fn take(data_dir: &Path) -> io::Result<Option<Self>> {
        let until = tokio::time::Instant::now() + LOCKED_FOR;
        loop {
            match Self::try_take(data_dir)? {
                None if tokio::time::Instant::now() < until => tokio::time::sleep(LOCKED_FOR / 10).await,
                taken => return Ok(taken),
            }
        }
    }

    /// The same, without waiting for those who only look.
    pub(crate) fn try_take(data_dir: &Path) -> io::Result<Option<Self>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
        let file = File::options().append(true).create(true).mode(0o600).open(data_dir.join(FILE))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Says which relay has it.
    pub(crate) fn tell(&self, running: &Running) {
        let text = serde_json::to_string(running).expect("plain values");
        let mut file = &self.0;
        // Without it, a look tells less.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{text}"));
    }
}

/// The relay that runs on a data folder, if one does.
///
/// # Errors
/// The folder is another user's.
pub fn running(data_dir: &Path) -> io::Result<Option<Running>> {
    let file = match File::open(data_dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => return Ok(None),
    }
    let mut text = String::new();
    // One of an earlier version says less.
    let _ = file.take(MAX_TEXT).read_to_string(&mut text);
    Ok(Some(serde_json::from_str(&text).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_relay_has_a_folder_and_says_which() {
        let place = tempfile::tempdir().expect("a folder");
        assert_eq!(running(place.path()).expect("a look"), None);
        let lock = Lock::take(place.path()).await.expect("a file").expect("free");
        assert!(Lock::take(place.path()).await.expect("a file").is_none());
        assert_eq!(running(place.path()).expect("a look"), Some(Running::default()), "it has not said yet");
        let told = Running { pid: 7, https: Some(([127, 0, 0, 1], 443).into()), ..Running::default() };
        lock.tell(&Running { version: "a longer one".into(), ..told.clone() });
        lock.tell(&told);
        assert_eq!(running(place.path()).expect("a look"), Some(told));
        drop(lock);
        assert_eq!(running(place.path()).expect("a look"), None);
        assert!(Lock::take(place.path()).await.expect("a file").is_some());
    }
}
