//! Copies of a store: before its schema changes, and as backups. A copy is of one moment, and nobody who writes waits
//! for it. It is made under a name that nobody else has, and gets its own when it is whole.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, ffi, params};

use super::{database, schema};
use crate::lock::Lock;
use crate::store::{Backup, StoreError};

/// What a backup has besides the store: taken out when it is restored.
const EXTRA: &str = "
    CREATE TABLE backup (made_at TEXT NOT NULL, version TEXT NOT NULL, digest BLOB NOT NULL) STRICT;
    CREATE TABLE backup_file (name TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT;
";
/// Files of the data folder that are in a backup, where they are there: the relay's own CA.
const FILES: [&str; 2] = ["ca.pem", "ca-key.pem"];
/// Nobody writes any more to what was not written to for so long.
const LEFT_FOR: Duration = Duration::from_secs(3600);
/// Another process may be at the store, or at the copy, for so long.
const FREE_IN: Duration = Duration::from_secs(30);
/// What SQLite puts beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A file in the making, gone unless it gets its name.
#[derive(Debug)]
struct Part {
    path: PathBuf,
}

impl Part {
    /// Beside what it is to become, so that it can be given that name.
    fn beside(into: &Path) -> Result<Self, StoreError> {
        Self::sweep(into);
        let path = appended(into, &format!(".{}.part", DeliveryId::now()));
        File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed(&path))?;
        Ok(Self { path })
    }

    /// Removes what others have left that were killed.
    fn sweep(into: &Path) {
        let (Some(name), Ok(others)) = (into.file_name().and_then(OsStr::to_str), folder(into).read_dir()) else {
            return;
        };
        for other in others.flatten() {
            let path = other.path();
            let rest = path.file_name().and_then(OsStr::to_str).and_then(|other| other.strip_prefix(name));
            let id = rest.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".part"));
            let age = || other.metadata().ok()?.modified().ok()?.elapsed().ok();
            if id.is_some_and(|id| id.parse::<DeliveryId>().is_ok()) && age().is_some_and(|age| age > LEFT_FOR) {
                drop(Self { path });
            }
        }
    }

    /// Fills it with a database.
    fn fill(&self, db: &Connection) -> Result<Connection, StoreError> {
        let mut copy = Connection::open(&self.path)?;
        let backup = rusqlite::backup::Backup::new(db, &mut copy)?;
        let began = Instant::now();
        // All at once: what is written meanwhile would begin it anew.
        while backup.step(-1)? != rusqlite::backup::StepResult::Done {
            if began.elapsed() > FREE_IN {
                return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(backup);
        // One file, with nothing beside it.
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        copy.pragma_update(None, "journal_mode", "MEMORY")?;
        Ok(copy)
    }

    /// Gives it its name, for good; in place of a file of that name only where that is wanted.
    fn put(self, into: &Path, replace: bool) -> Result<(), StoreError> {
        let put = || {
            File::open(&self.path)?.sync_all()?;
            if replace {
                std::fs::rename(&self.path, into)?
            } else {
                rename_new(&self.path, into)?
            }

            File::open(folder(into))?.sync_all()
        };
        put().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => StoreError::There(into.display().to_string()),
            _ => failed(into)(error),
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        BESIDE.iter().for_each(|end| drop(std::fs::remove_file(appended(&self.path, end))));
    }
}

/// Renames, unless there is something of the new name.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.symlink_metadata().is_err() => {
            std::fs::rename(from, to)
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        done => Ok(done?),
    }
}

fn folder(of: &Path) -> &Path {
    of.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn appended(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |source| StoreError::Open { path: path.clone(), source: source.into() }
}

/// Opens a database that is there.
fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = failed(path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(|error| failed(io::Error::other(error)))?;
    db.busy_timeout(Duration::from_secs(5))?;
    Ok(db)
}

/// Opens a file that nobody writes, and puts nothing beside it.
fn open_still(path: &Path) -> rusqlite::Result<Connection> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    let encoded: String = path
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    // An empty authority: a path that begins with two slashes is none.
    let start = if path.is_absolute() { "//" } else { "" };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{start}{encoded}?immutable=1"), flags)
}

/// Copies a store as it was committed last, before its schema is changed by whoever holds the right to write.
pub(super) fn keep_copy(path: &Path, version: i64) -> Result<PathBuf, StoreError> {
    let into = appended(path, &format!(".schema-{version}"));
    let part = Part::beside(&into)?;
    part.fill(&open(path)?)?.close().map_err(|(_, error)| StoreError::from(error))?;
    part.put(&into, true)?;
    Ok(into)
}

pub(in crate::store) fn versions(data_dir: &Path) -> Result<(Option<i64>, i64), StoreError> {
    let path = database::path(data_dir);
    let found = path.exists().then(|| Ok::<_, StoreError>(schema::version(&open(&path)?)?)).transpose()?;
    Ok((found, schema::NEWEST))
}

pub(in crate::store) fn backup(data_dir: &Path, file: &Path) -> Result<Backup, StoreError> {
    let path = database::path(data_dir);
    if !path.exists() {
        return Err(StoreError::Missing(data_dir.display().to_string()));
    }
    if file.symlink_metadata().is_ok() {
        return Err(StoreError::There(file.display().to_string()));
    }
    let db = open(&path)?;
    let version = schema::version(&db)?;
    if version > schema::NEWEST {
        return Err(StoreError::Newer(version));
    }
    let part = Part::beside(file)?;
    let mut copy = part.fill(&db)?;
    let change = copy.transaction()?;
    change.execute_batch(EXTRA)?;
    for name in FILES {
        match std::fs::read(data_dir.join(name)) {
            Ok(content) => drop(change.execute("INSERT INTO backup_file VALUES (?, ?)", params![name, content])?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&data_dir.join(name))(error)),
        }
    }
    let (now, version) = (Timestamp::now().to_string(), env!("CARGO_PKG_VERSION"));
    change.execute("INSERT INTO backup VALUES (?, ?, ?)", params![now, version, digest_of(&change)?])?;
    change.commit()?;
    copy.close().map_err(|(_, error)| StoreError::from(error))?;
    let made = look(&part.path, file)?.1;
    part.put(file, false)?;
    Ok(made)
}

