//! The store in SQLite: WAL, `synchronous=FULL`. One thread owns the connection that writes: what was asked meanwhile
//! is committed together, and answered after that. Another reads, so that a long list keeps no delivery waiting.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::host::EndpointName;
use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, ToSql, params};
use tokio::sync::{mpsc, oneshot};

use super::{
    Dead, EndpointId, EndpointRow, Later, ListenerRow, Missed, NewDelivery, Payload, QueuedRow, Seq, Settled, Store,
    StoreError, TokenRow,
};

const FILE: &str = "relay.db";
/// What each version of the schema adds to the one before.
const MIGRATIONS: [&str; 3] = [
    "
    CREATE TABLE token (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, endpoints TEXT NOT NULL,
        created_at TEXT NOT NULL, expires_at TEXT, revoked_at TEXT
    ) STRICT;
    CREATE TABLE endpoint (
        name TEXT PRIMARY KEY, owner TEXT NOT NULL, created_at TEXT NOT NULL, last_seen_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE reset_key (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL) STRICT;
",
    // Numbers are never given twice: an endpoint's, for another may have its name; a delivery's, for the relay knows
    // it by that.
    "
    CREATE TABLE numbered (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, created_at TEXT NOT NULL,
        last_seen_at TEXT NOT NULL, rules BLOB NOT NULL
    ) STRICT;
    INSERT INTO numbered (name, owner, created_at, last_seen_at, rules)
        SELECT name, owner, created_at, last_seen_at, x'' FROM endpoint;
    DROP TABLE endpoint;
    ALTER TABLE numbered RENAME TO endpoint;
    CREATE TABLE delivery (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL, endpoint INTEGER NOT NULL, name TEXT NOT NULL,
        received_at INTEGER NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL, bytes INTEGER NOT NULL,
        attempts INTEGER NOT NULL, handed INTEGER NOT NULL, last TEXT NOT NULL, since INTEGER NOT NULL,
        dead_since INTEGER
    ) STRICT;
    CREATE INDEX dead ON delivery (dead_since) WHERE dead_since IS NOT NULL;
    CREATE TABLE payload (seq INTEGER PRIMARY KEY, head BLOB NOT NULL, body BLOB NOT NULL, trailers BLOB NOT NULL)
        STRICT;
",
    "
    CREATE TABLE listener (
        endpoint INTEGER NOT NULL, name TEXT NOT NULL, rules BLOB NOT NULL, seen_at INTEGER NOT NULL,
        missed INTEGER NOT NULL, missed_since INTEGER, missed_why TEXT NOT NULL, PRIMARY KEY (endpoint, name)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO listener SELECT id, '', rules, 0, 0, NULL, '' FROM endpoint;
    ALTER TABLE endpoint DROP COLUMN rules;
    ALTER TABLE delivery ADD COLUMN listener TEXT NOT NULL DEFAULT '';
    CREATE INDEX dead_of ON delivery (endpoint, dead_since) WHERE dead_since IS NOT NULL;
",
];
/// Tokens that were revoked or had expired this long ago are no longer listed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 86_400);
/// Calls that wait for a thread; more callers wait to be among them. So many are committed together at most.
const MAX_WAITING: usize = 256;
/// Pages of the log before they are moved into the file: moving them costs two more waits for the disk.
const CHECKPOINT_PAGES: u32 = 8192;

/// A handle to the threads that own the connections.
#[derive(Clone, Debug)]
pub(super) struct Database {
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
pub(super) fn path(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join(FILE)
}

impl Database {
    pub(super) fn open(data_dir: &Path) -> Result<Self, StoreError> {
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
            db.busy_timeout(Duration::from_secs(5))?;
            db.set_prepared_statement_cache_capacity(32);
            Ok(db)
        };
        let mut write = connect().map_err(|e: rusqlite::Error| failed(e.into()))?;
        prepare(&mut write).map_err(|error| match error {
            StoreError::Failed(source) => failed(Box::new(source)),
            error => error,
        })?;
        let read = connect().map_err(|e| failed(e.into()))?;
        let start = |name: &str, run: fn(&mut Connection, &mut mpsc::Receiver<Box<dyn Work>>), mut db| {
            let (work, mut next) = mpsc::channel(MAX_WAITING);
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&mut db, &mut next));
            thread.map(|_| work).map_err(|e| failed(e.into()))
        };
        Ok(Self { writer: start("store", write_all, write)?, reader: start("store-read", read_all, read)? })
    }

    /// Runs `work` after what was asked before; all or nothing, and on disk when it is answered.
    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Later<'_, T> {
        ask(&self.writer, work)
    }

    /// Runs `work` on what is on disk.
    fn read<T: Send + 'static>(
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

