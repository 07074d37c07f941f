//! The lock that makes a data folder one relay's own. Its file says which relay that is.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const FILE: &str = "relay.lock";
/// Whoever looks whether a relay runs holds its lock for no longer.
pub(crate) const LOCKED_FOR: Duration = Duration::from_millis(200);
/// What it says is shorter.
const MAX_TEXT: u64 = 16 << 10;

/// A data folder is this relay's own until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

/// A relay that runs on a data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// Its process; 0 until it has said so.
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
    /// Makes a data folder this relay's own; `None` when it is another's for all of that time.
    pub(crate) async fn take(data_dir: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let until = tokio::time::Instant::now() + patience;
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
            // Nobody is to take what the one before said for this one's.
            Ok(()) => file.set_len(0).map(|()| Some(Self(file))),
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

/// Whether a process number that a relay has said is that relay's here, too: outside of its container it is another
/// process's. Where the system keeps no list of locks, it is believed.
pub fn is_seen(data_dir: &Path, relay: &Running) -> bool {
    let locks = std::fs::read_to_string("/proc/locks");
    let (Ok(file), Ok(locks)) = (data_dir.join(FILE).metadata(), locks) else { return true };
    // proc_locks(5): `1: FLOCK  ADVISORY  WRITE 1234 08:01:567 0 EOF`, the processes as this one numbers them.
    let (pid, inode) = (relay.pid.to_string(), format!(":{}", file.ino()));
    let is_it = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.get(4) == Some(&pid.as_str()) && words.get(5).is_some_and(|file| file.ends_with(&inode))
    };
    // Of files of an overlay the list may have other numbers; of one's own processes, and as root, their files tell.
    let has_it = || {
        let mut open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        Some(open.any(|open| {
            std::fs::metadata(open.path()).is_ok_and(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
        }))
    };
    locks.lines().any(is_it) || has_it() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_relay_has_a_folder_and_says_which() {
        let place = tempfile::tempdir().expect("a folder");
        assert_eq!(running(place.path()).expect("a look"), None);
        let lock = Lock::take(place.path(), LOCKED_FOR).await.expect("a file").expect("free");
        assert!(Lock::take(place.path(), LOCKED_FOR).await.expect("a file").is_none());
        assert_eq!(running(place.path()).expect("a look"), Some(Running::default()), "it has not said yet");
        let told = Running { pid: 7, https: Some(([127, 0, 0, 1], 443).into()), ..Running::default() };
        lock.tell(&Running { version: "a longer one".into(), ..told.clone() });
        lock.tell(&told);
        assert_eq!(running(place.path()).expect("a look"), Some(told.clone()));
        assert!(!is_seen(place.path(), &told), "that is not the number of this process");
        assert!(is_seen(place.path(), &Running { pid: std::process::id(), ..told }));
        drop(lock);
        assert_eq!(running(place.path()).expect("a look"), None);
        let _lock = Lock::take(place.path(), LOCKED_FOR).await.expect("a file").expect("free");
        assert_eq!(running(place.path()).expect("a look"), Some(Running::default()), "nor is it the one before");
    }
}
