//! What is asked of the history.

use std::fmt;
use std::str::FromStr;

use hookway_protocol::id::DeliveryId;
use rusqlite::{OptionalExtension, Row, params};

use super::change::Total;
use super::record;
use super::{FileError, Reader, place};
use crate::exchange::Exchange;
use crate::filter::Filter;

/// Which exchanges to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// Only those that it takes.
    pub(crate) filter: Filter,
    /// Only those that arrived before this one.
    pub(crate) before: Option<u64>,
    /// At most so many.
    pub(crate) limit: usize,
    /// Counts those that match beyond the limit, too.
    pub(crate) count: bool,
    /// With their bodies.
    pub(crate) bodies: bool,
}

/// Exchanges, the newest first.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) exchanges: Vec<Exchange>,
    /// How many match, if that was asked.
    pub(crate) matched: Option<u64>,
    /// Where the next page begins.
    pub(crate) next: Option<u64>,
    pub(crate) total: Total,
}

/// What a visitor of exchanges wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// The next one.
    More,
    /// No more.
    Enough,
}

/// An exchange as a person names it: an id, its beginning, its end, both with `…` between, or `@1` for the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Counted from the newest, from 1.
    Newest(u64),
    /// This one.
    Id(DeliveryId),
    /// The one whose id begins and ends so, in upper case.
    Like(String, String),
}

/// There is no such exchange, or more than one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WhichError {
    /// None.
    #[error("there is no request {0}")]
    None(Which),
    /// More than one.
    #[error("more than one request is meant by {0}: {1} and {2}")]
    Several(Which, DeliveryId, DeliveryId),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest(n) => write!(f, "@{n}"),
            Self::Id(id) => id.fmt(f),
            Self::Like(start, end) if start.is_empty() => write!(f, "…{end}"),
            Self::Like(start, end) => write!(f, "req_{start}…{end}"),
        }
    }
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no request: give its id, a part of it (req_…), or @1 for the newest");
        if let Some(number) = text.strip_prefix('@') {
            let number =
                number.parse::<u64>().ok().filter(|number| *number > 0).map(|number| number.min(i64::MAX as u64));
            return number.map(Self::Newest).ok_or_else(wrong);
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
        let upper = |part: &str| part.to_ascii_uppercase();
        let rest = text.strip_prefix("req_");
        match (rest.unwrap_or(text).split_once('…'), rest) {
            (Some((start, end)), _) if digits(start) && digits(end) && !end.is_empty() => {
                Ok(Self::Like(upper(start), upper(end)))
            }
            (None, Some(start)) if digits(start) && !start.is_empty() => Ok(Self::Like(upper(start), String::new())),
            (None, None) if digits(text) && text.len() >= 3 => Ok(Self::Like(String::new(), upper(text))),
            _ => Err(wrong()),
        }
    }
}

const COLUMNS: &str = "SELECT e.seq, e.version, e.pinned, e.heads";

