//! The tables, and how those of earlier versions become these.

use std::path::Path;

use rusqlite::Connection;

use super::backup;
use crate::store::StoreError;

/// What each version of the schema adds to the one before: from the sixth on tables, and columns with a default, nothing
/// else. The process before writes and reads while the next one takes over, and goes on when that comes to nothing.
const MIGRATIONS: [&str; 6] = [
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
    "
    CREATE TABLE acme_account (directory TEXT PRIMARY KEY, credentials TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE certificate (
        names TEXT PRIMARY KEY, directory TEXT NOT NULL, chain TEXT NOT NULL, key TEXT NOT NULL, due INTEGER NOT NULL,
        failures INTEGER NOT NULL, last_error TEXT NOT NULL, asked_at INTEGER
    ) STRICT, WITHOUT ROWID;
",
    // Names that were released, and for whom they are kept; developers' own host names.
    "
    CREATE TABLE held (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until INTEGER NOT NULL) STRICT;
    CREATE TABLE domain (host TEXT PRIMARY KEY, endpoint INTEGER NOT NULL, proved_at INTEGER NOT NULL) STRICT;
",
    // What tokens are for, what protects endpoints, and who changed what.
    "
    ALTER TABLE token ADD COLUMN scope TEXT NOT NULL DEFAULT 'client';
    ALTER TABLE endpoint ADD COLUMN protection TEXT NOT NULL DEFAULT '';
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, actor TEXT NOT NULL, via TEXT NOT NULL,
        action TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL, refused INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX audit_refused ON audit (seq) WHERE refused = 1;
",
];
/// Pages of the log before they are moved into the file: moving them costs two more waits for the disk.
const CHECKPOINT_PAGES: u32 = 8192;

/// The version that this program makes of a store.
pub(super) const NEWEST: i64 = MIGRATIONS.len() as i64;

/// The version of a store; 0 for an empty file.
pub(super) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Sets the connection up; with `migrate`, adds to an earlier version what it lacks, once a copy of it is on disk.
pub(super) fn prepare(db: &mut Connection, path: &Path, migrate: bool) -> Result<(), StoreError> {
    // Before anything is written: what a newer version made is left as it is.
    let found = version(db)?;
    if found > NEWEST {
        return Err(StoreError::Newer(found));
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    if !migrate && found > 0 {
        return Ok(());
    }
    // Others may be about the same: from here on nobody else writes.
    let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version = version(&change)?;
    let Some(missing) = usize::try_from(version).ok().and_then(|version| MIGRATIONS.get(version..)) else {
        return Err(StoreError::Newer(version));
    };
    if missing.is_empty() {
        return Ok(());
    }
    if version > 0 {
        let copy = backup::keep_copy(path, version)?;
        tracing::info!(copy = %copy.display(), from = version, to = NEWEST, "the store's schema is changed");
    }
    for migration in missing {
        change.execute_batch(migration)?;
    }
    change.pragma_update(None, "user_version", NEWEST)?;
    Ok(change.commit()?)
}

#[cfg(test)]
mod tests {
    use super::super::{Database, path};
    use super::*;
    use std::time::Duration;

    use crate::store::{Claimed, EndpointId, Missed, Store};

    #[test]
    fn a_newer_store_is_left_alone() {
        let place = tempfile::tempdir().expect("a folder");
        drop(Database::open(place.path(), true).expect("a store"));
        let file = path(place.path());
        let db = Connection::open(&file).expect("the file");
        db.pragma_update(None, "user_version", 99).expect("a pragma");
        assert!(matches!(Database::open(place.path(), true), Err(StoreError::Newer(99))));
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
        let store = Database::open(place.path(), true).expect("a store");
        let rows = store.endpoints().await.expect("endpoints");
        let seen: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.owner.as_str())).collect();
        assert_eq!(seen, [("a", "ann"), ("b", "bob")]);
        assert_ne!(rows[0].id, rows[1].id);
        let listeners = store.listeners().await.expect("listeners");
        let of: Vec<_> = listeners.iter().map(|row| (row.endpoint, row.name.as_str())).collect();
        assert_eq!(of, rows.iter().map(|row| (row.id, "")).collect::<Vec<_>>());
    }

    /// A store of the third version: certificates are new, and what is there stays.
    #[tokio::test]
    async fn a_store_without_certificates_is_taken_over() {
        let place = tempfile::tempdir().expect("a folder");
        let db = Connection::open(path(place.path())).expect("a file");
        MIGRATIONS[..3].iter().for_each(|migration| db.execute_batch(migration).expect("the third version"));
        db.execute_batch(
            "INSERT INTO endpoint VALUES (7, 'a', 'ann', '2026-01-01T00:00:00Z', '2026-01-02T00:00:00Z');
             PRAGMA user_version = 3",
        )
        .expect("an endpoint");
        drop(db);
        let store = Database::open(place.path(), true).expect("a store");
        assert_eq!(store.endpoints().await.expect("endpoints").len(), 1);
        assert_eq!(store.certificates().await.expect("certificates"), vec![]);
    }

    /// A store of the fourth version: names are held and host names kept from now on.
    #[tokio::test]
    async fn a_store_without_domains_is_taken_over() {
        let place = tempfile::tempdir().expect("a folder");
        let db = Connection::open(path(place.path())).expect("a file");
        MIGRATIONS[..4].iter().for_each(|migration| db.execute_batch(migration).expect("the fourth version"));
        db.execute_batch(
            "INSERT INTO endpoint VALUES (7, 'a', 'ann', '2026-01-01T00:00:00Z', '2026-01-02T00:00:00Z');
             PRAGMA user_version = 4",
        )
        .expect("an endpoint");
        drop(db);
        let store = Database::open(place.path(), true).expect("a store");
        assert_eq!(store.domains().await.expect("domains"), vec![]);
        let (name, now) = ("a".parse().expect("a name"), jiff::Timestamp::now());
        assert!(store.release_endpoint(&name, None, now, now + Duration::from_secs(60)).await.expect("released"));
        let claimed = store.claim_endpoint(&name, "bob", 9, now).await.expect("asked");
        assert!(matches!(claimed, Claimed::Held(_)), "{claimed:?}");
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
        let store = Database::open(place.path(), true).expect("a store");
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
