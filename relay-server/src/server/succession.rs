//! One process after the other: what a relay does as the successor of another, and how it hands over to its own.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::parts::{Parts, UPKEEP};
use super::{Addresses, BindError, Server};
use crate::handover::{BEFORE, HandOverError, Predecessor, Successor};
use crate::lock::{LOCKED_FOR, Lock, Running};
use crate::store::StoreError;
use crate::tunnel::Listener;

/// A process that was to take over and does not ends within this time.
const ENDED_IN: Duration = Duration::from_secs(5);

/// Listens for clients over UDP, from when that can be.
pub(super) type Listening = BoxFuture<'static, io::Result<Listener>>;

/// What is said of this process before it is known where it listens.
pub(super) fn this_process() -> Running {
    Running { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned(), ..Running::default() }
}

/// Makes a data folder this process's own.
pub(super) async fn own(data_dir: &Path) -> Result<Lock, BindError> {
    let lock = Lock::take(data_dir, LOCKED_FOR).await.map_err(|source| {
        let path = data_dir.join("relay.lock").display().to_string();
        BindError::Store(StoreError::Open { path, source: source.into() })
    })?;
    let lock = lock.ok_or_else(|| BindError::InUse(data_dir.to_owned()))?;
    lock.tell(&this_process());
    Ok(lock)
}

/// Listens now.
pub(super) fn at_once(
    listen: impl FnOnce() -> io::Result<Listener>,
    addresses: Addresses,
) -> Result<Listening, BindError> {
    let failed = |source| BindError::Listen { what: "quic", address: addresses.https, source };
    Ok(Box::pin(std::future::ready(Ok(listen().map_err(failed)?))))
}

/// Tells the process before that this one serves; listens when that one, which reads from the socket until then, has
/// ended.
pub(super) fn after(
    mut predecessor: Predecessor,
    parts: &Parts,
    sockets: &Arc<Mutex<Vec<(String, OwnedFd)>>>,
    listen: impl FnOnce() -> io::Result<Listener> + Send + 'static,
) -> Result<Listening, BindError> {
    parts.queue.adopt(true);
    predecessor.serves().map_err(BindError::Predecessor)?;
    sockets.lock().unwrap_or_else(PoisonError::into_inner).extend(predecessor.lines());
    let (parts, sockets, gone) = (parts.clone(), sockets.clone(), predecessor.gone());
    Ok(Box::pin(async move {
        gone.cancelled().await;
        tracing::info!("the process before has ended: this one is alone now");
        sockets.lock().unwrap_or_else(PoisonError::into_inner).retain(|(label, _)| label != BEFORE);
        // What it accepted last is looked for once more.
        let (close, rest) = (parts.shutdown.close.clone(), parts.shutdown.rest.clone());
        let adopt = async move {
            while let Err(error) = parts.registry.reload().await {
                tracing::error!(%error, "what the process before accepted cannot be read; trying again");
                tokio::time::sleep(UPKEEP).await;
            }
            parts.queue.adopt(false);
        };
        rest.spawn(async move { close.run_until_cancelled(adopt).await });
        listen()
    }))
}

impl Server {
    /// Hands over to a program, which is given the arguments of this process, and says its process id. This one is to be
    /// shut down then: it finishes what it has in flight. After an error it goes on as before.
    ///
    /// # Errors
    /// Nobody took over.
    pub async fn hand_over(&self, program: &Path, args: Vec<OsString>) -> Result<u32, HandOverError> {
        if std::process::id() == 1 {
            return Err(HandOverError::First);
        }
        let successor = Successor::begin(program, args).await?;
        let mut lock = self.lock.lock().await;
        let queue = &self.parts.queue;
        queue.pause().await;
        drop(lock.take());
        let sockets: Vec<_> = {
            let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            sockets.iter().filter_map(|(label, fd)| Some((label.clone(), fd.try_clone().ok()?))).collect()
        };
        let given: Vec<_> = sockets.iter().map(|(label, fd)| (label.as_str(), fd.as_fd())).collect();
        match successor.take_over(&given).await {
            Ok(heir) => {
                self.parts.shutdown.succeeded();
                let pid = heir.pid;
                *self.heir.lock().unwrap_or_else(PoisonError::into_inner) = Some(heir);
                Ok(pid)
            }
            Err(error) => {
                match Lock::take(&self.config.load().data_dir, ENDED_IN).await {
                    Ok(Some(taken)) => {
                        taken.tell(&self.running);
                        *lock = Some(taken);
                    }
                    _ => tracing::error!("the data folder is another process's now"),
                }
                queue.resume();
                Err(error)
            }
        }
    }
}
