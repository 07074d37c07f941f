//! The store in SQLite: WAL, `synchronous=FULL`, one thread that owns the one connection.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use hookway_protocol::host::EndpointName;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::{mpsc, oneshot};

use super::{EndpointRow, StoreError, TokenRow};
use crate::auth::Owner;

const FILE: &str = "relay.db";
/// What each version of the schema adds to the one before.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE token (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, endpoints TEXT NOT NULL,
        created_at TEXT NOT NULL, expires_at TEXT, revoked_at TEXT
    ) STRICT;
    CREATE TABLE endpoint (
        name TEXT PRIMARY KEY, owner TEXT NOT NULL, created_at TEXT NOT NULL, last_seen_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE reset_key (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL) STRICT;
"];
/// Tokens that were revoked or had expired this long ago are no longer listed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 86_400);
/// Calls that wait for the thread; more callers wait to be among them.
const MAX_WAITING: usize = 256;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the thread that owns the connection.
#[derive(Clone, Debug)]
pub(super) struct Database(mpsc::Sender<Job>);

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
        let mut connection = Connection::open(&path).map_err(|e| failed(e.into()))?;
        prepare(&mut connection).map_err(|error| match error {
            StoreError::Failed(source) => failed(source),
            error => error,
        })?;
        let (jobs, mut next) = mpsc::channel::<Job>(MAX_WAITING);
        let run = move || {
            while let Some(job) = next.blocking_recv() {
                job(&mut connection);
            }
        };
        std::thread::Builder::new().name("store".into()).spawn(run).map_err(|e| failed(e.into()))?;
        Ok(Self(jobs))
    }

    /// Runs `work` on the store's thread, after what was asked before.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, result) = oneshot::channel();
        // Nobody may be waiting any more; the work is done all the same.
        let job: Job = Box::new(move |connection| drop(answer.send(work(connection))));
        self.0.send(job).await.map_err(|_| StoreError::Closed)?;
        Ok(result.await.map_err(|_| StoreError::Closed)??)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.into())
    }
}

fn prepare(db: &mut Connection) -> Result<(), StoreError> {
    db.busy_timeout(Duration::from_secs(5))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
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

pub(super) fn version(db: &mut Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "data_version", |row| row.get(0))
}

/// The key of the first run, which is this one when there is none yet.
pub(super) fn kept_key(db: &mut Connection, fresh: &[u8; 32]) -> rusqlite::Result<[u8; 32]> {
    db.execute("INSERT INTO reset_key VALUES (1, ?) ON CONFLICT DO NOTHING", [fresh])?;
    db.query_row("SELECT key FROM reset_key", [], |row| row.get(0))
}

pub(super) fn insert_token(db: &mut Connection, row: &TokenRow) -> rusqlite::Result<()> {
    let endpoints = row.endpoints.join(" ");
    // `hookway dev` makes one at each start.
    let old = row.created_at.saturating_sub(FORGOTTEN_AFTER).map_or_else(|_| String::new(), |at| at.to_string());
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
}

pub(super) fn tokens(db: &mut Connection) -> rusqlite::Result<Vec<TokenRow>> {
    let mut query = db.prepare_cached("SELECT * FROM token ORDER BY created_at, id")?;
    query.query_map([], token)?.collect()
}

pub(super) fn revoke_tokens(db: &mut Connection, id_or_name: &str, at: Timestamp) -> rusqlite::Result<Vec<TokenRow>> {
    let mut query = db.prepare_cached(
        "UPDATE token SET revoked_at = ?2 WHERE (id = ?1 OR name = ?1) AND revoked_at IS NULL RETURNING *",
    )?;
    query.query_map(params![id_or_name, at.to_string()], token)?.collect()
}

pub(super) fn claim_endpoint(
    db: &mut Connection,
    name: &EndpointName,
    owner: &Owner,
    most: usize,
    at: Timestamp,
) -> rusqlite::Result<Option<Owner>> {
    let mut seen = db.prepare_cached("UPDATE endpoint SET last_seen_at = ?3 WHERE name = ?1 AND owner = ?2")?;
    let mut claim = db.prepare_cached(
        "INSERT INTO endpoint SELECT ?1, ?2, ?3, ?3 WHERE (SELECT count(*) FROM endpoint WHERE owner = ?2) < ?4
         ON CONFLICT (name) DO NOTHING",
    )?;
    let (name, at) = (name.as_str(), at.to_string());
    if seen.execute(params![name, owner.as_str(), at])? == 0 {
        claim.execute(params![name, owner.as_str(), at, i64::try_from(most).unwrap_or(i64::MAX)])?;
    }
    let owned = "SELECT owner FROM endpoint WHERE name = ?";
    db.query_row(owned, [name], |row| Ok(Owner::from(row.get::<_, String>(0)?.as_str()))).optional()
}

pub(super) fn endpoints(db: &mut Connection) -> rusqlite::Result<Vec<EndpointRow>> {
    let mut query = db.prepare_cached("SELECT name, owner, created_at, last_seen_at FROM endpoint ORDER BY name")?;
    let endpoint = |row: &Row<'_>| {
        Ok(EndpointRow {
            name: row.get(0)?,
            owner: row.get(1)?,
            created_at: parsed(row, 2)?,
            last_seen_at: parsed(row, 3)?,
        })
    };
    query.query_map([], endpoint)?.collect()
}

pub(super) fn release_endpoint(db: &mut Connection, name: &EndpointName) -> rusqlite::Result<bool> {
    Ok(db.execute("DELETE FROM endpoint WHERE name = ?", [name.as_str()])? > 0)
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
pub(super) fn set_schema(data_dir: &Path, version: i64) {
    let db = Connection::open(data_dir.join(FILE)).expect("the store's file");
    db.pragma_update(None, "user_version", version).expect("a pragma");
}
