//! The audit log's table.

use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use crate::store::audit::{MOST_KEPT, MOST_REFUSED_KEPT};
use crate::store::{By, Note, Seq};

/// Adds a line to the audit log, in the same transaction as what it tells of.
pub(super) fn add(db: &Connection, by: &By, note: &Note) -> rusqlite::Result<()> {
    let Note { action, target, detail, refused } = note;
    let mut insert = db.prepare_cached(
        "INSERT INTO audit (at, actor, via, action, target, detail, refused) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING seq",
    )?;
    let at = Timestamp::now().as_microsecond();
    let row = params![at, &*by.actor, by.via.name(), action, target, detail, refused];
    let seq: u64 = insert.query_row(row, |row| row.get(0))?;
    let oldest = seq.saturating_sub(MOST_KEPT);
    if *refused {
        let sql = "DELETE FROM audit WHERE refused = 1 AND seq <=
                       (SELECT seq FROM audit WHERE refused = 1 ORDER BY seq DESC LIMIT 1 OFFSET ?)";
        db.prepare_cached(sql)?.execute([MOST_REFUSED_KEPT])?;
    }
    db.prepare_cached("DELETE FROM audit WHERE seq <= ?")?.execute([oldest]).map(drop)
}

/// Adds a line for each of a few deliveries, or one for many.
pub(super) fn note_of(db: &Connection, by: &By, action: &'static str, all: &[Seq]) -> rusqlite::Result<()> {
    const FEW: usize = 20;
    if all.len() > FEW {
        return add(db, by, &Note::done(action, "many", format!("{} deliveries", all.len())));
    }
    for seq in all {
        let sql = "SELECT id, name FROM delivery WHERE seq = ?";
        let of = |row: &Row<'_>| Ok((DeliveryId::from_bytes(row.get(0)?).to_string(), row.get::<_, String>(1)?));
        let (id, name) = db.prepare_cached(sql)?.query_row([seq], of)?;
        add(db, by, &Note::done(action, id, format!("of {name}")))?;
    }
    Ok(())
}
