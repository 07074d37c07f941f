//! The database: WAL, `synchronous=FULL`. One thread owns the connection that writes: what was asked meanwhile is
//! committed together, and answered after that. Another reads, so that a long list keeps no delivery waiting.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::schema;
use crate::store::{By, Later, StoreError};

const FILE: &str = "relay.db";
/// Another process may have the right to write for so long: a later version that copies the store before it changes it.
const BUSY_FOR: Duration = Duration::from_secs(30);
/// Calls that wait for a thread; more callers wait to be among them. So many are committed together at most.
const MAX_WAITING: usize = 256;

/// A handle to the threads that own the connections.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    /// Who acts, for the audit log.
    pub(super) by: By,
    writer: mpsc::Sender<Box<dyn Work>>,
    reader: mpsc::Sender<Box<dyn Work>>,
}

/// Something asked of the store.
trait Work: Send {
    /// Does it, and says whether it went well.
    fn run(&mut self, db: &Connection) -> bool;
    /// Answers, once it is known whether what was done stays.
    fn answer(self: Box<Self>, stays: Result<(), Arc<rusqlite::Error>>);
}

struct Asked<T, F> {
    work: Option<F>,
    done: Option<rusqlite::Result<T>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&Connection) -> rusqlite::Result<T> + Send> Work for Asked<T, F> {
    fn run(&mut self, db: &Connection) -> bool {
        self.done = self.work.take().map(|work| work(db));
        matches!(self.done, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, stays: Result<(), Arc<rusqlite::Error>>) {
        let done = match (stays, self.done) {
            (Err(error), _) => Err(error.into()),
            (Ok(()), Some(done)) => done.map_err(|error| Arc::new(error).into()),
            (Ok(()), None) => Err(StoreError::Closed),
        };
        // Nobody may be waiting any more; it is done all the same.
        let _ = self.answer.send(done);
    }
}

impl From<Arc<rusqlite::Error>> for StoreError {
    fn from(error: Arc<rusqlite::Error>) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Arc::new(error).into()
    }
}

/// The store's file.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

impl Database {
    /// Opens or makes it. With `migrate` one of an earlier version becomes one of this.
    pub(crate) fn open(data_dir: &Path, migrate: bool) -> Result<Self, StoreError> {
        let path = path(data_dir);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.display().to_string(),
            source,
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|e| failed(e.into()))?;
        // SQLite gives the files beside it the same rights.
        let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        drop(file.map_err(|e| failed(e.into()))?);
        let connect = || {
            let db = Connection::open(&path)?;
            db.busy_timeout(BUSY_FOR)?;
            db.set_prepared_statement_cache_capacity(32);
            Ok(db)
        };
        let mut write = connect().map_err(|e: rusqlite::Error| failed(e.into()))?;
        schema::prepare(&mut write, &path, migrate).map_err(|error| match error {
            StoreError::Failed(source) => failed(Box::new(source)),
            error => error,
        })?;
        let read = connect().map_err(|e| failed(e.into()))?;
        let start = |name: &str, run: fn(&mut Connection, &mut mpsc::Receiver<Box<dyn Work>>), mut db| {
            let (work, mut next) = mpsc::channel(MAX_WAITING);
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&mut db, &mut next));
            thread.map(|_| work).map_err(|e| failed(e.into()))
        };
        let by = By::relay();
        Ok(Self { by, writer: start("store", write_all, write)?, reader: start("store-read", read_all, read)? })
    }

    /// The same, acted on by somebody else.
    pub(super) fn acted_on_by(&self, by: By) -> Self {
        Self { by, ..self.clone() }
    }

    /// Runs `work` after what was asked before; all or nothing, and on disk when it is answered.
    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Later<'_, T> {
        ask(&self.writer, work)
    }

    /// Runs `work` on what is on disk.
    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Later<'_, T> {
        ask(&self.reader, work)
    }
}

fn ask<T: Send + 'static>(
    of: &mpsc::Sender<Box<dyn Work>>,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Later<'_, T> {
    Box::pin(async move {
        let (answer, result) = oneshot::channel();
        let asked = Asked { work: Some(work), done: None, answer };
        of.send(Box::new(asked)).await.map_err(|_| StoreError::Closed)?;
        result.await.unwrap_or(Err(StoreError::Closed))
    })
}

fn read_all(db: &mut Connection, next: &mut mpsc::Receiver<Box<dyn Work>>) {
    while let Some(mut work) = next.blocking_recv() {
        work.run(db);
        work.answer(Ok(()));
    }
}

/// Commits what has been asked so far together: one wait for the disk, however many have asked.
fn write_all(db: &mut Connection, next: &mut mpsc::Receiver<Box<dyn Work>>) {
    let mut all = Vec::with_capacity(MAX_WAITING);
    while next.blocking_recv_many(&mut all, MAX_WAITING) > 0 {
        let stays = commit(db, &mut all).map_err(Arc::new);
        for work in all.drain(..) {
            work.answer(stays.clone());
        }
    }
}

fn commit(db: &mut Connection, all: &mut [Box<dyn Work>]) -> rusqlite::Result<()> {
    let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for work in all {
        change.prepare_cached("SAVEPOINT one")?.execute([])?;
        if !work.run(&change) {
            if change.is_autocommit() {
                // A full disk has undone everything.
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                return Err(rusqlite::Error::SqliteFailure(full, None));
            }
            change.prepare_cached("ROLLBACK TO one")?.execute([])?;
        }
        change.prepare_cached("RELEASE one")?.execute([])?;
    }
    change.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn only_the_owner_may_read_the_store() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().expect("a folder");
        let store = Database::open(place.path(), true).expect("a store");
        store.kept_key([1; 32]).await.expect("kept");
        for entry in std::fs::read_dir(place.path()).expect("a folder") {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("its rights").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
        }
    }
}
