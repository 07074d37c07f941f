//! What the handles of a history and its thread share: what waits, the open file, and how things are.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::watch;

use super::change::Total;
use super::file::{File, FileError, Opened};
use super::key::Key;
use super::recorder::Told;
use super::{Reader, Record, State, WRITTEN_IN};

/// What waits to be written takes at most so many bytes.
const MAX_BACKLOG: usize = 64 << 20;
/// Connections for reading that are kept.
const MAX_READERS: usize = 4;

/// What handles and thread share.
#[derive(Debug)]
pub(super) struct Shared {
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
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) key: Arc<Key>,
}

#[derive(Debug, Default)]
struct Backlog {
    /// Those that are being written stay in front until they are.
    entries: VecDeque<Entry>,
    /// How many have left.
    left: u64,
    /// How many of them, from the front, are there without their bodies.
    bare: usize,
    bytes: usize,
    jobs: VecDeque<Job>,
}

/// Work for the thread that writes.
pub(super) struct Job(pub(super) Box<dyn FnOnce(&mut File) + Send>);

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
    told: Option<Told>,
}

/// What is written next.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) records: Vec<Record>,
    /// None, unless these are all that waits.
    pub(super) jobs: VecDeque<Job>,
    /// How many will have left when these have.
    end: u64,
}

impl Entry {
    /// Tells of it, once.
    fn tell(mut self) {
        if let Some(told) = self.told.take() {
            told.tell(&self.record);
        }
    }
}

impl Backlog {
    fn push(&mut self, entry: Entry) {
        self.bytes += entry.record.size();
        self.entries.push_back(entry);
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.left += 1;
        self.bare = self.bare.saturating_sub(1);
        self.bytes -= entry.record.size();
        Some(entry)
    }

    /// Makes room. What newer exchanges would push out of the file need not go into it. Then bodies go, the oldest
    /// first: that an exchange is over is worth more than they are.
    fn shrink(&mut self, most: u64) -> Vec<Entry> {
        let mut over = Vec::new();
        while self.entries.len() as u64 > most {
            over.extend(self.pop());
        }
        while self.bytes > MAX_BACKLOG {
            match self.entries.get_mut(self.bare) {
                Some(entry) => {
                    self.bytes -= entry.record.size();
                    entry.record.drop_bodies();
                    self.bytes += entry.record.size();
                    self.bare += 1;
                }
                None => over.extend(self.pop()),
            }
        }
        over
    }
}

