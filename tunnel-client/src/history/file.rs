//! The history's file: SQLite, what is in it sealed.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior};

use super::key::{Key, KeyPlace};
use crate::private;

/// What each version of the schema adds to the one before.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE exchange (
        seq INTEGER PRIMARY KEY, version INTEGER NOT NULL, id BLOB NOT NULL UNIQUE, at INTEGER NOT NULL,
        size INTEGER NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL, heads BLOB NOT NULL
    ) STRICT;
    CREATE INDEX exchange_version ON exchange (version);
    CREATE INDEX exchange_open ON exchange (seq) WHERE open = 1;
    CREATE TABLE body (seq INTEGER PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
    CREATE TABLE total (
        one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, count INTEGER NOT NULL,
        bytes INTEGER NOT NULL, generation INTEGER NOT NULL, sealed BLOB NOT NULL
    ) STRICT;
"];
/// Another program's change is waited for so long.
pub(super) const BUSY: Duration = Duration::from_secs(2);
/// How often it is looked whether another program is done.
const LOOK: Duration = Duration::from_millis(10);
/// Sealed into a new file, to know its key again.
const CHECK: &[u8] = b"hookway history";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It is damaged, or no history at all.
    #[error("the file is damaged")]
    Damaged(#[source] rusqlite::Error),
    /// It was sealed with another key.
    #[error("the history was sealed with another key")]
    OtherKey,
    /// A newer version of the program made it.
    #[error("the history is of a newer hookway (schema {0}); upgrade this one")]
    Newer(i64),
    /// Another program does not let go of it.
    #[error("another program keeps the history locked")]
    Locked,
    /// There is no room.
    #[error("the disk is full")]
    Full,
    /// Reading or writing failed otherwise.
    #[error("the history cannot be used")]
    Sqlite(#[source] rusqlite::Error),
    /// A file or folder cannot be made or read.
    #[error("the history's files cannot be used")]
    Io(#[from] io::Error),
}

impl From<rusqlite::Error> for FileError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sqlite(error),
        }
    }
}

impl FileError {
    /// The same in one sentence, with its cause.
    pub(crate) fn sentence(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) db: Connection,
    pub(super) key: Arc<Key>,
    path: PathBuf,
    inode: u64,
}

/// That somebody goes on with exchanges: those programs share a lock as long as they live.
#[derive(Debug)]
pub(super) struct InUse {
    keeps: bool,
    held: Option<std::fs::File>,
}

impl InUse {
    /// Of a program that keeps the exchanges that it carries out, or only looks at what others keep.
    pub(super) const fn new(keeps: bool) -> Self {
        Self { keeps, held: None }
    }

    /// Whether nobody does. Only under the folder's lock: no two programs find that at once.
    fn by_nobody(&mut self, folder: &Path) -> io::Result<bool> {
        if self.held.is_some() {
            return Ok(false);
        }
        let file = lock_file(&folder.join("in-use"))?;
        let nobody = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(error),
        };
        if self.keeps {
            file.lock_shared()?;
            self.held = Some(file);
        }
        Ok(nobody)
    }
}

/// What there is to say about opening.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Opened {
    /// A new key was made, and is there.
    pub(super) new_key: Option<KeyPlace>,
    /// What was there before could not be used and is kept here, and why.
    pub(super) set_aside: Option<(PathBuf, String)>,
}

