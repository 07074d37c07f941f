//! A change of what is kept: all of it or nothing.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use hookway_protocol::id::DeliveryId;

use super::file::{File, FileError};
use super::key::Key;
use super::record::Record;
use super::{Limits, place};

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

/// A change that goes on.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) db: Transaction<'a>,
    pub(super) total: Total,
    key: &'a Key,
}

impl File {
    /// Changes what is kept. What there is by then, too.
    pub(super) fn change<T>(
        &mut self,
        work: impl FnOnce(&mut Change<'_>) -> Result<T, FileError>,
    ) -> Result<(T, Total), FileError> {
        let db = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = Total::read(&db)?;
        let mut change = Change { db, total: before, key: &self.key };
        let done = work(&mut change)?;
        let Change { db, total, .. } = change;
        if total != before {
            total.write(&db)?;
        }
        db.commit()?;
        Ok((done, total))
    }
}

impl Total {
    pub(super) fn read(db: &Connection) -> Result<Self, FileError> {
        let mut query = db.prepare_cached("SELECT version, count, bytes, generation FROM total")?;
        Ok(query.query_row([], |row| {
            Ok(Self { version: row.get(0)?, count: row.get(1)?, bytes: row.get(2)?, generation: row.get(3)? })
        })?)
    }

    fn write(self, db: &Connection) -> Result<(), FileError> {
        let mut update = db.prepare_cached("UPDATE total SET version = ?, count = ?, bytes = ?, generation = ?")?;
        update.execute(params![self.version, self.count, self.bytes, self.generation])?;
        Ok(())
    }
}

impl Change<'_> {
    /// Whether there is such an exchange.
    pub(super) fn knows(&self, id: DeliveryId) -> Result<bool, FileError> {
        Ok(self.db.prepare_cached("SELECT 1 FROM exchange WHERE id = ?")?.exists([id.as_bytes()])?)
    }

    /// Keeps an exchange, or adds to the one that is there.
    pub(super) fn put(&mut self, record: &Record) -> Result<(), FileError> {
        let known = self
            .db
            .prepare_cached("SELECT seq, heads, size FROM exchange WHERE id = ?")?
            .query_row([record.id.as_bytes()], |row| {
                Ok((row.get::<_, u64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, u64>(2)?))
            })
            .optional()?;
        self.total.version += 1;
        match known {
            Some((seq, heads, size)) => self.join(record, seq, heads, size),
            None => self.insert(record),
        }
    }

    fn insert(&mut self, record: &Record) -> Result<(), FileError> {
        let seq = self.total.version;
        let sealed = self.seal(seq, &record.heads, &record.bodies);
        let size = size(&sealed);
        let at = Timestamp::now().as_microsecond();
        self.db.prepare_cached("INSERT INTO exchange VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
            seq,
            record.id.as_bytes(),
            at,
            size,
            record.pinned,
            record.open,
            sealed[0]
        ])?;
        self.db.prepare_cached("INSERT INTO body VALUES (?, ?)")?.execute(params![seq, sealed[1]])?;
        self.total.count += 1;
        self.total.bytes += size;
        Ok(())
    }

    fn join(&mut self, record: &Record, seq: u64, heads: Vec<u8>, old_size: u64) -> Result<(), FileError> {
        let mut query = self.db.prepare_cached("SELECT sealed FROM body WHERE seq = ?")?;
        let bodies = query.query_row([seq], |row| row.get::<_, Vec<u8>>(0))?;
        // What cannot be opened is replaced by what is known now.
        let opened = self.key.open(&place(seq, b'h'), heads).zip(self.key.open(&place(seq, b'b'), bodies));
        let joined = opened.and_then(|(heads, bodies)| record.after(&heads, &bodies).ok());
        let (heads, bodies) =
            joined.as_ref().map_or((&record.heads[..], &record.bodies[..]), |(heads, bodies)| (heads, bodies));
        let sealed = self.seal(seq, heads, bodies);
        let size = size(&sealed);
        let sql = "UPDATE exchange SET version = ?, size = ?, open = ?, heads = ? WHERE seq = ?";
        self.db.prepare_cached(sql)?.execute(params![self.total.version, size, record.open, sealed[0], seq])?;
        self.db.prepare_cached("UPDATE body SET sealed = ? WHERE seq = ?")?.execute(params![sealed[1], seq])?;
        self.total.bytes = (self.total.bytes + size).saturating_sub(old_size);
        Ok(())
    }

    fn seal(&self, seq: u64, heads: &[u8], bodies: &[u8]) -> [Vec<u8>; 2] {
        [self.key.seal(&place(seq, b'h'), heads), self.key.seal(&place(seq, b'b'), bodies)]
    }

    /// Ends the exchanges that nobody goes on with: the client that did was killed.
    pub(super) fn end_abandoned(&mut self) -> Result<(), FileError> {
        let mut query = self.db.prepare_cached("SELECT seq, id FROM exchange WHERE open = 1")?;
        let open = query.query_map([], |row| Ok((row.get(0)?, DeliveryId::from_bytes(row.get(1)?))))?;
        let open = open.collect::<Result<Vec<(u64, DeliveryId)>, _>>()?;
        drop(query);
        // One at a time: their bodies may be large.
        for (seq, id) in open {
            let sql = "SELECT heads, sealed FROM exchange JOIN body USING (seq) WHERE seq = ?";
            let sealed = self.db.prepare_cached(sql)?.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)));
            let (heads, bodies) = sealed?;
            let opened = self.key.open(&place(seq, b'h'), heads).zip(self.key.open(&place(seq, b'b'), bodies));
            // What cannot be opened stays as it is.
            if let Some(record) = opened.and_then(|(heads, _)| Record::abandoned(id, &heads).ok()) {
                self.put(&record)?;
            }
        }
        Ok(())
    }

    /// Removes the oldest that are over a limit, at most so many. Whether there are more.
    pub(super) fn prune(&mut self, limits: Limits, most: usize) -> Result<bool, FileError> {
        let age = i64::try_from(limits.max_age.as_micros()).unwrap_or(i64::MAX);
        let too_old = Timestamp::now().as_microsecond().saturating_sub(age);
        for removed in 0.. {
            let mut oldest =
                self.db.prepare_cached("SELECT seq, at FROM exchange WHERE pinned = 0 ORDER BY seq LIMIT 1")?;
            let row = oldest.query_row([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?))).optional()?;
            drop(oldest);
            // Pinned ones alone may be over the limit.
            let Some((seq, at)) = row else { break };
            if self.total.count <= limits.max_count && self.total.bytes <= limits.max_bytes && at >= too_old {
                break;
            }
            if removed == most {
                return Ok(true);
            }
            self.remove(seq)?;
        }
        Ok(false)
    }

    /// Removes an exchange. Whether there was such a one.
    pub(super) fn remove(&mut self, seq: u64) -> Result<bool, FileError> {
        let mut delete = self.db.prepare_cached("DELETE FROM exchange WHERE seq = ? RETURNING size")?;
        let Some(size) = delete.query_row([seq], |row| row.get::<_, u64>(0)).optional()? else { return Ok(false) };
        self.db.prepare_cached("DELETE FROM body WHERE seq = ?")?.execute([seq])?;
        self.total.count = self.total.count.saturating_sub(1);
        self.total.bytes = self.total.bytes.saturating_sub(size);
        Ok(true)
    }
}

fn size(sealed: &[Vec<u8>; 2]) -> u64 {
    sealed.iter().map(Vec::len).sum::<usize>() as u64
}
