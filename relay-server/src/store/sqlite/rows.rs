//! What the tables' rows are to the relay. A later version may have put columns after these.

use std::str::FromStr;

use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;
use rusqlite::Row;

use crate::protection::Protection;
use crate::store::{
    AuditRow, CertificateRow, DomainRow, EndpointId, EndpointRow, ListenerRow, Missed, NewDelivery, QueuedRow, TokenRow,
};

pub(super) fn endpoint(row: &Row<'_>) -> rusqlite::Result<EndpointRow> {
    Ok(EndpointRow {
        id: EndpointId(row.get(0)?),
        name: row.get(1)?,
        owner: row.get(2)?,
        created_at: parsed(row, 3)?,
        last_seen_at: parsed(row, 4)?,
        protection: Protection::kept(&row.get::<_, String>(5)?)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(5, rusqlite::types::Type::Text, error.into()))?,
    })
}

pub(super) fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        seq: row.get(0)?,
        at: at(row, 1)?,
        actor: row.get(2)?,
        via: row.get(3)?,
        action: row.get(4)?,
        target: row.get(5)?,
        detail: row.get(6)?,
        refused: row.get(7)?,
    })
}

pub(super) fn domain(row: &Row<'_>) -> rusqlite::Result<DomainRow> {
    Ok(DomainRow { host: row.get(0)?, endpoint: EndpointId(row.get(1)?), proved_at: at(row, 2)? })
}

pub(super) fn certificate(row: &Row<'_>) -> rusqlite::Result<CertificateRow> {
    Ok(CertificateRow {
        names: row.get(0)?,
        directory: row.get(1)?,
        chain: row.get(2)?,
        key: row.get(3)?,
        due: at(row, 4)?,
        failures: row.get(5)?,
        last_error: row.get(6)?,
        asked_at: row.get::<_, Option<i64>>(7)?.map(|_| at(row, 7)).transpose()?,
    })
}

pub(super) fn listener(row: &Row<'_>) -> rusqlite::Result<ListenerRow> {
    let since = row.get::<_, Option<i64>>(5)?.map(|_| at(row, 5)).transpose()?;
    let missed = Missed { count: row.get(4)?, since, why: row.get(6)? };
    let (endpoint, name, rules) = (EndpointId(row.get(0)?), row.get(1)?, row.get(2)?);
    Ok(ListenerRow { endpoint, name, rules, seen_at: at(row, 3)?, missed })
}

pub(super) fn delivery(row: &Row<'_>) -> rusqlite::Result<QueuedRow> {
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

pub(super) fn at(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    let wrong = |error: jiff::Error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Integer, error.into())
    };
    Timestamp::from_microsecond(row.get(column)?).map_err(wrong)
}

pub(super) fn token(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    let endpoints: String = row.get("endpoints")?;
    Ok(TokenRow {
        id: row.get("id")?,
        name: row.get("name")?,
        hash: row.get("hash")?,
        endpoints: endpoints.split_whitespace().map(str::to_owned).collect(),
        scope: parsed(row, 7)?,
        created_at: parsed(row, 4)?,
        expires_at: row.get::<_, Option<String>>(5)?.map(|_| parsed(row, 5)).transpose()?,
        revoked_at: row.get::<_, Option<String>>(6)?.map(|_| parsed(row, 6)).transpose()?,
    })
}

pub(super) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let wrong =
        |error: T::Err| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into());
    row.get::<_, String>(column)?.parse().map_err(wrong)
}