impl File {
    /// Opens the file, or makes one. What is damaged or sealed with a lost key is set aside. Where nobody goes on with
    /// exchanges, those that are not over never will be, and are ended.
    pub(super) fn open(path: &Path, in_use: &mut InUse) -> Result<(Self, Opened), FileError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        private::folder(folder)?;
        let _lock = lock(folder)?;
        let found = Key::find(folder)?;
        let mut opened = Opened { new_key: found.is_new.then_some(found.place), set_aside: None };
        let key = Arc::new(found.key);
        let abandoned = in_use.by_nobody(folder).unwrap_or_else(|error| {
            tracing::warn!(%error, "it cannot be found out whether another client is running");
            false
        });
        let file = match Self::try_open(path, key.clone(), abandoned) {
            Err(error @ (FileError::Damaged(_) | FileError::OtherKey)) => {
                let aside = set_aside(path)?;
                opened.set_aside = Some((aside, error.sentence()));
                Self::try_open(path, key, abandoned)?
            }
            opened => opened?,
        };
        Ok((file, opened))
    }

    fn try_open(path: &Path, key: Arc<Key>, abandoned: bool) -> Result<Self, FileError> {
        // SQLite gives the files beside it the same rights.
        drop(private::options().append(true).create(true).open(path)?);
        let mut db = Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        let is_empty = db.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0))? == 0;
        if is_empty {
            db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        }
        db.pragma_update(None, "journal_mode", "WAL")?;
        // A crash of the program loses nothing; one of the machine may lose the last moments.
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "journal_size_limit", 16 << 20)?;
        migrate(&mut db, path, &MIGRATIONS)?;
        check(&db, &key)?;
        let inode = inode(path)?;
        let mut file = Self { db, key, path: path.to_owned(), inode };
        if abandoned {
            match file.end_abandoned() {
                Err(error @ FileError::Damaged(_)) => return Err(error),
                // They can be read as they are.
                Err(error) => tracing::warn!(error = error.sentence(), "what was left pending stays so"),
                Ok(()) => {}
            }
        }
        Ok(file)
    }

    fn end_abandoned(&mut self) -> Result<(), FileError> {
        // Changes nothing where there is nothing to change: somebody else may be writing.
        if self.db.prepare("SELECT 1 FROM exchange WHERE open = 1")?.exists([])? {
            self.change(|change| change.end_abandoned())?;
        }
        Ok(())
    }

    /// Another connection for reading.
    pub(super) fn reader(path: &Path) -> Result<Connection, FileError> {
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "query_only", true)?;
        Ok(db)
    }

    /// Gives up a file that turned out to be damaged, and opens another; what was there is kept.
    pub(super) fn give_up(self, why: &FileError, in_use: &mut InUse) -> Result<(Self, Opened), FileError> {
        let path = self.path.clone();
        let lock = lock(path.parent().unwrap_or(Path::new(".")))?;
        let is_current = self.is_current();
        drop(self);
        let aside = if is_current { Some((set_aside(&path)?, why.sentence())) } else { None };
        drop(lock);
        let (file, opened) = Self::open(&path, in_use)?;
        Ok((file, Opened { set_aside: opened.set_aside.or(aside), ..opened }))
    }

    /// Whether the file still has its name: another program may have set it aside.
    pub(super) fn is_current(&self) -> bool {
        inode(&self.path).is_ok_and(|inode| inode == self.inode)
    }
}

/// Tells a file from another that has its name since. Windows gives nobody the name of a file that is open.
fn inode(path: &Path) -> io::Result<u64> {
    let file = std::fs::metadata(path)?;
    #[cfg(unix)]
    return Ok(std::os::unix::fs::MetadataExt::ino(&file));
    #[cfg(not(unix))]
    return Ok(u64::from(file.is_file()));
}