fn prepare(db: &mut Connection) -> Result<(), StoreError> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = usize::try_from(version).ok().and_then(|version| MIGRATIONS.get(version..)) else {
        return Err(StoreError::Newer(version));
    };
    for migration in missing {
        change.execute_batch(migration)?;
    }
    change.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    Ok(change.commit()?)
}

impl Store for Database {
    fn kept_key(&self, fresh: [u8; 32]) -> Later<'_, [u8; 32]> {
        self.write(move |db| {
            db.execute("INSERT INTO reset_key VALUES (1, ?) ON CONFLICT DO NOTHING", [fresh])?;
            db.query_row("SELECT key FROM reset_key", [], |row| row.get(0))
        })
    }

    fn version(&self) -> Later<'_, i64> {
        // On the connection that writes: its own changes are nobody else's.
        self.write(|db| db.pragma_query_value(None, "data_version", |row| row.get(0)))
    }

    fn insert_token(&self, row: TokenRow) -> Later<'_, ()> {
        self.write(move |db| {
            let endpoints = row.endpoints.join(" ");
            // `hookway dev` makes one at each start.
            let old =
                row.created_at.saturating_sub(FORGOTTEN_AFTER).map_or_else(|_| String::new(), |at| at.to_string());
            db.execute("DELETE FROM token WHERE revoked_at < ?1 OR expires_at < ?1", [old])?;
            db.execute(
                "INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![
                    row.id,
                    row.name,
                    row.hash,
                    endpoints,
                    row.created_at.to_string(),
                    row.expires_at.map(|at| at.to_string()),
                    row.revoked_at.map(|at| at.to_string()),
                ],
            )
            .map(drop)
        })
    }

    fn tokens(&self) -> Later<'_, Vec<TokenRow>> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT * FROM token ORDER BY created_at, id")?;
            query.query_map([], token)?.collect()
        })
    }

    fn revoke_tokens(&self, id_or_name: &str, at: Timestamp) -> Later<'_, Vec<TokenRow>> {
        let id_or_name = id_or_name.to_owned();
        self.write(move |db| {
            let mut query = db.prepare_cached(
                "UPDATE token SET revoked_at = ?2 WHERE (id = ?1 OR name = ?1) AND revoked_at IS NULL RETURNING *",
            )?;
            query.query_map(params![id_or_name, at.to_string()], token)?.collect()
        })
    }

    fn claim_endpoint(
        &self,
        name: &EndpointName,
        owner: &str,
        most: usize,
        at: Timestamp,
    ) -> Later<'_, Option<EndpointRow>> {
        let (name, owner, at) = (name.to_string(), owner.to_owned(), at.to_string());
        self.write(move |db| {
            let mut seen = db.prepare_cached("UPDATE endpoint SET last_seen_at = ?3 WHERE name = ?1 AND owner = ?2")?;
            let mut claim = db.prepare_cached(
                "INSERT INTO endpoint (name, owner, created_at, last_seen_at)
                 SELECT ?1, ?2, ?3, ?3 WHERE (SELECT count(*) FROM endpoint WHERE owner = ?2) < ?4
                 ON CONFLICT (name) DO NOTHING",
            )?;
            if seen.execute(params![name, owner, at])? == 0 {
                claim.execute(params![name, owner, at, i64::try_from(most).unwrap_or(i64::MAX)])?;
            }
            db.query_row("SELECT * FROM endpoint WHERE name = ?", [name], endpoint).optional()
        })
    }

    fn put_listener(&self, row: ListenerRow) -> Later<'_, ()> {
        self.write(move |db| {
            let ListenerRow { endpoint, name, rules, seen_at, missed } = row;
            let since = missed.since.map(Timestamp::as_microsecond);
            let mut put = db.prepare_cached(
                "INSERT OR REPLACE INTO listener
                     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM endpoint WHERE id = ?1)",
            )?;
            let seen_at = seen_at.as_microsecond();
            put.execute(params![endpoint.0, name, rules, seen_at, missed.count, since, missed.why]).map(drop)
        })
    }

    fn listeners(&self) -> Later<'_, Vec<ListenerRow>> {
        self.read(|db| {
            db.prepare_cached("SELECT * FROM listener ORDER BY endpoint, name")?.query_map([], listener)?.collect()
        })
    }

    fn remove_listener(&self, endpoint: EndpointId, name: &str) -> Later<'_, ()> {
        let name = name.to_owned();
        self.write(move |db| {
            db.execute("DELETE FROM listener WHERE endpoint = ? AND name = ?", params![endpoint.0, name]).map(drop)
        })
    }

    fn endpoints(&self) -> Later<'_, Vec<EndpointRow>> {
        self.read(|db| db.prepare_cached("SELECT * FROM endpoint ORDER BY name")?.query_map([], endpoint)?.collect())
    }

    fn release_endpoint(&self, name: &EndpointName, at: Timestamp) -> Later<'_, bool> {
        let name = name.to_string();
        self.write(move |db| {
            let sql = "DELETE FROM endpoint WHERE name = ? RETURNING id";
            let Some(id): Option<u64> = db.query_row(sql, [name], |row| row.get(0)).optional()? else {
                return Ok(false);
            };
            let sql = "UPDATE delivery SET dead_since = ?, last = 'the endpoint was released'
                       WHERE endpoint = ? AND dead_since IS NULL";
            db.execute(sql, params![at.as_microsecond(), id])?;
            db.execute("DELETE FROM listener WHERE endpoint = ?", [id])?;
            Ok(true)
        })
    }

    fn push(&self, row: NewDelivery, payload: Payload) -> Later<'_, Seq> {
        self.write(move |db| {
            let mut insert = db.prepare_cached(
                "INSERT INTO delivery
                     (id, endpoint, name, received_at, method, path, bytes, attempts, handed, last, since, listener)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, '', ?4, ?10)",
            )?;
            let seq = insert.insert(params![
                row.id.as_bytes(),
                row.endpoint.0,
                row.name,
                row.received_at.as_microsecond(),
                row.method,
                row.path,
                row.bytes,
                row.attempts,
                row.handed,
                row.listener,
            ])?;
            let mut insert = db.prepare_cached("INSERT INTO payload VALUES (?, ?, ?, ?)")?;
            insert.execute(params![seq, &payload.head[..], &payload.body[..], &payload.trailers[..]])?;
            Ok(seq.cast_unsigned())
        })
    }

    fn deliveries(&self) -> Later<'_, Vec<QueuedRow>> {
        self.read(|db| db.prepare_cached("SELECT * FROM delivery ORDER BY seq")?.query_map([], delivery)?.collect())
    }

    fn dead_letters(&self, endpoint: EndpointId, most: usize) -> Later<'_, Vec<QueuedRow>> {
        self.read(move |db| {
            let sql = "SELECT * FROM delivery WHERE endpoint = ? AND dead_since IS NOT NULL
                       ORDER BY dead_since DESC, seq DESC LIMIT ?";
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            db.prepare_cached(sql)?.query_map(params![endpoint.0, most], delivery)?.collect()
        })
    }

    fn payload(&self, seq: Seq) -> Later<'_, Option<Payload>> {
        self.read(move |db| {
            let bytes = |row: &Row<'_>, column| row.get::<_, Vec<u8>>(column).map(Bytes::from);
            let payload =
                |row: &Row<'_>| Ok(Payload { head: bytes(row, 0)?, body: bytes(row, 1)?, trailers: bytes(row, 2)? });
            let mut query = db.prepare_cached("SELECT head, body, trailers FROM payload WHERE seq = ?")?;
            query.query_row([seq], payload).optional()
        })
    }

    fn mark_handed(&self, all: Vec<Seq>, handed: bool) -> Later<'_, ()> {
        self.write(move |db| {
            let mut mark = db.prepare_cached("UPDATE delivery SET handed = ? WHERE seq = ?")?;
            all.iter().try_for_each(|seq| mark.execute(params![handed, seq]).map(drop))
        })
    }

    fn settle(&self, seq: Seq, settled: Settled) -> Later<'_, ()> {
        self.write(move |db| match settled {
            Settled::Done => delete(db, seq),
            Settled::Again { attempts, handed, last } => {
                let sql = "UPDATE delivery SET attempts = ?, handed = ?, last = ? WHERE seq = ?";
                db.prepare_cached(sql)?.execute(params![attempts, handed, last, seq]).map(drop)
            }
            Settled::Dead { attempts, last, at } => {
                let sql = "UPDATE delivery SET attempts = ?1, dead_since = ?3,
                               last = substr(iif(last = '', ?2, ?2 || '; before that: ' || last), 1, 400)
                           WHERE seq = ?4";
                db.prepare_cached(sql)?.execute(params![attempts, last, at.as_microsecond(), seq]).map(drop)
            }
        })
    }

    fn revive(&self, which: Dead, at: Timestamp) -> Later<'_, Vec<Seq>> {
        self.write(move |db| {
            let all = dead(db, &which)?;
            let mut revive = db.prepare_cached("UPDATE delivery SET dead_since = NULL, since = ? WHERE seq = ?")?;
            all.iter().try_for_each(|seq| revive.execute(params![at.as_microsecond(), seq]).map(drop))?;
            Ok(all)
        })
    }

    fn for_anyone(&self, all: Vec<Seq>) -> Later<'_, ()> {
        self.write(move |db| {
            let mut change = db.prepare_cached("UPDATE delivery SET listener = '' WHERE seq = ?")?;
            all.iter().try_for_each(|seq| change.execute([seq]).map(drop))
        })
    }

    fn reusable(&self) -> Later<'_, u64> {
        self.read(|db| {
            let pages: u64 = db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
            let size: u64 = db.pragma_query_value(None, "page_size", |row| row.get(0))?;
            Ok(pages * size)
        })
    }

    fn remove(&self, which: Dead) -> Later<'_, Vec<Seq>> {
        self.write(move |db| {
            let all = dead(db, &which)?;
            all.iter().try_for_each(|seq| delete(db, *seq))?;
            Ok(all)
        })
    }
}

