//! The thread that writes: it alone changes the file, many exchanges at a time.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};

use super::file::{BUSY, File, FileError, Opened};
use super::key::Key;
use super::record::Record;
use super::{Entry, Limits, Shared, Source, place};

/// What is written at once.
const BATCH: usize = 256;
/// How long others may join what is written at once.
const GATHER: Duration = Duration::from_millis(2);
/// Then the thread rests so many times as long as it worked: under a load that takes all there is of the machine, what
/// newer exchanges push out meanwhile need not be written at all.
const REST: u32 = 9;
/// Not for long, be the disk as slow as it may.
const MAX_REST: Duration = Duration::from_millis(500);
/// A file that somebody is just making or mending is tried again after so long.
const AGAIN: Duration = Duration::from_millis(50);
/// How often what is too old is looked for when nothing comes.
const LOOK: Duration = Duration::from_secs(60);
/// Exchanges that a step removes beyond those that came.
const STEP: usize = 64;
/// Pages that are given back to the disk at once.
const GIVEN_BACK: u32 = 256;
/// After a failure the next try is this far off, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How many exchanges there are, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// The newest change.
    pub(crate) version: u64,
    /// Exchanges.
    pub(crate) count: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// How often something was deleted by hand.
    pub(crate) generation: u64,
}

/// Writes until all handles are gone.
pub(super) fn run(shared: &Shared, limits: Limits) {
    yield_to_others();
    let mut writer = Writer { limits, file: None, failed: None };
    loop {
        shared.wait(if writer.failed.is_some() { RETRY.0 } else { LOOK });
        let closed = shared.is_closed();
        shared.rest(GATHER);
        writer.work(shared, &shared.path, closed);
        if closed {
            return;
        }
    }
}

/// Deliveries come first: where cores are short, history waits.
fn yield_to_others() {
    // Of the whole program, elsewhere.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "the history's thread keeps its priority");
    }
}

struct Writer {
    limits: Limits,
    file: Option<File>,
    /// When the last try failed, and how far off the next one is.
    failed: Option<(Instant, Duration)>,
}

impl Writer {
    /// Writes all that waits.
    fn work(&mut self, shared: &Shared, path: &Path, closing: bool) {
        if self.failed.is_some_and(|(at, wait)| at.elapsed() < wait) && !closing && !shared.has_jobs() {
            shared.tell(Duration::ZERO);
            return;
        }
        match self.write_all(shared, path) {
            Ok(()) => {
                if self.failed.take().is_some() {
                    shared.solved();
                }
            }
            Err(error) => {
                let wait = self.failed.map_or(RETRY.0, |(_, wait)| (wait * 2).min(RETRY.1));
                self.failed = Some((Instant::now(), wait));
                shared.problem(&error);
                shared.tell(Duration::ZERO);
            }
        }
    }

    fn write_all(&mut self, shared: &Shared, path: &Path) -> Result<(), FileError> {
        let mut file = match self.file.take() {
            Some(file) if file.is_current() => file,
            _ => {
                let (file, opened) = open(path)?;
                publish(shared, path, &file, opened);
                file
            }
        };
        loop {
            let started = Instant::now();
            let done = write_some(&mut file, shared, self.limits);
            if matches!(done, Ok(true)) {
                shared.rest((started.elapsed() * REST).min(MAX_REST));
            }
            file = match done {
                Err(error @ FileError::Damaged(_)) => {
                    let (file, opened) = file.give_up(&error)?;
                    publish(shared, path, &file, opened);
                    file
                }
                Err(error) => {
                    self.file = Some(file);
                    return Err(error);
                }
                Ok(true) => file,
                Ok(false) => {
                    self.file = Some(file);
                    return Ok(());
                }
            };
        }
    }
}

/// Opens the file. SQLite does not wait by itself for what is done there when a file is new or was left in haste.
fn open(path: &Path) -> Result<(File, Opened), FileError> {
    let started = Instant::now();
    loop {
        match File::open(path) {
            Err(FileError::Locked) if started.elapsed() < BUSY => std::thread::sleep(AGAIN),
            opened => return opened,
        }
    }
}

fn publish(shared: &Shared, path: &Path, file: &File, opened: Opened) {
    shared.opened(Source { path: path.to_owned(), key: file.key.clone() }, opened);
}

/// Takes the next of what waits into the file. Whether there may be more.
fn write_some(file: &mut File, shared: &Shared, limits: Limits) -> Result<bool, FileError> {
    let (entries, jobs) = shared.take(BATCH);
    let worked = !entries.is_empty() || !jobs.is_empty();
    let key = file.key.clone();
    let (total, left) = match commit(file, &key, &entries, limits) {
        Ok(done) => done,
        Err(error) => {
            shared.put_back(jobs);
            return Err(error);
        }
    };
    shared.written(&entries);
    shared.changed(total);
    jobs.into_iter().for_each(|job| (job.0)(file));
    Ok(worked || left)
}