/// Held while a file is made, mended or set aside: two programs must not do that at once.
fn lock(folder: &Path) -> Result<std::fs::File, FileError> {
    let file = lock_file(&folder.join("lock"))?;
    let started = std::time::Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < BUSY => std::thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => return Err(FileError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}

fn lock_file(path: &Path) -> io::Result<std::fs::File> {
    // Some file systems share no lock of a file that is not open for reading.
    private::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Brings the schema up to date, in one step; before that a copy is made of what was there.
fn migrate(db: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), FileError> {
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    let newest = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    let before = version(db)?;
    if before == newest {
        return Ok(());
    }
    if before > 0 && before < newest {
        let copy = path.with_extension(format!("db.v{before}"));
        db.backup("main", &copy, None::<fn(rusqlite::backup::Progress)>)?;
    }
    let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another program may have been first.
    let before = version(&change)?;
    let missing = usize::try_from(before).ok().and_then(|before| steps.get(before..));
    for step in missing.ok_or(FileError::Newer(before))? {
        change.execute_batch(step)?;
    }
    change.pragma_update(None, "user_version", newest)?;
    Ok(change.commit()?)
}

/// Whether the key is the file's; a new file takes it.
fn check(db: &Connection, key: &Key) -> Result<(), FileError> {
    let kept = || db.query_row("SELECT sealed FROM total", [], |row| row.get::<_, Vec<u8>>(0)).optional();
    if kept()?.is_none() {
        let sealed = key.seal(b"check", CHECK);
        db.execute("INSERT INTO total VALUES (1, 0, 0, 0, 0, ?) ON CONFLICT DO NOTHING", [sealed])?;
    }
    let kept = kept()?.and_then(|sealed| key.open(b"check", sealed));
    if kept.as_deref() == Some(CHECK) { Ok(()) } else { Err(FileError::OtherKey) }
}

/// Gives the file another name, with what belongs to it.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let name =
        |n: u32| path.with_extension(format!("db.{now}{}", if n == 0 { String::new() } else { format!("-{n}") }));
    let aside = (0..100).map(name).find(|name| !name.exists()).ok_or(io::ErrorKind::AlreadyExists)?;
    std::fs::rename(path, &aside)?;
    for ending in ["-wal", "-shm"] {
        let beside = |path: &Path| PathBuf::from(format!("{}{ending}", path.display()));
        match std::fs::rename(beside(path), beside(&aside)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_set_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.db");
        std::fs::write(&path, vec![b'x'; 8192]).expect("written");
        let (_, opened) = File::open(&path, &mut InUse::new(true)).expect("a new file");
        let (aside, why) = opened.set_aside.expect("set aside");
        assert_eq!(std::fs::read(aside).expect("the old file").len(), 8192);
        assert!(why.starts_with("the file is damaged: "), "{why}");
        assert_eq!(File::open(&path, &mut InUse::new(true)).expect("opens").1, Opened::default());
    }

    #[test]
    fn a_lost_key_sets_the_history_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.db");
        assert!(File::open(&path, &mut InUse::new(true)).expect("a new file").1.new_key.is_some(), "said once");
        std::fs::remove_file(folder.path().join("key")).expect("lost");
        let (_, opened) = File::open(&path, &mut InUse::new(true)).expect("a new file");
        assert!(opened.new_key.is_some());
        assert_eq!(opened.set_aside.expect("set aside").1, "the history was sealed with another key");
    }

    #[test]
    fn a_newer_file_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.db");
        let (file, _) = File::open(&path, &mut InUse::new(true)).expect("a new file");
        file.db.pragma_update(None, "user_version", 77).expect("a pragma");
        drop(file);
        assert!(matches!(File::open(&path, &mut InUse::new(true)), Err(FileError::Newer(77))));
    }

    #[test]
    fn a_migration_leaves_a_copy() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.db");
        let mut db = Connection::open(&path).expect("a file");
        migrate(&mut db, &path, &["CREATE TABLE a (x)"]).expect("the first version");
        db.execute("INSERT INTO a VALUES (1)", []).expect("a row");
        migrate(&mut db, &path, &["CREATE TABLE a (x)", "CREATE TABLE b AS SELECT x FROM a"]).expect("the second");
        let rows = |db: &Connection, table: &str| {
            db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0))
        };
        assert_eq!(rows(&db, "b"), Ok(1));
        let copy = Connection::open(folder.path().join("history.db.v1")).expect("the copy");
        assert_eq!(rows(&copy, "a"), Ok(1));
        assert!(rows(&copy, "b").is_err());
    }
}
