//! The history: every exchange, kept sealed in a file. Nothing of a delivery waits for it.

mod change;
mod file;
mod key;
mod read;
mod record;
mod recorder;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};
use tokio::sync::{oneshot, watch};

pub(crate) use change::Total;
pub(crate) use file::FileError;
pub(crate) use read::{Listed, Query, Which, WhichError};
pub(crate) use record::{CarriedOut, Record, Replay, Tried};
pub(crate) use recorder::Recorder;

use crate::exchange::Exchange;
use change::Change;
use file::File;
use key::Key;
use recorder::Told;
use shared::{Job, Shared};

/// A program that ends waits this long for what is being written.
pub(crate) const WRITTEN_IN: Duration = Duration::from_secs(5);
/// A delivery is told after so long, whether it is written or not.
const OVERDUE: Duration = Duration::from_secs(3);

/// What is kept; whatever is over a limit goes, the oldest first. Pinned exchanges stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Exchanges.
    pub(crate) max_count: u64,
    /// How old they may be.
    pub(crate) max_age: Duration,
    /// Their bytes.
    pub(crate) max_bytes: u64,
}

impl Limits {
    /// Of a program that only looks: what is kept is another's to say.
    pub(crate) const NONE: Self = Self { max_count: u64::MAX, max_age: Duration::MAX, max_bytes: u64::MAX };
}

/// A handle to the history.
#[derive(Clone, Debug)]
pub(crate) struct History {
    shared: Arc<Shared>,
    limits: Limits,
    _life: Arc<Life>,
}

/// The thread ends with the last handle.
#[derive(Debug)]
struct Life(Arc<Shared>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// How the history is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// What it holds, as far as this program knows.
    pub(crate) total: Total,
    /// Why exchanges cannot be written at present.
    pub(crate) problem: Option<String>,
    /// What a person should know, said once each.
    pub(crate) notes: Vec<String>,
    /// What has gone wrong and cannot be mended, likewise.
    pub(crate) warnings: Vec<String>,
}

impl History {
    /// The usual file's name.
    pub(crate) const FILE: &str = "history.db";

    /// Starts the thread that writes. Whether the file can be used shows later; deliveries do not wait for that.
    pub(crate) fn start(path: &Path, limits: Limits) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(path.to_owned()));
        let own = shared.clone();
        let run = move || writer::run(&own, limits);
        let thread = std::thread::Builder::new().name("history".into()).spawn(run)?;
        shared.written_by(thread.thread().clone());
        let life = Arc::new(Life(shared.clone()));
        Ok(Self { shared, limits, _life: life })
    }

    /// Keeps an exchange, and tells of its delivery once it is kept. Never waits.
    fn record(&self, record: Record, told: Option<Told>) {
        self.shared.push(record, told, self.limits.max_count);
    }

    /// What it holds and how it is; changes are seen there.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.shared.state()
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        self.shared.path()
    }

    /// What is kept at most.
    pub(crate) const fn limits(&self) -> Limits {
        self.limits
    }

    /// Runs `work` on the thread that writes, after all that was recorded before.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut File) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let (answer, result) = oneshot::channel();
        self.shared.ask(Job(Box::new(move |file| {
            let _ = answer.send(work(file));
        })));
        result.await.map_err(|_| {
            let why = self.shared.why().unwrap_or_else(|| "it could not be changed just now".into());
            FileError::Io(std::io::Error::other(why))
        })?
    }

    /// Changes what is kept, likewise; all or nothing.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Change<'_>) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let shared = self.shared.clone();
        self.ask(move |file| {
            let (done, total) = file.change(work)?;
            // Before whoever asked goes on.
            shared.changed(total);
            Ok(done)
        })
        .await
    }

    /// Waits until all that was recorded is written.
    pub(crate) async fn written(&self) -> Result<(), FileError> {
        self.ask(|_| Ok(())).await
    }

    /// The same; not for ever. How many are not.
    pub(crate) async fn flush(&self) -> usize {
        let _ = tokio::time::timeout(WRITTEN_IN, self.written()).await;
        self.shared.tell(Duration::ZERO);
        self.shared.waiting()
    }

    /// Tells of what has waited for long to be written: a disk may hang.
    pub(crate) fn tell_overdue(&self) {
        self.shared.tell(OVERDUE);
    }

    /// Pins an exchange or lets it go. Whether there is such a one.
    pub(crate) async fn pin(&self, seq: u64, pinned: bool) -> Result<bool, FileError> {
        self.change(move |change| {
            change.total.version += 1;
            let sql = "UPDATE exchange SET pinned = ?, version = ? WHERE seq = ?";
            Ok(change.db.execute(sql, params![pinned, change.total.version, seq])? > 0)
        })
        .await
    }

    /// Removes these exchanges. How many there were.
    pub(crate) async fn delete(&self, all: Vec<u64>) -> Result<usize, FileError> {
        self.change(move |change| {
            change.total.generation += 1;
            let mut deleted = 0;
            for seq in all {
                deleted += usize::from(change.remove(seq)?);
            }
            Ok(deleted)
        })
        .await
    }

    /// Keeps exchanges that are not here yet. How many those were.
    pub(crate) async fn import(&self, records: Vec<Record>) -> Result<usize, FileError> {
        self.change(move |change| {
            let mut new = 0;
            for record in &records {
                if !change.knows(record.id)? {
                    change.put(record)?;
                    new += 1;
                }
            }
            Ok(new)
        })
        .await
    }

    /// Runs `work` with a connection for reading, away from the runtime's thread. Waits until the file is open.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader<'_>) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let shared = self.shared.clone();
        let work = tokio::task::spawn_blocking(move || shared.read(work)).await;
        work.unwrap_or_else(|error| Err(FileError::Io(std::io::Error::other(error))))
    }

    /// What it holds by now, other programs' share too.
    pub(crate) async fn look(&self) -> Result<Total, FileError> {
        let total = self.read(|reader| reader.total()).await?;
        self.shared.changed(total);
        Ok(total)
    }

    /// One exchange, whole.
    pub(crate) async fn get(&self, which: Which) -> Result<Result<Exchange, WhichError>, FileError> {
        self.read(move |reader| reader.get(&which)).await
    }
}

/// A connection for reading.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    db: &'a Connection,
    key: &'a Key,
}

/// Where a sealed piece belongs.
fn place(seq: u64, part: u8) -> [u8; 9] {
    let mut place = [part; 9];
    place[..8].copy_from_slice(&seq.to_be_bytes());
    place
}