/// Whether the limits leave something to remove.
fn commit(file: &mut File, key: &Arc<Key>, entries: &[Arc<Entry>], limits: Limits) -> Result<(Total, bool), FileError> {
    let change = file.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut total = read_total(&change)?;
    let before = total;
    for entry in entries {
        put(&change, key, &entry.record, &mut total)?;
    }
    let left = prune(&change, &mut total, limits, entries.len() + STEP)?;
    if total != before {
        write_total(&change, total)?;
    }
    change.commit()?;
    if entries.is_empty() {
        give_back(file)?;
    }
    Ok((total, left))
}

/// Keeps an exchange, or adds to the one that is there.
pub(super) fn put(change: &Transaction<'_>, key: &Key, record: &Record, total: &mut Total) -> Result<(), FileError> {
    let known = change
        .prepare_cached("SELECT seq, heads, size FROM exchange WHERE id = ?")?
        .query_row([record.id.as_bytes()], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, u64>(2)?))
        })
        .optional()?;
    total.version += 1;
    let version = total.version;
    if let Some((seq, heads, size)) = known {
        let mut query = change.prepare_cached("SELECT sealed FROM body WHERE seq = ?")?;
        let bodies = query.query_row([seq], |row| row.get::<_, Vec<u8>>(0))?;
        // What cannot be opened is replaced by what is known now.
        let opened = key.open(&place(seq, b'h'), heads).zip(key.open(&place(seq, b'b'), bodies));
        let joined = opened.map(|(heads, bodies)| record.after(heads, bodies));
        let (heads, bodies) =
            joined.as_ref().map_or((&record.heads, &record.bodies), |(heads, bodies)| (heads, bodies));
        let sealed = [key.seal(&place(seq, b'h'), heads), key.seal(&place(seq, b'b'), bodies)];
        let new_size = sealed.iter().map(Vec::len).sum::<usize>() as u64;
        change
            .prepare_cached("UPDATE exchange SET version = ?, size = ?, heads = ? WHERE seq = ?")?
            .execute(params![version, new_size, sealed[0], seq])?;
        change.prepare_cached("UPDATE body SET sealed = ? WHERE seq = ?")?.execute(params![sealed[1], seq])?;
        total.bytes = (total.bytes + new_size).saturating_sub(size);
        return Ok(());
    }
    let sealed = [key.seal(&place(version, b'h'), &record.heads), key.seal(&place(version, b'b'), &record.bodies)];
    let size = sealed.iter().map(Vec::len).sum::<usize>() as u64;
    let at = Timestamp::now().as_microsecond();
    change.prepare_cached("INSERT INTO exchange VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        version,
        record.id.as_bytes(),
        at,
        size,
        record.pinned,
        sealed[0]
    ])?;
    change.prepare_cached("INSERT INTO body VALUES (?, ?)")?.execute(params![version, sealed[1]])?;
    total.count += 1;
    total.bytes += size;
    Ok(())
}

/// Removes the oldest that are over a limit, at most so many. Whether there are more.
fn prune(change: &Transaction<'_>, total: &mut Total, limits: Limits, most: usize) -> Result<bool, FileError> {
    let age = i64::try_from(limits.max_age.as_micros()).unwrap_or(i64::MAX);
    let too_old = Timestamp::now().as_microsecond().saturating_sub(age);
    let mut oldest =
        change.prepare_cached("SELECT seq, size, at FROM exchange WHERE pinned = 0 ORDER BY seq LIMIT 1")?;
    for removed in 0.. {
        let row = oldest.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?))).optional()?;
        // Pinned ones alone may be over the limit.
        let Some((seq, size, at)) = row else { break };
        if total.count <= limits.max_count && total.bytes <= limits.max_bytes && at >= too_old {
            break;
        }
        if removed == most {
            return Ok(true);
        }
        remove(change, seq, size, total)?;
    }
    Ok(false)
}

pub(super) fn remove(change: &Transaction<'_>, seq: u64, size: u64, total: &mut Total) -> Result<(), FileError> {
    change.prepare_cached("DELETE FROM exchange WHERE seq = ?")?.execute([seq])?;
    change.prepare_cached("DELETE FROM body WHERE seq = ?")?.execute([seq])?;
    total.count = total.count.saturating_sub(1);
    total.bytes = total.bytes.saturating_sub(size);
    Ok(())
}

/// Gives free pages back to the disk, some at a time, when they are many.
fn give_back(file: &File) -> Result<(), FileError> {
    let pages = |name| file.db.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    if pages("freelist_count")? > pages("page_count")? / 4 {
        file.db.execute_batch(&format!("PRAGMA incremental_vacuum({GIVEN_BACK})"))?;
    }
    Ok(())
}

pub(super) fn read_total(db: &rusqlite::Connection) -> Result<Total, FileError> {
    let mut query = db.prepare_cached("SELECT version, count, bytes, generation FROM total")?;
    Ok(query.query_row([], |row| {
        Ok(Total { version: row.get(0)?, count: row.get(1)?, bytes: row.get(2)?, generation: row.get(3)? })
    })?)
}

pub(super) fn write_total(change: &Transaction<'_>, total: Total) -> Result<(), FileError> {
    let mut update = change.prepare_cached("UPDATE total SET version = ?, count = ?, bytes = ?, generation = ?")?;
    update.execute(params![total.version, total.count, total.bytes, total.generation])?;
    Ok(())
}