impl Shared {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            backlog: Mutex::default(),
            thread: OnceLock::new(),
            closed: AtomicBool::new(false),
            path,
            source: Mutex::default(),
            tried: Condvar::new(),
            readers: Mutex::default(),
            state: watch::Sender::new(State::default()),
        }
    }

    /// This thread writes; it is woken when there is something to do.
    pub(super) fn written_by(&self, thread: Thread) {
        // Nothing else sets it.
        let _ = self.thread.set(thread);
        self.wake();
    }

    /// The last handle is gone.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// An exchange waits to be written, and then to be told; so many at most.
    pub(super) fn push(&self, record: Record, told: Option<Told>, most: u64) {
        let mut backlog = self.lock();
        let was_empty = backlog.entries.is_empty();
        backlog.push(Entry { record, since: Instant::now(), told });
        let over = backlog.shrink(most);
        drop(backlog);
        over.into_iter().for_each(Entry::tell);
        if was_empty {
            self.wake();
        }
    }

    /// A job waits for the thread.
    pub(super) fn ask(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.wake();
    }

    /// How many exchanges wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.lock().entries.len()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Why it cannot be written at present.
    pub(super) fn why(&self) -> Option<String> {
        self.state.borrow().problem.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Waits for something to do, at most so long.
    pub(super) fn wait(&self, most: Duration) {
        let backlog = self.lock();
        let idle = backlog.entries.is_empty() && backlog.jobs.is_empty();
        drop(backlog);
        let failing = self.state.borrow().problem.is_some();
        if (idle || failing) && !self.is_closed() && self.is_opened() {
            std::thread::park_timeout(most);
        }
    }

    /// Rests, unless somebody waits for an answer or the end.
    pub(super) fn rest(&self, length: Duration) {
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

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn has_jobs(&self) -> bool {
        !self.lock().jobs.is_empty()
    }

    /// The next of what waits. Exchanges stay until they are written; jobs come when those are all.
    pub(super) fn take(&self, most: usize) -> Taken {
        let mut backlog = self.lock();
        let records: Vec<_> = backlog.entries.iter().take(most).map(|entry| entry.record.clone()).collect();
        let all = records.len() == backlog.entries.len();
        let jobs = if all { std::mem::take(&mut backlog.jobs) } else { VecDeque::new() };
        Taken { end: backlog.left + records.len() as u64, records, jobs }
    }

    /// Jobs that could not be done: whoever waits for them is told when the reason is known.
    pub(super) fn put_back(&self, jobs: VecDeque<Job>) {
        self.lock().jobs.extend(jobs);
    }

    /// These are in the file.
    pub(super) fn written(&self, taken: &Taken) {
        let mut written = Vec::with_capacity(taken.records.len());
        let mut backlog = self.lock();
        // Newer ones may have pushed some of them out meanwhile.
        while backlog.left < taken.end {
            written.extend(backlog.pop());
        }
        drop(backlog);
        written.into_iter().for_each(Entry::tell);
    }

    /// Tells of what has waited for so long.
    pub(super) fn tell(&self, waited: Duration) {
        let mut backlog = self.lock();
        let late = backlog.entries.iter_mut().take_while(|entry| entry.since.elapsed() >= waited);
        let late: Vec<_> = late.filter_map(|entry| Some((entry.told.take()?, entry.record.clone()))).collect();
        drop(backlog);
        late.into_iter().for_each(|(told, record)| told.tell(&record));
    }

    pub(super) fn opened(&self, source: Source, opened: Opened) {
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

    pub(super) fn changed(&self, total: Total) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.total, total) != total);
    }

    pub(super) fn problem(&self, error: &FileError) {
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

    pub(super) fn solved(&self) {
        self.state.send_modify(|state| state.problem = None);
    }

    pub(super) fn read<T>(&self, work: impl FnOnce(&Reader<'_>) -> Result<T, FileError>) -> Result<T, FileError> {
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
            FileError::Io(std::io::Error::other(self.why().unwrap_or_else(|| "it cannot be opened".into())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{Exchange, samples};

    fn entry(body: usize) -> Entry {
        let exchange = samples::request("POST", "/", &[], &vec![b'x'; body]);
        let exchange = Exchange { attempts: vec![samples::attempt("http://a/", &[], b"")], ..exchange };
        Entry { record: Record::of(&exchange), since: Instant::now(), told: None }
    }

    #[test]
    fn what_waits_for_long_loses_its_bodies_and_is_there() {
        let mut backlog = Backlog::default();
        for _ in 0..70 {
            backlog.push(entry(1 << 20));
            assert!(backlog.shrink(1000).is_empty());
        }
        assert!(backlog.bytes <= MAX_BACKLOG);
        assert_eq!((backlog.entries.len(), backlog.bare), (70, 7));
        let kept = |entry: &Entry| entry.record.exchange().expect("an exchange");
        let (first, last) = (kept(&backlog.entries[6]), kept(&backlog.entries[7]));
        assert!(first.request.body.is_cut() && first.attempts.len() == 1);
        assert!(!last.request.body.is_cut());
        // The oldest go when there are too many.
        assert_eq!(backlog.shrink(68).len(), 2);
        assert_eq!((backlog.left, backlog.bare), (2, 5));
        while backlog.pop().is_some() {}
        assert_eq!((backlog.left, backlog.bare, backlog.bytes), (70, 0, 0));
    }
}