impl Reader<'_> {
    /// How many there are.
    pub(crate) fn total(&self) -> Result<Total, FileError> {
        Total::read(self.db)
    }

    /// One page of those that match.
    pub(crate) fn list(&self, query: &Query) -> Result<Page, FileError> {
        let total = self.total()?;
        let mut page = Page { exchanges: Vec::new(), matched: None, next: None, total };
        if query.filter.is_empty() && query.count {
            page.matched = Some(total.count);
        }
        let counts = query.count && page.matched.is_none();
        let mut matched = 0;
        self.visit(&query.filter, query.before, query.bodies, |exchange| {
            matched += 1;
            if page.exchanges.len() < query.limit {
                page.exchanges.push(exchange);
                return Listed::More;
            }
            page.next = page.next.or_else(|| page.exchanges.last().map(|last| last.seq));
            if counts { Listed::More } else { Listed::Enough }
        })?;
        if counts {
            page.matched = Some(matched);
        }
        Ok(page)
    }

    /// Those that match, the newest first, until enough is said. A row that cannot be opened is passed over.
    pub(crate) fn visit(
        &self,
        filter: &Filter,
        before: Option<u64>,
        bodies: bool,
        mut visit: impl FnMut(Exchange) -> Listed,
    ) -> Result<(), FileError> {
        let bodies = bodies || filter.needs_bodies();
        let from = if bodies { ", b.sealed FROM exchange e JOIN body b USING (seq)" } else { " FROM exchange e" };
        let sql = format!("{COLUMNS}{from} WHERE e.seq < ? ORDER BY e.seq DESC");
        let mut query = self.db.prepare_cached(&sql)?;
        let before = before.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
        let mut rows = query.query([before])?;
        while let Some(row) = rows.next()? {
            let Some(exchange) = self.open(row, bodies)? else { continue };
            if filter.matches(&exchange) && visit(exchange) == Listed::Enough {
                break;
            }
        }
        Ok(())
    }

    /// The places of those that match, the oldest first.
    pub(crate) fn sequence(&self, filter: &Filter) -> Result<Vec<u64>, FileError> {
        let mut all = Vec::new();
        self.visit(filter, None, false, |exchange| {
            all.push(exchange.seq);
            Listed::More
        })?;
        all.reverse();
        Ok(all)
    }

    /// The places of these.
    pub(crate) fn sequence_of(&self, all: &[Which]) -> Result<Result<Vec<u64>, WhichError>, FileError> {
        all.iter().map(|which| self.place(which)).collect()
    }

    /// The places of those that match and may be deleted by the many.
    pub(crate) fn unpinned(&self, filter: &Filter) -> Result<Vec<u64>, FileError> {
        let mut all = Vec::new();
        self.visit(filter, None, false, |exchange| {
            if !exchange.pinned {
                all.push(exchange.seq);
            }
            Listed::More
        })?;
        Ok(all)
    }

    /// Those that were changed after `version`, the first changed first.
    pub(crate) fn changes(&self, version: u64, most: usize, bodies: bool) -> Result<Vec<Exchange>, FileError> {
        let from = if bodies { ", b.sealed FROM exchange e JOIN body b USING (seq)" } else { " FROM exchange e" };
        let sql = format!("{COLUMNS}{from} WHERE e.version > ? ORDER BY e.version LIMIT ?");
        let mut query = self.db.prepare_cached(&sql)?;
        let mut rows = query.query(params![version, most as u64])?;
        let mut changes = Vec::new();
        while let Some(row) = rows.next()? {
            changes.extend(self.open(row, bodies)?);
        }
        Ok(changes)
    }

    /// One exchange, whole.
    pub(crate) fn get(&self, which: &Which) -> Result<Result<Exchange, WhichError>, FileError> {
        let seq = match self.place(which)? {
            Ok(seq) => seq,
            Err(error) => return Ok(Err(error)),
        };
        Ok(self.at(seq)?.ok_or_else(|| WhichError::None(which.clone())))
    }

    /// The exchange at that place, whole, if it is there.
    pub(crate) fn at(&self, seq: u64) -> Result<Option<Exchange>, FileError> {
        let sql = format!("{COLUMNS}, b.sealed FROM exchange e JOIN body b USING (seq) WHERE e.seq = ?");
        let mut query = self.db.prepare_cached(&sql)?;
        let mut rows = query.query([seq])?;
        Ok(match rows.next()? {
            Some(row) => self.open(row, true)?,
            None => None,
        })
    }

    /// Those at these places; ends early where one cannot be read, and says why in `broken`.
    pub(crate) fn all<'a>(
        &'a self,
        places: &'a [u64],
        broken: &'a mut Option<FileError>,
    ) -> impl Iterator<Item = Exchange> + 'a {
        let read = places.iter().map_while(|seq| match self.at(*seq) {
            Ok(exchange) => Some(exchange),
            Err(error) => {
                *broken = Some(error);
                None
            }
        });
        // Some may have been too old by now.
        read.flatten()
    }

    fn place(&self, which: &Which) -> Result<Result<u64, WhichError>, FileError> {
        let seq = match which {
            Which::Newest(n) => {
                let sql = "SELECT seq FROM exchange ORDER BY seq DESC LIMIT 1 OFFSET ?";
                self.db.query_row(sql, [n - 1], |row| row.get::<_, u64>(0)).optional()?
            }
            Which::Id(id) => {
                let sql = "SELECT seq FROM exchange WHERE id = ?";
                self.db.query_row(sql, [id.as_bytes()], |row| row.get::<_, u64>(0)).optional()?
            }
            Which::Like(start, end) => match self.like(start, end)?.as_slice() {
                [] => None,
                [(seq, _)] => Some(*seq),
                [(_, one), (_, other), ..] => return Ok(Err(WhichError::Several(which.clone(), *one, *other))),
            },
        };
        Ok(seq.ok_or_else(|| WhichError::None(which.clone())))
    }

    /// At most two whose ids begin and end so.
    fn like(&self, start: &str, end: &str) -> Result<Vec<(u64, DeliveryId)>, FileError> {
        let mut query = self.db.prepare_cached("SELECT seq, id FROM exchange ORDER BY seq DESC")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, DeliveryId::from_bytes(row.get(1)?))))?;
        let mut found = Vec::new();
        for row in rows {
            let (seq, id) = row?;
            let text = id.to_string();
            let digits = &text["req_".len()..];
            if digits.starts_with(start) && digits.ends_with(end) {
                found.push((seq, id));
                if found.len() == 2 {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The exchange in a row; `None` when it cannot be opened.
    fn open(&self, row: &Row<'_>, bodies: bool) -> Result<Option<Exchange>, FileError> {
        let seq: u64 = row.get(0)?;
        let heads = self.key.open(&place(seq, b'h'), row.get(3)?);
        let sealed = if bodies { Some(row.get(4)?) } else { None };
        let bodies = sealed.map(|sealed| self.key.open(&place(seq, b'b'), sealed));
        let read = heads.map(|heads| record::read(heads.into(), bodies.flatten().map(Into::into)));
        match read {
            Some(Ok(exchange)) => Ok(Some(Exchange { seq, version: row.get(1)?, pinned: row.get(2)?, ..exchange })),
            _ => {
                tracing::warn!(seq, "a row of the history cannot be read");
                Ok(None)
            }
        }
    }
}