/// SHA-256 of all that is in a database but what says of it that it is a backup: a bit that has flipped in a value is
/// none of SQLite's concern.
fn digest_of(db: &Connection) -> rusqlite::Result<Vec<u8>> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |kind: u8, bytes: &[u8]| {
        context.update(&[kind]);
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    let sql = "SELECT name, ifnull(sql, '') FROM sqlite_schema WHERE type = 'table' AND name <> 'backup' ORDER BY name";
    let tables: Vec<(String, String)> =
        db.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    for (name, sql) in tables {
        add(0, sql.as_bytes());
        let mut query = db.prepare(&format!("SELECT * FROM \"{}\"", name.replace('"', "\"\"")))?;
        let columns = query.column_count();
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Null => add(1, &[]),
                    ValueRef::Integer(value) => add(2, &value.to_be_bytes()),
                    ValueRef::Real(value) => add(3, &value.to_be_bytes()),
                    ValueRef::Text(text) => add(4, text),
                    ValueRef::Blob(bytes) => add(5, bytes),
                }
            }
        }
    }
    Ok(context.finish().as_ref().to_vec())
}

/// A backup, and what it says of itself, once all of it has been read. Messages name it as `shown`.
fn look(file: &Path, shown: &Path) -> Result<(Connection, Backup), StoreError> {
    let no_backup = |why: String| StoreError::NoBackup { path: shown.display().to_string(), why };
    let broken = |error: rusqlite::Error| no_backup(error.to_string());
    let db = open_still(file).map_err(broken)?;
    let integrity: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(broken)?;
    if integrity != "ok" {
        return Err(no_backup(integrity));
    }
    let version = schema::version(&db).map_err(broken)?;
    if version > schema::NEWEST {
        return Err(StoreError::Newer(version));
    }
    let sql = "SELECT 1 FROM sqlite_schema WHERE name = 'backup'";
    if db.query_row(sql, [], |_| Ok(())).optional().map_err(broken)?.is_none() {
        return Err(no_backup("it was not made by hookway-relay backup".into()));
    }
    let made = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let made = db.query_row("SELECT made_at, version, digest FROM backup", [], made).map_err(broken)?;
    let (made_at, by, digest): (String, String, Vec<u8>) = made;
    if digest_of(&db).map_err(broken)? != digest {
        return Err(no_backup("something in it is not as it was written".into()));
    }
    let count = |table: &str| -> rusqlite::Result<u64> {
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
    };
    let files: rusqlite::Result<Vec<String>> =
        (|| db.prepare("SELECT name FROM backup_file ORDER BY name")?.query_map([], |row| row.get(0))?.collect())();
    let backup = Backup {
        made_at: made_at.parse().map_err(|_| no_backup("it does not say when it was made".into()))?,
        version: by,
        endpoints: count("endpoint").map_err(broken)?,
        tokens: count("token").map_err(broken)?,
        // The first versions had no queue.
        deliveries: if version >= 2 { count("delivery").map_err(broken)? } else { 0 },
        files: files.map_err(broken)?,
    };
    Ok((db, backup))
}

pub(in crate::store) fn restore(file: &Path, data_dir: &Path) -> Result<Backup, StoreError> {
    let path = database::path(data_dir);
    if !file.exists() {
        return Err(StoreError::NoBackup { path: file.display().to_string(), why: "there is no such file".into() });
    }
    let (backup, found) = look(file, file)?;
    // A log of another store would be written into this one.
    for there in std::iter::once(path.clone()).chain(BESIDE.map(|end| appended(&path, end))) {
        if there.symlink_metadata().is_ok() {
            return Err(StoreError::There(there.display().to_string()));
        }
    }
    // Of those alone, whatever the backup says.
    let mut files = Vec::new();
    for name in FILES.iter().filter(|name| found.files.iter().any(|it| it == *name)) {
        let sql = "SELECT content FROM backup_file WHERE name = ?";
        let content: Vec<u8> = backup.query_row(sql, [name], |row| row.get(0))?;
        let into = data_dir.join(name);
        // A restore that was cut short may be done again.
        match std::fs::read(&into) {
            Ok(there) if there == content => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => files.push((into, content)),
            _ => return Err(StoreError::There(into.display().to_string())),
        }
    }
    // No relay begins on half of it.
    let lock = Lock::try_take(data_dir).map_err(failed(data_dir))?;
    let _lock = lock.ok_or_else(|| StoreError::There(format!("a relay that runs on {}", data_dir.display())))?;
    let part = Part::beside(&path)?;
    let mut restored = part.fill(&backup)?;
    let change = restored.transaction()?;
    change.execute_batch("DROP TABLE backup; DROP TABLE backup_file;")?;
    if found.deliveries > 0 {
        // They may have been handed over since.
        change.execute("UPDATE delivery SET handed = 1", [])?;
    }
    change.commit()?;
    restored.close().map_err(|(_, error)| StoreError::from(error))?;
    for (into, content) in files {
        let part = Part::beside(&into)?;
        let write = || File::options().write(true).open(&part.path)?.write_all(&content);
        write().map_err(failed(&into))?;
        part.put(&into, false)?;
    }
    part.put(&path, false)?;
    Ok(found)
}