fn delete(db: &Connection, seq: Seq) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM payload WHERE seq = ?")?.execute([seq])?;
    db.prepare_cached("DELETE FROM delivery WHERE seq = ?")?.execute([seq]).map(drop)
}

fn dead(db: &Connection, which: &Dead) -> rusqlite::Result<Vec<Seq>> {
    let find = |term: &str, value: &dyn ToSql| -> rusqlite::Result<Vec<Seq>> {
        let sql = format!("SELECT seq FROM delivery WHERE dead_since IS NOT NULL AND {term} ORDER BY seq");
        db.prepare_cached(&sql)?.query_map([value], |row| row.get(0))?.collect()
    };
    match which {
        Dead::These(all) => {
            let mut found = Vec::with_capacity(all.len());
            for seq in all {
                found.extend(find("seq = ?", seq)?);
            }
            Ok(found)
        }
        Dead::Of(endpoint) => find("endpoint = ?", &endpoint.0),
        Dead::Before(at) => find("dead_since <= ?", &at.as_microsecond()),
    }
}

fn endpoint(row: &Row<'_>) -> rusqlite::Result<EndpointRow> {
    Ok(EndpointRow {
        id: EndpointId(row.get(0)?),
        name: row.get(1)?,
        owner: row.get(2)?,
        created_at: parsed(row, 3)?,
        last_seen_at: parsed(row, 4)?,
    })
}

