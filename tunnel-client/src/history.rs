//! The history: every exchange, kept sealed in a file. Nothing of a delivery waits for it.

mod file;
mod key;
mod read;
mod record;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tokio::sync::{oneshot, watch};

pub(crate) use file::FileError;
pub(crate) use read::{Listed, Query, Which, WhichError};
pub(crate) use record::{Record, Replay, Taken, Tried, encoded};
pub(crate) use writer::Total;

use crate::exchange::{Delivered, Event, Events, Exchange};
use crate::filter::Filter;
use file::{File, Opened};
use key::Key;

/// What waits to be written takes at most so many bytes.
const MAX_BACKLOG: usize = 64 << 20;
/// A program that ends waits this long for what is being written.
pub(crate) const WRITTEN_IN: Duration = Duration::from_secs(5);
/// A delivery is told after so long, whether it is written or not.
const OVERDUE: Duration = Duration::from_secs(3);
/// Connections for reading that are kept.
const MAX_READERS: usize = 4;

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
        self.0.closed.store(true, Ordering::Release);
        self.0.wake();
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

/// What handles and thread share.
#[derive(Debug)]
struct Shared {
    backlog: Mutex<Backlog>,
    thread: OnceLock<Thread>,
    closed: AtomicBool,
    path: PathBuf,
    source: Mutex<Option<Source>>,
    /// Told when the file was opened, or could not be.
    tried: Condvar,
    readers: Mutex<Vec<Connection>>,
    state: watch::Sender<State>,
}

/// The file as readers need it.
#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    key: Arc<Key>,
}

#[derive(Debug, Default)]
struct Backlog {
    /// Those that are being written stay in front until they are.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    jobs: VecDeque<Job>,
}

/// Work for the thread that writes.
struct Job(Box<dyn FnOnce(&mut File) + Send>);

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// An exchange to be written, and who is told when it is.
#[derive(Debug)]
struct Entry {
    record: Record,
    since: Instant,
    told: Mutex<Option<Told>>,
}

/// Who is told of an exchange, and what.
#[derive(Debug)]
struct Told {
    teller: Arc<Teller>,
    delivered: Box<Delivered>,
}

impl Entry {
    /// Tells of it, once.
    fn tell(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Told { teller, delivered }) = told {
            teller.tell(delivered, Some(&self.record));
        }
    }
}

impl History {
    /// The usual file's name.
    pub(crate) const FILE: &str = "history.db";

