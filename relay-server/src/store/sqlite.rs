//! The store in SQLite: what each call asks of the database.

mod audit;
mod backup;
mod database;
mod rows;
mod schema;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::host::EndpointName;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use self::audit::{add, note_of};
use self::rows::{at, audit_row, certificate, delivery, domain, endpoint, listener, token};
use super::audit::{AuditRow, By, Note, Via};
use super::{
    CertificateRow, Claimed, Dead, DomainRow, EndpointId, EndpointRow, Later, ListenerRow, Listing, NewDelivery,
    Payload, QueuedRow, Seq, Settled, Store, TokenRow,
};
pub(super) use backup::{backup, restore, versions};
pub(super) use database::{Database, path};

use crate::auth::Scope;
use crate::protection::Protection;

/// Tokens that were revoked or had expired this long ago are no longer listed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 86_400);

impl Store for Database {
    fn acting(&self, by: By) -> Arc<dyn Store> {
        Arc::new(self.acted_on_by(by))
    }

    fn note(&self, note: Note) -> Later<'_, ()> {
        let by = self.by.clone();
        self.write(move |db| add(db, &by, &note))
    }

    fn audit_log(&self, before: Option<u64>, most: usize) -> Later<'_, Vec<AuditRow>> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let before = before.map(|before| i64::try_from(before).unwrap_or(i64::MAX));
        self.read(move |db| {
            let sql = "SELECT * FROM audit WHERE seq < ifnull(?, seq + 1) ORDER BY seq DESC LIMIT ?";
            db.prepare_cached(sql)?.query_map(params![before, most], audit_row)?.collect()
        })
    }

    fn kept_key(&self, fresh: [u8; 32]) -> Later<'_, [u8; 32]> {
        self.write(move |db| {
            db.execute("INSERT INTO reset_key (one, key) VALUES (1, ?) ON CONFLICT DO NOTHING", [fresh])?;
            db.query_row("SELECT key FROM reset_key", [], |row| row.get(0))
        })
    }

    fn version(&self) -> Later<'_, i64> {
        // On the connection that writes: its own changes are nobody else's.
        self.write(|db| db.pragma_query_value(None, "data_version", |row| row.get(0)))
    }

    fn insert_token(&self, row: TokenRow) -> Later<'_, ()> {
        let by = self.by.clone();
        self.write(move |db| {
            let endpoints = row.endpoints.join(" ");
            // `hookway dev` makes one at each start.
            let old =
                row.created_at.saturating_sub(FORGOTTEN_AFTER).map_or_else(|_| String::new(), |at| at.to_string());
            db.execute("DELETE FROM token WHERE revoked_at < ?1 OR expires_at < ?1", [old])?;
            db.execute(
                "INSERT INTO token (id, name, hash, endpoints, created_at, expires_at, revoked_at, scope)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    row.id,
                    row.name,
                    row.hash,
                    endpoints,
                    row.created_at.to_string(),
                    row.expires_at.map(|at| at.to_string()),
                    row.revoked_at.map(|at| at.to_string()),
                    row.scope.name(),
                ],
            )?;
            let names = if endpoints.is_empty() { "any endpoint" } else { &endpoints };
            let detail = match row.scope {
                Scope::Client => format!("{}, for {names}", row.id),
                scope => format!("{}, for the admin API ({})", row.id, scope.name()),
            };
            add(db, &by, &Note::done("token.create", row.name, detail))
        })
    }

    fn tokens(&self) -> Later<'_, Vec<TokenRow>> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT * FROM token ORDER BY created_at, id")?;
            query.query_map([], token)?.collect()
        })
    }

    fn token(&self, hash: [u8; 32]) -> Later<'_, Option<TokenRow>> {
        self.read(move |db| {
            db.prepare_cached("SELECT * FROM token WHERE hash = ?")?.query_row([hash], token).optional()
        })
    }

    fn revoke_tokens(&self, id_or_name: &str, at: Timestamp) -> Later<'_, Vec<TokenRow>> {
        let (id_or_name, by) = (id_or_name.to_owned(), self.by.clone());
        self.write(move |db| {
            let mut query = db.prepare_cached(
                "UPDATE token SET revoked_at = ?2
                 WHERE (id = ?1 OR name = ?1 AND NOT EXISTS (SELECT 1 FROM token WHERE id = ?1)) AND revoked_at IS NULL
                 RETURNING *",
            )?;
            let revoked: Vec<TokenRow> =
                query.query_map(params![id_or_name, at.to_string()], token)?.collect::<Result<_, _>>()?;
            let note = |row: &TokenRow| add(db, &by, &Note::done("token.revoke", &row.name, &row.id));
            revoked.iter().try_for_each(note)?;
            Ok(revoked)
        })
    }

    fn claim_endpoint(&self, name: &EndpointName, owner: &str, most: usize, at: Timestamp) -> Later<'_, Claimed> {
        let (name, owner, now, at) = (name.to_string(), owner.to_owned(), at.as_microsecond(), at.to_string());
        let by = By::new(&owner, Via::Client);
        self.write(move |db| {
            let mut seen = db.prepare_cached("UPDATE endpoint SET last_seen_at = ?3 WHERE name = ?1 AND owner = ?2")?;
            let mut claim = db.prepare_cached(
                "INSERT INTO endpoint (name, owner, created_at, last_seen_at)
                 SELECT ?1, ?2, ?3, ?3 WHERE (SELECT count(*) FROM endpoint WHERE owner = ?2)
                     + (SELECT count(*) FROM held WHERE owner = ?2 AND until > ?5 AND name <> ?1
                        AND name NOT IN (SELECT name FROM endpoint)) < ?4
                 ON CONFLICT (name) DO NOTHING",
            )?;
            if seen.execute(params![name, owner, at])? == 0 {
                let sql = "SELECT until FROM held WHERE name = ?1 AND owner <> ?2 AND until > ?3
                               AND NOT EXISTS (SELECT 1 FROM endpoint WHERE name = ?1)";
                let held = db.query_row(sql, params![name, owner, now], |row| self::at(row, 0)).optional()?;
                if let Some(until) = held {
                    return Ok(Claimed::Held(until));
                }
                let most = i64::try_from(most).unwrap_or(i64::MAX);
                if claim.execute(params![name, owner, at, most, now])? > 0 {
                    add(db, &by, &Note::done("endpoint.claim", &name, ""))?;
                }
            }
            let row = db.query_row("SELECT * FROM endpoint WHERE name = ?", [name], endpoint).optional()?;
            Ok(row.map_or(Claimed::TooMany, Claimed::Has))
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

    fn release_endpoint(
        &self,
        name: &EndpointName,
        of: Option<EndpointId>,
        at: Timestamp,
        held: Timestamp,
    ) -> Later<'_, bool> {
        let (name, of, until) = (name.to_string(), of.map(|of| of.0), held);
        let (held, by) = (held.as_microsecond(), self.by.clone());
        let note = move |db: &Connection, name: &str, owner: &str| {
            let detail = format!("{owner} alone can have it until {until:.0}");
            add(db, &by, &Note::done("endpoint.release", name, detail))
        };
        self.write(move |db| {
            let sql = "DELETE FROM endpoint WHERE name = ?1 AND id = ifnull(?2, id) RETURNING id, owner";
            let gone = db.query_row(sql, params![name, of], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let Some((id, owner)): Option<(u64, String)> = gone else {
                let sql = "UPDATE held SET until = ?3 WHERE name = ?1 AND ?2 IS NULL AND until > ?4
                               AND NOT EXISTS (SELECT 1 FROM endpoint WHERE name = ?1) RETURNING owner";
                let held = params![name, of, held, at.as_microsecond()];
                let owner: Option<String> = db.query_row(sql, held, |row| row.get(0)).optional()?;
                owner.iter().try_for_each(|owner| note(db, &name, owner))?;
                return Ok(owner.is_some());
            };
            note(db, &name, &owner)?;
            db.execute(
                "INSERT OR REPLACE INTO held (name, owner, until) VALUES (?, ?, ?)",
                params![name, owner, held],
            )?;
            db.execute("DELETE FROM held WHERE until <= ?", [at.as_microsecond()])?;
            db.execute("DELETE FROM domain WHERE endpoint = ?", [id])?;
            let sql = "UPDATE delivery SET dead_since = ?, last = 'the endpoint was released'
                       WHERE endpoint = ? AND dead_since IS NULL";
            db.execute(sql, params![at.as_microsecond(), id])?;
            db.execute("DELETE FROM listener WHERE endpoint = ?", [id])?;
            Ok(true)
        })
    }

    fn put_protection(&self, name: &EndpointName, protection: Protection) -> Later<'_, bool> {
        let (name, by) = (name.to_string(), self.by.clone());
        self.write(move |db| {
            let kept = if protection.is_none() { String::new() } else { json(&protection)? };
            let there = db.execute("UPDATE endpoint SET protection = ? WHERE name = ?", params![kept, name])? > 0;
            if there {
                add(db, &by, &Note::done("endpoint.protect", name, protection.to_string()))?;
            }
            Ok(there)
        })
    }

    fn put_domain(&self, row: DomainRow) -> Later<'_, ()> {
        let by = self.by.clone();
        self.write(move |db| {
            let mut put = db.prepare_cached(
                "INSERT OR REPLACE INTO domain (host, endpoint, proved_at)
                 SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM endpoint WHERE id = ?2)",
            )?;
            if put.execute(params![row.host, row.endpoint.0, row.proved_at.as_microsecond()])? > 0 {
                let sql = "SELECT name FROM endpoint WHERE id = ?";
                let name: String = db.query_row(sql, [row.endpoint.0], |row| row.get(0))?;
                add(db, &by, &Note::done("domain.lead", row.host, format!("to {name}")))?;
            }
            Ok(())
        })
    }

    fn domains(&self) -> Later<'_, Vec<DomainRow>> {
        self.read(|db| db.prepare_cached("SELECT * FROM domain ORDER BY host")?.query_map([], domain)?.collect())
    }

    fn remove_domain(&self, host: &str, of: Option<EndpointId>) -> Later<'_, bool> {
        let (host, of, by) = (host.to_owned(), of.map(|of| of.0), self.by.clone());
        self.write(move |db| {
            let sql = "DELETE FROM domain WHERE host = ?1 AND endpoint = ifnull(?2, endpoint)";
            let there = db.execute(sql, params![host, of])? > 0;
            if there {
                add(db, &by, &Note::done("domain.release", host, ""))?;
            }
            Ok(there)
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
            let sql = "INSERT INTO payload (seq, head, body, trailers) VALUES (?, ?, ?, ?)";
            let mut insert = db.prepare_cached(sql)?;
            insert.execute(params![seq, &payload.head[..], &payload.body[..], &payload.trailers[..]])?;
            Ok(seq.cast_unsigned())
        })
    }

    fn deliveries(&self) -> Later<'_, Vec<QueuedRow>> {
        self.read(|db| db.prepare_cached("SELECT * FROM delivery ORDER BY seq")?.query_map([], delivery)?.collect())
    }

    fn list(&self, listing: Listing) -> Later<'_, Vec<QueuedRow>> {
        self.read(move |db| {
            let sql = "SELECT * FROM delivery WHERE seq > ?1 AND (?2 IS NULL OR name = ?2)
                           AND (?3 IS NULL OR (dead_since IS NOT NULL) = ?3) AND (?4 IS NULL OR id = ?4)
                       ORDER BY seq LIMIT ?5";
            let Listing { endpoint, dead, id, after, most } = listing;
            let [after, most] = [i64::try_from(after), i64::try_from(most)].map(|it| it.unwrap_or(i64::MAX));
            let id = id.map(|id| id.as_bytes().to_vec());
            db.prepare_cached(sql)?.query_map(params![after, endpoint, dead, id, most], delivery)?.collect()
        })
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
        let by = self.by.clone();
        self.write(move |db| {
            let all = dead(db, &which)?;
            note_of(db, &by, "delivery.retry", &all)?;
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

    fn acme_account(&self, directory: &str) -> Later<'_, Option<String>> {
        let directory = directory.to_owned();
        self.read(move |db| {
            let sql = "SELECT credentials FROM acme_account WHERE directory = ?";
            db.query_row(sql, [&directory], |row| row.get(0)).optional()
        })
    }

    fn put_acme_account(&self, directory: &str, credentials: String) -> Later<'_, ()> {
        let directory = directory.to_owned();
        self.write(move |db| {
            let sql = "INSERT OR REPLACE INTO acme_account (directory, credentials) VALUES (?, ?)";
            db.execute(sql, [directory, credentials]).map(drop)
        })
    }

    fn certificates(&self) -> Later<'_, Vec<CertificateRow>> {
        self.read(|db| {
            db.prepare_cached("SELECT * FROM certificate ORDER BY names")?.query_map([], certificate)?.collect()
        })
    }

    fn put_certificate(&self, row: CertificateRow, served: Option<Timestamp>) -> Later<'_, ()> {
        self.write(move |db| {
            let CertificateRow { names, directory, chain, key, due, failures, last_error, .. } = row;
            let mut put = db.prepare_cached(
                "INSERT INTO certificate (names, directory, chain, key, due, failures, last_error)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (names) DO UPDATE SET directory = ?2, chain = ?3, key = ?4, due = ?5, failures = ?6,
                     last_error = ?7, asked_at = CASE WHEN asked_at <= ?8 THEN NULL ELSE asked_at END",
            )?;
            let (due, served) = (due.as_microsecond(), served.map(Timestamp::as_microsecond));
            put.execute(params![names, directory, chain, key, due, failures, last_error, served]).map(drop)
        })
    }

    fn remove_certificate(&self, names: &str) -> Later<'_, ()> {
        let names = names.to_owned();
        self.write(move |db| db.execute("DELETE FROM certificate WHERE names = ?", [names]).map(drop))
    }

    fn renew_certificates(&self, at: Timestamp) -> Later<'_, usize> {
        let by = self.by.clone();
        self.write(move |db| {
            let count = db.execute("UPDATE certificate SET asked_at = ?", [at.as_microsecond()])?;
            add(db, &by, &Note::done("certificate.renew", "all", format!("{count} due")))?;
            Ok(count)
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
        let by = self.by.clone();
        self.write(move |db| {
            let all = dead(db, &which)?;
            // What has been kept long enough, the relay removes by itself.
            if by.via != Via::Relay {
                note_of(db, &by, "delivery.discard", &all)?;
            }
            all.iter().try_for_each(|seq| delete(db, *seq))?;
            Ok(all)
        })
    }
}

fn json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
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
        Dead::Before(at) => find("dead_since <= ?", &at.as_microsecond()),
    }
}