fn listener(row: &Row<'_>) -> rusqlite::Result<ListenerRow> {
    let since = row.get::<_, Option<i64>>(5)?.map(|_| at(row, 5)).transpose()?;
    let missed = Missed { count: row.get(4)?, since, why: row.get(6)? };
    let (endpoint, name, rules) = (EndpointId(row.get(0)?), row.get(1)?, row.get(2)?);
    Ok(ListenerRow { endpoint, name, rules, seen_at: at(row, 3)?, missed })
}

fn delivery(row: &Row<'_>) -> rusqlite::Result<QueuedRow> {
    let delivery = NewDelivery {
        id: DeliveryId::from_bytes(row.get(1)?),
        endpoint: EndpointId(row.get(2)?),
        name: row.get(3)?,
        received_at: at(row, 4)?,
        method: row.get(5)?,
        path: row.get(6)?,
        bytes: row.get(7)?,
        attempts: row.get(8)?,
        handed: row.get(9)?,
        listener: row.get(13)?,
    };
    let dead_since = row.get::<_, Option<i64>>(12)?.map(|_| at(row, 12)).transpose()?;
    Ok(QueuedRow { seq: row.get(0)?, since: at(row, 11)?, delivery, last: row.get(10)?, dead_since })
}

fn at(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    let wrong = |error: jiff::Error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Integer, error.into())
    };
    Timestamp::from_microsecond(row.get(column)?).map_err(wrong)
}

