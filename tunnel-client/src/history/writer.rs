//! The thread that writes: it alone changes the file, many exchanges at a time.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Limits;
use super::change::Total;
use super::file::{BUSY, File, FileError, InUse, Opened};
use super::record::Record;
use super::shared::{Shared, Source};

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

/// Writes until all handles are gone.
pub(super) fn run(shared: &Shared, limits: Limits) {
    let in_use = InUse::new(limits != Limits::NONE);
    let mut writer = Writer { limits, file: None, in_use, failed: None };
    loop {
        shared.wait(if writer.failed.is_some() { RETRY.0 } else { LOOK });
        let closed = shared.is_closed();
        shared.rest(GATHER);
        writer.work(shared, shared.path(), closed);
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
    in_use: InUse,
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
                let (file, opened) = open(path, &mut self.in_use)?;
                publish(shared, path, &file, opened);
                // Not before: whoever looks waits for that.
                if self.limits != Limits::NONE {
                    yield_to_others();
                }
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
                    let (file, opened) = file.give_up(&error, &mut self.in_use)?;
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
fn open(path: &Path, in_use: &mut InUse) -> Result<(File, Opened), FileError> {
    let started = Instant::now();
    loop {
        match File::open(path, in_use) {
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
    let mut taken = shared.take(BATCH);
    let (total, left) = match commit(file, &taken.records, limits) {
        Ok(done) => done,
        Err(error) => {
            shared.put_back(taken.jobs);
            return Err(error);
        }
    };
    let jobs = std::mem::take(&mut taken.jobs);
    let worked = !taken.records.is_empty() || !jobs.is_empty();
    shared.written(&taken);
    shared.changed(total);
    jobs.into_iter().for_each(|job| (job.0)(file));
    Ok(worked || left)
}

/// What there is by now, and whether the limits leave something to remove.
fn commit(file: &mut File, records: &[Record], limits: Limits) -> Result<(Total, bool), FileError> {
    let (left, total) = file.change(|change| {
        for record in records {
            change.put(record)?;
        }
        change.prune(limits, records.len() + STEP)
    })?;
    if records.is_empty() {
        give_back(file)?;
    }
    Ok((total, left))
}

/// Gives free pages back to the disk, some at a time, when they are many.
fn give_back(file: &File) -> Result<(), FileError> {
    let pages = |name| file.db.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    if pages("freelist_count")? > pages("page_count")? / 4 {
        file.db.execute_batch(&format!("PRAGMA incremental_vacuum({GIVEN_BACK})"))?;
    }
    Ok(())
}