    /// Starts the thread that writes. Whether the file can be used shows later; deliveries do not wait for that.
    pub(crate) fn start(path: &Path, limits: Limits) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            backlog: Mutex::default(),
            thread: OnceLock::new(),
            closed: AtomicBool::new(false),
            path: path.to_owned(),
            source: Mutex::default(),
            tried: Condvar::new(),
            readers: Mutex::default(),
            state: watch::Sender::new(State::default()),
        });
        let own = shared.clone();
        let run = move || writer::run(&own, limits);
        let thread = std::thread::Builder::new().name("history".into()).spawn(run)?;
        // Nothing else sets it.
        let _ = shared.thread.set(thread.thread().clone());
        shared.wake();
        let life = Arc::new(Life(shared.clone()));
        Ok(Self { shared, limits, _life: life })
    }

    /// Keeps an exchange, and tells of its delivery once it is kept. Never waits.
    fn record(&self, record: Record, told: Option<Told>) {
        let mut backlog = self.shared.lock();
        let was_empty = backlog.entries.is_empty();
        backlog.push(Entry { record, since: Instant::now(), told: Mutex::new(told) });
        let mut over = Vec::new();
        // Those that newer ones would push out of the file need not go into it.
        while backlog.entries.len() as u64 > self.limits.max_count || backlog.bytes > MAX_BACKLOG {
            over.extend(backlog.pop());
        }
        drop(backlog);
        over.iter().for_each(|entry| entry.tell());
        if was_empty {
            self.shared.wake();
        }
    }

    /// What it holds and how it is; changes are seen there.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// What is kept at most.
    pub(crate) const fn limits(&self) -> Limits {
        self.limits
    }

    /// Runs `work` on the thread that writes, after all that was recorded before.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut File) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let (answer, result) = oneshot::channel();
        let shared = self.shared.clone();
        let job = Box::new(move |file: &mut File| {
            let done = work(file);
            // Before whoever asked goes on.
            if let Ok(total) = writer::read_total(&file.db) {
                shared.changed(total);
            }
            let _ = answer.send(done);
        });
        self.shared.lock().jobs.push_back(Job(job));
        self.shared.wake();
        let gone = || FileError::Io(std::io::Error::other(self.problem()));
        result.await.map_err(|_| gone())?
    }

    fn problem(&self) -> String {
        self.shared.state.borrow().problem.clone().unwrap_or_else(|| "it could not be changed just now".into())
    }

    /// Waits until all that was recorded is written.
    pub(crate) async fn written(&self) -> Result<(), FileError> {
        self.change(|_| Ok(())).await
    }

    /// The same; not for ever, and never mind.
    pub(crate) async fn flush(&self) {
        let _ = tokio::time::timeout(WRITTEN_IN, self.written()).await;
        self.shared.tell(Duration::ZERO);
    }

    /// Tells of what has waited for long to be written: a disk may hang.
    pub(crate) fn tell_overdue(&self) {
        self.shared.tell(OVERDUE);
    }

    /// Pins an exchange or lets it go. Whether there is such a one.
    pub(crate) async fn pin(&self, seq: u64, pinned: bool) -> Result<bool, FileError> {
        self.change(move |file| {
            let change = file.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut total = writer::read_total(&change)?;
            total.version += 1;
            let sql = "UPDATE exchange SET pinned = ?, version = ? WHERE seq = ?";
            let changed = change.execute(sql, params![pinned, total.version, seq])?;
            writer::write_total(&change, total)?;
            change.commit()?;
            Ok(changed > 0)
        })
        .await
    }

    /// Removes these exchanges. How many there were.
    pub(crate) async fn delete(&self, all: Vec<u64>) -> Result<usize, FileError> {
        self.change(move |file| {
            let change = file.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut total = writer::read_total(&change)?;
            let before = total.count;
            for seq in all {
                let size = change.query_row("SELECT size FROM exchange WHERE seq = ?", [seq], |row| row.get(0));
                if let Some(size) = rusqlite::OptionalExtension::optional(size)? {
                    writer::remove(&change, seq, size, &mut total)?;
                }
            }
            total.generation += 1;
            writer::write_total(&change, total)?;
            change.commit()?;
            Ok(usize::try_from(before - total.count).unwrap_or(0))
        })
        .await
    }

    /// Keeps exchanges that are not here yet. How many those were.
    pub(crate) async fn import(&self, records: Vec<Record>) -> Result<usize, FileError> {
        self.change(move |file| {
            let change = file.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut total = writer::read_total(&change)?;
            let mut known = change.prepare("SELECT 1 FROM exchange WHERE id = ?")?;
            let mut new = 0;
            for record in &records {
                if !known.exists([record.id.as_bytes()])? {
                    writer::put(&change, &file.key, record, &mut total)?;
                    new += 1;
                }
            }
            drop(known);
            writer::write_total(&change, total)?;
            change.commit()?;
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

/// Where exchanges go: into the history, and to whoever listens.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    history: Option<History>,
    /// One count for the two: it is taken for each exchange.
    teller: Arc<Teller>,
}

#[derive(Debug)]
struct Teller {
    events: Events,
    filter: Filter,
}

impl Recorder {
    /// `filter`: which deliveries whoever listens wants.
    pub(crate) fn new(events: Events, history: Option<History>, filter: Filter) -> Self {
        Self { history, teller: Arc::new(Teller { events, filter }) }
    }

    pub(crate) fn events(&self) -> &Events {
        &self.teller.events
    }

    pub(crate) const fn history(&self) -> Option<&History> {
        self.history.as_ref()
    }

    /// Whether heads and bodies are wanted.
    pub(crate) fn keeps(&self) -> bool {
        self.history.is_some() || !self.teller.filter.is_empty()
    }

    /// An exchange that has gone on for a while: it can be looked at before it is over.
    pub(crate) fn pending(&self, record: impl FnOnce() -> Record) {
        if let Some(history) = &self.history {
            history.record(record(), None);
        }
    }

    /// An exchange is over.
    pub(crate) fn over(&self, delivered: Box<Delivered>, record: impl FnOnce() -> Record) {
        let record = self.keeps().then(record);
        match (&self.history, record) {
            (Some(history), Some(record)) => {
                history.record(record, Some(Told { teller: self.teller.clone(), delivered }));
            }
            (_, record) => self.teller.tell(delivered, record.as_ref()),
        }
    }
}

impl Teller {
    fn tell(&self, mut delivered: Box<Delivered>, record: Option<&Record>) {
        if !self.filter.is_empty() {
            let exchange = record.and_then(|record| record.exchange().ok());
            delivered.is_wanted = exchange.is_some_and(|exchange| self.filter.matches(&exchange));
        }
        self.events.tell(Event::Delivered(delivered));
    }
}

/// A connection for reading.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    db: &'a Connection,
    key: &'a Key,
}

impl Backlog {
    fn push(&mut self, entry: Entry) {
        self.bytes += entry.record.size();
        self.entries.push_back(Arc::new(entry));
    }

    fn pop(&mut self) -> Option<Arc<Entry>> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.record.size();
        Some(entry)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Waits for something to do, at most so long.
    fn wait(&self, most: Duration) {
        let backlog = self.lock();
        let idle = backlog.entries.is_empty() && backlog.jobs.is_empty();
        drop(backlog);
        let failing = self.state.borrow().problem.is_some();
        if (idle || failing) && !self.is_closed() && self.is_opened() {
            std::thread::park_timeout(most);
        }
    }

    /// Rests, unless somebody waits for an answer or the end.
    fn rest(&self, length: Duration) {
        let until = Instant::now() + length;
        while !self.is_closed() && !self.has_jobs() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    fn is_opened(&self) -> bool {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).is_some() || self.state.borrow().problem.is_some()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn has_jobs(&self) -> bool {
        !self.lock().jobs.is_empty()
    }

    /// The next entries, which stay until they are written; the jobs when those are all.
    fn take(&self, most: usize) -> (Vec<Arc<Entry>>, VecDeque<Job>) {
        let mut backlog = self.lock();
        let entries: Vec<_> = backlog.entries.iter().take(most).cloned().collect();
        let all = entries.len() == backlog.entries.len();
        (entries, if all { std::mem::take(&mut backlog.jobs) } else { VecDeque::new() })
    }

    /// Jobs that could not be done: whoever waits for them is told when the reason is known.
    fn put_back(&self, jobs: VecDeque<Job>) {
        self.lock().jobs.extend(jobs);
    }

    /// These are in the file.
    fn written(&self, entries: &[Arc<Entry>]) {
        let mut backlog = self.lock();
        for entry in entries {
            // Newer ones may have pushed it out meanwhile.
            if backlog.entries.front().is_some_and(|first| Arc::ptr_eq(first, entry)) {
                backlog.pop();
            }
        }
        drop(backlog);
        entries.iter().for_each(|entry| entry.tell());
    }

    /// Tells of what has waited for so long.
    fn tell(&self, waited: Duration) {
        let all: Vec<_> = self.lock().entries.iter().take_while(|e| e.since.elapsed() >= waited).cloned().collect();
        all.iter().for_each(|entry| entry.tell());
    }

    fn opened(&self, source: Source, opened: Opened) {
        let aside = |(aside, why): (PathBuf, String)| {
            format!("{why}; what was there is kept as {}, and a new history begins", aside.display())
        };
        let key = |place| {
            let path = source.path.display();
            format!("requests are kept in {path}, sealed with a key in {place}; --no-store keeps none")
        };
        let (warning, note) = (opened.set_aside.map(aside), opened.new_key.map(key));
        self.state.send_if_modified(|state| {
            let new = warning.is_some() || note.is_some();
            state.warnings.extend(warning);
            state.notes.extend(note);
            new
        });
        // After that, so that whoever waits for the file knows.
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.told_readers();
    }

    fn changed(&self, total: Total) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.total, total) != total);
    }

    fn problem(&self, error: &FileError) {
        let problem = error.sentence();
        tracing::warn!(%problem, "the history cannot be written");
        self.state.send_if_modified(|state| {
            let new = state.problem.as_ref() != Some(&problem);
            state.problem = Some(problem);
            new
        });
        self.lock().jobs.clear();
        self.told_readers();
    }

    /// Wakes those that wait for the file. Under its lock, or one that is about to wait would miss it.
    fn told_readers(&self) {
        let _source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        self.tried.notify_all();
    }

    fn solved(&self) {
        self.state.send_modify(|state| state.problem = None);
    }

    fn read<T>(&self, work: impl FnOnce(&Reader<'_>) -> Result<T, FileError>) -> Result<T, FileError> {
        let source = self.source()?;
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let db = kept.map_or_else(|| File::reader(&source.path), Ok)?;
        let done = work(&Reader { db: &db, key: &source.key });
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if done.is_ok() && readers.len() < MAX_READERS {
            readers.push(db);
        }
        done
    }

    /// The open file; waits for it.
    fn source(&self) -> Result<Source, FileError> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let still = |source: &mut Option<Source>| source.is_none() && self.state.borrow().problem.is_none();
        let waited = self.tried.wait_timeout_while(source, WRITTEN_IN, still);
        let (source, _) = waited.unwrap_or_else(PoisonError::into_inner);
        source.clone().ok_or_else(|| {
            let problem = self.state.borrow().problem.clone();
            FileError::Io(std::io::Error::other(problem.unwrap_or_else(|| "it cannot be opened".into())))
        })
    }
}

/// Where a sealed piece belongs.
fn place(seq: u64, part: u8) -> [u8; 9] {
    let mut place = [part; 9];
    place[..8].copy_from_slice(&seq.to_be_bytes());
    place
}