fn token(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    let endpoints: String = row.get("endpoints")?;
    Ok(TokenRow {
        id: row.get("id")?,
        name: row.get("name")?,
        hash: row.get("hash")?,
        endpoints: endpoints.split_whitespace().map(str::to_owned).collect(),
        created_at: parsed(row, 4)?,
        expires_at: row.get::<_, Option<String>>(5)?.map(|_| parsed(row, 5)).transpose()?,
        revoked_at: row.get::<_, Option<String>>(6)?.map(|_| parsed(row, 6)).transpose()?,
    })
}

fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let wrong =
        |error: T::Err| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into());
    row.get::<_, String>(column)?.parse().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_read_the_store() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().expect("a folder");
        let store = Database::open(place.path()).expect("a store");
        store.kept_key([1; 32]).await.expect("kept");
        for entry in std::fs::read_dir(place.path()).expect("a folder") {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("its rights").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
        }
    }

    #[test]
    fn a_newer_store_is_left_alone() {
        let place = tempfile::tempdir().expect("a folder");
        drop(Database::open(place.path()).expect("a store"));
        let file = path(place.path());
        let db = Connection::open(&file).expect("the file");
        db.pragma_update(None, "user_version", 99).expect("a pragma");
        assert!(matches!(Database::open(place.path()), Err(StoreError::Newer(99))));
    }

    /// A store of the first version: its endpoints stay, and get a number.
    #[tokio::test]
    async fn an_older_store_is_taken_over() {
        let place = tempfile::tempdir().expect("a folder");
        let db = Connection::open(path(place.path())).expect("a file");
        db.execute_batch(
            "CREATE TABLE token (id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,
                 endpoints TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT, revoked_at TEXT) STRICT;
             CREATE TABLE endpoint (name TEXT PRIMARY KEY, owner TEXT NOT NULL, created_at TEXT NOT NULL,
                 last_seen_at TEXT NOT NULL) STRICT;
             CREATE TABLE reset_key (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL) STRICT;
             INSERT INTO endpoint VALUES
                 ('a', 'ann', '2026-01-01T00:00:00Z', '2026-01-02T00:00:00Z'),
                 ('b', 'bob', '2026-01-01T00:00:00Z', '2026-01-02T00:00:00Z');
             PRAGMA user_version = 1",
        )
        .expect("the first version");
        drop(db);
        let store = Database::open(place.path()).expect("a store");
        let rows = store.endpoints().await.expect("endpoints");
        let seen: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.owner.as_str())).collect();
        assert_eq!(seen, [("a", "ann"), ("b", "bob")]);
        assert_ne!(rows[0].id, rows[1].id);
        let listeners = store.listeners().await.expect("listeners");
        let of: Vec<_> = listeners.iter().map(|row| (row.endpoint, row.name.as_str())).collect();
        assert_eq!(of, rows.iter().map(|row| (row.id, "")).collect::<Vec<_>>());
    }

    /// A store of the second version, with a queue: what its client asked for stays, and what waits.
    #[tokio::test]
    async fn a_queue_of_the_second_version_is_taken_over() {
        let place = tempfile::tempdir().expect("a folder");
        let db = Connection::open(path(place.path())).expect("a file");
        db.execute_batch(MIGRATIONS[0]).expect("the first version");
        db.execute_batch(MIGRATIONS[1]).expect("the second version");
        db.execute_batch(
            "INSERT INTO endpoint VALUES (7, 'a', 'ann', '2026-01-01T00:00:00Z', '2026-01-02T00:00:00Z', x'0102');
             INSERT INTO delivery VALUES (3, zeroblob(16), 7, 'a', 1, 'POST', '/hook', 5, 2, 1, 'why', 4, NULL);
             INSERT INTO payload VALUES (3, x'01', x'02', x'');
             PRAGMA user_version = 2",
        )
        .expect("a delivery");
        drop(db);
        let store = Database::open(place.path()).expect("a store");
        let listener = store.listeners().await.expect("listeners").pop().expect("one");
        assert_eq!((listener.endpoint, listener.name, listener.rules), (EndpointId(7), String::new(), vec![1, 2]));
        assert_eq!(listener.missed, Missed::default());
        let row = store.deliveries().await.expect("deliveries").pop().expect("one");
        assert_eq!(
            (row.seq, row.delivery.listener.as_str(), row.delivery.attempts, row.last.as_str()),
            (3, "", 2, "why")
        );
        assert_eq!(store.payload(3).await.expect("read").expect("kept").body, "\u{2}");
    }
}
