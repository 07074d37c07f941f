//! What the disk can do without a relay: a plain loop, and SQLite with one thread that commits for many.

use std::fs::File;
use std::io::Write;
use std::iter;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use rusqlite::{Connection, TransactionBehavior, params};

use crate::figures::{Clock, Measured};
use crate::load::Load;

/// As the relay has it: the log is moved into the file after so many pages.
const CHECKPOINT_PAGES: u32 = 8192;

/// Writes one body after the other to a file, and waits for the disk each time.
pub(super) async fn plain(folder: &Path, load: &Load) -> anyhow::Result<Measured> {
    let mut file = File::create(folder.join("plain"))?;
    let clock = Clock::start(&[std::process::id()]);
    let until = clock.until(load.time);
    let mut took = Vec::new();
    while Instant::now() < until {
        let start = Instant::now();
        file.write_all(&load.body)?;
        file.sync_data()?;
        took.push(start.elapsed());
    }
    clock.stop(took).await
}

/// Hands bodies from so many threads to one, which commits together what has come meanwhile, and answers after that.
pub(super) async fn sqlite(folder: &Path, producers: usize, load: &Load) -> anyhow::Result<Measured> {
    let db = open(folder)?;
    let (jobs, next) = mpsc::sync_channel(producers);
    let clock = Clock::start(&[std::process::id()]);
    let until = clock.until(load.time);
    let took = thread::scope(|scope| {
        let writer = scope.spawn(move || write_all(db, &next));
        let produce = |jobs: SyncSender<Job>| scope.spawn(move || keep_handing(&jobs, &load.body, until));
        let producers: Vec<_> = iter::repeat_n(jobs, producers).map(produce).collect();
        // What it says is why they could not go on.
        joined(writer)??;
        let each = producers.into_iter().map(|producer| joined(producer)?);
        anyhow::Ok(each.collect::<anyhow::Result<Vec<_>>>()?.concat())
    })?;
    clock.stop(took).await
}

/// A body to keep.
struct Job {
    body: Bytes,
    done: SyncSender<()>,
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))
}

fn open(folder: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(folder.join("plain.db"))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    db.execute_batch(
        "CREATE TABLE row (seq INTEGER PRIMARY KEY, name TEXT NOT NULL, path TEXT NOT NULL, bytes INTEGER NOT NULL);
         CREATE TABLE body (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    )?;
    Ok(db)
}

fn write_all(mut db: Connection, next: &Receiver<Job>) -> rusqlite::Result<()> {
    while let Ok(first) = next.recv() {
        // No more than there are producers: each waits for its answer.
        let all: Vec<Job> = iter::once(first).chain(next.try_iter()).collect();
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for Job { body, .. } in &all {
            let mut row = change.prepare_cached("INSERT INTO row (name, path, bytes) VALUES (?, ?, ?)")?;
            let seq = row.insert(params!["bench", "/webhook", body.len() as i64])?;
            change.prepare_cached("INSERT INTO body VALUES (?, ?)")?.execute(params![seq, &body[..]])?;
        }
        change.commit()?;
        for Job { done, .. } in all {
            // Nobody leaves before it has its answer.
            let _ = done.send(());
        }
    }
    Ok(())
}

fn keep_handing(jobs: &SyncSender<Job>, body: &Bytes, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    while Instant::now() < until {
        let start = Instant::now();
        // A pair for each: with one that is kept, this would wait for ever for a writer that has ended.
        let (done, answer) = mpsc::sync_channel(1);
        jobs.send(Job { body: body.clone(), done }).ok().context("the writer has ended")?;
        answer.recv().context("the writer has ended")?;
        took.push(start.elapsed());
    }
    Ok(took)
}
